//! The backend as a worker sees it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use futures::future::join_all;
use futures::stream::{self, StreamExt};
use taskhub_core::{
    ActivityWorkItem, EpisodeCommit, ErrorKind, EventKind, ExecutionStarted, HistoryEvent, LockToken,
    OrchestrationService, OrchestrationStatus, OrchestrationWorkItem, PartitionId, ServiceError, TaskMessage,
    Timestamp, execution_id_from,
};
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::checkpoint;
use crate::hub::{Hub, PartitionManagerKind};
use crate::message::MessageData;
use crate::partition::manager::{PartitionManager, PartitionOwner};
use crate::queue::control::ControlQueue;
use crate::queue::held::HeldMessage;
use crate::queue::receive::Receiver;
use crate::queue::send::{MessageSender, Sender};
use crate::queue::work_item::WorkItemQueue;
use crate::session::admission::{
    Admission, ReceivedStart, StartCheck, WithoutHistory, admit, check_start, is_out_of_order,
    without_history,
};
use crate::session::history_index::HistoryIndex;
use crate::session::manager::{FetchRequest, Released, SessionManager, Taken};
use crate::tracking::store::{InstanceRow, TrackingStore};

/// Wait before a failed read of a history is repeated. Source: Azure/durabletask,
/// `OrchestrationSessionManager` (5 s).
const HISTORY_RETRY_INTERVAL: Duration = Duration::from_secs(5);
/// Waits between looks for the Instances row of a start that came first.
const ROW_RETRY_DELAYS: [Duration; 4] = [
    Duration::from_millis(50),
    Duration::from_millis(100),
    Duration::from_millis(200),
    Duration::from_millis(400),
];
/// Most moments an instance waits for results to come together.
const LONGEST_LINGER: u32 = 10;
/// Interval of looks at the messages held by this process.
const RENEWAL_INTERVAL: Duration = Duration::from_secs(10);
/// Renewals under way at once.
const RENEWAL_CONCURRENCY: usize = 16;
/// Wait between looks at the sessions of a partition that is being drained.
const DRAIN_INTERVAL: Duration = Duration::from_millis(100);

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

/// What the parts of a running worker share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) hub: Hub,
    pub(crate) receiver: Receiver,
    pub(crate) sender: Arc<MessageSender>,
    pub(crate) sessions: SessionManager,
    pub(crate) tracking: TrackingStore,
    pub(crate) work_items: WorkItemQueue,
    queues: Mutex<HashMap<PartitionId, (ControlQueue, JoinHandle<()>)>>,
    tasks: TaskTracker,
    /// Nothing new is taken on.
    stopping: CancellationToken,
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
                () = changed => {}
                () = shared.stopping.cancelled() => return Ok(None),
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
                () = arrived.notified() => {}
                () = shared.stopping.cancelled() => return Ok(None),
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
        shared.ring(shared.sender.partition_of(&response));
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

impl Shared {
    fn queues(&self) -> MutexGuard<'_, HashMap<PartitionId, (ControlQueue, JoinHandle<()>)>> {
        self.queues.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn no_session(&self, what: &str, token: LockToken) -> ServiceError {
        ServiceError::new(
            ErrorKind::SessionAborted,
            format!("cannot {what}: the lock is gone. hub=`{}` lock=`{}`", self.hub.name(), token.0),
        )
    }

    /// A message for the partition was put by this process: look at once if it is ours.
    pub(crate) fn ring(&self, partition: PartitionId) {
        if let Some((queue, _)) = self.queues().get(&partition) {
            queue.bell.notify_one();
        }
    }

    async fn renew(&self, message: &HeldMessage) -> Result<Timestamp, ServiceError> {
        let visibility = self.hub.settings.control_queue_visibility_timeout;
        message.renew(&*self.hub.account.queues, visibility).await.map_err(|e| {
            let what = format!("cannot renew a message. instance=`{}`", message.instance_id());
            self.hub.failed(what, e)
        })
    }

    /// Takes received messages in: drops duplicates and stale starts, groups the rest by instance.
    pub(crate) async fn route_received(
        self: Arc<Self>,
        partition: PartitionId,
        received: Vec<Arc<HeldMessage>>,
    ) {
        let mut fresh = Vec::with_capacity(received.len());
        for message in received {
            match self.sessions.held(&message.message_id) {
                // Received once more while it is in our hands: only the newer receipt is of interest.
                Some(held) => held.adopt(&message).await,
                None => fresh.push(message),
            }
        }
        let checked =
            join_all(fresh.into_iter().map(|message| self.clone().admit_received(partition, message))).await;
        self.take_in(partition, checked.into_iter().flatten().collect()).await;
    }

