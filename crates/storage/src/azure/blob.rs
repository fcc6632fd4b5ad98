use std::collections::BTreeMap;
use std::num::NonZeroU32;
use std::time::Duration;

use async_trait::async_trait;
use azure_core::headers::Headers;
use azure_core::request_options::{IfMatchCondition, LeaseId, NextMarker};
use azure_core::{Context, CustomHeaders, LeaseStatus};
use azure_storage_blobs::blob::{Blob as AzureBlob, BlobProperties as AzureProperties};
use azure_storage_blobs::prelude::{BlobClient, BlobServiceClient, ContainerClient};
use bytes::{Bytes, BytesMut};
use futures::StreamExt;
use uuid::Uuid;

use super::failure::failure;
use super::policy::{Answer, ExactPath};
use super::queue::timestamp;
use crate::blob::resource;
use crate::limits::{check_blob_name, check_dns_name, check_lease_duration};
use crate::{
    Blob, BlobItem, BlobPage, BlobProperties, BlobStore, Condition, ETag, Error, ErrorKind, LeaseState,
    PutBlob, Result,
};

/// Blobs per page of a list.
const PAGE_BLOBS: NonZeroU32 = NonZeroU32::new(5000).expect("5000 is not zero");

/// Longest range that is read at once. A blob that fits is one consistent read. The package asks for a
/// checksum with ranges below 4 MiB, which the emulator refuses, so there should be no such rest.
const RANGE_BYTES: u64 = 256 * 1024 * 1024;

#[derive(Debug)]
pub(super) struct Blobs {
    pub(super) client: BlobServiceClient,
    pub(super) base_url: String,
}

impl Blobs {
    fn container(&self, container: &str) -> ContainerClient {
        self.client.container_client(container)
    }

    /// The client of a blob and the context of a request to it.
    fn blob(
        &self,
        operation: &'static str,
        container: &str,
        blob: &str,
        answer: &Answer,
    ) -> Result<(BlobClient, Context)> {
        check_blob_name(operation, container, blob)?;
        let client = self.container(container).blob_client(blob);
        let mut context = answer.context();
        if blob.starts_with('/') || blob.ends_with('/') {
            let wrong = || {
                Error::new(ErrorKind::Invalid, operation, resource(container, Some(blob)), "no such address")
            };
            let mut url = self.container(container).url().map_err(|_| wrong())?;
            url.path_segments_mut().map_err(|()| wrong())?.extend(blob.split('/'));
            context.insert(ExactPath(url.path().to_owned()));
        }
        Ok((client, context))
    }
}

fn etag(text: &str) -> ETag {
    // A list leaves out the quotes.
    if text.starts_with('"') || text.starts_with("W/") {
        ETag::new(text)
    } else {
        ETag::new(format!("\"{text}\""))
    }
}

fn properties(properties: &AzureProperties, size_bytes: u64) -> BlobProperties {
    let leased = matches!(properties.lease_status, Some(LeaseStatus::Locked));
    BlobProperties {
        etag: etag(properties.etag.as_ref()),
        last_modified_at: timestamp(properties.last_modified),
        size_bytes,
        lease: if leased { LeaseState::Leased } else { LeaseState::Free },
    }
}

fn none_if_not_found<T>(error: Error) -> Result<Option<T>> {
    if error.kind() == ErrorKind::NotFound { Ok(None) } else { Err(error) }
}

/// The header pair that makes a lease renewal a change; the packages have none for containers.
fn change_headers(new_lease_id: Uuid) -> CustomHeaders {
    let mut headers = Headers::new();
    headers.insert("x-ms-lease-action", "change");
    headers.insert("x-ms-proposed-lease-id", new_lease_id.to_string());
    headers.into()
}

#[async_trait]
impl BlobStore for Blobs {
    async fn create_container(&self, container: &str) -> Result<bool> {
        check_dns_name("CreateContainer", container)?;
        let answer = Answer::default();
        match self.container(container).create().context(answer.context()).await {
            Ok(()) => Ok(true),
            Err(error) => match failure("CreateContainer", container, &error, &answer) {
                error if error.kind() == ErrorKind::AlreadyExists => Ok(false),
                error => Err(error),
            },
        }
    }

    async fn delete_container(&self, container: &str, lease_id: Option<Uuid>) -> Result<()> {
        let answer = Answer::default();
        let mut delete = self.container(container).delete().context(answer.context());
        if let Some(lease_id) = lease_id {
            delete = delete.lease_id(LeaseId::from(lease_id));
        }
        delete.await.map_err(|error| failure("DeleteContainer", container, &error, &answer))
    }

