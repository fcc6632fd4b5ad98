use crate::{ExecutionId, InstanceId, OrchestrationInstance, OrchestrationStatus, Tags, Timestamp};

/// What a client sees of an instance: its row in the Instances table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OrchestrationState {
    /// The instance and its current execution.
    pub instance: OrchestrationInstance,
    /// Name of the orchestrator; an entity's instance id for entities.
    pub name: String,
    /// Version of the orchestrator.
    pub version: Option<String>,
    /// Runtime status; `None` when the stored name is unknown.
    pub status: Option<OrchestrationStatus>,
    /// Serialised input, when asked for.
    pub input: Option<String>,
    /// Serialised result, failure text, termination or suspension reason, when asked for.
    pub output: Option<String>,
    /// Custom status, JSON text; the text `null` when none was set.
    pub custom_status: Option<String>,
    /// When the current execution was created.
    pub created_at: Timestamp,
    /// When the row was last written.
    pub last_updated_at: Timestamp,
    /// When the instance finished.
    pub completed_at: Option<Timestamp>,
    /// When the first episode may run.
    pub scheduled_start_at: Option<Timestamp>,
    /// How often this id had been used before.
    pub generation: Option<i32>,
    /// Tags.
    pub tags: Option<Tags>,
    /// Task hub that wrote the row.
    pub task_hub: Option<String>,
}

/// Which of the large columns a query returns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct InstanceFetch {
    /// Return inputs.
    pub input: bool,
    /// Return outputs.
    pub output: bool,
}

impl InstanceFetch {
    /// Both.
    pub const ALL: Self = Self { input: true, output: true };
    /// Neither.
    pub const NONE: Self = Self { input: false, output: false };
}

/// Which instances to list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InstanceQuery {
    /// Created at or after.
    pub created_from: Option<Timestamp>,
    /// Created at or before.
    pub created_to: Option<Timestamp>,
    /// One of these statuses; empty means any.
    pub statuses: Vec<OrchestrationStatus>,
    /// Written by one of these hubs; empty means any.
    pub task_hubs: Vec<String>,
    /// Instance id begins with.
    pub instance_id_prefix: Option<String>,
    /// Leave out entities (ignored with a prefix).
    pub exclude_entities: bool,
    /// Key at or after (see `OrchestrationServiceClient::list_key`); part of a list.
    pub key_from: Option<String>,
    /// Key before; part of a list.
    pub key_before: Option<String>,
    /// Columns to return.
    pub fetch: InstanceFetch,
    /// Rows per page, 1 to 1000; `None` lets the service choose.
    pub page_size: Option<u32>,
    /// Where the previous page ended; opaque.
    pub continuation: Option<String>,
}

impl Default for InstanceQuery {
    fn default() -> Self {
        Self {
            created_from: None,
            created_to: None,
            statuses: Vec::new(),
            task_hubs: Vec::new(),
            instance_id_prefix: None,
            exclude_entities: false,
            key_from: None,
            key_before: None,
            fetch: InstanceFetch::ALL,
            page_size: None,
            continuation: None,
        }
    }
}

/// One page of a list. It may be short or empty while there is more.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct InstancePage {
    /// Instances in key order.
    pub instances: Vec<OrchestrationState>,
    /// Where the next page begins; `None` at the end.
    pub continuation: Option<String>,
}

/// What became of a request to start an instance.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StartOutcome {
    /// The start message is on its way.
    Started {
        /// The instance.
        instance_id: InstanceId,
        /// Its new execution.
        execution_id: ExecutionId,
    },
    /// An instance with this id is in one of the caller's dedupe statuses; nothing was sent.
    Exists {
        /// Its status.
        status: OrchestrationStatus,
    },
}
