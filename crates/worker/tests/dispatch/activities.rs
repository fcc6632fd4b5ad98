//! The activity dispatcher.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use taskhub_core::{ErrorKind, EventKind, HistoryEvent, OrchestrationInstance, TaskMessage};
use taskhub_worker::{
    ActivityContext, ActivityError, ApplicationError, ErrorPropagationMode, SessionAborted, WorkerBuilder,
    WorkerSettings,
};

use crate::fake::{Call, FakeService};
use crate::running;

async fn double(_: ActivityContext, n: i64) -> Result<i64, ActivityError> {
    Ok(n * 2)
}

/// The event of the only response.
async fn response_of(service: &FakeService, builder: WorkerBuilder) -> EventKind {
    let worker = running(builder).await;
    service.until("a response", |s| !s.responses().is_empty()).await;
    worker.stop().await;
    let response = service.responses().remove(0);
    assert_eq!(response.target, OrchestrationInstance::new("waiting", "e"));
    assert_eq!(response.event.event_id, -1);
    response.event.kind
}

#[tokio::test(start_paused = true)]
async fn a_result_goes_to_the_orchestration_that_waits() {
    let service = FakeService::new();
    let token = service.offer_activity("Double", Some("[21]"));
    let kind = response_of(&service, service.worker().activity("Double", double)).await;
    assert_eq!(kind, EventKind::TaskCompleted { task_scheduled_id: 7, result: Some("42".to_owned()) });
    assert_eq!(service.calls_of(token), [Call::CompleteActivity(token)]);
}

#[tokio::test(start_paused = true)]
async fn inputs_are_one_argument_a_bare_value_a_list_or_several_arguments() {
    let check = async |input: Option<&str>, expected: &str| {
        let service = FakeService::new();
        service.offer_activity("Sum", input);
        service.offer_activity("Pair", input);
        let builder = service
            .worker()
            .activity("Sum", |_, all: Option<Vec<i64>>| async move {
                Ok::<_, ActivityError>(all.unwrap_or_default().iter().sum::<i64>())
            })
            .activity("Pair", |_, (a, b): (i64, i64)| async move { Ok::<_, ActivityError>(a * b) });
        let worker = running(builder).await;
        service.until("two responses", |s| s.responses().len() == 2).await;
        worker.stop().await;
        let results: Vec<_> = service
            .responses()
            .into_iter()
            .map(|r| match r.event.kind {
                EventKind::TaskCompleted { result, .. } => result.unwrap_or_else(|| "nothing".to_owned()),
                EventKind::TaskFailed { .. } => "failed".to_owned(),
                other => panic!("{other:?}"),
            })
            .collect();
        assert_eq!(results.join(" "), expected, "{input:?}");
    };
    check(Some("[[3,4]]"), "7 12").await;
    check(Some("[3,4]"), "7 12").await;
    check(Some("[]"), "0 failed").await;
    check(None, "0 failed").await;
    check(Some("[\"x\"]"), "failed failed").await;
    check(Some("[3,"), "failed failed").await;
}

#[tokio::test(start_paused = true)]
async fn an_activity_knows_its_call() {
    let service = FakeService::new();
    service.offer_activity("Who", None);
    let builder = service.worker().activity("Who", |ctx: ActivityContext, ()| async move {
        let execution = ctx.execution_id().unwrap().as_str();
        Ok::<_, ActivityError>(format!(
            "{} {execution} {} {} {}",
            ctx.instance_id(),
            ctx.task_id(),
            ctx.name(),
            ctx.attempt()
        ))
    });
    let kind = response_of(&service, builder).await;
    assert_eq!(
        kind,
        EventKind::TaskCompleted { task_scheduled_id: 7, result: Some("\"waiting e 7 Who 1\"".to_owned()) }
    );
}

async fn boom(_: ActivityContext, (): ()) -> Result<(), ApplicationError> {
    Err(ApplicationError::new("System.InvalidOperationException", "boom"))
}

async fn failure(include_details: bool, error_propagation_mode: ErrorPropagationMode) -> EventKind {
    let service = FakeService::new();
    service.offer_activity("Boom", None);
    let settings = WorkerSettings { include_details, error_propagation_mode, ..WorkerSettings::default() };
    response_of(&service, service.worker().settings(settings).activity("Boom", boom)).await
}

