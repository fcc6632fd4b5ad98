//! Why work goes back unprocessed: counted, and told once in a while.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use taskhub_core::{ErrorKind, GiveBackReason, ServiceError, Timestamp};

use crate::metrics::WorkerMetrics;

/// Time between two warnings about one function.
const WARNING_INTERVAL: Duration = Duration::from_secs(300);
/// Most functions of which the last warning is remembered.
const MAX_REMEMBERED: usize = 1000;

/// Counts what ends and what is given back, and remembers which functions were complained about.
#[derive(Debug)]
pub(crate) struct GaveBack {
    pub(crate) metrics: WorkerMetrics,
    warned: Mutex<HashMap<(&'static str, String), Timestamp>>,
}

impl GaveBack {
    pub(crate) fn new(metrics: WorkerMetrics) -> Self {
        Self { metrics, warned: Mutex::default() }
    }

    /// A work item goes back.
    pub(crate) fn count(&self, kind: &'static str, reason: &GiveBackReason) {
        let outcome = match reason {
            GiveBackReason::UnknownFunction { name } => {
                self.metrics.unknown_function(kind, name);
                "unknown_function"
            }
            GiveBackReason::Failed { .. } => "error",
            _ => "given_back",
        };
        self.metrics.ended(kind, outcome);
    }

    /// Whether it is time to warn about this function: the first time, and then once per interval.
    pub(crate) fn is_due(&self, kind: &'static str, name: &str, now: Timestamp) -> bool {
        let mut warned = self.warned.lock().unwrap_or_else(PoisonError::into_inner);
        let recent = |at: &Timestamp| now.saturating_since(*at) < WARNING_INTERVAL;
        let key = (kind, name.to_owned());
        if warned.get(&key).is_some_and(recent) {
            return false;
        }
        if warned.len() >= MAX_REMEMBERED {
            warned.retain(|_, at| recent(at));
        }
        if warned.len() < MAX_REMEMBERED {
            warned.insert(key, now);
            return true;
        }
        false
    }
}

/// What the failure of a backend tells about the work item.
pub(crate) fn reason_of(error: &ServiceError) -> GiveBackReason {
    match error.kind() {
        ErrorKind::SessionAborted | ErrorKind::Unavailable | ErrorKind::Denied => GiveBackReason::Interrupted,
        _ => GiveBackReason::Failed { reason: error.chain() },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_function_is_complained_about_once_per_interval_and_names_are_bounded() {
        let gave_back = GaveBack::new(WorkerMetrics::default());
        let at = |seconds| Timestamp::MIN + Duration::from_secs(seconds);
        assert!(gave_back.is_due("activity", "A", at(0)));
        assert!(gave_back.is_due("orchestration", "A", at(0)));
        assert!(!gave_back.is_due("activity", "A", at(299)));
        assert!(gave_back.is_due("activity", "A", at(300)));
        let due = (0..10_000).filter(|n| gave_back.is_due("activity", &n.to_string(), at(301))).count();
        assert!((MAX_REMEMBERED - 2..=MAX_REMEMBERED).contains(&due), "{due}");
        assert!(gave_back.is_due("activity", "20000", at(700)), "old names make room");
    }

    #[test]
    fn what_the_service_could_not_do_is_not_the_works_fault() {
        let of = |kind| reason_of(&ServiceError::new(kind, "x"));
        assert_eq!(of(ErrorKind::Unavailable), GiveBackReason::Interrupted);
        assert_eq!(of(ErrorKind::SessionAborted), GiveBackReason::Interrupted);
        assert_eq!(of(ErrorKind::Invalid), GiveBackReason::Failed { reason: "x".to_owned() });
    }
}
