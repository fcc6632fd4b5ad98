//! Entities as one orchestration uses them: requests and their answers, locks.
//! Source: Azure/durabletask, `OrchestrationEntityContext`.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use taskhub_core::{ActionKind, EventKind, HistoryEvent, InstanceId, OrchestrationInstance, Timestamp};
use taskhub_entities::{
    EntityId, MessageSorter, ReleaseMessage, RequestMessage, ResponseMessage, event_name,
};
use uuid::Uuid;

use super::{Machine, Shared};
use crate::failure::entity_result;
use crate::task::{Outcome, Slot};

/// A call, signal or lock that the rules of critical sections forbid.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum LockRule {
    #[error("entities cannot be locked while others are locked or a lock has been requested")]
    Nested,
    #[error("no entity can be locked without an entity")]
    Nothing,
    #[error("no entity can be called before the requested locks are held")]
    NotYetHeld,
    #[error("in a critical section only locked entities can be called")]
    NotLocked,
    #[error("a locked entity cannot be called before it has answered the call before")]
    Busy,
    #[error("a locked entity cannot be signalled by the orchestration that locks it")]
    Signal,
    #[error("a sub-orchestration cannot be called in a critical section")]
    SubOrchestration,
}

/// What one generation knows of the entities it uses.
#[derive(Debug, Default)]
pub(super) struct Entities {
    sorter: MessageSorter,
    /// Who waits, by the request id, which is the name of the answer.
    requests: HashMap<Uuid, Awaited>,
    /// Ids of the requests whose decision has no event yet, by sequence id.
    unconfirmed: HashMap<i32, Uuid>,
    section: Option<Section>,
}

#[derive(Debug)]
enum Awaited {
    Call {
        number: i32,
        entity: EntityId,
        operation: String,
        slot: Arc<Slot>,
    },
    Lock(Arc<Slot>),
    /// The answer has come; another one is a duplicate.
    Answered,
}

/// The critical section, from the request for its locks to their release.
#[derive(Debug)]
struct Section {
    /// Sequence id of the lock request.
    number: i32,
    request_id: Uuid,
    /// In the order in which they are locked and released.
    locks: Vec<EntityId>,
    state: LockState,
    /// Locked entities that have not answered their last call.
    busy: HashSet<EntityId>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum LockState {
    Requested,
    /// Nobody waits any more; released as soon as it is granted.
    GivenUp,
    Held,
}

impl Shared {
    /// Calls an operation of an entity.
    pub(crate) fn call_entity(
        &self,
        entity: &EntityId,
        operation: &str,
        input: Option<String>,
    ) -> Result<Arc<Slot>, LockRule> {
        self.lock().entities.may_call(entity)?;
        let request = RequestMessage::call(self.new_guid(), operation, input);
        let slot = Arc::new(Slot::default());
        let mut machine = self.lock();
        let id = request.id;
        let number = machine.send_request(request, entity, self);
        let (entity, operation) = (entity.clone(), operation.to_owned());
        machine.entities.requests.insert(id, Awaited::Call { number, entity, operation, slot: slot.clone() });
        Ok(slot)
    }

    /// Sends an operation to an entity, to run now or later.
    pub(crate) fn signal_entity(
        &self,
        entity: &EntityId,
        operation: &str,
        input: Option<String>,
        due_at: Option<Timestamp>,
    ) -> Result<(), LockRule> {
        self.lock().entities.may_signal(entity)?;
        let request = RequestMessage::signal(self.new_guid(), operation, input);
        self.lock().send_request(RequestMessage { due_at, ..request }, entity, self);
        Ok(())
    }

