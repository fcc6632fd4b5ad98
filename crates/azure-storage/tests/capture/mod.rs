//! Files of `tests/golden` and the list of differences on purpose.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use taskhub_testkit::dump::{self, HubDump};

/// What a file of the folder is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Hub,
    States,
    Traffic,
    Wire,
    /// Not data: descriptions and expectations.
    Text,
}

#[derive(Debug, Clone)]
pub(crate) struct Capture {
    /// Path below `tests/golden`, without extensions: `v1/Timer/completed`.
    pub(crate) name: String,
    pub(crate) path: PathBuf,
    pub(crate) kind: Kind,
}

impl Capture {
    /// Whether provider 1.x wrote it.
    pub(crate) fn is_v1(&self) -> bool {
        self.name.starts_with("v1/")
    }

    pub(crate) fn hub(&self) -> HubDump {
        dump::read(&self.path).unwrap()
    }

    pub(crate) fn text(&self) -> String {
        taskhub_azure_storage::message::decompress(&fs::read(&self.path).unwrap()).unwrap()
    }
}

/// Every file of the folder; an unknown one panics, so that none is skipped.
pub(crate) fn all() -> Vec<Capture> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    let mut found = Vec::new();
    let mut folders = vec![root.clone()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
                continue;
            }
            let relative = path.strip_prefix(&root).unwrap().to_str().unwrap().replace('\\', "/");
            let file = relative.rsplit('/').next().unwrap();
            let kind = match file {
                "README.md" | "functions.md" | "expected.json" => Kind::Text,
                "states.json.gz" => Kind::States,
                "traffic.jsonl.gz" => Kind::Traffic,
                "messages.json.gz" if relative.starts_with("v1/wire/") => Kind::Wire,
                _ if file.ends_with(".json.gz") => Kind::Hub,
                _ => panic!("unknown file in tests/golden: {relative}"),
            };
            let name = relative.trim_end_matches(".gz").trim_end_matches(".jsonl").trim_end_matches(".json");
            found.push(Capture { name: name.to_owned(), path, kind });
        }
    }
    found.sort_by(|a, b| a.name.cmp(&b.name));
    found
}

pub(crate) fn of(kind: Kind) -> Vec<Capture> {
    all().into_iter().filter(|capture| capture.kind == kind).collect()
}

/// A captured text, with the differences that we make on purpose taken out and counted.
#[derive(Debug)]
pub(crate) struct AllowedDifferences {
    entries: Vec<(String, usize)>,
    seen: BTreeMap<String, usize>,
}

impl AllowedDifferences {
    /// The entries of `docs/allowed-differences.txt` for `area`.
    pub(crate) fn of(area: &str) -> Self {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/allowed-differences.txt");
        let text = fs::read_to_string(path).unwrap();
        let lines = text.lines().filter(|line| !line.starts_with('#') && !line.trim().is_empty());
        let mut entries = Vec::new();
        assert!(lines.clone().count() <= 10, "at most ten differences");
        for line in lines {
            let fields: Vec<&str> = line.split(" | ").collect();
            let [its_area, count, pattern, reason] = fields[..] else { panic!("not four fields: {line}") };
            assert!(!reason.trim().is_empty(), "{line}");
            if its_area == area {
                entries.push((pattern.to_owned(), count.parse().unwrap()));
            }
        }
        Self { entries, seen: BTreeMap::new() }
    }

    /// Takes the patterns out of a captured text.
    pub(crate) fn applied(&mut self, captured: &str) -> String {
        let mut text = captured.to_owned();
        for (pattern, _) in &self.entries {
            let count = text.matches(pattern.as_str()).count();
            if count > 0 {
                *self.seen.entry(pattern.clone()).or_default() += count;
                text = text.replace(&format!("{pattern},"), "").replace(pattern.as_str(), "");
            }
        }
        text
    }

    /// Every entry must have been seen exactly as often as it says: neither more, nor stale.
    #[track_caller]
    pub(crate) fn check(self) {
        for (pattern, count) in self.entries {
            assert_eq!(self.seen.get(&pattern).copied().unwrap_or(0), count, "occurrences of {pattern}");
        }
    }
}

/// A message of ours as provider 1.x writes it: without the members that came later.
pub(crate) fn as_v1(ours: &str) -> String {
    let mut text = ours.replace(",\"GenerateNewTrace\":false", "").replace(",\"Properties\":null", "");
    if text.contains("\"EventType\":4,") {
        text = text.replacen(",\"Tags\":null,\"EventId\"", ",\"EventId\"", 1);
    }
    text
}
