//! The command line on a real account: the whole program but for its process.

use std::io::{self, Write};
use std::sync::{Arc, Mutex};

use anyhow::{Context, Result, ensure};
use azurite_tests::{account, connection, unique_hub_name};
use clap::Parser;
use serde_json::Value;
use taskhub_cli::args::Cli;
use taskhub_cli::{Console, Environment, Exit};
use taskhub_storage::StorageAccount;
use taskhub_testkit::eventually;

/// What a command has written to standard output.
#[derive(Clone, Default)]
struct Output(Arc<Mutex<Vec<u8>>>);

impl Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().expect("nobody panics while writing").extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A hub seen through command lines.
struct Hub(String);

impl Hub {
    fn new() -> Self {
        Self(unique_hub_name().to_string())
    }

    fn parse(&self, line: &[&str]) -> Result<Cli> {
        let own = ["--task-hub-name", &self.0, "--connection-string-setting", "Emulator"];
        Ok(Cli::try_parse_from(["taskhub"].iter().chain(line).chain(&own))?)
    }

    async fn run(&self, line: &[&str]) -> Result<(Exit, String)> {
        let cli = self.parse(line)?;
        let environment = Environment {
            variable: Box::new(|name| (name == "Emulator").then(connection)),
            directory: std::env::temp_dir(),
        };
        let out = Output::default();
        let mut console = Console::to_writers(cli.common.output, out.clone(), io::sink());
        let exit = taskhub_cli::run(cli, &environment, &mut console).await?;
        let bytes = std::mem::take(&mut *out.0.lock().expect("nobody panics while writing"));
        Ok((exit, String::from_utf8(bytes)?))
    }

    /// The output of a command that has to succeed.
    async fn text(&self, line: &[&str]) -> Result<String> {
        let (exit, out) = self.run(line).await.with_context(|| line.join(" "))?;
        ensure!(exit == Exit::Done, "{}: {exit:?}", line.join(" "));
        Ok(out)
    }

    async fn json(&self, line: &[&str]) -> Result<Value> {
        Ok(serde_json::from_str(&self.text(&[line, &["--output", "json"]].concat()).await?)?)
    }
}

/// Names of all queues, tables and containers that begin with the hub's name.
async fn resources(account: &StorageAccount, hub: &str) -> Result<Vec<String>> {
    let mut names = account.queues.list_queues(&hub.to_lowercase()).await?;
    names.extend(account.tables.list_tables(hub).await?);
    names.extend(account.blobs.list_containers(&hub.to_lowercase()).await?);
    Ok(names)
}

#[tokio::test]
async fn instances_are_started_listed_and_removed_with_no_worker() -> Result<()> {
    let hub = Hub::new();
    for id in ["a", "b", "c", "d", "with/slash#and?more"] {
        hub.text(&["start-new", "--function-name", "HelloSequence", "--id", id, "--input", "[1, 2]"]).await?;
    }
    let state = hub.json(&["get-runtime-status", "--id", "with/slash#and?more", "--show-input"]).await?;
    ensure!(state["OrchestrationStatus"] == 6 && state["Input"] == "[1,2]", "{state}");
    let hidden = hub.json(&["get-runtime-status", "--id", "a"]).await?;
    ensure!(hidden["Input"].is_null(), "{hidden}");

    let mut pages = Vec::new();
    let mut token = String::new();
    loop {
        let page = hub.json(&["get-instances", "--top", "2", "--continuation-token", &token]).await?;
        pages.push(page["instances"].as_array().map(Vec::len));
        match page["continuationToken"].as_str() {
            Some(next) => token = next.to_owned(),
            None => break,
        }
    }
    ensure!(pages == [Some(2), Some(2), Some(1)], "{pages:?}");
    let none = hub.json(&["get-instances", "--runtime-status", "running completed"]).await?;
    ensure!(none["instances"] == serde_json::json!([]), "{none}");

    ensure!(hub.run(&["purge-history", "--id", "a"]).await.is_err(), "a pending instance was purged");
    let purged = hub.json(&["purge-history", "--id", "a", "--force"]).await?;
    ensure!(purged["instancesDeleted"] == 1, "{purged}");
    ensure!(hub.json(&["purge-history"]).await?["instancesDeleted"] == 0, "pending instances were purged");

    hub.text(&["delete-task-hub", "--yes"]).await?;
    let left = resources(&account()?, &hub.0).await?;
    ensure!(left.is_empty(), "{left:?}");
    Ok(())
}

#[tokio::test]
async fn a_mistyped_hub_is_an_error_and_creates_nothing() -> Result<()> {
    let hub = Hub::new();
    for line in [
        &["raise-event", "--id", "x", "--event-name", "E"][..],
        &["terminate", "--id", "x"],
        &["suspend", "--id", "x"],
        &["resume", "--id", "x"],
        &["rewind", "--id", "x"],
        &["restart", "--id", "x"],
        &["wait", "--id", "x"],
        &["purge-history"],
        &["entity", "signal", "Counter", "a", "--op", "add"],
        &["make-primary"],
    ] {
        let Err(error) = hub.run(line).await else { anyhow::bail!("{line:?} succeeded") };
        let error = format!("{error:#}");
        let named = format!("task hub '{}' does not exist", hub.0);
        ensure!(error.contains(&named) && error.contains("create-task-hub"), "{line:?}: {error}");
    }
    let nothing = hub.json(&["get-instances"]).await?;
    ensure!(nothing["instances"] == serde_json::json!([]), "{nothing}");
    let found = resources(&account()?, &hub.0).await?;
    ensure!(found.is_empty(), "{found:?}");
    Ok(())
}

