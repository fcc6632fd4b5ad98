use std::time::Duration;

use async_trait::async_trait;

use crate::{
    ExecutionId, HistoryEvent, InstanceFetch, InstanceId, InstancePage, InstanceQuery, OrchestrationInstance,
    OrchestrationState, OrchestrationStatus, PurgeGate, PurgeMany, PurgeResult, PurgedInstance,
    RewindOutcome, RewindRequest, ServiceError, ServiceStatus, StartOutcome, Tags, TaskMessage, Timestamp,
};

/// Names a locked work item between lock and release. Valid in the process that got it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct LockToken(pub u64);

/// One locked orchestration or entity with the messages that woke it.
#[derive(Debug, Clone)]
pub struct OrchestrationWorkItem {
    /// Names the lock.
    pub token: LockToken,
    /// The instance; its execution is unknown before the first episode of a start without history.
    pub instance: OrchestrationInstance,
    /// History as committed, in order; empty for a new execution.
    pub history: Vec<HistoryEvent>,
    /// Messages to be handled, in order.
    pub messages: Vec<TaskMessage>,
    /// Until when the lock holds without renewal.
    pub locked_until: Timestamp,
    /// How often the least lucky message has been received; 1 for the first time.
    pub attempt: u32,
}

/// The result of an episode, to be stored at once.
#[derive(Debug, Clone)]
pub struct EpisodeCommit {
    /// Execution at the end of the episode; a new one after continue-as-new.
    pub instance: OrchestrationInstance,
    /// Whether `new_events` replace the history instead of extending it (continue-as-new).
    pub replaces_history: bool,
    /// Events of this episode, in order.
    pub new_events: Vec<HistoryEvent>,
    /// Status after the episode.
    pub status: OrchestrationStatus,
    /// Custom status set by the orchestrator, serialised; `None` shows as `null`.
    pub custom_status: Option<String>,
    /// Activities to run (`TaskScheduled`).
    pub activity_messages: Vec<TaskMessage>,
    /// Messages to instances: starts, events, replies to a parent.
    pub orchestrator_messages: Vec<TaskMessage>,
    /// Timers to itself (`TimerFired`, due at their `FireAt`).
    pub timer_messages: Vec<TaskMessage>,
}

/// One locked activity request.
#[derive(Debug, Clone)]
pub struct ActivityWorkItem {
    /// Names the lock.
    pub token: LockToken,
    /// The request (`TaskScheduled`).
    pub message: TaskMessage,
    /// Until when the lock holds without renewal.
    pub locked_until: Timestamp,
    /// How often the request has been received; 1 for the first time.
    pub attempt: u32,
}

/// Why a work item is given back unprocessed.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum GiveBackReason {
    /// Not the work's fault: the worker stops, another worker has the instance, a service cannot be reached.
    Interrupted,
    /// This worker has no such function. Another one may have it, now or after the next deployment, so the
    /// work must come back soon, and is never set aside.
    UnknownFunction {
        /// Name of the function.
        name: String,
    },
    /// It failed in a way that another try may well repeat.
    Failed {
        /// What failed, for a person; without inputs or payloads.
        reason: String,
    },
}

/// A message of a work item that the worker cannot make sense of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnreadableMessage {
    /// The message as the work item has it.
    pub message: TaskMessage,
    /// Why, for a person; without payloads.
    pub reason: String,
}

/// A backend as a worker sees it.
///
/// A work item is locked by `lock_next_*`, kept by `renew_*`, ended by `complete_*` or `abandon_*`; an
/// orchestration is then released with `release_orchestration`, an activity needs no release.
#[async_trait]
pub trait OrchestrationService: Send + Sync {
    /// Creates the hub where needed and starts to acquire partitions and to receive.
    async fn start(&self) -> Result<(), ServiceError>;

    /// Stops receiving first, then waits for `drain_timeout` for open work items, hands partitions back
    /// and makes unprocessed messages visible again.
    async fn stop(&self, drain_timeout: Duration) -> Result<(), ServiceError>;

    /// The next orchestration with work, never an entity, or `None` when none came within `timeout`.
    async fn lock_next_orchestration(
        &self,
        timeout: Duration,
    ) -> Result<Option<OrchestrationWorkItem>, ServiceError>;

