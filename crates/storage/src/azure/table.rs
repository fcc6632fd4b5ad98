use async_trait::async_trait;
use azure_core::Etag;
use azure_data_tables::IfMatchCondition;
use azure_data_tables::operations::TransactionBuilder;
use azure_data_tables::prelude::{EntityClient, TableClient, TableServiceClient};
use futures::StreamExt;
use serde_json::{Map, Value as Json};

use super::entity::{from_json, to_json};
use super::failure::failure;
use super::policy::Answer;
use crate::limits::{MAX_ROWS, check_key, check_operation, check_table_name, check_transaction};
use crate::operation::Operation;
use crate::{
    Condition, ETag, Entity, EntityPage, Error, ErrorKind, Result, TableOperation, TableQuery, TableStore,
};

type Row = Map<String, Json>;

#[derive(Debug)]
pub(super) struct Tables(pub(super) TableServiceClient);

/// Keys stand in quotes in a URL; the package does not double those inside.
fn quoted(key: &str) -> String {
    key.replace('\'', "''")
}

fn condition(condition: &Condition) -> IfMatchCondition {
    match condition {
        Condition::Any => IfMatchCondition::Any,
        Condition::Matches(etag) => IfMatchCondition::Etag(Etag::from(etag.as_str().to_owned())),
    }
}

fn unreadable(operation: &'static str, table: &str, column: &str) -> Error {
    let message = format!("a column does not fit its type. column=`{column}`");
    Error::new(ErrorKind::Data, operation, table, message)
}

impl Tables {
    fn table(&self, table: &str) -> TableClient {
        self.0.table_client(table)
    }

    fn row(&self, table: &str, partition_key: &str, row_key: &str) -> EntityClient {
        self.table(table).partition_key_client(quoted(partition_key)).entity_client(quoted(row_key))
    }

    /// Sends one operation.
    async fn send(
        &self,
        table: &str,
        operation: &TableOperation,
        answer: &Answer,
    ) -> azure_core::Result<Option<ETag>> {
        let (partition_key, row_key) = operation.keys();
        let row = self.row(table, partition_key, row_key);
        let context = answer.context();
        let etag = match operation {
            TableOperation::Insert(entity) => {
                let insert = self.table(table).insert::<_, Row>(to_json(entity))?;
                let inserted = insert.context(context).await?;
                inserted.etag
            }
            TableOperation::Replace(entity, when) => {
                row.update(to_json(entity), condition(when))?.context(context).await?.etag
            }
            TableOperation::Merge(entity, when) => {
                row.merge(to_json(entity), condition(when))?.context(context).await?.etag
            }
            TableOperation::InsertOrReplace(entity) => {
                row.insert_or_replace(to_json(entity))?.context(context).await?.etag
            }
            TableOperation::InsertOrMerge(entity) => {
                row.insert_or_merge(to_json(entity))?.context(context).await?.etag
            }
            TableOperation::Delete { condition: when, .. } => {
                row.delete().if_match(condition(when)).context(context).await?;
                return Ok(None);
            }
        };
        Ok(Some(ETag::new(etag.to_string())))
    }
}

/// Adds one operation to a group transaction.
fn add(
    transaction: TransactionBuilder,
    operation: &TableOperation,
) -> azure_core::Result<TransactionBuilder> {
    let row_key = quoted(operation.keys().1);
    match operation {
        TableOperation::Insert(entity) => transaction.insert(to_json(entity)),
        TableOperation::Replace(entity, when) => {
            transaction.update(row_key, to_json(entity), Some(condition(when)))
        }
        TableOperation::Merge(entity, when) => {
            transaction.merge(row_key, to_json(entity), Some(condition(when)))
        }
        TableOperation::InsertOrReplace(entity) => transaction.insert_or_replace(row_key, to_json(entity)),
        TableOperation::InsertOrMerge(entity) => transaction.insert_or_merge(row_key, to_json(entity)),
        TableOperation::Delete { condition: when, .. } => transaction.delete(row_key, Some(condition(when))),
    }
}

#[async_trait]
impl TableStore for Tables {
    async fn create_table(&self, table: &str) -> Result<bool> {
        check_table_name("CreateTable", table)?;
        let answer = Answer::default();
        match self.table(table).create().context(answer.context()).await {
            Ok(_) => Ok(true),
            Err(error) => match failure("CreateTable", table, &error, &answer) {
                error if error.kind() == ErrorKind::AlreadyExists => Ok(false),
                error => Err(error),
            },
        }
    }

    async fn delete_table(&self, table: &str) -> Result<()> {
        let answer = Answer::default();
        let deleted = self.table(table).delete().context(answer.context()).await;
        deleted.map_err(|error| failure("DeleteTable", table, &error, &answer))?;
        Ok(())
    }

