//! What a worker counts about its queues and partitions, as metrics of an explicit registry.

use std::collections::BTreeSet;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, PoisonError};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use taskhub_storage::request::{Cost, OperationCounts};

/// Most event types that get a label of their own; a sender must not be able to fill the memory.
const MAX_EVENT_TYPES: usize = 50;
/// Label of all others.
const OTHER: &str = "other";

/// Counters and gauges of one process on one hub. Cheap to clone; clones share their values.
///
/// Every [`crate::Hub`] has its own; [`StorageMetrics::register`] shows them under names that begin with
/// `taskhub_`.
#[derive(Debug, Clone, Default)]
pub struct StorageMetrics {
    /// `taskhub_dead_letters_total{reason}`: dead-letter records written for the first time.
    pub dead_letters: Family<ReasonLabels, Counter>,
    /// `taskhub_quarantined_messages_total{reason}`: messages moved out of their queue.
    pub quarantined_messages: Family<ReasonLabels, Counter>,
    /// `taskhub_messages_put_back_total{reason}`: messages made visible again after a delay.
    pub messages_put_back: Family<ReasonLabels, Counter>,
    /// `taskhub_partitions_owned`: control queues this process receives from.
    pub partitions_owned: Gauge,
    /// `taskhub_oldest_message_age_seconds{queue}`: age of the first visible message of a queue that this
    /// process receives from, when it last looked; 0 when there was none.
    pub oldest_message_age_seconds: Family<QueueLabels, Gauge<f64, AtomicU64>>,
    unknown_event_types: Family<EventTypeLabels, Counter>,
    event_types: Arc<Mutex<BTreeSet<String>>>,
}

/// Name of the metric of [`register_requests`], to which OpenMetrics adds `_total`.
pub const REQUESTS_METRIC: &str = "taskhub_storage_requests";

/// Shows what the requests of an account cost: `taskhub_storage_requests_total{meter,operation,orchestration}`,
/// the last one empty for what serves all of them.
pub fn register_requests(counts: &OperationCounts, registry: &mut Registry) {
    registry.register_collector(Box::new(Requests(counts.clone())));
}

#[derive(Debug)]
struct Requests(OperationCounts);

impl Collector for Requests {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let help = "Requests to storage, as they are billed";
        let mut metric = encoder.encode_descriptor(REQUESTS_METRIC, help, None, MetricType::Counter)?;
        for Cost { orchestration, meter, operation, requests } in self.0.costs() {
            let labels = [
                ("meter", meter.name()),
                ("operation", operation),
                ("orchestration", orchestration.as_deref().unwrap_or_default()),
            ];
            metric.encode_family(&labels)?.encode_counter::<NoLabelSet, _, u64>(&requests, None)?;
        }
        Ok(())
    }
}

/// Why something happened to a message; one of a fixed set of words.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ReasonLabels {
    /// The machine-readable reason.
    pub reason: &'static str,
}

/// Which queue.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct QueueLabels {
    /// Name of the queue.
    pub queue: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct EventTypeLabels {
    event_type: String,
}

impl StorageMetrics {
    /// Shows the metrics in a registry. For several hubs in one registry, give each a sub-registry with a
    /// label of its own.
    pub fn register(&self, registry: &mut Registry) {
        registry.register(
            "taskhub_dead_letters",
            "Dead-letter records written for the first time",
            self.dead_letters.clone(),
        );
        registry.register(
            "taskhub_quarantined_messages",
            "Messages moved out of their queue",
            self.quarantined_messages.clone(),
        );
        registry.register(
            "taskhub_messages_put_back",
            "Messages made visible again after a delay",
            self.messages_put_back.clone(),
        );
        registry.register(
            "taskhub_unknown_event_type",
            "Messages of an event type that this worker does not know",
            self.unknown_event_types.clone(),
        );
        registry.register(
            "taskhub_partitions_owned",
            "Control queues this process receives from",
            self.partitions_owned.clone(),
        );
        registry.register(
            "taskhub_oldest_message_age_seconds",
            "Age of the first visible message of a queue this process receives from",
            self.oldest_message_age_seconds.clone(),
        );
    }

    /// A message of this event type came, which nobody here knows.
    pub(crate) fn unknown_event_type(&self, event_type: &str) {
        let mut known = self.event_types.lock().unwrap_or_else(PoisonError::into_inner);
        let has_label = known.contains(event_type)
            || (known.len() < MAX_EVENT_TYPES && known.insert(event_type.to_owned()));
        drop(known);
        let event_type = if has_label { event_type } else { OTHER };
        self.unknown_event_types.get_or_create(&EventTypeLabels { event_type: event_type.to_owned() }).inc();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(metrics: &StorageMetrics) -> String {
        let mut registry = Registry::default();
        metrics.register(&mut registry);
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
        text
    }

    #[test]
    fn metrics_show_under_their_documented_names() {
        let metrics = StorageMetrics::default();
        metrics.dead_letters.get_or_create(&ReasonLabels { reason: "not_json" }).inc();
        metrics.quarantined_messages.get_or_create(&ReasonLabels { reason: "not_json" }).inc();
        metrics.messages_put_back.get_or_create(&ReasonLabels { reason: "not_json" }).inc_by(3);
        metrics.partitions_owned.set(2);
        let queue = QueueLabels { queue: "hub-control-00".to_owned() };
        metrics.clone().oldest_message_age_seconds.get_or_create(&queue).set(1.5);
        metrics.unknown_event_type("99");
        let text = text(&metrics);
        for line in [
            "taskhub_dead_letters_total{reason=\"not_json\"} 1",
            "taskhub_quarantined_messages_total{reason=\"not_json\"} 1",
            "taskhub_messages_put_back_total{reason=\"not_json\"} 3",
            "taskhub_unknown_event_type_total{event_type=\"99\"} 1",
            "taskhub_partitions_owned 2",
            "taskhub_oldest_message_age_seconds{queue=\"hub-control-00\"} 1.5",
        ] {
            assert!(text.lines().any(|l| l == line), "{line} in\n{text}");
        }
    }

    #[test]
    fn event_types_that_a_sender_makes_up_share_a_label() {
        let metrics = StorageMetrics::default();
        (0..1000).for_each(|n| metrics.unknown_event_type(&n.to_string()));
        metrics.unknown_event_type("7");
        let text = text(&metrics);
        assert_eq!(text.lines().filter(|l| l.contains("event_type=")).count(), MAX_EVENT_TYPES + 1);
        assert!(text.contains("event_type=\"7\"} 2") && text.contains("event_type=\"other\"} 950"), "{text}");
    }
}
