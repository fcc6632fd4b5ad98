//! From received messages to batches with their history.

use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;
use taskhub_core::{ErrorKind, EventKind, OrchestrationStatus, PartitionId};
use taskhub_storage::request::on_behalf_of;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::checkpoint;
use crate::dead_letter::failure::{Facts, Failure, Reason};
use crate::queue::held::HeldMessage;
use crate::sabotage::Planted;
use crate::session::admission::{ReceivedStart, StartCheck, check_start};
use crate::session::manager::{FetchRequest, Released};
use crate::shared::Shared;
use crate::tracking::store::LoadedHistory;

/// Wait before a failed read of a history is repeated. Source: Azure/durabletask,
/// `OrchestrationSessionManager` (5 s).
const HISTORY_RETRY_INTERVAL: Duration = Duration::from_secs(5);
/// Waits between looks for the Instances row of a start that came first.
const ROW_RETRY_DELAYS: [Duration; 4] = [
    Duration::from_millis(50),
    Duration::from_millis(100),
    Duration::from_millis(200),
    Duration::from_millis(400),
];
/// Most moments an instance waits for results to come together.
const LONGEST_LINGER: u32 = 10;

impl Shared {
    /// Takes received messages in: drops duplicates and stale starts, groups the rest by instance.
    pub(crate) async fn route_received(
        self: Arc<Self>,
        partition: PartitionId,
        received: Vec<Arc<HeldMessage>>,
    ) {
        let mut fresh = Vec::with_capacity(received.len());
        for message in received {
            match self.sessions.held(&message.message_id) {
                // Received once more while it is in our hands: only the newer receipt is of interest.
                Some(held) => held.adopt(&message),
                None => fresh.push(message),
            }
        }
        // Held from now on, so that they are renewed, however long the look at their rows takes.
        self.sessions.hold(&fresh);
        let guard = self.message_guard(fresh.clone());
        let checked = join_all(fresh.into_iter().map(|message| {
            let name = self.names.learn(message.instance_id(), [&message.task().event]);
            on_behalf_of(name, self.clone().admit_received(partition, message))
        }));
        let checked = checked.await;
        guard.disarm();
        self.take_in(partition, checked.into_iter().flatten().collect()).await;
    }

    pub(crate) async fn take_in(self: &Arc<Self>, partition: PartitionId, messages: Vec<Arc<HeldMessage>>) {
        let Released { fetch, give_back } = self.sessions.add(partition, messages);
        self.give_back(give_back).await;
        self.fetch_histories(fetch);
    }

    /// Start de-duplication. `None`: the message has been dropped, put back, or is looked at again soon.
    pub(crate) async fn admit_received(
        self: Arc<Self>,
        partition: PartitionId,
        message: Arc<HeldMessage>,
    ) -> Option<Arc<HeldMessage>> {
        if !message.is_start() {
            return Some(message);
        }
        // On the heap: many messages are admitted together, and most have nothing to wait for.
        Box::pin(self.admit_start(partition, message)).await
    }

    async fn admit_start(
        self: Arc<Self>,
        partition: PartitionId,
        message: Arc<HeldMessage>,
    ) -> Option<Arc<HeldMessage>> {
        let under_way = self.start_under_way(&message).filter(|_| message.dequeue_count == 1);
        let check = match &under_way {
            // Its row is about to be written.
            Some(_) => StartCheck::PutBack,
            None => self.check_received_start(&message).await,
        };
        match check {
            StartCheck::Process => return Some(message),
            StartCheck::Drop => self.drop_start(&message).await,
            StartCheck::GiveUp => self.give_up_start(&message).await,
            StartCheck::PutBack if message.dequeue_count == 1 => {
                let tasks = self.tasks.clone();
                tasks.spawn(async move { self.await_row(partition, message, under_way).await });
            }
            StartCheck::PutBack => self.put_back(&message).await,
        }
        None
    }

    /// Cancelled when the client that has put this start is done, if it is in this process and at it.
    fn start_under_way(&self, message: &HeldMessage) -> Option<CancellationToken> {
        self.hub.doorbell.start_under_way(message.target().execution_id.as_ref()?)
    }

