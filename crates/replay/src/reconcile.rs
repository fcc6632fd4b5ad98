//! Which messages of a work item become events. Source: Azure/durabletask,
//! `TaskOrchestrationDispatcher.EnsureExecutionStartedIsFirst` and `ReconcileMessagesWithState`.

use taskhub_core::{EventKind, ExecutionId, OrchestrationStatus, TaskMessage};

use crate::{EpisodeError, RuntimeState};

/// Moves a start to the front, or behind the messages of an earlier execution that came before it. The
/// starts of sub-orchestrations stay where they are.
pub(crate) fn ensure_started_is_first(messages: &mut [TaskMessage]) {
    let mut previous = Some("");
    let mut target = 0;
    for index in 0..messages.len() {
        let message = &messages[index];
        let execution = message.target.execution_id.as_ref().map(ExecutionId::as_str);
        if execution != previous {
            if previous.is_some() {
                target = index;
            }
            previous = execution;
        }
        if let EventKind::ExecutionStarted(started) = &message.event.kind {
            if started.parent.is_none() {
                messages[target..=index].rotate_right(1);
            }
            return;
        }
    }
}

/// Appends the messages that concern this execution. `false` when the whole work item is stale.
///
/// # Errors
/// A message without an addressee.
pub(crate) fn reconcile(state: &mut RuntimeState, messages: Vec<TaskMessage>) -> Result<bool, EpisodeError> {
    let alone = messages.len() == 1;
    for message in messages {
        if message.target.instance_id.as_str().trim().is_empty() {
            return Err(EpisodeError::NoAddressee { event: message.event.name() });
        }
        if !state.is_valid() {
            return Ok(false);
        }
        let is_start = matches!(message.event.kind, EventKind::ExecutionStarted(_));
        if state.len() == 1 && !is_start {
            // A late response to an execution that is gone.
            return Ok(false);
        }
        if is_start {
            if state.started().is_some() {
                tracing::debug!(instance = %message.target.instance_id, "duplicate start dropped");
                continue;
            }
        } else if is_for_another_execution(state, &message) {
            tracing::debug!(
                instance = %message.target.instance_id,
                event = message.event.name(),
                "event for another execution dropped"
            );
            continue;
        }
        if matches!(message.event.kind, EventKind::ExecutionRewound { .. }) {
            if state.status() == OrchestrationStatus::Running {
                continue; // wakes the orchestration, leaves no trace
            }
            // Differs: Core rewrites the history here. In Azure Storage hubs clients rewind in the tables,
            // and the provider never delivers this message to an instance that is not running.
            tracing::warn!(instance = %message.target.instance_id, alone, "rewind message discarded");
            return Ok(false);
        }
        state.add(message.event)?;
    }
    Ok(true)
}

fn is_for_another_execution(state: &RuntimeState, message: &TaskMessage) -> bool {
    let Some(execution) = &message.target.execution_id else { return false };
    if execution.as_str().trim().is_empty() {
        return false;
    }
    state.instance().and_then(|instance| instance.execution_id.as_ref()) != Some(execution)
}