#[tokio::test]
async fn a_worker_runs_what_the_commands_ask_for() -> Result<()> {
    let hub = Hub::new();
    hub.text(&["create-task-hub", "--partition-count", "2"]).await?;
    let shown = hub.json(&["hub", "show"]).await?;
    ensure!(shown["partitionCount"] == 2 && shown["queues"].as_array().map(Vec::len) == Some(3), "{shown}");

    let worker = hub.run(&["worker", "--samples", "--worker-id", "cli-test"]);
    let commands = async {
        for (function, id) in [("HelloSequence", "hello"), ("Approval", "approval"), ("Approval", "doomed")] {
            hub.text(&["start-new", "--function-name", function, "--id", id]).await?;
        }
        let hello = hub.json(&["wait", "--id", "hello", "--timeout", "60"]).await?;
        ensure!(hello["Output"] == r#"["Hello Tokyo!","Hello Seattle!","Hello London!"]"#, "{hello}");
        let history = hub.json(&["get-history", "--id", "hello"]).await?;
        ensure!(history[1]["EventType"] == "ExecutionStarted" && history[1]["IsPlayed"] == true, "{history}");

        eventually("the approval waits", || async {
            let approval = hub.json(&["get-history", "--id", "approval"]).await.ok()?;
            approval.as_array()?.iter().find(|e| e["EventType"] == "TimerCreated").map(drop)
        })
        .await;
        let raise =
            ["raise-event", "--id", "approval", "--event-name", "ApprovalEvent", "--event-data", "true"];
        hub.text(&raise).await?;
        let approval = hub.json(&["wait", "--id", "approval", "--timeout", "60"]).await?;
        ensure!(approval["Output"] == r#""approved:true""#, "{approval}");

        let said = hub.text(&["terminate", "--id", "doomed", "--reason", "not wanted"]).await?;
        ensure!(said.ends_with("Successfully terminated 'doomed'\n"), "{said}");
        let (exit, _) = hub.run(&["wait", "--id", "doomed"]).await?;
        ensure!(exit == Exit::NotCompleted, "{exit:?}");
        Ok(())
    };
    tokio::select! {
        ended = worker => { ended?; anyhow::bail!("the worker ended") }
        done = commands => done?,
    }
    hub.text(&["delete-task-hub"]).await?;
    Ok(())
}

#[tokio::test]
async fn dead_letters_are_listed_put_back_and_thrown_away() -> Result<()> {
    let hub = Hub::new();
    hub.text(&["create-task-hub"]).await?;
    let account = account()?;
    let (queue, text) = (format!("{}-workitems", hub.0.to_lowercase()), "not <json> & not base64 \u{1f600}");
    account.queues.put_message(&queue, text, std::time::Duration::ZERO).await?;
    ensure!(hub.text(&["dead-letter", "list"]).await? == "No dead letters.\n");

    let worker = hub.parse(&["worker", "--samples", "--quarantine-after", "2"])?;
    let environment = Environment {
        variable: Box::new(|name| (name == "Emulator").then(connection)),
        directory: std::env::temp_dir(),
    };
    let running = tokio::spawn(async move {
        let mut console = Console::to_writers(None, io::sink(), io::sink());
        taskhub_cli::run(worker, &environment, &mut console).await
    });
    let id = eventually("a quarantined message", || async {
        let list = hub.json(&["dead-letter", "list", "--state", "quarantined"]).await.ok()?;
        list["deadLetters"][0]["id"].as_str().map(str::to_owned)
    })
    .await;
    running.abort();

    let shown = hub.json(&["dead-letter", "show", &id[..8]]).await?;
    ensure!(shown["text"] == text && shown["reason"] == "not_a_message" && shown["failures"] == 2, "{shown}");
    ensure!(hub.json(&["dead-letter", "requeue", "--all"]).await?["requeued"] == 1);
    let again = account.queues.peek_messages(&queue, 1).await?;
    ensure!(again.len() == 1 && again[0].text == text, "{again:?}");
    ensure!(hub.text(&["dead-letter", "list"]).await? == "No dead letters.\n");
    hub.text(&["hub", "delete", "--yes"]).await?;
    ensure!(resources(&account, &hub.0).await?.is_empty());
    Ok(())
}

#[tokio::test]
async fn what_func_durable_does_not_have_works_too() -> Result<()> {
    let hub = Hub::new();
    let would = hub.json(&["hub", "create", "--partition-count", "2", "--dry-run"]).await?;
    ensure!(would["queues"].as_array().map(Vec::len) == Some(3), "{would}");
    ensure!(resources(&account()?, &hub.0).await?.is_empty(), "a dry run has made something");
    hub.text(&["hub", "create", "--partition-count", "2"]).await?;

    let directory = tempfile::tempdir()?;
    let file = directory.path().join("starts.json");
    let starts: Vec<Value> = (0..40)
        .map(|n| serde_json::json!({"FunctionName": "HelloSequence", "InstanceId": format!("i{n:02}"), "Input": n}))
        .collect();
    std::fs::write(&file, Value::from(starts).to_string())?;
    let started = hub.json(&["start-new", "--batch", &format!("@{}", file.display())]).await?;
    ensure!(started.as_array().map(Vec::len) == Some(40), "{started}");
    let all: Vec<Value> = serde_json::from_str(&hub.text(&["get-instances", "--all"]).await?)?;
    ensure!(all.len() == 40, "{}", all.len());
    let (exit, _) = hub.run(&["wait", "--id", "i00", "--for", "start", "--timeout", "0.5"]).await?;
    ensure!(exit == Exit::TimedOut, "{exit:?}");

    hub.text(&["entity", "signal", "Counter", "a", "--op", "add", "--input", "5"]).await?;
    ensure!(
        hub.text(&["entity", "get", "counter", "a"]).await?.starts_with("Could not find"),
        "an entity ran"
    );
    ensure!(hub.json(&["entity", "list"]).await?["entities"] == serde_json::json!([]), "an entity ran");
    let cleaned = hub.json(&["entity", "clean"]).await?;
    ensure!(cleaned["numberOfEmptyEntitiesRemoved"] == 0, "{cleaned}");

    let worker = hub.run(&["worker", "--samples", "--worker-id", "cli-test"]);
    let commands = async {
        let (exit, _) = hub.run(&["wait", "--id", "i39", "--for", "start", "--timeout", "60"]).await?;
        ensure!(exit == Exit::Done, "{exit:?}");
        for n in 0..40 {
            hub.json(&["wait", "--id", &format!("i{n:02}"), "--timeout", "60"]).await?;
        }
        // The signal from before has made the entity.
        let counts = async |state: &'static str| {
            eventually("the entity is as it should be", || async {
                let shown = hub.text(&["entity", "get", "counter", "a"]).await.ok()?;
                shown.starts_with(state).then_some(())
            })
            .await;
        };
        counts("5").await;
        hub.text(&["entity", "signal", "Counter", "a", "--op", "add"]).await?;
        counts("6").await;
        let listed = hub.json(&["entity", "list", "Counter", "--fetch-state"]).await?;
        ensure!(listed["entities"][0]["state"] == 6, "{listed}");
        let instances = hub.text(&["get-instances", "--all", "--exclude-entities"]).await?;
        ensure!(!instances.contains("@counter@a"), "{instances}");
        hub.text(&["entity", "signal", "Counter", "a", "--op", "delete"]).await?;
        counts("Could not find").await;
        ensure!(hub.json(&["entity", "list"]).await?["entities"] == serde_json::json!([]), "it is deleted");
        let events = hub.json(&["get-history", "--id", "i00", "--format", "events"]).await?;
        ensure!(events[0]["FunctionName"] == "HelloSequence", "{events}");
        ensure!(events[1]["Result"] == "Hello Tokyo!", "{events}");
        let again = hub.json(&["restart", "--id", "i00"]).await?;
        let id = again["instanceId"].as_str().context("a restart has an id")?.to_owned();
        let again = hub.json(&["wait", "--id", &id, "--timeout", "60"]).await?;
        ensure!(again["Name"] == "HelloSequence" && again["OrchestrationStatus"] == 1, "{again}");
        ensure!(hub.run(&["rewind", "--id", "i00"]).await.is_err(), "a completed instance was rewound");
        hub.text(&["make-primary", "--app-name", "another"]).await?;
        Ok(())
    };
    tokio::select! {
        ended = worker => { ended?; anyhow::bail!("the worker ended") }
        done = commands => done?,
    }
    let counted = hub.json(&["purge-history", "--older-than", "0s", "--dry-run"]).await?;
    ensure!(counted["instances"] == 41, "{counted}");
    ensure!(hub.json(&["purge-history", "--older-than", "1d"]).await?["instancesDeleted"] == 0, "too young");
    let purged = hub.json(&["purge-history", "--older-than", "0s", "--id-prefix", "i"]).await?;
    ensure!(purged["instancesDeleted"].as_u64() >= Some(40), "{purged}");
    hub.text(&["purge-history", "--older-than", "0s", "--per-second", "100", "--timeout", "60"]).await?;
    let left: Vec<Value> = serde_json::from_str(&hub.text(&["get-instances", "--all"]).await?)?;
    ensure!(left.iter().all(|state| state["Name"] != "HelloSequence"), "{left:?}");

    let listed = hub.text(&["delete-task-hub", "--dry-run"]).await?;
    for name in resources(&account()?, &hub.0).await? {
        ensure!(listed.lines().any(|line| line.ends_with(&format!(" {name}"))), "{name} is not in {listed}");
    }
    hub.text(&["delete-task-hub"]).await?;
    ensure!(resources(&account()?, &hub.0).await?.is_empty(), "something is left");
    Ok(())
}
