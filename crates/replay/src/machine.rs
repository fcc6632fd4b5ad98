//! The state behind an orchestration context: ids, decisions, open tasks, external events.

mod entities;
mod events;

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use taskhub_core::{
    ActionKind, CompletionAction, ExecutionStarted, FIRE_AND_FORGET_TAG, HistoryEvent, InstanceId,
    OrchestrationStatus, Tags, Timestamp,
};
use uuid::Uuid;

use crate::task::{Outcome, Slot};
use crate::{
    ContinueAsNewOptions, LongTimers, PreservedEvents, ReplaySettings, RetryPolicy, SubOrchestrationIds,
    TaskFailure,
};

pub(crate) use entities::LockRule;
pub(crate) use events::same_name;

use entities::Entities;

/// What the context and the executor of one generation share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) started: Box<ExecutionStarted>,
    pub(crate) settings: ReplaySettings,
    machine: Mutex<Machine>,
}

#[derive(Debug)]
pub(crate) struct Machine {
    /// Timestamp of the last `OrchestratorStarted`.
    pub(crate) now: Timestamp,
    pub(crate) is_replaying: bool,
    pub(crate) custom_status: Option<String>,
    /// Whether a completion has been decided; later ones only consume an id.
    completed: bool,
    next_id: i32,
    next_guid: u64,
    /// Decisions without an event in the history, by sequence id.
    pending: BTreeMap<i32, ActionKind>,
    /// Decisions held back since the suspension.
    held: BTreeMap<i32, ActionKind>,
    pub(crate) is_suspended: bool,
    /// Events that arrived since the suspension.
    pub(crate) queued: VecDeque<HistoryEvent>,
    /// Who waits for the completion events, by sequence id.
    open: HashMap<i32, OpenTask>,
    waiters: HashMap<String, Vec<(u64, Arc<Slot>)>>,
    buffered: HashMap<String, VecDeque<(u64, HistoryEvent)>>,
    next_event: u64,
    continue_as_new: Option<CompletionAction>,
    /// Whether the buffered events go with the request.
    preserve_events: bool,
    entities: Entities,
}

