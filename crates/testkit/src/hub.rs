use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use taskhub_azure_storage::{AzureStorageClient, AzureStorageSettings, Hub, PartitionManagerKind};
use taskhub_client::TaskHubClient;
use taskhub_core::{
    Clock, ErrorKind, IdSource, InstanceFetch, InstanceId, OrchestrationState, SeededIds, ServiceError,
    TaskHubName, Timestamp,
};
use taskhub_entities::SchedulerState;
use taskhub_storage::StorageAccount;
use taskhub_storage::memory::MemoryStore;

use crate::VirtualClock;
use crate::dump::{self, HubDump};
use crate::golden::{Ending, Step};
use crate::load::{self, Hidden};
use crate::wait::eventually_within;

/// A task hub under test, with a client, and workers that run the samples.
#[derive(Debug, Clone)]
pub struct TestHub {
    name: TaskHubName,
    account: StorageAccount,
    memory: Option<MemoryStore>,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) ids: Arc<dyn IdSource>,
    polling_interval: Option<Duration>,
    manager: Option<PartitionManagerKind>,
}

impl TestHub {
    /// A hub in an empty store in memory, with the ids of `seed`, in virtual time that begins at `now`. It
    /// does not exist yet.
    pub fn in_memory(name: &TaskHubName, seed: u64, now: Timestamp) -> Self {
        let clock = Arc::new(VirtualClock::starting_at(now));
        let store = MemoryStore::new(clock.clone());
        Self {
            name: name.clone(),
            account: store.account(),
            memory: Some(store),
            clock,
            ids: Arc::new(SeededIds::new(seed)),
            polling_interval: None,
            manager: None,
        }
    }

    /// A hub in an account of the service, polled often. It does not exist yet.
    pub fn in_account(
        name: &TaskHubName,
        account: StorageAccount,
        clock: Arc<dyn Clock>,
        ids: Arc<dyn IdSource>,
    ) -> Self {
        let polling_interval = Some(Duration::from_millis(500));
        Self { name: name.clone(), account, memory: None, clock, ids, polling_interval, manager: None }
    }

    /// The same with a partition manager that is not the default.
    #[must_use]
    pub fn with_manager(mut self, manager: PartitionManagerKind) -> Self {
        self.manager = Some(manager);
        self
    }

    /// Its name.
    pub fn name(&self) -> &TaskHubName {
        &self.name
    }

    /// Its account.
    pub fn account(&self) -> &StorageAccount {
        &self.account
    }

    /// Its store, when that is in memory.
    pub fn memory(&self) -> Option<&MemoryStore> {
        self.memory.as_ref()
    }

    /// Its clock.
    pub fn clock(&self) -> &Arc<dyn Clock> {
        &self.clock
    }

    /// The hub as a process called `worker_id` opens it, with default settings.
    ///
    /// # Errors
    /// The settings are out of range.
    pub fn open(&self, worker_id: &str) -> Result<Hub> {
        let mut settings = AzureStorageSettings::new(self.name.clone(), worker_id);
        settings.partition_manager = self.manager;
        if let Some(interval) = self.polling_interval {
            settings.max_queue_polling_interval = interval;
            settings.lease_acquire_interval = interval * 2;
        }
        Ok(Hub::new(settings, self.account.clone(), self.clock.clone(), self.ids.clone())?)
    }

    /// A client.
    ///
    /// # Errors
    /// As [`TestHub::open`].
    pub fn client(&self) -> Result<TaskHubClient> {
        let client = AzureStorageClient::new(self.open("client")?);
        Ok(TaskHubClient::new(Arc::new(client)).with_environment(self.clock.clone(), self.ids.clone()))
    }

    /// Loads a captured hub.
    ///
    /// # Errors
    /// Those of [`load::load`] or [`load::load_into`].
    pub async fn load(&self, dump: &HubDump, hidden: Hidden) -> Result<()> {
        match &self.memory {
            Some(store) => load::load(store, dump, &self.name, hidden, self.clock.now()).await?,
            None => load::load_into(&self.account, dump, &self.name, hidden, &*self.clock).await?,
        }
        self.pass_a_second().await;
        Ok(())
    }

    /// Takes the hub as it is; from the service, only with its visible messages.
    ///
    /// # Errors
    /// Those of the storage.
    pub async fn take(&self) -> Result<HubDump> {
        match &self.memory {
            Some(store) => dump::take(store, &self.name, self.clock.now()).await,
            None => dump::take_visible(&self.account, &self.name).await,
        }
    }

