//! Failures of activities, sub-orchestrations and orchestrators, in the three forms .NET workers use.

mod entity;

use std::error::Error;
use std::fmt;
use std::ops::Deref;

use serde_json::{Map, Value, json};
use taskhub_core::FailureDetails;
use taskhub_entities::EntityId;

pub(crate) use entity::{entity_result, locking_error, rejected};

/// Any error of user code. `?` converts from every error type and from text; use [`ApplicationError`] to
/// choose the type name that other workers see, and return a [`TaskFailure`] to pass a failure on.
pub type OrchestratorError = Box<dyn Error + Send + Sync + 'static>;

/// Which of its parts a failure is written with. All workers of a hub should agree.
/// Source: Azure/durabletask, `ErrorPropagationMode` and `TaskActivityDispatcher.IncludeDetails`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ErrorMode {
    /// The message alone; Core's default.
    #[default]
    ReasonOnly,
    /// The message and an exception in .NET's serialised form, as in-process Durable Functions writes it.
    SerializedException,
    /// The message and [`FailureDetails`], as the .NET SDK and isolated Durable Functions write it.
    FailureDetails,
}

/// A failure in the form that goes into events.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct EncodedFailure {
    /// The message.
    pub reason: String,
    /// Serialised exception, in [`ErrorMode::SerializedException`].
    pub details: Option<String>,
    /// The failure, in [`ErrorMode::FailureDetails`].
    pub failure_details: Option<FailureDetails>,
}

/// Type name of errors that have none of their own.
const GENERIC_TYPE: &str = "System.Exception";
/// Source: Azure/durabletask, `NonDeterministicOrchestrationException`.
const NON_DETERMINISM_TYPE: &str = "DurableTask.Core.Exceptions.NonDeterministicOrchestrationException";
const TASK_FAILED_TYPE: &str = "DurableTask.Core.Exceptions.TaskFailedException";
/// Source: microsoft/durabletask-dotnet, `EntityOperationFailedException`.
const ENTITY_FAILED_TYPE: &str = "Microsoft.DurableTask.Entities.EntityOperationFailedException";
const INVALID_OPERATION_TYPE: &str = "System.InvalidOperationException";
const SUB_ORCHESTRATION_FAILED_TYPE: &str = "DurableTask.Core.Exceptions.SubOrchestrationFailedException";
/// Longest chain of causes that is read or written.
const MAX_CAUSES: usize = 32;

/// An error with a type name and members of its own.
///
/// Other workers match on the type name; for .NET ones it should be a CLR type name.
#[derive(Debug)]
pub struct ApplicationError(Box<Parts>);

/// Boxed, so that results with this error stay small.
#[derive(Debug)]
struct Parts {
    error_type: String,
    message: String,
    non_retriable: bool,
    properties: Option<Map<String, Value>>,
    source: Option<OrchestratorError>,
}

impl ApplicationError {
    /// An error of type `error_type`, such as `System.InvalidOperationException`.
    pub fn new(error_type: impl Into<String>, message: impl Into<String>) -> Self {
        Self(Box::new(Parts {
            error_type: error_type.into(),
            message: message.into(),
            non_retriable: false,
            properties: None,
            source: None,
        }))
    }

    /// Tells retry policies not to try again. Takes effect in [`ErrorMode::FailureDetails`].
    #[must_use]
    pub fn non_retriable(mut self) -> Self {
        self.0.non_retriable = true;
        self
    }

    /// Further members of the error. Written in [`ErrorMode::FailureDetails`].
    #[must_use]
    pub fn with_properties(mut self, properties: Map<String, Value>) -> Self {
        self.0.properties = Some(properties);
        self
    }

    /// The cause.
    #[must_use]
    pub fn with_source(mut self, source: impl Into<OrchestratorError>) -> Self {
        self.0.source = Some(source.into());
        self
    }

    /// The type name.
    pub fn error_type(&self) -> &str {
        &self.0.error_type
    }
}

impl fmt::Display for ApplicationError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.message)
    }
}

impl Error for ApplicationError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.0.source.as_deref().map(|e| e as &(dyn Error + 'static))
    }
}

/// Thrown by user code to give the work item back without recording anything; it is tried again later. An
/// orchestrator that has open calls or timers waits for them first, as with any other end.
/// Source: Azure/durabletask, `SessionAbortedException`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the session was aborted")]
pub struct SessionAborted;

/// An orchestrator does not follow its own history.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("Non-Deterministic workflow detected: {0}")]
pub struct NonDeterminism(pub(crate) String);

/// What failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum TaskKind {
    /// An activity.
    Activity,
    /// A sub-orchestration.
    SubOrchestration,
    /// An operation of an entity.
    Entity,
    /// Nothing ran or everything succeeded, but the input or the result is not JSON of the right type.
    Payload,
    /// Nothing was asked for: such a call cannot be, or a rule of critical sections forbids it.
    Rejected,
}

/// A failed call of an activity, a sub-orchestration or an entity; its members are those of [`FailedTask`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TaskFailure(Box<FailedTask>);

