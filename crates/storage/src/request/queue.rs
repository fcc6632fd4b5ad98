use std::time::Duration;

use async_trait::async_trait;
use taskhub_core::Timestamp;

use super::Layer;
use crate::operation as op;
use crate::{PopReceipt, PutReceipt, QueueMessage, QueueStore, Result};

#[async_trait]
impl QueueStore for Layer<dyn QueueStore> {
    async fn create_queue(&self, queue: &str) -> Result<bool> {
        self.requests.run(op::CREATE_QUEUE, queue, None, || self.inner.create_queue(queue)).await
    }

    async fn delete_queue(&self, queue: &str) -> Result<()> {
        self.requests.run(op::DELETE_QUEUE, queue, Some(()), || self.inner.delete_queue(queue)).await
    }

    async fn list_queues(&self, prefix: &str) -> Result<Vec<String>> {
        self.requests.run(op::LIST_QUEUES, prefix, None, || self.inner.list_queues(prefix)).await
    }

    async fn put_message(&self, queue: &str, text: &str, delay: Duration) -> Result<PutReceipt> {
        self.requests.run(op::PUT_MESSAGE, queue, None, || self.inner.put_message(queue, text, delay)).await
    }

    async fn get_messages(
        &self,
        queue: &str,
        count: u32,
        visibility_timeout: Duration,
    ) -> Result<Vec<QueueMessage>> {
        let attempt = || self.inner.get_messages(queue, count, visibility_timeout);
        // A reply that comes when the messages are about to be visible again is worth nothing.
        let limit = visibility_timeout / 2;
        let messages = self.requests.run_within(limit, op::GET_MESSAGES, queue, None, attempt).await?;
        self.requests.counts.add_receive(op::GET_MESSAGES, queue, messages.len());
        Ok(messages)
    }

    async fn peek_messages(&self, queue: &str, count: u32) -> Result<Vec<QueueMessage>> {
        self.requests.run(op::PEEK_MESSAGES, queue, None, || self.inner.peek_messages(queue, count)).await
    }

    async fn update_message(
        &self,
        queue: &str,
        receipt: &PopReceipt,
        text: &str,
        visibility_timeout: Duration,
    ) -> Result<(PopReceipt, Timestamp)> {
        let attempt = || self.inner.update_message(queue, receipt, text, visibility_timeout);
        self.requests.run(op::UPDATE_MESSAGE, queue, None, attempt).await
    }

    async fn delete_message(&self, queue: &str, receipt: &PopReceipt) -> Result<()> {
        let attempt = || self.inner.delete_message(queue, receipt);
        self.requests.run(op::DELETE_MESSAGE, queue, Some(()), attempt).await
    }

    async fn message_count(&self, queue: &str) -> Result<u64> {
        self.requests.run(op::GET_QUEUE_METADATA, queue, None, || self.inner.message_count(queue)).await
    }
}
