use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use uuid::Uuid;

use super::Layer;
use crate::blob::resource;
use crate::operation as op;
use crate::{Blob, BlobPage, BlobProperties, BlobStore, ETag, PutBlob, Result};

#[async_trait]
impl BlobStore for Layer<dyn BlobStore> {
    async fn create_container(&self, container: &str) -> Result<bool> {
        let attempt = || self.inner.create_container(container);
        self.requests.run(op::CREATE_CONTAINER, container, None, attempt).await
    }

    async fn delete_container(&self, container: &str, lease_id: Option<Uuid>) -> Result<()> {
        let attempt = || self.inner.delete_container(container, lease_id);
        self.requests.run(op::DELETE_CONTAINER, container, Some(()), attempt).await
    }

    async fn list_containers(&self, prefix: &str) -> Result<Vec<String>> {
        self.requests.run(op::LIST_CONTAINERS, prefix, None, || self.inner.list_containers(prefix)).await
    }

    fn container_url(&self, container: &str) -> String {
        self.inner.container_url(container)
    }

    async fn put_blob(&self, container: &str, blob: &str, content: Bytes, options: PutBlob) -> Result<ETag> {
        let attempt = || self.inner.put_blob(container, blob, content.clone(), options.clone());
        self.requests.run(op::PUT_BLOB, &resource(container, Some(blob)), None, attempt).await
    }

    async fn get_blob(&self, container: &str, blob: &str) -> Result<Option<Blob>> {
        let attempt = || self.inner.get_blob(container, blob);
        self.requests.run(op::GET_BLOB, &resource(container, Some(blob)), None, attempt).await
    }

    async fn blob_properties(&self, container: &str, blob: &str) -> Result<Option<BlobProperties>> {
        let attempt = || self.inner.blob_properties(container, blob);
        self.requests.run(op::GET_BLOB_PROPERTIES, &resource(container, Some(blob)), None, attempt).await
    }

    async fn delete_blob(&self, container: &str, blob: &str, lease_id: Option<Uuid>) -> Result<()> {
        let attempt = || self.inner.delete_blob(container, blob, lease_id);
        self.requests.run(op::DELETE_BLOB, &resource(container, Some(blob)), Some(()), attempt).await
    }

    async fn list_blobs(
        &self,
        container: &str,
        prefix: &str,
        continuation: Option<String>,
    ) -> Result<BlobPage> {
        let attempt = || self.inner.list_blobs(container, prefix, continuation.clone());
        self.requests.run(op::LIST_BLOBS, container, None, attempt).await
    }

    async fn acquire_lease(
        &self,
        container: &str,
        blob: Option<&str>,
        lease_id: Uuid,
        duration: Duration,
    ) -> Result<()> {
        let attempt = || self.inner.acquire_lease(container, blob, lease_id, duration);
        self.requests.run(op::ACQUIRE_LEASE, &resource(container, blob), None, attempt).await
    }

    async fn renew_lease(&self, container: &str, blob: Option<&str>, lease_id: Uuid) -> Result<()> {
        let attempt = || self.inner.renew_lease(container, blob, lease_id);
        self.requests.run(op::RENEW_LEASE, &resource(container, blob), None, attempt).await
    }

    async fn change_lease(
        &self,
        container: &str,
        blob: Option<&str>,
        lease_id: Uuid,
        new_lease_id: Uuid,
    ) -> Result<()> {
        let attempt = || self.inner.change_lease(container, blob, lease_id, new_lease_id);
        self.requests.run(op::CHANGE_LEASE, &resource(container, blob), None, attempt).await
    }

    async fn release_lease(&self, container: &str, blob: Option<&str>, lease_id: Uuid) -> Result<()> {
        let attempt = || self.inner.release_lease(container, blob, lease_id);
        self.requests.run(op::RELEASE_LEASE, &resource(container, blob), None, attempt).await
    }

    async fn break_lease(&self, container: &str, blob: Option<&str>) -> Result<()> {
        let attempt = || self.inner.break_lease(container, blob);
        self.requests.run(op::BREAK_LEASE, &resource(container, blob), None, attempt).await
    }
}
