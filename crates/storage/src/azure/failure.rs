use std::error::Error as _;

use azure_core::error::ErrorKind as AzureKind;

use super::NoToken;
use super::policy::Answer;
use crate::{Error, ErrorKind};

/// Turns a failure of the packages into ours. Their texts can hold bodies, URLs with signatures and
/// headers, so none of them is kept; only what a token provider says is.
pub(super) fn failure(
    operation: &'static str,
    resource: &str,
    error: &azure_core::Error,
    answer: &Answer,
) -> Error {
    let failed = match error.kind() {
        AzureKind::HttpResponse { status, error_code } => {
            let code = error_code.as_deref().unwrap_or_default();
            Error::answered(operation, resource, u16::from(*status), code)
                .with_retry_after(answer.seen().retry_after)
        }
        AzureKind::Io => {
            let message = format!("no answer from the service: {}", reason(error));
            Error::new(ErrorKind::Unavailable, operation, resource, message)
        }
        AzureKind::DataConversion => {
            Error::new(ErrorKind::Data, operation, resource, "the answer cannot be understood")
        }
        AzureKind::Credential => {
            let message = match no_token(error) {
                Some(reason) => format!("no token from Entra ID: {reason}"),
                None => "the credential cannot be used".to_owned(),
            };
            Error::new(ErrorKind::Denied, operation, resource, message)
        }
        _ => Error::new(ErrorKind::Invalid, operation, resource, "the request cannot be sent"),
    };
    match answer.seen().failed_index {
        Some(index) => failed.at_index(index),
        None => failed,
    }
}

/// What the token provider said.
fn no_token(error: &azure_core::Error) -> Option<&NoToken> {
    let mut cause = error.source();
    while let Some(found) = cause {
        if let Some(reason) = found.downcast_ref() {
            return Some(reason);
        }
        cause = found.source();
    }
    None
}

/// Why there was no answer, in words that hold no URL.
fn reason(error: &azure_core::Error) -> String {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = error.source();
    let mut reason = "the connection failed".to_owned();
    while let Some(found) = cause {
        if let Some(http) = found.downcast_ref::<reqwest::Error>() {
            if http.is_timeout() {
                return "the time is over".to_owned();
            }
            if http.is_connect() {
                reason = "cannot connect".to_owned();
            }
        }
        if let Some(io) = found.downcast_ref::<std::io::Error>() {
            return format!("{reason}: {}", io.kind());
        }
        cause = found.source();
    }
    reason
}
