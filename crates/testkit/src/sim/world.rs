//! One run: a store, a fleet of workers, clients with their stories, and weather, all from a seed.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use taskhub_azure_storage::{
    AzureStorageClient, AzureStorageService, AzureStorageSettings, Hub, PartitionManagerKind,
};
use taskhub_client::{ClientError, Start, TaskHubClient};
use taskhub_core::{
    Clock, InstanceFetch, InstanceId, OrchestrationState, OrchestrationStatus, SeededIds, TaskHubName,
};
use taskhub_storage::memory::MemoryStore;
use taskhub_worker::{FusedActivities, WorkerSettings};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::clock::SkewedClock;
use super::entity::{self, ADD, Orphans, ledger};
use super::interpreter::{ActivityLog, PLAN};
use super::network::{FaultRates, Link, Network, ProcessState};
use super::plan::{Author, Plan, Story, event_payload};
use super::process::{self, Process};
use super::rng::Rng;
use super::trace::Trace;
use super::{Options, check};
use crate::VirtualClock;

/// How long everything may take once the faults are over.
const PATIENCE: Duration = Duration::from_secs(2 * 3600);
/// How often the world looks whether an instance has got somewhere.
const LOOK_INTERVAL: Duration = Duration::from_millis(500);
/// How often somebody looks for instances that were left suspended.
const RESUME_INTERVAL: Duration = Duration::from_secs(60);
/// How long messages may lie around once all instances have ended.
const SETTLE: Duration = Duration::from_secs(45 * 60);

/// What makes trouble in a run. Each run has its own mixture.
#[derive(Debug, Clone, Default)]
pub(crate) struct Weather {
    pub(crate) rates: FaultRates,
    /// Clocks are off by up to this much.
    pub(crate) skew_millis: u64,
    /// How long faults happen, in milliseconds.
    pub(crate) lasts: u64,
    /// When workers cannot put messages, and for how long, in milliseconds.
    pub(crate) outage: Option<(u64, u64)>,
    /// Whether processes stand still again and again and nothing else is done to them: whoever wakes up
    /// goes on with what another one has taken over.
    pub(crate) only_stalls: bool,
    /// Whether entities are used. Clocks then agree: DTFx's sorter drops what a clock that is behind stamps after
    /// one that is ahead.
    pub(crate) entities: bool,
    /// Mean time between two things done to a process, in milliseconds; 0 for never.
    pub(crate) troubles_every: u64,
}

impl Weather {
    fn of(rng: &Rng, entities: bool) -> Self {
        let rate = |often: &[u64]| rng.pick(often);
        let rates = FaultRates {
            lost_before: rate(&[0, 0, 100, 25]),
            lost_reply: rate(&[0, 0, 100, 25, 10]),
            hang: rate(&[0, 0, 200, 50]),
            busy: rate(&[0, 0, 100, 25]),
            conflict: rate(&[0, 0, 50, 15]),
            duplicate: rate(&[0, 0, 30, 10, 4]),
            slow: rate(&[0, 0, 50, 15]),
            death: rate(&[0, 0, 400, 150]),
        };
        let only_stalls = rng.once_in(5);
        let skew_millis = rng.pick(&[0, 0, 1000, 6000]);
        Self {
            rates,
            only_stalls,
            entities,
            skew_millis: if entities { 0 } else { skew_millis },
            lasts: rng.between(15_000, 90_000),
            outage: rng.once_in(6).then(|| (rng.between(2_000, 30_000), rng.between(20_000, 100_000))),
            troubles_every: if only_stalls { 12_000 } else { rng.pick(&[0, 8_000, 20_000, 40_000]) },
        }
    }
}

/// Everything that a run consists of.
#[derive(Debug)]
pub(crate) struct World {
    pub(crate) rng: Rng,
    pub(crate) truth: Arc<dyn Clock>,
    pub(crate) network: Arc<Network>,
    pub(crate) settings: AzureStorageSettings,
    pub(crate) worker_settings: WorkerSettings,
    pub(crate) weather: Weather,
    pub(crate) log: Arc<ActivityLog>,
    /// The hub without a network between.
    pub(crate) direct: TaskHubClient,
    pub(crate) direct_hub: Hub,
    started: Mutex<BTreeMap<String, Instant>>,
}

