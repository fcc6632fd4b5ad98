//! `golden-rig`: one verb per process, over the public worker and client interfaces, for scripts that
//! drive a task hub step by step and compare what is stored.
//!
//! A worker prints `worker started`, `WAIT event NAME` when an orchestrator begins to wait for an event,
//! and `HOLD NAME:INPUT` when a held activity begins. It ends in order on SIGTERM.
#![allow(clippy::print_stdout, reason = "its standard output is its interface")]

use std::io::Write;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::{Args, Parser, Subcommand, ValueEnum};
use taskhub_azure_storage::{
    AzureStorageClient, AzureStorageService, AzureStorageSettings, Hub, PartitionManagerKind,
};
use taskhub_client::json::{self, EventTypes};
use taskhub_client::{Rewind, Start, TaskHubClient, Waited};
use taskhub_core::{Clock, IdSource, InstanceFetch, InstanceId, RandomIds, SystemClock, TaskHubName};
use taskhub_storage::azure::{AzureOptions, AzureStore};
use taskhub_storage::connection::ConnectionSettings;
use taskhub_worker::samples::{self, Hold, SampleOptions};
use taskhub_worker::{ErrorPropagationMode, Worker, WorkerSettings, WorkerState};
use tokio_util::sync::CancellationToken;

#[derive(Parser)]
#[command(name = "golden-rig", about = "Drives a task hub step by step")]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

/// What every verb takes.
#[derive(Args)]
struct HubArgs {
    /// Connection string
    connection: String,
    /// Task hub
    hub: String,
    /// [default: the hub's; a new one gets table]
    #[arg(long, value_enum)]
    manager: Option<Manager>,
    #[arg(long)]
    partitions: Option<u32>,
}

#[derive(Clone, Copy, PartialEq, ValueEnum)]
enum Manager {
    Table,
    Safe,
    Legacy,
}

#[derive(Subcommand)]
enum Verb {
    /// Runs the sample functions until SIGTERM
    Worker {
        #[command(flatten)]
        hub: HubArgs,
        /// Worker id
        #[arg(long, default_value = "golden-rig")]
        id: String,
        /// Write failure details instead of serialised exceptions
        #[arg(long)]
        details: bool,
        /// Let `BoomOnce` succeed
        #[arg(long)]
        fixed: bool,
        /// Write serialised exceptions into `Details`
        #[arg(long)]
        include_details: bool,
        /// Never return from these calls: `NAME[:INPUT][@N]`
        #[arg(long)]
        hold: Vec<Hold>,
    },
    /// Starts an instance; prints its id and its execution id
    Start {
        #[command(flatten)]
        hub: HubArgs,
        /// Orchestrator
        scenario: String,
        /// Instance id
        instance: String,
        /// Input, JSON or `@FILE`
        #[arg(allow_negative_numbers = true)]
        input: Option<String>,
        #[arg(long)]
        version: Option<String>,
        /// K=V,K=V
        #[arg(long)]
        tags: Option<String>,
        /// Seconds from now
        #[arg(long)]
        at: Option<f64>,
    },
    /// Does something to an instance
    Do {
        #[command(flatten)]
        hub: HubArgs,
        action: Action,
        /// Instance id
        instance: String,
        /// What the action needs
        #[arg(allow_negative_numbers = true)]
        arguments: Vec<String>,
    },
    /// Creates the hub
    Create {
        #[command(flatten)]
        hub: HubArgs,
    },
}

#[derive(Clone, Copy, ValueEnum)]
enum Action {
    /// Arguments: name, and JSON or nothing
    Raise,
    /// Arguments: operation, and JSON or nothing
    Signal,
    /// Argument: reason or nothing
    Terminate,
    /// Argument: reason or nothing
    Suspend,
    /// Argument: reason or nothing
    Resume,
    /// Argument: reason or nothing
    Rewind,
    Purge,
    Status,
    History,
    /// Argument: seconds, 60
    Wait,
}

#[tokio::main]
async fn main() -> Result<()> {
    match Cli::parse().verb {
        Verb::Worker { hub, id, details, fixed, include_details, hold } => {
            let settings = WorkerSettings {
                error_propagation_mode: if details {
                    ErrorPropagationMode::UseFailureDetails
                } else {
                    ErrorPropagationMode::SerializeExceptions
                },
                include_details,
                drain_timeout: Duration::from_secs(5),
                ..WorkerSettings::default()
            };
            run_worker(hub.open(&id)?, settings, fixed, hold).await
        }
        Verb::Start { hub, scenario, instance, input, version, tags, at } => {
            let mut start = Start::new(scenario).instance_id(instance);
            if let Some(input) = input {
                start = start.raw_input(match input.strip_prefix('@') {
                    Some(file) => std::fs::read_to_string(file)?.trim().to_owned(),
                    None => input,
                });
            }
            if let Some(version) = version {
                start = start.version(version);
            }
            for tag in tags.iter().flat_map(|t| t.split(',')) {
                let (key, value) = tag.split_once('=').context("a tag is K=V")?;
                start = start.tag(key, value);
            }
            if let Some(seconds) = at {
                start = start.scheduled_at(SystemClock.now() + Duration::try_from_secs_f64(seconds)?);
            }
            let started = client(hub)?.start(start).await?;
            println!("{} {}", started.instance_id, started.execution_id);
            Ok(())
        }
        Verb::Do { hub, action, instance, arguments } => {
            act(&client(hub)?, action, &InstanceId::new(instance), &arguments).await
        }
        Verb::Create { hub } => Ok(client(hub)?.create_hub().await?),
    }
}

