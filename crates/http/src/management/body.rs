//! Bodies of requests.

use axum::body::{Body, Bytes};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::Response;
use taskhub_client::json::compact;

use super::{Options, reply};

/// Reads a whole body; the error is the answer.
pub(super) async fn read(headers: &HeaderMap, body: Body, options: &Options) -> Result<Bytes, Response> {
    let too_large = || {
        reply::message(
            StatusCode::PAYLOAD_TOO_LARGE,
            &format!("The body is larger than {} bytes.", options.max_body_bytes),
        )
    };
    // Said beforehand, so that nothing is sent in vain.
    let length =
        headers.get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
    if length.is_some_and(|length| length > options.max_body_bytes as u64) {
        return Err(too_large());
    }
    let read = axum::body::to_bytes(body, options.max_body_bytes);
    match tokio::time::timeout(options.body_timeout, read).await {
        Ok(Ok(bytes)) => Ok(bytes),
        Ok(Err(error)) if is_limit(&error) => Err(too_large()),
        // The connection broke, or its framing is wrong.
        Ok(Err(_)) => Err(reply::empty(StatusCode::BAD_REQUEST)),
        Err(_) => Err(reply::empty(StatusCode::REQUEST_TIMEOUT)),
    }
}

fn is_limit(error: &axum::Error) -> bool {
    let mut source = std::error::Error::source(error);
    while let Some(error) = source {
        if error.is::<http_body_util::LengthLimitError>() {
            return true;
        }
        source = error.source();
    }
    false
}

/// JSON text of a body, compact; the error is a reason in words. A byte order mark is skipped.
pub(super) fn json(bytes: &[u8]) -> Result<String, String> {
    let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
    let text = std::str::from_utf8(bytes).map_err(|error| error.to_string())?;
    compact(text).map_err(|error| error.to_string())
}
