//! Receiving from one control queue, for as long as this worker owns it.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use taskhub_core::{PartitionId, Timestamp};
use tokio::sync::Notify;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::queue::backoff::PollingBackoff;
use crate::queue::held::sort_received;
use crate::queue::receive::Received;
use crate::sabotage::Planted;
use crate::settings::AzureStorageSettings;
use crate::shared::Shared;

/// Longest wait while too many messages are held, or the lease has run out.
/// Source: Azure/durabletask, `ControlQueue` (1 s).
///
/// Differs: DTFx waits that long; here receiving goes on when there is room.
const PAUSE_INTERVAL: Duration = Duration::from_secs(1);

/// How long, after a partition has been acquired, polling stays brisk: what was in the hands of its last
/// owner, and the replies of activities that still run there, come back in this time.
///
/// Differs: DTFx lets the polling interval grow as always, so that replies wait up to half a minute.
pub(crate) const BRISK_PERIOD: Duration = Duration::from_secs(60);
/// Longest wait between two receives in that time.
pub(crate) const BRISK_INTERVAL: Duration = Duration::from_secs(2);

/// Longest time that one storage request may take with its repetitions, with some reserve.
/// See [`taskhub_storage::request::RequestSettings::total_timeout`].
const LONGEST_REQUEST: Duration = Duration::from_secs(75);

/// Longest time between two receives that is no sign of trouble.
fn longest_turn(settings: &AzureStorageSettings) -> Duration {
    LONGEST_REQUEST + settings.max_queue_polling_interval
}

/// How receiving goes.
#[derive(Debug)]
struct Progress {
    /// Nothing is received after this, on the hub's `awake` clock.
    lease_until: Instant,
    /// When the loop last came round: a receive ended, well or not, or there was a reason not to receive.
    last: Instant,
    brisk_until: Instant,
    report: Report,
}

/// What kept messages in their queue for some time.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Report {
    /// Receives that failed.
    pub(crate) failures: u32,
    /// Pauses because this process held enough messages.
    pub(crate) full: u32,
    /// Pauses because the lease had run out.
    pub(crate) expired: u32,
    /// Receives that succeeded.
    pub(crate) receives: u32,
}

impl Progress {
    fn begin(lease_until: Instant) -> Self {
        let now = Instant::now();
        Self { lease_until, last: now, brisk_until: now + BRISK_PERIOD, report: Report::default() }
    }

    fn received(&mut self) {
        self.last = Instant::now();
        self.report.receives += 1;
    }

    fn failed(&mut self) {
        self.last = Instant::now();
        self.report.failures += 1;
    }

    fn paused(&mut self, full: bool) {
        self.last = Instant::now();
        *(if full { &mut self.report.full } else { &mut self.report.expired }) += 1;
    }
}

/// Most hidden messages whose due time is remembered; more are found by polling.
const MAX_ALARMS: usize = 10_000;

/// One owned control queue.
#[derive(Debug, Clone)]
pub(crate) struct ControlQueue {
    pub(crate) partition: PartitionId,
    /// Somebody in this process put a message.
    pub(crate) bell: Arc<Notify>,
    /// Cancelled to stop receiving.
    pub(crate) stop: CancellationToken,
    owned_since: Timestamp,
    progress: Arc<Mutex<Progress>>,
    alarms: Arc<Mutex<BTreeSet<Timestamp>>>,
    alarm_set: Arc<Notify>,
}

impl ControlQueue {
    pub(crate) fn new(partition: PartitionId, lease_until: Instant, now: Timestamp) -> Self {
        Self {
            partition,
            bell: Arc::new(Notify::new()),
            stop: CancellationToken::new(),
            owned_since: now,
            progress: Arc::new(Mutex::new(Progress::begin(lease_until))),
            alarms: Arc::default(),
            alarm_set: Arc::default(),
        }
    }

    /// This process has put a message that becomes visible at `due`: look then, however long the queue has
    /// been silent.
    ///
    /// Differs: DTFx finds its own timers by polling, up to half a minute late.
    pub(crate) fn set_alarm(&self, due: Timestamp) {
        let mut alarms = self.alarms();
        alarms.insert(due);
        if alarms.len() > MAX_ALARMS {
            alarms.pop_last();
        }
        drop(alarms);
        self.alarm_set.notify_one();
    }

    fn alarms(&self) -> MutexGuard<'_, BTreeSet<Timestamp>> {
        self.alarms.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether an alarm was due; forgets those that were.
    fn take_due_alarms(&self, now: Timestamp) -> bool {
        let mut alarms = self.alarms();
        let later = alarms.split_off(&(now + Duration::from_nanos(100)));
        let due = !alarms.is_empty();
        *alarms = later;
        due
    }

    fn progress(&self) -> MutexGuard<'_, Progress> {
        self.progress.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How long this worker has owned the queue.
    pub(crate) fn owned_for(&self, now: Timestamp) -> Duration {
        now.saturating_since(self.owned_since)
    }

