//! A machine that is suspended: wall clocks and other workers go on, its timers stand still.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use taskhub_azure_storage::PartitionManagerKind;
use taskhub_core::{Clock, OrchestrationService, Timestamp};
use taskhub_storage::memory::MemoryStore;
use taskhub_storage::request::{OperationCounts, RequestSettings};
use taskhub_testkit::VirtualClock;

use crate::support::*;

const SECOND: Duration = Duration::from_secs(1);

/// A wall clock that is ahead of the timer by what the machine has slept.
#[derive(Debug, Default)]
struct Wall {
    awake: VirtualClock,
    slept: Mutex<Duration>,
}

impl Wall {
    fn suspend(&self, duration: Duration) {
        *self.slept.lock().unwrap() += duration;
    }
}

impl Clock for Wall {
    fn now(&self) -> Timestamp {
        self.awake.now() + *self.slept.lock().unwrap()
    }
}

/// Receives from control queues.
fn receives(counts: &OperationCounts) -> u64 {
    let control =
        |(_, name, queue): &(_, &str, String)| *name == "GetMessages" && queue.contains("-control-");
    counts.by_resource().into_iter().filter(|(key, _)| control(key)).map(|(_, count)| count.count).sum()
}

#[tokio::test(start_paused = true)]
async fn a_worker_that_wakes_up_receives_nothing_before_its_leases_are_renewed() {
    for kind in PartitionManagerKind::ALL {
        let wall = Arc::new(Wall::default());
        let clock: Arc<dyn Clock> = wall.clone();
        let store = MemoryStore::new(clock.clone());
        let counts = OperationCounts::default();
        let account = store.account().layered(RequestSettings::default(), &counts);
        let world = World { clock: clock.clone(), store: store.clone(), account };
        let mut settings = World::settings("w1");
        settings.partition_manager = Some(kind);
        settings.use_app_lease = false;
        settings.max_queue_polling_interval = SECOND;
        let first = world.worker_with(settings.clone()).await;
        tokio::time::sleep(SECOND * 61).await;
        // Just after a renewal: the next one is due in some ten seconds, by the timer.
        let renewals = || ["RenewLease", "EntityGroupTransaction"].map(|name| counts.of(name).count);
        let before = renewals();
        while renewals() == before {
            tokio::time::sleep(SECOND / 100).await;
        }
        let before = receives(&counts);
        tokio::time::sleep(SECOND * 2).await;
        assert!(receives(&counts) > before, "{kind}: it receives every second");

        wall.suspend(SECOND * 45);
        // Another worker has come, and takes what has run out.
        let other = World { clock, store: store.clone(), account: store.account() };
        settings.worker_id = "w2".into();
        let asleep = receives(&counts);
        let second = other.worker_with(settings).await;
        start(&other.client(), "i").await;
        tokio::time::sleep(SECOND * 4).await;
        assert_eq!(receives(&counts), asleep, "{kind}: received on leases that had run out");
        // Both go on as members of the fleet.
        let both = async {
            tokio::select! {
                item = first.lock_next_orchestration(SECOND * 60) => item,
                item = second.lock_next_orchestration(SECOND * 60) => item,
            }
        };
        assert!(both.await.unwrap().is_some(), "{kind}");
    }
}
