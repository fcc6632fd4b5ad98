use std::time::Duration;

use taskhub_client::Start;
use taskhub_core::OrchestrationStatus::{Completed, Failed, Pending, Suspended, Terminated};

use taskhub_worker::{OrchestrationContext, OrchestratorError, SubOrchestrationOptions};

use crate::support::World;

#[tokio::test(start_paused = true)]
async fn a_running_instance_is_terminated_with_a_reason() {
    let world = World::new();
    let worker = world.samples();
    world.start("x", Start::new("Approval")).await;
    world.waits("x", "TimerCreated").await;
    world.client.terminate(&"x".into(), Some("operator request")).await.unwrap();
    world.ends("x", Terminated, "operator request").await;
    worker.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_termination_does_not_reach_sub_orchestrations() {
    let world = World::new();
    let worker = world.worker(|b| {
        b.orchestration("Outer", |ctx: OrchestrationContext, (): ()| async move {
            let options = SubOrchestrationOptions { instance_id: Some("inner".into()), ..Default::default() };
            let word: String = ctx.call_sub_orchestration_with("Inner", (), options).await?;
            Ok::<_, OrchestratorError>(word)
        })
        .orchestration("Inner", |ctx: OrchestrationContext, (): ()| async move {
            let word: String = ctx.wait_for_event("word").await?;
            Ok::<_, OrchestratorError>(word)
        })
    });
    world.start("outer", Start::new("Outer")).await;
    world.waits("inner", "ExecutionStarted").await;
    world.client.terminate(&"outer".into(), Some("enough")).await.unwrap();
    world.ends("outer", Terminated, "enough").await;
    world.client.raise_event(&"inner".into(), "word", "done").await.unwrap();
    world.completes("inner", "\"done\"").await;
    worker.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_suspended_instance_can_be_terminated() {
    let world = World::new();
    let worker = world.samples();
    world.start("x", Start::new("Approval")).await;
    world.waits("x", "TimerCreated").await;
    world.client.suspend(&"x".into(), Some("wait")).await.unwrap();
    world.hub.until("x", "suspended", |s| s.status == Some(Suspended)).await;
    world.client.terminate(&"x".into(), Some("enough")).await.unwrap();
    world.ends("x", Terminated, "enough").await;
    worker.stop().await;
}

#[tokio::test(start_paused = true)]
async fn an_instance_that_never_ran_is_terminated() {
    let world = World::new();
    world.start("x", Start::new("Approval")).await;
    world.hub.pass_a_second().await;
    world.client.terminate(&"x".into(), Some("not wanted")).await.unwrap();
    let worker = world.samples();
    world.ends("x", Terminated, "not wanted").await;
    worker.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_suspended_instance_keeps_its_events_until_it_is_resumed() {
    let world = World::new();
    let worker = world.samples();
    world.start("x", Start::new("Approval")).await;
    world.waits("x", "TimerCreated").await;
    world.client.suspend(&"x".into(), Some("maintenance")).await.unwrap();
    world.hub.until("x", "suspended", |s| s.status == Some(Suspended)).await;
    assert_eq!(world.state("x").await.output.as_deref(), Some("maintenance"));
    world.client.raise_event(&"x".into(), "ApprovalEvent", "yes").await.unwrap();
    world.waits("x", "EventRaised").await;
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(world.state("x").await.status, Some(Suspended));
    world.client.resume(&"x".into(), None).await.unwrap();
    world.completes("x", r#""approved:\"yes\"""#).await;
    worker.stop().await;
}

/// Starts an instance, brings it to `status`, and starts its id again.
async fn recreate(status: taskhub_core::OrchestrationStatus) {
    let world = World::new();
    let worker = world.samples();
    match status {
        Completed => world.start("again", Start::new("Timer").input(&1).unwrap()).await,
        Failed => world.start("again", Start::new("FailUnhandled").input("x").unwrap()).await,
        _ => world.start("again", Start::new("Approval")).await,
    }
    match status {
        Terminated => {
            world.waits("again", "TimerCreated").await;
            world.client.terminate(&"again".into(), Some("first")).await.unwrap();
            world.end("again").await;
        }
        Completed | Failed => {
            assert_eq!(world.end("again").await.status, Some(status));
        }
        _ => world.waits("again", "TimerCreated").await,
    }
    world.hub.pass_a_second().await;
    world.start("again", Start::new("HelloSequence")).await;
    let fresh = world.state("again").await;
    assert_eq!((fresh.output, fresh.completed_at, fresh.generation), (None, None, Some(1)));
    world.hub.until("again", "the second execution", |s| s.name == "HelloSequence").await;
    world.completes("again", r#"["Hello Tokyo!","Hello Seattle!","Hello London!"]"#).await;
    assert_eq!(world.events("again").await.iter().filter(|e| **e == "ExecutionStarted").count(), 1);
    worker.stop().await;
}

#[tokio::test(start_paused = true)]
async fn the_id_of_a_completed_instance_can_be_used_again() {
    recreate(Completed).await;
}

#[tokio::test(start_paused = true)]
async fn the_id_of_a_failed_instance_can_be_used_again() {
    recreate(Failed).await;
}

#[tokio::test(start_paused = true)]
async fn the_id_of_a_terminated_instance_can_be_used_again() {
    recreate(Terminated).await;
}

#[tokio::test(start_paused = true)]
async fn the_id_of_a_running_instance_can_be_used_again() {
    recreate(taskhub_core::OrchestrationStatus::Running).await;
}

#[tokio::test(start_paused = true)]
async fn a_start_that_spares_active_instances_leaves_them_alone() {
    let world = World::new();
    let worker = world.samples();
    world.start("busy", Start::new("Approval")).await;
    let again = Start::new("HelloSequence").instance_id("busy").unless_active();
    assert!(world.client.start(again).await.is_err());
    assert_ne!(world.state("busy").await.status, None);
    assert_eq!(world.state("busy").await.name, "Approval");
    worker.stop().await;
}

#[tokio::test(start_paused = true)]
async fn an_event_that_comes_before_the_instance_waits_for_it_is_kept() {
    let world = World::new();
    world.start("early", Start::new("Approval")).await;
    assert_eq!(world.state("early").await.status, Some(Pending));
    world.hub.pass_a_second().await;
    world.client.raise_event(&"early".into(), "approvalevent", "early").await.unwrap();
    let worker = world.samples();
    world.completes("early", r#""approved:\"early\"""#).await;
    worker.stop().await;
}
