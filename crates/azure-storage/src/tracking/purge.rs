//! Removal of instances.

use futures::stream::{self, StreamExt, TryStreamExt};
use taskhub_core::{InstanceId, OrchestrationStatus, PurgeResult, ServiceError};
use taskhub_storage as storage;
use taskhub_storage::{Condition, Entity, TableOperation, TableQuery, TableStore};

use crate::large_messages::Owner;
use crate::tracking::store::TrackingStore;
use crate::tracking::{instance_row, key};

/// Rows deleted by one transaction. The service's limit.
pub(super) const MAX_DELETE_ROWS: usize = 100;
/// Deletes under way at once. Source: Azure/durabletask, `Table.DeleteBatchParallelAsync`.
pub(crate) const DELETE_CONCURRENCY: usize = 10;

/// What may be purged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum PurgeOnly {
    /// Whatever is there.
    Any,
    /// An instance that has finished. Its row goes only if nobody has written it meanwhile.
    Finished,
}

impl TrackingStore {
    /// Removes blobs, history and row of one instance, the row last, so that a purge that is cut off can
    /// be repeated. `None`: the instance has not finished.
    pub(crate) async fn purge(
        &self,
        instance_id: &InstanceId,
        only: PurgeOnly,
    ) -> Result<Option<PurgeResult>, ServiceError> {
        let mut result = PurgeResult::default();
        let Some(row) = self.instance_row_by_key(instance_id).await? else { return Ok(Some(result)) };
        let is_finished = row.state.status.is_some_and(OrchestrationStatus::is_terminal);
        let condition = match (only, row.etag) {
            (PurgeOnly::Finished, _) if !is_finished => return Ok(None),
            (PurgeOnly::Finished, Some(etag)) => Condition::Matches(etag),
            _ => Condition::Any,
        };
        let partition_key = key::escape(instance_id.as_str());
        let owner = Owner { instance_id: instance_id.as_str(), key: &partition_key };
        result.blobs = self.large().delete_of(&owner).await?;
        result.rows = self.delete_history(instance_id).await?;
        result.instances = self.delete_instance_row(instance_id, partition_key, condition).await?;
        Ok(Some(result))
    }

    /// Deletes an Instances row; how many were there.
    pub(super) async fn delete_instance_row(
        &self,
        instance_id: &InstanceId,
        partition_key: String,
        condition: Condition,
    ) -> Result<u64, ServiceError> {
        let delete = TableOperation::Delete { partition_key, row_key: String::new(), condition };
        let deleted = match self.hub.account.tables.execute(&self.hub.names.instances_table(), delete).await {
            Ok(_) => 1,
            Err(e) if e.kind() == storage::ErrorKind::NotFound => 0,
            Err(e) if e.kind() == storage::ErrorKind::Conflict => {
                self.tell_that_it_stays(instance_id);
                0
            }
            Err(e) => {
                let what = format!("cannot delete the Instances row. instance=`{instance_id}`");
                return Err(self.hub.failed(what, e));
            }
        };
        self.etags.set(instance_id, None);
        Ok(deleted)
    }

    pub(super) fn tell_that_it_stays(&self, instance_id: &InstanceId) {
        tracing::info!(
            hub = %self.hub.name(), instance = %instance_id,
            "the id was started again during its purge: the new row stays"
        );
    }

    /// Deletes the rows of all executions, page by page.
    async fn delete_history(&self, instance_id: &InstanceId) -> Result<u64, ServiceError> {
        let failed = |e| self.hub.failed(format!("cannot delete the history. instance=`{instance_id}`"), e);
        let table = self.hub.names.history_table();
        let mut query = TableQuery {
            filter: Some(instance_row::filter_by_id(instance_id)),
            select: ["PartitionKey", "RowKey", "Timestamp"].map(str::to_owned).to_vec(),
            ..TableQuery::default()
        };
        let mut deleted = 0;
        loop {
            let page = self.hub.account.tables.query(&table, &query).await.map_err(failed)?;
            let rows = page.entities.into_iter().map(|row| deletion(row, Condition::Any)).collect();
            deleted += delete_rows(&*self.hub.account.tables, &table, rows).await.map_err(failed)?;
            match page.continuation {
                Some(next) => query.continuation = Some(next),
                None => return Ok(deleted),
            }
        }
    }
}

