use std::collections::{HashMap, VecDeque};
use std::sync::{Mutex, PoisonError};

use taskhub_core::{ExecutionId, InstanceId};
use taskhub_storage::ETag;

/// How many versions of Instances rows a worker remembers.
const CAPACITY: usize = 20_000;

/// Versions of Instances rows as this worker last read or wrote them, with the execution they are about, so
/// that the next write can be conditional without reading the row again. Forgets the oldest.
#[derive(Debug, Default)]
pub(crate) struct InstanceEtags(Mutex<State>);

/// What is known of a row: its version, and the execution it is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Remembered {
    pub(crate) execution_id: Option<ExecutionId>,
    pub(crate) etag: ETag,
    /// Whether it says that the instance is pending.
    pub(crate) is_pending: bool,
}

#[derive(Debug, Default)]
struct State {
    etags: HashMap<InstanceId, Remembered>,
    order: VecDeque<InstanceId>,
}

impl InstanceEtags {
    pub(crate) fn get(&self, instance: &InstanceId) -> Option<Remembered> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).etags.get(instance).cloned()
    }

    /// `None` forgets: the row is gone, finished, or of unknown version.
    pub(crate) fn set(&self, instance: &InstanceId, row: Option<Remembered>) {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match row {
            None => {
                state.etags.remove(instance);
            }
            Some(row) => {
                if state.etags.insert(instance.clone(), row).is_none() {
                    state.order.push_back(instance.clone());
                }
                while state.order.len() > CAPACITY {
                    if let Some(oldest) = state.order.pop_front() {
                        state.etags.remove(&oldest);
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_versions_are_forgotten() {
        let etags = InstanceEtags::default();
        let row = Remembered { execution_id: None, etag: ETag::new("1"), is_pending: false };
        for n in 0..=CAPACITY {
            etags.set(&InstanceId::new(n.to_string()), Some(row.clone()));
        }
        assert_eq!(etags.get(&"0".into()), None);
        assert_eq!(etags.get(&"1".into()), Some(row.clone()));
        etags.set(&"1".into(), None);
        assert_eq!(etags.get(&"1".into()), None);
        let state = etags.0.into_inner().unwrap();
        assert!(state.etags.len() <= CAPACITY && state.order.len() <= CAPACITY);
    }
}
