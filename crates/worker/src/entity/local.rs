use std::fmt;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use async_trait::async_trait;
use futures::FutureExt;
use taskhub_core::{FailureDetails, IdSource};
use taskhub_entities::{BatchResult, OperationRequest, ResponseMessage};
use taskhub_replay::{ApplicationError, ErrorMode, SessionAborted, encode_activity_failure};
use tracing::warn;

use super::context::Effects;
use super::{EntityBatch, EntityContext, EntityExecutor, EntityFn, OperationError, Reply};
use crate::ExecutorError;
use crate::registry::{PANIC_TYPE, Registry, panic_message};

/// Runs the registered entities in this process.
pub(crate) struct LocalEntities {
    pub(crate) registry: Arc<Registry>,
    pub(crate) ids: Arc<dyn IdSource>,
}

#[async_trait]
impl EntityExecutor for LocalEntities {
    async fn execute(&self, batch: EntityBatch) -> Result<BatchResult, ExecutorError> {
        let Some(entity) = self.registry.entity(batch.id.name()) else {
            return Err(ExecutorError::Missing { name: batch.id.name().to_owned(), version: String::new() });
        };
        let EntityBatch { id, state, operations, cancellation } = batch;
        let mut state: Option<Arc<str>> = state.map(Into::into);
        let mut result = BatchResult::default();
        for operation in operations {
            // What is left is run by whoever has the entity next.
            if cancellation.is_cancelled() && !result.results.is_empty() {
                break;
            }
            let context = EntityContext::new(
                id.clone(),
                operation.clone(),
                state.clone(),
                self.ids.clone(),
                cancellation.clone(),
            );
            match run(&entity, context.clone()).await {
                Ok(reply) => {
                    let Effects { state: after, mut actions, .. } = context.take_effects();
                    state = after;
                    result.actions.append(&mut actions);
                    result.results.push(ResponseMessage::completed(reply.into_payload()));
                }
                Err(error) if error.is::<SessionAborted>() => {
                    return Err(ExecutorError::Aborted { reason: error.to_string() });
                }
                Err(error) => {
                    let failed = failed(&error, &operation);
                    if operation.is_signal {
                        // The text of the error may hold inputs.
                        let error_type =
                            failed.failure_details.as_ref().map(|details| details.error_type.as_str());
                        warn!(
                            entity = %id, operation = operation.operation, error_type,
                            "an operation that nobody waits for failed"
                        );
                    }
                    result.results.push(failed);
                }
            }
        }
        result.state = state.map(|state| state.as_ref().to_owned());
        Ok(result)
    }
}

async fn run(entity: &EntityFn, context: EntityContext) -> Result<Reply, OperationError> {
    // The function itself may panic as well as the future it returns.
    let running = AssertUnwindSafe(async move { entity(context).await });
    running
        .catch_unwind()
        .await
        .unwrap_or_else(|panic| Err(ApplicationError::new(PANIC_TYPE, panic_message(panic.as_ref())).into()))
}

/// Failures of entities travel as details in every worker. Source: Azure/durabletask, `OperationResult`.
fn failed(error: &OperationError, operation: &OperationRequest) -> ResponseMessage {
    let failure = encode_activity_failure(error.as_ref(), ErrorMode::FailureDetails, &operation.operation);
    let details = failure.failure_details.map(|details| FailureDetails { stack_trace: None, ..details });
    ResponseMessage::failed(None, None, details)
}

impl fmt::Debug for LocalEntities {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LocalEntities").finish_non_exhaustive()
    }
}
