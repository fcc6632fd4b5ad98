//! What partition managers do with the queues of a worker.

use taskhub_core::PartitionId;
use tokio::time::Instant;

use crate::partition::status::StatusBoard;

/// Receives from queues, or no longer, as a partition manager says.
#[async_trait::async_trait]
pub(crate) trait PartitionOwner: Send + Sync + 'static {
    /// Receive from the partition's queue until `lease_until`, on the hub's `awake` clock; a
    /// renewal moves that. The deadline counts from before the request that renewed the lease was sent.
    fn receive(&self, partition: PartitionId, lease_until: Instant);
    /// Whether the partition's queue is being received from.
    fn is_receiving(&self, partition: PartitionId) -> bool;
    /// Whether the receive loop of the partition runs and makes progress. A lease whose loop does not is not
    /// renewed, so that another worker gets the partition.
    fn is_live(&self, partition: PartitionId) -> bool;
    /// Puts a new receive loop in the place of one that is not live.
    fn restart(&self, partition: PartitionId);
    /// Stop receiving from the partition's queue at once.
    fn stop_receiving(&self, partition: PartitionId);
    /// Stop receiving, give back what nobody works on, and wait until no session is active.
    async fn drain(&self, partition: PartitionId);
    /// Where a manager puts up how it goes: after each look at the partitions, and what it waits for.
    fn status(&self) -> &StatusBoard;
}
