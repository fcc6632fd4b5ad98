//! The service's limits, checked before a request is sent: the emulator does not enforce most of them,
//! and the service answers some with a misleading status. Each error carries the answer that the service
//! would give.

use std::borrow::Cow;
use std::collections::HashSet;
use std::time::Duration;

use taskhub_core::Timestamp;

use crate::blob::resource;
use crate::{Entity, Error, Properties, Result, TableOperation, Value};

/// Most messages in one receive or peek. Source: Azure Queue Storage, Get Messages.
const MAX_MESSAGES: u32 = 32;
/// Longest delay or visibility timeout, inclusive. Source: Azure Queue Storage, Put Message.
pub(crate) const MAX_DELAY: Duration = Duration::from_secs(7 * 24 * 3600);
/// Largest message text, in bytes of UTF-8 after XML escaping, inclusive.
const MAX_MESSAGE_BYTES: usize = 64 * 1024;
/// Longest key, in UTF-16 units (1 KiB), inclusive.
const MAX_KEY_UNITS: usize = 512;
/// Longest string property, in UTF-16 units (64 KiB), inclusive.
const MAX_STRING_UNITS: usize = 32 * 1024;
/// Largest binary property, in bytes, inclusive.
const MAX_BINARY_BYTES: usize = 64 * 1024;
/// Most properties of a row besides the two keys and the timestamp.
const MAX_COLUMNS: usize = 252;
/// Largest row, in bytes with strings as UTF-16, inclusive.
const MAX_ROW_BYTES: usize = 1024 * 1024;
/// Most operations of a group transaction.
const MAX_OPERATIONS: usize = 100;
/// Largest body of a group transaction, in bytes.
pub const MAX_TRANSACTION_BYTES: usize = 4 * 1024 * 1024;
/// Headers of one operation inside the body of a group transaction, without its URL and row, in bytes.
const OPERATION_OVERHEAD_BYTES: usize = 512;
/// Most rows of one page.
pub(crate) const MAX_ROWS: u32 = 1000;

/// A delay as the service takes it: whole seconds, rounded up.
pub(crate) fn whole_seconds(delay: Duration) -> Duration {
    Duration::from_secs(delay.as_secs() + u64::from(delay.subsec_nanos() > 0))
}

pub(crate) fn check_count(operation: &'static str, queue: &str, count: u32) -> Result<()> {
    if (1..=MAX_MESSAGES).contains(&count) {
        return Ok(());
    }
    Err(Error::answered(operation, queue, 400, "OutOfRangeQueryParameterValue"))
}

pub(crate) fn check_delay(operation: &'static str, queue: &str, delay: Duration) -> Result<Duration> {
    let delay = whole_seconds(delay);
    if delay <= MAX_DELAY {
        return Ok(delay);
    }
    Err(Error::answered(operation, queue, 400, "OutOfRangeQueryParameterValue"))
}

/// Whether a queue takes a message of this text: it travels as XML, in which `&`, `<` and `>` take four or
/// five bytes, and 64 KiB is the limit.
pub fn fits_queue_message(text: &str) -> bool {
    let escaped = |b| match b {
        b'&' => 5,
        b'<' | b'>' => 4,
        _ => 1,
    };
    text.len() <= MAX_MESSAGE_BYTES / 5 || text.bytes().map(escaped).sum::<usize>() <= MAX_MESSAGE_BYTES
}

/// The text travels as XML 1.0, which cannot say most control characters.
pub(crate) fn check_message(operation: &'static str, queue: &str, text: &str) -> Result<()> {
    let forbidden =
        |c| matches!(c, '\u{0}'..='\u{8}' | '\u{b}' | '\u{c}' | '\u{e}'..='\u{1f}' | '\u{fffe}' | '\u{ffff}');
    // The first byte of those two is 0xEF.
    let suspicious = |b: u8| b < 0x20 || b == 0xef;
    if text.bytes().any(suspicious) && text.chars().any(forbidden) {
        return Err(Error::answered(operation, queue, 400, "InvalidXmlDocument"));
    }
    if !fits_queue_message(text) {
        return Err(Error::answered(operation, queue, 413, "RequestBodyTooLarge"));
    }
    Ok(())
}

/// Queue and container names: 3 to 63 lower-case letters, digits and single hyphens between them.
pub(crate) fn check_dns_name(operation: &'static str, name: &str) -> Result<()> {
    let good = (3..=63).contains(&name.len())
        && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
        && !name.starts_with('-')
        && !name.ends_with('-')
        && !name.contains("--");
    if good { Ok(()) } else { Err(Error::answered(operation, name, 400, "InvalidResourceName")) }
}

