use std::collections::BTreeMap;
use std::fmt::Debug;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use taskhub_core::Timestamp;
use uuid::Uuid;

use crate::{Condition, ETag, Result};

/// Who may write a blob or delete a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LeaseState {
    /// Nobody holds a lease: never taken, released, expired or broken.
    Free,
    /// Somebody holds it.
    Leased,
}

/// Properties of a blob.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BlobProperties {
    /// Version.
    pub etag: ETag,
    /// Last write.
    pub last_modified_at: Timestamp,
    /// Size in bytes as stored.
    pub size_bytes: u64,
    /// Whether a lease is held.
    pub lease: LeaseState,
}

/// A blob with its content as stored (never unpacked).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Blob {
    /// Its properties.
    pub properties: BlobProperties,
    /// Its content.
    pub content: Bytes,
}

/// A blob in a list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BlobItem {
    /// Name within the container.
    pub name: String,
    /// Its properties.
    pub properties: BlobProperties,
    /// Its metadata (a folder of a hierarchical account has `hdi_isfolder`).
    pub metadata: BTreeMap<String, String>,
}

/// One page of a list. It may be short or empty while there is more.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct BlobPage {
    /// Blobs in name order.
    pub blobs: Vec<BlobItem>,
    /// Where the next page begins; `None` at the end.
    pub continuation: Option<String>,
}

/// Options of a put.
#[derive(Debug, Clone, Default)]
pub struct PutBlob {
    /// Fail with `AlreadyExists` when the blob exists (`If-None-Match: *`).
    pub create_only: bool,
    /// Fail with `Conflict` unless the condition holds.
    pub condition: Option<Condition>,
    /// Lease that is held on the blob.
    pub lease_id: Option<Uuid>,
}

/// How errors name a blob or container.
pub(crate) fn resource(container: &str, blob: Option<&str>) -> String {
    blob.map_or_else(|| container.to_owned(), |blob| format!("{container}/{blob}"))
}

/// A blob service with block blobs, written whole, and leases on blobs and containers.
///
/// A lease method with `blob: None` concerns the container itself.
#[async_trait]
pub trait BlobStore: Send + Sync + Debug {
    /// Creates a container; `false` when it existed.
    async fn create_container(&self, container: &str) -> Result<bool>;

    /// Deletes a container with its blobs, under its lease if one is held.
    async fn delete_container(&self, container: &str, lease_id: Option<Uuid>) -> Result<()>;

    /// Names of all containers that begin with `prefix`, in order.
    async fn list_containers(&self, prefix: &str) -> Result<Vec<String>>;

    /// Absolute URL of a container, without a query or trailing slash.
    fn container_url(&self, container: &str) -> String;

    /// Writes a whole blob in one request.
    async fn put_blob(&self, container: &str, blob: &str, content: Bytes, options: PutBlob) -> Result<ETag>;

    /// Reads a whole blob; `None` when the blob or its container does not exist.
    async fn get_blob(&self, container: &str, blob: &str) -> Result<Option<Blob>>;

    /// Properties of a blob; `None` when the blob or its container does not exist.
    async fn blob_properties(&self, container: &str, blob: &str) -> Result<Option<BlobProperties>>;

    /// Deletes a blob with its snapshots.
    async fn delete_blob(&self, container: &str, blob: &str, lease_id: Option<Uuid>) -> Result<()>;

    /// One page of the blobs whose names begin with `prefix`.
    async fn list_blobs(
        &self,
        container: &str,
        prefix: &str,
        continuation: Option<String>,
    ) -> Result<BlobPage>;

    /// Takes a lease of 15 to 60 s under an id of the caller's; holding it already is a success.
    async fn acquire_lease(
        &self,
        container: &str,
        blob: Option<&str>,
        lease_id: Uuid,
        duration: Duration,
    ) -> Result<()>;

    /// Prolongs a lease by its duration.
    async fn renew_lease(&self, container: &str, blob: Option<&str>, lease_id: Uuid) -> Result<()>;

    /// Gives a held lease another id; that it has the new id already is a success.
    async fn change_lease(
        &self,
        container: &str,
        blob: Option<&str>,
        lease_id: Uuid,
        new_lease_id: Uuid,
    ) -> Result<()>;

    /// Ends a held lease.
    async fn release_lease(&self, container: &str, blob: Option<&str>, lease_id: Uuid) -> Result<()>;

    /// Ends whatever lease there is, at once; that there is none is a success.
    async fn break_lease(&self, container: &str, blob: Option<&str>) -> Result<()>;
}
