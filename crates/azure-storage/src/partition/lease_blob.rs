//! Lease blobs: their content, and taking, keeping and giving back one.
//!
//! Source: Azure/durabletask, `Partitioning/Lease.cs` and `Partitioning/BlobPartitionLeaseManager.cs`.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures::stream::{self, StreamExt, TryStreamExt};
use serde::{Deserialize, Serialize};
use taskhub_core::{PartitionId, ServiceError, Timestamp};
use taskhub_storage::{BlobItem, ETag, ErrorKind, LeaseState, PutBlob};
use tokio::time::Instant;
use uuid::Uuid;

use crate::hub::Hub;
use crate::partition::balance::Candidate;

/// Lease blobs read at once.
const READ_CONCURRENCY: usize = 16;
/// What the service takes as the duration of a lease.
const LEASE_SECONDS: (u64, u64) = (15, 60);

/// What a lease blob says.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(crate) struct LeaseContent {
    /// Name of the control queue.
    pub(crate) partition_id: String,
    /// Worker that holds the lease.
    pub(crate) owner: Option<String>,
    /// Id of the blob lease. Everybody can read it, which is what makes stealing possible.
    pub(crate) token: Option<String>,
    /// How often the lease has changed hands.
    pub(crate) epoch: i64,
}

impl LeaseContent {
    /// Of a new lease, which nobody holds.
    pub(crate) fn free(queue: String) -> Self {
        Self { partition_id: queue, ..Self::default() }
    }

    /// `None` for what is no lease.
    pub(crate) fn parse(content: &[u8]) -> Option<Self> {
        serde_json::from_slice(content).ok()
    }

    pub(crate) fn to_bytes(&self) -> Bytes {
        serde_json::to_vec(self).unwrap_or_default().into()
    }

    fn token(&self) -> Option<Uuid> {
        self.token.as_deref().and_then(|token| Uuid::parse_str(token).ok())
    }
}

/// A lease blob as it was found.
#[derive(Debug, Clone)]
pub(crate) struct FoundLease {
    pub(crate) partition: PartitionId,
    pub(crate) leased: bool,
    pub(crate) content: LeaseContent,
    /// When its content was written, which is when it last changed hands.
    pub(crate) written_at: Timestamp,
}

impl FoundLease {
    pub(crate) fn candidate(&self) -> Candidate {
        Candidate { partition: self.partition, leased: self.leased, owner: self.content.owner.clone() }
    }
}

/// A lease that this process holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct HeldLease {
    token: Uuid,
    content: LeaseContent,
    /// Until when it holds for certain, on the hub's [`Hub::awake`] clock, counted from before the request that
    /// took or renewed it.
    pub(crate) until: Instant,
}

impl HeldLease {
    /// Whether it was not released and taken anew meanwhile.
    pub(crate) fn is_same(&self, other: &Self) -> bool {
        self.token == other.token
    }
}

/// How a renewal went.
#[derive(Debug)]
pub(crate) enum Renewal {
    /// The lease holds until then, on the same clock.
    Kept(Instant),
    /// Another worker has it.
    Lost,
    /// Nobody knows. It counts for nothing: the deadline stays.
    ///
    /// Differs: DTFx takes the lease for renewed.
    Unknown(ServiceError),
}

/// The lease blobs of one folder.
#[derive(Debug)]
pub(crate) struct LeaseFolder {
    hub: Hub,
    container: String,
    folder: &'static str,
    /// What blobs said when they were last read, and in which version. Renewals do not change it.
    read: Mutex<BTreeMap<String, (ETag, Bytes)>>,
}

impl LeaseFolder {
    pub(crate) fn new(hub: Hub, folder: &'static str) -> Self {
        let container = hub.names.lease_container();
        Self { hub, container, folder, read: Mutex::default() }
    }