impl HubArgs {
    fn open(self, worker_id: &str) -> Result<Hub> {
        let mut settings = AzureStorageSettings::new(TaskHubName::existing(self.hub)?, worker_id);
        settings.partition_count = self.partitions;
        settings.partition_manager = self.manager.map(|manager| match manager {
            Manager::Table => PartitionManagerKind::Table,
            Manager::Safe => PartitionManagerKind::Safe,
            Manager::Legacy => PartitionManagerKind::Legacy,
        });
        let account =
            AzureStore::connect(&ConnectionSettings::parse(&self.connection)?, &AzureOptions::default())?;
        let (clock, ids): (Arc<dyn Clock>, Arc<dyn IdSource>) = (Arc::new(SystemClock), Arc::new(RandomIds));
        Ok(Hub::new(settings, account, clock, ids)?)
    }
}

fn client(hub: HubArgs) -> Result<TaskHubClient> {
    Ok(TaskHubClient::new(Arc::new(AzureStorageClient::new(hub.open("golden-rig-client")?))))
}

async fn act(client: &TaskHubClient, action: Action, id: &InstanceId, arguments: &[String]) -> Result<()> {
    let first = arguments.first().map(String::as_str);
    match action {
        Action::Raise => {
            let name = first.context("raise needs the name of the event")?;
            client.raise_raw_event(id, name, arguments.get(1).cloned()).await?;
        }
        Action::Terminate => client.terminate(id, first).await?,
        Action::Suspend => client.suspend(id, first).await?,
        Action::Resume => client.resume(id, first).await?,
        Action::Purge => {
            let removed = client.purge(id).await?;
            println!("{} instances, {} rows, {} blobs", removed.instances, removed.rows, removed.blobs);
        }
        Action::Status => match client.state(id, InstanceFetch::ALL).await? {
            Some(state) => println!("{:#}", json::state(&state)),
            None => println!("null"),
        },
        Action::History => {
            println!("{:#}", json::history(&client.history(id).await?, EventTypes::Numbers));
        }
        Action::Wait => {
            let seconds = first.map_or(Ok(60.0), str::parse)?;
            match client.wait_for_completion(id, Duration::try_from_secs_f64(seconds)?).await? {
                Waited::Finished(state) => {
                    println!("{id} {}", state.status.map_or("unknown", |status| status.name()));
                }
                Waited::TimedOut(state) => {
                    let status = state.and_then(|s| s.status).map_or("unknown", |status| status.name());
                    bail!("{id} is {status} after {seconds} s");
                }
            }
        }
        Action::Signal => {
            let operation = first.context("signal needs the name of the operation")?;
            client.signal_entity(&id.as_str().parse()?, operation, arguments.get(1).cloned(), None).await?;
        }
        Action::Rewind => {
            let rewind = first.map_or_else(Rewind::new, |reason| Rewind::new().reason(reason));
            println!("{:?}", client.rewind(id, rewind).await?);
        }
    }
    Ok(())
}

async fn run_worker(hub: Hub, settings: WorkerSettings, fixed: bool, hold: Vec<Hold>) -> Result<()> {
    tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_ansi(false)
        .with_max_level(tracing::Level::WARN)
        .init();
    let options = SampleOptions {
        fixed,
        hold,
        on_hold: Some(Arc::new(|name: &str, input: &str| line(&format!("HOLD {name}:{input}")))),
        on_wait: Some(Arc::new(|name: &str| line(&format!("WAIT event {name}")))),
        on_activity: None,
    };
    let builder = Worker::builder(Arc::new(AzureStorageService::new(hub)));
    let worker = samples::register(builder, options).settings(settings).build()?;
    let handle = worker.handle();
    let shutdown = stop_signal()?;
    let running = tokio::spawn(worker.run(shutdown));
    handle.reached(WorkerState::Running).await;
    if handle.state() == WorkerState::Running {
        line("worker started");
    }
    Ok(running.await??)
}

/// Whoever reads the lines waits for them.
fn line(text: &str) {
    let mut out = std::io::stdout().lock();
    if writeln!(out, "{text}").and_then(|()| out.flush()).is_err() {
        tracing::debug!("nobody reads standard output");
    }
}

fn stop_signal() -> Result<CancellationToken> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let token = CancellationToken::new();
    let cancelled = token.clone();
    tokio::spawn(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        cancelled.cancel();
    });
    Ok(token)
}
