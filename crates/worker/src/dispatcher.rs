//! The loop that both dispatchers share: take a slot, receive, process in a task of its own.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use taskhub_core::{Clock, ServiceError, Timestamp};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tracing::{error, warn};

use crate::backoff::BackOff;
use crate::lifecycle::{ABANDON_GRACE, Lifecycle};

/// How long one receive waits for work.
/// Source: Azure/durabletask, `WorkItemDispatcher.DefaultReceiveTimeout`.
const FETCH_TIMEOUT: Duration = Duration::from_secs(30);
/// A lock is renewed this long before its end.
/// Source: Azure/durabletask, `TaskOrchestrationDispatcher.RenewUntil`.
const RENEW_BEFORE_END: Duration = Duration::from_secs(30);
/// Shortest and longest time between two renewals. Source: as above.
const RENEW_RANGE: (Duration, Duration) = (Duration::from_secs(5), Duration::from_secs(30));

/// How a work item ended, as far as the loop cares.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Processed {
    /// Completed, discarded or given back for a reason of its own.
    Ok,
    /// The backend failed; the next receive waits a little.
    ServiceFailed,
}

/// One kind of work item.
#[async_trait]
pub(crate) trait WorkKind: Send + Sync + 'static {
    type Item: Send + 'static;

    /// For logs.
    fn name(&self) -> &'static str;

    async fn fetch(&self, timeout: Duration) -> Result<Option<Self::Item>, ServiceError>;

    /// Brings the work item to its end, whatever happens: completed or abandoned, and released.
    async fn process(&self, item: Self::Item) -> Processed;

    /// Puts back a work item that came when the worker was already stopping.
    async fn put_back(&self, item: Self::Item);
}

/// Receives and processes until the shutdown, then finishes what runs.
pub(crate) async fn dispatch<K: WorkKind>(kind: Arc<K>, limit: usize, life: Lifecycle) {
    let slots = Arc::new(Semaphore::new(limit.clamp(1, Semaphore::MAX_PERMITS)));
    let back_offs = Arc::new(Mutex::new(BackOffs::default()));
    let mut tasks = JoinSet::new();
    loop {
        reap(&mut tasks, kind.name());
        let slot = tokio::select! {
            biased;
            () = life.stopping.cancelled() => break,
            slot = slots.clone().acquire_owned() => slot,
        };
        let Ok(slot) = slot else { break };
        let delay = lock(&back_offs).delay();
        if !delay.is_zero() {
            tokio::select! {
                biased;
                () = life.stopping.cancelled() => break,
                () = tokio::time::sleep(delay) => {}
            }
        }
        // A receive is not dropped at the shutdown, because it might hold a locked work item already; the
        // backend ends it.
        let fetched = tokio::select! {
            biased;
            fetched = kind.fetch(FETCH_TIMEOUT) => fetched,
            () = life.service_stopped.cancelled() => break,
            () = life.give_up.cancelled() => break,
        };
        match fetched {
            Ok(Some(item)) if life.stopping.is_cancelled() => {
                kind.put_back(item).await;
                break;
            }
            Ok(Some(item)) => {
                lock(&back_offs).fetch.succeeded();
                let (kind, back_offs) = (kind.clone(), back_offs.clone());
                tasks.spawn(async move {
                    let processed = kind.process(item).await;
                    lock(&back_offs).processed(processed);
                    drop(slot);
                });
            }
            Ok(None) => lock(&back_offs).fetch.succeeded(),
            Err(error) => {
                lock(&back_offs).fetch.failed();
                warn!(kind = kind.name(), error = error.chain(), "cannot receive work, trying again");
            }
        }
    }
    finish(tasks, kind.name(), &life).await;
}

/// Waits for running tasks until they have to give up, ends them a little later.
async fn finish(mut tasks: JoinSet<()>, name: &'static str, life: &Lifecycle) {
    tokio::select! {
        biased;
        () = join_all(&mut tasks, name) => return,
        () = life.give_up.cancelled() => {}
    }
    if tokio::time::timeout(ABANDON_GRACE, join_all(&mut tasks, name)).await.is_err() {
        warn!(kind = name, count = tasks.len(), "work did not end in time, its messages come back later");
        tasks.shutdown().await;
    }
}

async fn join_all(tasks: &mut JoinSet<()>, name: &'static str) {
    while let Some(result) = tasks.join_next().await {
        report(result, name);
    }
}

fn reap(tasks: &mut JoinSet<()>, name: &'static str) {
    while let Some(result) = tasks.try_join_next() {
        report(result, name);
    }
}

fn report(result: Result<(), tokio::task::JoinError>, name: &'static str) {
    if let Err(error) = result {
        error!(kind = name, %error, "a work item's task ended early");
    }
}

/// Errors of receiving and of processing back off on their own, so that a receive that works does not
/// hide that nothing can be stored.
#[derive(Debug, Default)]
struct BackOffs {
    fetch: BackOff,
    process: BackOff,
}

impl BackOffs {
    fn delay(&self) -> Duration {
        self.fetch.delay().max(self.process.delay())
    }

    fn processed(&mut self, processed: Processed) {
        match processed {
            Processed::Ok => self.process.succeeded(),
            Processed::ServiceFailed => self.process.failed(),
        }
    }
}

fn lock(back_offs: &Mutex<BackOffs>) -> std::sync::MutexGuard<'_, BackOffs> {
    back_offs.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Runs `work` and renews its lock until it is done. `locked_until` is updated with every renewal.
///
/// Differs: DTFx stops renewing an activity after the first error; here only a lost lock ends it.
pub(crate) async fn renewing<T, R, F>(
    clock: &dyn Clock,
    locked_until: &mut Timestamp,
    renew: R,
    work: impl Future<Output = T>,
) -> T
where
    R: Fn() -> F,
    F: Future<Output = Result<Timestamp, ServiceError>>,
{
    let mut work = std::pin::pin!(work);
    loop {
        let wait =
            locked_until.saturating_since(clock.now() + RENEW_BEFORE_END).clamp(RENEW_RANGE.0, RENEW_RANGE.1);
        tokio::select! {
            biased;
            result = &mut work => return result,
            () = tokio::time::sleep(wait) => {}
        }
        // Polled together: work goes on while a renewal is under way.
        let renewed = tokio::select! {
            biased;
            result = &mut work => return result,
            renewed = renew() => renewed,
        };
        match renewed {
            Ok(until) => *locked_until = until,
            Err(error) if error.kind() == taskhub_core::ErrorKind::SessionAborted => {
                warn!(error = error.chain(), "the lock is lost, work goes on without it");
                return work.await;
            }
            Err(error) => warn!(error = error.chain(), "cannot renew a lock, trying again"),
        }
    }
}
