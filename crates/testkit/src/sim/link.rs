//! The three services over a [`Link`].

use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use taskhub_azure_storage::message::{self, Decoded};
use taskhub_core::{EventKind, TaskMessage, Timestamp};
use taskhub_storage::memory::MemoryStore;
use taskhub_storage::{
    Blob, BlobPage, BlobProperties, BlobStore, ETag, Entity, EntityPage, ErrorKind, Operation, PopReceipt,
    PutBlob, PutReceipt, QueueMessage, QueueStore, Result, TableOperation, TableQuery, TableStore, Value,
};
use tokio::time::Instant;
use uuid::Uuid;

use super::network::Link;

/// Visibility of a message that is delivered a second time although somebody holds it.
const SHORT_VISIBILITY: Duration = Duration::from_secs(2);

/// Sends a request with everything it needs owned.
macro_rules! remote {
    ($link:ident, $operation:expr, $resource:expr, $detail:expr, [$($owned:ident),*], |$store:ident, $again:pat_param| $call:expr) => {{
        $(let $owned = $owned.to_owned();)*
        let (resource, detail) = ($resource, $detail);
        let request = move |$store: MemoryStore, $again: bool| {
            $(let $owned = $owned.clone();)*
            async move { $call.await }
        };
        $link.send($operation, resource, detail, request).await
    }};
}

fn in_container(container: &str, blob: Option<&str>) -> String {
    blob.map_or_else(|| container.to_owned(), |blob| format!("{container}/{blob}"))
}

impl Link {
    /// A detail of the trace, made only if somebody reads it.
    fn detail(&self, text: impl FnOnce() -> String) -> String {
        if self.network.trace.keeps_lines() { text() } else { String::new() }
    }
}

/// What a queue message is about.
fn about(text: &str) -> String {
    match message::decode(text) {
        Ok(Decoded::Message(data)) => {
            let target = &data.task_message.target;
            let execution = target.execution_id.as_ref().map_or("-", |id| id.as_str());
            let event = match &data.task_message.event.kind {
                EventKind::EventRaised { name, input, .. } => {
                    let (name, input) = (name.as_deref().unwrap_or_default(), input.as_deref());
                    format!("EventRaised({name} {:.300})", input.unwrap_or_default())
                }
                _ => data.task_message.event.name().to_owned(),
            };
            format!("{} #{} {} {:.6}", event, data.task_message.event.event_id, target.instance_id, execution)
        }
        Ok(Decoded::Wrapper { blob_name }) => format!("in {blob_name}"),
        Err(_) => "not a message".to_owned(),
    }
}

fn is_timer(message: &TaskMessage) -> bool {
    matches!(message.event.kind, EventKind::TimerFired { .. })
}

/// What a write to a table is about.
fn about_row(operation: &TableOperation) -> String {
    let entity = match operation {
        TableOperation::Insert(entity)
        | TableOperation::InsertOrReplace(entity)
        | TableOperation::InsertOrMerge(entity)
        | TableOperation::Replace(entity, _)
        | TableOperation::Merge(entity, _) => entity,
        TableOperation::Delete { partition_key, row_key, .. } => return format!("{partition_key}/{row_key}"),
    };
    let mut text = format!("{}/{}", entity.partition_key, entity.row_key);
    for column in ["EventType", "ExecutionId", "RuntimeStatus", "CurrentOwner", "NextOwner"] {
        if let Some(value) = entity.str(column) {
            text.push_str(&format!(" {column}={value:.12}"));
        }
    }
    text
}

#[async_trait]
impl QueueStore for Link {
    async fn create_queue(&self, queue: &str) -> Result<bool> {
        remote!(self, "CreateQueue", queue.to_owned(), String::new(), [queue], |store, _| store
            .create_queue(&queue))
    }

    async fn delete_queue(&self, queue: &str) -> Result<()> {
        remote!(self, "DeleteQueue", queue.to_owned(), String::new(), [queue], |store, _| store
            .delete_queue(&queue))
    }

    async fn list_queues(&self, prefix: &str) -> Result<Vec<String>> {
        remote!(self, "ListQueues", prefix.to_owned(), String::new(), [prefix], |store, _| store
            .list_queues(&prefix))
    }

