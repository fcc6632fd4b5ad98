//! Removal of many instances whose rows and blobs are read together.
//!
//! A purge of one instance asks five things of the storage: its row, its blobs, its history, and the deletion of
//! the last and the first. Instances of one page of a list lie side by side in both tables, so three requests
//! answer the questions for all of them: a range of the History table, the blobs whose names begin alike, and the
//! same range of the Instances table. What lies between them and is not theirs is passed over; where that is
//! much, each instance is asked for on its own, as it is where the history of one fills pages.
//!
//! What has been read is a little old when it is used. So a history is deleted in the versions that were read,
//! its beginning and its sentinel first, and the row too: of an instance that has been started again or rewound
//! meanwhile nothing is deleted that is new.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use futures::stream::{self, StreamExt as _};
use taskhub_core::{
    InstanceId, OrchestrationStatus, PurgeGate, PurgeMany, PurgeResult, PurgedInstance, ServiceError,
};
use taskhub_storage as storage;
use taskhub_storage::{Condition, Entity, TableOperation, TableQuery, quote_filter_text};
use tokio::time::Instant;

use crate::large_messages::Owner;
use crate::tracking::purge::{MAX_DELETE_ROWS, PurgeOnly, delete_rows, deletion_of_unchanged};
use crate::tracking::store::TrackingStore;
use crate::tracking::{instance_row, key};

/// Rows of histories that are held at once, and those of one page more.
const MAX_HELD_ROWS: usize = 10_000;
/// Pages that are read of a range, however short.
const MAX_PAGES: usize = 16;
/// How old what was read may be when it is used.
const MAX_AGE: Duration = Duration::from_secs(10);

/// Instances by partition key.
type ByKey = BTreeMap<String, InstanceId>;

/// The rows of some partitions in a range of a table.
#[derive(Debug, Default)]
struct RangeRows {
    rows: HashMap<String, Vec<Entity>>,
    /// Partitions before this one have been read whole; `None`: all.
    read_to: Option<String>,
    /// The range holds mostly rows of others.
    is_sparse: bool,
}

impl RangeRows {
    /// Nothing has been read.
    fn unread() -> Self {
        Self { read_to: Some(String::new()), ..Self::default() }
    }

    fn take_instance(&mut self, partition_key: &str) -> Row {
        if self.read_to.as_deref().is_some_and(|end| partition_key >= end) {
            return Row::Unread;
        }
        let rows = self.rows.remove(partition_key).unwrap_or_default();
        rows.into_iter().find(|row| row.row_key.is_empty()).map_or(Row::Absent, Row::Present)
    }
}

/// What is known of an Instances row.
#[derive(Debug)]
enum Row {
    /// It is this one.
    Present(Entity),
    Absent,
    Unread,
}

/// What is known of an instance that is to be removed.
#[derive(Debug)]
struct Found {
    instance_id: InstanceId,
    partition_key: String,
    /// All rows, in order.
    history: Vec<Entity>,
    /// Names; `None`: not known.
    blobs: Option<Vec<String>>,
    row: Row,
}

/// What is known of a page of instances.
#[derive(Debug)]
struct Survey {
    found: Vec<Found>,
    /// Those that did not fit.
    later: ByKey,
    /// Those that are better asked for one by one.
    alone: Vec<InstanceId>,
    made_at: Instant,
}

impl Survey {
    fn is_old(made_at: Instant) -> bool {
        made_at.elapsed() > MAX_AGE
    }
}

/// What became of an instance of a survey.
enum Outcome {
    Done(PurgedInstance),
    /// What is known of it is too old.
    Old(String, InstanceId),
    NotBegun,
}

impl TrackingStore {
    /// Removes many instances, some at once; see `OrchestrationServiceClient::purge_many`.
    pub(crate) async fn purge_many(&self, purge: PurgeMany, gate: &dyn PurgeGate) -> Vec<PurgedInstance> {
        let only = if purge.only_finished { PurgeOnly::Finished } else { PurgeOnly::Any };
        let concurrency = purge.concurrency.max(1);
        let mut done = Vec::with_capacity(purge.instance_ids.len());
        let (mut together, mut alone) = (ByKey::new(), Vec::new());
        for instance_id in purge.instance_ids {
            let partition_key = key::escape(instance_id.as_str());
            if has_plain_order(&partition_key) {
                together.insert(partition_key, instance_id);
            } else {
                alone.push(instance_id);
            }
        }
        let mut is_open = true;
        while is_open && !together.is_empty() {
            let survey = self.survey(together).await;
            together = survey.later;
            alone.extend(survey.alone);
            let made_at = survey.made_at;
            let mut purging = stream::iter(survey.found)
                .map(|found| self.purge_in_turn(found, made_at, only, gate))
                .buffer_unordered(concurrency);
            while let Some(outcome) = purging.next().await {
                match outcome {
                    Outcome::Done(purged) => done.push(purged),
                    Outcome::Old(partition_key, instance_id) => {
                        together.insert(partition_key, instance_id);
                    }
                    Outcome::NotBegun => is_open = false,
                }
            }
        }
        alone.retain(|_| is_open);
        let mut purging =
            stream::iter(alone).map(|id| self.purge_alone(id, only, gate)).buffer_unordered(concurrency);
        while let Some(purged) = purging.next().await {
            done.extend(purged);
        }
        done
    }

