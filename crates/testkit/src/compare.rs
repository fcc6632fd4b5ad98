//! Compares two hubs by what every provider has to write alike: tables, rows, columns and their EDM types,
//! messages, blobs; within JSON the keys and their order, value types, `$type` and `EventType`. Ids, times
//! and versions count only by their notation.

mod json;
mod mask;

use std::collections::BTreeMap;
use std::fmt;

use taskhub_core::Timestamp;
use taskhub_storage::{Entity, Value};

use crate::dump::{BlobDump, ContainerDump, HubDump, MessageDump, QueueDump, TableDump, decode_base64_json};
use json::{JsonComparison, Side, clip, nested};
use mask::Mask;

/// What to compare.
#[derive(Debug, Clone, Copy, Default)]
pub struct Comparison<'a> {
    /// Compare all scalar values, masked, not only the shape.
    pub values: bool,
    /// Treat all control queues as one: generated instance ids hash to other partitions in every run.
    pub pool_control_queues: bool,
    /// Differences that are allowed: patterns for a whole line `PATH: ours A, golden B`, where `*` stands
    /// for any text.
    pub allowed: &'a [&'a str],
}

/// One way in which two hubs differ.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Difference {
    /// Where: `table <hub>History TaskScheduled column Input $.a`.
    pub path: String,
    /// What: `ours A, golden B`.
    pub what: String,
    /// The first row, message or blob that shows it.
    pub example: String,
    /// How many do.
    pub count: usize,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.path, self.what)?;
        if !self.example.is_empty() {
            write!(f, "\n    at {}", self.example)?;
        }
        if self.count > 1 {
            write!(f, " and {} more", self.count - 1)?;
        }
        Ok(())
    }
}

/// How `ours` differs from `golden`; empty when it does not.
pub fn compare(ours: &HubDump, golden: &HubDump, comparison: Comparison<'_>) -> Vec<Difference> {
    let side =
        |dump: &HubDump| Side { mask: Mask::new(&dump.hub, &dump.blob_endpoint), values: comparison.values };
    let mut run =
        Run { ours: side(ours), golden: side(golden), allowed: comparison.allowed, found: Vec::new() };
    run.by_name("table", &ours.tables, &golden.tables, |t| &t.name, Run::table);
    run.by_name(
        "queue",
        &ours.queues,
        &golden.queues,
        |q| &q.name,
        |run, path, a, b| {
            if !(comparison.pool_control_queues && is_control(a)) {
                run.queue(path, &[a], &[b]);
            }
        },
    );
    if comparison.pool_control_queues {
        let pool = |dump: &'_ HubDump| -> Vec<QueueDump> {
            dump.queues.iter().filter(|queue| is_control(queue)).cloned().collect()
        };
        let (a, b) = (pool(ours), pool(golden));
        run.queue("control queues", &a.iter().collect::<Vec<_>>(), &b.iter().collect::<Vec<_>>());
    }
    run.by_name("container", &ours.containers, &golden.containers, |c| &c.name, Run::container);
    run.found
}

/// Fails with all differences.
///
/// # Panics
/// When there are any.
#[track_caller]
pub fn assert_same(ours: &HubDump, golden: &HubDump, comparison: Comparison<'_>) {
    let found = compare(ours, golden, comparison);
    let lines: Vec<String> = found.iter().map(ToString::to_string).collect();
    assert!(lines.is_empty(), "{} differences\n{}", lines.len(), lines.join("\n"));
}

fn is_control(queue: &QueueDump) -> bool {
    queue.name.contains("-control-")
}

struct Run<'a> {
    ours: Side,
    golden: Side,
    allowed: &'a [&'a str],
    found: Vec<Difference>,
}