    /// The next entity with work, or `None` when none came within `timeout`. It is kept and ended like an
    /// orchestration. Source: Azure/durabletask, `IEntityOrchestrationService.LockNextEntityWorkItemAsync` with
    /// `UseSeparateQueueForEntityWorkItems`.
    async fn lock_next_entity(
        &self,
        timeout: Duration,
    ) -> Result<Option<OrchestrationWorkItem>, ServiceError>;

    /// Prolongs a lock and returns its new end.
    async fn renew_orchestration(&self, token: LockToken) -> Result<Timestamp, ServiceError>;

    /// Stores an episode and consumes its messages.
    ///
    /// # Errors
    /// `SessionAborted`: another worker has changed the instance; nothing was stored here and the
    /// caller abandons the work item.
    async fn complete_orchestration(
        &self,
        token: LockToken,
        commit: EpisodeCommit,
    ) -> Result<(), ServiceError>;

    /// Consumes the messages of a work item without storing anything: all of them were stale.
    async fn discard_orchestration(&self, token: LockToken) -> Result<(), ServiceError>;

    /// Puts the messages back, to be received again after a back-off.
    async fn abandon_orchestration(&self, token: LockToken) -> Result<(), ServiceError>;

    /// As [`OrchestrationService::abandon_orchestration`] for a backend that cares why: it may choose the
    /// delay by the reason, and tell a person what fails again and again.
    async fn give_back_orchestration(
        &self,
        token: LockToken,
        reason: GiveBackReason,
    ) -> Result<(), ServiceError> {
        let _ = reason;
        self.abandon_orchestration(token).await
    }

    /// Puts messages aside that the worker cannot make sense of, so that the work item is completed without them:
    /// they come back after a growing delay, and a person is told. A backend that does nothing consumes them with
    /// the others.
    async fn set_aside(
        &self,
        token: LockToken,
        messages: Vec<UnreadableMessage>,
    ) -> Result<(), ServiceError> {
        let _ = (token, messages);
        Ok(())
    }

    /// Waits for more messages of a completed work item's instance, keeping it locked (an extended
    /// session). `None` when none came within the session's idle timeout or the session must end.
    async fn next_session_messages(&self, token: LockToken)
    -> Result<Option<Vec<TaskMessage>>, ServiceError>;

    /// Ends the lock, after completion, discard or abandonment.
    async fn release_orchestration(&self, token: LockToken);

    /// Tells how many activities this process runs at the same time: a backend may take so many in hand before
    /// they are asked for.
    fn set_activity_slots(&self, slots: usize) {
        let _ = slots;
    }

    /// Most events that an episode may have to be stored at once or not at all; a larger one may be cut off, and
    /// the rest lost, when the process dies meanwhile. None: no activities are run inside an episode.
    fn max_atomic_events(&self) -> usize {
        usize::MAX
    }

    /// The next activity request, or `None` when none came within `timeout`.
    async fn lock_next_activity(&self, timeout: Duration) -> Result<Option<ActivityWorkItem>, ServiceError>;

    /// Prolongs a lock and returns its new end.
    async fn renew_activity(&self, token: LockToken) -> Result<Timestamp, ServiceError>;

    /// Sends the response (`TaskCompleted` or `TaskFailed`) and consumes the request.
    async fn complete_activity(&self, token: LockToken, response: TaskMessage) -> Result<(), ServiceError>;

    /// Puts the request back, to be received again after a back-off.
    async fn abandon_activity(&self, token: LockToken) -> Result<(), ServiceError>;

    /// As [`OrchestrationService::abandon_activity`] for a backend that cares why.
    async fn give_back_activity(&self, token: LockToken, reason: GiveBackReason) -> Result<(), ServiceError> {
        let _ = reason;
        self.abandon_activity(token).await
    }

    /// How the backend sees itself now, without asking anybody. A backend that knows no reason why it could
    /// not give work is ready.
    fn status(&self) -> ServiceStatus {
        ServiceStatus::default()
    }
}

