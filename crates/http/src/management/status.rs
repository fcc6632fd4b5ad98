//! `GET /instances/{id}`.

use axum::http::{StatusCode, header};
use axum::response::Response;
use taskhub_client::ClientError;
use taskhub_client::json::functions::{self, Show};
use taskhub_core::{HistoryEvent, InstanceFetch, InstanceId, OrchestrationState, OrchestrationStatus};

use super::{Call, reply};

impl Call {
    pub(super) async fn status(&self, instance_id: &InstanceId) -> Response {
        let as_500 = self.query.boolean("returnInternalServerErrorOnFailure").unwrap_or(false);
        self.status_with(instance_id, as_500).await
    }

    /// The status as the query wants it; a failure is a 500 if asked for.
    pub(super) async fn status_with(&self, instance_id: &InstanceId, failure_as_500: bool) -> Response {
        use OrchestrationStatus::*;
        let show = Show {
            input: self.query.boolean("showInput").unwrap_or(true),
            history_output: self.query.boolean("showHistoryOutput").unwrap_or(false),
        };
        let fetch = InstanceFetch { input: show.input, output: true };
        let state = match self.hub.client.state(instance_id, fetch).await {
            Ok(Some(state)) => state,
            Ok(None) => return reply::empty(StatusCode::NOT_FOUND),
            Err(error) => return self.failed(&error),
        };
        let history = match self.shown_history(&state).await {
            Ok(history) => history,
            Err(error) => return self.failed(&error),
        };
        let code = match state.status {
            Some(Pending | Running | ContinuedAsNew | Suspended) => StatusCode::ACCEPTED,
            Some(Failed) if !failure_as_500 => StatusCode::OK,
            Some(Completed | Terminated | Canceled) => StatusCode::OK,
            Some(Failed) | None => StatusCode::INTERNAL_SERVER_ERROR,
        };
        let response = reply::json(code, &functions::status(&state, show, history.as_deref()));
        if code != StatusCode::ACCEPTED {
            return response;
        }
        let response = reply::with_header(response, header::LOCATION, &self.origin.request);
        reply::with_header(response, header::RETRY_AFTER, "5")
    }
    /// The history if the request wants it. An instance that has not run has none.
    async fn shown_history(
        &self,
        state: &OrchestrationState,
    ) -> Result<Option<Vec<HistoryEvent>>, ClientError> {
        let wanted = self.query.boolean("showHistory").unwrap_or(false);
        if !wanted || state.status == Some(OrchestrationStatus::Pending) {
            return Ok(None);
        }
        self.hub.client.history(&state.instance.instance_id).await.map(Some)
    }
}
