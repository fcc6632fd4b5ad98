//! The tracking store of a hub, and its History table: reads and conditional writes.

use std::iter::Peekable;

use futures::stream::{self, StreamExt, TryStreamExt};
use taskhub_core::{
    ErrorKind, ExecutionId, HistoryEvent, InstanceId, OrchestrationInstance, ServiceError, Timestamp,
};
use taskhub_storage as storage;
use taskhub_storage::{Condition, ETag, Entity, TableOperation, TableQuery, quote_filter_text};

use crate::hub::Hub;
use crate::large_messages::LargeMessages;
use crate::message;
use crate::sabotage::Planted;
use crate::session::history_index::HistoryIndex;
use crate::tracking::etags::InstanceEtags;
use crate::tracking::late_rows::{LateRows, Shown};
use crate::tracking::purge::DELETE_CONCURRENCY;
use crate::tracking::sentinel::Sentinel;
use crate::tracking::{blob_column, history_row, instance_row, key, sentinel};

/// Rows in one transaction besides the sentinel. Source: Azure/durabletask,
/// `AzureTableTrackingStore.UpdateStateAsync` (99 of the service's 100).
pub(crate) const MAX_BATCH_ROWS: usize = 99;
/// Room for the sentinel in a transaction, in bytes as sent; its keys take 1 KiB of UTF-16 each at most.
const SENTINEL_BYTES: usize = 16 * 1024;
/// Estimated size at which a transaction is sent, in bytes. Source: same (3 of the service's 4 MiB).
const MAX_BATCH_BYTES: usize = 3 * 1024 * 1024;

/// A history as stored.
#[derive(Debug, Clone, Default)]
pub(crate) struct LoadedHistory {
    /// The execution, if there is a history or one was asked for.
    pub(crate) execution_id: Option<ExecutionId>,
    pub(crate) events: Vec<HistoryEvent>,
    /// What admission needs to know of the events.
    pub(crate) index: HistoryIndex,
    /// Version of the sentinel, also when it belongs to another execution.
    pub(crate) etag: Option<ETag>,
    /// Blobs the rows refer to.
    pub(crate) blob_names: Vec<String>,
    /// Whether another execution is stored than the one asked for, and its last checkpoint was cut off.
    pub(crate) other_is_cut_off: bool,
    /// Not read now, but remembered, or assumed to be new.
    pub(crate) is_assumed: bool,
    /// What the Instances row shows, if this process has written it.
    pub(crate) shown: Option<Shown>,
}

/// Events to be appended to a history.
#[derive(Debug, Clone, Copy)]
pub(crate) struct HistoryCommit<'a> {
    pub(crate) instance: &'a OrchestrationInstance,
    /// Index of the first event's row.
    pub(crate) first_row: usize,
    pub(crate) events: &'a [HistoryEvent],
    /// Version of the sentinel as it was read; `None` when there was none.
    pub(crate) etag: Option<&'a ETag>,
}

/// Why an episode is not stored.
#[derive(Debug)]
pub(crate) struct CommitFailure {
    pub(crate) error: ServiceError,
    /// Nothing of it is stored, and nothing ever will be.
    pub(crate) is_lost: bool,
}

impl From<ServiceError> for CommitFailure {
    fn from(error: ServiceError) -> Self {
        Self { error, is_lost: false }
    }
}

/// Events that have been appended.
#[derive(Debug)]
pub(crate) struct CommittedHistory {
    pub(crate) etag: ETag,
    /// The rows as written, one per event.
    pub(crate) rows: Vec<Entity>,
    /// Blobs the new rows refer to.
    pub(crate) blob_names: Vec<String>,
}

pub(super) struct StoredRows {
    /// Events in order, with large columns restored.
    pub(super) rows: Vec<Entity>,
    sentinel: Option<Sentinel>,
    blob_names: Vec<String>,
}

/// The tracking store of one process.
#[derive(Debug)]
pub(crate) struct TrackingStore {
    pub(super) hub: Hub,
    pub(super) etags: InstanceEtags,
    pub(super) late: LateRows,
}