fn settings(rng: &Rng, options: &Options) -> AzureStorageSettings {
    let name = TaskHubName::new("SimHub").expect("letters");
    let visibility = Duration::from_secs(rng.pick(&[20, 30, 60]));
    let mut settings = AzureStorageSettings::new(name, "client");
    settings.partition_manager = Some(rng.pick(&[
        PartitionManagerKind::Table,
        PartitionManagerKind::Safe,
        PartitionManagerKind::Legacy,
    ]));
    settings.partition_count = Some(rng.between(1, 4) as u32);
    settings.control_queue_visibility_timeout = visibility;
    settings.work_item_queue_visibility_timeout = visibility;
    settings.unknown_instance_grace = visibility * 2;
    settings.max_queue_polling_interval = Duration::from_secs(rng.pick(&[2, 10, 30]));
    settings.control_queue_batch_size = rng.pick(&[1, 4, 32]);
    settings.control_queue_buffer_threshold = rng.pick(&[4, 64]);
    settings.max_storage_operation_concurrency = rng.pick(&[1, 8, 50]);
    settings.extended_sessions_enabled = rng.once_in(3);
    settings.extended_session_idle_timeout = Duration::from_secs(rng.pick(&[2, 30]));
    settings.drain_timeout = Duration::from_secs(rng.pick(&[5, 60]));
    settings.fan_in_linger = Duration::from_millis(rng.pick(&[0, 50]));
    settings.hand_off_local_activities = !rng.once_in(4);
    settings.hand_off_control_messages = !rng.once_in(4);
    settings.elide_responses = !rng.once_in(4);
    settings.lazy_running_rows = !rng.once_in(4);
    settings.session_cache_bytes = rng.pick(&[0, 4_000, 20_000, 64 << 20, 64 << 20]);
    settings.use_app_lease = rng.once_in(3);
    // Small checkpoints are then cut into batches, between which a process can die.
    settings.sabotage.max_batch_rows = rng.once_in(3).then(|| rng.between(3, 8) as usize);
    options.apply(&mut settings);
    settings
}

impl World {
    pub(crate) fn new(seed: u64, options: &Options, deaths: mpsc::UnboundedSender<String>) -> Arc<Self> {
        let rng = Rng::new(seed);
        let truth: Arc<dyn Clock> = Arc::new(VirtualClock::default());
        let store = MemoryStore::new(truth.clone());
        let weather = Weather::of(&rng, options.entities);
        let settings = settings(&rng, options);
        let extended_sessions_enabled = settings.extended_sessions_enabled;
        let worker_settings = WorkerSettings {
            max_concurrent_task_orchestration_work_items: rng.pick(&[1, 4, 100]),
            max_concurrent_task_activity_work_items: rng.pick(&[1, 3, 10]),
            max_concurrent_task_entity_work_items: if options.entities {
                rng.pick(&[1, 4, 100])
            } else {
                100
            },
            max_entity_operation_batch_size: if options.entities { rng.pick(&[1, 3, 5000]) } else { 5000 },
            extended_sessions_enabled,
            fused_activities: FusedActivities {
                all: rng.once_in(4),
                max_duration: Duration::from_secs(rng.pick(&[1, 5])),
                ..FusedActivities::default()
            },
            ..WorkerSettings::default()
        };
        let direct_hub =
            Hub::new(settings.clone(), store.account(), truth.clone(), Arc::new(SeededIds::new(rng.next())))
                .expect("the settings of a simulation are within their ranges");
        let direct = TaskHubClient::new(Arc::new(AzureStorageClient::new(direct_hub.clone())))
            .with_environment(truth.clone(), Arc::new(SeededIds::new(rng.next())));
        let trace = Trace::new(options.trace);
        let visibility = settings.control_queue_visibility_timeout;
        let lease = settings.lease_interval;
        let mut network =
            Network::new(store, trace, visibility, lease, rng.fork(), weather.rates.clone(), deaths);
        if let Some((from, lasts)) = weather.outage {
            network = network.with_outage(Duration::from_millis(from), Duration::from_millis(lasts));
        }
        Arc::new(Self {
            rng,
            truth,
            network: Arc::new(network),
            settings,
            worker_settings,
            weather,
            log: Arc::default(),
            direct,
            direct_hub,
            started: Mutex::default(),
        })
    }

