use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::ops::Bound;

use async_trait::async_trait;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE as BASE64;
use taskhub_core::Timestamp;

use super::filter::{Columns, Filter};
use super::packed::Packed;
use super::{MemoryStore, Tables};
use crate::limits::{
    MAX_ROWS, check_key, check_operation, check_row_size, check_table_name, check_transaction,
};
use crate::operation::Operation;
use crate::{
    Condition, ETag, Entity, EntityPage, Error, Properties, Result, TableOperation, TableQuery, TableStore,
};

/// A key in the service's order, that of UTF-16 units.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Key(String);

impl Ord for Key {
    fn cmp(&self, other: &Self) -> Ordering {
        ordinal(&self.0, &other.0)
    }
}

impl PartialOrd for Key {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

/// Order of UTF-16 units, which differs from that of UTF-8 only for characters outside the basic plane.
pub(super) fn ordinal(a: &str, b: &str) -> Ordering {
    if a.is_ascii() && b.is_ascii() { a.cmp(b) } else { a.encode_utf16().cmp(b.encode_utf16()) }
}

/// Length of `W/"datetime'2026-01-15T09%3A30%3A00.0000000Z'"`.
const ETAG_BYTES: usize = 46;

#[derive(Debug, Clone)]
struct Row {
    columns: Packed,
    /// Of its last write; see [`etag_of`].
    stamp: Timestamp,
    written_at: Timestamp,
}

impl Row {
    fn new(columns: Packed, stamp: Timestamp) -> Self {
        Self { columns, stamp, written_at: stamp }
    }
}

/// The ETag of a row that was last written at `stamp`.
fn etag_of(stamp: Timestamp) -> ETag {
    let mut etag = String::with_capacity(ETAG_BYTES);
    etag.push_str("W/\"datetime'");
    for (at, part) in stamp.to_round_trip().split(':').enumerate() {
        etag.push_str(if at == 0 { "" } else { "%3A" });
        etag.push_str(part);
    }
    etag.push_str("'\"");
    ETag::new(etag)
}

/// A write, with the whole new content of the row where that does not depend on the old one: packed before the
/// table is locked.
struct Write<'a> {
    operation: &'a TableOperation,
    content: Option<Packed>,
}

impl<'a> Write<'a> {
    fn new(operation: &'a TableOperation) -> Self {
        let content = match operation {
            TableOperation::Insert(entity)
            | TableOperation::InsertOrReplace(entity)
            | TableOperation::Replace(entity, _) => Some(Packed::new(&entity.columns)),
            TableOperation::Merge(..) | TableOperation::InsertOrMerge(_) | TableOperation::Delete { .. } => {
                None
            }
        };
        Self { operation, content }
    }
}

type Rows = BTreeMap<Key, Row>;

#[derive(Debug)]
pub(super) struct Table {
    pub(super) name: String,
    /// By partition key, then by row key; no partition is empty.
    partitions: BTreeMap<Key, Rows>,
}

impl Table {
    pub(super) fn new(name: &str) -> Self {
        Self { name: name.to_owned(), partitions: BTreeMap::new() }
    }

    pub(super) fn entities(&self) -> impl Iterator<Item = Entity> {
        self.partitions.iter().flat_map(|(partition_key, rows)| {
            rows.iter().map(|(row_key, row)| to_entity(&partition_key.0, &row_key.0, row, &[]))
        })
    }

    fn row(&self, partition_key: &str, row_key: &str) -> Option<&Row> {
        self.partitions.get(&Key(partition_key.to_owned()))?.get(&Key(row_key.to_owned()))
    }

    pub(super) fn load(&mut self, entity: Entity, stamp: Timestamp) {
        let mut row = Row::new(Packed::new(&entity.columns), stamp);
        row.written_at = entity.timestamp.unwrap_or(stamp);
        self.apply(Key(entity.partition_key), vec![(Key(entity.row_key), Some(row))]);
    }

    /// Carries out writes to rows of one partition, all or none. Time stamps of the rows, or an error and the place
    /// of its write.
    fn write(
        &mut self,
        operation: &'static str,
        writes: Vec<Write<'_>>,
        stamps: &[Timestamp],
    ) -> std::result::Result<Vec<Option<Timestamp>>, (usize, Error)> {
        let partition_key = Key(writes.first().map_or("", |write| write.operation.keys().0).to_owned());
        let rows = self.partitions.get(&partition_key);
        let mut planned = Vec::with_capacity(writes.len());
        for (at, (write, stamp)) in writes.into_iter().zip(stamps).enumerate() {
            planned.push(self.plan(rows, operation, write, *stamp).map_err(|error| (at, error))?);
        }
        Ok(self.apply(partition_key, planned))
    }

