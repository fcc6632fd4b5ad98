//! What a worker does with messages that fail: puts them back or into quarantine, and keeps their records.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use taskhub_core::Timestamp;
use taskhub_storage::{ErrorKind, PopReceipt, QueueStore};
use tokio::sync::{Mutex as AsyncMutex, Semaphore};
use tokio_util::task::TaskTracker;

use crate::dead_letter::failure::{Facts, Failure};
use crate::dead_letter::record::{DeadLetter, DeadLetterState};
use crate::dead_letter::store::RecordStore;
use crate::hub::Hub;
use crate::metrics::ReasonLabels;
use crate::queue::held::HeldMessage;

/// Records written at once.
const WRITE_CONCURRENCY: usize = 8;
/// Most records waiting to be written; more are written at the next failure of their message.
const MAX_WAITING: usize = 256;
/// Most messages whose failures are remembered; of others the record is read again.
const MAX_REMEMBERED: usize = 10_000;
/// How long the answer that a hub has no dead letters holds.
const ABSENCE_INTERVAL: Duration = Duration::from_secs(60);

/// A message in the hands of this process.
#[async_trait]
pub(crate) trait InHands: Send + Sync {
    /// Gives it back. The new right to it and when it becomes visible, or `None` when it is no longer ours.
    async fn give_back(
        &self,
        queues: &dyn QueueStore,
        delay: Duration,
    ) -> taskhub_storage::Result<Option<(PopReceipt, Timestamp)>>;

    /// Deletes it; `false` when somebody else has received it since.
    async fn delete(&self, queues: &dyn QueueStore) -> taskhub_storage::Result<bool>;
}

#[async_trait]
impl InHands for HeldMessage {
    async fn give_back(
        &self,
        queues: &dyn QueueStore,
        delay: Duration,
    ) -> taskhub_storage::Result<Option<(PopReceipt, Timestamp)>> {
        HeldMessage::give_back(self, queues, delay).await
    }

    async fn delete(&self, queues: &dyn QueueStore) -> taskhub_storage::Result<bool> {
        HeldMessage::delete(self, queues).await
    }
}

/// A message that was received and cannot be read.
pub(crate) struct Unread<'a> {
    pub(crate) queue: &'a str,
    pub(crate) receipt: &'a PopReceipt,
    pub(crate) text: &'a str,
}

#[async_trait]
impl InHands for Unread<'_> {
    async fn give_back(
        &self,
        queues: &dyn QueueStore,
        delay: Duration,
    ) -> taskhub_storage::Result<Option<(PopReceipt, Timestamp)>> {
        match queues.update_message(self.queue, self.receipt, self.text, delay).await {
            Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::PopReceiptMismatch) => Ok(None),
            other => other.map(Some),
        }
    }

    async fn delete(&self, queues: &dyn QueueStore) -> taskhub_storage::Result<bool> {
        match queues.delete_message(self.queue, self.receipt).await {
            Err(e) if e.kind() == ErrorKind::NotFound => Ok(true),
            Err(e) if e.kind() == ErrorKind::PopReceiptMismatch => Ok(false),
            other => other.map(|()| true),
        }
    }
}

/// Keeps the dead letters of one worker's messages. A record that cannot be written delays nothing: it is
/// written at the next failure.
#[derive(Debug)]
pub(crate) struct Recorder {
    hub: Hub,
    store: RecordStore,
    tasks: TaskTracker,
    known: Mutex<HashMap<String, Known>>,
    waiting: AtomicUsize,
    writing: Semaphore,
    /// Until when the hub is taken to have no dead letters; `MAX`: it has some.
    absent_until: Mutex<Option<Timestamp>>,
}

/// What this process remembers of a message that failed.
#[derive(Debug, Clone)]
struct Known {
    failures: u32,
    first_failed_at: Timestamp,
    is_recorded: bool,
    /// Writes and removals of one record happen in order.
    order: Arc<AsyncMutex<()>>,
}

impl Recorder {
    pub(crate) fn new(hub: Hub, tasks: TaskTracker) -> Arc<Self> {
        Arc::new(Self {
            store: RecordStore::new(&hub),
            hub,
            tasks,
            known: Mutex::default(),
            waiting: AtomicUsize::new(0),
            writing: Semaphore::new(WRITE_CONCURRENCY),
            absent_until: Mutex::default(),
        })
    }

