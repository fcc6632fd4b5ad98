//! What the .NET SDKs decide in corners that captured histories do not show, event by event.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::sync::Arc;
use std::time::Duration;

use taskhub_core::*;
use taskhub_replay::*;

const DAY: u64 = 86_400;

type Output = Result<Option<String>, OrchestratorError>;

fn at(seconds: u64) -> Timestamp {
    Timestamp::from_ticks(638_000_000_000_000_000) + Duration::from_secs(seconds)
}

fn mark(seconds: u64) -> HistoryEvent {
    HistoryEvent::message(at(seconds), EventKind::OrchestratorStarted)
}

fn message(kind: EventKind) -> HistoryEvent {
    HistoryEvent::message(at(0), kind)
}

fn start() -> HistoryEvent {
    message(EventKind::ExecutionStarted(Box::new(ExecutionStarted {
        instance: OrchestrationInstance::new("abc123", "e1"),
        parent: None,
        name: "O".into(),
        version: None,
        input: None,
        tags: None,
        correlation: None,
        parent_trace_context: None,
        scheduled_start_time: None,
        generation: None,
        generate_new_trace: false,
    })))
}

fn fired(timer_id: i32) -> HistoryEvent {
    message(EventKind::TimerFired { timer_id, fire_at: at(0) })
}

fn timer_created(id: i32, seconds: u64) -> HistoryEvent {
    HistoryEvent::decision(id, at(0), EventKind::TimerCreated { fire_at: at(seconds) })
}

fn done(task_scheduled_id: i32) -> HistoryEvent {
    message(EventKind::TaskCompleted { task_scheduled_id, result: Some("1".into()) })
}

fn raised(name: &str, json: &str) -> HistoryEvent {
    message(EventKind::EventRaised {
        name: Some(name.into()),
        input: Some(json.into()),
        parent_trace_context: None,
    })
}

fn run<F, R>(settings: ReplaySettings, body: F) -> Execution
where
    F: Fn(OrchestrationContext) -> R + Send + Sync + 'static,
    R: Future<Output = Output> + Send + 'static,
{
    Execution::new(Arc::new(raw_orchestrator(body)), settings)
}

fn in_process<F, R>(body: F) -> Execution
where
    F: Fn(OrchestrationContext) -> R + Send + Sync + 'static,
    R: Future<Output = Output> + Send + 'static,
{
    run(ReplaySettings::default(), body)
}

/// Actions in short: `0 task A`.
fn short(result: &EpisodeResult) -> Vec<String> {
    let kind = |kind: &ActionKind| match kind {
        ActionKind::CreateTimer { fire_at } => {
            format!("timer {}d", fire_at.saturating_since(at(0)).as_secs_f64() / DAY as f64)
        }
        ActionKind::ScheduleTask { name, .. } => format!("task {name}"),
        ActionKind::CreateSubOrchestration { name, instance_id, .. } => {
            format!("child {name} '{instance_id}'")
        }
        ActionKind::SendEvent { name, target, .. } => format!("send {name} '{}'", target.instance_id),
        ActionKind::Complete(c) => format!("{} {}", c.status, c.result.as_deref().unwrap_or("-")),
    };
    result.actions.iter().map(|action| format!("{} {}", action.id, kind(&action.kind))).collect()
}

async fn sleep_then_call(ctx: OrchestrationContext, days: u64) -> Output {
    ctx.sleep(Duration::from_secs(days * DAY)).await;
    let _: i32 = ctx.call_activity("A", 1).await?;
    Ok(None)
}

#[test]
fn seven_days_in_process_are_three_timers() {
    let mut execution = in_process(|ctx| sleep_then_call(ctx, 7));
    let past = [
        mark(0),
        start(),
        timer_created(0, 3 * DAY),
        mark(3 * DAY),
        fired(0),
        timer_created(1, 6 * DAY),
        mark(6 * DAY),
        fired(1),
        timer_created(2, 7 * DAY),
    ];
    let result = execution.advance(&past, &mut [mark(7 * DAY), fired(2)]);
    assert_eq!(short(&result), ["3 task A"]);
}

