//! Receiving and decoding: every message of a hub comes in here.

use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;
use taskhub_core::{ErrorKind, ServiceError};
use taskhub_storage::QueueMessage;
use tokio::sync::Semaphore;
use tokio::time::Instant;
use tokio_util::task::TaskTracker;

use crate::dead_letter::failure::{Facts, Failure};
use crate::dead_letter::recorder::{InHands, Recorder, Unread};
use crate::hub::Hub;
use crate::large_messages::LargeMessages;
use crate::message::{self, Decoded, MessageData};
use crate::metrics::ReasonLabels;
use crate::queue::backoff::abandon_delay;
use crate::queue::held::{HeldMessage, Hidden};

/// Messages that cannot be read are put back in the background, at most so many at a time.
const PUT_BACK_CONCURRENCY: usize = 64;

/// Receives messages of a hub and reads them.
#[derive(Debug, Clone)]
pub(crate) struct Receiver {
    hub: Hub,
    recorder: Arc<Recorder>,
    tasks: TaskTracker,
    putting_back: Arc<Semaphore>,
}

/// What a receive has brought.
#[derive(Debug, Default)]
pub(crate) struct Received {
    /// Messages that can be read.
    pub(crate) messages: Vec<HeldMessage>,
    /// How many cannot, and are being put back. There may be more messages behind them.
    pub(crate) unreadable: usize,
}

impl Receiver {
    pub(crate) fn new(hub: Hub, recorder: Arc<Recorder>, tasks: TaskTracker) -> Self {
        Self { hub, recorder, tasks, putting_back: Arc::new(Semaphore::new(PUT_BACK_CONCURRENCY)) }
    }

    /// Receives up to `count` messages. Those that cannot be read are put back with a growing delay, never
    /// dropped unless the settings say so, and do not hinder the others: they are put back in the background.
    /// So are those whose blobs are not there after `read_within`: nobody renews a message before it is read.
    pub(crate) async fn receive(
        &self,
        queue: &str,
        count: u32,
        visibility: Duration,
        read_within: Option<Duration>,
    ) -> Result<Received, ServiceError> {
        let hidden = Hidden { asked_at: Instant::now(), visibility };
        let received = self.hub.account.queues.get_messages(queue, count, visibility).await;
        let received =
            received.map_err(|e| self.hub.failed(format!("cannot receive. queue=`{queue}`"), e))?;
        let read = join_all(received.into_iter().map(|message| async move {
            let read = read_message(&self.hub, &message.text);
            let read = match read_within {
                None => read.await,
                Some(limit) => tokio::time::timeout_at(hidden.asked_at + limit, read)
                    .await
                    .unwrap_or_else(|_| Err(self.took_too_long(queue))),
            };
            (message, read)
        }));
        let mut result = Received::default();
        for (message, read) in read.await {
            match read {
                Ok(data) => result.messages.push(HeldMessage::received(queue, message, data, hidden)),
                Err(error) => {
                    result.unreadable += 1;
                    self.put_back_later(queue, message, error).await;
                }
            }
        }
        Ok(result)
    }

    /// Deletes an activity request whose reply is sent; if that fails, it is hidden for a while. False if it is
    /// not ours any more.
    pub(crate) async fn delete_answered(&self, request: &HeldMessage) -> taskhub_storage::Result<bool> {
        let deleted = request.delete(&*self.hub.account.queues).await;
        self.settle_deletion(request, &deleted).await;
        deleted
    }

    /// What follows from the attempt to delete a processed message: one that is left is hidden for a while.
    pub(crate) async fn settle_deletion(
        &self,
        message: &HeldMessage,
        deleted: &taskhub_storage::Result<bool>,
    ) {
        match deleted {
            Ok(true) => self.recorder.succeeded(message),
            Ok(false) => {}
            Err(_) => {
                if let Err(e) = message.put_off(&*self.hub.account.queues).await {
                    tracing::debug!(hub = %self.hub.name(), error = %e, "cannot put off a processed message");
                }
            }
        }
    }

    fn took_too_long(&self, queue: &str) -> ServiceError {
        let what =
            format!("reading a large message took too long. hub=`{}` queue=`{queue}`", self.hub.name());
        ServiceError::new(ErrorKind::Unavailable, what)
    }

    async fn put_back_later(&self, queue: &str, message: QueueMessage, error: ServiceError) {
        let permit = self.putting_back.clone().acquire_owned().await;
        let (receiver, queue) = (self.clone(), queue.to_owned());
        self.tasks.spawn(async move {
            receiver.put_back_unreadable(&queue, message, &error).await;
            drop(permit);
        });
    }

    async fn put_back_unreadable(&self, queue: &str, message: QueueMessage, error: &ServiceError) {
        let hub = &self.hub;
        let delay = abandon_delay(message.dequeue_count);
        let unread = Unread { queue, receipt: &message.receipt, text: &message.text };
        if let Some(failure) = Failure::of_message(error) {
            if let Some(event_type) = Failure::unknown_event_type(error) {
                hub.metrics.unknown_event_type(event_type);
            }
            let facts = Facts::of_received(queue, &message);
            return self.recorder.settle(facts, failure, &unread, delay).await;
        }
        tracing::warn!(
            hub = %hub.name(), queue, message = message.receipt.message_id, error = error.chain(),
            "a large message cannot be downloaded and is put back"
        );
        let labels = ReasonLabels { reason: "storage" };
        hub.metrics.messages_put_back.get_or_create(&labels).inc();
        if let Err(e) = unread.give_back(&*hub.account.queues, delay).await {
            tracing::warn!(hub = %hub.name(), queue, error = %e, "cannot put back a message");
        }
    }
}

/// Reads the text of a queue message, and the blob it may refer to.
///
/// # Errors
/// `Data`: it cannot be read. Otherwise of storage, which says nothing about the message.
pub(crate) async fn read_message(hub: &Hub, text: &str) -> Result<MessageData, ServiceError> {
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
