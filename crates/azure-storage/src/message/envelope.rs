use std::borrow::Cow;

use base64::Engine as _;
use base64::alphabet::STANDARD as ALPHABET;
use base64::engine::DecodePaddingMode;
use base64::engine::general_purpose::{GeneralPurpose, GeneralPurposeConfig, STANDARD};
use taskhub_core::{ExecutionId, InstanceId, OrchestrationInstance, TaskMessage};
use uuid::Uuid;

use super::json::{Form, Json, Writer};
use super::parts::{self, Part};
use super::{DecodeError, event, large};

/// The envelope of a message. Source: Azure/durabletask, `MessageData`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MessageData {
    /// Fresh for each message; for tracing, and part of the blob's name.
    pub activity_id: Uuid,
    /// The message.
    pub task_message: TaskMessage,
    /// Blob that holds the message, when it was too large for the queue. Known in memory only: the
    /// envelope itself says null, the text on the queue is a wrapper with nothing but this name.
    pub compressed_blob_name: Option<String>,
    /// Number of the message in its sender's process, from 1; orders messages of the same second.
    pub sequence_number: i64,
    /// Number of `OrchestratorStarted` events in the sender's history when its work item began; `None`
    /// from clients.
    pub episode: Option<i32>,
    /// Who sent it: an orchestration, for an activity's result the orchestration that asked for it, for
    /// a client [`MessageData::client`]. `None` only from foreign writers.
    pub sender: Option<OrchestrationInstance>,
    /// Legacy tracing payload (`SerializableTraceContext`); null unless a .NET worker has correlation on.
    pub trace_context: Option<String>,
}

impl MessageData {
    /// A message that has not been sent.
    pub fn new(
        activity_id: Uuid,
        task_message: TaskMessage,
        sequence_number: i64,
        episode: Option<i32>,
        sender: OrchestrationInstance,
    ) -> Self {
        Self {
            activity_id,
            task_message,
            compressed_blob_name: None,
            sequence_number,
            episode,
            sender: Some(sender),
            trace_context: None,
        }
    }

    /// The sender of messages from clients: both ids are empty, not null.
    pub fn client() -> OrchestrationInstance {
        OrchestrationInstance {
            instance_id: InstanceId::default(),
            execution_id: Some(ExecutionId::default()),
        }
    }
}

/// How the JSON becomes the text of a queue message.
/// Source: Azure/durabletask, `QueueClientMessageEncoding`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum MessageEncoding {
    /// The JSON itself. Workers before 1.17.4 cannot read it.
    #[default]
    Utf8,
    /// Base64 of the JSON in UTF-8; the choice when other workers' version is unknown.
    Base64,
}

impl MessageEncoding {
    /// The text of a queue message with this JSON.
    pub(crate) fn apply(self, json: String) -> String {
        match self {
            Self::Utf8 => json,
            Self::Base64 => STANDARD.encode(json),
        }
    }
}

/// What a queue message holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decoded {
    /// The message.
    Message(Box<MessageData>),
    /// The message is in a blob of the hub's large-message container: download,
    /// [`super::decompress`], [`decode`] again (not a third time), and set `compressed_blob_name`.
    Wrapper {
        /// Name of the blob in that container.
        blob_name: String,
    },
}

/// The text of a queue message, whatever its size (see [`super::pack`] for messages that may be large).
///
/// A missing sender is written as a client's, because .NET workers do not check for null.
///
/// Differs: dictionaries have no `$type`; .NET writes `Dictionary` with the name of its core library.
pub fn encode(message: &MessageData, encoding: MessageEncoding) -> String {
    encoding.apply(envelope_json(message))
}

/// The text of the queue message for a message that is in a blob.
pub fn encode_wrapper(blob_name: &str, encoding: MessageEncoding) -> String {
    let mut w = Writer::new(Form::Message);
    envelope(&mut w, Uuid::nil(), None, Some(blob_name), 0, None, None, None);
    encoding.apply(w.finish())
}

/// The JSON of the envelope.
pub(crate) fn envelope_json(message: &MessageData) -> String {
    let client = MessageData::client();
    let mut w = Writer::new(Form::Message);
    envelope(
        &mut w,
        message.activity_id,
        Some(&message.task_message),
        None,
        message.sequence_number,
        message.episode,
        Some(message.sender.as_ref().unwrap_or(&client)),
        message.trace_context.as_deref(),
    );
    w.finish()
}

#[allow(clippy::too_many_arguments, reason = "the members in the order in which they are written")]
fn envelope(
    w: &mut Writer,
    activity_id: Uuid,
    task_message: Option<&TaskMessage>,
    blob_name: Option<&str>,
    sequence_number: i64,
    episode: Option<i32>,
    sender: Option<&OrchestrationInstance>,
    trace_context: Option<&str>,
) {
    w.typed("DurableTask.AzureStorage.MessageData", |w| {
        parts::member(w, "ActivityId", Some(&activity_id.hyphenated().to_string()));
        w.name("TaskMessage");
        match task_message {
            Some(message) => write_task_message(w, message),
            None => w.null(),
        }
        parts::member(w, "CompressedBlobName", blob_name);
        w.name("SequenceNumber");
        w.int(sequence_number);
        if let Some(episode) = episode {
            w.name("Episode");
            w.int(episode.into());
        }
        w.name("Sender");
        match sender {
            Some(sender) => w.object(|w| parts::instance_members(w, sender)),
            None => w.null(),
        }
        parts::member(w, "SerializableTraceContext", trace_context);
    });
}

