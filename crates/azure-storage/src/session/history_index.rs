use std::collections::{BTreeSet, HashSet};
use std::sync::Arc;

use taskhub_core::{EventKind, ExecutionStarted, HistoryEvent, OrchestrationStatus, Timestamp};

/// What admission needs to know of a history, without the events themselves.
#[derive(Debug, Default, Clone)]
pub(crate) struct HistoryIndex {
    len: usize,
    episodes: i32,
    pub(crate) started: Option<(Arc<ExecutionStarted>, Timestamp)>,
    /// How the execution ended.
    completion: Option<OrchestrationStatus>,
    suspended: bool,
    /// Activities and sub-orchestrations whose results have not come.
    open_calls: BTreeSet<i32>,
    /// How many of these are activities.
    open_activities: usize,
    /// Ascending.
    event_ids: Vec<i32>,
    entity_request_ids: HashSet<String>,
}

impl HistoryIndex {
    pub(crate) fn of(events: &[HistoryEvent]) -> Self {
        let mut index = Self::default();
        index.extend(events);
        index
    }

    pub(crate) fn extend(&mut self, events: &[HistoryEvent]) {
        for event in events {
            self.len += 1;
            if event.event_id != -1 {
                // As a rule at the end: ids are given in this order.
                let at = self.event_ids.partition_point(|id| *id < event.event_id);
                if self.event_ids.get(at) != Some(&event.event_id) {
                    self.event_ids.insert(at, event.event_id);
                }
            }
            match &event.kind {
                EventKind::OrchestratorStarted => self.episodes += 1,
                EventKind::ExecutionStarted(started) if self.started.is_none() => {
                    self.started = Some((Arc::new(started.as_ref().clone()), event.timestamp));
                }
                EventKind::ExecutionCompleted(done) | EventKind::ContinueAsNew(done)
                    if self.completion.is_none() =>
                {
                    self.completion = Some(done.status);
                }
                EventKind::TaskScheduled { .. } => {
                    self.open_activities += usize::from(self.open_calls.insert(event.event_id));
                }
                EventKind::SubOrchestrationInstanceCreated { .. } => {
                    self.open_calls.insert(event.event_id);
                }
                EventKind::TaskCompleted { task_scheduled_id: id, .. }
                | EventKind::TaskFailed { task_scheduled_id: id, .. } => {
                    self.open_activities -= usize::from(self.open_calls.remove(id)).min(self.open_activities);
                }
                EventKind::SubOrchestrationInstanceCompleted { task_scheduled_id: id, .. }
                | EventKind::SubOrchestrationInstanceFailed { task_scheduled_id: id, .. } => {
                    self.open_calls.remove(id);
                }
                EventKind::ExecutionSuspended { .. } => self.suspended = true,
                EventKind::ExecutionResumed { .. } => self.suspended = false,
                EventKind::EventSent { instance_id, input: Some(input), .. } if instance_id.is_entity() => {
                    // An entity answers with an event named by the request's id.
                    let request = serde_json::from_str::<serde_json::Value>(input).ok();
                    if let Some(id) = request.as_ref().and_then(|r| r.get("id")).and_then(|id| id.as_str()) {
                        self.entity_request_ids.insert(id.to_owned());
                    }
                }
                _ => {}
            }
        }
    }

    /// Status of the execution, once it has started. Source: `OrchestrationRuntimeState`.
    pub(crate) fn status(&self) -> Option<OrchestrationStatus> {
        self.started.as_ref()?;
        Some(match &self.completion {
            Some(status) => *status,
            None if self.suspended => OrchestrationStatus::Suspended,
            None => OrchestrationStatus::Running,
        })
    }

    /// Number of events.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Number of episodes.
    pub(crate) fn episodes(&self) -> i32 {
        self.episodes
    }

    /// How many results the instance still waits for.
    pub(crate) fn open_calls(&self) -> usize {
        self.open_calls.len()
    }

    /// How many of these are results of activities; none once the execution has ended.
    pub(crate) fn open_activities(&self) -> usize {
        if self.completion.is_some() { 0 } else { self.open_activities }
    }

    pub(crate) fn has_event_id(&self, id: i32) -> bool {
        self.event_ids.binary_search(&id).is_ok()
    }

    pub(crate) fn has_entity_request(&self, id: &str) -> bool {
        self.entity_request_ids.contains(id)
    }
}
