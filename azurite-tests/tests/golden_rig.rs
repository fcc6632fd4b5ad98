//! What scripts rely on when they drive the program `golden-rig`.

use std::io::{BufRead, BufReader};
use std::process::{Child, ChildStdout, Command, Stdio};

use anyhow::{Context, Result, ensure};
use azurite_tests::{connection, unique_hub_name};
use serde_json::Value;

struct Rig {
    connection: String,
    hub: String,
}

impl Rig {
    fn new() -> Self {
        Self { connection: connection(), hub: unique_hub_name().to_string() }
    }

    fn command(&self, verb: &str, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_golden-rig"));
        command.args([verb, &self.connection, &self.hub]).args(arguments);
        command
    }

    fn run(&self, verb: &str, arguments: &[&str]) -> Result<String> {
        let output = self.command(verb, arguments).output()?;
        let error = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "{verb} {arguments:?}: {error}");
        Ok(String::from_utf8(output.stdout)?)
    }

    fn worker(&self, flags: &[&str]) -> Result<Worker> {
        let mut child = self.command("worker", flags).stdout(Stdio::piped()).spawn()?;
        let lines = BufReader::new(child.stdout.take().context("standard output is piped")?);
        let mut worker = Worker { child, lines };
        worker.says("worker started")?;
        Ok(worker)
    }
}

struct Worker {
    child: Child,
    lines: BufReader<ChildStdout>,
}

impl Worker {
    fn says(&mut self, wanted: &str) -> Result<()> {
        let mut line = String::new();
        while self.lines.read_line(&mut line)? > 0 {
            if line.trim_end() == wanted {
                return Ok(());
            }
            line.clear();
        }
        anyhow::bail!("the worker ended without saying `{wanted}`")
    }

    fn stop(mut self) -> Result<()> {
        let told = Command::new("kill").args(["-TERM", &self.child.id().to_string()]).status()?;
        ensure!(told.success(), "kill failed");
        let status = self.child.wait()?;
        ensure!(status.success(), "{status}");
        Ok(())
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        // It has ended already unless the test failed.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn a_held_activity_is_finished_by_the_next_worker() -> Result<()> {
    let rig = Rig::new();
    let started = rig.run("start", &["HelloSequence", "hello-1", "--tags", "env=prod,owner=José"])?;
    ensure!(started.starts_with("hello-1 ") && started.trim_end().len() == 40, "{started}");
    ensure!(rig.run("do", &["status", "nobody"])? == "null\n", "unknown instances are null");

    let mut holding = rig.worker(&["--id", "w1", "--hold", "SayHello:Seattle"])?;
    holding.says("HOLD SayHello:Seattle")?;
    holding.stop()?;
    let status = rig.run("do", &["status", "hello-1"])?;
    ensure!(status.contains("\"OrchestrationStatus\": 0"), "{status}");

    let next = rig.worker(&["--id", "w2"])?;
    rig.run("do", &["wait", "hello-1", "60"])?;
    next.stop()?;
    let status: Value = serde_json::from_str(&rig.run("do", &["status", "hello-1"])?)?;
    ensure!(status["OrchestrationStatus"] == 1 && status["Tags"]["owner"] == "José", "{status}");
    let history: Value = serde_json::from_str(&rig.run("do", &["history", "hello-1"])?)?;
    let types: Vec<_> =
        history.as_array().into_iter().flatten().filter_map(|e| e["EventType"].as_i64()).collect();
    ensure!(types == [12, 0, 4, 13, 12, 5, 4, 13, 12, 5, 4, 13, 12, 5, 1, 13], "{types:?}");
    Ok(())
}

#[test]
fn an_orchestrator_that_waits_says_so() -> Result<()> {
    let rig = Rig::new();
    rig.run("create", &["--partitions", "1"])?;
    rig.run("start", &["Approval", "approval-1", "--partitions", "1"])?;
    let mut worker = rig.worker(&["--id", "w1"])?;
    worker.says("WAIT event ApprovalEvent")?;
    rig.run("do", &["raise", "approval-1", "ApprovalEvent", "\"yes\""])?;
    rig.run("do", &["wait", "approval-1", "60"])?;
    let status: Value = serde_json::from_str(&rig.run("do", &["status", "approval-1"])?)?;
    ensure!(status["Output"] == r#""approved:\"yes\"""#, "{status}");
    worker.stop()
}

#[test]
fn every_partition_manager_runs_a_hub_and_is_found_by_the_next_worker() -> Result<()> {
    for manager in ["safe", "legacy"] {
        let rig = Rig::new();
        rig.run("create", &["--manager", manager])?;
        rig.run("start", &["HelloSequence", "hello-1", "--manager", manager])?;
        let worker = rig.worker(&["--id", "w1"])?;
        rig.run("do", &["wait", "hello-1", "60"])?;
        worker.stop()?;
        let refused = rig.command("worker", &["--id", "w2", "--manager", "table"]).output()?;
        ensure!(!refused.status.success(), "two managers on one hub");
        let error = String::from_utf8_lossy(&refused.stderr);
        ensure!(error.contains(&format!("hub_has=`{manager}`")), "{error}");
    }
    Ok(())
}
