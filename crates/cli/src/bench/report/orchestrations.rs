//! What many orchestrations of one kind took, with one cadence or two beside each other.

use std::collections::BTreeSet;

use serde_json::{Map, Value, json};

use super::{mega, millis_of, section_of};
use crate::bench::median::Spread;
use crate::bench::orchestrations::{Load, Measured};
use crate::bench::requests::{Purpose, Requests};
use crate::bench::rig::{Cadence, Place};
use crate::table::Table;

/// Runs with one cadence.
pub(super) type Mode = (Cadence, Vec<Measured>);

/// How a figure is written.
type Form = fn(f64) -> String;

/// Whose requests.
type Side = fn(&Measured) -> &Requests;

/// A row of the table.
struct Figure {
    label: String,
    /// Name in JSON; `None` where it has the figure elsewhere.
    name: Option<&'static str>,
    form: Form,
    /// By cadence.
    spreads: Vec<Option<Spread>>,
}

impl Figure {
    fn new(
        label: impl Into<String>,
        name: Option<&'static str>,
        form: Form,
        modes: &[Mode],
        of: impl Fn(&Measured) -> Option<f64>,
    ) -> Self {
        let spreads = modes.iter().map(|(_, runs)| Spread::of(runs.iter().map(&of))).collect();
        Self { label: label.into(), name, form, spreads }
    }

    /// The first of two cadences by the second.
    fn ratio(&self) -> Option<f64> {
        match self.spreads[..] {
            [Some(own), Some(dtfx)] if dtfx.median > 0.0 => Some(own.median / dtfx.median),
            _ => None,
        }
    }
}

/// The text of a case, and its JSON.
pub(super) fn show(place: &Place, load: Load, modes: &[Mode]) -> (String, Value) {
    let figures = figures(modes);
    let title = format!(
        "{}, {}, one worker and its client: {} instances, {} at a time",
        load.case.title(),
        place.name,
        load.instances,
        load.concurrency.min(load.instances)
    );
    (section_of(&title, &table(load, modes, &figures)), document(load, modes, &figures))
}

fn figures(modes: &[Mode]) -> Vec<Figure> {
    let each = |n: u64, run: &Measured| Some(n as f64 / f64::from(run.instances));
    let seconds: Form = |figure| format!("{figure:.2} s");
    let count: Form = |figure| format!("{figure:.2}");
    let bytes: Form = |figure| format!("{} MB", mega(figure));
    let cpu = |run: &Measured| run.process.cpu.map(|cpu| cpu.as_secs_f64());
    let emulator = |run: &Measured| run.emulator.cpu.map(|cpu| cpu.as_secs_f64());
    let mut figures = vec![
        Figure::new(
            "per second",
            Some("perSecond"),
            |figure| format!("{figure:.1}"),
            modes,
            |run| Some(run.rate()),
        ),
        Figure::new("p50", Some("p50Seconds"), millis_of, modes, |run| {
            Some(run.percentile(0.5).as_secs_f64())
        }),
        Figure::new("p99", Some("p99Seconds"), millis_of, modes, |run| {
            Some(run.percentile(0.99).as_secs_f64())
        }),
    ];
    let sides: [(_, _, Side); 2] = [
        ("worker", "workerRequestsEach", |run| &run.worker),
        ("client", "clientRequestsEach", |run| &run.client),
    ];
    for (who, name, of) in sides {
        let runs = modes.iter().flat_map(|(_, runs)| runs);
        let kinds: BTreeSet<_> = runs.flat_map(|run| of(run).billed_work().into_keys()).collect();
        for kind in kinds {
            let (meter, operation) = kind;
            let label = format!("{who}: {operation} ({meter})");
            figures.push(Figure::new(label, None, count, modes, |run| {
                each(of(run).billed_work().get(&kind).copied().unwrap_or(0), run)
            }));
        }
        figures.push(Figure::new(format!("{who}, all of these"), Some(name), count, modes, |run| {
            each(of(run).total(Purpose::Work), run)
        }));
    }
    let upkeep = [
        ("emptyPollsEach", Purpose::EmptyPoll),
        ("partitionRowsEach", Purpose::Partitions),
        ("appLeaseEach", Purpose::AppLease),
    ];
    for (name, purpose) in upkeep {
        figures.push(Figure::new(purpose.name(), Some(name), count, modes, |run| {
            each(run.worker.total(purpose) + run.client.total(purpose), run)
        }));
    }
    figures.extend([
        Figure::new("CPU, worker and client", Some("cpuSeconds"), seconds, modes, cpu),
        Figure::new("CPU, emulator", Some("emulatorCpuSeconds"), seconds, modes, emulator),
        Figure::new("CPU, together", Some("togetherCpuSeconds"), seconds, modes, |run| {
            Some(cpu(run)? + emulator(run)?)
        }),
        Figure::new("peak memory, worker and client", Some("peakMemoryBytes"), bytes, modes, |run| {
            run.process.peak_memory_bytes.map(|bytes| bytes as f64)
        }),
        Figure::new("peak memory, emulator", Some("emulatorPeakMemoryBytes"), bytes, modes, |run| {
            run.emulator.peak_memory_bytes.map(|bytes| bytes as f64)
        }),
    ]);
    // What nobody tells has no row.
    figures.retain(|figure| figure.spreads.iter().any(Option::is_some));
    figures
}

