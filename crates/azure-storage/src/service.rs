//! The backend as a worker sees it.

use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use taskhub_core::{
    ActivityWorkItem, EpisodeCommit, ErrorKind, LockToken, OrchestrationService, OrchestrationWorkItem,
    Readiness, ServiceError, ServiceStatus, TaskMessage, Timestamp,
};
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::checkpoint;
use crate::hub::{Hub, PartitionManagerKind};
use crate::metrics::StorageMetrics;
use crate::partition::manager::PartitionManager;
use crate::partition::status::StatusBoard;
use crate::queue::control::ControlQueue;
use crate::queue::receive::Receiver;
use crate::queue::send::{MessageSender, Sender};
use crate::queue::work_item::WorkItemQueue;
use crate::session::manager::SessionManager;
use crate::shared::{DRAIN_INTERVAL, Owner, Shared, renew_held};
use crate::tracking::store::TrackingStore;

/// A task hub in Azure Storage as a worker uses it.
pub struct AzureStorageService {
    hub: Hub,
    starting: tokio::sync::Mutex<()>,
    running: OnceLock<Running>,
}

struct Running {
    shared: Arc<Shared>,
    stop: CancellationToken,
    force: CancellationToken,
    manager: Mutex<Option<JoinHandle<()>>>,
    renewer: JoinHandle<()>,
}

/// A worker that is dropped without being stopped is like one that was killed: nothing of it runs on, its
/// partitions and messages come back when their time is over.
impl Drop for Running {
    fn drop(&mut self) {
        self.shared.stopping.cancel();
        self.renewer.abort();
        if let Some(manager) = self.manager.lock().unwrap_or_else(PoisonError::into_inner).take() {
            manager.abort();
        }
        for (queue, task) in self.shared.queues().values() {
            queue.stop.cancel();
            task.abort();
        }
    }
}

impl AzureStorageService {
    /// A worker of a hub. Nothing happens before [`OrchestrationService::start`].
    pub fn new(hub: Hub) -> Self {
        Self { hub, starting: tokio::sync::Mutex::default(), running: OnceLock::new() }
    }

    /// The hub.
    pub fn hub(&self) -> &Hub {
        &self.hub
    }

    /// What this worker counts.
    pub fn metrics(&self) -> &StorageMetrics {
        &self.hub.metrics
    }

    fn running(&self) -> Result<&Running, ServiceError> {
        self.running.get().ok_or_else(|| {
            ServiceError::new(
                ErrorKind::Internal,
                format!("the worker is not started. hub=`{}`", self.hub.name()),
            )
        })
    }
}

#[async_trait]
impl OrchestrationService for AzureStorageService {
    async fn start(&self) -> Result<(), ServiceError> {
        let _starting = self.starting.lock().await;
        if self.running.get().is_some() {
            return Err(ServiceError::new(
                ErrorKind::Invalid,
                format!("the worker is started already. hub=`{}`", self.hub.name()),
            ));
        }
        let layout = self.hub.ensure().await?;
        if layout.manager != PartitionManagerKind::Table {
            return Err(ServiceError::new(
                ErrorKind::Invalid,
                format!(
                    "the hub's partitions are managed by lease blobs; a second manager would read the same \
                     queues. hub=`{}`",
                    self.hub.name()
                ),
            ));
        }
        self.hub.refuse_leased_blobs().await?;
        let receiver = Receiver::new(self.hub.clone());
        let shared = Arc::new(Shared {
            hub: self.hub.clone(),
            receiver: receiver.clone(),
            sender: Arc::new(MessageSender::new(self.hub.clone(), layout.partition_count)),
            sessions: SessionManager::default(),
            tracking: TrackingStore::new(self.hub.clone()),
            work_items: WorkItemQueue::new(self.hub.clone(), receiver),
            queues: Mutex::default(),
            tasks: TaskTracker::new(),
            status: StatusBoard::default(),
            stopping: CancellationToken::new(),
        });
        let (stop, force) = (CancellationToken::new(), CancellationToken::new());
        let owner = Arc::new(Owner(shared.clone()));
        let manager = PartitionManager::new(self.hub.clone(), owner);
        let manager = tokio::spawn(manager.run(stop.clone(), force.clone()));
        let renewer = tokio::spawn(renew_held(shared.clone()));
        let running = Running { shared, stop, force, manager: Mutex::new(Some(manager)), renewer };
        // Guarded by `starting`: nobody else has set it.
        let _ = self.running.set(running);
        Ok(())
    }

