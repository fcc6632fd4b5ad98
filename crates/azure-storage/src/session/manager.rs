//! Groups received messages by instance and hands out one session per instance at a time.
//!
//! Everything here is in memory and synchronous; the service does the I/O in between.
//! Source: Azure/durabletask, `OrchestrationSessionManager.cs`.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use taskhub_core::{
    ExecutionId, HistoryEvent, InstanceId, LockToken, OrchestrationInstance, OrchestrationStatus, PartitionId,
};
use taskhub_storage::ETag;
use tokio::sync::Notify;

use crate::queue::held::HeldMessage;
use crate::session::cache::{HistoryCache, Kept};
use crate::session::history_index::HistoryIndex;
use crate::tracking::late_rows::Shown;
use crate::tracking::store::LoadedHistory;

/// Sessions and the batches waiting to become one.
#[derive(Debug, Default)]
pub(crate) struct SessionManager {
    state: Mutex<State>,
    /// A batch became ready or a session ended, by kind: nobody looks for what is not for them.
    changed: [Notify; 2],
    /// Fewer messages are held than before.
    pub(crate) room: Notify,
}

#[derive(Debug, Default)]
struct State {
    last_id: u64,
    held: BTreeMap<String, Arc<HeldMessage>>,
    pending: VecDeque<Batch>,
    active: BTreeMap<InstanceId, Session>,
    by_token: BTreeMap<LockToken, InstanceId>,
    closed: BTreeSet<PartitionId>,
    cache: HistoryCache,
}

#[derive(Debug)]
struct Batch {
    id: u64,
    partition: PartitionId,
    instance: OrchestrationInstance,
    messages: Vec<Arc<HeldMessage>>,
    history: Option<LoadedHistory>,
}

/// A history to be read for a batch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct FetchRequest {
    pub(crate) batch: u64,
    pub(crate) instance: OrchestrationInstance,
}

/// An instance that one dispatcher works on.
#[derive(Debug)]
struct Session {
    partition: PartitionId,
    instance: OrchestrationInstance,
    current: Vec<Arc<HeldMessage>>,
    next: Vec<Arc<HeldMessage>>,
    deferred: Vec<Arc<HeldMessage>>,
    tracked: Tracked,
    /// The history that `tracked` is about, to be kept after the session; `None` when it is not known for
    /// sure what is stored.
    events: Option<Vec<HistoryEvent>>,
    /// What the session knows was not read for it: it was remembered, or assumed to be new.
    is_assumed: bool,
    /// An episode was not stored because what was assumed is not true.
    is_stale: bool,
    arrived: Arc<Notify>,
}

/// What a session knows of its stored history.
#[derive(Debug, Clone, Default)]
pub(crate) struct Tracked {
    pub(crate) index: HistoryIndex,
    pub(crate) etag: Option<ETag>,
    pub(crate) blob_names: Vec<String>,
    /// What the Instances row shows, as far as this process knows.
    pub(crate) shown: Option<Shown>,
}

/// Which instances a dispatcher asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum InstanceKind {
    Orchestration,
    Entity,
}

impl InstanceKind {
    fn of(instance_id: &InstanceId) -> Self {
        if instance_id.is_entity() { Self::Entity } else { Self::Orchestration }
    }
}

/// A session as handed to admission.
#[derive(Debug)]
pub(crate) struct Taken {
    pub(crate) token: LockToken,
    pub(crate) instance: OrchestrationInstance,
    pub(crate) messages: Vec<Arc<HeldMessage>>,
    pub(crate) history: LoadedHistory,
}

/// What is left when a session ends.
#[derive(Debug, Default)]
pub(crate) struct Released {
    /// Histories to be read for the messages that go on.
    pub(crate) fetch: Vec<FetchRequest>,
    /// Messages to be made visible again: the partition is being handed over.
    pub(crate) give_back: Vec<Arc<HeldMessage>>,
}