    async fn take_in(self: &Arc<Self>, partition: PartitionId, messages: Vec<Arc<HeldMessage>>) {
        let Released { fetch, give_back } = self.sessions.add(partition, messages);
        self.give_back(give_back).await;
        self.fetch_histories(fetch);
    }

    /// Start de-duplication. `None`: the message has been dropped, put back, or is looked at again soon.
    async fn admit_received(
        self: Arc<Self>,
        partition: PartitionId,
        message: Arc<HeldMessage>,
    ) -> Option<Arc<HeldMessage>> {
        match self.check_received_start(&message).await {
            StartCheck::Process => return Some(message),
            StartCheck::Drop => self.drop_start(&message).await,
            StartCheck::PutBack if message.dequeue_count == 1 => {
                let tasks = self.tasks.clone();
                tasks.spawn(async move { self.await_row(partition, message).await });
            }
            StartCheck::PutBack => self.put_back(&message).await,
        }
        None
    }

    /// The client writes the row right after it has sent the start: looks for it some more times before the
    /// message is put back for two seconds.
    async fn await_row(self: Arc<Self>, partition: PartitionId, message: Arc<HeldMessage>) {
        for delay in ROW_RETRY_DELAYS {
            tokio::select! {
                () = tokio::time::sleep(delay) => {}
                () = self.stopping.cancelled() => {
                    self.give_back(vec![message]).await;
                    return;
                }
            }
            match self.check_received_start(&message).await {
                StartCheck::Process => return self.take_in(partition, vec![message]).await,
                StartCheck::Drop => return self.drop_start(&message).await,
                StartCheck::PutBack => {}
            }
        }
        tracing::info!(
            hub = %self.hub.name(), instance = %message.instance_id(),
            "a start message has no Instances row yet and is put back"
        );
        self.put_back(&message).await;
    }

    async fn check_received_start(&self, message: &HeldMessage) -> StartCheck {
        let EventKind::ExecutionStarted(start) = &message.task().event.kind else {
            return StartCheck::Process;
        };
        if start.parent.is_some() || self.hub.settings.disable_execution_started_deduplication {
            return StartCheck::Process;
        }
        let row = match self.tracking.instance_for_start(message.instance_id()).await {
            Ok(row) => row,
            Err(e) => {
                tracing::warn!(hub = %self.hub.name(), error = e.chain(), "cannot check a start message");
                return StartCheck::PutBack;
            }
        };
        let visibility = self.hub.settings.control_queue_visibility_timeout;
        let received = ReceivedStart {
            start,
            created_at: message.task().event.timestamp,
            dequeue_count: message.dequeue_count,
            received_at: message.locked_until().await - visibility,
        };
        check_start(received, row.as_ref())
    }

    async fn drop_start(&self, message: &Arc<HeldMessage>) {
        let (hub, instance) = (self.hub.name(), message.instance_id());
        tracing::warn!(%hub, %instance, "a start message is a duplicate or stale and is dropped");
        if let Err(e) = checkpoint::delete_all(self, std::slice::from_ref(message)).await {
            tracing::warn!(%hub, %instance, error = e.chain(), "cannot drop a start message");
        }
    }

    fn fetch_histories(self: &Arc<Self>, requests: Vec<FetchRequest>) {
        for request in requests {
            let shared = self.clone();
            self.tasks.spawn(async move { shared.fetch_history(request).await });
        }
    }

    async fn fetch_history(&self, request: FetchRequest) {
        let instance = &request.instance;
        while self.sessions.pending_len(request.batch).is_some() && !self.stopping.is_cancelled() {
            match self.tracking.history(&instance.instance_id, instance.execution_id.as_ref()).await {
                Ok(history) => {
                    self.linger(request.batch, history.index.open_calls()).await;
                    self.sessions.loaded(request.batch, history);
                    return;
                }
                Err(e) if e.kind() == ErrorKind::Unavailable => {
                    tracing::warn!(
                        hub = %self.hub.name(), instance = %instance.instance_id, error = e.chain(),
                        "cannot read a history; trying again"
                    );
                    tokio::select! {
                        () = tokio::time::sleep(HISTORY_RETRY_INTERVAL) => {}
                        () = self.stopping.cancelled() => {}
                    }
                }
                Err(e) => {
                    tracing::error!(
                        hub = %self.hub.name(), instance = %instance.instance_id, error = e.chain(),
                        "a history cannot be read; its messages are put back"
                    );
                    for message in self.sessions.unloadable(request.batch) {
                        self.put_back(&message).await;
                    }
                    return;
                }
            }
        }
    }

