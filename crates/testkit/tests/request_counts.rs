//! What orchestrations cost, to the request: one isolated instance at a time, on a warm worker that owns all
//! partitions, with a client in another process. docs/performance.md has the table.
#![allow(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "a test fails by panicking, and sleeps in virtual time"
)]

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use taskhub_azure_storage::{AzureStorageClient, AzureStorageService, AzureStorageSettings, Hub};
use taskhub_client::{Start, TaskHubClient};
use taskhub_core::{Clock, InstanceFetch, InstanceId, OrchestrationStatus, SeededIds, TaskHubName};
use taskhub_storage::memory::MemoryStore;
use taskhub_storage::request::{OperationCounts, RequestSettings};
use taskhub_testkit::VirtualClock;
use taskhub_worker::samples::{self, SampleOptions};
use taskhub_worker::{FusedActivities, Worker, WorkerSettings, WorkerState};
use tokio_util::sync::CancellationToken;

/// A hub with a worker and a client, each with its own count.
struct Rig {
    clock: Arc<dyn Clock>,
    store: MemoryStore,
    client: TaskHubClient,
    direct: TaskHubClient,
    worker_counts: OperationCounts,
    client_counts: OperationCounts,
    upkeep: [String; 2],
}

/// Requests for one instance.
#[derive(Debug)]
struct Cost {
    /// Without empty polls, partition rows and app lease.
    worker: u64,
    #[allow(dead_code, reason = "shown when a figure is wrong")]
    by_operation: BTreeMap<String, u64>,
    client: u64,
    /// From the start until a second and a half after the end.
    empty_polls: u64,
}

impl Rig {
    async fn start(change: impl Fn(&mut AzureStorageSettings)) -> Self {
        Self::start_with(change, WorkerSettings::default()).await
    }

    async fn start_with(change: impl Fn(&mut AzureStorageSettings), settings: WorkerSettings) -> Self {
        let clock: Arc<dyn Clock> = Arc::new(VirtualClock::default());
        let store = MemoryStore::new(clock.clone());
        let open = |worker: &str, counts: &OperationCounts| {
            let mut settings = AzureStorageSettings::new(TaskHubName::new("CountHub").unwrap(), worker);
            change(&mut settings);
            let account = store.account().layered(RequestSettings::default(), counts);
            Hub::new(settings, account, clock.clone(), Arc::new(SeededIds::new(7))).unwrap()
        };
        let client_of = |hub: &Hub| {
            TaskHubClient::new(Arc::new(AzureStorageClient::new(hub.clone())))
                .with_environment(clock.clone(), Arc::new(SeededIds::new(8)))
        };
        let (worker_counts, client_counts) = (OperationCounts::default(), OperationCounts::default());
        let hub = open("worker", &worker_counts);
        let client = client_of(&open("client", &client_counts));
        let direct = client_of(&open("direct", &OperationCounts::default()));
        client.create_hub().await.unwrap();
        let service = Arc::new(AzureStorageService::new(hub.clone()));
        let worker = samples::register(Worker::builder(service), SampleOptions::default())
            .settings(settings)
            .clock(clock.clone())
            .ids(Arc::new(SeededIds::new(9)))
            .build()
            .unwrap();
        let handle = worker.handle();
        tokio::spawn(worker.run(CancellationToken::new()));
        handle.reached(WorkerState::Running).await;
        let upkeep = [hub.names.partitions_table(), hub.names.app_lease_container()];
        let rig = Self { clock, store, client, direct, worker_counts, client_counts, upkeep };
        rig.run("HelloSequence", Value::Null, None).await;
        // The worker is warm, and its polling as slow as it gets.
        tokio::time::sleep(Duration::from_secs(300)).await;
        rig
    }

    fn counted(&self) -> (BTreeMap<String, u64>, u64, u64) {
        let mut work = BTreeMap::new();
        let mut empty = 0;
        for ((_, operation, resource), count) in self.worker_counts.by_resource() {
            if !self.upkeep.contains(&resource) && count.count > count.empty {
                *work.entry(operation.to_owned()).or_default() += count.count - count.empty;
            }
            empty += count.empty;
        }
        let client = self.client_counts.by_resource().values().map(|count| count.count).sum();
        (work, empty, client)
    }

    async fn until_ended(&self, id: &InstanceId) {
        loop {
            let state = self.direct.state(id, InstanceFetch::NONE).await.unwrap();
            match state.and_then(|state| state.status) {
                Some(OrchestrationStatus::Completed) => return,
                Some(status) if status.is_terminal() => panic!("{id} is {status}"),
                _ => tokio::time::sleep(Duration::from_millis(5)).await,
            }
        }
    }