    /// What a write does to the rows of its partition, without doing it: the row's key and its new content
    /// (`None`: none).
    fn plan(
        &self,
        rows: Option<&Rows>,
        operation: &'static str,
        write: Write<'_>,
        stamp: Timestamp,
    ) -> Result<(Key, Option<Row>)> {
        let Write { operation: write, content } = write;
        let (partition_key, row_key) = write.keys();
        let key = Key(row_key.to_owned());
        let existing = rows.and_then(|rows| rows.get(&key));
        let refuse = |status, code| Error::answered(operation, &self.name, status, code);
        let matching = |condition: &Condition| match (existing, condition) {
            (None, _) => Err(refuse(404, "ResourceNotFound")),
            (Some(row), Condition::Matches(etag)) if etag_of(row.stamp) != *etag => {
                Err(refuse(412, "UpdateConditionNotSatisfied"))
            }
            (Some(row), _) => Ok(row),
        };
        let merged = |row: Option<&Row>, columns: &Properties| {
            let mut all = row.map(|row| row.columns.unpack()).unwrap_or_default();
            all.extend(columns.iter().map(|(name, value)| (name.clone(), value.clone())));
            check_row_size(operation, &self.name, partition_key, row_key, &all)?;
            Ok(Some(Packed::new(&all)))
        };
        let content = match write {
            TableOperation::Insert(_) if existing.is_some() => {
                return Err(refuse(409, "EntityAlreadyExists"));
            }
            TableOperation::Insert(_) | TableOperation::InsertOrReplace(_) => content,
            TableOperation::InsertOrMerge(entity) => merged(existing, &entity.columns)?,
            TableOperation::Replace(_, condition) => {
                matching(condition)?;
                content
            }
            TableOperation::Merge(entity, condition) => merged(Some(matching(condition)?), &entity.columns)?,
            TableOperation::Delete { condition, .. } => {
                matching(condition)?;
                None
            }
        };
        Ok((key, content.map(|content| Row::new(content, stamp))))
    }

    fn apply(&mut self, partition_key: Key, writes: Vec<(Key, Option<Row>)>) -> Vec<Option<Timestamp>> {
        let deletes = writes.iter().any(|(_, row)| row.is_none());
        let rows = self.partitions.entry(partition_key.clone()).or_default();
        let stamps = writes.into_iter().map(|(key, row)| {
            let stamp = row.as_ref().map(|row| row.stamp);
            match row {
                Some(row) => rows.insert(key, row),
                None => rows.remove(&key),
            };
            stamp
        });
        let stamps = stamps.collect();
        if deletes && self.partitions.get(&partition_key).is_some_and(Rows::is_empty) {
            self.partitions.remove(&partition_key);
        }
        stamps
    }

    fn query(&self, query: &TableQuery, page_limit: usize) -> Result<EntityPage> {
        let refuse = |message: String| {
            Error::answered("QueryEntities", &self.name, 400, "InvalidInput").with_message(message)
        };
        let filter = query.filter.as_deref().filter(|text| !text.trim().is_empty());
        let filter = filter.map(Filter::parse).transpose().map_err(refuse)?;
        let top = query.top.unwrap_or(MAX_ROWS);
        if !(1..=MAX_ROWS).contains(&top) {
            return Err(refuse("a page has 1 to 1000 rows".to_owned()));
        }
        let bounds = filter.as_ref().map(Filter::key_bounds).unwrap_or_default();
        let (first, to) = (bounds.first(), bounds.last());
        let mut from = (Key(first.0.into_owned()), Key(first.1.into_owned()));
        if let Some(continuation) = &query.continuation {
            let (partition_key, row_key) = parse_continuation(continuation)
                .ok_or_else(|| refuse("the continuation token is not one of this service".to_owned()))?;
            from = from.max((Key(partition_key), Key(row_key)));
        }
        let (first_partition, first_row) = from;

        let partitions = self.partitions.range((Bound::Included(&first_partition), Bound::Unbounded));
        let rows = partitions.flat_map(|(partition_key, rows)| {
            let begin = if *partition_key == first_partition {
                Bound::Included(&first_row)
            } else {
                Bound::Unbounded
            };
            let rows = rows.range((begin, Bound::Unbounded));
            rows.map(move |(row_key, row)| (partition_key.0.as_str(), row_key.0.as_str(), row))
        });
        let mut page = EntityPage::default();
        for (looked_at, (partition_key, row_key, row)) in rows.enumerate() {
            if to.as_ref().is_some_and(|(last_partition, last_row)| {
                ordinal(partition_key, last_partition)
                    .then_with(|| last_row.as_ref().map_or(Ordering::Less, |last| ordinal(row_key, last)))
                    == Ordering::Greater
            }) {
                break;
            }
            let matches = filter.as_ref().is_none_or(|filter| {
                let (written_at, columns) = (row.written_at, &row.columns);
                filter.matches(&Columns { partition_key, row_key, written_at, columns })
            });
            if looked_at >= page_limit || (matches && page.entities.len() == top as usize) {
                page.continuation = Some(continuation(partition_key, row_key));
                break;
            }
            if matches {
                page.entities.push(to_entity(partition_key, row_key, row, &query.select));
            }
        }
        Ok(page)
    }
}

