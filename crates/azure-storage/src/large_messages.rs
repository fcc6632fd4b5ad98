//! The hub's container of large messages and large table columns.

use std::collections::BTreeMap;

use bytes::Bytes;
use futures::stream::{self, StreamExt, TryStreamExt};
use taskhub_core::ServiceError;
use taskhub_storage::{ErrorKind, PutBlob};

use crate::hub::Hub;
use crate::message;
use crate::tracking::purge::DELETE_CONCURRENCY;

/// What the file names of messages begin with, as [`message`] makes them.
const MESSAGE_PREFIX: &str = "message-";
/// What the file names of large columns begin with, as [`crate::tracking::blob_column`] makes them.
const COLUMN_PREFIX: &str = "history-";

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

    /// Deletes the blobs of an instance, page by page, and says how many there were; none when there is no
    /// container.
    ///
    /// Differs: DTFx lists blobs by the bare instance id, which takes those of every id that begins with it,
    /// and misses those under the escaped id.
    pub(crate) async fn delete_of(&self, owner: &Owner<'_>) -> Result<u64, ServiceError> {
        let mut deleted = 0;
        for prefix in owner.prefixes() {
            let mut continuation = None;
            loop {
                let page = self.list(&prefix, continuation).await?;
                let own = page.names.into_iter().filter(|name| owner.owns(name)).collect();
                deleted += self.delete_these(own).await?;
                continuation = page.continuation;
                if continuation.is_none() {
                    break;
                }
            }
        }
        Ok(deleted)
    }

    /// Deletes blobs, several at once, and says how many were there.
    pub(crate) async fn delete_these(&self, names: Vec<String>) -> Result<u64, ServiceError> {
        stream::iter(names)
            .map(|name| async move { self.delete(&name).await.map(u64::from) })
            .buffer_unordered(DELETE_CONCURRENCY)
            .try_fold(0, |sum, gone| async move { Ok(sum + gone) })
            .await
    }

    /// Names of all blobs that begin with `prefix`; `None` when they do not fit one page.
    pub(crate) async fn few(&self, prefix: &str) -> Result<Option<Vec<String>>, ServiceError> {
        let page = self.list(prefix, None).await?;
        Ok(page.continuation.is_none().then_some(page.names))
    }

    /// One page of names; an empty one when there is no container. Folders of a hierarchical account are left
    /// out.
    async fn list(&self, prefix: &str, continuation: Option<String>) -> Result<Names, ServiceError> {
        let page = match self.hub.account.blobs.list_blobs(&self.container, prefix, continuation).await {
            Ok(page) => page,
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(Names::default()),
            Err(e) => return Err(self.hub.failed("cannot list large messages", e)),
        };
        let is_folder = |metadata: &BTreeMap<String, String>| {
            metadata.get("hdi_isfolder").is_some_and(|folder| folder == "true")
        };
        let names = page.blobs.into_iter().filter(|b| !is_folder(&b.metadata)).map(|b| b.name);
        Ok(Names { names: names.collect(), continuation: page.continuation })
    }
}

#[derive(Debug, Default)]
struct Names {
    names: Vec<String>,
    continuation: Option<String>,
}

/// Tells which blobs are an instance's: its messages lie under its id, its large columns under its key, which is
/// the escaped id. Either may be the other one of another instance (`a/b` has the key `a^0b`, which is an id too),
/// and ids may contain slashes, so that what lies deeper belongs to other ids.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Owner<'a> {
    pub(crate) instance_id: &'a str,
    /// Partition key of its rows.
    pub(crate) key: &'a str,
}

impl Owner<'_> {
    /// What the names of its blobs begin with.
    pub(crate) fn prefixes(&self) -> impl Iterator<Item = String> + use<> {
        let escaped = (self.key != self.instance_id).then(|| format!("{}/", self.key));
        [Some(format!("{}/", self.instance_id)), escaped].into_iter().flatten()
    }

    /// Whether the blob is the instance's.
    pub(crate) fn owns(&self, blob_name: &str) -> bool {
        let Some((folder, file)) = blob_name.rsplit_once('/') else { return false };
        match (folder == self.instance_id, folder == self.key) {
            (true, true) => true,
            (true, false) => !file.starts_with(COLUMN_PREFIX),
            (false, true) => !file.starts_with(MESSAGE_PREFIX),
            (false, false) => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_instance_owns_messages_under_its_id_and_columns_under_its_key() {
        let owner = |instance_id, key| Owner { instance_id, key };
        let (plain, slash, caret) = (owner("a", "a"), owner("a/b", "a^0b"), owner("a^0b", "a^^0b"));
        let check = |name: &str, expected: [bool; 3]| {
            assert_eq!([plain.owns(name), slash.owns(name), caret.owns(name)], expected, "{name}");
        };
        check("a/message-1-EventRaised.json.gz", [true, false, false]);
        check("a/history-0-TaskCompleted-1-Result.json.gz", [true, false, false]);
        check("a/anything", [true, false, false]);
        check("a/b/message-1-EventRaised.json.gz", [false, true, false]);
        check("a^0b/history-0-TaskCompleted-1-Result.json.gz", [false, true, false]);
        check("a^0b/message-1-EventRaised.json.gz", [false, false, true]);
        check("a^^0b/history-0-TaskCompleted-1-Result.json.gz", [false, false, true]);
        check("a", [false, false, false]);
        check("ab/message-1-EventRaised.json.gz", [false, false, false]);
        assert_eq!(plain.prefixes().collect::<Vec<_>>(), ["a/"]);
        assert_eq!(slash.prefixes().collect::<Vec<_>>(), ["a/b/", "a^0b/"]);
    }
}
