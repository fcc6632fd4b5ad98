use std::time::Duration;

use async_trait::async_trait;
use taskhub_core::Timestamp;
use taskhub_storage::{PopReceipt, PutReceipt, QueueMessage, QueueStore, Result};

use super::Faulty;

#[async_trait]
impl QueueStore for Faulty<dyn QueueStore> {
    async fn create_queue(&self, queue: &str) -> Result<bool> {
        self.run("CreateQueue", queue, self.inner.create_queue(queue)).await
    }

    async fn delete_queue(&self, queue: &str) -> Result<()> {
        self.run("DeleteQueue", queue, self.inner.delete_queue(queue)).await
    }

    async fn list_queues(&self, prefix: &str) -> Result<Vec<String>> {
        self.run("ListQueues", prefix, self.inner.list_queues(prefix)).await
    }

    async fn put_message(&self, queue: &str, text: &str, delay: Duration) -> Result<PutReceipt> {
        self.run("PutMessage", queue, self.inner.put_message(queue, text, delay)).await
    }

    async fn get_messages(
        &self,
        queue: &str,
        count: u32,
        visibility_timeout: Duration,
    ) -> Result<Vec<QueueMessage>> {
        self.run("GetMessages", queue, self.inner.get_messages(queue, count, visibility_timeout)).await
    }

    async fn peek_messages(&self, queue: &str, count: u32) -> Result<Vec<QueueMessage>> {
        self.run("PeekMessages", queue, self.inner.peek_messages(queue, count)).await
    }

    async fn update_message(
        &self,
        queue: &str,
        receipt: &PopReceipt,
        text: &str,
        visibility_timeout: Duration,
    ) -> Result<(PopReceipt, Timestamp)> {
        let request = self.inner.update_message(queue, receipt, text, visibility_timeout);
        self.run("UpdateMessage", queue, request).await
    }

    async fn delete_message(&self, queue: &str, receipt: &PopReceipt) -> Result<()> {
        self.run("DeleteMessage", queue, self.inner.delete_message(queue, receipt)).await
    }

    async fn message_count(&self, queue: &str) -> Result<u64> {
        self.run("GetQueueMetadata", queue, self.inner.message_count(queue)).await
    }
}