    async fn list_containers(&self, prefix: &str) -> Result<Vec<String>> {
        let answer = Answer::default();
        let mut list = self.client.list_containers().context(answer.context());
        if !prefix.is_empty() {
            list = list.prefix(prefix.to_owned());
        }
        let mut pages = list.into_stream();
        let mut names = Vec::new();
        while let Some(page) = pages.next().await {
            let page = page.map_err(|error| failure("ListContainers", prefix, &error, &answer))?;
            names.extend(page.containers.into_iter().map(|container| container.name));
        }
        Ok(names)
    }

    fn container_url(&self, container: &str) -> String {
        format!("{}/{container}", self.base_url)
    }

    async fn put_blob(&self, container: &str, blob: &str, content: Bytes, options: PutBlob) -> Result<ETag> {
        let answer = Answer::default();
        let (client, context) = self.blob("PutBlob", container, blob, &answer)?;
        let mut put = client.put_block_blob(content).context(context);
        match (options.create_only, options.condition) {
            (true, Some(_)) => {
                let code = "MultipleConditionHeadersNotSupported";
                return Err(Error::answered("PutBlob", resource(container, Some(blob)), 400, code));
            }
            (true, None) => put = put.if_match(IfMatchCondition::NotMatch("*".to_owned())),
            (false, Some(Condition::Any)) => put = put.if_match(IfMatchCondition::Match("*".to_owned())),
            (false, Some(Condition::Matches(etag))) => {
                put = put.if_match(IfMatchCondition::Match(etag.as_str().to_owned()));
            }
            (false, None) => {}
        }
        if let Some(lease_id) = options.lease_id {
            put = put.lease_id(LeaseId::from(lease_id));
        }
        let put = put
            .await
            .map_err(|error| failure("PutBlob", &resource(container, Some(blob)), &error, &answer))?;
        Ok(etag(&put.etag))
    }

    async fn get_blob(&self, container: &str, blob: &str) -> Result<Option<Blob>> {
        let answer = Answer::default();
        let (client, context) = self.blob("GetBlob", container, blob, &answer)?;
        let failed = |error| failure("GetBlob", &resource(container, Some(blob)), &error, &answer);
        let mut parts = client.get().chunk_size(RANGE_BYTES).context(context).into_stream();
        let mut content = BytesMut::new();
        let mut first: Option<AzureProperties> = None;
        while let Some(part) = parts.next().await {
            let part = match part.map_err(failed) {
                Ok(part) => part,
                // Every read names a range, and an empty blob has none.
                Err(error) if error.status() == Some(416) => {
                    let properties = self.blob_properties(container, blob).await?;
                    return Ok(properties.map(|properties| Blob { properties, content: Bytes::new() }));
                }
                Err(error) => return none_if_not_found(error),
            };
            let changed = first.as_ref().is_some_and(|first| first.etag != part.blob.properties.etag);
            if changed {
                let message = "the blob was overwritten while it was read";
                let resource = resource(container, Some(blob));
                return Err(Error::new(ErrorKind::Unavailable, "GetBlob", resource, message));
            }
            first.get_or_insert(part.blob.properties);
            content.extend_from_slice(&part.data.collect().await.map_err(failed)?);
        }
        let content = content.freeze();
        Ok(first.map(|first| Blob { properties: properties(&first, content.len() as u64), content }))
    }

    async fn blob_properties(&self, container: &str, blob: &str) -> Result<Option<BlobProperties>> {
        let answer = Answer::default();
        let (client, context) = self.blob("GetBlobProperties", container, blob, &answer)?;
        match client.get_properties().context(context).await {
            Ok(got) => Ok(Some(properties(&got.blob.properties, got.blob.properties.content_length))),
            Err(error) => none_if_not_found(failure(
                "GetBlobProperties",
                &resource(container, Some(blob)),
                &error,
                &answer,
            )),
        }
    }

    async fn delete_blob(&self, container: &str, blob: &str, lease_id: Option<Uuid>) -> Result<()> {
        let answer = Answer::default();
        let (client, context) = self.blob("DeleteBlob", container, blob, &answer)?;
        let mut delete = client.delete().context(context);
        if let Some(lease_id) = lease_id {
            delete = delete.lease_id(LeaseId::from(lease_id));
        }
        let deleted = delete.await;
        deleted.map_err(|error| failure("DeleteBlob", &resource(container, Some(blob)), &error, &answer))?;
        Ok(())
    }