    /// Asks for the locks of all these entities, in their order. The number names the section.
    pub(crate) fn lock_entities(&self, mut entities: Vec<EntityId>) -> Result<(i32, Arc<Slot>), LockRule> {
        entities.sort();
        entities.dedup();
        let Some(first) = entities.first().cloned() else { return Err(LockRule::Nothing) };
        if self.lock().entities.section.is_some() {
            return Err(LockRule::Nested);
        }
        let request_id = self.new_guid();
        let slot = Arc::new(Slot::default());
        let mut machine = self.lock();
        if machine.completed {
            // Differs: terminated by an event before this one. DTFx asks for the locks nevertheless, and nobody
            // ever releases them.
            return Ok((machine.take_id(), slot));
        }
        let number = machine.send_request(RequestMessage::lock(request_id, entities.clone()), &first, self);
        machine.entities.requests.insert(request_id, Awaited::Lock(slot.clone()));
        machine.entities.section = Some(Section {
            number,
            request_id,
            locks: entities,
            state: LockState::Requested,
            busy: HashSet::new(),
        });
        Ok((number, slot))
    }

    /// Releases the locks of the section that this number names, if they are held; if they are not yet, as
    /// soon as they are.
    pub(crate) fn leave_section(&self, number: i32) {
        let mut machine = self.lock();
        if machine.entities.section.as_ref().is_some_and(|section| section.number == number) {
            machine.leave_sections(&self.started.instance.instance_id);
        }
    }
}

impl Entities {
    fn may_call(&mut self, entity: &EntityId) -> Result<(), LockRule> {
        match &mut self.section {
            None | Some(Section { state: LockState::GivenUp, .. }) => Ok(()),
            Some(Section { state: LockState::Requested, .. }) => Err(LockRule::NotYetHeld),
            Some(section) if !section.locks.contains(entity) => Err(LockRule::NotLocked),
            Some(section) => {
                let is_free = section.busy.insert(entity.clone());
                is_free.then_some(()).ok_or(LockRule::Busy)
            }
        }
    }

    fn may_signal(&self, entity: &EntityId) -> Result<(), LockRule> {
        match &self.section {
            Some(section) if section.state != LockState::GivenUp && section.locks.contains(entity) => {
                Err(LockRule::Signal)
            }
            _ => Ok(()),
        }
    }
}

impl Machine {
    /// Decides to send a request; its sequence id. Delayed signals are not stamped, so that they hold up
    /// nothing that is sent after them.
    fn send_request(&mut self, request: RequestMessage, entity: &EntityId, shared: &Shared) -> i32 {
        let instance = &shared.started.instance;
        let execution_id = instance.execution_id.as_ref().map(|id| id.as_str().to_owned());
        let mut request = request.from_instance(instance.instance_id.as_str(), execution_id);
        let settings = &shared.settings;
        let name = match request.due_at {
            // Source: Azure/azure-functions-durable-extension, `RequestMessage.GetAdjustedDeliveryTime`.
            Some(due) if due.saturating_since(self.now) > settings.maximum_timer_delay => {
                event_name::delayed_request(self.now + settings.timer_interval)
            }
            Some(due) => event_name::delayed_request(due),
            None => {
                self.entities.sorter.label_outgoing(&mut request, entity.instance_id().as_str(), self.now);
                event_name::REQUEST.to_owned()
            }
        };
        let number = self.take_id();
        self.entities.unconfirmed.insert(number, request.id);
        self.send(number, entity, name, request.to_json());
        number
    }

    fn send(&mut self, number: i32, entity: &EntityId, name: String, input: String) {
        let target = OrchestrationInstance::current(entity.instance_id());
        self.decide(number, ActionKind::SendEvent { target, name, input: Some(input) });
    }

    /// Learns how a replayed request was written: the recorded id is the name of its answer, and the
    /// recorded stamp is what the entity has seen.
    ///
    /// Differs: DTFx relies on making the same id again, so an instance can only go on in a worker that makes
    /// GUIDs as the first one did.
    pub(crate) fn confirm_request(&mut self, number: i32, target: &InstanceId, recorded: Option<&str>) {
        let Some(own) = self.entities.unconfirmed.remove(&number) else { return };
        let Some(recorded) = recorded.and_then(|text| RequestMessage::from_json(text).ok()) else { return };
        if recorded.id != own {
            if let Some(awaited) = self.entities.requests.remove(&own) {
                self.entities.requests.insert(recorded.id, awaited);
            }
            if let Some(section) = self.entities.section.as_mut().filter(|s| s.request_id == own) {
                section.request_id = recorded.id;
            }
        }
        if recorded.due_at.is_none() {
            self.entities.sorter.was_sent(target.as_str(), recorded.timestamp);
        }
    }

