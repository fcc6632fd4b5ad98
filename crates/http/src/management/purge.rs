//! `DELETE /instances/{id}` and `DELETE /instances`.

use axum::http::StatusCode;
use axum::response::Response;
use serde_json::json;
use taskhub_client::{ClientError, PurgeFilter, TaskHubClient};
use taskhub_core::{InstanceFetch, InstanceId, InstanceQuery};

use super::list::unknown_status;
use super::{Call, reply, undisturbed};

impl Call {
    /// Differs: the reference (2.x) purges an instance in any status, which leaves its messages and its worker
    /// behind; here it takes `force=true`, or the option. Entities never finish, and may always be purged.
    pub(super) async fn purge(self, instance_id: InstanceId) -> Response {
        let client = self.hub.client.clone().with_status_checks(!self.may_purge_unfinished());
        match undisturbed(async move { client.purge(&instance_id).await }).await {
            Err(ClientError::WrongStatus { status, .. }) => refuse_unfinished(status.name()),
            Err(ClientError::UnknownStatus { .. }) => refuse_unfinished("Unknown"),
            Err(error) => self.failed(&error),
            Ok(purged) if purged.instances == 0 => reply::empty(StatusCode::NOT_FOUND),
            Ok(purged) => reply::json(StatusCode::OK, &json!({ "instancesDeleted": purged.instances })),
        }
    }

    fn may_purge_unfinished(&self) -> bool {
        self.api.options.purges_any_status || self.query.boolean("force").unwrap_or(false)
    }

    /// Differs: the reference leaves out statuses that are not final and takes an empty list for any status, so
    /// that it deletes everything in the range, running instances and entities too. Here `force=true` purges any
    /// status, or the unfinished ones that are named, and `includeEntities=true` entities.
    pub(super) async fn purge_matching(self) -> Response {
        let Some(from) = self.query.time("createdTimeFrom") else {
            return reply::json(
                StatusCode::BAD_REQUEST,
                &json!("Please provide value for 'createdTimeFrom' parameter."),
            );
        };
        let lenient = self.api.options.lenient_statuses;
        let to = match self.query.time("createdTimeTo") {
            // Differs: the reference takes what it cannot read for absent, and then purges up to now.
            None if !lenient && self.query.filled("createdTimeTo").is_some() => {
                return reply::argument("The parameter 'createdTimeTo' is not a date and time.");
            }
            to => to.unwrap_or_else(|| self.hub.client.now()),
        };
        let mut statuses = self.query.statuses("runtimeStatus", !lenient);
        if let Some(unknown) = statuses.unknown.first().filter(|_| !lenient) {
            return reply::argument(&unknown_status(unknown));
        }
        let include_entities =
            self.api.options.purges_any_status || self.query.boolean("includeEntities").unwrap_or(false);
        if self.may_purge_unfinished() {
            let query = InstanceQuery {
                created_from: Some(from),
                created_to: Some(to),
                statuses: statuses.known,
                exclude_entities: !include_entities,
                fetch: InstanceFetch::NONE,
                page_size: Some(100),
                ..InstanceQuery::default()
            };
            let client = self.hub.client.clone();
            let removed = async move { purge_listed(&client, query, include_entities).await };
            return self.purged(undisturbed(removed).await);
        }
        let unfinished = statuses.known.iter().find(|status| !status.is_terminal()).copied();
        if let Some(status) = unfinished.filter(|_| !lenient) {
            return reply::message(
                StatusCode::BAD_REQUEST,
                &format!("Only finished orchestrations can be purged, not those in the {status} state."),
            );
        }
        statuses.known.retain(|status| status.is_terminal());
        let filter = PurgeFilter {
            created_from: Some(from),
            created_to: Some(to),
            statuses: statuses.known,
            include_entities,
            ..PurgeFilter::default()
        };
        let client = self.hub.client.clone();
        let removed = async move { Ok(client.purge_matching(&filter).await?.removed.instances) };
        self.purged(undisturbed(removed).await)
    }

    fn purged(&self, removed: Result<u64, ClientError>) -> Response {
        match removed {
            Err(error) => self.failed(&error),
            Ok(0) => reply::empty(StatusCode::NOT_FOUND),
            Ok(removed) => reply::json(StatusCode::OK, &json!({ "instancesDeleted": removed })),
        }
    }
}

fn refuse_unfinished(status: &str) -> Response {
    reply::message(
        StatusCode::BAD_REQUEST,
        &format!(
            "Only finished orchestrations can be purged, and this one is in the {status} state. \
             Terminate it first, or add 'force=true'."
        ),
    )
}

/// Purges what the query gives, whatever its status. How many were removed.
async fn purge_listed(
    client: &TaskHubClient,
    query: InstanceQuery,
    include_entities: bool,
) -> Result<u64, ClientError> {
    let (mut pages, mut removed) = (client.pages(query), 0);
    while let Some(page) = pages.next().await? {
        let ids = page.instances.into_iter().map(|state| state.instance.instance_id);
        let ids = ids.filter(|id| include_entities || !id.is_entity()).collect();
        removed += client.purge_all(ids).await?.removed.instances;
    }
    Ok(removed)
}
