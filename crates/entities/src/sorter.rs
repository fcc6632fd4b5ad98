use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use indexmap::IndexMap;
use serde::{Deserialize, Serialize};
use taskhub_core::Timestamp;

use crate::RequestMessage;
use crate::limits::{MAX_ENDED_EXECUTIONS, REORDER_WINDOW};
use crate::time::Stamp;

/// How often old entries are thrown away. Source: Azure/durabletask,
/// `MessageSorter.MinIntervalBetweenCollections`.
const MIN_INTERVAL_BETWEEN_COLLECTIONS: Duration = Duration::from_secs(10);

/// Puts the requests of each sender in order and drops duplicates, as far as they are no older than the reorder
/// window. An orchestration has one for what it sends, made anew by every replay; an entity keeps one in its
/// state. Source: Azure/durabletask, `MessageSorter`.
///
/// Differs: DTFx compares instance ids without regard to case until the state is stored for the first time, and
/// with regard to it ever after. Here case always counts, since ids that differ in it are different instances.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct MessageSorter {
    /// Stamp of the last message to each instance.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    last_sent_to_instance: Option<IndexMap<String, Stamp>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    received_from_instance: Option<IndexMap<String, ReceiveBuffer>>,
    /// What is older passes through.
    #[serde(default, skip_serializing_if = "Stamp::is_min")]
    receive_horizon: Stamp,
    #[serde(default, skip_serializing_if = "Stamp::is_min")]
    send_horizon: Stamp,
}

/// What one sender has sent.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct ReceiveBuffer {
    /// Stamp of the last message delivered.
    #[serde(default)]
    last: Stamp,
    /// Execution that sent it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    execution_id: Option<String>,
    /// Messages that wait for others before them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    buffered: Option<BTreeMap<Stamp, RequestMessage>>,
    /// Other executions of the sender, the latest at the end.
    ///
    /// Differs: DTFx forgets an execution when it sees another one. Something of the one before that comes later,
    /// or again, is taken for a new execution, and whatever the current one sends next waits for what has come
    /// already. Workers of .NET ignore this member and drop it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    others: Vec<OtherExecution>,
}

/// An execution that is not the sender's current one. What comes of it need not wait.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct OtherExecution {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    execution_id: Option<String>,
    /// Everything up to this stamp has been delivered.
    #[serde(default)]
    last: Stamp,
    /// And these.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    beyond: BTreeSet<Stamp>,
}

impl OtherExecution {
    /// Whether a message is to be delivered.
    fn receive(&mut self, message: &RequestMessage, horizon: Stamp) -> bool {
        if message.timestamp <= self.last || self.beyond.contains(&message.timestamp) {
            return false;
        }
        if message.predecessor <= self.last || message.predecessor < horizon {
            self.last = message.timestamp;
            self.beyond.retain(|stamp| *stamp > message.timestamp);
        } else {
            self.beyond.insert(message.timestamp);
        }
        true
    }

    /// Forgets what passes through anyway; whether anything is left.
    fn forget(&mut self, horizon: Stamp) -> bool {
        self.beyond.retain(|stamp| *stamp >= horizon);
        self.last >= horizon || !self.beyond.is_empty()
    }
}

impl ReceiveBuffer {
    fn is_idle(&self) -> bool {
        let has_buffered = self.buffered.as_ref().is_some_and(|buffered| !buffered.is_empty());
        self.last == Stamp::MIN && !has_buffered && self.others.is_empty()
    }

    /// Differs: in DTFx a message that had to wait for one that came of another run of its episode sets the stamp
    /// back, and what follows waits for ever.
    fn delivered(&mut self, stamp: Stamp, horizon: Stamp) {
        let last = self.last.max(stamp);
        self.last = if last >= horizon { last } else { Stamp::MIN };
    }

    /// Goes over to another execution; what has waited need not wait any longer.
    fn begin_execution(&mut self, execution_id: Option<&str>) -> Vec<RequestMessage> {
        let waited = self.buffered.take().unwrap_or_default();
        let before = OtherExecution {
            execution_id: std::mem::replace(&mut self.execution_id, execution_id.map(str::to_owned)),
            last: std::mem::take(&mut self.last),
            beyond: waited.keys().copied().collect(),
        };
        self.remember(before);
        waited.into_values().collect()
    }

    fn remember(&mut self, other: OtherExecution) {
        if self.others.len() >= MAX_ENDED_EXECUTIONS {
            self.others.remove(0);
        }
        self.others.push(other);
    }

    /// Moves what need not wait any more to `deliverable`.
    fn deliver_next(&mut self, horizon: Stamp, deliverable: &mut Vec<RequestMessage>) {
        loop {
            let first = self.buffered.as_ref().and_then(|buffered| buffered.first_key_value());
            let Some((_, first)) = first else { return };
            if first.predecessor > self.last && first.predecessor >= horizon {
                return;
            }
            let Some((_, message)) = self.buffered.as_mut().and_then(BTreeMap::pop_first) else { return };
            self.delivered(message.timestamp, horizon);
            deliverable.push(message);
        }
    }
}

