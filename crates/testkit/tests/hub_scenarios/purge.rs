//! What the provider's purge suite asks for, and purges of large hubs.

use std::collections::BTreeSet;
use std::num::NonZeroU32;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use taskhub_azure_storage::AzureStorageClient;
use taskhub_client::{ClientError, PurgeFilter, PurgeOptions, Start, TaskHubClient};
use taskhub_core::OrchestrationStatus::{Completed, Failed, Terminated};
use taskhub_core::PurgeResult;
use taskhub_storage::{Condition, ETag, Entity, EntityPage, Result, TableOperation, TableQuery, TableStore};

use crate::support::World;

const HISTORY: &str = "ScenarioHubHistory";
const INSTANCES: &str = "ScenarioHubInstances";
const BLOBS: &str = "scenariohub-largemessages";

/// Ids that have rows in a table, as keys.
fn keys(world: &World, table: &str) -> BTreeSet<String> {
    world.hub.memory().unwrap().entities(table).into_iter().map(|row| row.partition_key).collect()
}

fn blobs(world: &World) -> Vec<String> {
    world.hub.memory().unwrap().blobs(BLOBS).into_iter().map(|(name, _)| name).collect()
}

async fn finished(instances: &[(&str, Start)]) -> World {
    let world = World::new();
    let worker = world.samples();
    for (id, start) in instances {
        world.start(id, start.clone()).await;
    }
    for (id, _) in instances {
        world.end(id).await;
    }
    worker.stop().await;
    world
}

fn hello() -> Start {
    Start::new("HelloSequence")
}

fn large() -> Start {
    Start::new("LargePayload").input(&100_000).unwrap()
}

#[tokio::test(start_paused = true)]
async fn one_instance_is_purged_with_its_rows_and_again_without_effect() {
    let world = finished(&[("a", hello()), ("b", hello())]).await;
    let rows = world.hub.memory().unwrap().entities(HISTORY);
    let own = rows.iter().filter(|row| row.partition_key == "a").count() as u64;
    let purged = world.client.purge(&"a".into()).await.unwrap();
    assert_eq!(purged, PurgeResult { instances: 1, rows: own, blobs: 0 });
    assert_eq!(keys(&world, HISTORY), BTreeSet::from(["b".to_owned()]));
    assert_eq!(keys(&world, INSTANCES), BTreeSet::from(["b".to_owned()]));
    assert_eq!(world.client.purge(&"a".into()).await.unwrap(), PurgeResult::default());
}

#[tokio::test(start_paused = true)]
async fn an_instance_with_quotes_or_reserved_characters_in_its_id_is_purged() {
    for id in ["it's", "a/b#c?d^e", "back\\slash"] {
        let world = finished(&[(id, large())]).await;
        assert!(!blobs(&world).is_empty());
        world.client.purge(&id.into()).await.unwrap();
        assert!(keys(&world, HISTORY).is_empty() && keys(&world, INSTANCES).is_empty(), "{id}");
        assert_eq!(blobs(&world), Vec::<String>::new(), "{id}");
    }
}

#[tokio::test(start_paused = true)]
async fn blobs_go_with_their_instance_and_those_of_longer_ids_stay() {
    let world = finished(&[("abc", large()), ("abcd", large())]).await;
    let purged = world.client.purge(&"abc".into()).await.unwrap();
    assert!(purged.blobs > 0);
    let left = blobs(&world);
    assert!(!left.is_empty() && left.iter().all(|name| name.starts_with("abcd/")), "{left:?}");
}

#[tokio::test(start_paused = true)]
async fn all_blobs_of_an_instance_that_continued_as_new_are_purged() {
    use taskhub_replay::{OrchestrationContext, OrchestratorError};
    let world = World::new();
    let worker = world.worker(|builder| {
        builder.orchestration("Grow", |ctx: OrchestrationContext, text: String| async move {
            let more: String = ctx.wait_for_event("more").await?;
            if more.is_empty() {
                return Ok::<_, OrchestratorError>(text.len());
            }
            ctx.continue_as_new(text + &more)?;
            Ok(0)
        })
    });
    world.start("actor", Start::new("Grow").input(&"x".repeat(40_000)).unwrap()).await;
    let more = "y".repeat(40_000);
    for text in [more.as_str(), more.as_str(), ""] {
        world.hub.pass_a_second().await;
        world.client.raise_event(&"actor".into(), "more", text).await.unwrap();
        tokio::time::sleep(Duration::from_secs(60)).await;
    }
    world.completes("actor", "120000").await;
    worker.stop().await;
    assert!(!blobs(&world).is_empty());
    world.client.purge(&"actor".into()).await.unwrap();
    assert_eq!(blobs(&world), Vec::<String>::new());
}

