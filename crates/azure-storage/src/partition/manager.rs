//! The table partition manager's loop: reads the rows, carries out the decisions of [`super::table`].

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures::future::join_all;
use taskhub_core::{PartitionId, ServiceError, WorkerId};
use taskhub_storage::{Condition, ErrorKind, TableOperation};
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::hub::Hub;
use crate::partition::app_lease::AppLease;
use crate::partition::owner::PartitionOwner;
use crate::partition::table::{self, Asker, Drain, Local, PartitionLease, Step};

/// Interval while a hand-over is under way. Source: Azure/durabletask, `TablePartitionManager` (1 s).
const HURRY_INTERVAL: Duration = Duration::from_secs(1);
/// Time for one request. Source: `PartitionTableOperationTimeout`, which DTFx applies to a whole look at
/// all rows.
const OPERATION_TIMEOUT: Duration = Duration::from_secs(2);
/// Failed looks in a row that are repeated at once. Source: `TablePartitionManager` (10).
const QUICK_RETRIES: u32 = 10;

/// Acquires, balances, renews and hands back partitions of one worker.
pub(crate) struct PartitionManager {
    hub: Hub,
    owner: Arc<dyn PartitionOwner>,
    drains: BTreeMap<PartitionId, JoinHandle<()>>,
    /// Partitions that are to be received from.
    assigned: BTreeSet<PartitionId>,
    /// Partitions let go because their receive loop did not come to life, and until when they are left to
    /// others.
    shunned: BTreeMap<PartitionId, Instant>,
    app_lease_held: Arc<AtomicBool>,
}

impl PartitionManager {
    pub(crate) fn new(hub: Hub, owner: Arc<dyn PartitionOwner>) -> Self {
        Self {
            hub,
            owner,
            drains: BTreeMap::new(),
            assigned: BTreeSet::new(),
            shunned: BTreeMap::new(),
            app_lease_held: Arc::default(),
        }
    }

    /// Runs until `stop`, then hands all partitions back; `force` ends that early.
    pub(crate) async fn run(mut self, stop: CancellationToken, force: CancellationToken) {
        let mut lease_task = None;
        if self.hub.settings.use_app_lease {
            match self.hold_app_lease(&stop).await {
                Some(task) => lease_task = Some(task),
                None => return,
            }
        }
        let mut failures = 0;
        loop {
            // Without the app lease another application has the hub: partitions go back until it returns.
            let stopping = stop.is_cancelled();
            let shutting_down =
                stopping || (lease_task.is_some() && !self.app_lease_held.load(Ordering::Relaxed));
            let outcome = self.iterate(shutting_down).await;
            let (mut wait, mut finished) = (self.hub.settings.lease_acquire_interval, false);
            match &outcome {
                Ok(_) => self.owner.status().looked(),
                Err(e) => self.owner.status().failed(e),
            }
            match outcome {
                Ok(Iteration::Settled) => (failures, finished) = (0, stopping),
                Ok(Iteration::Moving) => (failures, wait) = (0, HURRY_INTERVAL),
                Ok(Iteration::Lost) => wait = Duration::from_millis(50),
                Err(e) => {
                    failures += 1;
                    tracing::warn!(hub = %self.hub.name(), error = e.chain(), "cannot look after the partitions");
                }
            }
            if (1..QUICK_RETRIES).contains(&failures) {
                wait = Duration::from_millis(200);
            }
            if finished || force.is_cancelled() {
                break;
            }
            tokio::select! {
                biased;
                () = force.cancelled() => {}
                () = stop.cancelled(), if !stopping => {}
                () = tokio::time::sleep(wait) => {}
            }
        }
        for drain in self.drains.into_values() {
            drain.abort();
        }
        if let Some(task) = lease_task {
            task.abort();
        }
    }

