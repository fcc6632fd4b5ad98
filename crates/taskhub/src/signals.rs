//! Ctrl-C, SIGTERM and SIGHUP.

use std::io;

use tokio_util::sync::CancellationToken;

/// What the user, or whatever runs the process, has asked for so far.
#[derive(Debug, Clone, Default)]
pub struct Signals {
    /// Cancelled by the first signal: stop in order.
    pub first: CancellationToken,
    /// Cancelled by the second one: end at once.
    pub second: CancellationToken,
}

/// Counts Ctrl-C, SIGTERM and SIGHUP from now on.
///
/// SIGHUP stays ignored in a process that was started so (`nohup`).
///
/// # Errors
/// The system refuses a handler.
///
/// # Panics
/// Outside of a tokio runtime with I/O.
pub fn on_signals() -> io::Result<Signals> {
    let signals = Signals::default();
    let mut stream = stream()?;
    let counted = signals.clone();
    tokio::spawn(async move {
        stream.next().await;
        counted.first.cancel();
        stream.next().await;
        counted.second.cancel();
    });
    Ok(signals)
}

#[cfg(unix)]
use unix::stream;

#[cfg(unix)]
mod unix {
    use std::io;

    use tokio::signal::unix::{Signal, SignalKind, signal};

    /// The signals that stop a program, caught from now on, not only once they are awaited.
    pub(super) struct Stream {
        interrupt: Signal,
        terminate: Signal,
        hangup: Option<Signal>,
    }

    pub(super) fn stream() -> io::Result<Stream> {
        Ok(Stream {
            // Asked first: a handler would replace what `nohup` has set.
            hangup: (!ignores_hangup()).then(|| signal(SignalKind::hangup())).transpose()?,
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
        })
    }

    impl Stream {
        pub(super) async fn next(&mut self) {
            let hangup = async {
                match &mut self.hangup {
                    Some(hangup) => hangup.recv().await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                _ = self.interrupt.recv() => {}
                _ = self.terminate.recv() => {}
                _ = hangup => {}
            }
        }
    }

    /// Whether this process was started with SIGHUP ignored. Where the system does not tell, it was: a
    /// program that goes on can still be stopped otherwise.
    fn ignores_hangup() -> bool {
        std::fs::read_to_string("/proc/self/status").map_or(true, |status| has_hangup(&status))
    }

    /// Whether SIGHUP, the first signal, is in the set of ignored ones.
    fn has_hangup(status: &str) -> bool {
        let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
        let set = ignored.and_then(|set| u128::from_str_radix(set.trim(), 16).ok());
        set.is_none_or(|set| set & 1 == 1)
    }

    #[cfg(test)]
    mod tests {
        use super::*;

        #[test]
        fn an_ignored_hangup_is_found() {
            for (status, ignored) in [
                ("Name:\tx\nSigIgn:\t0000000000000001\n", true),
                ("SigIgn:\t0000000000001001\nSigCgt:\t0\n", true),
                ("SigIgn:\t0000000000001000\n", false),
                ("SigIgn:\t0000000000000000\n", false),
                ("", true),
            ] {
                assert_eq!(has_hangup(status), ignored, "{status}");
            }
        }
    }
}

#[cfg(not(unix))]
struct Stream;

#[cfg(not(unix))]
fn stream() -> io::Result<Stream> {
    Ok(Stream)
}

#[cfg(not(unix))]
impl Stream {
    async fn next(&mut self) {
        // Without a handler nothing can be done but to run on.
        if tokio::signal::ctrl_c().await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}
