//! Requests that wait, in virtual time.

use std::sync::Arc;
use std::time::Duration;

use taskhub_client::fake::{FakeService, state};
use taskhub_core::OrchestrationStatus;
use taskhub_core::OrchestrationStatus::{Completed, Failed, Terminated};
use taskhub_http::management::Options;
use tokio::time::Instant;

use crate::support::{Api, request};

/// Finishes every instance that is started, three seconds later.
fn finishing(api: &Api, status: OrchestrationStatus, output: &'static str) {
    let fake = Arc::clone(&api.fake);
    tokio::spawn(async move {
        tokio::time::sleep(Duration::from_secs(3)).await;
        for id in fake.ids() {
            let mut state = state(&id, status);
            state.output = Some(output.into());
            fake.set_row(state);
        }
    });
}

#[tokio::test(start_paused = true)]
async fn an_instance_that_completes_in_time_answers_with_its_output_alone() {
    let api = Api::with(None);
    finishing(&api, Completed, r#"["a","b"]"#);
    let began = Instant::now();
    let reply = api.send("POST /orchestrators/F/x?timeout=10.5&pollingInterval=2", None).await;
    assert_eq!((reply.code.as_u16(), reply.body.as_str()), (200, r#"["a","b"]"#));
    assert_eq!(reply.header("content-type"), Some("application/json; charset=utf-8"));
    assert_eq!(began.elapsed(), Duration::from_secs(4));
}

#[tokio::test(start_paused = true)]
async fn an_instance_that_ends_otherwise_answers_with_its_status_and_never_with_500() {
    for status in [Failed, Terminated] {
        let api = Api::with(None);
        finishing(&api, status, "boom");
        let line =
            "POST /orchestrators/F/x?timeout=10&pollingInterval=1&returnInternalServerErrorOnFailure=true";
        let reply = api.send(line, None).await;
        assert_eq!((reply.code.as_u16(), &reply.json()["output"]), (200, &"boom".into()));
        assert_eq!(reply.json()["runtimeStatus"], status.name());
    }
}

#[tokio::test(start_paused = true)]
async fn an_instance_that_does_not_end_in_time_answers_with_addresses() {
    let api = Api::with(None);
    let began = Instant::now();
    let reply = api.send("POST /orchestrators/F/x?timeout=1.5&retryInterval=0.5", None).await;
    assert_eq!((reply.code.as_u16(), reply.header("retry-after")), (202, Some("10")));
    assert_eq!(reply.header("location"), reply.json()["statusQueryGetUri"].as_str());
    assert_eq!(began.elapsed(), Duration::from_millis(1500));
}

#[tokio::test(start_paused = true)]
async fn one_of_the_two_parameters_alone_waits_for_nothing() {
    for query in ["timeout=5", "pollingInterval=1", "timeout=x&pollingInterval=1"] {
        let began = Instant::now();
        let reply = Api::with(None).send(&format!("POST /orchestrators/F?{query}"), None).await;
        assert_eq!((reply.code.as_u16(), began.elapsed()), (202, Duration::ZERO), "{query}");
    }
}

#[tokio::test(start_paused = true)]
async fn an_interval_longer_than_the_timeout_is_refused_after_the_start() {
    let api = Api::with(None);
    let reply = api.send("POST /orchestrators/F?timeout=1&pollingInterval=2", None).await;
    assert_eq!(reply.code, 400);
    let text = "Total timeout 1 should be bigger than retry timeout 2";
    assert_eq!(reply.json()["ExceptionMessage"], text);
    assert_eq!(api.fake.started().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn intervals_of_nothing_do_not_make_the_storage_busy() {
    let api = Api::with(None);
    api.send("POST /orchestrators/F/x?timeout=10&pollingInterval=0", None).await;
    assert!(api.fake.state_reads() <= 101, "{}", api.fake.state_reads());
}

#[tokio::test(start_paused = true)]
async fn waits_have_a_longest_time_and_end_with_the_server() {
    let longest = Options { longest_wait: Duration::from_secs(60), ..Options::default() };
    let api = Api::new(FakeService::default(), longest);
    let began = Instant::now();
    let line = "POST /orchestrators/F/x?timeout=1e9&pollingInterval=10";
    assert_eq!(api.send(line, None).await.code, 202);
    assert_eq!(began.elapsed(), Duration::from_secs(60));

    let options = Options::default();
    let shutdown = options.shutdown.clone();
    let api = Api::new(FakeService::default(), options);
    tokio::spawn(async move {
        tokio::time::sleep(Duration::from_secs(7)).await;
        shutdown.cancel();
    });
    let began = Instant::now();
    let reply = api.send(line, None).await;
    assert_eq!((reply.code.as_u16(), began.elapsed()), (202, Duration::from_secs(7)));
    assert_eq!(reply.header("retry-after"), Some("10"));
}

#[tokio::test(start_paused = true)]
async fn the_functions_of_the_samples_start_and_wait() {
    let api = Api::with(None);
    let reply = api.raw(request("POST", "/api/orchestrators/HelloSequence", Some("1"))).await;
    assert_eq!(reply.code, 202);
    assert!(
        reply.json()["statusQueryGetUri"]
            .as_str()
            .unwrap()
            .contains("/runtime/webhooks/durabletask/instances/")
    );
    let began = Instant::now();
    let path = "/orchestrators/HelloSequence/wait";
    assert_eq!(api.raw(request("POST", path, None)).await.code, 202);
    assert_eq!(began.elapsed(), Duration::from_secs(10));
    finishing(&api, Completed, "\"done\"");
    let path = "/api/orchestrators/HelloSequence/wait?timeout=8&retryInterval=0.5";
    assert_eq!(api.raw(request("POST", path, None)).await.body, "\"done\"");
    assert_eq!(api.fake.started().len(), 3);
}
