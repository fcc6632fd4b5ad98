use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

use taskhub_core::Timestamp;

use crate::TaskFailure;

/// Whether a failure is worth another attempt.
type Predicate = Arc<dyn Fn(&TaskFailure) -> bool + Send + Sync>;

/// When and how often a failed call is tried again.
///
/// Delays become durable timers, so a history written by DTFx's `RetryInterceptor` replays: after the
/// last attempt there is one more timer without delay. Source: Azure/durabletask, `RetryOptions`.
#[derive(Clone)]
pub struct RetryPolicy {
    max_attempts: u32,
    first_interval: Duration,
    backoff_coefficient: f64,
    max_interval: Option<Duration>,
    timeout: Option<Duration>,
    handle: Option<Predicate>,
}

impl RetryPolicy {
    /// Up to `max_attempts` calls in all, `first_interval` apart. No attempts at all yield `null` without a
    /// call; a first interval of zero means that nothing is tried again.
    pub fn new(max_attempts: u32, first_interval: Duration) -> Self {
        Self {
            max_attempts,
            first_interval,
            backoff_coefficient: 1.0,
            max_interval: None,
            timeout: None,
            handle: None,
        }
    }

    /// Multiplies the interval by this after each attempt.
    #[must_use]
    pub fn with_backoff_coefficient(mut self, coefficient: f64) -> Self {
        self.backoff_coefficient = coefficient;
        self
    }

    /// Longest interval between two attempts.
    #[must_use]
    pub fn with_max_interval(mut self, interval: Duration) -> Self {
        self.max_interval = Some(interval);
        self
    }

    /// No further attempt when this much time has passed since the first one.
    #[must_use]
    pub fn with_timeout(mut self, timeout: Duration) -> Self {
        self.timeout = Some(timeout);
        self
    }

    /// Only failures for which this holds are tried again. It must depend on the failure alone; when it
    /// panics, the failure is final.
    #[must_use]
    pub fn with_handle(mut self, handle: impl Fn(&TaskFailure) -> bool + Send + Sync + 'static) -> Self {
        self.handle = Some(Arc::new(handle));
        self
    }

    pub(crate) fn max_attempts(&self) -> u32 {
        self.max_attempts
    }

    /// Time until the next attempt after `attempt` (from 0) failed; zero means that the failure is final.
    pub(crate) fn delay(
        &self,
        attempt: u32,
        first_at: Timestamp,
        now: Timestamp,
        failure: &TaskFailure,
    ) -> Duration {
        let handled = match &self.handle {
            None => true,
            Some(handle) => catch_unwind(AssertUnwindSafe(|| handle(failure))).unwrap_or(false),
        };
        let expired = self.timeout.is_some_and(|timeout| now >= first_at + timeout);
        if !handled || expired {
            return Duration::ZERO;
        }
        let first_millis = self.first_interval.as_nanos() as f64 / 1e6;
        let millis = first_millis * self.backoff_coefficient.powi(i32::try_from(attempt).unwrap_or(i32::MAX));
        // .NET cuts to ticks; a number beyond the range of i64 saturates and NaN is zero.
        let ticks = ((millis * 1e4) as i64).max(0) as u64;
        let delay = Duration::from_nanos(ticks.saturating_mul(100));
        self.max_interval.map_or(delay, |longest| delay.min(longest))
    }
}

impl fmt::Debug for RetryPolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RetryPolicy")
            .field("max_attempts", &self.max_attempts)
            .field("first_interval", &self.first_interval)
            .field("backoff_coefficient", &self.backoff_coefficient)
            .field("max_interval", &self.max_interval)
            .field("timeout", &self.timeout)
            .finish_non_exhaustive()
    }
}
