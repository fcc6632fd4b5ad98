use std::time::Duration;

use taskhub_entities::EntitySettings;
use taskhub_replay::{EpisodeSettings, ErrorMode, EventBehaviour, ReplaySettings, VersioningSettings};

use crate::fused::FusedActivities;

/// How failures of activities and orchestrations are written. All workers of a hub should agree.
/// Source: Azure/durabletask, `ErrorPropagationMode`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ErrorPropagationMode {
    /// As exceptions in .NET's serialised form, if [`WorkerSettings::include_details`] is on; as the
    /// message alone otherwise.
    #[default]
    SerializeExceptions,
    /// As failure details, which every language can read.
    UseFailureDetails,
}

/// Settings of a worker, with DTFx's names and defaults.
#[derive(Debug, Clone, PartialEq)]
pub struct WorkerSettings {
    /// Orchestrations processed at the same time, at least 1. Source: Azure/durabletask,
    /// `AzureStorageOrchestrationServiceSettings.MaxConcurrentTaskOrchestrationWorkItems`.
    pub max_concurrent_task_orchestration_work_items: usize,
    /// Activities processed at the same time, at least 1. Source: as above,
    /// `MaxConcurrentTaskActivityWorkItems`.
    pub max_concurrent_task_activity_work_items: usize,
    /// Entities processed at the same time, at least 1; orchestrations do not count. Source: as above,
    /// `MaxConcurrentTaskEntityWorkItems`.
    pub max_concurrent_task_entity_work_items: usize,
    /// Most operations that an entity runs before its state is stored; 0 for no bound. Source: as above,
    /// `MaxEntityOperationBatchSize`, which has no bound in DTFx; the default here is that of Durable Functions.
    pub max_entity_operation_batch_size: usize,
    /// Whether instances stay in memory between episodes, as many as half of the orchestrations and half of the
    /// entities that may be processed at the same time. The backend says for how long. Source: as above,
    /// `ExtendedSessionsEnabled`.
    pub extended_sessions_enabled: bool,
    /// Whether inputs of activities and sub-orchestrations go into the history, not only into messages.
    /// Source: Azure/durabletask, `TaskOrchestrationDispatcher.IncludeParameters`.
    pub include_parameters: bool,
    /// Whether serialised exceptions go into messages and history. Durable Functions has it on.
    /// Source: Azure/durabletask, `TaskActivityDispatcher.IncludeDetails` and that of orchestrations.
    pub include_details: bool,
    /// Form of failures.
    pub error_propagation_mode: ErrorPropagationMode,
    /// Which versions of orchestrations this worker runs; all by default.
    pub versioning: Option<VersioningSettings>,
    /// What happens to an external event that arrives after the orchestrator has asked to continue as new.
    /// Source: Azure/durabletask,
    /// `AzureStorageOrchestrationServiceSettings.EventBehaviourForContinueAsNew`.
    pub event_behaviour_for_continue_as_new: EventBehaviour,
    /// An episode with more new events than this is stored in parts; 0 never. Source: as above,
    /// `MaxCheckpointBatchSize`.
    pub max_checkpoint_batch_size: usize,
    /// How orchestrators are replayed that were not registered with settings of their own. Its error mode
    /// and event behaviour are not used, those above are.
    pub replay: ReplaySettings,
    /// Which activities run inside the episode that asks for them; none by default.
    pub fused_activities: FusedActivities,
    /// How long running work may take to finish when the worker stops; then it is given back.
    /// Source: Azure/durabletask, `WorkItemDispatcher.StopAsync`.
    pub drain_timeout: Duration,
}

impl Default for WorkerSettings {
    fn default() -> Self {
        Self {
            max_concurrent_task_orchestration_work_items: 100,
            max_concurrent_task_activity_work_items: 10,
            max_concurrent_task_entity_work_items: 100,
            max_entity_operation_batch_size: 5000,
            extended_sessions_enabled: false,
            include_parameters: false,
            include_details: false,
            error_propagation_mode: ErrorPropagationMode::default(),
            versioning: None,
            event_behaviour_for_continue_as_new: EventBehaviour::default(),
            max_checkpoint_batch_size: 0,
            replay: ReplaySettings::default(),
            fused_activities: FusedActivities::default(),
            drain_timeout: Duration::from_secs(8),
        }
    }
}

impl WorkerSettings {
    /// The form of failures that [`WorkerSettings::include_details`] and
    /// [`WorkerSettings::error_propagation_mode`] choose together.
    pub fn error_mode(&self) -> ErrorMode {
        match (self.error_propagation_mode, self.include_details) {
            (ErrorPropagationMode::UseFailureDetails, _) => ErrorMode::FailureDetails,
            (ErrorPropagationMode::SerializeExceptions, true) => ErrorMode::SerializedException,
            (ErrorPropagationMode::SerializeExceptions, false) => ErrorMode::ReasonOnly,
        }
    }

    pub(crate) fn replay_settings(&self) -> ReplaySettings {
        ReplaySettings {
            error_mode: self.error_mode(),
            event_behaviour: self.event_behaviour_for_continue_as_new,
            ..self.replay.clone()
        }
    }

    pub(crate) fn episode_settings(&self) -> EpisodeSettings {
        EpisodeSettings {
            include_parameters: self.include_parameters,
            error_mode: self.error_mode(),
            versioning: self.versioning.clone(),
            max_checkpoint_batch_size: self.max_checkpoint_batch_size,
            ..EpisodeSettings::default()
        }
    }

    pub(crate) fn entity_settings(&self) -> EntitySettings {
        EntitySettings { max_entity_operation_batch_size: self.max_entity_operation_batch_size }
    }

    /// Half of the slots, rounded up. Source: Azure/durabletask, constructors of
    /// `TaskOrchestrationDispatcher` and `TaskEntityDispatcher`.
    pub(crate) fn max_extended_sessions(&self, slots: usize) -> usize {
        if self.extended_sessions_enabled { slots.div_ceil(2) } else { 0 }
    }
}
