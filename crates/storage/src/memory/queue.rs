use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::Duration;

use async_trait::async_trait;
use taskhub_core::Timestamp;

use super::{MemoryStore, State, guid};
use crate::limits::{check_count, check_delay, check_dns_name, check_message};
use crate::{Error, PopReceipt, PutReceipt, QueueMessage, QueueStore, Result};

/// First group of the GUIDs of messages and pop receipts.
const MESSAGE_IDS: u16 = 0x1000;
const RECEIPTS: u16 = 0x2000;

#[derive(Debug)]
pub(super) struct Message {
    pub(super) id: String,
    /// Token of the last reception or update; empty when it was loaded and never received.
    token: String,
    pub(super) text: String,
    pub(super) inserted_at: Timestamp,
    pub(super) next_visible_at: Timestamp,
    pub(super) dequeue_count: u32,
}

/// A queue. Every message is either in `visible` or in `hidden`; those whose time has come move when
/// somebody looks.
#[derive(Debug, Default)]
pub(super) struct Queue {
    /// By order of insertion.
    pub(super) messages: BTreeMap<u64, Message>,
    by_id: HashMap<String, u64>,
    visible: BTreeSet<u64>,
    hidden: BTreeSet<(Timestamp, u64)>,
}

impl Queue {
    pub(super) fn insert(&mut self, sequence: u64, message: Message) {
        self.by_id.insert(message.id.clone(), sequence);
        self.hidden.insert((message.next_visible_at, sequence));
        self.messages.insert(sequence, message);
    }

    fn reveal(&mut self, now: Timestamp) {
        while let Some(&(at, sequence)) = self.hidden.first() {
            if at > now {
                break;
            }
            self.hidden.pop_first();
            self.visible.insert(sequence);
        }
    }

    /// The first visible messages in order of insertion.
    fn first_visible(&mut self, count: u32, now: Timestamp) -> Vec<u64> {
        self.reveal(now);
        self.visible.iter().take(count as usize).copied().collect()
    }

    fn hide(&mut self, sequence: u64, until: Timestamp) {
        let Some(message) = self.messages.get_mut(&sequence) else { return };
        self.visible.remove(&sequence);
        self.hidden.remove(&(message.next_visible_at, sequence));
        message.next_visible_at = until;
        self.hidden.insert((until, sequence));
    }

    /// The message that a receipt still gives a right to.
    fn find(&self, operation: &'static str, queue: &str, receipt: &PopReceipt) -> Result<u64> {
        let sequence = self.by_id.get(&receipt.message_id);
        let Some((sequence, message)) = sequence.and_then(|s| Some((s, self.messages.get(s)?))) else {
            return Err(Error::answered(operation, queue, 404, "MessageNotFound"));
        };
        if message.token.is_empty() || message.token != receipt.token {
            return Err(Error::answered(operation, queue, 400, "PopReceiptMismatch"));
        }
        Ok(*sequence)
    }

    fn remove(&mut self, sequence: u64) {
        if let Some(message) = self.messages.remove(&sequence) {
            self.by_id.remove(&message.id);
            self.visible.remove(&sequence);
            self.hidden.remove(&(message.next_visible_at, sequence));
        }
    }
}

fn find<'a>(
    queues: &'a mut BTreeMap<String, Queue>,
    operation: &'static str,
    queue: &str,
) -> Result<&'a mut Queue> {
    queues.get_mut(queue).ok_or_else(|| Error::answered(operation, queue, 404, "QueueNotFound"))
}

impl State {
    /// A new message that is in no queue yet, with its place in the order. It has no receipt.
    pub(super) fn new_message(&self, text: String, now: Timestamp) -> (u64, Message) {
        let sequence = self.next();
        let message = Message {
            id: guid(MESSAGE_IDS, sequence).to_string(),
            token: String::new(),
            text,
            inserted_at: now.truncated_to_second(),
            next_visible_at: now,
            dequeue_count: 0,
        };
        (sequence, message)
    }

    fn next_token(&self) -> String {
        guid(RECEIPTS, self.next()).to_string()
    }
}

#[async_trait]
impl QueueStore for MemoryStore {
    async fn create_queue(&self, queue: &str) -> Result<bool> {
        self.begin().await;
        check_dns_name("CreateQueue", queue)?;
        let mut queues = self.queue_state();
        let created = !queues.contains_key(queue);
        queues.entry(queue.to_owned()).or_default();
        Ok(created)
    }

    async fn delete_queue(&self, queue: &str) -> Result<()> {
        self.begin().await;
        match self.queue_state().remove(queue) {
            Some(_) => Ok(()),
            None => Err(Error::answered("DeleteQueue", queue, 404, "QueueNotFound")),
        }
    }

