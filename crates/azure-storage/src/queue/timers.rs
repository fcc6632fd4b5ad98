//! Timers that this process has set itself: it holds their messages, which stay hidden until they are due.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use taskhub_core::{PartitionId, Timestamp};
use tokio::sync::Notify;

use crate::queue::held::HeldMessage;
use crate::shared::Shared;

/// Most timers that are kept; more are received like other messages.
const MAX_TIMERS: usize = 10_000;
/// Longest sleep: the wall clock may be set meanwhile.
const LONGEST_SLEEP: Duration = Duration::from_secs(60);

/// Timers by when they are due.
#[derive(Debug, Default)]
pub(crate) struct LocalTimers {
    state: Mutex<State>,
    changed: Notify,
}

#[derive(Debug, Default)]
struct State {
    last: u64,
    timers: BTreeMap<(Timestamp, u64), (PartitionId, Arc<HeldMessage>)>,
}

impl LocalTimers {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// `false` when there are too many.
    pub(crate) fn add(&self, partition: PartitionId, due: Timestamp, message: Arc<HeldMessage>) -> bool {
        let mut state = self.state();
        if state.timers.len() >= MAX_TIMERS {
            return false;
        }
        state.last += 1;
        let key = (due, state.last);
        state.timers.insert(key, (partition, message));
        drop(state);
        self.changed.notify_one();
        true
    }

    /// The partition is another worker's, and so are its timers.
    pub(crate) fn drop_partition(&self, partition: PartitionId) {
        self.state().timers.retain(|_, (of, _)| *of != partition);
    }

    fn take_due(&self, now: Timestamp) -> Vec<(PartitionId, Arc<HeldMessage>)> {
        let mut state = self.state();
        let mut due = Vec::new();
        while let Some(first) = state.timers.first_entry()
            && first.key().0 <= now
        {
            due.push(first.remove());
        }
        due
    }

    fn first_due(&self) -> Option<Timestamp> {
        self.state().timers.first_key_value().map(|((due, _), _)| *due)
    }
}

/// Hands over timers that are due, until the worker stops. What is not taken here, because the partition is no
/// longer owned, becomes visible and is received by whoever owns it.
pub(crate) async fn fire_timers(shared: Arc<Shared>) {
    loop {
        let changed = shared.timers.changed.notified();
        let now = shared.hub.clock.now();
        for (partition, message) in shared.timers.take_due(now) {
            if shared.owns(partition) && shared.sessions.held(&message.message_id).is_none() {
                shared.sessions.hold(std::slice::from_ref(&message));
                shared.take_local(partition, vec![message]).await;
            }
        }
        let wait = shared.timers.first_due().map_or(LONGEST_SLEEP, |due| due.saturating_since(now));
        tokio::select! {
            biased;
            () = shared.stopping.cancelled() => return,
            () = changed => {}
            () = tokio::time::sleep(wait.min(LONGEST_SLEEP)) => {}
        }
    }
}
