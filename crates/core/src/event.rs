use crate::{
    FailureDetails, InstanceId, OrchestrationInstance, OrchestrationStatus, ParentInstance, Tags, Timestamp,
    TraceContext,
};

/// `EventId` of the `TimerCreated` with which an oversized checkpoint is split.
/// Source: Azure/durabletask, `FrameworkConstants.FakeTimerIdToSplitDecision`.
pub const SPLIT_TIMER_ID: i32 = -100;

/// One thing that happened to an instance: a row of its history, or the content of a message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HistoryEvent {
    /// Sequence id of the decision for events that an orchestrator's action produced, else -1.
    pub event_id: i32,
    /// Whether the executor has handled the event; nothing depends on it, other workers read it.
    pub is_played: bool,
    /// When its creator made the event.
    pub timestamp: Timestamp,
    /// What happened.
    pub kind: EventKind,
}

/// What happened. Names and members are those of the classes in `DurableTask.Core.History`.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs, reason = "the members carry DTFx's names; core-semantics is their reference")]
pub enum EventKind {
    ExecutionStarted(Box<ExecutionStarted>),
    ExecutionCompleted(ExecutionCompleted),
    ExecutionTerminated {
        input: Option<String>,
    },
    TaskScheduled {
        name: Option<String>,
        version: Option<String>,
        input: Option<String>,
        parent_trace_context: Option<TraceContext>,
        tags: Option<Tags>,
    },
    TaskCompleted {
        task_scheduled_id: i32,
        result: Option<String>,
    },
    TaskFailed {
        task_scheduled_id: i32,
        reason: Option<String>,
        details: Option<String>,
        failure_details: Option<FailureDetails>,
    },
    SubOrchestrationInstanceCreated {
        name: Option<String>,
        version: Option<String>,
        instance_id: InstanceId,
        input: Option<String>,
        client_span_id: Option<String>,
        tags: Option<Tags>,
    },
    SubOrchestrationInstanceCompleted {
        task_scheduled_id: i32,
        result: Option<String>,
    },
    SubOrchestrationInstanceFailed {
        task_scheduled_id: i32,
        reason: Option<String>,
        details: Option<String>,
        failure_details: Option<FailureDetails>,
    },
    TimerCreated {
        fire_at: Timestamp,
    },
    TimerFired {
        timer_id: i32,
        fire_at: Timestamp,
    },
    OrchestratorStarted,
    OrchestratorCompleted,
    EventSent {
        instance_id: InstanceId,
        name: Option<String>,
        input: Option<String>,
    },
    EventRaised {
        name: Option<String>,
        input: Option<String>,
        parent_trace_context: Option<TraceContext>,
    },
    /// As `ExecutionCompleted` with status `ContinuedAsNew`; the result is the next input.
    ContinueAsNew(ExecutionCompleted),
    GenericEvent {
        data: Option<String>,
    },
    /// Not used by Azure Storage hubs; the state is kept as JSON text.
    HistoryState {
        state: Option<String>,
    },
    ExecutionSuspended {
        reason: Option<String>,
    },
    ExecutionResumed {
        reason: Option<String>,
    },
    ExecutionRewound {
        reason: Option<String>,
        parent_execution_id: Option<String>,
        instance_id: Option<String>,
        parent_trace_context: Option<TraceContext>,
    },
}

/// The first event of every execution.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExecutionStarted {
    /// The execution that starts.
    pub instance: OrchestrationInstance,
    /// Who waits for it, for a sub-orchestration.
    pub parent: Option<ParentInstance>,
    /// Name of the orchestrator.
    pub name: String,
    /// Version of the orchestrator.
    pub version: Option<String>,
    /// Serialised input.
    pub input: Option<String>,
    /// Tags of the instance.
    pub tags: Option<Tags>,
    /// Legacy tracing payload, kept as it came.
    pub correlation: Option<String>,
    /// Trace context of the starter.
    pub parent_trace_context: Option<TraceContext>,
    /// When the first episode may run.
    pub scheduled_start_time: Option<Timestamp>,
    /// How often clients have used this instance id before; set by clients only.
    pub generation: Option<i32>,
    /// Whether the first episode begins a new trace.
    pub generate_new_trace: bool,
}

impl ExecutionStarted {
    /// A start of which nothing else is known.
    pub fn new(instance: OrchestrationInstance, name: impl Into<String>) -> Self {
        Self {
            instance,
            parent: None,
            name: name.into(),
            version: None,
            input: None,
            tags: None,
            correlation: None,
            parent_trace_context: None,
            scheduled_start_time: None,
            generation: None,
            generate_new_trace: false,
        }
    }
}

/// The end of an execution.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExecutionCompleted {
    /// How it ended.
    pub status: OrchestrationStatus,
    /// Serialised result, failure message, termination reason or next input.
    pub result: Option<String>,
    /// The failure, where the worker propagates failure details.
    pub failure_details: Option<FailureDetails>,
}

impl HistoryEvent {
    /// An event that arrives as a message or marks an episode: `EventId` -1, not played.
    pub fn message(timestamp: Timestamp, kind: EventKind) -> Self {
        Self { event_id: -1, is_played: false, timestamp, kind }
    }

    /// An event that an action with this sequence id produced.
    pub fn decision(event_id: i32, timestamp: Timestamp, kind: EventKind) -> Self {
        Self { event_id, is_played: false, timestamp, kind }
    }