impl MessageSorter {
    /// Stamps a request before it is sent to an instance. Delayed requests and those of clients are not stamped.
    pub fn label_outgoing(&mut self, message: &mut RequestMessage, destination: &str, now: Timestamp) {
        if self.send_horizon.at() + REORDER_WINDOW + MIN_INTERVAL_BETWEEN_COLLECTIONS < now {
            let horizon = Stamp::utc(now - REORDER_WINDOW);
            self.send_horizon = horizon;
            if let Some(last_sent) = &mut self.last_sent_to_instance {
                last_sent.retain(|_, last| *last >= horizon);
            }
        }
        let mut stamp = Stamp::utc(now);
        let last_sent = self.last_sent_to_instance.get_or_insert_default();
        if let Some(last) = last_sent.get(destination) {
            message.predecessor = *last;
            if stamp <= *last {
                stamp = last.next();
            }
        }
        message.timestamp = stamp;
        last_sent.insert(destination.to_owned(), stamp);
    }

    /// Learns of a message that was sent before, with the stamp that its receiver has seen.
    pub fn was_sent(&mut self, destination: &str, stamp: Stamp) {
        self.last_sent_to_instance.get_or_insert_default().insert(destination.to_owned(), stamp);
    }

    /// Takes a request in and returns those that are due, in order: none while others are missing, or for a
    /// duplicate. Requests of clients and locks that another entity forwards come as they come.
    ///
    /// Differs: so does what a sender did not stamp (Durable Functions with a reorder window of zero). DTFx takes
    /// it for a duplicate as long as no stamped message has come.
    pub fn receive_in_order(&mut self, message: RequestMessage) -> Vec<RequestMessage> {
        let mut deliverable = Vec::new();
        let is_sorted = message.position == 0 && !message.timestamp.is_min();
        let Some(parent) = message.parent_instance_id.clone().filter(|_| is_sorted) else {
            return vec![message];
        };
        let collect_at = self.receive_horizon.at() + REORDER_WINDOW + MIN_INTERVAL_BETWEEN_COLLECTIONS;
        if collect_at < message.timestamp.at() {
            self.move_horizon(message.timestamp, &mut deliverable);
        }
        let horizon = self.receive_horizon;
        if message.timestamp < horizon {
            deliverable.push(message);
            return deliverable;
        }
        let buffers = self.received_from_instance.get_or_insert_default();
        let buffer = buffers.entry(parent).or_insert_with(|| ReceiveBuffer {
            execution_id: message.parent_execution_id.clone(),
            ..ReceiveBuffer::default()
        });
        if buffer.execution_id != message.parent_execution_id {
            let mut others = buffer.others.iter_mut();
            if let Some(other) = others.find(|other| other.execution_id == message.parent_execution_id) {
                deliverable.extend(other.receive(&message, horizon).then_some(message));
                return deliverable;
            }
            deliverable.extend(buffer.begin_execution(message.parent_execution_id.as_deref()));
        }
        if message.timestamp <= buffer.last {
            return deliverable;
        }
        if message.predecessor > buffer.last && message.predecessor >= horizon {
            buffer.buffered.get_or_insert_default().insert(message.timestamp, message);
        } else {
            buffer.delivered(message.timestamp, horizon);
            deliverable.push(message);
            buffer.deliver_next(horizon, &mut deliverable);
        }
        deliverable
    }

    /// Whether later messages of the same execution have been delivered, so that this one would be a duplicate.
    pub(crate) fn has_passed(&self, message: &RequestMessage) -> bool {
        let Some(parent) = message.parent_instance_id.as_deref() else { return false };
        let buffer = self.received_from_instance.as_ref().and_then(|buffers| buffers.get(parent));
        let is_sorted = message.position == 0 && message.timestamp >= self.receive_horizon;
        let is_passed = |buffer: &ReceiveBuffer| {
            buffer.execution_id == message.parent_execution_id && message.timestamp <= buffer.last
        };
        is_sorted && buffer.is_some_and(is_passed)
    }

    /// How many requests wait for others.
    pub fn buffered_len(&self) -> usize {
        let buffers = self.received_from_instance.iter().flat_map(IndexMap::values);
        buffers.map(|buffer| buffer.buffered.as_ref().map_or(0, BTreeMap::len)).sum()
    }

    fn move_horizon(&mut self, newest: Stamp, deliverable: &mut Vec<RequestMessage>) {
        let horizon = newest.moved_to(newest.at() - REORDER_WINDOW);
        self.receive_horizon = horizon;
        let Some(buffers) = &mut self.received_from_instance else { return };
        for buffer in buffers.values_mut() {
            if buffer.last < horizon {
                buffer.last = Stamp::MIN;
            }
            buffer.deliver_next(horizon, deliverable);
            buffer.others.retain_mut(|other| other.forget(horizon));
        }
        buffers.retain(|_, buffer| !buffer.is_idle());
        if buffers.is_empty() {
            self.received_from_instance = None;
        }
    }
}

#[cfg(test)]
mod tests;