/// What is known about a failed call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FailedTask {
    /// What failed.
    pub kind: TaskKind,
    /// Its name; that of the operation, for an entity.
    pub name: String,
    /// The entity, if it was one.
    pub entity: Option<EntityId>,
    /// Its version.
    pub version: Option<String>,
    /// Sequence id of the call.
    pub schedule_id: i32,
    /// What went wrong, in the words of whoever failed.
    pub message: String,
    /// Serialised exception, from workers in [`ErrorMode::SerializedException`].
    pub details: Option<String>,
    /// The failure, from workers in [`ErrorMode::FailureDetails`].
    pub failure_details: Option<FailureDetails>,
}

impl TaskFailure {
    /// The original error, from whichever form the failed worker wrote; `None` when it wrote neither.
    pub fn cause(&self) -> Option<FailureDetails> {
        self.failure_details.clone().or_else(|| {
            let exception = serde_json::from_str(self.details.as_deref()?).ok()?;
            exception_to_details(&exception, 0)
        })
    }

    /// Whether the original error is known to be of this type.
    pub fn is_caused_by(&self, error_type: &str) -> bool {
        self.cause().is_some_and(|cause| cause.error_type == error_type)
    }

    /// Whether retry policies must not try again.
    pub fn is_non_retriable(&self) -> bool {
        self.failure_details.as_ref().is_some_and(|details| details.is_non_retriable)
    }

    fn error_type(&self) -> &'static str {
        match self.kind {
            TaskKind::Activity => TASK_FAILED_TYPE,
            TaskKind::SubOrchestration => SUB_ORCHESTRATION_FAILED_TYPE,
            TaskKind::Entity => ENTITY_FAILED_TYPE,
            TaskKind::Payload => GENERIC_TYPE,
            TaskKind::Rejected => INVALID_OPERATION_TYPE,
        }
    }
}

impl From<FailedTask> for TaskFailure {
    fn from(task: FailedTask) -> Self {
        Self(Box::new(task))
    }
}

impl Deref for TaskFailure {
    type Target = FailedTask;

    fn deref(&self) -> &FailedTask {
        &self.0
    }
}

impl fmt::Display for TaskFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl Error for TaskFailure {}

/// Reads a serialised exception, `{"ClassName":…,"Message":…,"InnerException":…}`.
fn exception_to_details(exception: &Value, depth: usize) -> Option<FailureDetails> {
    let text = |name: &str| exception.get(name).and_then(Value::as_str).map(str::to_owned);
    if depth == MAX_CAUSES {
        return None;
    }
    let inner = exception.get("InnerException").and_then(|inner| exception_to_details(inner, depth + 1));
    Some(FailureDetails {
        error_type: text("ClassName")?,
        error_message: text("Message").unwrap_or_default(),
        stack_trace: text("StackTraceString"),
        inner_failure: inner.map(Box::new),
        is_non_retriable: false,
        properties: None,
    })
}

