use std::sync::Arc;
use std::time::Duration;

use taskhub_azure_storage::{AzureStorageService, AzureStorageSettings};
use taskhub_client::{Start, TaskHubClient};
use taskhub_core::{InstanceFetch, OrchestrationState, OrchestrationStatus, TaskHubName, Timestamp};
use taskhub_testkit::TestHub;
use taskhub_worker::samples::{self, SampleOptions};
use taskhub_worker::{WorkItemLabels, Worker, WorkerBuilder, WorkerHandle, WorkerSettings};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

pub(crate) const LONG: Duration = Duration::from_secs(3600);

/// A hub in memory with a client; workers are added by the test.
pub(crate) struct World {
    pub(crate) hub: TestHub,
    pub(crate) client: TaskHubClient,
}

/// A worker in the background.
pub(crate) struct Running {
    handle: WorkerHandle,
    task: JoinHandle<()>,
}

impl Running {
    /// Batches of entities that this worker has stored.
    pub(crate) fn entity_batches(&self) -> u64 {
        let completed = WorkItemLabels { kind: "entity", outcome: "completed" };
        self.handle.metrics().work_items.get_or_create(&completed).get()
    }

    pub(crate) async fn stop(self) {
        self.handle.shutdown();
        self.task.await.unwrap();
    }
}

impl World {
    pub(crate) fn new() -> Self {
        let start = Timestamp::parse("2026-01-15T09:30:00Z").unwrap();
        let hub = TestHub::in_memory(&TaskHubName::new("ScenarioHub").unwrap(), 1, start);
        let client = hub.client().unwrap();
        Self { hub, client }
    }

    /// A worker with the sample functions.
    pub(crate) fn samples(&self) -> Running {
        self.worker(|builder| samples::register(builder, SampleOptions::default()))
    }

    /// A worker with the functions and settings that `register` adds.
    pub(crate) fn worker(&self, register: impl FnOnce(WorkerBuilder) -> WorkerBuilder) -> Running {
        self.worker_named("w1", |_| {}, register)
    }

    pub(crate) fn worker_named(
        &self,
        id: &str,
        settings: impl FnOnce(&mut AzureStorageSettings),
        register: impl FnOnce(WorkerBuilder) -> WorkerBuilder,
    ) -> Running {
        let mut hub = self.hub.open(id).unwrap();
        settings(Arc::make_mut(&mut hub.settings));
        let (clock, ids) = (hub.clock.clone(), hub.ids.clone());
        let service = Arc::new(AzureStorageService::new(hub));
        let builder = Worker::builder(service)
            .settings(WorkerSettings { drain_timeout: Duration::from_secs(60), ..WorkerSettings::default() })
            .clock(clock)
            .ids(ids);
        let worker = register(builder).build().unwrap();
        let handle = worker.handle();
        let task = tokio::spawn(async move { worker.run(CancellationToken::new()).await.unwrap() });
        Running { handle, task }
    }

    pub(crate) async fn start(&self, id: &str, start: Start) {
        self.client.start(start.instance_id(id)).await.unwrap();
    }

    /// Waits for the end of an instance.
    pub(crate) async fn end(&self, id: &str) -> OrchestrationState {
        let waited = self.client.wait_for_completion(&id.into(), LONG).await.unwrap();
        waited.finished().unwrap_or_else(|| panic!("{id} does not finish"))
    }

    /// Waits for the end and checks status and output.
    pub(crate) async fn ends(&self, id: &str, status: OrchestrationStatus, output: &str) {
        let state = self.end(id).await;
        assert_eq!((state.status, state.output.as_deref()), (Some(status), Some(output)), "{id}");
    }

    pub(crate) async fn completes(&self, id: &str, output: &str) {
        self.ends(id, OrchestrationStatus::Completed, output).await;
    }

    pub(crate) async fn state(&self, id: &str) -> OrchestrationState {
        self.client.state(&id.into(), InstanceFetch::ALL).await.unwrap().unwrap()
    }

    /// Names of the events in the history.
    pub(crate) async fn events(&self, id: &str) -> Vec<&'static str> {
        self.client.history(&id.into()).await.unwrap().iter().map(|e| e.name()).collect()
    }

    /// Waits until an instance has got so far that it waits.
    pub(crate) async fn waits(&self, id: &str, event: &str) {
        self.hub.until_event(id, event).await;
    }
}
