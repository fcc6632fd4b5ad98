//! Workers in processes of their own, which can be stopped and killed.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use taskhub_azure_storage::{AzureStorageSettings, Hub, OwnershipState};
use taskhub_core::{IdSource, RandomIds, TaskHubName};
use taskhub_storage::request::OperationCounts;
use tokio::process::{Child, Command};
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::bill::Bill;
use super::rig::{Cadence, Place, new_hub_name};
use crate::config::Connection;
use crate::{cost, wire};

/// Environment variable that gives the processes their connection string; a command line can be read by
/// everybody on the machine.
const CONNECTION_VARIABLE: &str = "TASKHUB_BENCH_CONNECTION";
/// Longest wait for partitions to be divided.
const LONGEST: Duration = Duration::from_secs(600);
/// Between two looks at the partitions.
const LOOK_INTERVAL: Duration = Duration::from_millis(250);

/// A hub of its own, with processes that work on it.
pub(super) struct Fleet {
    pub(super) hub: Hub,
    connection: Connection,
    partition_count: u32,
    workers: Vec<(String, Child)>,
    activity_log: PathBuf,
    /// What workers that end in order have sent.
    cost_log: PathBuf,
    /// How many were started.
    started: u32,
    /// What this process sends.
    counts: OperationCounts,
    bill: Bill,
    dtfx_cadence: bool,
    interrupted: CancellationToken,
}

impl Fleet {
    /// Creates a hub. Nobody works on it yet.
    pub(super) async fn create(place: &Place, partition_count: u32) -> Result<Self> {
        let Some(connection) = place.connection.clone() else {
            bail!("processes cannot share the embedded store: use --azurite, or name a storage account");
        };
        let name = place.hub.clone().map_or_else(new_hub_name, Ok::<TaskHubName, anyhow::Error>)?;
        let mut settings = AzureStorageSettings::new(name.clone(), wire::worker_id());
        settings.partition_count = Some(partition_count);
        settings.partition_manager = Some(place.partition_manager.into());
        settings.dtfx_cadence = place.cadence == Cadence::Dtfx;
        let counts = OperationCounts::default();
        let hub = wire::hub_in(wire::counted_account(&connection, &counts)?, settings)?;
        if hub.detect().await?.is_some() {
            bail!("the measurement makes a task hub and deletes it, but this one exists. hub=`{name}`");
        }
        hub.create().await?;
        let chance = RandomIds.guid().simple().to_string();
        Ok(Self {
            hub,
            connection,
            partition_count,
            workers: Vec::new(),
            activity_log: std::env::temp_dir().join(format!("taskhub-bench-{chance}.jsonl")),
            cost_log: std::env::temp_dir().join(format!("taskhub-bench-{chance}-cost.jsonl")),
            started: 0,
            counts,
            bill: place.bill.clone(),
            dtfx_cadence: place.cadence == Cadence::Dtfx,
            interrupted: place.interrupted.clone(),
        })
    }

    /// Starts a worker as a process.
    pub(super) fn start(&mut self, id: &str) -> Result<()> {
        let program = std::env::current_exe().context("could not find this program")?;
        let mut command = Command::new(program);
        command
            .args(["worker", "--samples", "--worker-id", id])
            .args(["--task-hub-name", self.hub.name().as_str()])
            .args(["--partition-count", &self.partition_count.to_string()])
            .arg("--activity-log")
            .arg(&self.activity_log)
            .arg("--cost-log")
            .arg(&self.cost_log)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .kill_on_drop(true);
        if self.dtfx_cadence {
            command.arg("--dtfx-cadence");
        }
        // Ctrl-C is for the measurement, which ends its workers itself.
        #[cfg(unix)]
        command.process_group(0);
        match &self.connection {
            Connection::Text(text) => {
                command.env(CONNECTION_VARIABLE, &text.0);
                command.args(["--connection-string-setting", CONNECTION_VARIABLE]);
            }
            Connection::Identity(found) => match &found.account {
                Some(account) if found.origin == "--account-name" => {
                    command.args(["--account-name", account]);
                }
                _ => {
                    command.args(["--connection-string-setting", &found.origin]);
                }
            },
        }
        let child = command.spawn().context("could not start a worker")?;
        self.workers.push((id.to_owned(), child));
        self.started += 1;
        Ok(())
    }

