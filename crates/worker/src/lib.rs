//! A worker of a task hub: runs orchestrations, activities and entities.
//!
//! Register functions at [`Worker::builder`], then [`Worker::run`] receives work from a backend, any
//! [`OrchestrationService`], until it is told to stop:
//!
//! ```
//! use std::sync::Arc;
//! use taskhub_worker::*;
//!
//! async fn greet_all(ctx: OrchestrationContext, names: Vec<String>) -> Result<String, OrchestratorError> {
//!     let calls: Vec<Task<String>> = names.iter().map(|name| ctx.call_activity("Greet", name)).collect();
//!     let mut greetings = Vec::new();
//!     for greeting in join_all(calls).await {
//!         greetings.push(greeting?);
//!     }
//!     Ok(greetings.join(" "))
//! }
//!
//! async fn greet(_: ActivityContext, name: String) -> Result<String, ActivityError> {
//!     Ok(format!("Hello {name}!"))
//! }
//!
//! fn worker(service: Arc<dyn OrchestrationService>) -> Result<Worker, DuplicateRegistration> {
//!     Worker::builder(service).orchestration("GreetAll", greet_all).activity("Greet", greet).build()
//! }
//! ```
//!
//! - Orchestrators are deterministic: they await only what their [`OrchestrationContext`] gives them, and
//!   are replayed from the start in every episode. Activities do the work; they run at least once.
//! - Entities keep a small state and run one operation at a time. One is a function of an [`EntityContext`], or a
//!   type whose methods are its operations: [`TypedEntity`].
//! - [`ActivityDefinition`] and [`OrchestrationDefinition`] name a function and its types once, for
//!   registration and calls.
//! - [`samples`] is a set of small functions, one per feature.
//! - A worker can also run functions of another process, through [`OrchestrationExecutor`], [`ActivityExecutor`]
//!   and [`EntityExecutor`].
//!
//! Whatever a worker cannot handle (a function that is not registered, a backend that fails, a history
//! that cannot be read) is given back and comes again; nothing is lost and no instance is failed for it.

mod activity;
mod backoff;
mod context;
mod dispatcher;
mod entity;
mod executor;
mod fused;
mod give_back;
mod instance;
mod lifecycle;
mod metrics;
mod orchestration;
mod registry;
pub mod samples;
mod settings;
mod worker;

pub use context::ActivityContext;
pub use entity::{
    EntityBatch, EntityContext, EntityExecutor, EntityMethod, OperationError, Operations, Reply,
    StartOptions, TypedEntity,
};
pub use executor::{
    ActivityExecutor, ActivityOutcome, ActivityRequest, ExecutorError, OrchestrationExecutor,
    OrchestrationSession,
};
pub use fused::FusedActivities;
pub use lifecycle::{WorkerHandle, WorkerState};
pub use metrics::{WorkItemLabels, WorkerMetrics};
pub use registry::{ActivityError, DuplicateRegistration};
pub use settings::{ErrorPropagationMode, WorkerSettings};
pub use worker::{Worker, WorkerBuilder};

pub use taskhub_core::{
    Clock, ErrorKind, ExecutionId, FailureDetails, IdSource, InstanceId, OrchestrationInstance,
    OrchestrationService, Readiness, ServiceError, ServiceStatus, Tags, Timestamp,
};
#[doc(no_inline)]
pub use taskhub_entities::{
    BatchResult, EntityAction, EntityId, InvalidEntityId, OperationRequest, ResponseMessage,
};
#[doc(no_inline)]
pub use taskhub_replay::{
    ActivityDefinition, ActivityOptions, ApplicationError, ContinueAsNewOptions, Either, EntityLock,
    EntityOperationDefinition, EpisodeError, EpisodeResult, ErrorMode, EventBehaviour, EventWait,
    LockRequest, LongTimers, OrchestrationContext, OrchestrationDefinition, Orchestrator, OrchestratorError,
    OrchestratorFuture, OrchestratorSource, PayloadError, PreservedEvents, ReplaySettings, RetryPolicy,
    SessionAborted, SubOrchestrationIds, SubOrchestrationOptions, Task, TaskFailure, TaskKind, Timer, Turn,
    VersionFailure, VersionMatch, VersioningSettings, join, join_all, log, orchestrator, race,
    raw_orchestrator, select,
};

/// The README's program compiles.
#[cfg(doctest)]
#[doc = include_str!("../../../README.md")]
struct Readme;

/// The programs of the page about entities compile.
#[cfg(doctest)]
#[doc = include_str!("../../../docs/entities.md")]
struct Entities;
