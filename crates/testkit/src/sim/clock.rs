use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use taskhub_core::{Clock, Timestamp};
use tokio::time::Instant;

use super::rng::Rng;
use super::world::World;

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
    /// The clock of a process of this world.
    pub(crate) fn seeded(world: &World, rng: &Rng) -> Self {
        let range = world.weather.skew_millis;
        let offset_millis = if range == 0 { 0 } else { rng.between(0, 2 * range) as i64 - range as i64 };
        let drift = if range > 0 && rng.once_in(2) { rng.between(0, 400) as i64 - 200 } else { 0 };
        Self { truth: world.truth.clone(), origin: Instant::now(), offset_millis, drift }
    }
}

impl fmt::Display for SkewedClock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "clock {} ms, drift {}", self.offset_millis, self.drift)
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
