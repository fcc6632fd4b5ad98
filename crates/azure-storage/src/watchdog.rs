//! Tells a person when work lies undone, and who owns what.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use taskhub_core::{EventKind, PartitionId, Timestamp};
use taskhub_storage::QueueMessage;
use tokio::time::Instant;

use crate::hub::{MAX_PARTITION_COUNT, PartitionManagerKind};
use crate::message::{self, Decoded};
use crate::metrics::QueueLabels;
use crate::partition::ownership::{OwnershipState, PartitionOwnership};
use crate::queue::control::Report;
use crate::shared::Shared;

/// Interval of looks at the receive loops of the owned queues. They cost nothing unless one has a reason to
/// look into its queue.
const LOOK_INTERVAL: Duration = Duration::from_secs(60);
/// A visible message of this age is worth a warning.
const OLD: Duration = Duration::from_secs(60);
/// Interval of the line that tells who owns what.
const SUMMARY_INTERVAL: Duration = Duration::from_secs(300);

/// What is remembered of a queue between two looks.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Seen {
    message_id: String,
    at: Timestamp,
}

/// Watches until the worker stops.
pub(crate) async fn watch(shared: Arc<Shared>, manager: PartitionManagerKind) {
    let mut seen = BTreeMap::new();
    let mut summary_at = Instant::now() + SUMMARY_INTERVAL;
    loop {
        tokio::select! {
            biased;
            () = shared.stopping.cancelled() => return,
            () = tokio::time::sleep(LOOK_INTERVAL) => {}
        }
        look(&shared, &mut seen).await;
        if Instant::now() >= summary_at {
            summary_at = Instant::now() + SUMMARY_INTERVAL;
            summarise(&shared, manager).await;
        }
    }
}

/// Why messages may lie in a queue that this worker owns; `polled`: it should have been received from at least
/// once since the last look.
fn reason(report: Report, live: bool, polled: bool) -> Option<&'static str> {
    if !live {
        Some("the receive loop hangs or has died")
    } else if report.failures > 0 {
        Some("receiving fails")
    } else if report.expired > 0 {
        Some("the lease had run out")
    } else if report.full > 0 {
        Some("this worker holds as many messages as it may")
    } else if report.receives == 0 && polled {
        Some("the receive loop waits for storage")
    } else {
        None
    }
}

async fn look(shared: &Shared, seen: &mut BTreeMap<PartitionId, Seen>) {
    let settings = &shared.hub.settings;
    let polled = settings.max_queue_polling_interval <= LOOK_INTERVAL / 2;
    let owned: Vec<_> = (shared.queues().iter())
        .filter(|(_, (queue, _))| !queue.stop.is_cancelled())
        .map(|(partition, (queue, task))| {
            let live = !task.is_finished() && queue.is_live(settings);
            (*partition, reason(queue.take_report(), live, polled))
        })
        .collect();
    seen.retain(|partition, _| owned.iter().any(|(owned, _)| owned == partition));
    let ages = &shared.hub.metrics.oldest_message_age_seconds;
    for partition in (0..MAX_PARTITION_COUNT).map(PartitionId) {
        // A queue that has gone to another worker is that one's to tell of.
        if !owned.iter().any(|(owned, _)| *owned == partition) {
            ages.remove(&QueueLabels { queue: shared.hub.names.control_queue(partition) });
        }
    }
    for (partition, reason) in owned {
        let queue = shared.hub.names.control_queue(partition);
        let mut age = Duration::ZERO;
        if let Some(reason) = reason {
            // A queue that cannot be looked into is told of by its receive loop.
            let Ok(first) = shared.hub.account.queues.peek_messages(&queue, 1).await else { continue };
            let now = shared.hub.clock.now();
            age = first.first().map_or(Duration::ZERO, |m| age_of(m, seen.get(&partition), now));
            match first.first() {
                Some(m) if seen.get(&partition).is_none_or(|s| s.message_id != m.receipt.message_id) => {
                    seen.insert(partition, Seen { message_id: m.receipt.message_id.clone(), at: now });
                }
                Some(_) => {}
                None => drop(seen.remove(&partition)),
            }
            if age >= OLD {
                tracing::warn!(
                    hub = %shared.hub.name(), queue, age_seconds = age.as_secs(), reason,
                    held = shared.sessions.held_count(), "messages lie in a queue of this worker"
                );
            }
        }
        let labels = QueueLabels { queue };
        ages.get_or_create(&labels).set(age.as_secs_f64());
    }
}

