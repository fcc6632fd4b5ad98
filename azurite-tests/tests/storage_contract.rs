//! The storage contract on the emulator, whose connection string is in `TASKHUB_TEST_CONNECTION`.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use taskhub_core::{IdSource, RandomIds};
use taskhub_storage::StorageAccount;
use taskhub_storage::azure::{AzureOptions, AzureStore};
use taskhub_storage::connection::ConnectionSettings;

async fn setup() -> (StorageAccount, String) {
    let text = std::env::var("TASKHUB_TEST_CONNECTION").expect("TASKHUB_TEST_CONNECTION is not set");
    let settings = ConnectionSettings::parse(&text).unwrap();
    let account = AzureStore::connect(&settings, &AzureOptions::default()).unwrap();
    let id = RandomIds.guid().simple().to_string();
    (account, format!("t{}", &id[..12]))
}

taskhub_testkit::storage_contract!([tokio::test], setup);
