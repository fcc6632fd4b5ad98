//! One dead letter as a blob: JSON with the message's own text in it.

use std::fmt;

use serde::{Deserialize, Serialize};
use taskhub_core::Timestamp;
use taskhub_storage::PopReceipt;

/// Version of the record's form; later ones add members only.
const VERSION: u32 = 1;

/// Where the message of a dead letter is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum DeadLetterState {
    /// Still in its queue, tried again with growing delays.
    Held,
    /// Taken out of its queue; only the dead letter has it.
    Quarantined,
    /// A start message that was deleted as the .NET provider does; only the dead letter has it.
    Dropped,
}

impl DeadLetterState {
    /// All states.
    pub const ALL: [Self; 3] = [Self::Held, Self::Quarantined, Self::Dropped];

    /// Its name in records and on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Held => "held",
            Self::Quarantined => "quarantined",
            Self::Dropped => "dropped",
        }
    }
}

impl fmt::Display for DeadLetterState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// A message that could not be processed. `Debug` leaves out its text.
#[derive(Clone, PartialEq, Eq)]
pub struct DeadLetter {
    /// Where the message is.
    pub state: DeadLetterState,
    /// Why, as one of a few words such as `not_a_message` or `unknown_event_type`.
    pub reason: String,
    /// Why, for a person; without payloads.
    pub detail: String,
    /// The queue it is in, or was taken from.
    pub queue: String,
    /// Its id in that queue, which is also the id of the dead letter.
    pub message_id: String,
    /// When the service stored the message.
    pub inserted_at: Timestamp,
    /// When the first failure was seen.
    pub first_failed_at: Timestamp,
    /// When the last failure was seen.
    pub last_failed_at: Timestamp,
    /// How many failures were seen.
    pub failures: u32,
    /// How often it had been received at the last failure.
    pub dequeue_count: u32,
    /// When a held message becomes visible again.
    pub visible_at: Option<Timestamp>,
    /// The instance it is for, if that could be read.
    pub instance_id: Option<String>,
    /// The type of its event, if that could be read.
    pub event_type: Option<String>,
    /// Blob of the large-message container that holds what did not fit into the queue.
    pub blob_name: Option<String>,
    /// The worker that saw the last failure.
    pub worker_id: String,
    /// The text as it is or was in the queue, unchanged; `None` in lists.
    pub text: Option<String>,
    /// The newest known right to a held message.
    pub(crate) pop_receipt: Option<String>,
}

impl fmt::Debug for DeadLetter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DeadLetter")
            .field("message_id", &self.message_id)
            .field("state", &self.state)
            .field("reason", &self.reason)
            .field("queue", &self.queue)
            .field("failures", &self.failures)
            .finish_non_exhaustive()
    }
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Stored {
    version: u32,
    state: DeadLetterState,
    reason: String,
    #[serde(default)]
    detail: String,
    queue: String,
    message_id: String,
    inserted_at: String,
    first_failed_at: String,
    last_failed_at: String,
    #[serde(default)]
    failures: u32,
    #[serde(default)]
    dequeue_count: u32,
    #[serde(default)]
    visible_at: Option<String>,
    #[serde(default)]
    pop_receipt: Option<String>,
    #[serde(default)]
    instance_id: Option<String>,
    #[serde(default)]
    event_type: Option<String>,
    #[serde(default)]
    blob_name: Option<String>,
    #[serde(default)]
    worker_id: String,
    text: String,
}

