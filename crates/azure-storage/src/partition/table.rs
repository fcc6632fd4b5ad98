//! The table partition manager's decisions (`{hub}Partitions`), without clock or storage.
//!
//! Source: Azure/durabletask, `Partitioning/TablePartitionManager.cs` and `TablePartitionLease.cs`.

use std::collections::BTreeMap;
use std::time::Duration;

use taskhub_core::{Timestamp, WorkerId};
use taskhub_storage::{ETag, Entity, Value};

/// One row of the Partitions table: who reads a control queue.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PartitionLease {
    /// Name of the control queue, the row key.
    pub queue: String,
    /// Worker that reads the queue.
    pub current_owner: Option<WorkerId>,
    /// Worker that waits to take over.
    pub next_owner: Option<WorkerId>,
    /// When the current owner claimed it.
    pub owned_since: Option<Timestamp>,
    /// Last renewal.
    pub last_renewal: Option<Timestamp>,
    /// Until when the lease holds, by the writer's clock.
    pub expires_at: Option<Timestamp>,
    /// Whether the owner is finishing its work.
    pub is_draining: bool,
    /// Version of the row as read.
    pub etag: Option<ETag>,
}

impl PartitionLease {
    /// A new row: nobody owns the queue.
    pub(crate) fn free(queue: impl Into<String>) -> Self {
        Self {
            queue: queue.into(),
            current_owner: None,
            next_owner: None,
            owned_since: None,
            last_renewal: None,
            expires_at: None,
            is_draining: false,
            etag: None,
        }
    }

    pub(crate) fn from_entity(row: &Entity) -> Self {
        let worker = |name| row.str(name).filter(|w| !w.is_empty()).map(WorkerId::from);
        let at = |name| match row.get(name) {
            Some(Value::DateTime(at)) => Some(*at),
            Some(Value::String(text)) => Timestamp::parse(text).ok(),
            _ => None,
        };
        Self {
            queue: row.row_key.clone(),
            current_owner: worker("CurrentOwner"),
            next_owner: worker("NextOwner"),
            owned_since: at("OwnedSince"),
            last_renewal: at("LastRenewal"),
            expires_at: at("ExpiresAt"),
            is_draining: matches!(row.get("IsDraining"), Some(Value::Bool(true))),
            etag: row.etag.clone(),
        }
    }

    /// The row with only what is set: it is written by Replace, so absent values clear columns.
    pub(crate) fn to_entity(&self) -> Entity {
        let mut row = Entity::new("", self.queue.clone()).with("IsDraining", self.is_draining);
        for (name, worker) in [("CurrentOwner", &self.current_owner), ("NextOwner", &self.next_owner)] {
            if let Some(worker) = worker {
                row.set(name, worker.as_str());
            }
        }
        for (name, at) in [
            ("OwnedSince", self.owned_since),
            ("LastRenewal", self.last_renewal),
            ("ExpiresAt", self.expires_at),
        ] {
            if let Some(at) = at {
                row.set(name, at);
            }
        }
        row
    }

    fn is_expired(&self, now: Timestamp) -> bool {
        self.expires_at.is_none_or(|at| now >= at)
    }
}

/// Where the hand-back of a partition stands in this process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Drain {
    /// Not begun.
    Idle,
    /// Receiving has stopped, sessions are still active.
    Running,
    /// No session is left.
    Finished,
}

/// What this process knows of a partition beyond its row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Local {
    pub(crate) receiving: bool,
    /// The queue should be received from, but its receive loop has ended or makes no progress.
    pub(crate) stalled: bool,
    /// The lease was let go because of that a moment ago: leave the partition to others.
    pub(crate) shunned: bool,
    pub(crate) drain: Drain,
}

/// Who asks, when, and for how long.
#[derive(Debug, Clone)]
pub(crate) struct Asker {
    pub(crate) me: WorkerId,
    pub(crate) now: Timestamp,
    pub(crate) lease_interval: Duration,
    pub(crate) shutting_down: bool,
}

/// What to do about one row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Step {
    /// The row as it should be; to be written if it differs.
    pub(crate) lease: PartitionLease,
    /// Whether the row differs from what was read.
    pub(crate) changed: bool,
    /// Stop receiving at once: somebody else owns the queue.
    pub(crate) stop_receiving: bool,
    /// Put a new receive loop in the place of one that is not live.
    pub(crate) restart: bool,
    /// Begin to drain: stop receiving and let sessions finish.
    pub(crate) begin_drain: bool,
    /// Receive once the row is written.
    pub(crate) receive: bool,
    /// Look again soon: a hand-over is under way.
    pub(crate) hurry: bool,
    /// The worker the partition counts for.
    pub(crate) counts_for: Option<WorkerId>,
}