    pub(crate) fn name(&self) -> &'static str {
        self.folder
    }

    /// Now, on the clock of the leases.
    pub(crate) fn now(&self) -> Instant {
        self.hub.awake().now()
    }

    fn blob(&self, partition: PartitionId) -> String {
        self.hub.names.lease_blob(self.folder, partition)
    }

    fn duration(&self) -> Duration {
        let (low, high) = LEASE_SECONDS;
        self.hub.settings.lease_interval.clamp(Duration::from_secs(low), Duration::from_secs(high))
    }

    /// A request that takes too long fails: other leases must not wait for it.
    async fn bounded<T>(
        &self,
        what: &str,
        request: impl Future<Output = taskhub_storage::Result<T>>,
    ) -> Result<T, ServiceError> {
        let limit = self.hub.settings.lease_renew_interval;
        match tokio::time::timeout(limit, request).await {
            Ok(done) => done.map_err(|e| self.hub.failed(format!("cannot {what} a lease blob"), e)),
            Err(_) => Err(ServiceError::new(
                taskhub_core::ErrorKind::Unavailable,
                format!("a request to {what} a lease blob took too long. hub=`{}`", self.hub.name()),
            )),
        }
    }

    /// All leases of the folder. A blob that is no lease of a control queue is left out.
    ///
    /// # Errors
    /// `NotFound`: the container of the leases is gone. Otherwise of storage.
    pub(crate) async fn list(&self) -> Result<Vec<FoundLease>, ServiceError> {
        let prefix = format!("{}/", self.folder);
        let items = self.bounded("list", self.hub.lease_blobs(&prefix)).await?;
        let items = items.ok_or_else(|| {
            let what = format!("the container of the leases is gone. hub=`{}`", self.hub.name());
            ServiceError::new(taskhub_core::ErrorKind::NotFound, what)
        })?;
        let found = stream::iter(items)
            .map(|item| async move {
                let content = self.content(&item).await?;
                Ok::<_, ServiceError>(content.and_then(|content| self.found(&item, &content)))
            })
            .buffered(READ_CONCURRENCY)
            .try_collect::<Vec<_>>()
            .await?;
        Ok(found.into_iter().flatten().collect())
    }

    /// What a listed blob says; it is read only if it has been written since it was last read.
    ///
    /// Differs: DTFx reads every lease blob each time.
    async fn content(&self, item: &BlobItem) -> Result<Option<Bytes>, ServiceError> {
        let read = || self.read.lock().unwrap_or_else(PoisonError::into_inner);
        let known = read().get(&item.name).filter(|(etag, _)| *etag == item.properties.etag).cloned();
        if let Some((_, content)) = known.filter(|_| !self.hub.settings.dtfx_cadence) {
            return Ok(Some(content));
        }
        let get = self.hub.account.blobs.get_blob(&self.container, &item.name);
        let Some(blob) = self.bounded("read", get).await? else { return Ok(None) };
        read().insert(item.name.clone(), (blob.properties.etag, blob.content.clone()));
        Ok(Some(blob.content))
    }

    fn found(&self, item: &BlobItem, content: &[u8]) -> Option<FoundLease> {
        let queue = item.name.strip_prefix(self.folder)?.strip_prefix('/')?;
        let partition = self.hub.names.partition_of_queue(queue)?;
        let Some(content) = LeaseContent::parse(content) else {
            tracing::warn!(hub = %self.hub.name(), blob = item.name, "a lease blob is unreadable");
            return None;
        };
        Some(FoundLease {
            partition,
            leased: item.properties.lease == LeaseState::Leased,
            content,
            written_at: item.properties.last_modified_at,
        })
    }

    /// Makes the lease of a partition, if there is none.
    pub(crate) async fn create(&self, partition: PartitionId) -> Result<(), ServiceError> {
        let content = LeaseContent::free(self.hub.names.control_queue(partition)).to_bytes();
        let create_only = PutBlob { create_only: true, ..PutBlob::default() };
        let blobs = &self.hub.account.blobs;
        match blobs.put_blob(&self.container, &self.blob(partition), content, create_only).await {
            Err(e) if e.kind() != ErrorKind::AlreadyExists => {
                Err(self.hub.failed("cannot create a lease blob", e))
            }
            _ => Ok(()),
        }
    }

    /// Takes a lease that nobody holds, or steals one. `Ok(None)`: somebody else was faster.
    ///
    /// Differs: a stolen lease is renewed at once. Changing its id does not prolong it, and how long the
    /// previous owner's renewal still lasts nobody tells.
    pub(crate) async fn acquire(&self, found: &FoundLease) -> Result<Option<HeldLease>, ServiceError> {
        let blobs = &self.hub.account.blobs;
        let (container, blob, token) = (&self.container, self.blob(found.partition), self.hub.ids.guid());
        let mut sent_at = self.hub.awake().now();
        let taken = if found.leased {
            let Some(previous) = found.content.token() else { return Ok(None) };
            let steal = async {
                blobs.change_lease(container, Some(&blob), previous, token).await?;
                sent_at = self.hub.awake().now();
                blobs.renew_lease(container, Some(&blob), token).await
            };
            self.bounded("steal", steal).await
        } else {
            let acquire = blobs.acquire_lease(container, Some(&blob), token, self.duration());
            self.bounded("acquire", acquire).await
        };
        let content = LeaseContent {
            partition_id: found.content.partition_id.clone(),
            owner: Some(self.hub.settings.worker_id.to_string()),
            token: Some(token.to_string()),
            epoch: found.content.epoch.saturating_add(1),
        };
        let written = match taken {
            Ok(()) => {
                let under_lease = PutBlob { lease_id: Some(token), ..PutBlob::default() };
                let put = blobs.put_blob(container, &blob, content.to_bytes(), under_lease);
                self.bounded("write", put).await
            }
            // Refused at once: nothing was taken.
            Err(e) if is_refusal(&e) && !found.leased => return Ok(None),
            Err(e) => Err(e),
        };
        match written {
            Ok(_) => Ok(Some(HeldLease { token, content, until: sent_at + self.duration() })),
            Err(e) => {
                // Whether it was taken or written nobody knows. Without this it would be held, by nobody
                // known, until it runs out.
                let release = blobs.release_lease(container, Some(&blob), token);
                if let Err(e) = self.bounded("release", release).await {
                    tracing::debug!(hub = %self.hub.name(), blob, error = e.chain(), "a lease may be held in vain");
                }
                if is_refusal(&e) { Ok(None) } else { Err(e) }
            }
        }
    }

    /// Takes up a lease that names this worker as its owner: of an earlier process with the same id, or one
    /// whose acquisition succeeded without this process having learnt of it.
    pub(crate) async fn adopt(&self, found: &FoundLease) -> Result<Option<HeldLease>, ServiceError> {
        let Some(token) = found.content.token() else { return Ok(None) };
        let held = HeldLease { token, content: found.content.clone(), until: self.hub.awake().now() };
        match self.renew(found.partition, &held).await {
            Renewal::Kept(until) => Ok(Some(HeldLease { until, ..held })),
            Renewal::Lost => Ok(None),
            Renewal::Unknown(e) => Err(e),
        }
    }

    pub(crate) async fn renew(&self, partition: PartitionId, held: &HeldLease) -> Renewal {
        let (blob, sent_at) = (self.blob(partition), self.hub.awake().now());
        let renew = self.hub.account.blobs.renew_lease(&self.container, Some(&blob), held.token);
        match self.bounded("renew", renew).await {
            Ok(()) => Renewal::Kept(sent_at + self.duration()),
            Err(e) if is_refusal(&e) => Renewal::Lost,
            Err(e) => Renewal::Unknown(e),
        }
    }

    /// Gives a lease back: others see at once that nobody holds it.
    pub(crate) async fn release(&self, partition: PartitionId, held: &HeldLease) -> Result<(), ServiceError> {
        let blobs = &self.hub.account.blobs;
        let blob = self.blob(partition);
        let content = LeaseContent { owner: None, token: None, ..held.content.clone() };
        let under_lease = PutBlob { lease_id: Some(held.token), ..PutBlob::default() };
        let put = blobs.put_blob(&self.container, &blob, content.to_bytes(), under_lease);
        let written = self.bounded("write", put).await;
        let release = blobs.release_lease(&self.container, Some(&blob), held.token);
        let released = self.bounded("release", release).await;
        match written.map(drop).and(released) {
            // Another worker has it already.
            Err(e) if is_refusal(&e) => Ok(()),
            other => other,
        }
    }
}

