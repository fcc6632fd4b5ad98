//! The orchestration dispatcher.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use taskhub_core::{ErrorKind, EventKind, HistoryEvent, OrchestrationInstance, OrchestrationStatus};
use taskhub_worker::{
    ActivityError, EpisodeError, EpisodeResult, OrchestrationContext, OrchestrationExecutor,
    OrchestrationSession, OrchestratorError, SessionAborted, Turn, VersionFailure, VersionMatch,
    VersioningSettings, WorkerBuilder, WorkerSettings,
};

use crate::fake::{Call, FakeService};
use crate::running;

async fn two_steps(ctx: OrchestrationContext, (): ()) -> Result<String, OrchestratorError> {
    let first: String = ctx.call_activity("Step", 1).await?;
    let second: String = ctx.call_activity("Step", 2).await?;
    Ok(first + &second)
}

fn completed(id: i32, result: &str) -> EventKind {
    EventKind::TaskCompleted { task_scheduled_id: id, result: Some(format!("{result:?}")) }
}

/// Runs a worker until nothing is open any more and `condition` holds.
async fn settle(service: &FakeService, builder: WorkerBuilder, condition: impl Fn(&FakeService) -> bool) {
    let worker = running(builder).await;
    service.until("settled", |s| condition(s) && s.open() == 0).await;
    worker.stop().await;
}

#[tokio::test(start_paused = true)]
async fn episodes_are_stored_and_released() {
    let service = FakeService::new();
    let start = service.offer_start("i", "TwoSteps", None);
    let worker = running(service.worker().orchestration("TwoSteps", two_steps)).await;
    service.until("the first episode", |s| s.commits().len() == 1 && s.open() == 0).await;
    let first = service.commits().remove(0);
    assert_eq!(first.status, OrchestrationStatus::Running);
    assert_eq!(first.activity_messages.len(), 1);
    assert_eq!(first.instance, OrchestrationInstance::new("i", "e"));

    let second = service.offer("i", first.new_events.clone(), vec![service.message("i", completed(0, "a"))]);
    service.until("the second episode", |s| s.commits().len() == 2 && s.open() == 0).await;
    let mut history = first.new_events;
    history.extend(service.commits().remove(1).new_events);
    let last = service.offer("i", history, vec![service.message("i", completed(1, "b"))]);
    service.until("the last episode", |s| s.commits().len() == 3 && s.open() == 0).await;
    worker.stop().await;

    let commit = service.commits().remove(2);
    assert_eq!(commit.status, OrchestrationStatus::Completed);
    let names: Vec<_> = commit.new_events.iter().map(HistoryEvent::name).collect();
    assert_eq!(
        names,
        ["OrchestratorStarted", "TaskCompleted", "ExecutionCompleted", "OrchestratorCompleted"]
    );
    for token in [start, second, last] {
        assert_eq!(service.calls_of(token), [Call::Complete(token), Call::Release(token)]);
    }
}

#[tokio::test(start_paused = true)]
async fn stale_messages_are_discarded() {
    let service = FakeService::new();
    let token = service.offer("gone", Vec::new(), vec![service.message("gone", completed(0, "late"))]);
    let settled = |s: &FakeService| !s.calls_of(token).is_empty();
    settle(&service, service.worker().orchestration("TwoSteps", two_steps), settled).await;
    assert_eq!(service.calls_of(token), [Call::Discard(token), Call::Release(token)]);
}

#[tokio::test(start_paused = true)]
async fn a_missing_orchestrator_is_given_back_and_the_instance_not_failed() {
    let service = FakeService::new();
    let missing = service.offer_start("i", "Unknown", None);
    let other = service.offer_start("j", "TwoSteps", None);
    let settled = |s: &FakeService| s.commits().len() == 1 && s.calls_of(missing).len() == 2;
    settle(&service, service.worker().orchestration("TwoSteps", two_steps), settled).await;
    assert_eq!(service.calls_of(missing), [Call::Abandon(missing), Call::Release(missing)]);
    assert_eq!(service.calls_of(other), [Call::Complete(other), Call::Release(other)]);
    assert_eq!(service.times_of(&Call::FetchOrchestration).last(), Some(&Duration::ZERO));
}

#[tokio::test(start_paused = true)]
async fn an_aborted_session_is_given_back_without_a_failure() {
    let service = FakeService::new();
    let first = service.offer_start("i", "Abort", None);
    service.offer_start("j", "Abort", None);
    let calls = Arc::new(AtomicUsize::new(0));
    let builder = service.worker().orchestration("Abort", move |_, (): ()| {
        let call = calls.fetch_add(1, Ordering::SeqCst);
        async move { if call == 0 { Err(OrchestratorError::from(SessionAborted)) } else { Ok(()) } }
    });
    settle(&service, builder, |s| s.commits().len() == 1).await;
    assert_eq!(service.calls_of(first), [Call::Abandon(first), Call::Release(first)]);
    assert_eq!(service.commits()[0].status, OrchestrationStatus::Completed);
}