/// Decides about one row.
///
/// Differs: receiving starts only when the row says that this worker owns the queue and nobody waits for
/// it; DTFx also starts after releasing a row and after marking itself next owner of a draining one.
pub(crate) fn step(row: &PartitionLease, local: Local, asker: &Asker) -> Step {
    let Asker { me, now, lease_interval, shutting_down } = asker;
    let (me, now) = (me.clone(), *now);
    let mine = |owner: &Option<WorkerId>| owner.as_ref() == Some(&me);
    let mut lease = row.clone();
    let mut out = Step {
        lease: row.clone(),
        changed: false,
        stop_receiving: local.receiving && !mine(&row.current_owner),
        restart: false,
        begin_drain: false,
        receive: false,
        hurry: false,
        counts_for: None,
    };
    let renew = |lease: &mut PartitionLease| {
        lease.last_renewal = Some(now);
        lease.expires_at = Some(now + *lease_interval);
    };

    if *shutting_down {
        if mine(&lease.current_owner) {
            advance_drain(&mut lease, local, &mut out);
            renew(&mut lease);
            out.hurry = lease.current_owner.is_some();
        } else if mine(&lease.next_owner) && !lease.is_draining {
            // Nobody is to wait for this worker: its owner keeps the queue, or anybody may claim it.
            //
            // Differs: DTFx leaves its name in the row, so that the queue may go to a worker that has ended
            // and lie there until the lease runs out.
            lease.next_owner = None;
        }
    } else {
        let unowned = lease.current_owner.is_none() && lease.next_owner.is_none();
        let handed_to_me = lease.current_owner.is_none() && mine(&lease.next_owner);
        let was_mine = mine(&lease.current_owner);
        if local.shunned && !(handed_to_me || was_mine) {
            // Somebody else may have more luck with it.
        } else if unowned || handed_to_me || (lease.is_expired(now) && !was_mine) {
            lease.current_owner = Some(me.clone());
            lease.next_owner = None;
            lease.owned_since = Some(now);
            lease.is_draining = false;
        }
        if mine(&lease.current_owner) {
            if lease.next_owner.is_none() {
                // An own row that says draining without anybody waiting is left over from a stop that
                // did not finish: take it up again.
                if was_mine && (local.stalled || local.shunned) {
                    // Not renewed: if the new loop does not come to life, another worker gets the queue.
                    out.counts_for = Some(me);
                    out.restart = local.stalled && !lease.is_expired(now);
                    out.stop_receiving |= local.stalled && lease.is_expired(now);
                    return out;
                }
                lease.is_draining = false;
                out.receive = true;
                out.counts_for = Some(me.clone());
            } else {
                advance_drain(&mut lease, local, &mut out);
                out.hurry = true;
                out.counts_for.clone_from(&lease.next_owner);
            }
            renew(&mut lease);
        } else if lease.next_owner.is_some() {
            out.hurry = mine(&lease.next_owner);
            out.counts_for.clone_from(&lease.next_owner);
        } else if lease.is_draining {
            lease.next_owner = Some(me.clone());
            out.hurry = true;
            out.counts_for = Some(me);
        } else {
            out.counts_for.clone_from(&lease.current_owner);
        }
    }
    out.changed = lease != *row;
    out.lease = lease;
    out
}

fn advance_drain(lease: &mut PartitionLease, local: Local, out: &mut Step) {
    match local.drain {
        Drain::Idle => {
            out.begin_drain = true;
            lease.is_draining = true;
        }
        Drain::Running => lease.is_draining = true,
        Drain::Finished => {
            lease.is_draining = false;
            lease.current_owner = None;
        }
    }
}

