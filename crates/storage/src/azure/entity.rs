//! Rows as JSON with type annotations.

use std::collections::BTreeMap;

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde_json::{Map, Number, Value as Json};
use taskhub_core::Timestamp;

use crate::{ETag, Entity, Value};

/// A row to send.
pub(super) fn to_json(entity: &Entity) -> Map<String, Json> {
    let mut json = Map::new();
    json.insert("PartitionKey".to_owned(), Json::from(entity.partition_key.as_str()));
    json.insert("RowKey".to_owned(), Json::from(entity.row_key.as_str()));
    for (name, value) in &entity.columns {
        let (value, edm) = match value {
            Value::String(text) => (Json::from(text.as_str()), None),
            Value::Bool(value) => (Json::from(*value), None),
            Value::Int32(value) => (Json::from(*value), None),
            Value::Int64(value) => (Json::from(value.to_string()), Some("Edm.Int64")),
            Value::Double(value) => (double_to_json(*value), Some("Edm.Double")),
            Value::DateTime(at) => (Json::from(at.to_round_trip()), Some("Edm.DateTime")),
            Value::Guid(id) => (Json::from(id.to_string()), Some("Edm.Guid")),
            Value::Binary(data) => (Json::from(BASE64.encode(data)), Some("Edm.Binary")),
        };
        json.insert(name.to_string(), value);
        if let Some(edm) = edm {
            json.insert(format!("{name}@odata.type"), Json::from(edm));
        }
    }
    json
}

fn double_to_json(value: f64) -> Json {
    match Number::from_f64(value) {
        Some(number) => Json::Number(number),
        None if value.is_nan() => Json::from("NaN"),
        None if value > 0.0 => Json::from("Infinity"),
        None => Json::from("-Infinity"),
    }
}

/// A row received, or the name of the column that cannot be read.
pub(super) fn from_json(json: Map<String, Json>) -> Result<Entity, String> {
    let mut entity = Entity::default();
    let mut types = BTreeMap::new();
    for (name, value) in &json {
        if let (Some(name), Json::String(edm)) = (name.strip_suffix("@odata.type"), value) {
            types.insert(name.to_owned(), edm.clone());
        }
    }
    for (name, value) in json {
        match (name.as_str(), value) {
            ("PartitionKey", Json::String(text)) => entity.partition_key = text,
            ("RowKey", Json::String(text)) => entity.row_key = text,
            ("odata.etag", Json::String(text)) => entity.etag = Some(ETag::new(text)),
            ("Timestamp", Json::String(text)) => {
                entity.timestamp = Some(Timestamp::parse(&text).map_err(|_| name)?);
            }
            (_, Json::Null) => {}
            (other, _) if other.contains("odata.") => {}
            (_, value) => {
                let edm = types.get(&name).map(String::as_str);
                let value = value_of(value, edm).ok_or_else(|| name.clone())?;
                entity.columns.insert(name.into(), value);
            }
        }
    }
    Ok(entity)
}

fn value_of(value: Json, edm: Option<&str>) -> Option<Value> {
    Some(match (edm, value) {
        (Some("Edm.Int64"), Json::String(text)) => Value::Int64(text.parse().ok()?),
        (Some("Edm.Int64"), Json::Number(number)) => Value::Int64(number.as_i64()?),
        (Some("Edm.Double"), Json::Number(number)) => Value::Double(number.as_f64()?),
        (Some("Edm.Double"), Json::String(text)) => Value::Double(match text.as_str() {
            "NaN" => f64::NAN,
            "Infinity" => f64::INFINITY,
            "-Infinity" => f64::NEG_INFINITY,
            digits => digits.parse().ok()?,
        }),
        (Some("Edm.DateTime"), Json::String(text)) => Value::DateTime(Timestamp::parse(&text).ok()?),
        (Some("Edm.Guid"), Json::String(text)) => Value::Guid(uuid::Uuid::parse_str(&text).ok()?),
        (Some("Edm.Binary"), Json::String(text)) => Value::Binary(BASE64.decode(text).ok()?),
        (None | Some("Edm.String"), Json::String(text)) => Value::String(text),
        (None | Some("Edm.Boolean"), Json::Bool(value)) => Value::Bool(value),
        (None | Some("Edm.Int32"), Json::Number(number)) => match number.as_i64() {
            Some(whole) => i32::try_from(whole).map_or(Value::Int64(whole), Value::Int32),
            None => Value::Double(number.as_f64()?),
        },
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_type_survives_the_way_there_and_back() {
        let mut entity = Entity::new("p", "r")
            .with("Text", "a'b")
            .with("Flag", true)
            .with("Small", 7)
            .with("At", Timestamp::parse("2026-01-15T09:30:00.1234567Z").unwrap());
        entity.set("Large", Value::Int64(5));
        entity.set("Ratio", Value::Double(1.0));
        entity.set("Infinite", Value::Double(f64::NEG_INFINITY));
        entity.set("Id", Value::Guid(uuid::Uuid::from_u128(17)));
        entity.set("Data", Value::Binary(vec![0, 255]));
        assert_eq!(from_json(to_json(&entity)), Ok(entity));
    }

    #[test]
    fn rows_of_the_service_are_read_with_version_and_time_stamp() {
        let json = serde_json::json!({
            "odata.metadata": "http://h/$metadata#T/@Element",
            "odata.etag": "W/\"datetime'2026'\"",
            "PartitionKey": "p", "RowKey": "r", "Timestamp": "2026-01-15T09:30:00.1234567Z",
            "Count": 3, "Gone": null, "Big": "9", "Big@odata.type": "Edm.Int64"
        });
        let Json::Object(json) = json else { panic!() };
        let entity = from_json(json).unwrap();
        assert_eq!(entity.etag, Some(ETag::new("W/\"datetime'2026'\"")));
        assert_eq!(entity.get("Count"), Some(&Value::Int32(3)));
        assert_eq!(entity.get("Big"), Some(&Value::Int64(9)));
        assert_eq!(entity.columns.len(), 2);
    }

    #[test]
    fn a_value_that_does_not_fit_its_type_is_named() {
        let json = serde_json::json!({"At": "yesterday", "At@odata.type": "Edm.DateTime"});
        let Json::Object(json) = json else { panic!() };
        assert_eq!(from_json(json), Err("At".to_owned()));
    }
}
