//! Answers.

use axum::body::Body;
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};
use taskhub_client::ClientError;
use taskhub_core::ErrorKind;

use super::Conflicts;

/// Carries the place where a page of a list ends, in both directions.
pub(super) const CONTINUATION: HeaderName = HeaderName::from_static("x-ms-continuation-token");

const JSON: HeaderValue = HeaderValue::from_static("application/json; charset=utf-8");

/// Source: Azure/azure-functions-durable-extension, `HttpApiHandler.HandleRequestAsync`.
const WRONG_ARGUMENT: &str = "One or more of the arguments submitted is incorrect";
/// Source: as above.
const FAILED: &str = "Something went wrong while processing your request";
/// Source: Azure/azure-functions-durable-extension, `HttpApiHandler` (start, raise event).
const INVALID_JSON: &str = "Invalid JSON content";

/// No body.
pub(super) fn empty(code: StatusCode) -> Response {
    (code, Body::empty()).into_response()
}

/// A JSON body, compact.
pub(super) fn json(code: StatusCode, body: &Value) -> Response {
    json_text(code, body.to_string())
}

/// A JSON body that is text already.
pub(super) fn json_text(code: StatusCode, body: String) -> Response {
    (code, [(header::CONTENT_TYPE, JSON)], body).into_response()
}

/// Adds a header; leaves it out when the value cannot be one.
pub(super) fn with_header(mut response: Response, name: HeaderName, value: &str) -> Response {
    if let Ok(value) = HeaderValue::from_str(value) {
        response.headers_mut().insert(name, value);
    }
    response
}

/// `{"Message": ...}`.
pub(super) fn message(code: StatusCode, message: &str) -> Response {
    json(code, &json!({ "Message": message }))
}

/// An error as the reference serializes an exception; its stack trace stays here.
fn exception(code: StatusCode, message: &str, of: &str, exception_type: &str) -> Response {
    let body = json!({
        "Message": message,
        "ExceptionMessage": of,
        "ExceptionType": exception_type,
        "StackTrace": null,
    });
    json(code, &body)
}

/// 400: an argument is wrong.
pub(super) fn argument(of: &str) -> Response {
    exception(StatusCode::BAD_REQUEST, WRONG_ARGUMENT, of, "System.ArgumentException")
}

/// 400: an argument is wrong, with a message of its own.
pub(super) fn argument_as(message: &str, of: &str) -> Response {
    exception(StatusCode::BAD_REQUEST, message, of, "System.ArgumentException")
}

/// 400: the body is not JSON.
pub(super) fn invalid_json(reason: &str) -> Response {
    exception(StatusCode::BAD_REQUEST, INVALID_JSON, reason, "Newtonsoft.Json.JsonReaderException")
}

/// 500, or 409 where asked for: the instance's status does not allow the operation.
pub(super) fn wrong_status(conflicts: Conflicts, of: &str) -> Response {
    exception(conflicts.code(), FAILED, of, "System.InvalidOperationException")
}

/// 500, or 409 where asked for: an instance with this id is there already.
pub(super) fn already_exists(conflicts: Conflicts, status: impl std::fmt::Display) -> Response {
    let of = format!("An Orchestration instance with the status {status} already exists.");
    exception(
        conflicts.code(),
        FAILED,
        &of,
        "DurableTask.Core.Exceptions.OrchestrationAlreadyExistsException",
    )
}

/// 500: not with the hub's configuration.
pub(super) fn impossible(of: &str) -> Response {
    exception(StatusCode::INTERNAL_SERVER_ERROR, FAILED, of, "System.InvalidOperationException")
}

/// 500: the operation took too long.
pub(super) fn timed_out() -> Response {
    exception(
        StatusCode::INTERNAL_SERVER_ERROR,
        FAILED,
        "The operation has not ended in time.",
        "System.TimeoutException",
    )
}

/// What a failed operation of the client is answered with.
pub(super) fn client_error(conflicts: Conflicts, error: &ClientError) -> Response {
    match error {
        ClientError::AlreadyExists { status, .. } => already_exists(conflicts, status),
        ClientError::WrongStatus { .. } => wrong_status(conflicts, &error.to_string()),
        _ if error.kind() == ErrorKind::NotFound => empty(StatusCode::NOT_FOUND),
        _ if error.kind() == ErrorKind::Invalid => argument(&error.to_string()),
        _ => {
            tracing::error!(error = error as &dyn std::error::Error, "a request failed");
            // The chain of causes may name accounts and addresses; it stays in the log.
            exception(StatusCode::INTERNAL_SERVER_ERROR, FAILED, &error.to_string(), "System.Exception")
        }
    }
}

/// The media type of the body, without its parameters.
pub(super) fn is_json(headers: &HeaderMap) -> bool {
    let of = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    of.split(';').next().unwrap_or_default().trim().eq_ignore_ascii_case("application/json")
}
