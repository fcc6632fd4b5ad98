//! A task hub in memory: instances, one queue, activities, timers. Runs every episode twice, in an
//! extended session and as a fresh replay of the stored history, and demands the same outcome.
#![allow(dead_code, unreachable_pub, clippy::unwrap_used, reason = "each test binary uses a part")]

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use taskhub_core::*;
use taskhub_replay::*;
use uuid::Uuid;

pub const START: Timestamp = Timestamp::MIN;

pub fn at(seconds: u64) -> Timestamp {
    Timestamp::from_ticks(638_000_000_000_000_000) + Duration::from_secs(seconds)
}

#[derive(Debug, Default)]
pub struct ManualClock(Mutex<u64>);

impl ManualClock {
    pub fn advance_to(&self, time: Timestamp) {
        let ticks = (time.ticks() - at(0).ticks()).max(0) as u64;
        let mut now = self.0.lock().unwrap();
        *now = (*now).max(ticks);
    }
}

impl Clock for ManualClock {
    fn now(&self) -> Timestamp {
        Timestamp::from_ticks(at(0).ticks() + *self.0.lock().unwrap() as i64)
    }
}

/// Ids that count, so that a run can be repeated from a point.
#[derive(Debug)]
pub struct CountingIds(Mutex<u64>);

impl CountingIds {
    pub fn new(next: u64) -> Self {
        Self(Mutex::new(next))
    }
    fn peek(&self) -> u64 {
        *self.0.lock().unwrap()
    }
}

impl IdSource for CountingIds {
    fn guid(&self) -> Uuid {
        let mut next = self.0.lock().unwrap();
        *next += 1;
        Uuid::from_u128(u128::from(*next))
    }
}

type Activity = Arc<dyn Fn(&str, &str) -> Result<String, OrchestratorError> + Send + Sync>;
pub type EntityStub = Box<dyn FnMut(TaskMessage) -> Vec<TaskMessage>>;
type Registry = HashMap<String, (Arc<dyn Orchestrator>, ReplaySettings)>;

pub struct Instance {
    pub history: Vec<HistoryEvent>,
    pub status: OrchestrationStatus,
    pub custom_status: Option<String>,
    pub commits: Vec<EpisodeCommit>,
    state: RuntimeState,
    executor: ReplayExecutor,
}

impl Instance {
    pub fn output(&self) -> Option<String> {
        RuntimeState::from_history(self.history.clone()).unwrap().output()
    }

    pub fn names(&self) -> Vec<&'static str> {
        self.history.iter().map(HistoryEvent::name).collect()
    }

    /// `{event id} {event name}` of everything but the marks of episodes.
    pub fn trace(&self) -> Vec<String> {
        let marks = ["OrchestratorStarted", "OrchestratorCompleted"];
        let events = self.history.iter().filter(|event| !marks.contains(&event.name()));
        events.map(|event| format!("{} {}", event.event_id, event.name())).collect()
    }
}

pub struct Hub {
    pub registry: Registry,
    pub replay: ReplaySettings,
    pub settings: EpisodeSettings,
    pub clock: ManualClock,
    pub ids: CountingIds,
    pub activity: Activity,
    pub instances: HashMap<InstanceId, Instance>,
    pub queue: VecDeque<TaskMessage>,
    pub timers: BTreeMap<(Timestamp, u64), TaskMessage>,
    /// Activities are executed as they are scheduled unless this is set; then they wait here.
    pub hold_activities: bool,
    pub held: VecDeque<TaskMessage>,
    pub activity_calls: Vec<(String, Option<String>)>,
    pub discarded: usize,
    /// What entities do with a message and send in return; without it their messages are discarded.
    pub entities: Option<EntityStub>,
    timer_number: u64,
}

impl Hub {
    pub fn new() -> Self {
        Self {
            registry: HashMap::new(),
            replay: ReplaySettings::default(),
            settings: EpisodeSettings::default(),
            clock: ManualClock::default(),
            ids: CountingIds::new(0),
            activity: Arc::new(default_activity),
            instances: HashMap::new(),
            queue: VecDeque::new(),
            timers: BTreeMap::new(),
            hold_activities: false,
            held: VecDeque::new(),
            activity_calls: Vec::new(),
            discarded: 0,
            entities: None,
            timer_number: 0,
        }
    }