    /// Forgets which requests could still be found in the history: the decisions have been handed out.
    pub(super) fn forget_unconfirmed(&mut self) {
        let held = &self.held;
        self.entities.unconfirmed.retain(|number, _| held.contains_key(number));
    }

    /// Takes an event that answers a request of this generation, or answers it again; `false` for others.
    ///
    /// Differs: the .NET SDKs treat answers as external events, which after a request to continue as new are
    /// kept for the next generation, so that whoever waits for one waits for ever.
    pub(super) fn answer_request(&mut self, name: &str, event: &HistoryEvent, own: &InstanceId) -> bool {
        // The names of other events are rarely of this length.
        let id = (name.len() == 36).then(|| Uuid::try_parse(name).ok()).flatten();
        let Some(awaited) = id.and_then(|id| self.entities.requests.get_mut(&id)) else { return false };
        match std::mem::replace(awaited, Awaited::Answered) {
            Awaited::Answered => {}
            Awaited::Call { number, entity, operation, slot } => {
                if let Some(section) = &mut self.entities.section {
                    section.busy.remove(&entity);
                }
                let input = match &event.kind {
                    EventKind::EventRaised { input, .. } => input.as_deref(),
                    _ => None,
                };
                let answer = ResponseMessage::from_json(input.unwrap_or("null"));
                slot.resolve(Outcome::Task(entity_result(answer, number, &entity, &operation)));
            }
            Awaited::Lock(slot) => {
                match &mut self.entities.section {
                    Some(section) if section.state == LockState::GivenUp => self.release_locks(own),
                    Some(section) => section.state = LockState::Held,
                    None => {}
                }
                slot.resolve(Outcome::Task(Ok(None)));
            }
        }
        true
    }

    /// Leaves the critical section if there is one. Locks that are not held yet are released when they are:
    /// until then the orchestration does not end.
    ///
    /// Differs: an orchestration of the .NET SDK that ends while it waits for locks releases none of those that
    /// are granted later, and nobody does.
    pub(crate) fn leave_sections(&mut self, own: &InstanceId) {
        match &mut self.entities.section {
            Some(section) if section.state != LockState::Held => section.state = LockState::GivenUp,
            _ => self.release_locks(own),
        }
    }

    /// Releases all locks, held or requested, without waiting for anything.
    pub(crate) fn release_locks(&mut self, own: &InstanceId) {
        let Some(section) = self.entities.section.take() else { return };
        let release = ReleaseMessage::new(own.as_str(), section.request_id.to_string()).to_json();
        for entity in &section.locks {
            let number = self.take_id();
            self.send(number, entity, event_name::RELEASE.to_owned(), release.clone());
        }
    }

    /// Whether locks have been requested and not been granted yet.
    pub(super) fn awaits_locks(&self) -> bool {
        self.entities.section.as_ref().is_some_and(|section| section.state != LockState::Held)
    }

    /// Entities that are locked now.
    pub(crate) fn locked_entities(&self) -> Option<&[EntityId]> {
        let held = self.entities.section.as_ref().filter(|section| section.state == LockState::Held);
        held.map(|section| section.locks.as_slice())
    }

    /// Whether a sub-orchestration may be called and waited for.
    pub(crate) fn may_call_orchestration(&self) -> Result<(), LockRule> {
        let inside = self.entities.section.as_ref().is_some_and(|s| s.state != LockState::GivenUp);
        if inside { Err(LockRule::SubOrchestration) } else { Ok(()) }
    }
}
