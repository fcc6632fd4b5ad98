//! Prints how many events per second are replayed: `cargo run --release -p taskhub-replay --example replay_speed`.
#![allow(clippy::print_stdout, clippy::disallowed_methods, clippy::unwrap_used, reason = "a measurement")]

use std::sync::Arc;
use std::time::Instant;

use taskhub_core::*;
use taskhub_replay::*;

fn main() {
    let sequence = orchestrator(|ctx: OrchestrationContext, n: i32| async move {
        for k in 0..n {
            let _: i32 = ctx.call_activity("Echo", k).await?;
        }
        Ok::<_, OrchestratorError>(n)
    });
    let fan_out = orchestrator(|ctx: OrchestrationContext, n: i32| async move {
        let results = join_all((0..n).map(|k| ctx.call_activity::<_, i32>("Echo", k))).await;
        Ok::<_, OrchestratorError>(results.len())
    });
    let retries = orchestrator(|ctx: OrchestrationContext, n: i32| async move {
        let retry = Some(RetryPolicy::new(3, std::time::Duration::from_secs(1)));
        let options = ActivityOptions { retry, ..Default::default() };
        let calls = (0..n).map(|k| ctx.call_activity_with::<_, i32>("Echo", k, options.clone()));
        Ok::<_, OrchestratorError>(join_all(calls).await.len())
    });
    measure("sequence", Arc::new(sequence), |id| vec![scheduled(id), completed(id)]);
    measure("fan-out", Arc::new(fan_out), |id| vec![scheduled(id), completed(id)]);
    measure("retries", Arc::new(retries), |id| vec![scheduled(id), completed(id)]);
}

fn measure(name: &str, orchestrator: Arc<dyn Orchestrator>, events: impl Fn(i32) -> Vec<HistoryEvent>) {
    const CALLS: i32 = 50_000;
    let mut past = vec![message(EventKind::OrchestratorStarted), start(CALLS)];
    let pairs: Vec<_> = (0..CALLS).flat_map(events).collect();
    if name == "sequence" {
        past.extend(pairs);
    } else {
        let (decisions, results): (Vec<_>, Vec<_>) = pairs.into_iter().partition(|e| e.event_id >= 0);
        past.extend(decisions);
        past.extend(results);
    }
    let begun = Instant::now();
    let mut execution = Execution::new(orchestrator, ReplaySettings::default());
    let result = execution.advance(&past, &mut []);
    let seconds = begun.elapsed().as_secs_f64();
    assert_eq!(result.actions.len(), 1);
    let rate = past.len() as f64 / seconds;
    println!("{name}: {} events, {} polls, {rate:.0} events/s", past.len(), execution.polls());
}

fn message(kind: EventKind) -> HistoryEvent {
    HistoryEvent::message(Timestamp::MIN, kind)
}

fn start(calls: i32) -> HistoryEvent {
    message(EventKind::ExecutionStarted(Box::new(ExecutionStarted {
        instance: OrchestrationInstance::new("speed", "e1"),
        parent: None,
        name: "Speed".into(),
        version: None,
        input: Some(calls.to_string()),
        tags: None,
        correlation: None,
        parent_trace_context: None,
        scheduled_start_time: None,
        generation: None,
        generate_new_trace: false,
    })))
}

fn scheduled(id: i32) -> HistoryEvent {
    let kind = EventKind::TaskScheduled {
        name: Some("Echo".into()),
        version: None,
        input: None,
        parent_trace_context: None,
        tags: None,
    };
    HistoryEvent::decision(id, Timestamp::MIN, kind)
}

fn completed(task_scheduled_id: i32) -> HistoryEvent {
    message(EventKind::TaskCompleted { task_scheduled_id, result: Some(task_scheduled_id.to_string()) })
}
