use std::fmt::Debug;
use std::time::Duration;

use async_trait::async_trait;
use taskhub_core::Timestamp;

use crate::Result;

/// Names one reception of one message; the right to update or delete it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct PopReceipt {
    /// Id of the message, the same for every reception.
    pub message_id: String,
    /// Token of this reception; changes with every update.
    pub token: String,
}

/// Answer to a put: the message can be updated or deleted at once, without being received.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PutReceipt {
    /// The right to update or delete the new message.
    pub receipt: PopReceipt,
    /// When the service stored it (whole seconds).
    pub inserted_at: Timestamp,
    /// When it becomes visible.
    pub next_visible_at: Timestamp,
}

/// A received or peeked message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QueueMessage {
    /// The right to update or delete it; the token is empty for a peeked message.
    pub receipt: PopReceipt,
    /// The text as stored.
    pub text: String,
    /// When the service stored it (whole seconds).
    pub inserted_at: Timestamp,
    /// When it becomes visible again; `MIN` for a peeked message.
    pub next_visible_at: Timestamp,
    /// How often it has been received, this time included.
    pub dequeue_count: u32,
}

/// A queue service. Delays are whole seconds: a fraction is rounded **up**, so that nothing shows early.
#[async_trait]
pub trait QueueStore: Send + Sync + Debug {
    /// Creates a queue; `false` when it existed.
    async fn create_queue(&self, queue: &str) -> Result<bool>;

    /// Deletes a queue with its messages.
    async fn delete_queue(&self, queue: &str) -> Result<()>;

    /// Names of all queues that begin with `prefix`, in order.
    async fn list_queues(&self, prefix: &str) -> Result<Vec<String>>;

    /// Adds a message that never expires and becomes visible after `delay` (at most 7 days). At least once:
    /// when a reply is lost and the request repeated, there may be two. White space at either end of the text
    /// may be lost.
    async fn put_message(&self, queue: &str, text: &str, delay: Duration) -> Result<PutReceipt>;

    /// Receives up to `count` (1 to 32) visible messages and hides them for `visibility_timeout`.
    async fn get_messages(
        &self,
        queue: &str,
        count: u32,
        visibility_timeout: Duration,
    ) -> Result<Vec<QueueMessage>>;

    /// Shows up to `count` (1 to 32) visible messages without receiving them.
    async fn peek_messages(&self, queue: &str, count: u32) -> Result<Vec<QueueMessage>>;

    /// Replaces the text and hides the message for `visibility_timeout` from now (zero: visible at once).
    /// The old receipt is void; the new one is returned with the time the message becomes visible.
    async fn update_message(
        &self,
        queue: &str,
        receipt: &PopReceipt,
        text: &str,
        visibility_timeout: Duration,
    ) -> Result<(PopReceipt, Timestamp)>;

    /// Deletes a message.
    async fn delete_message(&self, queue: &str, receipt: &PopReceipt) -> Result<()>;

    /// Approximate number of messages, hidden ones included.
    async fn message_count(&self, queue: &str) -> Result<u64>;
}