/// A request to start an instance.
#[derive(Debug, Clone, Default)]
pub struct StartRequest {
    /// Name of the orchestrator.
    pub name: String,
    /// Version of the orchestrator; DTFx clients send the empty text when there is none.
    pub version: Option<String>,
    /// Id of the instance.
    pub instance_id: InstanceId,
    /// Serialised input.
    pub input: Option<String>,
    /// Tags.
    pub tags: Option<Tags>,
    /// Earliest time of the first episode.
    pub scheduled_start_at: Option<Timestamp>,
    /// The id was made for this start: nobody else can have used it.
    pub id_is_new: bool,
    /// Do nothing when the id exists with one of these statuses.
    pub dedupe_statuses: Vec<OrchestrationStatus>,
}

/// A backend as a client sees it.
#[async_trait]
pub trait OrchestrationServiceClient: Send + Sync {
    /// Creates the hub's resources where they are missing.
    async fn create_hub(&self) -> Result<(), ServiceError>;

    /// Deletes every resource of the hub.
    async fn delete_hub(&self) -> Result<(), ServiceError>;

    /// Starts an instance.
    async fn start_instance(&self, request: StartRequest) -> Result<StartOutcome, ServiceError>;

    /// Sends an event to an instance (`EventRaised`, `ExecutionTerminated`, `ExecutionSuspended`,
    /// `ExecutionResumed`, `GenericEvent`) without looking whether it exists.
    async fn send_event(
        &self,
        target: OrchestrationInstance,
        event: HistoryEvent,
    ) -> Result<(), ServiceError>;

    /// The state of one instance, `None` when it does not exist.
    async fn instance_state(
        &self,
        instance_id: &InstanceId,
        fetch: InstanceFetch,
    ) -> Result<Option<OrchestrationState>, ServiceError>;

    /// One page of instances.
    async fn list_instances(&self, query: &InstanceQuery) -> Result<InstancePage, ServiceError>;

    /// The history of the current execution, or of the one named if its rows are still there.
    async fn history(
        &self,
        instance_id: &InstanceId,
        execution_id: Option<&ExecutionId>,
    ) -> Result<Vec<HistoryEvent>, ServiceError>;

    /// Lets a failed instance go on from before its failure, with its failed sub-orchestrations. What is
    /// interrupted is continued by the next call.
    ///
    /// # Errors
    /// `SessionAborted`: others change the instance all the time.
    async fn rewind_instance(&self, request: &RewindRequest) -> Result<RewindOutcome, ServiceError>;

    /// Makes the application of this process the one that processes the hub; the present one notices and
    /// steps aside.
    ///
    /// # Errors
    /// `Invalid`: the hub is not configured for one application at a time.
    async fn make_primary(&self) -> Result<(), ServiceError>;

    /// Removes rows and blobs of one instance, whatever its status.
    async fn purge_instance(&self, instance_id: &InstanceId) -> Result<PurgeResult, ServiceError>;

    /// Removes rows and blobs of one instance that has finished; `None` when it has not, and nothing is
    /// removed. Zeros when there is no such instance.
    async fn purge_if_finished(&self, instance_id: &InstanceId) -> Result<Option<PurgeResult>, ServiceError>;

    /// Removes rows and blobs of many instances, as [`OrchestrationServiceClient::purge_instance`] or
    /// [`OrchestrationServiceClient::purge_if_finished`] do of one, with fewer requests for each. Nothing is
    /// removed of an instance before the gate lets it begin; those that it does not let begin are not in the
    /// answer. One that fails does not stop the others.
    async fn purge_many(&self, purge: PurgeMany, gate: &dyn PurgeGate) -> Vec<PurgedInstance> {
        let mut purged = Vec::with_capacity(purge.instance_ids.len());
        for instance_id in purge.instance_ids {
            if !gate.pass().await {
                break;
            }
            let result = if purge.only_finished {
                self.purge_if_finished(&instance_id).await
            } else {
                self.purge_instance(&instance_id).await.map(Some)
            };
            purged.push(PurgedInstance { instance_id, result });
        }
        purged
    }

    /// The key by which lists order an instance; keys compare by their UTF-16 units.
    fn list_key(&self, instance_id: &InstanceId) -> String;
}