    /// Runs the world to its end; what is wrong with it.
    pub(crate) async fn run(self: Arc<Self>, deaths: mpsc::UnboundedReceiver<String>) -> Vec<String> {
        let stories = Author::new(&self.rng.fork(), self.weather.entities).stories(self.weather.lasts);
        for story in &stories {
            self.network.trace.add("story", &[&story.id], &format!("{story:?}"));
        }
        self.network.trace.add("weather", &[], &format!("{:?}", self.weather));
        if let Err(error) = self.direct.create_hub().await {
            return vec![format!("the hub cannot be created: {error}")];
        }
        let mut fleet = Fleet::new(self.clone(), deaths);
        let mut clients = JoinSet::new();
        for story in stories.clone() {
            clients.spawn(self.clone().tell(story, stories.clone()));
        }
        self.network.set_stormy(true);
        fleet.live_through(Duration::from_millis(self.weather.lasts)).await;
        self.network.set_stormy(false);
        fleet.recover().await;

        let deadline = Instant::now() + PATIENCE;
        let resuming = tokio::spawn(self.clone().resume_forgotten(stories.clone()));
        let told = tokio::time::timeout_at(deadline, async { while clients.join_next().await.is_some() {} });
        if told.await.is_err() {
            return self.wrong(vec!["a client does not come to its end".to_owned()]);
        }
        let stuck = self.await_ends(&stories, deadline).await;
        let mut wrong = Vec::new();
        for id in stuck {
            let state = self.state(&id).await;
            let status = state.as_ref().and_then(|s| s.status);
            wrong.push(format!("{id} is stuck: {status:?}"));
        }
        if wrong.is_empty() {
            let settled_by = Instant::now() + SETTLE;
            while !check::left_behind(&self).await.is_empty() && Instant::now() < settled_by {
                tokio::time::sleep(Duration::from_secs(5)).await;
            }
            wrong.extend(check::left_behind(&self).await);
        }
        if self.weather.entities {
            let free_by = Instant::now() + 20 * RESUME_INTERVAL;
            while entity::is_any_locked(&self).await && Instant::now() < free_by {
                tokio::time::sleep(RESUME_INTERVAL).await;
            }
        }
        resuming.abort();
        wrong.extend(check::all(&self, &stories).await);
        fleet.stop().await;
        self.wrong(wrong)
    }

    fn wrong(&self, mut wrong: Vec<String>) -> Vec<String> {
        wrong.extend(self.network.violations());
        wrong
    }

    /// Every instance that has to end, with the plan that it ends with.
    pub(crate) fn expected(stories: &[Story]) -> Vec<(String, Plan)> {
        let mut all = Vec::new();
        for story in stories {
            all.push((story.id.clone(), story.again.clone().unwrap_or_else(|| story.plan.clone())));
            let mut forgotten = story.plan.forgotten();
            while let Some((id, plan)) = forgotten.pop() {
                forgotten.extend(plan.forgotten());
                all.push((id, plan));
            }
        }
        all
    }

    pub(crate) async fn state(&self, id: &str) -> Option<OrchestrationState> {
        self.direct.state(&InstanceId::new(id), InstanceFetch::NONE).await.ok().flatten()
    }

    async fn await_ends(&self, stories: &[Story], deadline: Instant) -> Vec<String> {
        let mut waiting: Vec<String> = Self::expected(stories).into_iter().map(|(id, _)| id).collect();
        while !waiting.is_empty() && Instant::now() < deadline {
            let mut left = Vec::new();
            for id in waiting {
                let status = self.state(&id).await.and_then(|state| state.status);
                if !status.is_some_and(OrchestrationStatus::is_terminal) {
                    left.push(id);
                }
            }
            waiting = left;
            tokio::time::sleep(LOOK_INTERVAL).await;
        }
        waiting
    }

    /// Resumes instances for which the request to suspend them has come after the one to resume them, and frees
    /// entities that were left locked.
    async fn resume_forgotten(self: Arc<Self>, stories: Vec<Story>) {
        let mut orphans = Orphans::default();
        loop {
            tokio::time::sleep(RESUME_INTERVAL).await;
            for story in &stories {
                let status = self.state(&story.id).await.and_then(|state| state.status);
                if status == Some(OrchestrationStatus::Suspended) {
                    let _ = self.direct.resume(&story.id.as_str().into(), None).await;
                }
            }
            if self.weather.entities {
                orphans.look(&self).await;
            }
        }
    }

    fn client(&self, name: &str) -> TaskHubClient {
        let rng = self.rng.fork();
        let clock = Arc::new(SkewedClock::seeded(self, &rng));
        let process = Arc::new(ProcessState::new(name.to_owned(), String::new(), clock.clone()));
        let link = Link { network: self.network.clone(), process };
        let hub = process::open(self, &link, &rng, false);
        TaskHubClient::new(Arc::new(AzureStorageClient::new(hub)))
            .with_environment(clock, Arc::new(SeededIds::new(rng.next())))
    }

