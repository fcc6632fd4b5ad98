use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::ops::Bound;

use async_trait::async_trait;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE as BASE64;
use taskhub_core::Timestamp;

use super::filter::{Columns, Filter};
use super::{MemoryStore, Tables};
use crate::limits::{
    MAX_ROWS, check_key, check_operation, check_row_size, check_table_name, check_transaction,
};
use crate::operation::Operation;
use crate::{
    Condition, ETag, Entity, EntityPage, Error, Properties, Result, TableOperation, TableQuery, TableStore,
};

/// Keys of a row in the service's order: UTF-16 units, partition key first.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Keys {
    partition_key: String,
    row_key: String,
}

impl Ord for Keys {
    fn cmp(&self, other: &Self) -> Ordering {
        ordinal(&self.partition_key, &other.partition_key)
            .then_with(|| ordinal(&self.row_key, &other.row_key))
    }
}

impl PartialOrd for Keys {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

/// Order of UTF-16 units, which differs from that of UTF-8 only for characters outside the basic plane.
pub(super) fn ordinal(a: &str, b: &str) -> Ordering {
    if a.is_ascii() && b.is_ascii() { a.cmp(b) } else { a.encode_utf16().cmp(b.encode_utf16()) }
}

#[derive(Debug, Clone)]
struct Row {
    columns: Properties,
    etag: ETag,
    written_at: Timestamp,
}

impl Row {
    fn new(columns: Properties, stamp: Timestamp) -> Self {
        let etag = ETag::new(format!("W/\"datetime'{}'\"", stamp.to_round_trip().replace(':', "%3A")));
        Self { columns, etag, written_at: stamp }
    }
}

#[derive(Debug)]
pub(super) struct Table {
    pub(super) name: String,
    rows: BTreeMap<Keys, Row>,
}

impl Table {
    pub(super) fn new(name: &str) -> Self {
        Self { name: name.to_owned(), rows: BTreeMap::new() }
    }

    pub(super) fn entities(&self) -> impl Iterator<Item = Entity> {
        self.rows.iter().map(|(keys, row)| to_entity(keys, row, &[]))
    }

    pub(super) fn load(&mut self, entity: Entity, stamp: Timestamp) {
        let mut row = Row::new(entity.columns, stamp);
        row.written_at = entity.timestamp.unwrap_or(stamp);
        self.rows.insert(Keys { partition_key: entity.partition_key, row_key: entity.row_key }, row);
    }

    /// What a write does, without doing it: the row's keys and its new content (`None`: none).
    fn plan(
        &self,
        operation: &'static str,
        write: &TableOperation,
        stamp: Timestamp,
    ) -> Result<(Keys, Option<Row>)> {
        let (partition_key, row_key) = write.keys();
        let keys = Keys { partition_key: partition_key.to_owned(), row_key: row_key.to_owned() };
        let existing = self.rows.get(&keys);
        let refuse = |status, code| Error::answered(operation, &self.name, status, code);
        let matching = |condition: &Condition| match (existing, condition) {
            (None, _) => Err(refuse(404, "ResourceNotFound")),
            (Some(row), Condition::Matches(etag)) if row.etag != *etag => {
                Err(refuse(412, "UpdateConditionNotSatisfied"))
            }
            (Some(row), _) => Ok(row),
        };
        let merged = |row: Option<&Row>, columns: &Properties| {
            let mut all = row.map(|row| row.columns.clone()).unwrap_or_default();
            all.extend(columns.iter().map(|(name, value)| (name.clone(), value.clone())));
            check_row_size(operation, &self.name, &keys.partition_key, &keys.row_key, &all)?;
            Ok(all)
        };
        let columns = match write {
            TableOperation::Insert(_) if existing.is_some() => {
                return Err(refuse(409, "EntityAlreadyExists"));
            }
            TableOperation::Insert(entity) | TableOperation::InsertOrReplace(entity) => entity.columns.clone(),
            TableOperation::InsertOrMerge(entity) => merged(existing, &entity.columns)?,
            TableOperation::Replace(entity, condition) => {
                matching(condition)?;
                entity.columns.clone()
            }
            TableOperation::Merge(entity, condition) => merged(Some(matching(condition)?), &entity.columns)?,
            TableOperation::Delete { condition, .. } => {
                matching(condition)?;
                return Ok((keys, None));
            }
        };
        Ok((keys, Some(Row::new(columns, stamp))))
    }

