use std::fs;
use std::io::ErrorKind;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::Value;
use taskhub_azure_storage::PartitionManagerKind;

/// What a task hub program takes from host.json. `None` where the file says nothing.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct HostJson {
    pub(crate) hub_name: Option<String>,
    pub(crate) connection_name: Option<String>,
    pub(crate) storage_type: Option<String>,
    pub(crate) partition_count: Option<u32>,
    pub(crate) partition_manager: Option<PartitionManagerKind>,
    pub(crate) control_queue_batch_size: Option<u32>,
    pub(crate) control_queue_buffer_threshold: Option<u32>,
    pub(crate) control_queue_visibility_timeout: Option<Duration>,
    pub(crate) work_item_queue_visibility_timeout: Option<Duration>,
    pub(crate) max_queue_polling_interval: Option<Duration>,
    /// Whether messages are written as Base64.
    pub(crate) base64_messages: Option<bool>,
    pub(crate) max_concurrent_activities: Option<u32>,
    pub(crate) max_concurrent_entities: Option<u32>,
    pub(crate) max_entity_operation_batch_size: Option<u32>,
    pub(crate) max_concurrent_orchestrators: Option<u32>,
    pub(crate) extended_sessions_enabled: Option<bool>,
    pub(crate) extended_session_idle_timeout: Option<Duration>,
    pub(crate) use_app_lease: Option<bool>,
    pub(crate) use_forwarded_host: Option<bool>,
    /// Whether a start may replace an instance that has not finished.
    pub(crate) overrides_any_state: Option<bool>,
    pub(crate) default_version: Option<String>,
    /// Failures after which a message goes into quarantine; only this implementation knows it.
    pub(crate) quarantine_after: Option<u32>,
    /// Whether requests are sent as often as by .NET; only this implementation knows it.
    pub(crate) dtfx_cadence: Option<bool>,
    /// Longest silence of an idle control queue, if it is shorter; only this implementation knows it.
    pub(crate) max_control_queue_polling_interval: Option<Duration>,
    /// Whether activities run inside the episodes that ask for them; only this implementation knows it.
    pub(crate) fuse_activities: Option<bool>,
}

