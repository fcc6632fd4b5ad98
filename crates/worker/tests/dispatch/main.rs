//! The dispatchers against a fake backend, in virtual time.

#![allow(clippy::unwrap_used, reason = "tests")]

mod activities;
mod entities;
mod fake;
mod fused;
mod orchestrations;
mod registration;
mod shutdown;

use taskhub_core::ServiceError;
use taskhub_worker::{WorkerBuilder, WorkerState};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// A worker in a task of its own.
struct Running {
    shutdown: CancellationToken,
    task: JoinHandle<Result<(), ServiceError>>,
}

async fn running(builder: WorkerBuilder) -> Running {
    let worker = builder.build().unwrap();
    let handle = worker.handle();
    let shutdown = CancellationToken::new();
    let task = tokio::spawn(worker.run(shutdown.clone()));
    handle.reached(WorkerState::Running).await;
    Running { shutdown, task }
}

impl Running {
    async fn stop(self) {
        self.end().await.unwrap();
    }

    async fn end(self) -> Result<(), ServiceError> {
        self.shutdown.cancel();
        self.task.await.unwrap()
    }
}
