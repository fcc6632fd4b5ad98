//! How a worker ends.

use std::time::Duration;

use taskhub_core::ErrorKind;
use taskhub_worker::{ActivityContext, ActivityError, WorkerSettings, WorkerState};
use tokio_util::sync::CancellationToken;

use crate::fake::{Call, FakeService};
use crate::running;

#[tokio::test(start_paused = true)]
async fn running_work_is_finished_before_the_worker_ends() {
    let service = FakeService::new();
    let token = service.offer_activity("Slow", None);
    let builder = service.worker().activity("Slow", |_, (): ()| async {
        tokio::time::sleep(Duration::from_secs(5)).await;
        Ok::<_, ActivityError>(())
    });
    let worker = running(builder).await;
    service.until("it runs", |s| s.open() == 1).await;
    let later = service.offer_activity("Slow", None);
    service.until("both run", |s| s.open() == 2).await;
    let begun = tokio::time::Instant::now();
    worker.stop().await;
    assert_eq!(begun.elapsed().as_secs(), 5);
    assert_eq!(service.calls_of(token), [Call::CompleteActivity(token)]);
    assert_eq!(service.calls_of(later), [Call::CompleteActivity(later)]);
    // The backend stopped receiving while they still ran.
    let calls = service.calls();
    let at = |call: &Call| calls.iter().position(|c| c == call).unwrap();
    assert!(at(&Call::Stop) < at(&Call::CompleteActivity(token)));
}

#[tokio::test(start_paused = true)]
async fn nothing_is_received_after_the_shutdown() {
    let service = FakeService::new();
    let worker = running(service.worker()).await;
    worker.stop().await;
    let received = service.calls().len();
    service.offer_activity("Any", None);
    service.offer_start("i", "Any", None);
    tokio::time::sleep(Duration::from_secs(100)).await;
    assert_eq!(service.calls().len(), received);
}

#[tokio::test(start_paused = true)]
async fn work_that_does_not_end_is_given_back() {
    let service = FakeService::new();
    let token = service.offer_activity("Hang", None);
    let builder = service.worker().activity("Hang", |_, (): ()| async {
        std::future::pending::<()>().await;
        Ok::<_, ActivityError>(())
    });
    let settings = WorkerSettings { drain_timeout: Duration::from_secs(15), ..WorkerSettings::default() };
    let worker = running(builder.settings(settings)).await;
    service.until("it runs", |s| s.open() == 1).await;
    let begun = tokio::time::Instant::now();
    worker.stop().await;
    assert_eq!(begun.elapsed().as_secs(), 15);
    assert_eq!(service.calls_of(token), [Call::AbandonActivity(token)]);
}

#[tokio::test(start_paused = true)]
async fn an_activity_learns_of_the_shutdown() {
    let service = FakeService::new();
    let token = service.offer_activity("Polite", None);
    let builder = service.worker().activity("Polite", |ctx: ActivityContext, (): ()| async move {
        ctx.cancellation().cancelled().await;
        Ok::<_, ActivityError>("stopped early")
    });
    let worker = running(builder).await;
    service.until("it runs", |s| s.open() == 1).await;
    worker.stop().await;
    assert_eq!(service.calls_of(token), [Call::CompleteActivity(token)]);
}

#[tokio::test(start_paused = true)]
async fn a_backend_that_does_not_start_ends_the_worker() {
    let service = FakeService::new();
    service.fail("start", &[ErrorKind::Denied]);
    let worker = service.worker().build().unwrap();
    let handle = worker.handle();
    let error = worker.run(CancellationToken::new()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Denied);
    handle.reached(WorkerState::Stopped).await;
    assert_eq!(service.calls(), [Call::Start]);
}

#[tokio::test(start_paused = true)]
async fn a_backend_that_does_not_stop_in_order_is_reported_after_everything_has_ended() {
    let service = FakeService::new();
    service.fail("stop", &[ErrorKind::Unavailable]);
    let worker = service.worker().build().unwrap();
    let handle = worker.handle();
    assert_eq!(handle.state(), WorkerState::Starting);
    let run = tokio::spawn(worker.run(CancellationToken::new()));
    handle.reached(WorkerState::Running).await;
    handle.shutdown();
    assert_eq!(run.await.unwrap().unwrap_err().kind(), ErrorKind::Unavailable);
    assert_eq!(handle.state(), WorkerState::Stopped);
}

#[tokio::test(start_paused = true)]
async fn a_backend_that_panics_while_receiving_ends_the_worker_in_order() {
    let service = FakeService::new();
    service.fail("lock_next_orchestration", &[ErrorKind::Internal]);
    let token = service.offer_activity("Slow", None);
    let builder = service.worker().activity("Slow", |_, (): ()| async {
        tokio::time::sleep(Duration::from_secs(5)).await;
        Ok::<_, ActivityError>(())
    });
    let error = builder.build().unwrap().run(CancellationToken::new()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Internal);
    assert_eq!(service.calls_of(token), [Call::CompleteActivity(token)]);
}
