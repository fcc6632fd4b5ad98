use std::sync::Arc;
use std::time::Duration;

use serde_json::value::RawValue;
use serde_json::{Value, json};
use taskhub_replay::{
    ActivityOptions, ApplicationError, OrchestrationContext, OrchestratorError, RetryPolicy,
    SubOrchestrationOptions, join_all,
};

use super::SampleOptions;
use crate::WorkerBuilder;

type Outcome<T> = Result<T, OrchestratorError>;

pub(super) fn register(builder: WorkerBuilder, options: &Arc<SampleOptions>) -> WorkerBuilder {
    let (for_approval, for_status) = (options.clone(), options.clone());
    builder
        .orchestration("HelloSequence", hello_sequence)
        .orchestration("FanOutFanIn", fan_out_fan_in)
        .orchestration("Timer", timer)
        .orchestration("Approval", move |ctx, seconds| approval(ctx, seconds, for_approval.clone()))
        .orchestration("Parent", parent)
        .orchestration("ParentNamedChild", parent_named_child)
        .orchestration("ParentOfFailing", parent_of_failing)
        .orchestration("FireAndForget", fire_and_forget)
        .orchestration("SendEventTo", send_event_to)
        .orchestration("Eternal", eternal)
        .orchestration("FailUnhandled", fail_unhandled)
        .orchestration("FailSelf", fail_self)
        .orchestration("FailHandled", fail_handled)
        .orchestration("Retry", retry)
        .orchestration("RetryOk", retry_ok)
        .orchestration("LargePayload", large_payload)
        .orchestration("EchoInput", echo_input)
        .orchestration("CustomStatus", move |ctx, ()| custom_status(ctx, for_status.clone()))
        .orchestration("SlowOne", slow_one)
        .orchestration("Loop", count_up)
        .orchestration("RewindMe", rewind_me)
        .orchestration("ParentRewind", parent_rewind)
        .orchestration_version("Versioned", "2.0", versioned)
}

async fn hello_sequence(ctx: OrchestrationContext, _: Value) -> Outcome<Vec<String>> {
    let mut answers = Vec::new();
    for city in ["Tokyo", "Seattle", "London"] {
        answers.push(ctx.call_activity("SayHello", city).await?);
    }
    Ok(answers)
}

async fn fan_out_fan_in(ctx: OrchestrationContext, count: Option<i64>) -> Outcome<i64> {
    let calls: Vec<_> = (0..count.unwrap_or(5)).map(|k| ctx.call_activity("Echo", k)).collect();
    let mut sum = 0;
    for answer in join_all(calls).await {
        let answer: i64 = answer?;
        sum += answer;
    }
    Ok(sum)
}

async fn timer(ctx: OrchestrationContext, seconds: Option<f64>) -> Outcome<&'static str> {
    ctx.sleep(duration(seconds.unwrap_or(2.0))).await;
    Ok("fired")
}

async fn approval(
    ctx: OrchestrationContext,
    seconds: Option<f64>,
    options: Arc<SampleOptions>,
) -> Outcome<String> {
    let _: String = ctx.call_activity("SayHello", "approver").await?;
    waiting(&ctx, &options, "ApprovalEvent");
    let timeout = duration(seconds.unwrap_or(3600.0));
    Ok(match ctx.wait_for_event_with_timeout("ApprovalEvent", timeout).await? {
        Some(event) => format!("approved:{}", raw(event)),
        None => "escalated".to_owned(),
    })
}

async fn parent(ctx: OrchestrationContext, _: Value) -> Outcome<Value> {
    Ok(ctx.call_sub_orchestration("HelloSequence", ()).await?)
}

async fn parent_named_child(ctx: OrchestrationContext, child: String) -> Outcome<Value> {
    Ok(ctx.call_sub_orchestration_with("HelloSequence", (), child_with_id(child)).await?)
}

async fn parent_of_failing(ctx: OrchestrationContext, _: Value) -> Outcome<String> {
    match ctx.call_sub_orchestration::<_, Value>("FailUnhandled", "x").await {
        Ok(_) => Ok("not caught".to_owned()),
        Err(failure) => Ok(format!("caught {failure}")),
    }
}

async fn fire_and_forget(ctx: OrchestrationContext, child: String) -> Outcome<String> {
    ctx.start_orchestration("HelloSequence", (), child_with_id(child))?;
    Ok(ctx.call_activity("SayHello", "parent").await?)
}

async fn send_event_to(ctx: OrchestrationContext, target: String) -> Outcome<String> {
    let text = format!("from {}", ctx.instance_id());
    ctx.send_event(target, "ApprovalEvent", &text)?;
    Ok(ctx.call_activity("SayHello", "sender").await?)
}

