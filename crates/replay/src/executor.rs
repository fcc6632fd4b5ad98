use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker};

use taskhub_core::{
    CompletionAction, EventKind, HistoryEvent, OrchestrationStatus, OrchestratorAction, SPLIT_TIMER_ID,
    Timestamp,
};

use crate::failure::{NonDeterminism, encode_orchestrator_failure};
use crate::machine::{OpenKind, OpenTask, Shared};
use crate::matching::{match_event_sent, match_sub_orchestration, match_task_scheduled, match_timer};
use crate::{
    ApplicationError, FailedTask, OrchestrationContext, Orchestrator, OrchestratorError, OrchestratorFuture,
    ReplaySettings, SessionAborted, TaskFailure, TaskKind,
};

/// How often an orchestrator may wake itself within one event before it counts as stuck.
const MAX_POLLS_PER_EVENT: u32 = 100_000;

/// What came out of an episode.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct EpisodeResult {
    /// What the orchestrator asks for, in ascending order of ids.
    pub actions: Vec<OrchestratorAction>,
    /// The custom status as it is now; `None` if it was never set.
    pub custom_status: Option<String>,
    /// Whether user code gave up with [`SessionAborted`]: nothing of the episode must be stored.
    pub is_aborted: bool,
}

/// One generation of an orchestration, replayed from its history and then kept alive: a later
/// [`Execution::advance`] goes on without replay (an extended session).
///
/// It runs orchestrator code on the calling thread, to quiescence after each event, so the same events
/// give the same actions. Panics of the code end the orchestration, not the process.
pub struct Execution {
    orchestrator: Arc<dyn Orchestrator>,
    settings: ReplaySettings,
    now: Timestamp,
    is_replaying: bool,
    shared: Option<Arc<Shared>>,
    body: Option<OrchestratorFuture>,
    outcome: Option<Result<Option<String>, OrchestratorError>>,
    woken: Arc<Woken>,
    polls: u64,
    failed: bool,
}

/// Set when something that the orchestrator awaits has become ready.
struct Woken(AtomicBool);

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Ordering::Relaxed);
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.0.store(true, Ordering::Relaxed);
    }
}

impl Execution {
    /// An execution that has seen no events yet.
    pub fn new(orchestrator: Arc<dyn Orchestrator>, settings: ReplaySettings) -> Self {
        Self {
            orchestrator,
            settings,
            now: Timestamp::MIN,
            is_replaying: true,
            shared: None,
            body: None,
            outcome: None,
            woken: Arc::new(Woken(AtomicBool::new(false))),
            polls: 0,
            failed: false,
        }
    }

    /// Replays `past`, then handles `new`, marks it as played, and returns what the orchestrator asks for
    /// beyond what the events already record. All returned actions must go into the history before the
    /// next call; if some do not, the execution must be dropped.
    pub fn advance(&mut self, past: &[HistoryEvent], new: &mut [HistoryEvent]) -> EpisodeResult {
        match self.handle_all(past, new) {
            Err(error) => self.fail(&error),
            Ok(()) if self.is_aborted() => {
                return EpisodeResult { is_aborted: true, ..EpisodeResult::default() };
            }
            Ok(()) => self.end_if_finished(),
        }
        let Some(shared) = &self.shared else { return EpisodeResult::default() };
        let mut machine = shared.lock();
        let actions = machine.take_decisions();
        EpisodeResult {
            actions: actions.into_iter().map(|(id, kind)| OrchestratorAction { id, kind }).collect(),
            custom_status: machine.custom_status.clone(),
            is_aborted: false,
        }
    }

    /// How often orchestrator code has been polled: at most once per event that concerns it, plus its own
    /// wake-ups.
    pub fn polls(&self) -> u64 {
        self.polls
    }

    fn handle_all(&mut self, past: &[HistoryEvent], new: &mut [HistoryEvent]) -> Result<(), NonDeterminism> {
        if self.failed {
            return Ok(());
        }
        self.set_replaying(true);
        for event in past {
            self.handle(event)?;
        }
        self.set_replaying(false);
        for event in new {
            self.handle(event)?;
            event.is_played = !matches!(event.kind, EventKind::OrchestratorStarted);
        }
        Ok(())
    }

    fn set_replaying(&mut self, is_replaying: bool) {
        self.is_replaying = is_replaying;
        if let Some(shared) = &self.shared {
            shared.lock().is_replaying = is_replaying;
        }
    }

