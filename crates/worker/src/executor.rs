use std::fmt;

use async_trait::async_trait;
use taskhub_core::{FailureDetails, OrchestrationInstance, Tags, TraceContext};
use taskhub_replay::{EpisodeError, EpisodeResult, Turn};
use tokio_util::sync::CancellationToken;

/// Why an activity could not be run. Never a failure of its code: the work item is abandoned and comes
/// back.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ExecutorError {
    /// No activity of this name and version is registered here; perhaps elsewhere.
    #[error("not registered here. name=`{name}` version=`{version}`")]
    Missing {
        /// Name asked for.
        name: String,
        /// Version asked for; empty when there is none.
        version: String,
    },
    /// User code asked for another try, or whoever runs it is gone.
    #[error("execution aborted. reason=`{reason}`")]
    Aborted {
        /// Why.
        reason: String,
    },
}

/// Runs orchestrators: those registered in this process, or whatever an SDK offers elsewhere.
pub trait OrchestrationExecutor: Send + Sync + fmt::Debug {
    /// Begins with an instance that was just locked. Nothing of its orchestrator runs yet.
    fn open(&self, instance: &OrchestrationInstance) -> Box<dyn OrchestrationSession>;
}

/// Runs one instance as long as it stays locked: one work item, or several in an extended session.
#[async_trait]
pub trait OrchestrationSession: Send {
    /// Executes one generation: handles `turn.new` after `turn.past` and returns all actions that the
    /// events do not record. A session may keep what it knows of the generation (`turn.instance` names
    /// its execution): a later turn of the same one then needs no replay of `turn.past`.
    ///
    /// # Errors
    /// Nothing of the episode is stored and the session is dropped: `NotRegistered`, `Aborted`,
    /// `Executor`.
    async fn execute(&mut self, turn: Turn<'_>) -> Result<EpisodeResult, EpisodeError>;
}

/// Runs activities.
#[async_trait]
pub trait ActivityExecutor: Send + Sync + fmt::Debug {
    /// Runs one request to its end.
    ///
    /// # Errors
    /// `Missing`: no such activity. `Aborted`: to be tried again.
    async fn execute(&self, request: ActivityRequest) -> Result<ActivityOutcome, ExecutorError>;
}

/// One activity call.
#[derive(Clone)]
pub struct ActivityRequest {
    /// The orchestration that waits.
    pub instance: OrchestrationInstance,
    /// Sequence id of the call in that orchestration.
    pub task_id: i32,
    /// Name of the activity.
    pub name: String,
    /// Its version; `None` and empty mean the same.
    pub version: Option<String>,
    /// Serialised input, a JSON array of arguments or a bare value.
    pub input: Option<String>,
    /// Tags of this call.
    pub tags: Option<Tags>,
    /// Tags of the orchestration.
    pub orchestration_tags: Option<Tags>,
    /// Trace context of the call.
    pub trace_context: Option<TraceContext>,
    /// How often the request has been received; 1 for the first time.
    pub attempt: u32,
    /// Cancelled when the worker shuts down: finish soon, or be repeated elsewhere.
    pub cancellation: CancellationToken,
}

impl fmt::Debug for ActivityRequest {
    /// Without input and tags.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ActivityRequest")
            .field("instance", &self.instance)
            .field("task_id", &self.task_id)
            .field("name", &self.name)
            .field("version", &self.version)
            .field("attempt", &self.attempt)
            .finish_non_exhaustive()
    }
}

/// How an activity ended, in the form in which the orchestration learns it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ActivityOutcome {
    /// It returned a result, serialised.
    Completed(Option<String>),
    /// It failed.
    Failed {
        /// The message.
        reason: Option<String>,
        /// Serialised exception, where that is how failures travel.
        details: Option<String>,
        /// The failure, where failure details are how failures travel.
        failure_details: Option<FailureDetails>,
    },
}
