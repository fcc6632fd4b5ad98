//! What takes storage to show: operations that are cut off, and others at the same time.

use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use taskhub_azure_storage::{AzureStorageClient, AzureStorageService};
use taskhub_client::TaskHubClient;
use taskhub_core::{TaskHubName, Timestamp};
use taskhub_http::management::Options;
use taskhub_storage::Entity;
use taskhub_testkit::faults::{Effect, FaultPlan, FaultyAccount, Rule};
use taskhub_testkit::golden::{self, Provider};
use taskhub_testkit::load::Hidden;
use taskhub_testkit::{TestHub, eventually_within};
use taskhub_worker::samples::{self, SampleOptions};
use taskhub_worker::{Worker, WorkerHandle};
use tokio_util::sync::CancellationToken;

use crate::support::Api;

/// A hub in memory, and an API whose requests to it may be spoilt.
struct World {
    hub: TestHub,
    api: Api,
    faults: FaultPlan,
}

impl World {
    async fn new() -> Self {
        let name = TaskHubName::new("TestHub").unwrap();
        let hub = TestHub::in_memory(&name, 1, Timestamp::parse("2026-01-15T09:30:00Z").unwrap());
        let faults = FaultPlan::default();
        let mut opened = hub.open("api").unwrap();
        opened.account = FaultyAccount::wrap(opened.account, &faults);
        let (clock, ids) = (opened.clock.clone(), opened.ids.clone());
        let client = TaskHubClient::new(Arc::new(AzureStorageClient::new(opened)));
        let client = client.with_environment(clock, ids);
        Self { api: Api::on(client, Options::default()), hub, faults }
    }

    fn worker(&self) -> WorkerHandle {
        let hub = self.hub.open("w1").unwrap();
        let (clock, ids) = (hub.clock.clone(), hub.ids.clone());
        let builder = Worker::builder(Arc::new(AzureStorageService::new(hub))).clock(clock).ids(ids);
        let worker = samples::register(builder, SampleOptions::default()).build().unwrap();
        let handle = worker.handle();
        tokio::spawn(async move { worker.run(CancellationToken::new()).await.unwrap() });
        handle
    }

    async fn status(&self, id: &str) -> Value {
        self.api.send(&format!("GET /instances/{id}"), None).await.json()
    }

    async fn until(&self, id: &str, status: &str) {
        eventually_within(Duration::from_secs(600), status, || async {
            (self.status(id).await["runtimeStatus"] == status).then_some(())
        })
        .await;
    }

    /// A finished instance with a history, as rows.
    fn finished(&self, id: &str) {
        let store = self.hub.memory().unwrap();
        let now = self.hub.clock().now();
        let row = Entity::new(id, "")
            .with("Name", "Echo")
            .with("RuntimeStatus", "Completed")
            .with("CreatedTime", now)
            .with("LastUpdatedTime", now);
        store.load_entity("TestHubInstances", row);
        store.load_entity("TestHubHistory", Entity::new(id, "sentinel").with("ExecutionId", "e"));
    }
}

/// Spoils the n-th request of a rewind. Whether there was one.
async fn rewound_twice(n: u64) -> bool {
    let world = World::new().await;
    let worker = world.worker();
    world.api.send("POST /orchestrators/ParentRewind/x", Some("\"x-child\"")).await;
    world.until("x", "Failed").await;
    // The hub is looked at before the first message.
    world.api.send("POST /orchestrators/Timer/other", Some("86400")).await;
    world.api.send("POST /instances/other/terminate", None).await;
    world.faults.add(Rule::on_all(Effect::Answer(403, "AuthorizationFailure")).nth(n));
    let first = world.api.send("POST /instances/x/rewind?reason=fixed", None).await;
    let was_spoilt = world.faults.fired() > 0;
    world.faults.clear();
    assert_eq!(first.code.as_u16(), if was_spoilt { 500 } else { 202 }, "{n}");
    if was_spoilt {
        let second = world.api.send("POST /instances/x/rewind?reason=fixed", None).await;
        assert_eq!(second.code, 202, "{n}: {second:?}");
    }
    world.until("x", "Completed").await;
    assert_eq!(world.status("x-child").await["runtimeStatus"], "Completed");
    worker.shutdown();
    was_spoilt
}

#[tokio::test(start_paused = true)]
async fn a_rewind_that_was_cut_off_anywhere_is_finished_by_the_next_request() {
    let mut n = 1;
    while rewound_twice(n).await {
        n += 1;
    }
    assert!(n > 6, "only {n} requests");
}