    pub fn with(mut self, name: &str, orchestrator: impl Orchestrator + 'static) -> Self {
        self.add(name, orchestrator);
        self
    }

    pub fn add(&mut self, name: &str, orchestrator: impl Orchestrator + 'static) {
        self.registry.insert(name.to_owned(), (Arc::new(orchestrator), self.replay.clone()));
    }

    pub fn error_mode(&mut self, mode: ErrorMode) {
        self.replay.error_mode = mode;
        self.settings.error_mode = mode;
        for (_, settings) in self.registry.values_mut() {
            settings.error_mode = mode;
        }
    }

    pub fn start(&mut self, name: &str, id: &str, input: &str) {
        let message = start_message(name, id, &format!("{id}-e1"), input, self.clock.now());
        self.queue.push_back(message);
    }

    pub fn send(&mut self, id: &str, kind: EventKind) {
        let event = HistoryEvent::message(self.clock.now(), kind);
        self.queue.push_back(TaskMessage::new(event, OrchestrationInstance::current(id)));
    }

    pub fn raise(&mut self, id: &str, name: &str, json: &str) {
        self.send(id, raised(name, json));
    }

    pub fn get(&self, id: &str) -> &Instance {
        &self.instances[&InstanceId::from(id)]
    }

    pub fn output(&self, id: &str) -> String {
        self.get(id).output().unwrap_or_default()
    }

    /// Runs until only timers are left.
    pub fn settle(&mut self) {
        for _ in 0..100_000 {
            let Some(first) = self.queue.front() else { return };
            let id = first.target.instance_id.clone();
            let (mine, rest) = self.queue.drain(..).partition(|message| message.target.instance_id == id);
            self.queue = rest;
            let mine: VecDeque<_> = mine;
            self.episode(&id, mine.into());
        }
        panic!("the hub does not settle");
    }

    /// Takes over an instance that another worker has begun.
    pub fn adopt(&mut self, id: &InstanceId, history: Vec<HistoryEvent>) {
        let instance = Instance {
            state: RuntimeState::from_history(history.clone()).unwrap(),
            history,
            status: OrchestrationStatus::Running,
            custom_status: None,
            commits: Vec::new(),
            executor: ReplayExecutor::new(self.source()),
        };
        self.instances.insert(id.clone(), instance);
    }

    /// Settles, then moves the clock from timer to timer until none is left.
    pub fn run(&mut self) {
        self.settle();
        while self.fire_next_timer() {
            self.settle();
        }
    }

    pub fn fire_next_timer(&mut self) -> bool {
        let Some(((due, _), message)) = self.timers.pop_first() else { return false };
        self.clock.advance_to(due);
        self.queue.push_back(message);
        true
    }

