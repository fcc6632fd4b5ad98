//! One batch of an entity, from messages to what is stored. Source: Azure/durabletask, `TaskEntityDispatcher`.

use std::collections::VecDeque;
use std::time::Duration;

use taskhub_core::{
    EpisodeCommit, EventKind, ExecutionStarted, FIRE_AND_FORGET_TAG, HistoryEvent, IdSource, InstanceId,
    OrchestrationInstance, OrchestrationStatus, ParentInstance, Tags, TaskMessage, Timestamp,
    execution_id_from,
};

use crate::batch::caller;
use crate::event_name::{self, EntityEventKind};
use crate::{
    BatchResult, EntityAction, EntityId, EntityStatus, OperationRequest, ReleaseMessage, RequestMessage,
    ResponseMessage, SchedulerState, WireError, sections,
};
use uuid::Uuid;

/// How much too early a delayed request may come and is run nevertheless.
/// Source: Azure/durabletask, `TaskEntityDispatcher.DetermineWork`.
const EARLY_BY: Duration = Duration::from_millis(100);
/// How long a reminder of a Durable Functions entity to itself is waited for.
/// Source: Azure/azure-functions-durable-extension, `TaskEntityShim`.
const SUSPENSION: Duration = Duration::from_secs(10);

/// How batches are made.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct EntitySettings {
    /// Most operations of one batch; 0 for no bound. Source: Azure/durabletask,
    /// `EntityBackendProperties.MaxEntityOperationBatchSize`.
    pub max_entity_operation_batch_size: usize,
}

/// Why an entity cannot be worked on. Nothing may be stored; its messages are given back.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EntityError {
    /// What is stored of it is no state of an entity.
    #[error("the stored state of the entity is not usable. instance=`{instance}`")]
    State {
        /// The entity.
        instance: InstanceId,
        /// Where reading ended.
        source: WireError,
    },
    /// Its history starts twice.
    #[error("the history starts twice. instance=`{instance}`")]
    DuplicateStart {
        /// The entity.
        instance: InstanceId,
    },
}

/// An entity while it is locked: what its history says, and after a batch what that batch has left.
#[derive(Debug)]
pub struct Entity {
    instance_id: InstanceId,
    started: Option<Started>,
    /// History without a start: nothing can be made of it.
    is_invalid: bool,
    scheduler: SchedulerState,
    /// Events of the history that no batch has handled.
    unhandled: Vec<HistoryEvent>,
}

#[derive(Debug)]
struct Started {
    event: Box<ExecutionStarted>,
    at: Timestamp,
}

/// What is to be run now, and what follows without being run.
#[derive(Debug, Default)]
pub struct Batch {
    operations: Vec<RequestMessage>,
    lock_request: Option<RequestMessage>,
    too_early: Vec<RequestMessage>,
    goes_on: bool,
    unreadable: Vec<Unreadable>,
    is_idle: bool,
}

/// An event that is no message to an entity.
#[derive(Debug)]
pub struct Unreadable {
    /// Name of the event.
    pub event_name: String,
    /// Where reading ended.
    pub error: WireError,
    /// The message it came in; `None` if it has been in the stored history.
    pub message: Option<TaskMessage>,
}

impl Batch {
    /// The operations, in order. Without any there is nothing to run.
    pub fn operations(&self) -> impl ExactSizeIterator<Item = OperationRequest> {
        self.operations.iter().map(OperationRequest::of)
    }

    /// Events that could not be read and are left out.
    ///
    /// Differs: DTFx fails the whole work item again and again, so that one event that is not for an entity
    /// keeps it from ever working again.
    pub fn unreadable(&self) -> &[Unreadable] {
        &self.unreadable
    }

    /// Whether there is nothing but events that could not be read, so that nothing is to be stored.
    pub fn is_idle(&self) -> bool {
        self.is_idle
    }
}

impl Entity {
    /// The entity after a stored history; empty for a new one.
    ///
    /// # Errors
    /// The history contains two starts, or its state cannot be read.
    pub fn from_history(instance_id: InstanceId, history: Vec<HistoryEvent>) -> Result<Self, EntityError> {
        let mut entity = Self {
            instance_id,
            started: None,
            is_invalid: false,
            scheduler: SchedulerState::default(),
            unhandled: Vec::new(),
        };
        let is_new = history.is_empty();
        for event in history {
            match event.kind {
                EventKind::ExecutionStarted(started) => entity.start(started, event.timestamp)?,
                EventKind::EventRaised { .. } => entity.unhandled.push(event),
                _ => {}
            }
        }
        entity.is_invalid = !is_new && entity.started.is_none();
        Ok(entity)
    }

