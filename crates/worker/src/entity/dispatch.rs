//! The entity dispatcher: lock -> batch -> complete or abandon -> release.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures::FutureExt;
use taskhub_core::{
    EpisodeCommit, GiveBackReason, IdSource, InstanceId, LockToken, OrchestrationWorkItem, ServiceError,
    TaskMessage, Timestamp, UnreadableMessage,
};
use taskhub_entities::{Batch, BatchResult, Entity, EntityError, EntitySettings, Unreadable};
use tracing::{debug, error, warn};

use super::{EntityBatch, EntityExecutor};
use crate::ExecutorError;
use crate::dispatcher::{Processed, WorkKind, renewing};
use crate::give_back::reason_of;
use crate::instance::{InstanceWork, Next};
use crate::registry::panic_kind;

pub(crate) const KIND: &str = "entity";

pub(crate) struct EntityWork {
    pub(crate) base: InstanceWork,
    pub(crate) executor: Arc<dyn EntityExecutor>,
    pub(crate) settings: EntitySettings,
    pub(crate) ids: Arc<dyn IdSource>,
}

/// A locked entity while a work item, and perhaps a session after it, lasts.
struct Live {
    token: LockToken,
    instance_id: InstanceId,
    attempt: u32,
    locked_until: Timestamp,
    entity: Entity,
}

#[async_trait]
impl WorkKind for EntityWork {
    type Item = OrchestrationWorkItem;

    fn name(&self) -> &'static str {
        KIND
    }

    async fn fetch(&self, timeout: Duration) -> Result<Option<OrchestrationWorkItem>, ServiceError> {
        self.base.service.lock_next_entity(timeout).await
    }

    async fn process(&self, item: OrchestrationWorkItem) -> Processed {
        self.base.process(item.token, Box::pin(self.work(item))).await
    }

    async fn put_back(&self, item: OrchestrationWorkItem) {
        self.base.put_back(item.token).await;
    }
}

impl EntityWork {
    /// One work item and, in an extended session, those that follow it for the same entity.
    async fn work(&self, item: OrchestrationWorkItem) -> Processed {
        let OrchestrationWorkItem { token, instance, history, mut messages, locked_until, attempt } = item;
        let instance_id = instance.instance_id;
        let entity = match Entity::from_history(instance_id.clone(), history) {
            Ok(entity) => entity,
            Err(error) => return self.unusable(token, &instance_id, attempt, &error).await,
        };
        let mut live = Live { token, instance_id, attempt, locked_until, entity };
        let mut slot = None;
        loop {
            match self.batch(&mut live, messages).await {
                Next::GivenBack(processed) => return processed,
                Next::Stored { .. } => {}
            }
            messages = match self.base.next_messages(token, &live.instance_id, &mut slot).await {
                Some(messages) => messages,
                None => return Processed::Ok,
            };
        }
    }

    async fn batch(&self, live: &mut Live, messages: Vec<TaskMessage>) -> Next {
        let Live { token, instance_id, attempt, locked_until, entity } = live;
        let (token, attempt) = (*token, *attempt);
        let batch = match entity.receive(messages, self.base.clock.now(), &self.settings) {
            Ok(Some(batch)) => batch,
            Ok(None) => {
                return self.base.discard(token, instance_id).await;
            }
            Err(error) => {
                return Next::GivenBack(self.unusable(token, instance_id, attempt, &error).await);
            }
        };
        let unreadable = self.unreadable(instance_id, &batch);
        if !unreadable.is_empty()
            && let Err(error) = self.base.service.set_aside(token, unreadable).await
        {
            warn!(instance = %instance_id, error = error.chain(), "cannot put unreadable messages aside");
            let reason = reason_of(&error);
            return Next::GivenBack(self.base.give_back(token, reason, Processed::ServiceFailed).await);
        }
        if batch.is_idle() {
            return match self.base.discard(token, instance_id).await {
                Next::Stored { .. } => Next::GivenBack(Processed::Ok),
                given_back => given_back,
            };
        }
        let run = AssertUnwindSafe(self.run(entity, &batch, instance_id)).catch_unwind();
        let renew = || self.base.service.renew_orchestration(token);
        let result = tokio::select! {
            biased;
            result = renewing(self.base.clock.as_ref(), locked_until, renew, run) => result,
            () = self.base.life.give_up.cancelled() => {
                warn!(instance = %instance_id, "operations of an entity did not end before the shutdown");
                let stopped = GiveBackReason::Interrupted;
                return Next::GivenBack(self.base.give_back(token, stopped, Processed::Ok).await);
            }
        };
        match result {
            Ok(Ok(result)) => {
                let operations = batch.operations().len();
                let commit = entity.commit(batch, result, self.base.clock.now(), self.ids.as_ref());
                self.complete(token, instance_id, operations, commit).await
            }
            Ok(Err(error)) => {
                let reason = self.report(error, instance_id, attempt);
                Next::GivenBack(self.base.give_back(token, reason, Processed::Ok).await)
            }
            Err(panic) => {
                let reason = panic_kind(panic.as_ref());
                error!(instance = %instance_id, attempt, reason, "messages of an entity given back");
                let failed = GiveBackReason::Failed { reason };
                Next::GivenBack(self.base.give_back(token, failed, Processed::ServiceFailed).await)
            }
        }
    }