impl SessionManager {
    /// Keeps histories after their sessions, up to so much memory.
    pub(crate) fn new(cache_bytes: usize) -> Self {
        let state = State { cache: HistoryCache::new(cache_bytes), ..State::default() };
        Self { state: Mutex::new(state), ..Self::default() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Signalled when a batch of this kind becomes ready, or a session of it ends.
    pub(crate) fn changed(&self, kind: InstanceKind) -> &Notify {
        let [orchestrations, entities] = &self.changed;
        match kind {
            InstanceKind::Orchestration => orchestrations,
            InstanceKind::Entity => entities,
        }
    }

    /// The message of this id, if this process holds it already.
    pub(crate) fn held(&self, message_id: &str) -> Option<Arc<HeldMessage>> {
        self.state().held.get(message_id).cloned()
    }

    /// All messages held.
    pub(crate) fn all_held(&self) -> Vec<Arc<HeldMessage>> {
        self.state().held.values().cloned().collect()
    }

    /// How many messages are held.
    pub(crate) fn held_count(&self) -> usize {
        self.state().held.len()
    }

    /// The message was deleted or given back.
    pub(crate) fn forget(&self, message: &HeldMessage) {
        self.state().held.remove(&message.message_id);
        self.room.notify_waiters();
    }

    /// These messages are in the hands of this process, before it is known what becomes of them.
    pub(crate) fn hold(&self, messages: &[Arc<HeldMessage>]) {
        let mut state = self.state();
        for message in messages {
            state.held.insert(message.message_id.clone(), message.clone());
        }
    }

    /// Routes received messages, in order, to sessions and batches. Returns the histories to be read, and
    /// the messages of a partition that has been closed meanwhile.
    pub(crate) fn add(&self, partition: PartitionId, messages: Vec<Arc<HeldMessage>>) -> Released {
        let mut state = self.state();
        if state.closed.contains(&partition) {
            return Released { fetch: Vec::new(), give_back: messages };
        }
        for message in &messages {
            state.held.insert(message.message_id.clone(), message.clone());
        }
        let fetch = state.route(partition, messages);
        Released { fetch, give_back: Vec::new() }
    }

    /// A batch's history has been read: it may become a session, if it is still there.
    pub(crate) fn loaded(&self, batch: u64, history: LoadedHistory) {
        let mut state = self.state();
        let Some(batch) = state.pending.iter_mut().find(|b| b.id == batch) else { return };
        batch.history = Some(history);
        let kind = InstanceKind::of(&batch.instance.instance_id);
        drop(state);
        self.changed(kind).notify_waiters();
    }

    /// The history for a batch without reading it: a remembered one, or none for an instance that is being
    /// started and surely new. `None` when it has to be read.
    pub(crate) fn recall(&self, request: &FetchRequest) -> Option<LoadedHistory> {
        let mut state = self.state();
        if !state.cache.is_on() {
            return None;
        }
        let OrchestrationInstance { instance_id, execution_id } = &request.instance;
        if let Some(remembered) = state.cache.take(instance_id, execution_id.as_ref()) {
            return Some(remembered);
        }
        let batch = state.pending.iter().find(|b| b.id == request.batch)?;
        let is_new = execution_id.is_some()
            && batch.messages.first().is_some_and(|m| m.starts_new_instance())
            && !state.cache.has(instance_id)
            && !state.active.contains_key(instance_id);
        let execution_id = execution_id.clone();
        is_new.then(|| LoadedHistory { execution_id, is_assumed: true, ..LoadedHistory::default() })
    }

    /// A batch's history cannot be read: drops the batch and returns its messages.
    pub(crate) fn unloadable(&self, batch: u64) -> Vec<Arc<HeldMessage>> {
        let mut state = self.state();
        let Some(at) = state.pending.iter().position(|b| b.id == batch) else {
            return Vec::new();
        };
        let messages = state.pending.remove(at).map(|b| b.messages).unwrap_or_default();
        state.forget_all(&messages);
        messages
    }

    /// How many messages the batch has; `None` when it is gone.
    pub(crate) fn pending_len(&self, batch: u64) -> Option<usize> {
        self.state().pending.iter().find(|b| b.id == batch).map(|b| b.messages.len())
    }

    /// Makes the first ready batch of an entity, or of an orchestration, a session. A batch of an instance that
    /// is being worked on joins that session, or waits if it is of another execution.
    pub(crate) fn take_ready(&self, kind: InstanceKind) -> Option<Taken> {
        let mut state = self.state();
        let mut at = 0;
        while at < state.pending.len() {
            let batch = &state.pending[at];
            if batch.history.is_none() || InstanceKind::of(&batch.instance.instance_id) != kind {
                at += 1;
                continue;
            }
            match state.active.get(&batch.instance.instance_id) {
                Some(active) if active.instance.execution_id != batch.instance.execution_id => at += 1,
                Some(_) => {
                    if let Some(batch) = state.pending.remove(at)
                        && let Some(active) = state.active.get_mut(&batch.instance.instance_id)
                    {
                        active.next.extend(batch.messages);
                        active.arrived.notify_one();
                    }
                }
                None => return state.pending.remove(at).and_then(|batch| state.activate(batch)),
            }
        }
        None
    }

    /// The session's current messages change: `kept` stay, `deferred` wait for the end of the session, all
    /// others are no longer its business.
    pub(crate) fn admit(
        &self,
        token: LockToken,
        kept: Vec<Arc<HeldMessage>>,
        deferred: Vec<Arc<HeldMessage>>,
    ) {
        if let Some(session) = self.state().session(token) {
            session.current = kept;
            session.deferred.extend(deferred);
        }
    }

    /// Messages the session works on.
    pub(crate) fn current(&self, token: LockToken) -> Vec<Arc<HeldMessage>> {
        self.state().session(token).map(|s| s.current.clone()).unwrap_or_default()
    }

    /// What the session knows of its history, with its instance; `None` when there is no such session.
    pub(crate) fn tracked(&self, token: LockToken) -> Option<(OrchestrationInstance, Tracked)> {
        self.state().session(token).map(|s| (s.instance.clone(), s.tracked.clone()))
    }

    /// The first episode tells which execution a session without history is about.
    pub(crate) fn set_execution(&self, token: LockToken, execution_id: Option<ExecutionId>) {
        if let Some(session) = self.state().session(token) {
            session.instance.execution_id = execution_id;
        }
    }

    /// The session goes on with another execution than the one it began with.
    pub(crate) fn go_on_as(&self, token: LockToken, instance: OrchestrationInstance, tracked: Tracked) {
        if let Some(session) = self.state().session(token) {
            session.instance = instance;
            session.tracked = tracked;
            session.events = None;
        }
    }

    /// An episode is about to be stored: takes the history out, which is not certain from now on.
    pub(crate) fn begin_commit(&self, token: LockToken) -> Option<Vec<HistoryEvent>> {
        self.state().session(token).and_then(|session| session.events.take())
    }

    /// An episode has been committed. `events` is the whole history, if it is known.
    pub(crate) fn committed(
        &self,
        token: LockToken,
        instance: OrchestrationInstance,
        tracked: Tracked,
        events: Option<Vec<HistoryEvent>>,
    ) {
        if let Some(session) = self.state().session(token) {
            session.instance = instance;
            session.tracked = tracked;
            session.events = events;
            // From now on it is a memory.
            session.is_assumed = true;
            session.current.clear();
        }
    }

    /// An episode could not be stored: if what the session assumed is the reason, its messages are not to
    /// blame.
    pub(crate) fn conflicted(&self, token: LockToken) {
        if let Some(session) = self.state().session(token) {
            session.is_stale = session.is_assumed;
        }
    }

    /// Whether an episode was not stored because the session assumed what is not true.
    pub(crate) fn is_stale(&self, token: LockToken) -> bool {
        self.state().session(token).is_some_and(|session| session.is_stale)
    }

    /// Whether what the session knows was not read for it.
    pub(crate) fn is_assumed(&self, token: LockToken) -> bool {
        self.state().session(token).is_some_and(|session| session.is_assumed)
    }

    /// What the session assumed may not be true: its messages wait for its end and then begin anew, with the
    /// history as it is stored.
    pub(crate) fn look_again(&self, token: LockToken) {
        if let Some(session) = self.state().session(token) {
            session.events = None;
            let current = std::mem::take(&mut session.current);
            for message in current.iter().chain(&session.next) {
                message.set_starts_new_instance(false);
                message.set_tried();
            }
            session.deferred.extend(current);
        }
    }

    /// Moves messages that came meanwhile into the session's hands. `None` when the session must end:
    /// its partition is being handed over, or it is gone.
    pub(crate) fn next_messages(&self, token: LockToken) -> Option<Vec<Arc<HeldMessage>>> {
        let mut state = self.state();
        let partition = state.session(token)?.partition;
        if state.closed.contains(&partition) {
            return None;
        }
        let session = state.session(token)?;
        session.current = std::mem::take(&mut session.next);
        Some(session.current.clone())
    }

    /// Signalled when messages for the session come.
    pub(crate) fn arrivals(&self, token: LockToken) -> Option<Arc<Notify>> {
        self.state().session(token).map(|s| s.arrived.clone())
    }

    /// Ends a session. Messages it has not dealt with are routed again, or given back.
    pub(crate) fn release(&self, token: LockToken) -> Released {
        let mut state = self.state();
        let Some(session) = state.by_token.remove(&token).and_then(|id| state.active.remove(&id)) else {
            return Released::default();
        };
        let mut left = session.deferred;
        left.extend(session.next);
        let is_closed = state.closed.contains(&session.partition);
        let is_running =
            session.tracked.index.status().is_some_and(|s: OrchestrationStatus| !s.is_terminal());
        if let Some(events) = session.events
            && !is_closed
            && is_running
        {
            let kept = Kept {
                partition: session.partition,
                execution_id: session.instance.execution_id.clone(),
                events,
                tracked: session.tracked,
            };
            state.cache.keep(session.instance.instance_id.clone(), kept);
        }
        let kind = InstanceKind::of(&session.instance.instance_id);
        let released = if is_closed {
            state.forget_all(&left);
            Released { fetch: Vec::new(), give_back: left }
        } else {
            // What waited beside the session may have read the history before the session extended it.
            let mut fetch = state.read_again(&session.instance.instance_id);
            fetch.extend(state.route(session.partition, left));
            Released { fetch, give_back: Vec::new() }
        };
        drop(state);
        self.changed(kind).notify_waiters();
        released
    }

    /// The partition is received from again.
    pub(crate) fn open(&self, partition: PartitionId) {
        self.state().closed.remove(&partition);
    }

    /// The partition is no longer received from: returns the messages of batches that nobody works on.
    pub(crate) fn close(&self, partition: PartitionId) -> Vec<Arc<HeldMessage>> {
        let mut state = self.state();
        state.closed.insert(partition);
        state.cache.drop_partition(partition);
        let mut given = Vec::new();
        state.pending.retain_mut(|batch| {
            let keep = batch.partition != partition;
            if !keep {
                given.append(&mut batch.messages);
            }
            keep
        });
        state.forget_all(&given);
        let waiting: Vec<_> =
            state.active.values().filter(|s| s.partition == partition).map(|s| s.arrived.clone()).collect();
        drop(state);
        waiting.iter().for_each(|w| w.notify_one());
        given
    }

    /// Whether any session is being worked on.
    pub(crate) fn any_active(&self) -> bool {
        !self.state().active.is_empty()
    }

    /// Whether a start of the instance waits for its history.
    pub(crate) fn has_pending_start(&self, instance_id: &InstanceId) -> bool {
        let state = self.state();
        let mut batches = state.pending.iter().filter(|b| b.instance.instance_id == *instance_id);
        batches.any(|b| b.messages.iter().any(|m| m.is_start()))
    }

    /// How many sessions of the partition are being worked on.
    pub(crate) fn active_count(&self, partition: PartitionId) -> usize {
        self.state().active.values().filter(|s| s.partition == partition).count()
    }
}

impl State {
    fn next_id(&mut self) -> u64 {
        self.last_id += 1;
        self.last_id
    }

    fn session(&mut self, token: LockToken) -> Option<&mut Session> {
        self.by_token.get(&token).and_then(|id| self.active.get_mut(id))
    }

    /// Makes every pending batch of the instance read its history again.
    fn read_again(&mut self, instance_id: &InstanceId) -> Vec<FetchRequest> {
        let mut fetch = Vec::new();
        for batch in self.pending.iter_mut().filter(|b| b.instance.instance_id == *instance_id) {
            self.last_id += 1;
            batch.id = self.last_id;
            batch.history = None;
            let instance = batch.instance.clone();
            fetch.push(FetchRequest { batch: batch.id, instance });
        }
        fetch
    }

    fn forget_all(&mut self, messages: &[Arc<HeldMessage>]) {
        for message in messages {
            self.held.remove(&message.message_id);
        }
    }

    fn activate(&mut self, mut batch: Batch) -> Option<Taken> {
        let history = batch.history.take()?;
        let token = LockToken(self.next_id());
        let mut instance = batch.instance;
        if history.execution_id.is_some() {
            instance.execution_id.clone_from(&history.execution_id);
        }
        let session = Session {
            partition: batch.partition,
            instance: instance.clone(),
            current: batch.messages.clone(),
            next: Vec::new(),
            deferred: Vec::new(),
            tracked: Tracked {
                index: history.index.clone(),
                etag: history.etag.clone(),
                blob_names: history.blob_names.clone(),
                shown: history.shown.clone(),
            },
            events: self.cache.is_on().then(|| history.events.clone()),
            is_assumed: history.is_assumed,
            is_stale: false,
            arrived: Arc::new(Notify::new()),
        };
        self.by_token.insert(token, instance.instance_id.clone());
        self.active.insert(instance.instance_id.clone(), session);
        Some(Taken { token, instance, messages: batch.messages, history })
    }

    fn route(&mut self, partition: PartitionId, messages: Vec<Arc<HeldMessage>>) -> Vec<FetchRequest> {
        let mut fetch = Vec::new();
        for message in messages {
            let target = message.target().clone();
            let start = message.is_start();
            if !start
                && let Some(active) = self.active.get_mut(&target.instance_id)
                && (target.execution_id.is_none() || target.execution_id == active.instance.execution_id)
            {
                active.next.push(message);
                active.arrived.notify_one();
                continue;
            }
            let batch = if start {
                None
            } else {
                self.pending.iter_mut().rev().find(|b| {
                    b.instance.instance_id == target.instance_id
                        && (target.execution_id.is_none()
                            || b.instance.execution_id.is_none()
                            || b.instance.execution_id == target.execution_id)
                })
            };
            match batch {
                Some(batch) => {
                    if batch.instance.execution_id.is_none() {
                        batch.instance.execution_id = target.execution_id;
                    }
                    batch.messages.push(message);
                }
                None => {
                    let id = self.next_id();
                    fetch.push(FetchRequest { batch: id, instance: target.clone() });
                    self.pending.push_back(Batch {
                        id,
                        partition,
                        instance: target,
                        messages: vec![message],
                        history: None,
                    });
                }
            }
        }
        fetch
    }
}