    fn handle(&mut self, event: &HistoryEvent) -> Result<(), NonDeterminism> {
        if matches!(event.kind, EventKind::OrchestratorStarted) {
            self.now = event.timestamp;
            if let Some(shared) = &self.shared {
                shared.lock().now = event.timestamp;
            }
            return Ok(());
        }
        let Some(shared) = self.shared.clone() else {
            if let EventKind::ExecutionStarted(started) = &event.kind {
                let shared = Shared::new(started.clone(), self.settings.clone(), self.now, self.is_replaying);
                let shared = Arc::new(shared);
                self.shared = Some(shared.clone());
                self.start(OrchestrationContext::new(shared));
            }
            return Ok(());
        };
        match &event.kind {
            EventKind::ExecutionSuspended { .. } => {
                let mut machine = shared.lock();
                if !machine.is_suspended {
                    machine.suspend();
                }
            }
            EventKind::ExecutionResumed { .. } => {
                let queued = shared.lock().resume();
                for event in queued {
                    self.dispatch(&shared, &event)?;
                }
            }
            EventKind::ExecutionTerminated { input } => {
                let completion = CompletionAction::new(OrchestrationStatus::Terminated, input.clone());
                let mut machine = shared.lock();
                // Differs: in DTFx a terminated orchestration keeps its locks until somebody cleans the hub.
                machine.release_locks(&shared.started.instance.instance_id);
                machine.end(completion);
            }
            _ if shared.lock().is_suspended => shared.lock().queued.push_back(event.clone()),
            _ => self.dispatch(&shared, event)?,
        }
        Ok(())
    }

    fn dispatch(&mut self, shared: &Shared, event: &HistoryEvent) -> Result<(), NonDeterminism> {
        match &event.kind {
            EventKind::TaskScheduled { name, version, .. } => {
                match_task_scheduled(&mut shared.lock(), event.event_id, name, version)?;
            }
            EventKind::SubOrchestrationInstanceCreated { name, instance_id, .. } => {
                match_sub_orchestration(&mut shared.lock(), event.event_id, name, instance_id.as_str())?;
            }
            EventKind::TimerCreated { .. } if event.event_id == SPLIT_TIMER_ID => {}
            EventKind::TimerCreated { .. } => match_timer(&mut shared.lock(), event.event_id)?,
            EventKind::EventSent { name, instance_id, input } => {
                let mut machine = shared.lock();
                match_event_sent(&mut machine, event.event_id, name, instance_id.as_str())?;
                machine.confirm_request(event.event_id, instance_id, input.as_deref());
            }
            EventKind::TaskCompleted { task_scheduled_id, result }
            | EventKind::SubOrchestrationInstanceCompleted { task_scheduled_id, result } => {
                self.complete(shared, *task_scheduled_id, |_| Ok(result.clone()));
            }
            EventKind::TaskFailed { task_scheduled_id, reason, details, failure_details }
            | EventKind::SubOrchestrationInstanceFailed {
                task_scheduled_id,
                reason,
                details,
                failure_details,
            } => self.complete(shared, *task_scheduled_id, |task| {
                Err(TaskFailure::from(FailedTask {
                    kind: match task.kind {
                        OpenKind::SubOrchestration => TaskKind::SubOrchestration,
                        OpenKind::Activity | OpenKind::Timer => TaskKind::Activity,
                    },
                    name: task.name.clone(),
                    entity: None,
                    version: task.version.clone(),
                    schedule_id: *task_scheduled_id,
                    message: reason.clone().unwrap_or_default(),
                    details: details.clone(),
                    failure_details: failure_details.clone(),
                }))
            }),
            EventKind::TimerFired { timer_id, .. } => self.complete(shared, *timer_id, |_| Ok(None)),
            EventKind::EventRaised { name, .. } => {
                let name = name.as_deref().unwrap_or_default();
                let own = &shared.started.instance.instance_id;
                shared.lock().raise_event(name, event, self.settings.event_behaviour, own);
                self.run();
            }
            // Marks, completions of the instance, rewound rows: nothing for the orchestrator.
            _ => {}
        }
        Ok(())
    }

    fn complete(
        &mut self,
        shared: &Shared,
        id: i32,
        outcome: impl FnOnce(&OpenTask) -> Result<Option<String>, TaskFailure>,
    ) {
        if !shared.complete(id, outcome) {
            tracing::debug!(instance = %shared.started.instance.instance_id, id, "no task waits for this event");
        }
        self.run();
    }