    /// An instance that waits for several results gets those that come together in one episode: waits until
    /// all have come, or none has for a moment.
    async fn linger(&self, batch: u64, open: usize) {
        let quiet = self.hub.settings.fan_in_linger;
        if quiet.is_zero() || open < 2 {
            return;
        }
        let deadline = Instant::now() + quiet * LONGEST_LINGER;
        let mut seen = self.sessions.pending_len(batch).unwrap_or(open);
        while seen < open && Instant::now() < deadline && !self.stopping.is_cancelled() {
            tokio::time::sleep(quiet).await;
            match self.sessions.pending_len(batch) {
                Some(now) if now > seen => seen = now,
                _ => return,
            }
        }
    }

    /// Decides whether a session may run. `None`: its messages have been dealt with.
    async fn admit(&self, taken: Taken) -> Result<Option<OrchestrationWorkItem>, ServiceError> {
        let Taken { token, instance, messages, history, .. } = taken;
        let index = history.index;
        let messages = self.keep_in_order(messages, &index).await;
        self.sessions.admit(token, messages.clone(), Vec::new());
        if messages.is_empty() {
            return Ok(None);
        }
        let replay_terminal = self.hub.settings.allow_replaying_terminal_instances;
        let mut instance = instance;
        let mut tasks: Vec<TaskMessage> = messages.iter().map(|m| m.task().clone()).collect();
        match admit(&index, messages.iter().map(|m| m.task()), replay_terminal) {
            Admission::Execute => {}
            Admission::AutoStart => {
                instance.execution_id = Some(execution_id_from(&*self.hub.ids));
                tasks.insert(0, self.auto_start(&instance));
            }
            Admission::AskRow => {
                self.settle_without_history(token, &messages).await?;
                return Ok(None);
            }
            Admission::Finished(_) => {
                self.settle_finished(token, &index, &messages).await?;
                return Ok(None);
            }
        }
        if index.started.is_none() {
            let start = tasks.iter().find(|t| matches!(t.event.kind, EventKind::ExecutionStarted(_)));
            instance.execution_id = start.and_then(|t| t.target.execution_id.clone());
            self.sessions.set_execution(token, instance.execution_id.clone());
        }
        let mut locked_until = Timestamp::MAX;
        for message in &messages {
            locked_until = locked_until.min(message.locked_until().await);
        }
        Ok(Some(OrchestrationWorkItem {
            token,
            instance,
            history: history.events,
            messages: tasks,
            locked_until,
            attempt: messages.iter().map(|m| m.dequeue_count).max().unwrap_or(1),
        }))
    }

    /// The start that an event to an entity without history implies.
    /// Source: Azure/durabletask, `AzureStorageOrchestrationService.IsExecutableInstanceAsync`.
    fn auto_start(&self, instance: &taskhub_core::OrchestrationInstance) -> TaskMessage {
        let started = ExecutionStarted {
            instance: instance.clone(),
            parent: None,
            name: instance.instance_id.to_string(),
            version: Some(String::new()),
            input: None,
            tags: None,
            correlation: None,
            parent_trace_context: None,
            scheduled_start_time: None,
            generation: None,
            generate_new_trace: false,
        };
        let kind = EventKind::ExecutionStarted(Box::new(started));
        TaskMessage::new(HistoryEvent::message(self.hub.clock.now(), kind), instance.clone())
    }

    /// Puts replies back that came before the history that asks for them.
    async fn keep_in_order(
        &self,
        messages: Vec<Arc<HeldMessage>>,
        index: &HistoryIndex,
    ) -> Vec<Arc<HeldMessage>> {
        let (early, kept): (Vec<_>, Vec<_>) = messages.into_iter().partition(|message| {
            let sender = message.data.sender.as_ref();
            let sender_is_entity = sender.is_some_and(|s| s.instance_id.is_entity());
            is_out_of_order(message.task(), sender_is_entity, message.dequeue_count, index)
        });
        for message in &early {
            tracing::info!(
                hub = %self.hub.name(), instance = %message.instance_id(), event = message.task().event.name(),
                "a reply came before its request was stored and is put back"
            );
        }
        join_all(early.iter().map(|message| self.put_back(message))).await;
        kept
    }