    async fn run(&self, name: &str, input: Value, id: Option<&str>) -> InstanceId {
        let start = Start::new(name).input(&input).unwrap();
        let start = match id {
            Some(id) => start.instance_id(id),
            None => start,
        };
        let id = self.client.start(start).await.unwrap().instance_id;
        if name == "Approval" {
            let waits = async || {
                let events = self.direct.history(&id).await.unwrap();
                events.iter().any(|event| event.name() == "TimerCreated")
            };
            while !waits().await {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            self.client.raise_event(&id, "ApprovalEvent", &json!("yes")).await.unwrap();
        }
        self.until_ended(&id).await;
        id
    }

    async fn cost(&self, name: &str, input: Value, id: Option<&str>) -> Cost {
        let before = self.counted();
        let id = self.run(name, input, id).await;
        tokio::time::sleep(Duration::from_millis(1500)).await;
        let empty = self.counted().1;
        // Until all is quiet, and nothing is left.
        tokio::time::sleep(Duration::from_secs(120)).await;
        let after = self.counted();
        let by_operation: BTreeMap<_, _> = after
            .0
            .into_iter()
            .map(|(name, count)| (name.clone(), count - before.0.get(&name).unwrap_or(&0)))
            .filter(|(_, count)| *count > 0)
            .collect();
        let now = self.clock.now();
        let left =
            self.store.queues().iter().flat_map(|queue| self.store.messages(queue)).collect::<Vec<_>>();
        let far = |at: taskhub_core::Timestamp| at.saturating_since(now) > Duration::from_secs(600);
        assert!(left.iter().all(|message| far(message.next_visible_at)), "{id} leaves {left:?}");
        Cost {
            worker: by_operation.values().sum(),
            by_operation,
            client: after.2 - before.2,
            empty_polls: empty - before.1,
        }
    }
}

#[track_caller]
fn check(cost: &Cost, expected: u64) {
    assert_eq!(cost.worker, expected, "{cost:?}");
}

#[tokio::test(start_paused = true)]
async fn a_chain_of_n_activities_costs_5_and_3_for_each() {
    let rig = Rig::start(|_| {}).await;
    check(&rig.cost("Loop", json!(1), None).await, 8);
    check(&rig.cost("HelloSequence", Value::Null, None).await, 14);
    check(&rig.cost("Loop", json!(5), None).await, 20);
}

#[tokio::test(start_paused = true)]
async fn a_fan_out_shares_receives_and_episodes() {
    let rig = Rig::start(|_| {}).await;
    let cost = rig.cost("FanOutFanIn", json!(100), None).await;
    assert!(cost.worker <= 250, "{cost:?}");
}

#[tokio::test(start_paused = true)]
async fn timers_events_children_and_generations_cost_what_the_table_says() {
    let rig = Rig::start(|_| {}).await;
    check(&rig.cost("Timer", json!(2), None).await, 9);
    check(&rig.cost("Approval", json!(3600), None).await, 12);
    check(&rig.cost("Parent", Value::Null, None).await, 22);
    check(&rig.cost("Eternal", json!(1), None).await, 17);
}

#[tokio::test(start_paused = true)]
async fn an_isolated_orchestration_is_followed_by_few_empty_polls() {
    let rig = Rig::start(|_| {}).await;
    let cost = rig.cost("HelloSequence", Value::Null, None).await;
    assert!(cost.empty_polls <= 10, "{cost:?}");
}

#[tokio::test(start_paused = true)]
async fn with_fused_activities_a_chain_costs_5_whatever_its_length() {
    let settings = WorkerSettings { fused_activities: FusedActivities::all(), ..WorkerSettings::default() };
    let rig = Rig::start_with(|_| {}, settings).await;
    check(&rig.cost("Loop", json!(1), None).await, 5);
    check(&rig.cost("HelloSequence", Value::Null, None).await, 5);
    check(&rig.cost("Loop", json!(5), None).await, 5);
    check(&rig.cost("FanOutFanIn", json!(40), None).await, 5);
    // It does not fit into one transaction: nothing of it is fused.
    let cost = rig.cost("FanOutFanIn", json!(100), None).await;
    assert!(cost.worker <= 250, "{cost:?}");
}

#[tokio::test(start_paused = true)]
async fn entity_calls_cost_what_the_table_says() {
    let rig = Rig::start(|_| {}).await;
    // The worker reads the history of an entity that it does not know.
    check(&rig.cost("CallEntity", json!("@counter@c1"), None).await, 36);
    check(&rig.cost("CallEntity", json!("@counter@c1"), None).await, 35);
}

#[tokio::test(start_paused = true)]
async fn with_dtfx_cadence_an_orchestration_costs_what_it_costs_in_dotnet() {
    // Also where activities shall be fused.
    let fused = WorkerSettings { fused_activities: FusedActivities::all(), ..WorkerSettings::default() };
    let rig = Rig::start_with(|settings| settings.dtfx_cadence = true, fused).await;
    check(&rig.cost("Loop", json!(1), None).await, 15);
    let cost = rig.cost("HelloSequence", Value::Null, None).await;
    check(&cost, 33);
    assert_eq!(cost.client, 3);
    check(&rig.cost("Loop", json!(5), None).await, 51);
}

#[tokio::test(start_paused = true)]
async fn a_start_with_a_new_id_does_not_look_for_an_instance_of_that_id() {
    let rig = Rig::start(|_| {}).await;
    let cost = rig.cost("HelloSequence", Value::Null, None).await;
    assert_eq!(cost.client, 2, "{cost:?}");
    let cost = rig.cost("HelloSequence", Value::Null, Some("mine")).await;
    assert_eq!(cost.client, 3, "{cost:?}");
}
