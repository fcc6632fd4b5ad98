//! Loading and inspecting an account without going through the services.

use taskhub_core::Timestamp;

use super::MemoryStore;
use super::table::Table;
use crate::{Blob, Entity};

/// A message as it lies in a queue, hidden or not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredMessage {
    /// Its id; empty when it is to be loaded.
    pub message_id: String,
    /// Its text.
    pub text: String,
    /// When it was stored; the service says whole seconds.
    pub inserted_at: Timestamp,
    /// When it becomes visible, or became.
    pub next_visible_at: Timestamp,
    /// How often it has been received.
    pub dequeue_count: u32,
}

impl MemoryStore {
    /// Names of all queues, in order.
    pub fn queues(&self) -> Vec<String> {
        self.queue_state().keys().cloned().collect()
    }

    /// Names of all tables, in order, in the case they were created with.
    pub fn tables(&self) -> Vec<String> {
        self.table_state().by_name.values().map(|table| table.name.clone()).collect()
    }

    /// Names of all containers, in order.
    pub fn containers(&self) -> Vec<String> {
        self.container_state().by_name.keys().cloned().collect()
    }

    /// All messages of a queue in order of insertion, hidden ones too; none when it does not exist.
    pub fn messages(&self, queue: &str) -> Vec<StoredMessage> {
        let queues = self.queue_state();
        let messages = queues.get(queue).into_iter().flat_map(|queue| queue.messages.values());
        messages
            .map(|message| StoredMessage {
                message_id: message.id.clone(),
                text: message.text.clone(),
                inserted_at: message.inserted_at,
                next_visible_at: message.next_visible_at,
                dequeue_count: message.dequeue_count,
            })
            .collect()
    }

    /// Puts a message with all its properties at the end of a queue, which is created when it does not
    /// exist. An empty id is replaced by a new one; the id is returned. Nobody holds a receipt.
    pub fn load_message(&self, queue: &str, loaded: StoredMessage) -> String {
        let now = self.now();
        let mut queues = self.queue_state();
        let (sequence, mut message) = self.state.new_message(loaded.text, now);
        if !loaded.message_id.is_empty() {
            message.id = loaded.message_id;
        }
        message.inserted_at = loaded.inserted_at;
        message.next_visible_at = loaded.next_visible_at;
        message.dequeue_count = loaded.dequeue_count;
        let id = message.id.clone();
        queues.entry(queue.to_owned()).or_default().insert(sequence, message);
        id
    }

    /// All rows of a table in key order; none when it does not exist.
    pub fn entities(&self, table: &str) -> Vec<Entity> {
        let state = self.table_state();
        let table = state.by_name.get(&table.to_ascii_lowercase());
        table.into_iter().flat_map(Table::entities).collect()
    }

    /// Puts a row in place of whatever there is, without checks; the table is created when it does not
    /// exist. Its time stamp is kept if it has one, its version is new.
    pub fn load_entity(&self, table: &str, entity: Entity) {
        let now = self.now();
        let mut state = self.table_state();
        let stamp = state.stamp(now);
        state
            .by_name
            .entry(table.to_ascii_lowercase())
            .or_insert_with(|| Table::new(table))
            .load(entity, stamp);
    }

    /// Names and contents of the blobs of a container, in order; none when it does not exist.
    pub fn blobs(&self, container: &str) -> Vec<(String, Blob)> {
        let now = self.now();
        self.container_state().by_name.get(container).map(|found| found.blobs(now)).unwrap_or_default()
    }

    /// Puts a blob in place of whatever there is, without checks; the container is created when it does
    /// not exist.
    pub fn load_blob(&self, container: &str, blob: &str, content: impl Into<bytes::Bytes>) {
        let now = self.now();
        let mut state = self.container_state();
        let version = self.state.next();
        let loaded = state.by_name.entry(container.to_owned()).or_default();
        loaded.load(blob, content.into(), version, now);
    }

    /// Makes every page of a query or list look at no more than `limit` rows or blobs, so that pages are
    /// short or empty while there is more, as those of the service may be. `None` ends that.
    pub fn set_page_limit(&self, limit: Option<usize>) {
        let limit = limit.map(|limit| limit.max(1));
        self.table_state().page_limit = limit;
        self.container_state().page_limit = limit;
    }
}
