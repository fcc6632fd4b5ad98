//! `worker`.

use anyhow::{Context, Result, bail};
use taskhub::Signals;
use taskhub_azure_storage::metrics::register_requests;
use taskhub_core::WorkerId;
use taskhub_http::prometheus_client::registry::Registry;
use taskhub_http::{Health, Server, health};
use taskhub_storage::request::OperationCounts;
use taskhub_worker::samples::{self, SampleOptions};
use taskhub_worker::{Worker, WorkerSettings, WorkerState};

use crate::args::{CommonArgs, WorkerArgs};
use crate::config::{Environment, HostJson, HubConfig};
use crate::console::Console;
use crate::{Exit, activity_log, cost, wire};

/// Runs a worker with the sample functions until it is told to stop.
pub(crate) async fn run(
    common: &CommonArgs,
    args: WorkerArgs,
    environment: &Environment,
    console: &mut Console,
) -> Result<Exit> {
    if !args.samples {
        bail!(
            "this program has no functions but the samples; add --samples, or write a worker with the \
             package taskhub: examples/my-worker shows how"
        );
    }
    let mut config = HubConfig::load(common, environment, console)?;
    if let Some(name) = args.app_name {
        config.app_name = name;
    }
    config.host.quarantine_after = args.quarantine_after.or(config.host.quarantine_after);
    config.host.fuse_activities = args.fuse_activities.then_some(true).or(config.host.fuse_activities);
    config.host.dtfx_cadence = args.dtfx_cadence.then_some(true).or(config.host.dtfx_cadence);
    let worker_id = args.worker_id.map_or_else(wire::worker_id, WorkerId::new);
    let mut hub_settings = wire::hub_settings(&config, &args.create, worker_id.clone());
    hub_settings.force_partition_manager = args.force_partition_manager;
    hub_settings.take_app_lease = args.take_app_lease;
    let counts = OperationCounts::default();
    let hub = wire::hub_in(wire::counted_account(&config.connection, &counts)?, hub_settings)?;
    let on_activity = args.activity_log.map(|path| activity_log::append_to(&path, &worker_id)).transpose()?;
    let options = SampleOptions { on_activity, ..SampleOptions::default() };
    let worker = samples::register(Worker::builder(wire::service(&hub)), options)
        .settings(WorkerSettings { drain_timeout: args.drain_timeout, ..settings(&config.host) })
        .build()?;
    let signals = taskhub::on_signals()?;
    let server = match args.health_listen {
        Some(address) => {
            let mut metrics = Registry::default();
            hub.metrics.register(&mut metrics);
            register_requests(&counts, &mut metrics);
            worker.metrics().register(&mut metrics);
            let router = health(Health::of(worker.handle()).with_metrics(metrics));
            Some(Server::start(address, router).await?)
        }
        None => None,
    };
    if let Some(server) = &server {
        console
            .note(&format!("Health endpoints at http://{}/livez, /readyz, /metrics.", server.address()))?;
    }
    let ended = attend(worker, &worker_id, &config, signals, console).await;
    if let Some(server) = server {
        server.stop().await?;
    }
    let exit = ended?;
    if let Some(path) = args.cost_log {
        cost::append_to(&path, &worker_id, &counts)?;
    }
    Ok(exit)
}

/// Tells how far the worker is, until it has ended.
async fn attend(
    worker: Worker,
    worker_id: &WorkerId,
    config: &HubConfig,
    signals: Signals,
    console: &mut Console,
) -> Result<Exit> {
    let handle = worker.handle();
    let mut running = tokio::spawn(worker.run(signals.first.clone()));
    tokio::select! {
        () = handle.reached(WorkerState::Running) => {
            console.note(&format!(
                "Worker '{worker_id}' runs on task hub '{}'. Ctrl-C stops it.",
                config.hub
            ))?;
        }
        // It ended before it began.
        ended = &mut running => return finished(ended),
        () = signals.second.cancelled() => bail!("stopped before the worker had started"),
    }
    tokio::select! {
        () = signals.first.cancelled() => console.note("Stopping; waiting for running work.")?,
        ended = &mut running => return finished(ended),
    }
    tokio::select! {
        ended = running => finished(ended),
        // The program ends at once: its messages come back after their timeout.
        () = signals.second.cancelled() => bail!("stopped without waiting for running work"),
    }
}

fn finished(ended: Result<Result<(), taskhub_core::ServiceError>, tokio::task::JoinError>) -> Result<Exit> {
    ended.context("the worker crashed")?.context("the worker failed")?;
    Ok(Exit::Done)
}

pub(crate) fn settings(host: &HostJson) -> WorkerSettings {
    let mut settings = WorkerSettings::default();
    if let Some(limit) = host.max_concurrent_orchestrators {
        settings.max_concurrent_task_orchestration_work_items = limit as usize;
    }
    if let Some(limit) = host.max_concurrent_entities {
        settings.max_concurrent_task_entity_work_items = limit as usize;
    }
    if let Some(limit) = host.max_entity_operation_batch_size {
        settings.max_entity_operation_batch_size = limit as usize;
    }
    if let Some(limit) = host.max_concurrent_activities {
        settings.max_concurrent_task_activity_work_items = limit as usize;
    }
    if let Some(on) = host.extended_sessions_enabled {
        settings.extended_sessions_enabled = on;
    }
    settings.fused_activities.all = host.fuse_activities == Some(true);
    settings
}
