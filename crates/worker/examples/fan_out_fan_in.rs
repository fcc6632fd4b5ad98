//! Fan-out, fan-in: many activities at once, then one result out of all of theirs.
//!
//! `cargo run -p taskhub-worker --example fan_out_fan_in`

#![allow(clippy::print_stdout)]

mod common;

use common::{Example, Outcome, describe};
use taskhub_client::Start;
use taskhub_worker::{
    ActivityContext, ActivityError, OrchestrationContext, OrchestratorError, Task, join_all,
};

/// A call begins when it is made, not when it is awaited.
async fn count_words(ctx: OrchestrationContext, texts: Vec<String>) -> Result<usize, OrchestratorError> {
    let calls: Vec<Task<usize>> = texts.iter().map(|text| ctx.call_activity("CountWords", text)).collect();
    let mut total = 0;
    for count in join_all(calls).await {
        total += count?;
    }
    Ok(total)
}

async fn count_words_of(_: ActivityContext, text: String) -> Result<usize, ActivityError> {
    Ok(text.split_whitespace().count())
}

#[tokio::main]
async fn main() -> Outcome {
    let example = Example::start(|worker| {
        worker.orchestration("CountAll", count_words).activity("CountWords", count_words_of)
    })
    .await?;
    let texts: Vec<String> = (1..=20).map(|n| "word ".repeat(n)).collect();
    let state = example.run(Start::new("CountAll").input(&texts)?).await?;
    println!("{}", describe(&state));
    example.stop().await
}