    async fn put_message(&self, queue: &str, text: &str, delay: Duration) -> Result<PutReceipt> {
        let detail = self.detail(|| format!("{} in {} ms", about(text), delay.as_millis()));
        self.network.requests.note(text);
        let put = remote!(self, "PutMessage", queue.to_owned(), detail, [queue, text], |store, _| store
            .put_message(&queue, &text, delay));
        // Hidden as if it had been received.
        if let Ok(put) = &put
            && delay == self.network.visibility
            && !matches!(message::decode(text), Ok(Decoded::Message(data)) if is_timer(&data.task_message))
        {
            self.process.holds(&put.receipt.message_id, about(text));
        }
        put
    }

    async fn get_messages(
        &self,
        queue: &str,
        count: u32,
        visibility_timeout: Duration,
    ) -> Result<Vec<QueueMessage>> {
        let mut receive = queue.contains("-control-").then(|| {
            let (receive, allowed) = self.process.receives(queue);
            allowed.unwrap_or_else(|why| self.network.violation(why));
            receive
        });
        let received = remote!(
            self,
            "GetMessages",
            queue.to_owned(),
            String::new(),
            [queue],
            |store, again| async move {
                let hidden =
                    if again { visibility_timeout.min(SHORT_VISIBILITY) } else { visibility_timeout };
                store.get_messages(&queue, count, hidden).await
            }
        );
        if let (Ok(_), Some(receive)) = (&received, &mut receive) {
            receive.has_succeeded = true;
        }
        for message in received.iter().flatten() {
            let detail = self.detail(|| {
                format!("{} {} #{}", message.receipt.message_id, about(&message.text), message.dequeue_count)
            });
            self.network.trace.add(&self.process.name, &["received", queue], &detail);
            self.process.holds(&message.receipt.message_id, about(&message.text));
            if message.dequeue_count > 1 {
                self.network.requests.note(&message.text);
            }
        }
        received
    }

    async fn peek_messages(&self, queue: &str, count: u32) -> Result<Vec<QueueMessage>> {
        remote!(self, "PeekMessages", queue.to_owned(), String::new(), [queue], |store, _| store
            .peek_messages(&queue, count))
    }

    async fn update_message(
        &self,
        queue: &str,
        receipt: &PopReceipt,
        text: &str,
        visibility_timeout: Duration,
    ) -> Result<(PopReceipt, Timestamp)> {
        let detail = self.detail(|| {
            format!("{} {} in {} ms", receipt.message_id, about(text), visibility_timeout.as_millis())
        });
        // Any other time than that of a renewal.
        if visibility_timeout != self.network.visibility {
            self.process.lets_go(&receipt.message_id);
        }
        let id = receipt.message_id.clone();
        let updated =
            remote!(self, "UpdateMessage", queue.to_owned(), detail, [queue, receipt, text], |store, _| {
                store.update_message(&queue, &receipt, &text, visibility_timeout)
            });
        if matches!(&updated, Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::PopReceiptMismatch))
        {
            self.process.lets_go(&id);
        }
        updated
    }

    async fn delete_message(&self, queue: &str, receipt: &PopReceipt) -> Result<()> {
        let detail = self.detail(|| receipt.message_id.clone());
        self.process.lets_go(&receipt.message_id);
        remote!(self, "DeleteMessage", queue.to_owned(), detail, [queue, receipt], |store, _| store
            .delete_message(&queue, &receipt))
    }

    async fn message_count(&self, queue: &str) -> Result<u64> {
        remote!(self, "GetQueueMetadata", queue.to_owned(), String::new(), [queue], |store, _| store
            .message_count(&queue))
    }
}

#[async_trait]
impl TableStore for Link {
    async fn create_table(&self, table: &str) -> Result<bool> {
        remote!(self, "CreateTable", table.to_owned(), String::new(), [table], |store, _| store
            .create_table(&table))
    }

    async fn delete_table(&self, table: &str) -> Result<()> {
        remote!(self, "DeleteTable", table.to_owned(), String::new(), [table], |store, _| store
            .delete_table(&table))
    }

    async fn list_tables(&self, prefix: &str) -> Result<Vec<String>> {
        remote!(self, "ListTables", prefix.to_owned(), String::new(), [prefix], |store, _| store
            .list_tables(&prefix))
    }