    async fn list_queues(&self, prefix: &str) -> Result<Vec<String>> {
        self.begin().await;
        Ok(self.queue_state().keys().filter(|name| name.starts_with(prefix)).cloned().collect())
    }

    async fn put_message(&self, queue: &str, text: &str, delay: Duration) -> Result<PutReceipt> {
        self.begin().await;
        let delay = check_delay("PutMessage", queue, delay)?;
        check_message("PutMessage", queue, text)?;
        let now = self.now();
        let mut queues = self.queue_state();
        let found = find(&mut queues, "PutMessage", queue)?;
        let (sequence, mut message) = self.state.new_message(text.to_owned(), now);
        message.token = self.state.next_token();
        message.next_visible_at = now + delay;
        let receipt = PutReceipt {
            receipt: PopReceipt { message_id: message.id.clone(), token: message.token.clone() },
            inserted_at: message.inserted_at,
            next_visible_at: message.next_visible_at,
        };
        found.insert(sequence, message);
        Ok(receipt)
    }

    async fn get_messages(
        &self,
        queue: &str,
        count: u32,
        visibility_timeout: Duration,
    ) -> Result<Vec<QueueMessage>> {
        self.begin().await;
        check_count("GetMessages", queue, count)?;
        let timeout = check_delay("GetMessages", queue, visibility_timeout)?;
        if timeout.is_zero() {
            return Err(Error::answered("GetMessages", queue, 400, "OutOfRangeQueryParameterValue"));
        }
        let now = self.now();
        let mut queues = self.queue_state();
        let queue = find(&mut queues, "GetMessages", queue)?;
        let chosen = queue.first_visible(count, now);
        let mut received = Vec::with_capacity(chosen.len());
        for sequence in chosen {
            queue.hide(sequence, now + timeout);
            let Some(message) = queue.messages.get_mut(&sequence) else { continue };
            message.token = self.state.next_token();
            message.dequeue_count = message.dequeue_count.saturating_add(1);
            received.push(QueueMessage {
                receipt: PopReceipt { message_id: message.id.clone(), token: message.token.clone() },
                text: message.text.clone(),
                inserted_at: message.inserted_at,
                next_visible_at: message.next_visible_at,
                dequeue_count: message.dequeue_count,
            });
        }
        Ok(received)
    }

    async fn peek_messages(&self, queue: &str, count: u32) -> Result<Vec<QueueMessage>> {
        self.begin().await;
        check_count("PeekMessages", queue, count)?;
        let now = self.now();
        let mut queues = self.queue_state();
        let queue = find(&mut queues, "PeekMessages", queue)?;
        let chosen = queue.first_visible(count, now);
        let peeked = chosen.iter().filter_map(|sequence| queue.messages.get(sequence));
        Ok(peeked
            .map(|message| QueueMessage {
                receipt: PopReceipt { message_id: message.id.clone(), token: String::new() },
                text: message.text.clone(),
                inserted_at: message.inserted_at,
                next_visible_at: Timestamp::MIN,
                dequeue_count: message.dequeue_count,
            })
            .collect())
    }

    async fn update_message(
        &self,
        queue: &str,
        receipt: &PopReceipt,
        text: &str,
        visibility_timeout: Duration,
    ) -> Result<(PopReceipt, Timestamp)> {
        self.begin().await;
        let timeout = check_delay("UpdateMessage", queue, visibility_timeout)?;
        check_message("UpdateMessage", queue, text)?;
        let until = self.now() + timeout;
        let mut queues = self.queue_state();
        let found = find(&mut queues, "UpdateMessage", queue)?;
        let sequence = found.find("UpdateMessage", queue, receipt)?;
        let token = self.state.next_token();
        found.hide(sequence, until);
        if let Some(message) = found.messages.get_mut(&sequence) {
            message.token.clone_from(&token);
            text.clone_into(&mut message.text);
        }
        Ok((PopReceipt { message_id: receipt.message_id.clone(), token }, until))
    }

    async fn delete_message(&self, queue: &str, receipt: &PopReceipt) -> Result<()> {
        self.begin().await;
        let mut queues = self.queue_state();
        let messages = find(&mut queues, "DeleteMessage", queue)?;
        let sequence = messages.find("DeleteMessage", queue, receipt)?;
        messages.remove(sequence);
        Ok(())
    }

    async fn message_count(&self, queue: &str) -> Result<u64> {
        self.begin().await;
        Ok(find(&mut self.queue_state(), "GetQueueMetadata", queue)?.messages.len() as u64)
    }
}
