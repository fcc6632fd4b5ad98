//! A clock for leases that does not stand still while the machine is suspended.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use taskhub_core::{Clock, Timestamp};
use tokio::time::Instant;

/// How much the wall clock must have been set back for what it shows to be measured anew.
const SET_BACK: Duration = Duration::from_secs(1);

/// The timer's clock, put forward by what the wall clock has gone further than it.
///
/// The timer's clock stands still while a virtual machine is suspended (on Linux), the leases of others run
/// on. Whichever of the two clocks has gone further counts: that a lease ends too early costs a pause until
/// its renewal, that it ends too late costs double reading. Moments are to be compared with others of the
/// same clock only.
#[derive(Debug)]
pub(crate) struct AwakeClock {
    clock: Arc<dyn Clock>,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    /// Both clocks, read at the same time.
    base: (Instant, Timestamp),
    /// What had been slept by then.
    slept_before: Duration,
    slept: Duration,
}

impl AwakeClock {
    pub(crate) fn new(clock: Arc<dyn Clock>) -> Self {
        let base = (Instant::now(), clock.now());
        Self { clock, state: Mutex::new(State { base, slept_before: Duration::ZERO, slept: Duration::ZERO }) }
    }

    /// Now. Never goes back.
    pub(crate) fn now(&self) -> Instant {
        let (timer, wall) = (Instant::now(), self.clock.now());
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let by_timer = timer.saturating_duration_since(state.base.0);
        let by_wall = wall.saturating_since(state.base.1);
        let slept = state.slept_before + by_wall.saturating_sub(by_timer);
        if by_wall + state.slept_before + SET_BACK < by_timer + state.slept {
            state.base = (timer, wall);
            state.slept_before = state.slept;
        } else {
            state.slept = state.slept.max(slept);
        }
        timer + state.slept
    }

    /// The moment of the timer that a moment of this clock is, if the machine stays awake.
    pub(crate) fn on_timer(&self, moment: Instant) -> Instant {
        Instant::now() + moment.saturating_duration_since(self.now())
    }
}

#[cfg(test)]
mod tests {
    use taskhub_testkit::VirtualClock;

    use super::*;

    /// A wall clock that can be set.
    #[derive(Debug)]
    struct Wall(VirtualClock, Mutex<(Duration, Duration)>);

    impl Wall {
        fn set(&self, ahead: u64, behind: u64) {
            *self.1.lock().unwrap() = (Duration::from_secs(ahead), Duration::from_secs(behind));
        }
    }

    impl Clock for Wall {
        fn now(&self) -> Timestamp {
            let (ahead, behind) = *self.1.lock().unwrap();
            self.0.now() + ahead - behind
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_either_clock_has_gone_further_has_passed() {
        let wall = Arc::new(Wall(VirtualClock::default(), Mutex::default()));
        let clock = AwakeClock::new(wall.clone());
        let start = clock.now();
        let passed = || clock.now().duration_since(start).as_secs();
        tokio::time::sleep(Duration::from_secs(10)).await;
        assert_eq!(passed(), 10);
        wall.set(60, 0);
        assert_eq!(passed(), 70, "suspended for a minute");
        assert_eq!(
            clock.on_timer(clock.now() + Duration::from_secs(5)),
            Instant::now() + Duration::from_secs(5)
        );
        tokio::time::sleep(Duration::from_secs(10)).await;
        assert_eq!(passed(), 80);
        wall.set(0, 3600);
        assert_eq!(passed(), 80, "set back: the timer counts");
        tokio::time::sleep(Duration::from_secs(10)).await;
        assert_eq!(passed(), 90);
        wall.set(0, 3000);
        assert_eq!(passed(), 690, "suspended again");
        wall.set(0, 3000);
        assert_eq!(passed(), 690);
    }
}