fn write_task_message(w: &mut Writer, message: &TaskMessage) {
    w.typed("DurableTask.Core.TaskMessage", |w| {
        w.name("Event");
        event::write_json(&message.event, w);
        w.name("SequenceNumber");
        w.int(message.sequence_number);
        w.name("OrchestrationInstance");
        Part::Instance(&message.target).write(w);
        w.name("OrchestrationExecutionContext");
        match &message.execution_context {
            Some(tags) => w.typed("DurableTask.Core.OrchestrationExecutionContext", |w| {
                w.name("OrchestrationTags");
                Part::Tags(tags).write(w);
            }),
            None => w.null(),
        }
    });
}

/// Reads the text of a queue message, or of a message blob, by any version of the provider: plain JSON
/// or Base64, members in any order and of any case, with type names in any dialect or none.
///
/// # Errors
/// Text that is no message, and events of an unknown type, which must not be dropped.
pub fn decode(text: &str) -> Result<Decoded, DecodeError> {
    read_envelope(&Json::parse(&json_of(text)?)?)
}

/// The JSON of a message's text, which may be Base64.
pub(crate) fn json_of(text: &str) -> Result<Cow<'_, str>, DecodeError> {
    let text = text.trim_start_matches(|c: char| c.is_whitespace() || c == '\u{feff}');
    Ok(if text.starts_with('{') { Cow::Borrowed(text) } else { Cow::Owned(from_base64(text)?) })
}

fn from_base64(text: &str) -> Result<String, DecodeError> {
    let engine = GeneralPurpose::new(
        &ALPHABET,
        GeneralPurposeConfig::new()
            .with_decode_padding_mode(DecodePaddingMode::Indifferent)
            .with_decode_allow_trailing_bits(true),
    );
    let compact: String = text.chars().filter(|c| !c.is_whitespace()).collect();
    let bytes = engine.decode(compact).map_err(|_| DecodeError::NotBase64)?;
    String::from_utf8(bytes).map_err(|_| DecodeError::NotUtf8)
}

fn read_envelope(json: &Json<'_>) -> Result<Decoded, DecodeError> {
    if !matches!(json, Json::Object(_)) {
        return Err(DecodeError::Member { member: "MessageData", expected: "an object", found: json.kind() });
    }
    // A hub written with a renaming type binder cannot be read; say so instead of missing members.
    if let Some(Json::String(type_name)) = json.member("$type")
        && event::class_of(type_name) != "MessageData"
    {
        return Err(DecodeError::UnknownType { type_name: DecodeError::shown(type_name) });
    }
    if let Some(blob_name) = parts::text(json, "CompressedBlobName")?.filter(|name| !name.is_empty()) {
        if !large::is_plain(&blob_name) {
            return Err(DecodeError::BlobName);
        }
        return Ok(Decoded::Wrapper { blob_name });
    }
    let message = parts::part(json, "TaskMessage", read_task_message)?;
    Ok(Decoded::Message(Box::new(MessageData {
        activity_id: parts::part(json, "ActivityId", read_guid)?.unwrap_or_default(),
        task_message: message.ok_or(DecodeError::Missing { member: "TaskMessage" })?,
        compressed_blob_name: None,
        sequence_number: parts::long(json, "SequenceNumber")?.unwrap_or_default(),
        episode: parts::int(json, "Episode")?,
        sender: parts::part(json, "Sender", parts::read_instance)?,
        trace_context: parts::text(json, "SerializableTraceContext").unwrap_or_default(),
    })))
}

fn read_guid(json: &Json<'_>) -> Result<Uuid, DecodeError> {
    let Json::String(text) = json else {
        return Err(DecodeError::Member { member: "ActivityId", expected: "a GUID", found: json.kind() });
    };
    Uuid::try_parse(text.trim()).map_err(|_| DecodeError::Member {
        member: "ActivityId",
        expected: "a GUID",
        found: "another text",
    })
}

fn read_task_message(json: &Json<'_>) -> Result<TaskMessage, DecodeError> {
    let event = parts::part(json, "Event", event::read_json)?;
    let tags = |json: &Json| parts::part(json, "OrchestrationTags", parts::read_tags);
    Ok(TaskMessage {
        event: event.ok_or(DecodeError::Missing { member: "Event" })?,
        sequence_number: parts::long(json, "SequenceNumber")?.unwrap_or_default(),
        target: parts::part(json, "OrchestrationInstance", parts::read_instance)?
            .ok_or(DecodeError::Missing { member: "OrchestrationInstance" })?,
        execution_context: parts::part(json, "OrchestrationExecutionContext", tags)?
            .map(Option::unwrap_or_default),
    })
}
