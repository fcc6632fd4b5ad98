use std::sync::Arc;
use std::time::Duration;

use taskhub_azure_storage::{AzureStorageClient, AzureStorageService, AzureStorageSettings, Hub};
use taskhub_core::{
    ActivityWorkItem, Clock, EpisodeCommit, EventKind, ExecutionStarted, HistoryEvent, OrchestrationInstance,
    OrchestrationService, OrchestrationServiceClient, OrchestrationStatus, OrchestrationWorkItem,
    ParentInstance, SeededIds, StartOutcome, StartRequest, TaskHubName, TaskMessage, Timestamp,
};
use taskhub_storage::StorageAccount;
use taskhub_storage::memory::MemoryStore;
use taskhub_testkit::VirtualClock;
use taskhub_testkit::faults::{FaultPlan, FaultyAccount};

pub(crate) const SOON: Duration = Duration::from_secs(120);

/// One store, in virtual time, with any number of workers and clients.
pub(crate) struct World {
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) store: MemoryStore,
    pub(crate) account: StorageAccount,
}

impl World {
    pub(crate) fn new() -> Self {
        let start = Timestamp::parse("2026-03-01T12:00:00Z").unwrap();
        let clock: Arc<dyn Clock> = Arc::new(VirtualClock::starting_at(start));
        let store = MemoryStore::new(clock.clone());
        let account = store.account();
        Self { clock, store, account }
    }

    /// A world whose requests can be made to fail.
    pub(crate) fn with_faults() -> (Self, FaultPlan) {
        let plan = FaultPlan::default();
        let mut world = Self::new();
        world.account = FaultyAccount::wrap(world.store.account(), &plan);
        (world, plan)
    }

    /// A worker that takes no short cuts; see `economy.rs` for those that it takes by default.
    pub(crate) fn settings(worker: &str) -> AzureStorageSettings {
        AzureStorageSettings {
            session_cache_bytes: 0,
            hand_off_local_activities: false,
            hand_off_control_messages: false,
            elide_responses: false,
            lazy_running_rows: false,
            ..Self::default_settings(worker)
        }
    }

    pub(crate) fn default_settings(worker: &str) -> AzureStorageSettings {
        AzureStorageSettings::new(TaskHubName::new("TestHub").unwrap(), worker)
    }

    pub(crate) fn hub(&self, settings: AzureStorageSettings) -> Hub {
        let seed = settings.worker_id.as_str().bytes().map(u64::from).sum();
        Hub::new(settings, self.account.clone(), self.clock.clone(), Arc::new(SeededIds::new(seed))).unwrap()
    }

    pub(crate) fn client(&self) -> AzureStorageClient {
        AzureStorageClient::new(self.hub(Self::settings("client")))
    }

    pub(crate) async fn worker(&self, name: &str) -> AzureStorageService {
        self.worker_with(Self::settings(name)).await
    }

    pub(crate) async fn worker_with(&self, settings: AzureStorageSettings) -> AzureStorageService {
        let service = AzureStorageService::new(self.hub(settings));
        service.start().await.unwrap();
        service
    }

    /// Column of the Instances row as text, empty when absent.
    pub(crate) fn row(&self, instance: &str, column: &str) -> String {
        let rows = self.store.entities("TestHubInstances");
        let row = rows.iter().find(|row| row.partition_key == instance);
        row.and_then(|row| row.str(column)).unwrap_or_default().to_owned()
    }

    pub(crate) fn history(&self, instance: &str) -> Vec<String> {
        let rows = self.store.entities("TestHubHistory");
        rows.iter()
            .filter(|row| row.partition_key == instance)
            .map(|row| row.str("EventType").unwrap_or("sentinel").to_owned())
            .collect()
    }

    /// Messages in all control queues.
    pub(crate) fn control_messages(&self) -> usize {
        let control = |queue: &&String| queue.contains("-control-");
        self.store.queues().iter().filter(control).map(|queue| self.store.messages(queue).len()).sum()
    }

    pub(crate) fn work_item_messages(&self) -> usize {
        self.store.messages("testhub-workitems").len()
    }
}

pub(crate) async fn start(client: &AzureStorageClient, instance: &str) -> OrchestrationInstance {
    let request =
        StartRequest { name: "Echo".into(), instance_id: instance.into(), ..StartRequest::default() };
    match client.start_instance(request).await.unwrap() {
        StartOutcome::Started { instance_id, execution_id } => {
            OrchestrationInstance { instance_id, execution_id: Some(execution_id) }
        }
        StartOutcome::Exists { status } => panic!("exists: {status}"),
    }
}

/// A worker with the short cuts that it takes by default, and ten slots for activities.
pub(crate) async fn economical(world: &World) -> AzureStorageService {
    let worker = world.worker_with(World::default_settings("w1")).await;
    worker.set_activity_slots(10);
    worker
}

