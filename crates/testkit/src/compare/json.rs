use serde_json::Value as Json;

use super::mask::{Mask, notations};

/// Keys whose values are part of the structure.
const STRUCTURAL_KEYS: [&str; 2] = ["$type", "EventType"];

/// One side of a comparison: what is masked how.
#[derive(Debug)]
pub(super) struct Side {
    pub(super) mask: Mask,
    /// Compare all scalar values, not only the structural ones.
    pub(super) values: bool,
}

impl Side {
    /// Whether the value under `key` counts.
    fn counts(&self, key: Option<&str>) -> bool {
        self.values || key.is_some_and(|key| STRUCTURAL_KEYS.contains(&key))
    }

    /// What has to be equal for two JSON values to be the same, as one text.
    pub(super) fn skeleton(&self, json: &Json, key: Option<&str>) -> String {
        match json {
            Json::Object(members) => {
                let members = members.iter().map(|(key, value)| {
                    format!("{}:{}", self.mask.text(key), self.skeleton(value, Some(key)))
                });
                format!("{{{}}}", members.collect::<Vec<_>>().join(","))
            }
            Json::Array(items) => {
                let items = items.iter().map(|item| self.skeleton(item, None));
                format!("[{}]", items.collect::<Vec<_>>().join(","))
            }
            Json::String(text) => match nested(text) {
                Some(inner) => format!("json({})", self.skeleton(&inner, None)),
                None if self.counts(key) => format!("{:?}", self.mask.text(text)),
                None => format!("text {}", notations(&self.mask.text(text))),
            },
            scalar if self.counts(key) => scalar.to_string(),
            scalar => kind(scalar).to_owned(),
        }
    }
}

/// Reports how two JSON values differ, by the path within them.
pub(super) struct JsonComparison<'a> {
    pub(super) ours: &'a Side,
    pub(super) golden: &'a Side,
    pub(super) found: Vec<(String, String)>,
}

impl<'a> JsonComparison<'a> {
    /// All differences of two texts, which may be JSON, as path and description.
    pub(super) fn of_texts(ours: &'a Side, golden: &'a Side, texts: (&str, &str)) -> Vec<(String, String)> {
        let mut comparison = Self { ours, golden, found: Vec::new() };
        comparison.texts("", texts.0, texts.1, None);
        comparison.found
    }

    fn report(&mut self, path: &str, ours: impl std::fmt::Display, golden: impl std::fmt::Display) {
        self.found.push((path.to_owned(), format!("ours {ours}, golden {golden}")));
    }

    fn texts(&mut self, path: &str, ours: &str, golden: &str, key: Option<&str>) {
        match (nested(ours), nested(golden)) {
            (Some(a), Some(b)) => return self.values(&format!("{path}$"), &a, &b, None),
            (None, None) => {}
            (a, _) => {
                let (a, b) =
                    if a.is_some() { ("JSON text", "plain text") } else { ("plain text", "JSON text") };
                return self.report(path, a, b);
            }
        }
        let (a, b) = (self.ours.mask.text(ours), self.golden.mask.text(golden));
        if notations(&a) != notations(&b) || (self.ours.counts(key) && a != b) {
            self.report(path, clip(&a), clip(&b));
        }
    }

    fn values(&mut self, path: &str, ours: &Json, golden: &Json, key: Option<&str>) {
        match (ours, golden) {
            (Json::Object(a), Json::Object(b)) => {
                let keys_a: Vec<String> = a.keys().map(|key| self.ours.mask.text(key)).collect();
                let keys_b: Vec<String> = b.keys().map(|key| self.golden.mask.text(key)).collect();
                if keys_a != keys_b {
                    let list = |keys: &[String]| format!("keys [{}]", keys.join(", "));
                    self.report(path, list(&keys_a), list(&keys_b));
                }
                for (name, value) in keys_a.iter().zip(a.values()) {
                    if let Some(i) = keys_b.iter().position(|key| key == name)
                        && let Some(other) = b.values().nth(i)
                    {
                        self.values(&format!("{path}.{name}"), value, other, Some(name));
                    }
                }
            }
            (Json::Array(a), Json::Array(b)) => {
                if a.len() != b.len() {
                    self.report(path, format!("{} elements", a.len()), format!("{} elements", b.len()));
                }
                for (i, (a, b)) in a.iter().zip(b).enumerate() {
                    self.values(&format!("{path}[{i}]"), a, b, None);
                }
            }
            (Json::String(a), Json::String(b)) => self.texts(path, a, b, key),
            _ if kind(ours) != kind(golden) => self.report(path, kind(ours), kind(golden)),
            _ if self.ours.counts(key) && ours != golden => self.report(path, ours, golden),
            _ => {}
        }
    }
}

/// The JSON that a text holds, unless it is a bare word or number.
pub(super) fn nested(text: &str) -> Option<Json> {
    if !text.trim_start().starts_with(['{', '[', '"']) {
        return None;
    }
    serde_json::from_str(text).ok()
}

fn kind(json: &Json) -> &'static str {
    match json {
        Json::Null => "null",
        Json::Bool(_) => "a boolean",
        Json::Number(number) if number.is_f64() => "a decimal number",
        Json::Number(_) => "an integer",
        Json::String(_) => "a text",
        Json::Array(_) => "a list",
        Json::Object(_) => "an object",
    }
}

/// A text, quoted and not too long for a message.
pub(super) fn clip(text: &str) -> String {
    let short: String = text.chars().take(120).collect();
    format!("{short:?}{}", if short.len() < text.len() { "…" } else { "" })
}
