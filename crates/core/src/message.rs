use crate::{HistoryEvent, OrchestrationInstance, Tags};

/// An event on its way to an instance (or to whoever runs activities).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TaskMessage {
    /// What happened, or what is asked for.
    pub event: HistoryEvent,
    /// Always 0 in Azure Storage hubs.
    pub sequence_number: i64,
    /// The addressee. For `TaskScheduled`, the orchestration that waits for the activity.
    pub target: OrchestrationInstance,
    /// Tags of the sending orchestration, on activity and sub-orchestration starts.
    pub execution_context: Option<Tags>,
}

impl TaskMessage {
    /// A message without execution context.
    pub fn new(event: HistoryEvent, target: OrchestrationInstance) -> Self {
        Self { event, sequence_number: 0, target, execution_context: None }
    }
}
