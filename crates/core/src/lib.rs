//! The vocabulary of a Durable Task hub.
//!
//! What happened ([`HistoryEvent`]), what travels on the queues ([`TaskMessage`]), what an orchestrator
//! asks for ([`OrchestratorAction`]), what a client sees ([`OrchestrationState`]), and the two traits
//! through which workers and clients see a backend ([`OrchestrationService`],
//! [`OrchestrationServiceClient`]). Names are those of the Durable Task Framework (DTFx).
//!
//! Nothing here does I/O, reads a clock or knows a wire format: the types derive no serde, so that a
//! quirk of one wire form cannot leak into another. Time and ids come from [`Clock`] and [`IdSource`].
//!
//! ```
//! use taskhub_core::{EventKind, HistoryEvent, Timestamp};
//!
//! let at = Timestamp::parse("2026-01-15T09:30:00.1234567Z")?;
//! let event = HistoryEvent::message(at, EventKind::TimerFired { timer_id: 1, fire_at: at });
//! assert_eq!(event.name(), "TimerFired");
//! # Ok::<(), taskhub_core::ParseTimestampError>(())
//! ```

mod action;
mod environment;
mod error;
mod event;
mod failure;
mod ids;
mod instance;
mod message;
mod purge;
mod query;
mod readiness;
mod rewind;
mod service;
mod timestamp;

pub use action::{ActionKind, CompletionAction, OrchestratorAction};
pub use environment::{Clock, IdSource, RandomIds, SeededIds, SystemClock, execution_id_from};
pub use error::{ErrorKind, ServiceError};
pub use event::{EventKind, ExecutionCompleted, ExecutionStarted, HistoryEvent, SPLIT_TIMER_ID};
pub use failure::FailureDetails;
pub use ids::{ExecutionId, InstanceId, InvalidTaskHubName, PartitionId, TaskHubName, WorkerId};
pub use instance::{
    FIRE_AND_FORGET_TAG, OrchestrationInstance, OrchestrationStatus, ParentInstance, Tags, TraceContext,
    UnknownStatus,
};
pub use message::TaskMessage;
pub use purge::{PurgeGate, PurgeMany, PurgeResult, PurgedInstance};
pub use query::{InstanceFetch, InstancePage, InstanceQuery, OrchestrationState, StartOutcome};
pub use readiness::{Readiness, ServiceStatus};
pub use rewind::{RewindOutcome, RewindRequest, Rewound};
pub use service::{
    ActivityWorkItem, EpisodeCommit, GiveBackReason, LockToken, OrchestrationService,
    OrchestrationServiceClient, OrchestrationWorkItem, StartRequest, UnreadableMessage,
};
pub use timestamp::{ParseTimestampError, Timestamp};
