//! Why a message failed, and what of it can be read nevertheless.

use std::error::Error;

use taskhub_core::{ErrorKind, GiveBackReason, ServiceError, Timestamp};
use taskhub_storage::QueueMessage;

use crate::large_messages::MissingBlob;
use crate::message::json::Json;
use crate::message::{self, DecodeError};
use crate::queue::held::HeldMessage;

/// Receptions from which a message that fails while it is processed gets a dead letter. One that cannot be
/// read at all gets it at once.
pub(crate) const RECORD_FROM_DEQUEUE_COUNT: u32 = 5;

/// Why a message failed, in one word.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reason {
    /// Neither JSON nor Base64 of JSON.
    NotAMessage,
    /// Of a type that this version does not know.
    UnknownType,
    /// An event that this version does not know, as a message or in the history.
    UnknownEventType,
    /// A message with missing or wrong members.
    MalformedMessage,
    /// It refers to a blob outside of the hub's container.
    ForeignBlob,
    /// It refers to a blob that is not there.
    MissingBlob,
    /// It refers to a blob that holds no message.
    UnreadableBlob,
    /// The history of its instance cannot be read.
    UnreadableHistory,
    /// The worker failed to process it.
    ProcessingFailed,
    /// A start whose Instances row was never written.
    StartWithoutRow,
    /// An event for an entity that is none of the messages that entities know.
    UnreadableEntityEvent,
}

impl Reason {
    pub(crate) fn code(self) -> &'static str {
        match self {
            Self::NotAMessage => "not_a_message",
            Self::UnknownType => "unknown_type",
            Self::UnknownEventType => "unknown_event_type",
            Self::MalformedMessage => "malformed_message",
            Self::ForeignBlob => "foreign_blob",
            Self::MissingBlob => "missing_blob",
            Self::UnreadableBlob => "unreadable_blob",
            Self::UnreadableHistory => "unreadable_history",
            Self::ProcessingFailed => "processing_failed",
            Self::StartWithoutRow => "start_without_row",
            Self::UnreadableEntityEvent => "unreadable_entity_event",
        }
    }

    /// Whether no version of this program could process it. What a newer worker may understand is never
    /// taken out of its queue.
    pub(crate) fn may_be_quarantined(self) -> bool {
        !matches!(self, Self::UnknownType | Self::UnknownEventType)
    }

    /// Whether the message itself cannot be read, so that every reception fails.
    fn is_about_the_text(self) -> bool {
        !matches!(self, Self::UnreadableHistory | Self::ProcessingFailed)
    }
}

/// One failure of one message.
#[derive(Debug, Clone)]
pub(crate) struct Failure {
    pub(crate) reason: Reason,
    /// For a person; no payloads.
    pub(crate) detail: String,
}

impl Failure {
    pub(crate) fn processing(detail: String) -> Self {
        Self { reason: Reason::ProcessingFailed, detail }
    }

    /// Why a message cannot be read; `None` when storage failed, which says nothing about the message.
    pub(crate) fn of_message(error: &ServiceError) -> Option<Self> {
        if error.kind() != ErrorKind::Data {
            return None;
        }
        let reason = match decode_error(error) {
            Some(decode) => of_decode(decode),
            None if cause::<MissingBlob>(error).is_some() => Reason::MissingBlob,
            None => Reason::UnreadableBlob,
        };
        Some(Self { reason, detail: error.chain() })
    }

    /// Why a history cannot be read; `None` when storage failed.
    pub(crate) fn of_history(error: &ServiceError) -> Option<Self> {
        if error.kind() != ErrorKind::Data {
            return None;
        }
        let reason = match decode_error(error).map(of_decode) {
            Some(reason @ (Reason::UnknownType | Reason::UnknownEventType)) => reason,
            _ => Reason::UnreadableHistory,
        };
        Some(Self { reason, detail: error.chain() })
    }

    /// The unknown event type, if that is why.
    pub(crate) fn unknown_event_type(error: &ServiceError) -> Option<&str> {
        match decode_error(error) {
            Some(DecodeError::UnknownEventType { event_type }) => Some(event_type),
            _ => None,
        }
    }

    /// Whether the message gets a dead letter after this failure.
    pub(crate) fn is_recorded(&self, dequeue_count: u32) -> bool {
        self.reason.is_about_the_text() || dequeue_count >= RECORD_FROM_DEQUEUE_COUNT
    }
}

/// What the failure of this backend tells about the messages it was about.
pub(crate) fn reason_of(error: &ServiceError) -> GiveBackReason {
    match error.kind() {
        ErrorKind::Data | ErrorKind::Invalid | ErrorKind::Internal => {
            GiveBackReason::Failed { reason: error.chain() }
        }
        _ => GiveBackReason::Interrupted,
    }
}

fn cause<T: Error + 'static>(error: &ServiceError) -> Option<&T> {
    let mut cause = error.source();
    while let Some(error) = cause {
        if let Some(found) = error.downcast_ref() {
            return Some(found);
        }
        cause = error.source();
    }
    None
}

fn decode_error(error: &ServiceError) -> Option<&DecodeError> {
    cause(error)
}

