use std::time::Duration;

use taskhub_core::{TaskHubName, WorkerId};

use crate::hub::{MAX_PARTITION_COUNT, PartitionManagerKind};
use crate::message::MessageEncoding;

/// How long this worker hides messages by default.
const DEFAULT_VISIBILITY_TIMEOUT: Duration = Duration::from_secs(30);
/// How long a .NET worker on the same hub hides the messages it receives. Source: Azure/durabletask,
/// `AzureStorageOrchestrationServiceSettings.ControlQueueVisibilityTimeout` and that of work items.
pub const DOTNET_VISIBILITY_TIMEOUT: Duration = Duration::from_secs(300);

/// Settings of a hub, a worker and a client, with DTFx's names and defaults.
///
/// Source: Azure/durabletask, `AzureStorageOrchestrationServiceSettings`.
#[derive(Debug, Clone)]
pub struct AzureStorageSettings {
    /// Name of the task hub.
    pub task_hub_name: TaskHubName,
    /// Number of control queues, 1 to 16. `None` takes what the hub has and creates a new hub with 4.
    ///
    /// Differs: DTFx never compares the number with the hub's; here a mismatch is an error.
    pub partition_count: Option<u32>,
    /// Who distributes the partitions. `None` takes what the hub has and creates a new hub with the table
    /// manager; what contradicts the hub is an error.
    pub partition_manager: Option<PartitionManagerKind>,
    /// Runs with [`AzureStorageSettings::partition_manager`] although the hub has another one, or although
    /// another one's leases are held at this moment.
    pub force_partition_manager: bool,
    /// Text form of messages this process writes.
    pub queue_client_message_encoding: MessageEncoding,
    /// Identity in the lease records; must be unique per process.
    ///
    /// Differs: DTFx defaults to the machine name, so that two processes of one machine take each other
    /// for themselves; the CLI here makes a unique one.
    pub worker_id: WorkerId,
    /// Name of the application, from which the app lease id is derived.
    pub app_name: String,
    /// Whether one application at a time processes the hub.
    pub use_app_lease: bool,
    /// Interval of renewals of the app lease. Source: `AppLeaseOptions.DefaultOptions`.
    pub app_lease_renew_interval: Duration,
    /// Interval of attempts to get the app lease.
    pub app_lease_acquire_interval: Duration,
    /// Duration of the app lease, 15 to 60 s.
    pub app_lease_interval: Duration,
    /// Writes this application's id into the hub as the one that shall have the app lease, and takes it from
    /// whoever holds it: once, when the worker starts.
    pub take_app_lease: bool,
    /// Interval of the partition manager's loop.
    pub lease_acquire_interval: Duration,
    /// Interval of renewals of lease blobs, and the longest time for one request to them.
    pub lease_renew_interval: Duration,
    /// Duration of a partition lease.
    pub lease_interval: Duration,
    /// Messages per receive from a control queue, 1 to 32.
    pub control_queue_batch_size: u32,
    /// Receiving pauses while this process holds as many control messages.
    pub control_queue_buffer_threshold: usize,
    /// How long a received control message stays hidden without renewal. Renewed when a third has passed.
    ///
    /// Differs: DTFx hides messages for five minutes, which is how long everything in the hands of a worker
    /// that dies, or in a reply that is lost, stays undone.
    pub control_queue_visibility_timeout: Duration,
    /// How long a received activity request stays hidden without renewal. Renewed when a third has passed.
    ///
    /// Differs: as for control messages.
    pub work_item_queue_visibility_timeout: Duration,
    /// Longest wait between two receives from an empty queue.
    pub max_queue_polling_interval: Duration,
    /// The same for control queues, if they shall be looked at more often than the work-item queue: how long a
    /// client of another process waits until its message is seen by an idle worker.
    pub max_control_queue_polling_interval: Option<Duration>,
    /// Storage requests of one fan-out that are under way at once.
    pub max_storage_operation_concurrency: usize,
    /// Whether an instance stays in memory between episodes.
    pub extended_sessions_enabled: bool,
    /// How long such an instance waits for its next message.
    pub extended_session_idle_timeout: Duration,
    /// Whether queries download large inputs and outputs; if not they return the blob's URL.
    pub fetch_large_message_data_enabled: bool,
    /// Whether messages for a finished instance run it again.
    pub allow_replaying_terminal_instances: bool,
    /// Whether a start of an id in a dedupe status is an error instead of a no-op.
    pub throw_exception_on_invalid_dedupe_status: bool,
    /// Skips the comparison of a start message with the Instances row.
    pub disable_execution_started_deduplication: bool,
    /// How long a drained partition or a graceful stop waits for running episodes.
    /// Source: `ControlQueue` drain in `TablePartitionManager` (60 s).
    pub drain_timeout: Duration,
    /// Age under which a message for an instance that nobody knows is put back instead of discarded,
    /// because its start may still be hidden in another worker's hands. Default: twice what a .NET worker
    /// hides messages for ([`DOTNET_VISIBILITY_TIMEOUT`]), whatever the timeouts of this worker.
    pub unknown_instance_grace: Duration,
    /// How long an instance that waits for several results waits for the next one to come before its
    /// episode begins, ten times at most. Each episode costs requests; zero begins at the first result. The
    /// default is the shortest polling delay of DTFx.
    pub fan_in_linger: Duration,
    /// Takes a message out of its queue once it has failed that often, keeping it as a dead letter; never
    /// one that a newer worker may understand (unknown functions, unknown types of events). `None`, the
    /// default, tries for ever.
    ///
    /// Differs: DTFx has no such setting and tries for ever.
    pub quarantine_poison_messages: Option<u32>,
    /// Hands activities to this process when it waits for one: the request is put hidden and run with the
    /// receipt of the put, without being received.
    pub hand_off_local_activities: bool,
    /// Makes the requests that DTFx would make, whatever the settings after this one say: every message is
    /// received, every history read, every episode written to the Instances row; partition rows are read each
    /// time and written one by one, all leases are looked at each time. Workers with and without it share a hub.
    pub dtfx_cadence: bool,
    /// Memory for histories that stay between the sessions of their instances, in bytes, about; 0 keeps none,
    /// and then also reads whether a new instance has a history. An episode that was run on a remembered
    /// history is stored only if that is still the newest.
    pub session_cache_bytes: usize,
    /// Works on messages for partitions of this worker without receiving them: they are put hidden, and timers
    /// with the time until they are due.
    pub hand_off_control_messages: bool,
    /// Gives an activity's result to its instance without sending it, when both are in this process: the
    /// request is deleted when the result is part of the history.
    pub elide_responses: bool,
    /// Writes the Instances row only when it changes: that an instance has begun up to a second late, or with
    /// its next change.
    pub lazy_running_rows: bool,
    /// What the test kit does to this process.
    #[cfg(feature = "simulation")]
    pub sabotage: crate::sabotage::Sabotage,
}

