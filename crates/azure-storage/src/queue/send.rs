//! Sending: every message of a hub goes out here.

use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use taskhub_core::{InstanceId, OrchestrationInstance, PartitionId, ServiceError, TaskMessage, Timestamp};
use taskhub_storage::{PopReceipt, PutReceipt};
use tokio::time::Instant;

use crate::hub::Hub;
use crate::large_messages::LargeMessages;
use crate::message::{self, MessageData, Packed};
use crate::partition::hash::partition_of;
use crate::queue::held::{HeldMessage, Hidden};
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
        self.send_control_after(message, sender, Duration::ZERO).await
    }

    /// The same, hidden for this long at least.
    pub(crate) async fn send_control_after(
        &self,
        message: &TaskMessage,
        sender: &Sender,
        delay: Duration,
    ) -> Result<Sent, ServiceError> {
        let queue = self.hub.names.control_queue(self.partition_of(message));
        let delay = message::visibility_delay(message, self.hub.clock.now()).max(delay);
        self.put(&queue, message, sender, delay).await.map(|(sent, _)| sent)
    }

    /// Puts a message on its target's control queue, hidden for `delay`, in the hands of this process.
    pub(crate) async fn put_control_held(
        &self,
        message: &TaskMessage,
        sender: &Sender,
        delay: Duration,
    ) -> Result<HeldMessage, ServiceError> {
        let queue = self.hub.names.control_queue(self.partition_of(message));
        let visibility = self.hub.settings.control_queue_visibility_timeout;
        self.put_held(&queue, message, sender, delay, visibility).await
    }

    /// Puts an activity request on the work-item queue.
    pub(crate) async fn send_activity(
        &self,
        message: &TaskMessage,
        sender: &Sender,
    ) -> Result<Sent, ServiceError> {
        let queue = self.hub.names.work_item_queue();
        self.put(&queue, message, sender, Duration::ZERO).await.map(|(sent, _)| sent)
    }

    /// Puts an activity request on the work-item queue, hidden, in the hands of this process.
    pub(crate) async fn put_activity_held(
        &self,
        message: &TaskMessage,
        sender: &Sender,
    ) -> Result<HeldMessage, ServiceError> {
        let queue = self.hub.names.work_item_queue();
        let visibility = self.hub.settings.work_item_queue_visibility_timeout;
        self.put_held(&queue, message, sender, visibility, visibility).await
    }

    async fn put_held(
        &self,
        queue: &str,
        message: &TaskMessage,
        sender: &Sender,
        delay: Duration,
        visibility: Duration,
    ) -> Result<HeldMessage, ServiceError> {
        let (sent, asked_at) = self.put(queue, message, sender, delay).await?;
        let hidden = Hidden { asked_at, visibility: delay };
        Ok(HeldMessage::put(queue, sent.put, sent.text, sent.data, hidden, visibility))
    }

    /// The envelope of a message.
    pub(crate) fn envelope(&self, message: TaskMessage, sender: &Sender) -> MessageData {
        MessageData::new(
            self.hub.ids.guid(),
            message,
            self.sequence.fetch_add(1, Ordering::Relaxed) + 1,
            sender.episode,
            sender.instance.clone(),
        )
    }

    /// What was put, and when that was asked for.
    async fn put(
        &self,
        queue: &str,
        message: &TaskMessage,
        sender: &Sender,
        delay: Duration,
    ) -> Result<(Sent, Instant), ServiceError> {
        let mut data = self.envelope(message.clone(), sender);
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
