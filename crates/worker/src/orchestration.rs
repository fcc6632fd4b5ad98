//! The orchestration dispatcher: lock -> episode -> complete or abandon -> release.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures::FutureExt;
use taskhub_core::{
    EpisodeCommit, GiveBackReason, IdSource, InstanceId, LockToken, OrchestrationStatus,
    OrchestrationWorkItem, ServiceError, TaskMessage, Timestamp,
};
use taskhub_replay::{Episode, EpisodeError, EpisodeOutcome, EpisodeSettings, EpisodeStep, RuntimeState};
use tracing::{debug, error, warn};

use crate::dispatcher::{Processed, WorkKind, renewing};
use crate::executor::{OrchestrationExecutor, OrchestrationSession};
use crate::fused::Fused;
use crate::instance::{InstanceWork, Next};
use crate::registry::panic_kind;

pub(crate) const KIND: &str = "orchestration";

pub(crate) struct OrchestrationWork {
    pub(crate) base: InstanceWork,
    pub(crate) executor: Arc<dyn OrchestrationExecutor>,
    pub(crate) settings: EpisodeSettings,
    pub(crate) ids: Arc<dyn IdSource>,
    pub(crate) fused: Fused,
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

#[async_trait]
impl WorkKind for OrchestrationWork {
    type Item = OrchestrationWorkItem;

    fn name(&self) -> &'static str {
        KIND
    }

    async fn fetch(&self, timeout: Duration) -> Result<Option<OrchestrationWorkItem>, ServiceError> {
        self.base.service.lock_next_orchestration(timeout).await
    }

    async fn process(&self, item: OrchestrationWorkItem) -> Processed {
        self.base.process(item.token, Box::pin(self.work(item))).await
    }

    async fn put_back(&self, item: OrchestrationWorkItem) {
        self.base.put_back(item.token).await;
    }
}

impl OrchestrationWork {
    /// One work item and, in an extended session, those that follow it for the same instance.
    async fn work(&self, item: OrchestrationWorkItem) -> Processed {
        let OrchestrationWorkItem { token, instance, history, mut messages, locked_until, attempt } = item;
        let instance_id = instance.instance_id.clone();
        let state = match RuntimeState::from_history(history) {
            Ok(state) => state,
            Err(error) => {
                error!(instance = %instance_id, attempt, %error, "history cannot be used, messages given back");
                let reason = GiveBackReason::Failed { reason: error.to_string() };
                return self.base.give_back(token, reason, Processed::Ok).await;
            }
        };
        let session = self.executor.open(&instance);
        let mut live = Live { token, instance_id, attempt, locked_until, state, session };
        let mut slot = None;
        loop {
            match self.episode(&mut live, messages).await {
                Next::GivenBack(processed) => return processed,
                Next::Stored { resumable: false } => return Processed::Ok,
                Next::Stored { resumable: true } => {}
            }
            messages = match self.base.next_messages(token, &live.instance_id, &mut slot).await {
                Some(messages) => messages,
                None => return Processed::Ok,
            };
        }
    }

    async fn episode(&self, live: &mut Live, messages: Vec<TaskMessage>) -> Next {
        let Live { token, instance_id, attempt, locked_until, state, session } = live;
        let token = *token;
        let run =
            AssertUnwindSafe(Box::pin(self.run_episodes(state, messages, session.as_mut()))).catch_unwind();
        let renew = || self.base.service.renew_orchestration(token);
        let result = tokio::select! {
            biased;
            result = renewing(self.base.clock.as_ref(), locked_until, renew, run) => result,
            () = self.base.life.give_up.cancelled() => {
                warn!(instance = %instance_id, "episode did not end before the shutdown");
                let stopped = GiveBackReason::Interrupted;
                return Next::GivenBack(self.base.give_back(token, stopped, Processed::Ok).await);
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
            Ok((EpisodeOutcome::Discard, _)) => self.base.discard(token, instance_id).await,
            Ok((EpisodeOutcome::Reject { version }, _)) => {
                let name = state.started().map(|s| s.name.clone()).unwrap_or_default();
                if self.base.gave_back.is_due(KIND, &format!("{name} {version}"), self.base.clock.now()) {
                    warn!(
                        instance = %instance_id, orchestrator = name, version,
                        "instance of another version, messages given back for other workers"
                    );
                }
                let reason = GiveBackReason::UnknownFunction { name };
                Next::GivenBack(self.base.give_back(token, reason, Processed::Ok).await)
            }
            Err(error) => {
                let (reason, processed) = self.report(error, instance_id, *attempt);
                Next::GivenBack(self.base.give_back(token, reason, processed).await)
            }
        }
    }

    /// An episode, and those that follow it with the results of fused activities. The outcome, and whether a later
    /// replay has to begin anew.
    async fn run_episodes(
        &self,
        state: &mut RuntimeState,
        messages: Vec<TaskMessage>,
        session: &mut dyn OrchestrationSession,
    ) -> Result<(EpisodeOutcome, bool), EpisodeError> {
        let mut budget = self.fused.budget();
        let (mut outcome, mut is_split) = self.run_episode(state, messages, session).await?;
        while let EpisodeOutcome::Commit(commit) = &mut outcome
            && !is_split
        {
            let mut ran = self.fused.run(commit, &mut budget).await;
            let answers = std::mem::take(&mut ran.answers);
            if answers.is_empty() {
                break;
            }
            let (next, was_split) = self.run_episode(state, answers, session).await?;
            let EpisodeOutcome::Commit(next) = next else {
                // Answers are never stale: begin again from what is stored.
                return Err(EpisodeError::Aborted { instance: commit.instance.instance_id.clone() });
            };
            // The live state is ahead of what is stored if they do not go together.
            is_split = !self.fused.append(commit, ran, next) || was_split;
        }
        Ok((outcome, is_split))
    }

    /// The outcome, and whether actions were left to a later replay.
    async fn run_episode(
        &self,
        state: &mut RuntimeState,
        messages: Vec<TaskMessage>,
        session: &mut dyn OrchestrationSession,
    ) -> Result<(EpisodeOutcome, bool), EpisodeError> {
        let now = self.base.clock.now();
        let (mut episode, mut step) =
            Episode::begin(state, messages, &self.settings, self.ids.as_ref(), now)?;
        loop {
            match step {
                EpisodeStep::Done(outcome) => return Ok((outcome, episode.is_split())),
                EpisodeStep::Execute => {
                    let result = session.execute(episode.turn()).await?;
                    step = episode.finish_turn(result, self.base.clock.now())?;
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
        let outcome = if commit.status == OrchestrationStatus::Failed { "failed" } else { "completed" };
        let stored = self.base.service.complete_orchestration(token, commit).await;
        self.base.stored(token, instance_id, outcome, stored, resumable).await
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
                if self.base.gave_back.is_due(KIND, &name, self.base.clock.now()) {
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