    async fn list_blobs(
        &self,
        container: &str,
        prefix: &str,
        continuation: Option<String>,
    ) -> Result<BlobPage> {
        let answer = Answer::default();
        let mut list = self
            .container(container)
            .list_blobs()
            .include_metadata(true)
            .max_results(PAGE_BLOBS)
            .context(answer.context());
        if !prefix.is_empty() {
            list = list.prefix(prefix.to_owned());
        }
        if let Some(continuation) = continuation {
            list = list.marker(NextMarker::new(continuation));
        }
        let Some(page) = list.into_stream().next().await else { return Ok(BlobPage::default()) };
        let page = page.map_err(|error| failure("ListBlobs", container, &error, &answer))?;
        let item = |blob: &AzureBlob| BlobItem {
            name: blob.name.clone(),
            properties: properties(&blob.properties, blob.properties.content_length),
            metadata: blob.metadata.clone().map(BTreeMap::from_iter).unwrap_or_default(),
        };
        Ok(BlobPage {
            blobs: page.blobs.blobs().map(item).collect(),
            continuation: page.next_marker.map(|marker| marker.as_str().to_owned()),
        })
    }

    async fn acquire_lease(
        &self,
        container: &str,
        blob: Option<&str>,
        lease_id: Uuid,
        duration: Duration,
    ) -> Result<()> {
        let resource = resource(container, blob);
        let duration = check_lease_duration("AcquireLease", &resource, duration)?;
        let answer = Answer::default();
        let proposed = LeaseId::from(lease_id);
        let acquired = match blob {
            Some(blob) => {
                let (client, context) = self.blob("AcquireLease", container, blob, &answer)?;
                client.acquire_lease(duration).proposed_lease_id(proposed).context(context).await.err()
            }
            None => {
                let acquire = self.container(container).acquire_lease(duration);
                acquire.proposed_lease_id(proposed).context(answer.context()).await.err()
            }
        };
        acquired.map_or(Ok(()), |error| Err(failure("AcquireLease", &resource, &error, &answer)))
    }

    async fn renew_lease(&self, container: &str, blob: Option<&str>, lease_id: Uuid) -> Result<()> {
        let answer = Answer::default();
        let failed = match blob {
            Some(blob) => {
                let (client, context) = self.blob("RenewLease", container, blob, &answer)?;
                client.blob_lease_client(lease_id.into()).renew().context(context).await.err()
            }
            None => {
                let client = self.container(container).container_lease_client(lease_id.into());
                client.renew().context(answer.context()).await.err()
            }
        };
        let resource = resource(container, blob);
        failed.map_or(Ok(()), |error| Err(failure("RenewLease", &resource, &error, &answer)))
    }

    async fn change_lease(
        &self,
        container: &str,
        blob: Option<&str>,
        lease_id: Uuid,
        new_lease_id: Uuid,
    ) -> Result<()> {
        let answer = Answer::default();
        let failed = match blob {
            Some(blob) => {
                let (client, context) = self.blob("ChangeLease", container, blob, &answer)?;
                let proposed = LeaseId::from(new_lease_id);
                let client = client.blob_lease_client(lease_id.into());
                client.change(proposed.into()).context(context).await.err()
            }
            None => {
                let client = self.container(container).container_lease_client(lease_id.into());
                let mut context = answer.context();
                context.insert(change_headers(new_lease_id));
                client.renew().context(context).await.err()
            }
        };
        let resource = resource(container, blob);
        failed.map_or(Ok(()), |error| Err(failure("ChangeLease", &resource, &error, &answer)))
    }

    async fn release_lease(&self, container: &str, blob: Option<&str>, lease_id: Uuid) -> Result<()> {
        let answer = Answer::default();
        let failed = match blob {
            Some(blob) => {
                let (client, context) = self.blob("ReleaseLease", container, blob, &answer)?;
                client.blob_lease_client(lease_id.into()).release().context(context).await.err()
            }
            None => {
                let client = self.container(container).container_lease_client(lease_id.into());
                client.release().context(answer.context()).await.err()
            }
        };
        let resource = resource(container, blob);
        failed.map_or(Ok(()), |error| Err(failure("ReleaseLease", &resource, &error, &answer)))
    }

    async fn break_lease(&self, container: &str, blob: Option<&str>) -> Result<()> {
        let answer = Answer::default();
        let failed = match blob {
            Some(blob) => {
                let (client, context) = self.blob("BreakLease", container, blob, &answer)?;
                client.break_lease().lease_break_period(Duration::ZERO).context(context).await.err()
            }
            None => {
                let client = self.container(container);
                let break_lease = client.break_lease().lease_break_period(Duration::ZERO);
                break_lease.context(answer.context()).await.err()
            }
        };
        let Some(error) = failed else { return Ok(()) };
        let error = failure("BreakLease", &resource(container, blob), &error, &answer);
        if error.code() == Some("LeaseNotPresentWithLeaseOperation") { Ok(()) } else { Err(error) }
    }
}
