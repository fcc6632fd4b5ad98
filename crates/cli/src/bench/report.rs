//! The results, as tables and as JSON.

mod orchestrations;

use std::time::Duration;

use serde_json::{Map, Value, json};

use super::balance::Balanced;
use super::codec::Coded;
use super::entities::Signalled;
use super::fleet::{Disturbed, STALL};
use super::isolated::{DOTNET_CLIENT, DOTNET_WORKER, Isolated, compared};
use super::median::Runs;
use super::orchestrations::Load;
use super::replay::Replayed;
use super::requests::{Purpose, Requests};
use super::rig::Place;
use crate::args::PartitionManager;
use crate::cost;
use crate::table::Table;

/// Collects results in the order of measurement.
pub(super) struct Report {
    text: String,
    json: Map<String, Value>,
}

impl Report {
    pub(super) fn new(conditions: &Value) -> Self {
        let words = conditions.as_object().into_iter().flatten().map(|(name, value)| {
            format!("{name} {}", value.as_str().map_or_else(|| value.to_string(), str::to_owned))
        });
        let text = words.collect::<Vec<_>>().join(", ") + "\n";
        Self { text, json: Map::from_iter([("conditions".to_owned(), conditions.clone())]) }
    }

    pub(super) fn text(&self) -> &str {
        &self.text
    }

    pub(super) fn json(self) -> Value {
        Value::Object(self.json)
    }

    pub(super) fn replay(&mut self, all: &[Runs<Replayed>]) {
        let mut table =
            Table::new(["HISTORY", "EVENTS", "EVENTS/S", "ONE REPLAY", "PEAK MEMORY", "RANGE, EVENTS/S"]);
        let mut values = Vec::new();
        for runs in all {
            let run = runs.median();
            table.row([
                run.shape.clone(),
                run.events.to_string(),
                format!("{:.0}", run.rate()),
                millis(Duration::from_secs_f64(run.seconds)),
                run.peak_memory_bytes.map_or_else(|| "-".to_owned(), |b| format!("{} MB", mega(b as f64))),
                range(runs, |figure| format!("{figure:.0}")),
            ]);
            values.push(with_range(json!(run), "eventsPerSecond", run.rate(), runs));
        }
        self.section("Replay of a history but for its last two events, each in a process of its own", &table);
        self.json.insert("replay".to_owned(), Value::Array(values));
    }

    pub(super) fn codec(&mut self, all: &[Runs<Coded>]) {
        let mut table = Table::new(["STEP", "RESULT, CHARS", "BYTES", "PER SECOND", "MB/S", "RANGE, MB/S"]);
        let mut values = Vec::new();
        for runs in all {
            let run = runs.median();
            table.row([
                run.step.to_owned(),
                run.result_chars.to_string(),
                run.bytes.to_string(),
                format!("{:.0}", run.per_second),
                mega(run.bytes_per_second()),
                range(runs, mega),
            ]);
            values.push(with_range(json!(run), "bytesPerSecond", run.bytes_per_second(), runs));
        }
        self.section("A TaskCompleted with a result, as a message and as a row of the history", &table);
        self.json.insert("codec".to_owned(), Value::Array(values));
    }

    /// What everything cost that this process and those it has started have sent.
    pub(super) fn cost(&mut self, place: &Place) {
        let lines = place.bill.lines();
        if lines.is_empty() {
            return;
        }
        let heading = format!("Storage requests of all that, {}, with its hubs made and deleted", place.name);
        let [meters, operations, names] = cost::tables(&lines);
        self.section(&heading, &meters);
        self.table(&operations);
        self.table(&names);
        let missing = place.bill.processes_without_bill();
        if missing > 0 {
            self.text.push_str(&format!(
                "\nWithout those of {missing} worker processes, which were killed before they could tell.\n"
            ));
        }
        let mut value = cost::document(&lines);
        value["processesWithoutBill"] = json!(missing);
        self.json.insert("cost".to_owned(), value);
    }

