//! An eternal orchestration: continues as new, so that its history does not grow, until it is told to end.
//!
//! `cargo run -p taskhub-worker --example eternal`

#![allow(clippy::print_stdout)]

mod common;

use std::time::Duration;

use common::{Example, Outcome, describe};
use taskhub_client::Start;
use taskhub_worker::{
    ActivityContext, ActivityError, Either, OrchestrationContext, OrchestratorError, select,
};

/// The input is the state. Events that arrive while one generation ends are handed to the next.
async fn clean_up(ctx: OrchestrationContext, rounds: Option<u32>) -> Result<Option<u32>, OrchestratorError> {
    let rounds = rounds.unwrap_or(0) + 1;
    let _: () = ctx.call_activity("RemoveOldFiles", rounds).await?;
    let stop = ctx.wait_for_event::<()>("Stop");
    match select(stop, ctx.sleep(Duration::from_millis(300))).await {
        Either::Left(_) => Ok(Some(rounds)),
        Either::Right(()) => {
            ctx.continue_as_new(rounds)?;
            Ok(None)
        }
    }
}

async fn remove_old_files(_: ActivityContext, round: u32) -> Result<(), ActivityError> {
    println!("round {round}");
    Ok(())
}

#[tokio::main]
async fn main() -> Outcome {
    let example = Example::start(|worker| {
        worker.orchestration("CleanUp", clean_up).activity("RemoveOldFiles", remove_old_files)
    })
    .await?;
    let cleaner = example.client.start(Start::new("CleanUp").instance_id("cleaner")).await?.instance_id;
    tokio::time::sleep(Duration::from_secs(4)).await;
    example.client.raise_event(&cleaner, "Stop", &()).await?;
    println!("{}", describe(&example.end_of(&cleaner).await?));
    example.stop().await
}
