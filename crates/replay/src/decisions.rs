//! Actions to history events and messages. Source: Azure/durabletask, `TaskOrchestrationDispatcher`,
//! `Process…Decision`.

use taskhub_core::{
    ActionKind, CompletionAction, EventKind, ExecutionCompleted, ExecutionId, ExecutionStarted,
    FIRE_AND_FORGET_TAG, HistoryEvent, IdSource, OrchestrationInstance, OrchestrationStatus, ParentInstance,
    SPLIT_TIMER_ID, Tags, TaskMessage, Timestamp, execution_id_from,
};
use uuid::Uuid;

use crate::{DuplicateStart, ErrorMode, RuntimeState};

/// Messages of an episode, by destination.
#[derive(Debug, Default)]
pub(crate) struct Outbox {
    pub(crate) activities: Vec<TaskMessage>,
    pub(crate) orchestrators: Vec<TaskMessage>,
    pub(crate) timers: Vec<TaskMessage>,
}

/// How decisions are recorded.
pub(crate) struct Recorder<'a> {
    pub(crate) started: ExecutionStarted,
    pub(crate) include_parameters: bool,
    pub(crate) error_mode: ErrorMode,
    pub(crate) now: Timestamp,
    pub(crate) ids: &'a dyn IdSource,
}

/// The generation that follows a decision to continue as new.
#[derive(Debug)]
pub(crate) struct NextGeneration {
    pub(crate) started: ExecutionStarted,
    pub(crate) carryover: Vec<HistoryEvent>,
}

