use serde::ser::SerializeMap;
use serde::{Deserialize, Serialize, Serializer};
use taskhub_core::{Timestamp, TraceContext};
use uuid::Uuid;

use crate::json::{self, WireError};
use crate::time::Stamp;
use crate::trace::{self, Trace};
use crate::{EntityId, time};

/// A request to an entity: to run an operation, or to lock it.
/// Source: Azure/durabletask, `RequestMessage`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct RequestMessage {
    /// Name of the operation; `None` for a lock.
    #[serde(rename = "op", default)]
    pub operation: Option<String>,
    /// Whether nobody waits for an answer.
    #[serde(rename = "signal", default)]
    pub is_signal: bool,
    /// Serialised input of the operation.
    #[serde(default)]
    pub input: Option<String>,
    /// Id of the request; the answer is the event of this name.
    #[serde(deserialize_with = "guid::deserialize")]
    pub id: Uuid,
    /// Instance that sent it; `None` for clients.
    #[serde(rename = "parent", default)]
    pub parent_instance_id: Option<String>,
    /// Execution that sent it; `None` for clients and entities.
    #[serde(rename = "parentExecution", default)]
    pub parent_execution_id: Option<String>,
    /// When a delayed signal is to run, however far away.
    #[serde(rename = "due", default, deserialize_with = "time::date::deserialize")]
    pub due_at: Option<Timestamp>,
    /// Stamp by which the receiver orders what one sender sends; not set by clients and on delayed signals.
    #[serde(rename = "Timestamp", default)]
    pub timestamp: Stamp,
    /// Stamp of the sender's message before.
    #[serde(rename = "Predecessor", default)]
    pub predecessor: Stamp,
    /// Entities to be locked, in order; makes this a lock request.
    #[serde(rename = "lockset", default)]
    pub lock_set: Option<Vec<EntityId>>,
    /// Which of them this message is for.
    #[serde(rename = "pos", default)]
    pub position: u32,
    /// Trace context of the caller.
    #[serde(rename = "parentTraceContext", default, deserialize_with = "trace::deserialize")]
    pub parent_trace_context: Option<TraceContext>,
    /// Whether the entity's worker is to record the request as a span.
    #[serde(rename = "createTrace", default)]
    pub create_trace: bool,
    /// When it was sent, for that span.
    #[serde(rename = "requestTime", default, deserialize_with = "time::date::deserialize")]
    pub requested_at: Option<Timestamp>,
    /// In a lock request that another entity has passed on: name of the critical section, the same for all runs of
    /// the episode that asks for it. Says, too, that the stamps are still those of the orchestration.
    ///
    /// Differs: DTFx has no such member, ignores it, and does not pass it on.
    #[serde(default)]
    pub section: Option<Uuid>,
}

impl RequestMessage {
    /// A request without an operation, of nobody.
    fn new(id: Uuid) -> Self {
        Self {
            operation: None,
            is_signal: false,
            input: None,
            id,
            parent_instance_id: None,
            parent_execution_id: None,
            due_at: None,
            timestamp: Stamp::MIN,
            predecessor: Stamp::MIN,
            lock_set: None,
            position: 0,
            parent_trace_context: None,
            create_trace: false,
            requested_at: None,
            section: None,
        }
    }

    /// An operation whose answer is waited for.
    pub fn call(id: Uuid, operation: impl Into<String>, input: Option<String>) -> Self {
        Self { operation: Some(operation.into()), input, ..Self::new(id) }
    }

    /// An operation that nobody waits for.
    pub fn signal(id: Uuid, operation: impl Into<String>, input: Option<String>) -> Self {
        Self { is_signal: true, ..Self::call(id, operation, input) }
    }

    /// A request to lock entities, which must be sorted and distinct; for the first of them.
    pub fn lock(id: Uuid, lock_set: Vec<EntityId>) -> Self {
        Self { lock_set: Some(lock_set), ..Self::new(id) }
    }