#[tokio::test(start_paused = true)]
async fn an_error_fails_the_call_in_the_form_of_the_settings() {
    let EventKind::TaskFailed { task_scheduled_id: 7, reason, details: None, failure_details: None } =
        failure(false, ErrorPropagationMode::SerializeExceptions).await
    else {
        panic!("not a failure with a reason only")
    };
    assert_eq!(reason.as_deref(), Some("boom"));

    let EventKind::TaskFailed { details: Some(details), failure_details: None, .. } =
        failure(true, ErrorPropagationMode::SerializeExceptions).await
    else {
        panic!("not a serialised exception")
    };
    assert!(details.contains(r#""ClassName":"System.InvalidOperationException""#), "{details}");

    let EventKind::TaskFailed { details: None, failure_details: Some(details), .. } =
        failure(true, ErrorPropagationMode::UseFailureDetails).await
    else {
        panic!("not failure details")
    };
    assert_eq!(details.to_string(), "System.InvalidOperationException: boom");
}

#[tokio::test(start_paused = true)]
async fn a_panic_fails_the_call() {
    let service = FakeService::new();
    service.offer_activity("Panic", None);
    let builder = service.worker().activity("Panic", |_, (): ()| async move {
        if true {
            panic!("no way");
        }
        Ok::<_, ActivityError>(())
    });
    let EventKind::TaskFailed { reason, .. } = response_of(&service, builder).await else {
        panic!("no failure")
    };
    assert_eq!(reason.as_deref(), Some("panicked: no way"));
}

#[tokio::test(start_paused = true)]
async fn a_missing_activity_is_given_back_and_does_not_hold_up_others() {
    let service = FakeService::new();
    let missing = service.offer_activity("Unknown", None);
    let versioned = {
        let mut message = service.message(
            "waiting",
            EventKind::TaskScheduled {
                name: Some("Double".to_owned()),
                version: Some("2".to_owned()),
                input: Some("[1]".to_owned()),
                parent_trace_context: None,
                tags: None,
            },
        );
        message.event.event_id = 7;
        service.offer_activity_message(message)
    };
    service.offer_activity("Double", Some("[1]"));
    response_of(&service, service.worker().activity("Double", double)).await;
    assert_eq!(service.calls_of(missing), [Call::AbandonActivity(missing)]);
    assert_eq!(service.calls_of(versioned), [Call::AbandonActivity(versioned)]);
    assert_eq!(service.times_of(&Call::FetchActivity).last(), Some(&Duration::ZERO));
}

#[tokio::test(start_paused = true)]
async fn a_request_that_is_none_is_given_back() {
    let service = FakeService::new();
    let wrong_event = service.offer_activity_message(service.message("i", EventKind::OrchestratorStarted));
    let nameless = EventKind::TaskScheduled {
        name: None,
        version: None,
        input: None,
        parent_trace_context: None,
        tags: None,
    };
    let nameless = service.offer_activity_message(service.message("i", nameless));
    let ownerless = EventKind::TaskScheduled {
        name: Some("Double".to_owned()),
        version: None,
        input: None,
        parent_trace_context: None,
        tags: None,
    };
    let event = HistoryEvent::decision(0, taskhub_core::Timestamp::MIN, ownerless);
    let ownerless = service.offer_activity_message(TaskMessage::new(event, OrchestrationInstance::default()));
    let worker = running(service.worker().activity("Double", double)).await;
    service.until("nothing is open", |s| s.open() == 0 && s.calls_of(ownerless).len() == 1).await;
    worker.stop().await;
    for token in [wrong_event, nameless, ownerless] {
        assert_eq!(service.calls_of(token), [Call::AbandonActivity(token)]);
    }
}

#[tokio::test(start_paused = true)]
async fn an_aborted_activity_is_given_back_without_a_failure() {
    let service = FakeService::new();
    let first = service.offer_activity("Abort", None);
    service.offer_activity("Abort", None);
    let calls = Arc::new(AtomicUsize::new(0));
    let builder = service.worker().activity("Abort", move |_, (): ()| {
        let call = calls.fetch_add(1, Ordering::SeqCst);
        async move { if call == 0 { Err(ActivityError::from(SessionAborted)) } else { Ok(call) } }
    });
    let kind = response_of(&service, builder).await;
    assert_eq!(service.calls_of(first), [Call::AbandonActivity(first)]);
    assert_eq!(kind, EventKind::TaskCompleted { task_scheduled_id: 7, result: Some("1".to_owned()) });
}

#[tokio::test(start_paused = true)]
async fn a_lock_is_renewed_while_the_activity_runs() {
    let service = FakeService::new();
    let token = service.offer_activity("Slow", None);
    // Locks hold 60 s and are renewed when a third of that has passed; after an error at once again.
    service.fail("renew_activity", &[ErrorKind::Unavailable]);
    let builder = service.worker().activity("Slow", |_, (): ()| async {
        tokio::time::sleep(Duration::from_secs(100)).await;
        Ok::<_, ActivityError>(())
    });
    response_of(&service, builder).await;
    let renewals: Vec<u64> =
        service.times_of(&Call::RenewActivity(token)).iter().map(Duration::as_secs).collect();
    assert_eq!(renewals, [20, 20, 40, 60, 80]);
    assert_eq!(service.times_of(&Call::CompleteActivity(token))[0].as_secs(), 100);
}

#[tokio::test(start_paused = true)]
async fn a_lost_lock_ends_renewal_but_not_the_activity() {
    let service = FakeService::new();
    let token = service.offer_activity("Slow", None);
    service.fail("renew_activity", &[ErrorKind::SessionAborted]);
    let builder = service.worker().activity("Slow", |_, (): ()| async {
        tokio::time::sleep(Duration::from_secs(100)).await;
        Ok::<_, ActivityError>(())
    });
    response_of(&service, builder).await;
    assert_eq!(service.calls_of(token), [Call::RenewActivity(token), Call::CompleteActivity(token)]);
}

#[tokio::test(start_paused = true)]
async fn no_more_activities_run_at_once_than_allowed() {
    let service = FakeService::new();
    for _ in 0..9 {
        service.offer_activity("Slow", None);
    }
    let (running_now, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let seen = most.clone();
    let builder = service.worker().activity("Slow", move |_, (): ()| {
        let (now, most) = (running_now.clone(), seen.clone());
        async move {
            most.fetch_max(now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
            tokio::time::sleep(Duration::from_secs(1)).await;
            now.fetch_sub(1, Ordering::SeqCst);
            Ok::<_, ActivityError>(())
        }
    });
    let settings = WorkerSettings { max_concurrent_task_activity_work_items: 3, ..WorkerSettings::default() };
    let worker = running(builder.settings(settings)).await;
    // A slot is taken before a receive: three run, and nobody asks for a fourth.
    service.until("three run", |s| s.open() == 3).await;
    assert_eq!(service.times_of(&Call::FetchActivity).len(), 3);
    service.until("all ran", |s| s.responses().len() == 9).await;
    worker.stop().await;
    assert_eq!(most.load(Ordering::SeqCst), 3);
}

#[tokio::test(start_paused = true)]
async fn receiving_backs_off_after_errors_and_survives_them() {
    let service = FakeService::new();
    service.fail("lock_next_activity", &[ErrorKind::Unavailable; 9]);
    service.offer_activity("Double", Some("[1]"));
    response_of(&service, service.worker().activity("Double", double)).await;
    let times: Vec<u128> = service.times_of(&Call::FetchActivity).iter().map(Duration::as_millis).collect();
    let waits: Vec<u128> = times.windows(2).map(|w| w[1] - w[0]).take(9).collect();
    assert_eq!(waits, [100, 200, 400, 800, 1600, 3200, 6400, 10_000, 10_000]);
}

#[tokio::test(start_paused = true)]
async fn a_response_that_cannot_be_sent_is_given_back_and_slows_receiving() {
    let service = FakeService::new();
    let failing = service.offer_activity("Double", Some("[1]"));
    service.fail("complete_activity", &[ErrorKind::Unavailable]);
    service.fail("abandon_activity", &[ErrorKind::Unavailable]);
    let worker = running(service.worker().activity("Double", double)).await;
    service.until("given back", |s| s.calls_of(failing).len() == 2).await;
    service.offer_activity("Double", Some("[1]"));
    service.until("a response", |s| !s.responses().is_empty()).await;
    worker.stop().await;
    assert_eq!(service.calls_of(failing), [Call::CompleteActivity(failing), Call::AbandonActivity(failing)]);
}
