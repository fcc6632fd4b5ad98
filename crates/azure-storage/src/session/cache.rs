//! Histories that stay in memory between the sessions of their instances.
//!
//! Nothing here is trusted: an episode that was run on a remembered history is stored on condition that the
//! sentinel still has the remembered version.

use std::collections::BTreeMap;
use std::mem::size_of;

use taskhub_core::{EventKind, ExecutionId, HistoryEvent, InstanceId, PartitionId};

use crate::session::manager::Tracked;
use crate::tracking::store::LoadedHistory;

/// What an event costs besides its texts: itself, its places in the index, and what allocators add.
const EVENT_BYTES: usize = size_of::<HistoryEvent>() + 128;

/// Histories of the owned partitions, as many as fit; the one unused for longest goes first.
#[derive(Debug, Default)]
pub(crate) struct HistoryCache {
    budget_bytes: usize,
    used_bytes: usize,
    last_use: u64,
    entries: BTreeMap<InstanceId, Entry>,
    by_use: BTreeMap<u64, InstanceId>,
}

/// The history of one execution as this process last stored or read it.
#[derive(Debug)]
pub(crate) struct Kept {
    pub(crate) partition: PartitionId,
    pub(crate) execution_id: Option<ExecutionId>,
    pub(crate) events: Vec<HistoryEvent>,
    pub(crate) tracked: Tracked,
}

#[derive(Debug)]
struct Entry {
    kept: Kept,
    bytes: usize,
    used_at: u64,
}

impl HistoryCache {
    pub(crate) fn new(budget_bytes: usize) -> Self {
        Self { budget_bytes, ..Self::default() }
    }

    /// Whether anything is kept at all.
    pub(crate) fn is_on(&self) -> bool {
        self.budget_bytes > 0
    }

    /// Keeps a history, unless it is larger than the whole budget.
    pub(crate) fn keep(&mut self, instance: InstanceId, kept: Kept) {
        self.remove(&instance);
        let Tracked { blob_names, shown, .. } = &kept.tracked;
        let status = shown.as_ref().and_then(|shown| shown.custom_status.as_ref());
        let texts = blob_names.iter().chain(status).map(String::len).sum::<usize>();
        let events = kept.events.iter().map(event_bytes).sum::<usize>();
        let bytes = events + texts + 4 * instance.as_str().len() + 512;
        if bytes > self.budget_bytes {
            return;
        }
        self.last_use += 1;
        self.used_bytes += bytes;
        self.by_use.insert(self.last_use, instance.clone());
        self.entries.insert(instance, Entry { kept, bytes, used_at: self.last_use });
        while self.used_bytes > self.budget_bytes {
            let Some((_, oldest)) = self.by_use.pop_first() else { break };
            self.remove(&oldest);
        }
    }

    /// Takes out the history of the current execution, or of `expected` if that is what is kept.
    pub(crate) fn take(
        &mut self,
        instance: &InstanceId,
        expected: Option<&ExecutionId>,
    ) -> Option<LoadedHistory> {
        let found = &self.entries.get(instance)?.kept;
        if expected.is_some() && expected != found.execution_id.as_ref() {
            return None;
        }
        let Kept { execution_id, events, tracked, .. } = self.remove(instance)?;
        let Tracked { index, etag, blob_names, shown } = tracked;
        Some(LoadedHistory {
            execution_id,
            events,
            index,
            etag,
            blob_names,
            other_is_cut_off: false,
            is_assumed: true,
            shown,
        })
    }

    /// Whether anything is kept of the instance.
    pub(crate) fn has(&self, instance: &InstanceId) -> bool {
        self.entries.contains_key(instance)
    }

    /// Forgets the instances of a partition.
    pub(crate) fn drop_partition(&mut self, partition: PartitionId) {
        let gone: Vec<_> = self
            .entries
            .iter()
            .filter(|(_, e)| e.kept.partition == partition)
            .map(|(id, _)| id.clone())
            .collect();
        for instance in gone {
            self.remove(&instance);
        }
    }

    fn remove(&mut self, instance: &InstanceId) -> Option<Kept> {
        let entry = self.entries.remove(instance)?;
        self.by_use.remove(&entry.used_at);
        self.used_bytes -= entry.bytes;
        Some(entry.kept)
    }
}

/// About how much memory an event takes, in bytes.
fn event_bytes(event: &HistoryEvent) -> usize {
    let index_bytes = match &event.kind {
        // The index keeps a copy.
        EventKind::ExecutionStarted(started) => 2 * size_of_val(&**started) + event.kind.text_bytes() + 512,
        // The index keeps the id of a request to an entity.
        EventKind::EventSent { .. } => 64,
        _ => 0,
    };
    EVENT_BYTES + index_bytes + event.kind.text_bytes()
}

#[cfg(test)]
mod tests {
    use taskhub_core::Timestamp;

    use super::*;
    use crate::tracking::late_rows::Shown;

    fn kept(partition: u32, execution: &str, bytes: usize) -> Kept {
        let kind = EventKind::GenericEvent { data: Some("x".repeat(bytes)) };
        Kept {
            partition: PartitionId(partition),
            execution_id: Some(execution.into()),
            events: vec![HistoryEvent::message(Timestamp::MIN, kind)],
            tracked: Tracked::default(),
        }
    }

    #[test]
    fn the_history_unused_for_longest_makes_room_and_too_large_ones_are_not_kept() {
        let mut cache = HistoryCache::new(10_000);
        cache.keep("a".into(), kept(0, "1", 3000));
        cache.keep("b".into(), kept(0, "1", 3000));
        let a = cache.take(&"a".into(), None).unwrap();
        assert!(a.is_assumed && a.events.len() == 1);
        cache.keep("a".into(), kept(0, "1", 3000));
        cache.keep("c".into(), kept(0, "1", 3000));
        assert!(cache.has(&"a".into()) && cache.has(&"c".into()) && !cache.has(&"b".into()));
        let mut large = kept(0, "1", 10);
        large.tracked.shown = Some(Shown { custom_status: Some("x".repeat(20_000)) });
        for too_large in [kept(0, "1", 20_000), large] {
            cache.keep("a".into(), kept(0, "1", 10));
            cache.keep("a".into(), too_large);
            assert!(!cache.has(&"a".into()), "neither the old nor the new one");
        }
        cache.take(&"c".into(), None);
        assert_eq!((cache.used_bytes, cache.by_use.len()), (0, 0));
    }

    #[test]
    fn a_history_is_given_out_for_its_own_execution_only_and_goes_with_its_partition() {
        let mut cache = HistoryCache::new(10_000);
        cache.keep("a".into(), kept(1, "1", 10));
        assert!(cache.take(&"a".into(), Some(&"2".into())).is_none());
        assert!(cache.take(&"a".into(), Some(&"1".into())).is_some());
        cache.keep("a".into(), kept(1, "1", 10));
        cache.drop_partition(PartitionId(0));
        assert!(cache.has(&"a".into()));
        cache.drop_partition(PartitionId(1));
        assert!(!cache.has(&"a".into()));
        assert_eq!(cache.used_bytes, 0);
    }

    #[test]
    fn without_a_budget_nothing_is_kept() {
        let mut cache = HistoryCache::new(0);
        assert!(!cache.is_on());
        cache.keep("a".into(), kept(0, "1", 0));
        assert!(!cache.has(&"a".into()));
    }
}
