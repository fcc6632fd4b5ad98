//! What owning a partition means in this process: the partition manager's hands on the control queues.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use taskhub_core::PartitionId;
use tokio::time::Instant;

use crate::partition::owner::PartitionOwner;
use crate::partition::status::StatusBoard;
use crate::queue::control::ControlQueue;
use crate::shared::Shared;

/// Wait between looks at the sessions of a partition that is being drained.
pub(crate) const DRAIN_INTERVAL: Duration = Duration::from_millis(100);
/// Longest wait for a receive that is under way when its partition is drained: longer than any request
/// with its repetitions.
const RECEIVE_TIMEOUT: Duration = Duration::from_secs(75);

/// Receives from the queues of the partitions that this worker owns.
pub(crate) struct Owner(pub(crate) Arc<Shared>);

#[async_trait]
impl PartitionOwner for Owner {
    fn receive(&self, partition: PartitionId, lease_until: Instant) {
        let shared = &self.0;
        if shared.stopping.is_cancelled() {
            return;
        }
        let mut queues = shared.queues();
        if let Some((queue, task)) = queues.get(&partition)
            && !queue.stop.is_cancelled()
            && !task.is_finished()
        {
            queue.renewed(lease_until);
            return;
        }
        tracing::info!(
            hub = %shared.hub.name(), %partition, owner = %shared.hub.settings.worker_id,
            "partition acquired: receiving from its control queue"
        );
        shared.sessions.open(partition);
        let queue = ControlQueue::new(partition, lease_until, shared.hub.clock.now());
        let task = tokio::spawn(queue.clone().run(shared.clone()));
        queues.insert(partition, (queue, task));
        drop(queues);
        shared.count_owned();
        // Its last owner may have gone without finishing what it had in hands.
        shared.work_items.expect_more();
    }

    fn is_receiving(&self, partition: PartitionId) -> bool {
        self.0
            .queues()
            .get(&partition)
            .is_some_and(|(queue, task)| !queue.stop.is_cancelled() && !task.is_finished())
    }

    fn is_live(&self, partition: PartitionId) -> bool {
        let settings = &self.0.hub.settings;
        // A partition that is being drained has no loop, and needs none.
        self.0.queues().get(&partition).is_none_or(|(queue, task)| {
            queue.stop.is_cancelled() || (!task.is_finished() && queue.is_live(settings))
        })
    }

    fn restart(&self, partition: PartitionId) {
        let shared = &self.0;
        if let Some((queue, task)) = shared.queues().get_mut(&partition)
            && !queue.stop.is_cancelled()
            && !shared.stopping.is_cancelled()
        {
            task.abort();
            // The same queue: it has to receive before it counts as live.
            *task = tokio::spawn(queue.clone().run(shared.clone()));
        }
    }

    fn stop_receiving(&self, partition: PartitionId) {
        let shared = self.0.clone();
        if let Some((queue, _)) = shared.queues().get(&partition)
            && !queue.stop.is_cancelled()
        {
            queue.stop.cancel();
            let owned = queue.owned_for(shared.hub.clock.now()).as_secs();
            tracing::warn!(
                hub = %shared.hub.name(), %partition, owner = %shared.hub.settings.worker_id, owned_seconds = owned,
                "partition lost: receiving has stopped"
            );
        }
        shared.count_owned();
        shared.work_items.forget_awaited(partition);
        shared.timers.drop_partition(partition);
        let unstarted = shared.sessions.close(partition);
        let tracker = shared.tasks.clone();
        tracker.spawn(async move { shared.give_back(unstarted).await });
    }

    async fn drain(&self, partition: PartitionId) {
        let shared = &self.0;
        let receiving = shared.queues().remove(&partition);
        let owned = receiving.as_ref().map(|(queue, _)| queue.owned_for(shared.hub.clock.now()));
        if let Some((queue, _)) = &receiving {
            queue.stop.cancel();
        }
        shared.count_owned();
        shared.work_items.forget_awaited(partition);
        let deadline = Instant::now() + shared.hub.settings.drain_timeout;
        shared.timers.drop_partition(partition);
        let unstarted = shared.sessions.close(partition);
        // In a task of its own: a partition that becomes ours again ends the drain, but what was taken out of
        // the sessions has nobody else who makes it visible.
        let again = shared.clone();
        let giving_back = shared.tasks.spawn(async move { again.give_back(unstarted).await });
        let received = async {
            let Some((_, mut task)) = receiving else { return };
            // A receive that is under way brings messages, which are given back when they come.
            tokio::select! {
                biased;
                _ = &mut task => return,
                () = shared.cut_off.cancelled() => {}
                () = tokio::time::sleep(RECEIVE_TIMEOUT) => {}
            }
            task.abort();
        };
        let _ = tokio::join!(giving_back, received);
        while shared.sessions.active_count(partition) > 0
            && Instant::now() < deadline
            && !shared.cut_off.is_cancelled()
            // It may have become ours again.
            && !shared.queues().contains_key(&partition)
        {
            tokio::time::sleep(DRAIN_INTERVAL).await;
        }
        if let Some(owned) = owned {
            tracing::info!(
                hub = %shared.hub.name(), %partition, owner = %shared.hub.settings.worker_id,
                owned_seconds = owned.as_secs(), unfinished = shared.sessions.active_count(partition),
                "partition drained: it goes to its next owner"
            );
        }
    }

    fn status(&self) -> &StatusBoard {
        &self.0.status
    }
}
