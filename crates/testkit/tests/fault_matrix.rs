//! Every fault at every storage operation that a client and a worker use: the hub finishes its instances
//! all the same. The operations are those that a run without faults is seen to use, not a list by hand.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use taskhub_azure_storage::{AzureStorageClient, AzureStorageService, AzureStorageSettings, Hub};
use taskhub_client::{EntityQuery, Start, TaskHubClient};
use taskhub_core::{InstanceFetch, OrchestrationStatus, TaskHubName};
use taskhub_storage::memory::MemoryStore;
use taskhub_storage::request::{OperationCounts, RequestSettings};
use taskhub_testkit::faults::{Effect, FaultPlan, FaultyAccount, Rule};
use taskhub_testkit::{VirtualClock, seeded_ids};
use taskhub_worker::{Worker, WorkerSettings, samples};
use tokio_util::sync::CancellationToken;

const HELLO: &str = r#"["Hello Tokyo!","Hello Seattle!","Hello London!"]"#;
const HOURS: Duration = Duration::from_secs(4 * 3600);

/// Name, input and output of the instances: activities, timer, children, large messages, generations, entities.
fn instances() -> Vec<(&'static str, Option<&'static str>, String)> {
    vec![
        ("Parent", None, HELLO.to_owned()),
        ("Timer", Some("2"), "\"fired\"".to_owned()),
        ("Eternal", Some("2"), "\"rounds 3\"".to_owned()),
        ("LargePayload", Some("50000"), format!("\"{}\"", "x".repeat(50_000))),
        ("LockEntities", None, "\"moved\"".to_owned()),
    ]
}

fn effects() -> Vec<(&'static str, Effect)> {
    vec![
        ("403", Effect::Answer(403, "AuthorizationFailure")),
        ("409", Effect::Answer(409, "Conflict")),
        ("412", Effect::Answer(412, "ConditionNotMet")),
        ("429", Effect::Answer(429, "TooManyRequests")),
        ("503", Effect::Answer(503, "ServerBusy")),
        ("timeout", Effect::HangBefore),
        ("reset before", Effect::ResetBefore),
        ("reset after", Effect::LoseReply),
    ]
}

struct World {
    clock: Arc<VirtualClock>,
    store: MemoryStore,
    plan: FaultPlan,
    counts: OperationCounts,
}

impl World {
    fn new() -> Self {
        let clock = Arc::new(VirtualClock::default());
        let store = MemoryStore::new(clock.clone());
        Self { clock, store, plan: FaultPlan::default(), counts: OperationCounts::default() }
    }

    fn hub(&self, id: &str, seed: u64) -> Hub {
        self.hub_with(id, seed, &self.plan)
    }

    fn hub_with(&self, id: &str, seed: u64, plan: &FaultPlan) -> Hub {
        let faulty = FaultyAccount::wrap(self.store.account(), plan);
        let requests = RequestSettings { ids: seeded_ids(seed), ..RequestSettings::default() };
        let account = faulty.layered(requests, &self.counts);
        let settings = AzureStorageSettings::new(TaskHubName::new("FaultHub").unwrap(), id);
        Hub::new(settings, account, self.clock.clone(), seeded_ids(seed)).unwrap()
    }

    /// A worker that whoever supervises it starts again when it cannot start.
    async fn work(&self, stop: CancellationToken) {
        while !stop.is_cancelled() {
            let service = Arc::new(AzureStorageService::new(self.hub("w1", 1)));
            let builder = Worker::builder(service)
                .clock(self.clock.clone())
                .ids(seeded_ids(2))
                .settings(WorkerSettings::default());
            let worker = samples::register(builder, Default::default()).build().unwrap();
            if worker.run(stop.clone()).await.is_err() {
                tokio::time::sleep(Duration::from_secs(5)).await;
            }
        }
    }

    /// Starts the instances, again where that fails, and waits for all of them. `plan`: what happens to the
    /// client's requests.
    async fn use_hub(&self, plan: &FaultPlan) -> Result<(), String> {
        let backend = Arc::new(AzureStorageClient::new(self.hub_with("client", 3, plan)));
        let client = TaskHubClient::new(backend).with_environment(self.clock.clone(), seeded_ids(4));
        for (name, input, _) in instances() {
            let mut start = Start::new(name).instance_id(name);
            if let Some(input) = input {
                start = start.raw_input(input);
            }
            let mut tries = 0;
            while let Err(error) = client.start(start.clone()).await {
                tries += 1;
                if tries > 5 {
                    return Err(format!("{name} cannot be started: {error}"));
                }
                tokio::time::sleep(Duration::from_secs(2)).await;
            }
        }
        for (name, _, output) in instances() {
            let begun = tokio::time::Instant::now();
            loop {
                let state = client.state(&name.into(), InstanceFetch::ALL).await;
                if let Ok(Some(state)) = &state
                    && state.status == Some(OrchestrationStatus::Completed)
                {
                    if state.output.as_ref() != Some(&output) {
                        return Err(format!("{name} has another output"));
                    }
                    break;
                }
                if begun.elapsed() > HOURS {
                    let status = state.map(|s| s.map(|s| s.status));
                    return Err(format!("{name} does not finish: {status:?}"));
                }
                tokio::time::sleep(Duration::from_secs(5)).await;
            }
        }
        self.locks_are_free(&client).await?;
        self.nothing_is_held().await
    }

