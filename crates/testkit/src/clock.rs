use taskhub_core::{Clock, Timestamp};
use tokio::time::Instant;

/// A clock that starts where a test says and then follows tokio's timer.
///
/// Under `#[tokio::test(start_paused = true)]` it advances exactly when the runtime has nothing left to do
/// but wait, so an hour of timers passes in milliseconds and every run sees the same times.
#[derive(Debug, Clone)]
pub struct VirtualClock {
    start: Timestamp,
    origin: Instant,
}

impl VirtualClock {
    /// A clock that shows `start` now.
    pub fn starting_at(start: Timestamp) -> Self {
        Self { start, origin: Instant::now() }
    }
}

/// Shows 2026-01-15T09:30:00Z now.
impl Default for VirtualClock {
    fn default() -> Self {
        Self::starting_at(Timestamp::from_unix(std::time::Duration::from_secs(1_768_469_400)))
    }
}

impl Clock for VirtualClock {
    fn now(&self) -> Timestamp {
        self.start + self.origin.elapsed()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn an_hour_of_waiting_is_an_hour_on_the_clock_and_no_time_at_all() {
        let clock = VirtualClock::default();
        assert_eq!(clock.now().to_iso(), "2026-01-15T09:30:00Z");
        tokio::time::sleep(Duration::from_secs(3600)).await;
        assert_eq!(clock.now().to_iso(), "2026-01-15T10:30:00Z");
    }
}