    /// Which entity it is; `None` for an instance whose id only begins like one.
    pub fn id(&self) -> Option<EntityId> {
        EntityId::of_instance(&self.instance_id)
    }

    /// Its serialised state; `None` when it does not exist.
    pub fn state(&self) -> Option<&str> {
        self.scheduler.state.as_deref()
    }

    /// Requests that wait.
    pub fn queue_len(&self) -> usize {
        self.scheduler.queue.len()
    }

    fn start(&mut self, mut started: Box<ExecutionStarted>, at: Timestamp) -> Result<(), EntityError> {
        if self.started.is_some() {
            return Err(EntityError::DuplicateStart { instance: self.instance_id.clone() });
        }
        if let Some(input) = started.input.take() {
            self.scheduler = SchedulerState::from_json(&input)
                .map_err(|source| EntityError::State { instance: self.instance_id.clone(), source })?;
        }
        self.started = Some(Started { event: started, at });
        Ok(())
    }

    /// Takes messages in and decides what to run. `None` when all of them are stale: they are to be consumed,
    /// and nothing is stored.
    ///
    /// # Errors
    /// The state in a start among them cannot be read.
    pub fn receive(
        &mut self,
        messages: Vec<TaskMessage>,
        now: Timestamp,
        settings: &EntitySettings,
    ) -> Result<Option<Batch>, EntityError> {
        let Some(events) = self.reconcile(messages)? else { return Ok(None) };
        let started_at = self.started.as_ref().map_or(now, |started| started.at);
        self.scheduler.sections.forget(now);
        let mut batch = Batch::default();
        let mut of_lock_holder = VecDeque::new();
        let mut suspended =
            std::mem::take(&mut self.scheduler.suspended) && now.saturating_since(started_at) <= SUSPENSION;
        let mut is_idle = true;
        for (message, is_new) in events {
            let EventKind::EventRaised { name, input, .. } = &message.event.kind else { continue };
            let (name, input) = (name.as_deref().unwrap_or_default(), input.as_deref().unwrap_or_default());
            let taken = match event_name::kind(name) {
                EntityEventKind::Request => RequestMessage::from_json(input)
                    .map(|request| self.take_in(request, now, &mut of_lock_holder, &mut batch)),
                EntityEventKind::Release => ReleaseMessage::from_json(input)
                    .map(|release| self.release(&release, &of_lock_holder, now)),
                EntityEventKind::Continue => {
                    suspended = false;
                    Ok(())
                }
            };
            is_idle &= taken.is_err() && is_new;
            if let Err(error) = taken {
                let event_name = name.to_owned();
                batch.unreadable.push(Unreadable { event_name, error, message: is_new.then_some(message) });
            }
        }
        // Whoever holds the lock goes first.
        self.scheduler.put_back(of_lock_holder);
        if !suspended {
            self.fill(&mut batch, settings.max_entity_operation_batch_size);
        }
        let has_work = !batch.operations.is_empty() || batch.lock_request.is_some() || batch.goes_on;
        batch.is_idle = is_idle && !batch.unreadable.is_empty() && !has_work;
        Ok(Some(batch))
    }

    /// The events that concern this execution, and whether they come in messages; `None` when the work item is
    /// stale.
    /// Source: Azure/durabletask, `TaskOrchestrationDispatcher.ReconcileMessagesWithState`.
    fn reconcile(
        &mut self,
        messages: Vec<TaskMessage>,
    ) -> Result<Option<Vec<(TaskMessage, bool)>>, EntityError> {
        if self.is_invalid {
            return Ok(None);
        }
        let own = OrchestrationInstance::current(self.instance_id.clone());
        let unhandled = std::mem::take(&mut self.unhandled);
        let mut events: Vec<_> =
            unhandled.into_iter().map(|event| (TaskMessage::new(event, own.clone()), false)).collect();
        for mut message in messages {
            match (message.event.kind, &self.started) {
                (EventKind::ExecutionStarted(started), None) => {
                    self.start(started, message.event.timestamp)?;
                }
                (EventKind::ExecutionStarted(_), Some(_)) => {}
                (_, None) => return Ok(None),
                (kind, Some(started)) => {
                    message.event.kind = kind;
                    let current = &started.event.instance.execution_id;
                    let wanted = message.target.execution_id.as_ref();
                    let wanted = wanted.filter(|id| !id.as_str().trim().is_empty());
                    if wanted.is_none() || wanted == current.as_ref() {
                        events.push((message, true));
                    }
                }
            }
        }
        Ok(self.started.is_some().then_some(events))
    }

