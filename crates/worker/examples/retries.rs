//! Errors and retries: policies with durable timers, errors with types, and giving up.
//!
//! `cargo run -p taskhub-worker --example retries`

#![allow(clippy::print_stdout)]

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use common::{Example, Outcome, describe};
use taskhub_client::Start;
use taskhub_worker::{
    ActivityContext, ActivityError, ActivityOptions, ApplicationError, ErrorPropagationMode,
    OrchestrationContext, OrchestratorError, RetryPolicy, WorkerSettings,
};

async fn transfer(ctx: OrchestrationContext, account: String) -> Result<String, OrchestratorError> {
    let policy = RetryPolicy::new(5, Duration::from_millis(100))
        .with_backoff_coefficient(2.0)
        .with_max_interval(Duration::from_secs(1))
        .with_handle(|failure| !failure.is_caused_by("Bank.AccountClosed"));
    let options = ActivityOptions { retry: Some(policy), ..ActivityOptions::default() };
    match ctx.call_activity_with::<_, u32>("Pay", &account, options).await {
        Ok(receipt) => Ok(format!("receipt {receipt}")),
        // Compensation: what had been done is undone.
        Err(failure) if failure.is_caused_by("Bank.AccountClosed") => {
            let _: () = ctx.call_activity("Refund", &account).await?;
            Ok(format!("refunded, because {failure}"))
        }
        // Anything else fails the orchestration.
        Err(failure) => Err(failure.into()),
    }
}

async fn refund(_: ActivityContext, account: String) -> Result<(), ActivityError> {
    println!("refunding {account}");
    Ok(())
}

#[tokio::main]
async fn main() -> Outcome {
    let calls = Arc::new(AtomicU32::new(0));
    let pay = move |_: ActivityContext, account: String| {
        let call = calls.fetch_add(1, Ordering::Relaxed) + 1;
        async move {
            println!("call {call} for {account}");
            match (account.as_str(), call) {
                ("closed", _) => {
                    Err(ApplicationError::new("Bank.AccountClosed", "the account is closed").into())
                }
                (_, 1 | 2) => Err(ActivityError::from("the bank does not answer")),
                _ => Ok(call),
            }
        }
    };
    // Failure details carry the type of an error; by default only its message travels.
    let settings = WorkerSettings {
        error_propagation_mode: ErrorPropagationMode::UseFailureDetails,
        ..WorkerSettings::default()
    };
    let example = Example::start(|worker| {
        worker
            .settings(settings)
            .orchestration("Transfer", transfer)
            .activity("Pay", pay)
            .activity("Refund", refund)
    })
    .await?;
    for account in ["open", "closed"] {
        let state = example.run(Start::new("Transfer").input(account)?).await?;
        println!("{}", describe(&state));
    }
    example.stop().await
}
