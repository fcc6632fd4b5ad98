use std::collections::BTreeMap;
use std::ops::AddAssign;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::cost::{self, Cost, Meter};
use crate::operation::{Operation, Service};

/// How often an operation was requested. Every attempt counts, and every page of a list.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct OperationCount {
    /// Requests.
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

/// By orchestration (empty: none), then by operation.
type Names = BTreeMap<Arc<str>, BTreeMap<Operation, OperationCount>>;

/// Most names of orchestrations that are told apart; a sender must not be able to fill the memory.
const MAX_NAMES: usize = 100;
/// Stands for all others.
const OTHER: &str = "(other)";

#[derive(Debug, Default)]
struct State {
    counts: Counts,
    names: Names,
}

/// Counts of all operations. A clone counts into the same numbers.
#[derive(Debug, Clone, Default)]
pub struct OperationCounts(Arc<Mutex<State>>);

impl OperationCounts {
    /// The counts now, by service and name of the operation; operations never requested are absent.
    pub fn snapshot(&self) -> BTreeMap<(Service, &'static str), OperationCount> {
        self.lock()
            .counts
            .iter()
            .map(|(operation, resources)| (*operation, sum(resources.values())))
            .collect()
    }

    /// The counts now, by service, name of the operation, and queue, table or container (for lists of
    /// those, the prefix).
    pub fn by_resource(&self) -> BTreeMap<(Service, &'static str, String), OperationCount> {
        let counts = &self.lock().counts;
        let each = counts.iter().flat_map(|((service, name), resources)| {
            resources.iter().map(|(resource, count)| ((*service, *name, resource.clone()), *count))
        });
        each.collect()
    }

    /// The count of one operation by its name.
    pub fn of(&self, name: &str) -> OperationCount {
        let counts = &self.lock().counts;
        let found = counts.iter().find(|((_, found), _)| *found == name);
        found.map(|(_, resources)| sum(resources.values())).unwrap_or_default()
    }

    /// Counts from zero again.
    pub fn reset(&self) {
        *self.lock() = State::default();
    }

    /// What the requests cost, by orchestration, meter and operation.
    pub fn costs(&self) -> Vec<Cost> {
        let state = self.lock();
        let mut costs = Vec::new();
        for (name, operations) in &state.names {
            for (operation, count) in operations {
                for (meter, requests) in [
                    (Meter::QueueClass1, count.non_empty),
                    (operation.meter(), count.count.saturating_sub(count.non_empty)),
                ] {
                    if requests > 0 {
                        let orchestration = (!name.is_empty()).then(|| name.clone());
                        costs.push(Cost { orchestration, meter, operation: operation.name, requests });
                    }
                }
            }
        }
        costs.sort();
        costs
    }

    /// One attempt on a resource, `container/blob` for blobs, with so many requests.
    pub(super) fn add(&self, operation: Operation, resource: &str, requests: u64, failed: bool) {
        self.change(operation, resource, |count| {
            count.count += requests;
            count.errors += u64::from(failed);
        });
    }

    pub(super) fn add_receive(&self, operation: Operation, queue: &str, messages: usize) {
        self.change(operation, queue, |count| {
            count.empty += u64::from(messages == 0);
            count.non_empty += u64::from(messages > 0);
        });
    }

    fn change(&self, operation: Operation, resource: &str, change: impl Fn(&mut OperationCount)) {
        let resource = resource.split_once('/').map_or(resource, |(container, _)| container);
        let mut state = self.lock();
        let State { counts, names } = &mut *state;
        let mut name = cost::name().unwrap_or_default();
        if !names.contains_key(&name) && names.len() > MAX_NAMES {
            name = OTHER.into();
        }
        change(names.entry(name).or_default().entry(operation).or_default());
        let resources = counts.entry((operation.service, operation.name)).or_default();
        match resources.get_mut(resource) {
            Some(count) => change(count),
            None => change(resources.entry(resource.to_owned()).or_default()),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
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
    use crate::request::on_behalf_of;

    #[test]
    fn counts_are_kept_by_queue_table_and_container() {
        let counts = OperationCounts::default();
        counts.add(op::GET_MESSAGES, "q1", 1, false);
        counts.add_receive(op::GET_MESSAGES, "q1", 0);
        counts.add(op::GET_MESSAGES, "q2", 1, true);
        counts.add(op::GET_BLOB, "container/a/b", 1, false);
        counts.add(op::GET_BLOB, "container/c", 1, false);
        let keys: Vec<_> = counts.by_resource().into_keys().map(|(_, name, of)| (name, of)).collect();
        let expected = [("GetMessages", "q1"), ("GetMessages", "q2"), ("GetBlob", "container")];
        assert_eq!(keys, expected.map(|(name, of)| (name, of.to_owned())));
        assert_eq!(counts.of("GetMessages"), OperationCount { count: 2, errors: 1, empty: 1, non_empty: 0 });
        assert_eq!(counts.snapshot()[&(Service::Blob, "GetBlob")].count, 2);
    }

    #[tokio::test]
    async fn costs_are_told_by_orchestration_meter_and_operation() {
        let counts = OperationCounts::default();
        counts.add(op::GET_MESSAGES, "q", 1, false);
        counts.add_receive(op::GET_MESSAGES, "q", 0);
        counts.add(op::GET_MESSAGES, "q", 1, false);
        counts.add_receive(op::GET_MESSAGES, "q", 3);
        let order: Arc<str> = "Order".into();
        on_behalf_of(Some(order.clone()), async { counts.add(op::PUT_MESSAGE, "q", 1, false) }).await;
        on_behalf_of(Some(order), on_behalf_of(None, async { counts.add(op::LIST_BLOBS, "c", 3, true) }))
            .await;
        let told: Vec<_> = counts
            .costs()
            .into_iter()
            .map(|c| {
                (c.orchestration.unwrap_or_default().to_string(), c.meter.name(), c.operation, c.requests)
            })
            .collect();
        assert_eq!(
            told,
            [
                (String::new(), "queue class 1", "GetMessages", 1),
                (String::new(), "queue class 2", "GetMessages", 1),
                ("Order".into(), "queue class 1", "PutMessage", 1),
                ("Order".into(), "blob list", "ListBlobs", 3),
            ]
        );
        for n in 0..1_000 {
            on_behalf_of(Some(n.to_string().into()), async { counts.add(op::PUT_BLOB, "c", 1, false) }).await;
        }
        let names: std::collections::BTreeSet<_> =
            counts.costs().into_iter().filter_map(|c| c.orchestration).collect();
        assert!(names.len() <= MAX_NAMES + 1 && names.contains(OTHER), "{}", names.len());
        let all: u64 = counts.costs().iter().map(|c| c.requests).sum();
        assert_eq!(all, 1_006);
    }
}