/// Table names: a letter, then letters and digits, 3 to 63 in all.
pub(crate) fn check_table_name(operation: &'static str, name: &str) -> Result<()> {
    let good = (3..=63).contains(&name.len())
        && name.bytes().all(|b| b.is_ascii_alphanumeric())
        && name.starts_with(|c: char| c.is_ascii_alphabetic());
    if good { Ok(()) } else { Err(Error::answered(operation, name, 400, "InvalidResourceName")) }
}

/// Blob names: 1 to 1024 characters. No client can send `.` or `..` as a whole segment, because a URL
/// resolves them; URL parsers drop some control characters, and lists cannot say what XML cannot.
pub(crate) fn check_blob_name(operation: &'static str, container: &str, blob: &str) -> Result<()> {
    let good = (1..=1024).contains(&utf16_units(blob))
        && !blob.split('/').any(|segment| segment == "." || segment == "..")
        && !blob.chars().any(|c| c.is_control() || matches!(c, '\u{fffe}' | '\u{ffff}'));
    if good {
        return Ok(());
    }
    Err(Error::answered(operation, resource(container, Some(blob)), 400, "InvalidResourceName"))
}

pub(crate) fn check_lease_duration(
    operation: &'static str,
    resource: &str,
    duration: Duration,
) -> Result<Duration> {
    if (15..=60).contains(&duration.as_secs()) {
        return Ok(Duration::from_secs(duration.as_secs()));
    }
    Err(Error::answered(operation, resource, 400, "InvalidHeaderValue"))
}

pub(crate) fn check_key(operation: &'static str, table: &str, key: &str) -> Result<()> {
    if key.chars().any(|c| matches!(c, '/' | '\\' | '#' | '?' | '\u{0}'..='\u{1f}' | '\u{7f}'..='\u{9f}')) {
        return Err(Error::answered(operation, table, 400, "InvalidInput"));
    }
    if utf16_units(key) > MAX_KEY_UNITS {
        return Err(Error::answered(operation, table, 400, "PropertyValueTooLarge"));
    }
    Ok(())
}

pub(crate) fn check_entity(operation: &'static str, table: &str, entity: &Entity) -> Result<()> {
    let refuse = |code| Err(Error::answered(operation, table, 400, code));
    check_key(operation, table, &entity.partition_key)?;
    check_key(operation, table, &entity.row_key)?;
    if entity.columns.len() > MAX_COLUMNS {
        return refuse("TooManyProperties");
    }
    for (name, value) in &entity.columns {
        if !is_property_name(name) {
            return refuse("PropertyNameInvalid");
        }
        if name.len() > 255 && name.chars().count() > 255 {
            return refuse("PropertyNameTooLong");
        }
        match value {
            Value::String(text) if utf16_units(text) > MAX_STRING_UNITS => {
                return refuse("PropertyValueTooLarge");
            }
            Value::Binary(bytes) if bytes.len() > MAX_BINARY_BYTES => {
                return refuse("PropertyValueTooLarge");
            }
            Value::DateTime(at) if *at < first_date() => return refuse("OutOfRangeInput"),
            _ => {}
        }
    }
    check_row_size(operation, table, &entity.partition_key, &entity.row_key, &entity.columns)
}

/// The row as it will be stored; after a merge it may be larger than what was sent.
pub(crate) fn check_row_size(
    operation: &'static str,
    table: &str,
    partition_key: &str,
    row_key: &str,
    columns: &Properties,
) -> Result<()> {
    let utf16 = |text: &str| 2 * utf16_units(text);
    let mut bytes = 4 + utf16(partition_key) + utf16(row_key);
    for (name, value) in columns {
        bytes += 8 + utf16(name);
        bytes += match value {
            Value::String(text) => 4 + utf16(text),
            Value::Binary(data) => 4 + data.len(),
            Value::Guid(_) => 16,
            Value::Int64(_) | Value::Double(_) | Value::DateTime(_) => 8,
            Value::Int32(_) => 4,
            Value::Bool(_) => 1,
        };
    }
    if bytes > MAX_ROW_BYTES {
        return Err(Error::answered(operation, table, 400, "EntityTooLarge"));
    }
    Ok(())
}

pub(crate) fn check_operation(
    operation: &'static str,
    table: &str,
    table_operation: &TableOperation,
) -> Result<()> {
    match table_operation {
        TableOperation::Insert(entity)
        | TableOperation::Replace(entity, _)
        | TableOperation::Merge(entity, _)
        | TableOperation::InsertOrReplace(entity)
        | TableOperation::InsertOrMerge(entity) => check_entity(operation, table, entity),
        TableOperation::Delete { partition_key, row_key, .. } => {
            check_key(operation, table, partition_key)?;
            check_key(operation, table, row_key)
        }
    }
}