impl AzureStorageSettings {
    /// Defaults for a hub.
    pub fn new(task_hub_name: TaskHubName, worker_id: impl Into<WorkerId>) -> Self {
        Self {
            task_hub_name,
            partition_count: None,
            partition_manager: None,
            force_partition_manager: false,
            queue_client_message_encoding: MessageEncoding::default(),
            worker_id: worker_id.into(),
            app_name: String::new(),
            use_app_lease: true,
            app_lease_renew_interval: Duration::from_secs(25),
            app_lease_acquire_interval: Duration::from_secs(300),
            app_lease_interval: Duration::from_secs(60),
            take_app_lease: false,
            lease_acquire_interval: Duration::from_secs(10),
            lease_renew_interval: Duration::from_secs(10),
            lease_interval: Duration::from_secs(30),
            control_queue_batch_size: 32,
            control_queue_buffer_threshold: 64,
            control_queue_visibility_timeout: DEFAULT_VISIBILITY_TIMEOUT,
            work_item_queue_visibility_timeout: DEFAULT_VISIBILITY_TIMEOUT,
            max_queue_polling_interval: Duration::from_secs(30),
            max_control_queue_polling_interval: None,
            max_storage_operation_concurrency: 25
                * std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
            extended_sessions_enabled: false,
            extended_session_idle_timeout: Duration::from_secs(30),
            fetch_large_message_data_enabled: true,
            allow_replaying_terminal_instances: false,
            throw_exception_on_invalid_dedupe_status: false,
            disable_execution_started_deduplication: false,
            drain_timeout: Duration::from_secs(60),
            unknown_instance_grace: DOTNET_VISIBILITY_TIMEOUT * 2,
            fan_in_linger: Duration::from_millis(50),
            quarantine_poison_messages: None,
            hand_off_local_activities: true,
            dtfx_cadence: false,
            session_cache_bytes: 64 * 1024 * 1024,
            hand_off_control_messages: true,
            elide_responses: true,
            lazy_running_rows: true,
            #[cfg(feature = "simulation")]
            sabotage: crate::sabotage::Sabotage::default(),
        }
    }

