//! A task hub in memory with one worker and a client: everything an example needs, in one process.
//!
//! For a hub in Azure Storage, replace the store's account by one made from a connection string.

// Not every example uses everything.
#![allow(dead_code, unreachable_pub)]

use std::error::Error;
use std::sync::Arc;
use std::time::Duration;

use taskhub_azure_storage::{AzureStorageClient, AzureStorageService, AzureStorageSettings, Hub};
use taskhub_client::{Start, TaskHubClient};
use taskhub_core::{InstanceId, OrchestrationState, RandomIds, SystemClock, TaskHubName};
use taskhub_storage::memory::MemoryStore;
use taskhub_worker::{ServiceError, Worker, WorkerBuilder};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

pub type Outcome<T = ()> = Result<T, Box<dyn Error + Send + Sync>>;

/// A running task hub.
pub struct Example {
    pub client: TaskHubClient,
    shutdown: CancellationToken,
    worker: JoinHandle<Result<(), ServiceError>>,
}

impl Example {
    /// Starts a worker with the functions that `register` adds.
    pub async fn start(register: impl FnOnce(WorkerBuilder) -> WorkerBuilder) -> Outcome<Self> {
        let clock = Arc::new(SystemClock);
        let account = MemoryStore::new(clock.clone()).account();
        let mut settings = AzureStorageSettings::new(TaskHubName::new("Examples")?, "example");
        settings.lease_acquire_interval = Duration::from_millis(500);
        settings.max_queue_polling_interval = Duration::from_millis(200);
        let hub = Hub::new(settings, account, clock, Arc::new(RandomIds))?;

        let client = TaskHubClient::new(Arc::new(AzureStorageClient::new(hub.clone())));
        let worker = register(Worker::builder(Arc::new(AzureStorageService::new(hub)))).build()?;
        let shutdown = CancellationToken::new();
        let worker = tokio::spawn(worker.run(shutdown.clone()));
        client.create_hub().await?;
        Ok(Self { client, shutdown, worker })
    }

    /// Starts an instance and waits until it has ended.
    pub async fn run(&self, start: Start) -> Outcome<OrchestrationState> {
        let started = self.client.start(start).await?;
        self.end_of(&started.instance_id).await
    }

    /// Waits until an instance has ended.
    pub async fn end_of(&self, instance_id: &InstanceId) -> Outcome<OrchestrationState> {
        let waited = self.client.wait_for_completion(instance_id, Duration::from_secs(60)).await?;
        waited.finished().ok_or_else(|| format!("{instance_id} did not end within a minute").into())
    }

    /// Stops the worker after what it is doing.
    pub async fn stop(self) -> Outcome {
        self.shutdown.cancel();
        Ok(self.worker.await??)
    }
}

/// Status and output of an instance in one line.
pub fn describe(state: &OrchestrationState) -> String {
    let status = state.status.map_or("unknown", |status| status.name());
    format!(
        "{} {}: {status} {}",
        state.name,
        state.instance.instance_id,
        state.output.as_deref().unwrap_or("-")
    )
}