/// 1 to 100 operations, one partition, each row once, 4 MiB.
pub(crate) fn check_transaction(
    operation: &'static str,
    table: &str,
    operations: &[TableOperation],
) -> Result<()> {
    let refuse = |status, code| Error::answered(operation, table, status, code);
    let Some(first) = operations.first() else {
        return Err(refuse(400, "InvalidInput"));
    };
    if operations.len() > MAX_OPERATIONS {
        return Err(refuse(400, "InvalidInput").at_index(MAX_OPERATIONS));
    }
    let partition_key = first.keys().0;
    let mut rows = HashSet::new();
    let mut bytes = 0;
    for (index, table_operation) in operations.iter().enumerate() {
        let keys = table_operation.keys();
        if keys.0 != partition_key {
            return Err(refuse(400, "CommandsInBatchActOnDifferentPartitions").at_index(index));
        }
        if !rows.insert(keys.1) {
            return Err(refuse(400, "InvalidDuplicateRow").at_index(index));
        }
        check_operation(operation, table, table_operation).map_err(|error| error.at_index(index))?;
        bytes += transaction_bytes(table_operation);
        if bytes > MAX_TRANSACTION_BYTES {
            return Err(refuse(413, "RequestBodyTooLarge").at_index(index));
        }
    }
    Ok(())
}

/// About how many bytes an operation takes in the body of a group transaction, of which all together may
/// take [`MAX_TRANSACTION_BYTES`].
pub fn transaction_bytes(operation: &TableOperation) -> usize {
    let (partition_key, row_key) = operation.keys();
    let keys = OPERATION_OVERHEAD_BYTES + 2 * (partition_key.len() + row_key.len());
    let columns = match operation {
        TableOperation::Insert(entity)
        | TableOperation::Replace(entity, _)
        | TableOperation::Merge(entity, _)
        | TableOperation::InsertOrReplace(entity)
        | TableOperation::InsertOrMerge(entity) => &entity.columns,
        TableOperation::Delete { .. } => return keys,
    };
    let column = |(name, value): (&Cow<'static, str>, &Value)| {
        name.len()
            + match value {
                Value::String(text) => 6 + json_bytes(text),
                Value::Binary(data) => 40 + name.len() + data.len().div_ceil(3) * 4,
                _ => 80 + name.len(),
            }
    };
    keys + columns.iter().map(column).sum::<usize>()
}

/// Bytes of a text as a JSON string, without the quotes.
fn json_bytes(text: &str) -> usize {
    text.bytes()
        .map(|b| match b {
            b'"' | b'\\' | b'\n' | b'\r' | b'\t' | 0x8 | 0xc => 2,
            0..0x20 => 6,
            _ => 1,
        })
        .sum()
}

fn is_property_name(name: &str) -> bool {
    let mut chars = name.chars();
    chars.next().is_some_and(|c| c.is_alphabetic() || c == '_')
        && chars.all(|c| c.is_alphanumeric() || c == '_')
        && !matches!(name, "PartitionKey" | "RowKey" | "Timestamp" | "ETag")
}

fn utf16_units(text: &str) -> usize {
    if text.is_ascii() { text.len() } else { text.encode_utf16().count() }
}

/// 1601-01-01: the first date that a table can hold.
pub(crate) fn first_date() -> Timestamp {
    Timestamp::from_ticks(504_911_232_000_000_000)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_are_rounded_up_to_whole_seconds() {
        assert_eq!(whole_seconds(Duration::ZERO), Duration::ZERO);
        assert_eq!(whole_seconds(Duration::from_nanos(1)), Duration::from_secs(1));
        assert_eq!(whole_seconds(Duration::from_secs(2)), Duration::from_secs(2));
    }

    #[test]
    fn a_message_is_measured_after_xml_escaping() {
        assert!(check_message("PutMessage", "q", &"a".repeat(65_536)).is_ok());
        assert_eq!(check_message("PutMessage", "q", &"a".repeat(65_537)).unwrap_err().status(), Some(413));
        assert!(check_message("PutMessage", "q", &"<".repeat(16_384)).is_ok());
        assert_eq!(check_message("PutMessage", "q", &"<".repeat(16_385)).unwrap_err().status(), Some(413));
        assert_eq!(check_message("PutMessage", "q", "a\u{1}").unwrap_err().status(), Some(400));
        assert!(check_message("PutMessage", "q", "a\r\n\tb").is_ok());
    }

    #[test]
    fn the_first_date_is_the_year_1601() {
        assert_eq!(first_date().to_iso(), "1601-01-01T00:00:00Z");
    }

    #[test]
    fn names_follow_the_rules_of_the_service() {
        for (name, good) in
            [("hub-workitems", true), ("ab", false), ("Hub", false), ("a--b", false), ("-ab", false)]
        {
            assert_eq!(check_dns_name("CreateQueue", name).is_ok(), good, "{name}");
        }
        for (name, good) in [("HubHistory", true), ("1Hub", false), ("ab", false), ("a-bc", false)] {
            assert_eq!(check_table_name("CreateTable", name).is_ok(), good, "{name}");
        }
    }
}
