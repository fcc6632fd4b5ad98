//! Removal of instances.

use futures::stream::{self, StreamExt, TryStreamExt};
use taskhub_core::{InstanceId, PurgeResult, ServiceError};
use taskhub_storage as storage;
use taskhub_storage::{Condition, TableOperation, TableQuery};

use crate::tracking::store::TrackingStore;
use crate::tracking::{instance_row, key};

/// Rows deleted by one transaction. The service's limit.
const MAX_DELETE_ROWS: usize = 100;
/// Deletes under way at once. Source: Azure/durabletask, `Table.DeleteBatchParallelAsync`.
pub(super) const DELETE_CONCURRENCY: usize = 10;

impl TrackingStore {
    /// Removes blobs, history and row of one instance, the row last, so that a purge that is cut off can
    /// be repeated.
    ///
    /// Differs: DTFx lists blobs by the bare instance id, which takes those of every id that begins with
    /// it, and misses those under the escaped id.
    pub(crate) async fn purge(&self, instance_id: &InstanceId) -> Result<PurgeResult, ServiceError> {
        let mut result = PurgeResult::default();
        if self.instance_row(instance_id).await?.is_none() {
            return Ok(result);
        }
        let raw = format!("{instance_id}/");
        let partition_key = key::escape(instance_id.as_str());
        let escaped = format!("{partition_key}/");
        let mut names = self.large().list(&raw).await?;
        if escaped != raw {
            names.extend(self.large().list(&escaped).await?);
        }
        for name in names {
            result.blobs += u64::from(self.large().delete(&name).await?);
        }
        result.rows = self.delete_history(instance_id).await?;
        let delete =
            TableOperation::Delete { partition_key, row_key: String::new(), condition: Condition::Any };
        match self.hub.account.tables.execute(&self.hub.names.instances_table(), delete).await {
            Ok(_) => result.instances = 1,
            Err(e) if e.kind() == storage::ErrorKind::NotFound => {}
            Err(e) => {
                let what = format!("cannot delete the Instances row. instance=`{instance_id}`");
                return Err(self.hub.failed(what, e));
            }
        }
        self.etags.set(instance_id, None);
        Ok(result)
    }

    async fn delete_history(&self, instance_id: &InstanceId) -> Result<u64, ServiceError> {
        let failed = |e| self.hub.failed(format!("cannot delete the history. instance=`{instance_id}`"), e);
        let table = self.hub.names.history_table();
        let mut query = TableQuery {
            filter: Some(instance_row::filter_by_id(instance_id)),
            select: ["PartitionKey", "RowKey", "Timestamp"].map(str::to_owned).to_vec(),
            ..TableQuery::default()
        };
        let mut operations = Vec::new();
        loop {
            let page = self.hub.account.tables.query(&table, &query).await.map_err(failed)?;
            operations.extend(page.entities.into_iter().map(|row| TableOperation::Delete {
                partition_key: row.partition_key,
                row_key: row.row_key,
                condition: Condition::Any,
            }));
            match page.continuation {
                Some(next) => query.continuation = Some(next),
                None => break,
            }
        }
        let batches: Vec<Vec<_>> = operations.chunks(MAX_DELETE_ROWS).map(<[_]>::to_vec).collect();
        let counts: Vec<u64> = stream::iter(batches)
            .map(|batch| async {
                match self.hub.account.tables.transaction(&table, batch.clone()).await {
                    Ok(_) => Ok(batch.len() as u64),
                    // Somebody else deletes too: one by one, skipping what is gone.
                    Err(e) if e.kind() == storage::ErrorKind::NotFound => {
                        let mut deleted = 0;
                        for operation in batch {
                            match self.hub.account.tables.execute(&table, operation).await {
                                Ok(_) => deleted += 1,
                                Err(e) if e.kind() == storage::ErrorKind::NotFound => {}
                                Err(e) => return Err(failed(e)),
                            }
                        }
                        Ok(deleted)
                    }
                    Err(e) => Err(failed(e)),
                }
            })
            .buffer_unordered(DELETE_CONCURRENCY)
            .try_collect()
            .await?;
        Ok(counts.into_iter().sum())
    }
}