#[tokio::test(start_paused = true)]
async fn an_instance_started_again_during_its_purge_stays() {
    let world = World::new().await;
    world.finished("x");
    let slow = Effect::DelayBefore(Duration::from_secs(10));
    world.faults.add(Rule::on("EntityGroupTransaction", slow).resource("History"));
    let purge = world.api.send("DELETE /instances/x", None);
    let start = async {
        tokio::time::sleep(Duration::from_secs(5)).await;
        world.api.send("POST /orchestrators/HelloSequence/x", Some("1")).await
    };
    let (purged, started) = tokio::join!(purge, start);
    assert_eq!((purged.code.as_u16(), started.code.as_u16()), (404, 202), "{purged:?}");
    world.faults.clear();
    assert_eq!(world.status("x").await["runtimeStatus"], "Pending");
    let worker = world.worker();
    world.until("x", "Completed").await;
    assert_eq!(world.status("x").await["output"], json!(["Hello Tokyo!", "Hello Seattle!", "Hello London!"]));
    worker.shutdown();
}

#[tokio::test(start_paused = true)]
async fn a_purge_of_a_time_in_which_nothing_was_created_finds_nothing() {
    let world = World::new().await;
    world.finished("x");
    for query in ["createdTimeFrom=2999-01-01", "createdTimeFrom=2000-01-01&createdTimeTo=2000-01-02"] {
        let reply = world.api.send(&format!("DELETE /instances?{query}"), None).await;
        assert_eq!(reply.code, 404, "{query}");
        reply.has_no_body();
        assert_eq!(world.status("x").await["runtimeStatus"], "Completed");
    }
    let reply = world.api.send("DELETE /instances?createdTimeFrom=2026-01-15", None).await;
    assert_eq!((reply.code.as_u16(), reply.body.as_str()), (200, r#"{"instancesDeleted":1}"#));
    assert_eq!(world.api.send("GET /instances/x", None).await.code, 404);
}

#[tokio::test(start_paused = true)]
async fn inputs_and_outputs_that_lie_in_blobs_are_shown_in_full() {
    let world = World::new().await;
    let large = "x".repeat(70 * 1024);
    let body = format!("\"{large}\"");
    assert_eq!(world.api.send("POST /orchestrators/EchoInput/x", Some(&body)).await.code, 202);
    assert!(!world.hub.memory().unwrap().blobs("testhub-largemessages").is_empty());
    assert_eq!(world.status("x").await["input"], large.as_str(), "before the first episode");
    let worker = world.worker();
    world.until("x", "Completed").await;
    let status = world.status("x").await;
    assert_eq!((&status["input"], &status["output"]), (&json!(large), &json!(large)));
    worker.shutdown();
}

#[tokio::test(start_paused = true)]
async fn a_purge_by_filter_may_take_longer_than_other_requests() {
    let world = World::new().await;
    for n in 0..40 {
        world.finished(&format!("i{n:02}"));
    }
    let slow = || Rule::on_all(Effect::DelayBefore(Duration::from_secs(30)));
    world.faults.add(slow());
    let began = tokio::time::Instant::now();
    let purged = world.api.send("DELETE /instances?createdTimeFrom=2000-01-01", None).await;
    assert_eq!((purged.code.as_u16(), &purged.json()["instancesDeleted"]), (200, &json!(40)));
    assert!(began.elapsed() > Options::default().request_timeout, "{:?}", began.elapsed());
    world.faults.clear();
    world.finished("one");
    world.faults.add(slow());
    let late = world.api.send("DELETE /instances/one", None).await;
    assert_eq!(late.code.as_u16(), 500, "five requests of 30 s each: {late:?}");
    assert_eq!(late.json()["ExceptionType"], "System.TimeoutException");
}

#[tokio::test(start_paused = true)]
async fn entities_of_hubs_that_dotnet_wrote_are_read_listed_and_signalled() {
    let world = World::new().await;
    world
        .hub
        .load(&golden::hub(Provider::V2, "LockEntities", "midflight").unwrap(), Hidden::Release)
        .await
        .unwrap();
    for (path, code, body) in [
        ("/entities/Counter/a", 200, "-3"),
        ("/entities/counter/b", 200, "3"),
        ("/entities/counter/A", 404, ""),
        ("/entities/lamp/a", 404, ""),
    ] {
        let reply = world.api.send(&format!("GET {path}"), None).await;
        assert_eq!((reply.code.as_u16(), reply.body.as_str()), (code, body), "{path}");
    }
    let listed = world.api.send("GET /entities/COUNTER?fetchState=true&top=1", None).await;
    let first = &listed.json()[0];
    assert_eq!((&first["entityId"], &first["state"]), (&json!({"name": "counter", "key": "a"}), &json!(-3)));
    assert!(first["lastOperationTime"].as_str().unwrap().ends_with('Z'));
    assert!(!listed.header("x-ms-continuation-token").unwrap().is_empty(), "there is another one");

    let store = world.hub.memory().unwrap();
    let messages = || -> usize {
        store.queues().iter().filter(|q| q.contains("-control-")).map(|q| store.messages(q).len()).sum()
    };
    let before = messages();
    assert_eq!(world.api.send("POST /entities/Counter/a?op=add", Some("1")).await.code, 202);
    assert_eq!(world.api.send("DELETE /entities/Counter/b", None).await.code, 202);
    assert_eq!(messages(), before + 2);
    // Signals change nothing by themselves.
    assert_eq!(world.api.send("GET /entities/counter/b", None).await.body, "3");
}
