//! The HTTP management API of Durable Functions: start, query, signal and purge instances.
//!
//! [`router`] serves it for the hubs of [`Hubs`] as [`Options`] say. Routes, codes, headers and JSON are those
//! of the Functions host, so that its SDKs and the addresses it hands out work unchanged; what differs on
//! purpose is said at [`Options`] and carries a comment `Differs:`.
//!
//! ```
//! use taskhub_http::axum::Router;
//! use taskhub_http::management::{ApiKey, Hubs, Options, router};
//! use taskhub_client::TaskHubClient;
//!
//! fn application(client: TaskHubClient, key: ApiKey) -> Router {
//!     let options = Options { key: Some(key), ..Options::default() };
//!     // It answers to what the routes of the application do not.
//!     Router::new().fallback_service(router(Hubs::new("MyHub", client), options))
//! }
//! ```

mod body;
mod entities;
mod hubs;
mod instances;
mod links;
mod list;
mod openapi;
mod options;
mod purge;
mod query;
mod reply;
mod route;
mod start;
mod status;
mod wait;

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::Request;
use axum::http::{HeaderMap, Method, StatusCode};
use axum::response::Response;
use hubs::Hub;
pub use hubs::{HubResolver, Hubs, UnknownHub};
use links::Origin;
pub use options::{ApiKey, Conflicts, InvalidKey, Options, PUBLIC_BASE, RPC_BASE};
use query::Query;
use route::{NoRoute, Route, SampleRoute, Verb, below};
use taskhub_client::ClientError;
use wait::Wait;

/// The management API. It answers every path: with 404 and no body what it does not know, so that an
/// application mounts it as its fallback (`Router::fallback_service`), or merges it.
pub fn router(hubs: impl Into<Arc<Hubs>>, mut options: Options) -> Router {
    options.base_path.truncate(options.base_path.trim_end_matches('/').len());
    if !options.base_path.is_empty() && !options.base_path.starts_with('/') {
        options.base_path.insert(0, '/');
    }
    let api = Arc::new(Api { hubs: hubs.into(), options });
    Router::new().fallback(move |request: Request| {
        let api = api.clone();
        async move { api.answer(request).await }
    })
}

struct Api {
    hubs: Arc<Hubs>,
    options: Options,
}

/// A request on its way through a handler.
struct Call {
    api: Arc<Api>,
    hub: Hub,
    query: Query,
    origin: Origin,
    method: Method,
    headers: HeaderMap,
}

/// What a handler has decided.
enum Next {
    Answer(Response),
    /// Wait for an instance, then answer.
    Wait(Box<Wait>),
}

impl From<Response> for Next {
    fn from(response: Response) -> Self {
        Self::Answer(response)
    }
}

/// What a path means here.
enum Target {
    Endpoint(Route),
    Sample(SampleRoute),
}

impl Api {
    async fn answer(self: Arc<Self>, request: Request) -> Response {
        let path = request.uri().path();
        if path.eq_ignore_ascii_case(openapi::PATH) && request.method() == Method::GET {
            return openapi::answer(&self.options);
        }
        let Some(target) = self.target(path) else { return reply::empty(StatusCode::NOT_FOUND) };
        let began = tokio::time::Instant::now();
        let (method, endpoint) = (request.method().clone(), target.as_ref().map_or("unknown", Target::name));
        let response = self.answer_at(target, request).await;
        // Neither the query, which may hold the key, nor ids.
        tracing::debug!(
            %method,
            endpoint,
            status = response.status().as_u16(),
            millis = began.elapsed().as_millis() as u64,
            "answered"
        );
        response
    }

    /// `None` for paths that are not this API's.
    fn target(&self, path: &str) -> Option<Result<Target, NoRoute>> {
        let base = Some(self.options.base_path.as_str());
        let bases = [base, self.options.rpc_base.then_some(RPC_BASE)];
        let found = bases.into_iter().flatten().find_map(|base| below(path, base)).map(Route::parse);
        match found {
            Some(Err(NoRoute::Unknown)) | None if self.options.sample_functions => {
                match SampleRoute::parse(path) {
                    Err(NoRoute::Unknown) => found.map(|found| found.map(Target::Endpoint)),
                    sample => Some(sample.map(Target::Sample)),
                }
            }
            _ => found.map(|found| found.map(Target::Endpoint)),
        }
    }

