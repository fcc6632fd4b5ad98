//! What an episode sends: put before its checkpoint, handed over or taken back after it.
//!
//! A message for this process is put hidden, as if it had been received: nobody else sees it while this process
//! lives, anybody does after a crash. It is not worked on before the episode is stored.

use std::collections::BTreeMap;
use std::sync::Arc;

use futures::future::join_all;
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
    out: Vec<Out>,
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
        let controls = stream::iter(0..control.len())
            .map(|at| send_control(shared, control[at], sender, is_first_try))
            .buffered(limit)
            .collect::<Vec<_>>();
        let activities = stream::iter(0..activities.len())
            .map(|at| send_activity(shared, &activities[at], sender))
            .buffered(limit)
            .collect::<Vec<_>>();
        let (controls, activities) = tokio::join!(controls, activities);
        let mut outbox = Self { shared: shared.clone(), out: Vec::new() };
        let mut first_error = None;
        for sent in controls.into_iter().chain(activities) {
            match sent {
                Ok(out) => outbox.out.push(out),
                Err(e) => {
                    first_error.get_or_insert(e);
                }
            }
        }
        match first_error {
            None => Ok(outbox),
            Some(e) => {
                outbox.withdraw().await;
                Err(e)
            }
        }
    }

    /// The episode is stored.
    pub(crate) async fn hand_over(mut self) {
        let shared = self.shared.clone();
        // Together, in the order in which the episode has decided them.
        let mut local: BTreeMap<_, Vec<_>> = BTreeMap::new();
        for out in std::mem::take(&mut self.out) {
            match out {
                Out::Visible { partition: Some(partition), due, .. } => shared.announce(partition, due),
                Out::Visible { .. } => shared.work_items.announce(),
                Out::Activity(message, reservation) if shared.stopping.is_cancelled() => {
                    reservation.cancel(&message);
                    shared.give_back(vec![message]).await;
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
        for (partition, messages) in local {
            shared.take_local(partition, messages).await;
        }
    }

    /// The episode is surely not stored: nobody shall act on it.
    ///
    /// Differs: DTFx leaves the messages of an episode that loses, and everything in them is done twice.
    pub(crate) async fn withdraw(mut self) {
        let shared = self.shared.clone();
        let queues = &*shared.hub.account.queues;
        join_all(std::mem::take(&mut self.out).into_iter().map(|out| async {
            let deleted = match out {
                Out::Visible { queue, receipt, .. } => {
                    queues.delete_message(&queue, &receipt).await.map(drop)
                }
                Out::Activity(message, reservation) => {
                    reservation.cancel(&message);
                    message.delete(queues).await.map(drop)
                }
                Out::Control(_, message) | Out::Timer(_, _, message) => {
                    shared.sessions.forget(&message);
                    message.delete(queues).await.map(drop)
                }
            };
            if let Err(e) = deleted {
                tracing::debug!(hub = %shared.hub.name(), error = %e, "cannot take a message back");
            }
        }))
        .await;
    }

    /// It is not known whether the episode is stored: everybody may act on it, as in DTFx.
    pub(crate) async fn release(mut self) {
        let hidden = self.take_hidden();
        self.shared.give_back(hidden).await;
    }

    /// The messages that nobody sees and nobody works on; timers come when they are due.
    fn take_hidden(&mut self) -> Vec<Arc<HeldMessage>> {
        let hidden = std::mem::take(&mut self.out).into_iter().filter_map(|out| match out {
            Out::Activity(message, reservation) => {
                reservation.cancel(&message);
                Some(message)
            }
            Out::Control(_, message) => Some(message),
            Out::Visible { .. } | Out::Timer(..) => None,
        });
        hidden.collect()
    }
}

impl Drop for Outbox {
    fn drop(&mut self) {
        let hidden = self.take_hidden();
        if !hidden.is_empty() {
            let shared = self.shared.clone();
            self.shared.clean_up(async move { shared.give_back(hidden).await });
        }
    }
}

async fn send_activity(
    shared: &Arc<Shared>,
    message: &TaskMessage,
    sender: &Sender,
) -> Result<Out, ServiceError> {
    if let Some(reservation) = shared.work_items.reserve(message) {
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
