//! Names of the queues, tables, containers and blobs of a task hub.
//!
//! Tables keep the case of the hub's name, everything else is in lower case. Table names are the same
//! whatever their case, so hubs that differ only by case are one hub.

use taskhub_core::{PartitionId, TaskHubName};

/// Blob in the lease container that holds the hub's partition count.
/// Source: Azure/durabletask, `BlobPartitionLeaseManager`.
pub const TASK_HUB_INFO_BLOB: &str = "taskhub.json";
/// Folder of the lease blobs of the legacy partition manager.
pub const LEGACY_LEASES: &str = "default";
/// Folder of the lease blobs with which workers of the safe partition manager state their intent.
pub const INTENT_LEASES: &str = "intent";
/// Folder of the lease blobs with which workers of the safe partition manager own a queue.
pub const OWNERSHIP_LEASES: &str = "ownership";
/// Prefix of the tracking tables when a separate tracking store is configured without one.
/// Source: Azure/durabletask, `AzureStorageOrchestrationServiceSettings.TrackingStoreNamePrefix`.
pub const DEFAULT_TRACKING_PREFIX: &str = "DurableTask";

/// Where the parts of one task hub are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ResourceNames {
    hub: String,
    lower: String,
    tracking: String,
}

impl ResourceNames {
    /// Names of the hub's resources. `tracking_prefix` replaces the hub's name in those of the History and
    /// Instances tables when these are in a separate tracking store.
    pub fn new(hub: &TaskHubName, tracking_prefix: Option<&str>) -> Self {
        Self {
            hub: hub.as_str().to_owned(),
            lower: hub.lower(),
            tracking: tracking_prefix.unwrap_or(hub.as_str()).to_owned(),
        }
    }

    /// The control queue of a partition: `{hub}-control-{00}`.
    pub fn control_queue(&self, partition: PartitionId) -> String {
        format!("{}-control-{:02}", self.lower, partition.0)
    }

    /// The partition whose control queue has this name; `None` for other names.
    pub fn partition_of_queue(&self, queue: &str) -> Option<PartitionId> {
        let digits = queue.strip_prefix(self.lower.as_str())?.strip_prefix("-control-")?;
        let partition = PartitionId(digits.parse().ok()?);
        (self.control_queue(partition) == queue).then_some(partition)
    }

    /// The queue of activity requests: `{hub}-workitems`.
    pub fn work_item_queue(&self) -> String {
        format!("{}-workitems", self.lower)
    }

    /// The table of history events and sentinels.
    pub fn history_table(&self) -> String {
        format!("{}History", self.tracking)
    }

    /// The table with one row per instance.
    pub fn instances_table(&self) -> String {
        format!("{}Instances", self.tracking)
    }

    /// The table of the table partition manager; never under the tracking prefix.
    pub fn partitions_table(&self) -> String {
        format!("{}Partitions", self.hub)
    }

    /// The container of the lease blobs and of [`TASK_HUB_INFO_BLOB`].
    pub fn lease_container(&self) -> String {
        format!("{}-leases", self.lower)
    }

    /// A lease blob in the lease container: `folder` is one of the `*_LEASES` constants.
    pub fn lease_blob(&self, folder: &str, partition: PartitionId) -> String {
        format!("{folder}/{}", self.control_queue(partition))
    }

    /// The container on which the app lease is taken.
    pub fn app_lease_container(&self) -> String {
        format!("{}-applease", self.lower)
    }

    /// The blob in the app-lease container that says who holds it.
    pub fn app_lease_info_blob(&self) -> String {
        format!("{}-appleaseinfo", self.lower)
    }

    /// The container of large messages and large table columns; made on first use.
    pub fn large_message_container(&self) -> String {
        format!("{}-largemessages", self.lower)
    }

    /// The container of dead letters, which only this implementation has; made on first use.
    pub fn dead_letter_container(&self) -> String {
        format!("{}-deadletters", self.lower)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_keep_the_case_of_the_hub_and_everything_else_is_lower_case() {
        let names = ResourceNames::new(&TaskHubName::new("MyHub").unwrap(), None);
        assert_eq!(names.control_queue(PartitionId(0)), "myhub-control-00");
        assert_eq!(names.control_queue(PartitionId(15)), "myhub-control-15");
        assert_eq!(names.work_item_queue(), "myhub-workitems");
        assert_eq!(names.history_table(), "MyHubHistory");
        assert_eq!(names.instances_table(), "MyHubInstances");
        assert_eq!(names.partitions_table(), "MyHubPartitions");
        assert_eq!(names.lease_container(), "myhub-leases");
        assert_eq!(names.lease_blob(INTENT_LEASES, PartitionId(3)), "intent/myhub-control-03");
        assert_eq!(names.app_lease_container(), "myhub-applease");
        assert_eq!(names.app_lease_info_blob(), "myhub-appleaseinfo");
        assert_eq!(names.large_message_container(), "myhub-largemessages");
        assert_eq!(names.dead_letter_container(), "myhub-deadletters");
    }

    #[test]
    fn a_tracking_prefix_renames_history_and_instances_only() {
        let names = ResourceNames::new(&TaskHubName::new("MyHub").unwrap(), Some(DEFAULT_TRACKING_PREFIX));
        assert_eq!(names.history_table(), "DurableTaskHistory");
        assert_eq!(names.instances_table(), "DurableTaskInstances");
        assert_eq!(names.partitions_table(), "MyHubPartitions");
        assert_eq!(names.large_message_container(), "myhub-largemessages");
    }

    #[test]
    fn a_queue_name_leads_back_to_its_partition() {
        let names = ResourceNames::new(&TaskHubName::new("MyHub").unwrap(), None);
        assert_eq!(names.partition_of_queue("myhub-control-03"), Some(PartitionId(3)));
        for other in ["myhub-control-3", "myhub-control-+3", "MyHub-control-03", "myhub-workitems", ""] {
            assert_eq!(names.partition_of_queue(other), None, "{other}");
        }
    }
}
