//! What only the embedded store has: loading, inspection, short pages, runs that repeat.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use taskhub_core::{Clock, Timestamp};
use taskhub_storage::memory::{MemoryStore, StoredMessage};
use taskhub_storage::{Entity, PutBlob, TableOperation, TableQuery};

const MINUTE: Duration = Duration::from_secs(60);

/// A clock that is moved by hand.
#[derive(Debug)]
struct ManualClock(Mutex<Timestamp>);

impl Clock for ManualClock {
    fn now(&self) -> Timestamp {
        *self.0.lock().unwrap()
    }
}

impl ManualClock {
    fn advance(&self, by: Duration) {
        let mut now = self.0.lock().unwrap();
        *now = *now + by;
    }
}

fn store() -> (MemoryStore, Arc<ManualClock>) {
    let clock = Arc::new(ManualClock(Mutex::new(Timestamp::parse("2026-01-15T09:30:00.25Z").unwrap())));
    (MemoryStore::new(clock.clone()), clock)
}

#[tokio::test]
async fn a_loaded_message_keeps_its_history() {
    let (store, clock) = store();
    let loaded = StoredMessage {
        message_id: String::new(),
        text: "old".to_owned(),
        inserted_at: Timestamp::parse("2025-12-31T23:59:59Z").unwrap(),
        next_visible_at: clock.now() + MINUTE,
        dequeue_count: 7,
    };
    let id = store.load_message("queue", loaded.clone());
    assert_eq!(store.messages("queue"), [StoredMessage { message_id: id.clone(), ..loaded.clone() }]);
    let queues = store.account().queues;
    assert!(queues.get_messages("queue", 1, MINUTE).await.unwrap().is_empty());
    clock.advance(MINUTE);
    let received = queues.get_messages("queue", 1, MINUTE).await.unwrap().remove(0);
    assert_eq!((received.receipt.message_id, received.dequeue_count), (id, 8));
    assert_eq!(received.inserted_at, loaded.inserted_at);
    assert_eq!(store.messages("queue")[0].next_visible_at, clock.now() + MINUTE);
}

#[tokio::test]
async fn visibility_ends_exactly_at_its_time() {
    let (store, clock) = store();
    let queues = store.account().queues;
    queues.create_queue("queue").await.unwrap();
    queues.put_message("queue", "x", Duration::from_millis(1)).await.unwrap(); // rounded up to 1 s
    clock.advance(Duration::from_nanos(999_999_900));
    assert!(queues.peek_messages("queue", 1).await.unwrap().is_empty());
    clock.advance(Duration::from_nanos(100));
    assert_eq!(queues.peek_messages("queue", 1).await.unwrap().len(), 1);
}

#[tokio::test]
async fn everything_can_be_loaded_and_listed() {
    let (store, _) = store();
    store.load_entity("HubHistory", Entity::new("p", "r").with("A", 1));
    store.load_blob("hub-leases", "x/y", Bytes::from_static(b"z"));
    store.load_message(
        "hub-workitems",
        StoredMessage {
            message_id: "id".to_owned(),
            text: "t".to_owned(),
            inserted_at: Timestamp::MIN,
            next_visible_at: Timestamp::MIN,
            dequeue_count: 0,
        },
    );
    assert_eq!(store.queues(), ["hub-workitems"]);
    assert_eq!(store.tables(), ["HubHistory"]);
    assert_eq!(store.containers(), ["hub-leases"]);
    assert_eq!(store.entities("hubhistory")[0].get("A"), Some(&1.into()));
    let (name, blob) = store.blobs("hub-leases").remove(0);
    assert_eq!((name.as_str(), blob.content), ("x/y", Bytes::from_static(b"z")));
    let account = store.account();
    assert!(account.tables.get_entity("HubHistory", "p", "r").await.unwrap().is_some());
    assert_eq!(
        store.clone().with_base_url("https://h/x/").account().blobs.container_url("hub-leases"),
        "https://h/x/hub-leases"
    );
}

#[tokio::test]
async fn short_and_empty_pages_lead_to_the_same_rows() {
    let (store, _) = store();
    let account = store.account();
    for n in 0..9 {
        store.load_entity("table", Entity::new("p", format!("{n}")).with("N", n));
        store.load_blob("blobs", &format!("{n}"), Bytes::new());
    }
    store.set_page_limit(Some(2));
    let mut query = TableQuery { filter: Some("N ge 6".to_owned()), ..TableQuery::default() };
    let (mut found, mut pages) = (Vec::new(), 0);
    loop {
        let page = account.tables.query("table", &query).await.unwrap();
        assert!(page.entities.len() <= 2);
        pages += 1;
        found.extend(page.entities.into_iter().map(|entity| entity.row_key));
        query.continuation = page.continuation;
        if query.continuation.is_none() {
            break;
        }
    }
    assert_eq!((found, pages), (["6", "7", "8"].map(str::to_owned).to_vec(), 5));
    let page = account.blobs.list_blobs("blobs", "", None).await.unwrap();
    assert_eq!((page.blobs.len(), page.continuation.as_deref()), (2, Some("2")));
    query.continuation = Some("not a token".to_owned());
    account.tables.query("table", &query).await.unwrap_err();
}

#[tokio::test]
async fn keys_are_ordered_by_utf16_units() {
    let (store, _) = store();
    for key in ["\u{ff5e}", "\u{1f600}", "z"] {
        store.load_entity("table", Entity::new(key, ""));
    }
    let keys: Vec<_> = store.entities("table").into_iter().map(|entity| entity.partition_key).collect();
    assert_eq!(keys, ["z", "\u{1f600}", "\u{ff5e}"], "a surrogate pair comes before U+FF5E");
}

#[tokio::test]
async fn the_same_requests_give_the_same_ids_and_versions() {
    let run = async || {
        let (store, _) = store();
        let account = store.account();
        account.queues.create_queue("queue").await.unwrap();
        account.tables.create_table("table").await.unwrap();
        account.blobs.create_container("blobs").await.unwrap();
        let put = account.queues.put_message("queue", "x", Duration::ZERO).await.unwrap();
        let insert = TableOperation::InsertOrReplace(Entity::new("p", "r"));
        let first = account.tables.execute("table", insert.clone()).await.unwrap();
        let second = account.tables.execute("table", insert).await.unwrap();
        assert_ne!(first, second, "the clock stands still, the version does not");
        let blob = account.blobs.put_blob("blobs", "b", Bytes::new(), PutBlob::default()).await.unwrap();
        format!("{put:?} {first:?} {second:?} {blob:?}")
    };
    assert_eq!(run().await, run().await);
}
