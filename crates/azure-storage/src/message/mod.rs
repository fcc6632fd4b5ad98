//! The messages on the control queues and the work-item queue.
//!
//! A message is one JSON object, [`MessageData`], around a [`taskhub_core::TaskMessage`]. [`pack`] makes
//! the text of the queue, and the blob when the message is too large for it; [`decode`] reads the text
//! of any provider version back. What is written is what .NET writes, byte for byte, but for the `$type`
//! of dictionaries (see [`encode`]).
//!
//! ```
//! use taskhub_azure_storage::message::{self, Decoded, MessageData, MessageEncoding};
//! use taskhub_core::{EventKind, HistoryEvent, OrchestrationInstance, TaskMessage, Timestamp};
//!
//! let at = Timestamp::parse("2026-01-15T09:35:00Z")?;
//! let event = HistoryEvent::message(at, EventKind::ExecutionResumed { reason: None });
//! let message = TaskMessage::new(event, OrchestrationInstance::current("order-42"));
//! let data = MessageData::new(uuid::Uuid::nil(), message, 1, None, MessageData::client());
//!
//! let text = message::encode(&data, MessageEncoding::Base64);
//! assert_eq!(message::decode(&text)?, Decoded::Message(Box::new(data)));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod delay;
mod envelope;
mod error;
pub(crate) mod event;
pub(crate) mod json;
mod large;
pub(crate) mod parts;

pub use delay::visibility_delay;
pub(crate) use envelope::json_of;
pub use envelope::{Decoded, MessageData, MessageEncoding, decode, encode, encode_wrapper};
pub use error::DecodeError;
pub use large::{
    MAX_BLOB_TEXT_BYTES, MAX_INLINE_MESSAGE_BYTES, Packed, blob_name_of, blob_url, compress, decompress,
    is_start_message_blob, message_blob_name, pack, start_message_input,
};

#[cfg(test)]
pub(crate) mod arbitrary;
#[cfg(test)]
mod tests;