/// Appends the event and queues the message of one action. An end with continue-as-new yields the next
/// generation.
impl Recorder<'_> {
    pub(crate) fn record(
        &self,
        id: i32,
        kind: ActionKind,
        state: &mut RuntimeState,
        outbox: &mut Outbox,
    ) -> Result<Option<NextGeneration>, DuplicateStart> {
        match kind {
            ActionKind::ScheduleTask { name, version, input, tags } => {
                self.schedule_task(id, (name, version, input, tags), state, outbox)?;
            }
            ActionKind::CreateTimer { fire_at } => self.create_timer(id, fire_at, state, outbox)?,
            ActionKind::CreateSubOrchestration { .. } => self.create_child(id, kind, state, outbox)?,
            ActionKind::SendEvent { target, name, input } => {
                state.add(HistoryEvent::decision(
                    id,
                    self.now,
                    EventKind::EventSent {
                        instance_id: target.instance_id.clone(),
                        name: Some(name.clone()),
                        input: input.clone(),
                    },
                ))?;
                let raised = EventKind::EventRaised { name: Some(name), input, parent_trace_context: None };
                outbox.orchestrators.push(self.message(raised, target));
            }
            ActionKind::Complete(completion) => return self.complete(id, completion, state, outbox),
        }
        Ok(None)
    }

    /// The timer that brings the rest of an oversized or runaway episode back.
    pub(crate) fn split(&self, state: &mut RuntimeState, outbox: &mut Outbox) -> Result<(), DuplicateStart> {
        self.create_timer(SPLIT_TIMER_ID, self.now, state, outbox)
    }

    fn message(&self, kind: EventKind, target: OrchestrationInstance) -> TaskMessage {
        TaskMessage::new(HistoryEvent::message(self.now, kind), target)
    }

    /// Tags of this orchestration, as its activities and children are told them.
    fn execution_context(&self) -> Option<Tags> {
        Some(self.started.tags.clone().unwrap_or_default())
    }

    fn schedule_task(
        &self,
        id: i32,
        (name, version, input, tags): (String, Option<String>, Option<String>, Option<Tags>),
        state: &mut RuntimeState,
        outbox: &mut Outbox,
    ) -> Result<(), DuplicateStart> {
        let scheduled = |input| {
            let kind = EventKind::TaskScheduled {
                name: Some(name.clone()),
                version: version.clone(),
                input,
                parent_trace_context: None,
                tags: tags.clone(),
            };
            HistoryEvent::decision(id, self.now, kind)
        };
        state.add(scheduled(if self.include_parameters { input.clone() } else { None }))?;
        let mut message = TaskMessage::new(scheduled(input), self.started.instance.clone());
        message.execution_context = self.execution_context();
        outbox.activities.push(message);
        Ok(())
    }

    fn create_timer(
        &self,
        id: i32,
        fire_at: Timestamp,
        state: &mut RuntimeState,
        outbox: &mut Outbox,
    ) -> Result<(), DuplicateStart> {
        state.add(HistoryEvent::decision(id, self.now, EventKind::TimerCreated { fire_at }))?;
        let fired = EventKind::TimerFired { timer_id: id, fire_at };
        outbox.timers.push(self.message(fired, self.started.instance.clone()));
        Ok(())
    }

    fn create_child(
        &self,
        id: i32,
        action: ActionKind,
        state: &mut RuntimeState,
        outbox: &mut Outbox,
    ) -> Result<(), DuplicateStart> {
        let ActionKind::CreateSubOrchestration { name, version, instance_id, input, tags } = action else {
            return Ok(());
        };
        let tags = self.child_tags(tags);
        let instance = OrchestrationInstance {
            instance_id: instance_id.clone(),
            execution_id: Some(execution_id_from(self.ids)),
        };
        state.add(HistoryEvent::decision(
            id,
            self.now,
            EventKind::SubOrchestrationInstanceCreated {
                name: Some(name.clone()),
                version: version.clone(),
                instance_id,
                input: if self.include_parameters { input.clone() } else { None },
                client_span_id: None,
                tags: tags.clone(),
            },
        ))?;
        let started = ExecutionStarted {
            instance: instance.clone(),
            parent: Some(ParentInstance {
                name: Some(self.started.name.clone()),
                instance: self.started.instance.clone(),
                task_schedule_id: id,
                version: self.started.version.clone(),
            }),
            name,
            version,
            input,
            tags,
            correlation: None,
            parent_trace_context: None,
            scheduled_start_time: None,
            generation: None,
            generate_new_trace: false,
        };
        let mut message = self.message(EventKind::ExecutionStarted(Box::new(started)), instance);
        message.execution_context = self.execution_context();
        outbox.orchestrators.push(message);
        Ok(())
    }

    /// The parent's tags, except that a forgotten parent does not make its children forgotten, then the
    /// call's own.
    fn child_tags(&self, own: Option<Tags>) -> Option<Tags> {
        let mut tags: Tags = self
            .started
            .tags
            .iter()
            .flat_map(Tags::iter)
            .filter(|(key, _)| *key != FIRE_AND_FORGET_TAG)
            .collect();
        for (key, value) in own.iter().flat_map(Tags::iter) {
            tags.insert(key, value);
        }
        (!tags.is_empty()).then_some(tags)
    }

    /// The execution id of the generation that begins so. An episode may be run again although messages of its
    /// first run are on their way: a generation that begins in the same way has the same id, so that its locks,
    /// its children and the answers to it are those of the run that is stored.
    ///
    /// Differs: in DTFx the id is random. What the first run has locked stays locked, the children it has started
    /// run beside those of the second.
    fn next_execution(&self, started: &ExecutionStarted, carryover: &[HistoryEvent]) -> ExecutionId {
        let Some(previous) = &self.started.instance.execution_id else { return execution_id_from(self.ids) };
        let mut name = Vec::new();
        let mut add = |part: Option<&str>| {
            name.extend(part.map_or(u64::MAX, |part| part.len() as u64).to_le_bytes());
            name.extend_from_slice(part.unwrap_or_default().as_bytes());
        };
        add(Some(started.instance.instance_id.as_str()));
        add(Some(previous.as_str()));
        add(started.version.as_deref());
        add(started.input.as_deref());
        for event in carryover {
            if let EventKind::EventRaised { name, input, .. } = &event.kind {
                add(name.as_deref());
                add(input.as_deref());
            }
        }
        ExecutionId::new(Uuid::new_v5(&Uuid::nil(), &name).simple().to_string())
    }

    fn complete(
        &self,
        id: i32,
        completion: CompletionAction,
        state: &mut RuntimeState,
        outbox: &mut Outbox,
    ) -> Result<Option<NextGeneration>, DuplicateStart> {
        let CompletionAction { status, result, details, failure_details, .. } = completion;
        let recorded =
            ExecutionCompleted { status, result: result.clone(), failure_details: failure_details.clone() };
        if status == OrchestrationStatus::ContinuedAsNew {
            state.add(HistoryEvent::decision(id, self.now, EventKind::ContinueAsNew(recorded)))?;
            let previous = &self.started;
            let generate_new_trace = completion.generate_new_trace;
            let mut started = ExecutionStarted {
                instance: OrchestrationInstance {
                    instance_id: previous.instance.instance_id.clone(),
                    execution_id: None,
                },
                parent: previous.parent.clone(),
                name: previous.name.clone(),
                version: completion.new_version.or_else(|| previous.version.clone()),
                input: result,
                tags: previous.tags.clone(),
                correlation: None,
                parent_trace_context: previous.parent_trace_context.clone().filter(|_| !generate_new_trace),
                scheduled_start_time: None,
                generation: None,
                generate_new_trace,
            };
            started.instance.execution_id = Some(self.next_execution(&started, &completion.carryover));
            return Ok(Some(NextGeneration { started, carryover: completion.carryover }));
        }
        state.add(HistoryEvent::decision(id, self.now, EventKind::ExecutionCompleted(recorded)))?;
        let is_forgotten = self.started.tags.as_ref().is_some_and(|t| t.get(FIRE_AND_FORGET_TAG).is_some());
        if let Some(parent) = self.started.parent.as_ref().filter(|_| !is_forgotten) {
            let task_scheduled_id = parent.task_schedule_id;
            let reply = match status {
                OrchestrationStatus::Completed => {
                    Some(EventKind::SubOrchestrationInstanceCompleted { task_scheduled_id, result })
                }
                OrchestrationStatus::Failed | OrchestrationStatus::Terminated => {
                    Some(EventKind::SubOrchestrationInstanceFailed {
                        task_scheduled_id,
                        reason: result,
                        details: details.filter(|_| self.error_mode == ErrorMode::SerializedException),
                        failure_details,
                    })
                }
                _ => None,
            };
            outbox.orchestrators.extend(reply.map(|kind| self.message(kind, parent.instance.clone())));
        }
        Ok(None)
    }
}
