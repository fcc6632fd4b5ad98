//! The storage contract on the embedded store, with and without the request layer.

use std::sync::Arc;

use taskhub_storage::StorageAccount;
use taskhub_storage::memory::MemoryStore;
use taskhub_storage::request::{OperationCounts, RequestSettings};
use taskhub_testkit::VirtualClock;

fn prefix() -> String {
    "hub1".to_owned() // every test has its own store
}

mod plain {
    use super::*;

    async fn setup() -> (StorageAccount, String) {
        (MemoryStore::new(Arc::new(VirtualClock::default())).account(), prefix())
    }

    taskhub_testkit::storage_contract!([tokio::test(start_paused = true)], setup);
    taskhub_testkit::strict_storage_contract!([tokio::test(start_paused = true)], setup);
}

mod layered {
    use super::*;

    async fn setup() -> (StorageAccount, String) {
        let account = MemoryStore::new(Arc::new(VirtualClock::default())).account();
        (account.layered(RequestSettings::default(), &OperationCounts::default()), prefix())
    }

    taskhub_testkit::storage_contract!([tokio::test(start_paused = true)], setup);
}