    fn apply(&mut self, (keys, row): (Keys, Option<Row>)) -> Option<ETag> {
        let etag = row.as_ref().map(|row| row.etag.clone());
        match row {
            Some(row) => self.rows.insert(keys, row),
            None => self.rows.remove(&keys),
        };
        etag
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
        let mut from = Keys { partition_key: first.0.into_owned(), row_key: first.1.into_owned() };
        if let Some(continuation) = &query.continuation {
            let (partition_key, row_key) = parse_continuation(continuation)
                .ok_or_else(|| refuse("the continuation token is not one of this service".to_owned()))?;
            from = from.max(Keys { partition_key, row_key });
        }

        let mut page = EntityPage::default();
        for (looked_at, (keys, row)) in self.rows.range((Bound::Included(from), Bound::Unbounded)).enumerate()
        {
            if to.as_ref().is_some_and(|(partition_key, row_key)| {
                ordinal(&keys.partition_key, partition_key).then_with(|| {
                    row_key.as_ref().map_or(Ordering::Less, |row_key| ordinal(&keys.row_key, row_key))
                }) == Ordering::Greater
            }) {
                break;
            }
            let matches = filter.as_ref().is_none_or(|filter| {
                filter.matches(&Columns {
                    partition_key: &keys.partition_key,
                    row_key: &keys.row_key,
                    written_at: row.written_at,
                    columns: &row.columns,
                })
            });
            if looked_at >= page_limit || (matches && page.entities.len() == top as usize) {
                page.continuation = Some(continuation(keys));
                break;
            }
            if matches {
                page.entities.push(to_entity(keys, row, &query.select));
            }
        }
        Ok(page)
    }
}

fn to_entity(keys: &Keys, row: &Row, select: &[String]) -> Entity {
    let selected = |name: &str| select.is_empty() || select.iter().any(|wanted| wanted == name);
    let text = |name, text: &str| if selected(name) { text.to_owned() } else { String::new() };
    Entity {
        partition_key: text("PartitionKey", &keys.partition_key),
        row_key: text("RowKey", &keys.row_key),
        etag: Some(row.etag.clone()),
        timestamp: selected("Timestamp").then_some(row.written_at),
        columns: if select.is_empty() {
            row.columns.clone()
        } else {
            let wanted = select.iter().filter_map(|name| row.columns.get_key_value(name.as_str()));
            wanted.map(|(name, value)| (name.clone(), value.clone())).collect()
        },
    }
}

/// The service's form of a token part, `1!{length}!{Base64}`: it holds no space, whatever the key holds.
fn continuation(keys: &Keys) -> String {
    let part = |key: &str| {
        let encoded = BASE64.encode(key);
        format!("1!{}!{encoded}", encoded.len())
    };
    format!("{} {}", part(&keys.partition_key), part(&keys.row_key))
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
        let keys = Keys { partition_key: partition_key.to_owned(), row_key: row_key.to_owned() };
        let mut state = self.table_state();
        let row = state.table("GetEntity", table)?.rows.get(&keys);
        Ok(row.map(|row| to_entity(&keys, row, &[])))
    }

    async fn execute(&self, table: &str, operation: TableOperation) -> Result<Option<ETag>> {
        self.begin().await;
        let name = Operation::of(&operation).name;
        check_operation(name, table, &operation)?;
        let now = self.now();
        let mut state = self.table_state();
        let stamp = state.stamp(now);
        let found = state.table(name, table)?;
        let planned = found.plan(name, &operation, stamp)?;
        Ok(found.apply(planned))
    }

    async fn transaction(&self, table: &str, operations: &[TableOperation]) -> Result<Vec<Option<ETag>>> {
        self.begin().await;
        let name = "EntityGroupTransaction";
        check_transaction(name, table, operations)?;
        let now = self.now();
        let mut state = self.table_state();
        let stamps: Vec<_> = operations.iter().map(|_| state.stamp(now)).collect();
        let found = state.table(name, table)?;
        let mut planned = Vec::with_capacity(operations.len());
        for (index, (operation, stamp)) in operations.iter().zip(stamps).enumerate() {
            let planned_write = found.plan(name, operation, stamp);
            planned.push(planned_write.map_err(|error| error.at_index(index))?);
        }
        Ok(planned.into_iter().map(|write| found.apply(write)).collect())
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
