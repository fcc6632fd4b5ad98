use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use crate::operation::{Operation, Service};

/// How often an operation was requested. Every attempt counts; a list of several pages counts once.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct OperationCount {
    /// Attempts.
    pub count: u64,
    /// Attempts that failed, whatever the error.
    pub errors: u64,
    /// Receives that found no message.
    pub empty: u64,
    /// Receives that found messages.
    pub non_empty: u64,
}

/// Counts of all operations. A clone counts into the same numbers.
#[derive(Debug, Clone, Default)]
pub struct OperationCounts(Arc<Mutex<BTreeMap<(Service, &'static str), OperationCount>>>);

impl OperationCounts {
    /// The counts now, by service and name of the operation; operations never requested are absent.
    pub fn snapshot(&self) -> BTreeMap<(Service, &'static str), OperationCount> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The count of one operation by its name.
    pub fn of(&self, name: &str) -> OperationCount {
        let counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        counts.iter().find(|((_, found), _)| *found == name).map(|(_, count)| *count).unwrap_or_default()
    }

    /// Counts from zero again.
    pub fn reset(&self) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    pub(super) fn add(&self, operation: Operation, failed: bool) {
        self.change(operation, |count| {
            count.count += 1;
            count.errors += u64::from(failed);
        });
    }

    pub(super) fn add_receive(&self, operation: Operation, messages: usize) {
        self.change(operation, |count| {
            count.empty += u64::from(messages == 0);
            count.non_empty += u64::from(messages > 0);
        });
    }

    fn change(&self, operation: Operation, change: impl FnOnce(&mut OperationCount)) {
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        change(counts.entry((operation.service, operation.name)).or_default());
    }
}