    /// How receiving has gone since the last question.
    pub(crate) fn take_report(&self) -> Report {
        std::mem::take(&mut self.progress().report)
    }

    /// Whether the loop comes round. One that takes longer than any request with its repetitions and any wait
    /// hangs: then somebody else shall own the queue.
    pub(crate) fn is_live(&self, settings: &AzureStorageSettings) -> bool {
        self.progress().last.elapsed() <= longest_turn(settings)
    }

    /// Waits after an empty receive: until something is known to have come, or as long as the back-off says.
    async fn wait_for_more(
        &self,
        shared: &Shared,
        poll: &mut PollingBackoff,
        rung: impl Future<Output = ()>,
    ) {
        tokio::pin!(rung);
        let mut delay = poll.delay();
        if self.progress().brisk_until > Instant::now() {
            delay = delay.min(BRISK_INTERVAL);
        }
        let silent_until = Instant::now() + delay;
        loop {
            let now = shared.hub.clock.now();
            if self.take_due_alarms(now) {
                return poll.signalled();
            }
            let next = self.alarms().first().map(|due| Instant::now() + due.saturating_since(now));
            let until = next.map_or(silent_until, |next| next.min(silent_until));
            // In this order: alarms that are set all the time must not keep the time from being looked at.
            tokio::select! {
                biased;
                () = &mut rung => return poll.signalled(),
                () = self.stop.cancelled() => return,
                () = tokio::time::sleep_until(until) => {
                    if Instant::now() >= silent_until {
                        return poll.elapsed(shared.hub.ids.random());
                    }
                }
                () = self.alarm_set.notified() => {}
            }
        }
    }

    /// Whether this worker may work on what comes for the partition. `now` is on the hub's `awake` clock.
    pub(crate) fn is_ours(&self, now: Instant) -> bool {
        !self.stop.is_cancelled() && now < self.progress().lease_until
    }

    /// The lease has been renewed.
    pub(crate) fn renewed(&self, lease_until: Instant) {
        self.progress().lease_until = lease_until;
    }

    /// Receives until stopped. A receive that is under way is always waited for: its messages would
    /// otherwise stay hidden until their visibility timeout.
    ///
    /// Differs: nothing is received once the lease has run out on this worker's own clock; DTFx goes on
    /// until it learns that somebody else owns the queue.
    pub(crate) async fn run(self, shared: Arc<Shared>) {
        let settings = shared.hub.settings.clone();
        let queue = shared.hub.names.control_queue(self.partition);
        let mut poll = PollingBackoff::new(settings.control_polling_interval());
        let mut failures = PollingBackoff::new(settings.max_queue_polling_interval);
        while !self.stop.is_cancelled() {
            let rung = self.bell.notified();
            let mut wait = Duration::ZERO;
            let expired = shared.hub.awake().now() >= self.progress().lease_until
                && !settings.planted(Planted::ReceiveAfterLease);
            let full = shared.sessions.held_count() >= settings.control_queue_buffer_threshold;
            if expired || full {
                wait = PAUSE_INTERVAL;
                self.progress().paused(full);
            } else {
                let visibility = settings.control_queue_visibility_timeout;
                let count = settings.control_queue_batch_size;
                // Of an episode that runs twice only one is stored; better that than a large message which never
                // gets through.
                match shared.receiver.receive(&queue, count, visibility, None).await {
                    // There may be more behind messages that cannot be read; these come back by themselves.
                    Ok(received) if received.messages.is_empty() && received.unreadable > 0 => {
                        self.progress().received();
                        failures = PollingBackoff::new(settings.max_queue_polling_interval);
                        continue;
                    }
                    Ok(Received { messages, .. }) if !messages.is_empty() => {
                        self.progress().received();
                        failures = PollingBackoff::new(settings.max_queue_polling_interval);
                        poll.signalled();
                        let mut messages: Vec<_> = messages.into_iter().map(Arc::new).collect();
                        sort_received(&mut messages);
                        if self.stop.is_cancelled() {
                            shared.give_back(messages).await;
                        } else {
                            shared.clone().route_received(self.partition, messages).await;
                        }
                    }
                    Ok(_) => {
                        failures = PollingBackoff::new(settings.max_queue_polling_interval);
                        self.progress().received();
                        self.wait_for_more(&shared, &mut poll, rung).await;
                        continue;
                    }
                    Err(e) => {
                        self.progress().failed();
                        failures.elapsed(shared.hub.ids.random());
                        wait = failures.delay();
                        tracing::warn!(
                            hub = %shared.hub.name(), queue, error = e.chain(), "cannot receive; trying again"
                        );
                    }
                }
            }
            if !wait.is_zero() {
                tokio::select! {
                    biased;
                    () = self.stop.cancelled() => {}
                    () = shared.sessions.room.notified(), if full => {}
                    () = tokio::time::sleep(wait) => {}
                }
            }
        }
    }
}
