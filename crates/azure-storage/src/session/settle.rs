//! From a batch with its history to a work item, or to the end of its messages.

use std::sync::Arc;

use futures::future::join_all;
use taskhub_core::{
    EventKind, ExecutionId, ExecutionStarted, GiveBackReason, HistoryEvent, InstanceId, LockToken,
    OrchestrationInstance, OrchestrationStatus, OrchestrationWorkItem, ServiceError, TaskMessage, Timestamp,
    execution_id_from,
};

use crate::checkpoint;
use crate::queue::held::HeldMessage;
use crate::sabotage::Planted;
use crate::session::admission::{
    Admission, StartCheck, WithoutHistory, admit, is_out_of_order, without_history,
};
use crate::session::history_index::HistoryIndex;
use crate::session::manager::{Taken, Tracked};
use crate::shared::Shared;
use crate::tracking::instances::InstanceRow;

impl Shared {
    /// Decides whether a session may run. `None`: its messages have been dealt with.
    pub(crate) async fn admit(&self, taken: Taken) -> Result<Option<OrchestrationWorkItem>, ServiceError> {
        let Taken { token, instance, messages, history, .. } = taken;
        let with_start = messages.iter().any(|m| m.is_start());
        if history.is_assumed && messages.iter().any(|m| self.is_early(m, with_start, &history.index)) {
            // Early only by what is assumed: the history that is stored may know better.
            self.sessions.look_again(token);
            return Ok(None);
        }
        let is_of_another = history.index.started.is_none() && history.etag.is_some();
        let other_is_cut_off = history.other_is_cut_off;
        let index = history.index;
        let messages = if other_is_cut_off { messages } else { self.keep_in_order(messages, &index).await };
        self.sessions.admit(token, messages.clone(), Vec::new());
        if messages.is_empty() {
            return Ok(None);
        }
        if is_of_another {
            let start = messages.iter().find(|m| m.is_start());
            let is_repeated_child = self.is_repeated_child(&messages).await?;
            let has_continued = match start {
                Some(start) if other_is_cut_off => is_repeated_child || self.has_continued(start).await?,
                _ => other_is_cut_off,
            };
            if has_continued {
                return self.go_on_after_cut(token, &instance.instance_id, &messages).await;
            }
            if is_repeated_child {
                self.discard_repeated_child(token, &instance, &messages).await?;
                return Ok(None);
            }
            if let Some(start) = start
                && self.leaves_start(token, start, &messages).await
            {
                return Ok(None);
            }
        }
        let replay_terminal = self.hub.settings.allow_replaying_terminal_instances;
        let mut instance = instance;
        let mut tasks: Vec<TaskMessage> = messages.iter().map(|m| m.task().clone()).collect();
        match admit(&index, messages.iter().map(|m| m.task()), replay_terminal) {
            Admission::Execute => {}
            Admission::AutoStart => {
                instance.execution_id = Some(execution_id_from(&*self.hub.ids));
                tasks.insert(0, self.auto_start(&instance));
            }
            Admission::AskRow => {
                self.settle_without_history(token, &messages).await?;
                return Ok(None);
            }
            Admission::Finished(_) => {
                self.settle_finished(token, &index, &messages).await?;
                return Ok(None);
            }
        }
        if index.started.is_none() {
            let start = tasks.iter().find(|t| matches!(t.event.kind, EventKind::ExecutionStarted(_)));
            instance.execution_id = start.and_then(|t| t.target.execution_id.clone());
            self.sessions.set_execution(token, instance.execution_id.clone());
        }
        let locked_until = messages.iter().map(|m| m.remaining()).min().unwrap_or_default();
        Ok(Some(OrchestrationWorkItem {
            token,
            instance,
            history: history.events,
            messages: tasks,
            locked_until: self.hub.clock.now() + locked_until,
            attempt: messages.iter().map(|m| m.dequeue_count).max().unwrap_or(1),
        }))
    }

    /// Whether the start among these messages is for a child that runs already, or has run: its parent's
    /// episode was run twice, each time with another execution id.
    ///
    /// Differs: DTFx runs the child anew, which then waits for events that its first execution has consumed.
    async fn is_repeated_child(&self, messages: &[Arc<HeldMessage>]) -> Result<bool, ServiceError> {
        let start = messages.iter().find_map(|message| match &message.task().event.kind {
            EventKind::ExecutionStarted(start) if start.parent.is_some() => Some((message, start)),
            _ => None,
        });
        let Some((message, start)) = start else { return Ok(false) };
        let current = self.tracking.history(message.instance_id(), None).await?;
        Ok(current.index.started.is_some_and(|(current, _)| current.parent == start.parent))
    }

