//! The endpoints of a worker through its life, asked over real sockets.

#![allow(clippy::unwrap_used, reason = "test code outside of test functions")]

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use taskhub_core::{
    ActivityWorkItem, EpisodeCommit, LockToken, OrchestrationWorkItem, PartitionId, TaskMessage, Timestamp,
};
use taskhub_http::prometheus_client::metrics::counter::Counter;
use taskhub_http::prometheus_client::registry::Registry;
use taskhub_http::{Health, METRICS_CONTENT_TYPE, ProbeError, Server, health, listen, livez_at, probe};
use taskhub_testkit::eventually;
use taskhub_worker::{OrchestrationService, Readiness, ServiceError, ServiceStatus, Worker, WorkerHandle};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

const PATIENCE: Duration = Duration::from_secs(10);

/// A backend without work. A test sets its status and lets its start and its stop go on.
struct Backend {
    status: Mutex<ServiceStatus>,
    start: Semaphore,
    stop: Semaphore,
    panics: CancellationToken,
}

impl Backend {
    fn says(&self, readiness: Readiness, detail: Option<&str>) {
        let mut status = self.status.lock().unwrap();
        status.readiness = readiness;
        status.detail = detail.map(str::to_owned);
    }

    async fn nothing_came(&self, timeout: Duration) {
        tokio::select! {
            () = tokio::time::sleep(timeout.min(Duration::from_millis(20))) => {}
            () = self.panics.cancelled() => panic!("the test said so"),
        }
    }
}

#[async_trait]
impl OrchestrationService for Backend {
    async fn start(&self) -> Result<(), ServiceError> {
        self.start.acquire().await.expect("never closed").forget();
        Ok(())
    }

    async fn stop(&self, _: Duration) -> Result<(), ServiceError> {
        self.stop.acquire().await.expect("never closed").forget();
        Ok(())
    }

    fn status(&self) -> ServiceStatus {
        self.status.lock().unwrap().clone()
    }

    async fn lock_next_orchestration(
        &self,
        timeout: Duration,
    ) -> Result<Option<OrchestrationWorkItem>, ServiceError> {
        self.nothing_came(timeout).await;
        Ok(None)
    }

    async fn lock_next_entity(
        &self,
        timeout: Duration,
    ) -> Result<Option<OrchestrationWorkItem>, ServiceError> {
        self.nothing_came(timeout).await;
        Ok(None)
    }

    async fn lock_next_activity(&self, timeout: Duration) -> Result<Option<ActivityWorkItem>, ServiceError> {
        self.nothing_came(timeout).await;
        Ok(None)
    }

    async fn renew_orchestration(&self, _: LockToken) -> Result<Timestamp, ServiceError> {
        unreachable!("there is no work")
    }
    async fn complete_orchestration(&self, _: LockToken, _: EpisodeCommit) -> Result<(), ServiceError> {
        unreachable!("there is no work")
    }
    async fn discard_orchestration(&self, _: LockToken) -> Result<(), ServiceError> {
        unreachable!("there is no work")
    }
    async fn abandon_orchestration(&self, _: LockToken) -> Result<(), ServiceError> {
        unreachable!("there is no work")
    }
    async fn next_session_messages(&self, _: LockToken) -> Result<Option<Vec<TaskMessage>>, ServiceError> {
        unreachable!("there is no work")
    }
    async fn release_orchestration(&self, _: LockToken) {}
    async fn renew_activity(&self, _: LockToken) -> Result<Timestamp, ServiceError> {
        unreachable!("there is no work")
    }
    async fn complete_activity(&self, _: LockToken, _: TaskMessage) -> Result<(), ServiceError> {
        unreachable!("there is no work")
    }
    async fn abandon_activity(&self, _: LockToken) -> Result<(), ServiceError> {
        unreachable!("there is no work")
    }
}

/// A worker on such a backend, and its endpoints on a free port of this machine.
struct Endpoints {
    address: SocketAddr,
    backend: Arc<Backend>,
    handle: WorkerHandle,
    worker: JoinHandle<Result<(), ServiceError>>,
    server: Server,
}

