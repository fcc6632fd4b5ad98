use std::time::Duration;

use taskhub_core::{InstanceFetch, InstanceId, OrchestrationState, OrchestrationStatus};
use tokio::time::Instant;

use crate::{ClientError, TaskHubClient};

/// Source: Azure/azure-functions-durable-extension, `WaitForCompletionOrCreateCheckStatusResponseAsync`.
pub const CHECK_STATUS_TIMEOUT: Duration = Duration::from_secs(10);
/// Source: as [`CHECK_STATUS_TIMEOUT`].
pub const CHECK_STATUS_INTERVAL: Duration = Duration::from_secs(1);

/// How often a wait asks for the state: the pause doubles from `first` to `longest`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PollInterval {
    /// Pause after the first question.
    pub first: Duration,
    /// Largest pause.
    pub longest: Duration,
}

impl Default for PollInterval {
    /// 100 ms to 2 s. DTFx asks every 2 s (`AzureStorageOrchestrationService.WaitForOrchestrationAsync`).
    fn default() -> Self {
        Self { first: Duration::from_millis(100), longest: Duration::from_secs(2) }
    }
}

impl PollInterval {
    /// The same pause every time.
    pub fn every(interval: Duration) -> Self {
        Self { first: interval, longest: interval }
    }
}

/// How a wait ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Waited {
    /// The instance is completed, failed, terminated or cancelled.
    Finished(Box<OrchestrationState>),
    /// The time is up; the last state seen, `None` when there is no such instance (yet).
    TimedOut(Option<Box<OrchestrationState>>),
}

impl Waited {
    /// The final state, if the instance has finished.
    pub fn finished(self) -> Option<OrchestrationState> {
        match self {
            Self::Finished(state) => Some(*state),
            Self::TimedOut(_) => None,
        }
    }
}

impl TaskHubClient {
    /// Waits until an instance has finished, for at most `timeout`. An instance that does not exist is
    /// waited for as well: its start may be on its way.
    ///
    /// # Errors
    /// `Invalid`: a blank id. Others: the backend failed.
    pub async fn wait_for_completion(
        &self,
        instance_id: &InstanceId,
        timeout: Duration,
    ) -> Result<Waited, ClientError> {
        self.wait_polling(instance_id, timeout, PollInterval::default()).await
    }

    /// As [`TaskHubClient::wait_for_completion`], with a poll interval of the caller's.
    ///
    /// # Errors
    /// As there.
    pub async fn wait_polling(
        &self,
        instance_id: &InstanceId,
        timeout: Duration,
        interval: PollInterval,
    ) -> Result<Waited, ClientError> {
        let began = Instant::now();
        let mut pause = interval.first.max(Duration::from_millis(1));
        loop {
            // Small reads while it runs, the whole state once, at the end.
            let state = self.state(instance_id, InstanceFetch::NONE).await?;
            if state.as_ref().and_then(|s| s.status).is_some_and(|status| status.is_terminal())
                && let Some(state) = self.state(instance_id, InstanceFetch::ALL).await?
                && state.status.is_some_and(|status| status.is_terminal())
            {
                return Ok(Waited::Finished(Box::new(state)));
            }
            let left = timeout.saturating_sub(began.elapsed());
            if left.is_zero() {
                return Ok(Waited::TimedOut(state.map(Box::new)));
            }
            tokio::time::sleep(pause.min(left)).await;
            pause = pause.saturating_mul(2).min(interval.longest).max(interval.first);
        }
    }
}

impl TaskHubClient {
    /// Waits until an instance has begun to run or is finished, for at most `timeout`.
    ///
    /// # Errors
    /// `Invalid`: a blank id. Others: the backend failed.
    pub async fn wait_for_start(
        &self,
        instance_id: &InstanceId,
        timeout: Duration,
    ) -> Result<Option<OrchestrationState>, ClientError> {
        let began = Instant::now();
        let interval = PollInterval::default();
        let mut pause = interval.first;
        loop {
            let state = self.state(instance_id, InstanceFetch::ALL).await?;
            if state.as_ref().is_some_and(|s| s.status != Some(OrchestrationStatus::Pending)) {
                return Ok(state);
            }
            let left = timeout.saturating_sub(began.elapsed());
            if left.is_zero() {
                return Ok(None);
            }
            tokio::time::sleep(pause.min(left)).await;
            pause = pause.saturating_mul(2).min(interval.longest);
        }
    }

