//! What users suffer when a worker goes: two workers with the sample functions on four partitions, every
//! request takes 30 ms, default settings, virtual time. 20 activities of 8 s, 8 chains of 60 activities and
//! 4 timers run when one worker stops, dies, or loses a reply.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use taskhub_azure_storage::AzureStorageService;
use taskhub_client::{Start, TaskHubClient};
use taskhub_core::{OrchestrationStatus, TaskHubName, Timestamp};
use taskhub_storage::request::{OperationCounts, RequestSettings};
use taskhub_testkit::TestHub;
use taskhub_testkit::faults::{Effect, FaultPlan, FaultyAccount, Rule};
use taskhub_worker::samples::{self, Hold, SampleOptions};
use taskhub_worker::{Worker, WorkerHandle, WorkerSettings, WorkerState};
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

const LATENCY: Duration = Duration::from_millis(30);
/// As `taskhub worker` has it.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(30);
/// Bounds that the issue sets.
const AFTER_STOP: Duration = Duration::from_secs(15);
const AFTER_LOSS: Duration = Duration::from_secs(60);

/// How often each activity came to its end, by instance and task id.
type Runs = Arc<Mutex<BTreeMap<(String, i32), u32>>>;

/// Instances and their outputs.
type Expected = BTreeMap<String, String>;

struct Fleet {
    hub: TestHub,
    client: TaskHubClient,
    runs: Runs,
}

struct Member {
    handle: WorkerHandle,
    task: JoinHandle<()>,
    plan: FaultPlan,
}

impl Member {
    async fn stop(self) {
        self.handle.shutdown();
        self.task.await.unwrap();
    }

    /// As SIGKILL: no further request of it arrives, and nothing of it runs on.
    fn kill(self) {
        self.plan.clear();
        self.plan.add(Rule::on_all(Effect::HangBefore));
        self.task.abort();
    }
}

impl Fleet {
    async fn new() -> Self {
        let start = Timestamp::parse("2026-01-15T09:30:00Z").unwrap();
        let hub = TestHub::in_memory(&TaskHubName::new("FleetHub").unwrap(), 1, start);
        let client = hub.client().unwrap();
        client.create_hub().await.unwrap();
        Self { hub, client, runs: Runs::default() }
    }

    async fn member(&self, id: &str) -> Member {
        self.member_that_holds(id, Vec::new()).await
    }

    /// A worker of which some activity calls never return.
    async fn member_that_holds(&self, id: &str, hold: Vec<Hold>) -> Member {
        self.member_of(self.hub.open(id).unwrap(), hold).await
    }

    async fn member_of(&self, mut hub: taskhub_azure_storage::Hub, hold: Vec<Hold>) -> Member {
        let plan = FaultPlan::default();
        plan.add(Rule::on_all(Effect::DelayAfter(LATENCY)));
        let counts = OperationCounts::default();
        hub.account = FaultyAccount::wrap(hub.account, &plan).layered(RequestSettings::default(), &counts);
        let (clock, ids, runs) = (hub.clock.clone(), hub.ids.clone(), self.runs.clone());
        let options = SampleOptions {
            hold,
            on_activity: Some(Arc::new(move |context| {
                let key = (context.instance_id().to_string(), context.task_id());
                *runs.lock().unwrap().entry(key).or_default() += 1;
            })),
            ..SampleOptions::default()
        };
        let builder = Worker::builder(Arc::new(AzureStorageService::new(hub)));
        let worker = samples::register(builder, options)
            .settings(WorkerSettings { drain_timeout: DRAIN_TIMEOUT, ..WorkerSettings::default() })
            .clock(clock)
            .ids(ids)
            .build()
            .unwrap();
        let handle = worker.handle();
        let task = tokio::spawn(async move { worker.run(CancellationToken::new()).await.unwrap() });
        handle.reached(WorkerState::Running).await;
        Member { handle, task, plan }
    }

    /// Two workers with two partitions each.
    async fn pair(&self) -> (Member, Member) {
        let pair = (self.member("w1").await, self.member("w2").await);
        taskhub_testkit::eventually("two partitions each", || async {
            let rows = self.hub.open("observer").ok()?.inspect().await.ok()?.partitions;
            let owned = |id: &str| {
                let of = |w: &taskhub_core::WorkerId| w.as_str() == id;
                rows.iter()
                    .filter(|r| r.current_owner.as_ref().is_some_and(of) && r.next_owner.is_none())
                    .count()
            };
            (owned("w1") == 2 && owned("w2") == 2).then_some(())
        })
        .await;
        pair
    }

