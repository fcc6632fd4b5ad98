//! The work-item queue: activity requests of the whole hub, one message at a time.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::future::join_all;
use taskhub_core::{
    ActivityWorkItem, EventKind, InstanceId, LockToken, PartitionId, ServiceError, TaskMessage,
};
use taskhub_storage::ErrorKind;
use tokio::sync::Notify;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::guard::Guard;
use crate::hub::Hub;
use crate::message::MessageData;
use crate::queue::backoff::{PollingBackoff, unknown_function_delay};
use crate::queue::control::{BRISK_INTERVAL, BRISK_PERIOD};
use crate::queue::held::HeldMessage;
use crate::queue::receive::Receiver;
use crate::queue::send::{MessageSender, Sender};

/// Most names of unknown activities that are remembered.
const MAX_UNKNOWN: usize = 1000;

/// Most answered requests that are remembered; the oldest are forgotten first.
const MAX_ANSWERED: usize = 1000;

/// Most messages that the service gives at once.
const MAX_RECEIVE: usize = 32;
/// How long a receive waits for more slots when there are requests for all of them.
const GATHERING_TIME: Duration = Duration::from_millis(5);
/// Longest wait for a slot that is about to be free.
const FULL_INTERVAL: Duration = Duration::from_millis(50);

/// A worker that looks at the queue as seldom as this, or less often, leaves others time to look.
const CALM_INTERVAL: Duration = Duration::from_secs(5);

/// Longest wait between two looks at the queue while an instance of this worker waits for an activity that
/// others may have taken: if they die, nobody else may look at the queue for half a minute after the request has
/// reappeared.
///
/// Differs: DTFx has no such bound.
const AWAITED_INTERVAL: Duration = Duration::from_secs(15);

/// Most requests that were put back whose return is remembered.
const MAX_EXPECTED: usize = 1000;

/// Most instances whose activities are counted; that some wait is known without the others.
const MAX_AWAITED: usize = 10_000;

/// Activities whose results instances of this worker's partitions wait for.
#[derive(Debug, Default)]
struct Awaited {
    by_instance: BTreeMap<InstanceId, (PartitionId, usize)>,
    total: usize,
}

impl Awaited {
    fn set(&mut self, partition: PartitionId, instance: &InstanceId, count: usize) {
        if let Some((_, before)) = self.by_instance.remove(instance) {
            self.total -= before;
        }
        if count > 0 && self.by_instance.len() < MAX_AWAITED {
            self.by_instance.insert(instance.clone(), (partition, count));
            self.total += count;
        }
    }

    fn forget(&mut self, partition: PartitionId) {
        self.by_instance.retain(|_, (of, _)| *of != partition);
        self.total = self.by_instance.values().map(|(_, count)| count).sum();
    }
}

/// Activity requests in the hands of this process.
#[derive(Debug)]
pub(crate) struct WorkItemQueue {
    hub: Hub,
    receiver: Receiver,
    queue: String,
    state: Arc<Mutex<State>>,
    /// Somebody in this process put a request, or handed one over.
    bell: Arc<Notify>,
    /// A request has ended.
    freed: Notify,
    /// Receives under way, which go on when whoever waits for them does not.
    receives: TaskTracker,
    waiting: AtomicUsize,
    poll: tokio::sync::Mutex<Poll>,
}

/// When the queue is looked at. Outlives the wait of a single dispatcher.
#[derive(Debug)]
struct Poll {
    backoff: PollingBackoff,
    /// Not before then, unless something is known to have come.
    next: Option<Instant>,
    /// The queue was not looked at because no slot was free.
    is_full: bool,
}

