//! The only writer of an episode. The order of effects is the protocol, so it reads here in one place.

use std::sync::Arc;

use futures::stream::{self, StreamExt};
use taskhub_core::{
    EpisodeCommit, ErrorKind, EventKind, HistoryEvent, LockToken, OrchestrationInstance, ServiceError,
    TaskMessage,
};

use crate::guard::Guard;
use crate::queue::held::HeldMessage;
use crate::queue::outbox::Outbox;
use crate::queue::send::Sender;
use crate::sabotage::Planted;
use crate::session::history_index::HistoryIndex;
use crate::session::manager::Tracked;
use crate::shared::Shared;
use crate::tracking::instances::RowOutcome;
use crate::tracking::late_rows::Shown;
use crate::tracking::store::{CommitFailure, HistoryCommit};

/// Commits one episode. A crash between two steps may repeat messages (activities run at least once,
/// extra results are ignored by replay); it never loses one.
///
/// Source: Azure/durabletask, `AzureStorageOrchestrationService.CompleteTaskOrchestrationWorkItemAsync`.
///
/// # Errors
/// `SessionAborted` when another worker has committed an episode of the instance since its history was
/// read: nothing of this one is stored.
pub(crate) async fn complete(
    shared: &Arc<Shared>,
    token: LockToken,
    commit: EpisodeCommit,
) -> Result<(), ServiceError> {
    let Some((began_as, mut tracked)) = shared.sessions.tracked(token) else {
        return Err(shared.no_session("complete", token));
    };
    let sender = Sender {
        // The sender is the execution with which the work item began, and its episode number includes the
        // running one; after continue-as-new within the work item the target tells the new execution.
        instance: if began_as.instance_id.is_entity() && tracked.index.started.is_none() {
            // The execution of an entity that an event has started is not known to DTFx's sessions yet.
            OrchestrationInstance::current(began_as.instance_id.clone())
        } else {
            began_as.clone()
        },
        episode: Some(tracked.index.episodes() + 1),
    };
    let mut index = if commit.replaces_history { HistoryIndex::default() } else { tracked.index };
    let known_events = shared.sessions.begin_commit(token);

    // 0. Changes the row of a start that continues as new at once; as a rule nothing.
    if commit.replaces_history {
        shared.tracking.announce_next(&began_as, &commit).await?;
    }

    // 1. Nobody in this process works on these before the episode is stored; others may.
    let settings = &shared.hub.settings;
    let processed = shared.sessions.current(token);
    let is_first_try = processed.iter().all(|message| message.is_first_try());
    let mut outbox = None;
    if !settings.planted(Planted::SendAfterCommit) {
        outbox = Some(Outbox::send(shared, &commit, &sender, is_first_try).await?);
    }
    if settings.planted(Planted::DeleteBeforeCommit) {
        delete_all(shared, &shared.sessions.current(token)).await?;
    }
    if settings.planted(Planted::BlobsBeforeCommit) && commit.replaces_history {
        shared.tracking.delete_blobs(tracked.blob_names.clone()).await;
    }

    // 2. The checkpoint: conditional on the sentinel as it was read.
    let committed = shared
        .tracking
        .commit_history(HistoryCommit {
            instance: &commit.instance,
            first_row: index.len(),
            events: &commit.new_events,
            etag: tracked.etag.as_ref(),
        })
        .await;
    let committed = match committed {
        Ok(committed) => committed,
        Err(CommitFailure { error, is_lost }) => {
            if error.kind() == ErrorKind::SessionAborted {
                shared.sessions.conflicted(token);
            }
            match outbox {
                Some(outbox) if is_lost => outbox.withdraw().await,
                Some(outbox) => outbox.release().await,
                None => {}
            }
            return Err(error);
        }
    };

    let outbox = match outbox {
        Some(outbox) => outbox,
        None => Outbox::send(shared, &commit, &sender, is_first_try).await?,
    };

    // 3. What queries see; repaired by the next message if a crash comes before it.
    index.extend(&commit.new_events);
    if !shared.tracking.row_may_wait(&commit, &committed, tracked.shown.as_ref()) {
        let began_as = began_as.execution_id.as_ref();
        let written = shared.tracking.checkpoint_instance(&commit, &index, &committed, began_as).await;
        let written = match written {
            Ok(RowOutcome::TerminatedBefore { reason }) => {
                end_terminated(shared, &commit.instance, reason, &sender).await
            }
            other => other.map(drop),
        };
        if let Err(e) = written {
            outbox.hand_over().await;
            return Err(e);
        }
    } else if tracked.shown.is_none() {
        shared.show_later(&commit.instance, sender.clone());
    }

    // 4. Blobs of the execution that was replaced.
    if commit.replaces_history {
        shared.tracking.delete_blobs(std::mem::take(&mut tracked.blob_names)).await;
    }
    tracked.blob_names.extend(committed.blob_names);
    let instance = &commit.instance.instance_id;
    let partition = shared.sender.partition_of_instance(instance);
    shared.work_items.set_awaited(partition, instance, index.open_activities());
    let shown = Some(Shown { custom_status: commit.custom_status });
    let tracked = Tracked { index, etag: Some(committed.etag), blob_names: tracked.blob_names, shown };
    let events = known_events.map(|mut events| {
        if commit.replaces_history {
            events.clear();
        }
        events.extend(commit.new_events);
        events
    });
    shared.sessions.committed(token, commit.instance, tracked, events);

    // 5. The messages for this process.
    outbox.hand_over().await;

    // 6. The messages that caused it. If this fails they come again, and replay finds nothing to do.
    delete_all(shared, &processed).await
}

/// An instance was terminated while it was pending, and its first episode was on its way: it ends in its next
/// one, as if it had been terminated while it ran.
pub(crate) async fn end_terminated(
    shared: &Shared,
    instance: &OrchestrationInstance,
    reason: Option<String>,
    sender: &Sender,
) -> Result<(), ServiceError> {
    let kind = EventKind::ExecutionTerminated { input: reason };
    let terminate = HistoryEvent::message(shared.hub.clock.now(), kind);
    let message = TaskMessage::new(terminate, instance.clone());
    shared.sender.send_control(&message, sender).await?;
    shared.announce(shared.sender.partition_of(&message), None);
    Ok(())
}

/// Deletes processed messages, some at a time.
pub(crate) async fn delete_all(shared: &Shared, messages: &[Arc<HeldMessage>]) -> Result<(), ServiceError> {
    // However this ends, none of them is renewed any more.
    let guard = Guard::new(|| messages.iter().for_each(|message| shared.sessions.forget(message)));
    let deleted = match messages {
        // As a rule there is one.
        [message] => delete(shared, message).await,
        _ => {
            let limit = shared.hub.settings.max_storage_operation_concurrency;
            let deleted = stream::iter(messages.to_vec())
                .map(|message| async move { delete(shared, &message).await })
                .buffer_unordered(limit)
                // One failure must not leave the others undone.
                .collect::<Vec<_>>();
            deleted.await.into_iter().collect()
        }
    };
    guard.disarm();
    deleted
}

async fn delete(shared: &Shared, message: &HeldMessage) -> Result<(), ServiceError> {
    let deleted = message.delete(&*shared.hub.account.queues).await;
    shared.sessions.forget(message);
    shared.receiver.settle_deletion(message, &deleted).await;
    deleted.map(drop).map_err(|e| {
        let what = format!(
            "cannot delete a processed message. queue=`{}` instance=`{}`",
            message.queue,
            message.instance_id()
        );
        shared.hub.failed(what, e)
    })
}
