//! The work-item queue: activity requests of the whole hub, one message at a time.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::future::join_all;
use taskhub_core::{ActivityWorkItem, EventKind, InstanceId, LockToken, PartitionId, ServiceError};
use taskhub_storage::ErrorKind;
use tokio::sync::Notify;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::guard::Guard;
use crate::hub::Hub;
use crate::queue::backoff::{PollingBackoff, unknown_function_delay};
use crate::queue::control::{BRISK_INTERVAL, BRISK_PERIOD};
use crate::queue::held::HeldMessage;
use crate::queue::receive::Receiver;

/// Most names of unknown activities that are remembered.
const MAX_UNKNOWN: usize = 1000;

/// Most answered requests that are remembered; the oldest are forgotten first.
const MAX_ANSWERED: usize = 1000;

/// A worker that looks at the queue as seldom as this, or less often, leaves others time to look.
const CALM_INTERVAL: Duration = Duration::from_secs(5);

/// Longest wait between two looks at the queue while an instance of this worker waits for an activity that
/// others may have taken: if they die, nobody else may look at the queue for half a minute after the request has
/// reappeared.
///
/// Differs: DTFx has no such bound.
const AWAITED_INTERVAL: Duration = Duration::from_secs(15);

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
    pub(crate) bell: Notify,
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
}

#[derive(Debug, Default)]
struct State {
    brisk_until: Option<Instant>,
    last_token: u64,
    local: VecDeque<Arc<HeldMessage>>,
    promised: usize,
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
        if self.answered.contains(&message.message_id) {
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
        let poll = Poll { backoff: PollingBackoff::new(hub.settings.max_queue_polling_interval), next: None };
        Self {
            hub,
            receiver,
            queue,
            state: Arc::default(),
            bell: Notify::new(),
            receives: TaskTracker::new(),
            waiting: AtomicUsize::new(0),
            poll: tokio::sync::Mutex::new(poll),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    /// A dispatcher of this process that waits for a request and has not been promised one; none unless
    /// the settings ask for that.
    pub(crate) fn reserve(&self) -> Option<Reservation<'_>> {
        let mut state = self.state();
        let free = self.waiting.load(Ordering::Relaxed) > state.local.len() + state.promised;
        (self.hub.settings.hand_off_local_activities && free).then(|| {
            state.promised += 1;
            Reservation(self)
        })
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
            let next = match poll.next {
                Some(next) => next,
                None => {
                    let set_aside = self.receive().await?;
                    let received = self.state().local.pop_front();
                    if let Some(message) = received {
                        // Work that this worker only gives back is no sign of more to come; polling slows down
                        // as if nothing had come, and leaves the work to others.
                        if !self.is_unknown(&message) {
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
                    Instant::now() + self.wait_after_nothing(&poll.backoff)
                }
            };
            poll.next = Some(next);
            tokio::select! {
                biased;
                () = rung => {
                    poll.backoff.signalled();
                    poll.next = None;
                }
                () = stop.cancelled() => return Ok(None),
                () = tokio::time::sleep_until(next.min(deadline)) => {
                    let now = Instant::now();
                    if now >= next {
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

    fn is_unknown(&self, message: &HeldMessage) -> bool {
        let EventKind::TaskScheduled { name: Some(name), .. } = &message.task().event.kind else {
            return false;
        };
        self.state().unknown.contains(name)
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

    /// Receives one request; returns how many there were that nobody has to work on. Not in the caller's future: a message
    /// received and dropped would stay hidden.
    async fn receive(&self) -> Result<usize, ServiceError> {
        let (receiver, queue) = (self.receiver.clone(), self.queue.clone());
        let state = self.state.clone();
        let visibility = self.hub.settings.work_item_queue_visibility_timeout;
        let receive = self.receives.spawn(async move {
            let received = receiver.receive(&queue, 1, visibility, Some(visibility / 2)).await?;
            let mut set_aside = received.unreadable;
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
        self.bell.notify_one();
    }

    /// All requests held, running ones and those that wait for a dispatcher.
    pub(crate) fn all_held(&self) -> Vec<Arc<HeldMessage>> {
        let state = self.state();
        state.local.iter().chain(state.locked.values()).cloned().collect()
    }

    /// Whether any request is being worked on.
    pub(crate) fn any_locked(&self) -> bool {
        !self.state().locked.is_empty()
    }

    /// Ends a lock.
    pub(crate) fn take(&self, token: LockToken) -> Option<Arc<HeldMessage>> {
        self.state().locked.remove(&token)
    }

    /// Makes everything that nobody works on visible again.
    pub(crate) async fn give_back_unstarted(&self) {
        let unstarted: Vec<_> = self.state().local.drain(..).collect();
        join_all(unstarted.iter().map(|m| self.give_back(m))).await;
    }

    /// Makes everything still locked visible again: its work was cut off.
    pub(crate) async fn give_back_locked(&self) {
        let locked: Vec<_> = std::mem::take(&mut self.state().locked).into_values().collect();
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

/// A waiting dispatcher that will get the next request this process puts. Dropped unused, it gets none.
pub(crate) struct Reservation<'a>(&'a WorkItemQueue);

impl Reservation<'_> {
    /// Hands over a request that this process has just put hidden, without anybody receiving it.
    pub(crate) fn hand_over(self, message: HeldMessage) {
        self.0.state().local.push_back(Arc::new(message));
        self.0.bell.notify_one();
    }
}

impl Drop for Reservation<'_> {
    fn drop(&mut self) {
        self.0.state().promised -= 1;
    }
}