#[tokio::test(start_paused = true)]
async fn a_panic_fails_the_instance_and_not_the_worker() {
    let service = FakeService::new();
    service.offer_start("i", "Panic", None);
    let builder = service.worker().orchestration("Panic", |_, (): ()| async {
        if true {
            panic!("no way");
        }
        Ok::<_, OrchestratorError>(())
    });
    settle(&service, builder, |s| s.commits().len() == 1).await;
    assert_eq!(service.commits()[0].status, OrchestrationStatus::Failed);
}

#[tokio::test(start_paused = true)]
async fn what_cannot_be_stored_is_given_back() {
    let check = async |operation: &'static str, kind: ErrorKind, next_fetch: Duration| {
        let service = FakeService::new();
        let token = match operation {
            "complete_orchestration" => service.offer_start("i", "TwoSteps", None),
            _ => service.offer("gone", Vec::new(), vec![service.message("gone", completed(0, "late"))]),
        };
        service.fail(operation, &[kind]);
        // One at a time: the next receive comes after the failure.
        let settings =
            WorkerSettings { max_concurrent_task_orchestration_work_items: 1, ..WorkerSettings::default() };
        let builder = service.worker().settings(settings).orchestration("TwoSteps", two_steps);
        settle(&service, builder, |s| s.times_of(&Call::FetchOrchestration).len() == 2).await;
        let first =
            if operation == "complete_orchestration" { Call::Complete(token) } else { Call::Discard(token) };
        assert_eq!(service.calls_of(token), [first, Call::Abandon(token), Call::Release(token)]);
        assert_eq!(service.times_of(&Call::FetchOrchestration)[1], next_fetch, "{operation} {kind:?}");
    };
    // Losing an instance to another worker is no reason to slow down.
    check("complete_orchestration", ErrorKind::SessionAborted, Duration::ZERO).await;
    check("complete_orchestration", ErrorKind::Unavailable, Duration::from_millis(100)).await;
    check("discard_orchestration", ErrorKind::SessionAborted, Duration::ZERO).await;
    check("discard_orchestration", ErrorKind::Unavailable, Duration::from_millis(100)).await;
}

#[tokio::test(start_paused = true)]
async fn receiving_backs_off_after_errors_and_survives_them() {
    let service = FakeService::new();
    service.fail("lock_next_orchestration", &[ErrorKind::Unavailable; 9]);
    service.offer_start("i", "TwoSteps", None);
    settle(&service, service.worker().orchestration("TwoSteps", two_steps), |s| s.commits().len() == 1).await;
    let times: Vec<u128> =
        service.times_of(&Call::FetchOrchestration).iter().map(Duration::as_millis).collect();
    let waits: Vec<u128> = times.windows(2).map(|w| w[1] - w[0]).take(9).collect();
    assert_eq!(waits, [100, 200, 400, 800, 1600, 3200, 6400, 10_000, 10_000]);
}

#[tokio::test(start_paused = true)]
async fn a_corrupt_history_is_given_back() {
    let service = FakeService::new();
    let start = service.start_message("i", "TwoSteps", None).event;
    let token = service.offer("i", vec![start.clone(), start], vec![service.message("i", completed(0, "a"))]);
    let settled = |s: &FakeService| !s.calls_of(token).is_empty();
    settle(&service, service.worker().orchestration("TwoSteps", two_steps), settled).await;
    assert_eq!(service.calls_of(token), [Call::Abandon(token), Call::Release(token)]);
}

#[tokio::test(start_paused = true)]
async fn an_instance_of_another_version_is_given_back_or_failed() {
    let check = async |failure_strategy: VersionFailure, expected: &[&str]| {
        let service = FakeService::new();
        let token = service.offer_start("i", "TwoSteps", None);
        let versioning = VersioningSettings {
            worker_version: Some("2.0".to_owned()),
            match_strategy: VersionMatch::Strict,
            failure_strategy,
        };
        let settings = WorkerSettings { versioning: Some(versioning), ..WorkerSettings::default() };
        let builder = service.worker().settings(settings).orchestration("TwoSteps", two_steps);
        settle(&service, builder, |s| !s.calls_of(token).is_empty()).await;
        let ends: Vec<String> = service.commits().iter().map(|c| c.status.to_string()).collect();
        assert_eq!(ends, expected);
        let end = if expected.is_empty() { Call::Abandon(token) } else { Call::Complete(token) };
        assert_eq!(service.calls_of(token), [end, Call::Release(token)]);
    };
    check(VersionFailure::Reject, &[]).await;
    check(VersionFailure::Fail, &["Failed"]).await;
}

