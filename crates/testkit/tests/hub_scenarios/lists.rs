//! Lists and states: what the provider's query suite asks for, and lists of large hubs.

use std::sync::Arc;
use std::time::Duration;

use taskhub_azure_storage::AzureStorageClient;
use taskhub_client::{ListOptions, Start, TaskHubClient};
use taskhub_core::OrchestrationStatus::{Completed, Pending, Running};
use taskhub_core::{InstanceFetch, InstanceQuery, OrchestrationState, Timestamp};
use taskhub_storage::Entity;
use taskhub_storage::request::{OperationCounts, RequestSettings};
use taskhub_testkit::faults::{Effect, FaultPlan, FaultyAccount, Rule};
use tokio::time::Instant;

use crate::support::World;

fn ids(states: &[OrchestrationState]) -> Vec<&str> {
    states.iter().map(|state| state.instance.instance_id.as_str()).collect()
}

async fn list(world: &World, query: InstanceQuery) -> Vec<OrchestrationState> {
    let mut pages = world.client.pages(query);
    let mut all = Vec::new();
    while let Some(page) = pages.next().await.unwrap() {
        all.extend(page.instances);
    }
    all
}

#[tokio::test(start_paused = true)]
async fn a_hub_without_instances_has_no_continuation() {
    let world = World::new();
    world.client.create_hub().await.unwrap();
    let page = world.client.list(&InstanceQuery::default()).await.unwrap();
    assert_eq!((page.instances.len(), page.continuation), (0, None));
    let filtered = InstanceQuery { statuses: vec![Running], page_size: Some(1), ..InstanceQuery::default() };
    let page = world.client.list(&filtered).await.unwrap();
    assert_eq!((page.instances.len(), page.continuation), (0, None));
}

#[tokio::test(start_paused = true)]
async fn all_instances_are_listed_with_what_a_client_sees_of_one() {
    let world = World::new();
    world.start("pending", Start::new("HelloSequence").input("x").unwrap()).await;
    let worker = world.samples();
    world.start("done", Start::new("HelloSequence").tag("env", "test").version("")).await;
    world.end("done").await;
    world.end("pending").await;
    worker.stop().await;
    let all = list(&world, InstanceQuery { page_size: Some(1), ..InstanceQuery::default() }).await;
    assert_eq!(ids(&all), ["done", "pending"]);
    for state in &all {
        let one = world.state(state.instance.instance_id.as_str()).await;
        assert_eq!(*state, one);
        assert_eq!(state.status, Some(Completed));
    }
    let small = InstanceQuery { fetch: InstanceFetch::NONE, ..InstanceQuery::default() };
    assert!(list(&world, small).await.iter().all(|s| s.input.is_none() && s.output.is_none()));
}

