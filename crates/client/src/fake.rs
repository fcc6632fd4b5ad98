//! A backend that remembers what it was asked for.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use taskhub_core::{
    Clock, ExecutionId, HistoryEvent, InstanceFetch, InstanceId, InstancePage, InstanceQuery,
    OrchestrationInstance, OrchestrationServiceClient, OrchestrationState, OrchestrationStatus, PurgeResult,
    SeededIds, ServiceError, StartOutcome, StartRequest, Timestamp,
};

use crate::TaskHubClient;

pub(crate) struct Now(&'static str);

/// The time of every test.
pub(crate) const NOW: Now = Now("2026-01-15T09:30:00.1234567Z");

impl Now {
    pub(crate) fn parse(&self) -> Timestamp {
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

#[derive(Default)]
pub(crate) struct FakeService(Mutex<Memory>);

#[derive(Default)]
struct Memory {
    states: BTreeMap<String, OrchestrationState>,
    started: Vec<StartRequest>,
    sent: Vec<(OrchestrationInstance, HistoryEvent)>,
    state_reads: usize,
}

pub(crate) fn client(fake: FakeService) -> (TaskHubClient, Arc<FakeService>) {
    let fake = Arc::new(fake);
    let service: Arc<dyn OrchestrationServiceClient> = fake.clone();
    (TaskHubClient::new(service).with_environment(Arc::new(FixedClock), Arc::new(SeededIds::new(7))), fake)
}

pub(crate) fn state(id: &str, status: OrchestrationStatus) -> OrchestrationState {
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
    pub(crate) fn with_state(self, id: &str, status: OrchestrationStatus) -> Self {
        self.0.lock().unwrap().states.insert(id.into(), state(id, status));
        self
    }

    pub(crate) fn set_status(&self, id: &str, status: OrchestrationStatus) {
        self.0.lock().unwrap().states.insert(id.into(), state(id, status));
    }

    pub(crate) fn started(&self) -> Vec<StartRequest> {
        self.0.lock().unwrap().started.clone()
    }

    pub(crate) fn sent(&self) -> Vec<(OrchestrationInstance, HistoryEvent)> {
        self.0.lock().unwrap().sent.clone()
    }

    pub(crate) fn state_reads(&self) -> usize {
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
        Ok(StartOutcome::Started { instance_id: request.instance_id, execution_id: ExecutionId::new("e2") })
    }

    async fn send_event(
        &self,
        target: OrchestrationInstance,
        event: HistoryEvent,
    ) -> Result<(), ServiceError> {
        self.0.lock().unwrap().sent.push((target, event));
        Ok(())
    }

    async fn instance_state(
        &self,
        instance_id: &InstanceId,
        _fetch: InstanceFetch,
    ) -> Result<Option<OrchestrationState>, ServiceError> {
        let mut memory = self.0.lock().unwrap();
        memory.state_reads += 1;
        Ok(memory.states.get(instance_id.as_str()).cloned())
    }

    async fn list_instances(&self, query: &InstanceQuery) -> Result<InstancePage, ServiceError> {
        let memory = self.0.lock().unwrap();
        let skip: usize = query.continuation.as_deref().map_or(0, |c| c.parse().unwrap());
        let take = query.page_size.unwrap_or(100) as usize;
        let instances: Vec<_> = memory.states.values().skip(skip).take(take).cloned().collect();
        let end = skip + instances.len();
        let continuation = (end < memory.states.len()).then(|| end.to_string());
        Ok(InstancePage { instances, continuation })
    }

    async fn history(
        &self,
        _instance_id: &InstanceId,
        _execution_id: Option<&ExecutionId>,
    ) -> Result<Vec<HistoryEvent>, ServiceError> {
        Ok(Vec::new())
    }

    async fn purge_instance(&self, instance_id: &InstanceId) -> Result<PurgeResult, ServiceError> {
        let removed = self.0.lock().unwrap().states.remove(instance_id.as_str()).is_some();
        Ok(PurgeResult { instances: u64::from(removed), rows: 0, blobs: 0 })
    }
}
