//! Rows of the Instances table: what clients see of an instance.
//!
//! Each function gives the columns that one moment writes; which operation writes them (insert, replace,
//! merge) says its comment. Source: Azure/durabletask, `AzureTableTrackingStore`.

use taskhub_core::{
    EventKind, ExecutionId, ExecutionStarted, HistoryEvent, InstanceFetch, InstanceId, InstanceQuery,
    OrchestrationInstance, OrchestrationState, OrchestrationStatus, Tags, TaskHubName, Timestamp,
};
use taskhub_storage::{Entity, quote_filter_text};

use super::blob_column::{blob_name_column, references};
use super::history_row::RowSource;
use super::{RowError, key};
use crate::message::event::MemberSource;
use crate::message::parts::{self, Part};
use crate::message::{DecodeError, blob_name_of, blob_url, is_start_message_blob, start_message_input};

const TABLE: &str = "Instances";
/// Text of a JSON column without value.
const NULL: &str = "null";

/// A client starts an instance: **Insert**, or **Replace** with the ETag of the row it has read.
/// `message_blob_url` is the URL of the start message when that went to a blob, and stands for the input.
/// A large input is still inline (see [`super::blob_column::offload_instance`]).
pub fn start(
    hub: &TaskHubName,
    created_at: Timestamp,
    started: &ExecutionStarted,
    message_blob_url: Option<&str>,
    now: Timestamp,
) -> Entity {
    let mut row = new_row(&started.instance.instance_id);
    set_text(&mut row, "Input", message_blob_url.or(started.input.as_deref()));
    row.set("CreatedTime", created_at);
    row.set("Name", started.name.as_str());
    set_text(&mut row, "Version", started.version.as_deref());
    row.set("RuntimeStatus", OrchestrationStatus::Pending.name());
    row.set("LastUpdatedTime", now);
    row.set("TaskHubName", hub.as_str());
    set_start_columns(&mut row, started);
    set_text(&mut row, "ExecutionId", started.instance.execution_id.as_ref().map(ExecutionId::as_str));
    row
}

/// What the row of an instance needs besides events.
#[derive(Debug, Clone, Copy)]
pub struct RowContext<'a> {
    /// The instance.
    pub instance_id: &'a InstanceId,
    /// Its current execution.
    pub execution_id: &'a ExecutionId,
    /// The hub as this process has it configured.
    pub hub: &'a TaskHubName,
    /// URL of the hub's large-message container.
    pub container_url: &'a str,
    /// The current time.
    pub now: Timestamp,
}

/// An episode ends: **InsertOrMerge** (with ETags: Insert, or Merge with the ETag). `rows` are the
/// episode's new events with their History rows, from which large columns have been offloaded: where an
/// event's text went to a blob, this row gets the blob's URL.
pub fn checkpoint<'a>(
    context: RowContext<'_>,
    custom_status: Option<&str>,
    rows: impl IntoIterator<Item = (&'a HistoryEvent, &'a Entity)>,
) -> Entity {
    let mut row = new_row(context.instance_id);
    row.set("CustomStatus", custom_status.unwrap_or(NULL));
    row.set("ExecutionId", context.execution_id.as_str());
    row.set("LastUpdatedTime", context.now);
    row.set("TaskHubName", context.hub.as_str());
    for (event, history) in rows {
        row.set("LastUpdatedTime", event.timestamp);
        let mut copy = |to: &'static str, from: &str, text: Option<&str>| {
            set_text(&mut row, to, text_or_url(history, from, text, context.container_url).as_deref());
        };
        match &event.kind {
            EventKind::ExecutionStarted(started) => {
                copy("Input", "Input", started.input.as_deref());
                row.set("Name", started.name.as_str());
                set_text(&mut row, "Version", started.version.as_deref());
                row.set("CreatedTime", event.timestamp);
                row.set("RuntimeStatus", OrchestrationStatus::Running.name());
                set_start_columns(&mut row, started);
            }
            EventKind::ExecutionCompleted(completed) => {
                let failure = completed.failure_details.as_ref().map(ToString::to_string);
                copy("Output", "Result", failure.as_deref().or(completed.result.as_deref()));
                row.set("RuntimeStatus", completed.status.name());
                row.set("CompletedTime", context.now);
            }
            EventKind::ExecutionTerminated { input } => {
                copy("Output", "Input", input.as_deref());
                row.set("RuntimeStatus", OrchestrationStatus::Terminated.name());
                row.set("CompletedTime", context.now);
            }
            EventKind::ExecutionSuspended { reason } => {
                copy("Output", "Reason", reason.as_deref());
                row.set("RuntimeStatus", OrchestrationStatus::Suspended.name());
            }
            EventKind::ExecutionResumed { reason } => {
                copy("Output", "Reason", reason.as_deref());
                row.set("RuntimeStatus", OrchestrationStatus::Running.name());
            }
            EventKind::ContinueAsNew(completed) => {
                copy("Output", "Result", completed.result.as_deref());
                row.set("RuntimeStatus", OrchestrationStatus::ContinuedAsNew.name());
            }
            _ => {}
        }
    }
    row
}

