//! What programs say of their requests. What `taskhub bench` says is what the emulator has answered: its access log knows nothing of
//! our counting.

#![allow(clippy::print_stdout, reason = "the test that starts it reads the figures")]

use std::collections::BTreeMap;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use azurite_tests::process::{Signal, Site, taskhub};
use azurite_tests::{connection, on_a_hub};
use serde_json::{Value, json};
use taskhub_client::Start;

/// Name of the variable with the emulator's log.
const LOG_VARIABLE: &str = "TASKHUB_TEST_ACCESS_LOG";

/// `METHOD path?query` of all requests in the log.
fn logged() -> Result<Vec<String>> {
    let log = std::env::var(LOG_VARIABLE).context("no access log")?;
    let text = std::fs::read_to_string(log)?;
    // 127.0.0.1 - - [21/Nov/2026:15:00:00 +0000] "GET /devstoreaccount1/q/messages HTTP/1.1" 200 -
    Ok(text
        .lines()
        .filter_map(|line| line.split('"').nth(1)?.strip_suffix(" HTTP/1.1"))
        .map(str::to_owned)
        .collect())
}

/// The operation behind a request, as the service's reference has it; what two services spell alike is one.
fn operation(request: &str) -> String {
    let (method, rest) = request.split_once(' ').unwrap_or((request, ""));
    let path_and_query = rest.strip_prefix("/devstoreaccount1").unwrap_or(rest);
    let (path, query) = path_and_query.split_once('?').unwrap_or((path_and_query, ""));
    let asks = |what: &str| query.split('&').any(|part| part == what);
    let depth = path.split('/').filter(|part| !part.is_empty()).count();
    let name = match method {
        "GET" if depth == 0 && asks("comp=list") => "ListQueues or ListContainers",
        "GET" if path == "/Tables" => "ListTables",
        "POST" if path == "/Tables" => "CreateTable",
        "DELETE" if path.starts_with("/Tables(") => "DeleteTable",
        "POST" if path == "/$batch" => "EntityGroupTransaction",
        "GET" if path.ends_with("/messages") && asks("peekonly=true") => "PeekMessages",
        "GET" if path.ends_with("/messages") => "GetMessages",
        "POST" if path.ends_with("/messages") => "PutMessage",
        "PUT" if path.contains("/messages/") => "UpdateMessage",
        "DELETE" if path.contains("/messages/") => "DeleteMessage",
        "GET" | "HEAD" if depth == 1 && asks("comp=metadata") => "GetQueueMetadata",
        "PUT" if asks("comp=lease") => "a lease",
        "PUT" if depth == 1 && asks("restype=container") => "CreateContainer",
        "DELETE" if depth == 1 && asks("restype=container") => "DeleteContainer",
        "GET" if depth == 1 && asks("comp=list") => "ListBlobs",
        "GET" if path.ends_with("()") => "QueryEntities",
        "GET" if path.ends_with(')') => "GetEntity",
        "PUT" | "PATCH" | "MERGE" | "POST" if path.ends_with(')') => "a write of an entity",
        "DELETE" if path.ends_with(')') => "DeleteEntity",
        "POST" if depth == 1 => "a write of an entity",
        "PUT" if depth == 1 => "CreateQueue",
        "DELETE" if depth == 1 => "DeleteQueue",
        "PUT" => "PutBlob",
        "GET" => "GetBlob",
        "HEAD" => "GetBlobProperties",
        "DELETE" => "DeleteBlob",
        _ => request,
    };
    name.to_owned()
}

/// The same names for what the program has counted.
fn spelt_alike(operation: &str) -> &str {
    match operation {
        "ListQueues" | "ListContainers" => "ListQueues or ListContainers",
        "AcquireLease" | "RenewLease" | "ChangeLease" | "ReleaseLease" | "BreakLease" => "a lease",
        "InsertEntity" | "UpdateEntity" | "MergeEntity" | "InsertOrReplaceEntity" | "InsertOrMergeEntity" => {
            "a write of an entity"
        }
        other => other,
    }
}

/// Measurements in one process.
const IN_ONE_PROCESS: [&[&str]; 8] = [
    &["isolated"],
    &["hello", "--instances", "40", "--concurrency", "8"],
    &["hello", "--instances", "10", "--concurrency", "2", "--activities", "5", "--compare-dtfx-cadence"],
    &["fan-out", "--instances", "4", "--concurrency", "2", "--activities", "40"],
    &["timers", "--instances", "10", "--concurrency", "5", "--timer-seconds", "1"],
    &["sub-orchestrations", "--instances", "10", "--concurrency", "4"],
    &["payloads", "--instances", "10", "--concurrency", "4", "--payload-bytes", "150000"],
    &["entities", "--signals", "20"],
];

/// Measurements with workers in processes of their own, which say in the end what they have sent. A worker that
/// is killed cannot.
const IN_SEVERAL_PROCESSES: [&[&str]; 3] =
    [&["fleet", "--case", "graceful-stop"], &["fleet", "--case", "lost-receive"], &["balance"]];

