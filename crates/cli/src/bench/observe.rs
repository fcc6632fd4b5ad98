//! Tells when an orchestration has finished, and what entities have done, without asking the storage for it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use taskhub_core::{
    ActivityWorkItem, EpisodeCommit, GiveBackReason, InstanceId, LockToken, OrchestrationService,
    OrchestrationStatus, OrchestrationWorkItem, ServiceError, ServiceStatus, TaskMessage, Timestamp,
    UnreadableMessage,
};
use tokio::sync::{oneshot, watch};
use tokio::time::Instant;

/// The end of an instance: its last episode is stored.
#[derive(Debug, Clone, Copy)]
pub(super) struct Finished {
    pub(super) status: OrchestrationStatus,
    pub(super) at: Instant,
}

/// Who waits for the end of which instance.
#[derive(Debug, Clone, Default)]
pub(super) struct Waiting(Arc<Mutex<HashMap<InstanceId, oneshot::Sender<Finished>>>>);

impl Waiting {
    /// Asks to be told; before the instance is started.
    pub(super) fn for_end_of(&self, instance: InstanceId) -> oneshot::Receiver<Finished> {
        let (sender, receiver) = oneshot::channel();
        self.lock().insert(instance, sender);
        receiver
    }

    fn tell(&self, instance: &InstanceId, status: OrchestrationStatus) {
        if let Some(sender) = self.lock().remove(instance) {
            // Whoever has given up waiting does not mind.
            let _ = sender.send(Finished { status, at: Instant::now() });
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<InstanceId, oneshot::Sender<Finished>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What entities have done.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(super) struct EntityWork {
    /// Messages whose batch is stored.
    pub(super) messages: u64,
    /// Batches that are stored.
    pub(super) batches: u64,
}

/// Counts what entities do.
#[derive(Debug, Clone, Default)]
pub(super) struct EntityTally {
    /// Messages of the batches that are under way.
    open: Arc<Mutex<HashMap<LockToken, u64>>>,
    done: watch::Sender<EntityWork>,
}

impl EntityTally {
    /// What has been done so far, and whatever follows.
    pub(super) fn watch(&self) -> watch::Receiver<EntityWork> {
        self.done.subscribe()
    }

    fn received(&self, token: LockToken, messages: usize) {
        *self.lock().entry(token).or_default() += messages as u64;
    }

    fn stored(&self, token: LockToken) {
        let Some(messages) = self.lock().remove(&token) else { return };
        self.done.send_modify(|done| {
            done.messages += messages;
            done.batches += 1;
        });
    }

    fn given_back(&self, token: LockToken) {
        self.lock().remove(&token);
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<LockToken, u64>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A backend that tells. Hands on every method, those with a default too: what is measured is what runs.
pub(super) struct Observed {
    pub(super) service: Arc<dyn OrchestrationService>,
    pub(super) waiting: Waiting,
    pub(super) entities: EntityTally,
}

#[async_trait]
impl OrchestrationService for Observed {
    async fn complete_orchestration(
        &self,
        token: LockToken,
        commit: EpisodeCommit,
    ) -> Result<(), ServiceError> {
        let (instance, status) = (commit.instance.instance_id.clone(), commit.status);
        self.service.complete_orchestration(token, commit).await?;
        self.entities.stored(token);
        if status.is_terminal() {
            self.waiting.tell(&instance, status);
        }
        Ok(())
    }

    async fn start(&self) -> Result<(), ServiceError> {
        self.service.start().await
    }

    async fn stop(&self, drain_timeout: Duration) -> Result<(), ServiceError> {
        self.service.stop(drain_timeout).await
    }

    async fn lock_next_orchestration(
        &self,
        timeout: Duration,
    ) -> Result<Option<OrchestrationWorkItem>, ServiceError> {
        self.service.lock_next_orchestration(timeout).await
    }

    async fn lock_next_entity(
        &self,
        timeout: Duration,
    ) -> Result<Option<OrchestrationWorkItem>, ServiceError> {
        let item = self.service.lock_next_entity(timeout).await?;
        if let Some(item) = &item {
            self.entities.received(item.token, item.messages.len());
        }
        Ok(item)
    }

    async fn renew_orchestration(&self, token: LockToken) -> Result<Timestamp, ServiceError> {
        self.service.renew_orchestration(token).await
    }

    async fn discard_orchestration(&self, token: LockToken) -> Result<(), ServiceError> {
        self.entities.given_back(token);
        self.service.discard_orchestration(token).await
    }

    async fn abandon_orchestration(&self, token: LockToken) -> Result<(), ServiceError> {
        self.entities.given_back(token);
        self.service.abandon_orchestration(token).await
    }

    async fn give_back_orchestration(
        &self,
        token: LockToken,
        reason: GiveBackReason,
    ) -> Result<(), ServiceError> {
        self.entities.given_back(token);
        self.service.give_back_orchestration(token, reason).await
    }

    async fn set_aside(
        &self,
        token: LockToken,
        messages: Vec<UnreadableMessage>,
    ) -> Result<(), ServiceError> {
        self.service.set_aside(token, messages).await
    }

    async fn next_session_messages(
        &self,
        token: LockToken,
    ) -> Result<Option<Vec<TaskMessage>>, ServiceError> {
        self.service.next_session_messages(token).await
    }

    async fn release_orchestration(&self, token: LockToken) {
        self.service.release_orchestration(token).await;
    }

    fn max_atomic_events(&self) -> usize {
        self.service.max_atomic_events()
    }

    fn set_activity_slots(&self, slots: usize) {
        self.service.set_activity_slots(slots);
    }

    async fn lock_next_activity(&self, timeout: Duration) -> Result<Option<ActivityWorkItem>, ServiceError> {
        self.service.lock_next_activity(timeout).await
    }

    async fn renew_activity(&self, token: LockToken) -> Result<Timestamp, ServiceError> {
        self.service.renew_activity(token).await
    }

    async fn complete_activity(&self, token: LockToken, response: TaskMessage) -> Result<(), ServiceError> {
        self.service.complete_activity(token, response).await
    }

    async fn abandon_activity(&self, token: LockToken) -> Result<(), ServiceError> {
        self.service.abandon_activity(token).await
    }

    async fn give_back_activity(&self, token: LockToken, reason: GiveBackReason) -> Result<(), ServiceError> {
        self.service.give_back_activity(token, reason).await
    }

    fn status(&self) -> ServiceStatus {
        self.service.status()
    }
}
