//! Workers as processes of their own: the shipped program, as a user starts it.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::sync::OnceLock;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use taskhub_core::TaskHubName;
use taskhub_testkit::eventually;
use tokio::process::{Child, Command};

use crate::CONNECTION_VARIABLE;

/// The program `taskhub`, built from what is here if it is not up to date.
///
/// # Panics
/// When it does not build.
pub fn taskhub() -> &'static Path {
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    PROGRAM.get_or_init(|| {
        // Together with this package, so that both share what they are built from.
        let mut build = std::process::Command::new(option_env!("CARGO").unwrap_or("cargo"));
        build.args(["build", "--locked", "-p", "taskhub-cli", "-p", "azurite-tests", "--bin", "taskhub"]);
        if !cfg!(debug_assertions) {
            build.arg("--release");
        }
        // What cargo tells this test about its own package would make build scripts run again.
        for (name, _) in std::env::vars_os() {
            let name = name.to_string_lossy();
            if ["CARGO_PKG_", "CARGO_MANIFEST_", "CARGO_BIN_"].iter().any(|own| name.starts_with(own)) {
                build.env_remove(&*name);
            }
        }
        let built = build
            .args(["--message-format", "json"])
            .current_dir(env!("CARGO_MANIFEST_DIR"))
            .stderr(Stdio::inherit())
            .output()
            .expect("cargo starts");
        assert!(built.status.success(), "the program does not build");
        String::from_utf8_lossy(&built.stdout)
            .lines()
            .filter_map(|line| serde_json::from_str::<Value>(line).ok())
            .find_map(|message| {
                (message["target"]["name"] == "taskhub")
                    .then(|| message["executable"].as_str().map(Into::into))?
            })
            .expect("cargo tells where it has put the program")
    })
}

/// What a worker that must stop is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Signal {
    /// SIGKILL: the process is gone before it knows.
    Kill,
    /// SIGTERM: stop in order.
    Terminate,
    /// SIGINT, as Ctrl-C sends it.
    Interrupt,
    /// SIGHUP: the terminal is gone.
    HangUp,
}

/// Where the workers of a test run: a directory with host.json, their logs and the log of activities.
#[derive(Debug)]
pub struct Site {
    hub: TaskHubName,
    directory: PathBuf,
}

impl Site {
    /// A new directory. `storage_provider` is that section of host.json.
    ///
    /// # Errors
    /// It cannot be made.
    pub fn new(hub: &TaskHubName, storage_provider: &Value) -> Result<Self> {
        let directory = std::env::temp_dir().join(format!("taskhub-workers-{hub}"));
        std::fs::create_dir_all(&directory)?;
        let host = serde_json::json!({
            "version": "2.0",
            "extensions": {"durableTask": {"storageProvider": storage_provider}},
        });
        std::fs::write(directory.join("host.json"), host.to_string())?;
        Ok(Self { hub: hub.clone(), directory })
    }

    /// Where everything is.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// The file in which workers note what they have run.
    pub fn activity_log(&self) -> PathBuf {
        self.directory.join("activities.jsonl")
    }

    /// Starts `taskhub worker --samples`. Its log is `{log}.log` in the directory.
    ///
    /// # Errors
    /// It does not start.
    pub fn start(&self, worker_id: &str, log: &str, options: &[&str]) -> Result<WorkerProcess> {
        self.start_with(Command::new(taskhub()), worker_id, log, options)
    }

    /// The same, where another program (`nohup`) starts it.
    ///
    /// # Errors
    /// It does not start.
    pub fn start_under(
        &self,
        launcher: &str,
        worker_id: &str,
        log: &str,
        options: &[&str],
    ) -> Result<WorkerProcess> {
        let mut command = Command::new(launcher);
        command.arg(taskhub());
        self.start_with(command, worker_id, log, options)
    }

    fn start_with(
        &self,
        mut command: Command,
        worker_id: &str,
        log: &str,
        options: &[&str],
    ) -> Result<WorkerProcess> {
        let log = self.directory.join(format!("{log}.log"));
        let output = File::options().create(true).append(true).open(&log)?;
        command
            .args(["worker", "--samples", "--verbose", "--worker-id", worker_id])
            .args(["--task-hub-name", self.hub.as_str()])
            .args(["--connection-string-setting", CONNECTION_VARIABLE])
            .arg("--activity-log")
            .arg(self.activity_log())
            .args(options)
            .current_dir(&self.directory)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(output)
            .kill_on_drop(true);
        let child = command.spawn().context("the worker does not start")?;
        Ok(WorkerProcess { child, log })
    }

    /// Removes the directory: nobody needs the logs of a test that passed.
    ///
    /// # Errors
    /// It cannot be removed.
    pub fn remove(self) -> Result<()> {
        Ok(std::fs::remove_dir_all(&self.directory)?)
    }
}

/// A worker in a process of its own. Dropping it kills it.
#[derive(Debug)]
pub struct WorkerProcess {
    child: Child,
    log: PathBuf,
}

impl WorkerProcess {
    /// Where its standard error goes.
    pub fn log(&self) -> &Path {
        &self.log
    }

    /// What it has written to its log so far.
    pub fn log_text(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Waits until its log holds `text`.
    ///
    /// # Panics
    /// When it does not within a minute.
    pub async fn says(&self, text: &str) {
        eventually(&format!("{text:?} in {}", self.log.display()), async || {
            self.log_text().contains(text).then_some(())
        })
        .await;
    }

    /// Waits until it runs.
    ///
    /// # Panics
    /// When it does not within a minute.
    pub async fn runs(&self) {
        self.says("runs on task hub").await;
    }

    /// Sends a signal.
    ///
    /// # Errors
    /// It has ended already.
    pub async fn send(&mut self, signal: Signal) -> Result<()> {
        let name = match signal {
            Signal::Kill => return Ok(self.child.start_kill()?),
            Signal::Terminate => "-TERM",
            Signal::Interrupt => "-INT",
            Signal::HangUp => "-HUP",
        };
        // Not awaited so far, so that the number is still this process's, even if it has ended.
        let id = self.child.id().context("the worker has ended")?;
        let told = Command::new("kill").args([name, &id.to_string()]).status().await?;
        ensure!(told.success(), "the worker cannot be told to stop");
        Ok(())
    }

    /// Waits until it has ended.
    ///
    /// # Errors
    /// The system does not tell.
    pub async fn ended(&mut self) -> Result<ExitStatus> {
        Ok(self.child.wait().await?)
    }
}
