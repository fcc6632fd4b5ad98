//! What the tests against the emulator share: where it is, and a hub of their own for each of them.
//!
//! `scripts/azurite.sh run -- cargo test -p azurite-tests` starts the emulator and runs them.

use taskhub_core::{IdSource, RandomIds, TaskHubName};

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

/// A hub name that no other test has, so that tests run side by side and on an account in use: `Test` and
/// 20 hex digits.
pub fn unique_hub_name() -> TaskHubName {
    let id = RandomIds.guid().simple().to_string();
    TaskHubName::new(format!("Test{}", &id[..20])).expect("letters and digits, 24 in all")
}