    async fn start(&self, orchestration: &str, id: &str, input: &str) {
        self.client.start(Start::new(orchestration).instance_id(id).raw_input(input)).await.unwrap();
    }

    /// The load of the measurement of the .NET provider; returns ids and expected outputs.
    async fn load(&self) -> Expected {
        let mut expected = BTreeMap::new();
        for n in 0..20 {
            self.start("SlowOne", &format!("slow-{n}"), "8000").await;
            expected.insert(format!("slow-{n}"), "\"slept 8000\"".to_owned());
        }
        for n in 0..8 {
            self.start("Loop", &format!("chain-{n}"), "60").await;
            expected.insert(format!("chain-{n}"), "60".to_owned());
        }
        for n in 0..4 {
            self.start("Timer", &format!("timer-{n}"), "12").await;
            expected.insert(format!("timer-{n}"), "\"fired\"".to_owned());
        }
        expected
    }

    async fn events(&self, id: &str) -> usize {
        self.client.history(&id.into()).await.unwrap().len()
    }

    /// How long each instance that is not finished takes until its history grows, from now on.
    async fn next_events(&self, ids: impl Iterator<Item = &String>) -> BTreeMap<String, Duration> {
        let begun = Instant::now();
        let mut waiting = Vec::new();
        for id in ids {
            let finished =
                self.hub.state(id).await.unwrap().status.is_some_and(OrchestrationStatus::is_terminal);
            if !finished {
                waiting.push((id.clone(), self.events(id).await));
            }
        }
        let mut took = BTreeMap::new();
        while !waiting.is_empty() {
            tokio::time::sleep(Duration::from_millis(250)).await;
            assert!(begun.elapsed() < Duration::from_secs(900), "stuck: {waiting:?}");
            let mut still = Vec::new();
            for (id, before) in waiting {
                if self.events(&id).await > before {
                    took.insert(id, begun.elapsed());
                } else {
                    still.push((id, before));
                }
            }
            waiting = still;
        }
        took
    }

    /// All instances end as they should.
    async fn check(&self, expected: &Expected) {
        for (id, output) in expected {
            let waited = self.client.wait_for_completion(&id.as_str().into(), Duration::from_secs(900)).await;
            let state = waited.unwrap().finished().unwrap_or_else(|| panic!("{id} does not finish"));
            assert_eq!(state.status, Some(OrchestrationStatus::Completed), "{id}");
            assert_eq!(state.output.as_ref(), Some(output), "{id}");
        }
    }

    /// How many activities ran, and how often one ran beyond its first time.
    fn repeated(&self) -> (usize, u32) {
        let runs = self.runs.lock().unwrap();
        (runs.len(), runs.values().map(|n| n - 1).sum())
    }
}

/// The slowest, for the message of an assertion.
fn slowest(took: &BTreeMap<String, Duration>) -> (Duration, String) {
    let slowest = took.iter().max_by_key(|(_, took)| **took);
    slowest.map_or((Duration::ZERO, "nobody".to_owned()), |(id, took)| (*took, id.clone()))
}

#[track_caller]
fn within(bound: Duration, took: &BTreeMap<String, Duration>) {
    let (longest, id) = slowest(took);
    let seconds = longest.as_secs_f64();
    assert!(longest <= bound, "{id} went on after {seconds} virtual seconds, bound {bound:?}; all: {took:?}");
}

#[tokio::test(start_paused = true)]
async fn after_a_graceful_stop_every_interrupted_instance_goes_on_within_15_seconds() {
    let fleet = Fleet::new().await;
    let (first, second) = fleet.pair().await;
    let expected = fleet.load().await;
    tokio::time::sleep(Duration::from_secs(5)).await;
    let (took, ()) = tokio::join!(fleet.next_events(expected.keys()), first.stop());
    assert!(took.len() >= 20, "the worker stopped when nothing ran: {took:?}");
    within(AFTER_STOP, &took);
    fleet.check(&expected).await;
    assert_eq!(fleet.repeated(), (20 + 8 * 60, 0), "a graceful stop repeats nothing");
    second.stop().await;
}

