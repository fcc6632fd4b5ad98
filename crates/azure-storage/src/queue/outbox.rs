//! What an episode sends: put before its checkpoint, handed over or taken back after it.
//!
//! A message for this process is put hidden, as if it had been received: nobody else sees it while this process
//! lives, anybody does after a crash. It is not worked on before the episode is stored.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures::future::{Either, join_all};
use futures::stream::{self, StreamExt};
use taskhub_core::{EpisodeCommit, EventKind, PartitionId, ServiceError, TaskMessage, Timestamp};
use taskhub_storage::PopReceipt;

use crate::message;
use crate::queue::held::HeldMessage;
use crate::queue::send::Sender;
use crate::queue::work_item::Reservation;
#[cfg(feature = "simulation")]
use crate::sabotage::Planted;
use crate::shared::Shared;

/// The messages of one episode. Dropped before it is known what became of the episode, those that are hidden
/// become visible.
pub(crate) struct Outbox {
    shared: Arc<Shared>,
    /// By their place in the episode. Each is in here as soon as it is put.
    out: Mutex<BTreeMap<usize, Out>>,
}

enum Out {
    /// Others can receive it, now or when it is due.
    Visible { queue: String, receipt: PopReceipt, partition: Option<PartitionId>, due: Option<Timestamp> },
    /// For a dispatcher of this process.
    Activity(Arc<HeldMessage>, Reservation),
    /// For an instance of a partition that this process owns.
    Control(PartitionId, Arc<HeldMessage>),
    /// The same, when it is due.
    Timer(PartitionId, Timestamp, Arc<HeldMessage>),
}

impl Outbox {
    /// Puts all messages of an episode. `is_first_try`: nobody has run this episode before.
    ///
    /// # Errors
    /// Of the first message that cannot be put; the others are taken back.
    pub(crate) async fn send(
        shared: &Arc<Shared>,
        commit: &EpisodeCommit,
        sender: &Sender,
        is_first_try: bool,
    ) -> Result<Self, ServiceError> {
        let limit = shared.hub.settings.max_storage_operation_concurrency;
        let control = commit.orchestrator_messages.iter().chain(&commit.timer_messages);
        #[cfg(feature = "simulation")]
        let control: Vec<_> = {
            let planted = shared.hub.settings.sabotage.planted;
            control.filter_map(|message| Planted::in_message(planted, message)).collect()
        };
        #[cfg(feature = "simulation")]
        let control = control.iter().map(|message| &**message);
        let control: Vec<_> = control.collect();
        let activities = &commit.activity_messages;
        let outbox = Self { shared: shared.clone(), out: Mutex::default() };
        let (control, put) = (&control, &outbox);
        let send_control = |at: usize| async move {
            let sent = send_control(shared, control[at], sender, is_first_try).await;
            sent.map(|out| put.add(at, out))
        };
        let send_activity = |at: usize| async move {
            let sent = send_activity(shared, &activities[at], sender).await;
            sent.map(|out| put.add(control.len() + at, out))
        };
        let sent = match (control.len(), activities.len()) {
            // As a rule there is one.
            (0, 0) => Ok(()),
            (1, 0) => send_control(0).await,
            (0, 1) => send_activity(0).await,
            (controls, activities) => {
                let controls = stream::iter(0..controls).map(send_control).buffered(limit);
                let activities = stream::iter(0..activities).map(send_activity).buffered(limit);
                let (controls, activities) =
                    tokio::join!(controls.collect::<Vec<_>>(), activities.collect::<Vec<_>>());
                controls.into_iter().chain(activities).collect()
            }
        };
        match sent {
            Ok(()) => Ok(outbox),
            Err(e) => {
                outbox.withdraw().await;
                Err(e)
            }
        }
    }

    fn out(&self) -> MutexGuard<'_, BTreeMap<usize, Out>> {
        self.out.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn add(&self, at: usize, out: Out) {
        self.out().insert(at, out);
    }

    fn take_all(&self) -> impl Iterator<Item = Out> + use<> {
        std::mem::take(&mut *self.out()).into_values()
    }

    /// The episode is stored.
    pub(crate) async fn hand_over(self) {
        let shared = &self.shared;
        // Together, in the order in which the episode has decided them.
        let mut local: BTreeMap<_, Vec<_>> = BTreeMap::new();
        let mut not_begun = Vec::new();
        for out in self.take_all() {
            match out {
                Out::Visible { partition: Some(partition), due, .. } => shared.announce(partition, due),
                Out::Visible { .. } => shared.work_items.announce(),
                Out::Activity(message, reservation) if shared.stopping.is_cancelled() => {
                    reservation.cancel(&message);
                    not_begun.push(message);
                }
                Out::Activity(message, reservation) => reservation.hand_over(message),
                Out::Control(partition, message) => local.entry(partition).or_default().push(message),
                Out::Timer(partition, due, message) => {
                    if !shared.timers.add(partition, due, message) {
                        shared.announce(partition, Some(due));
                    }
                }
            }
        }
        // All of them are guarded before the first is waited for.
        let taken: Vec<_> =
            local.into_iter().map(|(partition, messages)| shared.take_local(partition, messages)).collect();
        shared.give_back(not_begun).await;
        for taken in taken {
            taken.await;
        }
    }

