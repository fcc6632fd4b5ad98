//! Work for functions that a worker does not have: it waits for a worker that has them, in virtual time.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::sync::Arc;
use std::time::Duration;

use prometheus_client::registry::Registry;
use taskhub_azure_storage::{AzureStorageService, AzureStorageSettings, Hub};
use taskhub_client::Start;
use taskhub_core::{Clock, ErrorKind, InstanceFetch, OrchestrationStatus, TaskHubName, Timestamp};
use taskhub_storage::request::{OperationCounts, RequestSettings};
use taskhub_testkit::{TestHub, seeded_ids};
use taskhub_worker::{
    ActivityContext, ActivityError, OrchestrationContext, OrchestratorError, Worker, WorkerBuilder,
    WorkerHandle, WorkerState, join_all,
};
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

async fn greet(ctx: OrchestrationContext, name: String) -> Result<String, OrchestratorError> {
    Ok(ctx.call_activity::<_, String>("SayHello", name).await?)
}

async fn say_hello(_: ActivityContext, name: String) -> Result<String, ActivityError> {
    Ok(format!("Hello {name}!"))
}

struct World {
    hub: TestHub,
}

struct Running {
    handle: WorkerHandle,
    task: JoinHandle<Result<(), taskhub_core::ServiceError>>,
    counts: OperationCounts,
}

impl World {
    fn new() -> Self {
        let start = Timestamp::parse("2026-03-01T12:00:00Z").unwrap();
        Self { hub: TestHub::in_memory(&TaskHubName::new("TestHub").unwrap(), 1, start) }
    }

    async fn worker(&self, id: &str, register: impl FnOnce(WorkerBuilder) -> WorkerBuilder) -> Running {
        let counts = OperationCounts::default();
        let account = self.hub.account().clone().layered(RequestSettings::default(), &counts);
        let settings = AzureStorageSettings::new(self.hub.name().clone(), id);
        let clock: Arc<dyn Clock> = self.hub.clock().clone();
        let hub = Hub::new(settings, account, clock.clone(), seeded_ids(id.len() as u64)).unwrap();
        let builder =
            Worker::builder(Arc::new(AzureStorageService::new(hub))).clock(clock).ids(seeded_ids(9));
        let worker = register(builder).build().unwrap();
        let handle = worker.handle();
        let task = tokio::spawn(worker.run(CancellationToken::new()));
        handle.reached(WorkerState::Running).await;
        Running { handle, task, counts }
    }

    async fn start(&self, instance: &str) {
        let start = Start::new("Greet").instance_id(instance).input(&"you").unwrap();
        self.hub.client().unwrap().start(start).await.unwrap();
    }

    async fn status(&self, instance: &str) -> OrchestrationStatus {
        let state = self.hub.client().unwrap().state(&instance.into(), InstanceFetch::NONE).await.unwrap();
        state.unwrap().status.unwrap()
    }

    async fn completes(&self, instance: &str, within: Duration) {
        let began = Instant::now();
        while self.status(instance).await != OrchestrationStatus::Completed {
            assert!(began.elapsed() < within, "{instance} is {:?}", self.status(instance).await);
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    }
}

impl Running {
    /// Receives that brought something.
    fn receptions(&self) -> u64 {
        let count = self.counts.of("GetMessages");
        count.count - count.empty
    }

    /// How often an activity that this worker does not have was looked at.
    fn unknown_activities(&self) -> u64 {
        let metrics = self.metrics();
        let lines =
            metrics.lines().filter(|l| l.starts_with("taskhub_unknown_function_total{kind=\"activity\""));
        lines.map(|line| line.rsplit(' ').next().unwrap().parse::<u64>().unwrap()).sum()
    }

    fn metrics(&self) -> String {
        let mut registry = Registry::default();
        self.handle.metrics().register(&mut registry);
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
        text
    }