impl TrackingStore {
    pub(crate) fn new(hub: Hub) -> Self {
        Self { hub, etags: InstanceEtags::default(), late: LateRows::default() }
    }

    pub(super) fn large(&self) -> LargeMessages<'_> {
        LargeMessages::new(&self.hub)
    }

    /// Reads the history of the current execution, or of `expected` if that is the current one.
    /// Source: Azure/durabletask, `AzureTableTrackingStore.GetHistoryEventsAsync`.
    ///
    /// # Errors
    /// `Data` naming the row that cannot be read.
    pub(crate) async fn history(
        &self,
        instance_id: &InstanceId,
        expected: Option<&ExecutionId>,
    ) -> Result<LoadedHistory, ServiceError> {
        let StoredRows { rows, sentinel, blob_names } = self.rows(instance_id, expected).await?;
        let current = sentinel
            .as_ref()
            .map(|s| s.execution_id.clone())
            .or_else(|| rows.first().and_then(|row| history_row::execution_id(row).map(Into::into)));
        let etag = sentinel.as_ref().and_then(|s| s.etag.clone());
        if rows.is_empty() || expected.is_some_and(|e| Some(e) != current.as_ref()) {
            let other_is_cut_off = sentinel.is_some_and(|s| s.is_checkpoint_complete == Some(false));
            return Ok(LoadedHistory {
                execution_id: expected.cloned(),
                etag,
                other_is_cut_off,
                ..LoadedHistory::default()
            });
        }
        if sentinel.is_some_and(|s| s.is_checkpoint_complete == Some(false)) {
            tracing::warn!(
                hub = %self.hub.name(), instance = %instance_id,
                "the last checkpoint was cut off between two batches; its episode is run again"
            );
        }
        let events: Vec<_> =
            rows.into_iter().map(|row| self.read_event(instance_id, &row)).collect::<Result<_, _>>()?;
        let index = HistoryIndex::of(&events);
        Ok(LoadedHistory {
            execution_id: current,
            events,
            index,
            etag,
            blob_names,
            ..LoadedHistory::default()
        })
    }

    pub(super) async fn rows(
        &self,
        instance_id: &InstanceId,
        expected: Option<&ExecutionId>,
    ) -> Result<StoredRows, ServiceError> {
        let mut filter = instance_row::filter_by_id(instance_id);
        if let Some(expected) = expected {
            let execution = quote_filter_text(expected.as_str());
            filter.push_str(&format!(" and (RowKey eq 'sentinel' or ExecutionId eq {execution})"));
        }
        let what = |what: &str| format!("{what}. instance=`{instance_id}`");
        let mut query = TableQuery { filter: Some(filter), ..TableQuery::default() };
        let mut entities = Vec::new();
        let mut sentinel = None;
        loop {
            let page = self.hub.account.tables.query(&self.hub.names.history_table(), &query).await;
            let page = page.map_err(|e| self.hub.failed(what("cannot read the history"), e))?;
            for row in page.entities {
                if sentinel::is_sentinel(&row) {
                    sentinel = Some(sentinel::read(&row));
                } else if history_row::index_of(&row.row_key).is_some() {
                    entities.push(row);
                } else {
                    tracing::warn!(
                        hub = %self.hub.name(), instance = %instance_id, row = row.row_key,
                        "a row of the history table is no event and is ignored"
                    );
                }
            }
            match page.continuation {
                Some(next) => query.continuation = Some(next),
                None => break,
            }
        }
        let execution = sentinel
            .as_ref()
            .map(|s| s.execution_id.as_str().to_owned())
            .or_else(|| entities.first().and_then(history_row::execution_id).map(str::to_owned));
        // Rows of an earlier, longer execution stay behind those of the current one.
        let own =
            entities.iter().take_while(|row| history_row::execution_id(row) == execution.as_deref()).count();
        if !self.hub.settings.planted(Planted::OldRows) {
            entities.truncate(own);
        }
        let mut blob_names = Vec::new();
        for (at, row) in entities.iter_mut().enumerate() {
            if history_row::index_of(&row.row_key) != Some(at as u64) {
                return Err(self.hub.unreadable(
                    what("a row of the history is missing"),
                    format!("expected row `{}`, found `{}`", history_row::row_key(at as u64), row.row_key),
                ));
            }
            let references: Vec<_> =
                blob_column::references(row).into_iter().map(|(c, name)| (c, name.to_owned())).collect();
            for (column, name) in references {
                let text = self.large().read(&name).await?;
                row.set(column, text);
                blob_names.push(name);
            }
        }
        Ok(StoredRows { rows: entities, sentinel, blob_names })
    }

    /// The event of a row.
    pub(super) fn read_event(
        &self,
        instance_id: &InstanceId,
        row: &Entity,
    ) -> Result<HistoryEvent, ServiceError> {
        history_row::read(row).map_err(|e| {
            let what = format!("a row of the history cannot be read. instance=`{instance_id}`");
            self.hub.unreadable(what, e)
        })
    }

    /// Appends events, in transactions that each end with the sentinel and are chained by its version.
    /// Source: Azure/durabletask, `AzureTableTrackingStore.UpdateStateAsync`.
    ///
    /// # Errors
    /// `SessionAborted` when the sentinel is not the one that was read.
    pub(crate) async fn commit_history(
        &self,
        commit: HistoryCommit<'_>,
    ) -> Result<CommittedHistory, CommitFailure> {
        let HistoryCommit { instance, first_row, events, etag } = commit;
        let execution_id = instance.execution_id.clone().unwrap_or_default();
        let partition_key = key::escape(instance.instance_id.as_str());
        let mut writes = Vec::with_capacity(events.len());
        let mut blobs = Vec::new();
        for (at, event) in events.iter().enumerate() {
            let index = (first_row + at) as u64;
            let mut row = history_row::write(&partition_key, index, &execution_id, event);
            blobs.extend(blob_column::offload_history(&mut row, &*self.hub.ids));
            writes.push(TableOperation::InsertOrReplace(row));
        }
        let blob_names = self.upload(blobs).await?;

        let mut etag = etag.cloned();
        let max_rows = self.hub.settings.max_batch_rows(MAX_BATCH_ROWS, events);
        let mut batches = batches_of(writes, max_rows);
        let last = batches.len().saturating_sub(1);
        for (at, batch) in batches.iter_mut().enumerate() {
            let completed_at = (at == last).then(|| self.hub.clock.now());
            let stored = self.commit_batch(batch, instance, &execution_id, etag.as_ref(), completed_at).await;
            etag = Some(stored.map_err(|failure| CommitFailure {
                // Whoever goes on does so with the events of the batches before, which must be followed by their
                // messages.
                is_lost: failure.is_lost && at == 0,
                ..failure
            })?);
        }
        let etag = etag.ok_or_else(|| {
            ServiceError::new(
                ErrorKind::Internal,
                format!("an episode without events. instance=`{}`", instance.instance_id),
            )
        })?;
        let rows = batches.into_iter().flatten().filter_map(|write| match write {
            TableOperation::InsertOrReplace(row) => Some(row),
            _ => None,
        });
        Ok(CommittedHistory { etag, rows: rows.collect(), blob_names })
    }

    /// Writes a batch and the sentinel, which says when the checkpoint was complete if this is its last batch.
    async fn commit_batch(
        &self,
        batch: &mut Vec<TableOperation>,
        instance: &OrchestrationInstance,
        execution_id: &ExecutionId,
        etag: Option<&ETag>,
        completed_at: Option<Timestamp>,
    ) -> Result<ETag, CommitFailure> {
        let partition_key = key::escape(instance.instance_id.as_str());
        let row = sentinel::write(&partition_key, execution_id, completed_at);
        batch.push(match etag {
            _ if self.hub.settings.planted(Planted::CommitWithoutEtag) => TableOperation::InsertOrMerge(row),
            Some(etag) => TableOperation::Merge(row, Condition::Matches(etag.clone())),
            None => TableOperation::Insert(row),
        });
        let table = self.hub.names.history_table();
        let stored = self.hub.account.tables.transaction(&table, batch).await;
        batch.pop();
        match stored {
            Ok(etags) => Ok(etags.into_iter().next_back().flatten().ok_or_else(|| {
                self.hub.unreadable("the history was written but its version is unknown", "no ETag answered")
            })?),
            Err(e)
                if matches!(e.kind(), storage::ErrorKind::Conflict | storage::ErrorKind::AlreadyExists)
                    // The history has been purged since.
                    || (etag.is_some() && e.kind() == storage::ErrorKind::NotFound) =>
            {
                // The answer to an earlier attempt may have been lost: then what is stored is what we wrote.
                let ours = match completed_at {
                    Some(at) => self.stored_as_written(instance, execution_id, at, batch).await?,
                    None => None,
                };
                if let Some(ours) = ours {
                    return Ok(ours);
                }
                let is_lost = !e.maybe_applied() || self.is_taken(instance, batch).await.unwrap_or(false);
                let error = ServiceError::with_source(
                    ErrorKind::SessionAborted,
                    format!(
                        "another worker has changed the history. hub=`{}` instance=`{}`",
                        self.hub.name(),
                        instance.instance_id
                    ),
                    e,
                );
                Err(CommitFailure { error, is_lost })
            }
            Err(e) => {
                let what = format!("cannot write the history. instance=`{}`", instance.instance_id);
                Err(self.hub.failed(what, e).into())
            }
        }
    }

    /// Whether the same execution goes on with other events than those that were to be written: histories only
    /// grow, so that these were not and will not be stored.
    async fn is_taken(
        &self,
        instance: &OrchestrationInstance,
        batch: &[TableOperation],
    ) -> Result<bool, ServiceError> {
        let Some(first) = rows(batch).next() else { return Ok(false) };
        let table = self.hub.names.history_table();
        let stored = self.hub.account.tables.get_entity(&table, &first.partition_key, &first.row_key).await;
        let stored = stored.map_err(|e| {
            self.hub.failed(format!("cannot read the history. instance=`{}`", instance.instance_id), e)
        })?;
        Ok(stored.is_some_and(|stored| {
            let execution = instance.execution_id.as_ref().map(ExecutionId::as_str);
            history_row::execution_id(&stored) == execution && stored.columns != first.columns
        }))
    }

    /// Version of the sentinel, if it and the rows before it are those of a checkpoint of ours.
    async fn stored_as_written(
        &self,
        instance: &OrchestrationInstance,
        execution_id: &ExecutionId,
        completed_at: Timestamp,
        batch: &[TableOperation],
    ) -> Result<Option<ETag>, ServiceError> {
        let (Some(first), Some(last)) = (rows(batch).next(), rows(batch).last()) else { return Ok(None) };
        let stored = self
            .sentinel(&instance.instance_id)
            .await?
            .filter(|s| s.checkpoint_completed_at == Some(completed_at) && s.execution_id == *execution_id);
        let Some(stored) = stored else { return Ok(None) };
        let query = TableQuery {
            filter: Some(format!(
                "{} and RowKey ge '{}' and RowKey le '{}'",
                instance_row::filter_by_id(&instance.instance_id),
                first.row_key,
                last.row_key
            )),
            ..TableQuery::default()
        };
        let page = self.hub.account.tables.query(&self.hub.names.history_table(), &query).await;
        let page = page.map_err(|e| {
            self.hub.failed(format!("cannot read the history. instance=`{}`", instance.instance_id), e)
        })?;
        let same = page.entities.iter().map(|row| &row.columns).eq(rows(batch).map(|row| &row.columns));
        Ok(stored.etag.filter(|_| same))
    }

    pub(super) async fn sentinel(&self, instance_id: &InstanceId) -> Result<Option<Sentinel>, ServiceError> {
        let partition_key = key::escape(instance_id.as_str());
        let table = self.hub.names.history_table();
        let row =
            self.hub.account.tables.get_entity(&table, &partition_key, sentinel::SENTINEL_ROW_KEY).await;
        let row = row.map_err(|e| {
            self.hub.failed(format!("cannot read the sentinel row. instance=`{instance_id}`"), e)
        })?;
        Ok(row.as_ref().map(sentinel::read))
    }

    pub(super) async fn upload(
        &self,
        blobs: Vec<blob_column::Offloaded>,
    ) -> Result<Vec<String>, ServiceError> {
        if blobs.is_empty() {
            return Ok(Vec::new());
        }
        stream::iter(blobs)
            .map(|blob| async move {
                self.large().write(&blob.blob_name, message::compress(&blob.text)).await?;
                Ok(blob.blob_name)
            })
            .buffer_unordered(self.hub.settings.max_storage_operation_concurrency)
            .try_collect()
            .await
    }

    /// Deletes blobs that nothing refers to any more. A failure leaves them behind, until the purge.
    pub(crate) async fn delete_blobs(&self, names: Vec<String>) {
        stream::iter(names)
            .for_each_concurrent(DELETE_CONCURRENCY, |name| async move {
                if let Err(e) = self.large().delete(&name).await {
                    tracing::warn!(hub = %self.hub.name(), error = e.chain(), "cannot delete an old large message");
                }
            })
            .await;
    }
}

