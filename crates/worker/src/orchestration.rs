//! The orchestration dispatcher: lock -> episode -> complete or abandon -> release.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures::FutureExt;
use taskhub_core::{
    Clock, EpisodeCommit, ErrorKind, GiveBackReason, IdSource, InstanceId, LockToken, OrchestrationService,
    OrchestrationStatus, OrchestrationWorkItem, ServiceError, TaskMessage, Timestamp,
};
use taskhub_replay::{Episode, EpisodeError, EpisodeOutcome, EpisodeSettings, EpisodeStep, RuntimeState};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tracing::{debug, error, info, warn};

use crate::dispatcher::{Processed, WorkKind, renewing};
use crate::executor::{OrchestrationExecutor, OrchestrationSession};
use crate::give_back::{GaveBack, reason_of};
use crate::lifecycle::Lifecycle;
use crate::registry::panic_kind;
use crate::settings::WorkerSettings;

const KIND: &str = "orchestration";
const ENTITY: &str = "entity";

pub(crate) struct OrchestrationWork {
    service: Arc<dyn OrchestrationService>,
    executor: Arc<dyn OrchestrationExecutor>,
    settings: EpisodeSettings,
    clock: Arc<dyn Clock>,
    ids: Arc<dyn IdSource>,
    life: Lifecycle,
    gave_back: Arc<GaveBack>,
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
        KIND
    }

    async fn fetch(&self, timeout: Duration) -> Result<Option<OrchestrationWorkItem>, ServiceError> {
        self.service.lock_next_orchestration(timeout).await
    }

    async fn process(&self, item: OrchestrationWorkItem) -> Processed {
        let token = item.token;
        // A defect of the backend costs this work item and no more.
        let processed = match AssertUnwindSafe(self.work(item)).catch_unwind().await {
            Ok(processed) => processed,
            Err(panic) => {
                error!(panic = panic_kind(panic.as_ref()), "processing a work item panicked");
                self.give_back(token, GiveBackReason::Interrupted, Processed::ServiceFailed).await
            }
        };
        self.service.release_orchestration(token).await;
        processed
    }

    async fn put_back(&self, item: OrchestrationWorkItem) {
        self.abandon(item.token, GiveBackReason::Interrupted).await;
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
        gave_back: Arc<GaveBack>,
    ) -> Self {
        let sessions = Arc::new(Semaphore::new(settings.max_extended_sessions()));
        Self {
            service,
            executor,
            settings: settings.episode_settings(),
            clock,
            ids,
            life,
            gave_back,
            sessions,
        }
    }

    /// One work item and, in an extended session, those that follow it for the same instance.
    async fn work(&self, item: OrchestrationWorkItem) -> Processed {
        let OrchestrationWorkItem { token, instance, history, mut messages, locked_until, attempt } = item;
        let instance_id = instance.instance_id.clone();
        if instance_id.is_entity() {
            return self.give_back_entity(token, &instance_id).await;
        }
        let state = match RuntimeState::from_history(history) {
            Ok(state) => state,
            Err(error) => {
                error!(instance = %instance_id, attempt, %error, "history cannot be used, messages given back");
                let reason = GiveBackReason::Failed { reason: error.to_string() };
                return self.give_back(token, reason, Processed::Ok).await;
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
                let stopped = GiveBackReason::Interrupted;
                return Next::GivenBack(self.give_back(token, stopped, Processed::Ok).await);
            }
        };
        let result = result.unwrap_or_else(|panic| {
            let source = panic_kind(panic.as_ref()).into();
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
                if discarded.is_ok() {
                    self.gave_back.metrics.ended(KIND, "discarded");
                }
                self.stored(token, instance_id, discarded, true).await
            }
            Ok((EpisodeOutcome::Reject { version }, _)) => {
                let name = state.started().map(|s| s.name.clone()).unwrap_or_default();
                if self.gave_back.is_due(KIND, &format!("{name} {version}"), self.clock.now()) {
                    warn!(
                        instance = %instance_id, orchestrator = name, version,
                        "instance of another version, messages given back for other workers"
                    );
                }
                let reason = GiveBackReason::UnknownFunction { name };
                Next::GivenBack(self.give_back(token, reason, Processed::Ok).await)
            }
            Err(error) => {
                let (reason, processed) = self.report(error, instance_id, *attempt);
                Next::GivenBack(self.give_back(token, reason, processed).await)
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
        let failed = commit.status == OrchestrationStatus::Failed;
        let stored = self.service.complete_orchestration(token, commit).await;
        if stored.is_ok() {
            self.gave_back.metrics.ended(KIND, if failed { "failed" } else { "completed" });
        }
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
        Next::GivenBack(self.give_back(token, reason_of(&error), processed).await)
    }

    async fn give_back_entity(&self, token: LockToken, instance_id: &InstanceId) -> Processed {
        let name = instance_id.as_str().split('@').nth(1).unwrap_or_default().to_owned();
        if self.gave_back.is_due(ENTITY, &name, self.clock.now()) {
            warn!(instance = %instance_id, "this worker does not run entities, messages given back");
        }
        let reason = GiveBackReason::UnknownFunction { name };
        self.gave_back.count(ENTITY, &reason);
        self.abandon(token, reason).await;
        Processed::Ok
    }

    async fn give_back(&self, token: LockToken, reason: GiveBackReason, processed: Processed) -> Processed {
        self.gave_back.count(KIND, &reason);
        self.abandon(token, reason).await;
        processed
    }

    async fn abandon(&self, token: LockToken, reason: GiveBackReason) {
        if let Err(error) = self.service.give_back_orchestration(token, reason).await {
            warn!(error = error.chain(), "cannot give messages back, they return when their lock ends");
        }
    }

    /// Logs why an episode did not end.
    ///
    /// Messages that nobody can handle come back for ever, with delays that grow to a limit; the instance is
    /// not failed, because a worker that can may appear.
    ///
    /// Differs: DTFx also stops receiving for 10 s. The backend's delay for these messages is enough, other
    /// instances need not wait.
    fn report(
        &self,
        error: EpisodeError,
        instance_id: &InstanceId,
        attempt: u32,
    ) -> (GiveBackReason, Processed) {
        match error {
            EpisodeError::Aborted { .. } => {
                debug!(instance = %instance_id, attempt, %error, "messages given back");
                (GiveBackReason::Interrupted, Processed::Ok)
            }
            EpisodeError::NotRegistered { name, version } => {
                if self.gave_back.is_due(KIND, &name, self.clock.now()) {
                    warn!(
                        instance = %instance_id, orchestrator = name, version, attempt,
                        "no such orchestrator here, messages given back for other workers"
                    );
                }
                (GiveBackReason::UnknownFunction { name }, Processed::Ok)
            }
            EpisodeError::Executor { ref source, .. } => {
                error!(instance = %instance_id, attempt, %error, %source, "messages given back");
                (GiveBackReason::Failed { reason: format!("{error}: {source}") }, Processed::ServiceFailed)
            }
            _ => {
                error!(instance = %instance_id, attempt, %error, "messages given back");
                (GiveBackReason::Failed { reason: error.to_string() }, Processed::Ok)
            }
        }
    }
}
