//! Answers of entities, in the forms of all writers, as results of calls.

use std::fmt;
use std::sync::Arc;

use serde_json::Value;
use taskhub_core::FailureDetails;
use taskhub_entities::{EntityId, ResponseMessage, WireError};

use super::{ApplicationError, FailedTask, INVALID_OPERATION_TYPE, OrchestratorError, TaskFailure, TaskKind};
use crate::task::{Outcome, Slot};

/// A task that has failed before anything was sent.
pub(crate) fn rejected(name: &str, reason: &dyn fmt::Display) -> Arc<Slot> {
    let failure = FailedTask { message: reason.to_string(), ..failed(TaskKind::Rejected, -1, name) };
    Slot::resolved(Outcome::Task(Err(failure.into())))
}

/// The error of something that a rule of critical sections forbids.
pub(crate) fn locking_error(rule: &dyn fmt::Display) -> OrchestratorError {
    ApplicationError::new(INVALID_OPERATION_TYPE, rule.to_string()).into()
}

fn failed(kind: TaskKind, number: i32, name: &str) -> FailedTask {
    FailedTask {
        kind,
        name: name.to_owned(),
        entity: None,
        version: None,
        schedule_id: number,
        message: String::new(),
        details: None,
        failure_details: None,
    }
}

/// The result of an operation. Core answers with failure details or a message; in-process Durable Functions
/// with the type of an exception and the exception, serialised; other languages with `Error` and a text.
pub(crate) fn entity_result(
    answer: Result<ResponseMessage, WireError>,
    number: i32,
    entity: &EntityId,
    operation: &str,
) -> Result<Option<String>, TaskFailure> {
    let failed = |kind| FailedTask { entity: Some(entity.clone()), ..failed(kind, number, operation) };
    let ResponseMessage { result, error_message, failure_details } = match answer {
        Ok(answer) if !answer.is_error() => return Ok(answer.result),
        Ok(answer) => answer,
        Err(error) => {
            return Err(FailedTask { message: error.to_string(), ..failed(TaskKind::Payload) }.into());
        }
    };
    if let Some(details) = failure_details {
        let message = details.error_message.clone();
        let failure_details = Some(details);
        return Err(FailedTask { message, failure_details, ..failed(TaskKind::Entity) }.into());
    }
    let error_message = error_message.unwrap_or_default();
    let Some(result) = result else {
        return Err(FailedTask { message: error_message, ..failed(TaskKind::Entity) }.into());
    };
    if let Ok(Value::Object(exception)) = serde_json::from_str(&result)
        && exception.contains_key("ClassName")
    {
        let message = exception.get("Message").and_then(Value::as_str).unwrap_or(&error_message).to_owned();
        return Err(FailedTask { message, details: Some(result), ..failed(TaskKind::Entity) }.into());
    }
    // A text, as it is or as JSON. The other member names a type, with its assembly perhaps.
    let message = serde_json::from_str(&result).unwrap_or(result);
    let error_type = error_message.split(',').next().unwrap_or_default().trim();
    let failure_details = Some(FailureDetails::new(error_type, message.as_str()));
    Err(FailedTask { message, failure_details, ..failed(TaskKind::Entity) }.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failure(json: &str) -> TaskFailure {
        let entity = EntityId::new("counter", "a").unwrap();
        entity_result(ResponseMessage::from_json(json), 3, &entity, "add").unwrap_err()
    }

    #[test]
    fn failures_of_all_writers_have_a_message_and_a_cause() {
        for (answer, message, cause) in [
            (
                r#"{"result":null,"failureDetails":{"ErrorType":"System.NotSupportedException","ErrorMessage":"no","StackTrace":null,"InnerFailure":null,"IsNonRetriable":true,"Properties":null}}"#,
                "no",
                "System.NotSupportedException",
            ),
            (
                r#"{"result":"{\"$type\":\"X\",\"ClassName\":\"System.InvalidOperationException\",\"Message\":\"boom\",\"InnerException\":null}","exceptionType":"System.InvalidOperationException, System.Private.CoreLib, Version=8.0.0.0"}"#,
                "boom",
                "System.InvalidOperationException",
            ),
            (r#"{"result":"bad key","exceptionType":"Error"}"#, "bad key", "Error"),
            (r#"{"result":"\"bad key\"","exceptionType":"X.Y, X"}"#, "bad key", "X.Y"),
        ] {
            let failure = failure(answer);
            assert_eq!((failure.kind, failure.message.as_str()), (TaskKind::Entity, message), "{answer}");
            assert!(failure.is_caused_by(cause), "{failure:?}");
            assert_eq!((failure.name.as_str(), failure.schedule_id), ("add", 3));
        }
        let bare = failure(r#"{"result":null,"exceptionType":"entity dispatch failed"}"#);
        assert_eq!((bare.to_string().as_str(), bare.cause()), ("entity dispatch failed", None));
    }

    #[test]
    fn an_answer_that_cannot_be_read_fails_the_call_and_is_not_quoted() {
        let failure = failure(r#"{"result":{"card":"4111"}}"#);
        assert_eq!(failure.kind, TaskKind::Payload);
        assert!(!failure.to_string().contains("4111"), "{failure}");
    }
}
