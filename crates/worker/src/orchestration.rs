//! The orchestration dispatcher: lock -> episode -> complete or abandon -> release.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures::FutureExt;
use taskhub_core::{
    Clock, EpisodeCommit, ErrorKind, IdSource, InstanceId, LockToken, OrchestrationService,
    OrchestrationWorkItem, ServiceError, TaskMessage, Timestamp,
};
use taskhub_replay::{Episode, EpisodeError, EpisodeOutcome, EpisodeSettings, EpisodeStep, RuntimeState};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tracing::{debug, error, info, warn};

use crate::dispatcher::{Processed, WorkKind, renewing};
use crate::executor::{OrchestrationExecutor, OrchestrationSession};
use crate::lifecycle::Lifecycle;
use crate::registry::panic_message;
use crate::settings::WorkerSettings;

pub(crate) struct OrchestrationWork {
    service: Arc<dyn OrchestrationService>,
    executor: Arc<dyn OrchestrationExecutor>,
    settings: EpisodeSettings,
    clock: Arc<dyn Clock>,
    ids: Arc<dyn IdSource>,
    life: Lifecycle,
    /// Slots of extended sessions; none when they are off.
    sessions: Arc<Semaphore>,
}

/// A locked instance while a work item, and perhaps a session after it, lasts.
struct Live {
    token: LockToken,
    instance_id: InstanceId,
    attempt: u32,
    locked_until: Timestamp,
    state: RuntimeState,
    session: Box<dyn OrchestrationSession>,
}

/// What follows an episode.
enum Next {
    /// It is stored (or there was nothing to store): the live state may go on.
    Stored { resumable: bool },
    /// The messages are back in their queue, the live state is worthless.
    GivenBack(Processed),
}

#[async_trait]
impl WorkKind for OrchestrationWork {
    type Item = OrchestrationWorkItem;

    fn name(&self) -> &'static str {
        "orchestration"
    }

    async fn fetch(&self, timeout: Duration) -> Result<Option<OrchestrationWorkItem>, ServiceError> {
        self.service.lock_next_orchestration(timeout).await
    }

    async fn process(&self, item: OrchestrationWorkItem) -> Processed {
        let token = item.token;
        let processed = self.work(item).await;
        self.service.release_orchestration(token).await;
        processed
    }

    async fn put_back(&self, item: OrchestrationWorkItem) {
        self.abandon(item.token).await;
        self.service.release_orchestration(item.token).await;
    }
}

impl OrchestrationWork {
    pub(crate) fn new(
        service: Arc<dyn OrchestrationService>,
        executor: Arc<dyn OrchestrationExecutor>,
        settings: &WorkerSettings,
        clock: Arc<dyn Clock>,
        ids: Arc<dyn IdSource>,
        life: Lifecycle,
    ) -> Self {
        let sessions = Arc::new(Semaphore::new(settings.max_extended_sessions()));
        Self { service, executor, settings: settings.episode_settings(), clock, ids, life, sessions }
    }

    /// One work item and, in an extended session, those that follow it for the same instance.
    async fn work(&self, item: OrchestrationWorkItem) -> Processed {
        let OrchestrationWorkItem { token, instance, history, mut messages, locked_until, attempt } = item;
        let instance_id = instance.instance_id.clone();
        if instance_id.is_entity() {
            warn!(instance = %instance_id, "this worker does not run entities, messages given back");
            return self.give_back(token, Processed::Ok).await;
        }
        let state = match RuntimeState::from_history(history) {
            Ok(state) => state,
            Err(error) => {
                error!(instance = %instance_id, attempt, %error, "history cannot be used, messages given back");
                return self.give_back(token, Processed::Ok).await;
            }
        };
        let session = self.executor.open(&instance);
        let mut live = Live { token, instance_id, attempt, locked_until, state, session };
        let mut slot: Option<OwnedSemaphorePermit> = None;
        loop {
            match self.episode(&mut live, messages).await {
                Next::GivenBack(processed) => return processed,
                Next::Stored { resumable: false } => return Processed::Ok,
                Next::Stored { resumable: true } => {}
            }
            // Sessions take at most half of the slots, so that they cannot keep other instances out.
            slot = slot.or_else(|| self.sessions.clone().try_acquire_owned().ok());
            if slot.is_none() || self.life.stopping.is_cancelled() {
                return Processed::Ok;
            }
            messages = match self.service.next_session_messages(token).await {
                Ok(Some(messages)) => messages,
                Ok(None) => return Processed::Ok,
                Err(error) => {
                    warn!(instance = %live.instance_id, error = error.chain(), "extended session ended early");
                    return Processed::Ok;
                }
            };
        }
    }

