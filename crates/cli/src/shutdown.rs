//! Ctrl-C and SIGTERM.

use std::io;

use tokio_util::sync::CancellationToken;

/// Cancelled by the first Ctrl-C or SIGTERM.
pub(crate) fn on_signal() -> io::Result<CancellationToken> {
    let token = CancellationToken::new();
    let wait = signals()?;
    let cancelled = token.clone();
    tokio::spawn(async move {
        wait.await;
        cancelled.cancel();
    });
    Ok(token)
}

/// Both signals are caught from now on, not only once the future is polled.
#[cfg(unix)]
fn signals() -> io::Result<impl Future<Output = ()>> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    Ok(async move {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
    })
}

#[cfg(not(unix))]
fn signals() -> io::Result<impl Future<Output = ()>> {
    Ok(async {
        // Without a handler nothing can be done but to run on.
        if tokio::signal::ctrl_c().await.is_err() {
            std::future::pending::<()>().await;
        }
    })
}
