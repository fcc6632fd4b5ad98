use std::collections::VecDeque;

use serde::ser::SerializeMap;
use serde::{Deserialize, Serialize, Serializer};

use crate::json::{self, WireError};
use crate::{MessageSorter, RequestMessage, Sections};

/// What an entity keeps between its batches: the input of its execution.
/// Source: Azure/durabletask, `SchedulerState`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct SchedulerState {
    /// Serialised state of the user's entity; `None` when it does not exist.
    pub state: Option<String>,
    /// Requests that wait.
    pub queue: VecDeque<RequestMessage>,
    /// Instance that holds the lock.
    pub locked_by: Option<String>,
    /// Set by Durable Functions' in-process entities while a reminder to themselves is on its way.
    pub suspended: bool,
    /// Order of what comes and goes.
    pub sorter: MessageSorter,
    /// Critical sections that are going on or have ended not long ago.
    pub sections: Sections,
}

#[derive(Deserialize)]
struct Read {
    #[serde(default)]
    exists: Option<bool>,
    #[serde(default)]
    state: Option<String>,
    #[serde(default)]
    queue: Option<VecDeque<RequestMessage>>,
    #[serde(rename = "lockedBy", default)]
    locked_by: Option<String>,
    #[serde(default)]
    suspended: bool,
    #[serde(default)]
    sorter: Option<MessageSorter>,
    #[serde(default)]
    sections: Option<Sections>,
}

impl SchedulerState {
    /// Whether the entity has a state.
    pub fn exists(&self) -> bool {
        self.state.is_some()
    }

    /// Whether the next request may be taken from the queue: while the entity is locked only those of the
    /// lock's holder.
    pub fn may_dequeue(&self) -> bool {
        let first = self.queue.front();
        first.is_some_and(|first| self.locked_by.is_none() || self.locked_by == first.parent_instance_id)
    }

    /// Puts requests in front of those that wait.
    pub fn put_back(&mut self, mut requests: VecDeque<RequestMessage>) {
        requests.append(&mut self.queue);
        self.queue = requests;
    }

    /// The state as JSON.
    pub fn to_json(&self) -> String {
        json::write(self)
    }

    /// Reads a state of DTFx's core or of Durable Functions' in-process entities.
    ///
    /// # Errors
    /// The text is not such a state.
    pub fn from_json(text: &str) -> Result<Self, WireError> {
        let read: Read = json::read("entity state", text)?;
        Ok(Self {
            // Core does not write it, and reads nothing from it.
            state: read.state.filter(|_| read.exists != Some(false)),
            queue: read.queue.unwrap_or_default(),
            locked_by: read.locked_by,
            suspended: read.suspended,
            sorter: read.sorter.unwrap_or_default(),
            sections: read.sections.unwrap_or_default(),
        })
    }
}

/// In the order of .NET.
///
/// Differs: DTFx's core does not write `exists`. Durable Functions' in-process entities take a state without it
/// for none; both read it when it is there.
impl Serialize for SchedulerState {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        if let Some(state) = &self.state {
            map.serialize_entry("exists", &true)?;
            map.serialize_entry("state", state)?;
        }
        if !self.queue.is_empty() {
            map.serialize_entry("queue", &self.queue)?;
        }
        if let Some(locked_by) = &self.locked_by {
            map.serialize_entry("lockedBy", locked_by)?;
        }
        if self.suspended {
            map.serialize_entry("suspended", &true)?;
        }
        map.serialize_entry("sorter", &self.sorter)?;
        if !self.sections.is_empty() {
            map.serialize_entry("sections", &self.sections)?;
        }
        map.end()
    }
}

/// What an entity shows of itself: the custom status of its instance.
/// Source: Azure/durabletask, `EntityStatus`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct EntityStatus {
    /// Whether it has a state.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub entity_exists: bool,
    /// Requests that wait.
    #[serde(skip_serializing_if = "is_zero")]
    pub queue_size: u64,
    /// Instance that holds the lock.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub locked_by: Option<String>,
}

fn is_zero(n: &u64) -> bool {
    *n == 0
}

impl EntityStatus {
    /// What a state shows.
    pub fn of(state: &SchedulerState) -> Self {
        Self {
            entity_exists: state.exists(),
            queue_size: state.queue.len() as u64,
            locked_by: state.locked_by.clone(),
        }
    }

    /// The status as JSON.
    pub fn to_json(&self) -> String {
        json::write(self)
    }

