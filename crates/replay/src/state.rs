use std::collections::HashSet;

use taskhub_core::{
    EventKind, ExecutionCompleted, ExecutionStarted, FailureDetails, HistoryEvent, InstanceId,
    OrchestrationInstance, OrchestrationStatus, ParentInstance, Tags, Timestamp,
};

/// A history cannot be that of one execution.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the history starts twice. instance=`{instance}`")]
pub struct DuplicateStart {
    /// The instance that the second start names.
    pub instance: InstanceId,
}

/// The state of one execution: its events, and what follows from them.
///
/// `past` is what the hub has stored, `new` what the current episode adds.
/// Source: Azure/durabletask, `OrchestrationRuntimeState`.
#[derive(Debug, Clone, Default)]
pub struct RuntimeState {
    past: Vec<HistoryEvent>,
    new: Vec<HistoryEvent>,
    /// Positions in `past` followed by `new`.
    started: Option<usize>,
    completed: Option<usize>,
    status: Option<OrchestrationStatus>,
    seen_results: HashSet<i32>,
    /// Custom status as the orchestrator last set it, serialised.
    pub custom_status: Option<String>,
}

impl RuntimeState {
    /// The state after a stored history; empty for a new execution.
    ///
    /// # Errors
    /// The history contains two starts.
    pub fn from_history(history: Vec<HistoryEvent>) -> Result<Self, DuplicateStart> {
        let mut state = Self { new: Vec::with_capacity(history.len()), ..Self::default() };
        for event in history {
            state.add(event)?;
        }
        state.end_episode();
        Ok(state)
    }

    /// Appends a new event.
    ///
    /// # Errors
    /// A second start.
    pub fn add(&mut self, event: HistoryEvent) -> Result<(), DuplicateStart> {
        let position = self.len();
        match &event.kind {
            EventKind::ExecutionStarted(started) => {
                if self.started.is_some() {
                    return Err(DuplicateStart { instance: started.instance.instance_id.clone() });
                }
                self.started = Some(position);
            }
            EventKind::ExecutionCompleted(completed) | EventKind::ContinueAsNew(completed) => {
                // The first completion counts, but a termination beats continue-as-new.
                let replaces = self.completed.is_none()
                    || self.status == Some(OrchestrationStatus::ContinuedAsNew)
                        && completed.status == OrchestrationStatus::Terminated;
                if replaces {
                    self.completed = Some(position);
                    self.status = Some(completed.status);
                }
            }
            EventKind::ExecutionSuspended { .. } => self.status = Some(OrchestrationStatus::Suspended),
            EventKind::ExecutionResumed { .. } if self.completed.is_none() => {
                self.status = Some(OrchestrationStatus::Running);
            }
            // No present writer gives results an id of their own; DTFx keeps this check for old ones.
            EventKind::TaskCompleted { .. }
                if event.event_id >= 0 && !self.seen_results.insert(event.event_id) =>
            {
                return Ok(());
            }
            _ => {}
        }
        self.new.push(event);
        Ok(())
    }

    /// Makes the new events past ones: they have been stored.
    pub fn end_episode(&mut self) {
        if self.past.is_empty() {
            self.past = std::mem::take(&mut self.new);
        } else {
            self.past.append(&mut self.new);
        }
    }

    /// Stored events.
    pub fn past(&self) -> &[HistoryEvent] {
        &self.past
    }

    /// Events of the current episode.
    pub fn new_events(&self) -> &[HistoryEvent] {
        &self.new
    }

    /// Stored events, and those of the current episode to be handled.
    pub fn split_mut(&mut self) -> (&[HistoryEvent], &mut [HistoryEvent]) {
        (&self.past, &mut self.new)
    }

    /// Goes back to the state before the current episode.
    ///
    /// # Errors
    /// None for a state that has come this far.
    pub(crate) fn discard_new(&mut self) -> Result<(), DuplicateStart> {
        let custom_status = self.custom_status.take();
        *self = Self::from_history(std::mem::take(&mut self.past))?;
        self.custom_status = custom_status;
        Ok(())
    }

    /// Number of all events.
    pub fn len(&self) -> usize {
        self.past.len() + self.new.len()
    }

    /// Whether there are no events at all.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn event(&self, position: usize) -> Option<&HistoryEvent> {
        self.past.get(position).or_else(|| self.new.get(position.checked_sub(self.past.len())?))
    }

    /// The last event.
    pub fn last(&self) -> Option<&HistoryEvent> {
        self.new.last().or(self.past.last())
    }

    /// The start, if there is one.
    pub fn started(&self) -> Option<&ExecutionStarted> {
        match &self.event(self.started?)?.kind {
            EventKind::ExecutionStarted(started) => Some(started),
            _ => None,
        }
    }

    /// The completion that counts, if there is one.
    pub fn completed(&self) -> Option<&ExecutionCompleted> {
        match &self.event(self.completed?)?.kind {
            EventKind::ExecutionCompleted(completed) | EventKind::ContinueAsNew(completed) => Some(completed),
            _ => None,
        }
    }

    /// Whether the events can be those of an execution: none, a lone `OrchestratorStarted`, or a start
    /// among them.
    pub fn is_valid(&self) -> bool {
        let lone_mark = || {
            self.len() == 1 && self.event(0).is_some_and(|event| event.kind == EventKind::OrchestratorStarted)
        };
        self.is_empty() || self.started.is_some() || lone_mark()
    }

    /// Status; `Running` before anything else is known.
    pub fn status(&self) -> OrchestrationStatus {
        self.status.unwrap_or(OrchestrationStatus::Running)
    }

    /// The execution, once it has started.
    pub fn instance(&self) -> Option<&OrchestrationInstance> {
        self.started().map(|started| &started.instance)
    }

    /// Who waits for this execution.
    pub fn parent(&self) -> Option<&ParentInstance> {
        self.started()?.parent.as_ref()
    }

    /// Tags of this execution.
    pub fn tags(&self) -> Option<&Tags> {
        self.started()?.tags.as_ref()
    }

    /// When the start was made.
    pub fn created_at(&self) -> Option<Timestamp> {
        self.started.and_then(|at| self.event(at)).map(|event| event.timestamp)
    }

    /// When the execution completed.
    pub fn completed_at(&self) -> Option<Timestamp> {
        self.completed.and_then(|at| self.event(at)).map(|event| event.timestamp)
    }

    /// `{error type}: {message}` of a failure with details, else the result.
    pub fn output(&self) -> Option<String> {
        let completed = self.completed()?;
        match &completed.failure_details {
            Some(details) => Some(details.to_string()),
            None => completed.result.clone(),
        }
    }

    /// The failure, where the worker propagates failure details.
    pub fn failure_details(&self) -> Option<&FailureDetails> {
        self.completed()?.failure_details.as_ref()
    }
}

#[cfg(test)]
mod tests;
