//! The embedded store: queues, tables and blobs in memory with the service's semantics.
//!
//! Time comes from the caller's clock and ids from counters, so that a run repeats exactly. Names and
//! limits are checked as the service does; answers carry its status and error codes. Every request lets
//! other tasks run once before it takes effect, so it can be cancelled before but not half-way.
//!
//! What the service does and this store does not: throttling, expiry of messages, refusing a name for some
//! seconds after its deletion, ending a page early (unless [`MemoryStore::set_page_limit`] says so).

mod blob;
mod filter;
mod inspect;
mod lease;
mod packed;
mod queue;
mod table;

pub use inspect::StoredMessage;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use taskhub_core::{Clock, Timestamp};
use uuid::Uuid;

use crate::StorageAccount;

/// Where the containers of an embedded store seem to be: the emulator's address.
const BASE_URL: &str = "http://127.0.0.1:10000/devstoreaccount1";

/// A storage account in memory. A clone is another handle to the same account.
#[derive(Debug, Clone)]
pub struct MemoryStore {
    clock: Arc<dyn Clock>,
    base_url: Arc<str>,
    state: Arc<State>,
}

/// Each service has a lock of its own, so that requests to different ones do not wait for each other.
#[derive(Debug, Default)]
struct State {
    /// Ids and versions are taken from here.
    counter: AtomicU64,
    queues: Mutex<BTreeMap<String, queue::Queue>>,
    tables: Mutex<Tables>,
    containers: Mutex<Containers>,
}

#[derive(Debug, Default)]
struct Tables {
    /// Time stamp of the last write to any table; the next one is later even if the clock stands still.
    last_write_at: Option<Timestamp>,
    /// Most rows that one page looks at, if fewer than the service's.
    page_limit: Option<usize>,
    /// By lower-case name.
    by_name: BTreeMap<String, table::Table>,
}

#[derive(Debug, Default)]
struct Containers {
    /// Most blobs that one page looks at, if fewer than the service's.
    page_limit: Option<usize>,
    by_name: BTreeMap<String, blob::Container>,
}

impl Tables {
    /// The time stamp of a write to a table, which is also its version.
    fn stamp(&mut self, now: Timestamp) -> Timestamp {
        let earliest = self.last_write_at.map_or(now, |last| Timestamp::from_ticks(last.ticks() + 1));
        let stamp = now.max(earliest);
        self.last_write_at = Some(stamp);
        stamp
    }
}

impl State {
    fn next(&self) -> u64 {
        self.counter.fetch_add(1, Ordering::Relaxed) + 1
    }
}

/// A GUID from the counter; `kind` tells apart what it names.
fn guid(kind: u16, count: u64) -> Uuid {
    uuid::Builder::from_random_bytes(((u128::from(kind) << 112) | u128::from(count)).to_be_bytes())
        .into_uuid()
}

fn lock<T>(state: &Mutex<T>) -> MutexGuard<'_, T> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

impl MemoryStore {
    /// An empty account.
    pub fn new(clock: Arc<dyn Clock>) -> Self {
        Self { clock, base_url: BASE_URL.into(), state: Arc::default() }
    }

    /// Puts another address before the names of containers; without a trailing slash.
    #[must_use]
    pub fn with_base_url(mut self, base_url: &str) -> Self {
        self.base_url = base_url.trim_end_matches('/').into();
        self
    }

    /// The three services.
    pub fn account(&self) -> StorageAccount {
        let store = Arc::new(self.clone());
        StorageAccount { queues: store.clone(), tables: store.clone(), blobs: store }
    }

    fn now(&self) -> Timestamp {
        self.clock.now()
    }

    fn queue_state(&self) -> MutexGuard<'_, BTreeMap<String, queue::Queue>> {
        lock(&self.state.queues)
    }

    fn table_state(&self) -> MutexGuard<'_, Tables> {
        lock(&self.state.tables)
    }

    fn container_state(&self) -> MutexGuard<'_, Containers> {
        lock(&self.state.containers)
    }

    /// Lets other tasks run if this one has had its share, then begins the request.
    async fn begin(&self) {
        tokio::task::coop::consume_budget().await;
    }
}
