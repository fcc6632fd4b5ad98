//! Activities that run inside the episode that asks for them.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use taskhub_core::{EpisodeCommit, EventKind, HistoryEvent, OrchestrationStatus};
use taskhub_worker::{
    ActivityContext, ActivityError, FusedActivities, OrchestrationContext, OrchestratorError, SessionAborted,
    WorkerBuilder, WorkerSettings, join_all,
};

use crate::fake::FakeService;
use crate::running;

async fn chain(ctx: OrchestrationContext, steps: u32) -> Result<u32, OrchestratorError> {
    let mut sum = 0;
    for step in 0..steps {
        sum += ctx.call_activity::<_, u32>("Echo", step).await?;
    }
    Ok(sum)
}

async fn fan_out(ctx: OrchestrationContext, width: u32) -> Result<u32, OrchestratorError> {
    let mut sum = 0;
    for result in join_all((0..width).map(|n| ctx.call_activity::<_, u32>("Echo", n))).await {
        sum += result?;
    }
    Ok(sum)
}

async fn for_ever(ctx: OrchestrationContext, generation: u32) -> Result<(), OrchestratorError> {
    let next: u32 = ctx.call_activity("Echo", generation + 1).await?;
    ctx.continue_as_new(next)?;
    Ok(())
}

async fn large(ctx: OrchestrationContext, steps: u32) -> Result<(), OrchestratorError> {
    for _ in 0..steps {
        ctx.call_activity::<_, String>("Large", ()).await?;
    }
    Ok(())
}

async fn two_kinds(ctx: OrchestrationContext, (): ()) -> Result<(), OrchestratorError> {
    let slow = ctx.call_activity::<_, ()>("Slow", ());
    let quick = ctx.call_activity::<_, u32>("Echo", 1);
    quick.await?;
    slow.await?;
    Ok(())
}

async fn echo(_: ActivityContext, number: u32) -> Result<u32, ActivityError> {
    Ok(number)
}

/// A worker with these activities fused, and the first commit of an orchestration.
async fn first_commit(fused: FusedActivities, orchestrator: &str, input: &str) -> EpisodeCommit {
    let service = FakeService::new();
    service.offer_start("i", orchestrator, Some(input));
    run(&service, service.worker(), fused).await;
    service.commits().remove(0)
}

async fn run(service: &FakeService, builder: WorkerBuilder, fused: FusedActivities) {
    let builder = builder
        .settings(WorkerSettings { fused_activities: fused, ..WorkerSettings::default() })
        .orchestration("Chain", chain)
        .orchestration("FanOut", fan_out)
        .orchestration("ForEver", for_ever)
        .orchestration("TwoKinds", two_kinds)
        .orchestration("Large", large)
        .activity("Large", |_: ActivityContext, (): ()| async { Ok::<_, ActivityError>("x".repeat(100_000)) })
        .activity("Echo", echo)
        .activity("Slow", |_: ActivityContext, (): ()| async {
            tokio::time::sleep(Duration::from_secs(60)).await;
            Ok::<_, ActivityError>(())
        });
    let worker = running(builder).await;
    service.until("the commit", |s| s.commits().len() == 1 && s.open() == 0).await;
    worker.stop().await;
}

fn names(commit: &EpisodeCommit) -> Vec<&'static str> {
    commit.new_events.iter().map(HistoryEvent::name).collect()
}

#[tokio::test(start_paused = true)]
async fn a_chain_is_stored_at_once_as_the_episodes_that_it_would_have_been() {
    let commit = first_commit(FusedActivities::all(), "Chain", "2").await;
    assert_eq!(commit.status, OrchestrationStatus::Completed);
    assert!(commit.activity_messages.is_empty());
    assert_eq!(
        names(&commit),
        [
            "OrchestratorStarted",
            "ExecutionStarted",
            "TaskScheduled",
            "OrchestratorCompleted",
            "OrchestratorStarted",
            "TaskCompleted",
            "TaskScheduled",
            "OrchestratorCompleted",
            "OrchestratorStarted",
            "TaskCompleted",
            "ExecutionCompleted",
            "OrchestratorCompleted"
        ]
    );
}

#[tokio::test(start_paused = true)]
async fn a_fan_out_gets_its_results_in_one_episode() {
    let commit = first_commit(FusedActivities::named(["Echo"]), "FanOut", "20").await;
    assert_eq!(commit.status, OrchestrationStatus::Completed);
    let count = |name| names(&commit).iter().filter(|n| **n == name).count();
    assert_eq!((count("TaskScheduled"), count("TaskCompleted"), count("OrchestratorStarted")), (20, 20, 2));
}