    /// Reads a status; unknown members count for nothing.
    ///
    /// # Errors
    /// The text is not such a status.
    pub fn from_json(text: &str) -> Result<Self, WireError> {
        json::read("entity status", text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The state is read, and written again with `exists` as the one difference.
    #[track_caller]
    fn check(text: &str) -> SchedulerState {
        let state = SchedulerState::from_json(text).unwrap();
        let expected =
            if state.exists() { text.replacen('{', "{\"exists\":true,", 1) } else { text.to_owned() };
        assert_eq!(state.to_json(), expected);
        assert_eq!(SchedulerState::from_json(&expected), Ok(state.clone()));
        state
    }

    /// States of DurableTask.AzureStorage 2.9.1.
    #[test]
    fn states_of_dotnet_are_read_and_written_byte_for_byte_but_for_exists() {
        assert_eq!(check(r#"{"state":"6","sorter":{}}"#).state.as_deref(), Some("6"));
        check(
            r#"{"state":"12","sorter":{"ReceivedFromInstance":{"call-1":{"Last":"2026-11-21T03:22:47.7106323Z","ExecutionId":"051f80b7b7b04e80b2b8d5be2ad3f0f7"}},"ReceiveHorizon":"2026-11-21T02:52:47.2899915Z"}}"#,
        );
        check(
            r#"{"state":"0","sorter":{"LastSentToInstance":{"@counter@end":"2026-11-21T03:20:23.8026019Z"},"ReceivedFromInstance":{"signal-1":{"Last":"2026-11-21T03:20:23.6389424Z","ExecutionId":"894c495116d34a908f3291ece8994f59"}},"ReceiveHorizon":"2026-11-21T02:50:23.6389424Z","SendHorizon":"2026-11-21T02:50:23.8026019Z"}}"#,
        );
        let locked = check(
            r#"{"state":"-3","lockedBy":"lock-1","sorter":{"LastSentToInstance":{"@counter@b":"2026-11-21T03:14:42.7859438Z"},"ReceivedFromInstance":{"lock-1":{"Last":"2026-11-21T03:14:42.8693997Z","ExecutionId":"1012aedc273b400c88e71348e2dce8b8"}},"ReceiveHorizon":"2026-11-21T02:44:42.7086091Z","SendHorizon":"2026-11-21T02:44:42.7859438Z"}}"#,
        );
        assert_eq!(EntityStatus::of(&locked).to_json(), r#"{"entityExists":true,"lockedBy":"lock-1"}"#);
        check(r#"{"sorter":{}}"#);
        let waiting = check(
            r#"{"queue":[{"op":"add","input":"1","id":"706797c6-62d8-589a-8b95-ec0e0c03129c","parent":"o2","parentExecution":"e2","Timestamp":"2026-01-02T03:04:05Z","Predecessor":"0001-01-01T00:00:00","IsLockRequest":false,"createTrace":true}],"lockedBy":"order-17","sorter":{"ReceivedFromInstance":{"o":{"Last":"2026-01-02T03:04:05.69","ExecutionId":"e","Buffered":{"2026-01-02T03:04:06Z":{"op":"a","id":"706797c6-62d8-589a-8b95-ec0e0c03129c","Timestamp":"2026-01-02T03:04:06Z","Predecessor":"2026-01-02T03:04:05.7Z","IsLockRequest":false,"createTrace":false},"2026-01-02T03:04:06.5Z":{"op":"b","id":"706797c6-62d8-589a-8b95-ec0e0c03129c","Timestamp":"2026-01-02T03:04:06.5Z","Predecessor":"2026-01-02T03:04:06Z","IsLockRequest":false,"createTrace":false}}},"p":{"Last":"0001-01-01T00:00:00","Buffered":{}}},"ReceiveHorizon":"2026-01-02T02:34:05.69Z"}}"#,
        );
        assert_eq!((waiting.queue.len(), waiting.sorter.buffered_len()), (1, 2));
        assert_eq!(EntityStatus::of(&waiting).to_json(), r#"{"queueSize":1,"lockedBy":"order-17"}"#);
    }

    #[test]
    fn states_of_in_process_entities_are_read() {
        let text =
            r#"{"$type":"X","exists":true,"state":"{\"value\":5}","suspended":true,"sorter":{"$type":"Y"}}"#;
        let state = SchedulerState::from_json(text).unwrap();
        assert_eq!((state.state.as_deref(), state.suspended), (Some("{\"value\":5}"), true));
        let deleted =
            SchedulerState::from_json(r#"{"exists":false,"state":"null","queue":null,"sorter":null}"#);
        assert_eq!(deleted, Ok(SchedulerState::default()));
        let status = r#"{"entityExists":true,"currentOperation":{"op":"add","id":"x"}}"#;
        assert!(EntityStatus::from_json(status).unwrap().entity_exists);
        assert_eq!(EntityStatus::from_json("{}").unwrap().to_json(), "{}");
    }

    #[test]
    fn what_is_no_state_is_an_error() {
        for text in [
            "",
            "null",
            "5",
            "[]",
            r#"{"state":5}"#,
            r#"{"queue":[{}]}"#,
            r#"{"queue":{}}"#,
            r#"{"sorter":{"ReceiveHorizon":"soon"}}"#,
            r#"{"sorter":{"ReceivedFromInstance":{"a":{"Buffered":{"x":{}}}}}}"#,
            &format!("{{\"sorter\":{}", "{\"a\":".repeat(10_000)),
        ] {
            assert!(SchedulerState::from_json(text).is_err(), "{text:.60}");
        }
        assert!(EntityStatus::from_json(r#"{"queueSize":-1}"#).is_err());
    }
}
