//! A worker and a client on a hub of their own, each with its own count of requests.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use taskhub_azure_storage::names::ResourceNames;
use taskhub_azure_storage::{AzureStorageSettings, Hub};
use taskhub_client::{Start, TaskHubClient};
use taskhub_core::{Clock, IdSource, InstanceId, OrchestrationStatus, RandomIds, SystemClock, TaskHubName};
use taskhub_storage::StorageAccount;
use taskhub_storage::memory::MemoryStore;
use taskhub_storage::request::{OperationCounts, RequestSettings};
use taskhub_worker::samples::{self, SampleOptions};
use taskhub_worker::{FusedActivities, Worker, WorkerSettings, WorkerState};
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::bill::Bill;
use super::observe::{EntityTally, Observed, Waiting};
use super::orchestrations::Case;
use crate::args::{BenchArgs, CommonArgs, PartitionManager};
use crate::config::{Connection, Environment, HubConfig};
use crate::console::Console;
use crate::demo::Emulator;
use crate::wire;

/// An orchestration that takes longer counts as lost.
const LONGEST: Duration = Duration::from_secs(300);

/// Which requests workers and clients send.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Cadence {
    /// As they are by default.
    Own,
    /// Those that .NET sends: `dtfx_cadence`.
    Dtfx,
}

/// Where the client is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ClientPlace {
    /// In the worker's process: it can tell the worker of its messages.
    WithTheWorker,
    /// As if in another process: its messages have to be found.
    Elsewhere,
}

/// Where orchestrations are measured.
pub(super) struct Place {
    pub(super) name: &'static str,
    pub(super) connection: Option<Connection>,
    /// Lives as long as it is needed.
    emulator: Option<Emulator>,
    pub(super) hub: Option<TaskHubName>,
    /// Who distributes the partitions among worker processes.
    pub(super) partition_manager: PartitionManager,
    /// How scenarios run that have no cadence of their own.
    pub(super) cadence: Cadence,
    /// Whether activities run inside the episodes that ask for them.
    pub(super) fuses: bool,
    clock: Arc<dyn Clock>,
    /// What all rigs have sent, creation and deletion of their hubs included.
    pub(super) bill: Bill,
    /// Cancelled: stop measuring, but clean up.
    pub(super) interrupted: CancellationToken,
    /// Longest pause between two receives: short where requests cost nothing.
    pub(super) max_polling_interval: Duration,
}

impl Place {
    pub(super) async fn open(
        common: &CommonArgs,
        args: &BenchArgs,
        environment: &Environment,
        interrupted: CancellationToken,
        console: &mut Console,
    ) -> Result<Self> {
        let hub = common.task_hub_name.as_deref().map(TaskHubName::new).transpose()?;
        let cadence = if args.dtfx_cadence { Cadence::Dtfx } else { Cadence::Own };
        let fuses = args.fuse_activities;
        let embedded = Self { cadence, fuses, ..Self::embedded(hub, Arc::new(SystemClock), interrupted) };
        if args.azurite {
            let emulator = Emulator::start(false).await?;
            return Ok(Self {
                name: "Azurite",
                connection: Some(emulator.connection_string().into()),
                emulator: Some(emulator),
                partition_manager: args.partition_manager,
                max_polling_interval: Duration::from_millis(250),
                ..embedded
            });
        }
        if common.names_account() {
            let common = CommonArgs { task_hub_name: Some(new_hub_name()?.to_string()), ..common.clone() };
            let config = HubConfig::load(&common, environment, console)?;
            return Ok(Self {
                name: "storage account",
                connection: Some(config.connection),
                partition_manager: args.partition_manager,
                max_polling_interval: Duration::from_secs(1),
                ..embedded
            });
        }
        Ok(embedded)
    }

    /// The emulator that was started for it.
    pub(super) fn emulator_process(&self) -> Option<u32> {
        self.emulator.as_ref().map(Emulator::process_id)
    }

    /// The embedded store.
    pub(super) fn embedded(
        hub: Option<TaskHubName>,
        clock: Arc<dyn Clock>,
        interrupted: CancellationToken,
    ) -> Self {
        Self {
            name: "embedded store",
            connection: None,
            emulator: None,
            hub,
            partition_manager: PartitionManager::default(),
            cadence: Cadence::Own,
            fuses: false,
            clock,
            bill: Bill::default(),
            interrupted,
            max_polling_interval: Duration::from_millis(100),
        }
    }
}

/// Runs orchestrations, one per call. Clones share client and worker.
#[derive(Clone)]
pub(super) struct Orchestrations {
    client: TaskHubClient,
    waiting: Waiting,
}

impl Orchestrations {
    /// Runs one and returns how long it took, from the call of the client to the checkpoint of the last
    /// episode. The storage is not asked for the state.
    pub(super) async fn run(&self, case: Case, id: &str) -> Result<Duration> {
        let mut start = Start::new(case.function()).instance_id(id);
        if let Some(input) = case.input() {
            start = start.input(&input)?;
        }
        let finished = self.waiting.for_end_of(InstanceId::new(id));
        let begun = Instant::now();
        self.client.start(start).await?;
        let finished = tokio::time::timeout(LONGEST, finished)
            .await
            .with_context(|| format!("an orchestration does not end. instance=`{id}`"))??;
        if finished.status != OrchestrationStatus::Completed {
            bail!("an orchestration did not complete. instance=`{id}` status=`{}`", finished.status);
        }
        Ok(finished.at - begun)
    }
}

/// Signals entities. Clones share client and worker.
#[derive(Clone)]
pub(super) struct Signals {
    pub(super) client: TaskHubClient,
    entities: EntityTally,
}

