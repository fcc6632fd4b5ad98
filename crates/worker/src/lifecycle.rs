use std::fmt;
use std::sync::Weak;
use std::time::Duration;

use taskhub_core::{OrchestrationService, Readiness, ServiceStatus};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::metrics::WorkerMetrics;

/// What is left of a shutdown's time after running work was told to give up: enough to put its messages
/// back.
pub(crate) const ABANDON_GRACE: Duration = Duration::from_secs(2);

/// Where a worker is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum WorkerState {
    /// Built, not running yet or still creating what the hub lacks.
    Starting,
    /// Receiving work.
    Running,
    /// Finishing what it has begun.
    Stopping,
    /// Done; nothing of it runs any more.
    Stopped,
}

/// Watches and stops a running worker. Cheap to clone.
#[derive(Clone)]
pub struct WorkerHandle {
    pub(crate) shutdown: CancellationToken,
    pub(crate) state: watch::Receiver<WorkerState>,
    pub(crate) metrics: WorkerMetrics,
    /// Not owned: a backend ends with its worker, whoever still watches.
    pub(crate) service: Weak<dyn OrchestrationService>,
}

impl fmt::Debug for WorkerHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WorkerHandle").field("state", &self.state()).finish_non_exhaustive()
    }
}

impl WorkerHandle {
    /// Asks the worker to stop: no more receiving, running work is finished. Returns at once.
    pub fn shutdown(&self) {
        self.shutdown.cancel();
    }

    /// Where the worker is now. One that was dropped, or panicked, stays where it was; see
    /// [`WorkerHandle::is_alive`].
    pub fn state(&self) -> WorkerState {
        *self.state.borrow()
    }

    /// What the worker counts.
    pub fn metrics(&self) -> &WorkerMetrics {
        &self.metrics
    }

    /// Whether the worker is there and has not ended: what a liveness probe asks. True while it stops in
    /// order.
    pub fn is_alive(&self) -> bool {
        self.state() < WorkerState::Stopped && self.state.has_changed().is_ok()
    }

    /// Whether the worker gets work, and what its backend says about that: what a readiness probe asks.
    pub fn status(&self) -> ServiceStatus {
        let now = |readiness| ServiceStatus { readiness, ..ServiceStatus::default() };
        let Some(service) = self.service.upgrade().filter(|_| self.is_alive()) else {
            return now(Readiness::Stopped);
        };
        match self.state() {
            WorkerState::Starting => now(Readiness::Starting),
            WorkerState::Running => service.status(),
            WorkerState::Stopping => ServiceStatus { readiness: Readiness::Stopping, ..service.status() },
            WorkerState::Stopped => now(Readiness::Stopped),
        }
    }

    /// Waits until the worker is in `state` or past it. A worker dropped without having run counts as
    /// stopped.
    pub async fn reached(&self, state: WorkerState) {
        // An error means that the worker is gone, which is past every state.
        let _ = self.state.clone().wait_for(|now| *now >= state).await;
    }
}

/// The three moments of a shutdown, seen by everything that runs.
#[derive(Debug, Clone, Default)]
pub(crate) struct Lifecycle {
    /// No more receiving.
    pub(crate) stopping: CancellationToken,
    /// Running work gives up and puts its messages back.
    pub(crate) give_up: CancellationToken,
    /// The backend has stopped: nothing can be received, even by a receive that still waits.
    pub(crate) service_stopped: CancellationToken,
}