    fn take_in(
        &mut self,
        request: RequestMessage,
        now: Timestamp,
        of_lock_holder: &mut VecDeque<RequestMessage>,
        batch: &mut Batch,
    ) {
        let deliverable = match request.due_at {
            Some(due) if due.saturating_since(now) > EARLY_BY => {
                batch.too_early.push(request);
                return;
            }
            // Delayed requests have no order.
            Some(_) => vec![request],
            // Nobody can tell which run of the episode is stored: that of the older stamp, perhaps.
            None if self.is_overtaken_lock_request(&request, of_lock_holder) => vec![request],
            None => self.scheduler.sorter.receive_in_order(request),
        };
        for request in deliverable {
            let by_holder =
                self.scheduler.locked_by.is_some() && self.scheduler.locked_by == request.parent_instance_id;
            let queue = if by_holder { &mut *of_lock_holder } else { &mut self.scheduler.queue };
            queue.push_back(request);
        }
    }

    /// Whether a request would be taken for a duplicate because another one for the same section, made by another
    /// run of the same episode, has come before it.
    ///
    /// Differs: DTFx drops it, and its orchestration waits for ever if that was the run that is stored.
    fn is_overtaken_lock_request(&self, request: &RequestMessage, queued: &VecDeque<RequestMessage>) -> bool {
        if !request.is_lock_request() || !self.scheduler.sorter.has_passed(request) {
            return false;
        }
        let slot = sections::slot(request);
        let mut waiting = self.scheduler.queue.iter().chain(queued);
        let is_queued = waiting.clone().any(|other| other.id == request.id);
        let is_another = slot.is_some() && waiting.any(|other| sections::slot(other) == slot);
        !is_queued && (is_another || self.scheduler.sections.is_another(request))
    }

    fn release(&mut self, release: &ReleaseMessage, queued: &VecDeque<RequestMessage>, now: Timestamp) {
        let by_holder = self.scheduler.locked_by == release.parent_instance_id;
        let id = release.id.as_deref().and_then(|id| Uuid::try_parse(id).ok());
        let mut waiting = self.scheduler.queue.iter().chain(queued);
        let queued = waiting.find(|request| request.is_lock_request() && Some(request.id) == id);
        let is_free = self.scheduler.sections.release(id, queued, by_holder, now);
        if by_holder && is_free {
            self.scheduler.locked_by = None;
        }
    }

    /// Moves requests from the queue to the batch, up to a lock request or the bound.
    fn fill(&mut self, batch: &mut Batch, limit: usize) {
        while self.scheduler.may_dequeue() {
            if limit > 0 && batch.operations.len() == limit {
                batch.goes_on = true;
                return;
            }
            let Some(request) = self.scheduler.queue.pop_front() else { return };
            if request.is_lock_request() {
                if self.scheduler.sections.is_settled(&request) {
                    continue;
                }
                batch.lock_request = Some(request);
                return;
            }
            batch.operations.push(request);
        }
    }

