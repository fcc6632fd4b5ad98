use crate::{
    FailureDetails, HistoryEvent, InstanceId, OrchestrationInstance, OrchestrationStatus, Tags, Timestamp,
};

/// What an orchestrator asks for in an episode.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OrchestratorAction {
    /// Sequence id: position of the call among all calls of this generation, from 0.
    pub id: i32,
    /// The request.
    pub kind: ActionKind,
}

/// The request itself. Names are DTFx's `OrchestratorActionType`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ActionKind {
    /// Run an activity.
    ScheduleTask {
        /// Name of the activity.
        name: String,
        /// Version of the activity.
        version: Option<String>,
        /// Serialised input; .NET expects a JSON array of positional arguments.
        input: Option<String>,
        /// Tags of this call.
        tags: Option<Tags>,
    },
    /// Start a sub-orchestration.
    CreateSubOrchestration {
        /// Name of the orchestrator.
        name: String,
        /// Version of the orchestrator.
        version: Option<String>,
        /// Instance id of the child.
        instance_id: InstanceId,
        /// Serialised input.
        input: Option<String>,
        /// Tags of this call, merged over the parent's; `FireAndForget` means nobody waits.
        tags: Option<Tags>,
    },
    /// Wake up at a time.
    CreateTimer {
        /// When.
        fire_at: Timestamp,
    },
    /// Send an external event to an instance.
    SendEvent {
        /// The addressee.
        target: OrchestrationInstance,
        /// Name of the event.
        name: String,
        /// Serialised payload.
        input: Option<String>,
    },
    /// End this generation.
    Complete(CompletionAction),
}

/// How a generation ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CompletionAction {
    /// `Completed`, `Failed`, `Terminated` or `ContinuedAsNew`.
    pub status: OrchestrationStatus,
    /// Serialised result, failure message, termination reason or next input.
    pub result: Option<String>,
    /// Serialised exception, forwarded to a parent only.
    pub details: Option<String>,
    /// The failure, where failure details are propagated.
    pub failure_details: Option<FailureDetails>,
    /// Version of the next generation, when it changes.
    pub new_version: Option<String>,
    /// Whether the next generation begins a new trace.
    pub generate_new_trace: bool,
    /// External events that the next generation receives first (`EventRaised`).
    pub carryover: Vec<HistoryEvent>,
}

impl CompletionAction {
    /// An end with a status and a result, nothing else.
    pub fn new(status: OrchestrationStatus, result: Option<String>) -> Self {
        Self {
            status,
            result,
            details: None,
            failure_details: None,
            new_version: None,
            generate_new_trace: false,
            carryover: Vec::new(),
        }
    }
}