    /// Looks at the Instances row once more before a start replaces a history: it may have been written since
    /// the message was received. `true`: the start has been dealt with, the other messages wait.
    ///
    /// Differs: DTFx compares when the message is received. A start that was stored twice can then run an
    /// instance again that has finished meanwhile, over the row of the next start of its id.
    async fn leaves_start(
        &self,
        token: LockToken,
        start: &Arc<HeldMessage>,
        messages: &[Arc<HeldMessage>],
    ) -> bool {
        let mut check = self.check_received_start(start).await;
        if check == StartCheck::Process {
            match self.has_continued(start).await {
                Ok(false) => return false,
                Ok(true) => check = StartCheck::Drop,
                Err(e) => {
                    tracing::warn!(hub = %self.hub.name(), error = e.chain(), "cannot check a start message");
                    check = StartCheck::PutBack;
                }
            }
        }
        let others = messages.iter().filter(|m| m.message_id != start.message_id).cloned().collect();
        self.sessions.admit(token, Vec::new(), others);
        match check {
            StartCheck::Process => {}
            StartCheck::Drop => self.drop_start(start).await,
            StartCheck::GiveUp => self.give_up_start(start).await,
            StartCheck::PutBack => self.put_back(start).await,
        }
        true
    }

    /// Whether the stored history is of the execution as which that of this start has continued: its worker died
    /// before it could say so in the Instances row, and delete the start.
    ///
    /// Differs: DTFx runs the start again, over the history, and what that has consumed is lost.
    async fn has_continued(&self, start: &Arc<HeldMessage>) -> Result<bool, ServiceError> {
        let EventKind::ExecutionStarted(started) = &start.task().event.kind else { return Ok(false) };
        let row = match started.parent {
            // Its row comes after the history.
            Some(_) => None,
            None => self.tracking.instance_row(start.instance_id()).await?,
        };
        let Some(row) = row.filter(|row| row.state.status != Some(OrchestrationStatus::Pending)) else {
            return Ok(false);
        };
        Ok(self.repair_if_continued(&row).await?.0)
    }

    async fn discard_repeated_child(
        &self,
        token: LockToken,
        instance: &OrchestrationInstance,
        messages: &[Arc<HeldMessage>],
    ) -> Result<(), ServiceError> {
        tracing::info!(
            hub = %self.hub.name(), instance = %instance.instance_id,
            "a sub-orchestration that runs already was started once more; the second start is dropped"
        );
        // An event without an execution is meant for the one that runs.
        let (own, others): (Vec<_>, Vec<_>) =
            messages.iter().cloned().partition(|m| m.target().execution_id == instance.execution_id);
        self.sessions.admit(token, Vec::new(), others);
        checkpoint::delete_all(self, &own).await
    }

    /// The first checkpoint of a generation was cut off between two batches, and what caused it is addressed
    /// to the generation before: the episode is run again on what is stored, and these messages end with it.
    ///
    /// Differs: DTFx discards the messages, and nothing ever wakes the instance.
    async fn go_on_after_cut(
        &self,
        token: LockToken,
        instance_id: &InstanceId,
        messages: &[Arc<HeldMessage>],
    ) -> Result<Option<OrchestrationWorkItem>, ServiceError> {
        let history = self.tracking.history(instance_id, None).await?;
        if history.index.started.is_none() {
            self.settle_without_history(token, messages).await?;
            return Ok(None);
        }
        if history.index.status().is_some_and(OrchestrationStatus::is_terminal) {
            // Its end is among what was stored.
            self.settle_finished(token, &history.index, messages).await?;
            return Ok(None);
        }
        let instance = OrchestrationInstance {
            instance_id: instance_id.clone(),
            execution_id: history.execution_id.clone(),
        };
        let wake = HistoryEvent::message(self.hub.clock.now(), EventKind::ExecutionResumed { reason: None });
        let mut tasks = vec![TaskMessage::new(wake, instance.clone())];
        let for_current = |m: &&Arc<HeldMessage>| m.target().execution_id.is_none();
        tasks.extend(messages.iter().filter(for_current).map(|m| m.task().clone()));
        let tracked =
            Tracked { index: history.index, etag: history.etag, blob_names: history.blob_names, shown: None };
        self.sessions.go_on_as(token, instance.clone(), tracked);
        let locked_until = messages.iter().map(|m| m.remaining()).min().unwrap_or_default();
        Ok(Some(OrchestrationWorkItem {
            token,
            instance,
            history: history.events,
            messages: tasks,
            locked_until: self.hub.clock.now() + locked_until,
            attempt: messages.iter().map(|m| m.dequeue_count).max().unwrap_or(1),
        }))
    }

