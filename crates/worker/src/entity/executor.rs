use std::fmt;

use async_trait::async_trait;
use taskhub_entities::{BatchResult, EntityId, OperationRequest};
use tokio_util::sync::CancellationToken;

use crate::ExecutorError;

/// Runs entities: those registered in this process, or whatever an SDK offers elsewhere.
#[async_trait]
pub trait EntityExecutor: Send + Sync + fmt::Debug {
    /// Runs a batch of operations, one after the other. An operation that fails must leave the state and the
    /// actions as they were before it.
    ///
    /// # Errors
    /// `Missing`: no such entity. `Aborted`: to be tried again. Nothing of the batch is stored.
    async fn execute(&self, batch: EntityBatch) -> Result<BatchResult, ExecutorError>;
}

/// Operations for one entity.
#[derive(Clone)]
pub struct EntityBatch {
    /// The entity.
    pub id: EntityId,
    /// Its serialised state; `None` when it does not exist.
    pub state: Option<String>,
    /// What to run, in order; at least one.
    pub operations: Vec<OperationRequest>,
    /// Cancelled when the worker shuts down: finish soon, perhaps with results for the first operations only.
    pub cancellation: CancellationToken,
}

impl fmt::Debug for EntityBatch {
    /// Without state and inputs.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EntityBatch")
            .field("id", &self.id)
            .field("operations", &self.operations.len())
            .finish_non_exhaustive()
    }
}
