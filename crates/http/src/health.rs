//! `/livez`, `/readyz`, `/metrics`.

use std::fmt;
use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use prometheus_client::encoding::text::encode;
use prometheus_client::registry::Registry;
use serde_json::{Value, json};
use taskhub_worker::{Readiness, ServiceStatus, WorkerHandle};

/// Content type of `/metrics`: OpenMetrics 1.0, which Prometheus reads.
pub const METRICS_CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// What the endpoints tell of: one worker, and the metrics of its process. Cheap to clone.
#[derive(Clone)]
pub struct Health {
    worker: Option<WorkerHandle>,
    metrics: Option<Arc<Registry>>,
}

impl Health {
    /// Tells of this worker; without metrics.
    pub fn of(worker: WorkerHandle) -> Self {
        Self { worker: Some(worker), metrics: None }
    }

    /// Tells of a process without a worker: it lives and is ready as long as it answers; without metrics.
    pub fn of_server() -> Self {
        Self { worker: None, metrics: None }
    }

    /// Answers `/metrics` with what is registered here.
    #[must_use]
    pub fn with_metrics(mut self, registry: Registry) -> Self {
        self.metrics = Some(Arc::new(registry));
        self
    }
}

impl fmt::Debug for Health {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Health").field("worker", &self.worker).finish_non_exhaustive()
    }
}

/// The endpoints of a worker, all of them `GET`:
///
/// - `/livez`: 200 while the worker runs or stops in order, 503 once its dispatchers have ended. Restart the
///   process then.
/// - `/readyz`: 200 while the worker gets work; otherwise 503, and `status` says why: `starting`,
///   `waiting_for_app_lease`, `storage_unreachable`, `stopping`, `stopped`.
/// - `/metrics`: what the process has counted, as OpenMetrics; 404 without metrics.
///
/// Bodies of the first two are JSON. None holds a payload or a secret; none asks the storage.
pub fn health(health: Health) -> Router {
    Router::new()
        .route("/livez", get(livez))
        .route("/readyz", get(readyz))
        .route("/metrics", get(metrics))
        .with_state(health)
}

async fn livez(State(health): State<Health>) -> Response {
    if health.worker.as_ref().is_none_or(WorkerHandle::is_alive) {
        answer(StatusCode::OK, &json!({ "status": "alive" }))
    } else {
        answer(StatusCode::SERVICE_UNAVAILABLE, &json!({ "status": "stopped" }))
    }
}

async fn readyz(State(health): State<Health>) -> Response {
    let status = health.worker.as_ref().map(WorkerHandle::status).unwrap_or_default();
    let code = match status.readiness {
        Readiness::Ready => StatusCode::OK,
        _ => StatusCode::SERVICE_UNAVAILABLE,
    };
    answer(code, &describe(&status))
}

fn describe(status: &ServiceStatus) -> Value {
    let mut body = json!({
        "status": status.readiness.name(),
        "partitions": status.partitions.iter().map(|partition| partition.0).collect::<Vec<_>>(),
    });
    if let Some(detail) = &status.detail {
        body["detail"] = json!(detail);
    }
    if let Some(age) = status.last_look_age {
        body["lastLookAgeSeconds"] = json!(age.as_secs());
    }
    body
}

async fn metrics(State(health): State<Health>) -> Response {
    let Some(registry) = &health.metrics else { return StatusCode::NOT_FOUND.into_response() };
    let mut text = String::new();
    match encode(&mut text, registry) {
        Ok(()) => ([(header::CONTENT_TYPE, METRICS_CONTENT_TYPE)], text).into_response(),
        Err(error) => {
            tracing::warn!(%error, "cannot write the metrics");
            StatusCode::INTERNAL_SERVER_ERROR.into_response()
        }
    }
}

fn answer(code: StatusCode, body: &Value) -> Response {
    let headers = [(header::CONTENT_TYPE, "application/json"), (header::CACHE_CONTROL, "no-store")];
    (code, headers, format!("{body}\n")).into_response()
}
