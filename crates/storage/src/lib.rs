//! Queues, tables and blobs behind three small traits.
//!
//! [`QueueStore`], [`TableStore`] and [`BlobStore`] say what a task hub needs of Azure Storage, no more.
//! Two implementations have the same semantics and pass the same contract suite: [`azure`], over the
//! `azure_*` 0.21 packages (whose types do not leave this crate), and [`memory`], the embedded store.
//! Nothing here knows what a task hub is.

pub mod azure;
mod blob;
pub mod connection;
mod error;
mod limits;
pub mod memory;
mod operation;
mod queue;
pub mod request;
mod table;

pub use blob::{Blob, BlobItem, BlobPage, BlobProperties, BlobStore, LeaseState, PutBlob};
pub use error::{Error, ErrorKind, Result};
pub use operation::{OPERATIONS, Operation, Repetition, Service};
pub use queue::{PopReceipt, PutReceipt, QueueMessage, QueueStore};
pub use table::{
    Condition, ETag, Entity, EntityPage, TableOperation, TableQuery, TableStore, Value, quote_filter_text,
};

use std::sync::Arc;

use request::{OperationCounts, RequestSettings};

/// Directive for a log filter, to be added after the user's: the `azure_*` packages write authorization
/// headers, signatures and contents at debug and trace. [`may_log`] cannot be overridden by the user.
pub const LOG_DIRECTIVE: &str = "azure=warn";

/// Whether an event may be written to a log at all; for a filter in front of the user's. False for what
/// the `azure_*` packages say below `WARN`, because it holds secrets.
pub fn may_log(metadata: &tracing::Metadata<'_>) -> bool {
    !metadata.target().starts_with("azure_") || *metadata.level() <= tracing::Level::WARN
}

/// The three services of one storage account.
#[derive(Clone, Debug)]
pub struct StorageAccount {
    /// Queues.
    pub queues: Arc<dyn QueueStore>,
    /// Tables.
    pub tables: Arc<dyn TableStore>,
    /// Blobs.
    pub blobs: Arc<dyn BlobStore>,
}

impl StorageAccount {
    /// Sends all requests through one layer that counts, bounds and repeats them.
    #[must_use]
    pub fn layered(self, settings: RequestSettings, counts: &OperationCounts) -> Self {
        request::layered(self, settings, counts)
    }
}
