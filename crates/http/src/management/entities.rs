//! `/entities[/{name}[/{key}]]`.

use axum::body::Body;
use axum::http::{Method, StatusCode};
use axum::response::Response;
use serde_json::{Value, json};
use taskhub_client::json::functions::payload;
use taskhub_client::{EntityId, EntityQuery, EntityState};

use super::{Call, body, reply, undisturbed};

/// Stands for the empty key in addresses of states.
/// Source: Azure/azure-functions-durable-extension, `HttpApiHandler.EmptyEntityKeySymbol`.
const EMPTY_KEY: &str = "$";

impl Call {
    pub(super) async fn entity(self, name: Option<String>, key: Option<String>, body: Body) -> Response {
        match (&self.method, name, key) {
            (&Method::GET, Some(name), Some(key)) => self.read_entity(&name, &key).await,
            (&Method::GET, name, _) => self.list_entities(name).await,
            (_, name, key) => {
                self.signal_entity(&name.unwrap_or_default(), key.unwrap_or_default(), body).await
            }
        }
    }

    async fn read_entity(&self, name: &str, key: &str) -> Response {
        let key = if key == EMPTY_KEY { "" } else { key };
        let id = match EntityId::new(name, key) {
            Ok(id) => id,
            Err(error) => return self.failed(&error.into()),
        };
        match self.hub.client.read_entity(&id).await {
            Ok(Some(entity)) => reply::json(StatusCode::OK, &payload(entity.state.as_deref())),
            Ok(None) => reply::empty(StatusCode::NOT_FOUND),
            Err(error) => self.failed(&error),
        }
    }

    async fn list_entities(&self, name: Option<String>) -> Response {
        let page_size = match self.page_size() {
            Ok(page_size) => page_size,
            Err(wrong) => return reply::argument(&wrong),
        };
        let query = EntityQuery {
            name,
            last_operation_from: self.query.time("lastOperationTimeFrom"),
            last_operation_to: self.query.time("lastOperationTimeTo"),
            page_size: Some(page_size),
            continuation: self.continuation(),
            fetch_state: self.query.boolean("fetchState").unwrap_or(false),
            include_deleted: false,
        };
        match self.hub.client.list_entities(&query).await {
            Ok(page) => {
                let all: Value = page.entities.iter().map(describe).collect();
                self.page(&all, page.continuation.as_deref())
            }
            Err(error) => self.failed(&error),
        }
    }

    /// `POST` sends the operation that the query names, `DELETE` the operation `delete`. A body becomes the
    /// operation's input: as JSON if it says that it is JSON, as a string otherwise.
    async fn signal_entity(self, name: &str, key: String, body: Body) -> Response {
        let id = match EntityId::new(name, key) {
            Ok(id) => id,
            Err(error) => return self.failed(&error.into()),
        };
        let operation = match self.method {
            Method::DELETE => "delete".to_owned(),
            _ => self.query.text("op").unwrap_or_default().to_owned(),
        };
        let bytes = match body::read(&self.headers, body, &self.api.options).await {
            Ok(bytes) => bytes,
            Err(answer) => return answer,
        };
        let input = if bytes.is_empty() {
            None
        } else if reply::is_json(&self.headers) {
            match body::json(&bytes) {
                Ok(json) => Some(json),
                Err(reason) => {
                    let message = format!("Could not parse JSON content: {reason}");
                    return reply::message(StatusCode::BAD_REQUEST, &message);
                }
            }
        } else {
            Some(Value::from(String::from_utf8_lossy(&bytes)).to_string())
        };
        let client = self.hub.client.clone();
        let sent = async move { client.signal_entity(&id, &operation, input, None).await };
        match undisturbed(sent).await {
            Ok(()) => reply::empty(StatusCode::ACCEPTED),
            Err(error) => self.failed(&error),
        }
    }
}

/// Source: Azure/azure-functions-durable-extension, `DurableEntityStatus`.
fn describe(entity: &EntityState) -> Value {
    json!({
        "entityId": { "name": entity.id.name(), "key": entity.id.key() },
        "lastOperationTime": entity.last_operation_at.to_iso(),
        "state": entity.state.as_deref().map_or(Value::Null, |state| payload(Some(state))),
    })
}
