//! What figures depend on.

use serde_json::{Value, json};
use taskhub_core::{Clock, SystemClock};

/// Date, program and machine. What the system does not tell is null.
pub(super) fn now() -> Value {
    let read = |path| std::fs::read_to_string(path).unwrap_or_default();
    let cpuinfo = read("/proc/cpuinfo");
    let cpu = cpuinfo.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    json!({
        "date": SystemClock.now().to_iso(),
        "version": env!("CARGO_PKG_VERSION"),
        "build": if cfg!(debug_assertions) { "debug" } else { "release" },
        "system": format!("{} {}", std::env::consts::OS, std::env::consts::ARCH),
        "cpu": cpu.map(|(_, name)| name.trim()),
        "cpus": std::thread::available_parallelism().map(std::num::NonZero::get).ok(),
        "loadAverage1": read("/proc/loadavg").split(' ').next().and_then(|load| load.parse::<f64>().ok()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_conditions_have_a_date_and_a_machine() {
        let conditions = now();
        assert!(conditions["date"].as_str().is_some_and(|date| date.ends_with('Z')), "{conditions}");
        assert!(conditions["cpus"].as_u64().is_some_and(|n| n > 0), "{conditions}");
    }
}