    /// What a batch leaves behind: the next execution of the entity, which replaces its history, and its
    /// messages. `result` is not looked at when the batch has no operations.
    pub fn commit(
        &mut self,
        batch: Batch,
        result: BatchResult,
        now: Timestamp,
        ids: &dyn IdSource,
    ) -> EpisodeCommit {
        let Batch { operations, lock_request, too_early, goes_on, .. } = batch;
        let mut outbox = Outbox { messages: Vec::new(), now };
        let mut left = VecDeque::new();
        if !operations.is_empty() {
            left = self.apply(operations, result, &mut outbox, ids);
        }
        let mut goes_on = goes_on || !left.is_empty();
        match lock_request {
            Some(request) if left.is_empty() => {
                self.lock(request, &mut outbox);
                goes_on |= self.scheduler.may_dequeue();
            }
            Some(request) => left.push_back(request),
            None => {}
        }
        self.scheduler.put_back(left);
        for request in too_early {
            if let Some(due) = request.due_at {
                // Differs: DTFx names the time that was asked for, and the queue service refuses a message that is
                // delayed for more than a week.
                let name = event_name::request_due(due, now);
                outbox.send(
                    OrchestrationInstance::current(self.instance_id.clone()),
                    name,
                    Some(request.to_json()),
                );
            }
        }
        if goes_on {
            let name = event_name::CONTINUE.to_owned();
            outbox.send(OrchestrationInstance::current(self.instance_id.clone()), name, None);
        }
        self.next_execution(outbox, ids)
    }

    /// Answers callers, takes the state over and does what the operations ask for. Returns those that were not
    /// run.
    fn apply(
        &mut self,
        mut operations: Vec<RequestMessage>,
        mut result: BatchResult,
        outbox: &mut Outbox,
        ids: &dyn IdSource,
    ) -> VecDeque<RequestMessage> {
        result.complete(operations.len());
        let left = operations.split_off(result.results.len());
        for (request, answer) in operations.iter().zip(result.results) {
            // Differs: DTFx fails the work item when a client has sent a call, which nobody can be told about.
            if let Some(caller) = caller(request).filter(|_| !request.is_signal) {
                outbox.send(caller, event_name::response(request.id), Some(answer.to_json()));
            }
        }
        self.scheduler.state = result.state;
        for action in result.actions {
            match action {
                EntityAction::SendSignal { instance_id, operation, input, due_at } => {
                    let signal = RequestMessage::signal(ids.guid(), operation, input)
                        .from_instance(self.instance_id.as_str(), None);
                    self.signal(signal, instance_id, due_at, outbox);
                }
                action @ EntityAction::StartNewOrchestration { .. } => {
                    self.start_orchestration(action, outbox, ids);
                }
            }
        }
        left.into()
    }

    fn signal(
        &mut self,
        mut signal: RequestMessage,
        to: InstanceId,
        due_at: Option<Timestamp>,
        outbox: &mut Outbox,
    ) {
        signal.due_at = due_at;
        let name = match due_at {
            Some(due) => event_name::request_due(due, outbox.now),
            None => {
                self.scheduler.sorter.label_outgoing(&mut signal, to.as_str(), outbox.now);
                event_name::REQUEST.to_owned()
            }
        };
        outbox.send(OrchestrationInstance::current(to), name, Some(signal.to_json()));
    }

    fn start_orchestration(&mut self, action: EntityAction, outbox: &mut Outbox, ids: &dyn IdSource) {
        let EntityAction::StartNewOrchestration { instance_id, name, version, input, scheduled_start_at } =
            action
        else {
            return;
        };
        let Some(Started { event: own, .. }) = &self.started else { return };
        let instance = OrchestrationInstance { instance_id, execution_id: Some(execution_id_from(ids)) };
        // A parent that does not wait: the tag keeps the orchestration from answering.
        let mut tags = Tags::new();
        tags.insert(FIRE_AND_FORGET_TAG, "");
        for (key, value) in own.tags.iter().flat_map(Tags::iter).filter(|(k, _)| *k != FIRE_AND_FORGET_TAG) {
            tags.insert(key, value);
        }
        let parent = ParentInstance {
            name: Some(own.name.clone()),
            instance: own.instance.clone(),
            task_schedule_id: i32::try_from(outbox.messages.len()).unwrap_or(i32::MAX),
            version: own.version.clone(),
        };
        let started = ExecutionStarted {
            instance: instance.clone(),
            parent: Some(parent),
            name,
            version,
            input,
            tags: Some(tags),
            correlation: None,
            parent_trace_context: None,
            scheduled_start_time: scheduled_start_at,
            generation: None,
            generate_new_trace: false,
        };
        outbox.push(instance, EventKind::ExecutionStarted(Box::new(started)));
    }

