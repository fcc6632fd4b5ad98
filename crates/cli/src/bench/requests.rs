//! Requests to storage, by what they are for.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::{Value, json};
use taskhub_azure_storage::names::ResourceNames;
use taskhub_storage::request::{Meter, OperationCounts};
use taskhub_storage::{OPERATIONS, Operation};
use tokio::time::Instant;

/// Nothing but polls and leases for so long: the work is done.
const QUIET: Duration = Duration::from_millis(700);
const LOOK_INTERVAL: Duration = Duration::from_millis(20);
/// Work that does not end; the counts are then taken as they are.
const LONGEST_SETTLING: Duration = Duration::from_secs(20);

/// What a request is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Purpose {
    /// An orchestration.
    Work,
    /// A receive that found nothing.
    EmptyPoll,
    /// Who reads which control queue.
    Partitions,
    /// Which application processes the hub.
    AppLease,
}

impl Purpose {
    pub(super) const UPKEEP: [Self; 3] = [Self::EmptyPoll, Self::Partitions, Self::AppLease];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Work => "work",
            Self::EmptyPoll => "empty polls",
            Self::Partitions => "partition rows",
            Self::AppLease => "app lease",
        }
    }
}

/// How many requests of each kind, as they are billed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Requests(BTreeMap<(Purpose, Meter, &'static str), u64>);

impl Requests {
    /// Those counted so far.
    pub(super) fn counted(counts: &OperationCounts, names: &ResourceNames) -> Self {
        let partitions = [names.partitions_table(), names.lease_container()];
        let app_lease = names.app_lease_container();
        let mut requests = BTreeMap::new();
        for ((service, operation, resource), count) in counts.by_resource() {
            let purpose = match () {
                () if partitions.contains(&resource) => Purpose::Partitions,
                () if resource == app_lease => Purpose::AppLease,
                () => Purpose::Work,
            };
            let found = OPERATIONS.iter().find(|o| o.service == service && o.name == operation);
            let Some(meter) = found.map(Operation::meter) else { continue };
            let others = count.count.saturating_sub(count.non_empty + count.empty);
            for (purpose, meter, requests_of_it) in [
                (purpose, Meter::QueueClass1, count.non_empty),
                (Purpose::EmptyPoll, meter, count.empty),
                (purpose, meter, others),
            ] {
                *requests.entry((purpose, meter, operation)).or_default() += requests_of_it;
            }
        }
        requests.retain(|_, n| *n > 0);
        Self(requests)
    }

    /// Those since an earlier count.
    pub(super) fn since(&self, earlier: &Self) -> Self {
        let new = self.0.iter().map(|(kind, n)| (*kind, n - earlier.0.get(kind).unwrap_or(&0)));
        Self(new.filter(|(_, n)| *n > 0).collect())
    }

    pub(super) fn total(&self, purpose: Purpose) -> u64 {
        self.0.iter().filter(|((of, ..), _)| *of == purpose).map(|(_, n)| n).sum()
    }

    /// Operations that served orchestrations, by name.
    pub(super) fn work(&self) -> BTreeMap<&'static str, u64> {
        let mut sums = BTreeMap::new();
        for ((_, operation), n) in self.billed_work() {
            *sums.entry(operation).or_default() += n;
        }
        sums
    }

    /// The same by line of the bill first.
    pub(super) fn billed_work(&self) -> BTreeMap<(Meter, &'static str), u64> {
        let work = self.0.iter().filter(|((of, ..), _)| *of == Purpose::Work);
        work.map(|((_, meter, name), n)| ((*meter, *name), *n)).collect()
    }

    /// Everything, by line of the bill.
    fn meters(&self) -> BTreeMap<&'static str, u64> {
        let mut sums = BTreeMap::new();
        for ((_, meter, _), n) in &self.0 {
            *sums.entry(meter.name()).or_default() += n;
        }
        sums
    }

    pub(super) fn json(&self) -> Value {
        let upkeep = Purpose::UPKEEP.map(|p| self.total(p));
        json!({
            "work": self.total(Purpose::Work),
            "byOperation": self.work(),
            "emptyPolls": upkeep[0],
            "partitionRows": upkeep[1],
            "appLease": upkeep[2],
            "allByMeter": self.meters(),
        })
    }
}

/// Waits until worker and client have done what a finished orchestration leaves to do: messages are
/// deleted after the orchestration shows as completed.
pub(super) async fn settle(counts: &[&OperationCounts], names: &ResourceNames) {
    let work = || -> u64 { counts.iter().map(|c| Requests::counted(c, names).total(Purpose::Work)).sum() };
    let begun = Instant::now();
    let (mut seen, mut since) = (work(), begun);
    while since.elapsed() < QUIET && begun.elapsed() < LONGEST_SETTLING {
        tokio::time::sleep(LOOK_INTERVAL).await;
        let now = work();
        if now != seen {
            (seen, since) = (now, Instant::now());
        }
    }
}
