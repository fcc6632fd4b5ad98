//! Rows of the History table: one event each.
//!
//! Members become columns of the matching EDM type; those that are objects hold JSON without `$type`,
//! or the text `null`. Source: Azure/durabletask, `TableEntityConverter`.

use taskhub_core::{EventKind, ExecutionId, HistoryEvent, OrchestrationStatus, Timestamp};
use taskhub_storage::{Entity, Value};

use super::RowError;
use crate::message::DecodeError;
use crate::message::event::{self, MemberSink, MemberSource};
use crate::message::json::Json;
use crate::message::parts::Part;

const TABLE: &str = "History";

/// Row key of the event with this index in its execution: 16 upper-case hex digits.
pub fn row_key(index: u64) -> String {
    const DIGITS: &[u8; 16] = b"0123456789ABCDEF";
    (0..16).rev().map(|digit| char::from(DIGITS[(index >> (4 * digit)) as usize & 15])).collect()
}

/// The index in a row key; `None` for the sentinel and anything else.
pub fn index_of(row_key: &str) -> Option<u64> {
    let digits = row_key.len() == 16 && row_key.bytes().all(|b| b.is_ascii_hexdigit());
    if digits { u64::from_str_radix(row_key, 16).ok() } else { None }
}

/// The row of an event. Large columns are still inline (see [`super::blob_column::offload_history`]).
pub fn write(partition_key: &str, index: u64, execution_id: &ExecutionId, event: &HistoryEvent) -> Entity {
    let row = Entity::new(partition_key, row_key(index)).with("ExecutionId", execution_id.as_str());
    let mut sink = RowSink(row);
    event::write_members(event, &mut sink);
    sink.0
}

/// The event of a row (not of a sentinel) whose large columns have been restored. Columns may be missing;
/// unknown ones are ignored, as in the rows that a rewind has made to `GenericEvent`.
///
/// # Errors
/// An unknown `EventType`, which must not be skipped: what it would do to the replay is not known. Columns
/// of the wrong type, or with JSON that cannot be read.
pub fn read(row: &Entity) -> Result<HistoryEvent, RowError> {
    let event_type = row.str("EventType").ok_or(DecodeError::NoEventType);
    event_type
        .and_then(|event_type| event::read_members(event_type, &RowSource(row)))
        .map_err(|source| RowError::column(TABLE, row, source))
}

/// Execution that wrote the row.
pub fn execution_id(row: &Entity) -> Option<&str> {
    row.str("ExecutionId")
}

struct RowSink(Entity);

impl MemberSink for RowSink {
    fn event_type(&mut self, kind: &EventKind) {
        self.0.set("EventType", kind.name());
    }

    fn text(&mut self, name: &'static str, value: Option<&str>) {
        if let Some(value) = value {
            self.0.set(name, value);
        }
    }

    fn int(&mut self, name: &'static str, value: Option<i32>) {
        if let Some(value) = value {
            self.0.set(name, value);
        }
    }

    fn flag(&mut self, name: &'static str, value: bool) {
        self.0.set(name, value);
    }

    fn date(&mut self, name: &'static str, value: Option<Timestamp>) {
        if let Some(value) = value {
            self.0.set(name, value);
        }
    }

    fn status(&mut self, name: &'static str, value: OrchestrationStatus) {
        self.0.set(name, value.name());
    }

    fn part(&mut self, name: &'static str, value: Option<Part<'_>>) {
        self.0.set(name, value.map_or_else(|| "null".to_owned(), Part::column));
    }

    fn base(&mut self, event: &HistoryEvent) {
        self.0.set("EventId", event.event_id);
        self.0.set("IsPlayed", event.is_played);
        self.0.set("_Timestamp", event.timestamp);
    }
}

/// Columns of a row as members of an event or of an instance's state.
pub(super) struct RowSource<'a>(pub(super) &'a Entity);

impl RowSource<'_> {
    fn unexpected<T>(
        member: &'static str,
        expected: &'static str,
        found: &Value,
    ) -> Result<Option<T>, DecodeError> {
        let found = match found {
            Value::String(_) => "another text",
            Value::Bool(_) => "a boolean",
            Value::Int32(_) | Value::Int64(_) | Value::Double(_) => "another number",
            Value::DateTime(_) => "a date",
            Value::Guid(_) => "a GUID",
            Value::Binary(_) => "bytes",
        };
        Err(DecodeError::Member { member, expected, found })
    }
}

impl MemberSource for RowSource<'_> {
    fn text(&self, name: &'static str) -> Result<Option<String>, DecodeError> {
        match self.0.get(name) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text.clone())),
            Some(other) => Self::unexpected(name, "a string", other),
        }
    }

    fn int(&self, name: &'static str) -> Result<Option<i32>, DecodeError> {
        let Some(value) = self.0.get(name) else { return Ok(None) };
        let number = match value {
            Value::Int32(number) => Some(*number),
            Value::Int64(number) => i32::try_from(*number).ok(),
            Value::String(text) => text.parse().ok(),
            _ => None,
        };
        number.map_or_else(|| Self::unexpected(name, "an integer of 32 bits", value), |n| Ok(Some(n)))
    }

    fn flag(&self, name: &'static str) -> Result<bool, DecodeError> {
        match self.0.get(name) {
            None => Ok(false),
            Some(Value::Bool(flag)) => Ok(*flag),
            Some(other) => Self::unexpected(name, "a boolean", other).map(Option::unwrap_or_default),
        }
    }

    fn date(&self, name: &'static str) -> Result<Option<Timestamp>, DecodeError> {
        let Some(value) = self.0.get(name) else { return Ok(None) };
        let at = match value {
            Value::DateTime(at) => Some(*at),
            Value::String(text) => Timestamp::parse(text).ok(),
            _ => None,
        };
        at.map_or_else(|| Self::unexpected(name, "a date", value), |at| Ok(Some(at)))
    }

    fn status(&self, name: &'static str) -> Result<Option<OrchestrationStatus>, DecodeError> {
        let Some(text) = self.text(name)? else { return Ok(None) };
        event::status_of(&text, name).map(Some)
    }

    /// Absent, empty and the text `null` all mean null: provider 1.x leaves the column out.
    fn part<T>(
        &self,
        name: &'static str,
        read: impl FnOnce(&Json<'_>) -> Result<T, DecodeError>,
    ) -> Result<Option<T>, DecodeError> {
        let Some(text) = self.text(name)?.filter(|text| !text.trim().is_empty()) else { return Ok(None) };
        match Json::parse(&text)? {
            Json::Null => Ok(None),
            json => read(&json).map(Some),
        }
    }

    fn timestamp(&self) -> Result<Option<Timestamp>, DecodeError> {
        self.date("_Timestamp")
    }
}

#[cfg(test)]
mod tests;
