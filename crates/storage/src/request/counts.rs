use std::collections::BTreeMap;
use std::ops::AddAssign;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

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

impl AddAssign for OperationCount {
    fn add_assign(&mut self, other: Self) {
        self.count += other.count;
        self.errors += other.errors;
        self.empty += other.empty;
        self.non_empty += other.non_empty;
    }
}

/// By operation, then by resource; an operation has few of them: the queues, tables and containers in use.
type Counts = BTreeMap<(Service, &'static str), BTreeMap<String, OperationCount>>;

/// Counts of all operations. A clone counts into the same numbers.
#[derive(Debug, Clone, Default)]
pub struct OperationCounts(Arc<Mutex<Counts>>);

impl OperationCounts {
    /// The counts now, by service and name of the operation; operations never requested are absent.
    pub fn snapshot(&self) -> BTreeMap<(Service, &'static str), OperationCount> {
        self.lock().iter().map(|(operation, resources)| (*operation, sum(resources.values()))).collect()
    }

    /// The counts now, by service, name of the operation, and queue, table or container (for lists of
    /// those, the prefix).
    pub fn by_resource(&self) -> BTreeMap<(Service, &'static str, String), OperationCount> {
        let counts = self.lock();
        let each = counts.iter().flat_map(|((service, name), resources)| {
            resources.iter().map(|(resource, count)| ((*service, *name, resource.clone()), *count))
        });
        each.collect()
    }

    /// The count of one operation by its name.
    pub fn of(&self, name: &str) -> OperationCount {
        let counts = self.lock();
        let found = counts.iter().find(|((_, found), _)| *found == name);
        found.map(|(_, resources)| sum(resources.values())).unwrap_or_default()
    }

    /// Counts from zero again.
    pub fn reset(&self) {
        self.lock().clear();
    }

    /// One attempt on a resource, `container/blob` for blobs.
    pub(super) fn add(&self, operation: Operation, resource: &str, failed: bool) {
        self.change(operation, resource, |count| {
            count.count += 1;
            count.errors += u64::from(failed);
        });
    }

    pub(super) fn add_receive(&self, operation: Operation, queue: &str, messages: usize) {
        self.change(operation, queue, |count| {
            count.empty += u64::from(messages == 0);
            count.non_empty += u64::from(messages > 0);
        });
    }

    fn change(&self, operation: Operation, resource: &str, change: impl FnOnce(&mut OperationCount)) {
        let resource = resource.split_once('/').map_or(resource, |(container, _)| container);
        let mut counts = self.lock();
        let resources = counts.entry((operation.service, operation.name)).or_default();
        match resources.get_mut(resource) {
            Some(count) => change(count),
            None => change(resources.entry(resource.to_owned()).or_default()),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Counts> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn sum<'a>(counts: impl Iterator<Item = &'a OperationCount>) -> OperationCount {
    let mut sum = OperationCount::default();
    counts.for_each(|count| sum += *count);
    sum
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::operation as op;

    #[test]
    fn counts_are_kept_by_queue_table_and_container() {
        let counts = OperationCounts::default();
        counts.add(op::GET_MESSAGES, "q1", false);
        counts.add_receive(op::GET_MESSAGES, "q1", 0);
        counts.add(op::GET_MESSAGES, "q2", true);
        counts.add(op::GET_BLOB, "container/a/b", false);
        counts.add(op::GET_BLOB, "container/c", false);
        let keys: Vec<_> = counts.by_resource().into_keys().map(|(_, name, of)| (name, of)).collect();
        let expected = [("GetMessages", "q1"), ("GetMessages", "q2"), ("GetBlob", "container")];
        assert_eq!(keys, expected.map(|(name, of)| (name, of.to_owned())));
        assert_eq!(counts.of("GetMessages"), OperationCount { count: 2, errors: 1, empty: 1, non_empty: 0 });
        assert_eq!(counts.snapshot()[&(Service::Blob, "GetBlob")].count, 2);
    }
}
