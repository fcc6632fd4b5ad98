//! The blobs of dead letters: one per message, in a container of their own.

use bytes::Bytes;
use taskhub_core::{ErrorKind as Kind, ServiceError};
use taskhub_storage::{BlobPage, ErrorKind, PutBlob};

use crate::dead_letter::record::DeadLetter;
use crate::hub::Hub;

/// Ending of every record's name.
const SUFFIX: &str = ".json";

/// Reads and writes `{message id}.json` in `{hub}-deadletters`. The container appears with the first record.
#[derive(Debug, Clone)]
pub(crate) struct RecordStore {
    hub: Hub,
    container: String,
}

impl RecordStore {
    pub(crate) fn new(hub: &Hub) -> Self {
        Self { hub: hub.clone(), container: hub.names.dead_letter_container() }
    }

    pub(crate) async fn write(&self, letter: &DeadLetter) -> Result<(), ServiceError> {
        let name = blob_name(&letter.message_id)?;
        let content = Bytes::from(letter.to_json());
        let blobs = &self.hub.account.blobs;
        let put = blobs.put_blob(&self.container, &name, content.clone(), PutBlob::default()).await;
        let put = match put {
            Err(e) if e.kind() == ErrorKind::NotFound => {
                blobs
                    .create_container(&self.container)
                    .await
                    .map_err(|e| self.hub.failed("cannot create the dead-letter container", e))?;
                blobs.put_blob(&self.container, &name, content, PutBlob::default()).await
            }
            other => other,
        };
        put.map(drop).map_err(|e| self.hub.failed(format!("cannot write a dead letter. blob=`{name}`"), e))
    }

    /// The dead letter of a message; `None` when it has none.
    pub(crate) async fn read(&self, message_id: &str) -> Result<Option<DeadLetter>, ServiceError> {
        self.read_blob(&blob_name(message_id)?).await
    }

    pub(crate) async fn read_blob(&self, name: &str) -> Result<Option<DeadLetter>, ServiceError> {
        let found = self.hub.account.blobs.get_blob(&self.container, name).await;
        let found =
            found.map_err(|e| self.hub.failed(format!("cannot read a dead letter. blob=`{name}`"), e))?;
        let Some(blob) = found else { return Ok(None) };
        let letter = DeadLetter::from_json(&blob.content).map_err(|e| {
            let what = format!("a dead letter cannot be read. blob=`{}/{name}`", self.container);
            self.hub.unreadable(what, e)
        })?;
        // What is done with a letter is done under its own id, so that must be the blob's.
        if blob_name(&letter.message_id)? != name {
            let what = format!("a dead letter is not what its name says. blob=`{}/{name}`", self.container);
            return Err(self.hub.unreadable(what, "another message id in the blob"));
        }
        Ok(Some(letter))
    }

    pub(crate) async fn remove(&self, message_id: &str) -> Result<(), ServiceError> {
        let name = blob_name(message_id)?;
        match self.hub.account.blobs.delete_blob(&self.container, &name, None).await {
            Err(e) if e.kind() != ErrorKind::NotFound => {
                Err(self.hub.failed(format!("cannot remove a dead letter. blob=`{name}`"), e))
            }
            _ => Ok(()),
        }
    }

    /// One page of blobs in order of their names; empty when there is no container.
    pub(crate) async fn page(
        &self,
        prefix: &str,
        continuation: Option<String>,
    ) -> Result<BlobPage, ServiceError> {
        match self.hub.account.blobs.list_blobs(&self.container, prefix, continuation).await {
            Ok(mut page) => {
                page.blobs.retain(|blob| blob.name.ends_with(SUFFIX));
                Ok(page)
            }
            Err(e) if e.kind() == ErrorKind::NotFound => Ok(BlobPage::default()),
            Err(e) => Err(self.hub.failed("cannot list the dead letters", e)),
        }
    }

    pub(crate) async fn container_exists(&self) -> Result<bool, ServiceError> {
        let found = self.hub.account.blobs.list_containers(&self.container).await;
        let found = found.map_err(|e| self.hub.failed("cannot look for the dead-letter container", e))?;
        Ok(found.contains(&self.container))
    }
}

/// Whether a text can be a message id, or the beginning of one.
pub(crate) fn is_message_id(text: &str) -> bool {
    !text.is_empty() && text.len() <= 128 && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
}

fn blob_name(message_id: &str) -> Result<String, ServiceError> {
    if is_message_id(message_id) {
        return Ok(format!("{message_id}{SUFFIX}"));
    }
    let shown: String = message_id.chars().take(64).collect();
    Err(ServiceError::new(Kind::Invalid, format!("not a message id. id=`{shown}`")))
}