    async fn stop(self) {
        self.handle.shutdown();
        self.task.await.unwrap().unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn an_activity_that_nobody_has_waits_without_spinning_and_runs_when_a_worker_has_it() {
    let world = World::new();
    let old = world.worker("old", |w| w.orchestration("Greet", greet)).await;
    world.start("a").await;
    tokio::time::sleep(Duration::from_secs(3600)).await;
    assert_eq!(world.status("a").await, OrchestrationStatus::Running);
    // The request is seen as often as an idle worker looks at all, twice a minute.
    let receptions = old.receptions();
    assert!((60..=180).contains(&receptions), "{receptions}");
    assert!(old.counts.of("GetMessages").count < 1000, "{}", old.counts.of("GetMessages").count);
    let metrics = old.metrics();
    assert!(
        metrics.contains("taskhub_unknown_function_total{kind=\"activity\",name=\"SayHello\"}"),
        "{metrics}"
    );

    let new =
        world.worker("newer", |w| w.orchestration("Greet", greet).activity("SayHello", say_hello)).await;
    world.completes("a", Duration::from_secs(60)).await;
    old.stop().await;
    new.stop().await;
}

async fn crowd(ctx: OrchestrationContext, size: i64) -> Result<i64, OrchestratorError> {
    let calls: Vec<_> = (0..size).map(|n| ctx.call_activity::<_, i64>("Unheard", n)).collect();
    join_all(calls).await;
    Ok(size)
}

#[tokio::test(start_paused = true)]
async fn thousands_of_activities_that_nobody_has_cost_ten_receptions_a_second_and_hold_up_nobody() {
    const CROWD: u64 = 2000;
    let world = World::new();
    let register = |w: WorkerBuilder| {
        w.orchestration("Greet", greet).orchestration("Crowd", crowd).activity("SayHello", say_hello)
    };
    let worker = world.worker("w1", register).await;
    let start = Start::new("Crowd").instance_id("crowd").input(&CROWD).unwrap();
    world.hub.client().unwrap().start(start).await.unwrap();
    // Each has been seen, and they come again and again.
    tokio::time::sleep(Duration::from_secs(600)).await;
    assert!(worker.unknown_activities() >= CROWD);
    let before = worker.unknown_activities();
    tokio::time::sleep(Duration::from_secs(1200)).await;
    let receptions = worker.unknown_activities() - before;
    // Hidden for a minute at most, they would be received 40,000 times.
    assert!((CROWD..=12_500).contains(&receptions), "{receptions}");
    for n in 0..10 {
        let instance = format!("a{n}");
        world.start(&instance).await;
        world.completes(&instance, Duration::from_secs(60)).await;
        let history = world.hub.client().unwrap().history(&instance.as_str().into()).await.unwrap();
        let at = |name: &str| history.iter().find(|event| event.name() == name).unwrap().timestamp;
        let took = at("TaskCompleted").saturating_since(at("TaskScheduled"));
        assert!(took < Duration::from_secs(2), "{took:?}");
    }
    worker.stop().await;
}

#[tokio::test(start_paused = true)]
async fn an_orchestration_that_nobody_has_waits_without_spinning_and_runs_when_a_worker_has_it() {
    let world = World::new();
    let old = world.worker("old", |w| w.activity("SayHello", say_hello)).await;
    world.start("a").await;
    tokio::time::sleep(Duration::from_secs(3600)).await;
    assert_eq!(world.status("a").await, OrchestrationStatus::Pending, "not failed");
    let receptions = old.receptions();
    assert!((30..=70).contains(&receptions), "{receptions}");
    // Four partitions: each reception quickens the polling of one of them for half a minute.
    assert!(old.counts.of("GetMessages").count < 3000, "{}", old.counts.of("GetMessages").count);
    let metrics = old.metrics();
    assert!(
        metrics.contains("taskhub_unknown_function_total{kind=\"orchestration\",name=\"Greet\"}"),
        "{metrics}"
    );
    old.stop().await;

    let new =
        world.worker("newer", |w| w.orchestration("Greet", greet).activity("SayHello", say_hello)).await;
    world.completes("a", Duration::from_secs(100)).await;
    new.stop().await;
}

#[tokio::test(start_paused = true)]
async fn in_a_fleet_the_worker_that_has_the_activity_gets_it_soon() {
    let world = World::new();
    let without = world.worker("without", |w| w.orchestration("Greet", greet)).await;
    let with =
        world.worker("with", |w| w.orchestration("Greet", greet).activity("SayHello", say_hello)).await;
    // Both idle, and look seldom.
    tokio::time::sleep(Duration::from_secs(600)).await;
    for n in 0..20 {
        let instance = format!("a{n}");
        world.start(&instance).await;
        world.completes(&instance, Duration::from_secs(120)).await;
    }
    without.stop().await;
    with.stop().await;
}

#[tokio::test(start_paused = true)]
async fn the_backend_is_told_why_work_is_given_back() {
    // What a worker cannot do is no error of the hub: nothing of it shows as a dead letter.
    let world = World::new();
    let old = world.worker("old", |w| w).await;
    world.start("a").await;
    tokio::time::sleep(Duration::from_secs(1200)).await;
    let containers = world.hub.account().blobs.list_containers("testhub-deadletters").await;
    assert_eq!(containers.map_err(|_| ErrorKind::Unavailable).unwrap(), Vec::<String>::new());
    old.stop().await;
}
