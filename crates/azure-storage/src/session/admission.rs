//! Whether messages may wake an instance: pure decisions over its history.
//!
//! Source: Azure/durabletask, `OrchestrationSession.IsOutOfOrderMessage` and
//! `AzureStorageOrchestrationService.IsExecutableInstanceAsync`.

use taskhub_core::{
    EventKind, ExecutionStarted, OrchestrationState, OrchestrationStatus, TaskMessage, Timestamp,
};

use crate::session::history_index::HistoryIndex;

/// Receptions after which a reply to an instance without history is no longer held back.
/// Source: `OrchestrationSession.MaxDequeueCountForOutOfOrderMessages` (5).
const MAX_OUT_OF_ORDER_DEQUEUE_COUNT: u32 = 5;
/// Receptions after which a start whose row never appears is dropped.
/// Source: `AzureStorageOrchestrationService` (start de-duplication, 10).
pub(crate) const MAX_START_DEQUEUE_COUNT: u32 = 10;

/// Whether a reply came before the history that asks for it was committed: messages are sent first, so
/// this happens, and the message must wait.
pub(crate) fn is_out_of_order(
    message: &TaskMessage,
    sender_is_entity: bool,
    dequeue_count: u32,
    history: &HistoryIndex,
) -> bool {
    let known = match &message.event.kind {
        EventKind::TaskCompleted { task_scheduled_id: id, .. }
        | EventKind::TaskFailed { task_scheduled_id: id, .. }
        | EventKind::SubOrchestrationInstanceCompleted { task_scheduled_id: id, .. }
        | EventKind::SubOrchestrationInstanceFailed { task_scheduled_id: id, .. }
        | EventKind::TimerFired { timer_id: id, .. } => history.has_event_id(*id),
        EventKind::EventRaised { name, .. }
            if sender_is_entity && !message.target.instance_id.is_entity() =>
        {
            history.has_entity_request(name.as_deref().unwrap_or_default())
        }
        _ => return false,
    };
    let given_up = history.started.is_none() && dequeue_count > MAX_OUT_OF_ORDER_DEQUEUE_COUNT;
    !known && !given_up
}

/// What becomes of a batch of messages for an instance.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Admission {
    /// Run an episode.
    Execute,
    /// Run an episode of an entity that this event creates: a start goes in front.
    AutoStart,
    /// Nothing known of the instance: ask the Instances row, then [`without_history`].
    AskRow,
    /// The instance is finished: repair its row if it says otherwise, then discard the messages.
    Finished(OrchestrationStatus),
}

/// Decides about a batch that is in order.
pub(crate) fn admit<'a>(
    history: &HistoryIndex,
    mut messages: impl Iterator<Item = &'a TaskMessage> + Clone,
    replay_terminal: bool,
) -> Admission {
    match history.status() {
        Some(status) if status.is_terminal() && !replay_terminal => Admission::Finished(status),
        Some(_) => Admission::Execute,
        None if messages.clone().any(|m| matches!(m.event.kind, EventKind::ExecutionStarted(_))) => {
            Admission::Execute
        }
        None => {
            let auto_start = messages.next().is_some_and(|first| {
                matches!(first.event.kind, EventKind::EventRaised { .. })
                    && first.target.instance_id.is_entity()
                    && first.target.execution_id.is_none()
            });
            if auto_start { Admission::AutoStart } else { Admission::AskRow }
        }
    }
}

/// What becomes of messages for an instance without history, in the light of its Instances row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum WithoutHistory {
    /// The start is still on its way, perhaps hidden in a dead worker's hands: put the messages back. Without a row
    /// only the young ones: nobody will ever want the others.
    PutBack,
    /// Mark the pending instance as terminated; its start will be discarded.
    Terminate,
    /// The row is about another execution than the one whose history was looked for: messages that name
    /// that other one are stale, the rest go to the row's.
    OtherExecution,
    /// Nobody will ever want them.
    Discard,
}

/// Differs: DTFx discards every message for an instance without history, also while the instance is
/// pending because its start message is hidden; an external event is then lost for ever.
pub(crate) fn without_history(
    row: Option<&OrchestrationState>,
    has_terminate: bool,
    any_young: bool,
) -> WithoutHistory {
    match row.and_then(|row| row.status) {
        Some(OrchestrationStatus::Pending) if has_terminate => WithoutHistory::Terminate,
        // The second says that the next execution is about to be stored; until then the start is there.
        Some(OrchestrationStatus::Pending | OrchestrationStatus::ContinuedAsNew) => WithoutHistory::PutBack,
        Some(status) if status.is_terminal() => WithoutHistory::Discard,
        Some(_) => WithoutHistory::OtherExecution,
        None if any_young => WithoutHistory::PutBack,
        None => WithoutHistory::Discard,
    }
}

/// What becomes of a start message, in the light of the Instances row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum StartCheck {
    /// It belongs to the row: run it.
    Process,
    /// The row belongs to a later start of the same id, or the instance has ended: drop the message.
    Drop,
    /// Nobody has ever written its row: drop the message, which nobody else has.
    GiveUp,
    /// The client has not written the row yet: look again later.
    PutBack,
}

/// The start message of a top-level orchestration and how it was received.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ReceivedStart<'a> {
    pub(crate) start: &'a ExecutionStarted,
    pub(crate) created_at: Timestamp,
    pub(crate) dequeue_count: u32,
    /// When the message was last put back, estimated from its visibility.
    pub(crate) received_at: Timestamp,
}

/// Compares a start with the Instances row (§ "start de-duplication" of the provider).
pub(crate) fn check_start(received: ReceivedStart<'_>, row: Option<&OrchestrationState>) -> StartCheck {
    let execution_id = received.start.instance.execution_id.as_ref().map(|id| id.as_str());
    if let Some(row) = row {
        let same = match (&row.instance.execution_id, execution_id) {
            (None, _) => true,
            (Some(row), Some(own)) => row.as_str().eq_ignore_ascii_case(own),
            (Some(_), None) => false,
        };
        if same {
            // Differs: DTFx also runs the start of an instance that was terminated while it was pending.
            let finished = row.status.is_some_and(OrchestrationStatus::is_terminal);
            return if finished { StartCheck::Drop } else { StartCheck::Process };
        }
        let later_than_row = (row.status == Some(OrchestrationStatus::Pending)
            && row.created_at < received.created_at)
            || (received.dequeue_count > 1 && received.received_at > row.created_at);
        if row.generation == received.start.generation && later_than_row {
            return StartCheck::Drop;
        }
    }
    if received.dequeue_count >= MAX_START_DEQUEUE_COUNT { StartCheck::GiveUp } else { StartCheck::PutBack }
}
