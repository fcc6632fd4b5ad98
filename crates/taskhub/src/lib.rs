//! A task hub for programs of your own: workers with your functions, clients that start and ask.
//!
//! [`TaskHub`] opens a hub and gives workers and clients; [`TaskHub::run`] runs a worker as a process that
//! stops in order and answers probes. Everything else is of the packages below, which are re-exported: what
//! orchestrations, activities and entities need, from [`worker`], at the top.
//!
//! ```no_run
//! use taskhub::{ActivityContext, ActivityError, OrchestrationContext, OrchestratorError, TaskHub};
//!
//! async fn greet_twice(ctx: OrchestrationContext, name: String) -> Result<String, OrchestratorError> {
//!     let first: String = ctx.call_activity("Greet", &name).await?;
//!     let second: String = ctx.call_activity("Greet", &name).await?;
//!     Ok(format!("{first} {second}"))
//! }
//!
//! async fn greet(_: ActivityContext, name: String) -> Result<String, ActivityError> {
//!     Ok(format!("Hello {name}!"))
//! }
//!
//! # async fn program() -> Result<(), Box<dyn std::error::Error>> {
//! taskhub::start_logging("info");
//! let hub = TaskHub::from_env()?;
//! let worker = hub.worker().orchestration("GreetTwice", greet_twice).activity("Greet", greet).build()?;
//! hub.run(worker).await?;
//! # Ok(())
//! # }
//! ```
//!
//! `examples/my-worker` is such a program as a package of its own, with a test and an image.

mod hub;
mod logging;
mod run;
mod signals;

pub use hub::{
    CONNECTION_VARIABLE, DEFAULT_HUB, HUB_VARIABLE, OpenError, TaskHub, app_name, unique_worker_id,
};
pub use logging::start_logging;
pub use run::{HEALTH_LISTEN_VARIABLE, RunError, RunOptions, healthcheck, run};
pub use signals::{Signals, on_signals};

pub use taskhub_azure_storage as azure_storage;
pub use taskhub_client as client;
pub use taskhub_core as core;
pub use taskhub_entities as entities;
pub use taskhub_http as http;
pub use taskhub_storage as storage;
pub use taskhub_worker as worker;

#[doc(no_inline)]
pub use taskhub_client::{Start, Started, TaskHubClient, Waited};
#[doc(no_inline)]
pub use taskhub_worker::*;
