use std::sync::Arc;
use std::time::Duration;

use taskhub_core::{Clock, Timestamp};
use tokio::time::Instant;

/// The clock of one process: off by some seconds, and fast or slow.
#[derive(Debug)]
pub(crate) struct SkewedClock {
    truth: Arc<dyn Clock>,
    origin: Instant,
    /// How far it is ahead; behind if negative.
    offset_millis: i64,
    /// How many millionths it is fast; slow if negative.
    drift: i64,
}

impl SkewedClock {
    pub(crate) fn new(truth: Arc<dyn Clock>, offset_millis: i64, drift: i64) -> Self {
        Self { truth, origin: Instant::now(), offset_millis, drift }
    }
}

impl Clock for SkewedClock {
    fn now(&self) -> Timestamp {
        let elapsed = i64::try_from(self.origin.elapsed().as_millis()).unwrap_or(i64::MAX);
        let ahead = self.offset_millis + elapsed.saturating_mul(self.drift) / 1_000_000;
        let by = Duration::from_millis(ahead.unsigned_abs());
        if ahead < 0 { self.truth.now() - by } else { self.truth.now() + by }
    }
}