/// Which rows to take from others, so that the spread is at most one.
/// `counts_for[i]` is the worker that row `i` counts for.
pub(crate) fn balance(counts_for: &[Option<WorkerId>], me: &WorkerId) -> Vec<usize> {
    let mut by_worker: BTreeMap<&WorkerId, Vec<usize>> = BTreeMap::new();
    let mut mine = 0usize;
    for (index, worker) in counts_for.iter().enumerate() {
        match worker {
            Some(worker) if worker == me => mine += 1,
            Some(worker) => by_worker.entry(worker).or_default().push(index),
            None => {}
        }
    }
    let mut taken = Vec::new();
    if by_worker.is_empty() {
        return taken;
    }
    let average = counts_for.len() / (by_worker.len() + 1);
    if average < mine {
        return taken;
    }
    for rows in by_worker.values() {
        let Some(mut need) = average.checked_sub(mine) else { break };
        let excess = rows.len().saturating_sub(average);
        if excess == 0 {
            continue;
        }
        if need == 0 && excess > 1 {
            need = 1;
        }
        for &row in rows.iter().take(need.min(excess)) {
            mine += 1;
            taken.push(row);
        }
    }
    taken
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Timestamp {
        Timestamp::from_unix(Duration::from_secs(1_700_000_000 + seconds))
    }

    fn asker(me: &str, seconds: u64) -> Asker {
        Asker {
            me: me.into(),
            now: at(seconds),
            lease_interval: Duration::from_secs(30),
            shutting_down: false,
        }
    }

    fn owned(by: &str) -> PartitionLease {
        PartitionLease {
            current_owner: Some(by.into()),
            owned_since: Some(at(0)),
            last_renewal: Some(at(0)),
            expires_at: Some(at(30)),
            ..PartitionLease::free("hub-control-00")
        }
    }

    const IDLE: Local = Local { receiving: false, stalled: false, shunned: false, drain: Drain::Idle };
    const RECEIVING: Local = Local { receiving: true, ..IDLE };

    #[test]
    fn a_free_row_is_claimed_and_renewed_at_once() {
        let step = step(&PartitionLease::free("hub-control-00"), IDLE, &asker("a", 5));
        assert_eq!(step.lease.current_owner, Some("a".into()));
        assert_eq!(step.lease.owned_since, Some(at(5)));
        assert_eq!(step.lease.expires_at, Some(at(35)));
        assert!(step.receive && step.changed && !step.hurry);
    }

    #[test]
    fn an_expired_row_is_claimed_by_anyone_and_a_waiting_successor_is_forgotten() {
        let mut row = owned("a");
        row.next_owner = Some("b".into());
        row.is_draining = true;
        let claimed = step(&row, IDLE, &asker("c", 30));
        assert_eq!(claimed.lease.current_owner, Some("c".into()));
        assert_eq!((claimed.lease.next_owner, claimed.lease.is_draining), (None, false));
        let early = step(&row, IDLE, &asker("c", 29));
        assert!(!early.changed);
        assert_eq!(early.counts_for, Some("b".into()));
    }

    #[test]
    fn an_owner_renews_and_keeps_its_date() {
        let renewed = step(&owned("a"), RECEIVING, &asker("a", 10));
        assert_eq!(renewed.lease.owned_since, Some(at(0)));
        assert_eq!(renewed.lease.last_renewal, Some(at(10)));
        assert!(renewed.receive && !renewed.stop_receiving);
    }

    #[test]
    fn a_row_whose_receive_loop_is_dead_is_not_renewed_and_let_go_in_the_end() {
        let stalled = Local { stalled: true, ..RECEIVING };
        let first = step(&owned("a"), stalled, &asker("a", 10));
        assert!(!first.changed && first.restart && !first.receive && !first.stop_receiving);
        let revived = step(&owned("a"), RECEIVING, &asker("a", 20));
        assert!(revived.changed && revived.receive && !revived.restart);
        let last = step(&owned("a"), stalled, &asker("a", 30));
        assert!(!last.changed && last.stop_receiving && !last.restart);
        let shunned = Local { shunned: true, ..IDLE };
        assert!(!step(&owned("a"), shunned, &asker("a", 40)).changed);
        assert!(!step(&PartitionLease::free("hub-control-00"), shunned, &asker("a", 40)).changed);
        assert!(step(&owned("a"), IDLE, &asker("b", 40)).receive, "another worker takes it");
    }

    #[test]
    fn whoever_lost_the_row_stops_receiving_at_once() {
        assert!(step(&owned("b"), RECEIVING, &asker("a", 10)).stop_receiving);
    }

    #[test]
    fn a_hand_over_drains_releases_and_is_claimed_by_the_one_who_waits() {
        let mut row = owned("a");
        row.next_owner = Some("b".into());
        let begun = step(&row, RECEIVING, &asker("a", 10));
        assert!(begun.begin_drain && begun.lease.is_draining && begun.hurry && !begun.receive);
        let running = Local { drain: Drain::Running, ..IDLE };
        let waiting = step(&begun.lease, running, &asker("a", 11));
        assert!(waiting.lease.current_owner.is_some() && !waiting.begin_drain);
        let finished = Local { drain: Drain::Finished, ..IDLE };
        let released = step(&waiting.lease, finished, &asker("a", 12));
        assert_eq!(released.lease.current_owner, None);
        assert_eq!(released.lease.next_owner, Some("b".into()));
        assert!(!released.lease.is_draining && !released.receive);
        let stranger = step(&released.lease, IDLE, &asker("c", 13));
        assert!(!stranger.changed);
        let claimed = step(&released.lease, IDLE, &asker("b", 13));
        assert_eq!(claimed.lease.current_owner, Some("b".into()));
        assert!(claimed.receive);
    }

    #[test]
    fn a_worker_that_shuts_down_drains_and_lets_go_and_others_may_queue_up() {
        let down = Asker { shutting_down: true, ..asker("a", 10) };
        let begun = step(&owned("a"), RECEIVING, &down);
        assert!(begun.begin_drain && begun.lease.is_draining);
        let stolen = step(&begun.lease, IDLE, &asker("b", 11));
        assert_eq!(stolen.lease.next_owner, Some("b".into()));
        assert!(stolen.hurry && !stolen.receive, "not before the owner has let go");
        let finished = Local { drain: Drain::Finished, ..IDLE };
        let released = step(&begun.lease, finished, &down);
        assert_eq!((released.lease.current_owner, released.lease.is_draining), (None, false));
        assert!(released.lease.expires_at.is_some());
        let others = step(&owned("b"), IDLE, &down);
        assert!(!others.changed && others.counts_for.is_none());
    }

    #[test]
    fn a_worker_that_shuts_down_waits_for_no_queue() {
        let down = Asker { shutting_down: true, ..asker("a", 10) };
        let mut row = owned("b");
        row.next_owner = Some("a".into());
        let withdrawn = step(&row, IDLE, &down);
        assert_eq!((withdrawn.lease, withdrawn.changed), (owned("b"), true));
        assert!(step(&owned("b"), RECEIVING, &asker("b", 11)).receive, "the owner keeps it");
        // Let go for the one that goes: anybody may have it at once.
        row.current_owner = None;
        let withdrawn = step(&row, IDLE, &down);
        assert!(!withdrawn.hurry && withdrawn.lease.next_owner.is_none());
        assert!(step(&withdrawn.lease, IDLE, &asker("c", 11)).receive);
        // Being drained already: its owner goes on with that.
        row = PartitionLease { next_owner: Some("a".into()), is_draining: true, ..owned("b") };
        assert!(!step(&row, IDLE, &down).changed);
    }

    #[test]
    fn rows_survive_the_trip_through_the_table() {
        let mut row = owned("a");
        row.is_draining = true;
        row.next_owner = Some("b".into());
        assert_eq!(PartitionLease::from_entity(&row.to_entity()), row);
        let free = PartitionLease::free("q");
        assert_eq!(free.to_entity().columns.len(), 1);
        assert_eq!(PartitionLease::from_entity(&free.to_entity()), free);
    }

    #[track_caller]
    fn check_balance(counts: &str, me: &str, takes: usize) {
        let workers: Vec<_> = counts.split(' ').map(|w| Some(WorkerId::from(w))).collect();
        assert_eq!(balance(&workers, &me.into()).len(), takes, "{counts}");
    }

    #[test]
    fn balancing_takes_what_makes_the_spread_at_most_one() {
        check_balance("a a a a", "b", 2);
        check_balance("a a b b", "b", 0);
        check_balance("a a a b", "b", 1);
        check_balance("a a b b", "c", 1);
        check_balance("a a a a", "a", 0);
        check_balance("a b c d", "e", 0);
        check_balance("a a a b b b", "c", 2);
        let sixteen = "a ".repeat(16);
        check_balance(sixteen.trim(), "b", 8);
    }

    #[test]
    fn any_fleet_settles_with_a_spread_of_at_most_one() {
        for workers in 1..=6usize {
            for partitions in 1..=16usize {
                let mut rows: Vec<Option<WorkerId>> = vec![Some("w0".into()); partitions];
                for _ in 0..20 {
                    for worker in 0..workers {
                        let me = WorkerId::new(format!("w{worker}"));
                        for row in balance(&rows, &me) {
                            rows[row] = Some(me.clone());
                        }
                    }
                }
                let count = |w: usize| {
                    rows.iter().filter(|r| r.as_ref().is_some_and(|r| r.as_str() == format!("w{w}"))).count()
                };
                let counts: Vec<usize> = (0..workers).map(count).collect();
                let spread = counts.iter().max().unwrap() - counts.iter().min().unwrap();
                assert!(spread <= 1, "{workers} workers, {partitions} partitions: {counts:?}");
            }
        }
    }
}
