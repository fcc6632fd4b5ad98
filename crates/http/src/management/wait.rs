//! Waiting for an instance on behalf of a request.

use std::time::Duration;

use axum::http::StatusCode;
use axum::response::Response;
use taskhub_client::json::functions;
use taskhub_client::{ManagementPayload, PollInterval, Waited};
use taskhub_core::{InstanceId, OrchestrationStatus};

use super::links::check_status;
use super::{Call, Options, reply};

/// A request may not make the storage busier than this.
const MIN_INTERVAL: Duration = Duration::from_millis(100);

/// A started instance, and how long its starter waits for it.
pub(super) struct Wait {
    pub(super) call: Call,
    pub(super) instance_id: InstanceId,
    pub(super) addresses: ManagementPayload,
    pub(super) timeout: Duration,
    pub(super) interval: Duration,
}

impl Wait {
    /// The output if it completes in time, its status if it ends otherwise, the addresses of a check-status
    /// response if it goes on. Ends early when whoever asked goes away, and when the server stops.
    /// Source: Azure/azure-functions-durable-extension,
    /// `HttpApiHandler.WaitForCompletionOrCreateCheckStatusResponseAsync`.
    pub(super) async fn answer(self, options: &Options) -> Response {
        let timeout = self.timeout.min(options.longest_wait);
        let interval = PollInterval::every(self.interval.max(MIN_INTERVAL));
        let waited = tokio::select! {
            waited = self.call.hub.client.wait_polling(&self.instance_id, timeout, interval) => waited,
            () = options.shutdown.cancelled() => return check_status(&self.addresses),
        };
        match waited {
            Err(error) => self.call.failed(&error),
            Ok(Waited::TimedOut(_)) => check_status(&self.addresses),
            Ok(Waited::Finished(state)) if state.status == Some(OrchestrationStatus::Completed) => {
                reply::json(StatusCode::OK, &functions::payload(state.output.as_deref()))
            }
            // The reference reads it again, as its own status request would, but never answers 500 here.
            Ok(Waited::Finished(_)) => self.call.status_with(&self.instance_id, false).await,
        }
    }
}