impl HostJson {
    /// Reads host.json of a directory; `None` when there is none.
    ///
    /// # Errors
    /// The file cannot be read, is not JSON, or a value is out of its range.
    pub(super) fn load(directory: &Path) -> Result<Option<Self>> {
        let path = directory.join("host.json");
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) => {
                return Err(error)
                    .with_context(|| format!("could not read host.json. file=`{}`", path.display()));
            }
        };
        parse_lenient(&text)
            .and_then(|file| Self::from_value(&file))
            .with_context(|| format!("host.json is not valid. file=`{}`", path.display()))
            .map(Some)
    }

    fn from_value(file: &Value) -> Result<Self> {
        if !file.is_object() {
            bail!("not a JSON object");
        }
        let section = if member(file, "version").and_then(Value::as_str) == Some("2.0") {
            member(file, "extensions").and_then(|e| member(e, "durableTask"))
        } else {
            member(file, "durableTask")
        };
        let task = Section { name: "durableTask", value: section.unwrap_or(&Value::Null) };
        let storage = Section {
            name: "durableTask.storageProvider",
            value: member(task.value, "storageProvider").unwrap_or(&Value::Null),
        };
        let http = Section {
            name: "durableTask.httpSettings",
            value: member(task.value, "httpSettings").unwrap_or(&Value::Null),
        };
        let minutes = |key| storage.duration(key, Duration::from_secs(60), Duration::from_secs(3600));
        // Differs: `func durable` ignores the connection name of the storage provider and so looks at
        // another account than the application does.
        let connection_name = match (storage.text("connectionName")?, storage.text("connectionStringName")?) {
            (Some(name), _) | (None, Some(name)) => Some(name),
            (None, None) => task.text("azureStorageConnectionStringName")?,
        };
        Ok(Self {
            hub_name: task.text("hubName")?,
            connection_name,
            storage_type: storage.text("type")?,
            partition_count: storage.number("partitionCount", 1, 16)?,
            partition_manager: partition_manager(
                storage.boolean("useTablePartitionManagement")?,
                storage.boolean("useLegacyPartitionManagement")?,
            )?,
            control_queue_batch_size: storage.number("controlQueueBatchSize", 1, 32)?,
            control_queue_buffer_threshold: storage.number("controlQueueBufferThreshold", 1, 1000)?,
            control_queue_visibility_timeout: minutes("controlQueueVisibilityTimeout")?,
            work_item_queue_visibility_timeout: minutes("workItemQueueVisibilityTimeout")?,
            max_queue_polling_interval: storage.duration(
                "maxQueuePollingInterval",
                Duration::from_millis(1),
                Duration::MAX,
            )?,
            base64_messages: match storage.text("queueClientMessageEncoding")?.as_deref() {
                None => None,
                Some(name) if name.eq_ignore_ascii_case("Base64") => Some(true),
                Some(name) if name.eq_ignore_ascii_case("UTF8") => Some(false),
                Some(name) => bail!("queueClientMessageEncoding must be UTF8 or Base64. value=`{name}`"),
            },
            max_concurrent_activities: task.number("maxConcurrentActivityFunctions", 1, i32::MAX as u32)?,
            max_concurrent_entities: task.number("maxConcurrentEntityFunctions", 1, i32::MAX as u32)?,
            max_entity_operation_batch_size: task.number(
                "maxEntityOperationBatchSize",
                1,
                i32::MAX as u32,
            )?,
            max_concurrent_orchestrators: task.number(
                "maxConcurrentOrchestratorFunctions",
                1,
                i32::MAX as u32,
            )?,
            extended_sessions_enabled: task.boolean("extendedSessionsEnabled")?,
            extended_session_idle_timeout: task
                .number("extendedSessionIdleTimeoutInSeconds", 1, i32::MAX as u32)?
                .map(|s| Duration::from_secs(s.into())),
            use_app_lease: task.boolean("useAppLease")?,
            use_forwarded_host: http.boolean("useForwardedHost")?,
            overrides_any_state: match task.text("overridableExistingInstanceStates")?.as_deref() {
                None => None,
                Some(name) if name.eq_ignore_ascii_case("AnyState") => Some(true),
                Some(name) if name.eq_ignore_ascii_case("NonRunningStates") => Some(false),
                Some(name) => bail!(
                    "overridableExistingInstanceStates must be NonRunningStates or AnyState. value=`{name}`"
                ),
            },
            default_version: task.text("defaultVersion")?,
            quarantine_after: storage.number("quarantinePoisonMessagesAfter", 1, u32::MAX)?,
            dtfx_cadence: storage.boolean("dtfxCadence")?,
            max_control_queue_polling_interval: storage.duration(
                "maxControlQueuePollingInterval",
                Duration::from_millis(1),
                Duration::MAX,
            )?,
            fuse_activities: storage.boolean("fuseActivities")?,
        })
    }
}

/// Source: Azure/durabletask, `AzureStorageOrchestrationService.GetPartitionManager`.
fn partition_manager(table: Option<bool>, legacy: Option<bool>) -> Result<Option<PartitionManagerKind>> {
    Ok(match (table, legacy) {
        (Some(true), Some(true)) => {
            bail!("useTablePartitionManagement and useLegacyPartitionManagement cannot both be true")
        }
        (Some(true), _) => Some(PartitionManagerKind::Table),
        (_, Some(true)) => Some(PartitionManagerKind::Legacy),
        (Some(false), _) => Some(PartitionManagerKind::Safe),
        (None, _) => None,
    })
}

struct Section<'a> {
    name: &'static str,
    value: &'a Value,
}

impl Section<'_> {
    fn get(&self, key: &str) -> Option<&Value> {
        member(self.value, key).filter(|v| !v.is_null())
    }

    fn wrong<T>(&self, key: &str, expected: &str) -> Result<T> {
        bail!("{}.{key} must be {expected}", self.name)
    }

    fn text(&self, key: &str) -> Result<Option<String>> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::String(text)) if text.trim().is_empty() => Ok(None),
            Some(Value::String(text)) => Ok(Some(text.clone())),
            Some(_) => self.wrong(key, "a text"),
        }
    }

    /// `true` or `"true"`: settings that come from variables are texts.
    fn boolean(&self, key: &str) -> Result<Option<bool>> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Bool(on)) => Ok(Some(*on)),
            Some(Value::String(text)) if text.eq_ignore_ascii_case("true") => Ok(Some(true)),
            Some(Value::String(text)) if text.eq_ignore_ascii_case("false") => Ok(Some(false)),
            Some(_) => self.wrong(key, "true or false"),
        }
    }

    fn number(&self, key: &str, low: u32, high: u32) -> Result<Option<u32>> {
        let Some(value) = self.get(key) else { return Ok(None) };
        let number = match value {
            Value::String(text) => text.trim().parse().ok(),
            other => other.as_u64(),
        };
        match number.and_then(|n: u64| u32::try_from(n).ok()) {
            Some(n) if (low..=high).contains(&n) => Ok(Some(n)),
            _ => self.wrong(key, &format!("a whole number, {low} to {high}")),
        }
    }

    fn duration(&self, key: &str, low: Duration, high: Duration) -> Result<Option<Duration>> {
        match self.get(key) {
            None => Ok(None),
            Some(value) => match value.as_str().and_then(parse_time_span) {
                Some(span) if (low..=high).contains(&span) => Ok(Some(span)),
                Some(_) => self.wrong(key, "within its range"),
                None => self.wrong(key, "a duration, hh:mm:ss"),
            },
        }
    }
}

