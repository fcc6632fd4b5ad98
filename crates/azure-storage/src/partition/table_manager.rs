//! The table partition manager's loop: reads the rows, carries out the decisions of [`super::table`].

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;
use taskhub_core::{PartitionId, ServiceError, WorkerId};
use taskhub_storage::{Condition, ErrorKind, TableOperation};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use crate::hub::Hub;
use crate::partition::owner::PartitionOwner;
use crate::partition::ownership::PartitionOwnership;
use crate::partition::server_clock::{ServerClock, Skew, Span, WORRYING_SKEW};
use crate::partition::table::{self, Asker, Drain, Local, PartitionLease, Step};

/// Interval while a hand-over is under way. Source: Azure/durabletask, `TablePartitionManager` (1 s).
const HURRY_INTERVAL: Duration = Duration::from_secs(1);
/// Time for one request. Source: `PartitionTableOperationTimeout`, which DTFx applies to a whole look at
/// all rows.
const OPERATION_TIMEOUT: Duration = Duration::from_secs(2);
/// Failed looks in a row that are repeated at once. Source: `TablePartitionManager` (10).
const QUICK_RETRIES: u32 = 10;
/// Rows of one transaction at most.
const MAX_TRANSACTION: usize = 100;
/// How long a worker that owns every partition renews its rows without reading them. Nothing can happen to
/// them unnoticed: whoever changes, adds an owner to, or deletes one makes the next renewal fail.
const REREAD_INTERVAL: Duration = Duration::from_secs(15 * 60);

/// Acquires, balances, renews and hands back partitions of one worker.
pub(crate) struct TableManager {
    hub: Hub,
    owner: Arc<dyn PartitionOwner>,
    drains: BTreeMap<PartitionId, AbortOnDropHandle<()>>,
    /// Partitions that are to be received from.
    assigned: BTreeSet<PartitionId>,
    /// Partitions let go because their receive loop did not come to life, and until when they are left to
    /// others.
    shunned: BTreeMap<PartitionId, Instant>,
    server_clock: ServerClock,
    /// The clocks' difference has been reported.
    warned: bool,
    /// The rows as this worker has written them, and when they were read, while it owns all of them and
    /// nobody wants one.
    settled: Option<(Instant, Vec<PartitionLease>)>,
}

/// A moment: how long leases hold that are written now.
struct Writing {
    asker: Asker,
    /// On the hub's `awake` clock.
    lease_until: Instant,
}

impl TableManager {
    pub(crate) fn new(hub: Hub, owner: Arc<dyn PartitionOwner>) -> Self {
        Self {
            hub,
            owner,
            drains: BTreeMap::new(),
            assigned: BTreeSet::new(),
            shunned: BTreeMap::new(),
            server_clock: ServerClock::default(),
            warned: false,
            settled: None,
        }
    }

