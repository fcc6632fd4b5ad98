//! Sub-orchestrations: an orchestration made of others, each with a history of its own.
//!
//! `cargo run -p taskhub-worker --example sub_orchestrations`

#![allow(clippy::print_stdout)]

mod common;

use common::{Example, Outcome, describe};
use taskhub_client::Start;
use taskhub_worker::{
    ActivityContext, ActivityError, OrchestrationContext, OrchestratorError, SubOrchestrationOptions, Task,
    join_all,
};

async fn set_up_fleet(
    ctx: OrchestrationContext,
    devices: Vec<String>,
) -> Result<Vec<String>, OrchestratorError> {
    let mut children: Vec<Task<String>> = Vec::new();
    for device in &devices {
        // Without an id the child gets one made from its parent's execution.
        let instance_id = Some(format!("device-{device}").into());
        let options = SubOrchestrationOptions { instance_id, ..SubOrchestrationOptions::default() };
        children.push(ctx.call_sub_orchestration_with("SetUpDevice", device, options));
    }
    let mut results = Vec::new();
    for (device, result) in devices.iter().zip(join_all(children).await) {
        // A child that fails is an error here, not the end of the parent.
        results.push(result.unwrap_or_else(|failure| format!("{device} failed: {failure}")));
    }
    // Nobody waits for this one.
    ctx.start_orchestration("SetUpDevice", "spare", SubOrchestrationOptions::default())?;
    Ok(results)
}

async fn set_up_device(ctx: OrchestrationContext, device: String) -> Result<String, OrchestratorError> {
    let address: u8 = ctx.call_activity("FindAddress", &device).await?;
    Ok(format!("{device} at 10.0.0.{address}"))
}

async fn find_address(_: ActivityContext, device: String) -> Result<u8, ActivityError> {
    match device.as_str() {
        "toaster" => Err("no network card".into()),
        other => Ok(u8::try_from(other.len())?),
    }
}

#[tokio::main]
async fn main() -> Outcome {
    let example = Example::start(|worker| {
        worker
            .orchestration("SetUpFleet", set_up_fleet)
            .orchestration("SetUpDevice", set_up_device)
            .activity("FindAddress", find_address)
    })
    .await?;
    let state = example.run(Start::new("SetUpFleet").input(&["lamp", "toaster", "door"])?).await?;
    println!("{}", describe(&state));
    println!("{}", describe(&example.end_of(&"device-lamp".into()).await?));
    example.stop().await
}
