//! A monitor: looks again and again until a condition holds or time is up, on durable timers. Between two
//! looks nothing of it is in memory.
//!
//! `cargo run -p taskhub-worker --example monitor`

#![allow(clippy::print_stdout)]

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use common::{Example, Outcome, describe};
use taskhub_client::Start;
use taskhub_worker::{ActivityContext, ActivityError, OrchestrationContext, OrchestratorError};

async fn wait_for_job(ctx: OrchestrationContext, job: String) -> Result<String, OrchestratorError> {
    // The clock of an orchestrator is the start of its episode: the same in every replay.
    let deadline = ctx.now() + Duration::from_secs(30);
    let mut interval = Duration::from_millis(200);
    while ctx.now() < deadline {
        let progress: u32 = ctx.call_activity("Progress", &job).await?;
        // Clients see the custom status while the orchestration runs.
        ctx.set_custom_status(&progress)?;
        if progress >= 100 {
            return Ok(format!("{job} is done"));
        }
        ctx.sleep(interval).await;
        interval = (interval * 2).min(Duration::from_secs(2));
    }
    Ok(format!("{job} is late"))
}

#[tokio::main]
async fn main() -> Outcome {
    let progress = Arc::new(AtomicU32::new(0));
    let look = move |_: ActivityContext, job: String| {
        let progress = progress.fetch_add(40, Ordering::Relaxed) + 40;
        async move {
            println!("{job}: {progress} %");
            Ok::<u32, ActivityError>(progress)
        }
    };
    let example =
        Example::start(|worker| worker.orchestration("WaitForJob", wait_for_job).activity("Progress", look))
            .await?;
    let state = example.run(Start::new("WaitForJob").input("job 7")?).await?;
    println!("{}", describe(&state));
    example.stop().await
}