    /// Nothing is left in the queues, and nothing is renewed.
    async fn nothing_is_held(&self) -> Result<(), String> {
        let renewals = self.counts.of("UpdateMessage").count;
        tokio::time::sleep(Duration::from_secs(120)).await;
        let renewals = self.counts.of("UpdateMessage").count - renewals;
        let left: usize = self.store.queues().iter().map(|queue| self.store.messages(queue).len()).sum();
        if (left, renewals) == (0, 0) { Ok(()) } else { Err(format!("{left} left, {renewals} renewals")) }
    }

    /// Whoever has locked an entity gives it back in the end, however often its messages came.
    async fn locks_are_free(&self, client: &TaskHubClient) -> Result<(), String> {
        // What was sent twice comes.
        tokio::time::sleep(Duration::from_secs(900)).await;
        let begun = tokio::time::Instant::now();
        loop {
            let page = client.list_entities(&EntityQuery::default()).await;
            if let Ok(page) = &page
                && page.entities.len() == 2
                && page.entities.iter().all(|entity| entity.locked_by.is_none())
            {
                return Ok(());
            }
            if begun.elapsed() > HOURS {
                return Err(format!("a lock is left: {page:?}"));
            }
            tokio::time::sleep(Duration::from_secs(5)).await;
        }
    }

    async fn run(&self) -> Result<(), String> {
        let stop = CancellationToken::new();
        let (used, ()) = tokio::join!(
            async {
                let used = self.use_hub(&self.plan).await;
                stop.cancel();
                used
            },
            self.work(stop.clone())
        );
        used
    }
}

async fn operations_in_use() -> BTreeSet<&'static str> {
    let world = World::new();
    world.run().await.unwrap();
    world.counts.snapshot().into_keys().map(|(_, name)| name).collect()
}

#[tokio::test(start_paused = true)]
async fn every_fault_at_every_operation_in_use_delays_instances_and_loses_none() {
    let operations = operations_in_use().await;
    assert!(operations.len() >= 14, "{operations:?}");
    let mut failures = Vec::new();
    let mut combinations = 0;
    for operation in operations {
        for (label, effect) in effects() {
            for nth in [1, 3] {
                let world = World::new();
                world.plan.add(Rule::on(operation, effect.clone()).nth(nth));
                if let Err(why) = world.run().await {
                    failures.push(format!("{operation} {label} #{nth}: {why}"));
                }
                if nth == 1 && world.plan.fired() != 1 {
                    failures.push(format!("{operation} {label} #{nth}: the fault did not happen"));
                }
                combinations += 1;
            }
        }
    }
    assert!(failures.is_empty(), "{} of {combinations}:\n{}", failures.len(), failures.join("\n"));
}

/// A defect of whatever sends the requests costs what is under way, and no more.
#[tokio::test(start_paused = true)]
async fn a_panic_at_any_operation_of_a_worker_delays_instances_and_leaves_nothing_held() {
    let (mut failures, mut fired) = (Vec::new(), 0);
    for operation in [
        "GetMessages",
        "PutMessage",
        "UpdateMessage",
        "DeleteMessage",
        "QueryEntities",
        "EntityGroupTransaction",
        "InsertEntity",
        "MergeEntity",
        "GetBlob",
        "PutBlob",
    ] {
        for nth in [1, 4, 9, 20] {
            let world = World::new();
            let stop = CancellationToken::new();
            let used = async {
                // It has begun.
                tokio::time::sleep(Duration::from_secs(60)).await;
                world.plan.add(Rule::on(operation, Effect::Panic).nth(nth));
                let used = world.use_hub(&FaultPlan::default()).await;
                stop.cancel();
                used
            };
            let (used, ()) = tokio::join!(used, world.work(stop.clone()));
            fired += world.plan.fired();
            if let Err(why) = used {
                failures.push(format!("{operation} #{nth}: {why}"));
            }
        }
    }
    assert!(failures.is_empty() && fired >= 25, "{fired}: {}", failures.join("\n"));
}

#[tokio::test(start_paused = true)]
async fn a_service_that_refuses_for_an_hour_is_asked_seldom_and_used_again_afterwards() {
    for operation in ["GetMessages", "PutMessage", "EntityGroupTransaction", "QueryEntities", "DeleteMessage"]
    {
        let world = World::new();
        let stop = CancellationToken::new();
        let used = async {
            let client = TaskHubClient::new(Arc::new(AzureStorageClient::new(world.hub("client", 5))));
            for n in 0..4 {
                client.start(Start::new("HelloSequence").instance_id(format!("i{n}"))).await.unwrap();
            }
            world.plan.add(Rule::on(operation, Effect::Answer(403, "AuthenticationFailed")));
            let before = world.counts.of(operation).count;
            tokio::time::sleep(Duration::from_secs(3600)).await;
            let asked = world.counts.of(operation).count - before;
            assert!((1..2000).contains(&asked), "{operation}: {asked} requests in an hour");
            world.plan.clear();
            for n in 0..4 {
                let id = format!("i{n}").into();
                let waited = client.wait_for_completion(&id, HOURS).await.unwrap().finished();
                assert_eq!(waited.and_then(|s| s.output).as_deref(), Some(HELLO), "{operation}");
            }
            stop.cancel();
        };
        tokio::join!(used, world.work(stop.clone()));
    }
}