    /// Waits for the app lease and keeps it renewed in the background; `None` when told to stop.
    async fn hold_app_lease(&self, stop: &CancellationToken) -> Option<JoinHandle<()>> {
        let lease = match AppLease::new(self.hub.clone()) {
            Ok(lease) => lease,
            Err(e) => {
                tracing::error!(hub = %self.hub.name(), error = e.chain(), "no app lease");
                return None;
            }
        };
        let settings = self.hub.settings.clone();
        loop {
            let mut wait = settings.app_lease_acquire_interval;
            match lease.acquire().await {
                Ok(true) => break,
                Ok(false) => self.owner.status().waits_for_app_lease(&settings.app_name),
                Err(e) => {
                    self.owner.status().failed(&e);
                    tracing::warn!(hub = %self.hub.name(), error = e.chain(), "cannot acquire the app lease");
                    wait = settings.lease_acquire_interval;
                }
            }
            tokio::select! {
                biased;
                () = stop.cancelled() => return None,
                () = tokio::time::sleep(wait) => {}
            }
        }
        let (hub, held, owner) = (self.hub.clone(), self.app_lease_held.clone(), self.owner.clone());
        held.store(true, Ordering::Relaxed);
        owner.status().has_app_lease();
        Some(tokio::spawn(async move {
            loop {
                let mut wait = settings.app_lease_renew_interval;
                // Not renewed while this process was stalled: take it again, unless somebody else has.
                let kept = match lease.renew().await {
                    Ok(false) => lease.acquire().await,
                    other => other,
                };
                match kept {
                    Ok(kept) => {
                        held.store(kept, Ordering::Relaxed);
                        if kept {
                            owner.status().has_app_lease();
                        } else {
                            owner.status().waits_for_app_lease(&settings.app_name);
                            wait = settings.app_lease_acquire_interval;
                        }
                    }
                    Err(e) => {
                        tracing::warn!(hub = %hub.name(), error = e.chain(), "cannot renew the app lease");
                        wait = settings.lease_acquire_interval.min(wait);
                    }
                }
                tokio::time::sleep(wait).await;
            }
        }))
    }

    async fn iterate(&mut self, shutting_down: bool) -> Result<Iteration, ServiceError> {
        let rows = self.bounded(self.hub.partition_rows()).await?.unwrap_or_default();
        let renewed_at = Instant::now();
        let mut counts_for: Vec<Option<WorkerId>> = vec![None; rows.len()];
        let mut steps = Vec::new();
        for (at, row) in rows.iter().enumerate() {
            let Some(partition) = self.hub.names.partition_of_queue(&row.queue) else {
                tracing::debug!(hub = %self.hub.name(), row = row.queue, "a row is not about a control queue");
                continue;
            };
            let asker = Asker {
                me: self.hub.settings.worker_id.clone(),
                now: self.hub.clock.now(),
                lease_interval: self.hub.settings.lease_interval,
                shutting_down,
            };
            let step = table::step(row, self.local(partition), &asker);
            counts_for[at].clone_from(&step.counts_for);
            self.before_write(partition, row, &step);
            steps.push((at, partition, step));
        }
        let written = join_all(steps.iter().map(|(_, _, step)| async {
            if step.changed { self.write(&step.lease).await } else { Ok(Some(step.lease.clone())) }
        }))
        .await;
        let mut moving = steps.iter().any(|(_, _, step)| step.hurry);
        let mut after = rows;
        let (mut lost, mut failed) = (false, None);
        for ((at, partition, step), written) in steps.into_iter().zip(written) {
            match written {
                Ok(Some(row)) => {
                    self.after_write(partition, &step, renewed_at);
                    after[at] = row;
                }
                Ok(None) => lost = true,
                Err(e) => failed = Some(e),
            }
        }
        if let Some(e) = failed {
            return Err(e);
        }
        if lost {
            return Ok(Iteration::Lost);
        }
        if !shutting_down {
            let me = self.hub.settings.worker_id.clone();
            for at in table::balance(&counts_for, &me) {
                let lease = PartitionLease { next_owner: Some(me.clone()), ..after[at].clone() };
                moving = true;
                if self.write(&lease).await?.is_none() {
                    return Ok(Iteration::Lost);
                }
            }
        }
        Ok(if moving { Iteration::Moving } else { Iteration::Settled })
    }