/// .NET's `TimeSpan`: `[d.]hh:mm:ss[.fffffff]`, not negative.
fn parse_time_span(text: &str) -> Option<Duration> {
    let digits = |part: &str| -> Option<u64> {
        (!part.is_empty() && part.len() <= 7 && part.bytes().all(|b| b.is_ascii_digit()))
            .then(|| part.parse().ok())?
    };
    let mut parts = text.trim().split(':');
    let (first, minutes, last) = (parts.next()?, digits(parts.next()?)?, parts.next()?);
    if parts.next().is_some() {
        return None;
    }
    let (days, hours) = match first.split_once('.') {
        Some((days, hours)) => (digits(days)?, digits(hours)?),
        None => (0, digits(first)?),
    };
    let (seconds, fraction) = match last.split_once('.') {
        Some((seconds, fraction)) => {
            (digits(seconds)?, format!("{:0<7}", digits(fraction).map(|_| fraction)?))
        }
        None => (digits(last)?, "0".to_owned()),
    };
    if hours > 23 || minutes > 59 || seconds > 59 {
        return None;
    }
    let whole = Duration::from_secs(days * 86_400 + hours * 3600 + minutes * 60 + seconds);
    Some(whole + Duration::from_nanos(digits(&fraction)? * 100))
}

/// A member of an object, ignoring the case of its name.
pub(crate) fn member<'a>(object: &'a Value, key: &str) -> Option<&'a Value> {
    object.as_object()?.iter().find(|(k, _)| k.eq_ignore_ascii_case(key)).map(|(_, v)| v)
}

/// JSON that may have a byte order mark and comments, as the Functions host reads it.
pub(super) fn parse_lenient(text: &str) -> Result<Value> {
    Ok(serde_json::from_str(&without_comments(text.trim_start_matches('\u{feff}')))?)
}

fn without_comments(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(c) = rest.chars().next() {
        let taken = match c {
            '"' => string_length(rest),
            '/' if rest.starts_with("//") => {
                rest = &rest[rest.find('\n').unwrap_or(rest.len())..];
                continue;
            }
            '/' if rest.starts_with("/*") => {
                rest = rest[2..].find("*/").map_or("", |end| &rest[end + 4..]);
                continue;
            }
            _ => c.len_utf8(),
        };
        out.push_str(&rest[..taken]);
        rest = &rest[taken..];
    }
    out
}

