//! Clients tell the workers of their own process when they have put a message.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use taskhub_core::{PartitionId, Timestamp};

use crate::shared::Shared;

/// Connects the clients and workers that use one [`crate::Hub`] or clones of it.
///
/// Differs: in DTFx a client and a worker know each other only if they are one object.
#[derive(Clone, Default)]
pub(crate) struct Doorbell(Arc<Mutex<Vec<Weak<Shared>>>>);

impl fmt::Debug for Doorbell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Doorbell")
    }
}

impl Doorbell {
    /// A worker that wants to be told.
    pub(crate) fn answer(&self, worker: &Arc<Shared>) {
        let mut workers = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        workers.retain(|worker| worker.strong_count() > 0);
        workers.push(Arc::downgrade(worker));
    }

    /// A message for the partition was put, which becomes visible now or at `due`.
    pub(crate) fn ring(&self, partition: PartitionId, due: Option<Timestamp>) {
        let workers = self.0.lock().unwrap_or_else(PoisonError::into_inner).clone();
        for worker in workers.iter().filter_map(Weak::upgrade) {
            worker.announce(partition, due);
        }
    }
}
