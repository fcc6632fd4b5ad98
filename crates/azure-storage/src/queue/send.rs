//! Sending: every message of a hub goes out here.

use std::sync::atomic::{AtomicI64, Ordering};

use futures::stream::{self, StreamExt, TryStreamExt};
use taskhub_core::{InstanceId, OrchestrationInstance, PartitionId, ServiceError, TaskMessage, Timestamp};
use taskhub_storage::{PopReceipt, PutReceipt};
use tokio::time::Instant;

use crate::hub::Hub;
use crate::large_messages::LargeMessages;
use crate::message::{self, MessageData, Packed};
use crate::partition::hash::partition_of;
use crate::queue::held::{HeldMessage, Hidden};
use crate::queue::work_item::WorkItemQueue;
use crate::sabotage::Planted;

/// Sends messages of one process.
#[derive(Debug)]
pub(crate) struct MessageSender {
    hub: Hub,
    partition_count: u32,
    /// First message is 1; restarts with the process. Source: Azure/durabletask, `MessageData`.
    sequence: AtomicI64,
}

/// Who sends, as the envelope tells it.
#[derive(Debug, Clone)]
pub(crate) struct Sender {
    /// The sending orchestration, or [`MessageData::client`].
    pub(crate) instance: OrchestrationInstance,
    /// Number of the episode in which the message was sent; clients have none.
    pub(crate) episode: Option<i32>,
}

/// A message that has been put.
#[derive(Debug)]
pub(crate) struct Sent {
    pub(crate) put: PutReceipt,
    pub(crate) text: String,
    pub(crate) data: MessageData,
}

impl MessageSender {
    pub(crate) fn new(hub: Hub, partition_count: u32) -> Self {
        Self { hub, partition_count, sequence: AtomicI64::new(0) }
    }

    /// Partition of the instance a message is for.
    pub(crate) fn partition_of(&self, message: &TaskMessage) -> PartitionId {
        self.partition_of_instance(&message.target.instance_id)
    }

    /// Partition of an instance.
    pub(crate) fn partition_of_instance(&self, instance: &InstanceId) -> PartitionId {
        partition_of(instance, self.partition_count)
    }

    /// Puts a message on its target's control queue, hidden until it is due.
    pub(crate) async fn send_control(
        &self,
        message: &TaskMessage,
        sender: &Sender,
    ) -> Result<Sent, ServiceError> {
        let queue = self.hub.names.control_queue(self.partition_of(message));
        let delay = message::visibility_delay(message, self.hub.clock.now());
        self.put(&queue, message, sender, delay).await.map(|(sent, _)| sent)
    }

    /// Puts an activity request on the work-item queue, or into the hands of a dispatcher of this process
    /// that waits for one.
    pub(crate) async fn send_activity(
        &self,
        message: &TaskMessage,
        sender: &Sender,
        work_items: &WorkItemQueue,
    ) -> Result<(), ServiceError> {
        let queue = self.hub.names.work_item_queue();
        if let Some(reserved) = work_items.reserve() {
            let visibility = self.hub.settings.work_item_queue_visibility_timeout;
            let (sent, asked_at) = self.put(&queue, message, sender, visibility).await?;
            let hidden = Hidden { asked_at, visibility };
            reserved.hand_over(HeldMessage::put(&queue, sent.put, sent.text, sent.data, hidden));
        } else {
            self.put(&queue, message, sender, std::time::Duration::ZERO).await?;
            work_items.bell.notify_one();
        }
        Ok(())
    }

    /// Puts several messages on control queues, some at a time.
    pub(crate) async fn send_all_control(
        &self,
        messages: &[&TaskMessage],
        sender: &Sender,
    ) -> Result<(), ServiceError> {
        let limit = self.hub.settings.max_storage_operation_concurrency;
        stream::iter(0..messages.len())
            .map(|at| async move { self.send_control(messages[at], sender).await.map(drop) })
            .buffer_unordered(limit)
            .try_collect()
            .await
    }

    /// What was put, and when that was asked for.
    async fn put(
        &self,
        queue: &str,
        message: &TaskMessage,
        sender: &Sender,
        delay: std::time::Duration,
    ) -> Result<(Sent, Instant), ServiceError> {
        let mut data = MessageData::new(
            self.hub.ids.guid(),
            message.clone(),
            self.sequence.fetch_add(1, Ordering::Relaxed) + 1,
            sender.episode,
            sender.instance.clone(),
        );
        let text = match message::pack(&data, self.hub.settings.queue_client_message_encoding) {
            Packed::Inline { text } => text,
            Packed::Large { text, blob_name, blob } => {
                LargeMessages::new(&self.hub).write(&blob_name, blob).await?;
                data.compressed_blob_name = Some(blob_name);
                text
            }
        };
        let asked_at = Instant::now();
        let put = self.hub.account.queues.put_message(queue, &text, delay).await;
        let forgotten = put.is_err() && self.hub.settings.planted(Planted::IgnoreFailedSend);
        let put = if forgotten {
            let receipt = PopReceipt { message_id: String::new(), token: String::new() };
            Ok(PutReceipt { receipt, inserted_at: Timestamp::MIN, next_visible_at: Timestamp::MIN })
        } else {
            put
        };
        let put = put.map_err(|e| {
            let what = format!(
                "cannot send a message. queue=`{queue}` instance=`{}` event=`{}`",
                message.target.instance_id,
                message.event.name()
            );
            self.hub.failed(what, e)
        })?;
        Ok((Sent { put, text, data }, asked_at))
    }
}

/// The envelope's sender for messages of a client.
pub(crate) fn client_sender() -> Sender {
    Sender { instance: MessageData::client(), episode: None }
}
