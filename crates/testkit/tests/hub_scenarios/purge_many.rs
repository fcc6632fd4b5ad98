//! Purges that read what they remove of many instances at once: how many requests they send, and that they take
//! what they would take of each alone.

use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use taskhub_azure_storage::AzureStorageClient;
use taskhub_azure_storage::tracking::key;
use taskhub_client::{PurgeFilter, PurgeOptions, TaskHubClient};
use taskhub_core::PurgeResult;
use taskhub_storage::request::{OperationCounts, RequestSettings};
use taskhub_storage::{Entity, TableOperation};
use taskhub_testkit::faults::{Effect, FaultPlan, FaultyAccount, Rule};
use taskhub_testkit::{seed, seeded_ids};

use crate::support::World;

const HISTORY: &str = "ScenarioHubHistory";
const INSTANCES: &str = "ScenarioHubInstances";
const BLOBS: &str = "scenariohub-largemessages";

/// An instance as it is written into the hub.
#[derive(Debug, Clone)]
struct Instance {
    id: String,
    status: &'static str,
    /// Rows of events.
    rows: usize,
    messages: usize,
    columns: usize,
}

impl Instance {
    fn new(id: impl Into<String>, status: &'static str, rows: usize) -> Self {
        Self { id: id.into(), status, rows, messages: 0, columns: 0 }
    }

    fn with_blobs(self, messages: usize, columns: usize) -> Self {
        Self { messages, columns, ..self }
    }

    fn is_finished(&self) -> bool {
        ["Completed", "Failed", "Terminated", "Canceled"].contains(&self.status)
    }

    fn blobs(&self) -> impl Iterator<Item = String> {
        let key = key::escape(&self.id);
        let messages =
            (0..self.messages).map(|n| format!("{}/message-{n:032x}-EventRaised.json.gz", self.id));
        let columns =
            (0..self.columns).map(move |n| format!("{key}/history-{n:016X}-TaskCompleted-0-Result.json.gz"));
        messages.chain(columns)
    }

    fn load(&self, world: &World) {
        let store = world.hub.memory().unwrap();
        let key = key::escape(&self.id);
        let now = world.hub.clock().now();
        let row = Entity::new(key.as_str(), "").with("RuntimeStatus", self.status).with("CreatedTime", now);
        store.load_entity(INSTANCES, row.with("ExecutionId", "e"));
        for n in 0..self.rows {
            let row = Entity::new(key.as_str(), format!("{n:016X}")).with("ExecutionId", "e");
            store.load_entity(HISTORY, row.with("EventType", "GenericEvent"));
        }
        if self.rows > 0 {
            store.load_entity(HISTORY, Entity::new(key, "sentinel").with("ExecutionId", "e"));
        }
        for name in self.blobs() {
            store.load_blob(BLOBS, &name, "x");
        }
    }

    /// Rows of the history, with the sentinel.
    fn all_rows(&self) -> usize {
        if self.rows == 0 { 0 } else { self.rows + 1 }
    }
}

/// What is in the hub: instances, rows of histories by partition key, blobs.
#[derive(Debug, PartialEq, Eq, Default)]
struct Stored {
    instances: BTreeSet<String>,
    rows: BTreeMap<String, usize>,
    blobs: BTreeSet<String>,
}

impl Stored {
    fn of(world: &World) -> Self {
        let store = world.hub.memory().unwrap();
        let mut rows = BTreeMap::new();
        for row in store.entities(HISTORY) {
            *rows.entry(row.partition_key).or_default() += 1;
        }
        Self {
            instances: store.entities(INSTANCES).into_iter().map(|row| row.partition_key).collect(),
            rows,
            blobs: store.blobs(BLOBS).into_iter().map(|(name, _)| name).collect(),
        }
    }

    /// What a hub with these instances holds.
    fn expected<'a>(instances: impl Iterator<Item = &'a Instance>) -> Self {
        let mut stored = Self::default();
        for instance in instances {
            let key = key::escape(&instance.id);
            stored.instances.insert(key.clone());
            if instance.rows > 0 {
                stored.rows.insert(key, instance.all_rows());
            }
            stored.blobs.extend(instance.blobs());
        }
        stored
    }
}

/// A hub with these instances, and a client whose requests are counted.
fn hub(instances: &[Instance]) -> (World, TaskHubClient, OperationCounts) {
    hub_with_faults(instances, &FaultPlan::default())
}