/// Bytes of the JSON string at the beginning of `text`, quotes included.
fn string_length(text: &str) -> usize {
    let mut escaped = false;
    for (at, b) in text.bytes().enumerate().skip(1) {
        match b {
            _ if escaped => escaped = false,
            b'\\' => escaped = true,
            b'"' => return at + 1,
            _ => {}
        }
    }
    text.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<HostJson> {
        HostJson::from_value(&parse_lenient(text)?)
    }

    #[test]
    fn the_partition_manager_follows_two_switches() {
        use PartitionManagerKind::{Legacy, Safe, Table};
        for (table, legacy, expected) in [
            (None, None, None),
            (None, Some(false), None),
            (Some(true), None, Some(Table)),
            (Some(true), Some(false), Some(Table)),
            (Some(false), None, Some(Safe)),
            (Some(false), Some(false), Some(Safe)),
            (Some(false), Some(true), Some(Legacy)),
            (None, Some(true), Some(Legacy)),
        ] {
            assert_eq!(partition_manager(table, legacy).unwrap(), expected, "{table:?} {legacy:?}");
        }
        assert!(partition_manager(Some(true), Some(true)).is_err());
    }

    #[test]
    fn the_section_depends_on_the_version_and_names_ignore_case() {
        let v2 = r#"{"Version": "2.0", "durableTask": {"hubName": "Wrong"}, "Extensions": {"DurableTask": {"HUBNAME": "Right"}}}"#;
        assert_eq!(parse(v2).unwrap().hub_name.as_deref(), Some("Right"));
        let v1 =
            r#"{"durableTask": {"HubName": "Right"}, "extensions": {"durableTask": {"hubName": "Wrong"}}}"#;
        assert_eq!(parse(v1).unwrap().hub_name.as_deref(), Some("Right"));
    }

    #[test]
    fn settings_of_a_worker_are_read_across() {
        let host = parse(
            r#"{"durableTask": {
                "maxConcurrentActivityFunctions": 12, "maxConcurrentOrchestratorFunctions": "3",
                "maxConcurrentEntityFunctions": 7, "maxEntityOperationBatchSize": 50,
                "extendedSessionsEnabled": true, "extendedSessionIdleTimeoutInSeconds": 20, "useAppLease": false,
                "httpSettings": {"useForwardedHost": true}, "overridableExistingInstanceStates": "anyState",
                "defaultVersion": "1.0",
                "storageProvider": {
                    "partitionCount": 16, "controlQueueBatchSize": 8, "quarantinePoisonMessagesAfter": 20, "dtfxCadence": true, "fuseActivities": true,
                    "maxControlQueuePollingInterval": "00:00:10", "controlQueueBufferThreshold": 100,
                    "controlQueueVisibilityTimeout": "00:01:00", "workItemQueueVisibilityTimeout": "01:00:00",
                    "maxQueuePollingInterval": "00:00:02.5", "queueClientMessageEncoding": "base64",
                    "useTablePartitionManagement": "true"}}}"#,
        )
        .unwrap();
        let expected = HostJson {
            partition_count: Some(16),
            partition_manager: Some(PartitionManagerKind::Table),
            control_queue_batch_size: Some(8),
            control_queue_buffer_threshold: Some(100),
            control_queue_visibility_timeout: Some(Duration::from_secs(60)),
            work_item_queue_visibility_timeout: Some(Duration::from_secs(3600)),
            max_queue_polling_interval: Some(Duration::from_millis(2500)),
            base64_messages: Some(true),
            max_concurrent_activities: Some(12),
            max_concurrent_entities: Some(7),
            max_entity_operation_batch_size: Some(50),
            max_concurrent_orchestrators: Some(3),
            extended_sessions_enabled: Some(true),
            extended_session_idle_timeout: Some(Duration::from_secs(20)),
            use_app_lease: Some(false),
            use_forwarded_host: Some(true),
            overrides_any_state: Some(true),
            default_version: Some("1.0".to_owned()),
            quarantine_after: Some(20),
            dtfx_cadence: Some(true),
            max_control_queue_polling_interval: Some(Duration::from_secs(10)),
            fuse_activities: Some(true),
            ..HostJson::default()
        };
        assert_eq!(host, expected);
    }

    #[test]
    fn values_out_of_range_are_errors_that_name_the_key() {
        for (key, value) in [
            ("partitionCount", "17"),
            ("partitionCount", "0"),
            ("controlQueueBatchSize", "0"),
            ("controlQueueBufferThreshold", "1001"),
            ("controlQueueVisibilityTimeout", "\"00:00:59\""),
            ("workItemQueueVisibilityTimeout", "\"01:00:01\""),
            ("maxQueuePollingInterval", "\"00:00:00\""),
            ("maxControlQueuePollingInterval", "\"00:00:00\""),
            ("queueClientMessageEncoding", "\"UTF16\""),
        ] {
            let host = format!(r#"{{"durableTask": {{"storageProvider": {{"{key}": {value}}}}}}}"#);
            let error = parse(&host).unwrap_err().to_string();
            assert!(error.contains(key), "{error}");
        }
    }

    #[test]
    fn time_spans_are_those_of_dotnet() {
        for (text, millis) in [
            ("00:00:30", Some(30_000)),
            ("1.02:03:04.5", Some(93_784_500)),
            ("0:0:1", Some(1000)),
            ("30", None),
            ("00:60:00", None),
            ("-00:00:01", None),
            ("", None),
        ] {
            assert_eq!(parse_time_span(text), millis.map(Duration::from_millis), "{text}");
        }
    }

    #[test]
    fn comments_are_skipped_outside_of_strings() {
        let text = "\u{feff}{/* é */ \"a\": \"http://x /* \\\" */\", // end\n \"b\": 1} // last";
        assert_eq!(parse_lenient(text).unwrap().to_string(), r#"{"a":"http://x /* \" */","b":1}"#);
        assert!(parse_lenient("{ /* open").is_err());
    }
}
