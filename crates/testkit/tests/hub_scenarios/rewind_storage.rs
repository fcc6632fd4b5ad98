//! What a rewind writes, and that it survives being cut off.

use std::collections::BTreeMap;
use std::sync::Arc;

use taskhub_azure_storage::AzureStorageClient;
use taskhub_client::{ClientError, Rewind, Start, TaskHubClient};
use taskhub_core::OrchestrationStatus::{Failed, Pending};
use taskhub_storage::{Entity, TableQuery, Value};
use taskhub_testkit::faults::{Effect, FaultPlan, FaultyAccount, Rule};

use crate::rewind::Plant;
use crate::support::World;

/// Rows of a table by row key.
async fn rows(world: &World, table: &str, instance: &str) -> BTreeMap<String, Entity> {
    let filter = Some(format!("PartitionKey eq '{instance}'"));
    let query = TableQuery { filter, ..TableQuery::default() };
    let page = world.hub.account().tables.query(table, &query).await.unwrap();
    page.entities.into_iter().map(|row| (row.row_key.clone(), row)).collect()
}

/// What changed: row, column, old and new value.
type Changes = Vec<(String, String, Option<Value>, Option<Value>)>;

fn changes(before: &BTreeMap<String, Entity>, after: &BTreeMap<String, Entity>) -> Changes {
    assert!(before.keys().eq(after.keys()), "rows come and go");
    let mut changes = Vec::new();
    for (row, old) in before {
        let new = &after[row];
        for name in old.columns.keys().chain(new.columns.keys()).collect::<std::collections::BTreeSet<_>>() {
            let (old, new) = (old.get(name).cloned(), new.get(name).cloned());
            if old != new {
                changes.push((row.clone(), name.to_string(), old, new));
            }
        }
    }
    changes
}

fn text(value: &str) -> Option<Value> {
    Some(Value::from(value))
}

/// An instance that failed, with nobody to go on with it.
async fn failed(plant: &Plant, start: Start) -> World {
    let world = World::new();
    let worker = world.worker(|builder| plant.register(builder));
    world.start("x", start).await;
    assert_eq!(world.end("x").await.status, Some(Failed));
    worker.stop().await;
    world
}

#[tokio::test(start_paused = true)]
async fn rows_are_rewritten_as_dotnet_rewrites_them() {
    let plant = Plant::broken(&["b"]);
    let world = failed(&plant, Start::new("Parent").input(&(0, ["a", "b"])).unwrap()).await;
    let (history, instances) = ("ScenarioHubHistory", "ScenarioHubInstances");
    let before = (rows(&world, history, "x").await, rows(&world, history, "x-child").await);
    let instance_rows = (rows(&world, instances, "x").await, rows(&world, instances, "x-child").await);
    let sent_before = messages(&world).len();
    world.client.rewind(&"x".into(), Rewind::new().reason("fixed")).await.unwrap();

    let find = |rows: &BTreeMap<String, Entity>, event: &str| -> String {
        let found = rows.iter().rfind(|(_, row)| row.str("EventType") == Some(event));
        found.map(|(key, _)| key.clone()).unwrap_or_else(|| panic!("no {event}"))
    };
    let rewritten = |rows: &BTreeMap<String, Entity>, events: &[(&str, bool)]| -> Changes {
        let mut expected = Vec::new();
        for (event, becomes_generic) in events {
            let old_reason = rows[&find(rows, event)].get("Reason").cloned();
            if *becomes_generic {
                expected.push((find(rows, event), "EventType".into(), text(event), text("GenericEvent")));
            }
            expected.push((
                find(rows, event),
                "Reason".into(),
                old_reason,
                text(&format!("Rewound: {event}")),
            ));
        }
        expected.sort_by(|a, b| (&a.0, &a.1).cmp(&(&b.0, &b.1)));
        expected
    };
    let parent = [
        ("SubOrchestrationInstanceCreated", false),
        ("SubOrchestrationInstanceFailed", true),
        ("ExecutionCompleted", true),
    ];
    assert_eq!(changes(&before.0, &rows(&world, history, "x").await), rewritten(&before.0, &parent));
    let child = [("TaskScheduled", true), ("TaskFailed", true), ("ExecutionCompleted", true)];
    assert_eq!(changes(&before.1, &rows(&world, history, "x-child").await), rewritten(&before.1, &child));

    for (id, before) in [("x", &instance_rows.0), ("x-child", &instance_rows.1)] {
        let changed = changes(before, &rows(&world, instances, id).await);
        let columns: Vec<_> = changed.iter().map(|(_, column, ..)| column.as_str()).collect();
        assert_eq!(columns, ["LastUpdatedTime", "RuntimeStatus"], "{id}");
        assert_eq!(changed[1].3, text("Pending"));
    }
    let messages = messages(&world);
    assert_eq!(messages.len(), sent_before + 1, "one, to the deepest instance");
    let wake: serde_json::Value = serde_json::from_str(messages.last().unwrap()).unwrap();
    let (event, target) = (&wake["TaskMessage"]["Event"], &wake["TaskMessage"]["OrchestrationInstance"]);
    assert_eq!((&event["EventType"], &event["Data"]), (&17.into(), &"fixed".into()));
    assert_eq!(
        (&target["InstanceId"], &target["ExecutionId"]),
        (&"x-child".into(), &serde_json::Value::Null)
    );
}

