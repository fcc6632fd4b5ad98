use taskhub_core::{
    ActionKind, Clock, CompletionAction, EpisodeCommit, ErrorKind, EventKind, ExecutionStarted,
    FailureDetails, HistoryEvent, IdSource, InstanceId, OrchestrationInstance, OrchestrationStatus,
    OrchestratorAction, TaskMessage, Timestamp,
};

use crate::decisions::{NextGeneration, Outbox, Recorder};
use crate::reconcile::{ensure_started_is_first, reconcile};
use crate::{DuplicateStart, EpisodeResult, ErrorMode, RuntimeState, VersionFailure, VersioningSettings};

/// How episodes are dispatched.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EpisodeSettings {
    /// Whether inputs of activities and sub-orchestrations go into the history, not only into the
    /// messages. Source: Azure/durabletask, `TaskOrchestrationDispatcher.IncludeParameters`.
    pub include_parameters: bool,
    /// Form of failures; serialised exceptions reach parents only in
    /// [`ErrorMode::SerializedException`] (`IncludeDetails`).
    pub error_mode: ErrorMode,
    /// Which instances this worker runs.
    pub versioning: Option<VersioningSettings>,
    /// An episode with more new events than this is split; 0 never.
    /// Source: Azure/durabletask, `AzureStorageOrchestrationServiceSettings.MaxCheckpointBatchSize`.
    pub max_checkpoint_batch_size: usize,
    /// How many generations may follow each other within one work item.
    ///
    /// Differs: DTFx loops without a bound, so an orchestrator that continues as new without waiting never
    /// stores anything. Here the last generation is stored unexecuted, with the timer that DTFx uses to
    /// split checkpoints.
    pub max_generations: u32,
}

impl Default for EpisodeSettings {
    fn default() -> Self {
        Self {
            include_parameters: false,
            error_mode: ErrorMode::default(),
            versioning: None,
            max_checkpoint_batch_size: 0,
            max_generations: 1000,
        }
    }
}

/// Why an episode did not come to an end. Nothing may be stored; the work item is abandoned and the
/// [`RuntimeState`] dropped.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EpisodeError {
    /// The worker does not have this orchestrator. Another one may; the instance does not fail.
    #[error("orchestrator is not registered. name=`{name}` version=`{version}`")]
    NotRegistered {
        /// Name of the orchestrator.
        name: String,
        /// Its version; empty when there is none.
        version: String,
    },
    /// Orchestrator code returned [`SessionAborted`](crate::SessionAborted).
    #[error("the orchestrator aborted its session. instance=`{instance}`")]
    Aborted {
        /// The instance.
        instance: InstanceId,
    },
    /// A message names no instance.
    #[error("message without an addressee. event=`{event}`")]
    NoAddressee {
        /// Type of its event.
        event: &'static str,
    },
    /// History and messages do not fit together.
    #[error(transparent)]
    History(#[from] DuplicateStart),
    /// An executor outside this crate failed.
    #[error("orchestrator could not be executed. instance=`{instance}`")]
    Executor {
        /// The instance.
        instance: InstanceId,
        /// Why.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

impl EpisodeError {
    /// What to do about it.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::NotRegistered { .. } => ErrorKind::NotFound,
            Self::Aborted { .. } => ErrorKind::SessionAborted,
            Self::NoAddressee { .. } | Self::History(_) => ErrorKind::Data,
            Self::Executor { .. } => ErrorKind::Unavailable,
        }
    }
}

/// How a work item ends.
#[derive(Debug)]
pub enum EpisodeOutcome {
    /// Store this and send its messages.
    Commit(EpisodeCommit),
    /// All messages are stale: consume them and store nothing.
    Discard,
    /// The instance has a version that this worker does not run: put the messages back and drop the state.
    Reject {
        /// Version of the instance; empty when there is none.
        version: String,
    },
}

/// What an [`Episode`] needs next.
#[derive(Debug)]
pub enum EpisodeStep {
    /// Execute the [`Episode::turn`], then call [`Episode::finish_turn`].
    Execute,
    /// Nothing more.
    Done(EpisodeOutcome),
}

/// One generation to be executed.
#[derive(Debug)]
pub struct Turn<'a> {
    /// The execution.
    pub instance: OrchestrationInstance,
    /// Name of the orchestrator.
    pub name: String,
    /// Its version.
    pub version: Option<String>,
    /// Events that earlier episodes have stored.
    pub past: &'a [HistoryEvent],
    /// Events to be handled.
    pub new: &'a mut [HistoryEvent],
}

