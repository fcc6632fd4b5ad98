use crate::{InstanceId, OrchestrationStatus};

/// A request to let a failed instance go on from before its failure.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct RewindRequest {
    /// The instance.
    pub instance_id: InstanceId,
    /// Why; stored with the message that wakes it.
    pub reason: Option<String>,
    /// Rewind it although it has durable timers of its own, besides those of retries.
    pub allow_timers: bool,
}

/// What became of a request to rewind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RewindOutcome {
    /// It goes on, as soon as a worker gets its message.
    Rewound(Rewound),
    /// There is no such instance.
    NotFound,
    /// Only failed instances can be rewound; `None` is a status that this program does not know.
    WrongStatus {
        /// Its status.
        status: Option<OrchestrationStatus>,
    },
    /// This instance, the one asked for or a sub-orchestration of it, has durable timers. Nothing was changed.
    HasTimers {
        /// Whose timers.
        instance: InstanceId,
    },
    /// This instance, the one asked for or a sub-orchestration of it, has no history. Nothing was changed.
    NoHistory {
        /// Which one.
        instance: InstanceId,
    },
}

/// What a rewind did.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Rewound {
    /// Instances that are no longer failed: failed sub-orchestrations first, the instance itself last.
    pub instances: Vec<InstanceId>,
    /// Instances that got a message; the others wait for their sub-orchestrations.
    pub woken: Vec<InstanceId>,
    /// History rows that were changed.
    pub rows: u64,
}