    fn status(&self) -> ServiceStatus {
        let Some(running) = self.running.get() else {
            return ServiceStatus { readiness: Readiness::Starting, ..ServiceStatus::default() };
        };
        let receiving = |(queue, task): &(ControlQueue, JoinHandle<()>)| {
            !queue.stop.is_cancelled() && !task.is_finished()
        };
        let queues = running.shared.queues();
        let partitions = queues.iter().filter(|(_, queue)| receiving(queue)).map(|(id, _)| *id).collect();
        drop(queues);
        let settings = &self.hub.settings;
        let patience = settings.lease_interval.max(settings.lease_acquire_interval * 2);
        running.shared.status.status(partitions, patience)
    }

    async fn stop(&self, drain_timeout: Duration) -> Result<(), ServiceError> {
        let running = self.running()?;
        let shared = &running.shared;
        let deadline = Instant::now() + drain_timeout;
        // Stop receiving everywhere first; then sessions and activities finish; then rows are handed back.
        shared.stopping.cancel();
        shared.sessions.changed.notify_waiters();
        for (queue, _) in shared.queues().values() {
            queue.stop.cancel();
        }
        shared.work_items.give_back_unstarted().await;
        running.stop.cancel();
        let manager = running.manager.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(mut manager) = manager
            && tokio::time::timeout(drain_timeout, &mut manager).await.is_err()
        {
            tracing::warn!(hub = %self.hub.name(), "not everything was finished in time; stopping anyway");
            running.force.cancel();
            let _ = tokio::time::timeout(Duration::from_secs(5), manager).await;
        }
        // Episodes and activities that run may finish; their results count.
        while (shared.sessions.any_active() || shared.work_items.any_locked()) && Instant::now() < deadline {
            tokio::time::sleep(DRAIN_INTERVAL).await;
        }
        running.renewer.abort();
        // Whatever is left was cut off: let others see it at once.
        shared.give_back(shared.sessions.all_held()).await;
        shared.work_items.give_back_unstarted().await;
        shared.work_items.give_back_locked().await;
        shared.tasks.close();
        let _ = tokio::time::timeout(Duration::from_secs(5), shared.tasks.wait()).await;
        Ok(())
    }

    async fn lock_next_orchestration(
        &self,
        timeout: Duration,
    ) -> Result<Option<OrchestrationWorkItem>, ServiceError> {
        let shared = &self.running()?.shared;
        let deadline = Instant::now() + timeout;
        loop {
            let changed = shared.sessions.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            if shared.stopping.is_cancelled() {
                return Ok(None);
            }
            if let Some(taken) = shared.sessions.take_ready() {
                let token = taken.token;
                match shared.admit(taken).await {
                    Ok(Some(item)) => return Ok(Some(item)),
                    Ok(None) => {
                        shared.release(token).await;
                        continue;
                    }
                    Err(e) => {
                        shared.abandon(token).await;
                        shared.release(token).await;
                        return Err(e);
                    }
                }
            }
            tokio::select! {
                biased;
                () = shared.stopping.cancelled() => return Ok(None),
                () = changed => {}
                () = tokio::time::sleep_until(deadline) => return Ok(None),
            }
        }
    }

    async fn renew_orchestration(&self, token: LockToken) -> Result<Timestamp, ServiceError> {
        let shared = &self.running()?.shared;
        let mut until = Timestamp::MAX;
        for message in shared.sessions.current(token) {
            until = until.min(shared.renew(&message).await?);
        }
        Ok(until)
    }

    async fn complete_orchestration(
        &self,
        token: LockToken,
        commit: EpisodeCommit,
    ) -> Result<(), ServiceError> {
        checkpoint::complete(&self.running()?.shared, token, commit).await
    }

