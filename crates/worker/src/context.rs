use std::fmt;
use std::sync::Arc;

use taskhub_core::{ExecutionId, InstanceId, Tags, TraceContext};
use tokio_util::sync::CancellationToken;

use crate::executor::ActivityRequest;

/// What an activity knows about its call. Cheap to clone.
#[derive(Clone)]
pub struct ActivityContext {
    request: Arc<ActivityRequest>,
}

impl ActivityContext {
    /// The context of a request; of use to tests that call an activity directly.
    pub fn new(request: ActivityRequest) -> Self {
        Self { request: Arc::new(request) }
    }

    /// The orchestration that waits for the result.
    pub fn instance_id(&self) -> &InstanceId {
        &self.request.instance.instance_id
    }

    /// The execution of that orchestration.
    pub fn execution_id(&self) -> Option<&ExecutionId> {
        self.request.instance.execution_id.as_ref()
    }

    /// Sequence id of the call. Together with the execution id it names the call for good: activities run
    /// at least once, and this pair is the key under which a repetition can be recognised.
    pub fn task_id(&self) -> i32 {
        self.request.task_id
    }

    /// Name of the activity as called.
    pub fn name(&self) -> &str {
        &self.request.name
    }

    /// Version of the activity as called; empty when there is none.
    pub fn version(&self) -> &str {
        self.request.version.as_deref().unwrap_or_default()
    }

    /// How often the request has been received; 1 for the first time. Grows when a worker died or gave
    /// the request back, not with the attempts of a retry policy, each of which is a call of its own.
    pub fn attempt(&self) -> u32 {
        self.request.attempt
    }

    /// Serialised input as it came.
    pub fn raw_input(&self) -> Option<&str> {
        self.request.input.as_deref()
    }

    /// Tags of this call.
    pub fn tags(&self) -> Option<&Tags> {
        self.request.tags.as_ref()
    }

    /// Tags of the orchestration.
    pub fn orchestration_tags(&self) -> Option<&Tags> {
        self.request.orchestration_tags.as_ref()
    }

    /// Trace context of the call.
    pub fn trace_context(&self) -> Option<&TraceContext> {
        self.request.trace_context.as_ref()
    }

    /// Cancelled when the worker shuts down. An activity that does not end within the worker's
    /// `drain_timeout` is dropped at its next await and runs again elsewhere.
    pub fn cancellation(&self) -> &CancellationToken {
        &self.request.cancellation
    }
}

impl fmt::Debug for ActivityContext {
    /// Without input and tags.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("ActivityContext").field(&self.request).finish()
    }
}
