//! From storage errors to what a dispatcher or client does about them: the one place that maps.

use taskhub_core::{ErrorKind, ServiceError, TaskHubName};
use taskhub_storage as storage;

/// Adds what was attempted, and on which hub, to a storage error.
pub(crate) fn failed(hub: &TaskHubName, what: impl std::fmt::Display, error: storage::Error) -> ServiceError {
    ServiceError::with_source(kind_of(&error), format!("{what}. hub=`{hub}`"), error)
}

fn kind_of(error: &storage::Error) -> ErrorKind {
    use storage::ErrorKind as Storage;
    match error.kind() {
        Storage::NotFound => ErrorKind::NotFound,
        Storage::AlreadyExists => ErrorKind::AlreadyExists,
        Storage::Conflict | Storage::PopReceiptMismatch => ErrorKind::SessionAborted,
        Storage::BeingDeleted | Storage::Unavailable => ErrorKind::Unavailable,
        Storage::Denied => ErrorKind::Denied,
        Storage::Data => ErrorKind::Data,
        _ => ErrorKind::Invalid,
    }
}

/// Stored data of this hub that cannot be read.
pub(crate) fn unreadable(
    hub: &TaskHubName,
    what: impl std::fmt::Display,
    error: impl Into<Box<dyn std::error::Error + Send + Sync>>,
) -> ServiceError {
    ServiceError::with_source(ErrorKind::Data, format!("{what}. hub=`{hub}`"), error)
}
