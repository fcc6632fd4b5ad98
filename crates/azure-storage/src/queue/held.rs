use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use taskhub_core::{EventKind, InstanceId, OrchestrationInstance, TaskMessage, Timestamp};
use taskhub_storage::{Error, ErrorKind, PopReceipt, PutReceipt, QueueMessage, QueueStore, Result};
use tokio::sync::{Mutex as AsyncMutex, OwnedMutexGuard};
use tokio::time::Instant;

use crate::message::MessageData;
use crate::queue::backoff::abandon_delay;
use crate::queue::send::{MessageSender, Sender};
use crate::queue::work_item::Requests;

/// A message this process has received (or put hidden for itself) and must delete or give back.
#[derive(Debug)]
pub(crate) struct HeldMessage {
    pub(crate) data: MessageData,
    pub(crate) queue: String,
    pub(crate) message_id: String,
    /// The text as stored, which every update of the visibility must send again.
    text: String,
    pub(crate) inserted_at: Timestamp,
    /// When it was received, by the service's clock.
    pub(crate) received_at: Timestamp,
    pub(crate) dequeue_count: u32,
    /// How long it stays hidden from each reception and renewal on.
    visibility: Duration,
    /// Whether it starts an instance that surely has no history yet.
    starts_new_instance: AtomicBool,
    /// Whether an episode with it was run already and not stored.
    was_tried: AtomicBool,
    /// The message is the answer to an activity request of this process, and was never sent.
    answer: Option<Answer>,
    /// One request about the message at a time: each changes the receipt.
    turn: Arc<AsyncMutex<()>>,
    /// Shared by an activity request and its answer.
    lock: Arc<Mutex<Lock>>,
}

/// How an answer that was not sent becomes an ordinary message.
#[derive(Debug)]
struct Answer {
    request: Arc<HeldMessage>,
    sender: Arc<MessageSender>,
    from: Sender,
    requests: Requests,
    /// It is being sent, or has been.
    is_sent: AtomicBool,
}

/// Whatever has become of the answer: a request that comes back from now on is run again.
impl Drop for Answer {
    fn drop(&mut self) {
        self.requests.forget(&self.request);
    }
}

/// When a message was asked for and for how long it is hidden.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Hidden {
    /// Just before the request. The time until the message reappears is measured from here on the own
    /// monotonic clock, because the service's clock may be another and replies take their time.
    pub(crate) asked_at: Instant,
    pub(crate) visibility: Duration,
}

#[derive(Debug)]
struct Lock {
    receipt: PopReceipt,
    /// Counts receptions: a reply to a request with an older receipt changes nothing.
    reception: u32,
    hidden_until: Instant,
    state: State,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Held,
    /// The receipt is worth nothing any more: the message is gone, or somebody has received it since.
    Lost,
    /// Deleted or given back: nothing may touch it any more.
    Done,
}

/// What a renewal has led to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Renewal {
    /// Hidden for the full time again, or there was nothing to renew.
    Kept,
    /// The lock is lost, and this is the first to notice.
    Lost,
}