    async fn discard_orchestration(&self, token: LockToken) -> Result<(), ServiceError> {
        let shared = &self.running()?.shared;
        let messages = shared.sessions.current(token);
        shared.sessions.admit(token, Vec::new(), Vec::new());
        checkpoint::delete_all(shared, &messages).await
    }

    async fn abandon_orchestration(&self, token: LockToken) -> Result<(), ServiceError> {
        self.running()?.shared.abandon(token).await;
        Ok(())
    }

    async fn next_session_messages(
        &self,
        token: LockToken,
    ) -> Result<Option<Vec<TaskMessage>>, ServiceError> {
        let shared = &self.running()?.shared;
        if !self.hub.settings.extended_sessions_enabled {
            return Ok(None);
        }
        let deadline = Instant::now() + self.hub.settings.extended_session_idle_timeout;
        let Some(arrived) = shared.sessions.arrivals(token) else { return Ok(None) };
        loop {
            if shared.stopping.is_cancelled() {
                return Ok(None);
            }
            let Some(messages) = shared.sessions.next_messages(token) else { return Ok(None) };
            if !messages.is_empty() {
                let Some((_, tracked)) = shared.sessions.tracked(token) else { return Ok(None) };
                let kept = shared.keep_in_order(messages, &tracked.index).await;
                shared.sessions.admit(token, kept.clone(), Vec::new());
                if !kept.is_empty() {
                    return Ok(Some(kept.iter().map(|m| m.task().clone()).collect()));
                }
                continue;
            }
            tokio::select! {
                biased;
                () = shared.stopping.cancelled() => return Ok(None),
                () = arrived.notified() => {}
                () = tokio::time::sleep_until(deadline) => return Ok(None),
            }
        }
    }

    async fn release_orchestration(&self, token: LockToken) {
        if let Ok(running) = self.running() {
            running.shared.release(token).await;
        }
    }

    async fn lock_next_activity(&self, timeout: Duration) -> Result<Option<ActivityWorkItem>, ServiceError> {
        let shared = &self.running()?.shared;
        shared.work_items.next(timeout, &shared.stopping).await
    }

    async fn renew_activity(&self, token: LockToken) -> Result<Timestamp, ServiceError> {
        let shared = &self.running()?.shared;
        let Some(message) = shared.work_items.locked(token) else {
            return Err(shared.no_session("renew an activity", token));
        };
        let visibility = self.hub.settings.work_item_queue_visibility_timeout;
        let renewed = message.renew(&*self.hub.account.queues, visibility).await;
        renewed.map_err(|e| {
            let what = format!("cannot renew an activity request. instance=`{}`", message.instance_id());
            self.hub.failed(what, e)
        })
    }

    /// The reply goes first: a crash between the two steps runs the activity again, and replay ignores
    /// the second reply.
    async fn complete_activity(&self, token: LockToken, response: TaskMessage) -> Result<(), ServiceError> {
        let shared = &self.running()?.shared;
        let Some(request) = shared.work_items.locked(token) else {
            return Err(shared.no_session("complete an activity", token));
        };
        let sender = Sender {
            instance: request.target().clone(),
            // -1 if the request tells none. Source: Azure/durabletask, `ActivitySession`.
            episode: Some(request.data.episode.unwrap_or(-1)),
        };
        shared.sender.send_control(&response, &sender).await?;
        shared.announce(shared.sender.partition_of(&response), &response);
        let deleted = request.delete(&*self.hub.account.queues).await;
        shared.work_items.take(token);
        deleted.map_err(|e| {
            let what = format!("cannot delete an activity request. instance=`{}`", request.instance_id());
            self.hub.failed(what, e)
        })
    }

    async fn abandon_activity(&self, token: LockToken) -> Result<(), ServiceError> {
        let shared = &self.running()?.shared;
        let Some(request) = shared.work_items.take(token) else { return Ok(()) };
        request.abandon(&*self.hub.account.queues).await.map_err(|e| {
            let what = format!("cannot put back an activity request. instance=`{}`", request.instance_id());
            self.hub.failed(what, e)
        })
    }
}
