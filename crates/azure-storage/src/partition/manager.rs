//! A worker's partition manager: the one that the hub uses, for as long as this application has the hub.

use std::sync::Arc;

use taskhub_core::PartitionId;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use crate::hub::{Hub, PartitionManagerKind};
use crate::partition::app_lease::AppLease;
use crate::partition::blob_manager::BlobManager;
use crate::partition::owner::PartitionOwner;
use crate::partition::status::StatusBoard;
use crate::partition::table_manager::TableManager;

/// Acquires, balances, renews and hands back partitions of one worker.
pub(crate) struct PartitionManager {
    hub: Hub,
    owner: Arc<dyn PartitionOwner>,
    kind: PartitionManagerKind,
}

impl PartitionManager {
    pub(crate) fn new(hub: Hub, owner: Arc<dyn PartitionOwner>, kind: PartitionManagerKind) -> Self {
        Self { hub, owner, kind }
    }

    /// Runs until `stop`, then hands all partitions back; `force` ends that early.
    pub(crate) async fn run(self, stop: CancellationToken, force: CancellationToken) {
        if !self.hub.settings.use_app_lease {
            return self.manage(self.owner.clone(), stop, force).await;
        }
        let lease = match AppLease::new(self.hub.clone()) {
            Ok(lease) => lease,
            Err(e) => {
                return tracing::error!(hub = %self.hub.name(), error = e.chain(), "no app lease");
            }
        };
        let (sender, mut held) = watch::channel(None);
        let _holding =
            AbortOnDropHandle::new(tokio::spawn(lease.hold(self.kind, self.owner.clone(), sender)));
        loop {
            tokio::select! {
                biased;
                got = held.wait_for(Option::is_some) => if got.is_err() { return },
                () = stop.cancelled() => return,
                () = force.cancelled() => return,
            }
            // Without the app lease another application has the hub: partitions go back until it returns.
            let lost = stop.child_token();
            let owner = Arc::new(Limited { owner: self.owner.clone(), app_lease: held.clone() });
            let managing = self.manage(owner, lost.clone(), force.clone());
            tokio::pin!(managing);
            let ended = tokio::select! {
                biased;
                () = &mut managing => true,
                _ = held.wait_for(Option::is_none) => false,
            };
            if !ended {
                tracing::warn!(hub = %self.hub.name(), "the app lease is lost; handing the partitions back");
                lost.cancel();
                managing.await;
            }
            if stop.is_cancelled() || force.is_cancelled() {
                return;
            }
        }
    }

    async fn manage(
        &self,
        owner: Arc<dyn PartitionOwner>,
        stop: CancellationToken,
        force: CancellationToken,
    ) {
        let hub = self.hub.clone();
        match self.kind {
            PartitionManagerKind::Table => TableManager::new(hub, owner).run(stop, force).await,
            kind => BlobManager::new(hub, owner, kind).run(stop, force).await,
        }
    }
}

/// Receives no longer than the app lease holds.
struct Limited {
    owner: Arc<dyn PartitionOwner>,
    app_lease: watch::Receiver<Option<Instant>>,
}

#[async_trait::async_trait]
impl PartitionOwner for Limited {
    fn receive(&self, partition: PartitionId, lease_until: Instant) {
        let app_lease = *self.app_lease.borrow();
        // Lost: the manager is about to be told.
        let Some(app_lease_until) = app_lease else { return };
        self.owner.receive(partition, lease_until.min(app_lease_until));
    }

    fn is_receiving(&self, partition: PartitionId) -> bool {
        self.owner.is_receiving(partition)
    }

    fn is_live(&self, partition: PartitionId) -> bool {
        self.owner.is_live(partition)
    }

    fn restart(&self, partition: PartitionId) {
        self.owner.restart(partition);
    }

    fn stop_receiving(&self, partition: PartitionId) {
        self.owner.stop_receiving(partition);
    }

    async fn drain(&self, partition: PartitionId) {
        self.owner.drain(partition).await;
    }

    fn status(&self) -> &StatusBoard {
        self.owner.status()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::sync::atomic::{AtomicU32, Ordering};
    use std::sync::{Mutex, MutexGuard};
    use std::time::Duration;

    use taskhub_core::{Clock, SeededIds, TaskHubName};
    use taskhub_storage::memory::MemoryStore;
    use taskhub_testkit::{VirtualClock, eventually_within};

    use super::*;
    use crate::settings::AzureStorageSettings;

    /// A worker whose receive loop for one partition never comes to life.
    #[derive(Default)]
    struct Hands {
        receiving: Mutex<BTreeSet<PartitionId>>,
        dead: Option<PartitionId>,
        restarts: AtomicU32,
        status: StatusBoard,
    }

    impl Hands {
        fn receiving(&self) -> MutexGuard<'_, BTreeSet<PartitionId>> {
            self.receiving.lock().unwrap()
        }
    }

    #[async_trait::async_trait]
    impl PartitionOwner for Hands {
        fn receive(&self, partition: PartitionId, _: Instant) {
            self.receiving().insert(partition);
        }

        fn is_receiving(&self, partition: PartitionId) -> bool {
            self.receiving().contains(&partition)
        }

        fn is_live(&self, partition: PartitionId) -> bool {
            self.is_receiving(partition) && self.dead != Some(partition)
        }

        fn restart(&self, _: PartitionId) {
            self.restarts.fetch_add(1, Ordering::Relaxed);
        }

        fn stop_receiving(&self, partition: PartitionId) {
            self.receiving().remove(&partition);
        }

        async fn drain(&self, partition: PartitionId) {
            self.receiving().remove(&partition);
        }

        fn status(&self) -> &StatusBoard {
            &self.status
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_partition_whose_receive_loop_is_dead_goes_to_another_worker() {
        for kind in PartitionManagerKind::ALL {
            let clock: Arc<dyn Clock> = Arc::new(VirtualClock::default());
            let account = MemoryStore::new(clock.clone()).account();
            let start = |worker: &str, hands: &Arc<Hands>| {
                let mut settings = AzureStorageSettings::new(TaskHubName::new("Hub").unwrap(), worker);
                settings.partition_manager = Some(kind);
                settings.partition_count = Some(2);
                let ids = Arc::new(SeededIds::new(worker.len() as u64));
                let hub = Hub::new(settings, account.clone(), clock.clone(), ids).unwrap();
                let manager = PartitionManager::new(hub.clone(), hands.clone(), kind);
                let task = async move {
                    hub.create().await.unwrap();
                    manager.run(CancellationToken::new(), CancellationToken::new()).await;
                };
                AbortOnDropHandle::new(tokio::spawn(task))
            };
            let dead = PartitionId(1);
            let sick = Arc::new(Hands { dead: Some(dead), ..Hands::default() });
            let _first = start("sick", &sick);
            let both = || async { (sick.receiving().len() == 2).then_some(()) };
            eventually_within(Duration::from_secs(10), "both queues", both).await;
            let well = Arc::new(Hands::default());
            let _second = start("well-worker", &well);
            eventually_within(Duration::from_secs(60), "the dead queue changes hands", || async {
                (well.is_receiving(dead) && !sick.is_receiving(dead)).then_some(())
            })
            .await;
            assert!(sick.restarts.load(Ordering::Relaxed) > 0, "{kind}: a new loop was tried first");
        }
    }
}