/// The right to send the next request about a message.
#[derive(Debug)]
pub(crate) struct Turn(#[allow(dead_code, reason = "held, not read")] OwnedMutexGuard<()>);

impl HeldMessage {
    pub(crate) fn received(queue: &str, message: QueueMessage, data: MessageData, hidden: Hidden) -> Self {
        Self {
            data,
            queue: queue.to_owned(),
            message_id: message.receipt.message_id.clone(),
            text: message.text,
            inserted_at: message.inserted_at,
            received_at: message.next_visible_at - hidden.visibility,
            dequeue_count: message.dequeue_count,
            visibility: hidden.visibility,
            starts_new_instance: AtomicBool::new(false),
            was_tried: AtomicBool::new(false),
            answer: None,
            turn: Arc::default(),
            lock: Arc::new(Mutex::new(Lock::new(message.receipt, hidden))),
        }
    }

    /// A message that this process has put hidden: it holds the receipt without having received it.
    /// `visibility` is how long a renewal hides it.
    pub(crate) fn put(
        queue: &str,
        put: PutReceipt,
        text: String,
        data: MessageData,
        hidden: Hidden,
        visibility: Duration,
    ) -> Self {
        Self {
            data,
            queue: queue.to_owned(),
            message_id: put.receipt.message_id.clone(),
            text,
            inserted_at: put.inserted_at,
            received_at: put.inserted_at,
            dequeue_count: 1,
            visibility,
            starts_new_instance: AtomicBool::new(false),
            was_tried: AtomicBool::new(false),
            answer: None,
            turn: Arc::default(),
            lock: Arc::new(Mutex::new(Lock::new(put.receipt, hidden))),
        }
    }

    /// The answer to an activity request, for an instance of this process: the request stays in its queue until
    /// the answer is part of a history, and is deleted then. Given back, the answer is sent first.
    pub(crate) fn answering(
        request: Arc<Self>,
        data: MessageData,
        sender: Arc<MessageSender>,
        from: Sender,
        requests: Requests,
    ) -> Self {
        Self {
            inserted_at: data.task_message.event.timestamp,
            data,
            queue: request.queue.clone(),
            message_id: request.message_id.clone(),
            text: request.text.clone(),
            received_at: request.received_at,
            dequeue_count: 1,
            visibility: request.visibility,
            starts_new_instance: AtomicBool::new(false),
            // Whoever had the request before may have gone on with an answer of its own.
            was_tried: AtomicBool::new(request.dequeue_count > 1),
            turn: request.turn.clone(),
            lock: request.lock.clone(),
            answer: Some(Answer { request, sender, from, requests, is_sent: AtomicBool::new(false) }),
        }
    }

    /// Whether this is an answer that was never sent.
    pub(crate) fn is_answer(&self) -> bool {
        self.answer.is_some()
    }

    /// The text as stored.
    pub(crate) fn text(&self) -> &str {
        &self.text
    }

    pub(crate) fn task(&self) -> &TaskMessage {
        &self.data.task_message
    }

    pub(crate) fn target(&self) -> &OrchestrationInstance {
        &self.data.task_message.target
    }

    pub(crate) fn instance_id(&self) -> &InstanceId {
        &self.data.task_message.target.instance_id
    }

    pub(crate) fn is_start(&self) -> bool {
        matches!(self.data.task_message.event.kind, EventKind::ExecutionStarted(_))
    }

    /// Whether this starts an instance of which nothing can be stored: its history need not be read, the
    /// first checkpoint fails if there is one.
    pub(crate) fn starts_new_instance(&self) -> bool {
        self.starts_new_instance.load(Ordering::Relaxed)
    }

    pub(crate) fn set_starts_new_instance(&self, is_new: bool) {
        self.starts_new_instance.store(is_new, Ordering::Relaxed);
    }

    /// An episode with it was not stored.
    pub(crate) fn set_tried(&self) {
        self.was_tried.store(true, Ordering::Relaxed);
    }

    /// Whether nobody has run an episode with this message before, as far as this process can tell.
    pub(crate) fn is_first_try(&self) -> bool {
        self.dequeue_count == 1 && !self.was_tried.load(Ordering::Relaxed)
    }

    fn lock(&self) -> MutexGuard<'_, Lock> {
        self.lock.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The same message was received once more: the newer reception counts.
    pub(crate) fn adopt(&self, newer: &Self) {
        let (receipt, hidden_until) = {
            let newer = newer.lock();
            (newer.receipt.clone(), newer.hidden_until)
        };
        let mut lock = self.lock();
        lock.receipt = receipt;
        lock.hidden_until = hidden_until;
        lock.reception += 1;
        if lock.state == State::Lost {
            lock.state = State::Held;
        }
    }

    /// How long the message stays hidden without renewal.
    pub(crate) fn remaining(&self) -> Duration {
        self.lock().hidden_until.saturating_duration_since(Instant::now())
    }

    /// How long the message stays hidden after a renewal.
    pub(crate) fn visibility(&self) -> Duration {
        self.visibility
    }

    /// Whether this process knows that it holds the message no longer.
    pub(crate) fn is_lost(&self) -> bool {
        self.lock().state == State::Lost
    }

    /// How long until a renewal is due, which is when a third of the time has passed; `None` when there is
    /// nothing to renew.
    pub(crate) fn renewal_due_in(&self) -> Option<Duration> {
        let lock = self.lock();
        let left = lock.hidden_until.saturating_duration_since(Instant::now());
        // A timer that is due is hidden for a moment only.
        (lock.state == State::Held).then(|| left.saturating_sub(self.visibility * 2 / 3))
    }

    /// The next turn, if a renewal is due and no other request about the message is under way.
    pub(crate) fn begin_renewal(&self) -> Option<Turn> {
        let due = self.renewal_due_in().is_some_and(|left| left.is_zero());
        due.then(|| self.turn.clone().try_lock_owned().ok().map(Turn))?
    }

    /// Hides the message for its full time from now, within `deadline`. A renewal that takes longer fails,
    /// and may have taken place nevertheless: a later one then finds the lock lost.
    pub(crate) async fn renew(
        &self,
        turn: Turn,
        queues: &dyn QueueStore,
        deadline: Duration,
    ) -> Result<Renewal> {
        let _turn = turn;
        let (receipt, reception) = {
            let lock = self.lock();
            if lock.state != State::Held {
                return Ok(Renewal::Kept);
            }
            (lock.receipt.clone(), lock.reception)
        };
        let asked_at = Instant::now();
        let request = queues.update_message(&self.queue, &receipt, &self.text, self.visibility);
        let renewed = tokio::time::timeout(deadline, request).await.unwrap_or_else(|_| {
            let message = "no answer in time for a renewal";
            Err(Error::new(ErrorKind::Unavailable, "UpdateMessage", &self.queue, message))
        });
        let mut lock = self.lock();
        if lock.reception != reception || lock.state != State::Held {
            return Ok(Renewal::Kept);
        }
        match renewed {
            Ok((receipt, _)) => {
                lock.receipt = receipt;
                lock.hidden_until = asked_at + self.visibility;
                Ok(Renewal::Kept)
            }
            Err(e) if is_gone(&e) => {
                lock.state = State::Lost;
                Ok(Renewal::Lost)
            }
            Err(e) => Err(e),
        }
    }

    /// Deletes the message. A message that is gone counts as deleted; one that is not ours any more, because
    /// the lock was lost or somebody else has received it since, is left to them, and `false` returned.
    pub(crate) async fn delete(&self, queues: &dyn QueueStore) -> Result<bool> {
        let Some(Answer { requests, .. }) = &self.answer else { return self.delete_it(queues).await };
        // From now on the request must not run again.
        requests.answered(&self.message_id);
        let deleted = self.delete_it(queues).await;
        requests.settled(&self.message_id, matches!(deleted, Ok(true)));
        deleted
    }

    async fn delete_it(&self, queues: &dyn QueueStore) -> Result<bool> {
        let _turn = self.turn.lock().await;
        let mut is_ours = false;
        while let Some((receipt, reception)) = self.usable() {
            is_ours = true;
            match queues.delete_message(&self.queue, &receipt).await {
                // This process has received it once more meanwhile.
                Err(e) if is_gone(&e) && self.lock().reception != reception => continue,
                Err(e) if e.kind() == ErrorKind::PopReceiptMismatch => {
                    is_ours = false;
                    tracing::debug!(
                        queue = self.queue,
                        message = self.message_id,
                        "a processed message has been received again and is left to its receiver"
                    );
                }
                Err(e) if e.kind() == ErrorKind::NotFound => {}
                other => other?,
            }
            break;
        }
        self.lock().state = State::Done;
        Ok(is_ours)
    }

    /// Leaves a message alone that should have been deleted and could not be: it comes back after its
    /// visibility timeout or the back-off of its dequeue count, whichever is longer.
    pub(crate) async fn put_off(&self, queues: &dyn QueueStore) -> Result<()> {
        self.hide(queues, abandon_delay(self.dequeue_count).max(self.visibility)).await.map(drop)
    }

    /// Gives the message back, to be received again after `delay`. The new right to it and when it becomes
    /// visible, or `None` when it was not ours any more.
    pub(crate) async fn give_back(
        &self,
        queues: &dyn QueueStore,
        delay: Duration,
    ) -> Result<Option<(PopReceipt, Timestamp)>> {
        let Some(Answer { sender, from, requests, is_sent, .. }) = &self.answer else {
            return self.hide(queues, delay).await;
        };
        if is_sent.swap(true, Ordering::Relaxed) {
            return Ok(None);
        }
        if self.usable().is_none() {
            // Somebody else has the request, and runs it again.
            requests.settled(&self.message_id, false);
            return Ok(None);
        }
        // As if there had been no short cut: the answer first, then the end of the request.
        match sender.send_control_after(self.task(), from, delay).await {
            Ok(_) => self.delete(queues).await.map(|_| None),
            Err(e) => {
                tracing::debug!(error = e.chain(), "an answer cannot be sent; its activity runs again");
                requests.settled(&self.message_id, false);
                self.hide(queues, delay).await
            }
        }
    }

    async fn hide(
        &self,
        queues: &dyn QueueStore,
        delay: Duration,
    ) -> Result<Option<(PopReceipt, Timestamp)>> {
        let _turn = self.turn.lock().await;
        while let Some((receipt, reception)) = self.usable() {
            match queues.update_message(&self.queue, &receipt, &self.text, delay).await {
                Err(e) if is_gone(&e) && self.lock().reception != reception => continue,
                Err(e) if is_gone(&e) => {}
                other => {
                    self.lock().state = State::Done;
                    return other.map(Some);
                }
            }
            break;
        }
        self.lock().state = State::Done;
        Ok(None)
    }

    /// The receipt, as long as it gives a right to the message.
    fn usable(&self) -> Option<(PopReceipt, u32)> {
        let lock = self.lock();
        (lock.state == State::Held).then(|| (lock.receipt.clone(), lock.reception))
    }
}

impl Lock {
    fn new(receipt: PopReceipt, hidden: Hidden) -> Self {
        let hidden_until = hidden.asked_at + hidden.visibility;
        Self { receipt, reception: 0, hidden_until, state: State::Held }
    }
}

/// The message does not exist, or its receipt is not the newest.
fn is_gone(error: &Error) -> bool {
    matches!(error.kind(), ErrorKind::NotFound | ErrorKind::PopReceiptMismatch)
}

/// Sorts a received batch as DTFx does, by insertion time and then by the sender's sequence number; within
/// one second, a start goes before other messages of its instance.
///
/// Differs: DTFx leaves messages of one second and number in any order, and then discards an event that
/// comes before its own start.
pub(crate) fn sort_received(messages: &mut [Arc<HeldMessage>]) {
    messages.sort_by_key(|m| (m.inserted_at, !m.is_start(), m.data.sequence_number));
}

#[cfg(test)]
mod tests {
    use taskhub_core::{IdSource, SeededIds};
    use taskhub_storage::memory::MemoryStore;
    use taskhub_testkit::VirtualClock;

    use super::*;

    const VISIBILITY: Duration = Duration::from_secs(30);

    /// A message with an event of this kind, as the sender's `number`-th.
    fn held(message: QueueMessage, kind: EventKind, number: i64) -> HeldMessage {
        let hidden = Hidden { asked_at: Instant::now(), visibility: VISIBILITY };
        let event = taskhub_core::HistoryEvent::message(message.inserted_at, kind);
        let task = TaskMessage::new(event, OrchestrationInstance::current("i"));
        let data = MessageData::new(SeededIds::new(1).guid(), task, number, None, MessageData::client());
        HeldMessage::received("queue", message, data, hidden)
    }

    async fn receive(queues: &dyn QueueStore) -> HeldMessage {
        let message = queues.get_messages("queue", 1, VISIBILITY).await.unwrap().remove(0);
        held(message, EventKind::OrchestratorStarted, 1)
    }

    #[tokio::test(start_paused = true)]
    async fn within_one_second_starts_go_first_and_then_the_senders_numbers_decide() {
        let message = |second: u64, kind: EventKind, number: i64| {
            let at = Timestamp::from_unix(Duration::from_secs(1_700_000_000 + second));
            let receipt = PopReceipt { message_id: format!("{second}-{number}"), token: String::new() };
            let text = String::new();
            let next_visible_at = at + VISIBILITY;
            let received = QueueMessage { receipt, text, inserted_at: at, next_visible_at, dequeue_count: 1 };
            Arc::new(held(received, kind, number))
        };
        let start = || {
            EventKind::ExecutionStarted(Box::new(taskhub_core::ExecutionStarted::new(
                OrchestrationInstance::current("i"),
                "Echo",
            )))
        };
        let other = || EventKind::OrchestratorStarted;
        let mut messages =
            [message(1, start(), 1), message(0, other(), 2), message(0, other(), 1), message(0, start(), 3)];
        sort_received(&mut messages);
        assert_eq!(messages.each_ref().map(|m| m.message_id.as_str()), ["0-3", "0-1", "0-2", "1-1"]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_message_whose_lock_is_lost_is_not_taken_for_deleted() {
        let clock = std::sync::Arc::new(VirtualClock::default());
        let store = MemoryStore::new(clock);
        let queues = store.account().queues;
        queues.create_queue("queue").await.unwrap();
        queues.put_message("queue", "text", Duration::ZERO).await.unwrap();
        let first = receive(&*queues).await;
        tokio::time::sleep(VISIBILITY).await;
        let second = receive(&*queues).await;
        let turn = first.begin_renewal().unwrap();
        assert_eq!(first.renew(turn, &*queues, VISIBILITY).await.unwrap(), Renewal::Lost);
        assert!(!first.delete(&*queues).await.unwrap(), "it is the other receiver's");
        assert_eq!(store.messages("queue").len(), 1);
        assert!(second.delete(&*queues).await.unwrap());
        assert!(store.messages("queue").is_empty());
    }
}
