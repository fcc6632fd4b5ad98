//! What a worker counts about its work items, as metrics of an explicit registry.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::registry::Registry;

/// Most function names that get a label of their own; a sender must not be able to fill the memory.
const MAX_NAMES: usize = 100;
/// Label of all others.
const OTHER: &str = "other";

/// Counters of one worker. Cheap to clone; clones share their values.
///
/// [`WorkerMetrics::register`] shows them under names that begin with `taskhub_`.
#[derive(Debug, Clone, Default)]
pub struct WorkerMetrics {
    /// `taskhub_work_items_total{kind,outcome}`.
    pub work_items: Family<WorkItemLabels, Counter>,
    unknown_functions: Family<FunctionLabels, Counter>,
    names: Arc<Mutex<BTreeSet<(&'static str, String)>>>,
}

/// Which work items, and how they ended.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct WorkItemLabels {
    /// `orchestration`, `activity` or `entity`.
    pub kind: &'static str,
    /// `completed`: its result is stored. `failed`: as before, and the result is a failure. `discarded`: all
    /// messages were stale. `given_back`: put back, to come again. `unknown_function`: put back because this
    /// worker has no such function. `error`: put back because it or the backend failed.
    pub outcome: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct FunctionLabels {
    kind: &'static str,
    name: String,
}

impl WorkerMetrics {
    /// Shows the metrics in a registry. For several workers in one registry, give each a sub-registry with
    /// a label of its own.
    pub fn register(&self, registry: &mut Registry) {
        registry.register(
            "taskhub_work_items",
            "Work items by kind and by how they ended",
            self.work_items.clone(),
        );
        registry.register(
            "taskhub_unknown_function",
            "Work items put back because no function of this name is registered here",
            self.unknown_functions.clone(),
        );
    }

    /// A work item of this kind ended.
    pub(crate) fn ended(&self, kind: &'static str, outcome: &'static str) {
        self.work_items.get_or_create(&WorkItemLabels { kind, outcome }).inc();
    }

    /// A work item asked for a function that is not registered here.
    pub(crate) fn unknown_function(&self, kind: &'static str, name: &str) {
        let mut names = self.names.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (kind, name.to_owned());
        let has_label = names.contains(&key) || (names.len() < MAX_NAMES && names.insert(key));
        drop(names);
        let name = if has_label { name } else { OTHER };
        self.unknown_functions.get_or_create(&FunctionLabels { kind, name: name.to_owned() }).inc();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(metrics: &WorkerMetrics) -> String {
        let mut registry = Registry::default();
        metrics.register(&mut registry);
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
        text
    }

    #[test]
    fn metrics_show_under_their_documented_names() {
        let metrics = WorkerMetrics::default();
        metrics.ended("orchestration", "completed");
        metrics.clone().unknown_function("activity", "SayHello");
        let text = text(&metrics);
        for line in [
            "taskhub_work_items_total{kind=\"orchestration\",outcome=\"completed\"} 1",
            "taskhub_unknown_function_total{kind=\"activity\",name=\"SayHello\"} 1",
        ] {
            assert!(text.lines().any(|l| l == line), "{line} in\n{text}");
        }
    }

    #[test]
    fn names_that_a_sender_makes_up_share_a_label() {
        let metrics = WorkerMetrics::default();
        (0..1000).for_each(|n| metrics.unknown_function("activity", &n.to_string()));
        metrics.unknown_function("activity", "7");
        let text = text(&metrics);
        assert_eq!(text.lines().filter(|l| l.contains("name=")).count(), MAX_NAMES + 1);
        assert!(text.contains("name=\"7\"} 2") && text.contains("name=\"other\"} 900"), "{text}");
    }
}