    async fn settle_without_history(
        &self,
        token: LockToken,
        messages: &[Arc<HeldMessage>],
    ) -> Result<(), ServiceError> {
        let Some(first) = messages.first() else { return Ok(()) };
        if self.sessions.has_pending_start(first.instance_id()) {
            // The start has come meanwhile: these messages join it when this session ends.
            self.sessions.admit(token, Vec::new(), messages.to_vec());
            return Ok(());
        }
        let row = self.tracking.instance_row(first.instance_id()).await?;
        let terminate =
            messages.iter().find(|m| matches!(m.task().event.kind, EventKind::ExecutionTerminated { .. }));
        let decision = without_history(
            row.as_ref().map(|r| &r.state),
            terminate.is_some(),
            messages.iter().all(|m| self.is_young(m.inserted_at)),
        );
        let (hub, instance) = (self.hub.name(), first.instance_id());
        match (decision, terminate, row) {
            (WithoutHistory::OtherExecution, _, Some(row)) => {
                return self.settle_other_execution(token, messages, &row).await;
            }
            (WithoutHistory::PutBack, ..) => {
                tracing::info!(
                    %hub, %instance, messages = messages.len(),
                    "messages came before the start of their instance and are put back"
                );
                self.abandon(token).await;
                return Ok(());
            }
            (WithoutHistory::Terminate, Some(terminate), Some(row)) => {
                self.tracking.terminate_pending(&row, &terminate.task().event).await?;
                if self.sessions.has_pending_start(instance) {
                    // The start came while the row was written: it is terminated in its first episode.
                    self.sessions.admit(token, Vec::new(), messages.to_vec());
                    return Ok(());
                }
            }
            _ => tracing::warn!(
                %hub, %instance, messages = messages.len(), "no such instance: its messages are discarded"
            ),
        }
        self.discard(token, messages).await
    }

    /// The row is about an execution that these messages' history is not: those that name another one are
    /// of an old generation, or of one whose first checkpoint is not written yet; all others are looked at
    /// again with a fresh history.
    async fn settle_other_execution(
        &self,
        token: LockToken,
        messages: &[Arc<HeldMessage>],
        row: &InstanceRow,
    ) -> Result<(), ServiceError> {
        let current = &row.state.instance.execution_id;
        let (foreign, wanted): (Vec<_>, Vec<_>) = messages.iter().cloned().partition(|m| {
            let target = &m.target().execution_id;
            target.is_some() && target != current
        });
        if foreign.is_empty() {
            // The row's own history is gone: a purge was cut off, or the row was written first.
            if self.is_young(row.state.last_updated_at) || wanted.iter().any(|m| self.is_young(m.inserted_at))
            {
                self.abandon(token).await;
                return Ok(());
            }
            return self.discard(token, messages).await;
        }
        self.sessions.admit(token, Vec::new(), wanted);
        let (young, stale): (Vec<_>, Vec<_>) =
            foreign.into_iter().partition(|m| self.is_young(m.inserted_at));
        join_all(young.iter().map(|m| self.put_back(m))).await;
        checkpoint::delete_all(self, &stale).await
    }

    /// Whether something from then may still be waiting for a message in another worker's hands.
    fn is_young(&self, at: Timestamp) -> bool {
        self.hub.clock.now().saturating_since(at) < self.hub.settings.unknown_instance_grace
    }

    async fn settle_finished(
        &self,
        token: LockToken,
        index: &HistoryIndex,
        messages: &[Arc<HeldMessage>],
    ) -> Result<(), ServiceError> {
        let Some(first) = messages.first() else { return Ok(()) };
        let row = self.tracking.instance_row(first.instance_id()).await?;
        let execution_id = index.started.as_ref().and_then(|(s, _)| s.instance.execution_id.clone());
        if let Some(row) = &row
            && row.state.instance.execution_id.is_some()
            && row.state.instance.execution_id != execution_id
            && !row.state.status.is_some_and(OrchestrationStatus::is_terminal)
        {
            // The id has been started again, and this history is not the new execution's.
            self.abandon(token).await;
            return Ok(());
        }
        self.tracking.repair_instance(first.instance_id(), index, row.as_ref()).await?;
        self.discard(token, messages).await
    }

    /// Deletes messages that nobody wants. Those for another execution than the session's are routed again
    /// when the session ends; an event without an execution is meant for the current one.
    async fn discard(&self, token: LockToken, messages: &[Arc<HeldMessage>]) -> Result<(), ServiceError> {
        let execution = self.sessions.tracked(token).and_then(|(instance, _)| instance.execution_id);
        let (mut own, mut others): (Vec<_>, Vec<_>) = messages.iter().cloned().partition(|m| {
            let target = &m.target().execution_id;
            target.is_none() || execution.is_none() || *target == execution
        });
        if own.is_empty() {
            own.append(&mut others);
        }
        self.sessions.admit(token, Vec::new(), others);
        checkpoint::delete_all(self, &own).await
    }