    async fn purge_alone(
        &self,
        instance_id: InstanceId,
        only: PurgeOnly,
        gate: &dyn PurgeGate,
    ) -> Option<PurgedInstance> {
        if !gate.pass().await {
            return None;
        }
        let result = self.purge(&instance_id, only).await;
        Some(PurgedInstance { instance_id, result })
    }

    async fn purge_in_turn(
        &self,
        found: Found,
        made_at: Instant,
        only: PurgeOnly,
        gate: &dyn PurgeGate,
    ) -> Outcome {
        if Survey::is_old(made_at) {
            return Outcome::Old(found.partition_key, found.instance_id);
        }
        if !gate.pass().await {
            return Outcome::NotBegun;
        }
        let instance_id = found.instance_id.clone();
        let result = if Survey::is_old(made_at) {
            self.purge(&instance_id, only).await
        } else {
            self.purge_found(found, only).await
        };
        Outcome::Done(PurgedInstance { instance_id, result })
    }

    /// Reads what a purge has to know. The rows of the Instances table come last: what was read before belongs to
    /// an execution that they have seen the end of.
    async fn survey(&self, mut instances: ByKey) -> Survey {
        let history = match self.rows_of_range(&self.hub.names.history_table(), &instances, &[]).await {
            Ok(history) => history,
            Err(error) => {
                // Each tells what is wrong with it.
                tracing::info!(hub = %self.hub.name(), %error, "histories cannot be read together");
                RangeRows { is_sparse: true, ..RangeRows::unread() }
            }
        };
        let mut later = history.read_to.as_ref().map(|end| instances.split_off(end)).unwrap_or_default();
        let mut alone = Vec::new();
        if history.is_sparse {
            alone.extend(std::mem::take(&mut later).into_values());
        } else if instances.is_empty() {
            alone.extend(later.pop_first().map(|(_, instance_id)| instance_id));
        }
        let mut blobs = if history.is_sparse { None } else { self.blobs_of(&instances).await };
        let table = self.hub.names.instances_table();
        let rows = self.rows_of_range(&table, &instances, &["RuntimeStatus"]).await;
        let mut rows = rows.unwrap_or_else(|_| RangeRows::unread());
        let mut histories = history.rows;
        let found = instances.into_iter().map(|(partition_key, instance_id)| Found {
            history: histories.remove(&partition_key).unwrap_or_default(),
            blobs: blobs.as_mut().map(|blobs| blobs.remove(&partition_key).unwrap_or_default()),
            row: rows.take_instance(&partition_key),
            instance_id,
            partition_key,
        });
        Survey { found: found.collect(), later, alone, made_at: Instant::now() }
    }

    /// Reads the rows of these partitions with their keys and `columns`, and passes over those between them. It
    /// ends early when these are more than the others, and when enough are held.
    async fn rows_of_range(
        &self,
        table: &str,
        partitions: &ByKey,
        columns: &[&str],
    ) -> storage::Result<RangeRows> {
        let mut range = RangeRows::default();
        let (Some((first, _)), Some((last, _))) = (partitions.first_key_value(), partitions.last_key_value())
        else {
            return Ok(range);
        };
        let (first, last) = (quote_filter_text(first), quote_filter_text(last));
        let always = ["PartitionKey", "RowKey", "Timestamp"];
        let mut query = TableQuery {
            filter: Some(format!("PartitionKey ge {first} and PartitionKey le {last}")),
            select: always.iter().chain(columns).map(|&column| column.to_owned()).collect(),
            ..TableQuery::default()
        };
        let (mut own, mut foreign) = (0, 0);
        for page in 1.. {
            let found = self.hub.account.tables.query(table, &query).await?;
            let end = found.entities.last().map(|row| row.partition_key.clone());
            for row in found.entities {
                if partitions.contains_key(&row.partition_key) {
                    own += 1;
                    range.rows.entry(row.partition_key.clone()).or_default().push(row);
                } else {
                    foreign += 1;
                }
            }
            // The last partition may go on.
            range.read_to = end.or(range.read_to.take());
            match found.continuation {
                None => {
                    range.read_to = None;
                    break;
                }
                Some(next) => query.continuation = Some(next),
            }
            range.is_sparse = foreign > own || page == MAX_PAGES;
            if range.is_sparse || own >= MAX_HELD_ROWS {
                range.read_to.get_or_insert_default();
                break;
            }
        }
        Ok(range)
    }