    /// As `WaitForCompletionOrCreateCheckStatusResponse` of Durable Functions waits: looks at once, then
    /// every `interval` (by default [`CHECK_STATUS_INTERVAL`]) until `timeout` ([`CHECK_STATUS_TIMEOUT`]).
    ///
    /// # Errors
    /// `Invalid`: a blank id, or an interval longer than the timeout. Others: the backend failed.
    pub async fn wait_or_check_status(
        &self,
        instance_id: &InstanceId,
        timeout: Option<Duration>,
        interval: Option<Duration>,
    ) -> Result<Waited, ClientError> {
        let timeout = timeout.unwrap_or(CHECK_STATUS_TIMEOUT);
        let interval = interval.unwrap_or(CHECK_STATUS_INTERVAL);
        if interval > timeout {
            return Err(ClientError::IntervalLongerThanTimeout);
        }
        self.wait_polling(instance_id, timeout, PollInterval::every(interval)).await
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use taskhub_core::OrchestrationStatus::{Completed, Pending, Running, Terminated};

    use super::*;
    use crate::fake::{FakeService, client};

    #[tokio::test(start_paused = true)]
    async fn a_wait_ends_with_the_instance() {
        let (client, fake) = client(FakeService::default().with_state("a", Running));
        let later = Arc::clone(&fake);
        tokio::spawn(async move {
            tokio::time::sleep(Duration::from_secs(7)).await;
            later.set_status("a", Completed);
        });
        let began = Instant::now();
        let waited = client.wait_for_completion(&"a".into(), Duration::from_secs(60)).await.unwrap();
        assert_eq!(waited.finished().and_then(|s| s.status), Some(Completed));
        assert!(began.elapsed() >= Duration::from_secs(7) && began.elapsed() <= Duration::from_secs(9));
        assert!(fake.state_reads() < 12, "{}", fake.state_reads());
    }

    #[tokio::test(start_paused = true)]
    async fn the_longest_pause_does_no_harm() {
        let (client, _) = client(FakeService::default().with_state("a", Running));
        let interval = PollInterval::every(Duration::MAX);
        let waited = client.wait_polling(&"a".into(), Duration::from_secs(5), interval).await.unwrap();
        assert!(matches!(waited, Waited::TimedOut(Some(_))));
    }

    #[tokio::test(start_paused = true)]
    async fn a_wait_ends_at_its_timeout_with_the_last_state() {
        let (client, _) = client(FakeService::default().with_state("a", Pending));
        let began = Instant::now();
        let waited = client.wait_for_completion(&"a".into(), Duration::from_secs(5)).await.unwrap();
        assert!(matches!(waited, Waited::TimedOut(Some(state)) if state.status == Some(Pending)));
        assert_eq!(began.elapsed(), Duration::from_secs(5));
        let none = client.wait_for_completion(&"b".into(), Duration::ZERO).await.unwrap();
        assert_eq!(none, Waited::TimedOut(None));
    }

    #[tokio::test(start_paused = true)]
    async fn a_wait_for_the_start_ends_when_the_instance_runs() {
        let (client, fake) = client(FakeService::default().with_state("a", Pending));
        assert_eq!(client.wait_for_start(&"a".into(), Duration::from_secs(3)).await.unwrap(), None);
        let later = Arc::clone(&fake);
        tokio::spawn(async move {
            tokio::time::sleep(Duration::from_secs(7)).await;
            later.set_status("a", Running);
        });
        let state = client.wait_for_start(&"a".into(), Duration::from_secs(60)).await.unwrap();
        assert_eq!(state.and_then(|s| s.status), Some(Running));
    }

    #[tokio::test(start_paused = true)]
    async fn wait_or_check_status_takes_ten_seconds_and_looks_every_second() {
        let (client, fake) = client(FakeService::default().with_state("a", Running));
        let began = Instant::now();
        let waited = client.wait_or_check_status(&"a".into(), None, None).await.unwrap();
        assert!(waited.finished().is_none());
        assert_eq!((began.elapsed(), fake.state_reads()), (Duration::from_secs(10), 11));
        let second = Some(Duration::from_secs(1));
        let error = client.wait_or_check_status(&"a".into(), second, second.map(|s| s * 2)).await;
        assert_eq!(error.unwrap_err().kind(), taskhub_core::ErrorKind::Invalid);
    }

    #[tokio::test(start_paused = true)]
    async fn a_terminated_instance_is_finished() {
        let (client, _) = client(FakeService::default().with_state("a", Terminated));
        let waited = client.wait_for_completion(&"a".into(), Duration::ZERO).await.unwrap();
        assert!(waited.finished().is_some());
    }
}
