use serde::ser::SerializeMap;
use serde::{Deserialize, Serialize, Serializer};
use taskhub_core::FailureDetails;

use crate::json::{self, WireError};

/// Result of the answer to a lock request; nobody reads it.
/// Source: Azure/durabletask, `ResponseMessage.LockAcquisitionCompletion`.
pub const LOCK_ACQUISITION_COMPLETED: &str = "Lock Acquisition Completed";

/// What an entity answers to a call. Source: Azure/durabletask, `ResponseMessage`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ResponseMessage {
    /// Serialised result, or the text of an error.
    pub result: Option<String>,
    /// Message or type of an error; which of both depends on the writer.
    pub error_message: Option<String>,
    /// The error, from writers that have such a form.
    pub failure_details: Option<FailureDetails>,
}

impl ResponseMessage {
    /// An operation ended well.
    pub fn completed(result: Option<String>) -> Self {
        Self { result, ..Self::default() }
    }

    /// An operation failed.
    pub fn failed(result: Option<String>, message: Option<String>, details: Option<FailureDetails>) -> Self {
        Self { result, error_message: message, failure_details: details }
    }

    /// All locks are held.
    pub fn lock_acquired() -> Self {
        Self::completed(Some(LOCK_ACQUISITION_COMPLETED.to_owned()))
    }

    /// Whether the operation failed.
    pub fn is_error(&self) -> bool {
        self.error_message.is_some() || self.failure_details.is_some()
    }

    /// The message as JSON.
    pub fn to_json(&self) -> String {
        json::write(self)
    }

    /// Reads a message of any dialect; `$type` and unknown members count for nothing.
    ///
    /// # Errors
    /// The text is not such a message.
    pub fn from_json(text: &str) -> Result<Self, WireError> {
        let read: Read = json::read("entity response", text)?;
        Ok(Self {
            result: read.result,
            error_message: read.error_message,
            failure_details: read.failure_details.map(details),
        })
    }
}

impl Serialize for ResponseMessage {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("result", &self.result)?;
        if let Some(message) = &self.error_message {
            map.serialize_entry("exceptionType", message)?;
        }
        if let Some(details) = &self.failure_details {
            map.serialize_entry("failureDetails", &Details(details))?;
        }
        map.end()
    }
}

struct Details<'a>(&'a FailureDetails);

impl Serialize for Details<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Self(failure) = self;
        let properties = failure.properties.as_deref();
        let properties = properties.and_then(|p| serde_json::from_str::<serde_json::Value>(p).ok());
        let mut map = serializer.serialize_map(Some(6))?;
        map.serialize_entry("ErrorType", &failure.error_type)?;
        map.serialize_entry("ErrorMessage", &failure.error_message)?;
        map.serialize_entry("StackTrace", &failure.stack_trace)?;
        map.serialize_entry("InnerFailure", &failure.inner_failure.as_deref().map(Details))?;
        map.serialize_entry("IsNonRetriable", &failure.is_non_retriable)?;
        map.serialize_entry("Properties", &properties.filter(serde_json::Value::is_object))?;
        map.end()
    }
}

#[derive(Deserialize)]
struct Read {
    #[serde(default)]
    result: Option<String>,
    #[serde(rename = "exceptionType", default)]
    error_message: Option<String>,
    #[serde(rename = "failureDetails", default)]
    failure_details: Option<ReadDetails>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct ReadDetails {
    #[serde(default)]
    error_type: Option<String>,
    #[serde(default)]
    error_message: Option<String>,
    #[serde(default)]
    stack_trace: Option<String>,
    #[serde(default)]
    inner_failure: Option<Box<ReadDetails>>,
    #[serde(default)]
    is_non_retriable: bool,
    #[serde(default)]
    properties: Option<serde_json::Map<String, serde_json::Value>>,
}

fn details(read: ReadDetails) -> FailureDetails {
    FailureDetails {
        error_type: read.error_type.unwrap_or_default(),
        error_message: read.error_message.unwrap_or_default(),
        stack_trace: read.stack_trace,
        inner_failure: read.inner_failure.map(|inner| Box::new(details(*inner))),
        is_non_retriable: read.is_non_retriable,
        properties: read.properties.map(|p| serde_json::Value::Object(p).to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str) -> ResponseMessage {
        let message = ResponseMessage::from_json(text).unwrap();
        assert_eq!(message.to_json(), text);
        message
    }

    #[test]
    fn responses_are_read_and_written_byte_for_byte() {
        assert!(!check(r#"{"result":"42"}"#).is_error());
        check(r#"{"result":null}"#);
        assert_eq!(check(r#"{"result":"Lock Acquisition Completed"}"#), ResponseMessage::lock_acquired());
        let failed = check(
            r#"{"result":"boom","exceptionType":"entity dispatch failed","failureDetails":{"ErrorType":"System.Exception","ErrorMessage":"boom","StackTrace":null,"InnerFailure":{"ErrorType":"B","ErrorMessage":"","StackTrace":"at x","InnerFailure":null,"IsNonRetriable":true,"Properties":{"n":1,"a":"b"}},"IsNonRetriable":false,"Properties":null}}"#,
        );
        assert!(failed.is_error());
        assert_eq!(failed.failure_details.unwrap().inner_failure.unwrap().error_type, "B");
    }

    #[test]
    fn other_dialects_are_read_and_other_texts_are_errors() {
        let legacy = r#"{"$type":"X","result":"boom","exceptionType":"System.Exception, X","n":1}"#;
        assert!(ResponseMessage::from_json(legacy).unwrap().is_error());
        assert_eq!(ResponseMessage::from_json("{}").unwrap(), ResponseMessage::default());
        let nested = format!("{{\"failureDetails\":{}", r#"{"InnerFailure":"#.repeat(5_000));
        for text in ["", "null", "[]", "5", r#"{"result":5}"#, r#"{"failureDetails":"x"}"#, &nested] {
            assert!(ResponseMessage::from_json(text).is_err(), "{text:.40}");
        }
    }
}
