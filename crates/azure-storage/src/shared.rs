//! What the parts of a running worker share, and how messages leave its hands.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::future::join_all;
use taskhub_core::{
    ErrorKind, GiveBackReason, LockToken, OrchestrationInstance, PartitionId, ServiceError, TaskMessage,
    Timestamp,
};
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::checkpoint;
use crate::dead_letter::failure::{Facts, Failure};
use crate::dead_letter::recorder::Recorder;
use crate::hub::Hub;
use crate::instance_names::InstanceNames;
use crate::metrics::ReasonLabels;
use crate::partition::status::StatusBoard;
use crate::queue::backoff::{UnknownPace, abandon_delay, unknown_function_delay};
use crate::queue::control::ControlQueue;
use crate::queue::held::HeldMessage;
use crate::queue::receive::Receiver;
use crate::queue::send::{MessageSender, Sender};
use crate::queue::timers::LocalTimers;
use crate::queue::work_item::WorkItemQueue;
use crate::sabotage::Planted;
use crate::session::manager::{Released, SessionManager};
use crate::tracking::instances::RowOutcome;
use crate::tracking::late_rows::LATE_BY;
use crate::tracking::store::TrackingStore;

/// Wait until a late write of an Instances row that failed is repeated.
const LATE_RETRY_INTERVAL: Duration = Duration::from_secs(5);

/// Why work for a function that this worker does not have is put back, in metrics.
pub(crate) const UNKNOWN_FUNCTION: &str = "unknown_function";

