//! Function chaining: one activity after the other, each with the result of the one before.
//!
//! `cargo run -p taskhub-worker --example chaining`

#![allow(clippy::print_stdout)]

mod common;

use common::{Example, Outcome, describe};
use taskhub_client::Start;
use taskhub_worker::{ActivityContext, ActivityError, OrchestrationContext, OrchestratorError};

/// Everything an orchestrator awaits comes from its context. When a step has ended the code runs again
/// from the start, and the calls of earlier steps return what the history says.
async fn publish(ctx: OrchestrationContext, title: String) -> Result<String, OrchestratorError> {
    let draft: String = ctx.call_activity("Write", title).await?;
    let edited: String = ctx.call_activity("Edit", draft).await?;
    let address: String = ctx.call_activity("Upload", edited).await?;
    Ok(address)
}

/// Activities do the work. They run at least once: after a crash, an activity may run again.
async fn write(_: ActivityContext, title: String) -> Result<String, ActivityError> {
    Ok(format!("{title}: it was a dark and stormy night"))
}

async fn edit(_: ActivityContext, draft: String) -> Result<String, ActivityError> {
    Ok(draft.replace("dark and stormy", "quiet"))
}

async fn upload(ctx: ActivityContext, text: String) -> Result<String, ActivityError> {
    println!("uploading {text:?}, attempt {}", ctx.attempt());
    Ok(format!("https://example.com/{}", text.len()))
}

#[tokio::main]
async fn main() -> Outcome {
    let example = Example::start(|worker| {
        worker
            .orchestration("Publish", publish)
            .activity("Write", write)
            .activity("Edit", edit)
            .activity("Upload", upload)
    })
    .await?;
    let state = example.run(Start::new("Publish").input("Hello")?).await?;
    println!("{}", describe(&state));
    example.stop().await
}
