//! The backend as a worker sees it.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use futures::future::join_all;
use taskhub_core::{
    ActivityWorkItem, EpisodeCommit, ErrorKind, EventKind, GiveBackReason, LockToken, OrchestrationService,
    OrchestrationWorkItem, Readiness, ServiceError, ServiceStatus, TaskMessage, Timestamp, UnreadableMessage,
};
use taskhub_storage::request::on_behalf_of;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::checkpoint;
use crate::dead_letter::failure::{Failure, Reason, reason_of};
use crate::dead_letter::recorder::Recorder;
use crate::hub::Hub;
use crate::instance_names::{InstanceNames, account};
use crate::metrics::StorageMetrics;
use crate::ownership::{DRAIN_INTERVAL, Owner};
use crate::partition::manager::PartitionManager;
use crate::partition::status::StatusBoard;
use crate::queue::control::ControlQueue;
use crate::queue::receive::Receiver;
use crate::queue::send::{MessageSender, Sender};
use crate::queue::timers::{LocalTimers, fire_timers};
use crate::queue::work_item::WorkItemQueue;
use crate::renewal::renew_held;
use crate::sabotage::Planted;
use crate::session::manager::{InstanceKind, SessionManager};
use crate::shared::{Shared, UNKNOWN_FUNCTION};
use crate::tracking::store::{MAX_BATCH_ROWS, TrackingStore};
use crate::watchdog::watch;

/// Time for each of the last steps of a stop, if storage does not answer.
const STOP_GRACE: Duration = Duration::from_secs(5);

/// A task hub in Azure Storage as a worker uses it.
pub struct AzureStorageService {
    hub: Hub,
    activity_slots: AtomicUsize,
    starting: tokio::sync::Mutex<()>,
    running: OnceLock<Running>,
}

struct Running {
    shared: Arc<Shared>,
    stop: CancellationToken,
    force: CancellationToken,
    manager: Mutex<Option<JoinHandle<()>>>,
    renewer: Mutex<Option<JoinHandle<()>>>,
    stop_renewing: CancellationToken,
}

