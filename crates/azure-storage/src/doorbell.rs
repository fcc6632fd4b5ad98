//! Clients tell the workers of their own process when they have put a message.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use taskhub_core::{ExecutionId, PartitionId, Timestamp};
use tokio_util::sync::CancellationToken;

use crate::shared::Shared;

/// Connects the clients and workers that use one [`crate::Hub`] or clones of it.
///
/// Differs: in DTFx a client and a worker know each other only if they are one object.
#[derive(Clone, Default)]
pub(crate) struct Doorbell {
    workers: Arc<Mutex<Vec<Weak<Shared>>>>,
    /// Starts whose message is put and whose row is not written yet.
    starts: Arc<Mutex<HashMap<ExecutionId, CancellationToken>>>,
}

impl fmt::Debug for Doorbell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Doorbell")
    }
}

impl Doorbell {
    /// A worker that wants to be told.
    pub(crate) fn answer(&self, worker: &Arc<Shared>) {
        let mut workers = self.workers.lock().unwrap_or_else(PoisonError::into_inner);
        workers.retain(|worker| worker.strong_count() > 0);
        workers.push(Arc::downgrade(worker));
    }

    /// A message for the partition was put, which becomes visible now or at `due`.
    pub(crate) fn ring(&self, partition: PartitionId, due: Option<Timestamp>) {
        let workers = self.workers.lock().unwrap_or_else(PoisonError::into_inner).clone();
        for worker in workers.iter().filter_map(Weak::upgrade) {
            worker.announce(partition, due);
        }
    }

    /// A client of this process writes a start and its row, as long as what it gets lives.
    pub(crate) fn begin_start(&self, execution_id: ExecutionId) -> Starting {
        let token = CancellationToken::new();
        self.starts().insert(execution_id.clone(), token.clone());
        Starting { doorbell: self.clone(), execution_id, token }
    }

    /// Cancelled when the client is done with this start; `None` when no client of this process is at it.
    pub(crate) fn start_under_way(&self, execution_id: &ExecutionId) -> Option<CancellationToken> {
        self.starts().get(execution_id).cloned()
    }

    fn starts(&self) -> MutexGuard<'_, HashMap<ExecutionId, CancellationToken>> {
        self.starts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// See [`Doorbell::begin_start`].
#[derive(Debug)]
pub(crate) struct Starting {
    doorbell: Doorbell,
    execution_id: ExecutionId,
    token: CancellationToken,
}

impl Drop for Starting {
    fn drop(&mut self) {
        self.doorbell.starts().remove(&self.execution_id);
        self.token.cancel();
    }
}
