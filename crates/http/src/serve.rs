//! A router on a socket.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::{JoinHandle, JoinSet};
use tokio_util::sync::CancellationToken;

use crate::watched::Watched;

/// How long requests under way may take after the stop. All of ours are answered at once.
const STOP_GRACE: Duration = Duration::from_secs(2);

/// Why a router is not served.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ServeError {
    /// The address is in use, not this machine's, or not allowed.
    #[error("cannot listen. address=`{address}`")]
    Listen {
        /// The address asked for.
        address: SocketAddr,
        /// What the system says.
        source: io::Error,
    },
    /// Connections can no longer be taken.
    #[error("cannot take connections")]
    Accept(#[source] io::Error),
}

/// A router served in the background. Dropped, it ends at once.
#[derive(Debug)]
pub struct Server {
    address: SocketAddr,
    shutdown: CancellationToken,
    task: Option<JoinHandle<Result<(), ServeError>>>,
}

impl Server {
    /// Begins to serve at an address; with port 0, at a free port.
    ///
    /// # Errors
    /// [`ServeError::Listen`].
    pub async fn start(address: SocketAddr, router: Router) -> Result<Self, ServeError> {
        let listener = listen(address).await?;
        let address = listener.local_addr().map_err(|source| ServeError::Listen { address, source })?;
        let shutdown = CancellationToken::new();
        let task = Some(tokio::spawn(serve(listener, router, shutdown.clone())));
        Ok(Self { address, shutdown, task })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Takes no more connections, finishes what is under way (two seconds at most), and ends.
    ///
    /// # Errors
    /// [`ServeError::Accept`]: it had ended before.
    pub async fn stop(mut self) -> Result<(), ServeError> {
        self.shutdown.cancel();
        match self.task.take() {
            Some(task) => task.await.unwrap_or_else(|e| Err(ServeError::Accept(io::Error::other(e)))),
            None => Ok(()),
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(task) = self.task.take() {
            task.abort();
        }
    }
}

/// Listens at an address; with port 0, at a free port (ask the listener for its address).
///
/// # Errors
/// [`ServeError::Listen`].
pub async fn listen(address: SocketAddr) -> Result<TcpListener, ServeError> {
    TcpListener::bind(address).await.map_err(|source| ServeError::Listen { address, source })
}

/// How connections are treated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ServeSettings {
    /// Connections at once; more wait until one ends.
    pub max_connections: usize,
    /// How long the head of a request may take to arrive; a connection that is kept open without one ends then.
    pub header_timeout: Duration,
    /// How long the other side may take none of what it is sent; its connection ends then.
    pub write_timeout: Duration,
    /// How long requests under way may take after the stop.
    pub stop_grace: Duration,
}

impl Default for ServeSettings {
    fn default() -> Self {
        Self {
            max_connections: 1024,
            header_timeout: Duration::from_secs(30),
            write_timeout: Duration::from_secs(30),
            stop_grace: STOP_GRACE,
        }
    }
}

/// Pause after a connection could not be taken: too many files are open, mostly.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Answers requests until `shutdown`; then no more connections are taken, and those under way have two
/// seconds.
///
/// # Errors
/// [`ServeError::Accept`].
pub async fn serve(
    listener: TcpListener,
    router: Router,
    shutdown: CancellationToken,
) -> Result<(), ServeError> {
    serve_with(listener, router, ServeSettings::default(), shutdown).await
}

/// As [`serve`], with settings. HTTP/1.1.
///
/// # Errors
/// [`ServeError::Accept`].
pub async fn serve_with(
    listener: TcpListener,
    router: Router,
    settings: ServeSettings,
    shutdown: CancellationToken,
) -> Result<(), ServeError> {
    let graceful = GracefulShutdown::new();
    let permits = Arc::new(Semaphore::new(settings.max_connections.clamp(1, Semaphore::MAX_PERMITS)));
    let mut connections = JoinSet::new();
    loop {
        let taken = tokio::select! {
            taken = take(&listener, &permits) => taken,
            () = shutdown.cancelled() => break,
        };
        let (stream, permit) = match taken {
            Ok(taken) => taken,
            Err(source) if is_of_one_connection(&source) => continue,
            Err(error) => {
                tracing::warn!(%error, "cannot take a connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let stream = Watched::new(stream, settings.write_timeout);
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(settings.header_timeout)
            .serve_connection(TokioIo::new(stream), TowerToHyperService::new(router.clone()));
        let connection = graceful.watch(connection);
        connections.spawn(async move {
            let _permit = permit;
            if let Err(error) = connection.await {
                // Clients go away, and some send nonsense.
                tracing::debug!(error = &error as &dyn std::error::Error, "a connection broke");
            }
        });
        while connections.try_join_next().is_some() {}
    }
    drop(listener);
    // Those that take longer end with the set.
    let _ = tokio::time::timeout(settings.stop_grace, graceful.shutdown()).await;
    Ok(())
}

async fn take(
    listener: &TcpListener,
    permits: &Arc<Semaphore>,
) -> io::Result<(TcpStream, OwnedSemaphorePermit)> {
    let permit = permits.clone().acquire_owned().await.map_err(io::Error::other)?;
    let (stream, _) = listener.accept().await?;
    // Fails only where the other side is gone already.
    let _ = stream.set_nodelay(true);
    Ok((stream, permit))
}

/// The other side was gone before it was taken.
fn is_of_one_connection(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset)
}