/// The deletion of a row.
fn deletion(row: Entity, condition: Condition) -> TableOperation {
    TableOperation::Delete { partition_key: row.partition_key, row_key: row.row_key, condition }
}

/// The deletion of a row if it is as it was read.
pub(super) fn deletion_of_unchanged(mut row: Entity) -> TableOperation {
    let condition = row.etag.take().map_or(Condition::Any, Condition::Matches);
    deletion(row, condition)
}

/// Deletes rows of one partition in transactions; gives how many were there.
/// Source: Azure/durabletask, `Table.DeleteBatchParallelAsync`.
pub(super) async fn delete_rows(
    tables: &dyn TableStore,
    table: &str,
    operations: Vec<TableOperation>,
) -> storage::Result<u64> {
    stream::iter(operations.chunks(MAX_DELETE_ROWS).map(<[_]>::to_vec))
        .map(|batch| async {
            let rows = batch.len() as u64;
            match tables.transaction(table, &batch).await {
                Ok(_) => Ok(rows),
                // Somebody else deletes too: one by one, skipping what is gone.
                Err(e) if e.kind() == storage::ErrorKind::NotFound => {
                    let mut deleted = 0;
                    for operation in batch {
                        match tables.execute(table, operation).await {
                            Ok(_) => deleted += 1,
                            Err(e) if e.kind() == storage::ErrorKind::NotFound => {}
                            Err(e) => return Err(e),
                        }
                    }
                    Ok(deleted)
                }
                Err(e) => Err(e),
            }
        })
        .buffer_unordered(DELETE_CONCURRENCY)
        .try_fold(0, |sum, rows| async move { Ok(sum + rows) })
        .await
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use taskhub_storage::memory::MemoryStore;

    use super::*;

    async fn table(rows: usize) -> (MemoryStore, Vec<TableOperation>) {
        let store = MemoryStore::new(Arc::new(taskhub_core::SystemClock));
        let tables = store.account().tables;
        tables.create_table("Rows").await.unwrap();
        let row = |n| Entity::new("p", format!("{n:05}"));
        (0..rows).for_each(|n| store.load_entity("Rows", row(n)));
        (store, (0..rows).map(|n| deletion(row(n), Condition::Any)).collect())
    }

    #[tokio::test]
    async fn rows_are_deleted_in_chunks_of_a_hundred() {
        for rows in [0, 1, 99, 100, 101, 250, 2500] {
            let (store, deletions) = table(rows).await;
            let deleted = delete_rows(&*store.account().tables, "Rows", deletions).await.unwrap();
            assert_eq!((deleted, store.entities("Rows").len()), (rows as u64, 0));
        }
    }

    #[tokio::test]
    async fn rows_that_are_gone_are_skipped_and_the_others_deleted_one_by_one() {
        let (store, deletions) = table(150).await;
        let tables = store.account().tables;
        for gone in [3, 120] {
            tables.execute("Rows", deletions[gone].clone()).await.unwrap();
        }
        let deleted = delete_rows(&*tables, "Rows", deletions).await.unwrap();
        assert_eq!((deleted, store.entities("Rows").len()), (148, 0));
    }

    #[tokio::test]
    async fn a_failure_is_told_and_a_second_call_deletes_the_rest() {
        let (store, deletions) = table(300).await;
        let tables = store.account().tables;
        let mut wrong = deletions;
        wrong[150] = deletion(Entity::new("another partition", "00150"), Condition::Any);
        assert!(delete_rows(&*tables, "Rows", wrong).await.is_err());
        let left = store.entities("Rows").into_iter().map(|row| deletion(row, Condition::Any)).collect();
        delete_rows(&*tables, "Rows", left).await.unwrap();
        assert!(store.entities("Rows").is_empty());
    }
}