    fn start(&mut self, context: OrchestrationContext) {
        let orchestrator = self.orchestrator.clone();
        match catch_unwind(AssertUnwindSafe(|| orchestrator.run(context))) {
            Ok(body) => {
                self.body = Some(body);
                self.woken.0.store(true, Ordering::Relaxed);
                self.run();
            }
            Err(panic) => self.outcome = Some(Err(panicked(panic.as_ref()))),
        }
    }

    /// Polls the orchestrator until nothing that it awaits is ready.
    fn run(&mut self) {
        let waker = Waker::from(self.woken.clone());
        let mut cx = Context::from_waker(&waker);
        for _ in 0..MAX_POLLS_PER_EVENT {
            let Some(body) = &mut self.body else { return };
            if !self.woken.0.swap(false, Ordering::Relaxed) {
                return;
            }
            self.polls += 1;
            match catch_unwind(AssertUnwindSafe(|| body.as_mut().poll(&mut cx))) {
                Ok(Poll::Pending) => {}
                Ok(Poll::Ready(result)) => return self.finish(result),
                Err(panic) => return self.finish(Err(panicked(panic.as_ref()))),
            }
        }
        self.finish(Err(
            ApplicationError::new("System.Exception", "orchestrator does not come to rest").into()
        ));
    }

    /// Locks that are still held are released here, as soon as the code has ended and before its end is
    /// recorded. Source: microsoft/durabletask-dotnet, `TaskOrchestrationShim.Execute`.
    fn finish(&mut self, result: Result<Option<String>, OrchestratorError>) {
        // Dropping the body cancels its timers and ends its waits. A panic there changes nothing.
        let body = self.body.take();
        let _ = catch_unwind(AssertUnwindSafe(|| drop(body)));
        // Locks that the body has leaked.
        if let Some(shared) = &self.shared {
            shared.lock().leave_sections(&shared.started.instance.instance_id);
        }
        self.outcome = Some(result);
    }

    /// Whether user code gave the session back. As every end, it waits until nothing is open; what was
    /// decided before is recorded until then.
    fn is_aborted(&self) -> bool {
        !self.failed
            && matches!(&self.outcome, Some(Err(error)) if error.is::<SessionAborted>())
            && self.shared.as_ref().is_none_or(|shared| !shared.lock().has_open_tasks())
    }

    /// Decides the end once the code has returned and nothing is open: activities, sub-orchestrations and
    /// timers that are not cancelled keep an orchestration running.
    ///
    /// Differs: in DTFx an orchestrator that returns in the episode in which it is suspended ends at once, and
    /// the children and events it has decided are lost. Here it ends when it is resumed.
    fn end_if_finished(&mut self) {
        let Some(shared) = &self.shared else { return };
        if shared.lock().has_open_tasks() || shared.lock().is_suspended {
            return;
        }
        match self.outcome.take() {
            None => {}
            Some(Ok(result)) => {
                let completion = CompletionAction::new(OrchestrationStatus::Completed, result);
                shared.lock().end(completion);
            }
            Some(Err(error)) => self.fail_with(error.as_ref()),
        }
    }

    fn fail(&mut self, error: &NonDeterminism) {
        tracing::warn!(%error, "orchestrator does not follow its history");
        self.failed = true;
        // Differs: as above, DTFx keeps the locks.
        if let Some(shared) = &self.shared {
            shared.lock().release_locks(&shared.started.instance.instance_id);
        }
        self.fail_with(error);
    }

    fn fail_with(&self, error: &(dyn std::error::Error + 'static)) {
        let Some(shared) = &self.shared else { return };
        let failure = encode_orchestrator_failure(error, self.settings.error_mode, &shared.started.name);
        let completion = CompletionAction {
            details: failure.details,
            failure_details: failure.failure_details,
            ..CompletionAction::new(OrchestrationStatus::Failed, Some(failure.reason))
        };
        shared.lock().end(completion);
    }
}

impl Drop for Execution {
    fn drop(&mut self) {
        let body = self.body.take();
        let _ = catch_unwind(AssertUnwindSafe(|| drop(body)));
    }
}

impl fmt::Debug for Execution {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Execution")
            .field("now", &self.now)
            .field("polls", &self.polls)
            .finish_non_exhaustive()
    }
}

fn panicked(panic: &(dyn std::any::Any + Send)) -> OrchestratorError {
    let text = panic.downcast_ref::<&str>().copied().or(panic.downcast_ref::<String>().map(String::as_str));
    let message = match text {
        Some(text) => format!("orchestrator panicked: {text}"),
        None => "orchestrator panicked".to_owned(),
    };
    ApplicationError::new("System.Exception", message).into()
}

#[cfg(test)]
mod tests;
