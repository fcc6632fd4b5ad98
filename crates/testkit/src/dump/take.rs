use std::time::Duration;

use anyhow::Result;
use taskhub_core::{TaskHubName, Timestamp};
use taskhub_storage::memory::{MemoryStore, StoredMessage};
use taskhub_storage::{Entity, ErrorKind, QueueMessage, StorageAccount, TableQuery};

use super::{BlobDump, ContainerDump, HubDump, MessageDump, MessageState, QueueDump, TableDump};

/// The tables of a hub. They are asked for by name: another hub's name may begin with this one's.
const TABLES: [&str; 3] = ["History", "Instances", "Partitions"];

/// Takes a hub from the store in memory, with all messages.
///
/// # Errors
/// Those of the store.
pub async fn take(store: &MemoryStore, hub: &TaskHubName, now: Timestamp) -> Result<HubDump> {
    let account = store.account();
    let mut queues = Vec::new();
    for name in account.queues.list_queues(&format!("{}-", hub.lower())).await? {
        let messages = store.messages(&name).into_iter().map(|message| stored(message, now)).collect();
        queues.push(QueueDump { name, messages, unseen: 0 });
    }
    rest(&account, hub, Some(now), queues).await
}

/// Takes a hub from any account, with the messages the service shows: up to 32 visible ones per queue.
///
/// # Errors
/// Those of the service.
pub async fn take_visible(account: &StorageAccount, hub: &TaskHubName) -> Result<HubDump> {
    let mut queues = Vec::new();
    for name in account.queues.list_queues(&format!("{}-", hub.lower())).await? {
        let messages = account.queues.peek_messages(&name, 32).await?;
        let unseen = account.queues.message_count(&name).await?.saturating_sub(messages.len() as u64);
        queues.push(QueueDump { name, messages: messages.into_iter().map(peeked).collect(), unseen });
    }
    rest(account, hub, None, queues).await
}

fn stored(message: StoredMessage, now: Timestamp) -> MessageDump {
    let hidden_for = message.next_visible_at.saturating_since(now);
    MessageDump {
        text: message.text,
        inserted_at: message.inserted_at,
        hidden_for,
        dequeue_count: message.dequeue_count,
        state: match (hidden_for, message.dequeue_count) {
            (Duration::ZERO, _) => MessageState::Visible,
            (_, 0) => MessageState::Scheduled,
            _ => MessageState::Dequeued,
        },
    }
}

fn peeked(message: QueueMessage) -> MessageDump {
    MessageDump {
        text: message.text,
        inserted_at: message.inserted_at,
        hidden_for: Duration::ZERO,
        dequeue_count: message.dequeue_count,
        state: MessageState::Visible,
    }
}

async fn rest(
    account: &StorageAccount,
    hub: &TaskHubName,
    captured_at: Option<Timestamp>,
    queues: Vec<QueueDump>,
) -> Result<HubDump> {
    let mut tables = Vec::new();
    for suffix in TABLES {
        let name = format!("{hub}{suffix}");
        if let Some(rows) = rows(account, &name).await? {
            tables.push(TableDump { name, rows });
        }
    }
    let mut containers = Vec::new();
    for name in account.blobs.list_containers(&format!("{}-", hub.lower())).await? {
        containers.push(ContainerDump { blobs: blobs(account, &name).await?, name });
    }
    let url = account.blobs.container_url("c");
    let blob_endpoint = url.strip_suffix("/c").unwrap_or(&url).to_owned();
    Ok(HubDump { hub: hub.as_str().to_owned(), captured_at, blob_endpoint, tables, queues, containers })
}

/// All rows of a table; `None` when there is no such table.
async fn rows(account: &StorageAccount, table: &str) -> Result<Option<Vec<Entity>>> {
    let mut rows = Vec::new();
    let mut query = TableQuery::default();
    loop {
        let page = match account.tables.query(table, &query).await {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            page => page?,
        };
        rows.extend(page.entities);
        query.continuation = page.continuation;
        if query.continuation.is_none() {
            return Ok(Some(rows));
        }
    }
}

async fn blobs(account: &StorageAccount, container: &str) -> Result<Vec<BlobDump>> {
    let mut found = Vec::new();
    let mut continuation = None;
    loop {
        let page = account.blobs.list_blobs(container, "", continuation).await?;
        for item in page.blobs {
            // One that was deleted since is not part of the hub.
            if let Some(blob) = account.blobs.get_blob(container, &item.name).await? {
                found.push(BlobDump { name: item.name, content: blob.content, lease: blob.properties.lease });
            }
        }
        continuation = page.continuation;
        if continuation.is_none() {
            return Ok(found);
        }
    }
}
