use serde_json::Value;
use taskhub_client::Start;
use taskhub_core::{EventKind, OrchestrationStatus};
use taskhub_worker::samples::{self, SampleOptions};
use taskhub_worker::{ErrorPropagationMode, WorkerSettings};
use taskhub_worker::{OrchestrationContext, OrchestratorError};

use crate::support::{Running, World};

/// A worker with the samples that propagates errors in one of .NET's ways.
fn worker(world: &World, mode: ErrorPropagationMode, include_details: bool) -> Running {
    world.worker(|b| {
        samples::register(b, SampleOptions::default()).settings(WorkerSettings {
            error_propagation_mode: mode,
            include_details,
            ..WorkerSettings::default()
        })
    })
}

const MODES: [(ErrorPropagationMode, bool); 3] = [
    (ErrorPropagationMode::SerializeExceptions, false),
    (ErrorPropagationMode::SerializeExceptions, true),
    (ErrorPropagationMode::UseFailureDetails, false),
];

#[tokio::test(start_paused = true)]
async fn a_failed_activity_can_be_caught_in_every_mode() {
    for (mode, details) in MODES {
        let world = World::new();
        let worker = worker(&world, mode, details);
        world.start("caught", Start::new("FailHandled")).await;
        world.completes("caught", "\"caught boom x\"").await;
        let history = world.client.history(&"caught".into()).await.unwrap();
        let failed = history.iter().find_map(|e| match &e.kind {
            EventKind::TaskFailed { reason, details, failure_details, .. } => {
                Some((reason.clone(), details.clone(), failure_details.clone()))
            }
            _ => None,
        });
        let (reason, text, failure) = failed.unwrap();
        assert_eq!(reason.as_deref(), Some("boom x"));
        assert_eq!(text.is_some(), details);
        if let Some(text) = text {
            let value: Value = serde_json::from_str(&text).unwrap();
            assert_eq!(value["Message"], "boom x");
            assert_eq!(value["ClassName"], "System.InvalidOperationException");
        }
        assert_eq!(failure.is_some(), mode == ErrorPropagationMode::UseFailureDetails);
        if let Some(failure) = failure {
            assert_eq!(failure.error_type, "System.InvalidOperationException");
            assert_eq!(failure.error_message, "boom x");
        }
        worker.stop().await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_failed_activity_that_nobody_catches_fails_the_instance() {
    for (mode, details) in MODES {
        let world = World::new();
        let worker = worker(&world, mode, details);
        world.start("fails", Start::new("FailUnhandled").input("x").unwrap()).await;
        let output = match mode {
            ErrorPropagationMode::UseFailureDetails => {
                "DurableTask.Core.Exceptions.TaskFailedException: Task 'Boom' (#0) failed with an unhandled \
                 exception: boom x"
            }
            ErrorPropagationMode::SerializeExceptions => "boom x",
        };
        world.ends("fails", OrchestrationStatus::Failed, output).await;
        worker.stop().await;
    }
}

#[tokio::test(start_paused = true)]
async fn an_error_of_the_orchestrator_fails_the_instance() {
    for (mode, details) in MODES {
        let world = World::new();
        let worker = worker(&world, mode, details);
        world.start("fails", Start::new("FailSelf")).await;
        let output = match mode {
            ErrorPropagationMode::UseFailureDetails => "System.ArgumentException: orchestrator says no",
            ErrorPropagationMode::SerializeExceptions => "orchestrator says no",
        };
        world.ends("fails", OrchestrationStatus::Failed, output).await;
        worker.stop().await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_failed_child_can_be_caught_by_its_parent() {
    for (mode, details) in MODES {
        let world = World::new();
        let worker = worker(&world, mode, details);
        world.start("parent", Start::new("ParentOfFailing")).await;
        let state = world.end("parent").await;
        assert_eq!(state.status, Some(OrchestrationStatus::Completed));
        assert!(state.output.unwrap().contains("boom x"));
        worker.stop().await;
    }
}

#[tokio::test(start_paused = true)]
async fn retries_end_with_success_or_with_the_last_failure() {
    let world = World::new();
    let worker = world.samples();
    world.start("good", Start::new("RetryOk")).await;
    world.completes("good", "\"second try\"").await;
    world.start("bad", Start::new("Retry")).await;
    world.ends("bad", OrchestrationStatus::Failed, "boom x").await;
    let events = world.events("bad").await;
    let count = |name| events.iter().filter(|e| **e == name).count();
    assert_eq!((count("TaskScheduled"), count("TimerCreated"), count("TaskFailed")), (3, 3, 3));
    worker.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_panic_in_an_orchestrator_or_activity_becomes_a_failure() {
    let world = World::new();
    let worker = world.worker(|b| {
        b.orchestration("Panics", |ctx: OrchestrationContext, activity: bool| async move {
            if !activity {
                panic!("orchestrator bug");
            }
            let answer: Value = ctx.call_activity("Panics", ()).await?;
            Ok::<_, OrchestratorError>(answer)
        })
        .activity("Panics", |_: taskhub_worker::ActivityContext, (): ()| async {
            if true {
                panic!("activity bug");
            }
            Ok::<_, OrchestratorError>(())
        })
    });
    for (id, activity, text) in [("a", false, "orchestrator bug"), ("b", true, "activity bug")] {
        world.start(id, Start::new("Panics").input(&activity).unwrap()).await;
        let state = world.end(id).await;
        assert_eq!(state.status, Some(OrchestrationStatus::Failed));
        assert!(state.output.as_deref().unwrap().contains(text), "{:?}", state.output);
    }
    worker.stop().await;
}

#[tokio::test(start_paused = true)]
async fn functions_that_are_not_registered_wait_for_a_worker_that_has_them() {
    let world = World::new();
    let worker = world.worker(|b| b);
    world.start("unknown", Start::new("HelloSequence")).await;
    tokio::time::sleep(std::time::Duration::from_secs(30)).await;
    assert_eq!(world.state("unknown").await.status, Some(OrchestrationStatus::Pending));
    worker.stop().await;
    let worker = world.samples();
    world.completes("unknown", r#"["Hello Tokyo!","Hello Seattle!","Hello London!"]"#).await;
    worker.stop().await;
}
