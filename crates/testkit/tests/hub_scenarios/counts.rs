//! How many requests a scenario needs: exact counts, not times.

use std::collections::BTreeMap;
use std::time::Duration;

use taskhub_azure_storage::{AzureStorageClient, AzureStorageService, AzureStorageSettings, Hub};
use taskhub_client::{Start, TaskHubClient};
use taskhub_core::{OrchestrationServiceClient, ServiceError, TaskHubName};
use taskhub_storage::memory::MemoryStore;
use taskhub_storage::request::{OperationCounts, RequestSettings};
use taskhub_testkit::{VirtualClock, eventually, seeded_ids};
use taskhub_worker::{Worker, WorkerHandle, samples};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// All requests but the polls that bring nothing.
fn essential(counts: &OperationCounts) -> BTreeMap<String, u64> {
    let mut essential = BTreeMap::new();
    for ((_, operation), count) in counts.snapshot() {
        let n = match operation {
            "GetMessages" => count.count - count.empty,
            _ => count.count,
        };
        if n > 0 {
            essential.insert(operation.to_owned(), n);
        }
    }
    essential
}

/// A hub whose requests are counted by who makes them, with one worker that has all partitions.
struct Counted {
    worker: OperationCounts,
    client_counts: OperationCounts,
    client: TaskHubClient,
    observer: TaskHubClient,
    handle: WorkerHandle,
    task: JoinHandle<Result<(), ServiceError>>,
}

impl Counted {
    async fn new() -> Self {
        let clock = std::sync::Arc::new(VirtualClock::default());
        let store = MemoryStore::new(clock.clone());
        let name = TaskHubName::new("CountHub").unwrap();
        let open = |id: &str, counts: &OperationCounts| {
            let account = store.account().layered(RequestSettings::default(), counts);
            let mut settings = AzureStorageSettings::new(name.clone(), id);
            // Partitions are claimed once and not looked after again during the test.
            settings.lease_acquire_interval = Duration::from_secs(24 * 3600);
            settings.lease_interval = Duration::from_secs(3600);
            settings.use_app_lease = false;
            Hub::new(settings, account, clock.clone(), seeded_ids(1)).unwrap()
        };
        let (worker_counts, client_counts, other) =
            (OperationCounts::default(), OperationCounts::default(), OperationCounts::default());
        let service = std::sync::Arc::new(AzureStorageService::new(open("w1", &worker_counts)));
        let worker = samples::register(
            Worker::builder(service).clock(clock.clone()).ids(seeded_ids(2)),
            Default::default(),
        )
        .build()
        .unwrap();
        let handle = worker.handle();
        let task = tokio::spawn(worker.run(CancellationToken::new()));
        eventually("all partitions owned", || async {
            let rows = store.entities("CountHubPartitions");
            (rows.len() == 4 && rows.iter().all(|r| r.str("CurrentOwner").is_some())).then_some(())
        })
        .await;
        tokio::time::sleep(Duration::from_secs(5)).await;
        let backend = std::sync::Arc::new(AzureStorageClient::new(open("client", &client_counts)));
        backend.create_hub().await.unwrap();
        let client = TaskHubClient::new(backend).with_environment(clock.clone(), seeded_ids(3));
        let observer =
            TaskHubClient::new(std::sync::Arc::new(AzureStorageClient::new(open("observer", &other))));
        Self { worker: worker_counts, client_counts, client, observer, handle, task }
    }

    /// Requests of worker and client since `work` began, with a minute for what follows it.
    async fn of(&self, work: impl Future<Output = ()>) -> (BTreeMap<String, u64>, BTreeMap<String, u64>) {
        tokio::time::sleep(Duration::from_secs(60)).await;
        self.worker.reset();
        self.client_counts.reset();
        work.await;
        tokio::time::sleep(Duration::from_secs(60)).await;
        (essential(&self.worker), essential(&self.client_counts))
    }

    async fn hello(&self, id: &str) {
        self.client.start(Start::new("HelloSequence").instance_id(id)).await.unwrap();
        self.observer.wait_for_completion(&id.into(), Duration::from_secs(600)).await.unwrap();
    }

    async fn stop(self) {
        self.handle.shutdown();
        self.task.await.unwrap().unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn an_isolated_hello_sequence_costs_no_more_requests_than_dotnet_needs() {
    let hub = Counted::new().await;
    // One instance first, so that everything is warm; then one alone, counted.
    hub.hello("warm").await;
    let (worker, client) = hub.of(hub.hello("counted")).await;
    assert!(worker.values().sum::<u64>() <= 33, "of the worker: {worker:?}");
    assert!(client.values().sum::<u64>() <= 3, "of the client: {client:?}");
    assert_eq!((worker["EntityGroupTransaction"], worker["PutMessage"], worker["DeleteMessage"]), (4, 3, 4));
    hub.stop().await;
}

#[tokio::test(start_paused = true)]
async fn signals_cost_a_message_each_and_a_checkpoint_for_many() {
    let hub = Counted::new().await;
    let counter = "@counter@a".parse().unwrap();
    let signal = async |times: usize| {
        for _ in 0..times {
            hub.client.signal_entity(&counter, "add", None, None).await.unwrap();
        }
    };
    signal(1).await;
    let (worker, client) = hub.of(signal(1)).await;
    // The message, the checkpoint with its row, the message's end; .NET also reads the history.
    for operation in ["GetMessages", "EntityGroupTransaction", "MergeEntity", "DeleteMessage"] {
        assert_eq!(worker.get(operation), Some(&1), "{worker:?}");
    }
    assert_eq!(worker.values().sum::<u64>(), 4, "{worker:?}");
    assert_eq!(client, BTreeMap::from([("PutMessage".to_owned(), 1)]));
    let (worker, _) = hub.of(signal(1000)).await;
    assert_eq!(worker["DeleteMessage"], 1000);
    assert!(worker["EntityGroupTransaction"] <= 40, "{worker:?}");
    assert!(worker.values().sum::<u64>() <= 1200, "{worker:?}");
    let state = hub.observer.read_entity(&counter).await.unwrap().unwrap().state;
    assert_eq!(state.as_deref(), Some("1002"));
    hub.stop().await;
}

#[tokio::test(start_paused = true)]
async fn an_idle_worker_makes_no_more_requests_in_an_hour_than_operations_md_says() {
    let clock = std::sync::Arc::new(VirtualClock::default());
    let counts = OperationCounts::default();
    let account = MemoryStore::new(clock.clone()).account().layered(RequestSettings::default(), &counts);
    let settings = AzureStorageSettings::new(TaskHubName::new("IdleHub").unwrap(), "w1");
    let hub = Hub::new(settings, account, clock.clone(), seeded_ids(1)).unwrap();
    let service = std::sync::Arc::new(AzureStorageService::new(hub));
    let worker = Worker::builder(service).clock(clock).ids(seeded_ids(2)).build().unwrap();
    let handle = worker.handle();
    let task = tokio::spawn(worker.run(CancellationToken::new()));
    // Polling intervals have grown by then.
    tokio::time::sleep(Duration::from_secs(600)).await;
    counts.reset();
    tokio::time::sleep(Duration::from_secs(3600)).await;
    let hour: BTreeMap<String, u64> = counts
        .snapshot()
        .into_iter()
        .map(|((_, operation), count)| (operation.to_owned(), count.count))
        .collect();
    let all: u64 = hour.values().sum();
    assert!(all <= 1_170, "{hour:?}");
    handle.shutdown();
    task.await.unwrap().unwrap();
}