fn messages(world: &World) -> Vec<String> {
    let store = world.hub.memory().unwrap();
    let control = store.queues().into_iter().filter(|q| q.contains("-control-"));
    control.flat_map(|queue| store.messages(&queue)).map(|message| message.text).collect()
}

/// Spoils the n-th request of a rewind, rewinds again and lets a worker finish. Gives whether a request was
/// spoilt.
async fn cut_off(effect: Effect, n: u64) -> bool {
    let plant = Plant::broken(&["own", "child x", "child y"]);
    let world = failed(&plant, Start::new("Mixed")).await;
    for thing in ["own", "child x", "child y"] {
        plant.repair(thing);
    }
    let faults = FaultPlan::default();
    let mut hub = world.hub.open("other client").unwrap();
    hub.account = FaultyAccount::wrap(hub.account, &faults);
    let client = TaskHubClient::new(Arc::new(AzureStorageClient::new(hub)));
    // The hub is looked at before the first message.
    client.terminate(&"nobody".into(), None).await.unwrap();
    faults.add(Rule::on_all(effect).nth(n));
    let first = client.rewind(&"x".into(), Rewind::new()).await;
    let spoilt = faults.fired() > 0;
    faults.clear();
    assert!(spoilt || first.is_ok(), "{first:?}");
    match client.rewind(&"x".into(), Rewind::new()).await {
        Ok(_) => {}
        Err(ClientError::WrongStatus { .. }) => assert!(first.is_ok(), "n={n} {first:?}"),
        Err(error) => panic!("n={n}: {error}"),
    }
    assert_eq!(world.state("x").await.status, Some(Pending));
    let worker = world.worker(|builder| plant.register(builder));
    world.completes("x", "5").await;
    plant.attempts(&[("own", 2), ("child x", 2), ("child y", 2)]);
    worker.stop().await;
    spoilt
}

async fn cut_off_anywhere(effect: Effect) {
    let mut n = 1;
    while cut_off(effect.clone(), n).await {
        n += 1;
    }
    assert!(n > 10, "only {n} requests");
}

#[tokio::test(start_paused = true)]
async fn a_rewind_that_is_cut_off_before_any_request_is_continued_by_the_next() {
    cut_off_anywhere(Effect::Answer(403, "AuthorizationFailure")).await;
}

#[tokio::test(start_paused = true)]
async fn a_rewind_whose_replies_are_lost_is_continued_by_the_next() {
    cut_off_anywhere(Effect::LoseReply).await;
}

#[tokio::test(start_paused = true)]
async fn two_rewinds_at_once_are_one() {
    let plant = Plant::broken(&["b"]);
    let world = failed(&plant, Start::new("Chain").input(&["a", "b"]).unwrap()).await;
    plant.repair("b");
    let id = "x".into();
    let rewind = || world.client.rewind(&id, Rewind::new());
    let (first, second) = tokio::join!(rewind(), rewind());
    assert!(first.is_ok() && second.is_ok(), "{first:?} {second:?}");
    let worker = world.worker(|builder| plant.register(builder));
    world.completes("x", r#"["a","b"]"#).await;
    plant.attempts(&[("a", 1), ("b", 2)]);
    worker.stop().await;
}

#[tokio::test(start_paused = true)]
async fn failures_with_large_texts_are_rewound_and_their_blobs_stay_until_the_purge() {
    let plant = Plant::broken(&["b"]);
    let long = "b".repeat(40_000);
    plant.repair("b");
    plant.breaks(&long);
    let world = failed(&plant, Start::new("Chain").input(&["a", &long]).unwrap()).await;
    plant.repair(&long);
    world.client.rewind(&"x".into(), Rewind::new()).await.unwrap();
    let worker = world.worker(|builder| plant.register(builder));
    world.completes("x", &format!("[\"a\",\"{long}\"]")).await;
    worker.stop().await;
    world.client.purge(&"x".into()).await.unwrap();
    let store = world.hub.memory().unwrap();
    assert!(store.blobs("scenariohub-largemessages").is_empty());
}