fn hub_with_faults(instances: &[Instance], plan: &FaultPlan) -> (World, TaskHubClient, OperationCounts) {
    let world = World::new();
    for instance in instances {
        instance.load(&world);
    }
    let counts = OperationCounts::default();
    let mut hub = world.hub.open("client").unwrap();
    hub.account = FaultyAccount::wrap(hub.account, plan).layered(RequestSettings::default(), &counts);
    (world, TaskHubClient::new(Arc::new(AzureStorageClient::new(hub))), counts)
}

fn requests(counts: &OperationCounts) -> BTreeMap<&'static str, u64> {
    counts.snapshot().into_iter().map(|((_, operation), count)| (operation, count.count)).collect()
}

fn finished(count: usize, rows: usize) -> Vec<Instance> {
    (0..count).map(|n| Instance::new(format!("i{n:06}"), "Completed", rows)).collect()
}

async fn purge(client: &TaskHubClient) -> PurgeResult {
    let purged = client.purge_matching(&PurgeFilter::default()).await.unwrap();
    assert_eq!((purged.failures, purged.cursor), (0, None));
    purged.removed
}

#[tokio::test(start_paused = true)]
async fn an_instance_costs_two_requests_and_a_page_of_a_hundred_four_more() {
    let (world, client, counts) = hub(&finished(1_000, 7));
    assert_eq!(purge(&client).await, PurgeResult { instances: 1_000, rows: 8_000, blobs: 0 });
    assert_eq!(Stored::of(&world), Stored::default());
    let expected = [
        ("DeleteEntity", 1_000),
        ("EntityGroupTransaction", 1_000),
        ("ListBlobs", 10),
        // The list, the histories, the rows.
        ("QueryEntities", 30),
    ];
    assert_eq!(requests(&counts), BTreeMap::from(expected));
}

#[tokio::test(start_paused = true)]
async fn each_blob_costs_its_deletion_and_nothing_else() {
    let with_blobs = |instance: Instance| instance.with_blobs(2, 1);
    let instances: Vec<_> = finished(200, 3).into_iter().map(with_blobs).collect();
    let (world, client, counts) = hub(&instances);
    assert_eq!(purge(&client).await, PurgeResult { instances: 200, rows: 800, blobs: 600 });
    assert_eq!(Stored::of(&world), Stored::default());
    let counts = requests(&counts);
    assert_eq!((counts["DeleteBlob"], counts["ListBlobs"], counts["QueryEntities"]), (600, 2, 6));
}

#[tokio::test(start_paused = true)]
async fn one_instance_alone_costs_five_requests_as_before() {
    let (world, client, counts) = hub(&finished(1, 7));
    assert_eq!(client.purge(&"i000000".into()).await.unwrap().rows, 8);
    assert_eq!(Stored::of(&world), Stored::default());
    assert_eq!(requests(&counts).values().sum::<u64>(), 5);
}

#[tokio::test(start_paused = true)]
async fn a_large_neighbour_is_not_read_through_and_keeps_its_rows() {
    let mut instances = finished(300, 4);
    instances.push(Instance::new("i000020x", "Running", 30_000).with_blobs(3, 3));
    instances.push(Instance::new("i000250x", "Running", 30_000));
    let (world, client, counts) = hub(&instances);
    assert_eq!(purge(&client).await.instances, 300);
    let left = instances.iter().filter(|instance| !instance.is_finished());
    assert_eq!(Stored::of(&world), Stored::expected(left));
    let counts = requests(&counts);
    // One page of each neighbour is read, and behind it each instance of the page is asked for on its own: 79 and
    // 49 with a query and a read of the row.
    assert_eq!((counts["QueryEntities"], counts["GetEntity"]), (9 + 79 + 49, 79 + 49));
}

#[tokio::test(start_paused = true)]
async fn more_blobs_than_fit_a_page_are_asked_for_by_instance() {
    let mut instances = finished(100, 3);
    instances[7] = instances[7].clone().with_blobs(2, 1);
    instances.push(Instance::new("i000050x", "Running", 1).with_blobs(6_000, 0));
    let (world, client, counts) = hub(&instances);
    assert_eq!(purge(&client).await, PurgeResult { instances: 100, rows: 400, blobs: 3 });
    assert_eq!(Stored::of(&world), Stored::expected(instances.iter().skip(100)));
    assert_eq!(requests(&counts)["ListBlobs"], 101);
}

