//! Logs go to standard error.

use std::io::IsTerminal;

use taskhub_storage::may_log;
use tracing_subscriber::filter::{EnvFilter, FilterExt, filter_fn};
use tracing_subscriber::layer::{Layer, SubscriberExt};
use tracing_subscriber::util::SubscriberInitExt;

use crate::console::may_colour;

/// Starts logging: warnings, with `verbose` more of this program, or what `RUST_LOG` says.
pub(crate) fn start(verbose: u8) {
    let own = match verbose {
        0 => "warn",
        1 => "info",
        2 => "debug",
        _ => "trace",
    };
    let filter = EnvFilter::try_from_default_env()
        .unwrap_or_else(|_| EnvFilter::new(format!("warn,{}", own_crates(own))));
    let layer = tracing_subscriber::fmt::layer()
        .with_writer(std::io::stderr)
        .with_ansi(may_colour(std::io::stderr().is_terminal()))
        .with_filter(filter.and(filter_fn(may_log)));
    // A second start in one process (tests) keeps the first.
    let _ = tracing_subscriber::registry().with(layer).try_init();
}

fn own_crates(level: &str) -> String {
    let crates = ["azure_storage", "cli", "client", "core", "replay", "storage", "worker"];
    crates.map(|name| format!("taskhub_{name}={level}")).join(",")
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;
    use crate::console::captured::Captured;

    #[test]
    fn secrets_of_azure_core_stay_out_of_the_log_under_any_filter() {
        let log = Captured::default();
        let sink = log.clone();
        let layer = tracing_subscriber::fmt::layer()
            .with_writer(move || -> Box<dyn Write> { Box::new(sink.clone()) })
            .with_filter(EnvFilter::new("trace").and(filter_fn(may_log)));
        tracing::subscriber::with_default(tracing_subscriber::registry().with(layer), || {
            tracing::debug!(target: "azure_core::policies", "authorization: SharedKey hunter2");
            tracing::warn!(target: "azure_core::policies", "retrying");
            tracing::trace!(target: "taskhub_worker", "episode");
        });
        let text = log.take();
        assert!(!text.contains("hunter2"), "{text}");
        assert!(text.contains("retrying") && text.contains("episode"), "{text}");
    }
}