#[tokio::test(start_paused = true)]
async fn a_history_of_many_rows_is_purged() {
    let world = finished(&[("long", Start::new("Loop").input(&120).unwrap())]).await;
    let purged = world.client.purge(&"long".into()).await.unwrap();
    assert!(purged.rows > 300, "{purged:?}");
    assert!(keys(&world, HISTORY).is_empty());
}

#[tokio::test(start_paused = true)]
async fn instances_of_a_time_are_purged_and_no_others() {
    let world = World::new();
    let worker = world.samples();
    let mut created = Vec::new();
    for id in ["first", "second", "third", "failed"] {
        let start = if id == "failed" { Start::new("FailSelf") } else { hello() };
        world.start(id, start).await;
        created.push(world.end(id).await.created_at);
        world.hub.pass_a_second().await;
    }
    world.start("running", Start::new("Approval")).await;
    world.waits("running", "TimerCreated").await;
    let filter = |from: usize, to: usize| PurgeFilter {
        created_from: Some(created[from]),
        created_to: Some(created[to]),
        ..PurgeFilter::default()
    };
    let partly = world.client.purge_matching(&filter(1, 2)).await.unwrap();
    assert_eq!((partly.removed.instances, partly.is_complete), (2, None));
    let left = ["failed", "first", "running"].map(str::to_owned);
    assert_eq!(keys(&world, INSTANCES), BTreeSet::from(left));
    let terminated = PurgeFilter { statuses: vec![Terminated], ..PurgeFilter::default() };
    assert_eq!(world.client.purge_matching(&terminated).await.unwrap().removed.instances, 0);
    let by_status = PurgeFilter { statuses: vec![Failed, Completed], ..PurgeFilter::default() };
    assert_eq!(world.client.purge_matching(&by_status).await.unwrap().removed.instances, 2);
    assert_eq!(keys(&world, HISTORY), BTreeSet::from(["running".to_owned()]));
    worker.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_running_instance_is_purged_by_force_only() {
    let world = World::new();
    world.start("x", hello()).await;
    let checked = world.client.clone().with_status_checks(true);
    let error = checked.purge(&"x".into()).await.unwrap_err();
    assert!(matches!(error, ClientError::WrongStatus { .. }), "{error}");
    assert_eq!(keys(&world, INSTANCES).len(), 1);
    assert_eq!(world.client.purge(&"x".into()).await.unwrap().instances, 1);
}

/// Counts rows of lists that have been read and not purged yet, and starts an instance again meanwhile.
#[derive(Debug)]
struct Watched {
    inner: Arc<dyn TableStore>,
    held: AtomicUsize,
    most_held: AtomicUsize,
    deleting: AtomicUsize,
    most_deleting: AtomicUsize,
    /// Started again as soon as rows of a history are deleted.
    restarted: Mutex<Option<&'static str>>,
}

#[async_trait]
impl TableStore for Watched {
    async fn create_table(&self, table: &str) -> Result<bool> {
        self.inner.create_table(table).await
    }

    async fn delete_table(&self, table: &str) -> Result<()> {
        self.inner.delete_table(table).await
    }

    async fn list_tables(&self, prefix: &str) -> Result<Vec<String>> {
        self.inner.list_tables(prefix).await
    }

    async fn get_entity(&self, table: &str, partition_key: &str, row_key: &str) -> Result<Option<Entity>> {
        self.inner.get_entity(table, partition_key, row_key).await
    }

    async fn execute(&self, table: &str, operation: TableOperation) -> Result<Option<ETag>> {
        let is_purged = table == INSTANCES && matches!(operation, TableOperation::Delete { .. });
        let done = self.inner.execute(table, operation).await;
        if is_purged {
            self.held.fetch_sub(1, Ordering::SeqCst);
        }
        done
    }

    async fn transaction(&self, table: &str, operations: &[TableOperation]) -> Result<Vec<Option<ETag>>> {
        let deleting = self.deleting.fetch_add(1, Ordering::SeqCst) + 1;
        self.most_deleting.fetch_max(deleting, Ordering::SeqCst);
        let restarted = self.restarted.lock().unwrap().take();
        if let Some(id) = restarted {
            let row = Entity::new(id, "").with("RuntimeStatus", "Pending");
            self.inner.execute(INSTANCES, TableOperation::Merge(row, Condition::Any)).await?;
        }
        tokio::task::yield_now().await;
        let done = self.inner.transaction(table, operations).await;
        self.deleting.fetch_sub(1, Ordering::SeqCst);
        done
    }

    async fn query(&self, table: &str, query: &TableQuery) -> Result<EntityPage> {
        let page = self.inner.query(table, query).await?;
        if table == INSTANCES && query.top.is_some() {
            let held = self.held.fetch_add(page.entities.len(), Ordering::SeqCst) + page.entities.len();
            self.most_held.fetch_max(held, Ordering::SeqCst);
        }
        Ok(page)
    }
}

/// A hub of finished instances with short histories, and one that runs.
fn large_hub(instances: usize) -> (World, TaskHubClient, Arc<Watched>) {
    let world = World::new();
    let store = world.hub.memory().unwrap();
    let now = world.hub.clock().now();
    for n in 0..=instances {
        let (id, status) = (format!("i{n:06}"), if n == instances { "Running" } else { "Completed" });
        let row = Entity::new(id.as_str(), "").with("RuntimeStatus", status).with("CreatedTime", now);
        store.load_entity(INSTANCES, row);
        for key in ["0000000000000000", "0000000000000001", "sentinel"] {
            store.load_entity(HISTORY, Entity::new(id.as_str(), key).with("ExecutionId", "e"));
        }
    }
    let mut hub = world.hub.open("client").unwrap();
    let watched = Arc::new(Watched {
        inner: hub.account.tables.clone(),
        held: AtomicUsize::new(0),
        most_held: AtomicUsize::new(0),
        deleting: AtomicUsize::new(0),
        most_deleting: AtomicUsize::new(0),
        restarted: Mutex::default(),
    });
    hub.account.tables = watched.clone();
    let client = TaskHubClient::new(Arc::new(AzureStorageClient::new(hub)));
    (world, client, watched)
}

#[tokio::test(start_paused = true)]
async fn twenty_thousand_instances_are_purged_with_a_page_of_them_in_memory() {
    let (world, client, watched) = large_hub(20_000);
    let purged = client.purge_matching(&PurgeFilter::default()).await.unwrap();
    assert_eq!(purged.removed, PurgeResult { instances: 20_000, rows: 60_000, blobs: 0 });
    assert_eq!(keys(&world, INSTANCES), BTreeSet::from(["i020000".to_owned()]));
    assert_eq!(keys(&world, HISTORY).len(), 1);
    assert!(watched.most_held.load(Ordering::SeqCst) <= 100, "{watched:?}");
    let at_once = watched.most_deleting.load(Ordering::SeqCst);
    assert!((2..=8).contains(&at_once), "{at_once} at once");
}

#[tokio::test(start_paused = true)]
async fn a_purge_that_times_out_says_so_and_the_next_one_completes_it() {
    let (world, client, _) = large_hub(1_000);
    let slow = |cursor: Option<String>, seconds: u64| PurgeOptions {
        per_second: NonZeroU32::new(100),
        timeout: Some(Duration::from_secs(seconds)),
        cursor,
        ..PurgeOptions::default()
    };
    let filter = PurgeFilter::default();
    let first = client.purge_with(&filter, slow(None, 4)).await.unwrap();
    assert_eq!(first.is_complete, Some(false));
    assert!((350..=450).contains(&first.removed.instances), "{first:?}");
    let second = client.purge_with(&filter, slow(first.cursor.clone(), 60)).await.unwrap();
    assert_eq!((second.is_complete, second.cursor.as_deref()), (Some(true), None));
    assert_eq!(first.removed.instances + second.removed.instances, 1_000);
    assert_eq!(keys(&world, HISTORY).len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_purge_that_is_dropped_can_be_begun_again() {
    let (world, client, _) = large_hub(500);
    let filter = PurgeFilter::default();
    let options = PurgeOptions { per_second: NonZeroU32::new(100), ..PurgeOptions::default() };
    let cut = tokio::time::timeout(Duration::from_millis(1_234), client.purge_with(&filter, options)).await;
    assert!(cut.is_err());
    let left = keys(&world, INSTANCES).len();
    assert!((300..450).contains(&left), "{left}");
    client.purge_matching(&filter).await.unwrap();
    assert_eq!((keys(&world, INSTANCES).len(), keys(&world, HISTORY).len()), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn an_id_that_is_started_again_during_its_purge_keeps_its_new_row() {
    let (world, client, watched) = large_hub(2);
    *watched.restarted.lock().unwrap() = Some("i000001");
    let filter = PurgeFilter { instance_id_prefix: Some("i000001".into()), ..PurgeFilter::default() };
    let purged = client.purge_matching(&filter).await.unwrap();
    assert_eq!((purged.removed.instances, purged.failures), (0, 0));
    assert!(keys(&world, INSTANCES).contains("i000001"));
    assert_eq!(watched.restarted.lock().unwrap().take(), None);
}
