use std::collections::BTreeMap;
use std::time::Duration;

use indexmap::IndexMap;
use serde::{Deserialize, Serialize};
use taskhub_core::Timestamp;

use crate::RequestMessage;
use crate::limits::REORDER_WINDOW;
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
}

impl ReceiveBuffer {
    fn is_idle(&self) -> bool {
        self.last == Stamp::MIN && self.buffered.as_ref().is_none_or(BTreeMap::is_empty)
    }

    fn delivered(&mut self, stamp: Stamp, horizon: Stamp) {
        self.last = if stamp >= horizon { stamp } else { Stamp::MIN };
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
            // The old execution sends no more; what it has sent need not wait.
            deliverable.extend(buffer.buffered.iter_mut().flat_map(std::mem::take).map(|(_, m)| m));
            buffer.last = Stamp::MIN;
            buffer.execution_id.clone_from(&message.parent_execution_id);
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
        }
        buffers.retain(|_, buffer| !buffer.is_idle());
        if buffers.is_empty() {
            self.received_from_instance = None;
        }
    }
}

#[cfg(test)]
mod tests;