fn extended(max: usize) -> WorkerSettings {
    WorkerSettings {
        extended_sessions_enabled: true,
        max_concurrent_task_orchestration_work_items: max,
        ..WorkerSettings::default()
    }
}

#[tokio::test(start_paused = true)]
async fn an_extended_session_goes_on_without_replay() {
    let service = FakeService::new();
    let token = service.offer_start("i", "TwoSteps", None);
    service.offer_session(
        token,
        vec![vec![service.message("i", completed(0, "a"))], vec![service.message("i", completed(1, "b"))]],
    );
    let runs = Arc::new(AtomicUsize::new(0));
    let seen = runs.clone();
    let builder = service.worker().settings(extended(2)).orchestration("TwoSteps", move |ctx, (): ()| {
        seen.fetch_add(1, Ordering::SeqCst);
        two_steps(ctx, ())
    });
    settle(&service, builder, |s| s.commits().len() == 3).await;
    assert_eq!(runs.load(Ordering::SeqCst), 1);
    assert_eq!(service.commits()[2].status, OrchestrationStatus::Completed);
    assert_eq!(service.commits()[2].new_events.len(), 4);
    let (next, complete) = (Call::NextMessages(token), Call::Complete(token));
    let expected = [&complete, &next, &complete, &next, &complete, &Call::Release(token)].map(Clone::clone);
    assert_eq!(service.calls_of(token), expected);
}

#[tokio::test(start_paused = true)]
async fn an_extended_session_ends_when_no_messages_come_or_something_fails() {
    let check = async |failing: Option<&'static str>, expected: fn(taskhub_core::LockToken) -> Vec<Call>| {
        let service = FakeService::new();
        let token = service.offer_start("i", "TwoSteps", None);
        if let Some(operation) = failing {
            service.fail(operation, &[ErrorKind::SessionAborted]);
        }
        let builder = service.worker().settings(extended(2)).orchestration("TwoSteps", two_steps);
        settle(&service, builder, |s| !s.calls_of(token).is_empty()).await;
        assert_eq!(service.calls_of(token), expected(token), "{failing:?}");
    };
    check(None, |t| vec![Call::Complete(t), Call::NextMessages(t), Call::Release(t)]).await;
    check(Some("next_session_messages"), |t| {
        vec![Call::Complete(t), Call::NextMessages(t), Call::Release(t)]
    })
    .await;
    check(Some("complete_orchestration"), |t| vec![Call::Complete(t), Call::Abandon(t), Call::Release(t)])
        .await;
}

#[tokio::test(start_paused = true)]
async fn sessions_take_no_more_than_half_of_the_slots() {
    let service = FakeService::new();
    let tokens: Vec<_> = (0..5).map(|n| service.offer_start(&format!("i{n}"), "TwoSteps", None)).collect();
    let worker = running(service.worker().settings(extended(3)).orchestration("TwoSteps", two_steps)).await;
    service.until("two sessions", |s| s.commits().len() == 5 && s.open() == 2).await;
    let waiting = tokens.iter().filter(|t| service.calls_of(**t).contains(&Call::NextMessages(**t)));
    assert_eq!(waiting.count(), 2);
    worker.stop().await;
    assert_eq!(service.open(), 0);
}

/// An executor that takes its time, as one in another process would.
#[derive(Debug)]
struct Remote(Duration);

struct RemoteSession(Duration);

impl OrchestrationExecutor for Remote {
    fn open(&self, _: &OrchestrationInstance) -> Box<dyn OrchestrationSession> {
        Box::new(RemoteSession(self.0))
    }
}

#[async_trait]
impl OrchestrationSession for RemoteSession {
    async fn execute(&mut self, turn: Turn<'_>) -> Result<EpisodeResult, EpisodeError> {
        tokio::time::sleep(self.0).await;
        if turn.name == "Panic" {
            panic!("a defect of the executor");
        }
        Ok(EpisodeResult::default())
    }
}

#[tokio::test(start_paused = true)]
async fn a_lock_is_renewed_while_an_executor_works_and_no_longer() {
    let service = FakeService::new();
    let token = service.offer_start("i", "Anything", None);
    let builder = service.worker().orchestration_executor(Arc::new(Remote(Duration::from_secs(100))));
    settle(&service, builder, |s| s.commits().len() == 1).await;
    let renewals: Vec<u64> = service.times_of(&Call::Renew(token)).iter().map(Duration::as_secs).collect();
    assert_eq!(renewals, [20, 40, 60, 80]);
}

#[derive(Debug)]
struct Closed;

impl OrchestrationExecutor for Closed {
    fn open(&self, _: &OrchestrationInstance) -> Box<dyn OrchestrationSession> {
        panic!("a defect outside of the episode")
    }
}