/// On an emulator that logs and that nobody else uses.
fn counted_and_logged(scenarios: &[&[&str]]) -> Result<()> {
    for arguments in scenarios {
        let before = logged()?.len();
        let mut command = Command::new(taskhub());
        command.args(["bench", "--output", "json", "--scenario"]).args(*arguments);
        let output = command.args(["--connection-string", &connection()]).output()?;
        ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let report: Value = serde_json::from_slice(&output.stdout)?;
        let lines = report["cost"]["lines"].as_array().context("no lines")?;
        let mut counted = BTreeMap::new();
        for line in lines {
            let name = spelt_alike(line["operation"].as_str().context("no operation")?).to_owned();
            *counted.entry(name).or_insert(0) += line["requests"].as_u64().context("no number")?;
        }
        let mut found = BTreeMap::new();
        for request in &logged()?[before..] {
            *found.entry(operation(request)).or_insert(0) += 1;
        }
        ensure!(counted == found, "{arguments:?}: {counted:?} counted, {found:?} logged");
        ensure!(report["cost"]["processesWithoutBill"] == 0, "{report}");
        let all: u64 = counted.values().sum();
        ensure!(report["cost"]["requests"] == all && all > 30, "{report}");
        let names = lines.iter().filter(|line| line["orchestration"].is_string());
        ensure!(names.count() > 0 || arguments[0] == "balance", "{report}");
        println!("{arguments:?}: {all} requests, difference 0");
    }
    Ok(())
}

/// Requests by orchestration, meter and operation.
fn bill(report: &Value) -> Result<BTreeMap<[Option<String>; 3], u64>> {
    let lines = report["lines"].as_array().context("no lines")?;
    let names = ["orchestration", "meter", "operation"];
    let kind = |line: &Value| names.map(|name| line[name].as_str().map(str::to_owned));
    lines.iter().map(|line| Ok((kind(line), line["requests"].as_u64().context("no number")?))).collect()
}

#[tokio::test]
async fn a_worker_tells_what_its_requests_cost_while_it_runs_and_when_it_has_ended() -> Result<()> {
    on_a_hub(async |hub| {
        let site = Site::new(hub.name(), &json!({"maxQueuePollingInterval": "00:00:01"}))?;
        let log = site.directory().join("costs.jsonl");
        let options = ["--health-listen", "127.0.0.1:0", "--cost-log", &log.to_string_lossy()];
        let mut worker = site.start("w", "w", &options)?;
        worker.runs().await;
        hub.client()?.start(Start::new("HelloSequence").instance_id("a")).await?;
        hub.until("a", "finished", |state| state.completed_at.is_some()).await;

        let text = worker.log_text();
        let address = text.split("Health endpoints at http://").nth(1).context("no endpoints")?;
        let address = address.split('/').next().context("no address")?;
        let mut command = Command::new(taskhub());
        command.args(["cost", "--output", "json", &format!("http://{address}/metrics")]);
        let output = command.output()?;
        ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let running = bill(&serde_json::from_slice(&output.stdout)?)?;
        let kind = |name: &str, meter: &str, operation: &str| {
            [(!name.is_empty()).then_some(name), Some(meter), Some(operation)].map(|s| s.map(str::to_owned))
        };
        ensure!(
            running.contains_key(&kind("HelloSequence", "table", "EntityGroupTransaction"))
                && running.contains_key(&kind("HelloSequence", "queue class 1", "PutMessage"))
                && running.contains_key(&kind("", "queue class 2", "GetMessages")),
            "{running:?}"
        );

        worker.send(Signal::Terminate).await?;
        ensure!(worker.ended().await?.success(), "{}", worker.log_text());
        let report: Value = serde_json::from_str(std::fs::read_to_string(&log)?.trim_end())?;
        let ended = bill(&report)?;
        ensure!(report["worker"] == "w" && report["requests"] == ended.values().sum::<u64>(), "{report}");
        for (kind, requests) in &running {
            ensure!(ended.get(kind) >= Some(requests), "{kind:?}: {running:?} {ended:?}");
        }
        site.remove()
    })
    .await
}

/// The test of this name, with an emulator for itself that logs.
fn with_a_log(test: &str, scenarios: &[&[&str]]) -> Result<()> {
    if std::env::var_os(LOG_VARIABLE).is_some() {
        return counted_and_logged(scenarios);
    }
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/../scripts/azurite.sh");
    let mut command = Command::new(script);
    command.args(["run", "--"]).arg(std::env::current_exe()?);
    command.args(["--exact", "--nocapture", "--include-ignored", test]);
    let output = command.env(LOG_VARIABLE, "1").output()?;
    let text = String::from_utf8_lossy(&output.stdout);
    ensure!(output.status.success(), "{text}\n{}", String::from_utf8_lossy(&output.stderr));
    ensure!(text.matches("difference 0").count() == scenarios.len(), "{text}");
    Ok(())
}

#[test]
fn every_request_of_a_measurement_is_on_its_bill_and_nothing_else() -> Result<()> {
    with_a_log("every_request_of_a_measurement_is_on_its_bill_and_nothing_else", &IN_ONE_PROCESS)
}

#[test]
#[ignore = "nightly: takes minutes"]
fn every_request_of_worker_processes_is_on_the_bill_and_nothing_else() -> Result<()> {
    with_a_log("every_request_of_worker_processes_is_on_the_bill_and_nothing_else", &IN_SEVERAL_PROCESSES)
}
