//! What all requests of a measurement cost.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use taskhub_storage::request::OperationCounts;

use crate::cost::Line;

#[derive(Debug, Default)]
struct State {
    /// By orchestration, meter and operation.
    lines: BTreeMap<(Option<String>, String, String), u64>,
    processes_without_bill: u32,
}

/// Adds up what is counted in several places. Clones add to the same sums.
#[derive(Debug, Clone, Default)]
pub(super) struct Bill(Arc<Mutex<State>>);

impl Bill {
    /// Adds everything counted by something that sends no more.
    pub(super) fn add(&self, counts: &OperationCounts) {
        self.add_lines(counts.costs().into_iter().map(Line::from));
    }

    /// Adds what somebody else has counted.
    pub(super) fn add_lines(&self, lines: impl IntoIterator<Item = Line>) {
        let mut state = self.lock();
        for Line { orchestration, meter, operation, requests } in lines {
            *state.lines.entry((orchestration, meter, operation)).or_default() += requests;
        }
    }

    /// Processes whose requests are missing: they were killed.
    pub(super) fn add_processes_without_bill(&self, processes: u32) {
        self.lock().processes_without_bill += processes;
    }

    /// How many they are.
    pub(super) fn processes_without_bill(&self) -> u32 {
        self.lock().processes_without_bill
    }

    /// The sums, in order.
    pub(super) fn lines(&self) -> Vec<Line> {
        let state = self.lock();
        let each = state.lines.iter().map(|((orchestration, meter, operation), requests)| Line {
            orchestration: orchestration.clone(),
            meter: meter.clone(),
            operation: operation.clone(),
            requests: *requests,
        });
        each.collect()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