#[derive(Debug, Default)]
struct State {
    brisk_until: Option<Instant>,
    last_token: u64,
    local: VecDeque<Arc<HeldMessage>>,
    /// How many activities this process runs at the same time; 0 when it has not told.
    slots: usize,
    /// Requests that will be handed over.
    promised: usize,
    /// Those of them that are put already, while their episode is being stored.
    prepared: BTreeMap<String, Arc<HeldMessage>>,
    /// Requests whose answer is in this process, and not yet in a history.
    unsent: BTreeMap<String, Arc<HeldMessage>>,
    /// Requests that anybody can receive, put by this process since it exists.
    put_visible: u64,
    /// When requests become visible that this process has put back.
    expected: BTreeSet<Instant>,
    /// The queue had as much as was asked for.
    has_more: bool,
    /// And some of it was for this worker.
    has_more_of_ours: bool,
    /// What was put visible, up to this one, has been looked for.
    looked_up_to: u64,
    /// This process has put a request that anybody can receive.
    is_announced: bool,
    /// Activities that this worker does not have.
    unknown: BTreeSet<String>,
    /// The last message received turned out to be for one of them.
    quieted: bool,
    /// The queue was looked at seldom when the last message came.
    is_calm: bool,
    locked: BTreeMap<LockToken, Arc<HeldMessage>>,
    awaited: Awaited,
    /// Message ids of requests whose reply is sent and which may be in the queue nevertheless.
    answered: VecDeque<String>,
}

impl State {
    /// A request has been received. One that this process works on already, whose lock was lost, is held
    /// again and not run a second time.
    ///
    /// Differs: DTFx runs it a second time.
    ///
    /// One that this process has answered, but could not delete because its receipt was not the newest or
    /// storage failed, is returned to be deleted.
    ///
    /// Differs: DTFx runs that one again, too.
    fn take_in(&mut self, message: HeldMessage) -> Option<HeldMessage> {
        let id = &message.message_id;
        if let Some(held) = self.unsent.get(id).or_else(|| self.prepared.get(id)) {
            held.adopt(&message);
            return None;
        }
        if self.answered.contains(id) {
            return Some(message);
        }
        let mut held = self.local.iter().chain(self.locked.values());
        match held.find(|held| held.message_id == message.message_id) {
            Some(held) => held.adopt(&message),
            None => self.local.push_back(Arc::new(message)),
        }
        None
    }

    /// Whether an instance of this worker waits for an activity that is not in this process's hands.
    fn awaits_others(&self) -> bool {
        let held = self.local.iter().chain(self.locked.values());
        let held = held.chain(self.prepared.values()).chain(self.unsent.values());
        let own = held.filter(|held| self.awaited.by_instance.contains_key(held.instance_id()));
        self.awaited.total > own.count()
    }

    /// The reply to a request is sent: it must not run again.
    fn answer(&mut self, message_id: &str) {
        if self.answered.len() >= MAX_ANSWERED {
            self.answered.pop_front();
        }
        self.answered.push_back(message_id.to_owned());
    }

    /// How many more requests this process can run now.
    fn free(&self, waiting: usize) -> usize {
        let taken = self.local.len() + self.promised;
        if self.slots == 0 {
            waiting.saturating_sub(taken)
        } else {
            self.slots.saturating_sub(taken + self.locked.len())
        }
    }

    /// Whether requests that this process could run may be in the queue.
    fn may_have_queued(&self) -> bool {
        self.has_more_of_ours || self.looked_up_to < self.put_visible
    }

    fn is_unknown(&self, request: &TaskMessage) -> bool {
        let EventKind::TaskScheduled { name: Some(name), .. } = &request.event.kind else { return false };
        self.unknown.contains(name)
    }

    /// Whether something was expected by now; forgets what was.
    fn take_expected(&mut self, now: Instant) -> bool {
        let later = self.expected.split_off(&(now + Duration::from_nanos(1)));
        !std::mem::replace(&mut self.expected, later).is_empty()
    }

