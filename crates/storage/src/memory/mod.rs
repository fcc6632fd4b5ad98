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
mod queue;
mod table;

pub use inspect::StoredMessage;

use std::collections::BTreeMap;
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
    state: Arc<Mutex<State>>,
}

#[derive(Debug, Default)]
struct State {
    /// Ids and versions are taken from here.
    counter: u64,
    /// Time stamp of the last write to any table; the next one is later even if the clock stands still.
    last_write_at: Option<Timestamp>,
    /// Most rows or blobs that one page looks at, if fewer than the service's.
    page_limit: Option<usize>,
    queues: BTreeMap<String, queue::Queue>,
    /// By lower-case name.
    tables: BTreeMap<String, table::Table>,
    containers: BTreeMap<String, blob::Container>,
}

impl State {
    fn next(&mut self) -> u64 {
        self.counter += 1;
        self.counter
    }

    /// The time stamp of a write to a table, which is also its version.
    fn stamp(&mut self, now: Timestamp) -> Timestamp {
        let earliest = self.last_write_at.map_or(now, |last| Timestamp::from_ticks(last.ticks() + 1));
        let stamp = now.max(earliest);
        self.last_write_at = Some(stamp);
        stamp
    }

    /// A GUID from the counter; `kind` tells apart what it names.
    fn next_guid(&mut self, kind: u16) -> Uuid {
        let count = self.next();
        uuid::Builder::from_random_bytes(((u128::from(kind) << 112) | u128::from(count)).to_be_bytes())
            .into_uuid()
    }
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

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets other tasks run, then begins the request.
    async fn begin(&self) {
        tokio::task::yield_now().await;
    }
}
