use std::fmt;
use std::str::FromStr;

use crate::{ExecutionId, InstanceId, Timestamp};

/// Key of the tag that marks a sub-orchestration whose parent does not wait.
/// Source: Azure/durabletask, `OrchestrationTags.FireAndForget`.
pub const FIRE_AND_FORGET_TAG: &str = "FireAndForget";

/// An instance and, where known, the execution that is meant.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct OrchestrationInstance {
    /// The instance.
    pub instance_id: InstanceId,
    /// The execution; `None` addresses whichever is current.
    pub execution_id: Option<ExecutionId>,
}

impl OrchestrationInstance {
    /// An instance and one of its executions.
    pub fn new(instance_id: impl Into<InstanceId>, execution_id: impl Into<ExecutionId>) -> Self {
        Self { instance_id: instance_id.into(), execution_id: Some(execution_id.into()) }
    }

    /// Whatever execution of the instance is current.
    pub fn current(instance_id: impl Into<InstanceId>) -> Self {
        Self { instance_id: instance_id.into(), execution_id: None }
    }
}

/// Who started a sub-orchestration, and which of its tasks waits for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ParentInstance {
    /// Name of the parent's orchestrator.
    pub name: Option<String>,
    /// The parent, with the execution that waits.
    pub instance: OrchestrationInstance,
    /// Sequence id of the waiting task in the parent.
    pub task_schedule_id: i32,
    /// Version of the parent's orchestrator.
    pub version: Option<String>,
}

/// String to string map in the order of its writer.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Tags(Vec<(String, String)>);

impl Tags {
    /// No tags.
    pub fn new() -> Self {
        Self::default()
    }

    /// The value of a tag.
    pub fn get(&self, key: &str) -> Option<&str> {
        self.0.iter().find(|(k, _)| k == key).map(|(_, v)| v.as_str())
    }

    /// Sets a tag; one that exists keeps its place.
    pub fn insert(&mut self, key: impl Into<String>, value: impl Into<String>) {
        let (key, value) = (key.into(), value.into());
        match self.0.iter_mut().find(|(k, _)| *k == key) {
            Some((_, old)) => *old = value,
            None => self.0.push((key, value)),
        }
    }

    /// Tags in order.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(k, v)| (k.as_str(), v.as_str()))
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl<K: Into<String>, V: Into<String>> FromIterator<(K, V)> for Tags {
    fn from_iter<I: IntoIterator<Item = (K, V)>>(pairs: I) -> Self {
        let mut tags = Self::new();
        for (key, value) in pairs {
            tags.insert(key, value);
        }
        tags
    }
}

/// W3C trace context of a message, kept as it came.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct TraceContext {
    /// `00-{trace id}-{span id}-{flags}`.
    pub trace_parent: Option<String>,
    /// Vendor state.
    pub trace_state: Option<String>,
    /// Trace parent of the orchestration's own span.
    pub id: Option<String>,
    /// Span id of the orchestration's own span.
    pub span_id: Option<String>,
    /// When the orchestration's span began.
    pub activity_start_time: Option<Timestamp>,
}

/// Runtime status of an instance. Numbers and names are DTFx's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum OrchestrationStatus {
    /// Has run at least one episode and is not finished.
    Running = 0,
    /// Finished with a result.
    Completed = 1,
    /// Replaced by its next generation; not seen at rest.
    ContinuedAsNew = 2,
    /// Finished with a failure.
    Failed = 3,
    /// Never set by DTFx itself.
    Canceled = 4,
    /// Ended by request.
    Terminated = 5,
    /// Started by a client, not yet run.
    Pending = 6,
    /// Paused by request.
    Suspended = 7,
}

impl OrchestrationStatus {
    /// All, by number.
    pub const ALL: [Self; 8] = [
        Self::Running,
        Self::Completed,
        Self::ContinuedAsNew,
        Self::Failed,
        Self::Canceled,
        Self::Terminated,
        Self::Pending,
        Self::Suspended,
    ];

    /// DTFx's number.
    pub fn number(self) -> i32 {
        self as i32
    }

    /// From DTFx's number.
    pub fn from_number(number: i64) -> Option<Self> {
        Self::ALL.get(usize::try_from(number).ok()?).copied()
    }

    /// DTFx's name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Running => "Running",
            Self::Completed => "Completed",
            Self::ContinuedAsNew => "ContinuedAsNew",
            Self::Failed => "Failed",
            Self::Canceled => "Canceled",
            Self::Terminated => "Terminated",
            Self::Pending => "Pending",
            Self::Suspended => "Suspended",
        }
    }

    /// Whether no further episode can follow.
    pub fn is_terminal(self) -> bool {
        matches!(self, Self::Completed | Self::Failed | Self::Canceled | Self::Terminated)
    }
}

impl fmt::Display for OrchestrationStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// A text names no runtime status.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("unknown runtime status. status=`{0}`")]
pub struct UnknownStatus(String);

impl FromStr for OrchestrationStatus {
    type Err = UnknownStatus;
    /// By name, ignoring case.
    fn from_str(name: &str) -> Result<Self, Self::Err> {
        Self::ALL
            .into_iter()
            .find(|s| s.name().eq_ignore_ascii_case(name))
            .ok_or_else(|| UnknownStatus(name.to_owned()))
    }
}
