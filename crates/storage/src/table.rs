use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt::{self, Debug};

use async_trait::async_trait;
use taskhub_core::Timestamp;

use crate::Result;
use crate::limits::first_date;

/// Version of an entity or blob, as the service wrote it (quotes and all).
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct ETag(String);

impl ETag {
    /// Wraps the header's text.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The header's text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for ETag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for ETag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// When a write applies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Condition {
    /// It exists, in whatever version (`If-Match: *`).
    Any,
    /// It exists in this version (`If-Match`).
    Matches(ETag),
}

/// A property of an entity with its EDM type. A null property is one that is absent.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// `Edm.String`, at most 64 KiB of UTF-16.
    String(String),
    /// `Edm.Boolean`.
    Bool(bool),
    /// `Edm.Int32`.
    Int32(i32),
    /// `Edm.Int64`.
    Int64(i64),
    /// `Edm.Double`.
    Double(f64),
    /// `Edm.DateTime`; written with 7 fractional digits.
    DateTime(Timestamp),
    /// `Edm.Guid`.
    Guid(uuid::Uuid),
    /// `Edm.Binary`.
    Binary(Vec<u8>),
}

impl Value {
    /// The text of a string.
    pub fn as_str(&self) -> Option<&str> {
        if let Self::String(text) = self { Some(text) } else { None }
    }
}

impl From<&str> for Value {
    fn from(text: &str) -> Self {
        Self::String(text.to_owned())
    }
}

impl From<String> for Value {
    fn from(text: String) -> Self {
        Self::String(text)
    }
}

impl From<bool> for Value {
    fn from(value: bool) -> Self {
        Self::Bool(value)
    }
}

impl From<i32> for Value {
    fn from(value: i32) -> Self {
        Self::Int32(value)
    }
}

impl From<Timestamp> for Value {
    /// A table holds no date before 1601: an earlier one becomes that. .NET's default date is one, and a row
    /// that the service refuses would be refused for ever.
    fn from(value: Timestamp) -> Self {
        Self::DateTime(value.max(first_date()))
    }
}

/// Properties of a row by name. Names are mostly those of our own layout.
pub type Properties = BTreeMap<Cow<'static, str>, Value>;

/// A row. Keys may hold anything but `/ \ # ?` and control characters, at most 1 KiB of UTF-16 each.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Entity {
    /// Partition key.
    pub partition_key: String,
    /// Row key.
    pub row_key: String,
    /// Version; set on read, ignored on write.
    pub etag: Option<ETag>,
    /// When the service last wrote the row; set on read, ignored on write.
    pub timestamp: Option<Timestamp>,
    /// All other properties by name.
    pub columns: Properties,
}

impl Entity {
    /// A row without columns.
    pub fn new(partition_key: impl Into<String>, row_key: impl Into<String>) -> Self {
        Self { partition_key: partition_key.into(), row_key: row_key.into(), ..Self::default() }
    }

    /// Sets a column.
    pub fn set(&mut self, name: impl Into<Cow<'static, str>>, value: impl Into<Value>) {
        self.columns.insert(name.into(), value.into());
    }

    /// Adds a column.
    #[must_use]
    pub fn with(mut self, name: impl Into<Cow<'static, str>>, value: impl Into<Value>) -> Self {
        self.set(name, value);
        self
    }

    /// A column.
    pub fn get(&self, name: &str) -> Option<&Value> {
        self.columns.get(name)
    }

    /// The text of a string column.
    pub fn str(&self, name: &str) -> Option<&str> {
        self.get(name)?.as_str()
    }
}

/// One operation of a group transaction.
#[derive(Debug, Clone, PartialEq)]
pub enum TableOperation {
    /// Adds a row that must not exist.
    Insert(Entity),
    /// Replaces an existing row.
    Replace(Entity, Condition),
    /// Sets some columns of an existing row.
    Merge(Entity, Condition),
    /// Adds or replaces.
    InsertOrReplace(Entity),
    /// Adds, or sets some columns.
    InsertOrMerge(Entity),
    /// Deletes an existing row.
    Delete {
        /// Partition key.
        partition_key: String,
        /// Row key.
        row_key: String,
        /// When.
        condition: Condition,
    },
}

impl TableOperation {
    /// Partition key and row key of the row it concerns.
    pub fn keys(&self) -> (&str, &str) {
        match self {
            Self::Insert(e)
            | Self::Replace(e, _)
            | Self::Merge(e, _)
            | Self::InsertOrReplace(e)
            | Self::InsertOrMerge(e) => (&e.partition_key, &e.row_key),
            Self::Delete { partition_key, row_key, .. } => (partition_key, row_key),
        }
    }
}

/// A query of one table.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct TableQuery {
    /// OData filter; values quoted with [`quote_filter_text`].
    pub filter: Option<String>,
    /// Columns to return; empty means all. `PartitionKey`, `RowKey`, `Timestamp` must be named to be kept.
    pub select: Vec<String>,
    /// Rows per page, 1 to 1000.
    pub top: Option<u32>,
    /// Where the previous page ended: `{NextPartitionKey} {NextRowKey}`, joined by one space.
    pub continuation: Option<String>,
}

/// One page of a query. It may be short or empty while there is more.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct EntityPage {
    /// Rows in key order.
    pub entities: Vec<Entity>,
    /// Where the next page begins; `None` at the end.
    pub continuation: Option<String>,
    /// The server's clock when it answered, in whole seconds (the `Date` header); `None` if it did not say.
    pub served_at: Option<Timestamp>,
}

/// Quotes a text for an OData filter: `O'Brien` becomes `'O''Brien'`.
pub fn quote_filter_text(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

/// A table service.
#[async_trait]
pub trait TableStore: Send + Sync + Debug {
    /// Creates a table; `false` when it existed.
    async fn create_table(&self, table: &str) -> Result<bool>;

    /// Deletes a table with its rows.
    async fn delete_table(&self, table: &str) -> Result<()>;

    /// Names of all tables that begin with `prefix` (ignoring case), in order.
    async fn list_tables(&self, prefix: &str) -> Result<Vec<String>>;

    /// One row; `None` when the row does not exist. A missing table is an error.
    async fn get_entity(&self, table: &str, partition_key: &str, row_key: &str) -> Result<Option<Entity>>;

    /// Carries out one operation and returns the new version (`None` for a delete).
    async fn execute(&self, table: &str, operation: TableOperation) -> Result<Option<ETag>>;

    /// Carries out 1 to 100 operations on different rows of one partition, all or none, and returns the
    /// new versions in order. An error is that of the first operation that failed.
    async fn transaction(&self, table: &str, operations: &[TableOperation]) -> Result<Vec<Option<ETag>>>;

    /// One page of rows.
    async fn query(&self, table: &str, query: &TableQuery) -> Result<EntityPage>;
}