/// An instance without history is terminated: **Merge** with any ETag. `requested_at` is the timestamp of
/// the request. A large reason is still inline (see [`super::blob_column::offload_instance`]).
pub fn terminate(
    instance_id: &InstanceId,
    requested_at: Timestamp,
    reason: Option<&str>,
    now: Timestamp,
) -> Entity {
    let mut row = new_row(instance_id);
    row.set("RuntimeStatus", OrchestrationStatus::Terminated.name());
    row.set("LastUpdatedTime", requested_at);
    row.set("CompletedTime", now);
    set_text(&mut row, "Output", reason);
    row
}

/// A pending instance is about to continue as new: **Merge** with the ETag that was read. `next_started_at` is
/// the time of the next execution's start, by which its history is known.
pub fn continues_as_new(instance_id: &InstanceId, next_started_at: Timestamp) -> Entity {
    let mut row = new_row(instance_id);
    row.set("RuntimeStatus", OrchestrationStatus::ContinuedAsNew.name());
    row.set("LastUpdatedTime", next_started_at);
    row
}

/// A client rewinds an instance: **Merge** with any ETag.
pub fn rewind(instance_id: &InstanceId, now: Timestamp) -> Entity {
    let mut row = new_row(instance_id);
    row.set("RuntimeStatus", OrchestrationStatus::Pending.name());
    row.set("LastUpdatedTime", now);
    row
}

/// What a row tells that is to be repaired.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stale {
    /// There is none.
    Absent,
    /// It is about the same execution.
    Same,
    /// It is about an earlier execution.
    Earlier,
}

/// A message finds that an instance has finished and its row does not say so: **InsertOrMerge**. `rows` is
/// the whole history with the rows as stored. `None` when the history has not begun or not ended.
///
/// Differs: .NET sets the custom status to null even where the row has one, because a history does not
/// hold it; here it stays.
pub fn repair<'a>(
    context: RowContext<'_>,
    rows: impl IntoIterator<Item = (&'a HistoryEvent, &'a Entity)>,
    stale: Stale,
) -> Option<Entity> {
    let mut row = new_row(context.instance_id);
    let mut ended = false;
    let mut begun = false;
    for (event, history) in rows {
        row.set("LastUpdatedTime", event.timestamp);
        let mut copy = |to: &'static str, from: &str, text: Option<&str>| {
            set_text(&mut row, to, text_or_url(history, from, text, context.container_url).as_deref());
        };
        match &event.kind {
            EventKind::ExecutionStarted(started) if !begun => {
                begun = true;
                if stale != Stale::Same {
                    copy("Input", "Input", started.input.as_deref());
                }
                if stale == Stale::Absent {
                    row.set("CustomStatus", NULL);
                }
                row.set("Name", started.name.as_str());
                set_text(&mut row, "Version", started.version.as_deref());
                row.set("CreatedTime", event.timestamp);
                set_tags(&mut row, started.tags.as_ref());
                set_date(&mut row, "ScheduledStartTime", started.scheduled_start_time);
            }
            EventKind::ExecutionCompleted(completed) if !ended && completed.status.is_terminal() => {
                ended = true;
                let failure = completed.failure_details.as_ref().map(ToString::to_string);
                copy("Output", "Result", failure.as_deref().or(completed.result.as_deref()));
                row.set("RuntimeStatus", completed.status.name());
                row.set("CompletedTime", event.timestamp);
            }
            _ => {}
        }
    }
    row.set("ExecutionId", context.execution_id.as_str());
    row.set("TaskHubName", context.hub.as_str());
    (begun && ended).then_some(row)
}