/// A worker that is dropped without being stopped is like one that was killed: nothing of it runs on, its
/// partitions and messages come back when their time is over.
impl Drop for Running {
    fn drop(&mut self) {
        self.shared.stopping.cancel();
        if let Some(renewer) = lock(&self.renewer).take() {
            renewer.abort();
        }
        if let Some(manager) = lock(&self.manager).take() {
            manager.abort();
        }
        for (queue, task) in self.shared.queues().values() {
            queue.stop.cancel();
            task.abort();
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl AzureStorageService {
    /// A worker of a hub. Nothing happens before [`OrchestrationService::start`].
    pub fn new(hub: Hub) -> Self {
        Self {
            hub,
            activity_slots: AtomicUsize::new(0),
            starting: tokio::sync::Mutex::default(),
            running: OnceLock::new(),
        }
    }

    /// The hub.
    pub fn hub(&self) -> &Hub {
        &self.hub
    }

    /// What this worker counts.
    pub fn metrics(&self) -> &StorageMetrics {
        &self.hub.metrics
    }

    /// Renewals that are under way end first, so that every message's receipt is known.
    async fn stop_renewing(&self, running: &Running) {
        running.stop_renewing.cancel();
        let renewer = lock(&running.renewer).take();
        if let Some(mut renewer) = renewer
            && tokio::time::timeout(STOP_GRACE, &mut renewer).await.is_err()
        {
            renewer.abort();
        }
    }

    async fn lock_next(
        &self,
        kind: InstanceKind,
        timeout: Duration,
    ) -> Result<Option<OrchestrationWorkItem>, ServiceError> {
        let shared = &self.running()?.shared;
        let deadline = Instant::now() + timeout;
        loop {
            let changed = shared.sessions.changed(kind).notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            if shared.stopping.is_cancelled() {
                return Ok(None);
            }
            if let Some(taken) = shared.sessions.take_ready(kind) {
                let token = taken.token;
                let guard = shared.session_guard(token);
                let admitted = Box::pin(shared.admit(taken)).await;
                if let Err(e) = &admitted {
                    shared.abandon(token, reason_of(e)).await;
                }
                if !matches!(admitted, Ok(Some(_))) {
                    shared.release(token).await;
                }
                guard.disarm();
                match admitted {
                    Ok(None) => continue,
                    other => return other,
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
        let manager_kind = self.hub.settle_manager(layout).await?;
        let tasks = TaskTracker::new();
        let recorder = Recorder::new(self.hub.clone(), tasks.clone());
        let receiver = Receiver::new(self.hub.clone(), recorder.clone(), tasks.clone());
        let shared = Arc::new(Shared {
            hub: self.hub.clone(),
            receiver: receiver.clone(),
            recorder,
            sender: Arc::new(MessageSender::new(self.hub.clone(), layout.partition_count)),
            sessions: SessionManager::new(self.hub.settings.cache_bytes()),
            tracking: TrackingStore::new(self.hub.clone()),
            names: InstanceNames::default(),
            work_items: WorkItemQueue::new(self.hub.clone(), receiver),
            timers: LocalTimers::default(),
            queues: Mutex::default(),
            tasks,
            status: StatusBoard::default(),
            unknown: Mutex::default(),
            stopping: CancellationToken::new(),
            cut_off: CancellationToken::new(),
        });
        let (stop, force) = (CancellationToken::new(), CancellationToken::new());
        let owner = Arc::new(Owner(shared.clone()));
        let manager = PartitionManager::new(self.hub.clone(), owner, manager_kind);
        let manager = tokio::spawn(manager.run(stop.clone(), force.clone()));
        shared.tasks.spawn(watch(shared.clone(), manager_kind));
        self.hub.doorbell.answer(&shared);
        shared.work_items.set_slots(self.activity_slots.load(Ordering::Relaxed));
        shared.tasks.spawn(fire_timers(shared.clone()));
        let stop_renewing = CancellationToken::new();
        let renewer = tokio::spawn(renew_held(shared.clone(), stop_renewing.clone()));
        let running = Running {
            shared,
            stop,
            force,
            manager: Mutex::new(Some(manager)),
            renewer: Mutex::new(Some(renewer)),
            stop_renewing,
        };
        // Guarded by `starting`: nobody else has set it.
        let _ = self.running.set(running);
        Ok(())
    }

    fn max_atomic_events(&self) -> usize {
        // Without any, nothing is fused.
        if self.hub.settings.dtfx_cadence { 0 } else { self.hub.settings.max_batch_rows(MAX_BATCH_ROWS, &[]) }
    }

    fn set_activity_slots(&self, slots: usize) {
        self.activity_slots.store(slots, Ordering::Relaxed);
        if let Some(running) = self.running.get() {
            running.shared.work_items.set_slots(slots);
        }
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

    /// Receiving stops everywhere at once. From then on three things happen side by side: what nobody works
    /// on becomes visible, each partition goes to its next owner as soon as its own sessions have ended, and
    /// activities that run may finish; their replies go to the queues whoever owns them. What is not finished
    /// after `drain_timeout` is cut off and becomes visible, too. Every wait ends: when storage hangs, a few
    /// times `STOP_GRACE` after `drain_timeout`.
    async fn stop(&self, drain_timeout: Duration) -> Result<(), ServiceError> {
        let running = self.running()?;
        let shared = &running.shared;
        shared.stopping.cancel();
        for kind in [InstanceKind::Orchestration, InstanceKind::Entity] {
            shared.sessions.changed(kind).notify_waiters();
        }
        for (queue, _) in shared.queues().values() {
            queue.stop.cancel();
        }
        running.stop.cancel();
        let manager = lock(&running.manager).take();
        let work = async {
            tokio::join!(shared.work_items.give_back_unstarted(), async {
                while shared.sessions.any_active() || shared.work_items.any_locked() {
                    tokio::time::sleep(DRAIN_INTERVAL).await;
                }
            });
        };
        let finish = async {
            if tokio::time::timeout(drain_timeout, work).await.is_err() {
                tracing::warn!(hub = %self.hub.name(), "not everything was finished in time; stopping anyway");
                // Sessions that are cut off do not hold their partitions any longer.
                shared.cut_off.cancel();
            }
            // Nothing may hide what is made visible now.
            self.stop_renewing(running).await;
            let _ = tokio::time::timeout(STOP_GRACE, shared.work_items.receives_ended()).await;
            let left = tokio::time::timeout(STOP_GRACE, async {
                tokio::join!(
                    shared.give_back(shared.sessions.all_held()),
                    shared.work_items.give_back_unstarted(),
                    shared.work_items.give_back_locked(),
                )
            });
            if left.await.is_err() {
                tracing::warn!(
                    hub = %self.hub.name(),
                    "not all messages could be made visible; they reappear when their visibility timeout ends"
                );
            }
        };
        let hand_over = async {
            let Some(mut manager) = manager else { return };
            let ended = async {
                tokio::time::sleep(drain_timeout).await;
                shared.cut_off.cancel();
                tokio::time::sleep(STOP_GRACE).await;
            };
            tokio::select! {
                biased;
                _ = &mut manager => return,
                () = ended => {}
            }
            tracing::warn!(hub = %self.hub.name(), "not all partitions could be handed back; their leases run out");
            running.force.cancel();
            if tokio::time::timeout(STOP_GRACE, &mut manager).await.is_err() {
                manager.abort();
            }
        };
        tokio::join!(finish, hand_over);
        shared.tasks.close();
        let _ = tokio::time::timeout(STOP_GRACE, shared.tasks.wait()).await;
        Ok(())
    }

    async fn lock_next_orchestration(
        &self,
        timeout: Duration,
    ) -> Result<Option<OrchestrationWorkItem>, ServiceError> {
        self.lock_next(InstanceKind::Orchestration, timeout).await
    }

    async fn lock_next_entity(
        &self,
        timeout: Duration,
    ) -> Result<Option<OrchestrationWorkItem>, ServiceError> {
        self.lock_next(InstanceKind::Entity, timeout).await
    }

    async fn renew_orchestration(&self, token: LockToken) -> Result<Timestamp, ServiceError> {
        let shared = &self.running()?.shared;
        let messages = shared.sessions.current(token);
        join_all(messages.iter().map(|m| shared.renew(m))).await.into_iter().collect::<Result<(), _>>()?;
        let left = messages.iter().map(|m| m.remaining()).min();
        Ok(left.map_or(Timestamp::MAX, |left| self.hub.clock.now() + left))
    }

    async fn complete_orchestration(
        &self,
        token: LockToken,
        commit: EpisodeCommit,
    ) -> Result<(), ServiceError> {
        let shared = &self.running()?.shared;
        let guard = shared.session_guard(token);
        let instance_id = commit.instance.instance_id.clone();
        let is_terminal = commit.status.is_terminal();
        let name = shared.names.learn(&instance_id, &commit.new_events);
        let name = name.or_else(|| {
            let (_, tracked) = shared.sessions.tracked(token)?;
            tracked.index.started.map(|(started, _)| account(&instance_id, &started.name))
        });
        let completed = on_behalf_of(name, Box::pin(checkpoint::complete(shared, token, commit))).await;
        if is_terminal && completed.is_ok() {
            shared.names.forget(&instance_id);
        }
        guard.disarm();
        completed
    }

    async fn discard_orchestration(&self, token: LockToken) -> Result<(), ServiceError> {
        let shared = &self.running()?.shared;
        if shared.sessions.is_assumed(token) {
            // Nobody is to be hurt if they are wanted after all: once more, with what is stored.
            shared.sessions.look_again(token);
            return Ok(());
        }
        let messages = shared.sessions.current(token);
        let guard = shared.session_guard(token);
        shared.sessions.admit(token, Vec::new(), Vec::new());
        let deleted = checkpoint::delete_all(shared, &messages).await;
        guard.disarm();
        deleted
    }

    async fn abandon_orchestration(&self, token: LockToken) -> Result<(), ServiceError> {
        self.give_back_orchestration(token, GiveBackReason::Interrupted).await
    }

    async fn give_back_orchestration(
        &self,
        token: LockToken,
        reason: GiveBackReason,
    ) -> Result<(), ServiceError> {
        self.running()?.shared.abandon(token, reason).await;
        Ok(())
    }

    async fn set_aside(
        &self,
        token: LockToken,
        messages: Vec<UnreadableMessage>,
    ) -> Result<(), ServiceError> {
        let shared = &self.running()?.shared;
        let guard = shared.session_guard(token);
        let mut kept = Vec::new();
        for message in shared.sessions.current(token) {
            match messages.iter().find(|unreadable| unreadable.message == *message.task()) {
                None => kept.push(message),
                Some(unreadable) => {
                    let detail = unreadable.reason.clone();
                    let failure = Failure { reason: Reason::UnreadableEntityEvent, detail };
                    shared.put_back_failed(&message, failure).await;
                }
            }
        }
        shared.sessions.admit(token, kept, Vec::new());
        guard.disarm();
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
                let guard = shared.session_guard(token);
                let kept = shared.keep_in_order(messages, &tracked.index).await;
                shared.sessions.admit(token, kept.clone(), Vec::new());
                guard.disarm();
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
        shared.renew(&message).await?;
        Ok(self.hub.clock.now() + message.remaining())
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
        if self.hub.settings.planted(Planted::RequestBeforeReply) {
            let _ = request.delete(&*self.hub.account.queues).await;
        }
        if let EventKind::TaskScheduled { name: Some(name), .. } = &request.task().event.kind {
            shared.work_items.set_unknown(name, false);
        }
        if shared.answer_locally(token, &response, &sender).await {
            return Ok(());
        }
        let guard = shared.activity_guard(token);
        let name = shared.names.of(request.instance_id());
        let sent = on_behalf_of(name.clone(), shared.sender.send_control(&response, &sender)).await;
        if let Err(e) = sent {
            guard.disarm();
            return Err(e);
        }
        shared.announce(shared.sender.partition_of(&response), None);
        let deleted = on_behalf_of(name, shared.work_items.delete_answered(&request)).await;
        shared.work_items.take(token);
        guard.disarm();
        deleted.map(drop).map_err(|e| {
            let what = format!("cannot delete an activity request. instance=`{}`", request.instance_id());
            self.hub.failed(what, e)
        })
    }

    async fn abandon_activity(&self, token: LockToken) -> Result<(), ServiceError> {
        self.give_back_activity(token, GiveBackReason::Interrupted).await
    }

    async fn give_back_activity(&self, token: LockToken, reason: GiveBackReason) -> Result<(), ServiceError> {
        let shared = &self.running()?.shared;
        let Some(request) = shared.work_items.take(token) else { return Ok(()) };
        if let GiveBackReason::UnknownFunction { name } = &reason {
            shared.work_items.set_unknown(name, true);
            let delay = shared.unknown_delay(shared.work_items.unknown_delay(request.dequeue_count));
            shared.put_back_for(&request, UNKNOWN_FUNCTION, delay).await;
            return Ok(());
        }
        shared.put_back_because(&request, &reason).await;
        Ok(())
    }
}