impl Endpoints {
    async fn new(with: impl FnOnce(Health) -> Health) -> Self {
        let backend = Arc::new(Backend {
            status: Mutex::default(),
            start: Semaphore::new(0),
            stop: Semaphore::new(0),
            panics: CancellationToken::new(),
        });
        let worker = Worker::builder(backend.clone()).build().unwrap();
        let handle = worker.handle();
        let any = "127.0.0.1:0".parse().unwrap();
        let server = Server::start(any, health(with(Health::of(handle.clone())))).await.unwrap();
        let address = server.address();
        let worker = tokio::spawn(worker.run(CancellationToken::new()));
        Self { address, backend, handle, worker, server }
    }

    async fn ask(&self, request: &str) -> String {
        let mut stream = TcpStream::connect(self.address).await.unwrap();
        let request = format!("{request} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }

    /// Waits until `path` answers with this code; returns the body.
    async fn answers(&self, path: &str, code: u16) -> String {
        let what = format!("{path} answers {code}");
        eventually(&what, || async {
            let answer = self.ask(&format!("GET {path}")).await;
            let body = answer.split_once("\r\n\r\n")?.1.to_owned();
            answer.starts_with(&format!("HTTP/1.1 {code} ")).then_some(body)
        })
        .await
    }

    async fn readiness(&self) -> serde_json::Value {
        let answer = self.ask("GET /readyz").await;
        serde_json::from_str(answer.split_once("\r\n\r\n").unwrap().1).unwrap()
    }

    async fn started() -> Self {
        let endpoints = Self::new(|health| health).await;
        endpoints.backend.start.add_permits(1);
        endpoints.answers("/readyz", 200).await;
        endpoints
    }
}

#[tokio::test]
async fn the_codes_follow_the_worker_through_its_life() {
    let endpoints = Endpoints::new(|health| health).await;
    endpoints.answers("/livez", 200).await;
    assert!(endpoints.answers("/readyz", 503).await.contains(r#""status":"starting""#));

    endpoints.backend.start.add_permits(1);
    endpoints.answers("/readyz", 200).await;
    endpoints.answers("/livez", 200).await;

    endpoints.handle.shutdown();
    assert!(endpoints.answers("/readyz", 503).await.contains(r#""status":"stopping""#));
    // A probe that failed now would have the process killed in the middle of its work.
    endpoints.answers("/livez", 200).await;

    endpoints.backend.stop.add_permits(1);
    endpoints.answers("/livez", 503).await;
    assert!(endpoints.answers("/readyz", 503).await.contains(r#""status":"stopped""#));
    endpoints.worker.await.unwrap().unwrap();

    endpoints.server.stop().await.unwrap();
    assert!(TcpStream::connect(endpoints.address).await.is_err());
}

#[tokio::test]
async fn a_worker_that_cannot_get_work_is_not_ready_and_says_why_but_lives() {
    let endpoints = Endpoints::started().await;
    for (readiness, status) in [
        (Readiness::WaitingForAppLease, "waiting_for_app_lease"),
        (Readiness::StorageUnreachable, "storage_unreachable"),
        (Readiness::Starting, "starting"),
    ] {
        endpoints.backend.says(readiness, Some("because \"of\" this"));
        let body: serde_json::Value = serde_json::from_str(&endpoints.answers("/readyz", 503).await).unwrap();
        assert_eq!(
            (body["status"].as_str(), body["detail"].as_str()),
            (Some(status), Some("because \"of\" this"))
        );
        endpoints.answers("/livez", 200).await;
    }
    endpoints.backend.says(Readiness::Ready, None);
    endpoints.answers("/readyz", 200).await;
}

#[tokio::test]
async fn partitions_and_the_age_of_the_last_look_are_shown() {
    let endpoints = Endpoints::started().await;
    {
        let mut status = endpoints.backend.status.lock().unwrap();
        status.partitions = vec![PartitionId(0), PartitionId(3)];
        status.last_look_age = Some(Duration::from_millis(7_900));
    }
    let expected = serde_json::json!({ "status": "ready", "partitions": [0, 3], "lastLookAgeSeconds": 7 });
    assert_eq!(endpoints.readiness().await, expected);
}

#[tokio::test]
async fn a_worker_whose_dispatchers_end_on_their_own_does_not_live() {
    let endpoints = Endpoints::started().await;
    endpoints.backend.stop.add_permits(1);
    endpoints.backend.panics.cancel();
    endpoints.answers("/livez", 503).await;
    assert!(endpoints.worker.await.unwrap().is_err());
}

#[tokio::test]
async fn a_worker_that_was_dropped_does_not_live() {
    let endpoints = Endpoints::started().await;
    endpoints.worker.abort();
    endpoints.answers("/livez", 503).await;
    assert!(endpoints.answers("/readyz", 503).await.contains(r#""status":"stopped""#));
}

#[tokio::test]
async fn metrics_come_as_openmetrics_where_there_are_any() {
    let endpoints = Endpoints::new(|health| {
        let mut registry = Registry::default();
        let counter: Counter = Counter::default();
        counter.inc();
        registry.register("things", "Things that happened", counter);
        health.with_metrics(registry)
    })
    .await;
    let answer = endpoints.ask("GET /metrics").await;
    assert!(answer.starts_with("HTTP/1.1 200 ") && answer.contains(METRICS_CONTENT_TYPE), "{answer}");
    assert!(answer.ends_with("\nthings_total 1\n# EOF\n"), "{answer}");
    Endpoints::new(|health| health).await.answers("/metrics", 404).await;
}

#[tokio::test]
async fn only_get_and_only_these_paths_are_answered() {
    let endpoints = Endpoints::started().await;
    for (request, code) in
        [("POST /livez", 405), ("GET /", 404), ("GET /readyz/x", 404), ("HEAD /livez", 200)]
    {
        let answer = endpoints.ask(request).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {code} ")), "{request}: {answer}");
    }
}

#[tokio::test]
async fn a_connection_that_stays_open_does_not_hold_up_the_stop() {
    let endpoints = Endpoints::started().await;
    let _idle = TcpStream::connect(endpoints.address).await.unwrap();
    let mut half = TcpStream::connect(endpoints.address).await.unwrap();
    half.write_all(b"GET /livez HTT").await.unwrap();
    tokio::time::timeout(PATIENCE, endpoints.server.stop()).await.expect("it ends").unwrap();
}

#[tokio::test]
async fn an_address_in_use_is_an_error_that_names_it() {
    let first = listen("127.0.0.1:0".parse().unwrap()).await.unwrap();
    let address = first.local_addr().unwrap();
    let error = listen(address).await.unwrap_err();
    assert_eq!(error.to_string(), format!("cannot listen. address=`{address}`"));
}

#[tokio::test]
async fn a_probe_succeeds_with_a_live_worker_and_repeats_what_a_failed_one_says() {
    let endpoints = Endpoints::started().await;
    let readyz = format!("http://{}/readyz", endpoints.address);
    probe(&livez_at(endpoints.address), PATIENCE).await.unwrap();
    probe(&readyz, PATIENCE).await.unwrap();
    endpoints.backend.says(Readiness::WaitingForAppLease, None);
    match probe(&readyz, PATIENCE).await.unwrap_err() {
        ProbeError::Unhealthy { status: 503, answer, .. } => {
            assert_eq!(answer, r#"{"status":"waiting_for_app_lease","partitions":[]}"#);
        }
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_probe_fails_without_an_answer_in_http() {
    let free = listen("127.0.0.1:0".parse().unwrap()).await.unwrap().local_addr().unwrap();
    let refused = probe(&format!("http://{free}/livez"), PATIENCE).await.unwrap_err();
    assert!(matches!(refused, ProbeError::Connection { .. }), "{refused:?}");

    let silent = listen("127.0.0.1:0".parse().unwrap()).await.unwrap();
    let url = format!("http://{}/livez", silent.local_addr().unwrap());
    let error = probe(&url, Duration::from_millis(50)).await.unwrap_err();
    assert!(matches!(error, ProbeError::TimedOut { .. }), "{error:?}");

    let other = tokio::spawn(async move {
        let _timed_out = silent.accept().await.unwrap();
        let (mut stream, _) = silent.accept().await.unwrap();
        let mut request = [0; 1024];
        assert!(stream.read(&mut request).await.unwrap() > 0);
        stream.write_all(b"SSH-2.0\r\n").await.unwrap();
    });
    let error = probe(&url, PATIENCE).await.unwrap_err();
    assert!(matches!(error, ProbeError::NotHttp { .. }), "{error:?}");
    other.await.unwrap();

    for address in ["https://127.0.0.1/livez", "127.0.0.1:80/livez", "", "http://"] {
        let error = probe(address, PATIENCE).await.unwrap_err();
        assert!(matches!(error, ProbeError::Address { .. }), "{address}: {error:?}");
    }
}