    pub(super) fn orchestrations(&mut self, place: &Place, load: Load, modes: &[orchestrations::Mode]) {
        let (text, value) = orchestrations::show(place, load, modes);
        self.text.push_str(&text);
        let all = self.json.entry("orchestrations").or_insert_with(|| {
            json!({
                "store": place.name,
                "maxPollingIntervalSeconds": place.max_polling_interval.as_secs_f64(),
                "cases": [],
            })
        });
        if let Some(cases) = all["cases"].as_array_mut() {
            cases.push(value);
        }
    }

    pub(super) fn isolated(&mut self, place: &Place, runs: &Runs<Isolated>) {
        let run = runs.median();
        let mut table = Table::new(["REQUEST", "OF", "COUNT", ".NET"]);
        for (who, requests, dotnet) in
            [("worker", &run.worker, &DOTNET_WORKER[..]), ("client", &run.client, &DOTNET_CLIENT[..])]
        {
            for (name, ours, theirs) in compared(requests, dotnet) {
                table.row([name.to_owned(), who.to_owned(), ours.to_string(), theirs.to_string()]);
            }
            let total = requests.total(Purpose::Work);
            let theirs: u64 = dotnet.iter().map(|(_, n)| n).sum();
            table.row(["all of these".to_owned(), who.to_owned(), total.to_string(), theirs.to_string()]);
        }
        for (label, purpose) in upkeep() {
            let row = |who: &str, requests: &Requests| {
                [label.to_owned(), who.to_owned(), requests.total(purpose).to_string(), "-".to_owned()]
            };
            table.row(row("worker", &run.worker));
        }
        let title = format!(
            "One HelloSequence alone, {}: latency {}; counted for {} until all was quiet",
            place.name,
            millis(run.latency),
            millis(run.window),
        );
        self.section(&title, &table);
        let value = json!({
            "store": place.name,
            "maxPollingIntervalSeconds": place.max_polling_interval.as_secs_f64(),
            "windowSeconds": run.window.as_secs_f64(),
            "workerRequests": run.worker.json(),
            "clientRequests": run.client.json(),
        });
        let value = with_range(value, "latencySeconds", run.latency.as_secs_f64(), runs);
        self.json.insert("isolated".to_owned(), value);
    }

    pub(super) fn entities(&mut self, place: &Place, concurrency: u32, all: &[Runs<Signalled>]) {
        let mut table = Table::new([
            "ENTITIES",
            "SIGNALS",
            "AT A TIME",
            "PER SECOND",
            "PER BATCH",
            "WORKER REQUESTS PER SIGNAL",
            ".NET",
            "CLIENT",
            "RANGE, PER SECOND",
        ]);
        let mut values = Vec::new();
        for runs in all {
            let run = runs.median();
            let each = |n: u64| n as f64 / f64::from(run.signals);
            let dotnet = run.dotnet_worker();
            let theirs = dotnet.values().sum();
            table.row([
                run.entities.to_string(),
                run.signals.to_string(),
                concurrency.to_string(),
                format!("{:.1}", run.rate()),
                format!("{:.1}", run.batch_size()),
                format!("{:.2}", each(run.worker_requests())),
                format!("{:.2}", each(theirs)),
                format!("{:.2}", each(run.client.total(Purpose::Work))),
                range(runs, |figure| format!("{figure:.1}")),
            ]);
            let value = json!({
                "entities": run.entities,
                "signals": run.signals,
                "concurrency": concurrency,
                "elapsedSeconds": run.elapsed.as_secs_f64(),
                "batches": run.batches,
                "workerRequests": run.worker.json(),
                "dotnetWorkerRequests": {"work": theirs, "byOperation": dotnet},
                "clientRequests": run.client.json(),
            });
            values.push(with_range(value, "perSecond", run.rate(), runs));
        }
        let title = format!(
            "Signals to entities, {}, one worker; .NET: what it sends for the same batches and receives",
            place.name
        );
        self.section(&title, &table);
        self.json.insert("entities".to_owned(), json!({"store": place.name, "cases": values}));
    }

