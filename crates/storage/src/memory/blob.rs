use std::collections::BTreeMap;
use std::ops::Bound;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use taskhub_core::Timestamp;
use uuid::Uuid;

use super::lease::{Lease, Protected};
use super::{Containers, MemoryStore};
use crate::blob::resource;
use crate::limits::{check_blob_name, check_dns_name, check_lease_duration};
use crate::{Blob, BlobItem, BlobPage, BlobProperties, BlobStore, Condition, ETag, Error, PutBlob, Result};

/// Blobs per page of a list. Source: Azure Blob Storage, List Blobs.
const PAGE_BLOBS: usize = 5000;

#[derive(Debug, Default)]
pub(super) struct Container {
    lease: Lease,
    blobs: BTreeMap<String, StoredBlob>,
}

#[derive(Debug)]
struct StoredBlob {
    content: Bytes,
    etag: ETag,
    last_modified_at: Timestamp,
    lease: Lease,
}

impl StoredBlob {
    fn properties(&self, now: Timestamp) -> BlobProperties {
        BlobProperties {
            etag: self.etag.clone(),
            last_modified_at: self.last_modified_at,
            size_bytes: self.content.len() as u64,
            lease: self.lease.state(now),
        }
    }

    fn to_blob(&self, now: Timestamp) -> Blob {
        Blob { properties: self.properties(now), content: self.content.clone() }
    }
}

impl Container {
    pub(super) fn blobs(&self, now: Timestamp) -> Vec<(String, Blob)> {
        self.blobs.iter().map(|(name, blob)| (name.clone(), blob.to_blob(now))).collect()
    }

    /// Writes a blob; a lease that is held stays.
    pub(super) fn load(&mut self, blob: &str, content: Bytes, version: u64, now: Timestamp) -> ETag {
        let etag = ETag::new(format!("\"0x8{version:015X}\""));
        let mut lease = self.blobs.get(blob).map(|blob| blob.lease).unwrap_or_default();
        lease.forget_if_ended(now);
        let last_modified_at = now.truncated_to_second();
        let stored = StoredBlob { content, etag: etag.clone(), last_modified_at, lease };
        self.blobs.insert(blob.to_owned(), stored);
        etag
    }
}

impl Containers {
    fn container(&mut self, operation: &'static str, container: &str) -> Result<&mut Container> {
        self.by_name
            .get_mut(container)
            .ok_or_else(|| Error::answered(operation, container, 404, "ContainerNotFound"))
    }

    fn lease(&mut self, operation: &'static str, container: &str, blob: Option<&str>) -> Result<&mut Lease> {
        let found = self.container(operation, container)?;
        let Some(blob) = blob else { return Ok(&mut found.lease) };
        match found.blobs.get_mut(blob) {
            Some(blob_found) => Ok(&mut blob_found.lease),
            None => Err(Error::answered(operation, resource(container, Some(blob)), 404, "BlobNotFound")),
        }
    }
}

impl MemoryStore {
    /// Carries out a lease operation; a refusal is a 409.
    fn with_lease(
        &self,
        operation: &'static str,
        container: &str,
        blob: Option<&str>,
        action: impl FnOnce(&mut Lease, Timestamp) -> std::result::Result<(), &'static str>,
    ) -> Result<()> {
        let now = self.now();
        let mut state = self.container_state();
        let lease = state.lease(operation, container, blob)?;
        action(lease, now).map_err(|code| Error::answered(operation, resource(container, blob), 409, code))
    }
}

#[async_trait]
impl BlobStore for MemoryStore {
    async fn create_container(&self, container: &str) -> Result<bool> {
        self.begin().await;
        check_dns_name("CreateContainer", container)?;
        let mut state = self.container_state();
        let created = !state.by_name.contains_key(container);
        state.by_name.entry(container.to_owned()).or_default();
        Ok(created)
    }

    async fn delete_container(&self, container: &str, lease_id: Option<Uuid>) -> Result<()> {
        self.begin().await;
        let now = self.now();
        let mut state = self.container_state();
        let found = state.container("DeleteContainer", container)?;
        found
            .lease
            .check_write(Protected::Container, lease_id, now)
            .map_err(|code| Error::answered("DeleteContainer", container, 412, code))?;
        state.by_name.remove(container);
        Ok(())
    }

    async fn list_containers(&self, prefix: &str) -> Result<Vec<String>> {
        self.begin().await;
        Ok(self.container_state().by_name.keys().filter(|name| name.starts_with(prefix)).cloned().collect())
    }

    fn container_url(&self, container: &str) -> String {
        format!("{}/{container}", self.base_url)
    }