/// A call as it was made, to be made again.
#[derive(Debug, Clone)]
pub(crate) enum Call {
    Activity {
        name: String,
        version: Option<String>,
        input: Option<String>,
        tags: Option<Tags>,
    },
    SubOrchestration {
        name: String,
        version: Option<String>,
        instance_id: Option<InstanceId>,
        input: Option<String>,
        tags: Option<Tags>,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum OpenKind {
    Activity,
    SubOrchestration,
    Timer,
}

/// A task whose completion event is awaited.
#[derive(Debug)]
pub(crate) struct OpenTask {
    pub(crate) kind: OpenKind,
    pub(crate) name: String,
    pub(crate) version: Option<String>,
    pub(crate) target: Target,
}

/// What happens when the event arrives. Drivers go on at that moment, before orchestrator code runs and
/// whether or not it waits, so that they take the ids that .NET's inline continuations take.
#[derive(Debug)]
pub(crate) enum Target {
    Slot(Arc<Slot>),
    LongTimer { fire_at: Timestamp, slot: Arc<Slot> },
    Retry(Box<Retry>),
}

/// A call under a retry policy.
#[derive(Debug)]
pub(crate) struct Retry {
    call: Call,
    pub(crate) policy: RetryPolicy,
    pub(crate) attempt: u32,
    pub(crate) first_at: Timestamp,
    /// The failure to report after the last timer.
    exhausted: Option<TaskFailure>,
    slot: Arc<Slot>,
}

impl Shared {
    pub(crate) fn new(
        started: Box<ExecutionStarted>,
        settings: ReplaySettings,
        now: Timestamp,
        is_replaying: bool,
    ) -> Self {
        let machine = Machine {
            now,
            is_replaying,
            custom_status: None,
            completed: false,
            next_id: 0,
            next_guid: 0,
            pending: BTreeMap::new(),
            held: BTreeMap::new(),
            is_suspended: false,
            queued: VecDeque::new(),
            open: HashMap::new(),
            waiters: HashMap::new(),
            buffered: HashMap::new(),
            next_event: 0,
            continue_as_new: None,
            preserve_events: false,
            entities: Entities::default(),
        };
        Self { started, settings, machine: Mutex::new(machine) }
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, Machine> {
        self.machine.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A deterministic GUID: version 5 of `{instance id}_{time}_{counter}`.
    /// Source: Azure/azure-functions-durable-extension, `DurableOrchestrationContext.NewGuid`.
    pub(crate) fn new_guid(&self) -> Uuid {
        let (now, counter) = {
            let mut machine = self.lock();
            machine.next_guid += 1;
            (machine.now, machine.next_guid - 1)
        };
        let name = format!("{}_{}_{counter}", self.started.instance.instance_id, now.to_round_trip());
        Uuid::new_v5(&self.settings.guid_namespace, name.as_bytes())
    }

    /// An instance id for a child that was given none; `None` for the one made of the sequence id.
    fn new_child_id(&self, ids: SubOrchestrationIds) -> Option<InstanceId> {
        let id = match ids {
            SubOrchestrationIds::ExecutionAndSequence => return None,
            SubOrchestrationIds::Guid => self.new_guid().simple().to_string(),
            SubOrchestrationIds::DashedGuid => self.new_guid().to_string(),
        };
        Some(id.into())
    }

    /// Makes a call, under a policy if there is one.
    pub(crate) fn call(&self, mut call: Call, policy: Option<RetryPolicy>) -> Arc<Slot> {
        if let Call::SubOrchestration { instance_id: instance_id @ None, .. } = &mut call {
            *instance_id = self.new_child_id(self.settings.sub_orchestration_ids);
        }
        let slot = Arc::new(Slot::default());
        // A policy holds user code, which must not be dropped under the lock.
        match policy {
            None => {
                let forgotten = self.lock().make(call, Target::Slot(slot.clone()), self);
                self.forget(forgotten);
            }
            Some(policy) if policy.max_attempts() == 0 => slot.resolve(Outcome::Task(Ok(None))),
            Some(policy) => {
                let first_at = self.lock().now;
                let retry = Retry { call, policy, attempt: 0, first_at, exhausted: None, slot: slot.clone() };
                self.attempt(Box::new(retry));
            }
        }
        slot
    }

    fn attempt(&self, retry: Box<Retry>) {
        let forgotten = self.lock().make(retry.call.clone(), Target::Retry(retry), self);
        self.forget(forgotten);
    }

    /// Ends a call for whose result the caller waits although nobody reports it.
    fn forget(&self, target: Option<Target>) {
        match target {
            None => {}
            Some(Target::Slot(slot) | Target::LongTimer { slot, .. }) => {
                self.resolve(&slot, Outcome::Task(Ok(None)))
            }
            Some(Target::Retry(retry)) => self.resolve(&retry.slot, Outcome::Task(Ok(None))),
        }
    }

    /// Starts a sub-orchestration for which nobody waits.
    pub(crate) fn start(
        &self,
        name: String,
        version: Option<String>,
        instance_id: Option<InstanceId>,
        input: Option<String>,
        tags: Option<Tags>,
    ) -> InstanceId {
        let instance_id = instance_id.or_else(|| self.new_child_id(self.settings.fire_and_forget_ids));
        let mut tags = tags.unwrap_or_default();
        tags.insert(FIRE_AND_FORGET_TAG, "");
        let mut machine = self.lock();
        let id = machine.take_id();
        let instance_id = instance_id.unwrap_or_else(|| self.default_child_id(id));
        machine.decide(
            id,
            ActionKind::CreateSubOrchestration {
                name,
                version,
                instance_id: instance_id.clone(),
                input,
                tags: Some(tags),
            },
        );
        instance_id
    }

    fn default_child_id(&self, id: i32) -> InstanceId {
        let execution = self.started.instance.execution_id.as_ref().map_or("", |id| id.as_str());
        format!("{execution}:{id}").into()
    }

    /// Creates a durable timer, in parts if it is far away.
    pub(crate) fn create_timer(&self, fire_at: Timestamp) -> Arc<Slot> {
        let slot = Arc::new(Slot::default());
        self.lock().long_timer(fire_at, slot.clone(), &self.settings);
        slot
    }

    /// Hands a completion event to whoever waits for it. `false` when nobody does: a duplicate, a
    /// cancelled timer, or the timer that splits a checkpoint.
    pub(crate) fn complete(
        &self,
        id: i32,
        outcome: impl FnOnce(&OpenTask) -> Result<Option<String>, TaskFailure>,
    ) -> bool {
        let Some(task) = self.lock().open.remove(&id) else { return false };
        let result = outcome(&task);
        match task.target {
            Target::Slot(slot) => self.resolve(&slot, Outcome::Task(result)),
            Target::LongTimer { fire_at, slot } => {
                let due = self.lock().continue_long_timer(fire_at, slot, &self.settings);
                if let Some(slot) = due {
                    self.resolve(&slot, Outcome::Timer);
                }
            }
            Target::Retry(retry) => self.retry(retry, task.kind, result),
        }
        true
    }

    /// Leaves an outcome for whoever awaits the slot; a wait for an event that shares it is over.
    fn resolve(&self, slot: &Slot, outcome: Outcome) {
        let links = slot.take_links();
        self.lock().unlink(links);
        slot.resolve(outcome);
    }

    /// Source: Azure/durabletask, `RetryInterceptor.Invoke`.
    fn retry(&self, mut retry: Box<Retry>, kind: OpenKind, result: Result<Option<String>, TaskFailure>) {
        if kind == OpenKind::Timer {
            match retry.exhausted.take() {
                Some(failure) => retry.slot.resolve(Outcome::Task(Err(failure))),
                None => {
                    retry.attempt += 1;
                    self.attempt(retry);
                }
            }
            return;
        }
        // Differs: DTFx decodes within the retry, so that a result which cannot be read is asked for again,
        // with a timer for each time. Here only the call itself is tried again; its result stays unreadable.
        let failure = match result {
            Err(failure) if !failure.is_non_retriable() => failure,
            result => return retry.slot.resolve(Outcome::Task(result)),
        };
        let now = self.lock().now;
        if retry.attempt + 1 >= retry.policy.max_attempts() {
            // DTFx waits once more after the last attempt, and histories contain that timer.
            retry.exhausted = Some(failure);
            self.lock().timer(now, Target::Retry(retry));
            return;
        }
        // The predicate is user code: not under the lock.
        let delay = retry.policy.delay(retry.attempt, retry.first_at, now, &failure);
        if delay == Duration::ZERO {
            return retry.slot.resolve(Outcome::Task(Err(failure)));
        }
        self.lock().timer(now + delay, Target::Retry(retry));
    }
}

impl Machine {
    pub(crate) fn take_id(&mut self) -> i32 {
        let id = self.next_id;
        self.next_id = self.next_id.wrapping_add(1);
        id
    }

    pub(crate) fn decide(&mut self, id: i32, kind: ActionKind) {
        self.pending.insert(id, kind);
    }

    /// The decision with this id, if it still waits for its event.
    pub(crate) fn decision(&self, id: i32) -> Option<&ActionKind> {
        self.pending.get(&id)
    }

    pub(crate) fn remove_decision(&mut self, id: i32) {
        self.pending.remove(&id);
    }

    /// Takes the decisions that have no event yet, in ascending order of their ids.
    ///
    /// Differs: a request to continue as new stays. DTFx forgets it between the episodes of an extended
    /// session, where a replay would find it again.
    pub(crate) fn take_decisions(&mut self) -> BTreeMap<i32, ActionKind> {
        self.forget_unconfirmed();
        std::mem::take(&mut self.pending)
    }

    pub(crate) fn suspend(&mut self) {
        self.is_suspended = true;
        self.held.append(&mut self.pending);
    }

    pub(crate) fn resume(&mut self) -> VecDeque<HistoryEvent> {
        self.is_suspended = false;
        let mut held = std::mem::take(&mut self.held);
        self.pending.append(&mut held);
        std::mem::take(&mut self.queued)
    }

    pub(crate) fn has_open_tasks(&self) -> bool {
        !self.open.is_empty() || self.awaits_locks()
    }

    /// Decides a call. A child that is tagged as one to forget reports nothing: its target comes back.
    /// Source: Azure/durabletask, `TaskOrchestrationContext.CreateSubOrchestrationInstanceCore`.
    fn make(&mut self, call: Call, target: Target, shared: &Shared) -> Option<Target> {
        let id = self.take_id();
        let is_forgotten = matches!(
            &call,
            Call::SubOrchestration { tags: Some(tags), .. } if tags.get(FIRE_AND_FORGET_TAG).is_some()
        );
        let (kind, task_kind, name, version) = match call {
            Call::Activity { name, version, input, tags } => (
                ActionKind::ScheduleTask { name: name.clone(), version: version.clone(), input, tags },
                OpenKind::Activity,
                name,
                version,
            ),
            Call::SubOrchestration { name, version, instance_id, input, tags } => (
                ActionKind::CreateSubOrchestration {
                    name: name.clone(),
                    version: version.clone(),
                    instance_id: instance_id.unwrap_or_else(|| shared.default_child_id(id)),
                    input,
                    tags,
                },
                OpenKind::SubOrchestration,
                name,
                version,
            ),
        };
        self.decide(id, kind);
        if is_forgotten {
            return Some(target);
        }
        self.open.insert(id, OpenTask { kind: task_kind, name, version, target });
        None
    }

    fn timer(&mut self, fire_at: Timestamp, target: Target) -> i32 {
        let id = self.take_id();
        self.decide(id, ActionKind::CreateTimer { fire_at });
        self.open.insert(id, OpenTask { kind: OpenKind::Timer, name: String::new(), version: None, target });
        id
    }

    fn long_timer(&mut self, fire_at: Timestamp, slot: Arc<Slot>, settings: &ReplaySettings) {
        let remaining = fire_at.saturating_since(self.now);
        if remaining > settings.maximum_timer_delay && settings.timer_interval > Duration::ZERO {
            self.part(self.now + settings.timer_interval, fire_at, slot);
        } else {
            self.last_timer(fire_at, slot);
        }
    }

    /// Goes on after a part of a long timer has fired. Gives the slot back when the time has come.
    /// Source: Azure/azure-functions-durable-extension, `DurableOrchestrationContext.CreateTimer`;
    /// microsoft/durabletask-dotnet, `TaskOrchestrationContextWrapper.CreateTimer`.
    fn continue_long_timer(
        &mut self,
        fire_at: Timestamp,
        slot: Arc<Slot>,
        settings: &ReplaySettings,
    ) -> Option<Arc<Slot>> {
        match settings.long_timers {
            LongTimers::PartsUntilDue => {
                let remaining = fire_at.saturating_since(self.now);
                if remaining == Duration::ZERO {
                    return Some(slot);
                }
                self.part(self.now + remaining.min(settings.timer_interval), fire_at, slot);
            }
            LongTimers::PartsThenRest => self.long_timer(fire_at, slot, settings),
        }
        None
    }

    fn part(&mut self, part_at: Timestamp, fire_at: Timestamp, slot: Arc<Slot>) {
        let id = self.timer(part_at, Target::LongTimer { fire_at, slot: slot.clone() });
        slot.set_open_timer(id);
    }

    fn last_timer(&mut self, fire_at: Timestamp, slot: Arc<Slot>) {
        let id = self.timer(fire_at, Target::Slot(slot.clone()));
        slot.set_open_timer(id);
    }

    /// Asks for a next generation; the last request counts.
    ///
    /// Differs: events that an earlier request has set aside stay; .NET loses them.
    pub(crate) fn continue_as_new(
        &mut self,
        input: Option<String>,
        options: ContinueAsNewOptions,
        shared: &Shared,
    ) {
        let ContinueAsNewOptions { version, generate_new_trace, preserve_unprocessed_events } = options;
        let settings = &shared.settings;
        self.preserve_events = preserve_unprocessed_events.unwrap_or(settings.preserve_unprocessed_events);
        if self.preserve_events && settings.preserved_events == PreservedEvents::SentAgain {
            self.send_buffered(&shared.started.instance.instance_id);
        }
        let carryover = self.continue_as_new.take().map(|request| request.carryover).unwrap_or_default();
        self.continue_as_new = Some(CompletionAction {
            new_version: version,
            carryover,
            generate_new_trace,
            ..CompletionAction::new(OrchestrationStatus::ContinuedAsNew, input)
        });
    }

    /// Decides how the generation ends. It takes an id even when an earlier decision stands.
    pub(crate) fn end(&mut self, completion: CompletionAction) {
        let id = self.take_id();
        if completion.status == OrchestrationStatus::Completed
            && let Some(mut next) = self.continue_as_new.take()
        {
            if self.preserve_events {
                next.carryover.splice(0..0, self.take_buffered());
            }
            self.decide(id, ActionKind::Complete(next));
        } else if !self.completed {
            self.completed = true;
            self.decide(id, ActionKind::Complete(completion));
        }
    }
}
