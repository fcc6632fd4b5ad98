//! Who reads which control queue, in one form for all partition managers.

use std::collections::BTreeMap;

use taskhub_core::{ServiceError, Timestamp, WorkerId};

use crate::hub::{Hub, PartitionManagerKind};
use crate::names::{INTENT_LEASES, LEGACY_LEASES, OWNERSHIP_LEASES};
use crate::partition::lease_blob::{FoundLease, LeaseFolder};
use crate::partition::table::PartitionLease;

/// Where a partition stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OwnershipState {
    /// Nobody reads the queue.
    Free,
    /// One worker reads it.
    Owned,
    /// Its owner finishes its work, or another worker waits for it.
    HandingOver,
    /// The owner did not renew its lease in time; anybody may take it.
    Expired,
}

impl OwnershipState {
    /// A word for people and programs.
    pub fn name(self) -> &'static str {
        match self {
            Self::Free => "free",
            Self::Owned => "owned",
            Self::HandingOver => "handing over",
            Self::Expired => "expired",
        }
    }
}

/// Who reads a control queue.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PartitionOwnership {
    /// Name of the control queue.
    pub queue: String,
    /// The manager whose records say so.
    pub manager: PartitionManagerKind,
    /// Where it stands.
    pub state: OwnershipState,
    /// Worker that reads the queue, or did until its lease ran out.
    pub owner: Option<WorkerId>,
    /// Worker that is to read it next.
    pub next_owner: Option<WorkerId>,
    /// Since when the owner has it.
    pub since: Option<Timestamp>,
    /// Until when the lease holds, by the server's clock; lease blobs do not tell.
    pub expires_at: Option<Timestamp>,
    /// How often the lease has changed hands; rows do not tell.
    pub epoch: Option<i64>,
}

impl PartitionOwnership {
    pub(crate) fn of_row(row: &PartitionLease, now: Timestamp) -> Self {
        let state = match (&row.current_owner, &row.next_owner) {
            (Some(_), _) if row.expires_at.is_none_or(|at| now >= at) => OwnershipState::Expired,
            (None, None) => OwnershipState::Free,
            (Some(_), None) if !row.is_draining => OwnershipState::Owned,
            _ => OwnershipState::HandingOver,
        };
        Self {
            queue: row.queue.clone(),
            manager: PartitionManagerKind::Table,
            state,
            owner: row.current_owner.clone(),
            next_owner: row.next_owner.clone(),
            since: row.owned_since.filter(|_| row.current_owner.is_some()),
            expires_at: row.expires_at,
            epoch: None,
        }
    }

    fn of_blobs(
        queue: String,
        manager: PartitionManagerKind,
        lease: &FoundLease,
        intent: Option<&FoundLease>,
    ) -> Self {
        let named = |lease: &FoundLease| {
            lease.content.owner.as_deref().filter(|owner| !owner.is_empty()).map(WorkerId::from)
        };
        let owner = named(lease);
        let next_owner = intent.filter(|intent| intent.leased).and_then(named).filter(|next| {
            !(lease.leased && owner.as_ref().is_some_and(|o| o.as_str().eq_ignore_ascii_case(next.as_str())))
        });
        let state = match (lease.leased, &owner, &next_owner) {
            (true, _, None) => OwnershipState::Owned,
            (_, _, Some(_)) => OwnershipState::HandingOver,
            (false, Some(_), None) => OwnershipState::Expired,
            (false, None, None) => OwnershipState::Free,
        };
        Self {
            queue,
            manager,
            state,
            since: owner.as_ref().map(|_| lease.written_at),
            owner,
            next_owner,
            expires_at: None,
            epoch: Some(lease.content.epoch),
        }
    }
}

impl Hub {
    /// Who reads which queue, as the records of the lease blobs say.
    pub(crate) async fn blob_ownerships(
        &self,
        manager: PartitionManagerKind,
    ) -> Result<Vec<PartitionOwnership>, ServiceError> {
        let (folder, intents) = if manager == PartitionManagerKind::Safe {
            let intents = LeaseFolder::new(self.clone(), INTENT_LEASES).list().await?;
            (OWNERSHIP_LEASES, intents.into_iter().map(|lease| (lease.partition, lease)).collect())
        } else {
            (LEGACY_LEASES, BTreeMap::new())
        };
        let leases = LeaseFolder::new(self.clone(), folder).list().await?;
        let owned = |lease: &FoundLease| {
            let queue = self.names.control_queue(lease.partition);
            PartitionOwnership::of_blobs(queue, manager, lease, intents.get(&lease.partition))
        };
        Ok(leases.iter().map(owned).collect())
    }
}