/// Runs orchestrator code, in this process or elsewhere.
pub trait EpisodeExecutor {
    /// Executes one generation: handles `new` after `past` and returns all actions without an event.
    ///
    /// # Errors
    /// [`EpisodeError::NotRegistered`], [`EpisodeError::Aborted`], [`EpisodeError::Executor`].
    fn execute(&mut self, turn: Turn<'_>) -> Result<EpisodeResult, EpisodeError>;

    /// Forgets what it kept of earlier turns: the next one must replay all of `past`.
    fn forget(&mut self) {}
}

/// One work item of an orchestration on its way through the dispatcher, without any I/O: reconciles the
/// messages, asks for executions, turns actions into events and messages.
///
/// Use [`run_episode`] unless the executor is asynchronous. Source: Azure/durabletask,
/// `TaskOrchestrationDispatcher.OnProcessWorkItemAsync`.
#[derive(Debug)]
pub struct Episode<'a> {
    state: &'a mut RuntimeState,
    settings: &'a EpisodeSettings,
    ids: &'a dyn IdSource,
    outbox: Outbox,
    generations: u32,
    replaces_history: bool,
    carried_status: Option<String>,
    is_split: bool,
}

impl<'a> Episode<'a> {
    /// Takes the messages of a work item into the state.
    ///
    /// # Errors
    /// A message without an addressee, or a second start.
    pub fn begin(
        state: &'a mut RuntimeState,
        mut messages: Vec<TaskMessage>,
        settings: &'a EpisodeSettings,
        ids: &'a dyn IdSource,
        now: Timestamp,
    ) -> Result<(Self, EpisodeStep), EpisodeError> {
        ensure_started_is_first(&mut messages);
        state.add(HistoryEvent::message(now, EventKind::OrchestratorStarted))?;
        let accepted = reconcile(state, messages)?;
        let mut episode = Self {
            state,
            settings,
            ids,
            outbox: Outbox::default(),
            generations: 1,
            replaces_history: false,
            carried_status: None,
            is_split: false,
        };
        let step = if accepted && episode.state.started().is_some() {
            episode.check_version(now)?
        } else {
            episode.state.discard_new()?;
            EpisodeStep::Done(EpisodeOutcome::Discard)
        };
        Ok((episode, step))
    }

    /// What to execute.
    ///
    /// # Panics
    /// The last step was not [`EpisodeStep::Execute`] and the execution has no start.
    pub fn turn(&mut self) -> Turn<'_> {
        let started = self.state.started().expect("a turn follows a start");
        let (instance, name) = (started.instance.clone(), started.name.clone());
        let version = started.version.clone();
        let (past, new) = self.state.split_mut();
        Turn { instance, name, version, past, new }
    }

    /// Whether the rest of the episode's actions was left to a later replay: a kept executor must be
    /// dropped.
    pub fn is_split(&self) -> bool {
        self.is_split
    }

    /// Records what the execution asked for.
    ///
    /// # Errors
    /// User code aborted.
    pub fn finish_turn(
        &mut self,
        result: EpisodeResult,
        now: Timestamp,
    ) -> Result<EpisodeStep, EpisodeError> {
        if result.is_aborted {
            let instance = self.state.instance().map(|i| i.instance_id.clone()).unwrap_or_default();
            return Err(EpisodeError::Aborted { instance });
        }
        self.state.custom_status = result.custom_status;
        self.record(result.actions, now)
    }

    fn recorder(&self, now: Timestamp) -> Option<Recorder<'a>> {
        Some(Recorder {
            started: without_payload(self.state.started()?),
            include_parameters: self.settings.include_parameters,
            error_mode: self.settings.error_mode,
            now,
            ids: self.ids,
        })
    }

    fn check_version(&mut self, now: Timestamp) -> Result<EpisodeStep, EpisodeError> {
        let version = self.state.started().and_then(|started| started.version.as_deref());
        let Some(versioning) = self.settings.versioning.as_ref().filter(|v| !v.matches(version)) else {
            return Ok(EpisodeStep::Execute);
        };
        match versioning.failure_strategy {
            VersionFailure::Reject => {
                let version = version.unwrap_or_default().to_owned();
                Ok(EpisodeStep::Done(EpisodeOutcome::Reject { version }))
            }
            VersionFailure::Fail => {
                let mut completion = CompletionAction::new(OrchestrationStatus::Failed, None);
                completion.failure_details = Some(FailureDetails {
                    is_non_retriable: true,
                    ..FailureDetails::new(
                        "VersionMismatch",
                        "Orchestration version did not comply with Worker Versioning",
                    )
                });
                let id = i32::try_from(self.state.past().len()).unwrap_or(i32::MAX);
                self.record(vec![OrchestratorAction { id, kind: ActionKind::Complete(completion) }], now)
            }
        }
    }

    fn record(
        &mut self,
        mut actions: Vec<OrchestratorAction>,
        now: Timestamp,
    ) -> Result<EpisodeStep, EpisodeError> {
        actions.sort_by_key(|action| action.id);
        keep_termination(&mut actions);
        let Some(recorder) = self.recorder(now) else {
            return Ok(EpisodeStep::Done(EpisodeOutcome::Discard));
        };
        let mut next = None;
        let mut is_ended = false;
        for OrchestratorAction { id, kind } in actions {
            is_ended |= matches!(kind, ActionKind::Complete(_));
            next = recorder.record(id, kind, self.state, &mut self.outbox)?.or(next);
            let limit = self.settings.max_checkpoint_batch_size;
            if limit > 0 && self.state.new_events().len() > limit {
                if !is_ended {
                    recorder.split(self.state, &mut self.outbox)?;
                    self.is_split = true;
                }
                break;
            }
        }
        match next {
            Some(next) => self.begin_generation(next, now),
            None => self.commit(now),
        }
    }

    /// Replaces the state by that of the next generation. None of the previous one is ever stored, but its
    /// messages are sent.
    fn begin_generation(
        &mut self,
        next: NextGeneration,
        now: Timestamp,
    ) -> Result<EpisodeStep, EpisodeError> {
        let previous = std::mem::take(self.state);
        self.replaces_history = true;
        self.generations += 1;
        self.state.custom_status = previous.custom_status.clone().or_else(|| self.carried_status.take());
        self.carried_status = self.state.custom_status.clone();
        self.state.add(HistoryEvent::message(now, EventKind::OrchestratorStarted))?;
        self.state.add(HistoryEvent::message(now, EventKind::ExecutionStarted(Box::new(next.started))))?;
        for mut event in next.carryover {
            event.is_played = false;
            self.state.add(event)?;
        }
        self.state.add(HistoryEvent::message(now, EventKind::OrchestratorCompleted))?;
        if self.generations > self.settings.max_generations.max(1) {
            if let Some(recorder) = self.recorder(now) {
                recorder.split(self.state, &mut self.outbox)?;
            }
            self.is_split = true;
            return self.commit(now);
        }
        self.check_version(now)
    }

    fn commit(&mut self, now: Timestamp) -> Result<EpisodeStep, EpisodeError> {
        if self.state.last().is_none_or(|event| event.kind != EventKind::OrchestratorCompleted) {
            self.state.add(HistoryEvent::message(now, EventKind::OrchestratorCompleted))?;
        }
        if self.state.custom_status.is_none() {
            self.state.custom_status = self.carried_status.take();
        }
        let outbox = std::mem::take(&mut self.outbox);
        let commit = EpisodeCommit {
            instance: self.state.instance().cloned().unwrap_or_default(),
            replaces_history: self.replaces_history,
            new_events: self.state.new_events().to_vec(),
            status: self.state.status(),
            custom_status: self.state.custom_status.clone(),
            activity_messages: outbox.activities,
            orchestrator_messages: outbox.orchestrators,
            timer_messages: outbox.timers,
        };
        self.state.end_episode();
        Ok(EpisodeStep::Done(EpisodeOutcome::Commit(commit)))
    }
}