    async fn until_known(&self, id: &str) {
        while self.state(id).await.is_none() {
            tokio::time::sleep(LOOK_INTERVAL).await;
        }
    }

    /// A client does what its story says.
    async fn tell(self: Arc<Self>, story: Story, all: Vec<Story>) {
        let origin = Instant::now();
        let at = |millis| origin + Duration::from_millis(millis);
        let client = self.client(&format!("c-{}", story.id));
        let grace = self.settings.unknown_instance_grace;
        let starting = async {
            for other in story.plan.targets() {
                if all.iter().any(|s| s.id == other) {
                    self.until_known(&other).await;
                }
            }
            tokio::time::sleep_until(at(story.start_at)).await;
            self.start(&client, &story.id, &story.plan, &OrchestrationStatus::ALL).await;
            self.started
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .insert(story.id.clone(), Instant::now());
        };
        let raising = futures::future::join_all(story.events.iter().map(|(when, target, name)| {
            let (client, story, world) = (&client, &story, &self);
            async move {
                let is_child = *target != story.id;
                if is_child {
                    world.until_known(target).await;
                }
                tokio::time::sleep_until(at(*when)).await;
                let first = world.raise(client, target, name).await;
                world.until_known(&story.id).await;
                // So long before the start nobody has to remember it.
                if !is_child && first.elapsed() > grace / 2 {
                    world.raise(client, target, name).await;
                }
            }
        }));
        let controlling = async {
            if let Some(when) = story.terminate_at {
                self.until_known(&story.id).await;
                tokio::time::sleep_until(at(when)).await;
                while client.terminate(&story.id.as_str().into(), Some("enough")).await.is_err() {
                    tokio::time::sleep(LOOK_INTERVAL).await;
                }
            }
            if let Some((when, length)) = story.suspend {
                self.until_known(&story.id).await;
                tokio::time::sleep_until(at(when)).await;
                while client.suspend(&story.id.as_str().into(), None).await.is_err() {
                    tokio::time::sleep(LOOK_INTERVAL).await;
                }
                tokio::time::sleep(Duration::from_millis(length)).await;
                while client.resume(&story.id.as_str().into(), None).await.is_err() {
                    tokio::time::sleep(LOOK_INTERVAL).await;
                }
            }
        };
        let signalling = futures::future::join_all(story.signals.iter().map(|(when, to, entry)| {
            let client = &client;
            async move {
                tokio::time::sleep_until(at(*when)).await;
                let input = Some(serde_json::Value::from(entry.as_str()).to_string());
                while client.signal_entity(&ledger(to), ADD, input.clone(), None).await.is_err() {
                    tokio::time::sleep(LOOK_INTERVAL).await;
                }
            }
        }));
        tokio::join!(starting, raising, signalling, controlling);
        if let Some(again) = &story.again {
            loop {
                let status = self.state(&story.id).await.and_then(|state| state.status);
                if status.is_some_and(OrchestrationStatus::is_terminal) {
                    break;
                }
                tokio::time::sleep(LOOK_INTERVAL).await;
            }
            // From another machine, with another clock.
            let client = self.client(&format!("d-{}", story.id));
            use OrchestrationStatus::{ContinuedAsNew, Pending, Running, Suspended};
            self.start(&client, &story.id, again, &[Running, ContinuedAsNew, Pending, Suspended]).await;
        }
    }

    /// Starts an instance, again if that fails and there is none yet.
    async fn start(&self, client: &TaskHubClient, id: &str, plan: &Plan, unless: &[OrchestrationStatus]) {
        loop {
            let start = Start::new(PLAN).instance_id(id).unless_in(unless.iter().copied());
            let start = start.input(plan).expect("a plan has a JSON form");
            match client.start(start).await {
                Ok(_) | Err(ClientError::AlreadyExists { .. }) => return,
                Err(_) => tokio::time::sleep(LOOK_INTERVAL).await,
            }
        }
    }

    /// Raises an event until that has succeeded; when it first did.
    async fn raise(&self, client: &TaskHubClient, target: &str, name: &str) -> Instant {
        while client.raise_event(&target.into(), name, &event_payload(name)).await.is_err() {
            tokio::time::sleep(LOOK_INTERVAL).await;
        }
        Instant::now()
    }

    /// The registered functions, for a replay.
    pub(crate) fn source(&self) -> Arc<dyn taskhub_worker::OrchestratorSource> {
        process::builder(self, AzureStorageService::new(self.direct_hub.clone()), false)
            .orchestrator_source()
            .expect("every function has its own name")
    }
}

