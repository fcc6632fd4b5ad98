//! The backend as a client sees it.

use async_trait::async_trait;
use taskhub_core::{
    ErrorKind, EventKind, ExecutionId, ExecutionStarted, HistoryEvent, InstanceFetch, InstanceId,
    InstancePage, InstanceQuery, OrchestrationInstance, OrchestrationServiceClient, OrchestrationState,
    PurgeGate, PurgeMany, PurgeResult, PurgedInstance, RewindOutcome, RewindRequest, ServiceError,
    StartOutcome, StartRequest, TaskMessage, execution_id_from,
};
use taskhub_storage::request::on_behalf_of;
use tokio::sync::OnceCell;

use crate::hub::{Hub, HubLayout};
use crate::instance_names::account;
use crate::message;
use crate::partition::app_lease;
use crate::queue::send::{MessageSender, client_sender};
use crate::tracking::key;
use crate::tracking::purge::PurgeOnly;
use crate::tracking::store::TrackingStore;

/// There is no hub of this name in the account.
#[derive(Debug, thiserror::Error)]
#[error("there is no task hub of this name")]
pub struct HubMissing;

/// A task hub in Azure Storage as a client uses it. It touches no leases.
#[derive(Debug)]
pub struct AzureStorageClient {
    hub: Hub,
    tracking: TrackingStore,
    sender: OnceCell<MessageSender>,
    creates_hub: bool,
}

impl AzureStorageClient {
    /// A client of a hub. Nothing is read before it is needed.
    pub fn new(hub: Hub) -> Self {
        Self { tracking: TrackingStore::new(hub.clone()), hub, sender: OnceCell::new(), creates_hub: true }
    }

    /// The same client, for which a hub that does not exist is an error (`NotFound`, caused by [`HubMissing`])
    /// instead of one to be created.
    #[must_use]
    pub fn of_existing_hub(mut self) -> Self {
        self.creates_hub = false;
        self
    }

    /// Looks at the hub now, instead of before the first message.
    ///
    /// # Errors
    /// As [`Hub::detect`]; `NotFound` see [`AzureStorageClient::of_existing_hub`].
    pub async fn connect(&self) -> Result<(), ServiceError> {
        self.sender().await.map(drop)
    }

    /// The hub.
    pub fn hub(&self) -> &Hub {
        &self.hub
    }

    async fn existing(&self) -> Result<HubLayout, ServiceError> {
        self.hub.detect().await?.ok_or_else(|| {
            let text = format!("the task hub cannot be used. hub=`{}`", self.hub.name());
            ServiceError::with_source(ErrorKind::NotFound, text, HubMissing)
        })
    }

    /// Workers of this process need not wait until they look.
    fn ring(&self, sender: &MessageSender, message: &TaskMessage) {
        let now = self.hub.clock.now();
        let delay = message::visibility_delay(message, now);
        let due = (!delay.is_zero()).then(|| now + delay);
        self.hub.doorbell.ring(sender.partition_of(message), due);
    }

    /// The partition count is the hub's, read before the first message is sent; a hub that does not exist
    /// is created, as DTFx clients do.
    async fn sender(&self) -> Result<&MessageSender, ServiceError> {
        self.sender
            .get_or_try_init(|| async {
                let partition_count = match self.hub.told_partition_count().await? {
                    Some(count) => count,
                    None if self.creates_hub => self.hub.ensure().await?.partition_count,
                    None => self.existing().await?.partition_count,
                };
                Ok(MessageSender::new(self.hub.clone(), partition_count))
            })
            .await
    }
}

#[async_trait]
impl OrchestrationServiceClient for AzureStorageClient {
    async fn create_hub(&self) -> Result<(), ServiceError> {
        self.hub.ensure().await.map(drop)
    }

    async fn delete_hub(&self) -> Result<(), ServiceError> {
        self.hub.delete().await
    }

