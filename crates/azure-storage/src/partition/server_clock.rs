//! The storage server's clock, as far as it can be told from the dates in its answers.
//!
//! Lease rows hold dates that all workers compare with their clocks. Clocks of machines disagree; the one
//! that all of them can see is the server's.

use std::time::Duration;

use taskhub_core::Timestamp;
use tokio::time::Instant;

/// Dates are told in whole seconds, cut off.
const DATE_STEP: Duration = Duration::from_secs(1);
/// How much two clocks may drift apart, as a divisor of the time passed (1000 ppm; quartz has under 100).
const DRIFT_DIVISOR: u32 = 1000;
/// A difference that is worth a warning: leases are 30 s long, and other workers may trust their clocks.
pub(crate) const WORRYING_SKEW: Duration = Duration::from_secs(5);

/// Earliest and latest time that the server's clock may show.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Span {
    pub(crate) low: Timestamp,
    pub(crate) high: Timestamp,
}

impl Span {
    /// How far apart its ends are.
    pub(crate) fn width(self) -> Duration {
        self.high.saturating_since(self.low)
    }
}

/// How another clock differs from the server's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Skew {
    /// It is behind by at least so much.
    Behind(Duration),
    /// It is ahead by at least so much.
    Ahead(Duration),
}

/// An estimate of the server's clock that every dated answer narrows.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct ServerClock {
    known: Option<(Instant, Span)>,
}

impl ServerClock {
    /// An answer to a request that was sent at `sent` and had come at `received` is dated `date`.
    pub(crate) fn observe(&mut self, sent: Instant, received: Instant, date: Timestamp) {
        let round_trip = received.saturating_duration_since(sent);
        // The date was taken at some moment between the two.
        let seen = Span { low: date, high: date + DATE_STEP + round_trip };
        let span = match self.at(received) {
            Some(old) if old.low <= seen.high && seen.low <= old.high => {
                Span { low: old.low.max(seen.low), high: old.high.min(seen.high) }
            }
            // A clock was set: what was known before is worth nothing.
            _ => seen,
        };
        self.known = Some((received, span));
    }

    /// What the server's clock shows at a moment; `None` before the first observation.
    pub(crate) fn at(&self, moment: Instant) -> Option<Span> {
        let (known_at, span) = self.known?;
        let passed = moment.saturating_duration_since(known_at);
        let drift = passed / DRIFT_DIVISOR;
        Some(Span { low: span.low + passed - drift, high: span.high + passed + drift })
    }

    /// How a clock that shows `local` at `moment` certainly differs.
    pub(crate) fn skew(&self, moment: Instant, local: Timestamp) -> Option<Skew> {
        let Span { low, high } = self.at(moment)?;
        let (behind, ahead) = (low.saturating_since(local), local.saturating_since(high));
        Some(if ahead > behind { Skew::Ahead(ahead) } else { Skew::Behind(behind) })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn at(seconds: f64) -> Timestamp {
        Timestamp::from_unix(Duration::from_secs(1_700_000_000) + Duration::from_secs_f64(seconds))
    }

    #[tokio::test(start_paused = true)]
    async fn dated_answers_narrow_the_estimate_and_a_set_clock_replaces_it() {
        let (start, second) = (Instant::now(), Duration::from_secs(1));
        let mut clock = ServerClock::default();
        assert_eq!(clock.at(start), None);
        clock.observe(start, start + second / 10, at(100.0));
        assert_eq!(clock.at(start + second / 10), Some(Span { low: at(100.0), high: at(101.1) }));
        // Half a second later the date is the next one.
        clock.observe(start + second / 2, start + second * 6 / 10, at(101.0));
        let span = clock.at(start + second * 6 / 10).unwrap();
        assert!(span.low >= at(100.999) && span.width() < Duration::from_millis(700), "{span:?}");
        clock.observe(start + second, start + second, at(5000.0));
        assert_eq!(clock.at(start + second).unwrap().low, at(5000.0));
    }

    #[tokio::test(start_paused = true)]
    async fn skew_is_what_is_certain() {
        let start = Instant::now();
        let mut clock = ServerClock::default();
        assert_eq!(clock.skew(start, at(0.0)), None);
        clock.observe(start, start, at(100.0));
        assert_eq!(clock.skew(start, at(100.5)), Some(Skew::Behind(Duration::ZERO)));
        assert_eq!(clock.skew(start, at(121.0)), Some(Skew::Ahead(Duration::from_secs(20))));
        assert_eq!(clock.skew(start, at(80.0)), Some(Skew::Behind(Duration::from_secs(20))));
    }

    proptest! {
        #[test]
        fn the_true_time_is_always_inside(
            offset in 0.0..1000.0f64,
            drift in -0.0005..0.0005f64,
            requests in prop::collection::vec((0.0..30.0f64, 0.0..2.0f64, 0.0..1.0f64), 1..40),
        ) {
            let start = Instant::now();
            let truth = |local: f64| offset + local * (1.0 + drift);
            let (mut clock, mut local) = (ServerClock::default(), 0.0);
            let moment = |local: f64| start + Duration::from_secs_f64(local);
            for (pause, round_trip, share) in requests {
                let sent = local + pause;
                let served = truth(sent + round_trip * share).floor();
                local = sent + round_trip;
                clock.observe(moment(sent), moment(local), at(served));
                let span = clock.at(moment(local)).unwrap();
                let slack = Duration::from_micros(1);
                prop_assert!(span.low <= at(truth(local)) + slack && at(truth(local)) <= span.high + slack);
                prop_assert!(span.width() <= Duration::from_secs(4));
            }
        }
    }
}
