//! Reads and conditional writes of the Instances table.

use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use futures::stream::{self, StreamExt as _};
use taskhub_core::{
    EpisodeCommit, ErrorKind, EventKind, ExecutionId, HistoryEvent, InstanceFetch, InstanceId, InstancePage,
    InstanceQuery, OrchestrationInstance, OrchestrationState, OrchestrationStatus, ServiceError, TaskMessage,
};
use taskhub_storage as storage;
use taskhub_storage::{Condition, ETag, Entity, TableOperation, TableQuery};

use crate::message;
use crate::sabotage::Planted;
use crate::session::history_index::HistoryIndex;
use crate::tracking::etags::Remembered;
use crate::tracking::instance_row::{RowContext, Stale};
use crate::tracking::store::{CommittedHistory, StoredRows, TrackingStore};
use crate::tracking::{blob_column, instance_row, key};

/// How often an Instances row is read again when others write it at the same time.
const INSTANCE_WRITE_ATTEMPTS: u32 = 5;
/// Largest text of a column, in bytes of UTF-16. The service's limit.
const MAX_COLUMN_BYTES: usize = 64 * 1024;
/// Stands for a custom status that is larger.
const TOO_LARGE_STATUS: &str = "\"the custom status is too large to be shown\"";

/// Payloads of listed instances that are read at once.
const RESOLVE_CONCURRENCY: usize = 8;
/// Inputs and outputs of a page, in bytes of UTF-8, after which it ends early.
pub(crate) const MAX_PAGE_BYTES: usize = 16 * 1024 * 1024;
/// Begins the continuation of a page that ended early; the key of the next instance follows in Base64. The
/// service's tokens hold two words, of which the second is empty here.
const EARLY_END: &str = "from! ";

/// An Instances row with its version.
#[derive(Debug, Clone)]
pub(crate) struct InstanceRow {
    pub(crate) state: OrchestrationState,
    pub(crate) etag: Option<ETag>,
}

impl InstanceRow {
    /// What the next write needs to know of it. That of a finished instance has to be looked at again.
    fn remembered(self) -> Option<Remembered> {
        if self.state.status.is_some_and(OrchestrationStatus::is_terminal) {
            return None;
        }
        let is_pending = self.is_pending();
        let execution_id = self.state.instance.execution_id;
        self.etag.map(|etag| Remembered { execution_id, etag, is_pending })
    }

    /// Whether it may tell of an execution without history.
    fn is_pending(&self) -> bool {
        matches!(self.state.status, Some(OrchestrationStatus::Pending | OrchestrationStatus::ContinuedAsNew))
    }

    /// Whether the history of another execution is later than the row: that of one as which the row's has
    /// continued, whose own row was never written. It is earlier if the row waits for a start.
    ///
    /// No times of different machines are compared: rows are written after histories but for those of starts,
    /// which are pending, and those that [`TrackingStore::announce_next`] writes, which name the history to come.
    pub(crate) fn is_continued_by(&self, history: &HistoryIndex) -> bool {
        let Some((started, started_at)) = &history.started else { return false };
        let row = &self.state;
        if row.instance.execution_id.is_none() || row.instance.execution_id == started.instance.execution_id {
            return false;
        }
        match row.status {
            Some(OrchestrationStatus::ContinuedAsNew) => row.last_updated_at == *started_at,
            Some(OrchestrationStatus::Running | OrchestrationStatus::Suspended) => true,
            // A start may have been terminated before it had a history.
            _ => false,
        }
    }
}

