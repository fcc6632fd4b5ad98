//! The one place through which every request goes, whatever store it is for.
//!
//! [`layered`] wraps an account: it counts requests, bounds each by a deadline, and repeats those that
//! failed with `Unavailable` after a growing delay with jitter. Above it nothing repeats a request.
//!
//! A reply can be lost after the service has done what was asked. What a repetition then means is stated
//! for each operation ([`Repetition`]): a delete that finds nothing counts as success, a conditional write
//! or insert that fails says [`Error::maybe_applied`], and a message may be put twice.

mod blob;
mod cost;
mod counts;
mod queue;
mod table;

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use backoff::backoff::Backoff;
use backoff::exponential::{ExponentialBackoff, ExponentialBackoffBuilder};
use taskhub_core::{IdSource, RandomIds};
use tokio::time::Instant;

pub(crate) use cost::one_more_is_sent;
pub use cost::{Cost, Meter, on_behalf_of};
pub use counts::{OperationCount, OperationCounts};

use crate::operation::{Operation, Repetition};
use crate::{Error, ErrorKind, Result, StorageAccount};

/// A list of several pages has this many times the deadline of one request.
const LIST_FACTOR: u32 = 4;

/// How requests are bounded and repeated.
#[derive(Debug, Clone)]
pub struct RequestSettings {
    /// Longest one attempt may take.
    pub attempt_timeout: Duration,
    /// Longest a request may take with all its repetitions and the delays between them.
    pub total_timeout: Duration,
    /// The same for lease operations, which are useless when late.
    pub lease_total_timeout: Duration,
    /// Most attempts, the first included; 1 means no repetition.
    pub max_attempts: u32,
    /// Delay before the first repetition; each later one is twice as long. Half of it is random.
    pub initial_delay: Duration,
    /// Longest delay, unless the service asks for more.
    pub max_delay: Duration,
    /// Where the jitter comes from.
    pub ids: Arc<dyn IdSource>,
}

impl Default for RequestSettings {
    fn default() -> Self {
        Self {
            attempt_timeout: Duration::from_secs(30),
            total_timeout: Duration::from_secs(60),
            lease_total_timeout: Duration::from_secs(10),
            max_attempts: 6,
            initial_delay: Duration::from_millis(200),
            max_delay: Duration::from_secs(8),
            ids: Arc::new(RandomIds),
        }
    }
}

/// Sends all requests of `account` through one layer. The counts can be shared by several accounts.
pub fn layered(
    account: StorageAccount,
    settings: RequestSettings,
    counts: &OperationCounts,
) -> StorageAccount {
    let requests = Arc::new(Requests { settings, counts: counts.clone() });
    StorageAccount {
        queues: Arc::new(Layer { inner: account.queues, requests: requests.clone() }),
        tables: Arc::new(Layer { inner: account.tables, requests: requests.clone() }),
        blobs: Arc::new(Layer { inner: account.blobs, requests }),
    }
}

/// One service behind the layer.
#[derive(Debug)]
struct Layer<S: ?Sized> {
    requests: Arc<Requests>,
    inner: Arc<S>,
}

#[derive(Debug)]
struct Requests {
    settings: RequestSettings,
    counts: OperationCounts,
}

impl Requests {
    /// Runs attempts until one succeeds or fails for good. `nothing_found` is the success of a delete
    /// whose repetition found nothing.
    async fn run<T, F>(
        &self,
        operation: Operation,
        resource: &str,
        nothing_found: Option<T>,
        attempt: impl Fn() -> F,
    ) -> Result<T>
    where
        F: Future<Output = Result<T>>,
    {
        self.run_within(Duration::MAX, operation, resource, nothing_found, attempt).await
    }

