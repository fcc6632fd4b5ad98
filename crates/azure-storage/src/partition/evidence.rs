//! Which partition manager a hub uses, told from its lease records, and who may join.
//!
//! The three managers do not see each other: with two of them at work every queue has two readers.

use taskhub_core::{ErrorKind, PartitionId, ServiceError, Timestamp};
use taskhub_storage as storage;
use taskhub_storage::{BlobItem, LeaseState};

use crate::hub::{Hub, HubLayout, PartitionManagerKind, PartitionRows};
use crate::names::{INTENT_LEASES, LEGACY_LEASES, OWNERSHIP_LEASES};
use crate::partition::lease_blob::{LeaseContent, LeaseFolder};

/// A lease that somebody holds at this moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct LiveLease {
    /// `row=...` or `blob=...`.
    record: String,
    owner: String,
}

/// The records of one manager in a hub.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Evidence {
    pub(crate) kind: PartitionManagerKind,
    pub(crate) live: Option<LiveLease>,
    /// When the last of them was written.
    written_at: Timestamp,
}

/// The manager that the hub uses: the one whose leases are held, else the one that wrote last.
pub(crate) fn chosen(evidence: &[Evidence]) -> Option<PartitionManagerKind> {
    let live = evidence.iter().find(|e| e.live.is_some());
    // Of several that wrote at the same time, the first.
    let last = || evidence.iter().rev().max_by_key(|e| e.written_at);
    live.or_else(last).map(|e| e.kind)
}

impl PartitionRows {
    /// What the rows say at `now`, unless the server said what time it is.
    pub(crate) fn evidence(&self, now: Timestamp) -> Option<Evidence> {
        let now = self.served_at.unwrap_or(now);
        let live = self.rows.iter().find_map(|row| {
            let owner = row.current_owner.as_ref().filter(|_| row.expires_at.is_some_and(|at| now < at))?;
            Some(LiveLease { record: format!("row=`{}`", row.queue), owner: owner.to_string() })
        });
        let written_at = self.written_at.unwrap_or(Timestamp::MIN);
        (!self.rows.is_empty()).then_some(Evidence { kind: PartitionManagerKind::Table, live, written_at })
    }
}

impl Hub {
    /// Blobs of the lease container whose names begin with `prefix`; `None` without such a container.
    pub(crate) async fn lease_blobs(&self, prefix: &str) -> storage::Result<Option<Vec<BlobItem>>> {
        let (container, mut found, mut continuation) = (self.names.lease_container(), Vec::new(), None);
        loop {
            match self.account.blobs.list_blobs(&container, prefix, continuation).await {
                Ok(page) => {
                    found.extend(page.blobs);
                    continuation = page.continuation;
                }
                Err(e) if e.kind() == storage::ErrorKind::NotFound => return Ok(None),
                Err(e) => return Err(e),
            }
            if continuation.is_none() {
                return Ok(Some(found));
            }
        }
    }

    /// What the lease blobs say.
    pub(crate) async fn blob_evidence(&self) -> Result<Vec<Evidence>, ServiceError> {
        let listed = self.lease_blobs("").await;
        let blobs = listed.map_err(|e| self.failed("cannot list the lease blobs", e))?.unwrap_or_default();
        let mut evidence = Vec::new();
        for (kind, folders) in [
            (PartitionManagerKind::Safe, &[INTENT_LEASES, OWNERSHIP_LEASES][..]),
            (PartitionManagerKind::Legacy, &[LEGACY_LEASES][..]),
        ] {
            let is_lease = |blob: &&BlobItem| {
                let lease = blob.name.split_once('/').filter(|(folder, _)| folders.contains(folder));
                lease.is_some_and(|(_, queue)| self.names.partition_of_queue(queue).is_some())
            };
            let leases: Vec<_> = blobs.iter().filter(is_lease).collect();
            let Some(written_at) = leases.iter().map(|b| b.properties.last_modified_at).max() else {
                continue;
            };
            let held = leases.iter().find(|blob| blob.properties.lease == LeaseState::Leased);
            let live = match held {
                Some(blob) => Some(self.live_blob(&blob.name).await?),
                None => None,
            };
            evidence.push(Evidence { kind, live, written_at });
        }
        Ok(evidence)
    }

    async fn live_blob(&self, name: &str) -> Result<LiveLease, ServiceError> {
        let container = self.names.lease_container();
        let blob = self.account.blobs.get_blob(&container, name).await;
        let blob = blob.map_err(|e| self.failed("cannot read a lease blob", e))?;
        let owner = blob.and_then(|blob| LeaseContent::parse(&blob.content)?.owner);
        let owner = owner.unwrap_or_else(|| "unknown".to_owned());
        Ok(LiveLease { record: format!("blob=`{container}/{name}`"), owner })
    }

