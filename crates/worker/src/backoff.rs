use std::time::Duration;

/// First wait after an error.
const FIRST_DELAY: Duration = Duration::from_millis(100);
/// Longest wait after errors in a row.
/// Source: Azure/durabletask, `AzureStorageOrchestrationService.GetDelayInSecondsAfterOnFetchException`.
///
/// Differs: DTFx waits these 10 s after the first error already. A short outage should not cost 10 s.
const MAX_DELAY: Duration = Duration::from_secs(10);

/// How long to wait before the next receive: doubles with each error in a row, ends with a success.
#[derive(Debug, Default)]
pub(crate) struct BackOff {
    failures: u32,
}

impl BackOff {
    pub(crate) fn failed(&mut self) {
        self.failures = self.failures.saturating_add(1);
    }

    pub(crate) fn succeeded(&mut self) {
        self.failures = 0;
    }

    pub(crate) fn delay(&self) -> Duration {
        match self.failures {
            0 => Duration::ZERO,
            n => FIRST_DELAY.saturating_mul(2u32.saturating_pow(n - 1)).min(MAX_DELAY),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_double_up_to_ten_seconds_and_end_with_a_success() {
        let mut back_off = BackOff::default();
        assert_eq!(back_off.delay(), Duration::ZERO);
        let mut delays = Vec::new();
        for _ in 0..9 {
            back_off.failed();
            delays.push(back_off.delay().as_millis());
        }
        assert_eq!(delays, [100, 200, 400, 800, 1600, 3200, 6400, 10_000, 10_000]);
        (0..100).for_each(|_| back_off.failed());
        assert_eq!(back_off.delay(), MAX_DELAY);
        back_off.succeeded();
        assert_eq!(back_off.delay(), Duration::ZERO);
    }
}
