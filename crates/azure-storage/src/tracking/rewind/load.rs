//! The rows of a history as far as a rewind needs them, without results and inputs.

use taskhub_core::{InstanceId, OrchestrationInstance, ServiceError};
use taskhub_storage as storage;
use taskhub_storage::{ETag, Entity, TableQuery};

use super::plan::{Plan, Row, Was};
use crate::tracking::store::TrackingStore;
use crate::tracking::{blob_column, history_row, instance_row, sentinel};

/// Columns that are read. Not among them: inputs and results, which may be large.
const COLUMNS: [&str; 19] = [
    "PartitionKey",
    "RowKey",
    "ExecutionId",
    "EventType",
    "EventId",
    "IsPlayed",
    "_Timestamp",
    "TaskScheduledId",
    "TimerId",
    "FireAt",
    "Name",
    "InstanceId",
    "OrchestrationInstance",
    "ParentInstance",
    "Tags",
    "Reason",
    "FailureDetails",
    "FailureDetailsBlobName",
    "ReasonBlobName",
];

/// What a row is rewritten by.
#[derive(Debug)]
pub(super) struct StoredRow {
    pub(super) row_key: String,
    pub(super) event_type: String,
    pub(super) etag: Option<ETag>,
}

/// The current execution of an instance, and what a rewind changes in it.
#[derive(Debug)]
pub(super) struct Loaded {
    pub(super) instance: OrchestrationInstance,
    pub(super) rows: Vec<StoredRow>,
    /// Version of the sentinel.
    pub(super) sentinel: Option<ETag>,
    pub(super) plan: Plan,
}

impl TrackingStore {
    /// Reads the history of the current execution and plans its rewind; `None` when there is none.
    pub(super) async fn load_for_rewind(
        &self,
        instance_id: &InstanceId,
    ) -> Result<Option<Loaded>, ServiceError> {
        let mut query = TableQuery {
            filter: Some(instance_row::filter_by_id(instance_id)),
            select: COLUMNS.iter().chain(&["OrchestrationStatus"]).map(|c| (*c).to_owned()).collect(),
            ..TableQuery::default()
        };
        let mut entities = Vec::new();
        let mut found_sentinel = None;
        loop {
            let page = match self.hub.account.tables.query(&self.hub.names.history_table(), &query).await {
                Ok(page) => page,
                Err(e) if e.kind() == storage::ErrorKind::NotFound => return Ok(None),
                Err(e) => {
                    return Err(self
                        .hub
                        .failed(format!("cannot read the history. instance=`{instance_id}`"), e));
                }
            };
            for row in page.entities {
                if sentinel::is_sentinel(&row) {
                    found_sentinel = Some(sentinel::read(&row));
                } else if history_row::index_of(&row.row_key) == Some(entities.len() as u64) {
                    entities.push(row);
                }
            }
            match page.continuation {
                Some(next) => query.continuation = Some(next),
                None => break,
            }
        }
        let execution_id = found_sentinel
            .as_ref()
            .map(|s| s.execution_id.clone())
            .or_else(|| entities.first().and_then(history_row::execution_id).map(Into::into));
        let Some(execution_id) = execution_id else { return Ok(None) };
        let mut rows = Vec::new();
        let mut stored = Vec::new();
        for mut entity in entities {
            if history_row::execution_id(&entity) != Some(execution_id.as_str()) {
                break;
            }
            self.complete(instance_id, &mut entity).await?;
            rows.push(Row { event: self.read_event(instance_id, &entity)?, was: was(&entity) });
            stored.push(StoredRow {
                event_type: entity.str("EventType").unwrap_or_default().to_owned(),
                etag: entity.etag,
                row_key: entity.row_key,
            });
        }
        if rows.is_empty() {
            return Ok(None);
        }
        Ok(Some(Loaded {
            instance: OrchestrationInstance::new(instance_id.clone(), execution_id),
            plan: Plan::of(&rows),
            rows: stored,
            sentinel: found_sentinel.and_then(|s| s.etag),
        }))
    }

    /// Adds the texts of a failure that are not in the row: those in blobs, and the result of a failed end.
    async fn complete(&self, instance_id: &InstanceId, row: &mut Entity) -> Result<(), ServiceError> {
        let is_end = row.str("EventType") == Some("ExecutionCompleted");
        if is_end {
            let table = self.hub.names.history_table();
            let whole = self.hub.account.tables.get_entity(&table, &row.partition_key, &row.row_key).await;
            let whole = whole.map_err(|e| {
                self.hub.failed(format!("cannot read the history. instance=`{instance_id}`"), e)
            })?;
            if let Some(whole) = whole {
                *row = whole;
            }
        }
        if is_end || matches!(row.str("EventType"), Some("TaskFailed" | "SubOrchestrationInstanceFailed")) {
            let references: Vec<_> =
                blob_column::references(row).into_iter().map(|(c, name)| (c, name.to_owned())).collect();
            for (column, name) in references {
                let text = self.large().read(&name).await?;
                row.set(column, text);
            }
        }
        Ok(())
    }
}

/// What a rewind has made of a row before.
fn was(row: &Entity) -> Was {
    if row.str("EventType") != Some("GenericEvent") {
        return Was::Untouched;
    }
    let request = |is_sub| Was::Request { name: row.str("Name").map(str::to_owned), is_sub };
    match row.str("Reason") {
        _ if row.get("OrchestrationStatus").is_some() => Was::Completion,
        Some("Rewound: TaskScheduled") => request(false),
        Some("Rewound: SubOrchestrationInstanceCreated") => request(true),
        _ => Was::Other,
    }
}
