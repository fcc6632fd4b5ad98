//! Versions side by side, and tags: instances run the version they were started with.
//!
//! `cargo run -p taskhub-worker --example versions_and_tags`

#![allow(clippy::print_stdout)]

mod common;

use common::{Example, Outcome, describe};
use taskhub_client::Start;
use taskhub_worker::{ActivityContext, ActivityError, OrchestrationContext, OrchestratorError};

/// Instances that were started before version 2.0 existed go on with this one: their history fits it.
async fn price_v1(ctx: OrchestrationContext, amount: f64) -> Result<f64, OrchestratorError> {
    Ok(ctx.call_activity("AddTax", amount).await?)
}

async fn price_v2(ctx: OrchestrationContext, amount: f64) -> Result<f64, OrchestratorError> {
    let discounted: f64 = ctx.call_activity("Discount", amount).await?;
    let price = ctx.call_activity("AddTax", discounted).await?;
    Ok(price)
}

async fn add_tax(ctx: ActivityContext, amount: f64) -> Result<f64, ActivityError> {
    // Tags of the orchestration reach its activities and sub-orchestrations.
    let country = ctx.orchestration_tags().and_then(|tags| tags.get("country")).unwrap_or("nowhere");
    println!("tax of {country}");
    Ok(amount * if country == "CH" { 1.081 } else { 1.19 })
}

async fn discount(_: ActivityContext, amount: f64) -> Result<f64, ActivityError> {
    Ok(amount * 0.9)
}

#[tokio::main]
async fn main() -> Outcome {
    let example = Example::start(|worker| {
        worker
            .orchestration("Price", price_v1)
            .orchestration_version("Price", "2.0", price_v2)
            .activity("AddTax", add_tax)
            .activity("Discount", discount)
    })
    .await?;
    let old = example.run(Start::new("Price").input(&100.0)?.tag("country", "DE")).await?;
    println!("{}", describe(&old));
    let new = example.run(Start::new("Price").version("2.0").input(&100.0)?.tag("country", "CH")).await?;
    println!("{} (version {})", describe(&new), new.version.as_deref().unwrap_or("none"));
    example.stop().await
}
