//! What the dispatchers of orchestrations and of entities have in common: the end of a work item, and the wait
//! for the next messages in an extended session.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use futures::FutureExt;
use taskhub_core::{
    Clock, ErrorKind, GiveBackReason, InstanceId, LockToken, OrchestrationService, ServiceError, TaskMessage,
};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tracing::{debug, error, info, warn};

use crate::dispatcher::Processed;
use crate::give_back::{GaveBack, reason_of};
use crate::lifecycle::Lifecycle;
use crate::registry::panic_kind;

/// Locked instances of one kind.
pub(crate) struct InstanceWork {
    /// For logs and metrics.
    pub(crate) kind: &'static str,
    pub(crate) service: Arc<dyn OrchestrationService>,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) life: Lifecycle,
    pub(crate) gave_back: Arc<GaveBack>,
    /// Slots of extended sessions; none when they are off.
    pub(crate) sessions: Arc<Semaphore>,
}

/// What follows an episode.
pub(crate) enum Next {
    /// It is stored (or there was nothing to store): the live state may go on.
    Stored { resumable: bool },
    /// The messages are back in their queue, the live state is worthless.
    GivenBack(Processed),
}

impl InstanceWork {
    /// Runs the work of a work item, which should be on the heap (a future inside others is moved often), and
    /// releases it.
    pub(crate) async fn process(&self, token: LockToken, work: impl Future<Output = Processed>) -> Processed {
        // A defect of the backend costs this work item and no more.
        let processed = match AssertUnwindSafe(work).catch_unwind().await {
            Ok(processed) => processed,
            Err(panic) => {
                error!(panic = panic_kind(panic.as_ref()), "processing a work item panicked");
                self.give_back(token, GiveBackReason::Interrupted, Processed::ServiceFailed).await
            }
        };
        self.service.release_orchestration(token).await;
        processed
    }

    pub(crate) async fn put_back(&self, token: LockToken) {
        self.abandon(token, GiveBackReason::Interrupted).await;
        self.service.release_orchestration(token).await;
    }

    /// The next messages of an extended session. `None` when it ends, or there is none: sessions take at most
    /// half of the slots, so that they cannot keep other instances out.
    pub(crate) async fn next_messages(
        &self,
        token: LockToken,
        instance_id: &InstanceId,
        slot: &mut Option<OwnedSemaphorePermit>,
    ) -> Option<Vec<TaskMessage>> {
        *slot = slot.take().or_else(|| self.sessions.clone().try_acquire_owned().ok());
        if slot.is_none() || self.life.stopping.is_cancelled() {
            return None;
        }
        self.service.next_session_messages(token).await.unwrap_or_else(|error| {
            warn!(instance = %instance_id, error = error.chain(), "extended session ended early");
            None
        })
    }

    /// Consumes messages that are stale, without storing anything.
    pub(crate) async fn discard(&self, token: LockToken, instance_id: &InstanceId) -> Next {
        debug!(instance = %instance_id, "stale messages discarded");
        let discarded = self.service.discard_orchestration(token).await;
        self.stored(token, instance_id, "discarded", discarded, true).await
    }

    /// What follows from the answer to a commit, which counts under `outcome` when it is stored.
    pub(crate) async fn stored(
        &self,
        token: LockToken,
        instance_id: &InstanceId,
        outcome: &'static str,
        stored: Result<(), ServiceError>,
        resumable: bool,
    ) -> Next {
        let Err(error) = stored else {
            self.gave_back.metrics.ended(self.kind, outcome);
            return Next::Stored { resumable };
        };
        let processed = if error.kind() == ErrorKind::SessionAborted {
            info!(instance = %instance_id, error = error.chain(), "another worker has the instance");
            Processed::Ok
        } else {
            warn!(instance = %instance_id, error = error.chain(), "cannot store an episode, it will run again");
            Processed::ServiceFailed
        };
        Next::GivenBack(self.give_back(token, reason_of(&error), processed).await)
    }

    pub(crate) async fn give_back(
        &self,
        token: LockToken,
        reason: GiveBackReason,
        processed: Processed,
    ) -> Processed {
        self.gave_back.count(self.kind, &reason);
        self.abandon(token, reason).await;
        processed
    }

    async fn abandon(&self, token: LockToken, reason: GiveBackReason) {
        if let Err(error) = self.service.give_back_orchestration(token, reason).await {
            warn!(error = error.chain(), "cannot give messages back, they return when their lock ends");
        }
    }
}