    async fn episode(&self, live: &mut Live, messages: Vec<TaskMessage>) -> Next {
        let Live { token, instance_id, attempt, locked_until, state, session } = live;
        let token = *token;
        let run = AssertUnwindSafe(self.run_episode(state, messages, session.as_mut())).catch_unwind();
        let renew = || self.service.renew_orchestration(token);
        let result = tokio::select! {
            biased;
            result = renewing(self.clock.as_ref(), locked_until, renew, run) => result,
            () = self.life.give_up.cancelled() => {
                warn!(instance = %instance_id, "episode did not end before the shutdown");
                return Next::GivenBack(self.give_back(token, Processed::Ok).await);
            }
        };
        let result = result.unwrap_or_else(|panic| {
            let source = panic_message(panic.as_ref()).into();
            Err(EpisodeError::Executor { instance: instance_id.clone(), source })
        });
        match result {
            Ok((EpisodeOutcome::Commit(commit), is_split)) => {
                let resumable = !is_split && !commit.status.is_terminal();
                self.complete(token, instance_id, commit, resumable).await
            }
            Ok((EpisodeOutcome::Discard, _)) => {
                debug!(instance = %instance_id, "stale messages discarded");
                let discarded = self.service.discard_orchestration(token).await;
                self.stored(token, instance_id, discarded, true).await
            }
            Ok((EpisodeOutcome::Reject { version }, _)) => {
                warn!(instance = %instance_id, version, "instance of another version, messages given back");
                Next::GivenBack(self.give_back(token, Processed::Ok).await)
            }
            Err(error) => {
                let processed = report(&error, instance_id, *attempt);
                Next::GivenBack(self.give_back(token, processed).await)
            }
        }
    }

    /// The outcome, and whether actions were left to a later replay.
    async fn run_episode(
        &self,
        state: &mut RuntimeState,
        messages: Vec<TaskMessage>,
        session: &mut dyn OrchestrationSession,
    ) -> Result<(EpisodeOutcome, bool), EpisodeError> {
        let now = self.clock.now();
        let (mut episode, mut step) =
            Episode::begin(state, messages, &self.settings, self.ids.as_ref(), now)?;
        loop {
            match step {
                EpisodeStep::Done(outcome) => return Ok((outcome, episode.is_split())),
                EpisodeStep::Execute => {
                    let result = session.execute(episode.turn()).await?;
                    step = episode.finish_turn(result, self.clock.now())?;
                }
            }
        }
    }

    async fn complete(
        &self,
        token: LockToken,
        instance_id: &InstanceId,
        commit: EpisodeCommit,
        resumable: bool,
    ) -> Next {
        debug!(
            instance = %instance_id,
            status = %commit.status,
            events = commit.new_events.len(),
            activities = commit.activity_messages.len(),
            messages = commit.orchestrator_messages.len(),
            timers = commit.timer_messages.len(),
            "episode ended"
        );
        let stored = self.service.complete_orchestration(token, commit).await;
        self.stored(token, instance_id, stored, resumable).await
    }

    async fn stored(
        &self,
        token: LockToken,
        instance_id: &InstanceId,
        stored: Result<(), ServiceError>,
        resumable: bool,
    ) -> Next {
        let Err(error) = stored else { return Next::Stored { resumable } };
        let processed = if error.kind() == ErrorKind::SessionAborted {
            info!(instance = %instance_id, error = error.chain(), "another worker has the instance");
            Processed::Ok
        } else {
            warn!(instance = %instance_id, error = error.chain(), "cannot store an episode, it will run again");
            Processed::ServiceFailed
        };
        Next::GivenBack(self.give_back(token, processed).await)
    }

    async fn give_back(&self, token: LockToken, processed: Processed) -> Processed {
        self.abandon(token).await;
        processed
    }

    async fn abandon(&self, token: LockToken) {
        if let Err(error) = self.service.abandon_orchestration(token).await {
            warn!(error = error.chain(), "cannot give messages back, they return when their lock ends");
        }
    }
}

/// Logs why an episode did not end.
///
/// Messages that nobody can handle come back with growing delays for ever; the instance is not failed,
/// because a worker that can may appear.
///
/// Differs: DTFx also stops receiving for 10 s. The backend's delay for these messages is enough, other
/// instances need not wait.
fn report(error: &EpisodeError, instance_id: &InstanceId, attempt: u32) -> Processed {
    match error {
        EpisodeError::Aborted { .. } => {
            debug!(instance = %instance_id, attempt, %error, "messages given back")
        }
        EpisodeError::NotRegistered { .. } => {
            warn!(instance = %instance_id, attempt, %error, "messages given back");
        }
        EpisodeError::Executor { source, .. } => {
            error!(instance = %instance_id, attempt, %error, %source, "messages given back");
            return Processed::ServiceFailed;
        }
        _ => error!(instance = %instance_id, attempt, %error, "messages given back"),
    }
    Processed::Ok
}
