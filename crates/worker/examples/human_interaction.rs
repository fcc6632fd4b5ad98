//! Human interaction: waits for somebody's decision, but not for ever.
//!
//! `cargo run -p taskhub-worker --example human_interaction`

#![allow(clippy::print_stdout)]

mod common;

use std::time::Duration;

use common::{Example, Outcome, describe};
use taskhub_client::Start;
use taskhub_worker::{ActivityContext, ActivityError, OrchestrationContext, OrchestratorError};

async fn approve(ctx: OrchestrationContext, amount: u32) -> Result<String, OrchestratorError> {
    let _: () = ctx.call_activity("AskManager", amount).await?;
    // An event that comes before anybody waits for it is kept.
    match ctx.wait_for_event_with_timeout("Decision", Duration::from_secs(1)).await? {
        Some(true) => Ok(format!("{amount} approved")),
        Some(false) => Ok(format!("{amount} refused")),
        None => Ok(ctx.call_activity("Escalate", amount).await?),
    }
}

async fn ask_manager(ctx: ActivityContext, amount: u32) -> Result<(), ActivityError> {
    println!("please decide about {amount} for {}", ctx.instance_id());
    Ok(())
}

async fn escalate(_: ActivityContext, amount: u32) -> Result<String, ActivityError> {
    Ok(format!("{amount} goes to the director"))
}

#[tokio::main]
async fn main() -> Outcome {
    let example = Example::start(|worker| {
        worker
            .orchestration("Approve", approve)
            .activity("AskManager", ask_manager)
            .activity("Escalate", escalate)
    })
    .await?;

    let decided = example.client.start(Start::new("Approve").input(&100)?).await?.instance_id;
    example.client.raise_event(&decided, "Decision", &true).await?;
    println!("{}", describe(&example.end_of(&decided).await?));

    let ignored = example.run(Start::new("Approve").input(&5000)?).await?;
    println!("{}", describe(&ignored));
    example.stop().await
}