    /// Longest wait between two receives from an empty control queue.
    pub(crate) fn control_polling_interval(&self) -> Duration {
        let longest = self.max_queue_polling_interval;
        let own = self.max_control_queue_polling_interval.filter(|_| !self.dtfx_cadence);
        own.map_or(longest, |own| own.min(longest))
    }

    /// Memory for remembered histories.
    pub(crate) fn cache_bytes(&self) -> usize {
        if self.dtfx_cadence { 0 } else { self.session_cache_bytes }
    }

    /// Whether activity requests are handed to this process.
    pub(crate) fn hands_off_activities(&self) -> bool {
        !self.dtfx_cadence && self.hand_off_local_activities
    }

    /// Whether messages for own partitions are handed to this process.
    pub(crate) fn hands_off_control_messages(&self) -> bool {
        !self.dtfx_cadence && self.hand_off_control_messages
    }

    /// Whether activity results for own partitions are not sent.
    pub(crate) fn elides_responses(&self) -> bool {
        !self.dtfx_cadence && self.elide_responses
    }

    /// Whether the Instances row is written only when it changes.
    pub(crate) fn writes_rows_late(&self) -> bool {
        !self.dtfx_cadence && self.lazy_running_rows
    }

    /// Checks the ranges that DTFx and the services demand.
    ///
    /// # Errors
    /// A text naming the setting, its value and the range.
    pub fn validate(&self) -> Result<(), String> {
        let in_range = |name: &str, value: u64, low: u64, high: u64| {
            if (low..=high).contains(&value) {
                Ok(())
            } else {
                Err(format!("{name} must be {low} to {high}. value=`{value}`"))
            }
        };
        if let Some(count) = self.partition_count {
            in_range("partition_count", u64::from(count), 1, u64::from(MAX_PARTITION_COUNT))?;
        }
        in_range("control_queue_batch_size", u64::from(self.control_queue_batch_size), 1, 32)?;
        in_range("app_lease_interval", self.app_lease_interval.as_secs(), 15, 60)?;
        in_range("lease_interval", self.lease_interval.as_secs(), 1, 3600)?;
        if matches!(self.partition_manager, Some(PartitionManagerKind::Safe | PartitionManagerKind::Legacy)) {
            in_range("lease_interval", self.lease_interval.as_secs(), 15, 60)?;
        }
        let week = 7 * 24 * 3600;
        in_range(
            "control_queue_visibility_timeout",
            self.control_queue_visibility_timeout.as_secs(),
            1,
            week,
        )?;
        in_range(
            "work_item_queue_visibility_timeout",
            self.work_item_queue_visibility_timeout.as_secs(),
            1,
            week,
        )?;
        in_range(
            "max_storage_operation_concurrency",
            self.max_storage_operation_concurrency as u64,
            1,
            10_000,
        )?;
        if let Some(failures) = self.quarantine_poison_messages {
            in_range("quarantine_poison_messages", u64::from(failures), 1, u64::from(u32::MAX))?;
        }
        if self.worker_id.is_empty() {
            return Err("worker_id must not be empty".to_owned());
        }
        Ok(())
    }
}