    /// A request that takes too long fails: the leases of all other rows must not wait for it.
    async fn bounded<T>(
        &self,
        request: impl Future<Output = Result<T, ServiceError>>,
    ) -> Result<T, ServiceError> {
        tokio::time::timeout(OPERATION_TIMEOUT, request).await.unwrap_or_else(|_| {
            Err(ServiceError::new(
                taskhub_core::ErrorKind::Unavailable,
                format!("a request for partition rows took too long. hub=`{}`", self.hub.name()),
            ))
        })
    }

    fn local(&self, partition: PartitionId) -> Local {
        let drain = match self.drains.get(&partition) {
            None => Drain::Idle,
            Some(task) if task.is_finished() => Drain::Finished,
            Some(_) => Drain::Running,
        };
        Local {
            receiving: self.owner.is_receiving(partition),
            stalled: self.assigned.contains(&partition) && !self.owner.is_live(partition),
            shunned: self.shunned.get(&partition).is_some_and(|until| Instant::now() < *until),
            drain,
        }
    }

    /// Stops before the row is given away.
    fn before_write(&mut self, partition: PartitionId, row: &PartitionLease, step: &Step) {
        if step.restart {
            tracing::warn!(
                hub = %self.hub.name(), queue = row.queue,
                "the receive loop makes no progress; starting another and not renewing the lease"
            );
            self.owner.restart(partition);
        }
        if step.stop_receiving {
            if row.current_owner.as_ref() == Some(&self.hub.settings.worker_id) {
                tracing::error!(
                    hub = %self.hub.name(), queue = row.queue, "the receive loop is dead; leaving the queue to others"
                );
                self.shunned.insert(partition, Instant::now() + self.hub.settings.lease_interval);
            } else {
                tracing::warn!(
                    hub = %self.hub.name(), queue = row.queue, owner = ?row.current_owner,
                    "another worker owns the queue now"
                );
            }
            self.assigned.remove(&partition);
            self.owner.stop_receiving(partition);
        }
        if step.begin_drain {
            self.assigned.remove(&partition);
            let owner = self.owner.clone();
            self.drains.insert(partition, tokio::spawn(async move { owner.drain(partition).await }));
        }
    }

    /// Receives only once the row is ours.
    /// The deadline counts from before the row was written.
    fn after_write(&mut self, partition: PartitionId, step: &Step, renewed_at: Instant) {
        if step.lease.current_owner.is_none() || step.receive {
            self.drains.remove(&partition);
        }
        if step.receive {
            self.assigned.insert(partition);
            self.owner.receive(partition, renewed_at + self.hub.settings.lease_interval);
        }
    }

    async fn write(&self, lease: &PartitionLease) -> Result<Option<PartitionLease>, ServiceError> {
        let condition = lease.etag.clone().map_or(Condition::Any, Condition::Matches);
        let replace = TableOperation::Replace(lease.to_entity(), condition);
        let table = self.hub.names.partitions_table();
        self.bounded(async {
            match self.hub.account.tables.execute(&table, replace).await {
                Ok(etag) => Ok(Some(PartitionLease { etag, ..lease.clone() })),
                Err(e) if matches!(e.kind(), ErrorKind::Conflict | ErrorKind::NotFound) => Ok(None),
                Err(e) => {
                    Err(self.hub.failed(format!("cannot write a partition row. row=`{}`", lease.queue), e))
                }
            }
        })
        .await
    }
}

enum Iteration {
    /// Nothing is on the move.
    Settled,
    /// A hand-over is under way.
    Moving,
    /// Another worker wrote a row first: look again.
    Lost,
}
