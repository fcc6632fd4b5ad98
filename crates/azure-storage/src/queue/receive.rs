//! Receiving and decoding: every message of a hub comes in here.

use std::time::Duration;

use taskhub_core::ServiceError;
use taskhub_storage::{ErrorKind, QueueMessage};
use tokio::time::Instant;

use crate::hub::Hub;
use crate::large_messages::LargeMessages;
use crate::message::{self, DecodeError, Decoded, MessageData};
use crate::queue::backoff::abandon_delay;
use crate::queue::held::{HeldMessage, Hidden};

/// Receives messages of a hub and reads them.
#[derive(Debug, Clone)]
pub(crate) struct Receiver {
    hub: Hub,
}

impl Receiver {
    pub(crate) fn new(hub: Hub) -> Self {
        Self { hub }
    }

    /// Receives up to `count` messages. Those that cannot be read are put back with a growing delay, never
    /// dropped, and do not hinder the others.
    pub(crate) async fn receive(
        &self,
        queue: &str,
        count: u32,
        visibility: Duration,
    ) -> Result<Vec<HeldMessage>, ServiceError> {
        let hidden = Hidden { asked_at: Instant::now(), visibility };
        let received = self.hub.account.queues.get_messages(queue, count, visibility).await;
        let received =
            received.map_err(|e| self.hub.failed(format!("cannot receive. queue=`{queue}`"), e))?;
        let mut messages = Vec::with_capacity(received.len());
        for message in received {
            match self.read(&message.text).await {
                Ok(data) => messages.push(HeldMessage::received(queue, message, data, hidden)),
                Err(error) => self.put_back_unreadable(queue, message, &error).await,
            }
        }
        Ok(messages)
    }

    async fn read(&self, text: &str) -> Result<MessageData, ServiceError> {
        let hub = &self.hub;
        match message::decode(text).map_err(|e| hub.unreadable("a queue message cannot be read", e))? {
            Decoded::Message(data) => Ok(*data),
            Decoded::Wrapper { blob_name } => {
                let json = LargeMessages::new(hub).read(&blob_name).await?;
                match message::decode(&json) {
                    Ok(Decoded::Message(data)) => {
                        Ok(MessageData { compressed_blob_name: Some(blob_name), ..*data })
                    }
                    Ok(Decoded::Wrapper { .. }) => Err(hub.unreadable(
                        format!("a large message refers to another one. blob=`{blob_name}`"),
                        "an envelope with a task message expected",
                    )),
                    Err(e) => {
                        Err(hub.unreadable(format!("a large message cannot be read. blob=`{blob_name}`"), e))
                    }
                }
            }
        }
    }

    async fn put_back_unreadable(&self, queue: &str, message: QueueMessage, error: &ServiceError) {
        let delay = abandon_delay(message.dequeue_count);
        let cause = std::error::Error::source(error).and_then(|e| e.downcast_ref());
        if let Some(DecodeError::UnknownEventType { event_type }) = cause {
            self.hub.metrics.unknown_event_type(event_type);
        }
        tracing::error!(
            hub = %self.hub.name(),
            queue,
            message = message.receipt.message_id,
            dequeue_count = message.dequeue_count,
            retry_in_seconds = delay.as_secs(),
            error = error.chain(),
            "a queue message cannot be read and is put back"
        );
        let queues = &self.hub.account.queues;
        match queues.update_message(queue, &message.receipt, &message.text, delay).await {
            Err(e) if !matches!(e.kind(), ErrorKind::NotFound | ErrorKind::PopReceiptMismatch) => {
                tracing::warn!(hub = %self.hub.name(), queue, error = %e, "cannot put back an unreadable message");
            }
            _ => {}
        }
    }
}