/// How long the message has been visible, as far as is known: from when it was sent or was due, or, if it has
/// been received before, from when it was first seen lying there.
fn age_of(message: &QueueMessage, seen: Option<&Seen>, now: Timestamp) -> Duration {
    if message.dequeue_count > 0 {
        let first = seen.filter(|s| s.message_id == message.receipt.message_id);
        return first.map_or(Duration::ZERO, |s| now.saturating_since(s.at));
    }
    let due_at = match message::decode(&message.text) {
        Ok(Decoded::Message(data)) => match &data.task_message.event.kind {
            EventKind::TimerFired { fire_at, .. } => Some(*fire_at),
            EventKind::ExecutionStarted(start) => start.scheduled_start_time,
            _ => None,
        },
        _ => None,
    };
    now.saturating_since(due_at.map_or(message.inserted_at, |due| due.max(message.inserted_at)))
}

async fn summarise(shared: &Shared, manager: PartitionManagerKind) {
    let seen = match shared.status.take_owners() {
        Some(owners) => Ok(owners),
        None => shared.hub.partition_owners(manager).await,
    };
    match seen {
        Ok(leases) if !leases.is_empty() => {
            let owners: Vec<_> = leases.iter().map(describe).collect();
            tracing::info!(hub = %shared.hub.name(), owners = owners.join(", "), "partitions");
        }
        Ok(_) => {}
        Err(e) => tracing::debug!(hub = %shared.hub.name(), error = e.chain(), "cannot read who owns what"),
    }
}

fn describe(lease: &PartitionOwnership) -> String {
    let Some(owner) = &lease.owner else { return format!("{}: nobody", lease.queue) };
    let mut text = format!("{}: {owner}", lease.queue);
    if let Some(since) = lease.since {
        text.push_str(&format!(" since {}", since.to_iso()));
    }
    match (lease.state, &lease.next_owner) {
        (OwnershipState::Expired, _) => text.push_str(", expired"),
        (_, Some(next)) => text.push_str(&format!(", next {next}")),
        (OwnershipState::HandingOver, None) => text.push_str(", handing over"),
        _ => {}
    }
    text
}

#[cfg(test)]
mod tests {
    use taskhub_storage::PopReceipt;

    use super::*;
    use crate::partition::table::PartitionLease;

    fn at(second: u64) -> Timestamp {
        Timestamp::from_unix(Duration::from_secs(1_768_469_400 + second))
    }

    fn message(dequeue_count: u32) -> QueueMessage {
        QueueMessage {
            receipt: PopReceipt { message_id: "m".into(), token: String::new() },
            text: "not a message".into(),
            inserted_at: at(0),
            next_visible_at: Timestamp::MIN,
            dequeue_count,
        }
    }

    #[test]
    fn queues_are_looked_into_only_for_a_reason() {
        let fine = Report { receives: 3, ..Report::default() };
        assert_eq!(reason(fine, true, true), None);
        assert!(reason(fine, false, true).is_some_and(|r| r.contains("died")));
        assert!(reason(Report { failures: 1, ..fine }, true, true).is_some_and(|r| r.contains("fails")));
        assert!(reason(Report { full: 1, ..fine }, true, true).is_some_and(|r| r.contains("holds")));
        assert!(reason(Report { expired: 1, ..fine }, true, true).is_some_and(|r| r.contains("lease")));
        assert!(reason(Report::default(), true, true).is_some());
        assert!(reason(Report::default(), true, false).is_none(), "rarely polled");
    }

    #[test]
    fn a_message_is_as_old_as_it_has_been_visible_for_certain() {
        assert_eq!(age_of(&message(0), None, at(90)).as_secs(), 90);
        assert_eq!(age_of(&message(1), None, at(90)).as_secs(), 0, "hidden until when?");
        let seen = Seen { message_id: "m".into(), at: at(30) };
        assert_eq!(age_of(&message(1), Some(&seen), at(90)).as_secs(), 60);
        let other = Seen { message_id: "other".into(), at: at(30) };
        assert_eq!(age_of(&message(1), Some(&other), at(90)).as_secs(), 0);
    }

    #[test]
    fn the_summary_names_owners_and_what_moves() {
        let mut row = PartitionLease::free("hub-control-00");
        let check = |row: &PartitionLease, now, expected: &str| {
            assert_eq!(describe(&PartitionOwnership::of_row(row, now)), expected);
        };
        check(&row, at(0), "hub-control-00: nobody");
        row.current_owner = Some("w1".into());
        row.owned_since = Some(at(0));
        row.expires_at = Some(at(30));
        check(&row, at(1), "hub-control-00: w1 since 2026-01-15T09:30:00Z");
        check(&row, at(31), "hub-control-00: w1 since 2026-01-15T09:30:00Z, expired");
        row.is_draining = true;
        check(&row, at(1), "hub-control-00: w1 since 2026-01-15T09:30:00Z, handing over");
        row.next_owner = Some("w2".into());
        check(&row, at(1), "hub-control-00: w1 since 2026-01-15T09:30:00Z, next w2");
    }
}