/// Most messages in the hands of this process with which an activity's answer need not be sent.
const MAX_HELD_WITH_ANSWERS: usize = 1024;

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
    pub(crate) timers: LocalTimers,
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
    pub(crate) fn announce(&self, partition: PartitionId, due: Option<Timestamp>) {
        if let Some((queue, _)) = self.queues().get(&partition) {
            match due {
                None => queue.bell.notify_one(),
                Some(due) => queue.set_alarm(due),
            }
        }
    }

    /// Whether this worker owns the partition now.
    pub(crate) fn owns(&self, partition: PartitionId) -> bool {
        !self.stopping.is_cancelled()
            && self.queues().get(&partition).is_some_and(|(queue, _)| queue.is_ours(self.hub.awake().now()))
    }

    /// Whether messages for the partition need not be received: this worker owns it and holds few messages.
    pub(crate) fn takes_messages_of(&self, partition: PartitionId) -> bool {
        self.owns(partition) && self.sessions.held_count() < self.hub.settings.control_queue_buffer_threshold
    }

    /// Takes in messages of this process that nobody has received.
    pub(crate) fn take_local(
        self: &Arc<Self>,
        partition: PartitionId,
        messages: Vec<Arc<HeldMessage>>,
    ) -> impl Future<Output = ()> + Send + use<> {
        let (shared, guard) = (self.clone(), self.message_guard(messages.clone()));
        async move {
            let admissions = messages.into_iter().map(|m| shared.clone().admit_received(partition, m));
            let admitted = join_all(admissions).await;
            guard.disarm();
            shared.take_in(partition, admitted.into_iter().flatten().collect()).await;
        }
    }

    /// Gives an activity's answer to its instance without sending it, if that is in this process. `false`: it has
    /// to be sent.
    pub(crate) async fn answer_locally(
        self: &Arc<Self>,
        token: LockToken,
        response: &TaskMessage,
        sender: &Sender,
    ) -> bool {
        let partition = self.sender.partition_of(response);
        let is_possible = self.hub.settings.elides_responses()
            && self.owns(partition)
            && self.sessions.held_count() < MAX_HELD_WITH_ANSWERS;
        if !is_possible || self.work_items.locked(token).is_none_or(|request| request.is_lost()) {
            return false;
        }
        let data = self.sender.envelope(response.clone(), sender);
        let answer = self.work_items.answer(token, data, &self.sender, sender.clone());
        let Some(answer) = answer else { return false };
        self.take_in(partition, vec![Arc::new(answer)]).await;
        true
    }

    pub(crate) async fn abandon(&self, token: LockToken, reason: GiveBackReason) {
        if self.sessions.is_stale(token) && !self.stopping.is_cancelled() {
            // What was remembered is old: once more, with what is stored.
            self.sessions.look_again(token);
            return;
        }
        let messages = self.sessions.current(token);
        self.sessions.admit(token, Vec::new(), Vec::new());
        // All of them first: whatever becomes of the others' requests, none is renewed any more.
        messages.iter().for_each(|message| self.sessions.forget(message));
        join_all(messages.iter().map(|m| self.put_back_because(m, &reason))).await;
    }

    /// Puts a message back after an attempt to process it.
    pub(crate) async fn put_back_because(&self, message: &HeldMessage, reason: &GiveBackReason) {
        match reason {
            GiveBackReason::UnknownFunction { .. } => {
                let delay = self.unknown_delay(unknown_function_delay(message.dequeue_count));
                self.put_back_for(message, UNKNOWN_FUNCTION, delay).await;
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
        if message.is_answer() {
            // It counts from when it is a message of its own.
            return self.put_back_for(message, "interrupted", abandon_delay(message.dequeue_count)).await;
        }
        self.sessions.forget(message);
        let delay = self.unless_stopping(abandon_delay(message.dequeue_count));
        self.recorder.settle(Facts::of_held(message), failure, message, delay).await;
        self.expect(message, delay);
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

    /// Shows, a little later, that an instance has begun, unless more has happened to it by then.
    pub(crate) fn show_later(self: &Arc<Self>, instance: &OrchestrationInstance, sender: Sender) {
        let (shared, instance) = (self.clone(), instance.clone());
        self.tasks.spawn(async move {
            let mut wait = LATE_BY;
            loop {
                let stops = tokio::select! {
                    biased;
                    () = shared.stopping.cancelled() => true,
                    () = tokio::time::sleep(wait) => false,
                };
                let written = match shared.tracking.write_late(&instance).await {
                    Ok(RowOutcome::TerminatedBefore { reason }) => {
                        checkpoint::end_terminated(&shared, &instance, reason, &sender).await
                    }
                    other => other.map(drop),
                };
                match written {
                    Ok(()) => return,
                    Err(e) => tracing::debug!(
                        hub = %shared.hub.name(), instance = %instance.instance_id, error = e.chain(),
                        "cannot show an instance as running; trying again"
                    ),
                }
                if stops {
                    return;
                }
                wait = LATE_RETRY_INTERVAL;
            }
        });
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
        match message.give_back(&*self.hub.account.queues, delay).await {
            // These are left to others.
            Ok(_) if reason == UNKNOWN_FUNCTION => {}
            Ok(_) => self.expect(message, delay),
            Err(e) => tracing::warn!(
                hub = %self.hub.name(), instance = %message.instance_id(), error = %e,
                "cannot put a message back; it reappears when its visibility timeout ends"
            ),
        }
    }

    /// What was put back is looked for when it is due. A queue whose messages this process hands to itself may
    /// not be looked at for half a minute.
    fn expect(&self, message: &HeldMessage, delay: Duration) {
        if message.queue == self.hub.names.work_item_queue() && !message.is_answer() {
            self.work_items.expect_in(delay);
        } else {
            let partition = self.sender.partition_of_instance(message.instance_id());
            self.announce(partition, Some(self.hub.clock.now() + delay));
        }
    }

    /// Makes messages visible at once, for the worker that takes over.
    pub(crate) async fn give_back(&self, messages: Vec<Arc<HeldMessage>>) {
        let queues = &*self.hub.account.queues;
        if self.hub.settings.planted(Planted::KeepReceived) {
            return;
        }
        messages.iter().for_each(|message| self.sessions.forget(message));
        join_all(messages.iter().map(|message| async move {
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
