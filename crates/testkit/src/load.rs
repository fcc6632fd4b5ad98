//! Recreates a dumped hub, under any name, in any account.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use taskhub_core::{Clock, TaskHubName, Timestamp};
use taskhub_storage::memory::{MemoryStore, StoredMessage};
use taskhub_storage::{Entity, PutBlob, StorageAccount, TableOperation, Value};

use crate::dump::{BlobDump, HubDump, MessageDump, MessageState, decode_base64_json, gzip};

/// How hidden messages come back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hidden {
    /// For as long as they had left when dumped.
    Keep,
    /// Those that somebody had received are visible at once, as if their visibility timeout had passed;
    /// those that were not due keep what they had left.
    Release,
    /// Everything is visible at once.
    Due,
}

/// Loads a hub into the store in memory, with the dequeue counts of its messages. Times of insertion
/// keep their distance from `now`. Leases are free.
///
/// # Errors
/// Those of the store: parts of the hub exist already.
pub async fn load(
    store: &MemoryStore,
    dump: &HubDump,
    hub: &TaskHubName,
    hidden: Hidden,
    now: Timestamp,
) -> Result<()> {
    let account = store.account();
    let names = Names::new(dump, hub, &account);
    load_rest(&account, dump, &names).await?;
    let captured_at = dump.taken_at();
    for queue in &dump.queues {
        for message in &queue.messages {
            store.load_message(
                &names.resource(&queue.name),
                StoredMessage {
                    message_id: String::new(),
                    text: names.in_message(&message.text),
                    inserted_at: now - captured_at.saturating_since(message.inserted_at),
                    next_visible_at: now + delay(message, hidden),
                    dequeue_count: message.dequeue_count,
                },
            );
        }
    }
    Ok(())
}

/// Loads a hub through the services of any account. Messages are new (dequeue count zero); those that
/// had been inserted in different seconds are so again. Leases are free.
///
/// # Errors
/// Those of the service; the dump lacks hidden messages.
pub async fn load_into(
    account: &StorageAccount,
    dump: &HubDump,
    hub: &TaskHubName,
    hidden: Hidden,
    clock: &dyn Clock,
) -> Result<()> {
    let names = Names::new(dump, hub, account);
    load_rest(account, dump, &names).await?;
    let mut messages: Vec<(String, &MessageDump)> = Vec::new();
    for queue in &dump.queues {
        ensure!(queue.unseen == 0, "the dump lacks hidden messages. queue=`{}`", queue.name);
        messages.extend(queue.messages.iter().map(|message| (names.resource(&queue.name), message)));
    }
    // Stable: within a second, the order of the dump is that of insertion.
    messages.sort_by_key(|(_, message)| message.inserted_at);
    let mut previous = None;
    for (queue, message) in messages {
        // Workers sort by the second of insertion and take messages of one second in any order.
        if previous.is_some_and(|previous| previous != message.inserted_at) {
            next_second(clock).await;
        }
        previous = Some(message.inserted_at);
        let text = names.in_message(&message.text);
        account.queues.put_message(&queue, &text, delay(message, hidden)).await?;
    }
    // A message sent by the caller next must not fall in the second of the last one.
    next_second(clock).await;
    Ok(())
}

async fn next_second(clock: &dyn Clock) {
    let now = clock.now();
    let rest = Duration::from_millis(1005) - now.saturating_since(now.truncated_to_second());
    tokio::time::sleep(rest).await;
}

fn delay(message: &MessageDump, hidden: Hidden) -> Duration {
    match (hidden, message.state) {
        (Hidden::Keep, _) | (Hidden::Release, MessageState::Scheduled) => message.hidden_for,
        _ => Duration::ZERO,
    }
}