impl Run<'_> {
    fn report(&mut self, path: &str, what: impl Into<String>, example: &str) {
        let what = what.into();
        let line = format!("{path}: {what}");
        if self.allowed.iter().any(|pattern| matches(pattern, &line)) {
            return;
        }
        if let Some(known) = self.found.iter_mut().find(|d| d.path == path && d.what == what) {
            known.count += 1;
        } else {
            self.found.push(Difference { path: path.into(), what, example: example.into(), count: 1 });
        }
    }

    /// Compares what has the same name on both sides, and reports what has none.
    fn by_name<T>(
        &mut self,
        kind: &str,
        ours: &[T],
        golden: &[T],
        name: impl Fn(&T) -> &String,
        mut each: impl FnMut(&mut Self, &str, &T, &T),
    ) {
        let index = |side: &Side, items: &[T]| -> BTreeMap<String, usize> {
            items.iter().enumerate().map(|(i, item)| (side.mask.text(name(item)), i)).collect()
        };
        let (a, b) = (index(&self.ours, ours), index(&self.golden, golden));
        for (name, i) in &a {
            match b.get(name) {
                Some(j) => each(self, &format!("{kind} {name}"), &ours[*i], &golden[*j]),
                None => self.report(&format!("{kind} {name}"), "only in ours", ""),
            }
        }
        for name in b.keys().filter(|name| !a.contains_key(*name)) {
            self.report(&format!("{kind} {name}"), "only in golden", "");
        }
    }

    fn table(&mut self, path: &str, ours: &TableDump, golden: &TableDump) {
        let group = |side: &Side, table: &TableDump| -> Vec<(String, Vec<Entity>)> {
            let mut groups: Vec<(String, Vec<Entity>)> = Vec::new();
            for row in &table.rows {
                match groups.last_mut() {
                    Some((_, rows)) if rows[0].partition_key == row.partition_key => rows.push(row.clone()),
                    _ => groups.push((side.mask.text(&row.partition_key), vec![row.clone()])),
                }
            }
            groups
        };
        let size = |(key, rows): &(String, Vec<Entity>)| format!("{key} {}", rows.len());
        let key = |(key, _): &(String, Vec<Entity>)| key.clone();
        let (a, b) = (group(&self.ours, ours), group(&self.golden, golden));
        let pairs = pair(&a, &b, &[&size, &key], &[&size, &key]);
        for (key, rows) in &pairs.ours {
            self.report(&format!("{path} partition {key}"), format!("{} rows only in ours", rows.len()), "");
        }
        for (key, rows) in &pairs.golden {
            self.report(
                &format!("{path} partition {key}"),
                format!("{} rows only in golden", rows.len()),
                "",
            );
        }
        for ((key, a), (_, b)) in pairs.both {
            self.rows(path, key, a, b);
        }
    }

    fn rows(&mut self, path: &str, partition: &str, ours: &[Entity], golden: &[Entity]) {
        let event = |row: &Entity| row.str("EventType").unwrap_or_default().to_owned();
        let keys = |side: &Side, row: &Entity| side.mask.text(&row.row_key);
        let (a, b) = (&self.ours, &self.golden);
        let pairs = pair(
            ours,
            golden,
            &[&|row| format!("{} {}", keys(a, row), event(row)), &|row| keys(a, row)],
            &[&|row| format!("{} {}", keys(b, row), event(row)), &|row| keys(b, row)],
        );
        let name =
            |key: String, row: &Entity| format!("{path} partition {partition} row {key} {}", event(row));
        for row in &pairs.ours {
            let name = name(keys(&self.ours, row), row);
            self.report(name.trim_end(), "only in ours", "");
        }
        for row in &pairs.golden {
            let name = name(keys(&self.golden, row), row);
            self.report(name.trim_end(), "only in golden", "");
        }
        for (a, b) in pairs.both {
            let example = format!("{partition} / {}", keys(&self.ours, a));
            if event(a) == event(b) {
                let path = format!("{path} {}", event(a));
                self.row(path.trim_end(), &example, a, b);
            } else {
                self.report(path, format!("ours {:?}, golden {:?}", event(a), event(b)), &example);
            }
        }
    }

    fn row(&mut self, path: &str, example: &str, ours: &Entity, golden: &Entity) {
        for (name, value) in &ours.columns {
            let path = format!("{path} column {name}");
            match golden.get(name) {
                None => self.report(&path, format!("only in ours ({})", edm(value)), example),
                Some(other) => self.column(&path, example, value, other),
            }
        }
        for (name, value) in golden.columns.iter().filter(|(name, _)| ours.get(name).is_none()) {
            self.report(
                &format!("{path} column {name}"),
                format!("only in golden ({})", edm(value)),
                example,
            );
        }
    }

    fn column(&mut self, path: &str, example: &str, ours: &Value, golden: &Value) {
        match (ours, golden) {
            (Value::String(a), Value::String(b)) => self.text(path, example, a, b),
            (Value::DateTime(a), Value::DateTime(b)) if is_set(*a) == is_set(*b) => {}
            _ if edm(ours) != edm(golden) => {
                self.report(path, format!("ours {}, golden {}", edm(ours), edm(golden)), example);
            }
            _ if ours != golden && (self.ours.values || matches!(ours, Value::DateTime(_))) => {
                self.report(path, format!("ours {ours:?}, golden {golden:?}"), example);
            }
            _ => {}
        }
    }

    fn text(&mut self, path: &str, example: &str, ours: &str, golden: &str) {
        for (within, what) in JsonComparison::of_texts(&self.ours, &self.golden, (ours, golden)) {
            self.report(format!("{path} {within}").trim_end(), what, example);
        }
    }

    fn queue(&mut self, path: &str, ours: &[&QueueDump], golden: &[&QueueDump]) {
        let count = |queues: &[&QueueDump]| -> usize {
            queues.iter().map(|queue| queue.messages.len() + queue.unseen as usize).sum()
        };
        let (a, b) = (count(ours), count(golden));
        let all_seen = ours.iter().chain(golden).all(|queue| queue.unseen == 0);
        if !all_seen && a != b {
            self.report(path, format!("ours {a} messages, golden {b}"), "");
        }
        let messages = |queues: &[&QueueDump]| -> Vec<MessageDump> {
            queues.iter().flat_map(|queue| queue.messages.clone()).collect()
        };
        let shape = |side: &Side, message: &MessageDump| {
            let text = message.json_text();
            nested(&text).map_or_else(|| side.mask.text(&text), |json| side.skeleton(&json, None))
        };
        let (a, b) = (messages(ours), messages(golden));
        let pairs = pair(
            &a,
            &b,
            &[&|m| shape(&self.ours, m), &event_of, &|_| String::new()],
            &[&|m| shape(&self.golden, m), &event_of, &|_| String::new()],
        );
        if all_seen {
            for message in &pairs.ours {
                self.report(path, format!("message only in ours: {}", event_of(message)), "");
            }
            for message in &pairs.golden {
                self.report(path, format!("message only in golden: {}", event_of(message)), "");
            }
        }
        for (a, b) in pairs.both {
            let example = format!("message {}", event_of(a));
            if all_seen && a.state != b.state {
                self.report(
                    &format!("{path} state"),
                    format!("ours {:?}, golden {:?}", a.state, b.state),
                    &example,
                );
            }
            let base64 = |message: &MessageDump| decode_base64_json(&message.text).is_some();
            if base64(a) != base64(b) {
                let name = |message| if base64(message) { "base64" } else { "plain text" };
                self.report(
                    &format!("{path} encoding"),
                    format!("ours {}, golden {}", name(a), name(b)),
                    &example,
                );
            }
            self.text(&format!("{path} message"), &example, &a.json_text(), &b.json_text());
        }
    }

    fn container(&mut self, path: &str, ours: &ContainerDump, golden: &ContainerDump) {
        let (a, b) = (&self.ours, &self.golden);
        let shape = |side: &Side, blob: &BlobDump| match blob.text() {
            Some(text) => nested(&text).map_or_else(String::new, |json| side.skeleton(&json, None)),
            None => "binary".to_owned(),
        };
        let name = |side: &Side, blob: &BlobDump| side.mask.text(&blob.name);
        let pairs = pair(
            &ours.blobs,
            &golden.blobs,
            &[&|blob| format!("{} {}", name(a, blob), shape(a, blob)), &|blob| name(a, blob)],
            &[&|blob| format!("{} {}", name(b, blob), shape(b, blob)), &|blob| name(b, blob)],
        );
        for blob in &pairs.ours {
            self.report(&format!("{path} blob {}", name(&self.ours, blob)), "only in ours", "");
        }
        for blob in &pairs.golden {
            self.report(&format!("{path} blob {}", name(&self.golden, blob)), "only in golden", "");
        }
        for (a, b) in pairs.both {
            let path = format!("{path} blob {}", name(&self.ours, a));
            if a.is_gzip() != b.is_gzip() {
                let packed = |blob: &BlobDump| if blob.is_gzip() { "gzip" } else { "not packed" };
                self.report(&path, format!("ours {}, golden {}", packed(a), packed(b)), "");
            }
            if a.lease != b.lease {
                self.report(
                    &format!("{path} lease"),
                    format!("ours {:?}, golden {:?}", a.lease, b.lease),
                    "",
                );
            }
            match (a.text(), b.text()) {
                (Some(a), Some(b)) => self.text(&format!("{path} content"), "", &a, &b),
                (None, None) if !self.ours.values || a.content == b.content => {}
                _ => self.report(&path, "other bytes", ""),
            }
        }
    }
}

