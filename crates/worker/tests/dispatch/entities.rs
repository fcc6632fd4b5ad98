use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use taskhub_core::{ErrorKind, EventKind, LockToken, OrchestrationStatus, TaskMessage};
use taskhub_worker::{
    EntityContext, OperationError, OrchestratorError, Reply, SessionAborted, WorkerBuilder, WorkerSettings,
};

use crate::fake::{Call, FakeService};
use crate::running;

const ID: &str = "11111111-2222-3333-4444-555555555555";

fn request(service: &FakeService, entity: &str, operation: &str) -> TaskMessage {
    let kind = EventKind::EventRaised {
        name: Some("op".into()),
        input: Some(format!(r#"{{"op":"{operation}","id":"{ID}","parent":"caller"}}"#)),
        parent_trace_context: None,
    };
    service.message(entity, kind)
}

/// Offers a new entity with these operations.
fn offer(service: &FakeService, entity: &str, operations: &[&str]) -> LockToken {
    let mut messages = vec![service.start_message(entity, entity, None)];
    messages.extend(operations.iter().map(|operation| request(service, entity, operation)));
    service.offer(entity, Vec::new(), messages)
}

/// Counts its operations; `panic` panics, `wait` takes a virtual minute.
async fn counter(ctx: EntityContext) -> Result<Reply, OperationError> {
    let count = ctx.state::<u32>()?.unwrap_or_default() + 1;
    match ctx.operation() {
        "panic" => panic!("no"),
        "wait" => tokio::time::sleep(Duration::from_secs(60)).await,
        "abort" => return Err(SessionAborted.into()),
        _ => {}
    }
    ctx.set_state(&count)?;
    Ok(ctx.reply(&count)?)
}

async fn settle(service: &FakeService, builder: WorkerBuilder, settled: impl Fn(&FakeService) -> bool) {
    let worker = running(builder).await;
    service.until("settled", |s| settled(s) && s.open() == 0).await;
    worker.stop().await;
}

fn answers(service: &FakeService) -> Vec<String> {
    let commits = service.commits();
    let messages = commits.iter().flat_map(|commit| &commit.orchestrator_messages);
    let answer = |message: &TaskMessage| match &message.event.kind {
        EventKind::EventRaised { input: Some(input), .. } => Some(input.clone()),
        _ => None,
    };
    messages.filter_map(answer).collect()
}

#[tokio::test(start_paused = true)]
async fn a_batch_is_run_stored_and_released() {
    let service = FakeService::new();
    let token = offer(&service, "@counter@a", &["a", "b"]);
    settle(&service, service.worker().entity("Counter", counter), |s| s.commits().len() == 1).await;
    assert_eq!(service.calls_of(token), [Call::Complete(token), Call::Release(token)]);
    let commit = &service.commits()[0];
    assert_eq!((commit.status, commit.replaces_history), (OrchestrationStatus::Running, true));
    assert_eq!(answers(&service), [r#"{"result":"1"}"#, r#"{"result":"2"}"#]);
}

#[tokio::test(start_paused = true)]
async fn an_entity_that_is_not_registered_is_given_back_and_its_locks_work_nevertheless() {
    let service = FakeService::new();
    let missing = offer(&service, "@counter@a", &["a"]);
    let idle = offer(&service, "@counter@b", &[]);
    settle(&service, service.worker(), |s| s.calls_of(missing).len() == 2 && s.calls_of(idle).len() == 2)
        .await;
    assert_eq!(service.calls_of(missing), [Call::Abandon(missing), Call::Release(missing)]);
    assert_eq!(service.calls_of(idle), [Call::Complete(idle), Call::Release(idle)]);
}

#[tokio::test(start_paused = true)]
async fn a_panic_fails_its_operation_and_an_abort_gives_the_batch_back() {
    let service = FakeService::new();
    offer(&service, "@counter@a", &["a", "panic", "b"]);
    let aborted = offer(&service, "@counter@b", &["a", "abort"]);
    let settled = |s: &FakeService| s.commits().len() == 1 && s.calls_of(aborted).len() == 2;
    settle(&service, service.worker().entity("counter", counter), settled).await;
    let answers = answers(&service);
    assert_eq!((answers[0].as_str(), answers[2].as_str()), (r#"{"result":"1"}"#, r#"{"result":"2"}"#));
    assert!(answers[1].contains(r#""ErrorMessage":"panicked: no""#), "{}", answers[1]);
    assert_eq!(service.calls_of(aborted), [Call::Abandon(aborted), Call::Release(aborted)]);
}

#[tokio::test(start_paused = true)]
async fn an_extended_session_keeps_the_state_in_memory() {
    let service = FakeService::new();
    let token = offer(&service, "@counter@a", &["a"]);
    let next = |operation| vec![request(&service, "@counter@a", operation)];
    // Of no execution: the one that the first batch has begun has another id than the start.
    let next = [next("b"), next("c")].map(|mut messages| {
        messages[0].target.execution_id = None;
        messages
    });
    service.offer_session(token, next.into());
    let settings = WorkerSettings { extended_sessions_enabled: true, ..WorkerSettings::default() };
    let builder = service.worker().settings(settings).entity("counter", counter);
    settle(&service, builder, |s| s.commits().len() == 3).await;
    assert_eq!(answers(&service).last().map(String::as_str), Some(r#"{"result":"3"}"#));
}

#[tokio::test(start_paused = true)]
async fn a_state_that_could_not_be_stored_is_not_kept() {
    let service = FakeService::new();
    service.fail("complete_orchestration", &[ErrorKind::SessionAborted]);
    let token = offer(&service, "@counter@a", &["a"]);
    service.offer_session(token, vec![vec![request(&service, "@counter@a", "b")]]);
    let settings = WorkerSettings { extended_sessions_enabled: true, ..WorkerSettings::default() };
    let builder = service.worker().settings(settings).entity("counter", counter);
    settle(&service, builder, |s| s.calls_of(token).len() == 3).await;
    assert_eq!(service.calls_of(token), [Call::Complete(token), Call::Abandon(token), Call::Release(token)]);
}

#[tokio::test(start_paused = true)]
async fn an_entity_whose_state_cannot_be_read_is_given_back() {
    let service = FakeService::new();
    let start = service.start_message("@counter@a", "@counter@a", Some("5"));
    let token = service.offer("@counter@a", Vec::new(), vec![start]);
    let history = vec![service.start_message("@counter@b", "b", Some("{")).event];
    let stored = service.offer("@counter@b", history, vec![request(&service, "@counter@b", "a")]);
    let settled = |s: &FakeService| s.calls_of(token).len() == 2 && s.calls_of(stored).len() == 2;
    settle(&service, service.worker().entity("counter", counter), settled).await;
    assert_eq!(service.calls_of(token), [Call::Abandon(token), Call::Release(token)]);
    assert_eq!(service.calls_of(stored), [Call::Abandon(stored), Call::Release(stored)]);
}

#[tokio::test(start_paused = true)]
async fn a_batch_keeps_its_lock_and_no_more_entities_run_at_once_than_allowed() {
    let service = FakeService::new();
    let tokens: Vec<_> = (0..5).map(|n| offer(&service, &format!("@slow@{n}"), &["wait"])).collect();
    let (now, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let (running, seen) = (now.clone(), most.clone());
    let settings = WorkerSettings { max_concurrent_task_entity_work_items: 2, ..WorkerSettings::default() };
    let builder = service.worker().settings(settings).entity("slow", move |_| {
        let (now, most) = (running.clone(), seen.clone());
        async move {
            most.fetch_max(now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
            tokio::time::sleep(Duration::from_secs(300)).await;
            now.fetch_sub(1, Ordering::SeqCst);
            Ok::<_, OperationError>(Reply::NONE)
        }
    });
    settle(&service, builder, |s| s.commits().len() == 5).await;
    assert_eq!(most.load(Ordering::SeqCst), 2);
    assert!(tokens.iter().all(|token| service.calls_of(*token).contains(&Call::Renew(*token))));
}

#[tokio::test(start_paused = true)]
async fn entities_and_orchestrations_do_not_take_each_others_slots() {
    let service = FakeService::new();
    offer(&service, "@slow@a", &["wait"]);
    service.offer_start("i", "Quick", None);
    offer(&service, "@slow@b", &["wait"]);
    service.offer_start("j", "Quick", None);
    let settings = WorkerSettings {
        max_concurrent_task_entity_work_items: 1,
        max_concurrent_task_orchestration_work_items: 1,
        ..WorkerSettings::default()
    };
    let builder = service
        .worker()
        .settings(settings)
        .entity("slow", counter)
        .orchestration("Quick", |_, (): ()| async { Ok::<_, OrchestratorError>(()) });
    let worker = running(builder).await;
    service.until("both orchestrations end", |s| s.commits().len() == 2).await;
    assert!(service.commits().iter().all(|commit| !commit.instance.instance_id.is_entity()));
    service.until("both entities end", |s| s.commits().len() == 4).await;
    worker.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_worker_that_stops_stores_the_operations_it_has_run_and_leaves_the_rest() {
    let service = FakeService::new();
    offer(&service, "@counter@a", &["wait", "b", "c"]);
    let settings = WorkerSettings { drain_timeout: Duration::from_secs(600), ..WorkerSettings::default() };
    let worker = running(service.worker().settings(settings).entity("counter", counter)).await;
    tokio::time::sleep(Duration::from_secs(30)).await;
    worker.stop().await;
    let commit = &service.commits()[0];
    assert_eq!(commit.custom_status.as_deref(), Some(r#"{"entityExists":true,"queueSize":2}"#));
    assert_eq!(answers(&service), [r#"{"result":"1"}"#]);
    let names: Vec<_> = commit
        .orchestrator_messages
        .iter()
        .filter_map(|message| match &message.event.kind {
            EventKind::EventRaised { name, .. } => name.as_deref(),
            _ => None,
        })
        .collect();
    assert_eq!(names, [ID, "continue"]);
}

#[tokio::test(start_paused = true)]
async fn a_batch_that_does_not_end_before_the_shutdown_is_given_back() {
    let service = FakeService::new();
    let token = offer(&service, "@counter@a", &["wait"]);
    let worker = running(service.worker().entity("counter", counter)).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    worker.stop().await;
    assert_eq!(service.calls_of(token), [Call::Abandon(token), Call::Release(token)]);
}