#[tokio::test(start_paused = true)]
async fn none_is_fused_by_default_and_others_than_those_named_are_sent() {
    let commit = first_commit(FusedActivities::default(), "Chain", "2").await;
    assert_eq!(commit.activity_messages.len(), 1);
    let commit = first_commit(FusedActivities::named(["Echo"]), "TwoKinds", "null").await;
    assert_eq!(commit.activity_messages.len(), 1, "{commit:?}");
    let sent = &commit.activity_messages[0].event.kind;
    assert!(matches!(sent, EventKind::TaskScheduled { name: Some(name), .. } if name == "Slow"));
    assert_eq!(names(&commit).iter().filter(|name| **name == "TaskCompleted").count(), 1);
}

#[tokio::test(start_paused = true)]
async fn an_activity_that_takes_too_long_is_sent_as_a_request() {
    let started = tokio::time::Instant::now();
    let commit = first_commit(FusedActivities::all(), "TwoKinds", "null").await;
    assert!(started.elapsed() < Duration::from_secs(30));
    assert_eq!(commit.status, OrchestrationStatus::Running);
    assert_eq!(commit.activity_messages.len(), 1);
    assert_eq!(commit.activity_messages[0].event.event_id, 0);
}

#[tokio::test(start_paused = true)]
async fn an_episode_that_cannot_be_stored_at_once_requests_its_last_activities() {
    // 4 + 4n events.
    let commit = first_commit(FusedActivities::all(), "Chain", "100").await;
    assert_eq!((commit.status, commit.activity_messages.len()), (OrchestrationStatus::Running, 1));
    assert_eq!(commit.new_events.len(), 96, "{:?}", names(&commit));
    let last = commit.activity_messages[0].event.event_id;
    let scheduled = commit.new_events.iter().filter(|event| event.name() == "TaskScheduled").count();
    assert_eq!(usize::try_from(last).unwrap() + 1, scheduled, "each but the last has its result");
    // Not even the requests fit.
    let commit = first_commit(FusedActivities::all(), "FanOut", "100").await;
    assert_eq!((commit.activity_messages.len(), names(&commit).len()), (100, 103));
    // The results are too large together.
    let commit = first_commit(FusedActivities::all(), "Large", "5").await;
    let results = names(&commit).iter().filter(|name| **name == "TaskCompleted").count();
    assert_eq!((results, commit.activity_messages.len()), (2, 1));
}

#[tokio::test(start_paused = true)]
async fn an_orchestration_that_continues_as_new_for_ever_is_stored_now_and_then() {
    let commit = first_commit(FusedActivities::all(), "ForEver", "0").await;
    assert!(commit.replaces_history && commit.activity_messages.len() == 1);
    assert_eq!(commit.status, OrchestrationStatus::Running);
}

#[tokio::test(start_paused = true)]
async fn an_activity_that_is_not_here_or_gives_up_is_sent_as_a_request() {
    let calls = Arc::new(AtomicUsize::new(0));
    for case in ["missing", "aborts"] {
        let service = FakeService::new();
        service.offer_start("i", "Calls", None);
        let builder =
            service.worker().orchestration("Calls", |ctx: OrchestrationContext, (): ()| async move {
                ctx.call_activity::<_, ()>("Other", ()).await?;
                Ok::<_, OrchestratorError>(())
            });
        let counted = calls.clone();
        let builder = match case {
            "missing" => builder,
            _ => builder.activity("Other", move |_: ActivityContext, (): ()| {
                counted.fetch_add(1, Ordering::Relaxed);
                async { Err::<(), ActivityError>(SessionAborted.into()) }
            }),
        };
        run(&service, builder, FusedActivities::all()).await;
        assert_eq!(service.commits()[0].activity_messages.len(), 1, "{case}");
    }
    assert_eq!(calls.load(Ordering::Relaxed), 1);
}

#[tokio::test(start_paused = true)]
async fn beside_events_that_fill_a_transaction_nothing_is_run_only_to_be_run_again() {
    let calls = Arc::new(AtomicUsize::new(0));
    let counted = calls.clone();
    let service = FakeService::new();
    service.offer_start("i", "Calls", Some(&format!("\"{}\"", "x".repeat(300_000))));
    let builder = service
        .worker()
        .orchestration("Calls", |ctx: OrchestrationContext, _: String| async move {
            ctx.call_activity::<_, ()>("Other", ()).await?;
            Ok::<_, OrchestratorError>(())
        })
        .activity("Other", move |_: ActivityContext, (): ()| {
            counted.fetch_add(1, Ordering::Relaxed);
            async { Ok::<(), ActivityError>(()) }
        });
    run(&service, builder, FusedActivities::all()).await;
    assert_eq!((service.commits()[0].activity_messages.len(), calls.load(Ordering::Relaxed)), (1, 0));
}
