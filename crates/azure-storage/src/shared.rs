//! What the parts of a running worker share, and how messages leave its hands.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use futures::future::join_all;
use futures::stream::{self, StreamExt};
use taskhub_core::{ErrorKind, LockToken, PartitionId, ServiceError, TaskMessage, Timestamp};
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::hub::Hub;
use crate::message;
use crate::partition::owner::PartitionOwner;
use crate::partition::status::StatusBoard;
use crate::queue::control::ControlQueue;
use crate::queue::held::HeldMessage;
use crate::queue::receive::Receiver;
use crate::queue::send::MessageSender;
use crate::queue::work_item::WorkItemQueue;
use crate::session::manager::{Released, SessionManager};
use crate::tracking::store::TrackingStore;

/// Interval of looks at the messages held by this process.
const RENEWAL_INTERVAL: Duration = Duration::from_secs(10);
/// Renewals under way at once.
const RENEWAL_CONCURRENCY: usize = 16;
/// Wait between looks at the sessions of a partition that is being drained.
pub(crate) const DRAIN_INTERVAL: Duration = Duration::from_millis(100);

/// What the parts of a running worker share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) hub: Hub,
    pub(crate) receiver: Receiver,
    pub(crate) sender: Arc<MessageSender>,
    pub(crate) sessions: SessionManager,
    pub(crate) tracking: TrackingStore,
    pub(crate) work_items: WorkItemQueue,
    pub(crate) queues: Mutex<BTreeMap<PartitionId, (ControlQueue, JoinHandle<()>)>>,
    pub(crate) tasks: TaskTracker,
    pub(crate) status: StatusBoard,
    /// Nothing new is taken on.
    pub(crate) stopping: CancellationToken,
}

impl Shared {
    pub(crate) fn queues(&self) -> MutexGuard<'_, BTreeMap<PartitionId, (ControlQueue, JoinHandle<()>)>> {
        self.queues.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn no_session(&self, what: &str, token: LockToken) -> ServiceError {
        ServiceError::new(
            ErrorKind::SessionAborted,
            format!("cannot {what}: the lock is gone. hub=`{}` lock=`{}`", self.hub.name(), token.0),
        )
    }

    /// A message for the partition was put by this process: look at once if it is ours, or when it is due.
    pub(crate) fn announce(&self, partition: PartitionId, message: &TaskMessage) {
        if let Some((queue, _)) = self.queues().get(&partition) {
            let now = self.hub.clock.now();
            match message::visibility_delay(message, now) {
                Duration::ZERO => queue.bell.notify_one(),
                delay => queue.set_alarm(now + delay),
            }
        }
    }

    pub(crate) async fn renew(&self, message: &HeldMessage) -> Result<Timestamp, ServiceError> {
        let visibility = self.hub.settings.control_queue_visibility_timeout;
        message.renew(&*self.hub.account.queues, visibility).await.map_err(|e| {
            let what = format!("cannot renew a message. instance=`{}`", message.instance_id());
            self.hub.failed(what, e)
        })
    }

    pub(crate) async fn abandon(&self, token: LockToken) {
        let messages = self.sessions.current(token);
        self.sessions.admit(token, Vec::new(), Vec::new());
        join_all(messages.iter().map(|m| self.put_back(m))).await;
    }

    pub(crate) async fn release(self: &Arc<Self>, token: LockToken) {
        let Released { fetch, give_back } = self.sessions.release(token);
        self.give_back(give_back).await;
        self.fetch_histories(fetch);
    }

    /// Puts a message back with the back-off of its dequeue count.
    pub(crate) async fn put_back(&self, message: &HeldMessage) {
        self.sessions.forget(message);
        if let Err(e) = message.abandon(&*self.hub.account.queues).await {
            tracing::warn!(
                hub = %self.hub.name(), instance = %message.instance_id(), error = %e,
                "cannot put a message back; it reappears when its visibility timeout ends"
            );
        }
    }

    /// Makes messages visible at once, for the worker that takes over.
    pub(crate) async fn give_back(&self, messages: Vec<Arc<HeldMessage>>) {
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
pub(crate) async fn renew_held(shared: Arc<Shared>) {
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
pub(crate) struct Owner(pub(crate) Arc<Shared>);

#[async_trait]
impl PartitionOwner for Owner {
    fn receive(&self, partition: PartitionId, lease_until: Instant) {
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

    fn is_live(&self, partition: PartitionId) -> bool {
        self.is_receiving(partition)
    }

    fn restart(&self, partition: PartitionId) {
        let shared = &self.0;
        if shared.stopping.is_cancelled() {
            return;
        }
        let mut queues = shared.queues();
        let Some((queue, task)) = queues.get(&partition) else { return };
        queue.stop.cancel();
        task.abort();
        let queue = ControlQueue::new(partition, queue.lease_until());
        let task = tokio::spawn(queue.clone().run(shared.clone()));
        queues.insert(partition, (queue, task));
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

    fn status(&self) -> &StatusBoard {
        &self.0.status
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