fn table(load: Load, modes: &[Mode], figures: &[Figure]) -> Table {
    let cell = |spread: &Option<Spread>, form: Form| match spread {
        Some(spread) => form(spread.median),
        None => "-".to_owned(),
    };
    let range = |spread: &Option<Spread>, form: Form| match spread {
        Some(spread) if spread.count > 1 => format!("{} to {}", form(spread.lowest), form(spread.highest)),
        _ => String::new(),
    };
    let dotnet = load.case.dotnet_worker().map(|n| ("worker, .NET, one alone".to_owned(), n.to_string()));
    if let [_, _] = modes {
        let mut table = Table::new(["", "OWN CADENCE", "RANGE", "DTFX CADENCE", "RANGE", "OWN / DTFX"]);
        for figure in figures {
            let (form, [own, dtfx]) = (figure.form, &figure.spreads[..]) else { continue };
            let ratio = figure.ratio().map_or_else(String::new, |ratio| format!("{ratio:.2}"));
            table.row([
                figure.label.clone(),
                cell(own, form),
                range(own, form),
                cell(dtfx, form),
                range(dtfx, form),
                ratio,
            ]);
        }
        if let Some((label, n)) = dotnet {
            table.row([label, String::new(), String::new(), n, String::new(), String::new()]);
        }
        return table;
    }
    let mut table = Table::new(["", "MEDIAN", "RANGE"]);
    for Figure { label, form, spreads, .. } in figures {
        let [spread] = &spreads[..] else { continue };
        table.row([label.clone(), cell(spread, *form), range(spread, *form)]);
    }
    if let Some((label, n)) = dotnet {
        table.row([label, n, String::new()]);
    }
    table
}