/// The state in a row. Columns may be missing; an unknown runtime status is `None`.
///
/// # Errors
/// A partition key that is no escaped instance id, columns of the wrong type, tags that are no JSON.
pub fn read(row: &Entity) -> Result<OrchestrationState, RowError> {
    let instance_id = key::unescape(&row.partition_key).map_err(|source| RowError::Key {
        table: TABLE,
        partition_key: row.partition_key.clone(),
        source,
    })?;
    read_state(row, InstanceId::new(instance_id)).map_err(|source| RowError::column(TABLE, row, source))
}

fn read_state(row: &Entity, instance_id: InstanceId) -> Result<OrchestrationState, DecodeError> {
    let row = RowSource(row);
    Ok(OrchestrationState {
        instance: OrchestrationInstance {
            instance_id,
            execution_id: row.text("ExecutionId")?.map(ExecutionId::new),
        },
        name: row.text("Name")?.unwrap_or_default(),
        version: row.text("Version")?,
        status: row.text("RuntimeStatus")?.and_then(|name| name.parse().ok()),
        input: row.text("Input")?,
        output: row.text("Output")?,
        custom_status: row.text("CustomStatus")?,
        created_at: row.date("CreatedTime")?.unwrap_or(Timestamp::MIN),
        last_updated_at: row.date("LastUpdatedTime")?.unwrap_or(Timestamp::MIN),
        completed_at: row.date("CompletedTime")?,
        scheduled_start_at: row.date("ScheduledStartTime")?,
        generation: row.int("Generation")?,
        tags: row.part("Tags", parts::read_tags)?,
        task_hub: row.text("TaskHubName")?,
    })
}

