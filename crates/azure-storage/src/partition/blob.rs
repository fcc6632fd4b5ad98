//! What a worker does about one partition whose leases are blobs: decisions without clock or storage.
//!
//! The safe manager has two leases per partition. Workers balance and steal the *intent* lease; the
//! *ownership* lease is what reading the queue takes. It is acquired only while the intent is held and
//! never stolen, so a new owner waits until the previous one has let go. The legacy manager has one lease,
//! which is both.
//!
//! Source: Azure/durabletask, `Partitioning/SafePartitionManager.cs` and `LegacyPartitionManager.cs`.

use tokio::time::Instant;

/// Where the hand-back of a partition stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Drain {
    /// Not begun.
    Idle,
    /// Receiving has stopped, sessions are still active.
    Running,
    /// No session is left.
    Finished,
}

/// What this process knows of a partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct View {
    /// Until when the right to be given the partition holds; `None`: not held.
    pub(crate) intent: Option<Instant>,
    /// Until when the right to read the queue holds; `None`: not held.
    pub(crate) ownership: Option<Instant>,
    /// A stolen lease: from when its previous owner must have noticed.
    pub(crate) not_before: Option<Instant>,
    pub(crate) receiving: bool,
    pub(crate) drain: Drain,
    pub(crate) stopping: bool,
}

/// What to do about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Act {
    /// Nothing.
    Rest,
    /// Receive until then.
    Receive(Instant),
    /// Stop receiving at once: the queue is somebody else's.
    Stop,
    /// Stop receiving, and let sessions finish.
    Drain,
    /// Give the ownership back.
    Release,
}

/// Decides about one partition at `now`.
///
/// Differs: DTFx's safe manager lets an ownership lease run out after its partition has been drained; here
/// it is released at once, which saves the successor half a minute.
pub(crate) fn decide(view: View, now: Instant) -> Act {
    let valid = |until: Option<Instant>| until.filter(|until| *until > now);
    let Some(ownership) = valid(view.ownership) else {
        return if view.receiving { Act::Stop } else { Act::Rest };
    };
    match (valid(view.intent).filter(|_| !view.stopping), view.drain) {
        (_, Drain::Running) => Act::Rest,
        (Some(_), _) if view.not_before.is_some_and(|begin| now < begin) => Act::Rest,
        (Some(intent), _) => Act::Receive(ownership.min(intent)),
        (None, Drain::Idle) => Act::Drain,
        (None, Drain::Finished) => Act::Release,
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[track_caller]
    fn check(change: impl Fn(&mut View, Instant), expected: impl Fn(Instant) -> Act) {
        let now = Instant::now() + SECOND;
        let mut view = View {
            intent: Some(now + SECOND * 20),
            ownership: Some(now + SECOND * 30),
            not_before: None,
            receiving: true,
            drain: Drain::Idle,
            stopping: false,
        };
        change(&mut view, now);
        assert_eq!(decide(view, now), expected(now), "{view:?}");
    }

    #[test]
    fn a_queue_is_read_while_both_leases_hold() {
        check(|_, _| {}, |now| Act::Receive(now + SECOND * 20));
        check(|v, now| v.ownership = Some(now + SECOND), |now| Act::Receive(now + SECOND));
        check(|v, _| v.receiving = false, |now| Act::Receive(now + SECOND * 20));
    }

    #[test]
    fn whoever_lost_the_ownership_stops_at_once() {
        check(|v, _| v.ownership = None, |_| Act::Stop);
        check(|v, now| v.ownership = Some(now), |_| Act::Stop);
        check(|v, _| (v.ownership, v.receiving) = (None, false), |_| Act::Rest);
    }

    #[test]
    fn whoever_lost_the_intent_drains_then_releases_and_may_take_it_up_again() {
        check(|v, _| v.intent = None, |_| Act::Drain);
        check(|v, now| v.intent = Some(now), |_| Act::Drain);
        check(|v, _| (v.intent, v.drain) = (None, Drain::Running), |_| Act::Rest);
        check(|v, _| (v.intent, v.drain) = (None, Drain::Finished), |_| Act::Release);
        check(|v, _| v.drain = Drain::Running, |_| Act::Rest);
        check(|v, _| v.drain = Drain::Finished, |now| Act::Receive(now + SECOND * 20));
    }

    #[test]
    fn whoever_stops_drains_and_releases() {
        check(|v, _| v.stopping = true, |_| Act::Drain);
        check(|v, _| (v.stopping, v.drain) = (true, Drain::Finished), |_| Act::Release);
    }

    #[test]
    fn a_stolen_queue_is_not_read_before_its_owner_must_have_noticed() {
        check(|v, now| (v.not_before, v.receiving) = (Some(now + SECOND), false), |_| Act::Rest);
        check(|v, now| v.not_before = Some(now), |now| Act::Receive(now + SECOND * 20));
    }
}
