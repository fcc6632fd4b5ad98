use async_trait::async_trait;

use super::Layer;
use crate::operation::{self as op, Operation};
use crate::{ETag, Entity, EntityPage, Result, TableOperation, TableQuery, TableStore};

#[async_trait]
impl TableStore for Layer<dyn TableStore> {
    async fn create_table(&self, table: &str) -> Result<bool> {
        self.requests.run(op::CREATE_TABLE, table, None, || self.inner.create_table(table)).await
    }

    async fn delete_table(&self, table: &str) -> Result<()> {
        self.requests.run(op::DELETE_TABLE, table, Some(()), || self.inner.delete_table(table)).await
    }

    async fn list_tables(&self, prefix: &str) -> Result<Vec<String>> {
        self.requests.run(op::LIST_TABLES, prefix, None, || self.inner.list_tables(prefix)).await
    }

    async fn get_entity(&self, table: &str, partition_key: &str, row_key: &str) -> Result<Option<Entity>> {
        let attempt = || self.inner.get_entity(table, partition_key, row_key);
        self.requests.run(op::GET_ENTITY, table, None, attempt).await
    }

    async fn execute(&self, table: &str, operation: TableOperation) -> Result<Option<ETag>> {
        let kind = Operation::of(&operation);
        let nothing_found = (kind == op::DELETE_ENTITY).then_some(None);
        let attempt = || self.inner.execute(table, operation.clone());
        self.requests.run(kind, table, nothing_found, attempt).await
    }

    async fn transaction(&self, table: &str, operations: &[TableOperation]) -> Result<Vec<Option<ETag>>> {
        let attempt = || self.inner.transaction(table, operations);
        self.requests.run(op::ENTITY_GROUP_TRANSACTION, table, None, attempt).await
    }

    async fn query(&self, table: &str, query: &TableQuery) -> Result<EntityPage> {
        self.requests.run(op::QUERY_ENTITIES, table, None, || self.inner.query(table, query)).await
    }
}