    async fn abandon(&self, token: LockToken) {
        let messages = self.sessions.current(token);
        self.sessions.admit(token, Vec::new(), Vec::new());
        join_all(messages.iter().map(|m| self.put_back(m))).await;
    }

    async fn release(self: &Arc<Self>, token: LockToken) {
        let Released { fetch, give_back } = self.sessions.release(token);
        self.give_back(give_back).await;
        self.fetch_histories(fetch);
    }

    /// Puts a message back with the back-off of its dequeue count.
    async fn put_back(&self, message: &HeldMessage) {
        self.sessions.forget(message);
        if let Err(e) = message.abandon(&*self.hub.account.queues).await {
            tracing::warn!(
                hub = %self.hub.name(), instance = %message.instance_id(), error = %e,
                "cannot put a message back; it reappears when its visibility timeout ends"
            );
        }
    }

    /// Makes messages visible at once, for the worker that takes over.
    async fn give_back(&self, messages: Vec<Arc<HeldMessage>>) {
        let queues = &*self.hub.account.queues;
        join_all(messages.iter().map(|message| async move {
            self.sessions.forget(message);
            if let Err(e) = message.give_back(queues, Duration::ZERO).await {
                tracing::warn!(
                    hub = %self.hub.name(), instance = %message.instance_id(), error = %e,
                    "cannot make a message visible; it reappears when its visibility timeout ends"
                );
            }
        }))
        .await;
    }
}

/// Renews what this process holds, waiting messages included, so that nothing is delivered twice while it
/// is alive.
///
/// Differs: DTFx renews only the messages of running episodes.
async fn renew_held(shared: Arc<Shared>) {
    let visibility = shared.hub.settings.control_queue_visibility_timeout;
    loop {
        tokio::time::sleep(RENEWAL_INTERVAL.min(visibility / 3)).await;
        let horizon = shared.hub.clock.now() + visibility / 2;
        stream::iter(shared.sessions.all_held())
            .for_each_concurrent(RENEWAL_CONCURRENCY, |message| {
                let shared = &shared;
                async move {
                    if message.locked_until().await < horizon
                        && let Err(e) = shared.renew(&message).await
                    {
                        tracing::debug!(hub = %shared.hub.name(), error = e.chain(), "cannot renew a message");
                    }
                }
            })
            .await;
    }
}

/// The partition manager's hands on the queues.
struct Owner(Arc<Shared>);

#[async_trait]
impl PartitionOwner for Owner {
    fn receive(&self, partition: PartitionId, lease_until: Timestamp) {
        let shared = &self.0;
        if shared.stopping.is_cancelled() {
            return;
        }
        let mut queues = shared.queues();
        if let Some((queue, task)) = queues.get(&partition)
            && !queue.stop.is_cancelled()
            && !task.is_finished()
        {
            queue.renewed(lease_until);
            return;
        }
        tracing::info!(hub = %shared.hub.name(), %partition, "receiving from a control queue");
        shared.sessions.open(partition);
        let queue = ControlQueue::new(partition, lease_until);
        let task = tokio::spawn(queue.clone().run(shared.clone()));
        queues.insert(partition, (queue, task));
    }

    fn is_receiving(&self, partition: PartitionId) -> bool {
        self.0
            .queues()
            .get(&partition)
            .is_some_and(|(queue, task)| !queue.stop.is_cancelled() && !task.is_finished())
    }

    fn stop_receiving(&self, partition: PartitionId) {
        let shared = self.0.clone();
        if let Some((queue, _)) = shared.queues().get(&partition) {
            queue.stop.cancel();
        }
        let unstarted = shared.sessions.close(partition);
        let tracker = shared.tasks.clone();
        tracker.spawn(async move { shared.give_back(unstarted).await });
    }

    async fn drain(&self, partition: PartitionId) {
        let shared = &self.0;
        let receiving = shared.queues().remove(&partition);
        if let Some((queue, task)) = receiving {
            queue.stop.cancel();
            // A receive that is under way brings messages which must be given back.
            let _ = task.await;
        }
        let unstarted = {
            let queues = shared.queues();
            if queues.contains_key(&partition) {
                // The partition has become ours again while the receive was under way.
                return;
            }
            shared.sessions.close(partition)
        };
        shared.give_back(unstarted).await;
        let deadline = Instant::now() + shared.hub.settings.drain_timeout;
        while shared.sessions.active_count(partition) > 0 && Instant::now() < deadline {
            tokio::time::sleep(DRAIN_INTERVAL).await;
        }
    }
}

/// The envelope's sender for messages of a client.
pub(crate) fn client_sender() -> Sender {
    Sender { instance: MessageData::client(), episode: None }
}
