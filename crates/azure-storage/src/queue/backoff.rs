use std::time::Duration;

use tokio::time::Instant;

/// Shortest wait after an empty receive. Source: Azure/durabletask, `AzureStorageOrchestrationService`
/// (`minPollingDelay`).
const MIN_POLLING_DELAY: Duration = Duration::from_millis(50);

/// How long to wait after an empty receive: nothing at first, then doubling from 50 ms with a jitter of
/// a fifth, up to a maximum. Source: Azure/durabletask, `BackoffPollingHelper`.
#[derive(Debug)]
pub(crate) struct PollingBackoff {
    current: Duration,
    exponent: u32,
    max: Duration,
    before: (Duration, u32),
}

impl PollingBackoff {
    pub(crate) fn new(max: Duration) -> Self {
        Self {
            current: Duration::ZERO,
            exponent: 0,
            max: max.max(MIN_POLLING_DELAY),
            before: (Duration::ZERO, 0),
        }
    }

    /// The wait that is due now.
    pub(crate) fn delay(&self) -> Duration {
        self.current
    }

    /// Messages came, or somebody in this process put one: be quick again.
    pub(crate) fn signalled(&mut self) {
        self.before = (self.current, self.exponent);
        self.current = MIN_POLLING_DELAY;
        self.exponent = 1;
    }

    /// What came last was nothing for this worker: be as slow as before, or as it has become since.
    pub(crate) fn signalled_in_error(&mut self) {
        if self.current < self.before.0 {
            (self.current, self.exponent) = self.before;
        }
    }

    /// The wait passed in silence. `random` is uniform over all of `u64`.
    pub(crate) fn elapsed(&mut self, random: u64) {
        if self.current >= self.max {
            return;
        }
        let mut next = MIN_POLLING_DELAY;
        if self.exponent > 0 {
            let jitter = 0.8 + 0.4 * (random as f64 / u64::MAX as f64);
            next += MIN_POLLING_DELAY.mul_f64(jitter * f64::from(1u32 << (self.exponent - 1).min(20)));
        }
        if next < self.max {
            self.current = next;
            self.exponent += 1;
        } else {
            self.current = self.max;
        }
    }
}

/// How long an abandoned message stays hidden: 2, 4, 8 ... 512 s, then 600 s.
/// Source: Azure/durabletask, `TaskHubQueue.AbandonMessageAsync`.
pub(crate) fn abandon_delay(dequeue_count: u32) -> Duration {
    Duration::from_secs(2u64.checked_pow(dequeue_count.min(30)).unwrap_or(600).min(600))
}

/// Longest time that work for an unknown function stays hidden: a worker that knows it may come any time.
const MAX_UNKNOWN_FUNCTION_DELAY: Duration = Duration::from_secs(60);

/// How long a message stays hidden for whose function this worker does not have: 1, 2, 4 ... 32 s, then 60 s.
/// Short at first, so that another worker gets an activity soon; never so short that receiving it again and
/// again costs more than looking at an empty queue.
///
/// Differs: DTFx hides such messages as all abandoned ones, up to ten minutes, and stops receiving for 10 s.
pub(crate) fn unknown_function_delay(dequeue_count: u32) -> Duration {
    let seconds = 2u64.checked_pow(dequeue_count.saturating_sub(1).min(30)).unwrap_or(60);
    Duration::from_secs(seconds).min(MAX_UNKNOWN_FUNCTION_DELAY)
}

/// Messages for unknown functions that may reappear in a second because of this worker.
const UNKNOWN_FUNCTIONS_PER_SECOND: u32 = 10;
/// Longest time that such work stays hidden when there is much of it. Source: as [`abandon_delay`].
const MAX_UNKNOWN_FUNCTIONS_DELAY: Duration = Duration::from_secs(600);

/// Spreads work for functions that this worker does not have: the more there is, the longer each piece stays
/// hidden, so that receiving all of it again and again takes a bounded number of requests.
#[derive(Debug, Default)]
pub(crate) struct UnknownPace {
    /// When the last piece of work would reappear, if one came after the other.
    last: Option<Instant>,
}

impl UnknownPace {
    /// How long a message stays hidden that is put back now, for `at_least` so long.
    pub(crate) fn delay(&mut self, now: Instant, at_least: Duration) -> Duration {
        let last = self.last.map_or(now, |last| last.max(now))
            + Duration::from_secs(1) / UNKNOWN_FUNCTIONS_PER_SECOND;
        let last = last.min(now + MAX_UNKNOWN_FUNCTIONS_DELAY);
        self.last = Some(last);
        (last - now).max(at_least)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn polling_starts_at_once_doubles_with_jitter_and_stays_at_the_maximum() {
        let mut backoff = PollingBackoff::new(Duration::from_secs(30));
        assert_eq!(backoff.delay(), Duration::ZERO);
        let mut delays = Vec::new();
        for _ in 0..12 {
            backoff.elapsed(u64::MAX / 2);
            delays.push(backoff.delay().as_millis());
        }
        assert_eq!(
            delays,
            [50, 100, 150, 250, 450, 850, 1650, 3250, 6450, 12850, 25650, 30000],
            "50 ms + 2^(n-1) * 50 ms"
        );
        backoff.signalled();
        assert_eq!(backoff.delay(), Duration::from_millis(50));
        backoff.elapsed(0);
        assert_eq!(backoff.delay(), Duration::from_millis(90));
        backoff.signalled_in_error();
        assert_eq!(backoff.delay(), Duration::from_secs(30), "as before the signal");
    }

    #[test]
    fn abandoned_messages_wait_2_to_the_dequeue_count_up_to_ten_minutes() {
        let seconds = |count| abandon_delay(count).as_secs();
        assert_eq!([seconds(1), seconds(2), seconds(9), seconds(10), seconds(31)], [2, 4, 512, 600, 600]);
    }

    #[test]
    fn little_work_for_unknown_functions_is_not_put_off_and_much_of_it_reappears_ten_a_second() {
        let (mut pace, start) = (UnknownPace::default(), Instant::now());
        let second = Duration::from_secs(1);
        for n in 0..5 {
            assert_eq!(pace.delay(start + second * n, second), second);
        }
        let later = start + second * 100;
        let delays: Vec<_> = (0..3000).map(|_| pace.delay(later, second)).collect();
        assert_eq!((delays[0], delays[2999]), (second, second * 300));
        (0..10_000).for_each(|_| {
            pace.delay(later, second);
        });
        assert_eq!(pace.delay(later, second), second * 600);
        assert_eq!(pace.delay(later + second * 600, second), second, "what is over is forgotten");
    }

    #[test]
    fn work_for_unknown_functions_waits_a_minute_at_most() {
        let seconds = [0, 1, 2, 6, 7, 1000].map(|count| unknown_function_delay(count).as_secs());
        assert_eq!(seconds, [1, 1, 2, 32, 60, 60]);
    }
}
