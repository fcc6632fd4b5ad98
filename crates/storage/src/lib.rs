//! Queues, tables and blobs behind three small traits.
//!
//! [`QueueStore`], [`TableStore`] and [`BlobStore`] say what a task hub needs of Azure Storage, no more.
//! Two implementations have the same semantics and pass the same contract suite: `azure`, over the
//! `azure_*` 0.21 packages (whose types do not leave this crate), and [`memory`], the embedded store.
//! Nothing here knows what a task hub is.

mod blob;
mod error;
mod limits;
pub mod memory;
mod queue;
mod table;

pub use blob::{Blob, BlobItem, BlobPage, BlobProperties, BlobStore, LeaseState, PutBlob};
pub use error::{Error, ErrorKind, Result};
pub use queue::{PopReceipt, PutReceipt, QueueMessage, QueueStore};
pub use table::{
    Condition, ETag, Entity, EntityPage, TableOperation, TableQuery, TableStore, Value, quote_filter_text,
};

use std::sync::Arc;

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
