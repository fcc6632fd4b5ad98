//! The History and Instances tables of a hub: reads and conditional writes.

use futures::stream::{self, StreamExt, TryStreamExt};
use taskhub_core::{
    EpisodeCommit, ErrorKind, EventKind, ExecutionId, HistoryEvent, InstanceFetch, InstanceId, InstancePage,
    InstanceQuery, OrchestrationInstance, OrchestrationState, OrchestrationStatus, PurgeResult, ServiceError,
    TaskMessage, Timestamp,
};
use taskhub_storage as storage;
use taskhub_storage::{Condition, ETag, Entity, TableOperation, TableQuery, quote_filter_text};

use crate::hub::Hub;
use crate::large_messages::LargeMessages;
use crate::message;
use crate::session::history_index::HistoryIndex;
use crate::tracking::etags::{InstanceEtags, Remembered};
use crate::tracking::instance_row::RowContext;
use crate::tracking::sentinel::Sentinel;
use crate::tracking::{blob_column, history_row, instance_row, key, sentinel};

/// Rows in one transaction besides the sentinel. Source: Azure/durabletask,
/// `AzureTableTrackingStore.UpdateStateAsync` (99 of the service's 100).
const MAX_BATCH_ROWS: usize = 99;
/// Estimated size at which a transaction is sent, in bytes. Source: same (3 of the service's 4 MiB).
const MAX_BATCH_BYTES: usize = 3 * 1024 * 1024;
/// Rows deleted by one transaction. The service's limit.
const MAX_DELETE_ROWS: usize = 100;
/// Deletes under way at once. Source: Azure/durabletask, `Table.DeleteBatchParallelAsync`.
const DELETE_CONCURRENCY: usize = 10;
/// Largest text of a column, in bytes of UTF-16. The service's limit.
const MAX_COLUMN_BYTES: usize = 64 * 1024;
/// Stands for a custom status that is larger.
const TOO_LARGE_STATUS: &str = "\"the custom status is too large to be shown\"";
/// How often an Instances row is read again when others write it at the same time.
const INSTANCE_WRITE_ATTEMPTS: u32 = 5;

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

/// Events that have been appended.
#[derive(Debug)]
pub(crate) struct CommittedHistory {
    pub(crate) etag: ETag,
    /// The rows as written, one per event.
    pub(crate) rows: Vec<Entity>,
    /// Blobs the new rows refer to.
    pub(crate) blob_names: Vec<String>,
}

/// An Instances row with its version.
#[derive(Debug, Clone)]
pub(crate) struct InstanceRow {
    pub(crate) state: OrchestrationState,
    pub(crate) etag: Option<ETag>,
}

struct StoredRows {
    rows: Vec<(HistoryEvent, Entity)>,
    sentinel: Option<Sentinel>,
    blob_names: Vec<String>,
}

/// The tracking store of one process.
#[derive(Debug)]
pub(crate) struct TrackingStore {
    hub: Hub,
    etags: InstanceEtags,
}

impl TrackingStore {
    pub(crate) fn new(hub: Hub) -> Self {
        Self { hub, etags: InstanceEtags::default() }
    }