/// Encodes the error of an activity for its `TaskFailed` event. `function` is the name of the activity;
/// it stands where .NET has the stack trace, which a Rust error does not carry.
pub fn encode_activity_failure(
    error: &(dyn Error + 'static),
    mode: ErrorMode,
    function: &str,
) -> EncodedFailure {
    encode(error, mode, function)
}

/// Encodes the error with which an orchestrator ended, for its `ExecutionCompleted` event (reason and
/// failure details) and for its parent (all of it).
///
/// A non-determinism error and an input that cannot be read do not come from user code; .NET describes
/// them as text instead of serialising them. `function` is the name of the orchestrator.
pub fn encode_orchestrator_failure(
    error: &(dyn Error + 'static),
    mode: ErrorMode,
    function: &str,
) -> EncodedFailure {
    let mut failure = encode(error, mode, function);
    let own = error.is::<NonDeterminism>() || error.is::<InputError>();
    if own && mode == ErrorMode::SerializedException {
        failure.details = Some(format!("Unhandled exception while executing orchestration: {error}"));
    }
    failure
}

fn encode(error: &(dyn Error + 'static), mode: ErrorMode, function: &str) -> EncodedFailure {
    let reason = error.to_string();
    match mode {
        ErrorMode::ReasonOnly => EncodedFailure { reason, ..EncodedFailure::default() },
        ErrorMode::SerializedException => {
            let details = Some(serialized_exception(error, 0, Some(function)).to_string());
            EncodedFailure { reason, details, failure_details: None }
        }
        ErrorMode::FailureDetails => {
            let failure_details = Some(FailureDetails {
                stack_trace: Some(stack_trace(function)),
                ..failure_details(error, 0)
            });
            EncodedFailure { reason, details: None, failure_details }
        }
    }
}

/// The input of an orchestrator is not the JSON it expects.
#[derive(Debug, thiserror::Error)]
#[error("the input of the orchestration cannot be read: {0}")]
pub(crate) struct InputError(pub(crate) String);

/// What is known of where an error was thrown, in the form of a .NET stack trace.
fn stack_trace(function: &str) -> String {
    format!("   at {function}")
}

fn type_of<'a>(error: &'a (dyn Error + 'static)) -> &'a str {
    if let Some(error) = error.downcast_ref::<ApplicationError>() {
        error.error_type()
    } else if let Some(failure) = error.downcast_ref::<TaskFailure>() {
        failure.error_type()
    } else if error.is::<NonDeterminism>() {
        NON_DETERMINISM_TYPE
    } else {
        GENERIC_TYPE
    }
}

fn failure_details(error: &(dyn Error + 'static), depth: usize) -> FailureDetails {
    let application = error.downcast_ref::<ApplicationError>();
    // Core builds this text for activities only; a failed sub-orchestration keeps its plain message.
    let error_message = match error.downcast_ref::<TaskFailure>().map(|failure| &*failure.0) {
        Some(FailedTask { kind: TaskKind::Activity, name, schedule_id, message, .. }) => {
            format!("Task '{name}' (#{schedule_id}) failed with an unhandled exception: {message}")
        }
        Some(FailedTask { kind: TaskKind::Entity, name, entity: Some(entity), message, .. }) => {
            format!("Operation '{name}' of entity '{entity}' failed: {message}")
        }
        _ => error.to_string(),
    };
    let inner = error.source().filter(|_| depth < MAX_CAUSES).map(|e| failure_details(e, depth + 1));
    FailureDetails {
        error_type: type_of(error).to_owned(),
        error_message,
        stack_trace: None,
        inner_failure: inner.map(Box::new),
        is_non_retriable: application.is_some_and(|e| e.0.non_retriable),
        properties: application
            .and_then(|e| e.0.properties.as_ref())
            .map(|properties| Value::Object(properties.clone()).to_string()),
    }
}

/// `Source` of a serialised exception: .NET names the assembly.
const ERROR_SOURCE: &str = "taskhub";

/// Newtonsoft's form of an exception: `$type`, the twelve members of `System.Exception`, then those of
/// DTFx's own exceptions.
fn serialized_exception(error: &(dyn Error + 'static), depth: usize, function: Option<&str>) -> Value {
    let class_name = type_of(error);
    let (clr_type, hresult) = clr_type(class_name);
    let task = error.downcast_ref::<TaskFailure>().filter(|failure| failure.kind != TaskKind::Payload);
    let inner = match task {
        Some(failure) => failure
            .details
            .as_deref()
            .and_then(|details| serde_json::from_str(details).ok())
            .filter(Value::is_object),
        None => {
            error.source().filter(|_| depth < MAX_CAUSES).map(|e| serialized_exception(e, depth + 1, None))
        }
    };
    let mut exception = json!({
        "$type": clr_type,
        "ClassName": class_name,
        "Message": error.to_string(),
        "Data": null,
        "InnerException": inner,
        "HelpURL": null,
        "StackTraceString": function.map(stack_trace),
        "RemoteStackTraceString": null,
        "RemoteStackIndex": 0,
        "ExceptionMethod": null,
        "HResult": hresult,
        "Source": function.map(|_| ERROR_SOURCE),
        "WatsonBuckets": null,
    });
    if let (Some(failure), Some(members)) = (task, exception.as_object_mut()) {
        members.insert("EventId".into(), json!(-1));
        members.insert("FailureDetails".into(), Value::Null);
        members.insert("ScheduleId".into(), json!(failure.schedule_id));
        members.insert("Name".into(), json!(failure.name));
        members.insert("Version".into(), json!(failure.version));
    }
    exception
}

/// Qualified CLR type and HRESULT. A type that .NET could not load would make its orchestrator fail, so
/// unknown names are read there as `System.Exception`; `ClassName` still tells the real one.
fn clr_type(class_name: &str) -> (String, i32) {
    let hresult = match class_name {
        "System.Exception" | TASK_FAILED_TYPE | SUB_ORCHESTRATION_FAILED_TYPE | NON_DETERMINISM_TYPE => {
            -2_146_233_088
        }
        "System.InvalidOperationException" => -2_146_233_079,
        "System.ArgumentException" => -2_147_024_809,
        "System.ArgumentOutOfRangeException" => -2_146_233_086,
        "System.NotSupportedException" => -2_146_233_067,
        "System.NotImplementedException" => -2_147_467_263,
        "System.TimeoutException" => -2_146_233_083,
        "System.FormatException" => -2_146_233_033,
        "System.ApplicationException" => -2_146_232_832,
        "System.OperationCanceledException" => -2_146_233_029,
        "System.UnauthorizedAccessException" => -2_147_024_891,
        _ => return (format!("{GENERIC_TYPE}, System.Private.CoreLib"), -2_146_233_088),
    };
    let assembly =
        if class_name.starts_with("System.") { "System.Private.CoreLib" } else { "DurableTask.Core" };
    (format!("{class_name}, {assembly}"), hresult)
}

#[cfg(test)]
mod tests;