#[tokio::test(start_paused = true)]
async fn filters_are_combined_and_their_bounds_are_inclusive() {
    let world = World::new();
    let mut created = Vec::new();
    for id in ["a1", "a2", "a/3", "b1", "b'2"] {
        world.start(id, Start::new("Approval")).await;
        created.push(world.state(id).await.created_at);
        world.hub.pass_a_second().await;
    }
    let query = |from: Option<Timestamp>, to: Option<Timestamp>, prefix: Option<&str>| InstanceQuery {
        created_from: from,
        created_to: to,
        instance_id_prefix: prefix.map(str::to_owned),
        ..InstanceQuery::default()
    };
    for (query, expected) in [
        (query(None, None, None), vec!["a1", "a2", "a/3", "b'2", "b1"]),
        (query(Some(created[1]), None, None), vec!["a2", "a/3", "b'2", "b1"]),
        (query(Some(created[1]), Some(created[3]), None), vec!["a2", "a/3", "b1"]),
        (query(None, Some(created[0]), None), vec!["a1"]),
        (query(None, None, Some("a")), vec!["a1", "a2", "a/3"]),
        (query(Some(created[1]), None, Some("a")), vec!["a2", "a/3"]),
        (query(None, None, Some("a/")), vec!["a/3"]),
        (query(None, None, Some("b'")), vec!["b'2"]),
        (query(None, None, Some("c")), vec![]),
    ] {
        assert_eq!(ids(&list(&world, query.clone()).await), expected, "{query:?}");
        let running = InstanceQuery { statuses: vec![Running, Completed], ..query.clone() };
        assert!(list(&world, running).await.is_empty());
        let pending = InstanceQuery { statuses: vec![Pending, Completed], ..query };
        assert_eq!(ids(&list(&world, pending).await), expected);
    }
    let hub = |name: &str| InstanceQuery { task_hubs: vec![name.into()], ..InstanceQuery::default() };
    assert_eq!(list(&world, hub("ScenarioHub")).await.len(), 5);
    assert!(list(&world, hub("O'Hub")).await.is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_scheduled_instance_is_pending_and_tells_when_it_will_start() {
    let world = World::new();
    let at = world.hub.clock().now() + Duration::from_secs(3600);
    world.start("later", Start::new("HelloSequence").scheduled_at(at)).await;
    let state = world.state("later").await;
    assert_eq!((state.status, state.scheduled_start_at), (Some(Pending), Some(at)));
}

/// A hub of many finished instances.
fn large_hub(ids: impl Iterator<Item = String>) -> World {
    let world = World::new();
    let store = world.hub.memory().unwrap();
    let now = world.hub.clock().now();
    for id in ids {
        let row = Entity::new(id, "")
            .with("Name", "Sample")
            .with("RuntimeStatus", "Completed")
            .with("CreatedTime", now)
            .with("LastUpdatedTime", now)
            .with("TaskHubName", "ScenarioHub");
        store.load_entity("ScenarioHubInstances", row);
    }
    world
}

#[tokio::test(start_paused = true)]
async fn a_list_that_is_dropped_asks_for_nothing_more() {
    let world = large_hub((0..5_000).map(|n| format!("i{n:04}")));
    let plan = FaultPlan::default();
    plan.add(Rule::on_all(Effect::DelayBefore(Duration::from_millis(30))));
    let counts = OperationCounts::default();
    let mut hub = world.hub.open("client").unwrap();
    hub.account = FaultyAccount::wrap(hub.account, &plan).layered(RequestSettings::default(), &counts);
    let client = TaskHubClient::new(Arc::new(AzureStorageClient::new(hub)));
    let query = InstanceQuery { page_size: Some(100), ..InstanceQuery::default() };
    let mut stream = client.list_stream(query.clone(), ListOptions::default());
    assert!(!stream.next().await.unwrap().unwrap().is_empty());
    drop(stream);
    let mut pages = client.pages(query);
    pages.next().await.unwrap();
    assert!(tokio::time::timeout(Duration::from_millis(10), pages.next()).await.is_err());
    let asked = counts.of("QueryEntities").count;
    assert!(asked < 50, "{asked}");
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(counts.of("QueryEntities").count, asked);
}

/// Lists 20,000 instances with 30 ms more for each request: one page after the other, and at once.
async fn compare(kind: &str, ids: impl Iterator<Item = String>, factor: u32) {
    let world = large_hub(ids);
    let plan = FaultPlan::default();
    plan.add(Rule::on_all(Effect::DelayBefore(Duration::from_millis(30))));
    let mut hub = world.hub.open("client").unwrap();
    hub.account = FaultyAccount::wrap(hub.account, &plan);
    let client = TaskHubClient::new(Arc::new(AzureStorageClient::new(hub)));
    let query = InstanceQuery { fetch: InstanceFetch::NONE, ..InstanceQuery::default() };

    let began = Instant::now();
    let mut pages = client.pages(InstanceQuery { page_size: Some(1000), ..query.clone() });
    let mut serial = 0;
    while let Some(page) = pages.next().await.unwrap() {
        serial += page.instances.len();
    }
    let serial_time = began.elapsed();

    let began = Instant::now();
    let mut stream = client.list_stream(query, ListOptions::default());
    let mut seen = std::collections::HashSet::new();
    while let Some(page) = stream.next().await.unwrap() {
        seen.extend(page.into_iter().map(|state| state.instance.instance_id));
    }
    let time = began.elapsed();
    assert_eq!((serial, seen.len()), (20_000, 20_000), "{kind}");
    let requests = stream.requests();
    assert!(time * factor <= serial_time, "{kind}: {time:?}, {requests} requests; {serial_time:?} serial");
    assert!(requests <= 64, "{kind}: {requests} requests");
}

#[tokio::test(start_paused = true)]
async fn twenty_thousand_instances_are_listed_at_least_four_times_faster_than_one_by_one() {
    let random = |n: u128| n.wrapping_mul(0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835);
    let guid = |n: u128| uuid::Uuid::from_u128(random(n));
    compare("random ids", (0..20_000).map(|n| guid(n).simple().to_string()), 4).await;
    compare("GUIDs", (0..20_000).map(|n| guid(n).to_string()), 4).await;
    compare("GUIDs in braces", (0..20_000).map(|n| guid(n).braced().to_string().to_uppercase()), 4).await;
    compare("numbered ids", (0..20_000).map(|n| format!("order-{n:06}")), 4).await;
    compare("numbers without zeros", (0..20_000).map(|n| format!("order-{n}")), 4).await;
    compare("children", (0..20_000).map(|n| format!("{}:{:x}", guid(n / 20).simple(), n % 20)), 4).await;
    let day = |n: u128| format!("import-2026-{:02}-{:02}-{:04}", 1 + n / 2_000, 1 + n / 100 % 20, n % 100);
    compare("dates", (0..20_000).map(day), 4).await;
}

#[tokio::test(start_paused = true)]
async fn unevenly_spread_ids_are_listed_in_several_places_too() {
    // Each tenant has half as many as the one before.
    let tenant = |n: u128| (20_000_f64 / (20_000 - n) as f64).log2().floor() as u128;
    compare("tenants", (0..20_000).map(|n| format!("tenant-{:04}-order-{n:06}", tenant(n))), 4).await;
    let kinds = ["customer", "invoice", "mail", "order", "Report"];
    let mixed = |n: u128| match n % 10 {
        kind @ 0..5 => format!("{}-{:05}", kinds[kind as usize], n),
        _ => format!("{:032x}", n.wrapping_mul(0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835)),
    };
    compare("five kinds and random ids", (0..20_000).map(mixed), 3).await;
    let letters = |n: u128| (0..6).map(move |place| char::from(b'a' + (n / 5_u128.pow(place) % 5) as u8));
    compare("five letters", (0..20_000).map(|n| letters(n).collect::<String>() + &n.to_string()), 3).await;
}

#[tokio::test(start_paused = true)]
async fn a_hub_that_fits_a_page_is_listed_by_one_request() {
    let world = large_hub((0..1_000).map(|n| format!("order-{n:06}")));
    let mut stream = world.client.list_stream(InstanceQuery::default(), ListOptions::default());
    assert_eq!(stream.next().await.unwrap().map(|page| page.len()), Some(1_000));
    assert!(stream.next().await.unwrap().is_none());
    assert_eq!(stream.requests(), 1);
}
