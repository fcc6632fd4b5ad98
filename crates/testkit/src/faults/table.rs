use async_trait::async_trait;
use taskhub_storage::{ETag, Entity, EntityPage, Operation, Result, TableOperation, TableQuery, TableStore};

use super::Faulty;

#[async_trait]
impl TableStore for Faulty<dyn TableStore> {
    async fn create_table(&self, table: &str) -> Result<bool> {
        self.run("CreateTable", table, self.inner.create_table(table)).await
    }

    async fn delete_table(&self, table: &str) -> Result<()> {
        self.run("DeleteTable", table, self.inner.delete_table(table)).await
    }

    async fn list_tables(&self, prefix: &str) -> Result<Vec<String>> {
        self.run("ListTables", prefix, self.inner.list_tables(prefix)).await
    }

    async fn get_entity(&self, table: &str, partition_key: &str, row_key: &str) -> Result<Option<Entity>> {
        self.run("GetEntity", table, self.inner.get_entity(table, partition_key, row_key)).await
    }

    async fn execute(&self, table: &str, operation: TableOperation) -> Result<Option<ETag>> {
        let name = Operation::of(&operation).name;
        self.run(name, table, self.inner.execute(table, operation)).await
    }

    async fn transaction(&self, table: &str, operations: &[TableOperation]) -> Result<Vec<Option<ETag>>> {
        self.run("EntityGroupTransaction", table, self.inner.transaction(table, operations)).await
    }

    async fn query(&self, table: &str, query: &TableQuery) -> Result<EntityPage> {
        self.run("QueryEntities", table, self.inner.query(table, query)).await
    }
}
