//! What the parts of a running worker share, and how messages leave its hands.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::future::join_all;
use taskhub_core::{ErrorKind, GiveBackReason, LockToken, PartitionId, ServiceError, TaskMessage};
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::dead_letter::failure::{Facts, Failure};
use crate::dead_letter::recorder::Recorder;
use crate::hub::Hub;
use crate::instance_names::InstanceNames;
use crate::message;
use crate::metrics::ReasonLabels;
use crate::partition::status::StatusBoard;
use crate::queue::backoff::{UnknownPace, abandon_delay, unknown_function_delay};
use crate::queue::control::ControlQueue;
use crate::queue::held::HeldMessage;
use crate::queue::receive::Receiver;
use crate::queue::send::MessageSender;
use crate::queue::work_item::WorkItemQueue;
use crate::sabotage::Planted;
use crate::session::manager::{Released, SessionManager};
use crate::tracking::store::TrackingStore;

/// What the parts of a running worker share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) hub: Hub,
    pub(crate) receiver: Receiver,
    pub(crate) recorder: Arc<Recorder>,
    pub(crate) sender: Arc<MessageSender>,
    pub(crate) sessions: SessionManager,
    pub(crate) tracking: TrackingStore,
    pub(crate) names: InstanceNames,
    pub(crate) work_items: WorkItemQueue,
    pub(crate) queues: Mutex<BTreeMap<PartitionId, (ControlQueue, JoinHandle<()>)>>,
    pub(crate) tasks: TaskTracker,
    pub(crate) status: StatusBoard,
    pub(crate) unknown: Mutex<UnknownPace>,
    /// Nothing new is taken on.
    pub(crate) stopping: CancellationToken,
    /// Work that has not ended yet counts no longer.
    pub(crate) cut_off: CancellationToken,
}

impl Shared {
    pub(crate) fn queues(&self) -> MutexGuard<'_, BTreeMap<PartitionId, (ControlQueue, JoinHandle<()>)>> {
        self.queues.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts the queues that are received from.
    pub(crate) fn count_owned(&self) {
        let owned = self.queues().values().filter(|(queue, _)| !queue.stop.is_cancelled()).count();
        self.hub.metrics.partitions_owned.set(i64::try_from(owned).unwrap_or(i64::MAX));
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

    pub(crate) async fn abandon(&self, token: LockToken, reason: GiveBackReason) {
        let messages = self.sessions.current(token);
        self.sessions.admit(token, Vec::new(), Vec::new());
        join_all(messages.iter().map(|m| self.put_back_because(m, &reason))).await;
    }

    /// Puts a message back after an attempt to process it.
    pub(crate) async fn put_back_because(&self, message: &HeldMessage, reason: &GiveBackReason) {
        match reason {
            GiveBackReason::UnknownFunction { .. } => {
                let delay = self.unknown_delay(unknown_function_delay(message.dequeue_count));
                self.put_back_for(message, "unknown_function", delay).await;
            }
            GiveBackReason::Failed { reason } => {
                self.put_back_failed(message, Failure::processing(reason.clone())).await;
            }
            _ => self.put_back_for(message, "interrupted", abandon_delay(message.dequeue_count)).await,
        }
    }

    /// How long work for a function that this worker does not have stays hidden, by itself for `at_least` so long.
    pub(crate) fn unknown_delay(&self, at_least: Duration) -> Duration {
        let mut pace = self.unknown.lock().unwrap_or_else(PoisonError::into_inner);
        pace.delay(Instant::now(), at_least)
    }

    /// Puts a message back that failed.
    pub(crate) async fn put_back_failed(&self, message: &HeldMessage, failure: Failure) {
        self.sessions.forget(message);
        let delay = self.unless_stopping(abandon_delay(message.dequeue_count));
        self.recorder.settle(Facts::of_held(message), failure, message, delay).await;
    }

    /// Ends a session. Messages that whoever worked on it has neither completed nor given back come again;
    /// held on to, they would be renewed for ever.
    pub(crate) async fn release(self: &Arc<Self>, token: LockToken) {
        if !self.sessions.current(token).is_empty() {
            tracing::warn!(hub = %self.hub.name(), lock = token.0, "a session ended with messages left over");
            self.abandon(token, GiveBackReason::Interrupted).await;
        }
        let Released { fetch, give_back } = self.sessions.release(token);
        self.give_back(give_back).await;
        self.fetch_histories(fetch);
    }

    /// Puts a message back whose time has not come, with the back-off of its dequeue count.
    pub(crate) async fn put_back(&self, message: &HeldMessage) {
        self.put_back_for(message, "not_ready", abandon_delay(message.dequeue_count)).await;
    }

    /// While stopping, messages go back at once, for the worker that takes over.
    fn unless_stopping(&self, delay: Duration) -> Duration {
        if self.stopping.is_cancelled() { Duration::ZERO } else { delay }
    }

    pub(crate) async fn put_back_for(&self, message: &HeldMessage, reason: &'static str, delay: Duration) {
        self.sessions.forget(message);
        self.hub.metrics.messages_put_back.get_or_create(&ReasonLabels { reason }).inc();
        let delay = self.unless_stopping(delay);
        if let Err(e) = message.give_back(&*self.hub.account.queues, delay).await {
            tracing::warn!(
                hub = %self.hub.name(), instance = %message.instance_id(), error = %e,
                "cannot put a message back; it reappears when its visibility timeout ends"
            );
        }
    }

    /// Makes messages visible at once, for the worker that takes over.
    pub(crate) async fn give_back(&self, messages: Vec<Arc<HeldMessage>>) {
        let queues = &*self.hub.account.queues;
        if self.hub.settings.planted(Planted::KeepReceived) {
            return;
        }
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