/// Columns of a row whose text is in a blob, with the names of the blobs: `Input` and `Output` by URL or,
/// like `Tags`, by a `{column}BlobName`. To be replaced by what [`blob_text`] gives before [`read`].
pub fn blob_references(row: &Entity, container_url: &str) -> Vec<(&'static str, String)> {
    let mut found: Vec<(&'static str, String)> = references(row)
        .into_iter()
        .filter(|(column, _)| matches!(*column, "Input" | "Output" | "Tags"))
        // A later write of the text leaves the name of an older blob in the row.
        .filter(|(column, _)| row.str(column).is_none_or(str::is_empty))
        .map(|(column, name)| (column, name.to_owned()))
        .collect();
    for column in ["Input", "Output"] {
        if let Some(name) = row.str(column).and_then(|text| blob_name_of(container_url, text)) {
            found.push((column, name));
        }
    }
    found
}

/// The text that a column of an Instances row stands for, given the text of its blob: that text, or for
/// the blob of a start message the input in it.
///
/// # Errors
/// The blob of a start message holds none.
pub fn blob_text(blob_name: &str, text: String) -> Result<Option<String>, DecodeError> {
    if is_start_message_blob(blob_name) { start_message_input(&text) } else { Ok(Some(text)) }
}

fn new_row(instance_id: &InstanceId) -> Entity {
    Entity::new(key::escape(instance_id.as_str()), "")
}

fn set_text(row: &mut Entity, name: &'static str, text: Option<&str>) {
    if let Some(text) = text {
        row.set(name, text);
    }
}

fn set_date(row: &mut Entity, name: &'static str, at: Option<Timestamp>) {
    if let Some(at) = at {
        row.set(name, at);
    }
}

fn set_tags(row: &mut Entity, tags: Option<&Tags>) {
    row.set("Tags", tags.map_or_else(|| NULL.to_owned(), |tags| Part::Tags(tags).column()));
}

fn set_start_columns(row: &mut Entity, started: &ExecutionStarted) {
    set_tags(row, started.tags.as_ref());
    if let Some(generation) = started.generation {
        row.set("Generation", generation);
    }
    set_date(row, "ScheduledStartTime", started.scheduled_start_time);
}

/// The text of an event's member, or the URL of its blob when the History row refers to one.
fn text_or_url(history: &Entity, column: &str, text: Option<&str>, container_url: &str) -> Option<String> {
    match history.str(&blob_name_column(column)).filter(|name| !name.is_empty()) {
        Some(blob_name) => Some(blob_url(container_url, blob_name)),
        None => text.map(str::to_owned),
    }
}

/// The OData filter of a query; `None` when it asks for everything.
/// Source: Azure/durabletask, `OrchestrationInstanceStatusQueryCondition.ToOData`.
pub fn filter(query: &InstanceQuery) -> Option<String> {
    let mut conditions = Vec::new();
    if let Some(from) = query.created_from.filter(|from| *from > Timestamp::MIN) {
        conditions.push(format!("CreatedTime ge datetime'{}'", from.to_round_trip()));
    }
    if let Some(to) = query.created_to.filter(|to| *to < Timestamp::MAX) {
        conditions.push(format!("CreatedTime le datetime'{}'", to.to_round_trip()));
    }
    if !query.statuses.is_empty() {
        conditions.push(any_of("RuntimeStatus", query.statuses.iter().map(|status| status.name())));
    }
    if !query.task_hubs.is_empty() {
        conditions.push(any_of("TaskHubName", query.task_hubs.iter().map(String::as_str)));
    }
    match query.instance_id_prefix.as_deref().filter(|prefix| !prefix.is_empty()) {
        Some(prefix) => {
            let prefix = key::escape(prefix);
            conditions.push(format!("PartitionKey ge {}", quote_filter_text(&prefix)));
            if let Some(end) = end_of_prefix(&prefix) {
                conditions.push(format!("PartitionKey lt {}", quote_filter_text(&end)));
            }
        }
        None if query.exclude_entities => {
            conditions.push("PartitionKey lt '@' or PartitionKey ge 'A'".to_owned());
        }
        None => {}
    }
    if let Some(from) = &query.key_from {
        conditions.push(format!("PartitionKey ge {}", quote_filter_text(from)));
    }
    if let Some(before) = &query.key_before {
        conditions.push(format!("PartitionKey lt {}", quote_filter_text(before)));
    }
    match conditions.as_slice() {
        [] => None,
        [one] => Some(one.clone()),
        several => {
            let wrapped: Vec<String> = several.iter().map(|condition| format!("({condition})")).collect();
            Some(wrapped.join(" and "))
        }
    }
}

/// The runtime status in a row; `None` when it has none that is known.
pub(crate) fn status(row: &Entity) -> Option<OrchestrationStatus> {
    row.str("RuntimeStatus")?.parse().ok()
}

/// The filter for the row of one instance.
pub fn filter_by_id(instance_id: &InstanceId) -> String {
    format!("PartitionKey eq {}", quote_filter_text(&key::escape(instance_id.as_str())))
}

fn any_of<'a>(column: &str, values: impl Iterator<Item = &'a str>) -> String {
    let equals: Vec<String> =
        values.map(|value| format!("{column} eq {}", quote_filter_text(value))).collect();
    equals.join(" or ")
}

/// The first text after all that begin with `prefix`: its last character incremented. `None` where there is
/// no next character; the query then has no upper end.
fn end_of_prefix(prefix: &str) -> Option<String> {
    let last = prefix.chars().next_back()?;
    let next = char::from_u32(u32::from(last) + 1)?;
    // A step into the next plane would change the order of UTF-16.
    (next.len_utf16() == last.len_utf16())
        .then(|| format!("{}{next}", &prefix[..prefix.len() - last.len_utf8()]))
}

/// The columns to select; none (which means all) when inputs and outputs are wanted.
///
/// Differs: .NET also selects `ETag`, which is no column, and leaves out the hub's name and the columns
/// that refer to blobs.
pub fn select(fetch: InstanceFetch) -> Vec<String> {
    const ALWAYS: [&str; 15] = [
        "ExecutionId",
        "Name",
        "Version",
        "CustomStatus",
        "CreatedTime",
        "LastUpdatedTime",
        "CompletedTime",
        "RuntimeStatus",
        "ScheduledStartTime",
        "Generation",
        "Tags",
        "PartitionKey",
        "RowKey",
        "Timestamp",
        "TaskHubName",
    ];
    if fetch == InstanceFetch::ALL {
        return Vec::new();
    }
    let mut columns: Vec<String> = ALWAYS.into_iter().map(str::to_owned).collect();
    columns.push(blob_name_column("Tags"));
    for (wanted, column) in [(fetch.input, "Input"), (fetch.output, "Output")] {
        if wanted {
            columns.push(column.to_owned());
            columns.push(blob_name_column(column));
        }
    }
    columns
}

#[cfg(test)]
mod tests;
