use std::sync::Arc;
use std::time::Duration;

use taskhub_core::{EventKind, InstanceId, OrchestrationInstance, TaskMessage, Timestamp};
use taskhub_storage::{ErrorKind, PopReceipt, PutReceipt, QueueMessage, QueueStore, Result};
use tokio::sync::Mutex;

use crate::message::MessageData;
use crate::queue::backoff::abandon_delay;

/// A message this process has received (or put hidden for itself) and must delete or give back.
#[derive(Debug)]
pub(crate) struct HeldMessage {
    pub(crate) data: MessageData,
    pub(crate) queue: String,
    pub(crate) message_id: String,
    /// The text as stored, which every update of the visibility must send again.
    text: String,
    pub(crate) inserted_at: Timestamp,
    pub(crate) dequeue_count: u32,
    lock: Mutex<Lock>,
}

#[derive(Debug)]
struct Lock {
    receipt: PopReceipt,
    next_visible_at: Timestamp,
    /// Deleted or given back: nothing may touch it any more.
    done: bool,
}

impl HeldMessage {
    pub(crate) fn received(queue: &str, message: QueueMessage, data: MessageData) -> Self {
        Self {
            data,
            queue: queue.to_owned(),
            message_id: message.receipt.message_id.clone(),
            text: message.text,
            inserted_at: message.inserted_at,
            dequeue_count: message.dequeue_count,
            lock: Mutex::new(Lock {
                receipt: message.receipt,
                next_visible_at: message.next_visible_at,
                done: false,
            }),
        }
    }

    /// A message that this process has put hidden: it holds the receipt without having received it.
    pub(crate) fn put(queue: &str, put: PutReceipt, text: String, data: MessageData) -> Self {
        Self {
            data,
            queue: queue.to_owned(),
            message_id: put.receipt.message_id.clone(),
            text,
            inserted_at: put.inserted_at,
            dequeue_count: 1,
            lock: Mutex::new(Lock {
                receipt: put.receipt,
                next_visible_at: put.next_visible_at,
                done: false,
            }),
        }
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

    /// The same message was received once more: the newer reception counts.
    pub(crate) async fn adopt(&self, newer: &Self) {
        let (receipt, next_visible_at) = {
            let newer = newer.lock.lock().await;
            (newer.receipt.clone(), newer.next_visible_at)
        };
        let mut lock = self.lock.lock().await;
        lock.receipt = receipt;
        lock.next_visible_at = next_visible_at;
    }

    /// Until when the message stays hidden without renewal.
    pub(crate) async fn locked_until(&self) -> Timestamp {
        self.lock.lock().await.next_visible_at
    }

    /// Hides the message for `visibility` from now. Does nothing once it is deleted or given back.
    pub(crate) async fn renew(&self, queues: &dyn QueueStore, visibility: Duration) -> Result<Timestamp> {
        let mut lock = self.lock.lock().await;
        if !lock.done {
            let (receipt, at) =
                queues.update_message(&self.queue, &lock.receipt, &self.text, visibility).await?;
            lock.receipt = receipt;
            lock.next_visible_at = at;
        }
        Ok(lock.next_visible_at)
    }

    /// Deletes the message. A message that is gone counts as deleted; one that somebody else has received
    /// since is left to them.
    pub(crate) async fn delete(&self, queues: &dyn QueueStore) -> Result<()> {
        let mut lock = self.lock.lock().await;
        if lock.done {
            return Ok(());
        }
        match queues.delete_message(&self.queue, &lock.receipt).await {
            Err(e) if e.kind() == ErrorKind::NotFound => {}
            Err(e) if e.kind() == ErrorKind::PopReceiptMismatch => {
                tracing::debug!(
                    queue = self.queue,
                    message = self.message_id,
                    "a processed message has been received again and is left to its receiver"
                );
            }
            other => other?,
        }
        lock.done = true;
        Ok(())
    }

    /// Gives the message back, to be received again after the back-off of its dequeue count.
    pub(crate) async fn abandon(&self, queues: &dyn QueueStore) -> Result<()> {
        self.give_back(queues, abandon_delay(self.dequeue_count)).await
    }

    /// Gives the message back, to be received again after `delay`.
    pub(crate) async fn give_back(&self, queues: &dyn QueueStore, delay: Duration) -> Result<()> {
        let mut lock = self.lock.lock().await;
        if lock.done {
            return Ok(());
        }
        lock.done = true;
        match queues.update_message(&self.queue, &lock.receipt, &self.text, delay).await {
            Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::PopReceiptMismatch) => Ok(()),
            other => other.map(drop),
        }
    }
}

/// Sorts a received batch as DTFx does, by insertion time and then by the sender's sequence number; within
/// one second, a start goes before other messages of its instance.
///
/// Differs: DTFx leaves messages of one second and number in any order, and then discards an event that
/// comes before its own start.
pub(crate) fn sort_received(messages: &mut [Arc<HeldMessage>]) {
    messages.sort_by_key(|m| (m.inserted_at, !m.is_start(), m.data.sequence_number));
}
