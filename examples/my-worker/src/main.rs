//! A worker with its functions in [`order`]. The environment says the rest; README.md has the table.

mod order;

use anyhow::Result;
use taskhub::TaskHub;

#[tokio::main]
async fn main() -> Result<()> {
    // `my-worker healthcheck` is what the HEALTHCHECK of the image runs.
    if std::env::args().nth(1).as_deref() == Some("healthcheck") {
        return Ok(taskhub::healthcheck().await?);
    }
    taskhub::start_logging("info");
    let hub = TaskHub::from_env()?;
    let worker = order::register(hub.worker()).build()?;
    // Until Ctrl-C or SIGTERM; then what runs is finished and the rest given back.
    Ok(hub.run(worker).await?)
}
