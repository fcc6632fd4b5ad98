use std::time::Duration;

use serde_json::Value;
use taskhub_client::{PollInterval, Start};
use taskhub_core::OrchestrationStatus;
use taskhub_testkit::eventually_within;
use taskhub_worker::samples::{self, SampleOptions};
use taskhub_worker::{OrchestrationContext, OrchestratorError};

use crate::support::World;

#[tokio::test(start_paused = true)]
async fn a_timer_fires_when_it_is_due_and_not_before() {
    let world = World::new();
    let worker = world.samples();
    let begun = world.client.now();
    world.start("timer", Start::new("Timer").input(&10).unwrap()).await;
    world.completes("timer", "\"fired\"").await;
    let took = world.state("timer").await.completed_at.unwrap().saturating_since(begun);
    assert!(took >= Duration::from_secs(10), "{took:?}");
    worker.stop().await;
}

#[tokio::test(start_paused = true)]
async fn an_event_beats_its_timer_and_the_cancelled_timer_does_not_hold_the_instance() {
    let world = World::new();
    let worker = world.samples();
    world.start("approved", Start::new("Approval")).await;
    world.waits("approved", "TimerCreated").await;
    world.client.raise_event(&"approved".into(), "ApprovalEvent", "yes").await.unwrap();
    let begun = world.client.now();
    world.completes("approved", r#""approved:\"yes\"""#).await;
    assert!(world.client.now().saturating_since(begun) < Duration::from_secs(600));
    worker.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_timer_beats_an_event_that_does_not_come() {
    let world = World::new();
    let worker = world.samples();
    world.start("escalated", Start::new("Approval").input(&20).unwrap()).await;
    world.completes("escalated", "\"escalated\"").await;
    worker.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_timer_works_right_after_a_new_generation() {
    let world = World::new();
    let worker = world.worker(|b| {
        b.orchestration("Again", |ctx: OrchestrationContext, round: i32| async move {
            if round == 0 {
                ctx.continue_as_new(1)?;
                return Ok(None);
            }
            ctx.sleep(Duration::from_secs(5)).await;
            Ok::<_, OrchestratorError>(Some("slept"))
        })
    });
    world.start("again", Start::new("Again").input(&0).unwrap()).await;
    world.completes("again", "\"slept\"").await;
    assert_eq!(
        world.events("again").await[..4],
        ["OrchestratorStarted", "ExecutionStarted", "OrchestratorCompleted", "TimerCreated"]
    );
    worker.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_timer_longer_than_a_week_is_cut_into_slices() {
    const EIGHT_DAYS: u64 = 8 * 24 * 3600;
    let world = World::new();
    let worker = world.worker_named(
        "w1",
        |settings| {
            settings.max_queue_polling_interval = Duration::from_secs(3600);
            settings.lease_acquire_interval = Duration::from_secs(3600);
            settings.lease_interval = Duration::from_secs(3 * 3600);
            // Held for a minute, it would be renewed ten thousand times.
            settings.use_app_lease = false;
        },
        |builder| samples::register(builder, SampleOptions::default()),
    );
    let begun = world.client.now();
    world.start("long", Start::new("Timer").input(&EIGHT_DAYS).unwrap()).await;
    let (id, limit) = ("long".into(), Duration::from_secs(EIGHT_DAYS + 24 * 3600));
    let interval = PollInterval::every(Duration::from_secs(3600));
    let waited = world.client.wait_polling(&id, limit, interval).await;
    let state = waited.unwrap().finished().unwrap();
    assert_eq!(state.status, Some(OrchestrationStatus::Completed));
    assert!(state.completed_at.unwrap().saturating_since(begun) >= Duration::from_secs(EIGHT_DAYS));
    let created = world.events("long").await.iter().filter(|e| **e == "TimerCreated").count();
    assert!(created > 1, "{created}");
    worker.stop().await;
}

#[tokio::test(start_paused = true)]
async fn an_orchestrator_that_returns_with_an_open_timer_stays_until_it_fires() {
    let world = World::new();
    let worker = world.worker(|b| {
        b.orchestration("Leaves", |ctx: OrchestrationContext, _: Value| async move {
            std::mem::forget(ctx.sleep(Duration::from_secs(60)));
            Ok::<_, OrchestratorError>("left")
        })
    });
    world.start("leaves", Start::new("Leaves")).await;
    world.waits("leaves", "TimerCreated").await;
    eventually_within(Duration::from_secs(1), "it is shown as running", || async {
        (world.state("leaves").await.status == Some(OrchestrationStatus::Running)).then_some(())
    })
    .await;
    world.completes("leaves", "\"left\"").await;
    worker.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_timer_of_this_worker_fires_on_time_however_long_the_queue_was_silent() {
    let world = World::new();
    let worker = world.samples();
    tokio::time::sleep(Duration::from_secs(600)).await;
    world.start("timer", Start::new("Timer").input(&300).unwrap()).await;
    world.waits("timer", "TimerCreated").await;
    let created = world.client.history(&"timer".into()).await.unwrap()[0].timestamp;
    world.completes("timer", "\"fired\"").await;
    let took = world.state("timer").await.completed_at.unwrap().saturating_since(created);
    assert!(took < Duration::from_secs(303), "{took:?}");
    worker.stop().await;
}
