//! Deterministic replay: past and new history events to orchestrator actions. No clock, no I/O, no runtime.
//!
//! Orchestrator code is an `async` function of an [`OrchestrationContext`], whose calls become history
//! events. An [`Execution`] runs it over the events of one generation; an [`Episode`] is what a dispatcher
//! does around that: which messages count, which events and messages follow, and when the next generation
//! begins. [`run_episode`] puts both together, with a [`ReplayExecutor`] per instance:
//!
//! ```
//! use std::sync::Arc;
//! use taskhub_core::*;
//! use taskhub_replay::*;
//!
//! # #[derive(Debug)] struct Fixed;
//! # impl Clock for Fixed { fn now(&self) -> Timestamp { Timestamp::from_ticks(637_000_000_000_000_000) } }
//! let greet: Arc<dyn Orchestrator> =
//!     Arc::new(orchestrator(|ctx: OrchestrationContext, name: String| async move {
//!         let greeting: String = ctx.call_activity("SayHello", name).await?;
//!         Ok::<_, OrchestratorError>(greeting)
//!     }));
//! let source = move |name: &str, _version: Option<&str>| {
//!     (name == "Greet").then(|| (greet.clone(), ReplaySettings::default()))
//! };
//! let mut executor = ReplayExecutor::new(Arc::new(source));
//!
//! let instance = OrchestrationInstance::new("greet-1", "e1");
//! let started = ExecutionStarted {
//!     instance: instance.clone(), parent: None, name: "Greet".into(), version: None,
//!     input: Some("\"Tokyo\"".into()), tags: None, correlation: None, parent_trace_context: None,
//!     scheduled_start_time: None, generation: None, generate_new_trace: false,
//! };
//! let start = HistoryEvent::message(Fixed.now(), EventKind::ExecutionStarted(Box::new(started)));
//!
//! let mut state = RuntimeState::default();
//! let messages = vec![TaskMessage::new(start, instance)];
//! let settings = EpisodeSettings::default();
//! let outcome =
//!     run_episode(&mut state, messages, &mut executor, &settings, &Fixed, &SeededIds::new(1))?;
//! let EpisodeOutcome::Commit(commit) = outcome else { unreachable!() };
//! let names: Vec<_> = commit.new_events.iter().map(HistoryEvent::name).collect();
//! assert_eq!(names, ["OrchestratorStarted", "ExecutionStarted", "TaskScheduled", "OrchestratorCompleted"]);
//! # Ok::<(), EpisodeError>(())
//! ```
//!
//! Whatever an orchestrator does besides awaiting the context must be deterministic; see [`Orchestrator`].

mod context;
mod decisions;
mod definition;
mod entity;
mod episode;
mod executor;
mod failure;
mod join;
mod local;
mod machine;
mod matching;
mod payload;
mod reconcile;
mod retry;
mod settings;
mod state;
mod task;
mod versioning;

pub use context::{ActivityOptions, ContinueAsNewOptions, OrchestrationContext, SubOrchestrationOptions};
pub use definition::{
    ActivityDefinition, OrchestrationDefinition, Orchestrator, OrchestratorFuture, orchestrator,
    raw_orchestrator,
};
pub use entity::{EntityLock, EntityOperationDefinition, LockRequest};
pub use episode::{
    Episode, EpisodeError, EpisodeExecutor, EpisodeOutcome, EpisodeSettings, EpisodeStep, Turn, run_episode,
};
pub use executor::{EpisodeResult, Execution};
pub use failure::{
    ApplicationError, EncodedFailure, ErrorMode, FailedTask, NonDeterminism, OrchestratorError,
    SessionAborted, TaskFailure, TaskKind, encode_activity_failure, encode_orchestrator_failure,
};
pub use join::{Either, JoinAll, join, join_all, race, select};
pub use local::{OrchestratorSource, ReplayExecutor};
pub use payload::{
    PayloadError, activity_argument, from_activity_input, from_payload, to_activity_input, to_payload,
};
pub use retry::RetryPolicy;
pub use settings::{
    EventBehaviour, GUID_NAMESPACE_IN_PROCESS, GUID_NAMESPACE_ISOLATED, LongTimers, PreservedEvents,
    ReplaySettings, SubOrchestrationIds,
};
pub use state::{DuplicateStart, RuntimeState};
pub use task::{EventWait, EventWaitWithTimeout, RawTask, Task, Timer};
pub use taskhub_entities::{EntityId, InvalidEntityId};
pub use versioning::{VersionFailure, VersionMatch, VersioningSettings};

/// Not part of the interface: what the macros expand to.
#[doc(hidden)]
pub mod __private {
    pub use tracing;
}