/// Tables, queues without their messages, containers and blobs.
async fn load_rest(account: &StorageAccount, dump: &HubDump, names: &Names<'_>) -> Result<()> {
    for table in &dump.tables {
        let name = names.resource(&table.name);
        account.tables.create_table(&name).await?;
        let partitions = name.ends_with("Partitions");
        for row in &table.rows {
            let row = names.row(row, partitions);
            let keys = (row.partition_key.clone(), row.row_key.clone());
            account
                .tables
                .execute(&name, TableOperation::Insert(row))
                .await
                .with_context(|| format!("table {name}, row {keys:?}"))?;
        }
    }
    for queue in &dump.queues {
        account.queues.create_queue(&names.resource(&queue.name)).await?;
    }
    for container in &dump.containers {
        let name = names.resource(&container.name);
        account.blobs.create_container(&name).await?;
        for blob in &container.blobs {
            let content = names.content(blob);
            account.blobs.put_blob(&name, &names.path(&blob.name), content, PutBlob::default()).await?;
        }
    }
    Ok(())
}

/// The hub's name, wherever it is a name, and the addresses of its blobs.
struct Names<'a> {
    from: &'a str,
    to: &'a str,
    from_lower: String,
    to_lower: String,
    from_url: String,
    to_url: String,
}

impl<'a> Names<'a> {
    fn new(dump: &'a HubDump, hub: &'a TaskHubName, account: &StorageAccount) -> Self {
        let (from_lower, to_lower) = (dump.hub.to_ascii_lowercase(), hub.lower());
        Self {
            from: &dump.hub,
            to: hub.as_str(),
            from_url: format!("{}/{from_lower}-", dump.blob_endpoint),
            to_url: account.blobs.container_url(&format!("{to_lower}-")),
            from_lower,
            to_lower,
        }
    }

    /// A table (`HubHistory`), or a queue or container (`hub-leases`).
    fn resource(&self, name: &str) -> String {
        match name.get(..self.from.len()) {
            Some(head) if head.eq_ignore_ascii_case(self.from) => {
                let rest = &name[self.from.len()..];
                format!("{}{rest}", if rest.starts_with('-') { &self.to_lower } else { self.to })
            }
            _ => name.to_owned(),
        }
    }

    /// A blob or lease row named after a queue: `ownership/hub-control-00`.
    fn path(&self, name: &str) -> String {
        let renamed = name.split('/').map(|segment| match segment.strip_prefix(&self.from_lower) {
            Some(rest) if rest.starts_with('-') => format!("{}{rest}", self.to_lower),
            _ => segment.to_owned(),
        });
        renamed.collect::<Vec<_>>().join("/")
    }

    fn urls(&self, text: &str) -> String {
        text.replace(&self.from_url, &self.to_url)
    }

    /// A message, which is base64 when it is the 1.x provider's.
    fn in_message(&self, text: &str) -> String {
        match decode_base64_json(text) {
            Some(decoded) => BASE64.encode(self.urls(&decoded)),
            None => self.urls(text),
        }
    }

    fn row(&self, row: &Entity, partitions: bool) -> Entity {
        let key = if partitions { self.path(&row.row_key) } else { row.row_key.clone() };
        let mut renamed = Entity::new(row.partition_key.clone(), key);
        for (name, value) in &row.columns {
            let value = match value {
                Value::String(text) if name == "TaskHubName" && text == self.from => self.to.into(),
                Value::String(text) => self.urls(text).into(),
                other => other.clone(),
            };
            renamed.columns.insert(name.clone(), value);
        }
        renamed
    }

    fn content(&self, blob: &BlobDump) -> Bytes {
        let Some(text) = blob.text() else { return blob.content.clone() };
        let renamed = self
            .urls(&text)
            .replace(&format!("\"{}-", self.from_lower), &format!("\"{}-", self.to_lower))
            .replace(
                &format!("\"TaskHubName\":\"{}\"", self.from),
                &format!("\"TaskHubName\":\"{}\"", self.to),
            );
        if renamed == text {
            blob.content.clone()
        } else if blob.is_gzip() {
            gzip(renamed.as_bytes()).into()
        } else {
            renamed.into()
        }
    }
}
