//! `POST /instances/{id}/…`: raise an event, terminate, suspend, resume, rewind.

use axum::body::Body;
use axum::http::StatusCode;
use axum::response::Response;
use taskhub_client::{ManagementPayload, ManagementUrls, Rewind};
use taskhub_core::{ErrorKind, InstanceFetch, InstanceId, OrchestrationStatus};

use super::route::Verb;
use super::{ApiKey, Call, body, reply, undisturbed};

impl Call {
    /// The addresses of an instance of the request's hub.
    pub(super) fn addresses(&self, instance_id: &InstanceId) -> ManagementPayload {
        ManagementUrls::new(&self.origin.base, &self.hub.task_hub, &self.hub.connection)
            .with_code(self.api.options.key.as_ref().map(ApiKey::expose))
            .instance(instance_id, false)
    }

    /// The status of an instance that is there; the error is the answer.
    pub(super) async fn live_status(
        &self,
        instance_id: &InstanceId,
    ) -> Result<Option<OrchestrationStatus>, Response> {
        match self.hub.client.state(instance_id, InstanceFetch::NONE).await {
            Ok(Some(state)) => Ok(state.status),
            Ok(None) => Err(reply::empty(StatusCode::NOT_FOUND)),
            Err(error) => Err(self.failed(&error)),
        }
    }

    /// What is wrong with the event is said in the order of the reference: the instance comes first.
    pub(super) async fn raise_event(self, instance_id: InstanceId, event: String, body: Body) -> Response {
        match self.live_status(&instance_id).await {
            Err(answer) => return answer,
            Ok(Some(status)) if status.is_terminal() => return reply::empty(StatusCode::GONE),
            Ok(_) => {}
        }
        if !reply::is_json(&self.headers) {
            return reply::message(
                StatusCode::BAD_REQUEST,
                "Only application/json request content is supported",
            );
        }
        let bytes = match body::read(&self.headers, body, &self.api.options).await {
            Ok(bytes) => bytes,
            Err(answer) => return answer,
        };
        let data = match body::json(&bytes) {
            Ok(data) => data,
            Err(reason) => return reply::invalid_json(&reason),
        };
        let client = self.hub.client.clone();
        let sent = async move { client.raise_raw_event(&instance_id, &event, Some(data)).await };
        match undisturbed(sent).await {
            Ok(()) => reply::empty(StatusCode::ACCEPTED),
            Err(error) => self.failed(&error),
        }
    }

    /// `/makeprimary`, by any method: the hub is to be processed by this application.
    pub(super) async fn make_primary(self) -> Response {
        let client = self.hub.client.clone();
        match undisturbed(async move { client.make_primary().await }).await {
            Ok(()) => reply::empty(StatusCode::OK),
            // The hub has no app lease.
            Err(error) if error.kind() == ErrorKind::Invalid => reply::impossible(&error.to_string()),
            Err(error) => self.failed(&error),
        }
    }

    /// All of them look at the status first, and only queue a message. A rewind also takes
    /// `allowTimers=true`.
    pub(super) async fn control(self, instance_id: InstanceId, verb: Verb) -> Response {
        use OrchestrationStatus::{ContinuedAsNew, Failed, Pending, Running, Suspended};
        let status = match self.live_status(&instance_id).await {
            Ok(status) => status,
            Err(answer) => return answer,
        };
        let allowed = match (verb, status) {
            // A rewind that was cut off leaves `Pending` behind; the client looks whether it is that.
            (Verb::Rewind, Some(Failed | Pending)) => true,
            (_, Some(status)) if status.is_terminal() => return reply::empty(StatusCode::GONE),
            (Verb::Suspend, Some(status)) => matches!(status, Running | Pending | ContinuedAsNew),
            (Verb::Resume, Some(status)) => status == Suspended,
            (Verb::Rewind, _) => false,
            // A status that this program does not know: whoever wrote it will know what to do.
            _ => true,
        };
        if !allowed {
            let status = status.map_or("Unknown", OrchestrationStatus::name);
            let text = match verb {
                Verb::Rewind => {
                    format!(
                        "The rewind operation is only supported on failed orchestration instances, not on one in the {status} state."
                    )
                }
                _ => format!(
                    "Cannot {} the orchestration instance because it is in the {status} state.",
                    verb.name()
                ),
            };
            return reply::wrong_status(self.api.options.conflicts, &text);
        }
        let (client, id) = (self.hub.client.clone(), instance_id);
        let reason = self.query.text("reason").map(str::to_owned);
        let allow_timers = self.query.boolean("allowTimers").unwrap_or(false);
        let sent = async move {
            match verb {
                Verb::Suspend => client.suspend(&id, reason.as_deref()).await,
                Verb::Resume => client.resume(&id, reason.as_deref()).await,
                Verb::Rewind => {
                    let mut rewind = reason.into_iter().fold(Rewind::new(), Rewind::reason);
                    if allow_timers {
                        rewind = rewind.allow_timers();
                    }
                    client.rewind(&id, rewind).await.map(drop)
                }
                _ => client.terminate(&id, reason.as_deref()).await,
            }
        };
        match undisturbed(sent).await {
            Ok(()) => reply::empty(StatusCode::ACCEPTED),
            Err(error) => self.failed(&error),
        }
    }
}
