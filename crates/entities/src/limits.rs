//! Limits of entities on Azure Storage.

use std::time::Duration;

/// For how long messages of one sender are put in order and told from duplicates.
/// Source: Azure/durabletask, `AzureStorageOrchestrationService.EntityBackendProperties.EntityMessageReorderWindow`.
pub const REORDER_WINDOW: Duration = Duration::from_secs(30 * 60);
/// Longest delay of one message to an entity; what is due later hops.
/// Source: same, `MaximumSignalDelayTime`.
pub const MAX_SIGNAL_DELAY: Duration = Duration::from_secs(6 * 24 * 3600);
/// How many critical sections an entity remembers; about 100 bytes each.
pub(crate) const MAX_SECTIONS: usize = 100;
/// How many ended executions of one sender a sorter remembers; about 100 bytes each.
pub(crate) const MAX_ENDED_EXECUTIONS: usize = 8;
