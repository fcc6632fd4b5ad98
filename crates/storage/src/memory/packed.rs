use std::borrow::Cow;

use taskhub_core::Timestamp;
use uuid::Uuid;

use crate::{Properties, Value};

const STRING: u8 = 0;
const FALSE: u8 = 1;
const TRUE: u8 = 2;
const INT32: u8 = 3;
const INT64: u8 = 4;
const DOUBLE: u8 = 5;
const DATE_TIME: u8 = 6;
const GUID: u8 = 7;
const BINARY: u8 = 8;

/// The properties of a stored row in one piece: mostly short texts, which would each take an allocation, and
/// several times the room.
///
/// For each property the length of its name (4 bytes), its name, its type (1 byte) and its value; before texts and
/// bytes, their length (4 bytes). Numbers are little-endian.
#[derive(Debug, Clone)]
pub(super) struct Packed(Box<[u8]>);

impl Packed {
    pub(super) fn new(columns: &Properties) -> Self {
        let room = |(name, value): (&Cow<'static, str>, &Value)| {
            let value = match value {
                Value::String(text) => 4 + text.len(),
                Value::Binary(data) => 4 + data.len(),
                Value::Bool(_) => 0,
                Value::Int32(_) => 4,
                Value::Int64(_) | Value::Double(_) | Value::DateTime(_) => 8,
                Value::Guid(_) => 16,
            };
            4 + name.len() + 1 + value
        };
        let mut bytes = Vec::with_capacity(columns.iter().map(room).sum());
        for (name, value) in columns {
            put(&mut bytes, name.as_bytes());
            match value {
                Value::String(text) => {
                    bytes.push(STRING);
                    put(&mut bytes, text.as_bytes());
                }
                Value::Bool(flag) => bytes.push(if *flag { TRUE } else { FALSE }),
                Value::Int32(number) => put_number(&mut bytes, INT32, number.to_le_bytes()),
                Value::Int64(number) => put_number(&mut bytes, INT64, number.to_le_bytes()),
                Value::Double(number) => put_number(&mut bytes, DOUBLE, number.to_le_bytes()),
                Value::DateTime(at) => put_number(&mut bytes, DATE_TIME, at.ticks().to_le_bytes()),
                Value::Guid(id) => put_number(&mut bytes, GUID, id.into_bytes()),
                Value::Binary(data) => {
                    bytes.push(BINARY);
                    put(&mut bytes, data);
                }
            }
        }
        Self(bytes.into_boxed_slice())
    }

    /// All of them.
    pub(super) fn unpack(&self) -> Properties {
        self.iter().map(|(name, value)| (Cow::Owned(name.to_owned()), value.read())).collect()
    }

    /// Those of these names.
    pub(super) fn select(&self, names: &[String]) -> Properties {
        let selected = self.iter().filter(|(name, _)| names.iter().any(|wanted| wanted == name));
        selected.map(|(name, value)| (Cow::Owned(name.to_owned()), value.read())).collect()
    }

    pub(super) fn get(&self, name: &str) -> Option<Value> {
        self.iter().find(|(found, _)| *found == name).map(|(_, value)| value.read())
    }

    fn iter(&self) -> Iter<'_> {
        Iter(&self.0)
    }
}

/// Lengths are those of limits that the service has, far below 4 GiB.
fn put(bytes: &mut Vec<u8>, data: &[u8]) {
    bytes.extend_from_slice(&(data.len() as u32).to_le_bytes());
    bytes.extend_from_slice(data);
}

fn put_number<const N: usize>(bytes: &mut Vec<u8>, kind: u8, number: [u8; N]) {
    bytes.push(kind);
    bytes.extend_from_slice(&number);
}

/// A value as it is stored.
struct Stored<'a> {
    kind: u8,
    bytes: &'a [u8],
}

impl Stored<'_> {
    fn read(&self) -> Value {
        fn number<const N: usize>(bytes: &[u8]) -> [u8; N] {
            bytes.first_chunk().copied().unwrap_or([0; N])
        }
        match self.kind {
            STRING => Value::String(text(self.bytes).to_owned()),
            FALSE => Value::Bool(false),
            TRUE => Value::Bool(true),
            INT32 => Value::Int32(i32::from_le_bytes(number(self.bytes))),
            INT64 => Value::Int64(i64::from_le_bytes(number(self.bytes))),
            DOUBLE => Value::Double(f64::from_le_bytes(number(self.bytes))),
            DATE_TIME => Value::DateTime(Timestamp::from_ticks(i64::from_le_bytes(number(self.bytes)))),
            GUID => Value::Guid(Uuid::from_bytes(number(self.bytes))),
            _ => Value::Binary(self.bytes.to_vec()),
        }
    }
}

struct Iter<'a>(&'a [u8]);

impl<'a> Iter<'a> {
    fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(taken)
    }

    fn length(&mut self) -> Option<usize> {
        let (length, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(u32::from_le_bytes(*length) as usize)
    }
}

impl<'a> Iterator for Iter<'a> {
    type Item = (&'a str, Stored<'a>);

    fn next(&mut self) -> Option<Self::Item> {
        let length = self.length()?;
        let name = self.take(length)?;
        let (kind, rest) = self.0.split_first()?;
        self.0 = rest;
        let length = match *kind {
            FALSE | TRUE => 0,
            INT32 => 4,
            INT64 | DOUBLE | DATE_TIME => 8,
            GUID => 16,
            _ => self.length()?,
        };
        Some((text(name), Stored { kind: *kind, bytes: self.take(length)? }))
    }
}

/// What was a text when it was packed.
fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn properties_come_out_as_they_went_in() {
        let columns = Properties::from([
            ("Empty".into(), Value::from("")),
            ("Text".into(), Value::from("日 and more")),
            ("No".into(), Value::Bool(false)),
            ("Yes".into(), Value::Bool(true)),
            ("Small".into(), Value::Int32(i32::MIN)),
            ("Large".into(), Value::Int64(i64::MAX)),
            ("Ratio".into(), Value::Double(-1.5)),
            ("At".into(), Value::DateTime(Timestamp::MAX)),
            ("Id".into(), Value::Guid(Uuid::from_u128(u128::MAX - 7))),
            ("Data".into(), Value::Binary(vec![0, 1, 255])),
            ("Nothing".into(), Value::Binary(Vec::new())),
        ]);
        let packed = Packed::new(&columns);
        assert_eq!(packed.unpack(), columns);
        for (name, value) in &columns {
            assert_eq!(packed.get(name).as_ref(), Some(value), "{name}");
        }
        assert_eq!(packed.get("Other"), None);
        let some = packed.select(&["Yes".to_owned(), "Other".to_owned(), "Text".to_owned()]);
        assert_eq!(some.keys().collect::<Vec<_>>(), ["Text", "Yes"]);
        assert_eq!(Packed::new(&Properties::new()).unpack(), Properties::new());
    }
}
