//! A whole task hub as a value: read from a captured file, taken from a storage account, loaded into one,
//! compared with another.

mod parse;
mod take;

use std::time::Duration;

use bytes::Bytes;
use taskhub_core::Timestamp;
use taskhub_storage::{Entity, LeaseState};

pub(crate) use parse::read_text;
pub use parse::{parse, read};
pub use take::{take, take_visible};

/// Everything that a task hub consists of.
#[derive(Debug, Clone, PartialEq)]
pub struct HubDump {
    /// Name of the hub as its tables spell it.
    pub hub: String,
    /// When it was taken; hidden messages are relative to it. Unknown in dumps of visible messages only.
    pub captured_at: Option<Timestamp>,
    /// Base address of the blob service, without a trailing slash; texts may hold URLs below it.
    pub blob_endpoint: String,
    /// Tables by name.
    pub tables: Vec<TableDump>,
    /// Queues by name.
    pub queues: Vec<QueueDump>,
    /// Containers by name.
    pub containers: Vec<ContainerDump>,
}

impl HubDump {
    /// When it was taken: what it says, or a second after its last message or row was written.
    pub fn taken_at(&self) -> Timestamp {
        let rows = self.tables.iter().flat_map(|table| &table.rows).filter_map(|row| row.timestamp);
        let written = self.messages().map(|message| message.inserted_at).chain(rows).max();
        self.captured_at.unwrap_or_else(|| {
            written.unwrap_or(Timestamp::MIN).truncated_to_second() + Duration::from_secs(1)
        })
    }

    /// The same hub with all leases free, as it is after a load: leases cannot be loaded.
    #[must_use]
    pub fn with_free_leases(mut self) -> Self {
        for blob in self.containers.iter_mut().flat_map(|container| &mut container.blobs) {
            blob.lease = LeaseState::Free;
        }
        self
    }

    /// The table whose name ends in `suffix` (`History`).
    pub fn table(&self, suffix: &str) -> Option<&TableDump> {
        self.tables.iter().find(|table| table.name.ends_with(suffix))
    }

    /// The queue whose name ends in `suffix` (`-workitems`).
    pub fn queue(&self, suffix: &str) -> Option<&QueueDump> {
        self.queues.iter().find(|queue| queue.name.ends_with(suffix))
    }

    /// The container whose name ends in `suffix` (`-leases`).
    pub fn container(&self, suffix: &str) -> Option<&ContainerDump> {
        self.containers.iter().find(|container| container.name.ends_with(suffix))
    }

    /// Messages of all queues.
    pub fn messages(&self) -> impl Iterator<Item = &MessageDump> {
        self.queues.iter().flat_map(|queue| &queue.messages)
    }
}

/// One table.
#[derive(Debug, Clone, PartialEq)]
pub struct TableDump {
    /// Full name.
    pub name: String,
    /// Rows in key order.
    pub rows: Vec<Entity>,
}

/// One queue.
#[derive(Debug, Clone, PartialEq)]
pub struct QueueDump {
    /// Full name.
    pub name: String,
    /// Messages in the order of their insertion.
    pub messages: Vec<MessageDump>,
    /// How many messages exist besides: the service shows only visible ones.
    pub unseen: u64,
}

/// Whether a message can be received.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MessageState {
    /// Now.
    Visible,
    /// Not yet due, never received: a timer or a start in the future.
    Scheduled,
    /// Somebody has received it and has not deleted it.
    Dequeued,
}

/// One queue message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MessageDump {
    /// The text as stored.
    pub text: String,
    /// When the service stored it (whole seconds).
    pub inserted_at: Timestamp,
    /// For how long it stays hidden after the dump; zero when visible.
    pub hidden_for: Duration,
    /// How often it has been received.
    pub dequeue_count: u32,
    /// Whether it can be received.
    pub state: MessageState,
}

impl MessageDump {
    /// The JSON text, also where the queue holds it as base64 (provider 1.x).
    pub fn json_text(&self) -> String {
        decode_base64_json(&self.text).unwrap_or_else(|| self.text.clone())
    }
}

/// One blob container.
#[derive(Debug, Clone, PartialEq)]
pub struct ContainerDump {
    /// Full name.
    pub name: String,
    /// Blobs in name order.
    pub blobs: Vec<BlobDump>,
}

/// One blob.
#[derive(Debug, Clone, PartialEq)]
pub struct BlobDump {
    /// Name within the container.
    pub name: String,
    /// Content as stored.
    pub content: Bytes,
    /// Whether somebody holds a lease.
    pub lease: LeaseState,
}

impl BlobDump {
    /// Whether the content is gzip.
    pub fn is_gzip(&self) -> bool {
        is_gzip(&self.content)
    }

    /// The content as text, unpacked where it is gzip; `None` when it is not text.
    pub fn text(&self) -> Option<String> {
        let plain = if self.is_gzip() { gunzip(&self.content)? } else { self.content.to_vec() };
        String::from_utf8(plain).ok()
    }
}

/// The text of a message that is base64 of JSON; `None` when it is anything else.
pub(crate) fn decode_base64_json(text: &str) -> Option<String> {
    use base64::Engine as _;
    if text.starts_with(['{', '[', '"']) {
        return None;
    }
    let bytes = base64::engine::general_purpose::STANDARD.decode(text).ok()?;
    let decoded = String::from_utf8(bytes).ok()?;
    serde_json::from_str::<serde::de::IgnoredAny>(&decoded).ok()?;
    Some(decoded)
}

/// Whether bytes are gzip.
pub(crate) fn is_gzip(bytes: &[u8]) -> bool {
    bytes.starts_with(&[0x1f, 0x8b])
}

/// Unpacks gzip; `None` when it is damaged.
pub(crate) fn gunzip(packed: &[u8]) -> Option<Vec<u8>> {
    use std::io::Read as _;
    let mut plain = Vec::new();
    flate2::read::GzDecoder::new(packed).read_to_end(&mut plain).ok()?;
    Some(plain)
}

/// Packs with gzip.
pub(crate) fn gzip(plain: &[u8]) -> Vec<u8> {
    use std::io::Write as _;
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    encoder.write_all(plain).expect("writing to memory does not fail");
    encoder.finish().expect("writing to memory does not fail")
}
