//! A router on a socket.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use axum::Router;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

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
    let stop = shutdown.clone();
    let server = axum::serve(listener, router).with_graceful_shutdown(stop.cancelled_owned());
    tokio::select! {
        served = server.into_future() => served.map_err(ServeError::Accept),
        () = async { shutdown.cancelled().await; tokio::time::sleep(STOP_GRACE).await } => Ok(()),
    }
}