    /// One work item.
    pub fn episode(&mut self, id: &InstanceId, messages: Vec<TaskMessage>) {
        if let Some(entities) = self.entities.as_mut().filter(|_| id.is_entity()) {
            self.queue.extend(messages.into_iter().flat_map(entities));
            return;
        }
        let source = self.source();
        let instance = self.instances.entry(id.clone()).or_insert_with(|| Instance {
            history: Vec::new(),
            status: OrchestrationStatus::Pending,
            custom_status: None,
            commits: Vec::new(),
            state: RuntimeState::default(),
            executor: ReplayExecutor::new(source.clone()),
        });
        if instance.status.is_terminal() && !instance.history.is_empty() {
            self.discarded += 1; // the backend's business
            return;
        }
        let fresh = {
            let mut state = RuntimeState::from_history(instance.history.clone()).unwrap();
            let mut executor = ReplayExecutor::new(source.clone());
            let ids = CountingIds::new(self.ids.peek());
            run_episode(&mut state, messages.clone(), &mut executor, &self.settings, &self.clock, &ids)
        };
        let resumed = run_episode(
            &mut instance.state,
            messages,
            &mut instance.executor,
            &self.settings,
            &self.clock,
            &self.ids,
        );
        assert_eq!(
            format!("{fresh:#?}"),
            format!("{resumed:#?}"),
            "an extended session differs from a replay"
        );
        let commit = match resumed.unwrap() {
            EpisodeOutcome::Commit(commit) => commit,
            EpisodeOutcome::Discard => {
                self.discarded += 1;
                return;
            }
            EpisodeOutcome::Reject { version } => panic!("version {version} rejected"),
        };
        if commit.replaces_history {
            instance.history.clear();
        }
        instance.history.extend(commit.new_events.iter().cloned());
        instance.status = commit.status;
        instance.custom_status = commit.custom_status.clone();
        let is_split = commit.new_events.iter().any(|event| event.event_id == SPLIT_TIMER_ID);
        let is_open = matches!(commit.status, OrchestrationStatus::Running);
        if is_open && !is_split {
            let started = RuntimeState::from_history(instance.history.clone()).unwrap();
            let (orchestrator, settings) = self.registry[&started.started().unwrap().name].clone();
            let result = Execution::new(orchestrator, settings).advance(&instance.history, &mut []);
            assert_eq!(result.actions, [], "a replay of the whole history decides nothing new");
        }
        let (activities, orchestrators, timers) = (
            commit.activity_messages.clone(),
            commit.orchestrator_messages.clone(),
            commit.timer_messages.clone(),
        );
        instance.commits.push(commit);
        self.queue.extend(orchestrators);
        for message in timers {
            let EventKind::TimerFired { fire_at, .. } = message.event.kind else { panic!("no timer") };
            self.timer_number += 1;
            self.timers.insert((fire_at, self.timer_number), message);
        }
        for message in activities {
            if self.hold_activities {
                self.held.push_back(message);
            } else {
                self.run_activity(message);
            }
        }
    }

    pub fn run_activity(&mut self, message: TaskMessage) {
        let EventKind::TaskScheduled { name, input, .. } = &message.event.kind else { panic!("no activity") };
        let name = name.clone().unwrap();
        self.activity_calls.push((name.clone(), input.clone()));
        let task_scheduled_id = message.event.event_id;
        let kind = match (self.activity)(&name, activity_argument(input.as_deref())) {
            Ok(json) => {
                let result = (json != "null").then_some(json);
                EventKind::TaskCompleted { task_scheduled_id, result }
            }
            Err(error) => {
                let failure = encode_activity_failure(error.as_ref(), self.replay.error_mode, &name);
                EventKind::TaskFailed {
                    task_scheduled_id,
                    reason: Some(failure.reason),
                    details: failure.details,
                    failure_details: failure.failure_details,
                }
            }
        };
        self.queue.push_back(TaskMessage::new(HistoryEvent::message(self.clock.now(), kind), message.target));
    }

    pub fn source(&self) -> Arc<dyn OrchestratorSource> {
        let registry = self.registry.clone();
        Arc::new(move |name: &str, _version: Option<&str>| registry.get(name).cloned())
    }
}

fn default_activity(name: &str, input: &str) -> Result<String, OrchestratorError> {
    let value: serde_json::Value = serde_json::from_str(input)?;
    match name {
        "Echo" => Ok(input.to_owned()),
        "SayHello" => Ok(serde_json::to_string(&format!("Hello {}!", value.as_str().unwrap_or("?")))?),
        "Boom" => {
            let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
            Err(ApplicationError::new("System.InvalidOperationException", format!("boom {text}")).into())
        }
        _ => Err(format!("no activity {name}").into()),
    }
}

pub fn raised(name: &str, json: &str) -> EventKind {
    EventKind::EventRaised { name: Some(name.into()), input: Some(json.into()), parent_trace_context: None }
}

pub fn started(name: &str, id: &str, execution: &str, input: &str) -> ExecutionStarted {
    ExecutionStarted {
        version: Some(String::new()),
        input: (!input.is_empty()).then(|| input.into()),
        generation: Some(0),
        ..ExecutionStarted::new(OrchestrationInstance::new(id, execution), name)
    }
}

pub fn start_message(name: &str, id: &str, execution: &str, input: &str, now: Timestamp) -> TaskMessage {
    let started = started(name, id, execution, input);
    let instance = started.instance.clone();
    let event = HistoryEvent::message(now, EventKind::ExecutionStarted(Box::new(started)));
    TaskMessage::new(event, instance)
}