    async fn get_entity(&self, table: &str, partition_key: &str, row_key: &str) -> Result<Option<Entity>> {
        let detail = self.detail(|| format!("{partition_key}/{row_key}"));
        remote!(self, "GetEntity", table.to_owned(), detail, [table, partition_key, row_key], |store, _| {
            store.get_entity(&table, &partition_key, &row_key)
        })
    }

    async fn execute(&self, table: &str, operation: TableOperation) -> Result<Option<ETag>> {
        let name = Operation::of(&operation).name;
        let detail = self.detail(|| about_row(&operation));
        if let Some(key) = repaired(table, &operation) {
            self.network.repairs(key);
        }
        let lease = self.lease_in(table, &operation);
        let until = Instant::now() + self.network.lease;
        let written = remote!(self, name, table.to_owned(), detail, [table, operation], |store, _| store
            .execute(&table, operation));
        if let Some((queue, may_receive)) = lease
            && written.is_ok()
        {
            self.process.learn_lease(&queue, may_receive.then_some(until));
        }
        written
    }

    async fn transaction(&self, table: &str, operations: &[TableOperation]) -> Result<Vec<Option<ETag>>> {
        let detail = self.detail(|| operations.iter().map(about_row).collect::<Vec<_>>().join("; "));
        let leases: Vec<_> = operations.iter().filter_map(|one| self.lease_in(table, one)).collect();
        let until = Instant::now() + self.network.lease;
        let (name, operations) = ("EntityGroupTransaction", operations.to_vec());
        let written = remote!(self, name, table.to_owned(), detail, [table, operations], |store, _| {
            store.transaction(&table, &operations)
        });
        for (queue, may_receive) in leases.into_iter().filter(|_| written.is_ok()) {
            self.process.learn_lease(&queue, may_receive.then_some(until));
        }
        written
    }

    async fn query(&self, table: &str, query: &TableQuery) -> Result<EntityPage> {
        let detail = self.detail(|| query.filter.clone().unwrap_or_default());
        let is_leases = table.ends_with("Partitions");
        let found =
            remote!(self, "QueryEntities", table.to_owned(), detail, [table, query], |store, _| store
                .query(&table, &query));
        if is_leases && let Ok(page) = &found {
            for row in page.entities.iter().filter(|row| may_receive(row, &self.process.worker_id)) {
                self.process.finds_lease(&row.row_key, Instant::now() + self.network.lease);
            }
        }
        found
    }
}

impl Link {
    /// The queue whose lease an operation writes, and whether the process may receive from it afterwards.
    fn lease_in(&self, table: &str, operation: &TableOperation) -> Option<(String, bool)> {
        match operation {
            TableOperation::Replace(row, _) if table.ends_with("Partitions") => {
                Some((row.row_key.clone(), may_receive(row, &self.process.worker_id)))
            }
            _ => None,
        }
    }
}

/// The key of an Instances row that is made from a history: every other write to one that has ended tells
/// the custom status.
fn repaired<'a>(table: &str, operation: &'a TableOperation) -> Option<&'a str> {
    let (row, is_new) = match operation {
        TableOperation::Merge(row, _) => (row, false),
        TableOperation::InsertOrMerge(row) => (row, true),
        _ => return None,
    };
    let is_repair = table.ends_with("Instances") && (is_new || row.str("CustomStatus").is_none());
    is_repair.then_some(row.partition_key.as_str())
}

/// Whether a partition row lets `worker` receive.
fn may_receive(row: &Entity, worker: &str) -> bool {
    let is_owner = row.str("CurrentOwner") == Some(worker) && row.str("NextOwner").is_none();
    is_owner && !matches!(row.get("IsDraining"), Some(Value::Bool(true)))
}

#[async_trait]
impl BlobStore for Link {
    async fn create_container(&self, container: &str) -> Result<bool> {
        remote!(self, "CreateContainer", container.to_owned(), String::new(), [container], |store, _| store
            .create_container(&container))
    }

    async fn delete_container(&self, container: &str, lease_id: Option<Uuid>) -> Result<()> {
        remote!(self, "DeleteContainer", container.to_owned(), String::new(), [container], |store, _| store
            .delete_container(&container, lease_id))
    }

    async fn list_containers(&self, prefix: &str) -> Result<Vec<String>> {
        remote!(self, "ListContainers", prefix.to_owned(), String::new(), [prefix], |store, _| store
            .list_containers(&prefix))
    }

