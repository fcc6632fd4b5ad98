//! Entities that run: a worker with the sample functions on the embedded store, in virtual time.

use std::time::Duration;

use taskhub_core::{TaskHubName, Timestamp};
use taskhub_http::axum::Router;
use taskhub_http::management::{Hubs, Options, router};
use taskhub_testkit::golden::WorkerFlags;
use taskhub_testkit::{RunningWorker, TestHub};

use crate::support::{BASE, Reply, request, send};

/// A served hub with a worker.
struct Live {
    router: Router,
    worker: RunningWorker,
}

impl Live {
    async fn new() -> Self {
        let start = Timestamp::parse("2026-01-15T09:30:00Z").unwrap();
        let hub = TestHub::in_memory(&TaskHubName::new("LiveHub").unwrap(), 1, start);
        let router = router(Hubs::new("LiveHub", hub.client().unwrap()), Options::default());
        let worker = hub.start_worker("w1", WorkerFlags::default()).await.unwrap();
        Self { router, worker }
    }

    async fn send(&self, line: &str, body: Option<&str>) -> Reply {
        let (method, path) = line.split_once(' ').unwrap();
        send(&self.router, request(method, &format!("{BASE}{path}"), body)).await
    }

    /// Asks until the answer is this one.
    async fn until(&self, line: &str, code: u16, body: &str) {
        let mut reply = self.send(line, None).await;
        for _ in 0..600 {
            if (reply.code.as_u16(), reply.body.as_str()) == (code, body) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
            reply = self.send(line, None).await;
        }
        panic!("{line} is not {code} {body}: {reply:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_counter_counts_what_is_posted_and_is_gone_after_a_delete() {
    let live = Live::new().await;
    assert_eq!(live.send("GET /entities/counter/a", None).await.code, 404);
    let posted = live.send("POST /entities/Counter/a?op=add", Some("1")).await;
    assert_eq!(posted.code, 202);
    posted.has_no_body();
    live.until("GET /entities/counter/a", 200, "1").await;
    // The key has its case.
    assert_eq!(live.send("GET /entities/counter/A", None).await.code, 404);
    for _ in 0..100 {
        live.send("POST /entities/COUNTER/a?op=add", Some("5")).await;
    }
    live.until("GET /entities/counter/a", 200, "501").await;
    // An operation that fails or does not exist changes nothing.
    live.send("POST /entities/counter/a?op=add", Some("\"many\"")).await;
    live.send("POST /entities/counter/a", None).await;
    live.send("POST /entities/counter/a?op=add", None).await;
    live.until("GET /entities/counter/a", 200, "502").await;
    assert_eq!(live.send("DELETE /entities/counter/a", None).await.code, 202);
    live.until("GET /entities/counter/a", 404, "").await;
    // It can come back.
    live.send("POST /entities/counter/a?op=add", Some("2")).await;
    live.until("GET /entities/counter/a", 200, "2").await;
    live.worker.stop().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn live_entities_are_listed_by_name_without_those_that_were_deleted() {
    let live = Live::new().await;
    for key in ["a", "b", "c@d", ""] {
        live.send(&format!("POST /entities/counter/{key}?op=add"), Some("3")).await;
        let shown = if key.is_empty() { "$" } else { key };
        live.until(&format!("GET /entities/counter/{shown}"), 200, "3").await;
    }
    live.send("DELETE /entities/counter/b", None).await;
    live.until("GET /entities/counter/b", 404, "").await;
    let keys = |reply: &Reply| {
        let all = reply.json().as_array().unwrap().clone();
        all.iter().map(|e| e["entityId"]["key"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    let listed = live.send("GET /entities/Counter?fetchState=true", None).await;
    assert_eq!(keys(&listed), ["", "a", "c@d"]);
    assert!(listed.json().as_array().unwrap().iter().all(|entity| entity["state"] == 3));
    assert_eq!(
        keys(&live.send("GET /entities?lastOperationTimeFrom=2026-01-15T10:30:00Z", None).await),
        [""; 0]
    );
    assert_eq!(keys(&live.send("GET /entities/other", None).await), [""; 0]);
    live.worker.stop().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn an_orchestration_calls_the_entity_that_clients_signal() {
    let live = Live::new().await;
    live.send("POST /entities/Counter/mine?op=add", Some("100")).await;
    live.until("GET /entities/counter/mine", 200, "100").await;
    live.send("POST /orchestrators/CallEntity/caller", Some("\"@counter@mine\"")).await;
    live.until("GET /entities/counter/mine", 200, "112").await;
    let mut status = live.send("GET /instances/caller", None).await;
    for _ in 0..600 {
        if status.code == 200 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
        status = live.send("GET /instances/caller", None).await;
    }
    let expected = serde_json::json!({"before": "105", "after": "112", "bad": "no operation nonsense"});
    assert_eq!(status.json()["output"], expected, "{status:?}");
    live.worker.stop().await.unwrap();
}
