//! The only writer of an episode. The order of effects is the protocol, so it reads here in one place.

use std::sync::Arc;

use futures::stream::{self, StreamExt, TryStreamExt};
use taskhub_core::{
    EpisodeCommit, EventKind, HistoryEvent, LockToken, OrchestrationInstance, ServiceError, TaskMessage,
};

use crate::queue::held::HeldMessage;
use crate::queue::send::Sender;
use crate::sabotage::Planted;
use crate::session::history_index::HistoryIndex;
use crate::session::manager::Tracked;
use crate::shared::Shared;
use crate::tracking::instances::RowOutcome;
use crate::tracking::store::HistoryCommit;

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

    // 0. Changes the row of a start that continues as new at once; as a rule nothing.
    if commit.replaces_history {
        shared.tracking.announce_next(&began_as, &commit).await?;
    }

    // 1. A retry repeats these.
    let settings = &shared.hub.settings;
    if !settings.planted(Planted::SendAfterCommit) {
        send_outbound(shared, &commit, &sender).await?;
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
        .await?;

    if settings.planted(Planted::SendAfterCommit) {
        send_outbound(shared, &commit, &sender).await?;
    }

    // 3. What queries see; repaired by the next message if a crash comes before it.
    index.extend(&commit.new_events);
    let row = shared
        .tracking
        .checkpoint_instance(&commit, &index, &committed, began_as.execution_id.as_ref())
        .await?;
    if let RowOutcome::TerminatedBefore { reason } = row {
        // It ends in its next episode, as one that was terminated while it ran.
        let kind = EventKind::ExecutionTerminated { input: reason };
        let terminate = HistoryEvent::message(shared.hub.clock.now(), kind);
        let message = TaskMessage::new(terminate, commit.instance.clone());
        shared.sender.send_control(&message, &sender).await?;
        shared.announce(shared.sender.partition_of(&message), &message);
    }

    // 4. Blobs of the execution that was replaced.
    if commit.replaces_history {
        shared.tracking.delete_blobs(std::mem::take(&mut tracked.blob_names)).await;
    }
    tracked.blob_names.extend(committed.blob_names);
    let processed = shared.sessions.current(token);
    let instance = &commit.instance.instance_id;
    let partition = shared.sender.partition_of_instance(instance);
    shared.work_items.set_awaited(partition, instance, index.open_activities());
    let tracked = Tracked { index, etag: Some(committed.etag), blob_names: tracked.blob_names };
    shared.sessions.committed(token, commit.instance, tracked);

    // 5. The messages that caused it. If this fails they come again, and replay finds nothing to do.
    delete_all(shared, &processed).await
}

async fn send_outbound(
    shared: &Arc<Shared>,
    commit: &EpisodeCommit,
    sender: &Sender,
) -> Result<(), ServiceError> {
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
    tokio::try_join!(
        shared.sender.send_all_control(&control, sender),
        stream::iter(0..activities.len())
            .map(|at| shared.sender.send_activity(&activities[at], sender, &shared.work_items))
            .buffer_unordered(limit)
            .try_collect::<()>(),
    )?;
    for message in control {
        shared.announce(shared.sender.partition_of(message), message);
    }
    Ok(())
}

/// Deletes processed messages, some at a time.
pub(crate) async fn delete_all(shared: &Shared, messages: &[Arc<HeldMessage>]) -> Result<(), ServiceError> {
    let limit = shared.hub.settings.max_storage_operation_concurrency;
    stream::iter(messages.to_vec())
        .map(|message| async move {
            let queues = &*shared.hub.account.queues;
            let deleted = message.delete(queues).await;
            shared.sessions.forget(&message);
            match &deleted {
                Ok(true) => shared.recorder.succeeded(&message),
                Ok(false) => {}
                Err(_) => {
                    if let Err(e) = message.put_off(queues).await {
                        tracing::debug!(hub = %shared.hub.name(), error = %e, "cannot put off a processed message");
                    }
                }
            }
            deleted.map(drop).map_err(|e| {
                let what = format!(
                    "cannot delete a processed message. queue=`{}` instance=`{}`",
                    message.queue,
                    message.instance_id()
                );
                shared.hub.failed(what, e)
            })
        })
        .buffer_unordered(limit)
        // One failure must not leave the others undone.
        .collect::<Vec<_>>()
        .await
        .into_iter()
        .collect()
}