    /// Waits until the workers that run own all partitions, none two more than another.
    pub(super) async fn balanced(&self) -> Result<Duration> {
        let begun = Instant::now();
        let alive: Vec<&str> = self.workers.iter().map(|(id, _)| id.as_str()).collect();
        while begun.elapsed() < LONGEST {
            if self.interrupted.is_cancelled() {
                bail!("interrupted");
            }
            let owners = self.owners().await?;
            let owned = |id: &&str| owners.get(*id).copied().unwrap_or(0);
            let counts: Vec<u32> = alive.iter().map(owned).collect();
            let (least, most) = (counts.iter().min(), counts.iter().max());
            if counts.iter().sum::<u32>() == self.partition_count
                && let (Some(least), Some(most)) = (least, most)
                && most - least <= 1
            {
                return Ok(begun.elapsed());
            }
            tokio::time::sleep(LOOK_INTERVAL).await;
        }
        bail!("the partitions are not divided. hub=`{}` owners=`{:?}`", self.hub.name(), self.owners().await?)
    }

    /// How many partitions each worker owns that no other waits for.
    async fn owners(&self) -> Result<BTreeMap<String, u32>> {
        let mut owners = BTreeMap::new();
        for partition in self.hub.inspect().await?.owners {
            if let (OwnershipState::Owned, Some(owner)) = (partition.state, partition.owner) {
                *owners.entry(owner.to_string()).or_default() += 1;
            }
        }
        Ok(owners)
    }

    /// Tells a worker to stop, by SIGTERM. Returns at once.
    pub(super) async fn terminate(&mut self, id: &str) -> Result<Leaving> {
        let mut child = self.take(id)?;
        let process = child.id().context("a worker has ended by itself")?;
        let told = Command::new("kill").args(["-TERM", &process.to_string()]).status().await;
        if !told.context("could not run `kill`, which stops a worker")?.success() {
            bail!("a worker could not be told to stop");
        }
        let told_at = Instant::now();
        Ok(Leaving(tokio::spawn(async move {
            let status = child.wait().await?;
            if !status.success() {
                bail!("a worker that was told to stop ended otherwise: {status}");
            }
            Ok(told_at.elapsed())
        })))
    }

    /// Kills a worker. It is gone on return.
    pub(super) async fn kill(&mut self, id: &str) -> Result<()> {
        let mut child = self.take(id)?;
        Ok(child.kill().await?)
    }

    fn take(&mut self, id: &str) -> Result<Child> {
        let at = self.workers.iter().position(|(worker, _)| worker == id).context("no such worker")?;
        Ok(self.workers.remove(at).1)
    }

    /// Lines of the activity log: instance, execution, number of the task.
    pub(super) fn activities(&self) -> Result<Vec<(String, String, i64)>> {
        let text = std::fs::read_to_string(&self.activity_log).context("could not read the activity log")?;
        let mut all = Vec::new();
        for line in text.lines() {
            let line: serde_json::Value = serde_json::from_str(line)?;
            let text = |name: &str| line[name].as_str().unwrap_or_default().to_owned();
            all.push((text("instanceId"), text("executionId"), line["taskId"].as_i64().unwrap_or(-1)));
        }
        Ok(all)
    }

    /// Does something with the workers, unless the user has had enough; then ends them and deletes the hub.
    pub(super) async fn during<T>(mut self, what: impl AsyncFnOnce(&mut Self) -> Result<T>) -> Result<T> {
        let interrupted = self.interrupted.clone();
        let done = tokio::select! {
            done = what(&mut self) => done,
            () = interrupted.cancelled() => Err(anyhow::anyhow!("interrupted")),
        };
        let ended = if done.is_ok() && cfg!(unix) { self.end_in_order().await } else { Ok(()) };
        for (_, child) in &mut self.workers {
            child.kill().await?;
        }
        let text = std::fs::read_to_string(&self.cost_log).unwrap_or_default();
        for log in [&self.activity_log, &self.cost_log] {
            if let Err(error) = std::fs::remove_file(log) {
                tracing::debug!(%error, "no log to remove");
            }
        }
        self.hub.delete().await?;
        let done = done?;
        ended?;
        self.bill.add(&self.counts);
        let bills = cost::read_log(&text)?;
        let told = u32::try_from(bills.len()).unwrap_or(u32::MAX);
        self.bill.add_processes_without_bill(self.started.saturating_sub(told));
        self.bill.add_lines(bills.into_iter().flatten());
        Ok(done)
    }

    /// Workers that end in order say what they have sent.
    async fn end_in_order(&mut self) -> Result<()> {
        let mut leaving = Vec::new();
        while let Some(id) = self.workers.first().map(|(id, _)| id.clone()) {
            leaving.push(self.terminate(&id).await?);
        }
        for worker in leaving {
            worker.ended().await?;
        }
        Ok(())
    }
}

/// A worker that has been told to stop.
pub(super) struct Leaving(JoinHandle<Result<Duration>>);

impl Leaving {
    /// Waits until it has ended, in order; how long that took.
    pub(super) async fn ended(self) -> Result<Duration> {
        self.0.await.context("nobody waited for a worker")?
    }
}