fn to_entity(partition_key: &str, row_key: &str, row: &Row, select: &[String]) -> Entity {
    let selected = |name: &str| select.is_empty() || select.iter().any(|wanted| wanted == name);
    let text = |name, text: &str| if selected(name) { text.to_owned() } else { String::new() };
    Entity {
        partition_key: text("PartitionKey", partition_key),
        row_key: text("RowKey", row_key),
        etag: Some(etag_of(row.stamp)),
        timestamp: selected("Timestamp").then_some(row.written_at),
        columns: if select.is_empty() { row.columns.unpack() } else { row.columns.select(select) },
    }
}

/// The service's form of a token part, `1!{length}!{Base64}`: it holds no space, whatever the key holds.
fn continuation(partition_key: &str, row_key: &str) -> String {
    let part = |key: &str| {
        let encoded = BASE64.encode(key);
        format!("1!{}!{encoded}", encoded.len())
    };
    format!("{} {}", part(partition_key), part(row_key))
}

fn parse_continuation(token: &str) -> Option<(String, String)> {
    let part = |text: &str| {
        if text.is_empty() {
            return Some(String::new());
        }
        let (_, encoded) = text.strip_prefix("1!")?.split_once('!')?;
        String::from_utf8(BASE64.decode(encoded).ok()?).ok()
    };
    let (partition_key, row_key) = token.split_once(' ').unwrap_or((token, ""));
    Some((part(partition_key)?, part(row_key)?))
}

impl Tables {
    fn table(&mut self, operation: &'static str, table: &str) -> Result<&mut Table> {
        self.by_name
            .get_mut(&table.to_ascii_lowercase())
            .ok_or_else(|| Error::answered(operation, table, 404, "TableNotFound"))
    }
}

impl MemoryStore {
    /// `is_batch`: an error tells the place of its write.
    fn write(
        &self,
        operation: &'static str,
        table: &str,
        writes: Vec<Write<'_>>,
        is_batch: bool,
    ) -> Result<Vec<Option<ETag>>> {
        let now = self.now();
        let mut state = self.table_state();
        let stamps: Vec<_> = writes.iter().map(|_| state.stamp(now)).collect();
        let written = state.table(operation, table)?.write(operation, writes, &stamps);
        drop(state);
        let stamps = written.map_err(|(at, error)| if is_batch { error.at_index(at) } else { error })?;
        Ok(stamps.into_iter().map(|stamp| stamp.map(etag_of)).collect())
    }
}

#[async_trait]
impl TableStore for MemoryStore {
    async fn create_table(&self, table: &str) -> Result<bool> {
        self.begin().await;
        check_table_name("CreateTable", table)?;
        let mut state = self.table_state();
        let key = table.to_ascii_lowercase();
        let created = !state.by_name.contains_key(&key);
        state.by_name.entry(key).or_insert_with(|| Table::new(table));
        Ok(created)
    }

    async fn delete_table(&self, table: &str) -> Result<()> {
        self.begin().await;
        match self.table_state().by_name.remove(&table.to_ascii_lowercase()) {
            Some(_) => Ok(()),
            None => Err(Error::answered("DeleteTable", table, 404, "ResourceNotFound")),
        }
    }

    async fn list_tables(&self, prefix: &str) -> Result<Vec<String>> {
        self.begin().await;
        let prefix = prefix.to_ascii_lowercase();
        let state = self.table_state();
        let found = state.by_name.iter().filter(|(key, _)| key.starts_with(&prefix));
        Ok(found.map(|(_, table)| table.name.clone()).collect())
    }

    async fn get_entity(&self, table: &str, partition_key: &str, row_key: &str) -> Result<Option<Entity>> {
        self.begin().await;
        check_key("GetEntity", table, partition_key)?;
        check_key("GetEntity", table, row_key)?;
        let mut state = self.table_state();
        let row = state.table("GetEntity", table)?.row(partition_key, row_key);
        Ok(row.map(|row| to_entity(partition_key, row_key, row, &[])))
    }

    async fn execute(&self, table: &str, operation: TableOperation) -> Result<Option<ETag>> {
        self.begin().await;
        let name = Operation::of(&operation).name;
        check_operation(name, table, &operation)?;
        let mut written = self.write(name, table, vec![Write::new(&operation)], false)?;
        Ok(written.pop().flatten())
    }

    async fn transaction(&self, table: &str, operations: &[TableOperation]) -> Result<Vec<Option<ETag>>> {
        self.begin().await;
        let name = "EntityGroupTransaction";
        check_transaction(name, table, operations)?;
        self.write(name, table, operations.iter().map(Write::new).collect(), true)
    }

    async fn query(&self, table: &str, query: &TableQuery) -> Result<EntityPage> {
        self.begin().await;
        let served_at = Some(self.now().truncated_to_second());
        let mut state = self.table_state();
        let page_limit = state.page_limit.unwrap_or(usize::MAX);
        let page = state.table("QueryEntities", table)?.query(query, page_limit)?;
        Ok(EntityPage { served_at, ..page })
    }
}
