//! `taskhub serve`, driven by the released client of Durable Functions for Python, unmodified. Built and run by
//! `scripts/test-python.sh` only, which installs it.

use anyhow::{Context, Result};
use azurite_tests::serve::drive;
use tokio::process::Command;

/// Environment variable with the Python interpreter that has the client.
const PYTHON: &str = "TASKHUB_TEST_PYTHON";

#[tokio::test]
async fn the_python_client_manages_instances_by_local_address() -> Result<()> {
    let mut command = Command::new(std::env::var(PYTHON).context("run scripts/test-python.sh")?);
    command.arg(concat!(env!("CARGO_MANIFEST_DIR"), "/python/manage.py"));
    drive(vec![command]).await
}