    async fn list_tables(&self, prefix: &str) -> Result<Vec<String>> {
        // The service compares names in a filter with regard to case, so all are read.
        let wanted = prefix.to_ascii_lowercase();
        let answer = Answer::default();
        let mut pages = self.0.list().context(answer.context()).into_stream();
        let mut names = Vec::new();
        while let Some(page) = pages.next().await {
            let page = page.map_err(|error| failure("ListTables", prefix, &error, &answer))?;
            names.extend(page.tables.into_iter().map(|table| table.name));
        }
        names.retain(|name| name.to_ascii_lowercase().starts_with(&wanted));
        names.sort_by_key(|name| name.to_ascii_lowercase());
        Ok(names)
    }

    async fn get_entity(&self, table: &str, partition_key: &str, row_key: &str) -> Result<Option<Entity>> {
        check_key("GetEntity", table, partition_key)?;
        check_key("GetEntity", table, row_key)?;
        let answer = Answer::default();
        let got = self.row(table, partition_key, row_key).get::<Row>().context(answer.context()).await;
        let got = match got {
            Ok(got) => got,
            Err(error) => {
                let error = failure("GetEntity", table, &error, &answer);
                let no_row = error.kind() == ErrorKind::NotFound
                    && matches!(error.code(), Some("ResourceNotFound" | "EntityNotFound"));
                return if no_row { Ok(None) } else { Err(error) };
            }
        };
        let mut entity = from_json(got.entity).map_err(|column| unreadable("GetEntity", table, &column))?;
        entity.etag = Some(ETag::new(got.etag.to_string()));
        Ok(Some(entity))
    }

    async fn execute(&self, table: &str, operation: TableOperation) -> Result<Option<ETag>> {
        let name = Operation::of(&operation).name;
        check_operation(name, table, &operation)?;
        let answer = Answer::default();
        let sent = self.send(table, &operation, &answer).await;
        sent.map_err(|error| failure(name, table, &error, &answer))
    }

    async fn transaction(&self, table: &str, operations: &[TableOperation]) -> Result<Vec<Option<ETag>>> {
        let name = "EntityGroupTransaction";
        check_transaction(name, table, operations)?;
        let answer = Answer::default();
        let failed = |error: azure_core::Error| failure(name, table, &error, &answer);
        let partition_key = operations.first().map(|operation| operation.keys().0).unwrap_or_default();
        let mut transaction = self.table(table).partition_key_client(quoted(partition_key)).transaction();
        for operation in operations {
            transaction = add(transaction, operation).map_err(failed)?;
        }
        let done = transaction.context(answer.context()).await.map_err(failed)?;
        if done.operation_responses.len() != operations.len() {
            let message = format!(
                "the answer has another number of parts. sent=`{}` received=`{}`",
                operations.len(),
                done.operation_responses.len()
            );
            return Err(Error::new(ErrorKind::Data, name, table, message));
        }
        let etags = done.operation_responses.into_iter();
        Ok(etags.map(|part| part.etag.map(|etag| ETag::new(etag.to_string()))).collect())
    }

    async fn query(&self, table: &str, query: &TableQuery) -> Result<EntityPage> {
        let name = "QueryEntities";
        let top = query.top.unwrap_or(MAX_ROWS);
        if !(1..=MAX_ROWS).contains(&top) {
            return Err(Error::answered(name, table, 400, "InvalidInput"));
        }
        let answer = Answer::default();
        let mut request = self.table(table).query().top(top).context(answer.context());
        if let Some(filter) = query.filter.as_ref().filter(|filter| !filter.trim().is_empty()) {
            request = request.filter(filter.clone());
        }
        if !query.select.is_empty() {
            request = request.select(query.select.join(","));
        }
        if let Some(continuation) = &query.continuation {
            let (partition_key, row_key) =
                continuation.split_once(' ').unwrap_or((continuation.as_str(), ""));
            request = request.initial_partition_key(partition_key.to_owned());
            if !row_key.is_empty() {
                request = request.initial_row_key(row_key.to_owned());
            }
        }
        let Some(page) = request.into_stream::<Row>().next().await else {
            return Ok(EntityPage::default());
        };
        let page = page.map_err(|error| failure(name, table, &error, &answer))?;
        let entities = page.entities.into_iter().map(from_json).collect::<std::result::Result<_, _>>();
        let (next_keys, served_at) = {
            let mut seen = answer.seen();
            (seen.next_keys.take(), seen.served_at)
        };
        Ok(EntityPage {
            entities: entities.map_err(|column| unreadable(name, table, &column))?,
            continuation: next_keys.map(|(partition_key, row_key)| format!("{partition_key} {row_key}")),
            served_at,
        })
    }
}
