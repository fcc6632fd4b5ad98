//! An API on the fake backend, and what it answers.

use std::sync::Arc;

use serde_json::Value;
use taskhub_client::TaskHubClient;
use taskhub_client::fake::{FakeService, client};
use taskhub_core::OrchestrationStatus;
use taskhub_http::axum::Router;
use taskhub_http::axum::body::{Body, to_bytes};
use taskhub_http::axum::http::{HeaderMap, Request, StatusCode, header};
use taskhub_http::management::{Hubs, Options, router};
use tower::ServiceExt;

pub(crate) const BASE: &str = "/runtime/webhooks/durabletask";

/// An API and its backend.
pub(crate) struct Api {
    pub(crate) router: Router,
    pub(crate) fake: Arc<FakeService>,
}

/// A whole answer.
#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) code: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: String,
}

impl Api {
    pub(crate) fn new(fake: FakeService, options: Options) -> Self {
        Self::of_hubs(fake, options, |hubs| hubs)
    }

    pub(crate) fn of_hubs(fake: FakeService, options: Options, with: impl FnOnce(Hubs) -> Hubs) -> Self {
        let (client, fake) = client(fake);
        Self { router: router(with(Hubs::new("TestHub", client)), options), fake }
    }

    /// With an instance `x` in this status, or without any.
    pub(crate) fn with(status: Option<OrchestrationStatus>) -> Self {
        let fake = FakeService::default();
        Self::new(
            status.into_iter().fold(fake, |fake, status| fake.with_state("x", status)),
            Options::default(),
        )
    }

    /// On a hub in storage.
    pub(crate) fn on(client: TaskHubClient, options: Options) -> Self {
        let router = router(Hubs::new("TestHub", client), options);
        Self { router, fake: Arc::default() }
    }

    pub(crate) async fn raw(&self, request: Request<Body>) -> Reply {
        send(&self.router, request).await
    }

    /// Sends `METHOD path` to the public base, with a JSON body if there is one.
    pub(crate) async fn send(&self, line: &str, body: Option<&str>) -> Reply {
        let (method, path) = line.split_once(' ').expect("a method and a path");
        self.raw(request(method, &format!("{BASE}{path}"), body)).await
    }
}

pub(crate) async fn send(router: &Router, request: Request<Body>) -> Reply {
    let response = router.clone().oneshot(request).await.expect("routers do not fail");
    let (parts, body) = response.into_parts();
    let bytes = to_bytes(body, usize::MAX).await.expect("the body is in memory");
    let body = String::from_utf8(bytes.to_vec()).expect("bodies are text");
    Reply { code: parts.status, headers: parts.headers, body }
}

pub(crate) fn request(method: &str, path: &str, body: Option<&str>) -> Request<Body> {
    let request = Request::builder().method(method).uri(path).header(header::HOST, "localhost:7071");
    match body {
        Some(body) => {
            request.header(header::CONTENT_TYPE, "application/json").body(Body::from(body.to_owned()))
        }
        None => request.body(Body::empty()),
    }
    .expect("a request")
}

impl Reply {
    pub(crate) fn json(&self) -> Value {
        assert_eq!(self.header("content-type"), Some("application/json; charset=utf-8"), "{self:?}");
        serde_json::from_str(&self.body).expect("JSON")
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(|value| value.to_str().expect("visible"))
    }

    #[track_caller]
    pub(crate) fn has_no_body(&self) {
        assert_eq!((self.body.as_str(), self.header("content-type")), ("", None), "{self:?}");
    }
}
