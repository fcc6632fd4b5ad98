//! The activity dispatcher: request -> user code -> response.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures::FutureExt;
use taskhub_core::{
    ActivityWorkItem, Clock, EventKind, GiveBackReason, HistoryEvent, LockToken, OrchestrationInstance,
    OrchestrationService, ServiceError, TaskMessage, Timestamp,
};
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, warn};

use crate::dispatcher::{Processed, WorkKind, renewing};
use crate::executor::{ActivityExecutor, ActivityOutcome, ActivityRequest, ExecutorError};
use crate::give_back::{GaveBack, reason_of};
use crate::lifecycle::Lifecycle;
use crate::registry::panic_kind;

pub(crate) const KIND: &str = "activity";

pub(crate) struct ActivityWork {
    pub(crate) service: Arc<dyn OrchestrationService>,
    pub(crate) executor: Arc<dyn ActivityExecutor>,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) life: Lifecycle,
    pub(crate) gave_back: Arc<GaveBack>,
}

#[async_trait]
impl WorkKind for ActivityWork {
    type Item = ActivityWorkItem;

    fn name(&self) -> &'static str {
        KIND
    }

    async fn fetch(&self, timeout: Duration) -> Result<Option<ActivityWorkItem>, ServiceError> {
        self.service.lock_next_activity(timeout).await
    }

    async fn process(&self, item: ActivityWorkItem) -> Processed {
        let token = item.token;
        let work = async {
            match Box::pin(self.run(item)).await {
                Ok(response) => self.complete(token, response).await,
                Err(reason) => {
                    self.gave_back.count(KIND, &reason);
                    self.give_back(token, reason).await;
                    Processed::Ok
                }
            }
        };
        // A defect of the backend costs this work item and no more.
        match AssertUnwindSafe(work).catch_unwind().await {
            Ok(processed) => processed,
            Err(panic) => {
                error!(panic = panic_kind(panic.as_ref()), "processing a work item panicked");
                self.give_back(token, GiveBackReason::Interrupted).await;
                Processed::ServiceFailed
            }
        }
    }

    async fn put_back(&self, item: ActivityWorkItem) {
        self.give_back(item.token, GiveBackReason::Interrupted).await;
    }
}

impl ActivityWork {
    /// The response, or why the request has to go back: it is malformed, the activity is not registered
    /// here, or the worker stops.
    ///
    /// A request that nobody can run comes back for ever, with delays that grow to a limit; the
    /// orchestration is not failed, because a worker that can may appear.
    ///
    /// Differs: DTFx also stops receiving for 10 s after a missing activity. The backend's delay for that
    /// one message is enough, other instances need not wait.
    async fn run(&self, item: ActivityWorkItem) -> Result<TaskMessage, GiveBackReason> {
        let ActivityWorkItem { token, message, mut locked_until, attempt } = item;
        let target = message.target.clone();
        let Some(request) = request(message, attempt, self.life.stopping.child_token()) else {
            error!(instance = %target.instance_id, attempt, "not an activity request, left in the queue");
            return Err(GiveBackReason::Failed { reason: "not an activity request".to_owned() });
        };
        let (name, task_id) = (request.name.clone(), request.task_id);
        debug!(instance = %target.instance_id, activity = name, task_id, attempt, "activity begins");

        let work = AssertUnwindSafe(self.executor.execute(request)).catch_unwind();
        let renew = || self.service.renew_activity(token);
        let result = tokio::select! {
            biased;
            result = renewing(self.clock.as_ref(), &mut locked_until, renew, work) => result,
            () = self.life.give_up.cancelled() => {
                warn!(instance = %target.instance_id, activity = name, task_id, "activity did not end before the shutdown");
                return Err(GiveBackReason::Interrupted);
            }
        };
        match result {
            Err(panic) => {
                let reason = panic_kind(panic.as_ref());
                error!(instance = %target.instance_id, activity = name, task_id, attempt, reason, "activity given back");
                Err(GiveBackReason::Failed { reason })
            }
            Ok(Ok(outcome)) => {
                let answer = answer(self.clock.now(), task_id, outcome, target);
                let instance = &answer.target.instance_id;
                debug!(%instance, activity = name, task_id, result = answer.event.name(), "activity ended");
                Ok(answer)
            }
            Ok(Err(ExecutorError::Missing { name, version })) => {
                if self.gave_back.is_due(KIND, &name, self.clock.now()) {
                    warn!(
                        instance = %target.instance_id, activity = name, version, attempt,
                        "no such activity here, its requests are given back for other workers"
                    );
                }
                Err(GiveBackReason::UnknownFunction { name })
            }
            Ok(Err(error)) => {
                warn!(instance = %target.instance_id, task_id, attempt, %error, "activity given back");
                Err(GiveBackReason::Interrupted)
            }
        }
    }

    async fn complete(&self, token: LockToken, response: TaskMessage) -> Processed {
        let instance = response.target.instance_id.clone();
        let failed = matches!(response.event.kind, EventKind::TaskFailed { .. });
        match self.service.complete_activity(token, response).await {
            Ok(()) => {
                self.gave_back.metrics.ended(KIND, if failed { "failed" } else { "completed" });
                Processed::Ok
            }
            Err(error) => {
                warn!(%instance, error = error.chain(), "cannot send an activity's response, it will run again");
                let reason = reason_of(&error);
                self.gave_back.count(KIND, &reason);
                self.give_back(token, reason).await;
                Processed::ServiceFailed
            }
        }
    }

    async fn give_back(&self, token: LockToken, reason: GiveBackReason) {
        if let Err(error) = self.service.give_back_activity(token, reason).await {
            warn!(error = error.chain(), "cannot give an activity back, it returns when its lock ends");
        }
    }
}

/// What a message asks for; `None` when it is no request.
pub(crate) fn request(
    message: TaskMessage,
    attempt: u32,
    cancellation: CancellationToken,
) -> Option<ActivityRequest> {
    let TaskMessage { event, target, execution_context, .. } = message;
    let EventKind::TaskScheduled { name: Some(name), version, input, parent_trace_context, tags } =
        event.kind
    else {
        return None;
    };
    if target.instance_id.is_empty() {
        return None;
    }
    Some(ActivityRequest {
        instance: target,
        task_id: event.event_id,
        name,
        version,
        input,
        tags,
        orchestration_tags: execution_context,
        trace_context: parent_trace_context,
        attempt,
        cancellation,
    })
}

/// What the orchestration learns.
pub(crate) fn answer(
    now: Timestamp,
    task_scheduled_id: i32,
    outcome: ActivityOutcome,
    target: OrchestrationInstance,
) -> TaskMessage {
    let kind = match outcome {
        ActivityOutcome::Completed(result) => EventKind::TaskCompleted { task_scheduled_id, result },
        ActivityOutcome::Failed { reason, details, failure_details } => {
            EventKind::TaskFailed { task_scheduled_id, reason, details, failure_details }
        }
    };
    TaskMessage::new(HistoryEvent::message(now, kind), target)
}