impl TrackingStore {
    pub(super) fn row_context<'a>(
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
    ) -> Result<RowOutcome, ServiceError> {
        let instance_id = &commit.instance.instance_id;
        let execution_id = commit.instance.execution_id.clone().unwrap_or_default();
        let container_url = self.large().container_url();
        let context = self.row_context(instance_id, &execution_id, &container_url);
        // What could wait until now: that the instance has begun.
        let late = self.late.take(instance_id, began_as);
        let late = late.map(|late| late.start).filter(|_| !commit.replaces_history);
        let events = commit.new_events.iter().zip(&committed.rows);
        let events = late.iter().map(|(event, row)| (event, row)).chain(events);
        let custom_status =
            commit.custom_status.as_deref().map(|status| self.shown_status(instance_id, status));
        let mut row = instance_row::checkpoint(context, custom_status, events);
        // Whether the row is enough where there is none about this execution.
        let is_start = |event: &HistoryEvent| matches!(event.kind, EventKind::ExecutionStarted(_));
        let mut is_whole = late.is_some() || commit.new_events.iter().any(is_start);
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
        let mut was_pending = remembered.as_ref().is_some_and(|row| row.is_pending);
        let mut known = if is_first { Known::Absent } else { Known::of(remembered.map(|row| row.etag)) };
        for _ in 0..INSTANCE_WRITE_ATTEMPTS {
            let operation = match known {
                _ if self.hub.settings.planted(Planted::RowWithoutEtag) => {
                    TableOperation::InsertOrMerge(row.clone())
                }
                Known::Version(etag) => TableOperation::Merge(row.clone(), Condition::Matches(etag)),
                Known::Absent if !is_whole => {
                    row = self.whole_row(instance_id, &execution_id, custom_status).await?;
                    is_whole = true;
                    known = Known::Absent;
                    continue;
                }
                Known::Absent => TableOperation::Insert(row.clone()),
                Known::Nothing => {
                    known = match self.instance_row(instance_id).await? {
                        None => Known::Absent,
                        Some(stored)
                            if stored.state.status == Some(OrchestrationStatus::Terminated)
                                && stored.state.instance.execution_id.as_ref() == Some(&execution_id)
                                && !commit.status.is_terminal() =>
                        {
                            let state = self.instance_state(instance_id, InstanceFetch::ALL).await?;
                            let reason = state.and_then(|state| state.output);
                            return Ok(RowOutcome::TerminatedBefore { reason });
                        }
                        Some(stored) => match self.may_overwrite(&stored, commit, index, committed).await? {
                            true => {
                                was_pending = stored.is_pending();
                                let is_about = &stored.state.instance.execution_id;
                                // Or nobody has shown that it has begun; a rewound one is shown as pending.
                                let never_begun = stored.state.status == Some(OrchestrationStatus::Pending)
                                    && stored.state.completed_at.is_none();
                                if !is_whole && (never_begun || is_about.as_ref() != Some(&execution_id)) {
                                    row = self.whole_row(instance_id, &execution_id, custom_status).await?;
                                    is_whole = true;
                                }
                                Known::of(stored.etag)
                            }
                            false => {
                                tracing::info!(
                                    hub = %self.hub.name(), instance = %instance_id,
                                    "the Instances row is newer than this episode and is left as it is"
                                );
                                return Ok(RowOutcome::Written);
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
                    let is_pending = was_pending && row.str("RuntimeStatus").is_none();
                    let row = etag.map(|etag| Remembered { execution_id, etag, is_pending });
                    self.etags.set(instance_id, row);
                    return Ok(RowOutcome::Written);
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
                    // Its version is not certain now, and what could wait until now would be missing in it.
                    self.etags.set(instance_id, None);
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

    /// The row of an execution whose first episode has left none: its worker died between the two writes,
    /// or between two batches of the history.
    ///
    /// Differs: DTFx then writes a row without name, times and status.
    async fn whole_row(
        &self,
        instance_id: &InstanceId,
        execution_id: &ExecutionId,
        custom_status: Option<&str>,
    ) -> Result<Entity, ServiceError> {
        let StoredRows { rows, .. } = self.rows(instance_id, Some(execution_id)).await?;
        let events: Vec<_> =
            rows.iter().map(|row| self.read_event(instance_id, row)).collect::<Result<_, _>>()?;
        let container_url = self.large().container_url();
        let context = self.row_context(instance_id, execution_id, &container_url);
        let mut row = instance_row::checkpoint(context, custom_status, events.iter().zip(&rows));
        self.upload(blob_column::offload_instance(&mut row, &container_url, &*self.hub.ids)).await?;
        Ok(row)
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
        if other_execution && stored.state.status == Some(OrchestrationStatus::Pending) {
            // A client has started the id again, and the row waits for that start. It is not the row of the
            // start that has continued as this execution: that was no longer pending, see `announce_next`.
            let newer = match &index.started {
                // Of a child's start, and one that a client has sent for the same id, the later one counts.
                Some((started, at)) if started.parent.is_some() => stored.state.created_at > *at,
                _ => true,
            };
            if newer {
                return Ok(false);
            }
        }
        // Another worker may have committed a later episode and written its row already.
        let sentinel = self.sentinel(&commit.instance.instance_id).await?;
        Ok(sentinel.is_some_and(|s| s.etag.as_ref() == Some(&committed.etag)))
    }

    /// Before an instance continues as new whose row says that it is pending, and before the history of the next
    /// execution is stored, its row says so and names that history by the time of its start. A pending row of
    /// another execution is then always one that waits for a new start.
    ///
    /// Differs: DTFx writes the row after the history only, and whoever writes last wins.
    ///
    /// # Errors
    /// `SessionAborted` when somebody else has written the row.
    pub(crate) async fn announce_next(
        &self,
        instance: &OrchestrationInstance,
        commit: &EpisodeCommit,
    ) -> Result<(), ServiceError> {
        let is_start = |event: &&HistoryEvent| matches!(event.kind, EventKind::ExecutionStarted(_));
        let Some(next) = commit.new_events.iter().find(is_start) else { return Ok(()) };
        let has_parent =
            matches!(&next.kind, EventKind::ExecutionStarted(started) if started.parent.is_some());
        if has_parent || instance.instance_id.is_entity() {
            // Their rows come after their histories.
            return Ok(());
        }
        let (instance_id, execution_id) = (&instance.instance_id, &instance.execution_id);
        let is_own = |row: &Remembered| row.execution_id == *execution_id;
        let known = match self.etags.get(instance_id).filter(is_own) {
            Some(row) => Some(row),
            None => self.instance_row(instance_id).await?.and_then(InstanceRow::remembered).filter(is_own),
        };
        let Some(row) = known else { return Ok(()) };
        if !row.is_pending {
            self.etags.set(instance_id, Some(row));
            return Ok(());
        }
        let announced = instance_row::continues_as_new(instance_id, next.timestamp);
        let merge = TableOperation::Merge(announced, Condition::Matches(row.etag));
        match self.hub.account.tables.execute(&self.hub.names.instances_table(), merge).await {
            Ok(etag) => {
                let execution_id = execution_id.clone();
                let row = etag.map(|etag| Remembered { execution_id, etag, is_pending: true });
                self.etags.set(instance_id, row);
                Ok(())
            }
            Err(e) => {
                self.etags.set(instance_id, None);
                let what = format!("cannot show that an instance continues as new. instance=`{instance_id}`");
                match e.kind() {
                    storage::ErrorKind::Conflict | storage::ErrorKind::NotFound => {
                        // This worker itself may have shown it at the same moment.
                        let row = self.instance_row(instance_id).await?.and_then(InstanceRow::remembered);
                        if let Some(row) = row.filter(is_own).filter(|row| !row.is_pending) {
                            self.etags.set(instance_id, Some(row));
                            return Ok(());
                        }
                        Err(ServiceError::with_source(ErrorKind::SessionAborted, what, e))
                    }
                    _ => Err(self.hub.failed(what, e)),
                }
            }
        }
    }

    /// Whether this is the execution whose history is stored.
    pub(crate) async fn has_history_of(
        &self,
        instance: &OrchestrationInstance,
    ) -> Result<bool, ServiceError> {
        let sentinel = self.sentinel(&instance.instance_id).await?;
        Ok(sentinel.is_some_and(|sentinel| Some(&sentinel.execution_id) == instance.execution_id.as_ref()))
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
        if self.hub.settings.planted(Planted::NoRepair) {
            return Ok(());
        }
        let stale = match stored {
            None => Stale::Absent,
            Some(row) if row.is_continued_by(index) => Stale::Earlier,
            Some(row) => {
                let same = row.state.instance.execution_id.as_ref().is_none_or(|e| *e == execution_id);
                if !same || row.state.status == index.status() {
                    return Ok(());
                }
                Stale::Same
            }
        };
        let StoredRows { rows, .. } = self.rows(instance_id, Some(&execution_id)).await?;
        let container_url = self.large().container_url();
        let context = self.row_context(instance_id, &execution_id, &container_url);
        let events: Vec<_> =
            rows.iter().map(|row| self.read_event(instance_id, row)).collect::<Result<_, _>>()?;
        let history = events.iter().zip(&rows);
        let Some(mut row) = instance_row::repair(context, history, stale) else { return Ok(()) };
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

    /// The row for start de-duplication; its version is remembered for the first checkpoint.
    pub(crate) async fn instance_for_start(
        &self,
        instance_id: &InstanceId,
    ) -> Result<Option<OrchestrationState>, ServiceError> {
        let row = self.instance_row(instance_id).await?;
        if let Some(row) = row.clone() {
            self.etags.set(instance_id, row.remembered());
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

    /// The same read by its key: the whole row, but for stores that look through a table to answer a filter
    /// (the emulator) a fraction of the work.
    pub(crate) async fn instance_row_by_key(
        &self,
        instance_id: &InstanceId,
    ) -> Result<Option<InstanceRow>, ServiceError> {
        let table = self.hub.names.instances_table();
        let row =
            match self.hub.account.tables.get_entity(&table, &key::escape(instance_id.as_str()), "").await {
                Err(e) if e.kind() != storage::ErrorKind::NotFound => {
                    let what = format!("cannot read the Instances row. instance=`{instance_id}`");
                    return Err(self.hub.failed(what, e));
                }
                found => found.ok().flatten(),
            };
        let Some(row) = row else { return Ok(None) };
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
        let table = self.hub.names.instances_table();
        let replaced = existing.as_ref().map(|row| row.state.generation);
        let mut etag = existing.and_then(|row| row.etag);
        let mut attempts = 0;
        let written = loop {
            attempts += 1;
            let operation = match etag {
                Some(etag) => TableOperation::Replace(row.clone(), Condition::Matches(etag)),
                None => TableOperation::Insert(row.clone()),
            };
            let written = self.hub.account.tables.execute(&table, operation).await;
            let changed = matches!(
                &written,
                Err(e) if matches!(
                    e.kind(),
                    storage::ErrorKind::Conflict
                        | storage::ErrorKind::NotFound
                        | storage::ErrorKind::AlreadyExists
                )
            );
            if !changed || attempts >= INSTANCE_WRITE_ATTEMPTS {
                break written;
            }
            // Another start counts the generation up. What leaves it as it was is a worker with the execution
            // that is replaced.
            etag = match self.instance_row(instance_id).await? {
                Some(stored) if replaced == Some(stored.state.generation) => stored.etag,
                Some(_) => break written,
                None => None,
            };
        };
        match written {
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

    /// One page of instances. Large payloads are read several at once; the page ends early when those it has
    /// are many, so that memory holds [`MAX_PAGE_BYTES`] and what is being read.
    ///
    /// Differs: DTFx reads them one after the other, and holds whatever a page has.
    pub(crate) async fn list_instances(&self, query: &InstanceQuery) -> Result<InstancePage, ServiceError> {
        let mut query = query.clone();
        let mut continuation = query.continuation.take();
        if let Some(from) = continuation.as_deref().and_then(|token| token.strip_prefix(EARLY_END)) {
            let key = BASE64_URL_SAFE_NO_PAD.decode(from).ok().and_then(|key| String::from_utf8(key).ok());
            query.key_from = Some(key.ok_or_else(|| {
                let text =
                    format!("the continuation token is none of this program. hub=`{}`", self.hub.name());
                ServiceError::new(ErrorKind::Invalid, text)
            })?);
            continuation = None;
        }
        let table_query = TableQuery {
            filter: instance_row::filter(&query),
            select: instance_row::select(query.fetch),
            top: query.page_size,
            continuation,
        };
        let page = match self.hub.account.tables.query(&self.hub.names.instances_table(), &table_query).await
        {
            Ok(page) => page,
            Err(e) if e.kind() == storage::ErrorKind::NotFound => return Ok(InstancePage::default()),
            Err(e) => return Err(self.hub.failed("cannot list instances", e)),
        };
        let mut continuation = page.continuation;
        let prefix = query.instance_id_prefix.as_deref().map(key::escape).unwrap_or_default();
        // A few prefixes have no text that ends their range: the filter then finds what follows, too.
        let mut rows = page.entities;
        rows.retain(|row| row.partition_key.starts_with(&prefix));
        let keys: Vec<_> = rows.iter().map(|row| row.partition_key.clone()).collect();
        let mut resolving = stream::iter(rows)
            .map(|row| self.resolved(row))
            .buffered(RESOLVE_CONCURRENCY)
            .zip(stream::iter(1..));
        let (mut instances, mut held) = (Vec::new(), 0);
        while let Some((resolved, next)) = resolving.next().await {
            match resolved {
                Ok(state) => {
                    held +=
                        [&state.input, &state.output].into_iter().flatten().map(String::len).sum::<usize>();
                    instances.push(state);
                }
                // One row of other software, or one missing blob, must not hide all others.
                Err(e) if e.kind() == ErrorKind::Data => {
                    let key = &keys[next - 1];
                    tracing::warn!(hub = %self.hub.name(), key, error = e.chain(), "an instance is left out");
                }
                Err(e) => return Err(e),
            }
            if let Some(next) = keys.get(next).filter(|_| held >= MAX_PAGE_BYTES) {
                continuation = Some(format!("{EARLY_END}{}", BASE64_URL_SAFE_NO_PAD.encode(next)));
                break;
            }
        }
        Ok(InstancePage { instances, continuation })
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
}

/// What became of the row of a checkpoint.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum RowOutcome {
    /// It says what the history says, or what a later history says.
    Written,
    /// Another worker, which saw no history, has terminated the instance as one that was pending; the
    /// history has begun meanwhile and does not know it.
    TerminatedBefore {
        /// Why.
        reason: Option<String>,
    },
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
