use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use serde_json::{Value, json};
use taskhub_client::Start;
use taskhub_core::{InstanceQuery, OrchestrationStatus};
use taskhub_worker::{ActivityContext, WorkerSettings};
use taskhub_worker::{OrchestrationContext, OrchestratorError, SubOrchestrationOptions, join_all};

use crate::support::World;

type Outcome<T> = Result<T, OrchestratorError>;

async fn echo(_: ActivityContext, input: Value) -> Outcome<Value> {
    Ok(input)
}

async fn factorial(ctx: OrchestrationContext, n: u64) -> Outcome<u64> {
    let mut product = 1;
    for k in 1..=n {
        product = ctx.call_activity("Multiply", (product, k)).await?;
    }
    Ok(product)
}

async fn multiply(_: ActivityContext, (a, b): (u64, u64)) -> Outcome<u64> {
    Ok(a * b)
}

#[tokio::test(start_paused = true)]
async fn an_orchestration_without_activities_completes_in_one_episode() {
    let world = World::new();
    let worker = world.worker(|b| {
        b.orchestration("Hello", |_: OrchestrationContext, name: String| async move {
            Outcome::Ok(format!("Hello, {name}!"))
        })
    });
    world.start("inline", Start::new("Hello").input("World").unwrap()).await;
    world.completes("inline", "\"Hello, World!\"").await;
    assert_eq!(
        world.events("inline").await,
        ["OrchestratorStarted", "ExecutionStarted", "ExecutionCompleted", "OrchestratorCompleted"]
    );
    worker.stop().await;
}

#[tokio::test(start_paused = true)]
async fn activities_run_one_after_the_other_and_hand_on_their_results() {
    let world = World::new();
    let worker = world.worker(|b| b.orchestration("Factorial", factorial).activity("Multiply", multiply));
    world.start("ten", Start::new("Factorial").input(&10).unwrap()).await;
    world.completes("ten", "3628800").await;
    worker.stop().await;
}