    /// The start that an event to an entity without history implies.
    /// Source: Azure/durabletask, `AzureStorageOrchestrationService.IsExecutableInstanceAsync`.
    fn auto_start(&self, instance: &OrchestrationInstance) -> TaskMessage {
        let started = ExecutionStarted {
            version: Some(String::new()),
            ..ExecutionStarted::new(instance.clone(), instance.instance_id.to_string())
        };
        let kind = EventKind::ExecutionStarted(Box::new(started));
        TaskMessage::new(HistoryEvent::message(self.hub.clock.now(), kind), instance.clone())
    }

    /// Whether a reply came before the history that asks for it.
    fn is_early(&self, message: &HeldMessage, with_start: bool, index: &HistoryIndex) -> bool {
        let dequeue_count = if with_start { 1 } else { message.dequeue_count };
        let sender = message.data.sender.as_ref();
        let has_finished = index.status().is_some_and(OrchestrationStatus::is_terminal);
        let sender_is_entity = sender.is_some_and(|s| s.instance_id.is_entity()) && !has_finished;
        is_out_of_order(message.task(), sender_is_entity, dequeue_count, index)
            && !self.hub.settings.planted(Planted::RepliesInAnyOrder)
    }

    /// Puts replies back that came before the history that asks for them.
    ///
    /// Differs: an entity's answer to what was asked in an episode that was never stored comes back for ever in
    /// DTFx: run again, the episode asks under another id. Here such answers end after a while, and at once when
    /// the instance has finished.
    pub(crate) async fn keep_in_order(
        &self,
        messages: Vec<Arc<HeldMessage>>,
        index: &HistoryIndex,
    ) -> Vec<Arc<HeldMessage>> {
        // A reply that comes with the start of its instance is early, however often it has come.
        let with_start = messages.iter().any(|message| message.is_start());
        let (early, kept): (Vec<_>, Vec<_>) =
            messages.into_iter().partition(|message| self.is_early(message, with_start, index));
        let is_stale = |message: &Arc<HeldMessage>| {
            let is_answer = matches!(message.task().event.kind, EventKind::EventRaised { .. });
            is_answer && !with_start && !self.is_young(message.inserted_at)
        };
        let (stale, early): (Vec<_>, Vec<_>) = early.into_iter().partition(is_stale);
        if let Err(e) = checkpoint::delete_all(self, &stale).await {
            tracing::debug!(hub = %self.hub.name(), error = e.chain(), "cannot delete an answer that nobody waits for");
        }
        for message in &early {
            tracing::info!(
                hub = %self.hub.name(), instance = %message.instance_id(), event = message.task().event.name(),
                "a reply came before its request was stored and is put back"
            );
        }
        join_all(early.iter().map(|message| self.put_back(message))).await;
        kept
    }

    async fn settle_without_history(
        &self,
        token: LockToken,
        messages: &[Arc<HeldMessage>],
    ) -> Result<(), ServiceError> {
        let Some(first) = messages.first() else { return Ok(()) };
        if self.sessions.has_pending_start(first.instance_id()) {
            // The start has come meanwhile: these messages join it when this session ends.
            self.sessions.admit(token, Vec::new(), messages.to_vec());
            return Ok(());
        }
        let row = self.tracking.instance_row(first.instance_id()).await?;
        let terminate =
            messages.iter().find(|m| matches!(m.task().event.kind, EventKind::ExecutionTerminated { .. }));
        let (young, old): (Vec<_>, Vec<_>) =
            messages.iter().cloned().partition(|m| self.is_young(m.inserted_at));
        let decision =
            without_history(row.as_ref().map(|r| &r.state), terminate.is_some(), !young.is_empty());
        let decision = match decision {
            WithoutHistory::PutBack if self.hub.settings.planted(Planted::DiscardBeforeStart) => {
                WithoutHistory::Discard
            }
            other => other,
        };
        let (hub, instance) = (self.hub.name(), first.instance_id());
        match (decision, terminate, row) {
            (WithoutHistory::OtherExecution, _, Some(row)) => {
                return self.settle_other_execution(token, messages, &row).await;
            }
            (WithoutHistory::PutBack, _, row) => {
                if row.is_none_or(|row| row.state.status.is_none()) && !old.is_empty() {
                    tracing::warn!(
                        %hub, %instance, messages = old.len(), "no such instance: its messages are discarded"
                    );
                    self.sessions.admit(token, young, Vec::new());
                    checkpoint::delete_all(self, &old).await?;
                }
                tracing::info!(
                    %hub, %instance, messages = self.sessions.current(token).len(),
                    "messages came before the start of their instance and are put back"
                );
                self.abandon(token, GiveBackReason::Interrupted).await;
                return Ok(());
            }
            (WithoutHistory::Terminate, Some(terminate), Some(row)) => {
                self.tracking.terminate_pending(&row, &terminate.task().event).await?;
                if self.sessions.has_pending_start(instance) {
                    // The start came while the row was written: it is terminated in its first episode.
                    self.sessions.admit(token, Vec::new(), messages.to_vec());
                    return Ok(());
                }
            }
            _ => tracing::warn!(
                %hub, %instance, messages = messages.len(), "no such instance: its messages are discarded"
            ),
        }
        self.discard(token, messages).await
    }

