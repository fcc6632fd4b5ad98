//! `taskhub serve`, driven by the released client of Durable Functions for Node.js, unmodified.

use anyhow::Result;
use azurite_tests::serve::drive;
use tokio::process::Command;

fn manage(mode: &str) -> Command {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/durable-functions/manage.js");
    let mut command = Command::new("node");
    command.args([script, mode]);
    command
}

#[tokio::test]
async fn the_node_client_manages_instances_by_url_and_by_local_address() -> Result<()> {
    drive(vec![manage("urls"), manage("rpc")]).await
}
