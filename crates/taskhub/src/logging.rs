use std::io::IsTerminal;

use taskhub_storage::may_log;
use tracing_subscriber::filter::{EnvFilter, FilterExt, filter_fn};
use tracing_subscriber::layer::{Layer, SubscriberExt};
use tracing_subscriber::util::SubscriberInitExt;

/// Starts logging to standard error, by the filter in `RUST_LOG` or else by `default_filter` (`"info"`,
/// `"warn,my_worker=debug"`). What may hold secrets is left out whatever the filter says. Does nothing in a
/// process that logs already.
pub fn start_logging(default_filter: &str) {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(default_filter));
    let layer = tracing_subscriber::fmt::layer()
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .with_filter(filter.and(filter_fn(may_log)));
    let _ = tracing_subscriber::registry().with(layer).try_init();
}