    /// The row is about an execution that these messages' history is not: those that name another one are
    /// of an old generation, or of one whose first checkpoint is not written yet; all others are looked at
    /// again with a fresh history.
    async fn settle_other_execution(
        &self,
        token: LockToken,
        messages: &[Arc<HeldMessage>],
        row: &InstanceRow,
    ) -> Result<(), ServiceError> {
        let current = &row.state.instance.execution_id;
        let (foreign, wanted): (Vec<_>, Vec<_>) = messages.iter().cloned().partition(|m| {
            let target = &m.target().execution_id;
            target.is_some() && target != current
        });
        let session = self.sessions.tracked(token).and_then(|(instance, _)| instance.execution_id);
        if foreign.is_empty() && session.is_some() && session != *current {
            // What was for the session's execution has been put back; these are for the current one.
            self.sessions.admit(token, Vec::new(), wanted);
            return Ok(());
        }
        if foreign.is_empty() {
            // The row's own history is gone: a purge was cut off, or the row was written first.
            if self.is_young(row.state.last_updated_at) || wanted.iter().any(|m| self.is_young(m.inserted_at))
            {
                self.abandon(token, GiveBackReason::Interrupted).await;
                return Ok(());
            }
            // The row was read after the history, perhaps long after: its first episode may have come between.
            let (_, stored) = self.repair_if_continued(row).await?;
            if stored.is_some() && stored == *current {
                self.sessions.look_again(token);
                return Ok(());
            }
            return self.discard(token, messages).await;
        }
        self.sessions.admit(token, Vec::new(), wanted);
        let (young, stale): (Vec<_>, Vec<_>) =
            foreign.into_iter().partition(|m| self.is_young(m.inserted_at));
        join_all(young.iter().map(|m| self.put_back(m))).await;
        if !stale.is_empty() {
            // What is to be discarded may be the last that points to the instance.
            self.repair_if_continued(row).await?;
        }
        checkpoint::delete_all(self, &stale).await
    }

    /// Whether the stored history is of an execution as which that of the row has continued, and the execution
    /// whose history has begun, be it this or another. One that has ended without its row gets it now.
    async fn repair_if_continued(
        &self,
        row: &InstanceRow,
    ) -> Result<(bool, Option<ExecutionId>), ServiceError> {
        let instance_id = &row.state.instance.instance_id;
        let stored = self.tracking.history(instance_id, None).await?.index;
        let has_continued = row.is_continued_by(&stored);
        if has_continued {
            self.tracking.repair_instance(instance_id, &stored, Some(row)).await?;
        }
        Ok((has_continued, stored.started.and_then(|(started, _)| started.instance.execution_id.clone())))
    }

    /// Whether something from then may still be waiting for a message in another worker's hands.
    fn is_young(&self, at: Timestamp) -> bool {
        self.hub.clock.now().saturating_since(at) < self.hub.settings.unknown_instance_grace
    }

    async fn settle_finished(
        &self,
        token: LockToken,
        index: &HistoryIndex,
        messages: &[Arc<HeldMessage>],
    ) -> Result<(), ServiceError> {
        let Some(first) = messages.first() else { return Ok(()) };
        let row = self.tracking.instance_row(first.instance_id()).await?;
        let execution_id = index.started.as_ref().and_then(|(s, _)| s.instance.execution_id.clone());
        if let Some(row) = &row
            && !row.is_continued_by(index)
            && row.state.instance.execution_id.is_some()
            && row.state.instance.execution_id != execution_id
            && !row.state.status.is_some_and(OrchestrationStatus::is_terminal)
        {
            // The id has been started again, and this history is not the new execution's.
            self.abandon(token, GiveBackReason::Interrupted).await;
            return Ok(());
        }
        self.tracking.repair_instance(first.instance_id(), index, row.as_ref()).await?;
        self.discard(token, messages).await
    }

    /// Deletes messages that nobody wants. Those for another execution than the session's are routed again
    /// when the session ends; an event without an execution is meant for the current one.
    async fn discard(&self, token: LockToken, messages: &[Arc<HeldMessage>]) -> Result<(), ServiceError> {
        let execution = self.sessions.tracked(token).and_then(|(instance, _)| instance.execution_id);
        let (mut own, mut others): (Vec<_>, Vec<_>) = messages.iter().cloned().partition(|m| {
            let target = &m.target().execution_id;
            target.is_none() || execution.is_none() || *target == execution
        });
        if own.is_empty() {
            own.append(&mut others);
        }
        self.sessions.admit(token, Vec::new(), others);
        checkpoint::delete_all(self, &own).await
    }
}