/// The worker processes of a world.
struct Fleet {
    world: Arc<World>,
    rng: Rng,
    deaths: mpsc::UnboundedReceiver<String>,
    slots: Vec<Slot>,
    leaving: JoinSet<()>,
}

struct Slot {
    process: Option<Process>,
    incarnation: u32,
    back_at: Instant,
    /// Whether the next process may have the identity of the last one, which is surely gone.
    may_repeat_id: bool,
    /// Whether the next process has DTFx's rules.
    is_plain: bool,
}

impl Fleet {
    fn new(world: Arc<World>, deaths: mpsc::UnboundedReceiver<String>) -> Self {
        let rng = world.rng.fork();
        let count = rng.between(2, 3);
        let slots = (0..count)
            .map(|_| Slot {
                process: None,
                incarnation: 0,
                back_at: Instant::now() + rng.millis(0, 5000),
                may_repeat_id: true,
                is_plain: rng.once_in(4),
            })
            .collect();
        Self { world, rng, deaths, slots, leaving: JoinSet::new() }
    }

    fn start_due(&mut self) {
        let now = Instant::now();
        for (at, slot) in self.slots.iter_mut().enumerate() {
            if slot.process.is_none() && slot.back_at <= now {
                slot.incarnation += 1;
                let name = format!("w{at}.{}", slot.incarnation);
                // Under its old identity, or under a new one.
                let repeats_id = self.rng.once_in(2) && slot.may_repeat_id;
                let worker_id = if repeats_id { format!("w{at}") } else { name.clone() };
                slot.process = Some(Process::start(&self.world, name, worker_id, slot.is_plain));
            }
        }
    }

    fn died(&mut self, name: &str) {
        let back_at = Instant::now() + self.rng.millis(0, 25_000);
        for slot in &mut self.slots {
            if let Some(process) = slot.process.take_if(|process| process.name() == name) {
                process.kill();
                slot.back_at = back_at;
                slot.is_plain = self.rng.once_in(2);
            }
        }
    }

    /// Does something to one of the processes.
    fn trouble(&mut self) {
        let at = self.rng.below(self.slots.len() as u64) as usize;
        let back_at = Instant::now() + self.rng.millis(0, 25_000);
        let only_stalls = self.world.weather.only_stalls;
        let kind = if only_stalls { 3 } else { self.rng.below(4) };
        let stall = self.rng.millis(1000, if only_stalls { 60_000 } else { 120_000 });
        let slot = &mut self.slots[at];
        match (kind, slot.process.take()) {
            (0, Some(process)) => {
                process.kill();
                slot.back_at = back_at;
                slot.is_plain = self.rng.once_in(2);
            }
            (1 | 2, Some(process)) => {
                process.stop();
                slot.back_at = back_at;
                slot.may_repeat_id = false;
                self.leaving.spawn(process.stopped());
            }
            (_, Some(process)) => {
                process.stall(stall);
                slot.process = Some(process);
            }
            (_, None) => {}
        }
    }

    /// Keeps the fleet going while bad things happen to it.
    async fn live_through(&mut self, lasts: Duration) {
        let end = Instant::now() + lasts;
        let every = self.world.weather.troubles_every;
        let mut next_trouble = Instant::now() + self.rng.millis(0, 2 * every);
        loop {
            self.start_due();
            let due = self.slots.iter().filter(|s| s.process.is_none()).map(|s| s.back_at).min();
            let until = due.unwrap_or(end).min(end).min(if every > 0 { next_trouble } else { end });
            tokio::select! {
                biased;
                Some(name) = self.deaths.recv() => self.died(&name),
                () = tokio::time::sleep_until(until) => {}
            }
            let now = Instant::now();
            if now >= end {
                return;
            }
            if every > 0 && now >= next_trouble {
                self.trouble();
                next_trouble = now + self.rng.millis(0, 2 * every);
            }
        }
    }

    /// Everything runs again.
    async fn recover(&mut self) {
        // Whoever was dying when the faults ended.
        tokio::time::sleep(Duration::from_secs(10)).await;
        while let Ok(name) = self.deaths.try_recv() {
            self.died(&name);
        }
        for slot in &mut self.slots {
            slot.back_at = Instant::now();
        }
        self.start_due();
    }

    /// Stops all of them in order.
    async fn stop(mut self) {
        for slot in &mut self.slots {
            if let Some(process) = slot.process.take() {
                process.stop();
                self.leaving.spawn(process.stopped());
            }
        }
        while self.leaving.join_next().await.is_some() {}
    }
}