/// The rows of a batch, which are all written alike.
fn rows(batch: &[TableOperation]) -> impl Iterator<Item = &Entity> {
    batch.iter().filter_map(|write| match write {
        TableOperation::InsertOrReplace(row) => Some(row),
        _ => None,
    })
}

fn batches_of(writes: Vec<TableOperation>, max_rows: usize) -> Vec<Vec<TableOperation>> {
    let mut operations = writes.into_iter().peekable();
    let mut batches = Vec::new();
    while operations.peek().is_some() {
        batches.push(next_batch(&mut operations, max_rows));
    }
    batches
}

/// The operations of the next transaction, as DTFx cuts them.
///
/// Differs: DTFx estimates the size by UTF-16 alone. Many texts are longer on the wire, and a transaction that
/// is too large is refused for ever; here a batch also ends before it would be.
fn next_batch(
    operations: &mut Peekable<impl Iterator<Item = TableOperation>>,
    max_rows: usize,
) -> Vec<TableOperation> {
    let mut batch = Vec::new();
    let (mut estimated, mut sent) = (0, SENTINEL_BYTES);
    while let Some(operation) = operations.next_if(|next| {
        sent += storage::transaction_bytes(next);
        batch.is_empty() || sent <= storage::MAX_TRANSACTION_BYTES
    }) {
        if let TableOperation::InsertOrReplace(row) = &operation {
            estimated += blob_column::estimated_bytes(row);
        }
        batch.push(operation);
        if batch.len() == max_rows || estimated > MAX_BATCH_BYTES {
            break;
        }
    }
    batch
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, rows: usize, expected: &[usize]) {
        let row = |n: usize| Entity::new("p", history_row::row_key(n as u64)).with("Result", text);
        let writes = (0..rows).map(row).map(TableOperation::InsertOrReplace).collect();
        let batches = batches_of(writes, MAX_BATCH_ROWS);
        for batch in &batches {
            let sent: usize = batch.iter().map(storage::transaction_bytes).sum();
            assert!(sent + SENTINEL_BYTES <= storage::MAX_TRANSACTION_BYTES);
        }
        let sizes: Vec<_> = batches.iter().map(Vec::len).collect();
        assert_eq!(sizes, expected);
    }

    #[test]
    fn batches_end_by_rows_by_estimate_and_before_the_limit_of_the_service() {
        check("", 250, &[99, 99, 52]);
        check(&"x".repeat(30_000), 60, &[52, 8]);
        check(&"日".repeat(30_000), 60, &[46, 14]);
        check(&"\u{1}".repeat(30_000), 30, &[23, 7]);
    }
}
