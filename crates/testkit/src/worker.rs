use std::sync::Arc;

use anyhow::{Context as _, Result, bail, ensure};
use taskhub_azure_storage::AzureStorageService;
use taskhub_core::ServiceError;
use taskhub_worker::samples::{self, SampleOptions};
use taskhub_worker::{ErrorPropagationMode, Worker, WorkerHandle, WorkerSettings, WorkerState};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::TestHub;
use crate::golden::{Phase, WorkerFlags};
use crate::load::Hidden;

impl TestHub {
    /// Starts a worker with the samples; returns once it runs.
    ///
    /// # Errors
    /// It does not start.
    pub async fn start_worker(&self, worker_id: &str, flags: WorkerFlags) -> Result<RunningWorker> {
        let service = Arc::new(AzureStorageService::new(self.open(worker_id)?));
        let mut settings =
            WorkerSettings { include_details: flags.include_details, ..WorkerSettings::default() };
        if flags.failure_details {
            settings.error_propagation_mode = ErrorPropagationMode::UseFailureDetails;
        }
        let samples = SampleOptions { fixed: flags.fixed, ..SampleOptions::default() };
        let worker = samples::register(Worker::builder(service), samples)
            .settings(settings)
            .clock(self.clock.clone())
            .ids(self.ids.clone())
            .build()?;
        let handle = worker.handle();
        let task = tokio::spawn(worker.run(CancellationToken::new()));
        handle.reached(WorkerState::Running).await;
        let running = RunningWorker { handle, task };
        if running.handle.state() != WorkerState::Running {
            running.stop().await?;
            bail!("the worker has stopped at once");
        }
        Ok(running)
    }

    /// Loads a captured hub, does what comes next, and lets a worker finish it.
    ///
    /// # Errors
    /// Something failed, or an instance did not end as it should.
    pub async fn take_over(&self, phase: &Phase) -> Result<()> {
        self.load(&phase.hub()?, Hidden::Release).await?;
        for step in &phase.steps {
            self.act(step).await?;
        }
        // It finds out itself which partition manager the hub has.
        let found = self.open("successor")?.detect().await?.map(|layout| layout.manager);
        ensure!(found == Some(phase.manager), "{found:?} instead of {}", phase.manager);
        let worker = self.start_worker("successor", phase.worker).await?;
        self.ends(&phase.endings).await?;
        worker.stop().await
    }
}

/// A worker that runs in the background.
#[derive(Debug)]
pub struct RunningWorker {
    handle: WorkerHandle,
    task: JoinHandle<Result<(), ServiceError>>,
}

impl RunningWorker {
    /// Stops it in order.
    ///
    /// # Errors
    /// It failed, now or before.
    pub async fn stop(self) -> Result<()> {
        self.handle.shutdown();
        self.task.await.context("the worker panicked")??;
        Ok(())
    }
}