    pub(super) fn fleet(&mut self, place: &Place, all: &[Runs<Disturbed>]) {
        let mut table = Table::new([
            "CASE",
            "INTERRUPTED",
            "LAST WENT ON",
            "STALLED",
            "LONGEST SILENCE",
            "COMPLETED",
            "RAN TWICE",
            "STOP",
            "RANGE, LAST WENT ON",
        ]);
        let mut values = Vec::new();
        for runs in all {
            let run = runs.median();
            table.row([
                run.case.name().to_owned(),
                run.interrupted.to_string(),
                seconds(run.last_resumed),
                run.stalled.to_string(),
                seconds(run.longest_silence),
                seconds(run.completed),
                run.repeated.to_string(),
                run.stop.map_or_else(|| "-".to_owned(), seconds),
                range(runs, |figure| format!("{figure:.1} s")),
            ]);
            let value = with_range(run.json(), "lastWentOnSeconds", run.figure(), runs);
            values.push(value);
        }
        let title = format!(
            "Two worker processes, {}, {}: 20 activities of 8 s, 8 chains of 60, 4 timers; stalled: silent {} s \
             longer than an activity or a timer explains",
            place.name,
            manager(place).1,
            STALL.as_secs()
        );
        self.section(&title, &table);
        self.json.insert(
            "fleet".to_owned(),
            json!({"store": place.name, "partitionManager": manager(place).0, "cases": values}),
        );
    }

    pub(super) fn balance(&mut self, place: &Place, all: &[Runs<Balanced>]) {
        let mut table = Table::new(["PARTITIONS", "ONE WORKER", "FOUR", "TWO", "RANGE, SLOWEST"]);
        let mut values = Vec::new();
        for runs in all {
            let run = runs.median();
            table.row([
                run.partitions.to_string(),
                seconds(run.first),
                seconds(run.four),
                seconds(run.two),
                range(runs, |figure| format!("{figure:.1} s")),
            ]);
            let value = json!({
                "partitions": run.partitions,
                "oneWorkerSeconds": run.first.as_secs_f64(),
                "fourWorkersSeconds": run.four.as_secs_f64(),
                "twoWorkersSeconds": run.two.as_secs_f64(),
            });
            values.push(with_range(value, "slowestSeconds", run.slowest(), runs));
        }
        let title = format!(
            "Worker processes, {}, {}: time until all partitions are owned and no worker has two more than another",
            place.name,
            manager(place).1,
        );
        self.section(&title, &table);
        self.json.insert(
            "balance".to_owned(),
            json!({"store": place.name, "partitionManager": manager(place).0, "hubs": values}),
        );
    }

    fn section(&mut self, title: &str, table: &Table) {
        self.text.push_str(&section_of(title, table));
    }

    fn table(&mut self, table: &Table) {
        self.text.push('\n');
        self.text.push_str(&table.render());
    }
}

/// Word and words for who distributes the partitions.
fn manager(place: &Place) -> (&'static str, &'static str) {
    match place.partition_manager {
        PartitionManager::Table => ("table", "table manager"),
        PartitionManager::Safe => ("safe", "safe manager"),
        PartitionManager::Legacy => ("legacy", "legacy manager"),
    }
}

fn upkeep() -> impl Iterator<Item = (&'static str, Purpose)> {
    Purpose::UPKEEP.into_iter().map(|purpose| (purpose.name(), purpose))
}

/// The value with its main figure, and how far it varied when it was measured several times.
fn with_range<T>(mut value: Value, name: &str, figure: f64, runs: &Runs<T>) -> Value {
    value[name] = json!(figure);
    let (lowest, highest) = runs.range();
    value["runs"] = json!({"count": runs.count(), "lowest": lowest, "highest": highest});
    value
}

fn range<T>(runs: &Runs<T>, form: impl Fn(f64) -> String) -> String {
    let (lowest, highest) = runs.range();
    if runs.count() == 1 { String::new() } else { format!("{} to {}", form(lowest), form(highest)) }
}

fn seconds(duration: Duration) -> String {
    format!("{:.1} s", duration.as_secs_f64())
}

fn section_of(title: &str, table: &Table) -> String {
    format!("\n{title}\n\n{}", table.render())
}

fn millis(duration: Duration) -> String {
    millis_of(duration.as_secs_f64())
}

fn millis_of(seconds: f64) -> String {
    format!("{:.1} ms", seconds * 1e3)
}

/// Millions.
fn mega(bytes: f64) -> String {
    format!("{:.1}", bytes / 1e6)
}