/// A termination wins over whatever else would end the generation in the same episode.
///
/// Differs: in DTFx an orchestrator that continues as new in the same batch undoes its termination.
fn keep_termination(actions: &mut Vec<OrchestratorAction>) {
    let terminates = |action: &OrchestratorAction| matches!(&action.kind, ActionKind::Complete(c) if c.status == OrchestrationStatus::Terminated);
    if actions.iter().any(terminates) {
        actions.retain(|action| terminates(action) || !matches!(action.kind, ActionKind::Complete(_)));
    }
}

/// The start without its input, which no decision needs.
fn without_payload(started: &ExecutionStarted) -> ExecutionStarted {
    ExecutionStarted {
        instance: started.instance.clone(),
        parent: started.parent.clone(),
        name: started.name.clone(),
        version: started.version.clone(),
        input: None,
        tags: started.tags.clone(),
        correlation: None,
        parent_trace_context: started.parent_trace_context.clone(),
        scheduled_start_time: None,
        generation: None,
        generate_new_trace: false,
    }
}

/// Takes a work item through an executor that returns at once. `state` is that of the instance before the
/// work item, and afterwards as if the outcome had been stored; in an extended session it goes into the
/// next call with the same executor.
///
/// # Errors
/// See [`EpisodeError`]; `state` and `executor` must then be dropped.
pub fn run_episode(
    state: &mut RuntimeState,
    messages: Vec<TaskMessage>,
    executor: &mut dyn EpisodeExecutor,
    settings: &EpisodeSettings,
    clock: &dyn Clock,
    ids: &dyn IdSource,
) -> Result<EpisodeOutcome, EpisodeError> {
    let (mut episode, mut step) = Episode::begin(state, messages, settings, ids, clock.now())?;
    loop {
        match step {
            EpisodeStep::Done(outcome) => {
                if episode.is_split() {
                    executor.forget();
                }
                return Ok(outcome);
            }
            EpisodeStep::Execute => {
                let result = executor.execute(episode.turn())?;
                step = episode.finish_turn(result, clock.now())?;
            }
        }
    }
}

#[cfg(test)]
mod tests;