/// Why a blob is no dead letter.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RecordError {
    #[error("the blob is not the JSON of a dead letter")]
    Json(#[from] serde_json::Error),
    #[error("a dead letter has a time that cannot be read")]
    Time(#[from] taskhub_core::ParseTimestampError),
}

impl DeadLetter {
    /// The blob's content.
    pub(crate) fn to_json(&self) -> Vec<u8> {
        let stored = Stored {
            version: VERSION,
            state: self.state,
            reason: self.reason.clone(),
            detail: self.detail.clone(),
            queue: self.queue.clone(),
            message_id: self.message_id.clone(),
            inserted_at: self.inserted_at.to_iso(),
            first_failed_at: self.first_failed_at.to_iso(),
            last_failed_at: self.last_failed_at.to_iso(),
            failures: self.failures,
            dequeue_count: self.dequeue_count,
            visible_at: self.visible_at.map(Timestamp::to_iso),
            pop_receipt: self.pop_receipt.clone(),
            instance_id: self.instance_id.clone(),
            event_type: self.event_type.clone(),
            blob_name: self.blob_name.clone(),
            worker_id: self.worker_id.clone(),
            text: self.text.clone().unwrap_or_default(),
        };
        serde_json::to_vec_pretty(&stored).expect("texts and numbers can always be written")
    }

    /// Reads a blob's content. Members that later versions add are ignored.
    pub(crate) fn from_json(content: &[u8]) -> Result<Self, RecordError> {
        let stored: Stored = serde_json::from_slice(content)?;
        Ok(Self {
            state: stored.state,
            reason: stored.reason,
            detail: stored.detail,
            queue: stored.queue,
            message_id: stored.message_id,
            inserted_at: Timestamp::parse(&stored.inserted_at)?,
            first_failed_at: Timestamp::parse(&stored.first_failed_at)?,
            last_failed_at: Timestamp::parse(&stored.last_failed_at)?,
            failures: stored.failures,
            dequeue_count: stored.dequeue_count,
            visible_at: stored.visible_at.as_deref().map(Timestamp::parse).transpose()?,
            instance_id: stored.instance_id,
            event_type: stored.event_type,
            blob_name: stored.blob_name,
            worker_id: stored.worker_id,
            text: Some(stored.text),
            pop_receipt: stored.pop_receipt,
        })
    }

    /// The right to a held message, if it was known when the record was written.
    pub(crate) fn receipt(&self) -> Option<PopReceipt> {
        self.pop_receipt.clone().map(|token| PopReceipt { message_id: self.message_id.clone(), token })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn letter(text: &str) -> DeadLetter {
        let at = Timestamp::parse("2026-03-01T12:00:00.1234567Z").unwrap();
        DeadLetter {
            state: DeadLetterState::Held,
            reason: "not_a_message".to_owned(),
            detail: "x".to_owned(),
            queue: "hub-control-00".to_owned(),
            message_id: "m".to_owned(),
            inserted_at: at,
            first_failed_at: at,
            last_failed_at: at,
            failures: 3,
            dequeue_count: 4,
            visible_at: Some(at),
            instance_id: None,
            event_type: Some("TaskCompleted".to_owned()),
            blob_name: None,
            worker_id: "w".to_owned(),
            text: Some(text.to_owned()),
            pop_receipt: Some("r".to_owned()),
        }
    }

    #[test]
    fn a_record_keeps_every_text_unchanged() {
        for text in ["", "{\"a\": 1}", "\u{feff}é\u{1f600}\u{0}\u{7}\r\n\\\"\u{fffe}", " eyJ4IjoxfQ== "] {
            let letter = letter(text);
            assert_eq!(DeadLetter::from_json(&letter.to_json()).unwrap(), letter);
        }
    }

    #[test]
    fn other_content_is_an_error_and_new_members_are_not() {
        for content in [&b""[..], b"{}", b"[]", b"\xff", b"{\"state\":\"lost\"}"] {
            assert!(DeadLetter::from_json(content).is_err());
        }
        let mut json: serde_json::Value = serde_json::from_slice(&letter("t").to_json()).unwrap();
        json["colour"] = "blue".into();
        json["version"] = 2.into();
        assert_eq!(DeadLetter::from_json(json.to_string().as_bytes()).unwrap(), letter("t"));
    }

    #[test]
    fn debug_output_hides_the_text_and_the_receipt() {
        let text = format!("{:?}", letter("secret payload"));
        assert!(!text.contains("secret") && text.contains("not_a_message"), "{text}");
    }
}
