use std::fmt;
use std::time::Duration;

use crate::PartitionId;

/// Whether a worker gets work, and what keeps it from that: for a readiness probe.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Readiness {
    /// It gets what there is.
    Ready,
    /// It has been started, and has not looked at its partitions yet.
    Starting,
    /// Another application has the hub; this one waits for its turn.
    WaitingForAppLease,
    /// The backend has not answered for so long that what this worker held may be somebody else's.
    StorageUnreachable,
    /// It finishes what it has begun and takes on nothing new.
    Stopping,
    /// It has ended.
    Stopped,
}

impl Readiness {
    /// One word in lower case with underscores: `ready`, `waiting_for_app_lease`, …
    pub fn name(self) -> &'static str {
        match self {
            Self::Ready => "ready",
            Self::Starting => "starting",
            Self::WaitingForAppLease => "waiting_for_app_lease",
            Self::StorageUnreachable => "storage_unreachable",
            Self::Stopping => "stopping",
            Self::Stopped => "stopped",
        }
    }
}

impl fmt::Display for Readiness {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// How a backend sees itself while a worker runs on it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServiceStatus {
    /// Whether it can give work.
    pub readiness: Readiness,
    /// What is in the way, in words; holds no secret and no payload.
    pub detail: Option<String>,
    /// Partitions this process receives from now, in order.
    pub partitions: Vec<PartitionId>,
    /// How long ago it last saw its partitions in order; `None` when never, or when it has none.
    pub last_look_age: Option<Duration>,
}

/// Ready: what a backend says that knows no reason why not.
impl Default for ServiceStatus {
    fn default() -> Self {
        Self { readiness: Readiness::Ready, detail: None, partitions: Vec::new(), last_look_age: None }
    }
}