    /// Events that are no messages to an entity; those that are in the stored history are only told of.
    fn unreadable(&self, instance_id: &InstanceId, batch: &Batch) -> Vec<UnreadableMessage> {
        let mut messages = Vec::new();
        for Unreadable { event_name, error, message } in batch.unreadable() {
            warn!(
                instance = %instance_id, event = event_name, %error,
                "an event that is no message to an entity is left out"
            );
            let reason = format!("no message to an entity: {error}");
            messages.extend(message.clone().map(|message| UnreadableMessage { message, reason }));
        }
        messages
    }

    async fn run(
        &self,
        entity: &Entity,
        batch: &Batch,
        instance_id: &InstanceId,
    ) -> Result<BatchResult, ExecutorError> {
        let state = entity.state().map(str::to_owned);
        let operations: Vec<_> = batch.operations().collect();
        if operations.is_empty() {
            return Ok(BatchResult { state, ..BatchResult::default() });
        }
        let Some(id) = entity.id() else {
            return Err(ExecutorError::Missing { name: instance_id.to_string(), version: String::new() });
        };
        let cancellation = self.base.life.stopping.child_token();
        self.executor.execute(EntityBatch { id, state, operations, cancellation }).await
    }

    async fn complete(
        &self,
        token: LockToken,
        instance_id: &InstanceId,
        operations: usize,
        commit: EpisodeCommit,
    ) -> Next {
        let messages = commit.orchestrator_messages.len();
        debug!(instance = %instance_id, operations, messages, "batch of an entity ended");
        let stored = self.base.service.complete_orchestration(token, commit).await;
        self.base.stored(token, instance_id, "completed", stored, true).await
    }

    async fn unusable(
        &self,
        token: LockToken,
        instance_id: &InstanceId,
        attempt: u32,
        error: &EntityError,
    ) -> Processed {
        let source = std::error::Error::source(error).map(ToString::to_string);
        error!(instance = %instance_id, attempt, %error, source, "an entity cannot be used, messages given back");
        self.base.give_back(token, GiveBackReason::Failed { reason: error.to_string() }, Processed::Ok).await
    }

    /// Logs why a batch did not end. As with orchestrations, its messages come back for ever.
    fn report(&self, error: ExecutorError, instance_id: &InstanceId, attempt: u32) -> GiveBackReason {
        match error {
            ExecutorError::Missing { name, .. } => {
                if self.base.gave_back.is_due(KIND, &name, self.base.clock.now()) {
                    warn!(
                        instance = %instance_id, entity = name, attempt,
                        "no such entity here, messages given back for other workers"
                    );
                }
                GiveBackReason::UnknownFunction { name }
            }
            error @ ExecutorError::Aborted { .. } => {
                warn!(instance = %instance_id, attempt, %error, "messages of an entity given back");
                GiveBackReason::Interrupted
            }
        }
    }
}
