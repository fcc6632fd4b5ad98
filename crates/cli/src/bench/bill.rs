//! What all requests of a measurement cost.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use taskhub_storage::request::{Cost, Meter, OperationCounts};

type Lines = BTreeMap<(Option<Arc<str>>, Meter, &'static str), u64>;

/// Adds up what is counted in several places. Clones add to the same sums.
#[derive(Debug, Clone, Default)]
pub(super) struct Bill(Arc<Mutex<Lines>>);

impl Bill {
    /// Adds everything counted by something that sends no more.
    pub(super) fn add(&self, counts: &OperationCounts) {
        let mut lines = self.lock();
        for Cost { orchestration, meter, operation, requests } in counts.costs() {
            *lines.entry((orchestration, meter, operation)).or_default() += requests;
        }
    }

    /// The sums, in order.
    pub(super) fn costs(&self) -> Vec<Cost> {
        let lines = self.lock();
        let each = lines.iter().map(|((orchestration, meter, operation), requests)| Cost {
            orchestration: orchestration.clone(),
            meter: *meter,
            operation,
            requests: *requests,
        });
        each.collect()
    }

    fn lock(&self) -> MutexGuard<'_, Lines> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