#[tokio::test(start_paused = true)]
async fn an_extended_session_gives_the_same_result_without_reading_the_history_again() {
    let world = World::new();
    let runs = Arc::new(AtomicUsize::new(0));
    let counted = runs.clone();
    let worker = world.worker_named(
        "w1",
        |settings| settings.extended_sessions_enabled = true,
        |b| {
            b.settings(WorkerSettings { extended_sessions_enabled: true, ..WorkerSettings::default() })
                .orchestration("Factorial", move |ctx, n| {
                    counted.fetch_add(1, Ordering::Relaxed);
                    factorial(ctx, n)
                })
                .activity("Multiply", multiply)
        },
    );
    world.start("ten", Start::new("Factorial").input(&10).unwrap()).await;
    world.completes("ten", "3628800").await;
    assert_eq!(runs.load(Ordering::Relaxed), 1, "one run of the code for eleven episodes");
    worker.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_parent_waits_for_the_result_of_its_child() {
    let world = World::new();
    let worker = world.samples();
    world.start("parent", Start::new("Parent")).await;
    world.completes("parent", r#"["Hello Tokyo!","Hello Seattle!","Hello London!"]"#).await;
    worker.stop().await;
}

#[tokio::test(start_paused = true)]
async fn an_eternal_orchestration_goes_through_generations_and_keeps_one_row() {
    let world = World::new();
    let worker = world.samples();
    world.start("eternal", Start::new("Eternal").input(&0).unwrap()).await;
    world.completes("eternal", "\"rounds 3\"").await;
    let page = world.client.list(&InstanceQuery::default()).await.unwrap();
    assert_eq!(page.instances.len(), 1);
    worker.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_thousand_activities_fan_out_over_several_history_batches() {
    let world = World::new();
    let worker = world.samples();
    world.start("fan", Start::new("FanOutFanIn").input(&1000).unwrap()).await;
    world.completes("fan", "499500").await;
    let events = world.events("fan").await;
    assert_eq!(events.iter().filter(|e| **e == "TaskCompleted").count(), 1000);
    worker.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_fan_out_of_large_results_splits_its_history_by_bytes() {
    let world = World::new();
    let worker = world.worker(|b| {
        b.activity("Echo", echo).orchestration("Wide", |ctx: OrchestrationContext, (): ()| async move {
            let text = "x".repeat(25_000);
            let calls: Vec<_> = (0..120).map(|_| ctx.call_activity::<_, String>("Echo", &text)).collect();
            let mut length = 0;
            for answer in join_all(calls).await {
                length += answer?.len();
            }
            Outcome::Ok(length)
        })
    });
    world.start("wide", Start::new("Wide")).await;
    world.completes("wide", "3000000").await;
    worker.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_fan_out_of_fan_outs_adds_up() {
    let world = World::new();
    let worker = world.worker(|b| {
        taskhub_worker::samples::register(b, Default::default()).orchestration(
            "Double",
            |ctx: OrchestrationContext, (): ()| async move {
                let children: Vec<_> =
                    (0..5).map(|_| ctx.call_sub_orchestration::<_, i64>("FanOutFanIn", 10)).collect();
                let mut sum = 0;
                for answer in join_all(children).await {
                    sum += answer?;
                }
                Outcome::Ok(sum)
            },
        )
    });
    world.start("double", Start::new("Double")).await;
    world.completes("double", "225").await;
    worker.stop().await;
}

#[tokio::test(start_paused = true)]
async fn hundreds_of_instances_run_at_once_on_two_workers() {
    let world = World::new();
    let workers = ["w1", "w2"].map(|id| {
        world.worker_named(id, |_| {}, |b| taskhub_worker::samples::register(b, Default::default()))
    });
    for n in 0..200 {
        world.start(&format!("many-{n}"), Start::new("HelloSequence")).await;
    }
    for n in 0..200 {
        assert_eq!(world.end(&format!("many-{n}")).await.status, Some(OrchestrationStatus::Completed));
    }
    for worker in workers {
        worker.stop().await;
    }
}

#[tokio::test(start_paused = true)]
async fn an_actor_counts_external_events_over_its_generations_and_loses_none() {
    let world = World::new();
    let worker = world.worker(|b| {
        b.orchestration("Counter", |ctx: OrchestrationContext, value: i64| async move {
            let operation: String = ctx.wait_for_event("operation").await?;
            match operation.as_str() {
                "incr" => ctx.continue_as_new(value + 1)?,
                "end" => return Outcome::Ok(Some(value)),
                _ => ctx.continue_as_new(value)?,
            }
            Ok(None)
        })
    });
    world.start("actor", Start::new("Counter").input(&0).unwrap()).await;
    for _ in 0..20 {
        world.client.raise_event(&"actor".into(), "operation", "incr").await.unwrap();
    }
    world.hub.until("actor", "counted to 20", |s| s.input.as_deref() == Some("20")).await;
    world.client.raise_event(&"actor".into(), "operation", "end").await.unwrap();
    world.completes("actor", "20").await;
    worker.stop().await;
}

#[tokio::test(start_paused = true)]
async fn two_instances_talk_by_events_also_when_nobody_waits_for_the_other() {
    let world = World::new();
    let worker = world.worker(|b| {
        b.orchestration("Asker", |ctx: OrchestrationContext, wait: bool| async move {
            let child = format!("{}-answerer", ctx.instance_id());
            let options = SubOrchestrationOptions {
                instance_id: Some(child.clone().into()),
                ..SubOrchestrationOptions::default()
            };
            let me = ctx.instance_id().to_string();
            let answered = if wait {
                Some(ctx.call_sub_orchestration_with::<_, Value>("Answerer", me, options))
            } else {
                ctx.start_orchestration("Answerer", me, options)?;
                None
            };
            ctx.send_event(child, "question", "how are you?")?;
            let answer: String = ctx.wait_for_event("answer").await?;
            if let Some(answered) = answered {
                answered.await?;
            }
            Outcome::Ok(answer)
        })
        .orchestration("Answerer", |ctx: OrchestrationContext, asker: String| async move {
            let question: String = ctx.wait_for_event("question").await?;
            ctx.send_event(asker, "answer", &format!("{question} fine"))?;
            Outcome::Ok(())
        })
    });
    for (id, wait) in [("waits", true), ("does-not-wait", false)] {
        world.start(id, Start::new("Asker").input(&wait).unwrap()).await;
        world.completes(id, "\"how are you? fine\"").await;
    }
    let parent = world.events("does-not-wait").await;
    assert!(!parent.contains(&"SubOrchestrationInstanceCompleted"), "{parent:?}");
    worker.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_scheduled_start_shows_its_time_and_waits_for_it() {
    let world = World::new();
    let worker = world.samples();
    let at = world.client.now() + Duration::from_secs(300);
    world.start("later", Start::new("HelloSequence").scheduled_at(at)).await;
    tokio::time::sleep(Duration::from_secs(120)).await;
    let state = world.state("later").await;
    assert_eq!((state.status, state.scheduled_start_at), (Some(OrchestrationStatus::Pending), Some(at)));
    let ended = world.end("later").await;
    assert_eq!(ended.status, Some(OrchestrationStatus::Completed));
    assert!(ended.completed_at.unwrap() >= at);
    worker.stop().await;
}

#[tokio::test(start_paused = true)]
async fn the_version_of_a_start_chooses_the_function_and_settings_say_which_versions_run() {
    use taskhub_worker::{VersionFailure, VersionMatch, VersioningSettings};
    let world = World::new();
    let versioned = |strategy| {
        move |b: taskhub_worker::WorkerBuilder| {
            let versioning = VersioningSettings {
                worker_version: Some("1.0".to_owned()),
                match_strategy: VersionMatch::Strict,
                failure_strategy: strategy,
            };
            b.settings(WorkerSettings { versioning: Some(versioning), ..WorkerSettings::default() })
                .orchestration_version("V", "1.0", |_: OrchestrationContext, (): ()| async { Outcome::Ok(1) })
                .orchestration_version("V", "2.0", |_: OrchestrationContext, (): ()| async { Outcome::Ok(2) })
        }
    };
    let worker = world.worker(versioned(VersionFailure::Fail));
    world.start("one", Start::new("V").version("1.0")).await;
    world.completes("one", "1").await;
    world.start("two", Start::new("V").version("2.0")).await;
    let failed = world.end("two").await;
    assert_eq!(failed.status, Some(OrchestrationStatus::Failed));
    assert!(failed.output.unwrap().starts_with("VersionMismatch: "));
    worker.stop().await;

    let worker = world.worker(versioned(VersionFailure::Reject));
    world.start("three", Start::new("V").version("2.0")).await;
    tokio::time::sleep(Duration::from_secs(120)).await;
    assert_eq!(world.state("three").await.status, Some(OrchestrationStatus::Pending), "put back, not failed");
    worker.stop().await;
    let worker = world.worker(|b| {
        b.orchestration_version("V", "2.0", |_: OrchestrationContext, (): ()| async { Outcome::Ok(2) })
    });
    world.completes("three", "2").await;
    worker.stop().await;
}

#[tokio::test(start_paused = true)]
async fn tags_reach_the_row_the_orchestration_its_children_and_activities() {
    let world = World::new();
    let worker = world.worker(|b| {
        b.orchestration("Outer", |ctx: OrchestrationContext, (): ()| async move {
            let inner: String = ctx.call_sub_orchestration("Inner", ()).await?;
            Outcome::Ok(format!("{}/{inner}", ctx.tags().and_then(|t| t.get("env")).unwrap_or("none")))
        })
        .orchestration("Inner", |ctx: OrchestrationContext, (): ()| async move {
            let activity: String = ctx.call_activity("Tagged", ()).await?;
            Outcome::Ok(format!("{}/{activity}", ctx.tags().and_then(|t| t.get("env")).unwrap_or("none")))
        })
        .activity("Tagged", |ctx: ActivityContext, (): ()| async move {
            Outcome::Ok(ctx.orchestration_tags().and_then(|t| t.get("env")).unwrap_or("none").to_owned())
        })
    });
    world.start("tagged", Start::new("Outer").tag("env", "prod").tag("owner", "José")).await;
    world.completes("tagged", "\"prod/prod/prod\"").await;
    let tags = world.state("tagged").await.tags.unwrap();
    assert_eq!(tags.iter().collect::<Vec<_>>(), [("env", "prod"), ("owner", "José")]);
    worker.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_custom_status_shows_while_the_instance_runs_and_stays() {
    let world = World::new();
    let worker = world.samples();
    world.start("status", Start::new("CustomStatus")).await;
    let second = r#"{"step":2,"text":"é日本😀"}"#;
    world.hub.until("status", "the second status", |s| s.custom_status.as_deref() == Some(second)).await;
    world.client.raise_event(&"status".into(), "Go", &json!(true)).await.unwrap();
    let state = world.end("status").await;
    assert_eq!(state.custom_status.as_deref(), Some(second));
    worker.stop().await;
}

#[tokio::test(start_paused = true)]
async fn without_a_custom_status_the_row_says_null() {
    let world = World::new();
    let worker = world.samples();
    world.start("plain", Start::new("Timer").input(&1).unwrap()).await;
    assert_eq!(world.end("plain").await.custom_status.as_deref(), Some("null"));
    worker.stop().await;
}

#[tokio::test(start_paused = true)]
async fn an_extended_session_ends_when_nothing_comes_and_the_instance_goes_on_later() {
    let world = World::new();
    let worker = world.worker_named(
        "w1",
        |settings| settings.extended_sessions_enabled = true,
        |b| {
            taskhub_worker::samples::register(b, Default::default())
                .settings(WorkerSettings { extended_sessions_enabled: true, ..WorkerSettings::default() })
        },
    );
    world.start("idle", Start::new("Approval")).await;
    world.waits("idle", "TimerCreated").await;
    tokio::time::sleep(Duration::from_secs(90)).await;
    world.client.raise_event(&"idle".into(), "ApprovalEvent", "yes").await.unwrap();
    world.completes("idle", r#""approved:\"yes\"""#).await;
    worker.stop().await;
}

#[tokio::test(start_paused = true)]
async fn an_aborted_session_is_tried_again_and_leaves_no_failure() {
    let world = World::new();
    let tries = Arc::new(AtomicUsize::new(0));
    let (orchestrator_tries, activity_tries) = (tries.clone(), Arc::new(AtomicUsize::new(0)));
    let worker = world.worker(|b| {
        b.orchestration("Aborts", move |ctx: OrchestrationContext, (): ()| {
            let tries = orchestrator_tries.clone();
            async move {
                if tries.fetch_add(1, Ordering::Relaxed) == 0 {
                    return Err(taskhub_worker::SessionAborted.into());
                }
                let answer: String = ctx.call_activity("AbortsToo", ()).await?;
                Outcome::Ok(answer)
            }
        })
        .activity("AbortsToo", move |_: ActivityContext, (): ()| {
            let tries = activity_tries.clone();
            async move {
                if tries.fetch_add(1, Ordering::Relaxed) == 0 {
                    return Err(OrchestratorError::from(taskhub_worker::SessionAborted));
                }
                Ok("done")
            }
        })
    });
    world.start("aborts", Start::new("Aborts")).await;
    world.completes("aborts", "\"done\"").await;
    assert!(!world.events("aborts").await.contains(&"TaskFailed"));
    worker.stop().await;
}

#[tokio::test(start_paused = true)]
async fn code_that_does_not_follow_its_history_fails_with_a_clear_error() {
    let world = World::new();
    let worker = world.samples();
    world.start("changed", Start::new("Approval")).await;
    world.waits("changed", "TimerCreated").await;
    worker.stop().await;
    let worker = world.worker(|b| {
        b.orchestration("Approval", |ctx: OrchestrationContext, _: Value| async move {
            ctx.sleep(Duration::from_secs(5)).await;
            Outcome::Ok(())
        })
    });
    world.client.raise_event(&"changed".into(), "ApprovalEvent", "yes").await.unwrap();
    let state = world.end("changed").await;
    assert_eq!(state.status, Some(OrchestrationStatus::Failed));
    let output = state.output.unwrap();
    assert!(output.starts_with("Non-Deterministic workflow detected: "), "{output}");
    worker.stop().await;
}