    fn known(&self) -> MutexGuard<'_, HashMap<String, Known>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A message failed: takes it out of its queue if the settings say so after that many failures, or else
    /// puts it back for `delay`; writes its record if it is to have one.
    pub(crate) async fn settle(
        self: &Arc<Self>,
        facts: Facts,
        failure: Failure,
        message: &dyn InHands,
        delay: Duration,
    ) {
        let known = self.count(&facts, &failure).await;
        let reason = failure.reason.code();
        if failure.reason.may_be_quarantined()
            && self
                .hub
                .settings
                .quarantine_poison_messages
                .is_some_and(|limit| known.failures >= limit.max(1))
            && self.quarantine(&facts, &failure, &known, message).await
        {
            return;
        }
        tracing::warn!(
            hub = %self.hub.name(),
            queue = facts.queue,
            instance = facts.instance_id,
            message = facts.message_id,
            dequeue_count = facts.dequeue_count,
            retry_in_seconds = delay.as_secs(),
            reason,
            error = failure.detail,
            hint = known.is_recorded.then(|| format!("taskhub dead-letter show {}", facts.message_id)),
            "a message cannot be processed and is put back"
        );
        self.hub.metrics.messages_put_back.get_or_create(&ReasonLabels { reason }).inc();
        let given_back = message.give_back(&*self.hub.account.queues, delay).await.unwrap_or_else(|e| {
            tracing::warn!(
                hub = %self.hub.name(), queue = facts.queue, message = facts.message_id, error = %e,
                "cannot put a message back; it reappears when its visibility timeout ends"
            );
            None
        });
        if !known.is_recorded {
            return;
        }
        let mut letter = self.letter(&facts, &failure, &known, DeadLetterState::Held);
        if let Some((receipt, visible_at)) = given_back {
            letter.pop_receipt = Some(receipt.token);
            letter.visible_at = Some(visible_at);
        }
        self.write_later(letter, known);
    }

    /// Counts a failure. The first time that this process sees a message which others have received, their
    /// count is in its record.
    async fn count(&self, facts: &Facts, failure: &Failure) -> Known {
        let now = self.hub.clock.now();
        let is_new = !self.known().contains_key(&facts.message_id);
        let stored = if is_new && facts.dequeue_count > 1 && failure.is_recorded(facts.dequeue_count) {
            self.store.read(&facts.message_id).await.ok().flatten()
        } else {
            None
        };
        let mut all = self.known();
        if all.len() >= MAX_REMEMBERED {
            all.clear();
        }
        let known = all.entry(facts.message_id.clone()).or_insert_with(|| Known {
            failures: stored.as_ref().map_or(0, |letter| letter.failures),
            first_failed_at: stored.as_ref().map_or(now, |letter| letter.first_failed_at),
            is_recorded: stored.is_some(),
            order: Arc::default(),
        });
        known.failures = known.failures.saturating_add(1);
        if !known.is_recorded && failure.is_recorded(facts.dequeue_count) {
            known.is_recorded = true;
            let labels = ReasonLabels { reason: failure.reason.code() };
            self.hub.metrics.dead_letters.get_or_create(&labels).inc();
        }
        known.clone()
    }

    /// The copy goes first: a crash in between leaves the message in its queue, to be copied again.
    async fn quarantine(
        &self,
        facts: &Facts,
        failure: &Failure,
        known: &Known,
        message: &dyn InHands,
    ) -> bool {
        let (hub, reason) = (self.hub.name(), failure.reason.code());
        let mut letter = self.letter(facts, failure, known, DeadLetterState::Quarantined);
        let _turn = known.order.lock().await;
        if let Err(e) = self.store.write(&letter).await {
            tracing::warn!(%hub, queue = facts.queue, message = facts.message_id, error = e.chain(), "cannot copy a message into quarantine; it stays in its queue");
            return false;
        }
        self.exists();
        match message.delete(&*self.hub.account.queues).await {
            Ok(true) => {
                self.known().remove(&facts.message_id);
                self.hub.metrics.quarantined_messages.get_or_create(&ReasonLabels { reason }).inc();
                tracing::warn!(
                    %hub,
                    queue = facts.queue,
                    instance = facts.instance_id,
                    message = facts.message_id,
                    failures = known.failures,
                    reason,
                    error = failure.detail,
                    hint = format!("taskhub dead-letter show {}", facts.message_id),
                    "a message failed again and again and is taken out of its queue"
                );
            }
            Ok(false) => {
                // Somebody else has it now, and decides about it.
                letter.state = DeadLetterState::Held;
                if let Err(e) = self.store.write(&letter).await {
                    tracing::debug!(%hub, message = facts.message_id, error = e.chain(), "cannot correct a dead letter");
                }
            }
            Err(e) => tracing::warn!(
                %hub, queue = facts.queue, message = facts.message_id, error = %e,
                "a message is copied into quarantine but cannot be deleted; it comes again"
            ),
        }
        true
    }