async fn eternal(ctx: OrchestrationContext, round: Option<i64>) -> Outcome<Option<&'static str>> {
    let round = round.unwrap_or(0);
    let _: String = ctx.call_activity("SayHello", format!("round {round}")).await?;
    if round < 3 {
        ctx.continue_as_new(round + 1)?;
        return Ok(None);
    }
    Ok(Some("rounds 3"))
}

async fn fail_unhandled(ctx: OrchestrationContext, input: Value) -> Outcome<Value> {
    Ok(ctx.call_activity("Boom", input).await?)
}

async fn fail_self(_: OrchestrationContext, _: Value) -> Outcome<()> {
    Err(ApplicationError::new("System.ArgumentException", "orchestrator says no").into())
}

async fn fail_handled(ctx: OrchestrationContext, _: Value) -> Outcome<String> {
    match ctx.call_activity::<_, Value>("Boom", "x").await {
        Ok(_) => Ok("not caught".to_owned()),
        Err(failure) => Ok(format!("caught {failure}")),
    }
}

async fn retry(ctx: OrchestrationContext, _: Value) -> Outcome<Value> {
    let policy = RetryPolicy::new(3, Duration::from_secs(1)).with_backoff_coefficient(2.0);
    let options = ActivityOptions { retry: Some(policy), ..ActivityOptions::default() };
    Ok(ctx.call_activity_with("Boom", "x", options).await?)
}

async fn retry_ok(ctx: OrchestrationContext, _: Value) -> Outcome<Value> {
    let policy = RetryPolicy::new(3, Duration::from_secs(1));
    let options = ActivityOptions { retry: Some(policy), ..ActivityOptions::default() };
    Ok(ctx.call_activity_with("BoomOnce", "x", options).await?)
}

async fn large_payload(ctx: OrchestrationContext, length: Option<u64>) -> Outcome<String> {
    let big: String = ctx.call_activity("Big", length.unwrap_or(100_000)).await?;
    Ok(ctx.call_activity("Echo", big).await?)
}

async fn echo_input(ctx: OrchestrationContext, input: Value) -> Outcome<Value> {
    Ok(ctx.call_activity("Echo", input).await?)
}

async fn custom_status(ctx: OrchestrationContext, options: Arc<SampleOptions>) -> Outcome<String> {
    ctx.set_custom_status(&json!({"step": 1}))?;
    let _: String = ctx.call_activity("SayHello", "one").await?;
    ctx.set_custom_status(&json!({"step": 2, "text": "é日本😀"}))?;
    waiting(&ctx, &options, "Go");
    Ok(raw(ctx.wait_for_event("Go").await?))
}

async fn slow_one(ctx: OrchestrationContext, millis: Option<u64>) -> Outcome<String> {
    Ok(ctx.call_activity("Slow", millis.unwrap_or(10_000)).await?)
}

async fn count_up(ctx: OrchestrationContext, count: Option<i64>) -> Outcome<i64> {
    let count = count.unwrap_or(50);
    for k in 0..count {
        let _: i64 = ctx.call_activity("Echo", k).await?;
    }
    Ok(count)
}

async fn rewind_me(ctx: OrchestrationContext, _: Value) -> Outcome<String> {
    let _: String = ctx.call_activity("SayHello", "before").await?;
    Ok(ctx.call_activity("BoomOnce", "x").await?)
}

async fn parent_rewind(ctx: OrchestrationContext, child: String) -> Outcome<Value> {
    Ok(ctx.call_sub_orchestration_with("RewindMe", (), child_with_id(child)).await?)
}

async fn versioned(ctx: OrchestrationContext, _: Value) -> Outcome<String> {
    let answer: String = ctx.call_activity("SayHello", "Versioned").await?;
    Ok(format!("v2:{answer}"))
}

fn child_with_id(id: String) -> SubOrchestrationOptions {
    SubOrchestrationOptions { instance_id: Some(id.into()), ..SubOrchestrationOptions::default() }
}

/// The JSON text of an event as it came; nothing for an event without payload.
fn raw(event: Option<Box<RawValue>>) -> String {
    event.map_or_else(String::new, |event| event.get().to_owned())
}

/// Reports a wait before it begins.
fn waiting(ctx: &OrchestrationContext, options: &SampleOptions, event: &str) {
    if let Some(on_wait) = options.on_wait.as_ref().filter(|_| !ctx.is_replaying()) {
        on_wait(event);
    }
}

/// Seconds, from zero up to what a duration can hold.
pub(super) fn duration(seconds: f64) -> Duration {
    Duration::try_from_secs_f64(seconds.max(0.0)).unwrap_or(Duration::MAX)
}