    /// The blobs of these instances by partition key; `None` when there are too many whose names begin alike.
    async fn blobs_of(&self, instances: &ByKey) -> Option<HashMap<String, Vec<String>>> {
        let owners = || instances.iter().map(|(key, id)| Owner { instance_id: id.as_str(), key });
        let prefix =
            owners().flat_map(|owner| owner.prefixes()).reduce(|a, b| common_start(&a, &b).to_owned())?;
        let names = match self.large().few(&prefix).await {
            Ok(names) => names?,
            Err(error) => {
                tracing::info!(
                    hub = %self.hub.name(), error = error.chain(),
                    "large messages cannot be listed together"
                );
                return None;
            }
        };
        let mut by_folder = HashMap::<&str, Vec<Owner<'_>>>::new();
        for owner in owners() {
            by_folder.entry(owner.instance_id).or_default().push(owner);
            if owner.key != owner.instance_id {
                by_folder.entry(owner.key).or_default().push(owner);
            }
        }
        let mut blobs = HashMap::<String, Vec<String>>::new();
        for name in names {
            let folder = name.rsplit_once('/').map_or("", |(folder, _)| folder);
            let owner = by_folder.get(folder).into_iter().flatten().find(|owner| owner.owns(&name));
            if let Some(owner) = owner {
                blobs.entry(owner.key.to_owned()).or_default().push(name);
            }
        }
        Some(blobs)
    }

    /// Removes an instance as it was found: its history, then its blobs, and its row last, so that a purge that is
    /// cut off can be repeated. `None`: the instance has not finished.
    async fn purge_found(&self, found: Found, only: PurgeOnly) -> Result<Option<PurgeResult>, ServiceError> {
        let Found { instance_id, partition_key, history, blobs, row } = found;
        let mut result = PurgeResult::default();
        let (status, etag) = match row {
            Row::Present(row) => (instance_row::status(&row), row.etag),
            Row::Absent => return Ok(Some(result)),
            Row::Unread => match self.instance_row_by_key(&instance_id).await? {
                Some(row) => (row.state.status, row.etag),
                None => return Ok(Some(result)),
            },
        };
        if only == PurgeOnly::Finished && !status.is_some_and(OrchestrationStatus::is_terminal) {
            return Ok(None);
        }
        if !self.delete_found_history(&instance_id, history, &mut result.rows).await? {
            self.tell_that_it_stays(&instance_id);
            return Ok(Some(result));
        }
        result.blobs = match blobs {
            Some(names) => self.large().delete_these(names).await?,
            None => {
                let owner = Owner { instance_id: instance_id.as_str(), key: &partition_key };
                self.large().delete_of(&owner).await?
            }
        };
        let condition = etag.map_or(Condition::Any, Condition::Matches);
        result.instances = self.delete_instance_row(&instance_id, partition_key, condition).await?;
        Ok(Some(result))
    }

    /// Deletes a history in the versions that were read; whether nobody had changed it. The first transaction
    /// takes the sentinel, so that no worker can go on with the history, its first row, without which none can
    /// read it, and its end.
    async fn delete_found_history(
        &self,
        instance_id: &InstanceId,
        mut history: Vec<Entity>,
        deleted: &mut u64,
    ) -> Result<bool, ServiceError> {
        if let Some(behind_first) = history.get_mut(1..) {
            behind_first.reverse();
        }
        let mut first: Vec<TableOperation> = history.into_iter().map(deletion_of_unchanged).collect();
        let others = first.split_off(first.len().min(MAX_DELETE_ROWS));
        let table = self.hub.names.history_table();
        for operations in [first, others] {
            match delete_rows(&*self.hub.account.tables, &table, operations).await {
                Ok(rows) => *deleted += rows,
                Err(e) if e.kind() == storage::ErrorKind::Conflict => return Ok(false),
                Err(e) => {
                    let what = format!("cannot delete the history. instance=`{instance_id}`");
                    return Err(self.hub.failed(what, e));
                }
            }
        }
        Ok(true)
    }
}

/// Whether the key compares the same by bytes and by the units of UTF-16, by which the service orders keys.
fn has_plain_order(key: &str) -> bool {
    key.chars().all(|c| u32::from(c) < 0xd800)
}

/// What both texts begin with.
fn common_start<'a>(a: &'a str, b: &str) -> &'a str {
    let same = a.char_indices().zip(b.chars()).find(|((_, a), b)| a != b);
    let end = same.map_or(a.len().min(b.len()), |((at, _), _)| at);
    &a[..end]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_have_a_common_start_that_ends_between_characters() {
        for (a, b, common) in [
            ("ab1/", "ab2/", "ab"),
            ("ab/", "ab/", "ab/"),
            ("a/", "a/b/", "a/"),
            ("x", "y", ""),
            ("", "y", ""),
            ("é1", "è1", ""),
            ("日1", "日2", "日"),
        ] {
            assert_eq!((common_start(a, b), common_start(b, a)), (common, common), "{a} {b}");
        }
    }

    #[test]
    fn keys_of_which_bytes_and_utf16_disagree_are_told_apart() {
        assert!(has_plain_order("order-17^0@é日"));
        assert!(!has_plain_order("a\u{ff21}") && !has_plain_order("😀"));
    }
}
