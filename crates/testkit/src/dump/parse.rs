use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use serde_json::Value as Json;
use taskhub_core::Timestamp;
use taskhub_storage::{Entity, LeaseState, Value};
use uuid::Uuid;

use super::{
    BlobDump, ContainerDump, HubDump, MessageDump, MessageState, QueueDump, TableDump, gunzip, gzip, is_gzip,
};

/// Reads a captured hub (`hubdump/1` JSON, packed with gzip or not).
///
/// # Errors
/// The file cannot be read or is not such a dump; the error names the file and the place.
pub fn read(path: &Path) -> Result<HubDump> {
    parse(&read_text(path)?).with_context(|| path.display().to_string())
}

/// The text of a file, packed with gzip or not.
pub(crate) fn read_text(path: &Path) -> Result<String> {
    let name = || path.display().to_string();
    let mut bytes = std::fs::read(path).with_context(name)?;
    if is_gzip(&bytes) {
        bytes = gunzip(&bytes).with_context(|| format!("{}: damaged gzip", name()))?;
    }
    String::from_utf8(bytes).with_context(name)
}

/// Parses the text of a captured hub.
///
/// # Errors
/// It is not `hubdump/1`, or it is a normalised dump, which has lost what a hub needs.
pub fn parse(text: &str) -> Result<HubDump> {
    let dump: Json = serde_json::from_str(text)?;
    ensure!(dump["format"] == "hubdump/1", "not a hub dump: format {}", dump["format"]);
    ensure!(dump["normalized"] != true, "a normalised dump");
    let captured_at = dump["capturedAt"].as_str().map(Timestamp::parse).transpose()?;
    Ok(HubDump {
        hub: string(&dump, "hub")?,
        captured_at,
        blob_endpoint: string(&dump["endpoints"], "blob")?,
        tables: each(&dump, "tables", table)?,
        queues: each(&dump, "queues", |json| queue(json, captured_at))?,
        containers: each(&dump, "containers", container)?,
    })
}

fn each<T>(parent: &Json, key: &str, read: impl Fn(&Json) -> Result<T>) -> Result<Vec<T>> {
    let items = parent[key].as_array().with_context(|| format!("no list `{key}`"))?;
    items.iter().enumerate().map(|(i, item)| read(item).with_context(|| format!("{key}[{i}]"))).collect()
}

fn string(parent: &Json, key: &str) -> Result<String> {
    parent[key].as_str().map(str::to_owned).with_context(|| format!("no text `{key}`"))
}

fn table(json: &Json) -> Result<TableDump> {
    Ok(TableDump { name: string(json, "name")?, rows: each(json, "entities", row)? })
}

fn row(json: &Json) -> Result<Entity> {
    let mut entity = Entity::new(string(json, "PartitionKey")?, string(json, "RowKey")?);
    for column in json["columns"].as_array().context("no list `columns`")? {
        let name = string(column, "name")?;
        match value(&string(column, "edm")?, &column["value"]).with_context(|| name.clone())? {
            Value::DateTime(at) if name == "Timestamp" => entity.timestamp = Some(at),
            value => entity.set(name, value),
        }
    }
    Ok(entity)
}

fn value(edm: &str, json: &Json) -> Result<Value> {
    let text = || json.as_str().context("not a text");
    Ok(match edm {
        "Edm.String" => Value::String(text()?.to_owned()),
        "Edm.Boolean" => Value::Bool(json.as_bool().context("not a boolean")?),
        "Edm.Int32" => Value::Int32(i32::try_from(json.as_i64().context("not a number")?)?),
        "Edm.Int64" => Value::Int64(text()?.parse()?),
        "Edm.Double" => Value::Double(match json.as_f64() {
            Some(number) => number,
            None => text()?.parse()?,
        }),
        "Edm.DateTime" => Value::DateTime(Timestamp::parse(text()?)?),
        "Edm.Guid" => Value::Guid(Uuid::parse_str(text()?)?),
        "Edm.Binary" => Value::Binary(BASE64.decode(text()?)?),
        other => bail!("unknown type {other}"),
    })
}

fn queue(json: &Json, captured_at: Option<Timestamp>) -> Result<QueueDump> {
    Ok(QueueDump {
        name: string(json, "name")?,
        messages: each(json, "messages", |message| self::message(message, captured_at))?,
        unseen: json["unseenCount"].as_u64().unwrap_or(0),
    })
}

fn message(json: &Json, captured_at: Option<Timestamp>) -> Result<MessageDump> {
    let state = match json["state"].as_str() {
        None | Some("visible") => MessageState::Visible,
        Some("scheduled") => MessageState::Scheduled,
        Some("dequeued") => MessageState::Dequeued,
        Some(other) => bail!("unknown state {other}"),
    };
    let hidden_for = if state == MessageState::Visible {
        Duration::ZERO
    } else {
        let visible_at = Timestamp::parse(&string(json, "timeNextVisible")?)?;
        visible_at.saturating_since(captured_at.context("hidden messages but no `capturedAt`")?)
    };
    Ok(MessageDump {
        text: string(json, "rawText")?,
        inserted_at: http_date(&string(json, "insertionTime")?)?,
        hidden_for,
        dequeue_count: u32::try_from(json["dequeueCount"].as_u64().unwrap_or(0))?,
        state,
    })
}

