use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use taskhub_storage::{Blob, BlobPage, BlobProperties, BlobStore, ETag, PutBlob, Result};
use uuid::Uuid;

use super::Faulty;

fn resource(container: &str, blob: Option<&str>) -> String {
    blob.map_or_else(|| container.to_owned(), |blob| format!("{container}/{blob}"))
}

#[async_trait]
impl BlobStore for Faulty<dyn BlobStore> {
    async fn create_container(&self, container: &str) -> Result<bool> {
        self.run("CreateContainer", container, self.inner.create_container(container)).await
    }

    async fn delete_container(&self, container: &str, lease_id: Option<Uuid>) -> Result<()> {
        self.run("DeleteContainer", container, self.inner.delete_container(container, lease_id)).await
    }

    async fn list_containers(&self, prefix: &str) -> Result<Vec<String>> {
        self.run("ListContainers", prefix, self.inner.list_containers(prefix)).await
    }

    fn container_url(&self, container: &str) -> String {
        self.inner.container_url(container)
    }

    async fn put_blob(&self, container: &str, blob: &str, content: Bytes, options: PutBlob) -> Result<ETag> {
        let request = self.inner.put_blob(container, blob, content, options);
        self.run("PutBlob", &resource(container, Some(blob)), request).await
    }

    async fn get_blob(&self, container: &str, blob: &str) -> Result<Option<Blob>> {
        self.run("GetBlob", &resource(container, Some(blob)), self.inner.get_blob(container, blob)).await
    }

    async fn blob_properties(&self, container: &str, blob: &str) -> Result<Option<BlobProperties>> {
        let request = self.inner.blob_properties(container, blob);
        self.run("GetBlobProperties", &resource(container, Some(blob)), request).await
    }

    async fn delete_blob(&self, container: &str, blob: &str, lease_id: Option<Uuid>) -> Result<()> {
        let request = self.inner.delete_blob(container, blob, lease_id);
        self.run("DeleteBlob", &resource(container, Some(blob)), request).await
    }

    async fn list_blobs(
        &self,
        container: &str,
        prefix: &str,
        continuation: Option<String>,
    ) -> Result<BlobPage> {
        self.run("ListBlobs", container, self.inner.list_blobs(container, prefix, continuation)).await
    }

    async fn acquire_lease(
        &self,
        container: &str,
        blob: Option<&str>,
        lease_id: Uuid,
        duration: Duration,
    ) -> Result<()> {
        let request = self.inner.acquire_lease(container, blob, lease_id, duration);
        self.run("AcquireLease", &resource(container, blob), request).await
    }

    async fn renew_lease(&self, container: &str, blob: Option<&str>, lease_id: Uuid) -> Result<()> {
        let request = self.inner.renew_lease(container, blob, lease_id);
        self.run("RenewLease", &resource(container, blob), request).await
    }

    async fn change_lease(
        &self,
        container: &str,
        blob: Option<&str>,
        lease_id: Uuid,
        new_lease_id: Uuid,
    ) -> Result<()> {
        let request = self.inner.change_lease(container, blob, lease_id, new_lease_id);
        self.run("ChangeLease", &resource(container, blob), request).await
    }

    async fn release_lease(&self, container: &str, blob: Option<&str>, lease_id: Uuid) -> Result<()> {
        let request = self.inner.release_lease(container, blob, lease_id);
        self.run("ReleaseLease", &resource(container, blob), request).await
    }

    async fn break_lease(&self, container: &str, blob: Option<&str>) -> Result<()> {
        self.run("BreakLease", &resource(container, blob), self.inner.break_lease(container, blob)).await
    }
}
