//! Which lease blobs to take: the blob partition managers' decisions, without clock or storage.
//!
//! Source: Azure/durabletask, `Partitioning/LeaseCollectionBalancer.cs`.

use std::collections::BTreeMap;

use taskhub_core::{PartitionId, WorkerId};

/// A lease blob as the list shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Candidate {
    pub(crate) partition: PartitionId,
    /// Whether the blob is leased now.
    pub(crate) leased: bool,
    /// Whom its content names.
    pub(crate) owner: Option<String>,
}

impl Candidate {
    /// The worker that holds it; `None`: anybody may take it.
    fn holder(&self) -> Option<String> {
        let owner = self.owner.as_deref().map(str::trim).filter(|owner| !owner.is_empty())?;
        self.leased.then(|| owner.to_ascii_lowercase())
    }
}

/// What to try next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Plan {
    /// Nothing.
    Rest,
    /// Acquire some of these, in this order, until `need` are acquired.
    Acquire {
        /// Leases that nobody holds.
        free: Vec<PartitionId>,
        /// How many of them.
        need: usize,
    },
    /// Take this one from the worker that has most.
    Steal(PartitionId),
}

/// Decides what worker `me` takes. Owners are compared without regard to case.
pub(crate) fn plan(leases: &[Candidate], me: &WorkerId, may_steal: bool) -> Plan {
    let me = me.as_str().to_ascii_lowercase();
    let mut counts: BTreeMap<String, usize> = BTreeMap::from([(me.clone(), 0)]);
    let mut free = Vec::new();
    for lease in leases {
        match lease.holder() {
            Some(holder) => *counts.entry(holder).or_default() += 1,
            None => free.push(lease.partition),
        }
    }
    let target = if leases.len() > counts.len() { leases.len().div_ceil(counts.len()) } else { 1 };
    let mine = counts.get(&me).copied().unwrap_or_default();
    let need = if may_steal { target.saturating_sub(mine) } else { free.len() };
    if need == 0 {
        return Plan::Rest;
    }
    if !free.is_empty() {
        return Plan::Acquire { free, need };
    }
    if !may_steal {
        return Plan::Rest;
    }
    // Of several with as many, the first.
    let richest = counts.iter().rev().max_by_key(|(_, count)| **count);
    let Some((victim, &count)) = richest else { return Plan::Rest };
    if *victim == me || count <= target - usize::from(need > 1) {
        return Plan::Rest;
    }
    let stolen = leases.iter().find(|lease| lease.holder().as_deref() == Some(victim.as_str()));
    stolen.map_or(Plan::Rest, |lease| Plan::Steal(lease.partition))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// `a b - a`: who holds each lease.
    fn fleet(owners: &str) -> Vec<Candidate> {
        let lease = |(at, owner): (usize, &str)| Candidate {
            partition: PartitionId(at as u32),
            leased: owner != "-",
            owner: (owner != "-").then(|| owner.to_owned()),
        };
        owners.split(' ').enumerate().map(lease).collect()
    }

    #[track_caller]
    fn check(owners: &str, me: &str, may_steal: bool, expected: Plan) {
        assert_eq!(plan(&fleet(owners), &me.into(), may_steal), expected, "{owners}, {me}");
    }

    fn acquire(free: &[u32], need: usize) -> Plan {
        Plan::Acquire { free: free.iter().map(|p| PartitionId(*p)).collect(), need }
    }

    #[test]
    fn free_leases_are_acquired_up_to_the_fair_share() {
        check("- - - -", "a", true, acquire(&[0, 1, 2, 3], 4));
        check("a a - -", "b", true, acquire(&[2, 3], 2));
        check("a a a -", "a", true, acquire(&[3], 1));
        check("a a - b", "a", true, Plan::Rest);
        check("- - - -", "a", false, acquire(&[0, 1, 2, 3], 4));
        check("b b - -", "a", false, acquire(&[2, 3], 2));
    }

    #[test]
    fn one_lease_is_stolen_from_the_worker_that_has_most() {
        check("a a a a", "b", true, Plan::Steal(PartitionId(0)));
        check("b a a a", "b", true, Plan::Steal(PartitionId(1)));
        check("b b a a", "b", true, Plan::Rest);
        check("a a b b", "c", true, Plan::Steal(PartitionId(0)));
        check("a b c d", "e", true, Plan::Rest);
        check("a a a a", "b", false, Plan::Rest);
        check("a a a b b b", "c", true, Plan::Steal(PartitionId(0)));
    }

    #[test]
    fn case_does_not_tell_workers_apart_and_blank_owners_are_none() {
        check("A a", "a", true, Plan::Rest);
        let mut leases = fleet("a a");
        leases[1].owner = Some("  ".into());
        assert_eq!(plan(&leases, &"b".into(), true), acquire(&[1], 1));
        leases[1].owner = Some("a".into());
        leases[1].leased = false;
        assert_eq!(plan(&leases, &"b".into(), true), acquire(&[1], 1));
    }

    #[test]
    fn no_leases_need_no_plan() {
        assert_eq!(plan(&[], &"a".into(), true), Plan::Rest);
        assert_eq!(plan(&[], &"a".into(), false), Plan::Rest);
    }

    /// Carries out one plan.
    fn act(leases: &mut [Candidate], me: &WorkerId) -> bool {
        let plan = plan(leases, me, true);
        let mut take = |partition: PartitionId| {
            let lease = &mut leases[partition.0 as usize];
            (lease.leased, lease.owner) = (true, Some(me.to_string()));
        };
        match plan {
            Plan::Rest => return false,
            Plan::Acquire { free, need } => free.into_iter().take(need).for_each(take),
            Plan::Steal(partition) => take(partition),
        }
        true
    }

    proptest! {
        /// From any distribution, with any live workers taking turns in any order.
        #[test]
        fn any_fleet_settles_with_a_spread_of_at_most_one(
            owners in prop::collection::vec(0..8usize, 1..=16),
            workers in 1..8usize,
            turns in prop::collection::vec(0..8usize, 0..50),
        ) {
            let name = |n: usize| format!("w{n}");
            // Workers beyond the live ones are gone: their leases have run out.
            let mut leases: Vec<Candidate> = owners.iter().enumerate().map(|(at, owner)| Candidate {
                partition: PartitionId(at as u32),
                leased: *owner < workers,
                owner: Some(name(*owner)),
            }).collect();
            let ids: Vec<WorkerId> = (0..workers).map(|n| WorkerId::new(name(n))).collect();
            for turn in turns {
                act(&mut leases, &ids[turn % workers]);
            }
            let mut rounds = 0;
            while ids.iter().map(|me| act(&mut leases, me)).collect::<Vec<_>>().contains(&true) {
                rounds += 1;
                prop_assert!(rounds < 100, "it never settles: {leases:?}");
            }
            prop_assert!(leases.iter().all(|lease| lease.holder().is_some()));
            let count = |n: usize| leases.iter().filter(|l| l.holder() == Some(name(n))).count();
            let counts: Vec<usize> = (0..workers).map(count).collect();
            let (most, least) = (counts.iter().max().unwrap(), counts.iter().min().unwrap());
            prop_assert!(most - least <= 1, "{counts:?}");
        }
    }
}