#[test]
fn a_last_part_in_process_that_fires_early_is_followed_by_another() {
    let mut execution = in_process(|ctx| sleep_then_call(ctx, 8));
    execution.advance(&[], &mut [mark(0), start()]);
    execution.advance(&[], &mut [mark(3 * DAY), fired(0)]);
    execution.advance(&[], &mut [mark(6 * DAY), fired(1)]);
    let result = execution.advance(&[], &mut [mark(8 * DAY - 1), fired(2)]);
    assert_eq!(short(&result), ["3 timer 8d"]);
    let result = execution.advance(&[], &mut [mark(8 * DAY), fired(3)]);
    assert_eq!(short(&result), ["4 task A"]);
}

#[test]
fn the_dotnet_sdk_ends_a_split_timer_with_a_timer_even_when_it_is_late() {
    let mut execution = run(ReplaySettings::isolated(), |ctx| sleep_then_call(ctx, 4));
    execution.advance(&[], &mut [mark(0), start()]);
    let result = execution.advance(&[], &mut [mark(5 * DAY), fired(0)]);
    assert_eq!(short(&result), ["1 timer 4d"]);
    let result = execution.advance(&[], &mut [mark(5 * DAY), fired(1)]);
    assert_eq!(short(&result), ["2 task A"]);
}

/// Waits up to `seconds` for an event, but looks only after an activity.
fn look_later(seconds: u64) -> Execution {
    in_process(move |ctx| async move {
        let wait = ctx.wait_for_event_with_timeout::<i32>("E", Duration::from_secs(seconds));
        let _: i32 = ctx.call_activity("A", 1).await?;
        Ok(Some(format!("{:?}", wait.await?)))
    })
}

#[test]
fn a_timeout_that_came_before_the_event_counts_although_nobody_looked() {
    let mut execution = look_later(1);
    execution.advance(&[], &mut [mark(0), start()]);
    execution.advance(&[], &mut [mark(1), fired(0)]);
    execution.advance(&[], &mut [mark(2), raised("E", "7")]);
    let result = execution.advance(&[], &mut [mark(3), done(1)]);
    assert_eq!(short(&result), ["2 Completed None"]);
}

#[test]
fn an_event_cancels_the_timer_of_its_wait_although_nobody_looked() {
    let mut execution = look_later(100 * DAY);
    execution.advance(&[], &mut [mark(0), start()]);
    execution.advance(&[], &mut [mark(1), raised("E", "7")]);
    let result = execution.advance(&[], &mut [mark(3 * DAY), fired(0)]);
    assert_eq!(short(&result), Vec::<String>::new(), "no next part");
    let result = execution.advance(&[], &mut [mark(3 * DAY), done(1)]);
    assert_eq!(short(&result), ["2 Completed Some(7)"]);
}

#[test]
fn an_event_of_a_dropped_wait_goes_to_the_wait_before_it() {
    let mut execution = in_process(|ctx| async move {
        let old = ctx.wait_for_event::<i32>("E");
        let new = ctx.wait_for_event::<i32>("E");
        let _: i32 = ctx.call_activity("A", 1).await?;
        drop(new);
        Ok(Some(old.await?.to_string()))
    });
    execution.advance(&[], &mut [mark(0), start()]);
    execution.advance(&[], &mut [mark(1), raised("E", "7")]);
    let result = execution.advance(&[], &mut [mark(2), done(0)]);
    assert_eq!(short(&result), ["1 Completed 7"]);
}

#[test]
fn events_of_dropped_waits_keep_the_order_in_which_they_came() {
    let mut execution = in_process(|ctx| async move {
        let first = ctx.wait_for_event::<i32>("E");
        let second = ctx.wait_for_event::<i32>("E");
        let _: i32 = ctx.call_activity("A", 1).await?;
        drop(second); // has 1
        drop(first); // has 2
        let x = ctx.wait_for_event::<i32>("E").await?;
        let y = ctx.wait_for_event::<i32>("E").await?;
        Ok(Some(format!("{x},{y}")))
    });
    execution.advance(&[], &mut [mark(0), start()]);
    let result = execution.advance(&[], &mut [mark(1), raised("E", "1"), raised("E", "2"), done(0)]);
    assert_eq!(short(&result), ["1 Completed 1,2"]);
}
