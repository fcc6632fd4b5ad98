//! What a batch asks of the user's entity, and what comes of it.

use taskhub_core::{FailureDetails, InstanceId, OrchestrationInstance, Timestamp, TraceContext};
use uuid::Uuid;

use crate::{RequestMessage, ResponseMessage};

/// What the answer says when an entity could not be run at all; for SDKs that know no failure details.
/// Source: Azure/durabletask, `TaskEntityDispatcher.OnProcessWorkItemAsync`.
const DISPATCH_FAILED: &str = "entity dispatch failed";

/// One operation to be run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OperationRequest {
    /// Id of the request; the same when it is run again.
    pub id: Uuid,
    /// Name of the operation.
    pub operation: String,
    /// Serialised input.
    pub input: Option<String>,
    /// Whether nobody waits for the result.
    pub is_signal: bool,
    /// Who sent it; `None` for clients.
    pub caller: Option<OrchestrationInstance>,
    /// Trace context of the caller.
    pub trace_context: Option<TraceContext>,
}

impl OperationRequest {
    pub(crate) fn of(request: &RequestMessage) -> Self {
        Self {
            id: request.id,
            operation: request.operation.clone().unwrap_or_default(),
            input: request.input.clone(),
            is_signal: request.is_signal,
            caller: caller(request),
            trace_context: request.parent_trace_context.clone(),
        }
    }
}

/// Who waits for the answer to a request.
pub(crate) fn caller(request: &RequestMessage) -> Option<OrchestrationInstance> {
    let instance_id = request.parent_instance_id.as_deref().filter(|id| !id.is_empty())?.into();
    let execution_id = request.parent_execution_id.as_deref().map(Into::into);
    Some(OrchestrationInstance { instance_id, execution_id })
}

/// What an operation asks for besides its result.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EntityAction {
    /// Send an operation to an entity and wait for nothing.
    SendSignal {
        /// The addressee.
        instance_id: InstanceId,
        /// Name of the operation.
        operation: String,
        /// Serialised input.
        input: Option<String>,
        /// When it is to run; at once when not given.
        due_at: Option<Timestamp>,
    },
    /// Start an orchestration.
    StartNewOrchestration {
        /// Id of the new instance.
        instance_id: InstanceId,
        /// Name of the orchestrator.
        name: String,
        /// Its version.
        version: Option<String>,
        /// Serialised input.
        input: Option<String>,
        /// When it is to start; at once when not given.
        scheduled_start_at: Option<Timestamp>,
    },
}

/// What came of a batch.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct BatchResult {
    /// A result for each operation, in their order. With fewer than operations the rest is run later.
    pub results: Vec<ResponseMessage>,
    /// What the operations that succeeded ask for, in order.
    pub actions: Vec<EntityAction>,
    /// Serialised state after the batch; `None` when the entity no longer exists.
    pub state: Option<String>,
    /// Why the entity could not be run; answers every operation that has no result.
    pub failure: Option<FailureDetails>,
}

impl BatchResult {
    /// Gives every operation a result if the batch failed, and none more than there are operations.
    pub(crate) fn complete(&mut self, operations: usize) {
        if let Some(failure) = self.failure.take() {
            let answer = ResponseMessage::failed(
                Some(failure.error_message.clone()),
                Some(DISPATCH_FAILED.to_owned()),
                Some(failure),
            );
            let missing = operations.saturating_sub(self.results.len());
            self.results.extend(std::iter::repeat_n(answer, missing));
        }
        self.results.truncate(operations);
    }
}