    fn container_url(&self, container: &str) -> String {
        self.network.store.container_url(container)
    }

    async fn put_blob(&self, container: &str, blob: &str, content: Bytes, options: PutBlob) -> Result<ETag> {
        let resource = in_container(container, Some(blob));
        remote!(self, "PutBlob", resource, String::new(), [container, blob, content, options], |store, _| {
            store.put_blob(&container, &blob, content, options)
        })
    }

    async fn get_blob(&self, container: &str, blob: &str) -> Result<Option<Blob>> {
        let resource = in_container(container, Some(blob));
        remote!(self, "GetBlob", resource, String::new(), [container, blob], |store, _| store
            .get_blob(&container, &blob))
    }

    async fn blob_properties(&self, container: &str, blob: &str) -> Result<Option<BlobProperties>> {
        let resource = in_container(container, Some(blob));
        remote!(self, "GetBlobProperties", resource, String::new(), [container, blob], |store, _| store
            .blob_properties(&container, &blob))
    }

    async fn delete_blob(&self, container: &str, blob: &str, lease_id: Option<Uuid>) -> Result<()> {
        let resource = in_container(container, Some(blob));
        remote!(self, "DeleteBlob", resource, String::new(), [container, blob], |store, _| store
            .delete_blob(&container, &blob, lease_id))
    }

    async fn list_blobs(
        &self,
        container: &str,
        prefix: &str,
        continuation: Option<String>,
    ) -> Result<BlobPage> {
        let resource = container.to_owned();
        remote!(self, "ListBlobs", resource, String::new(), [container, prefix, continuation], |store, _| {
            store.list_blobs(&container, &prefix, continuation)
        })
    }

    async fn acquire_lease(
        &self,
        container: &str,
        blob: Option<&str>,
        lease_id: Uuid,
        duration: Duration,
    ) -> Result<()> {
        let (resource, blob) = (in_container(container, blob), blob.map(str::to_owned));
        let until = Instant::now() + self.network.lease;
        let done =
            remote!(self, "AcquireLease", resource.clone(), String::new(), [container, blob], |store, _| {
                store.acquire_lease(&container, blob.as_deref(), lease_id, duration)
            });
        done.inspect(|()| self.process.learn_blob_lease(&resource, lease_id, until))
    }

    async fn renew_lease(&self, container: &str, blob: Option<&str>, lease_id: Uuid) -> Result<()> {
        let (resource, blob) = (in_container(container, blob), blob.map(str::to_owned));
        let until = Instant::now() + self.network.lease;
        let done =
            remote!(self, "RenewLease", resource.clone(), String::new(), [container, blob], |store, _| store
                .renew_lease(&container, blob.as_deref(), lease_id));
        done.inspect(|()| self.process.learn_blob_lease(&resource, lease_id, until))
    }

    async fn change_lease(
        &self,
        container: &str,
        blob: Option<&str>,
        lease_id: Uuid,
        new_lease_id: Uuid,
    ) -> Result<()> {
        let (resource, blob) = (in_container(container, blob), blob.map(str::to_owned));
        let until = Instant::now() + self.network.lease;
        let done =
            remote!(self, "ChangeLease", resource.clone(), String::new(), [container, blob], |store, _| {
                store.change_lease(&container, blob.as_deref(), lease_id, new_lease_id)
            });
        done.inspect(|()| self.process.learn_blob_lease(&resource, new_lease_id, until))
    }

    async fn release_lease(&self, container: &str, blob: Option<&str>, lease_id: Uuid) -> Result<()> {
        let (resource, blob) = (in_container(container, blob), blob.map(str::to_owned));
        // From now on it must not receive; when the answer comes it may have a new lease.
        self.process.gives_up_blob_lease(&resource, lease_id);
        remote!(self, "ReleaseLease", resource.clone(), String::new(), [container, blob], |store, _| {
            store.release_lease(&container, blob.as_deref(), lease_id)
        })
    }

    async fn break_lease(&self, container: &str, blob: Option<&str>) -> Result<()> {
        let (resource, blob) = (in_container(container, blob), blob.map(str::to_owned));
        remote!(self, "BreakLease", resource, String::new(), [container, blob], |store, _| store
            .break_lease(&container, blob.as_deref()))
    }
}