    /// Keeps a start that is about to be dropped; `false` when it cannot be kept, and should not be dropped.
    pub(crate) async fn keep_dropped(&self, facts: &Facts, failure: &Failure) -> bool {
        let known = self.count(facts, failure).await;
        let letter = self.letter(facts, failure, &known, DeadLetterState::Dropped);
        let _turn = known.order.lock().await;
        let written = self.store.write(&letter).await;
        if let Err(e) = &written {
            tracing::warn!(
                hub = %self.hub.name(), instance = facts.instance_id, message = facts.message_id,
                error = e.chain(), "cannot keep a start message that is to be dropped"
            );
        }
        self.known().remove(&facts.message_id);
        self.exists();
        written.is_ok()
    }

    fn letter(&self, facts: &Facts, failure: &Failure, known: &Known, state: DeadLetterState) -> DeadLetter {
        DeadLetter {
            state,
            reason: failure.reason.code().to_owned(),
            detail: failure.detail.clone(),
            queue: facts.queue.clone(),
            message_id: facts.message_id.clone(),
            inserted_at: facts.inserted_at,
            first_failed_at: known.first_failed_at,
            last_failed_at: self.hub.clock.now(),
            failures: known.failures,
            dequeue_count: facts.dequeue_count,
            visible_at: None,
            instance_id: facts.instance_id.clone(),
            event_type: facts.event_type.clone(),
            blob_name: facts.blob_name.clone(),
            worker_id: self.hub.settings.worker_id.to_string(),
            text: Some(facts.text.clone()),
            pop_receipt: None,
        }
    }

    fn write_later(self: &Arc<Self>, letter: DeadLetter, known: Known) {
        if self.waiting.fetch_add(1, Ordering::Relaxed) >= MAX_WAITING {
            self.waiting.fetch_sub(1, Ordering::Relaxed);
            return;
        }
        let recorder = self.clone();
        self.tasks.spawn(async move {
            let _turn = known.order.lock().await;
            let permit = recorder.writing.acquire().await;
            match recorder.store.write(&letter).await {
                Ok(()) => recorder.exists(),
                Err(e) => tracing::warn!(
                    hub = %recorder.hub.name(), message = letter.message_id, error = e.chain(),
                    "cannot write a dead letter; it is written at the next failure"
                ),
            }
            drop(permit);
            recorder.waiting.fetch_sub(1, Ordering::Relaxed);
        });
    }

    fn absent_until(&self) -> MutexGuard<'_, Option<Timestamp>> {
        self.absent_until.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn exists(&self) {
        *self.absent_until() = Some(Timestamp::MAX);
    }

    /// A message was processed after all: a record of it is removed. Costs nothing for messages that were
    /// received once and, in hubs without dead letters, next to nothing for others.
    pub(crate) fn succeeded(self: &Arc<Self>, message: &HeldMessage) {
        let known = self.known().remove(&message.message_id);
        if known.is_none() && message.dequeue_count < 2 {
            return;
        }
        let recorder = self.clone();
        let id = message.message_id.clone();
        self.tasks.spawn(async move {
            let order = known.as_ref().map(|k| k.order.clone()).unwrap_or_default();
            let _turn = order.lock().await;
            let is_recorded = known.is_some_and(|k| k.is_recorded);
            if !is_recorded && !recorder.may_have_records().await {
                return;
            }
            if let Err(e) = recorder.store.remove(&id).await {
                tracing::debug!(hub = %recorder.hub.name(), message = id, error = e.chain(), "cannot remove a dead letter");
            }
        });
    }

    /// Whether the hub has dead letters, of this or another worker.
    async fn may_have_records(&self) -> bool {
        let now = self.hub.clock.now();
        match *self.absent_until() {
            Some(Timestamp::MAX) => return true,
            Some(until) if now < until => return false,
            _ => {}
        }
        match self.store.container_exists().await {
            Ok(true) => {
                self.exists();
                true
            }
            _ => {
                *self.absent_until() = Some(now + ABSENCE_INTERVAL);
                false
            }
        }
    }
}