#[tokio::test(start_paused = true)]
async fn after_a_kill_every_interrupted_instance_goes_on_within_60_seconds() {
    let fleet = Fleet::new().await;
    let (first, second) = fleet.pair().await;
    let expected = fleet.load().await;
    tokio::time::sleep(Duration::from_secs(5)).await;
    first.kill();
    let took = fleet.next_events(expected.keys()).await;
    assert!(took.len() >= 20, "the worker died when nothing ran: {took:?}");
    within(AFTER_LOSS, &took);
    fleet.check(&expected).await;
    let (activities, repeated) = fleet.repeated();
    assert_eq!(activities, 20 + 8 * 60);
    assert!(repeated <= 20, "more than was in the dead worker's hands ran again: {repeated}");
    second.stop().await;
}

async fn lost_receive(resource: &str) {
    let fleet = Fleet::new().await;
    let (first, second) = fleet.pair().await;
    let expected = fleet.load().await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    // In front of the rule that makes every request slow.
    first.plan.clear();
    first.plan.add(Rule::on("GetMessages", Effect::LoseReply).resource(resource).first(4));
    first.plan.add(Rule::on_all(Effect::DelayAfter(LATENCY)));
    let took = fleet.next_events(expected.keys()).await;
    within(AFTER_LOSS, &took);
    let begun = Instant::now();
    fleet.check(&expected).await;
    let all = begun.elapsed();
    assert!(all < Duration::from_secs(120), "all done only after {all:?}");
    let (activities, repeated) = fleet.repeated();
    assert_eq!((activities, repeated), (20 + 8 * 60, 0), "what nobody received did not run");
    first.stop().await;
    second.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_lost_reply_of_a_control_queue_receive_costs_less_than_60_seconds() {
    lost_receive("-control-").await;
}

#[tokio::test(start_paused = true)]
async fn a_lost_reply_of_a_work_item_receive_costs_less_than_60_seconds() {
    lost_receive("-workitems").await;
}

/// Slow activities run on the first worker; the second one gets two of the partitions and no work, so that
/// its polling intervals grow. What the first one has in hand never returns if `holds`.
async fn busy_beside_an_idle_one(fleet: &Fleet, millis: u64, holds: bool) -> (Member, Member, Expected) {
    let hold = if holds { vec!["Slow".parse().unwrap()] } else { Vec::new() };
    let first = fleet.member_that_holds("w1", hold).await;
    tokio::time::sleep(Duration::from_secs(30)).await;
    let mut expected = BTreeMap::new();
    for n in 0..6 {
        fleet.start("SlowOne", &format!("slow-{n}"), &millis.to_string()).await;
        expected.insert(format!("slow-{n}"), format!("\"slept {millis}\""));
    }
    for id in expected.keys() {
        fleet.hub.until_event(id, "TaskScheduled").await;
    }
    let second = fleet.member("w2").await;
    tokio::time::sleep(Duration::from_secs(90)).await;
    (first, second, expected)
}

#[tokio::test(start_paused = true)]
async fn an_idle_survivor_goes_on_with_a_stopped_workers_instances_within_15_seconds() {
    let fleet = Fleet::new().await;
    let (first, second, expected) = busy_beside_an_idle_one(&fleet, 100_000, false).await;
    let (took, ()) = tokio::join!(fleet.next_events(expected.keys()), first.stop());
    assert_eq!(took.len(), 6);
    within(AFTER_STOP, &took);
    fleet.check(&expected).await;
    assert_eq!(fleet.repeated(), (6, 0));
    second.stop().await;
}

#[tokio::test(start_paused = true)]
async fn an_idle_survivor_goes_on_with_a_killed_workers_instances_within_60_seconds() {
    let fleet = Fleet::new().await;
    let (first, second, expected) = busy_beside_an_idle_one(&fleet, 8_000, true).await;
    first.kill();
    let took = fleet.next_events(expected.keys()).await;
    assert_eq!(took.len(), 6);
    within(AFTER_LOSS, &took);
    fleet.check(&expected).await;
    second.stop().await;
}

// Nobody's partitions change hands when it dies, so nothing tells the others to look for what it had. When it
// dies between two of their looks is what matters.
#[tokio::test(start_paused = true)]
async fn activities_of_a_killed_worker_without_partitions_go_on_at_an_idle_owner_within_60_seconds() {
    for offset in [0, 6, 12, 18, 24] {
        let fleet = Fleet::new().await;
        // All partitions stay with the first one.
        let owner = fleet.member("w1").await;
        let mut idle = fleet.hub.open("w2").unwrap();
        Arc::make_mut(&mut idle.settings).lease_acquire_interval = Duration::from_secs(24 * 3600);
        tokio::time::sleep(Duration::from_secs(30)).await;
        let helper = fleet.member_of(idle, vec!["Slow".parse().unwrap()]).await;
        let mut expected = BTreeMap::new();
        for n in 0..12 {
            fleet.start("SlowOne", &format!("slow-{n}"), "8000").await;
            expected.insert(format!("slow-{n}"), "\"slept 8000\"".to_owned());
        }
        // What the owner took is done; the rest never returns. All is quiet, and looks are rare.
        tokio::time::sleep(Duration::from_secs(120 + offset)).await;
        let rows = fleet.hub.open("observer").unwrap().inspect().await.unwrap().partitions;
        assert!(rows.iter().all(|row| row.current_owner.as_ref().unwrap().as_str() == "w1"), "{rows:?}");
        helper.kill();
        let took = fleet.next_events(expected.keys()).await;
        assert!((1..12).contains(&took.len()), "of both workers: {took:?}");
        within(AFTER_LOSS, &took);
        fleet.check(&expected).await;
        owner.stop().await;
    }
}

#[tokio::test(start_paused = true)]
async fn activities_cut_off_at_the_drain_timeout_go_on_at_an_idle_survivor_within_15_seconds() {
    let fleet = Fleet::new().await;
    let (first, second, expected) = busy_beside_an_idle_one(&fleet, 8_000, true).await;
    let begun = Instant::now();
    first.stop().await;
    let stopped = begun.elapsed();
    assert!(stopped < DRAIN_TIMEOUT + Duration::from_secs(3), "{stopped:?}");
    let took = fleet.next_events(expected.keys()).await;
    assert_eq!(took.len(), 6);
    within(AFTER_STOP, &took);
    fleet.check(&expected).await;
    second.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_hand_over_while_everything_runs_repeats_nothing() {
    let fleet = Fleet::new().await;
    let first = fleet.member("w1").await;
    let expected = fleet.load().await;
    tokio::time::sleep(Duration::from_secs(5)).await;
    // It steals two partitions from the busy one.
    let second = fleet.member("w2").await;
    let took = fleet.next_events(expected.keys()).await;
    within(AFTER_STOP, &took);
    fleet.check(&expected).await;
    assert_eq!(fleet.repeated(), (20 + 8 * 60, 0));
    first.stop().await;
    second.stop().await;
}

// 150 actions are two transactions. Which events an episode has stored is told by the rows, not by its last one.
#[tokio::test(start_paused = true)]
async fn a_checkpoint_cut_off_between_its_batches_is_continued_from_its_prefix() {
    let fleet = Fleet::new().await;
    let first = fleet.member("w1").await;
    first.plan.clear();
    first.plan.add(Rule::on("EntityGroupTransaction", Effect::HangBefore).resource("History").nth(2));
    fleet.start("FanOutFanIn", "wide", "150").await;
    taskhub_testkit::eventually("between the batches", || async { (first.plan.fired() == 1).then_some(()) })
        .await;
    first.kill();
    let stored = fleet.client.history(&"wide".into()).await.unwrap();
    assert!((50..150).contains(&stored.len()), "{}", stored.len());
    assert!(stored.iter().all(|event| event.name() != "OrchestratorCompleted"), "not a prefix");
    let second = fleet.member("w2").await;
    fleet.check(&BTreeMap::from([("wide".to_owned(), (0..150).sum::<u32>().to_string())])).await;
    let history = fleet.client.history(&"wide".into()).await.unwrap();
    let ids = |name: &str| {
        let mut ids: Vec<_> = history.iter().filter(|e| e.name() == name).map(|e| e.event_id).collect();
        ids.sort_unstable();
        ids
    };
    assert_eq!(ids("TaskScheduled"), (0..150).collect::<Vec<_>>(), "each action once");
    assert_eq!(ids("ExecutionStarted").len(), 1);
    second.stop().await;
}
