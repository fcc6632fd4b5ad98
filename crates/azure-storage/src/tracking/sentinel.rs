//! The last row of a history, whose ETag guards all of it.

use taskhub_core::{ExecutionId, Timestamp};
use taskhub_storage::{ETag, Entity, Value};

/// Row key of the sentinel; sorts after the keys of all events.
/// Source: Azure/durabletask, `AzureTableTrackingStore.SentinelRowKey`.
pub const SENTINEL_ROW_KEY: &str = "sentinel";

/// What a sentinel row says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sentinel {
    /// The execution whose history is current.
    pub execution_id: ExecutionId,
    /// Whether the last checkpoint was written to its end; `None` when the row does not say.
    pub is_checkpoint_complete: Option<bool>,
    /// When the last complete checkpoint was made.
    pub checkpoint_completed_at: Option<Timestamp>,
    /// Version of the row, and so of the history.
    pub etag: Option<ETag>,
}

/// The sentinel of one batch of a checkpoint; `completed_at` is set in the last batch only. Merged, so
/// that earlier batches keep the time of the previous checkpoint.
pub fn write(partition_key: &str, execution_id: &ExecutionId, completed_at: Option<Timestamp>) -> Entity {
    let mut row = Entity::new(partition_key, SENTINEL_ROW_KEY)
        .with("ExecutionId", execution_id.as_str())
        .with("IsCheckpointComplete", completed_at.is_some());
    if let Some(at) = completed_at {
        row.set("CheckpointCompletedTimestamp", at);
    }
    row
}

/// Whether a row of the History table is a sentinel.
pub fn is_sentinel(row: &Entity) -> bool {
    row.row_key == SENTINEL_ROW_KEY
}

/// Reads a sentinel; whatever is missing in it is empty.
pub fn read(row: &Entity) -> Sentinel {
    Sentinel {
        execution_id: ExecutionId::new(row.str("ExecutionId").unwrap_or_default()),
        is_checkpoint_complete: match row.get("IsCheckpointComplete") {
            Some(Value::Bool(complete)) => Some(*complete),
            _ => None,
        },
        checkpoint_completed_at: match row.get("CheckpointCompletedTimestamp") {
            Some(Value::DateTime(at)) => Some(*at),
            _ => None,
        },
        etag: row.etag.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_last_batch_completes_the_checkpoint() {
        let execution = ExecutionId::new("5d1c7d1f0a5e4d0c9c1d0d6b1b7f2a10");
        let at = Timestamp::parse("2026-01-15T09:30:01.4Z").unwrap();
        let last = write("order-42", &execution, Some(at));
        assert_eq!(last.get("IsCheckpointComplete"), Some(&Value::Bool(true)));
        assert_eq!(read(&last).checkpoint_completed_at, Some(at));
        let earlier = write("order-42", &execution, None);
        assert_eq!(earlier.columns.len(), 2);
        assert_eq!(read(&earlier).is_checkpoint_complete, Some(false));
        assert_eq!(read(&earlier).execution_id, execution);
        assert!(is_sentinel(&last) && last.row_key.as_str() > "FFFFFFFFFFFFFFFF");
    }

    #[test]
    fn an_empty_sentinel_is_read() {
        let sentinel = read(&Entity::new("a", SENTINEL_ROW_KEY));
        assert!(sentinel.execution_id.is_empty() && sentinel.is_checkpoint_complete.is_none());
    }
}