    /// DTFx's name of the event type.
    pub fn name(&self) -> &'static str {
        self.kind.name()
    }
}

impl EventKind {
    /// Bytes of the texts in the event, as UTF-8: about how large it is.
    pub fn text_bytes(&self) -> usize {
        let text = |text: &Option<String>| text.as_ref().map_or(0, String::len);
        let tags = |tags: &Option<Tags>| tags.as_ref().map_or(0, tags_bytes);
        let failure =
            |failure: &Option<FailureDetails>| failure.as_ref().map_or(0, FailureDetails::text_bytes);
        match self {
            Self::ExecutionStarted(started) => {
                started.name.len()
                    + text(&started.version)
                    + text(&started.input)
                    + tags(&started.tags)
                    + text(&started.correlation)
            }
            Self::ExecutionCompleted(done) | Self::ContinueAsNew(done) => {
                text(&done.result) + failure(&done.failure_details)
            }
            Self::TaskScheduled { name, version, input, tags: own, .. } => {
                text(name) + text(version) + text(input) + tags(own)
            }
            Self::TaskCompleted { result, .. } | Self::SubOrchestrationInstanceCompleted { result, .. } => {
                text(result)
            }
            Self::TaskFailed { reason, details, failure_details, .. }
            | Self::SubOrchestrationInstanceFailed { reason, details, failure_details, .. } => {
                text(reason) + text(details) + failure(failure_details)
            }
            Self::SubOrchestrationInstanceCreated {
                name, version, instance_id, input, tags: own, ..
            } => text(name) + text(version) + instance_id.as_str().len() + text(input) + tags(own),
            Self::EventSent { instance_id, name, input } => {
                instance_id.as_str().len() + text(name) + text(input)
            }
            Self::EventRaised { name, input, .. } => text(name) + text(input),
            Self::ExecutionTerminated { input: data }
            | Self::GenericEvent { data }
            | Self::HistoryState { state: data }
            | Self::ExecutionSuspended { reason: data }
            | Self::ExecutionResumed { reason: data } => text(data),
            Self::ExecutionRewound { reason, parent_execution_id, instance_id, .. } => {
                text(reason) + text(parent_execution_id) + text(instance_id)
            }
            Self::TimerCreated { .. }
            | Self::TimerFired { .. }
            | Self::OrchestratorStarted
            | Self::OrchestratorCompleted => 0,
        }
    }

    /// DTFx's name of the event type, as in the History table.
    pub fn name(&self) -> &'static str {
        match self {
            Self::ExecutionStarted(_) => "ExecutionStarted",
            Self::ExecutionCompleted(_) => "ExecutionCompleted",
            Self::ExecutionTerminated { .. } => "ExecutionTerminated",
            Self::TaskScheduled { .. } => "TaskScheduled",
            Self::TaskCompleted { .. } => "TaskCompleted",
            Self::TaskFailed { .. } => "TaskFailed",
            Self::SubOrchestrationInstanceCreated { .. } => "SubOrchestrationInstanceCreated",
            Self::SubOrchestrationInstanceCompleted { .. } => "SubOrchestrationInstanceCompleted",
            Self::SubOrchestrationInstanceFailed { .. } => "SubOrchestrationInstanceFailed",
            Self::TimerCreated { .. } => "TimerCreated",
            Self::TimerFired { .. } => "TimerFired",
            Self::OrchestratorStarted => "OrchestratorStarted",
            Self::OrchestratorCompleted => "OrchestratorCompleted",
            Self::EventSent { .. } => "EventSent",
            Self::EventRaised { .. } => "EventRaised",
            Self::ContinueAsNew(_) => "ContinueAsNew",
            Self::GenericEvent { .. } => "GenericEvent",
            Self::HistoryState { .. } => "HistoryState",
            Self::ExecutionSuspended { .. } => "ExecutionSuspended",
            Self::ExecutionResumed { .. } => "ExecutionResumed",
            Self::ExecutionRewound { .. } => "ExecutionRewound",
        }
    }

    /// DTFx's number of the event type, as in queue messages. Source: `History/EventType.cs`.
    pub fn number(&self) -> i32 {
        match self {
            Self::ExecutionStarted(_) => 0,
            Self::ExecutionCompleted(_) => 1,
            Self::ExecutionTerminated { .. } => 3,
            Self::TaskScheduled { .. } => 4,
            Self::TaskCompleted { .. } => 5,
            Self::TaskFailed { .. } => 6,
            Self::SubOrchestrationInstanceCreated { .. } => 7,
            Self::SubOrchestrationInstanceCompleted { .. } => 8,
            Self::SubOrchestrationInstanceFailed { .. } => 9,
            Self::TimerCreated { .. } => 10,
            Self::TimerFired { .. } => 11,
            Self::OrchestratorStarted => 12,
            Self::OrchestratorCompleted => 13,
            Self::EventSent { .. } => 14,
            Self::EventRaised { .. } => 15,
            Self::ContinueAsNew(_) => 16,
            Self::GenericEvent { .. } => 17,
            Self::HistoryState { .. } => 18,
            Self::ExecutionSuspended { .. } => 19,
            Self::ExecutionResumed { .. } => 20,
            Self::ExecutionRewound { .. } => 21,
        }
    }
}

fn tags_bytes(tags: &Tags) -> usize {
    tags.iter().map(|(key, value)| key.len() + value.len()).sum()
}
