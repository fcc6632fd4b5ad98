use std::time::Duration;

use async_trait::async_trait;
use azure_storage_queues::prelude::{PopReceipt as AzureReceipt, VisibilityTimeout};
use azure_storage_queues::{QueueClient, QueueServiceClient};
use futures::StreamExt;
use taskhub_core::Timestamp;
use time::OffsetDateTime;

use super::failure::failure;
use super::policy::{Answer, NeverExpires};
use crate::limits::{check_count, check_delay, check_dns_name, check_message};
use crate::{PopReceipt, PutReceipt, QueueMessage, QueueStore, Result};

#[derive(Debug)]
pub(super) struct Queues(pub(super) QueueServiceClient);

impl Queues {
    fn queue(&self, queue: &str) -> QueueClient {
        self.0.queue_client(queue)
    }
}

pub(super) fn timestamp(at: OffsetDateTime) -> Timestamp {
    u64::try_from(at.unix_timestamp())
        .map(|seconds| Timestamp::from_unix(Duration::new(seconds, at.nanosecond())))
        .unwrap_or(Timestamp::MIN)
}

#[async_trait]
impl QueueStore for Queues {
    async fn create_queue(&self, queue: &str) -> Result<bool> {
        check_dns_name("CreateQueue", queue)?;
        let answer = Answer::default();
        let created = self.queue(queue).create().context(answer.context()).await;
        created.map_err(|error| failure("CreateQueue", queue, &error, &answer))?;
        // 201 for a new queue, 204 for one that was there with the same metadata.
        let status = answer.seen().status;
        Ok(status == 201)
    }

    async fn delete_queue(&self, queue: &str) -> Result<()> {
        let answer = Answer::default();
        let deleted = self.queue(queue).delete().context(answer.context()).await;
        deleted.map_err(|error| failure("DeleteQueue", queue, &error, &answer))?;
        Ok(())
    }

    async fn list_queues(&self, prefix: &str) -> Result<Vec<String>> {
        let answer = Answer::default();
        let mut list = self.0.list_queues().context(answer.context());
        if !prefix.is_empty() {
            list = list.prefix(prefix.to_owned());
        }
        let mut pages = list.into_stream();
        let mut names = Vec::new();
        while let Some(page) = pages.next().await {
            let page = page.map_err(|error| failure("ListQueues", prefix, &error, &answer))?;
            names.extend(page.queues.into_iter().map(|queue| queue.name));
        }
        Ok(names)
    }

    async fn put_message(&self, queue: &str, text: &str, delay: Duration) -> Result<PutReceipt> {
        let delay = check_delay("PutMessage", queue, delay)?;
        check_message("PutMessage", queue, text)?;
        let answer = Answer::default();
        let mut context = answer.context();
        context.insert(NeverExpires);
        let mut put = self.queue(queue).put_message(text).context(context);
        if !delay.is_zero() {
            put = put.visibility_timeout(VisibilityTimeout::new(delay));
        }
        let put = put.await.map_err(|error| failure("PutMessage", queue, &error, &answer))?.queue_message;
        Ok(PutReceipt {
            receipt: PopReceipt { message_id: put.message_id, token: put.pop_receipt },
            inserted_at: timestamp(put.insertion_time),
            next_visible_at: timestamp(put.time_next_visible),
        })
    }

    async fn get_messages(
        &self,
        queue: &str,
        count: u32,
        visibility_timeout: Duration,
    ) -> Result<Vec<QueueMessage>> {
        check_count("GetMessages", queue, count)?;
        let timeout = check_delay("GetMessages", queue, visibility_timeout)?;
        let answer = Answer::default();
        let received = self
            .queue(queue)
            .get_messages()
            .number_of_messages(u8::try_from(count).unwrap_or(u8::MAX))
            .visibility_timeout(VisibilityTimeout::new(timeout))
            .context(answer.context())
            .await
            .map_err(|error| failure("GetMessages", queue, &error, &answer))?;
        let messages = received.messages.into_iter();
        Ok(messages
            .map(|message| QueueMessage {
                receipt: PopReceipt { message_id: message.message_id, token: message.pop_receipt },
                text: message.message_text,
                inserted_at: timestamp(message.insertion_time),
                next_visible_at: timestamp(message.time_next_visible),
                dequeue_count: u32::try_from(message.dequeue_count).unwrap_or(u32::MAX),
            })
            .collect())
    }

    async fn peek_messages(&self, queue: &str, count: u32) -> Result<Vec<QueueMessage>> {
        check_count("PeekMessages", queue, count)?;
        let answer = Answer::default();
        let peeked = self
            .queue(queue)
            .peek_messages()
            .number_of_messages(u8::try_from(count).unwrap_or(u8::MAX))
            .context(answer.context())
            .await
            .map_err(|error| failure("PeekMessages", queue, &error, &answer))?;
        let messages = peeked.messages.into_iter();
        Ok(messages
            .map(|message| QueueMessage {
                receipt: PopReceipt { message_id: message.message_id, token: String::new() },
                text: message.message_text,
                inserted_at: timestamp(message.insertion_time),
                next_visible_at: Timestamp::MIN,
                dequeue_count: u32::try_from(message.dequeue_count).unwrap_or(u32::MAX),
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
        let timeout = check_delay("UpdateMessage", queue, visibility_timeout)?;
        check_message("UpdateMessage", queue, text)?;
        let answer = Answer::default();
        let updated = self
            .queue(queue)
            .pop_receipt_client(AzureReceipt::new(&receipt.message_id, &receipt.token))
            .update(text, VisibilityTimeout::new(timeout))
            .context(answer.context())
            .await
            .map_err(|error| failure("UpdateMessage", queue, &error, &answer))?;
        let renewed = PopReceipt { message_id: receipt.message_id.clone(), token: updated.pop_receipt };
        Ok((renewed, timestamp(updated.time_next_visible)))
    }

    async fn delete_message(&self, queue: &str, receipt: &PopReceipt) -> Result<()> {
        let answer = Answer::default();
        let client =
            self.queue(queue).pop_receipt_client(AzureReceipt::new(&receipt.message_id, &receipt.token));
        let deleted = client.delete().context(answer.context()).await;
        deleted.map_err(|error| failure("DeleteMessage", queue, &error, &answer))?;
        Ok(())
    }

    async fn message_count(&self, queue: &str) -> Result<u64> {
        let answer = Answer::default();
        let metadata = self.queue(queue).get_metadata().context(answer.context()).await;
        let metadata = metadata.map_err(|error| failure("GetQueueMetadata", queue, &error, &answer))?;
        Ok(metadata.approximate_messages_count as u64)
    }
}
