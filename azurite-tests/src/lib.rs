//! What the tests against the emulator share: where it is, and a hub of their own for each of them.
//!
//! `scripts/azurite.sh run -- cargo test -p azurite-tests` starts the emulator and runs them.

pub mod process;
pub mod serve;

use std::sync::Arc;

use anyhow::Result;
use taskhub_core::{IdSource, RandomIds, SystemClock, TaskHubName};
use taskhub_storage::StorageAccount;
use taskhub_storage::azure::{AzureOptions, AzureStore};
use taskhub_storage::connection::ConnectionSettings;
use taskhub_testkit::TestHub;

/// Name of the environment variable that holds the emulator's connection string.
pub const CONNECTION_VARIABLE: &str = "TASKHUB_TEST_CONNECTION";

/// The connection string of the emulator.
///
/// # Panics
/// When there is no emulator: the tests fail, they are never skipped.
pub fn connection() -> String {
    std::env::var(CONNECTION_VARIABLE).unwrap_or_else(|_| {
        panic!(
            "{CONNECTION_VARIABLE} is not set: run the tests with \
             `scripts/azurite.sh run -- cargo test -p azurite-tests`"
        )
    })
}

/// The emulator's account.
///
/// # Errors
/// The connection string cannot be understood.
pub fn account() -> Result<StorageAccount> {
    Ok(AzureStore::connect(&ConnectionSettings::parse(&connection())?, &AzureOptions::default())?)
}

/// A hub name that no other test has, so that tests run side by side and on an account in use: `Test` and
/// 20 hex digits.
pub fn unique_hub_name() -> TaskHubName {
    let id = RandomIds.guid().simple().to_string();
    TaskHubName::new(format!("Test{}", &id[..20])).expect("letters and digits, 24 in all")
}

/// Gives `test` a hub of its own, which does not exist yet, and deletes it afterwards. That of a test that
/// failed stays, to be looked at.
///
/// # Errors
/// Those of the test; the hub could not be deleted.
pub async fn on_a_hub(test: impl AsyncFnOnce(&TestHub) -> Result<()>) -> Result<()> {
    let hub = TestHub::in_account(&unique_hub_name(), account()?, Arc::new(SystemClock), Arc::new(RandomIds));
    test(&hub).await?;
    Ok(hub.delete().await?)
}