/// What a message is about: the name of its event's type.
fn event_of(message: &MessageDump) -> String {
    let text = message.json_text();
    let event = nested(&text).and_then(|json| {
        let event = &json["TaskMessage"]["Event"];
        Some(format!("{} EventType {}", event.get("$type")?.as_str()?, event.get("EventType")?))
    });
    event.unwrap_or_else(|| clip(&text))
}

fn edm(value: &Value) -> &'static str {
    match value {
        Value::String(_) => "Edm.String",
        Value::Bool(_) => "Edm.Boolean",
        Value::Int32(_) => "Edm.Int32",
        Value::Int64(_) => "Edm.Int64",
        Value::Double(_) => "Edm.Double",
        Value::DateTime(_) => "Edm.DateTime",
        Value::Guid(_) => "Edm.Guid",
        Value::Binary(_) => "Edm.Binary",
    }
}

/// Whether a time is one: .NET's and Azure's minimum and maximum mean "not set".
fn is_set(at: Timestamp) -> bool {
    let year = at.to_iso();
    !(year.starts_with("0001-") || year.starts_with("1601-") || year.starts_with("9999-"))
}

/// Items of two lists that belong together, and those left over.
struct Pairs<'a, T> {
    both: Vec<(&'a T, &'a T)>,
    ours: Vec<&'a T>,
    golden: Vec<&'a T>,
}