    /// Locks this entity, and in the next batch passes the request on to the next one; the last one answers.
    ///
    /// Differs: DTFx does both at once. A batch is stored after its messages are sent; if that fails, somebody else
    /// may lock this entity while the first one goes on with the others, and they wait for each other for ever. The
    /// request stays in the queue meanwhile, where a worker of .NET finds it.
    fn lock(&mut self, mut request: RequestMessage, outbox: &mut Outbox) {
        let Some(holder) = caller(&request) else { return };
        let is_locked = self.scheduler.locked_by.is_some();
        let Some(section) = self.scheduler.sections.pass_on(&request).filter(|_| is_locked) else {
            self.scheduler.sections.enter(&request, is_locked, outbox.now);
            self.scheduler.locked_by = Some(holder.instance_id.to_string());
            // Differs: in DTFx what the holder has sent before it holds the lock waits behind the others, who wait for
            // the holder; so the request of the run that is stored, behind that of one that is not.
            let queue = std::mem::take(&mut self.scheduler.queue);
            let (of_holder, others): (VecDeque<_>, VecDeque<_>) =
                queue.into_iter().partition(|other| other.parent_instance_id == request.parent_instance_id);
            self.scheduler.queue.extend([request].into_iter().chain(of_holder).chain(others));
            return;
        };
        let has_own_stamp = request.position == 0 || request.section.is_some();
        request.section = has_own_stamp.then_some(section);
        request.position = request.position.saturating_add(1);
        let next = request.lock_set.as_ref().and_then(|set| set.get(request.position as usize));
        match next.map(EntityId::instance_id) {
            Some(next) => {
                // Differs: DTFx stamps it anew. Here it counts as sent as well, but keeps the stamps of who asks, by
                // which sections are told apart; a receiver does not put it in order.
                self.scheduler.sorter.label_outgoing(&mut request.clone(), next.as_str(), outbox.now);
                let name = event_name::REQUEST.to_owned();
                outbox.send(OrchestrationInstance::current(next), name, Some(request.to_json()));
            }
            None => {
                let answer = ResponseMessage::lock_acquired().to_json();
                outbox.send(holder, event_name::response(request.id), Some(answer));
            }
        }
    }

    fn next_execution(&mut self, outbox: Outbox, ids: &dyn IdSource) -> EpisodeCommit {
        let Outbox { messages, now } = outbox;
        let instance = OrchestrationInstance {
            instance_id: self.instance_id.clone(),
            execution_id: Some(execution_id_from(ids)),
        };
        let own = self.started.take().map(|started| *started.event);
        let started = ExecutionStarted {
            instance: instance.clone(),
            parent: own.as_ref().and_then(|own| own.parent.clone()),
            name: own.as_ref().map_or_else(|| self.instance_id.to_string(), |own| own.name.clone()),
            version: own.as_ref().and_then(|own| own.version.clone()),
            input: None,
            tags: own.and_then(|own| own.tags),
            correlation: None,
            parent_trace_context: None,
            scheduled_start_time: None,
            generation: None,
            generate_new_trace: false,
        };
        self.started = Some(Started { event: Box::new(started.clone()), at: now });
        let stored = ExecutionStarted { input: Some(self.scheduler.to_json()), ..started };
        let kinds = [
            EventKind::OrchestratorStarted,
            EventKind::ExecutionStarted(Box::new(stored)),
            EventKind::OrchestratorCompleted,
        ];
        EpisodeCommit {
            instance,
            replaces_history: true,
            new_events: kinds.map(|kind| HistoryEvent::message(now, kind)).into(),
            status: OrchestrationStatus::Running,
            custom_status: Some(EntityStatus::of(&self.scheduler).to_json()),
            activity_messages: Vec::new(),
            orchestrator_messages: messages,
            timer_messages: Vec::new(),
        }
    }
}

/// Messages of a batch, in order.
struct Outbox {
    messages: Vec<TaskMessage>,
    now: Timestamp,
}

impl Outbox {
    fn push(&mut self, target: OrchestrationInstance, kind: EventKind) {
        self.messages.push(TaskMessage::new(HistoryEvent::message(self.now, kind), target));
    }

    fn send(&mut self, target: OrchestrationInstance, name: String, input: Option<String>) {
        self.push(target, EventKind::EventRaised { name: Some(name), input, parent_trace_context: None });
    }
}

#[cfg(test)]
mod tests;