#[tokio::test(start_paused = true)]
async fn a_defect_outside_of_the_episode_gives_the_messages_back() {
    let service = FakeService::new();
    let token = service.offer_start("i", "Any", None);
    let builder = service.worker().orchestration_executor(Arc::new(Closed));
    settle(&service, builder, |s| !s.calls_of(token).is_empty()).await;
    assert_eq!(service.calls_of(token), [Call::Abandon(token), Call::Release(token)]);
}

#[tokio::test(start_paused = true)]
async fn a_defect_of_an_executor_gives_the_messages_back() {
    let service = FakeService::new();
    let token = service.offer_start("i", "Panic", None);
    let builder = service.worker().orchestration_executor(Arc::new(Remote(Duration::ZERO)));
    settle(&service, builder, |s| !s.calls_of(token).is_empty()).await;
    assert_eq!(service.calls_of(token), [Call::Abandon(token), Call::Release(token)]);
}

#[tokio::test(start_paused = true)]
async fn an_executor_that_does_not_end_before_the_shutdown_loses_its_work_item() {
    let service = FakeService::new();
    let token = service.offer_start("i", "Anything", None);
    let builder = service.worker().orchestration_executor(Arc::new(Remote(Duration::from_secs(100))));
    let worker = running(builder).await;
    service.until("it runs", |s| s.open() == 1).await;
    worker.stop().await;
    assert_eq!(service.calls_of(token), [Call::Abandon(token), Call::Release(token)]);
}

#[tokio::test(start_paused = true)]
async fn no_more_orchestrations_run_at_once_than_allowed() {
    let service = FakeService::new();
    for n in 0..9 {
        service.offer_start(&format!("i{n}"), "Anything", None);
    }
    let settings =
        WorkerSettings { max_concurrent_task_orchestration_work_items: 3, ..WorkerSettings::default() };
    let builder =
        service.worker().settings(settings).orchestration_executor(Arc::new(Remote(Duration::from_secs(1))));
    let worker = running(builder).await;
    service.until("three run", |s| s.open() == 3).await;
    assert_eq!(service.times_of(&Call::FetchOrchestration).len(), 3);
    service.until("all ran", |s| s.commits().len() == 9).await;
    worker.stop().await;
    let ends: Vec<u64> = (1..=9)
        .map(taskhub_core::LockToken)
        .flat_map(|t| service.times_of(&Call::Complete(t)))
        .map(|at| at.as_secs())
        .collect();
    assert_eq!(ends, [1, 1, 1, 2, 2, 2, 3, 3, 3]);
}

#[tokio::test(start_paused = true)]
async fn whatever_fails_every_work_item_is_stored_or_given_back_and_released_once() {
    for seed in 0..20 {
        println!("seed {seed}");
        let service = FakeService::new();
        let orchestrations: Vec<_> = (0..60)
            .map(|n| match n % 3 {
                0 => service.offer_start(&format!("i{n}"), "TwoSteps", None),
                1 => service.offer_start(&format!("i{n}"), "Unknown", None),
                _ => service.offer("gone", Vec::new(), vec![service.message("gone", completed(0, "late"))]),
            })
            .collect();
        let activities: Vec<_> =
            (0..60).map(|n| service.offer_activity(["Step", "Unknown"][n % 2], Some("[1]"))).collect();
        let settings = extended(if seed % 2 == 0 { 100 } else { 3 });
        let builder = service
            .worker()
            .settings(settings)
            .orchestration("TwoSteps", two_steps)
            .activity("Step", |_, n: i64| async move { Ok::<_, ActivityError>(n) });
        let worker = running(builder).await;
        service.make_flaky(seed);
        let ended = |call: &Call| matches!(call, Call::Release(_));
        service.until("all ended", |s| s.calls().iter().filter(|c| ended(c)).count() == 60).await;
        let ended = |call: &Call| matches!(call, Call::AbandonActivity(_));
        service
            .until("all answered", |s| {
                s.responses().len() + s.calls().iter().filter(|c| ended(c)).count() == 60
            })
            .await;
        // The backend may fail to stop, too.
        let _ = worker.end().await;

        assert_eq!(service.open(), 0);
        for token in orchestrations {
            let calls = service.calls_of(token);
            let releases = calls.iter().filter(|call| **call == Call::Release(token)).count();
            assert_eq!((releases, calls.last()), (1, Some(&Call::Release(token))), "{calls:?}");
            let abandoned = calls.iter().position(|call| *call == Call::Abandon(token));
            // Nothing is stored after the messages went back, and nothing is neither stored nor given back.
            assert!(abandoned.is_none_or(|at| at + 2 == calls.len()), "{calls:?}");
            assert!(calls.len() >= 2, "{calls:?}");
        }
        for token in activities {
            let calls = service.calls_of(token);
            let [.., Call::CompleteActivity(_) | Call::AbandonActivity(_)] = &calls[..] else {
                panic!("{calls:?}")
            };
        }
    }
}
