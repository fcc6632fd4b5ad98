//! A backend for tests that remembers what it was asked for.
#![allow(clippy::unwrap_used, reason = "used by tests only")]

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use taskhub_core::{
    Clock, EventKind, ExecutionId, HistoryEvent, InstanceFetch, InstanceId, InstancePage, InstanceQuery,
    OrchestrationInstance, OrchestrationServiceClient, OrchestrationState, OrchestrationStatus, PurgeResult,
    RewindOutcome, RewindRequest, Rewound, SeededIds, ServiceError, StartOutcome, StartRequest, Timestamp,
};

use crate::TaskHubClient;

/// A time written as text.
#[derive(Debug, Clone, Copy)]
pub struct Now(&'static str);

/// The time of every test.
pub const NOW: Now = Now("2026-01-15T09:30:00.1234567Z");

impl Now {
    /// The time as a value.
    pub fn parse(&self) -> Timestamp {
        Timestamp::parse(self.0).unwrap()
    }
}

#[derive(Debug)]
struct FixedClock;

impl Clock for FixedClock {
    fn now(&self) -> Timestamp {
        NOW.parse()
    }
}

/// The backend. It runs nothing; a terminate message takes effect at once if asked for.
#[derive(Debug, Default)]
pub struct FakeService(Mutex<Memory>);

#[derive(Debug, Default)]
struct Memory {
    obeys: bool,
    histories: BTreeMap<String, Vec<HistoryEvent>>,
    states: BTreeMap<String, OrchestrationState>,
    started: Vec<StartRequest>,
    sent: Vec<(OrchestrationInstance, HistoryEvent)>,
    state_reads: usize,
    rewound: Vec<RewindRequest>,
    made_primary: usize,
}

/// A client of the backend, with [`NOW`] as time and ids from a seed.
pub fn client(fake: FakeService) -> (TaskHubClient, Arc<FakeService>) {
    let fake = Arc::new(fake);
    let service: Arc<dyn OrchestrationServiceClient> = fake.clone();
    (TaskHubClient::new(service).with_environment(Arc::new(FixedClock), Arc::new(SeededIds::new(7))), fake)
}

/// A state with fixed times and ids.
pub fn state(id: &str, status: OrchestrationStatus) -> OrchestrationState {
    OrchestrationState {
        instance: OrchestrationInstance::new(id, "e1"),
        name: "Greet".into(),
        version: Some(String::new()),
        status: Some(status),
        input: None,
        output: None,
        custom_status: Some("null".into()),
        created_at: NOW.parse(),
        last_updated_at: NOW.parse(),
        completed_at: None,
        scheduled_start_at: None,
        generation: Some(0),
        tags: None,
        task_hub: None,
    }
}

impl FakeService {
    /// Adds an instance.
    #[must_use]
    pub fn with_state(self, id: &str, status: OrchestrationStatus) -> Self {
        self.set_status(id, status);
        self
    }

    /// Adds an instance with all its columns.
    #[must_use]
    pub fn with_row(self, state: OrchestrationState) -> Self {
        self.set_row(state);
        self
    }

    /// Sets all columns of an instance.
    pub fn set_row(&self, state: OrchestrationState) {
        self.0.lock().unwrap().states.insert(state.instance.instance_id.to_string(), state);
    }

    /// Adds a history.
    #[must_use]
    pub fn with_history(self, id: &str, events: Vec<HistoryEvent>) -> Self {
        self.0.lock().unwrap().histories.insert(id.into(), events);
        self
    }

    /// Makes terminate messages take effect at once.
    #[must_use]
    pub fn obeying(self) -> Self {
        self.0.lock().unwrap().obeys = true;
        self
    }

    /// Sets the status of an instance.
    pub fn set_status(&self, id: &str, status: OrchestrationStatus) {
        self.0.lock().unwrap().states.insert(id.into(), state(id, status));
    }

    /// Ids of the instances that are there.
    pub fn ids(&self) -> Vec<String> {
        self.0.lock().unwrap().states.keys().cloned().collect()
    }

    /// All starts, in order.
    pub fn started(&self) -> Vec<StartRequest> {
        self.0.lock().unwrap().started.clone()
    }

    /// All messages, in order.
    pub fn sent(&self) -> Vec<(OrchestrationInstance, HistoryEvent)> {
        self.0.lock().unwrap().sent.clone()
    }

    /// All rewinds, in order.
    pub fn rewound(&self) -> Vec<RewindRequest> {
        self.0.lock().unwrap().rewound.clone()
    }

    /// How often this was made the primary application.
    pub fn made_primary(&self) -> usize {
        self.0.lock().unwrap().made_primary
    }

    /// Changes the state of an instance.
    #[must_use]
    pub fn with(self, id: &str, change: impl FnOnce(&mut OrchestrationState)) -> Self {
        if let Some(state) = self.0.lock().unwrap().states.get_mut(id) {
            change(state);
        }
        self
    }

    /// How often a state was read.
    pub fn state_reads(&self) -> usize {
        self.0.lock().unwrap().state_reads
    }
}

#[async_trait]
impl OrchestrationServiceClient for FakeService {
    async fn create_hub(&self) -> Result<(), ServiceError> {
        Ok(())
    }

    async fn delete_hub(&self) -> Result<(), ServiceError> {
        Ok(())
    }

    async fn start_instance(&self, request: StartRequest) -> Result<StartOutcome, ServiceError> {
        let mut memory = self.0.lock().unwrap();
        let status = memory.states.get(request.instance_id.as_str()).and_then(|s| s.status);
        if let Some(status) = status.filter(|s| request.dedupe_statuses.contains(s)) {
            return Ok(StartOutcome::Exists { status });
        }
        memory.started.push(request.clone());
        let mut row = state(request.instance_id.as_str(), OrchestrationStatus::Pending);
        row.name = request.name;
        row.input = request.input;
        memory.states.insert(row.instance.instance_id.to_string(), row);
        Ok(StartOutcome::Started { instance_id: request.instance_id, execution_id: ExecutionId::new("e2") })
    }

    async fn send_event(
        &self,
        target: OrchestrationInstance,
        event: HistoryEvent,
    ) -> Result<(), ServiceError> {
        let mut memory = self.0.lock().unwrap();
        if let (true, EventKind::ExecutionTerminated { input }) = (memory.obeys, &event.kind)
            && let Some(state) = memory.states.get_mut(target.instance_id.as_str())
        {
            state.status = Some(OrchestrationStatus::Terminated);
            state.output.clone_from(input);
        }
        memory.sent.push((target, event));
        Ok(())
    }

    async fn instance_state(
        &self,
        instance_id: &InstanceId,
        fetch: InstanceFetch,
    ) -> Result<Option<OrchestrationState>, ServiceError> {
        let mut memory = self.0.lock().unwrap();
        memory.state_reads += 1;
        let mut found = memory.states.get(instance_id.as_str()).cloned();
        if let Some(state) = &mut found {
            state.input.take_if(|_| !fetch.input);
            state.output.take_if(|_| !fetch.output);
        }
        Ok(found)
    }

    async fn list_instances(&self, query: &InstanceQuery) -> Result<InstancePage, ServiceError> {
        let memory = self.0.lock().unwrap();
        let take = query.page_size.unwrap_or(100) as usize;
        let wanted = |s: &&OrchestrationState| {
            let id = &s.instance.instance_id;
            let prefix = query.instance_id_prefix.as_deref().unwrap_or_default();
            let entity_unwanted = prefix.is_empty() && query.exclude_entities && id.is_entity();
            let before = query.key_from.as_deref().is_some_and(|from| id.as_str() < from);
            let behind = query.key_before.as_deref().is_some_and(|end| id.as_str() >= end);
            let early = query.created_from.is_some_and(|from| s.created_at < from);
            let late = query.created_to.is_some_and(|to| s.created_at > to);
            if !id.as_str().starts_with(prefix) || entity_unwanted || before || behind || early || late {
                return false;
            }
            query.statuses.is_empty() || s.status.is_some_and(|status| query.statuses.contains(&status))
        };
        let all: Vec<_> = memory.states.values().filter(wanted).cloned().collect();
        let after = query.continuation.as_deref().unwrap_or_default();
        let mut rest = all.into_iter().filter(|s| s.instance.instance_id.as_str() > after);
        let instances: Vec<_> = rest.by_ref().take(take).collect();
        let last = instances.last().map(|s| s.instance.instance_id.to_string());
        let continuation = last.filter(|_| rest.next().is_some());
        Ok(InstancePage { instances, continuation })
    }

    async fn history(
        &self,
        instance_id: &InstanceId,
        _execution_id: Option<&ExecutionId>,
    ) -> Result<Vec<HistoryEvent>, ServiceError> {
        Ok(self.0.lock().unwrap().histories.get(instance_id.as_str()).cloned().unwrap_or_default())
    }

    async fn rewind_instance(&self, request: &RewindRequest) -> Result<RewindOutcome, ServiceError> {
        let mut memory = self.0.lock().unwrap();
        let id = &request.instance_id;
        let Some(state) = memory.states.get_mut(id.as_str()) else { return Ok(RewindOutcome::NotFound) };
        if state.status != Some(OrchestrationStatus::Failed) {
            return Ok(RewindOutcome::WrongStatus { status: state.status });
        }
        state.status = Some(OrchestrationStatus::Pending);
        memory.rewound.push(request.clone());
        Ok(RewindOutcome::Rewound(Rewound { instances: vec![id.clone()], woken: vec![id.clone()], rows: 1 }))
    }

    async fn make_primary(&self) -> Result<(), ServiceError> {
        self.0.lock().unwrap().made_primary += 1;
        Ok(())
    }

    async fn purge_if_finished(&self, instance_id: &InstanceId) -> Result<Option<PurgeResult>, ServiceError> {
        let status = self.0.lock().unwrap().states.get(instance_id.as_str()).map(|s| s.status);
        match status {
            Some(status) if !status.is_some_and(OrchestrationStatus::is_terminal) => Ok(None),
            _ => self.purge_instance(instance_id).await.map(Some),
        }
    }

    fn list_key(&self, instance_id: &InstanceId) -> String {
        instance_id.to_string()
    }

    async fn purge_instance(&self, instance_id: &InstanceId) -> Result<PurgeResult, ServiceError> {
        let removed = self.0.lock().unwrap().states.remove(instance_id.as_str()).is_some();
        Ok(PurgeResult { instances: u64::from(removed), rows: 0, blobs: 0 })
    }
}