    /// The client writes the row right after it has sent the start: looks for it some more times before the
    /// message is put back for two seconds. A client of this process tells when it is done.
    async fn await_row(
        self: Arc<Self>,
        partition: PartitionId,
        message: Arc<HeldMessage>,
        under_way: Option<CancellationToken>,
    ) {
        let guard = self.message_guard(vec![message.clone()]);
        self.clone().look_for_row(partition, message, under_way).await;
        guard.disarm();
    }

    async fn look_for_row(
        self: Arc<Self>,
        partition: PartitionId,
        message: Arc<HeldMessage>,
        mut under_way: Option<CancellationToken>,
    ) {
        for delay in ROW_RETRY_DELAYS {
            let done = async {
                match &under_way {
                    Some(start) => start.cancelled().await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                () = self.stopping.cancelled() => {
                    self.give_back(vec![message]).await;
                    return;
                }
                () = done => {}
                () = tokio::time::sleep(delay) => {}
            }
            match self.check_received_start(&message).await {
                StartCheck::Process => return self.take_in(partition, vec![message]).await,
                StartCheck::Drop => return self.drop_start(&message).await,
                StartCheck::GiveUp => return self.give_up_start(&message).await,
                StartCheck::PutBack => under_way = self.start_under_way(&message),
            }
        }
        tracing::info!(
            hub = %self.hub.name(), instance = %message.instance_id(),
            "a start message has no Instances row yet and is put back"
        );
        self.put_back(&message).await;
    }

    pub(crate) async fn check_received_start(&self, message: &HeldMessage) -> StartCheck {
        let EventKind::ExecutionStarted(start) = &message.task().event.kind else {
            return StartCheck::Process;
        };
        if start.parent.is_some() || self.hub.settings.disable_execution_started_deduplication {
            return StartCheck::Process;
        }
        let row = match self.tracking.instance_for_start(message.instance_id()).await {
            Ok(row) => row,
            Err(e) => {
                tracing::warn!(hub = %self.hub.name(), error = e.chain(), "cannot check a start message");
                return StartCheck::PutBack;
            }
        };
        let received = ReceivedStart {
            start,
            created_at: message.task().event.timestamp,
            dequeue_count: message.dequeue_count,
            received_at: message.received_at,
        };
        let check = check_start(received, row.as_ref());
        // A client counts how often an id was used: nothing is stored of the first use before its first episode.
        let is_new = row.as_ref().is_some_and(|row| {
            row.status == Some(OrchestrationStatus::Pending)
                && row.instance.execution_id == start.instance.execution_id
                && row.generation == Some(0)
        });
        message.set_starts_new_instance(is_new && message.dequeue_count == 1 && check == StartCheck::Process);
        match check {
            StartCheck::Drop | StartCheck::PutBack
                if row.is_some() && self.hub.settings.planted(Planted::AnyStart) =>
            {
                StartCheck::Process
            }
            // It was terminated as pending when its first episode was on its way: that goes on, and ends it.
            StartCheck::Drop
                if row.is_some_and(|row| row.status == Some(OrchestrationStatus::Terminated)) =>
            {
                match self.tracking.has_history_of(message.target()).await {
                    Ok(true) => StartCheck::Process,
                    Ok(false) => StartCheck::Drop,
                    Err(e) => {
                        tracing::warn!(hub = %self.hub.name(), error = e.chain(), "cannot check a start message");
                        StartCheck::PutBack
                    }
                }
            }
            check => check,
        }
    }

    /// A start whose row never came is dropped as DTFx does, but can be found again.
    pub(crate) async fn give_up_start(&self, message: &Arc<HeldMessage>) {
        let failure = Failure {
            reason: Reason::StartWithoutRow,
            detail: "no Instances row for this execution after all attempts".to_owned(),
        };
        if !self.recorder.keep_dropped(&Facts::of_held(message), &failure).await {
            return self.put_back(message).await;
        }
        let (hub, instance) = (self.hub.name(), message.instance_id());
        tracing::warn!(
            %hub, %instance, hint = format!("taskhub dead-letter show {}", message.message_id),
            "a start message never got its Instances row and is dropped"
        );
        if let Err(e) = message.delete(&*self.hub.account.queues).await {
            tracing::warn!(%hub, %instance, error = %e, "cannot drop a start message");
        }
        self.sessions.forget(message);
    }

    pub(crate) async fn drop_start(&self, message: &Arc<HeldMessage>) {
        let (hub, instance) = (self.hub.name(), message.instance_id());
        tracing::warn!(%hub, %instance, "a start message is a duplicate or stale and is dropped");
        if let Err(e) = checkpoint::delete_all(self, std::slice::from_ref(message)).await {
            tracing::warn!(%hub, %instance, error = e.chain(), "cannot drop a start message");
        }
    }

    pub(crate) fn fetch_histories(self: &Arc<Self>, requests: Vec<FetchRequest>) {
        for request in requests {
            let recalled = self.sessions.recall(&request);
            let recalled = match recalled {
                // As a rule.
                Some(history) if !self.lingers(&history) => {
                    self.sessions.loaded(request.batch, history);
                    continue;
                }
                other => other,
            };
            let shared = self.clone();
            let name = self.names.of(&request.instance.instance_id);
            self.tasks.spawn(on_behalf_of(name, async move {
                let guard = shared.batch_guard(request.batch);
                shared.fetch_history(request, recalled).await;
                guard.disarm();
            }));
        }
    }

    async fn fetch_history(&self, request: FetchRequest, recalled: Option<LoadedHistory>) {
        let instance = &request.instance;
        if let Some(history) = recalled {
            self.linger(request.batch, &history).await;
            self.sessions.loaded(request.batch, history);
            return;
        }
        while self.sessions.pending_len(request.batch).is_some() && !self.stopping.is_cancelled() {
            match self.tracking.history(&instance.instance_id, instance.execution_id.as_ref()).await {
                Ok(history) => {
                    self.linger(request.batch, &history).await;
                    self.sessions.loaded(request.batch, history);
                    return;
                }
                Err(e) if e.kind() == ErrorKind::Unavailable => {
                    tracing::warn!(
                        hub = %self.hub.name(), instance = %instance.instance_id, error = e.chain(),
                        "cannot read a history; trying again"
                    );
                    tokio::select! {
                        biased;
                        () = self.stopping.cancelled() => {}
                        () = tokio::time::sleep(HISTORY_RETRY_INTERVAL) => {}
                    }
                }
                Err(e) => {
                    tracing::error!(
                        hub = %self.hub.name(), instance = %instance.instance_id, error = e.chain(),
                        "a history cannot be read; its messages are put back"
                    );
                    let failure = Failure::of_history(&e);
                    if let Some(event_type) = Failure::unknown_event_type(&e) {
                        self.hub.metrics.unknown_event_type(event_type);
                    }
                    let messages = self.sessions.unloadable(request.batch);
                    join_all(messages.iter().map(|message| async {
                        match failure.clone() {
                            Some(failure) => self.put_back_failed(message, failure).await,
                            None => self.put_back(message).await,
                        }
                    }))
                    .await;
                    return;
                }
            }
        }
    }

    /// Whether an instance waits for several results, and those that come together are for one episode.
    fn lingers(&self, history: &LoadedHistory) -> bool {
        !self.hub.settings.fan_in_linger.is_zero() && history.index.open_calls() > 1
    }

    /// Waits until all results that the instance waits for have come, or none has for a moment.
    async fn linger(&self, batch: u64, history: &LoadedHistory) {
        if !self.lingers(history) {
            return;
        }
        let (quiet, open) = (self.hub.settings.fan_in_linger, history.index.open_calls());
        let deadline = Instant::now() + quiet * LONGEST_LINGER;
        let mut seen = self.sessions.pending_len(batch).unwrap_or(open);
        while seen < open && Instant::now() < deadline && !self.stopping.is_cancelled() {
            tokio::time::sleep(quiet).await;
            match self.sessions.pending_len(batch) {
                Some(now) if now > seen => seen = now,
                _ => return,
            }
        }
    }
}