/// `Sat, 21 Nov 2026 03:13:08 GMT`
fn http_date(text: &str) -> Result<Timestamp> {
    const MONTHS: [&str; 12] =
        ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
    let parts: Vec<&str> = text.split(' ').collect();
    let [_, day, month, year, clock, "GMT"] = parts[..] else { bail!("not an HTTP date: {text}") };
    let month = MONTHS.iter().position(|m| *m == month).with_context(|| format!("no month: {text}"))? + 1;
    Ok(Timestamp::parse(&format!("{year}-{month:02}-{day}T{clock}Z"))?)
}

fn container(json: &Json) -> Result<ContainerDump> {
    Ok(ContainerDump { name: string(json, "name")?, blobs: each(json, "blobs", blob)? })
}

fn blob(json: &Json) -> Result<BlobDump> {
    let leased = json["properties"]["LeaseStatus"] == "locked";
    Ok(BlobDump {
        name: string(json, "name")?,
        content: content(&json["content"])?,
        lease: if leased { LeaseState::Leased } else { LeaseState::Free },
    })
}

fn content(json: &Json) -> Result<Bytes> {
    if let Some(stored) = json["storedBase64"].as_str() {
        return Ok(BASE64.decode(stored)?.into());
    }
    let kind = string(json, "kind")?;
    if kind == "empty" {
        return Ok(Bytes::new());
    }
    let plain = match json["base64"].as_str() {
        Some(base64) => BASE64.decode(base64)?,
        None => {
            let mark = if json["bom"] == true { "\u{feff}" } else { "" };
            format!("{mark}{}", string(json, "text")?).into_bytes()
        }
    };
    Ok(if kind.starts_with("gzip+") { gzip(&plain) } else { plain }.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dump(tables: &str, queues: &str, containers: &str) -> HubDump {
        parse(&format!(
            r#"{{"format":"hubdump/1","normalized":false,"hub":"Hub","capturedAt":"2026-11-21T03:13:11.210Z",
               "endpoints":{{"blob":"http://127.0.0.1:1/account"}},
               "tables":[{tables}],"queues":[{queues}],"containers":[{containers}]}}"#
        ))
        .unwrap()
    }

    #[test]
    fn columns_have_the_types_the_service_showed() {
        let hub = dump(
            r#"{"name":"HubHistory","entities":[{"PartitionKey":"i","RowKey":"0","columns":[
                {"name":"A","edm":"Edm.Int32","value":-1},{"name":"B","edm":"Edm.Int64","value":"5000000000"},
                {"name":"C","edm":"Edm.DateTime","value":"2026-11-21T03:13:08.2996257Z"},
                {"name":"D","edm":"Edm.Boolean","value":true},{"name":"E","edm":"Edm.String","value":"null"},
                {"name":"Timestamp","edm":"Edm.DateTime","value":"2026-11-21T03:13:08Z"}]}]}"#,
            "",
            "",
        );
        let row = &hub.table("History").unwrap().rows[0];
        let at = Timestamp::parse("2026-11-21T03:13:08.2996257Z").unwrap();
        let expected = Entity::new("i", "0")
            .with("A", -1)
            .with("B", Value::Int64(5_000_000_000))
            .with("C", at)
            .with("D", true)
            .with("E", "null");
        assert_eq!(row.columns, expected.columns);
        assert_eq!(row.timestamp.unwrap(), at.truncated_to_second());
    }

    #[test]
    fn a_hidden_message_keeps_what_it_had_left() {
        let hub = dump(
            "",
            r#"{"name":"hub-workitems","unseenCount":0,"messages":[{"rawText":"{}","dequeueCount":2,
                "insertionTime":"Sat, 21 Nov 2026 03:13:08 GMT","state":"dequeued",
                "timeNextVisible":"2026-11-21T03:15:00.710Z"}]}"#,
            "",
        );
        let message = &hub.queue("-workitems").unwrap().messages[0];
        assert_eq!(message.hidden_for, Duration::from_millis(109_500));
        assert_eq!((message.dequeue_count, message.state), (2, MessageState::Dequeued));
        assert_eq!(message.inserted_at.to_iso(), "2026-11-21T03:13:08Z");
    }

    #[test]
    fn packed_content_is_packed_again() {
        let hub = dump(
            "",
            "",
            r#"{"name":"hub-largemessages","blobs":[{"name":"b","properties":{"LeaseStatus":"unlocked"},
                "content":{"kind":"gzip+json","text":"[1]"}}]}"#,
        );
        let blob = &hub.container("-largemessages").unwrap().blobs[0];
        assert!(blob.is_gzip());
        assert_eq!(blob.text().unwrap(), "[1]");
    }

    #[test]
    fn a_normalised_dump_is_refused() {
        assert!(parse(r#"{"format":"hubdump/1","normalized":true}"#).is_err());
        assert!(parse(r#"{"format":"other"}"#).is_err());
    }
}