#[tokio::test(start_paused = true)]
async fn long_histories_are_purged_in_portions() {
    let mut instances: Vec<_> = finished(40, 900);
    instances[3].rows = 25_000;
    instances[4].rows = 12_000;
    instances[30].rows = 0;
    let rows: usize = instances.iter().map(Instance::all_rows).sum();
    let (world, client, counts) = hub(&instances);
    assert_eq!(purge(&client).await, PurgeResult { instances: 40, rows: rows as u64, blobs: 0 });
    assert_eq!(Stored::of(&world), Stored::default());
    assert!(requests(&counts)["QueryEntities"] < 120, "{:?}", requests(&counts));
}

/// Ids that look alike: beginnings of each other, escapes that are ids, characters that two orders sort
/// differently, and what is no letter.
fn odd_id(random: u64) -> String {
    const PARTS: [&str; 14] =
        ["a", "b", "a", "b", "/", "^", "^0", "^^", "\\", "é", "\u{ff21}", "😀", "'", "message-"];
    let part = |n: u32| PARTS[(random >> (4 * n)) as usize % PARTS.len()];
    let length = 1 + (random >> 60) as u32 % 5;
    (0..length).map(part).collect()
}

#[tokio::test(start_paused = true)]
async fn exactly_what_has_finished_is_removed_whatever_the_ids() {
    let ids = seeded_ids(seed());
    for _ in 0..4 {
        let page_limit = [None, Some(7), Some(60)][ids.random() as usize % 3];
        let mut instances = BTreeMap::new();
        for _ in 0..120 {
            let status =
                ["Completed", "Failed", "Terminated", "Running", "Pending"][ids.random() as usize % 5];
            let rows =
                [0, 1, 5, 120, 3, 2, 1, 4, 0, 1, 2, 3, 5, 7, 30, 1_100][(ids.random() >> 8) as usize % 16];
            let blobs = [(0, 0), (0, 0), (1, 0), (2, 1)][(ids.random() >> 8) as usize % 4];
            let instance = Instance::new(odd_id(ids.random()), status, rows).with_blobs(blobs.0, blobs.1);
            instances.insert(instance.id.clone(), instance);
        }
        let instances: Vec<_> = instances.into_values().collect();
        let (world, client, _) = hub(&instances);
        world.hub.memory().unwrap().set_page_limit(page_limit);
        let removed = purge(&client).await;
        world.hub.memory().unwrap().set_page_limit(None);
        let gone = || instances.iter().filter(|instance| instance.is_finished());
        assert_eq!(removed.instances, gone().count() as u64, "{page_limit:?}");
        assert_eq!(removed.rows, gone().map(Instance::all_rows).sum::<usize>() as u64);
        let left = instances.iter().filter(|instance| !instance.is_finished());
        assert_eq!(Stored::of(&world), Stored::expected(left), "{page_limit:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_failure_at_any_request_leaves_nothing_that_the_next_purge_does_not_take() {
    let with_blobs = |instance: Instance| instance.with_blobs(1, 1);
    let instances: Vec<_> = finished(3, 130)
        .into_iter()
        .chain([Instance::new("i000000x", "Running", 9)])
        .map(with_blobs)
        .collect();
    let effects = [
        Effect::Answer(400, "InvalidInput"),
        Effect::Answer(503, "ServerBusy"),
        Effect::LoseReply,
        Effect::ResetBefore,
    ];
    for effect in effects {
        for nth in 1..=40 {
            let plan = FaultPlan::default();
            let (world, client, _) = hub_with_faults(&instances, &plan);
            plan.add(Rule::on_all(effect.clone()).nth(nth));
            // A list that cannot be read is an error; everything else is a failure of one instance.
            let first = client.purge_matching(&PurgeFilter::default()).await;
            plan.clear();
            let between = Stored::of(&world);
            for instance in &instances {
                let key = key::escape(&instance.id);
                let is_there = between.instances.contains(&key);
                let has_rest = between.rows.contains_key(&key)
                    || instance.blobs().any(|name| between.blobs.contains(&name));
                assert!(is_there || !has_rest, "{effect:?} {nth}: {}", instance.id);
            }
            let removed = first.map_or(0, |purged| purged.removed.instances);
            assert_eq!(removed, 4 - between.instances.len() as u64, "{effect:?} {nth}");
            assert_eq!(purge(&client).await.instances, 3 - removed, "{effect:?} {nth}");
            assert_eq!(Stored::of(&world), Stored::expected(instances.iter().skip(3)), "{effect:?} {nth}");
        }
    }
}

/// Writes a row as another worker or client does.
async fn write(world: &World, table: &str, row: Entity) {
    world.hub.account().tables.execute(table, TableOperation::InsertOrReplace(row)).await.unwrap();
}

/// A purge that waits between what it has read and an instance, and what changes meanwhile.
async fn purge_while(change: impl AsyncFn(&World)) -> (World, PurgeResult) {
    let instances: Vec<_> = finished(2, 250).into_iter().map(|instance| instance.with_blobs(1, 1)).collect();
    let (world, client, _) = hub(&instances);
    let purging = async {
        let options =
            PurgeOptions { per_second: NonZeroU32::new(1), concurrency: 1, ..PurgeOptions::default() };
        client.purge_with(&PurgeFilter::default(), options).await.unwrap()
    };
    let changing = async {
        tokio::time::sleep(Duration::from_millis(500)).await;
        assert_eq!(Stored::of(&world).instances.len(), 1, "the first is gone, the second has been read");
        change(&world).await;
    };
    let (purged, ()) = tokio::join!(purging, changing);
    assert_eq!(purged.failures, 0);
    (world, purged.removed)
}

#[tokio::test(start_paused = true)]
async fn an_instance_that_is_rewound_after_it_was_read_keeps_everything() {
    let (world, removed) = purge_while(async |world| {
        let row = |key: &str| Entity::new("i000001", key);
        write(world, HISTORY, row(&format!("{:016X}", 249)).with("EventType", "GenericEvent")).await;
        write(world, INSTANCES, row("").with("RuntimeStatus", "Pending")).await;
    })
    .await;
    assert_eq!(removed.instances, 1);
    let second = Instance::new("i000001", "Pending", 250).with_blobs(1, 1);
    assert_eq!(Stored::of(&world), Stored::expected([second].iter()));
}

#[tokio::test(start_paused = true)]
async fn an_instance_that_is_started_again_after_it_was_read_keeps_what_is_new() {
    let (world, _) = purge_while(async |world| {
        // A worker has stored the first episode of the next execution over the beginning of the history.
        let row = |key: &str| Entity::new("i000001", key).with("ExecutionId", "e2");
        write(world, INSTANCES, row("").with("RuntimeStatus", "Running")).await;
        for n in 0..3 {
            write(world, HISTORY, row(&format!("{n:016X}"))).await;
        }
        write(world, HISTORY, row("sentinel")).await;
    })
    .await;
    let rows = world.hub.memory().unwrap().entities(HISTORY);
    let new = rows.iter().filter(|row| row.str("ExecutionId") == Some("e2"));
    assert_eq!(new.count(), 4);
    assert!(Stored::of(&world).instances.contains("i000001"));
}

#[tokio::test(start_paused = true)]
async fn what_was_read_long_ago_is_read_again() {
    let (world, client, counts) = hub(&finished(100, 3));
    let options = PurgeOptions { per_second: NonZeroU32::new(1), ..PurgeOptions::default() };
    let purged = client.purge_with(&PurgeFilter::default(), options).await.unwrap();
    assert_eq!((purged.removed.instances, Stored::of(&world)), (100, Stored::default()));
    let queries = requests(&counts)["QueryEntities"];
    assert!((12..120).contains(&queries), "{queries}");
}

#[tokio::test(start_paused = true)]
async fn entities_are_purged_many_at_once_too() {
    let entities: Vec<_> =
        (0..150).map(|n| Instance::new(format!("@counter@{n:03}"), "Running", 2)).collect();
    let (world, client, counts) = hub(&entities);
    let filter = PurgeFilter { include_entities: true, ..PurgeFilter::default() };
    let purged = client.purge_matching(&filter).await.unwrap();
    assert_eq!((purged.removed.instances, purged.removed.rows), (150, 450));
    assert_eq!(Stored::of(&world), Stored::default());
    let all: u64 = requests(&counts).values().sum();
    assert!(all < 320, "{:?}", requests(&counts));
}

#[tokio::test(start_paused = true)]
async fn blobs_of_ids_that_are_keys_or_folders_of_others_stay() {
    let finished = ["a", "a/b", "a^0b"].map(|id| Instance::new(id, "Completed", 1).with_blobs(1, 1));
    for kept in 0..3 {
        for alone in [false, true] {
            let mut instances = finished.clone();
            instances[kept].status = "Running";
            let (world, client, _) = hub(&instances);
            if alone {
                for instance in instances.iter().filter(|instance| instance.is_finished()) {
                    client.purge(&instance.id.as_str().into()).await.unwrap();
                }
            } else {
                assert_eq!(purge(&client).await.instances, 2);
            }
            assert_eq!(Stored::of(&world), Stored::expected([instances[kept].clone()].iter()));
        }
    }
}