    /// Runs until `stop`, then hands all partitions back; `force` ends that early.
    pub(crate) async fn run(mut self, stop: CancellationToken, force: CancellationToken) {
        let mut failures = 0;
        loop {
            let stopping = stop.is_cancelled();
            let outcome = self.iterate(stopping).await;
            match &outcome {
                Ok(_) => self.owner.status().looked(),
                Err(e) => self.owner.status().failed(e),
            }
            let (mut wait, mut finished) = (self.hub.settings.lease_acquire_interval, false);
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
                return;
            }
            tokio::select! {
                biased;
                () = tokio::time::sleep(wait) => {}
                () = stop.cancelled(), if !stopping => {}
                () = force.cancelled() => {}
            }
        }
    }

    /// Dates that others compare with their clocks are the server's. Whoever is not sure what time it is takes
    /// the earlier one for others' leases and loses that time of its own.
    fn writing(&self, moment: Instant, shutting_down: bool) -> Writing {
        let settings = &self.hub.settings;
        let span = self.server_clock.at(moment);
        let doubt = span.map_or(Duration::ZERO, Span::width).min(settings.lease_interval / 4);
        let asker = Asker {
            me: settings.worker_id.clone(),
            now: span.map_or_else(|| self.hub.clock.now(), |span| span.low),
            lease_interval: settings.lease_interval,
            shutting_down,
        };
        Writing { asker, lease_until: moment + settings.lease_interval - doubt }
    }

    /// Renews the rows of a worker that owns them all, without reading them first. False when there is more to
    /// do than that, or somebody has written one meanwhile: then nothing has happened.
    ///
    /// Differs: DTFx reads all rows each time and writes each of them by itself.
    async fn renew_settled(&mut self) -> Result<bool, ServiceError> {
        let Some((read_at, rows)) = self.settled.take() else { return Ok(false) };
        if read_at.elapsed() >= REREAD_INTERVAL {
            return Ok(false);
        }
        let Writing { asker, lease_until } = self.writing(self.hub.awake().now(), false);
        let mut steps = Vec::new();
        for row in &rows {
            let Some(partition) = self.hub.names.partition_of_queue(&row.queue) else { return Ok(false) };
            let step = table::step(row, self.local(partition), &asker);
            if !(step.receive && step.changed) || step.stop_receiving || step.restart || step.begin_drain {
                return Ok(false);
            }
            steps.push((partition, step));
        }
        let leases: Vec<_> = steps.iter().map(|(_, step)| &step.lease).collect();
        let Some(written) = self.write_all(&leases).await? else { return Ok(false) };
        for (partition, step) in &steps {
            self.after_write(*partition, step, lease_until);
        }
        self.settle(read_at, written);
        Ok(true)
    }

    /// The rows as they are now known; renewed without being read if all of them are this worker's.
    fn settle(&mut self, read_at: Instant, rows: Vec<PartitionLease>) {
        let now =
            self.server_clock.at(self.hub.awake().now()).map_or_else(|| self.hub.clock.now(), |s| s.low);
        self.owner.status().owners(rows.iter().map(|row| PartitionOwnership::of_row(row, now)).collect());
        let me = Some(&self.hub.settings.worker_id);
        let mine = |row: &PartitionLease| {
            row.current_owner.as_ref() == me
                && row.next_owner.is_none()
                && !row.is_draining
                // Without its version it would be written over whatever others have written.
                && row.etag.is_some()
                && self.hub.names.partition_of_queue(&row.queue).is_some()
        };
        let settled = !self.hub.settings.dtfx_cadence && rows.iter().all(mine);
        self.settled = settled.then_some((read_at, rows));
    }

    async fn iterate(&mut self, shutting_down: bool) -> Result<Iteration, ServiceError> {
        if shutting_down {
            self.settled = None;
        }
        if self.renew_settled().await? {
            return Ok(Iteration::Settled);
        }
        let read_at = Instant::now();
        let sent_at = self.hub.awake().now();
        let found = match self.bounded(self.hub.partition_rows()).await? {
            Some(found) => found,
            // Nothing to hand back.
            None if shutting_down => return Ok(Iteration::Settled),
            None => {
                let what = format!("the table of the partitions is gone. hub=`{}`", self.hub.name());
                return Err(ServiceError::new(taskhub_core::ErrorKind::NotFound, what));
            }
        };
        let renewed_at = self.hub.awake().now();
        if let Some(date) = found.served_at {
            self.server_clock.observe(sent_at, renewed_at, date);
            self.warn_of_skew(renewed_at);
        }
        let Writing { asker, lease_until } = self.writing(renewed_at, shutting_down);
        let rows = found.rows;
        let mut counts_for: Vec<Option<WorkerId>> = vec![None; rows.len()];
        let mut steps = Vec::new();
        for (at, row) in rows.iter().enumerate() {
            let Some(partition) = self.hub.names.partition_of_queue(&row.queue) else {
                tracing::debug!(hub = %self.hub.name(), row = row.queue, "a row is not about a control queue");
                continue;
            };
            let step = table::step(row, self.local(partition), &asker);
            counts_for[at].clone_from(&step.counts_for);
            self.before_write(partition, row, &step);
            steps.push((at, partition, step));
        }
        let changed: Vec<_> =
            steps.iter().filter(|(.., step)| step.changed).map(|(.., step)| &step.lease).collect();
        let at_once = match changed.len() {
            2..=MAX_TRANSACTION if !self.hub.settings.dtfx_cadence => self.write_all(&changed).await?,
            _ => None,
        };
        let written: Vec<Result<Option<PartitionLease>, ServiceError>> = match at_once {
            Some(written) => {
                let mut written = written.into_iter();
                let mut after =
                    |step: &Step| if step.changed { written.next() } else { Some(step.lease.clone()) };
                steps.iter().map(|(.., step)| Ok(after(step))).collect()
            }
            // One by one: of several rows only one may have been written by somebody else.
            None => {
                join_all(steps.iter().map(|(_, _, step)| async {
                    if step.changed { self.write(&step.lease).await } else { Ok(Some(step.lease.clone())) }
                }))
                .await
            }
        };
        let mut moving = steps.iter().any(|(_, _, step)| step.hurry);
        let mut after = rows;
        let (mut lost, mut failed) = (false, None);
        for ((at, partition, step), written) in steps.into_iter().zip(written) {
            match written {
                Ok(Some(row)) => {
                    self.after_write(partition, &step, lease_until);
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
                let partition = self.hub.names.partition_of_queue(&after[at].queue);
                if partition.is_some_and(|partition| self.local(partition).shunned) {
                    continue;
                }
                let lease = PartitionLease { next_owner: Some(me.clone()), ..after[at].clone() };
                moving = true;
                if self.write(&lease).await?.is_none() {
                    return Ok(Iteration::Lost);
                }
            }
        }
        if moving {
            return Ok(Iteration::Moving);
        }
        self.settle(read_at, after);
        Ok(Iteration::Settled)
    }

    /// Other workers may trust their own clocks; one that differs much makes leases end early or late.
    fn warn_of_skew(&mut self, moment: Instant) {
        let (what, by) = match self.server_clock.skew(moment, self.hub.clock.now()) {
            Some(Skew::Ahead(by)) => ("ahead of", by),
            Some(Skew::Behind(by)) => ("behind", by),
            None => return,
        };
        if by > WORRYING_SKEW && !self.warned {
            self.warned = true;
            tracing::warn!(
                hub = %self.hub.name(), skew_seconds = by.as_secs_f64(),
                "this machine's clock is {what} the storage server's. Leases here go by the server's clock; \
                 workers of other programs may not"
            );
        }
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
            let task = tokio::spawn(async move { owner.drain(partition).await });
            self.drains.insert(partition, AbortOnDropHandle::new(task));
        }
    }

    /// Receives only once the row is ours.
    fn after_write(&mut self, partition: PartitionId, step: &Step, lease_until: Instant) {
        if step.lease.current_owner.is_none() || step.receive {
            self.drains.remove(&partition);
        }
        if step.receive {
            self.assigned.insert(partition);
            self.owner.receive(partition, lease_until);
        }
    }

    /// Writes several rows in one transaction. `None`: somebody has written one of them, and nothing has
    /// happened.
    async fn write_all(
        &self,
        leases: &[&PartitionLease],
    ) -> Result<Option<Vec<PartitionLease>>, ServiceError> {
        let operations = leases.iter().map(|lease| replace(lease)).collect::<Vec<_>>();
        let table = self.hub.names.partitions_table();
        self.bounded(async {
            match self.hub.account.tables.transaction(&table, &operations).await {
                Ok(etags) => {
                    let written = leases.iter().zip(etags);
                    Ok(Some(
                        written.map(|(lease, etag)| PartitionLease { etag, ..(*lease).clone() }).collect(),
                    ))
                }
                Err(e) if matches!(e.kind(), ErrorKind::Conflict | ErrorKind::NotFound) => Ok(None),
                Err(e) => Err(self.hub.failed("cannot write the partition rows", e)),
            }
        })
        .await
    }

    async fn write(&self, lease: &PartitionLease) -> Result<Option<PartitionLease>, ServiceError> {
        let table = self.hub.names.partitions_table();
        self.bounded(async {
            match self.hub.account.tables.execute(&table, replace(lease)).await {
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

fn replace(lease: &PartitionLease) -> TableOperation {
    let condition = lease.etag.clone().map_or(Condition::Any, Condition::Matches);
    TableOperation::Replace(lease.to_entity(), condition)
}

enum Iteration {
    /// Nothing is on the move.
    Settled,
    /// A hand-over is under way.
    Moving,
    /// Another worker wrote a row first: look again.
    Lost,
}