    /// The episode is surely not stored: nobody shall act on it.
    ///
    /// Differs: DTFx leaves the messages of an episode that loses, and everything in them is done twice.
    pub(crate) async fn withdraw(self) {
        let shared = &self.shared;
        if shared.hub.settings.dtfx_cadence {
            return self.release().await;
        }
        let queues = &*shared.hub.account.queues;
        let put: Vec<_> = self
            .take_all()
            .map(|out| match out {
                Out::Visible { queue, receipt, .. } => Either::Left((queue, receipt)),
                Out::Activity(message, reservation) => {
                    reservation.cancel(&message);
                    Either::Right(message)
                }
                Out::Control(_, message) | Out::Timer(_, _, message) => {
                    shared.sessions.forget(&message);
                    Either::Right(message)
                }
            })
            .collect();
        join_all(put.into_iter().map(|put| async {
            let deleted = match put {
                Either::Left((queue, receipt)) => queues.delete_message(&queue, &receipt).await,
                Either::Right(message) => message.delete(queues).await.map(drop),
            };
            if let Err(e) = deleted {
                tracing::debug!(hub = %shared.hub.name(), error = %e, "cannot take a message back");
            }
        }))
        .await;
    }

    /// It is not known whether the episode is stored: everybody may act on it, as in DTFx.
    pub(crate) async fn release(self) {
        self.let_go().await;
    }

    /// Nothing is kept for this process: what is hidden becomes visible, timers when they are due.
    fn let_go(&self) -> impl Future<Output = ()> + Send + use<> {
        let shared = self.shared.clone();
        let (mut hidden, mut partitions, mut has_activities) = (Vec::new(), BTreeSet::new(), false);
        for out in self.take_all() {
            match out {
                Out::Activity(message, reservation) => {
                    reservation.cancel(&message);
                    hidden.push(message);
                    has_activities = true;
                }
                Out::Control(partition, message) => {
                    hidden.push(message);
                    partitions.insert(partition);
                }
                Out::Visible { partition: None, .. } => has_activities = true,
                Out::Visible { partition: Some(partition), due: None, .. } => {
                    partitions.insert(partition);
                }
                Out::Visible { partition: Some(partition), due: Some(due), .. }
                | Out::Timer(partition, due, _) => shared.announce(partition, Some(due)),
            }
        }
        async move {
            shared.give_back(hidden).await;
            partitions.into_iter().for_each(|partition| shared.announce(partition, None));
            if has_activities {
                shared.work_items.announce();
            }
        }
    }
}

impl Drop for Outbox {
    fn drop(&mut self) {
        if !self.out().is_empty() {
            self.shared.clean_up(self.let_go());
        }
    }
}

async fn send_activity(
    shared: &Arc<Shared>,
    message: &TaskMessage,
    sender: &Sender,
) -> Result<Out, ServiceError> {
    if !shared.stopping.is_cancelled()
        && let Some(reservation) = shared.work_items.reserve(message)
    {
        let held = Arc::new(shared.sender.put_activity_held(message, sender).await?);
        reservation.prepare(&held);
        return Ok(Out::Activity(held, reservation));
    }
    let sent = shared.sender.send_activity(message, sender).await?;
    let queue = shared.hub.names.work_item_queue();
    Ok(Out::Visible { queue, receipt: sent.put.receipt, partition: None, due: None })
}

async fn send_control(
    shared: &Arc<Shared>,
    message: &TaskMessage,
    sender: &Sender,
    is_first_try: bool,
) -> Result<Out, ServiceError> {
    let partition = shared.sender.partition_of(message);
    let now = shared.hub.clock.now();
    let delay = message::visibility_delay(message, now);
    let due = (!delay.is_zero()).then(|| now + delay);
    let settings = &shared.hub.settings;
    if settings.hands_off_control_messages() && shared.takes_messages_of(partition) {
        match (&message.event.kind, due) {
            (EventKind::TimerFired { fire_at, .. }, Some(_)) => {
                let held = shared.sender.put_control_held(message, sender, delay).await?;
                return Ok(Out::Timer(partition, *fire_at, Arc::new(held)));
            }
            (_, None) => {
                let visibility = settings.control_queue_visibility_timeout;
                let held = Arc::new(shared.sender.put_control_held(message, sender, visibility).await?);
                // A parent whose episode runs for the second time may have started this child before.
                held.set_starts_new_instance(is_first_try && held.is_start());
                // Renewed until it is known what becomes of the episode, and known when it is received.
                shared.sessions.hold(std::slice::from_ref(&held));
                return Ok(Out::Control(partition, held));
            }
            _ => {}
        }
    }
    let sent = shared.sender.send_control(message, sender).await?;
    let queue = shared.hub.names.control_queue(partition);
    Ok(Out::Visible { queue, receipt: sent.put.receipt, partition: Some(partition), due })
}