    /// As [`Requests::run`], with a bound of its own on each attempt.
    async fn run_within<T, F>(
        &self,
        limit: Duration,
        operation: Operation,
        resource: &str,
        nothing_found: Option<T>,
        attempt: impl Fn() -> F,
    ) -> Result<T>
    where
        F: Future<Output = Result<T>>,
    {
        let total = if operation.is_lease() {
            self.settings.lease_total_timeout
        } else {
            self.settings.total_timeout
        };
        let ends_at = Instant::now() + total;
        let mut delays = None;
        let mut attempts = 0;
        loop {
            attempts += 1;
            // Half of the time at most, so that there is some for a repetition.
            let timeout = (ends_at.saturating_duration_since(Instant::now())).min(total / 2).min(limit);
            let outcome = self.attempt(operation, resource, timeout, &attempt).await;
            let error = match outcome {
                Ok(value) => return Ok(value),
                Err(error) => error,
            };
            if error.kind() != ErrorKind::Unavailable {
                return conclude(operation, error, attempts > 1, nothing_found);
            }
            let delay = self.jitter(
                delays.get_or_insert_with(|| self.delays()).next_backoff().unwrap_or(self.settings.max_delay),
            );
            let delay = delay.max(error.retry_after().unwrap_or_default());
            if attempts >= self.settings.max_attempts
                || delay >= ends_at.saturating_duration_since(Instant::now())
            {
                return Err(if operation.writes { error.with_maybe_applied() } else { error });
            }
            tracing::debug!(%error, attempts, ?delay, "request to storage is repeated");
            tokio::time::sleep(delay).await;
        }
    }

    async fn attempt<T, F>(
        &self,
        operation: Operation,
        resource: &str,
        timeout: Duration,
        attempt: impl Fn() -> F,
    ) -> Result<T>
    where
        F: Future<Output = Result<T>>,
    {
        let factor = if operation.is_list() { LIST_FACTOR } else { 1 };
        let timeout = timeout.min(self.settings.attempt_timeout.saturating_mul(factor));
        let sent = Arc::new(AtomicU64::new(0));
        let mut given_up = GivenUp(Some((&self.counts, operation, resource, sent.clone())));
        let outcome = cost::counting(sent.clone(), tokio::time::timeout(timeout, attempt())).await;
        given_up.0 = None;
        let outcome = outcome.unwrap_or_else(|_| {
            let message = "no answer within the deadline";
            Err(Error::new(ErrorKind::Unavailable, operation.name, resource, message))
        });
        // A store that has no wire takes one.
        self.counts.add(operation, resource, sent.load(Ordering::Relaxed).max(1), outcome.is_err());
        outcome
    }

    fn delays(&self) -> ExponentialBackoff<backoff::SystemClock> {
        ExponentialBackoffBuilder::new()
            .with_initial_interval(self.settings.initial_delay)
            .with_multiplier(2.0)
            .with_max_interval(self.settings.max_delay)
            .with_randomization_factor(0.0) // the jitter is ours, so that it can repeat
            .with_max_elapsed_time(None)
            .build()
    }

    /// Between half of the delay and all of it.
    fn jitter(&self, delay: Duration) -> Duration {
        let half = delay / 2;
        let nanos = u64::try_from(half.as_nanos()).unwrap_or(u64::MAX);
        half + Duration::from_nanos(self.settings.ids.random() % nanos.saturating_add(1))
    }
}

/// An attempt for whose outcome nobody waits any more. What it has sent is billed all the same.
struct GivenUp<'a>(Option<(&'a OperationCounts, Operation, &'a str, Arc<AtomicU64>)>);

impl Drop for GivenUp<'_> {
    fn drop(&mut self) {
        if let Some((counts, operation, resource, sent)) = self.0.take() {
            let sent = sent.load(Ordering::Relaxed);
            if sent > 0 {
                counts.add(operation, resource, sent, true);
            }
        }
    }
}

/// What an answer other than `Unavailable` means.
fn conclude<T>(operation: Operation, error: Error, repeated: bool, nothing_found: Option<T>) -> Result<T> {
    if operation.writes && error.kind() == ErrorKind::Data {
        return Err(error.with_maybe_applied()); // a success that cannot be read
    }
    if !repeated || !operation.writes {
        return Err(error);
    }
    match (error.kind(), nothing_found) {
        (ErrorKind::NotFound | ErrorKind::BeingDeleted, Some(value)) => Ok(value),
        (
            ErrorKind::AlreadyExists
            | ErrorKind::Conflict
            | ErrorKind::NotFound
            | ErrorKind::PopReceiptMismatch,
            _,
        ) if operation.repetition != Repetition::Harmless => Err(error.with_maybe_applied()),
        _ => Err(error),
    }
}