    /// An answered request that is deleted needs no memory.
    fn settle(&mut self, message_id: &str, is_deleted: bool) {
        if is_deleted {
            self.answered.retain(|id| id != message_id);
        }
    }
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

impl WorkItemQueue {
    pub(crate) fn new(hub: Hub, receiver: Receiver) -> Self {
        let queue = hub.names.work_item_queue();
        let poll = Poll {
            backoff: PollingBackoff::new(hub.settings.max_queue_polling_interval),
            next: None,
            is_full: false,
        };
        Self {
            hub,
            receiver,
            queue,
            state: Arc::default(),
            bell: Arc::default(),
            freed: Notify::new(),
            receives: TaskTracker::new(),
            waiting: AtomicUsize::new(0),
            poll: tokio::sync::Mutex::new(poll),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    /// How many more requests this process can run now.
    fn free(&self) -> usize {
        self.state().free(self.waiting.load(Ordering::Relaxed))
    }

    /// There may be something in the queue.
    pub(crate) fn announce(&self) {
        self.state().is_announced = true;
        self.bell.notify_one();
    }

    /// A request was put back for `delay`.
    pub(crate) fn expect_in(&self, delay: Duration) {
        let mut state = self.state();
        if state.expected.len() < MAX_EXPECTED {
            state.expected.insert(Instant::now() + delay);
            self.bell.notify_one();
        }
    }

    /// How many activities this process runs at the same time.
    pub(crate) fn set_slots(&self, slots: usize) {
        self.state().slots = slots;
    }

    /// A slot of this process that is free, has not been promised to another request, and may have the activity;
    /// none unless the settings ask for that. Without one, the request is to be put for anybody to receive.
    ///
    /// As long as requests may wait in the queue, the slots are theirs: they would wait for ever if newer ones went
    /// past them.
    pub(crate) fn reserve(&self, request: &TaskMessage) -> Option<Reservation> {
        if !self.hub.settings.hands_off_activities() {
            return None;
        }
        let mut state = self.state();
        let is_free = state.free(self.waiting.load(Ordering::Relaxed)) > 0;
        if state.is_unknown(request) || !is_free || state.may_have_queued() {
            state.put_visible += 1;
            return None;
        }
        state.promised += 1;
        Some(Reservation { state: self.state.clone(), bell: self.bell.clone() })
    }

    /// Makes the answer to a locked request a message for its instance in this process. The lock ends.
    pub(crate) fn answer(
        &self,
        token: LockToken,
        data: MessageData,
        sender: &Arc<MessageSender>,
        from: Sender,
    ) -> Option<HeldMessage> {
        let mut state = self.state();
        let request = self.unlock(&mut state, token)?;
        let requests = Requests(self.state.clone());
        state.unsent.insert(request.message_id.clone(), request.clone());
        drop(state);
        let answer = HeldMessage::answering(request, data, sender.clone(), from, requests);
        Some(answer)
    }

    /// The next request, or `None` after `timeout` or when receiving has stopped.
    pub(crate) async fn next(
        &self,
        timeout: Duration,
        stop: &CancellationToken,
    ) -> Result<Option<ActivityWorkItem>, ServiceError> {
        let deadline = Instant::now() + timeout;
        self.waiting.fetch_add(1, Ordering::Relaxed);
        let waiting = Guard::new(|| {
            self.waiting.fetch_sub(1, Ordering::Relaxed);
        });
        let result = self.wait_for_one(deadline, stop).await;
        drop(waiting);
        if stop.is_cancelled() {
            // Received while stopping: whoever goes on shall see it at once.
            if let Ok(Some(message)) = result {
                self.give_back(&message).await;
            }
            self.give_back_unstarted().await;
            return Ok(None);
        }
        let Some(message) = result? else { return Ok(None) };
        let token = {
            let mut state = self.state();
            state.last_token += 1;
            let token = LockToken(state.last_token);
            state.locked.insert(token, message.clone());
            token
        };
        Ok(Some(ActivityWorkItem {
            token,
            message: message.task().clone(),
            locked_until: self.hub.clock.now() + message.remaining(),
            attempt: message.dequeue_count,
        }))
    }

    async fn wait_for_one(
        &self,
        deadline: Instant,
        stop: &CancellationToken,
    ) -> Result<Option<Arc<HeldMessage>>, ServiceError> {
        let mut poll = tokio::select! {
            biased;
            poll = self.poll.lock() => poll,
            () = stop.cancelled() => return Ok(None),
            () = tokio::time::sleep_until(deadline) => return Ok(None),
        };
        loop {
            if stop.is_cancelled() {
                return Ok(None);
            }
            let rung = self.bell.notified();
            if std::mem::take(&mut self.state().quieted) {
                poll.backoff.signalled_in_error();
            }
            if let Some(message) = self.state().local.pop_front() {
                return Ok(Some(message));
            }
            if poll.is_full && self.free() > 0 {
                poll.next = None;
            }
            let next = match poll.next {
                Some(next) => next,
                None => {
                    self.gather_slots(stop).await;
                    let free = self.free();
                    let is_possible = self.state().slots == 0 || free > 0;
                    poll.is_full = !is_possible;
                    let set_aside = if is_possible { self.receive(free).await? } else { 0 };
                    let received = self.state().local.pop_front();
                    if let Some(message) = received {
                        // Work that this worker only gives back is no sign of more to come; polling slows down
                        // as if nothing had come, and leaves the work to others.
                        if !self.state().is_unknown(message.task()) {
                            poll.backoff.signalled();
                        } else {
                            poll.backoff.elapsed(self.hub.ids.random());
                        }
                        return Ok(Some(message));
                    }
                    if set_aside > 0 {
                        // There may be more behind it.
                        continue;
                    }
                    let wait =
                        if is_possible { self.wait_after_nothing(&poll.backoff) } else { FULL_INTERVAL };
                    Instant::now() + wait
                }
            };
            poll.next = Some(next);
            let expected = self.state().expected.first().copied();
            let until = expected.map_or(next, |at| at.min(next)).min(deadline);
            tokio::select! {
                biased;
                () = rung => {
                    // What was handed over is no sign of something in the queue.
                    if std::mem::take(&mut self.state().is_announced) {
                        poll.backoff.signalled();
                        poll.next = None;
                    }
                }
                () = stop.cancelled() => return Ok(None),
                () = self.freed.notified(), if poll.is_full => {}
                () = tokio::time::sleep_until(until) => {
                    let now = Instant::now();
                    if self.state().take_expected(now) {
                        poll.backoff.signalled();
                        poll.next = None;
                    } else if now >= next {
                        poll.backoff.elapsed(self.hub.ids.random());
                        poll.next = None;
                    }
                    if now >= deadline {
                        return Ok(None);
                    }
                }
            }
        }
    }

    /// How long to wait after an empty receive.
    fn wait_after_nothing(&self, backoff: &PollingBackoff) -> Duration {
        let mut wait = backoff.delay();
        let mut state = self.state();
        if state.brisk_until.is_some_and(|until| until > Instant::now()) {
            wait = wait.min(BRISK_INTERVAL);
        }
        if state.unknown.is_empty() {
            if state.awaits_others() {
                wait = wait.min(AWAITED_INTERVAL);
            }
        } else {
            // Two workers that look every half minute must not keep step: the one that has the activity would
            // look just when the request is in the hands of the other, for ever.
            wait = wait.mul_f64(1.0 - 0.3 * (self.hub.ids.random() as f64 / u64::MAX as f64));
        }
        state.is_calm = wait >= CALM_INTERVAL;
        wait
    }

    /// When there is more in the queue than there were slots, gives activities that are about to end a moment, so
    /// that one receive brings several requests.
    async fn gather_slots(&self, stop: &CancellationToken) {
        let mut in_time = std::pin::pin!(tokio::time::sleep(GATHERING_TIME));
        loop {
            let is_worth_it = {
                let free = self.free();
                let state = self.state();
                state.has_more && !state.locked.is_empty() && free < state.slots.div_ceil(2)
            };
            if !is_worth_it {
                return;
            }
            tokio::select! {
                biased;
                () = stop.cancelled() => return,
                () = self.freed.notified() => {}
                () = &mut in_time => return,
            }
        }
    }

    /// This worker does not have the activity of this name, or it does after all.
    pub(crate) fn set_unknown(&self, name: &str, is_unknown: bool) {
        let mut state = self.state();
        let unknown = &mut state.unknown;
        if !is_unknown {
            unknown.remove(name);
        } else if unknown.len() < MAX_UNKNOWN && unknown.insert(name.to_owned()) {
            state.quieted = true;
        }
    }

    /// Deletes a request whose reply is sent, and remembers it if that does not work: it may be received again.
    /// True if the message was this process's own.
    pub(crate) async fn delete_answered(&self, request: &HeldMessage) -> taskhub_storage::Result<bool> {
        self.state().answer(&request.message_id);
        let deleted = self.receiver.delete_answered(request).await;
        self.state().settle(&request.message_id, matches!(deleted, Ok(true)));
        deleted
    }

    /// Receives as many requests as there are free slots, one at least; returns how many there were that nobody
    /// has to work on. Not in the caller's future: a message received and dropped would stay hidden.
    async fn receive(&self, free: usize) -> Result<usize, ServiceError> {
        let most = if self.hub.settings.dtfx_cadence { 1 } else { MAX_RECEIVE };
        let count = free.clamp(1, most) as u32;
        let (receiver, queue) = (self.receiver.clone(), self.queue.clone());
        let state = self.state.clone();
        let looked_up_to = lock(&state).put_visible;
        let visibility = self.hub.settings.work_item_queue_visibility_timeout;
        let receive = self.receives.spawn(async move {
            let received = receiver.receive(&queue, count, visibility, Some(visibility / 2)).await?;
            let mut set_aside = received.unreadable;
            let is_full = received.messages.len() + set_aside >= count as usize;
            {
                let mut state = lock(&state);
                let is_of_use = received.messages.iter().any(|message| !state.is_unknown(message.task()));
                state.has_more = is_full && count > 1;
                state.has_more_of_ours = state.has_more && is_of_use;
                // Behind a crowd of requests for others nobody waits with what is new.
                if !is_full || !is_of_use {
                    state.looked_up_to = looked_up_to;
                }
            }
            for message in received.messages {
                let answered = lock(&state).take_in(message);
                if let Some(answered) = answered {
                    set_aside += 1;
                    let deleted = receiver.delete_answered(&answered).await;
                    lock(&state).settle(&answered.message_id, matches!(deleted, Ok(true)));
                }
            }
            Ok(set_aside)
        });
        receive.await.unwrap_or_else(|e| {
            let what = format!("receiving activity requests broke off. hub=`{}`", self.hub.name());
            Err(ServiceError::with_source(taskhub_core::ErrorKind::Internal, what, e))
        })
    }

    /// Waits until no receive is under way.
    pub(crate) async fn receives_ended(&self) {
        self.receives.close();
        self.receives.wait().await;
    }

    /// How long a request stays hidden for an activity that this worker does not have.
    ///
    /// If this worker looks at the queue seldom, the request reappears at once: others can see it all the time
    /// until then. Hidden for long instead, it would come back just when the same worker looks again.
    pub(crate) fn unknown_delay(&self, dequeue_count: u32) -> Duration {
        unknown_function_delay(if self.state().is_calm { 1 } else { dequeue_count })
    }

    /// The request behind a token.
    pub(crate) fn locked(&self, token: LockToken) -> Option<Arc<HeldMessage>> {
        self.state().locked.get(&token).cloned()
    }

    /// An instance of a partition of this worker waits for the results of so many activities.
    pub(crate) fn set_awaited(&self, partition: PartitionId, instance: &InstanceId, count: usize) {
        self.state().awaited.set(partition, instance, count);
    }

    /// The instances of a partition are another worker's.
    pub(crate) fn forget_awaited(&self, partition: PartitionId) {
        self.state().awaited.forget(partition);
    }

    /// Another worker has gone or hands over: what it had in hands reappears soon. Polling is brisk for a
    /// while, beginning now.
    pub(crate) fn expect_more(&self) {
        self.state().brisk_until = Some(Instant::now() + BRISK_PERIOD);
        self.announce();
    }

    /// All requests held, running ones and those that wait for a dispatcher.
    pub(crate) fn all_held(&self) -> Vec<Arc<HeldMessage>> {
        let state = self.state();
        state.local.iter().chain(state.locked.values()).chain(state.prepared.values()).cloned().collect()
    }

    /// Whether any request is being worked on.
    pub(crate) fn any_locked(&self) -> bool {
        !self.state().locked.is_empty()
    }

    /// Ends a lock.
    pub(crate) fn take(&self, token: LockToken) -> Option<Arc<HeldMessage>> {
        self.unlock(&mut self.state(), token)
    }

    fn unlock(&self, state: &mut State, token: LockToken) -> Option<Arc<HeldMessage>> {
        let request = state.locked.remove(&token);
        self.freed.notify_one();
        request
    }

    /// Makes everything that nobody works on visible again.
    pub(crate) async fn give_back_unstarted(&self) {
        let unstarted: Vec<_> = self.state().local.drain(..).collect();
        join_all(unstarted.iter().map(|m| self.give_back(m))).await;
    }

    /// Makes everything still locked visible again: its work was cut off.
    pub(crate) async fn give_back_locked(&self) {
        let locked: Vec<_> = {
            let mut state = self.state();
            let prepared = std::mem::take(&mut state.prepared);
            std::mem::take(&mut state.locked).into_values().chain(prepared.into_values()).collect()
        };
        join_all(locked.iter().map(|m| self.give_back(m))).await;
    }

    async fn give_back(&self, message: &HeldMessage) {
        if let Err(e) = message.give_back(&*self.hub.account.queues, Duration::ZERO).await
            && e.kind() != ErrorKind::NotFound
        {
            tracing::warn!(
                hub = %self.hub.name(), queue = self.queue, instance = %message.instance_id(), error = %e,
                "cannot make an activity request visible again; it reappears when its visibility timeout ends"
            );
        }
    }
}

/// A slot that will get the next request this process puts. Dropped unused, it gets none.
pub(crate) struct Reservation {
    state: Arc<Mutex<State>>,
    bell: Arc<Notify>,
}

impl Reservation {
    /// The request is put hidden, without anybody receiving it.
    pub(crate) fn prepare(&self, message: &Arc<HeldMessage>) {
        lock(&self.state).prepared.insert(message.message_id.clone(), message.clone());
    }

    /// The slot gets the request.
    pub(crate) fn hand_over(self, message: Arc<HeldMessage>) {
        let mut state = lock(&self.state);
        // Otherwise it has been made visible: the worker stops.
        if state.prepared.remove(&message.message_id).is_some() {
            state.local.push_back(message);
            self.bell.notify_one();
        }
    }

    /// The slot does not get the request.
    pub(crate) fn cancel(self, message: &HeldMessage) {
        lock(&self.state).prepared.remove(&message.message_id);
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        lock(&self.state).promised -= 1;
    }
}

/// What is known of requests whose answers were not sent.
#[derive(Debug, Clone)]
pub(crate) struct Requests(Arc<Mutex<State>>);

impl Requests {
    /// The answer is in a history, or sent after all: the request must not run again.
    pub(crate) fn answered(&self, message_id: &str) {
        lock(&self.0).answer(message_id);
    }

    /// Nothing more happens to the request here.
    pub(crate) fn settled(&self, message_id: &str, is_deleted: bool) {
        let mut state = lock(&self.0);
        state.unsent.remove(message_id);
        state.settle(message_id, is_deleted);
    }

    /// There is no answer of this process to the request any more.
    pub(crate) fn forget(&self, request: &Arc<HeldMessage>) {
        let mut state = lock(&self.0);
        // It may have been run again meanwhile.
        if state.unsent.get(&request.message_id).is_some_and(|unsent| Arc::ptr_eq(unsent, request)) {
            state.unsent.remove(&request.message_id);
        }
    }
}