    /// Does what a client does.
    ///
    /// # Errors
    /// Those of the client.
    pub async fn act(&self, step: &Step) -> Result<()> {
        let client = self.client()?;
        match step {
            Step::Raise { instance, event, payload } => {
                client.raise_raw_event(&instance.as_str().into(), event, Some(payload.clone())).await?;
            }
            Step::Resume { instance, reason } => {
                client.resume(&instance.as_str().into(), reason.as_deref()).await?;
            }
            Step::Terminate { instance, reason } => {
                client.terminate(&instance.as_str().into(), reason.as_deref()).await?;
            }
        }
        self.pass_a_second().await;
        Ok(())
    }

    /// DTFx takes messages that were inserted in the same second in any order, so what depends on an order
    /// must not be sent within one.
    pub async fn pass_a_second(&self) {
        tokio::time::sleep(Duration::from_millis(1100)).await;
    }

    /// The state of an instance.
    ///
    /// # Errors
    /// There is no such instance, or the storage failed.
    pub async fn state(&self, instance: &str) -> Result<OrchestrationState> {
        let state = self.client()?.state(&InstanceId::new(instance), InstanceFetch::ALL).await?;
        state.with_context(|| format!("no instance {instance}"))
    }

    /// Waits until `reached` says so of the state of an instance.
    ///
    /// # Panics
    /// When it does not within ten minutes.
    pub async fn until(&self, instance: &str, what: &str, reached: impl Fn(&OrchestrationState) -> bool) {
        eventually_within(END_WITHIN, &format!("{instance}: {what}"), || async {
            self.state(instance).await.ok().filter(|state| reached(state))
        })
        .await;
    }

    /// Waits until the history of an instance holds an event of this name.
    ///
    /// # Panics
    /// When it does not within ten minutes.
    pub async fn until_event(&self, instance: &str, event: &str) {
        eventually_within(END_WITHIN, &format!("{instance}: {event}"), || async {
            let history = self.client().ok()?.history(&InstanceId::new(instance)).await.ok()?;
            history.iter().any(|found| found.name() == event).then_some(())
        })
        .await;
    }

    /// Waits until every instance has ended as it should.
    ///
    /// # Errors
    /// One ended otherwise, or not within ten minutes; the error shows what it is.
    pub async fn ends(&self, endings: &[Ending]) -> Result<()> {
        for ending in endings {
            let instance = ending.instance.as_str();
            let waited = tokio::time::timeout(END_WITHIN, async {
                loop {
                    match self.state(instance).await {
                        Ok(state) if is_final(&state) => return Some(state),
                        // Entities do not end.
                        Ok(state)
                            if state.instance.instance_id.is_entity() && check(&state, ending).is_ok() =>
                        {
                            return Some(state);
                        }
                        _ => tokio::time::sleep(Duration::from_millis(200)).await,
                    }
                }
            });
            match waited.await {
                Ok(Some(state)) => check(&state, ending)?,
                _ => bail!("not finished in time: {instance} is {:?}", self.state(instance).await),
            }
        }
        Ok(())
    }

    /// Deletes the hub, if it exists.
    ///
    /// # Errors
    /// Those of the storage.
    pub async fn delete(&self) -> Result<(), ServiceError> {
        match self.open("client") {
            Ok(hub) => hub.delete().await,
            Err(error) => Err(ServiceError::new(ErrorKind::Invalid, error.to_string())),
        }
    }
}

/// How long [`TestHub::ends`] and the like wait.
const END_WITHIN: Duration = Duration::from_secs(600);

fn is_final(state: &OrchestrationState) -> bool {
    state.status.is_some_and(|status| status.is_terminal())
}

fn check(state: &OrchestrationState, ending: &Ending) -> Result<()> {
    let instance = &ending.instance;
    let status = state.status.map(|status| status.number());
    ensure!(status == Some(ending.status), "{instance}: status {:?}: {state:?}", state.status);
    if let Some(expected) = &ending.output {
        ensure!(state.output.as_ref() == Some(expected), "{instance}: output {:?}", state.output);
    }
    if let Some((start, length)) = &ending.long_output {
        let output = state.output.as_deref().unwrap_or_default();
        ensure!(output.starts_with(start), "{instance}: output does not begin with {start}");
        ensure!(output.encode_utf16().count() == *length, "{instance}: {} bytes of output", output.len());
    }
    if let Some(expected) = &ending.custom_status {
        ensure!(state.custom_status.as_ref() == Some(expected), "{instance}: {:?}", state.custom_status);
    }
    if let Some(expected) = &ending.entity_state {
        let scheduler = SchedulerState::from_json(state.input.as_deref().unwrap_or_default())
            .with_context(|| format!("{instance}: {:?}", state.input))?;
        ensure!(scheduler.state.as_ref() == Some(expected), "{instance}: {:?}", scheduler.state);
    }
    Ok(())
}
