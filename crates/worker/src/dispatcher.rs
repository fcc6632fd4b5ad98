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
/// Shortest time between two renewals, the one after a failed one included.
const SHORTEST_RENEWAL: Duration = Duration::from_millis(250);
/// Longest wait until a renewal that failed is repeated.
const LONGEST_REPETITION: Duration = Duration::from_secs(2);

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
                let put_back = tokio::time::timeout(ABANDON_GRACE, kind.put_back(item)).await;
                if put_back.is_err() {
                    warn!(kind = kind.name(), "work could not be put back in time, it comes back later");
                }
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

/// How long to wait with the next renewal of a lock that holds for another `left`, after so many failed ones
/// in a row: a third of its length, so that there is time for some more if it fails; those come quickly.
///
/// Differs: DTFx renews half a minute before the end, which is no time at all for a lock of that length.
fn renewal_wait(left: Duration, failures: u32) -> Duration {
    if failures == 0 {
        return (left / 3).max(SHORTEST_RENEWAL);
    }
    let doubled = SHORTEST_RENEWAL.saturating_mul(2u32.saturating_pow(failures - 1));
    doubled.min(LONGEST_REPETITION).min((left / 3).max(SHORTEST_RENEWAL))
}

/// Runs `work` and renews its lock until it is done. `locked_until` is updated with every renewal. Work goes on
/// when the lock is lost: its result may still be the first to arrive.
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
    let mut failures = 0;
    let mut work = std::pin::pin!(work);
    loop {
        let wait = renewal_wait(locked_until.saturating_since(clock.now()), failures);
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
            Ok(until) => (*locked_until, failures) = (until, 0),
            Err(error) if error.kind() == taskhub_core::ErrorKind::SessionAborted => {
                warn!(error = error.chain(), "the lock is lost, work goes on without it");
                return work.await;
            }
            Err(error) => {
                failures += 1;
                warn!(error = error.chain(), failures, "cannot renew a lock, trying again");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(left_seconds: u64, failures: u32, expected_millis: u128) {
        let wait = renewal_wait(Duration::from_secs(left_seconds), failures);
        assert_eq!(wait.as_millis(), expected_millis, "{left_seconds} s left, {failures} failures");
    }

    #[test]
    fn locks_are_renewed_when_a_third_of_their_length_has_passed() {
        check(30, 0, 10_000);
        check(300, 0, 100_000);
        check(1, 0, 333);
        check(0, 0, 250);
    }

    #[test]
    fn failed_renewals_are_repeated_quickly_and_several_times_before_the_lock_ends() {
        for (failures, expected) in [(1, 250), (2, 500), (3, 1000), (4, 2000), (5, 2000), (90, 2000)] {
            check(20, failures, expected);
        }
        check(3, 4, 1000);
        check(0, 4, 250);
    }
}