    /// The partition manager that a worker of this process runs: the hub's, or the configured one where it
    /// is forced. Makes what is missing of its lease records.
    ///
    /// # Errors
    /// `Invalid` when the settings contradict the hub, or workers of another manager read its queues.
    pub(crate) async fn settle_manager(
        &self,
        layout: HubLayout,
    ) -> Result<PartitionManagerKind, ServiceError> {
        let wanted = self.settings.partition_manager.unwrap_or(layout.manager);
        let forced = self.settings.force_partition_manager;
        let rows = self.partition_rows().await?;
        let mut evidence: Vec<_> =
            rows.and_then(|rows| rows.evidence(self.clock.now())).into_iter().collect();
        evidence.extend(self.blob_evidence().await?);
        for other in evidence.iter().filter(|e| e.kind != wanted) {
            let Some(live) = &other.live else { continue };
            let LiveLease { record, owner } = live;
            if !forced {
                return Err(ServiceError::new(
                    ErrorKind::Invalid,
                    format!(
                        "a worker of another partition manager reads this hub's queues. Stop it and wait until \
                         its leases have run out, or set force_partition_manager. hub=`{}` manager=`{wanted}` \
                         other_manager=`{}` {record} owner=`{owner}`",
                        self.name(),
                        other.kind
                    ),
                ));
            }
            tracing::warn!(
                hub = %self.name(), manager = %wanted, other_manager = %other.kind, record, owner,
                "forced to run beside a worker of another partition manager; both read the same queues"
            );
        }
        if wanted != layout.manager && !forced {
            return Err(ServiceError::new(
                ErrorKind::Invalid,
                format!(
                    "the hub has another partition manager; workers of both would read the same queues. \
                     Configure the hub's, or stop all its workers and set force_partition_manager. hub=`{}` \
                     configured=`{wanted}` hub_has=`{}`",
                    self.name(),
                    layout.manager
                ),
            ));
        }
        if wanted != layout.manager || wanted != PartitionManagerKind::Table {
            let is_there = wanted == layout.manager && self.info_partition_count().await?.is_some();
            if !is_there {
                self.create_lease_store(wanted, layout.partition_count).await?;
            }
            self.create_leases(wanted, layout.partition_count).await?;
        }
        Ok(wanted)
    }

    /// Makes the lease records of a manager, those that are missing.
    pub(crate) async fn create_leases(
        &self,
        kind: PartitionManagerKind,
        partition_count: u32,
    ) -> Result<(), ServiceError> {
        if kind == PartitionManagerKind::Table {
            return self.create_partition_rows(partition_count).await;
        }
        let listed = self.lease_blobs("").await;
        let existing = listed.map_err(|e| self.failed("cannot list the lease blobs", e))?.unwrap_or_default();
        for folder in folders(kind) {
            let leases = LeaseFolder::new(self.clone(), folder);
            for partition in (0..partition_count).map(PartitionId) {
                let name = self.names.lease_blob(folder, partition);
                if !existing.iter().any(|blob| blob.name == name) {
                    leases.create(partition).await?;
                }
            }
        }
        Ok(())
    }
}

/// Where a blob manager keeps its leases.
pub(crate) fn folders(kind: PartitionManagerKind) -> &'static [&'static str] {
    match kind {
        PartitionManagerKind::Table => &[],
        PartitionManagerKind::Safe => &[INTENT_LEASES, OWNERSHIP_LEASES],
        PartitionManagerKind::Legacy => &[LEGACY_LEASES],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn evidence(kind: PartitionManagerKind, live: bool, written_at: i64) -> Evidence {
        let live = live.then(|| LiveLease { record: "row=`q`".into(), owner: "w".into() });
        Evidence { kind, live, written_at: Timestamp::from_ticks(written_at) }
    }

    #[test]
    fn held_leases_tell_the_manager_and_else_the_last_write() {
        use PartitionManagerKind::{Legacy, Safe, Table};
        assert_eq!(chosen(&[]), None);
        assert_eq!(chosen(&[evidence(Table, false, 9), evidence(Safe, true, 1)]), Some(Safe));
        assert_eq!(chosen(&[evidence(Table, false, 1), evidence(Safe, false, 9)]), Some(Safe));
        assert_eq!(chosen(&[evidence(Table, false, 9), evidence(Legacy, false, 9)]), Some(Table));
        assert_eq!(chosen(&[evidence(Safe, false, 1), evidence(Legacy, false, 2)]), Some(Legacy));
    }
}
