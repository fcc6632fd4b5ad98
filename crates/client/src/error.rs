use std::fmt;

use taskhub_core::{ErrorKind, InstanceId, OrchestrationStatus, ServiceError};

/// What a client was asked to do; appears in error texts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
#[allow(missing_docs, reason = "the names say it")]
pub enum Operation {
    Start,
    Query,
    List,
    History,
    RaiseEvent,
    Terminate,
    Suspend,
    Resume,
    Purge,
    Rewind,
    SignalEntity,
    ReadEntity,
    MakePrimary,
    CreateHub,
    DeleteHub,
}

impl Operation {
    /// Whether Durable Functions lets the operation through in this status.
    /// Source: Azure/azure-functions-durable-extension, `DurableClient` (terminate, suspend, resume, raise).
    pub(crate) fn allows(self, status: OrchestrationStatus) -> bool {
        use OrchestrationStatus::*;
        match self {
            Self::RaiseEvent | Self::Terminate => !status.is_terminal(),
            Self::Suspend => matches!(status, Running | Pending | ContinuedAsNew),
            Self::Resume => status == Suspended,
            // Differs: 2.x purges an instance in any state, which leaves its messages and its worker
            // behind. The newest extension refuses, and so does this client.
            Self::Purge => status.is_terminal(),
            Self::Rewind => status == Failed,
            _ => true,
        }
    }
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Start => "start the instance",
            Self::Query => "read the instance",
            Self::List => "list instances",
            Self::History => "read the history",
            Self::RaiseEvent => "raise the event",
            Self::Terminate => "terminate the instance",
            Self::Suspend => "suspend the instance",
            Self::Resume => "resume the instance",
            Self::Purge => "purge the instance",
            Self::Rewind => "rewind the instance",
            Self::SignalEntity => "signal the entity",
            Self::ReadEntity => "read the entity",
            Self::MakePrimary => "make this application the primary one",
            Self::CreateHub => "create the task hub",
            Self::DeleteHub => "delete the task hub",
        })
    }
}

/// Why an operation of a client did not succeed. [`ClientError::kind`] tells what to do.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ClientError {
    /// A required argument is empty or only white space.
    #[error("the {argument} must not be empty")]
    Blank {
        /// Which one.
        argument: &'static str,
    },
    /// The storage service could not store a row under this id.
    #[error("the instance id is too long. length=`{length}` longest=`{longest}`")]
    InstanceIdTooLong {
        /// Length of the escaped id in UTF-16 code units.
        length: usize,
        /// Largest length allowed.
        longest: usize,
    },
    /// Blobs of an instance are named after it, and no blob can have this name.
    #[error("an instance id must not hold control characters, U+FFFE, U+FFFF, or the segments `.` and `..`")]
    InstanceIdCharacters,
    /// Durable Functions refuses these characters in the id of a new instance.
    #[error("an instance id must not hold `/`, `\\`, `#` or `?`")]
    InstanceIdReserved,
    /// A wait that would never look twice.
    #[error("the pause between two looks must not be longer than the timeout")]
    IntervalLongerThanTimeout,
    /// Something that is not an object with a `FunctionName`.
    #[error("not the description of a start: {problem}. number=`{number}`")]
    BadStartObject {
        /// What is wrong.
        problem: &'static str,
        /// Which one of the list, from 1.
        number: usize,
    },
    /// Entities are named `@name@key`.
    #[error("an entity has a name and a key, without control characters or any of `/`, `\\`, `#`, `?`")]
    BadEntityId,
    /// Ids that begin with `@` belong to entities.
    #[error("an instance id must not begin with `@`, this is reserved for entities. instance=`{instance}`")]
    EntityId {
        /// The id.
        instance: InstanceId,
    },
    /// The payload cannot be written as JSON.
    #[error("the {argument} cannot be written as JSON")]
    Payload {
        /// Which one.
        argument: &'static str,
        /// Why.
        source: serde_json::Error,
    },
    /// There is no such instance.
    #[error("no instance with this id was found. instance=`{instance}`")]
    NotFound {
        /// Its id.
        instance: InstanceId,
    },
    /// An instance with this id exists in a status that the caller wanted to keep.
    #[error("an instance with this id already exists. instance=`{instance}` status=`{status}`")]
    AlreadyExists {
        /// Its id.
        instance: InstanceId,
        /// Its status.
        status: OrchestrationStatus,
    },
    /// The instance exists, but its status does not allow the operation.
    #[error("cannot {operation} in its current status. instance=`{instance}` status=`{status}`")]
    WrongStatus {
        /// What was asked for.
        operation: Operation,
        /// The id.
        instance: InstanceId,
        /// Its status.
        status: OrchestrationStatus,
    },
    /// The stored status is none that this program knows.
    #[error("cannot {operation} in a status that is not known. instance=`{instance}`")]
    UnknownStatus {
        /// What was asked for.
        operation: Operation,
        /// The id.
        instance: InstanceId,
    },
    /// Replaying durable timers is not supported by a rewind, unless the caller takes the risk.
    #[error(
        "cannot rewind an instance with durable timers, unless that is allowed expressly. instance=`{instance}`"
    )]
    HasTimers {
        /// Whose timers: the instance, or a sub-orchestration of it.
        instance: InstanceId,
    },
    /// There is nothing to go on from.
    #[error("the instance has no history to rewind. instance=`{instance}`")]
    NoHistory {
        /// The instance, or a sub-orchestration of it.
        instance: InstanceId,
    },
    /// Only unfinished statuses were given to a purge.
    #[error("only finished instances can be purged; name a final status or none")]
    NothingToPurge,
    /// The backend failed.
    #[error("could not {operation}")]
    Service {
        /// What was asked for.
        operation: Operation,
        /// Why it failed.
        source: ServiceError,
    },
}

impl ClientError {
    /// What to do about it.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Blank { .. }
            | Self::InstanceIdTooLong { .. }
            | Self::InstanceIdCharacters
            | Self::InstanceIdReserved
            | Self::BadEntityId
            | Self::IntervalLongerThanTimeout
            | Self::BadStartObject { .. }
            | Self::EntityId { .. }
            | Self::Payload { .. }
            | Self::NothingToPurge
            | Self::HasTimers { .. }
            | Self::NoHistory { .. }
            | Self::UnknownStatus { .. }
            | Self::WrongStatus { .. } => ErrorKind::Invalid,
            Self::NotFound { .. } => ErrorKind::NotFound,
            Self::AlreadyExists { .. } => ErrorKind::AlreadyExists,
            Self::Service { source, .. } => source.kind(),
        }
    }

    pub(crate) fn service(operation: Operation) -> impl FnOnce(ServiceError) -> Self {
        move |source| Self::Service { operation, source }
    }
}