type KeyOf<'k, T> = &'k dyn Fn(&T) -> String;

/// Pairs by the first key, then what is left by the next, each time in order.
fn pair<'a, T>(
    ours: &'a [T],
    golden: &'a [T],
    of_ours: &[KeyOf<'_, T>],
    of_golden: &[KeyOf<'_, T>],
) -> Pairs<'a, T> {
    let mut pairs = Pairs { both: Vec::new(), ours: ours.iter().collect(), golden: golden.iter().collect() };
    for (key_of_ours, key_of_golden) in of_ours.iter().zip(of_golden) {
        let mut candidates: Vec<(String, &T)> =
            pairs.golden.iter().map(|item| (key_of_golden(item), *item)).collect();
        let mut unmatched = Vec::new();
        for item in pairs.ours {
            let key = key_of_ours(item);
            match candidates.iter().position(|(candidate, _)| *candidate == key) {
                Some(i) => pairs.both.push((item, candidates.remove(i).1)),
                None => unmatched.push(item),
            }
        }
        pairs.ours = unmatched;
        pairs.golden = candidates.into_iter().map(|(_, item)| item).collect();
    }
    pairs
}

/// Whether a line is like a pattern, in which `*` stands for any text.
fn matches(pattern: &str, line: &str) -> bool {
    match pattern.split_once('*') {
        None => pattern == line,
        Some((head, rest)) => line.strip_prefix(head).is_some_and(|mut tail| {
            loop {
                if matches(rest, tail) {
                    return true;
                }
                let Some(first) = tail.chars().next() else { return false };
                tail = &tail[first.len_utf8()..];
            }
        }),
    }
}

#[cfg(test)]
mod tests;