impl Signals {
    /// Waits until so many more messages of entities have been run and their batches stored.
    pub(super) fn stored(&self, messages: u64) -> impl Future<Output = Result<()>> + Send + use<> {
        let mut done = self.entities.watch();
        let all = done.borrow().messages + messages;
        async move {
            let reached = tokio::time::timeout(LONGEST, done.wait_for(|done| done.messages >= all)).await;
            reached.context("entities do not run all that they were sent")?.context("nobody counts")?;
            Ok(())
        }
    }
}

/// A worker that runs, and a client. To be stopped, whatever happened.
pub(super) struct Rig {
    client: TaskHubClient,
    waiting: Waiting,
    entities: EntityTally,
    pub(super) names: ResourceNames,
    pub(super) worker_counts: OperationCounts,
    pub(super) client_counts: OperationCounts,
    bill: Bill,
    interrupted: CancellationToken,
    stop: CancellationToken,
    running: JoinHandle<Result<(), taskhub_core::ServiceError>>,
}

impl Rig {
    /// Creates a hub and starts a worker on it, with an app lease, as it is usual.
    pub(super) async fn start(place: &Place, cadence: Cadence, client: ClientPlace) -> Result<Self> {
        let name = place.hub.clone().map_or_else(new_hub_name, Ok)?;
        let (worker_counts, client_counts) = (OperationCounts::default(), OperationCounts::default());
        let ids: Arc<dyn IdSource> = Arc::new(RandomIds);
        // One store, seen through two counters.
        let store = MemoryStore::new(place.clock.clone());
        let account = |counts: &OperationCounts| -> Result<StorageAccount> {
            Ok(match &place.connection {
                Some(connection) => wire::counted_account(connection, counts)?,
                None => store.account().layered(RequestSettings::default(), counts),
            })
        };
        let open = |account: StorageAccount| -> Result<Hub> {
            let mut settings = AzureStorageSettings::new(name.clone(), wire::worker_id());
            settings.max_queue_polling_interval = place.max_polling_interval;
            settings.dtfx_cadence = cadence == Cadence::Dtfx;
            Ok(Hub::new(settings, account, place.clock.clone(), ids.clone())?)
        };
        let worker_hub = open(account(&worker_counts)?)?;
        let client_hub = match client {
            ClientPlace::WithTheWorker => {
                let mut hub = worker_hub.clone();
                hub.account = account(&client_counts)?;
                hub
            }
            ClientPlace::Elsewhere => open(account(&client_counts)?)?,
        };
        if client_hub.detect().await?.is_some() {
            bail!("the measurement makes a task hub and deletes it, but this one exists. hub=`{name}`");
        }
        let client = wire::client(&client_hub).with_environment(place.clock.clone(), ids.clone());
        client.create_hub().await?;
        let waiting = Waiting::default();
        let entities = EntityTally::default();
        let service = Observed {
            service: wire::service(&worker_hub),
            waiting: waiting.clone(),
            entities: entities.clone(),
        };
        let worker = samples::register(Worker::builder(Arc::new(service)), SampleOptions::default())
            .settings(WorkerSettings {
                fused_activities: FusedActivities { all: place.fuses, ..FusedActivities::default() },
                ..WorkerSettings::default()
            })
            .clock(place.clock.clone())
            .ids(ids)
            .build()?;
        let (handle, stop) = (worker.handle(), CancellationToken::new());
        let running = tokio::spawn(worker.run(stop.clone()));
        handle.reached(WorkerState::Running).await;
        Ok(Self {
            client,
            waiting,
            entities,
            names: client_hub.names,
            worker_counts,
            client_counts,
            bill: place.bill.clone(),
            interrupted: place.interrupted.clone(),
            stop,
            running,
        })
    }

    /// Runs orchestrations while the worker runs.
    pub(super) async fn drive<T>(
        &mut self,
        what: impl AsyncFnOnce(&Orchestrations) -> Result<T>,
    ) -> Result<T> {
        let orchestrations = Orchestrations { client: self.client.clone(), waiting: self.waiting.clone() };
        self.during(what(&orchestrations)).await
    }

    /// Signals entities while the worker runs.
    pub(super) async fn signal<T>(&mut self, what: impl AsyncFnOnce(&Signals) -> Result<T>) -> Result<T> {
        let signals = Signals { client: self.client.clone(), entities: self.entities.clone() };
        self.during(what(&signals)).await
    }

    /// Batches of entities that are stored.
    pub(super) fn batches(&self) -> u64 {
        self.entities.watch().borrow().batches
    }

    async fn during<T>(&mut self, what: impl Future<Output = Result<T>>) -> Result<T> {
        tokio::select! {
            done = what => done,
            () = self.interrupted.cancelled() => bail!("interrupted"),
            ended = &mut self.running => {
                ended.context("the worker crashed")?.context("the worker failed")?;
                bail!("the worker ended early");
            }
        }
    }

    /// Stops the worker and deletes the hub.
    pub(super) async fn stop(self) -> Result<()> {
        self.stop.cancel();
        if !self.running.is_finished() {
            self.running.await.context("the worker crashed")?.context("the worker failed")?;
        }
        let deleted = self.client.delete_hub().await;
        self.bill.add(&self.worker_counts);
        self.bill.add(&self.client_counts);
        Ok(deleted?)
    }
}

/// `TaskhubBench` and 8 random hex digits: nobody else's.
pub(super) fn new_hub_name() -> Result<TaskHubName> {
    let chance = &RandomIds.guid().simple().to_string()[..8];
    Ok(TaskHubName::new(format!("TaskhubBench{chance}"))?)
}