    async fn answer_at(self: Arc<Self>, target: Result<Target, NoRoute>, request: Request) -> Response {
        let query = Query::parse(request.uri().query());
        if self.options.local_only && !links::is_local(&request) {
            return reply::empty(StatusCode::FORBIDDEN);
        }
        // Whoever has no key does not learn which endpoints there are.
        if !self.admits(&request, &query) {
            return reply::empty(StatusCode::UNAUTHORIZED);
        }
        let target = match target {
            Ok(target) if target.allows(request.method()) => target,
            Ok(_) | Err(NoRoute::Unknown) => return reply::empty(StatusCode::NOT_FOUND),
            Err(NoRoute::NotText) => return reply::argument("The path is not UTF-8."),
        };
        let hub = match self.hubs.of(&query) {
            Ok(hub) => hub,
            Err(unknown) => return reply::argument(&unknown.to_string()),
        };
        let origin = Origin::of(&self.options, &request);
        let (parts, body) = request.into_parts();
        let call =
            Call { hub, query, origin, method: parts.method, headers: parts.headers, api: self.clone() };
        let limit = target.limit(&call);
        let next = match tokio::time::timeout(limit, call.handle(target, body)).await {
            Ok(next) => next,
            Err(_) => return reply::timed_out(),
        };
        match next {
            Next::Answer(response) => response,
            Next::Wait(wait) => wait.answer(&self.options).await,
        }
    }

    /// Whether the request carries the key, if there is one.
    fn admits(&self, request: &Request, query: &Query) -> bool {
        let Some(key) = &self.options.key else { return true };
        let header = request.headers().get("x-functions-key").and_then(|value| value.to_str().ok());
        [query.text("code"), header].into_iter().flatten().any(|given| key.is(given))
    }
}

/// Longer than any purge; there is no end of time to give to a timer.
const NO_LIMIT: Duration = Duration::from_secs(86_400);

impl Target {
    fn name(&self) -> &'static str {
        match self {
            Self::Endpoint(route) => route.name(),
            Self::Sample(_) => "sample",
        }
    }

    fn allows(&self, method: &Method) -> bool {
        match self {
            Self::Endpoint(route) => route.allows(method),
            Self::Sample(_) => method == Method::POST,
        }
    }

    fn limit(&self, call: &Call) -> Duration {
        match self {
            Self::Endpoint(Route::Instances) if call.method == Method::DELETE => NO_LIMIT,
            _ => call.api.options.request_timeout,
        }
    }
}

impl Call {
    async fn handle(self, target: Target, body: Body) -> Next {
        let route = match target {
            Target::Endpoint(route) => route,
            Target::Sample(sample) => return self.start_sample(sample, body).await,
        };
        let deletes = self.method == Method::DELETE;
        match route {
            Route::Start { function, instance_id } => self.start(function, instance_id, body).await,
            Route::Instances if deletes => self.purge_matching().await.into(),
            Route::Instances => self.list().await.into(),
            Route::Instance { instance_id } if deletes => self.purge(instance_id.into()).await.into(),
            Route::Instance { instance_id } => self.status(&instance_id.into()).await.into(),
            Route::RaiseEvent { instance_id, event } => {
                self.raise_event(instance_id.into(), event, body).await.into()
            }
            Route::Control { instance_id, verb: Verb::Restart } => self.restart(instance_id.into()).await,
            Route::Entity { name, key } => self.entity(name, key, body).await.into(),
            Route::MakePrimary => self.make_primary().await.into(),
            Route::Control { instance_id, verb } => self.control(instance_id.into(), verb).await.into(),
        }
    }

    /// What a failed operation of the client is answered with.
    fn failed(&self, error: &ClientError) -> Response {
        reply::client_error(self.api.options.conflicts, error)
    }
}

/// Runs an operation to its end even when whoever asked for it goes away: a start has a message and a row.
async fn undisturbed<T: Send + 'static>(operation: impl Future<Output = T> + Send + 'static) -> T {
    match tokio::spawn(operation).await {
        Ok(result) => result,
        Err(ended) => match ended.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            // Only the end of the runtime cancels it, and this task with it.
            Err(_) => std::future::pending().await,
        },
    }
}
