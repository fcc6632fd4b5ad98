use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use taskhub_azure_storage::metrics::register_requests;
use taskhub_core::ServiceError;
use taskhub_http::prometheus_client::registry::Registry;
use taskhub_http::{Health, ProbeError, ServeError, Server, health, livez_at, probe};
use taskhub_worker::Worker;

use crate::TaskHub;
use crate::signals::{Signals, on_signals};

/// Environment variable with the address of the health endpoints, such as `0.0.0.0:8080`; none without it.
pub const HEALTH_LISTEN_VARIABLE: &str = "TASKHUB_HEALTH_LISTEN";
/// How long [`healthcheck`] waits for an answer.
const HEALTHCHECK_TIMEOUT: Duration = Duration::from_secs(3);

/// Why [`TaskHub::run`] or [`healthcheck`] ended with an error.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RunError {
    /// The value of a variable is no address.
    #[error("not an address and a port. variable=`{HEALTH_LISTEN_VARIABLE}` value=`{value}`")]
    Address {
        /// The value.
        value: String,
    },
    /// [`healthcheck`] does not know what to ask.
    #[error("no health endpoint is configured. variable=`{HEALTH_LISTEN_VARIABLE}`")]
    NoEndpoint,
    /// The system refuses to tell of signals.
    #[error("cannot wait for signals")]
    Signals(#[source] io::Error),
    /// The health endpoint could not be served.
    #[error("the health endpoint failed")]
    Endpoint(#[from] ServeError),
    /// The worker failed.
    #[error("the worker failed")]
    Worker(#[from] ServiceError),
    /// A second signal came while running work was waited for.
    #[error("stopped without waiting for running work")]
    Impatient,
    /// The endpoint says no, or nothing.
    #[error(transparent)]
    Probe(#[from] ProbeError),
}

/// What [`run`] does beside the worker.
#[derive(Debug, Default)]
pub struct RunOptions {
    /// Where `/livez`, `/readyz` and `/metrics` are answered; nowhere by default.
    pub health_listen: Option<SocketAddr>,
    /// What `/metrics` shows.
    pub metrics: Registry,
}

impl RunOptions {
    /// What the environment says: [`HEALTH_LISTEN_VARIABLE`].
    ///
    /// # Errors
    /// [`RunError::Address`].
    pub fn from_env() -> Result<Self, RunError> {
        let health_listen = match std::env::var(HEALTH_LISTEN_VARIABLE) {
            Ok(value) if !value.trim().is_empty() => {
                Some(value.trim().parse().map_err(|_| RunError::Address { value })?)
            }
            _ => None,
        };
        Ok(Self { health_listen, metrics: Registry::default() })
    }
}

impl TaskHub {
    /// Runs a worker of this hub as the work of this process: until Ctrl-C, SIGTERM or SIGHUP, then stops it
    /// in order; a second signal ends the wait. Answers probes and shows what hub and worker count where
    /// [`HEALTH_LISTEN_VARIABLE`] says, to the very end.
    ///
    /// # Errors
    /// The worker or its endpoint failed, or a second signal came.
    pub async fn run(&self, worker: Worker) -> Result<(), RunError> {
        let mut options = RunOptions::from_env()?;
        self.show_counts(&worker, &mut options.metrics);
        run(worker, options, on_signals().map_err(RunError::Signals)?).await
    }

    fn show_counts(&self, worker: &Worker, metrics: &mut Registry) {
        self.hub().metrics.register(metrics);
        register_requests(self.requests(), metrics);
        worker.metrics().register(metrics);
    }
}

/// As [`TaskHub::run`], with options and signals of your own.
///
/// # Errors
/// As there.
pub async fn run(worker: Worker, options: RunOptions, signals: Signals) -> Result<(), RunError> {
    let server = match options.health_listen {
        Some(address) => {
            let told = Health::of(worker.handle()).with_metrics(options.metrics);
            Some(Server::start(address, health(told)).await?)
        }
        None => None,
    };
    if let Some(server) = &server {
        tracing::info!(address = %server.address(), "health endpoints");
    }
    let ended = tokio::select! {
        ended = worker.run(signals.first.clone()) => ended.map_err(RunError::Worker),
        () = signals.second.cancelled() => Err(RunError::Impatient),
    };
    if let Some(server) = server {
        server.stop().await?;
    }
    ended
}

/// Asks `/livez` of the process on this machine that has the same environment: for the `HEALTHCHECK` of an
/// image, as another start of the same program.
///
/// # Errors
/// It does not live, or the environment does not say where to ask.
pub async fn healthcheck() -> Result<(), RunError> {
    let listen = RunOptions::from_env()?.health_listen.ok_or(RunError::NoEndpoint)?;
    Ok(probe(&livez_at(listen), HEALTHCHECK_TIMEOUT).await?)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use taskhub_testkit::{VirtualClock, eventually};

    use super::*;

    /// A worker on a hub in memory, with endpoints at a port that was free a moment ago.
    async fn started(signals: &Signals) -> (SocketAddr, tokio::task::JoinHandle<Result<(), RunError>>) {
        let free = taskhub_http::listen("127.0.0.1:0".parse().unwrap()).await.unwrap();
        let address = free.local_addr().unwrap();
        drop(free);
        let hub = TaskHub::in_memory("Test", Arc::new(VirtualClock::default())).unwrap();
        let mut options = RunOptions { health_listen: Some(address), ..RunOptions::default() };
        let worker = hub.worker().build().unwrap();
        hub.show_counts(&worker, &mut options.metrics);
        let running = tokio::spawn(run(worker, options, signals.clone()));
        let readyz = format!("http://{address}/readyz");
        eventually("it is ready", || async { probe(&readyz, HEALTHCHECK_TIMEOUT).await.ok() }).await;
        (address, running)
    }

    #[tokio::test]
    async fn a_worker_answers_probes_until_a_signal_has_stopped_it() {
        let signals = Signals::default();
        let (address, running) = started(&signals).await;
        probe(&livez_at(address), HEALTHCHECK_TIMEOUT).await.unwrap();
        signals.first.cancel();
        running.await.unwrap().unwrap();
        let gone = probe(&livez_at(address), HEALTHCHECK_TIMEOUT).await;
        assert!(matches!(gone, Err(ProbeError::Connection { .. })), "{gone:?}");
    }

    #[tokio::test]
    async fn a_worker_shows_what_its_requests_cost() {
        let signals = Signals::default();
        let (address, running) = started(&signals).await;
        let metrics = taskhub_http::fetch(&format!("http://{address}/metrics"), HEALTHCHECK_TIMEOUT).await;
        let metrics = metrics.unwrap();
        // Four control queues and that of the activities.
        let line = "taskhub_storage_requests_total{meter=\"queue class 1\",operation=\"CreateQueue\",orchestration=\"\"} 5";
        assert!(metrics.lines().any(|l| l == line), "{metrics}");
        assert!(metrics.lines().any(|l| l == "taskhub_partitions_owned 4"), "{metrics}");
        signals.first.cancel();
        running.await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn a_second_signal_ends_it_at_once() {
        let signals = Signals::default();
        let (_, running) = started(&signals).await;
        signals.second.cancel();
        assert!(matches!(running.await.unwrap(), Err(RunError::Impatient)));
    }

    #[tokio::test]
    async fn an_address_in_use_is_an_error_before_the_worker_starts() {
        let taken = taskhub_http::listen("127.0.0.1:0".parse().unwrap()).await.unwrap();
        let hub = TaskHub::in_memory("Test", Arc::new(VirtualClock::default())).unwrap();
        let options =
            RunOptions { health_listen: Some(taken.local_addr().unwrap()), ..RunOptions::default() };
        let ended = run(hub.worker().build().unwrap(), options, Signals::default()).await;
        assert!(matches!(ended, Err(RunError::Endpoint(_))), "{ended:?}");
    }
}