fn of_decode(error: &DecodeError) -> Reason {
    match error {
        DecodeError::UnknownType { .. } => Reason::UnknownType,
        DecodeError::UnknownEventType { .. } => Reason::UnknownEventType,
        DecodeError::BlobName => Reason::ForeignBlob,
        DecodeError::Gzip | DecodeError::TooLarge { .. } => Reason::UnreadableBlob,
        DecodeError::NoEventType | DecodeError::Missing { .. } | DecodeError::Member { .. } => {
            Reason::MalformedMessage
        }
        _ => Reason::NotAMessage,
    }
}

/// What is known of a message, whether it can be read or not.
#[derive(Debug, Clone)]
pub(crate) struct Facts {
    pub(crate) queue: String,
    pub(crate) message_id: String,
    pub(crate) text: String,
    pub(crate) inserted_at: Timestamp,
    pub(crate) dequeue_count: u32,
    pub(crate) instance_id: Option<String>,
    pub(crate) event_type: Option<String>,
    pub(crate) blob_name: Option<String>,
}

impl Facts {
    /// Of a message that has been read.
    pub(crate) fn of_held(message: &HeldMessage) -> Self {
        Self {
            queue: message.queue.clone(),
            message_id: message.message_id.clone(),
            text: message.text().to_owned(),
            inserted_at: message.inserted_at,
            dequeue_count: message.dequeue_count,
            instance_id: Some(message.instance_id().to_string()),
            event_type: Some(message.task().event.name().to_owned()),
            blob_name: message.data.compressed_blob_name.clone(),
        }
    }

    /// Of a message that cannot be read; tells of it what it can.
    pub(crate) fn of_received(queue: &str, message: &QueueMessage) -> Self {
        let seen = glance(&message.text);
        Self {
            queue: queue.to_owned(),
            message_id: message.receipt.message_id.clone(),
            text: message.text.clone(),
            inserted_at: message.inserted_at,
            dequeue_count: message.dequeue_count,
            instance_id: seen.instance_id,
            event_type: seen.event_type,
            blob_name: seen.blob_name,
        }
    }
}

/// Longest text taken from a message that cannot be read, in characters.
const MAX_GLANCE_CHARS: usize = 256;

#[derive(Debug, Default, PartialEq, Eq)]
struct Glance {
    instance_id: Option<String>,
    event_type: Option<String>,
    blob_name: Option<String>,
}

/// The addressee and the type of a message that cannot be read as a whole.
fn glance(text: &str) -> Glance {
    let text = message::json_of(text).ok();
    let Some(json) = text.as_ref().and_then(|text| Json::parse(text).ok()) else {
        return Glance::default();
    };
    let shown = |json: Option<&Json>| match json {
        Some(Json::String(text) | Json::Number(text)) if !text.is_empty() => {
            Some(text.chars().take(MAX_GLANCE_CHARS).collect::<String>())
        }
        _ => None,
    };
    let task = json.member("TaskMessage");
    let instance = task.and_then(|t| t.member("OrchestrationInstance"));
    let event = task.and_then(|t| t.member("Event"));
    let class = |event: &Json| {
        let name = shown(event.member("$type"))?;
        let class = name.split(',').next()?.rsplit('.').next()?;
        Some(class.strip_suffix("Event").unwrap_or(class).to_owned())
    };
    let blob_name = shown(json.member("CompressedBlobName"));
    // `{instance}/message-{activity id}-{event type}.json.gz`
    let in_blob = blob_name.as_deref().and_then(|name| {
        let (instance, file) = name.rsplit_once('/')?;
        let (_, event) = file.strip_suffix(".json.gz")?.strip_prefix("message-")?.rsplit_once('-')?;
        Some((instance.to_owned(), event.to_owned()))
    });
    let (blob_instance, blob_event) = in_blob.unzip();
    Glance {
        instance_id: shown(instance.and_then(|i| i.member("InstanceId"))).or(blob_instance),
        event_type: event.and_then(|e| class(e).or_else(|| shown(e.member("EventType")))).or(blob_event),
        blob_name,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, instance: Option<&str>, event: Option<&str>, blob: Option<&str>) {
        let own = |text: Option<&str>| text.map(str::to_owned);
        let expected = Glance { instance_id: own(instance), event_type: own(event), blob_name: own(blob) };
        assert_eq!(glance(text), expected, "{text}");
    }

    #[test]
    fn what_can_be_read_of_a_damaged_message_is_told() {
        check("not json", None, None, None);
        check("{}", None, None, None);
        check("[1]", None, None, None);
        check(
            r#"{"TaskMessage":{"Event":{"EventType":99},"OrchestrationInstance":{"InstanceId":"a"}}}"#,
            Some("a"),
            Some("99"),
            None,
        );
        check(
            r#"{"taskMessage":{"event":{"$type":"DurableTask.Core.History.FutureEvent, DurableTask.Core"}}}"#,
            None,
            Some("Future"),
            None,
        );
        let blob = "order-1/message-0f-TaskCompleted.json.gz";
        check(
            &format!(r#"{{"TaskMessage":null,"CompressedBlobName":"{blob}"}}"#),
            Some("order-1"),
            Some("TaskCompleted"),
            Some(blob),
        );
        check("eyJDb21wcmVzc2VkQmxvYk5hbWUiOiJ4In0=", None, None, Some("x"));
        let long = "x".repeat(1000);
        let text = format!(r#"{{"TaskMessage":{{"OrchestrationInstance":{{"InstanceId":"{long}"}}}}}}"#);
        check(&text, Some(&long[..MAX_GLANCE_CHARS]), None, None);
    }
}