    /// The same request from an instance and, for orchestrations, its execution.
    #[must_use]
    pub fn from_instance(self, instance_id: impl Into<String>, execution_id: Option<String>) -> Self {
        Self { parent_instance_id: Some(instance_id.into()), parent_execution_id: execution_id, ..self }
    }

    /// Whether it asks for a lock.
    pub fn is_lock_request(&self) -> bool {
        self.lock_set.is_some()
    }

    /// The message as JSON.
    pub fn to_json(&self) -> String {
        json::write(self)
    }

    /// Reads a message of any dialect: `$type` and unknown members count for nothing, those that only newer
    /// writers have may be absent.
    ///
    /// # Errors
    /// The text is not such a message, or has no id.
    pub fn from_json(text: &str) -> Result<Self, WireError> {
        json::read("entity request", text)
    }
}

/// In the order of .NET. `op`, `signal`, `input` and `id` must come first: the out-of-order rule of the
/// provider reads no further (`OrchestrationSession.IsOutOfOrderMessage`).
impl Serialize for RequestMessage {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("op", &self.operation)?;
        if self.is_signal {
            map.serialize_entry("signal", &true)?;
        }
        optional(&mut map, "input", self.input.as_ref())?;
        map.serialize_entry("id", &self.id.hyphenated().to_string())?;
        optional(&mut map, "parent", self.parent_instance_id.as_ref())?;
        optional(&mut map, "parentExecution", self.parent_execution_id.as_ref())?;
        optional(&mut map, "due", self.due_at.map(Stamp::utc).as_ref())?;
        map.serialize_entry("Timestamp", &self.timestamp)?;
        map.serialize_entry("Predecessor", &self.predecessor)?;
        optional(&mut map, "lockset", self.lock_set.as_ref())?;
        optional(&mut map, "pos", Some(&self.position).filter(|pos| **pos != 0))?;
        map.serialize_entry("IsLockRequest", &self.is_lock_request())?;
        optional(&mut map, "parentTraceContext", self.parent_trace_context.as_ref().map(Trace).as_ref())?;
        map.serialize_entry("createTrace", &self.create_trace)?;
        optional(&mut map, "requestTime", self.requested_at.map(time::OffsetDate).as_ref())?;
        optional(&mut map, "section", self.section.as_ref())?;
        map.end()
    }
}

fn optional<M: SerializeMap, T: Serialize>(
    map: &mut M,
    name: &'static str,
    value: Option<&T>,
) -> Result<(), M::Error> {
    value.map_or(Ok(()), |value| map.serialize_entry(name, value))
}

mod guid {
    use super::*;

