//! HTTP endpoints of a process that works on a task hub.
//!
//! [`management::router`] is the management API of Durable Functions: start, query, signal and purge
//! instances.
//!
//! [`health`] is a router with the three endpoints that whoever runs a worker asks: does the process live,
//! does it get work, what has it counted. It has no main and can be mounted in any `axum` application;
//! [`Server`] runs a router beside the worker, [`serve`] on a socket of yours. [`probe`] is the other side:
//! it asks one of them, for images without a shell or `curl`.
//!
//! ```no_run
//! use taskhub_http::{Health, Server, health};
//! use taskhub_worker::Worker;
//! use tokio_util::sync::CancellationToken;
//!
//! async fn run(worker: Worker) -> Result<(), Box<dyn std::error::Error>> {
//!     let router = health(Health::of(worker.handle()));
//!     let server = Server::start("0.0.0.0:8080".parse()?, router).await?;
//!     worker.run(CancellationToken::new()).await?;
//!     // Only now: probes see that the worker stops.
//!     Ok(server.stop().await?)
//! }
//! ```

mod health;
pub mod management;
mod probe;
mod serve;
mod watched;

pub use health::{Health, METRICS_CONTENT_TYPE, health};
pub use probe::{ProbeError, fetch, livez_at, probe};
pub use serve::{ServeError, ServeSettings, Server, listen, serve, serve_with};

pub use axum;
pub use prometheus_client;
