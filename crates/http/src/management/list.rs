//! `GET /instances`.

use axum::http::StatusCode;
use axum::response::Response;
use serde_json::Value;
use taskhub_client::json::functions::{self, Show};
use taskhub_core::{InstanceFetch, InstanceQuery, OrchestrationStatus};

use super::{Call, reply};

/// Source: Azure/azure-functions-durable-extension, `OrchestrationStatusQueryCondition.PageSize`.
const PAGE_SIZE: i64 = 100;

/// What the table service gives at most.
const MAX_PAGE_SIZE: i64 = 1000;

impl Call {
    /// One page. The token of the next one is in a header, also when it is empty.
    pub(super) async fn list(&self) -> Response {
        let (statuses, page_size) = match (self.listed_statuses(), self.page_size()) {
            (Ok(statuses), Ok(page_size)) => (statuses, page_size),
            (Err(wrong), _) | (_, Err(wrong)) => return reply::argument(&wrong),
        };
        let show = Show { input: self.query.boolean("showInput").unwrap_or(true), history_output: false };
        let query = InstanceQuery {
            created_from: self.query.time("createdTimeFrom"),
            created_to: self.query.time("createdTimeTo"),
            statuses,
            instance_id_prefix: self.query.text("instanceIdPrefix").map(str::to_owned),
            fetch: InstanceFetch { input: show.input, output: true },
            page_size: Some(page_size),
            continuation: self.continuation(),
            ..InstanceQuery::default()
        };
        match self.hub.client.list(&query).await {
            Err(error) => self.failed(&error),
            Ok(page) => {
                let all: Value =
                    page.instances.iter().map(|state| functions::status(state, show, None)).collect();
                self.page(&all, page.continuation.as_deref())
            }
        }
    }

    /// Differs: the reference drops what it does not know, and takes no filter when nothing is left.
    fn listed_statuses(&self) -> Result<Vec<OrchestrationStatus>, String> {
        let lenient = self.api.options.lenient_statuses;
        let statuses = self.query.statuses("runtimeStatus", !lenient);
        match statuses.unknown.first().filter(|_| !lenient) {
            None => Ok(statuses.known),
            Some(unknown) => Err(unknown_status(unknown)),
        }
    }

    pub(super) fn page_size(&self) -> Result<u32, String> {
        match self.query.number("top").unwrap_or(PAGE_SIZE) {
            top @ 1.. => Ok(top.min(MAX_PAGE_SIZE) as u32),
            _ => Err("The parameter 'top' must be greater than zero.".to_owned()),
        }
    }

    /// The token of the request, if it is not empty.
    pub(super) fn continuation(&self) -> Option<String> {
        let token = self.headers.get(reply::CONTINUATION)?.to_str().ok()?.trim();
        (!token.is_empty()).then(|| token.to_owned())
    }

    pub(super) fn page(&self, body: &Value, continuation: Option<&str>) -> Response {
        reply::with_header(
            reply::json(StatusCode::OK, body),
            reply::CONTINUATION,
            continuation.unwrap_or_default(),
        )
    }
}

pub(super) fn unknown_status(name: &str) -> String {
    let names = OrchestrationStatus::ALL.map(OrchestrationStatus::name).join(", ");
    format!("'{name}' is not a runtime status. The statuses are {names}.")
}