/// Whether the service said no, as it does when the lease is another's, or the blob is gone.
fn is_refusal(error: &ServiceError) -> bool {
    matches!(error.kind(), taskhub_core::ErrorKind::SessionAborted | taskhub_core::ErrorKind::NotFound)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_is_written_byte_for_byte_as_dtfx_writes_it() {
        let free = LeaseContent::free("myhub-control-00".into());
        let text = r#"{"PartitionId":"myhub-control-00","Owner":null,"Token":null,"Epoch":0}"#;
        assert_eq!(free.to_bytes(), text);
        let held = r#"{"PartitionId":"myhub-control-00","Owner":"worker-a","Token":"2f7d9b1e-4c55-4d0a-9a3e-0d1f2c3b4a59","Epoch":3}"#;
        let parsed = LeaseContent::parse(held.as_bytes()).unwrap();
        assert_eq!(parsed.to_bytes(), held);
        assert!(parsed.token().is_some());
    }

    #[test]
    fn what_others_write_is_never_trusted() {
        for text in ["", "null", "[1]", "{\"Epoch\":\"x\"}", "\u{0}"] {
            assert_eq!(LeaseContent::parse(text.as_bytes()).filter(|c| c.owner.is_some()), None, "{text}");
        }
        let odd = LeaseContent::parse(br#"{"Owner":"w","Token":"no guid","More":1}"#).unwrap();
        assert_eq!((odd.token(), odd.epoch), (None, 0));
    }
}