fn document(load: Load, modes: &[Mode], figures: &[Figure]) -> Value {
    let mut value = json!({
        "scenario": load.case.name(),
        "function": load.case.function(),
        "instances": load.instances,
        "concurrency": load.concurrency,
        "dotnetWorkerRequestsEach": load.case.dotnet_worker(),
    });
    if let Some((name, size)) = load.case.size() {
        value[name] = json!(size);
    }
    let all = modes.iter().enumerate().map(|(index, (cadence, runs))| {
        let mut mode = Map::new();
        mode.insert("dtfxCadence".to_owned(), json!(*cadence == Cadence::Dtfx));
        mode.insert("runs".to_owned(), json!(runs.len()));
        for figure in figures {
            let Some(name) = figure.name else { continue };
            let spread = figure.spreads[index].map(
                |spread| json!({"median": spread.median, "lowest": spread.lowest, "highest": spread.highest}),
            );
            mode.insert(name.to_owned(), json!(spread));
        }
        // One run, not a median of each: they belong together.
        if let Some(last) = runs.last() {
            let sides = json!({"worker": last.worker.json(), "client": last.client.json()});
            mode.insert("requestsOfLastRun".to_owned(), sides);
        }
        Value::Object(mode)
    });
    value["modes"] = all.collect();
    if modes.len() == 2 {
        let ratios =
            figures.iter().filter_map(|figure| Some((figure.name?.to_owned(), json!(figure.ratio()))));
        value["ownByDtfx"] = Value::Object(ratios.collect());
    }
    value
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use taskhub_testkit::VirtualClock;
    use tokio_util::sync::CancellationToken;

    use super::*;
    use crate::bench::orchestrations::Case;
    use crate::bench::usage::Usage;

    fn run(seconds: u64, cpu: u64, emulator: Option<u64>) -> Measured {
        let usage = |cpu: Option<u64>| Usage {
            cpu: cpu.map(Duration::from_secs),
            peak_memory_bytes: cpu.map(|_| 50_000_000),
        };
        Measured {
            instances: 100,
            elapsed: Duration::from_secs(seconds),
            latencies: (1..=100).map(Duration::from_millis).collect(),
            worker: Requests::default(),
            client: Requests::default(),
            process: usage(Some(cpu)),
            emulator: usage(emulator),
        }
    }

    fn shown(modes: &[Mode]) -> (Vec<String>, Value) {
        let place = Place::embedded(None, Arc::new(VirtualClock::default()), CancellationToken::new());
        let load = Load { case: Case::Hello(3), instances: 100, concurrency: 10 };
        let (text, value) = show(&place, load, modes);
        let words = |line: &str| line.split_whitespace().collect::<Vec<_>>().join(" ");
        (text.lines().map(words).collect(), value)
    }

    #[test]
    fn one_cadence_has_a_median_and_a_range() {
        let (lines, value) =
            shown(&[(Cadence::Own, vec![run(10, 3, None), run(20, 1, None), run(4, 2, None)])]);
        for line in [
            "HelloSequence, 3 activities in a row, embedded store, one worker and its client: 100 instances, 10 at a time",
            "MEDIAN RANGE",
            "per second 10.0 5.0 to 25.0",
            "p50 50.0 ms 50.0 ms to 50.0 ms",
            "CPU, worker and client 2.00 s 1.00 s to 3.00 s",
            "peak memory, worker and client 50.0 MB 50.0 MB to 50.0 MB",
            "worker, .NET, one alone 33",
        ] {
            assert!(lines.iter().any(|l| l == line), "{line}: {lines:#?}");
        }
        assert!(!lines.iter().any(|line| line.contains("emulator")), "{lines:?}");
        let mode = &value["modes"][0];
        assert_eq!((&mode["dtfxCadence"], &mode["runs"]), (&json!(false), &json!(3)));
        assert_eq!(mode["perSecond"], json!({"median": 10.0, "lowest": 5.0, "highest": 25.0}));
        assert_eq!((&value["activities"], &value["ownByDtfx"]), (&json!(3), &Value::Null));
    }

    #[test]
    fn two_cadences_are_compared() {
        let modes = [(Cadence::Own, vec![run(5, 1, Some(3))]), (Cadence::Dtfx, vec![run(10, 4, Some(12))])];
        let (lines, value) = shown(&modes);
        for line in [
            "OWN CADENCE RANGE DTFX CADENCE RANGE OWN / DTFX",
            "per second 20.0 10.0 2.00",
            "CPU, emulator 3.00 s 12.00 s 0.25",
            "CPU, together 4.00 s 16.00 s 0.25",
        ] {
            assert!(lines.iter().any(|l| l == line), "{line}: {lines:#?}");
        }
        assert_eq!(value["ownByDtfx"]["togetherCpuSeconds"], 0.25);
        assert_eq!(value["modes"][1]["dtfxCadence"], true);
    }
}