/// Runs the first episode, which schedules activities.
pub(crate) async fn begin(
    world: &World,
    worker: &AzureStorageService,
    id: &str,
    activities: i32,
) -> OrchestrationWorkItem {
    start(&world.client(), id).await;
    let item = lock(worker).await;
    let commit = episode(world, &item, (0..activities).map(|at| schedule(world, at, "[]")).collect());
    finish(worker, item.clone(), commit).await;
    item
}

pub(crate) async fn lock(worker: &AzureStorageService) -> OrchestrationWorkItem {
    worker.lock_next_orchestration(SOON).await.unwrap().expect("an orchestration within two minutes")
}

pub(crate) async fn lock_entity(worker: &AzureStorageService) -> OrchestrationWorkItem {
    worker.lock_next_entity(SOON).await.unwrap().expect("an entity within two minutes")
}

pub(crate) async fn lock_activity(worker: &AzureStorageService) -> ActivityWorkItem {
    worker.lock_next_activity(SOON).await.unwrap().expect("an activity within two minutes")
}

pub(crate) fn raised(name: &str) -> HistoryEvent {
    let at = Timestamp::parse("2026-03-01T12:00:00.5Z").unwrap();
    let kind = EventKind::EventRaised {
        name: Some(name.into()),
        input: Some("true".into()),
        parent_trace_context: None,
    };
    HistoryEvent::message(at, kind)
}

pub(crate) fn terminated(reason: &str) -> HistoryEvent {
    let at = Timestamp::parse("2026-03-01T12:00:00.5Z").unwrap();
    HistoryEvent::message(at, EventKind::ExecutionTerminated { input: Some(reason.into()) })
}

/// An episode that takes in the messages and ends with `decisions`.
pub(crate) fn episode(
    world: &World,
    item: &OrchestrationWorkItem,
    decisions: Vec<HistoryEvent>,
) -> EpisodeCommit {
    let now = world.clock.now();
    let mut new_events = vec![HistoryEvent::message(now, EventKind::OrchestratorStarted)];
    new_events.extend(item.messages.iter().map(|m| m.event.clone()));
    let mut status = OrchestrationStatus::Running;
    let mut activity_messages = Vec::new();
    for decision in decisions {
        match &decision.kind {
            EventKind::TaskScheduled { .. } => {
                let mut message = TaskMessage::new(decision.clone(), item.instance.clone());
                message.execution_context = Some(taskhub_core::Tags::new());
                activity_messages.push(message);
            }
            EventKind::ExecutionCompleted(completed) => status = completed.status,
            _ => {}
        }
        new_events.push(decision);
    }
    new_events.push(HistoryEvent::message(now, EventKind::OrchestratorCompleted));
    EpisodeCommit {
        instance: item.instance.clone(),
        replaces_history: false,
        new_events,
        status,
        custom_status: None,
        activity_messages,
        orchestrator_messages: Vec::new(),
        timer_messages: Vec::new(),
    }
}

pub(crate) fn schedule(world: &World, id: i32, input: &str) -> HistoryEvent {
    let kind = EventKind::TaskScheduled {
        name: Some("SayHello".into()),
        version: Some(String::new()),
        input: Some(input.into()),
        parent_trace_context: None,
        tags: None,
    };
    HistoryEvent::decision(id, world.clock.now(), kind)
}

pub(crate) fn completed(world: &World, id: i32, result: &str) -> HistoryEvent {
    let kind = EventKind::ExecutionCompleted(taskhub_core::ExecutionCompleted {
        status: OrchestrationStatus::Completed,
        result: Some(result.into()),
        failure_details: None,
    });
    HistoryEvent::decision(id, world.clock.now(), kind)
}

/// The reply to an activity request.
pub(crate) fn reply(world: &World, request: &TaskMessage, result: &str) -> TaskMessage {
    let kind =
        EventKind::TaskCompleted { task_scheduled_id: request.event.event_id, result: Some(result.into()) };
    TaskMessage::new(HistoryEvent::message(world.clock.now(), kind), request.target.clone())
}

/// Completes and releases.
pub(crate) async fn finish(worker: &AzureStorageService, item: OrchestrationWorkItem, commit: EpisodeCommit) {
    worker.complete_orchestration(item.token, commit).await.unwrap();
    worker.release_orchestration(item.token).await;
}

/// The start of `child`, as task 0 of the parent asks for it; nobody has written a row for it.
pub(crate) fn child_start(
    world: &World,
    parent: &OrchestrationInstance,
    child: OrchestrationInstance,
) -> TaskMessage {
    let started = ExecutionStarted {
        parent: Some(ParentInstance {
            name: Some("Echo".into()),
            instance: parent.clone(),
            task_schedule_id: 0,
            version: Some(String::new()),
        }),
        version: Some(String::new()),
        input: Some("1".into()),
        ..ExecutionStarted::new(child.clone(), "Child")
    };
    let kind = EventKind::ExecutionStarted(Box::new(started));
    TaskMessage::new(HistoryEvent::message(world.clock.now(), kind), child)
}
