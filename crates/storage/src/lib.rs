//! Queues, tables and blobs behind three small traits.
//!
//! [`QueueStore`], [`TableStore`] and [`BlobStore`] say what a task hub needs of Azure Storage, no more.
//! Two implementations have the same semantics and pass the same contract suite: [`azure`], over the
//! `azure_*` 0.21 packages (whose types do not leave this crate), and [`memory`], the embedded store.
//! Nothing here knows what a task hub is.
//!
//! Requests go through one layer ([`request`]), which counts, bounds and repeats them. A [`connection`]
//! says which account and by what right; keys, signatures and tokens never show in errors or `Debug`, and
//! [`may_log`] keeps them out of the log.
//!
//! ```
//! use std::{sync::Arc, time::Duration};
//! use taskhub_core::SystemClock;
//! use taskhub_storage::memory::MemoryStore;
//! use taskhub_storage::request::{OperationCounts, RequestSettings};
//!
//! # tokio::runtime::Builder::new_current_thread().enable_time().build()?.block_on(async {
//! let counts = OperationCounts::default();
//! let account = MemoryStore::new(Arc::new(SystemClock)).account().layered(RequestSettings::default(), &counts);
//! account.queues.create_queue("hub-workitems").await?;
//! account.queues.put_message("hub-workitems", "{}", Duration::ZERO).await?;
//! let messages = account.queues.get_messages("hub-workitems", 32, Duration::from_secs(300)).await?;
//! assert_eq!((messages.len(), counts.of("GetMessages").non_empty), (1, 1));
//! # Ok::<(), taskhub_storage::Error>(())
//! # })?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

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
pub use limits::{MAX_TRANSACTION_BYTES, fits_queue_message, transaction_bytes};
pub use operation::{OPERATIONS, Operation, Repetition, Service};
pub use queue::{PopReceipt, PutReceipt, QueueMessage, QueueStore};
pub use table::{
    Condition, ETag, Entity, EntityPage, Properties, TableOperation, TableQuery, TableStore, Value,
    quote_filter_text,
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
