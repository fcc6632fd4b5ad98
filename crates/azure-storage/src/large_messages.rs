//! The hub's container of large messages and large table columns.

use bytes::Bytes;
use futures::stream::{self, StreamExt, TryStreamExt};
use taskhub_core::ServiceError;
use taskhub_storage::{ErrorKind, PutBlob};

use crate::hub::Hub;
use crate::message;
use crate::tracking::purge::DELETE_CONCURRENCY;

/// A message or column refers to a blob that is not there.
#[derive(Debug, thiserror::Error)]
#[error("the blob does not exist")]
pub(crate) struct MissingBlob;

/// Reads and writes gzipped texts in `{hub}-largemessages`.
#[derive(Debug)]
pub(crate) struct LargeMessages<'a> {
    hub: &'a Hub,
    container: String,
}

impl<'a> LargeMessages<'a> {
    pub(crate) fn new(hub: &'a Hub) -> Self {
        Self { hub, container: hub.names.large_message_container() }
    }

    /// Absolute URL of the container.
    pub(crate) fn container_url(&self) -> String {
        self.hub.account.blobs.container_url(&self.container)
    }

    /// Stores a compressed text; creates the container on first use.
    ///
    /// Differs: one Put Blob instead of an empty blob, blocks and block lists, so that a crash leaves no
    /// truncated content.
    pub(crate) async fn write(&self, name: &str, content: Vec<u8>) -> Result<(), ServiceError> {
        let content = Bytes::from(content);
        let blobs = &self.hub.account.blobs;
        let put = blobs.put_blob(&self.container, name, content.clone(), PutBlob::default()).await;
        let put = match put {
            Err(e) if e.kind() == ErrorKind::NotFound => {
                blobs
                    .create_container(&self.container)
                    .await
                    .map_err(|e| self.hub.failed("cannot create the large-message container", e))?;
                blobs.put_blob(&self.container, name, content, PutBlob::default()).await
            }
            other => other,
        };
        put.map(drop).map_err(|e| self.hub.failed(format!("cannot write a large message. blob=`{name}`"), e))
    }

    /// Reads a text.
    ///
    /// # Errors
    /// `Data` when the blob is missing, or is not gzipped UTF-8.
    pub(crate) async fn read(&self, name: &str) -> Result<String, ServiceError> {
        let found = self.hub.account.blobs.get_blob(&self.container, name).await;
        let found =
            found.map_err(|e| self.hub.failed(format!("cannot read a large message. blob=`{name}`"), e))?;
        let Some(blob) = found else {
            return Err(self.hub.unreadable(
                format!("a large message is missing. container=`{}` blob=`{name}`", self.container),
                MissingBlob,
            ));
        };
        message::decompress(&blob.content).map_err(|e| {
            self.hub.unreadable(
                format!("a large message cannot be unpacked. container=`{}` blob=`{name}`", self.container),
                e,
            )
        })
    }

    /// Deletes a blob; one that is gone counts as deleted.
    pub(crate) async fn delete(&self, name: &str) -> Result<bool, ServiceError> {
        match self.hub.account.blobs.delete_blob(&self.container, name, None).await {
            Ok(()) => Ok(true),
            Err(e) if e.kind() == ErrorKind::NotFound => Ok(false),
            Err(e) => Err(self.hub.failed(format!("cannot delete a large message. blob=`{name}`"), e)),
        }
    }

    /// Deletes all blobs whose names begin with `prefix`, page by page; none when there is no container.
    /// Folders of a hierarchical account are left out.
    pub(crate) async fn delete_all(&self, prefix: &str) -> Result<u64, ServiceError> {
        let mut deleted = 0;
        let mut continuation = None;
        loop {
            let page = match self.hub.account.blobs.list_blobs(&self.container, prefix, continuation).await {
                Ok(page) => page,
                Err(e) if e.kind() == ErrorKind::NotFound => return Ok(deleted),
                Err(e) => return Err(self.hub.failed("cannot list large messages", e)),
            };
            let is_folder = |metadata: &std::collections::BTreeMap<String, String>| {
                metadata.get("hdi_isfolder").is_some_and(|folder| folder == "true")
            };
            let names = page.blobs.into_iter().filter(|b| !is_folder(&b.metadata)).map(|b| b.name);
            deleted += stream::iter(names)
                .map(|name| async move { self.delete(&name).await.map(u64::from) })
                .buffer_unordered(DELETE_CONCURRENCY)
                .try_fold(0, |sum, gone| async move { Ok(sum + gone) })
                .await?;
            continuation = page.continuation;
            if continuation.is_none() {
                return Ok(deleted);
            }
        }
    }
}