    /// The message goes first, the row second: a worker compares both and waits for the row.
    /// Source: Azure/durabletask, `AzureStorageOrchestrationService.CreateTaskOrchestrationAsync`.
    async fn start_instance(&self, request: StartRequest) -> Result<StartOutcome, ServiceError> {
        let sender = self.sender().await?;
        let name = request.name.clone();
        // Differs: DTFx also looks for an instance with an id that it has just made up.
        let existing = if request.id_is_new && !self.hub.settings.dtfx_cadence {
            None
        } else {
            let read = self.tracking.instance_row(&request.instance_id);
            on_behalf_of(Some(account(&request.instance_id, &name)), read).await?
        };
        if let Some(status) = existing.as_ref().and_then(|row| row.state.status)
            && request.dedupe_statuses.contains(&status)
        {
            if self.hub.settings.throw_exception_on_invalid_dedupe_status {
                return Err(ServiceError::new(
                    ErrorKind::AlreadyExists,
                    format!(
                        "an instance with this id exists. hub=`{}` instance=`{}` status=`{status}`",
                        self.hub.name(),
                        request.instance_id
                    ),
                ));
            }
            return Ok(StartOutcome::Exists { status });
        }
        let execution_id = execution_id_from(&*self.hub.ids);
        let instance = OrchestrationInstance::new(request.instance_id.clone(), execution_id.clone());
        let generation =
            existing.as_ref().map_or(0, |row| row.state.generation.unwrap_or(0).saturating_add(1));
        let started = ExecutionStarted {
            instance: instance.clone(),
            parent: None,
            name: request.name,
            version: Some(request.version.unwrap_or_default()),
            input: request.input,
            tags: request.tags,
            correlation: None,
            parent_trace_context: None,
            scheduled_start_time: request.scheduled_start_at,
            generation: Some(generation),
            generate_new_trace: false,
        };
        let kind = EventKind::ExecutionStarted(Box::new(started));
        let event = HistoryEvent::message(self.hub.clock.now(), kind);
        let message = TaskMessage::new(event, instance);
        let name = account(&request.instance_id, &name);
        // A worker of this process may receive the message before the row is written.
        let _starting =
            (!self.hub.settings.dtfx_cadence).then(|| self.hub.doorbell.begin_start(execution_id.clone()));
        on_behalf_of(Some(name), async {
            let sent = sender.send_control(&message, &client_sender()).await?;
            let blob = sent.data.compressed_blob_name;
            self.tracking.create_instance(&message, blob.as_deref(), existing).await
        })
        .await?;
        self.ring(sender, &message);
        Ok(StartOutcome::Started { instance_id: request.instance_id, execution_id })
    }

    async fn send_event(
        &self,
        target: OrchestrationInstance,
        event: HistoryEvent,
    ) -> Result<(), ServiceError> {
        let message = TaskMessage::new(event, target);
        let sender = self.sender().await?;
        sender.send_control(&message, &client_sender()).await?;
        self.ring(sender, &message);
        Ok(())
    }

    async fn instance_state(
        &self,
        instance_id: &InstanceId,
        fetch: InstanceFetch,
    ) -> Result<Option<OrchestrationState>, ServiceError> {
        self.tracking.instance_state(instance_id, fetch).await
    }

    async fn list_instances(&self, query: &InstanceQuery) -> Result<InstancePage, ServiceError> {
        self.tracking.list_instances(query).await
    }

    async fn history(
        &self,
        instance_id: &InstanceId,
        execution_id: Option<&ExecutionId>,
    ) -> Result<Vec<HistoryEvent>, ServiceError> {
        Ok(self.tracking.history(instance_id, execution_id).await?.events)
    }

    /// Rows first: a message that finds a failed instance is discarded.
    async fn rewind_instance(&self, request: &RewindRequest) -> Result<RewindOutcome, ServiceError> {
        let sender = self.sender().await?;
        let rewinding = self.tracking.rewind(request).await?;
        for message in rewinding.messages {
            sender.send_control(&message, &client_sender()).await?;
            self.ring(sender, &message);
        }
        Ok(rewinding.outcome)
    }

    async fn make_primary(&self) -> Result<(), ServiceError> {
        if !self.creates_hub {
            self.existing().await?;
        }
        app_lease::ask_for(&self.hub).await
    }

    async fn purge_instance(&self, instance_id: &InstanceId) -> Result<PurgeResult, ServiceError> {
        Ok(self.tracking.purge(instance_id, PurgeOnly::Any).await?.unwrap_or_default())
    }

    async fn purge_if_finished(&self, instance_id: &InstanceId) -> Result<Option<PurgeResult>, ServiceError> {
        self.tracking.purge(instance_id, PurgeOnly::Finished).await
    }

    async fn purge_many(&self, purge: PurgeMany, gate: &dyn PurgeGate) -> Vec<PurgedInstance> {
        self.tracking.purge_many(purge, gate).await
    }

    fn list_key(&self, instance_id: &InstanceId) -> String {
        key::escape(instance_id.as_str())
    }
}
