use std::time::Duration;

use uuid::Uuid;

use crate::ErrorMode;

/// Namespace of GUIDs made by in-process Durable Functions.
/// Source: Azure/azure-functions-durable-extension, `GuidManager.UrlNamespaceValue`.
pub const GUID_NAMESPACE_IN_PROCESS: Uuid = Uuid::from_u128(0x9e95_2959_5e33_4daf_827f_2fa1_2937_b875);
/// Namespace of GUIDs made by the .NET SDK, and so by isolated Durable Functions.
/// Source: microsoft/durabletask-dotnet, `TaskOrchestrationContextWrapper.NewGuid`.
pub const GUID_NAMESPACE_ISOLATED: Uuid = Uuid::from_u128(0x9e95_2958_5e33_4daf_827f_2fa1_2937_b875);

/// What happens to an external event that arrives after the orchestrator has asked to continue as new.
/// Source: Azure/durabletask, `BehaviorOnContinueAsNew`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum EventBehaviour {
    /// The next generation receives it; what Azure Storage hubs do.
    #[default]
    Carryover,
    /// This generation receives it.
    Ignore,
}

/// How external events that nobody has waited for reach the next generation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum PreservedEvents {
    /// In memory, when the generation ends, before those that arrived after the request.
    ///
    /// Differs: in-process Durable Functions sends them to the instance again when the generation ends.
    /// Nothing of that survives in the history, which starts afresh.
    #[default]
    Carried,
    /// Sent to the instance again by the request itself, as the .NET SDK does: that takes a sequence id for
    /// each, which counts for whatever the code does between the request and its end.
    SentAgain,
}

/// How a sub-orchestration without an instance id gets one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum SubOrchestrationIds {
    /// `{execution id of the parent}:{sequence id}`, a new one for each retry, as Core and in-process
    /// Durable Functions do.
    #[default]
    ExecutionAndSequence,
    /// A deterministic GUID of 32 digits, the same for all retries, as the .NET SDK does. It advances
    /// the counter behind [`OrchestrationContext::new_guid`](crate::OrchestrationContext::new_guid).
    Guid,
    /// The same GUID with dashes, as in-process Durable Functions gives it to those it does not wait for.
    /// Source: Azure/azure-functions-durable-extension, `DurableOrchestrationContext.StartNewOrchestration`.
    DashedGuid,
}

/// How a timer that is far away goes on after its first part.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum LongTimers {
    /// Parts until the time has come, checked after each of them: a last part that fired early is
    /// followed by another. In-process Durable Functions.
    #[default]
    PartsUntilDue,
    /// Parts while more than [`ReplaySettings::maximum_timer_delay`] is left, then one timer for the rest,
    /// even if none is left. The .NET SDK.
    PartsThenRest,
}

/// How an orchestrator is replayed. An instance that another SDK began must be continued with that SDK's
/// settings, or ids differ; the defaults are those of in-process Durable Functions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReplaySettings {
    /// Form of failures.
    pub error_mode: ErrorMode,
    /// External events after a request to continue as new.
    pub event_behaviour: EventBehaviour,
    /// Whether external events that nobody has waited for reach the next generation, unless the call says
    /// otherwise ([`ContinueAsNewOptions::preserve_unprocessed_events`](crate::ContinueAsNewOptions)).
    ///
    /// Differs: in-process Durable Functions drops them by default, which loses those that share an episode
    /// with the one that made the orchestrator continue. Core never has any: it hands each to the code as it
    /// arrives. The .NET SDK keeps them.
    pub preserve_unprocessed_events: bool,
    /// How they get there.
    pub preserved_events: PreservedEvents,
    /// Namespace of [`OrchestrationContext::new_guid`](crate::OrchestrationContext::new_guid).
    pub guid_namespace: Uuid,
    /// Ids of sub-orchestrations that are waited for.
    pub sub_orchestration_ids: SubOrchestrationIds,
    /// Ids of those that are started and forgotten. Core makes them as those that are waited for.
    pub fire_and_forget_ids: SubOrchestrationIds,
    /// A timer that is further away is split. Source: Azure/azure-functions-durable-extension,
    /// `AzureStorageDurabilityProvider.MaximumDelayTime`; the .NET SDK splits from 3 days on.
    pub maximum_timer_delay: Duration,
    /// Length of the parts of a split timer. Source: Azure/azure-functions-durable-extension,
    /// `AzureStorageDurabilityProvider.LongRunningTimerIntervalLength`.
    pub timer_interval: Duration,
    /// What follows the first part of a split timer.
    pub long_timers: LongTimers,
}

const DAY: Duration = Duration::from_secs(24 * 60 * 60);

impl Default for ReplaySettings {
    fn default() -> Self {
        Self {
            error_mode: ErrorMode::default(),
            event_behaviour: EventBehaviour::default(),
            preserve_unprocessed_events: true,
            preserved_events: PreservedEvents::default(),
            guid_namespace: GUID_NAMESPACE_IN_PROCESS,
            sub_orchestration_ids: SubOrchestrationIds::default(),
            fire_and_forget_ids: SubOrchestrationIds::DashedGuid,
            maximum_timer_delay: DAY * 6,
            timer_interval: DAY * 3,
            long_timers: LongTimers::default(),
        }
    }
}

impl ReplaySettings {
    /// Settings of the .NET SDK (isolated Durable Functions).
    pub fn isolated() -> Self {
        Self {
            error_mode: ErrorMode::FailureDetails,
            preserved_events: PreservedEvents::SentAgain,
            guid_namespace: GUID_NAMESPACE_ISOLATED,
            sub_orchestration_ids: SubOrchestrationIds::Guid,
            fire_and_forget_ids: SubOrchestrationIds::Guid,
            maximum_timer_delay: DAY * 3,
            long_timers: LongTimers::PartsThenRest,
            ..Self::default()
        }
    }
}
