//! Worker processes: started, stopped, stalled and killed.

use std::sync::Arc;
use std::time::Duration;

use taskhub_azure_storage::{AzureStorageService, Hub};
use taskhub_core::SeededIds;
use taskhub_storage::request::{OperationCounts, RequestSettings};
use taskhub_worker::{Worker, WorkerBuilder};
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::clock::SkewedClock;
use super::interpreter;
use super::network::{Link, ProcessState};
use super::rng::Rng;
use super::world::World;

/// Wait of whoever supervises a process before it is started again after an error.
const RESTART_INTERVAL: Duration = Duration::from_secs(2);
/// Longest time that a stop in order may take.
const STOP_BOUND: Duration = Duration::from_secs(180);

/// A worker process.
#[derive(Debug)]
pub(crate) struct Process {
    pub(crate) link: Link,
    stop: CancellationToken,
    task: JoinHandle<()>,
}

impl Process {
    /// Starts a process, which starts a worker, again if that fails.
    /// A plain one has DTFx's rules: it saves no requests.
    pub(crate) fn start(world: &Arc<World>, name: String, worker_id: String, is_plain: bool) -> Self {
        let rng = world.rng.fork();
        let clock = Arc::new(SkewedClock::seeded(world, &rng));
        let shown = clock.to_string();
        let process = Arc::new(ProcessState::new(name, worker_id, clock));
        let link = Link { network: world.network.clone(), process };
        world.network.trace.add(
            &link.process.name,
            &["process starts"],
            &format!("{shown}, plain: {is_plain}"),
        );
        let stop = CancellationToken::new();
        let task = tokio::spawn(supervise(world.clone(), link.clone(), rng, is_plain, stop.clone()));
        Self { link, stop, task }
    }

    pub(crate) fn name(&self) -> &str {
        &self.link.process.name
    }

    /// Ends the process at once: nothing leaves or reaches it any more.
    pub(crate) fn kill(&self) {
        self.link.network.trace.add(self.name(), &["killed"], "");
        self.link.process.die();
        self.task.abort();
    }

    pub(crate) fn stall(&self, duration: Duration) {
        self.link.network.trace.add(self.name(), &["stalled"], &format!("for {} ms", duration.as_millis()));
        self.link.process.stall(duration);
    }

    /// Asks the process to stop.
    pub(crate) fn stop(&self) {
        self.link.network.trace.add(self.name(), &["told to stop"], "");
        self.stop.cancel();
    }

    /// Waits for the end of a process that was told to stop.
    pub(crate) async fn stopped(mut self) {
        let begun = Instant::now();
        while !self.task.is_finished() && !self.link.process.is_dead() {
            if begun.elapsed() > STOP_BOUND {
                self.link.network.violation(format!("{} does not stop", self.name()));
                self.kill();
                return;
            }
            let _ = tokio::time::timeout(Duration::from_secs(1), &mut self.task).await;
        }
    }
}

/// A hub as a process behind a link opens it.
pub(crate) fn open(world: &World, link: &Link, rng: &Rng, is_plain: bool) -> Hub {
    let requests =
        RequestSettings { ids: Arc::new(SeededIds::new(rng.next())), ..RequestSettings::default() };
    let account = link.account().layered(requests, &OperationCounts::default());
    let mut settings = world.settings.clone();
    settings.dtfx_cadence = is_plain;
    if !link.process.worker_id.is_empty() {
        settings.worker_id = link.process.worker_id.as_str().into();
    }
    Hub::new(settings, account, link.process.clock.clone(), Arc::new(SeededIds::new(rng.next())))
        .expect("the settings of a simulation are within their ranges")
}

/// The functions and settings of every worker.
pub(crate) fn builder(world: &World, service: AzureStorageService, is_plain: bool) -> WorkerBuilder {
    let mut settings = world.worker_settings.clone();
    settings.fused_activities.all &= !is_plain;
    interpreter::register(Worker::builder(Arc::new(service)), &world.log).settings(settings)
}

async fn supervise(world: Arc<World>, link: Link, rng: Rng, is_plain: bool, stop: CancellationToken) {
    while !stop.is_cancelled() {
        let service = AzureStorageService::new(open(&world, &link, &rng, is_plain));
        let worker = builder(&world, service, is_plain)
            .clock(link.process.clock.clone())
            .ids(Arc::new(SeededIds::new(rng.next())))
            .build()
            .expect("every function has its own name");
        let ended = worker.run(stop.clone()).await;
        let process = &link.process;
        if process.is_dead() {
            // Killed while it stopped.
            return;
        }
        match ended {
            Ok(()) => {
                let held = process.held();
                // A stop waits for the storage only so long.
                let rates = &world.weather.rates;
                if !held.is_empty() && rates.hang == 0 && rates.slow == 0 && !process.has_stalled() {
                    world.network.violation(format!("{} has stopped and still holds {held:?}", process.name));
                }
                world.network.trace.add(&process.name, &["stopped"], "");
                // It exits.
                process.die();
            }
            Err(error) => {
                process.forget_all();
                world.network.trace.add(&process.name, &["failed"], &error.to_string());
                tokio::time::sleep(RESTART_INTERVAL).await;
            }
        }
    }
}
