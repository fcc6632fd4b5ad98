//! External events: who waits, what arrived before anybody waited.

use std::sync::Arc;

use taskhub_core::{ActionKind, EventKind, HistoryEvent, InstanceId, OrchestrationInstance};

use super::Machine;
use crate::EventBehaviour;
use crate::task::{Links, Outcome, Slot};

impl Machine {
    /// Waits for an event: takes the oldest buffered one or becomes the most recent waiter. A timer that
    /// is linked to the slot competes with the event; the first of the two wins when it arrives.
    pub(crate) fn wait_for_event(&mut self, name: &str, slot: &Arc<Slot>) {
        let key = fold_case(name);
        if let Some(events) = self.buffered.get_mut(&key) {
            let first = events.pop_front();
            if events.is_empty() {
                self.buffered.remove(&key);
            }
            if let Some((number, event)) = first {
                return self.settle(slot, Outcome::Event(number, Box::new(event)));
            }
        }
        let waiter = self.next_event;
        self.next_event += 1;
        slot.set_waiter(key.clone(), waiter);
        self.waiters.entry(key).or_default().push((waiter, slot.clone()));
    }

    /// Hands an external event to the most recent waiter, to the next generation, or to the buffer.
    /// What an entity answers goes to who has asked.
    pub(crate) fn raise_event(
        &mut self,
        name: &str,
        event: &HistoryEvent,
        behaviour: EventBehaviour,
        own: &InstanceId,
    ) {
        if self.answer_request(name, event, own) {
            return;
        }
        if let Some(next) = &mut self.continue_as_new
            && behaviour == EventBehaviour::Carryover
        {
            next.carryover.push(event.clone());
            return;
        }
        let number = self.next_event;
        self.next_event += 1;
        self.offer(name, number, event.clone());
    }

    /// Takes back an event that a wait received and never handed out.
    pub(crate) fn return_event(&mut self, name: &str, number: u64, event: HistoryEvent) {
        self.offer(name, number, event);
    }

    fn offer(&mut self, name: &str, number: u64, event: HistoryEvent) {
        let key = fold_case(name);
        if let Some((_, slot)) = self.waiters.get_mut(&key).and_then(Vec::pop) {
            if self.waiters.get(&key).is_some_and(Vec::is_empty) {
                self.waiters.remove(&key);
            }
            return self.settle(&slot, Outcome::Event(number, Box::new(event)));
        }
        // Only an event that was taken back can be older than those in the buffer.
        let events = self.buffered.entry(key).or_default();
        let at = events.partition_point(|(other, _)| *other < number);
        events.insert(at, (number, event));
    }

    /// Takes the events that nobody has waited for, in the order in which they came.
    pub(super) fn take_buffered(&mut self) -> Vec<HistoryEvent> {
        let mut events: Vec<_> = self.buffered.drain().flat_map(|(_, events)| events).collect();
        events.sort_by_key(|(number, _)| *number);
        events.into_iter().map(|(_, event)| event).collect()
    }

    /// Sends the events that nobody has waited for to the instance again, name by name.
    /// Source: microsoft/durabletask-dotnet, `TaskOrchestrationContextWrapper.ContinueAsNew`.
    pub(super) fn send_buffered(&mut self, instance_id: &InstanceId) {
        let mut names: Vec<_> = self.buffered.drain().map(|(_, events)| events).collect();
        names.sort_by_key(|events| events.front().map(|(number, _)| *number));
        for events in names {
            // The name is spelled as in the first of them.
            let mut spelled = None;
            for (_, event) in events {
                let EventKind::EventRaised { name, input, .. } = event.kind else { continue };
                let name = spelled.get_or_insert(name.unwrap_or_default()).clone();
                let id = self.take_id();
                let target = OrchestrationInstance::current(instance_id.clone());
                self.decide(id, ActionKind::SendEvent { target, name, input });
            }
        }
    }

    /// Leaves an outcome for whoever awaits the slot, and closes the ways by which another could come.
    fn settle(&mut self, slot: &Slot, outcome: Outcome) {
        self.unlink(slot.take_links());
        slot.resolve(outcome);
    }

    /// Cancels the timer and ends the wait behind a slot.
    ///
    /// Differs: in .NET a wait that lost a race stays and swallows the next event.
    pub(crate) fn unlink(&mut self, links: Links) {
        if let Some(id) = links.open_timer {
            self.open.remove(&id);
        }
        let Some((key, waiter)) = links.waiter else { return };
        if let Some(waiters) = self.waiters.get_mut(&key) {
            // Waiters are pushed with ascending numbers.
            if let Ok(at) = waiters.binary_search_by_key(&waiter, |(number, _)| *number) {
                waiters.remove(at);
            }
            if waiters.is_empty() {
                self.waiters.remove(&key);
            }
        }
    }
}

/// Key of names that .NET compares with `OrdinalIgnoreCase`: each char by its simple upper case.
fn fold_case(name: &str) -> String {
    name.chars()
        .map(|c| {
            let mut upper = c.to_uppercase();
            match (upper.next(), upper.next()) {
                (Some(single), None) => single,
                _ => c,
            }
        })
        .collect()
}

/// Whether two names are the same to .NET's `OrdinalIgnoreCase`.
pub(crate) fn same_name(a: &str, b: &str) -> bool {
    a == b || fold_case(a) == fold_case(b)
}