    async fn put_blob(&self, container: &str, blob: &str, content: Bytes, options: PutBlob) -> Result<ETag> {
        self.begin().await;
        let refuse =
            |status, code| Err(Error::answered("PutBlob", resource(container, Some(blob)), status, code));
        check_blob_name("PutBlob", container, blob)?;
        if options.create_only && options.condition.is_some() {
            return refuse(400, "MultipleConditionHeadersNotSupported");
        }
        let now = self.now();
        let mut state = self.container_state();
        let version = self.state.next();
        let found = state.container("PutBlob", container)?;
        let existing = found.blobs.get(blob);
        if options.create_only && existing.is_some() {
            return refuse(409, "BlobAlreadyExists");
        }
        match (&options.condition, existing) {
            (None, _) | (Some(Condition::Any), Some(_)) => {}
            (Some(Condition::Matches(etag)), Some(existing)) if existing.etag == *etag => {}
            _ => return refuse(412, "ConditionNotMet"),
        }
        let lease = existing.map(|existing| existing.lease).unwrap_or_default();
        if let Err(code) = lease.check_write(Protected::Blob, options.lease_id, now) {
            return refuse(412, code);
        }
        Ok(found.load(blob, content, version, now))
    }

    async fn get_blob(&self, container: &str, blob: &str) -> Result<Option<Blob>> {
        self.begin().await;
        check_blob_name("GetBlob", container, blob)?;
        let now = self.now();
        let state = self.container_state();
        let found = state.by_name.get(container).and_then(|container| container.blobs.get(blob));
        Ok(found.map(|blob| blob.to_blob(now)))
    }

    async fn blob_properties(&self, container: &str, blob: &str) -> Result<Option<BlobProperties>> {
        self.begin().await;
        check_blob_name("GetBlobProperties", container, blob)?;
        let now = self.now();
        let state = self.container_state();
        let found = state.by_name.get(container).and_then(|container| container.blobs.get(blob));
        Ok(found.map(|blob| blob.properties(now)))
    }

    async fn delete_blob(&self, container: &str, blob: &str, lease_id: Option<Uuid>) -> Result<()> {
        self.begin().await;
        check_blob_name("DeleteBlob", container, blob)?;
        let now = self.now();
        let mut state = self.container_state();
        let lease = *state.lease("DeleteBlob", container, Some(blob))?;
        lease
            .check_write(Protected::Blob, lease_id, now)
            .map_err(|code| Error::answered("DeleteBlob", resource(container, Some(blob)), 412, code))?;
        state.container("DeleteBlob", container)?.blobs.remove(blob);
        Ok(())
    }

    async fn list_blobs(
        &self,
        container: &str,
        prefix: &str,
        continuation: Option<String>,
    ) -> Result<BlobPage> {
        self.begin().await;
        let now = self.now();
        let mut state = self.container_state();
        let limit = state.page_limit.unwrap_or(PAGE_BLOBS).min(PAGE_BLOBS);
        let found = state.container("ListBlobs", container)?;
        let from = continuation.as_deref().unwrap_or(prefix).max(prefix);
        let mut page = BlobPage::default();
        for (name, blob) in found.blobs.range::<str, _>((Bound::Included(from), Bound::Unbounded)) {
            if !name.starts_with(prefix) {
                break;
            }
            if page.blobs.len() == limit {
                page.continuation = Some(name.clone());
                break;
            }
            page.blobs.push(BlobItem {
                name: name.clone(),
                properties: blob.properties(now),
                metadata: BTreeMap::new(),
            });
        }
        Ok(page)
    }

    async fn acquire_lease(
        &self,
        container: &str,
        blob: Option<&str>,
        lease_id: Uuid,
        duration: Duration,
    ) -> Result<()> {
        self.begin().await;
        let duration = check_lease_duration("AcquireLease", &resource(container, blob), duration)?;
        self.with_lease("AcquireLease", container, blob, |lease, now| lease.acquire(lease_id, duration, now))
    }

    async fn renew_lease(&self, container: &str, blob: Option<&str>, lease_id: Uuid) -> Result<()> {
        self.begin().await;
        self.with_lease("RenewLease", container, blob, |lease, now| lease.renew(lease_id, now))
    }

    async fn change_lease(
        &self,
        container: &str,
        blob: Option<&str>,
        lease_id: Uuid,
        new_lease_id: Uuid,
    ) -> Result<()> {
        self.begin().await;
        self.with_lease("ChangeLease", container, blob, |lease, now| {
            lease.change(lease_id, new_lease_id, now)
        })
    }

    async fn release_lease(&self, container: &str, blob: Option<&str>, lease_id: Uuid) -> Result<()> {
        self.begin().await;
        self.with_lease("ReleaseLease", container, blob, |lease, _| lease.release(lease_id))
    }

    async fn break_lease(&self, container: &str, blob: Option<&str>) -> Result<()> {
        self.begin().await;
        self.with_lease("BreakLease", container, blob, |lease, _| {
            lease.end();
            Ok(())
        })
    }
}