    pub(super) fn deserialize<'de, D: serde::Deserializer<'de>>(d: D) -> Result<Uuid, D::Error> {
        let text = String::deserialize(d)?;
        Uuid::try_parse(&text).map_err(|_| serde::de::Error::custom("not a guid"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str) -> RequestMessage {
        let message = RequestMessage::from_json(text).unwrap();
        assert_eq!(message.to_json(), text);
        message
    }

    /// Messages of DurableTask.AzureStorage 2.9.1.
    #[test]
    fn requests_of_dotnet_are_read_and_written_byte_for_byte() {
        let signal = check(
            r#"{"op":"add","signal":true,"input":"5","id":"c67b91da-928f-a30c-b2d4-9a0451466ebd","parent":"call-1","parentExecution":"051f80b7b7b04e80b2b8d5be2ad3f0f7","Timestamp":"2026-11-21T03:22:47.2899915Z","Predecessor":"0001-01-01T00:00:00","IsLockRequest":false,"createTrace":false}"#,
        );
        assert!(signal.is_signal && !signal.is_lock_request());
        let second = check(
            r#"{"op":"get","id":"dcbe008a-905b-8c3e-2c57-2ba40b38d8e2","parent":"call-1","parentExecution":"051f80b7b7b04e80b2b8d5be2ad3f0f7","Timestamp":"2026-11-21T03:22:47.2899916","Predecessor":"2026-11-21T03:22:47.2899915Z","IsLockRequest":false,"createTrace":false}"#,
        );
        assert_eq!(second.predecessor, signal.timestamp);
        check(
            r#"{"op":"add","signal":true,"input":"5","id":"4d8d7955-a87a-4d85-aac1-ae9bb6927539","Timestamp":"0001-01-01T00:00:00","Predecessor":"0001-01-01T00:00:00","IsLockRequest":false,"createTrace":false}"#,
        );
        let late = check(
            r#"{"op":"add","signal":true,"input":"1","id":"68ee77dc-0313-7f6f-f522-ea10830e0494","parent":"signal-1","parentExecution":"894c495116d34a908f3291ece8994f59","due":"2026-11-21T03:20:53.6389424Z","Timestamp":"0001-01-01T00:00:00","Predecessor":"0001-01-01T00:00:00","IsLockRequest":false,"createTrace":false}"#,
        );
        assert_eq!(late.due_at, Timestamp::parse("2026-11-21T03:20:53.6389424Z").ok());
        let lock = check(
            r#"{"op":null,"id":"484ad135-5c61-be65-32a6-8a20efbae421","parent":"lock-1","parentExecution":"1012aedc273b400c88e71348e2dce8b8","Timestamp":"2026-11-21T03:14:42.7086091Z","Predecessor":"0001-01-01T00:00:00","lockset":[{"name":"counter","key":"a"},{"name":"counter","key":"b"}],"IsLockRequest":true,"createTrace":false}"#,
        );
        assert_eq!(lock.lock_set.unwrap()[1].to_string(), "@counter@b");
    }

    #[test]
    fn members_for_tracing_are_kept() {
        let text = r#"{"op":"add","input":"5","id":"706797c6-62d8-589a-8b95-ec0e0c03129c","parent":"order-17","Timestamp":"2026-01-02T03:04:05.69Z","Predecessor":"0001-01-01T00:00:00","lockset":[],"pos":1,"IsLockRequest":true,"parentTraceContext":{"TraceParent":"00-a","TraceState":null,"Id":null,"SpanId":null,"ActivityStartTime":"2026-01-02T03:04:05+00:00"},"createTrace":true,"requestTime":"2026-01-02T03:04:05.7+00:00"}"#;
        check(text);
    }

    #[test]
    fn other_dialects_are_read() {
        let id = "706797c6-62d8-589a-8b95-ec0e0c03129c";
        let legacy = format!(
            r#"{{"$type":"X.RequestMessage, X","op":"get","id":"{id}","parent":"p","Timestamp":"2026-01-02T03:04:05","more":[{{}}]}}"#
        );
        let message = RequestMessage::from_json(&legacy).unwrap();
        assert_eq!(message.operation.as_deref(), Some("get"));
        assert!(!message.create_trace && message.lock_set.is_none());
        let bare = format!(r#"{{"id":"{}"}}"#, id.replace('-', ""));
        assert_eq!(RequestMessage::from_json(&bare).unwrap().id, message.id);
    }

    #[test]
    fn what_is_no_request_is_an_error() {
        let id = r#""id":"706797c6-62d8-589a-8b95-ec0e0c03129c""#;
        for text in [
            "",
            "null",
            "[]",
            "{}",
            r#"{"op":"add"}"#,
            r#"{"id":"x"}"#,
            r#"{"id":5}"#,
            &format!(r#"{{{id},"op":5}}"#),
            &format!(r#"{{{id},"pos":-1}}"#),
            &format!(r#"{{{id},"Timestamp":"soon"}}"#),
            &format!(r#"{{{id},"lockset":[{{"name":"a"}}]}}"#),
            &format!(r#"{{{id},"lockset":{}"#, "[".repeat(10_000)),
        ] {
            assert!(RequestMessage::from_json(text).is_err(), "{text:.80}");
        }
    }
}