    fn large(&self) -> LargeMessages<'_> {
        LargeMessages::new(&self.hub)
    }

    // ---- history ----------------------------------------------------------------------------------

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
            .or_else(|| rows.first().and_then(|(_, row)| history_row::execution_id(row).map(Into::into)));
        let etag = sentinel.as_ref().and_then(|s| s.etag.clone());
        if rows.is_empty() || expected.is_some_and(|e| Some(e) != current.as_ref()) {
            return Ok(LoadedHistory { execution_id: expected.cloned(), etag, ..LoadedHistory::default() });
        }
        if sentinel.is_some_and(|s| s.is_checkpoint_complete == Some(false)) {
            tracing::warn!(
                hub = %self.hub.name(), instance = %instance_id,
                "the last checkpoint was cut off between two batches; its episode is run again"
            );
        }
        let events: Vec<_> = rows.into_iter().map(|(event, _)| event).collect();
        let index = HistoryIndex::of(&events);
        Ok(LoadedHistory { execution_id: current, events, index, etag, blob_names })
    }

    async fn rows(
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
        entities.truncate(own);
        let mut rows = Vec::with_capacity(entities.len());
        let mut blob_names = Vec::new();
        for (at, mut row) in entities.into_iter().enumerate() {
            if history_row::index_of(&row.row_key) != Some(at as u64) {
                return Err(self.hub.unreadable(
                    what("a row of the history is missing"),
                    format!("expected row `{}`, found `{}`", history_row::row_key(at as u64), row.row_key),
                ));
            }
            let references: Vec<_> =
                blob_column::references(&row).into_iter().map(|(c, name)| (c, name.to_owned())).collect();
            for (column, name) in references {
                let text = self.large().read(&name).await?;
                row.set(column, text);
                blob_names.push(name);
            }
            let event = history_row::read(&row)
                .map_err(|e| self.hub.unreadable(what("a row of the history cannot be read"), e))?;
            rows.push((event, row));
        }
        Ok(StoredRows { rows, sentinel, blob_names })
    }

    /// Appends events, in transactions that each end with the sentinel and are chained by its version.
    /// Source: Azure/durabletask, `AzureTableTrackingStore.UpdateStateAsync`.
    ///
    /// # Errors
    /// `SessionAborted` when the sentinel is not the one that was read.
    pub(crate) async fn commit_history(
        &self,
        commit: HistoryCommit<'_>,
    ) -> Result<CommittedHistory, ServiceError> {
        let HistoryCommit { instance, first_row, events, etag } = commit;
        let execution_id = instance.execution_id.clone().unwrap_or_default();
        let partition_key = key::escape(instance.instance_id.as_str());
        let mut rows = Vec::with_capacity(events.len());
        let mut blobs = Vec::new();
        for (at, event) in events.iter().enumerate() {
            let index = (first_row + at) as u64;
            let mut row = history_row::write(&partition_key, index, &execution_id, event);
            blobs.extend(blob_column::offload_history(&mut row, &*self.hub.ids));
            rows.push(row);
        }
        let blob_names = self.upload(blobs).await?;

        let mut etag = etag.cloned();
        let mut batch = Vec::new();
        let mut bytes = 0;
        for (at, row) in rows.iter().enumerate() {
            bytes += blob_column::estimated_bytes(row);
            batch.push(TableOperation::InsertOrReplace(row.clone()));
            let last = at + 1 == rows.len();
            if last || batch.len() == MAX_BATCH_ROWS || bytes > MAX_BATCH_BYTES {
                let committed = self
                    .commit_batch(std::mem::take(&mut batch), instance, &execution_id, etag.as_ref(), last)
                    .await?;
                etag = Some(committed);
                bytes = 0;
            }
        }
        let etag = etag.ok_or_else(|| {
            ServiceError::new(
                ErrorKind::Internal,
                format!("an episode without events. instance=`{}`", instance.instance_id),
            )
        })?;
        Ok(CommittedHistory { etag, rows, blob_names })
    }

    async fn commit_batch(
        &self,
        mut batch: Vec<TableOperation>,
        instance: &OrchestrationInstance,
        execution_id: &ExecutionId,
        etag: Option<&ETag>,
        last: bool,
    ) -> Result<ETag, ServiceError> {
        let partition_key = key::escape(instance.instance_id.as_str());
        let completed_at = last.then(|| self.hub.clock.now());
        let row = sentinel::write(&partition_key, execution_id, completed_at);
        batch.push(match etag {
            Some(etag) => TableOperation::Merge(row, Condition::Matches(etag.clone())),
            None => TableOperation::Insert(row),
        });
        let table = self.hub.names.history_table();
        let written: Vec<Entity> = batch
            .iter()
            .filter_map(|operation| match operation {
                TableOperation::InsertOrReplace(row) => Some(row.clone()),
                _ => None,
            })
            .collect();
        match self.hub.account.tables.transaction(&table, batch).await {
            Ok(etags) => etags.into_iter().next_back().flatten().ok_or_else(|| {
                self.hub.unreadable("the history was written but its version is unknown", "no ETag answered")
            }),
            Err(e)
                if matches!(e.kind(), storage::ErrorKind::Conflict | storage::ErrorKind::AlreadyExists) =>
            {
                // The answer to an earlier attempt may have been lost: then what is stored is what we wrote.
                let ours = match completed_at {
                    Some(at) => self.stored_as_written(instance, execution_id, at, &written).await?,
                    None => None,
                };
                ours.ok_or_else(|| {
                    ServiceError::with_source(
                        ErrorKind::SessionAborted,
                        format!(
                            "another worker has changed the history. hub=`{}` instance=`{}`",
                            self.hub.name(),
                            instance.instance_id
                        ),
                        e,
                    )
                })
            }
            Err(e) => {
                let what = format!("cannot write the history. instance=`{}`", instance.instance_id);
                Err(self.hub.failed(what, e))
            }
        }
    }

    /// Version of the sentinel, if it and the rows before it are those of a checkpoint of ours.
    async fn stored_as_written(
        &self,
        instance: &OrchestrationInstance,
        execution_id: &ExecutionId,
        completed_at: Timestamp,
        written: &[Entity],
    ) -> Result<Option<ETag>, ServiceError> {
        let (Some(first), Some(last)) = (written.first(), written.last()) else { return Ok(None) };
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
        let same = page.entities.iter().map(|row| &row.columns).eq(written.iter().map(|row| &row.columns));
        Ok(stored.etag.filter(|_| same))
    }

    async fn sentinel(&self, instance_id: &InstanceId) -> Result<Option<Sentinel>, ServiceError> {
        let partition_key = key::escape(instance_id.as_str());
        let table = self.hub.names.history_table();
        let row =
            self.hub.account.tables.get_entity(&table, &partition_key, sentinel::SENTINEL_ROW_KEY).await;
        let row = row.map_err(|e| {
            self.hub.failed(format!("cannot read the sentinel row. instance=`{instance_id}`"), e)
        })?;
        Ok(row.as_ref().map(sentinel::read))
    }

    async fn upload(&self, blobs: Vec<blob_column::Offloaded>) -> Result<Vec<String>, ServiceError> {
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

    // ---- instances: what workers write ----------------------------------------------------------------

    fn row_context<'a>(
        &'a self,
        instance_id: &'a InstanceId,
        execution_id: &'a ExecutionId,
        container_url: &'a str,
    ) -> RowContext<'a> {
        RowContext {
            instance_id,
            execution_id,
            hub: self.hub.name(),
            container_url,
            now: self.hub.clock.now(),
        }
    }

    /// Writes what an episode changes in the Instances row, on condition that nobody has written the row
    /// since this worker last did.
    ///
    /// Differs: DTFx writes without a condition by default, so that a worker that was stalled can
    /// overwrite the row of a finished instance.
    pub(crate) async fn checkpoint_instance(
        &self,
        commit: &EpisodeCommit,
        index: &HistoryIndex,
        committed: &CommittedHistory,
        began_as: Option<&ExecutionId>,
    ) -> Result<(), ServiceError> {
        let instance_id = &commit.instance.instance_id;
        let execution_id = commit.instance.execution_id.clone().unwrap_or_default();
        let container_url = self.large().container_url();
        let context = self.row_context(instance_id, &execution_id, &container_url);
        let events = commit.new_events.iter().zip(&committed.rows);
        let custom_status =
            commit.custom_status.as_deref().map(|status| self.shown_status(instance_id, status));
        let mut row = instance_row::checkpoint(context, custom_status, events);
        let blobs = blob_column::offload_instance(&mut row, &container_url, &*self.hub.ids);
        self.upload(blobs).await?;

        let table = self.hub.names.instances_table();
        let remembered = self.etags.get(instance_id);
        let is_first = index.episodes() == 1 && remembered.is_none();
        // A row about another execution is one that a client has written for the next start of the id.
        let remembered = remembered.filter(|row| {
            row.execution_id.as_ref() == Some(&execution_id)
                || (commit.replaces_history && row.execution_id.as_ref() == began_as)
        });
        let mut known = if is_first { Known::Absent } else { Known::of(remembered.map(|row| row.etag)) };
        for _ in 0..INSTANCE_WRITE_ATTEMPTS {
            let operation = match known {
                Known::Version(etag) => TableOperation::Merge(row.clone(), Condition::Matches(etag)),
                Known::Absent => TableOperation::Insert(row.clone()),
                Known::Nothing => {
                    known = match self.instance_row(instance_id).await? {
                        None => Known::Absent,
                        Some(stored) => match self.may_overwrite(&stored, commit, index, committed).await? {
                            true => Known::of(stored.etag),
                            false => {
                                tracing::info!(
                                    hub = %self.hub.name(), instance = %instance_id,
                                    "the Instances row is newer than this episode and is left as it is"
                                );
                                return Ok(());
                            }
                        },
                    };
                    continue;
                }
            };
            match self.hub.account.tables.execute(&table, operation).await {
                Ok(etag) => {
                    let etag = etag.filter(|_| !commit.status.is_terminal());
                    let execution_id = Some(execution_id);
                    self.etags.set(instance_id, etag.map(|etag| Remembered { execution_id, etag }));
                    return Ok(());
                }
                Err(e)
                    if matches!(
                        e.kind(),
                        storage::ErrorKind::Conflict
                            | storage::ErrorKind::AlreadyExists
                            | storage::ErrorKind::NotFound
                    ) =>
                {
                    self.etags.set(instance_id, None);
                    known = Known::Nothing;
                }
                Err(e) => {
                    let what = format!("cannot write the Instances row. instance=`{instance_id}`");
                    return Err(self.hub.failed(what, e));
                }
            }
        }
        Err(ServiceError::new(
            ErrorKind::Unavailable,
            format!(
                "the Instances row is written by others all the time. hub=`{}` instance=`{instance_id}`",
                self.hub.name()
            ),
        ))
    }

    /// The custom status, or what stands for one that no column can hold.
    ///
    /// Differs: DTFx writes it anyway, and every checkpoint of the instance fails from then on.
    fn shown_status<'a>(&self, instance_id: &InstanceId, status: &'a str) -> &'a str {
        if blob_column::utf16_bytes(status) <= MAX_COLUMN_BYTES {
            return status;
        }
        tracing::error!(
            hub = %self.hub.name(), instance = %instance_id,
            "the custom status is too large for the Instances table and is not shown"
        );
        TOO_LARGE_STATUS
    }

    /// Somebody has written the row: whether this episode is nevertheless the newest word on it.
    async fn may_overwrite(
        &self,
        stored: &InstanceRow,
        commit: &EpisodeCommit,
        index: &HistoryIndex,
        committed: &CommittedHistory,
    ) -> Result<bool, ServiceError> {
        let stored_execution = &stored.state.instance.execution_id;
        let other_execution = stored_execution.is_some() && *stored_execution != commit.instance.execution_id;
        if other_execution {
            // A client has started the id again, and the row waits for that start.
            let started_at = index.started.as_ref().map(|(_, at)| *at);
            let newer = stored.state.status == Some(OrchestrationStatus::Pending)
                && started_at.is_none_or(|at| stored.state.created_at > at);
            if newer {
                return Ok(false);
            }
        }
        // Another worker may have committed a later episode and written its row already.
        let sentinel = self.sentinel(&commit.instance.instance_id).await?;
        Ok(sentinel.is_some_and(|s| s.etag.as_ref() == Some(&committed.etag)))
    }

    /// Ends an instance that has not begun: its start message is not here, and will be dropped.
    pub(crate) async fn terminate_pending(
        &self,
        row: &InstanceRow,
        event: &HistoryEvent,
    ) -> Result<(), ServiceError> {
        let EventKind::ExecutionTerminated { input: reason } = &event.kind else { return Ok(()) };
        let instance_id = &row.state.instance.instance_id;
        let now = self.hub.clock.now();
        let mut terminated = instance_row::terminate(instance_id, event.timestamp, reason.as_deref(), now);
        let container_url = self.large().container_url();
        self.upload(blob_column::offload_instance(&mut terminated, &container_url, &*self.hub.ids)).await?;
        let condition = row.etag.clone().map_or(Condition::Any, Condition::Matches);
        let merge = TableOperation::Merge(terminated, condition);
        let written = self.hub.account.tables.execute(&self.hub.names.instances_table(), merge).await;
        written.map(drop).map_err(|e| {
            self.hub.failed(format!("cannot terminate a pending instance. instance=`{instance_id}`"), e)
        })
    }

    /// Makes the row of a finished instance say what its history says. A crash between the two writes
    /// leaves it behind.
    pub(crate) async fn repair_instance(
        &self,
        instance_id: &InstanceId,
        index: &HistoryIndex,
        stored: Option<&InstanceRow>,
    ) -> Result<(), ServiceError> {
        let execution_id = index.started.as_ref().and_then(|(s, _)| s.instance.execution_id.clone());
        let Some(execution_id) = execution_id else { return Ok(()) };
        if let Some(stored) = stored {
            let same = stored.state.instance.execution_id.as_ref().is_none_or(|e| *e == execution_id);
            if !same || stored.state.status == index.status() {
                return Ok(());
            }
        }
        let StoredRows { rows, .. } = self.rows(instance_id, Some(&execution_id)).await?;
        let container_url = self.large().container_url();
        let context = self.row_context(instance_id, &execution_id, &container_url);
        let events = rows.iter().map(|(event, row)| (event, row));
        let Some(mut row) = instance_row::repair(context, events, stored.is_some()) else { return Ok(()) };
        self.upload(blob_column::offload_instance(&mut row, &container_url, &*self.hub.ids)).await?;
        tracing::warn!(hub = %self.hub.name(), instance = %instance_id, "the Instances row is repaired");
        let operation = match stored.and_then(|s| s.etag.clone()) {
            Some(etag) => TableOperation::Merge(row, Condition::Matches(etag)),
            None => TableOperation::InsertOrMerge(row),
        };
        let written = self.hub.account.tables.execute(&self.hub.names.instances_table(), operation).await;
        written.map(drop).map_err(|e| {
            self.hub.failed(format!("cannot repair the Instances row. instance=`{instance_id}`"), e)
        })
    }

    // ---- instances: what clients do --------------------------------------------------------------------

    /// The row for start de-duplication; its version is remembered for the first checkpoint.
    pub(crate) async fn instance_for_start(
        &self,
        instance_id: &InstanceId,
    ) -> Result<Option<OrchestrationState>, ServiceError> {
        let row = self.instance_row(instance_id).await?;
        if let Some(row) = &row {
            let execution_id = row.state.instance.execution_id.clone();
            self.etags.set(instance_id, row.etag.clone().map(|etag| Remembered { execution_id, etag }));
        }
        Ok(row.map(|row| row.state))
    }

    /// The row without input and output.
    pub(crate) async fn instance_row(
        &self,
        instance_id: &InstanceId,
    ) -> Result<Option<InstanceRow>, ServiceError> {
        let Some(row) = self.instance_entity(instance_id, InstanceFetch::NONE).await? else {
            return Ok(None);
        };
        let etag = row.etag.clone();
        Ok(Some(InstanceRow { state: self.read_instance(&row)?, etag }))
    }

    fn read_instance(&self, row: &Entity) -> Result<OrchestrationState, ServiceError> {
        instance_row::read(row)
            .map_err(|e| self.hub.unreadable("a row of the Instances table cannot be read", e))
    }

    async fn instance_entity(
        &self,
        instance_id: &InstanceId,
        fetch: InstanceFetch,
    ) -> Result<Option<Entity>, ServiceError> {
        let query = TableQuery {
            filter: Some(format!("{} and RowKey eq ''", instance_row::filter_by_id(instance_id))),
            select: instance_row::select(fetch),
            top: Some(1),
            continuation: None,
        };
        match self.hub.account.tables.query(&self.hub.names.instances_table(), &query).await {
            Ok(page) => Ok(page.entities.into_iter().next()),
            Err(e) if e.kind() == storage::ErrorKind::NotFound => Ok(None),
            Err(e) => {
                Err(self.hub.failed(format!("cannot read the Instances row. instance=`{instance_id}`"), e))
            }
        }
    }

    /// Writes the row of a start whose message has been sent. A row that somebody else has written
    /// meanwhile stays: the worker compares both and drops the loser's start.
    pub(crate) async fn create_instance(
        &self,
        start: &TaskMessage,
        message_blob: Option<&str>,
        existing: Option<InstanceRow>,
    ) -> Result<(), ServiceError> {
        let EventKind::ExecutionStarted(started) = &start.event.kind else { return Ok(()) };
        let instance_id = &start.target.instance_id;
        let container_url = self.large().container_url();
        let url = message_blob.map(|name| message::blob_url(&container_url, name));
        let now = self.hub.clock.now();
        let mut row =
            instance_row::start(self.hub.name(), start.event.timestamp, started, url.as_deref(), now);
        self.upload(blob_column::offload_instance(&mut row, &container_url, &*self.hub.ids)).await?;
        let operation = match existing.and_then(|row| row.etag) {
            Some(etag) => TableOperation::Replace(row, Condition::Matches(etag)),
            None => TableOperation::Insert(row),
        };
        match self.hub.account.tables.execute(&self.hub.names.instances_table(), operation).await {
            Err(e)
                if matches!(e.kind(), storage::ErrorKind::AlreadyExists | storage::ErrorKind::Conflict) =>
            {
                tracing::info!(
                    hub = %self.hub.name(), instance = %instance_id,
                    "the Instances row was written by somebody else at the same time"
                );
                Ok(())
            }
            other => other.map(drop).map_err(|e| {
                let what =
                    format!("the start is sent but its row cannot be written. instance=`{instance_id}`");
                self.hub.failed(what, e)
            }),
        }
    }

    /// The state of one instance.
    pub(crate) async fn instance_state(
        &self,
        instance_id: &InstanceId,
        fetch: InstanceFetch,
    ) -> Result<Option<OrchestrationState>, ServiceError> {
        match self.instance_entity(instance_id, fetch).await? {
            Some(row) => self.resolved(row).await.map(Some),
            None => Ok(None),
        }
    }

    /// One page of instances.
    pub(crate) async fn list_instances(&self, query: &InstanceQuery) -> Result<InstancePage, ServiceError> {
        let table_query = TableQuery {
            filter: instance_row::filter(query),
            select: instance_row::select(query.fetch),
            top: query.page_size,
            continuation: query.continuation.clone(),
        };
        let page = match self.hub.account.tables.query(&self.hub.names.instances_table(), &table_query).await
        {
            Ok(page) => page,
            Err(e) if e.kind() == storage::ErrorKind::NotFound => return Ok(InstancePage::default()),
            Err(e) => return Err(self.hub.failed("cannot list instances", e)),
        };
        let mut instances = Vec::with_capacity(page.entities.len());
        for row in page.entities {
            let key = row.partition_key.clone();
            match self.resolved(row).await {
                Ok(state) => instances.push(state),
                // One row of other software, or one missing blob, must not hide all others.
                Err(e) if e.kind() == ErrorKind::Data => {
                    tracing::warn!(hub = %self.hub.name(), key, error = e.chain(), "an instance is left out");
                }
                Err(e) => return Err(e),
            }
        }
        Ok(InstancePage { instances, continuation: page.continuation })
    }

    /// The state of a row, with large input and output downloaded.
    async fn resolved(&self, mut row: Entity) -> Result<OrchestrationState, ServiceError> {
        if self.hub.settings.fetch_large_message_data_enabled {
            let container_url = self.large().container_url();
            for (column, name) in instance_row::blob_references(&row, &container_url) {
                let text = self.large().read(&name).await?;
                let text = instance_row::blob_text(&name, text).map_err(|e| {
                    self.hub.unreadable(format!("a large message cannot be read. blob=`{name}`"), e)
                })?;
                match text {
                    Some(text) => row.set(column, text),
                    None => drop(row.columns.remove(column)),
                }
            }
        }
        self.read_instance(&row)
    }

    // ---- purge --------------------------------------------------------------------------------------

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

/// What this worker knows of an Instances row.
enum Known {
    Version(ETag),
    Absent,
    Nothing,
}

impl Known {
    fn of(etag: Option<ETag>) -> Self {
        etag.map_or(Self::Nothing, Self::Version)
    }
}
