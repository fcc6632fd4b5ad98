//! Which orchestration an instance is of, as far as this process has seen: requests are counted on its account.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use taskhub_core::{EventKind, HistoryEvent, InstanceId};

/// Most instances that are remembered; all are forgotten when there are more.
const MAX_INSTANCES: usize = 10_000;

/// Names by instance.
#[derive(Debug, Default)]
pub(crate) struct InstanceNames(Mutex<HashMap<InstanceId, Arc<str>>>);

impl InstanceNames {
    fn lock(&self) -> MutexGuard<'_, HashMap<InstanceId, Arc<str>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is known of an instance.
    pub(crate) fn of(&self, instance_id: &InstanceId) -> Option<Arc<str>> {
        if instance_id.is_entity() {
            return Some(account(instance_id, ""));
        }
        self.lock().get(instance_id).cloned()
    }

    /// Learns the name from a start among the events, if there is one. What is known then.
    pub(crate) fn learn<'a>(
        &self,
        instance_id: &InstanceId,
        events: impl IntoIterator<Item = &'a HistoryEvent>,
    ) -> Option<Arc<str>> {
        let started = events.into_iter().find_map(|event| match &event.kind {
            EventKind::ExecutionStarted(started) => Some(&started.name),
            _ => None,
        });
        let Some(name) = started else { return self.of(instance_id) };
        let name = account(instance_id, name);
        let mut names = self.lock();
        if names.len() >= MAX_INSTANCES && !names.contains_key(instance_id) {
            names.clear();
        }
        names.insert(instance_id.clone(), name.clone());
        Some(name)
    }

    /// The instance has ended.
    pub(crate) fn forget(&self, instance_id: &InstanceId) {
        self.lock().remove(instance_id);
    }
}

/// On whose account requests for an instance are counted: entities by their name, without the key.
pub(crate) fn account(instance_id: &InstanceId, name: &str) -> Arc<str> {
    match instance_id.as_str().strip_prefix('@').and_then(|id| id.split_once('@')) {
        Some((entity, _)) => format!("@{entity}").into(),
        None => name.into(),
    }
}
