//! Code by operation and status of the instance.

use taskhub_client::fake::FakeService;
use taskhub_core::OrchestrationStatus::{
    self, Canceled, Completed, ContinuedAsNew, Failed, Pending, Running, Suspended, Terminated,
};
use taskhub_http::management::{Conflicts, Options};

use crate::support::Api;

/// Columns of the tables.
const STATES: [Option<OrchestrationStatus>; 9] = [
    None,
    Some(Pending),
    Some(Running),
    Some(ContinuedAsNew),
    Some(Suspended),
    Some(Completed),
    Some(Failed),
    Some(Terminated),
    Some(Canceled),
];

async fn check_with(options: &Options, line: &str, expected: [u16; 9]) {
    for (status, expected) in STATES.into_iter().zip(expected) {
        let fake = FakeService::default();
        let fake = status.into_iter().fold(fake, |fake, status| fake.with_state("x", status));
        let api = Api::new(fake, options.clone());
        let body = line.starts_with("POST").then_some("true");
        let reply = api.send(line, body).await;
        assert_eq!(reply.code, expected, "{line} {status:?} {reply:?}");
        if matches!(expected, 404 | 410)
            || (expected == 202 && line.contains("/x/") && !line.contains("/restart"))
        {
            reply.has_no_body();
        }
        if line.starts_with("DELETE") {
            assert_eq!(api.fake.ids().len(), usize::from(expected == 400), "{line} {status:?}");
        }
        if line.contains("/x/") && !line.contains("/restart") {
            let done = api.fake.sent().len() + api.fake.rewound().len();
            assert_eq!(done, usize::from(expected == 202), "{line} {status:?}");
        }
    }
}

async fn check(line: &str, expected: [u16; 9]) {
    check_with(&Options::default(), line, expected).await;
}

#[tokio::test]
async fn status() {
    check("GET /instances/x", [404, 202, 202, 202, 202, 200, 200, 200, 200]).await;
    let flag = "GET /instances/x?returnInternalServerErrorOnFailure=true";
    check(flag, [404, 202, 202, 202, 202, 200, 500, 200, 200]).await;
}

#[tokio::test]
async fn start_with_the_same_id() {
    check("POST /orchestrators/F/x", [202, 500, 500, 500, 500, 202, 202, 202, 202]).await;
    let options = Options { overrides_any_state: true, ..Options::default() };
    check_with(&options, "POST /orchestrators/F/x", [202; 9]).await;
}

#[tokio::test]
async fn raise_event() {
    check("POST /instances/x/raiseEvent/E", [404, 202, 202, 202, 202, 410, 410, 410, 410]).await;
}

#[tokio::test]
async fn terminate() {
    check("POST /instances/x/terminate", [404, 202, 202, 202, 202, 410, 410, 410, 410]).await;
}

#[tokio::test]
async fn suspend() {
    check("POST /instances/x/suspend", [404, 202, 202, 202, 500, 410, 410, 410, 410]).await;
}

#[tokio::test]
async fn resume() {
    check("POST /instances/x/resume", [404, 500, 500, 500, 202, 410, 410, 410, 410]).await;
}

#[tokio::test]
async fn rewind() {
    check("POST /instances/x/rewind", [404, 500, 500, 500, 500, 410, 202, 410, 410]).await;
}

#[tokio::test]
async fn restart_with_a_new_id() {
    check("POST /instances/x/restart", [400, 202, 202, 202, 202, 202, 202, 202, 202]).await;
}

#[tokio::test]
async fn restart_with_the_same_id() {
    let line = "POST /instances/x/restart?restartWithNewInstanceId=false";
    check(line, [400, 500, 500, 500, 500, 202, 202, 202, 202]).await;
}

#[tokio::test]
async fn purge_by_id() {
    check("DELETE /instances/x", [404, 400, 400, 400, 400, 200, 200, 200, 200]).await;
    check("DELETE /instances/x?force=true", [404, 200, 200, 200, 200, 200, 200, 200, 200]).await;
    let options = Options { purges_any_status: true, ..Options::default() };
    check_with(&options, "DELETE /instances/x", [404, 200, 200, 200, 200, 200, 200, 200, 200]).await;
}

#[tokio::test]
async fn conflicts_are_409_where_asked_for() {
    let options = Options { conflicts: Conflicts::Conflict, ..Options::default() };
    check_with(&options, "POST /orchestrators/F/x", [202, 409, 409, 409, 409, 202, 202, 202, 202]).await;
    check_with(&options, "POST /instances/x/suspend", [404, 202, 202, 202, 409, 410, 410, 410, 410]).await;
    check_with(&options, "POST /instances/x/resume", [404, 409, 409, 409, 202, 410, 410, 410, 410]).await;
}
