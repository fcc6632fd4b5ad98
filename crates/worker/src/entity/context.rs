use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::Serialize;
use serde::de::DeserializeOwned;
use taskhub_core::{IdSource, InstanceId, OrchestrationInstance, Timestamp, TraceContext};
use taskhub_entities::{EntityAction, EntityId, OperationRequest};
use taskhub_replay::{ApplicationError, PayloadError, from_payload, to_payload};
use tokio_util::sync::CancellationToken;

use super::definition::{OperationError, Reply};

/// What an entity's operation sees and does. Cheap to clone; what clones do after the operation has ended has no
/// effect.
///
/// Whatever an operation changes or asks for takes effect when it returns `Ok`, all of it at once with the rest
/// of its batch, and not at all when it fails. Operations of one entity never run at the same time. They may be
/// run again when a worker dies before it has stored their effect.
#[derive(Clone)]
pub struct EntityContext {
    call: Arc<Call>,
    effects: Arc<Mutex<Effects>>,
}

struct Call {
    id: EntityId,
    operation: OperationRequest,
    ids: Arc<dyn IdSource>,
    cancellation: CancellationToken,
}

/// What an operation leaves behind.
#[derive(Default)]
pub(crate) struct Effects {
    pub(crate) state: Option<Arc<str>>,
    pub(crate) is_deleted: bool,
    pub(crate) actions: Vec<EntityAction>,
}

/// How an orchestration is started.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct StartOptions {
    /// Id of the instance; a new GUID when not given.
    pub instance_id: Option<InstanceId>,
    /// Version of the orchestrator.
    pub version: Option<String>,
    /// Earliest time of the first episode.
    pub scheduled_start_at: Option<Timestamp>,
}

impl EntityContext {
    pub(crate) fn new(
        id: EntityId,
        operation: OperationRequest,
        state: Option<Arc<str>>,
        ids: Arc<dyn IdSource>,
        cancellation: CancellationToken,
    ) -> Self {
        let call = Call { id, operation, ids, cancellation };
        let effects = Effects { state, ..Effects::default() };
        Self { call: Arc::new(call), effects: Arc::new(Mutex::new(effects)) }
    }

    fn effects(&self) -> MutexGuard<'_, Effects> {
        self.effects.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn take_effects(&self) -> Effects {
        std::mem::take(&mut *self.effects())
    }

    pub(crate) fn is_deleted(&self) -> bool {
        self.effects().is_deleted
    }

    /// The entity.
    pub fn id(&self) -> &EntityId {
        &self.call.id
    }

    /// Name of the operation, as its sender wrote it.
    pub fn operation(&self) -> &str {
        &self.call.operation.operation
    }

    /// Id of the request: the same whenever this operation is run again.
    pub fn request_id(&self) -> String {
        self.call.operation.id.to_string()
    }

    /// Whether nobody waits for the result.
    pub fn is_signal(&self) -> bool {
        self.call.operation.is_signal
    }

    /// The orchestration or entity that asks for the operation; `None` for clients.
    pub fn caller(&self) -> Option<&OrchestrationInstance> {
        self.call.operation.caller.as_ref()
    }

    /// Trace context of the caller.
    pub fn trace_context(&self) -> Option<&TraceContext> {
        self.call.operation.trace_context.as_ref()
    }

    /// Cancelled when the worker shuts down.
    pub fn cancellation(&self) -> &CancellationToken {
        &self.call.cancellation
    }

    /// Serialised input as it came.
    pub fn raw_input(&self) -> Option<&str> {
        self.call.operation.input.as_deref()
    }

    /// The input; none reads as JSON `null`, so that an `Option` tells whether there was one.
    ///
    /// # Errors
    /// It is not JSON of this type.
    pub fn input<I: DeserializeOwned>(&self) -> Result<I, PayloadError> {
        from_payload(self.raw_input())
    }

    /// Whether the entity has a state.
    pub fn exists(&self) -> bool {
        self.effects().state.is_some()
    }

    /// Serialised state.
    pub fn raw_state(&self) -> Option<String> {
        self.effects().state.as_deref().map(str::to_owned)
    }

    /// The state; `None` when there is none.
    ///
    /// # Errors
    /// It is not JSON of this type.
    pub fn state<S: DeserializeOwned>(&self) -> Result<Option<S>, PayloadError> {
        let state = self.effects().state.clone();
        state.map(|state| from_payload(Some(&state))).transpose()
    }

    /// Sets the state; a value that is JSON `null` is one, too.
    ///
    /// # Errors
    /// The value has no JSON form.
    pub fn set_state<S: Serialize + ?Sized>(&self, state: &S) -> Result<(), PayloadError> {
        self.set_raw_state(to_payload(state)?.unwrap_or_else(|| "null".to_owned()));
        Ok(())
    }

    /// Sets the serialised state.
    pub fn set_raw_state(&self, state: impl Into<Arc<str>>) {
        let mut effects = self.effects();
        (effects.state, effects.is_deleted) = (Some(state.into()), false);
    }

    /// Removes the state: the entity no longer exists, until a state is set again.
    pub fn delete_state(&self) {
        let mut effects = self.effects();
        (effects.state, effects.is_deleted) = (None, true);
    }

    /// Sends an operation to an entity and waits for nothing. Signals to one entity arrive in order and once.
    ///
    /// # Errors
    /// The input has no JSON form.
    pub fn signal_entity<I: Serialize>(
        &self,
        to: &EntityId,
        operation: &str,
        input: I,
    ) -> Result<(), PayloadError> {
        self.signal(to, operation, to_payload(&input)?, None);
        Ok(())
    }

    /// As [`EntityContext::signal_entity`] for an operation that is to run at `due_at` or later, without order.
    ///
    /// # Errors
    /// The input has no JSON form.
    pub fn signal_entity_at<I: Serialize>(
        &self,
        to: &EntityId,
        operation: &str,
        input: I,
        due_at: Timestamp,
    ) -> Result<(), PayloadError> {
        self.signal(to, operation, to_payload(&input)?, Some(due_at));
        Ok(())
    }

    fn signal(&self, to: &EntityId, operation: &str, input: Option<String>, due_at: Option<Timestamp>) {
        let (instance_id, operation) = (to.instance_id(), operation.to_owned());
        self.effects().actions.push(EntityAction::SendSignal { instance_id, operation, input, due_at });
    }

    /// Starts an orchestration and returns its instance id.
    ///
    /// # Errors
    /// The input has no JSON form.
    pub fn start_orchestration<I: Serialize>(
        &self,
        name: &str,
        input: I,
    ) -> Result<InstanceId, PayloadError> {
        self.start_orchestration_with(name, input, StartOptions::default())
    }

    /// As [`EntityContext::start_orchestration`] with an id, a version or a time.
    ///
    /// # Errors
    /// The input has no JSON form.
    pub fn start_orchestration_with<I: Serialize>(
        &self,
        name: &str,
        input: I,
        options: StartOptions,
    ) -> Result<InstanceId, PayloadError> {
        let StartOptions { instance_id, version, scheduled_start_at } = options;
        let instance_id = instance_id.unwrap_or_else(|| self.call.ids.guid().simple().to_string().into());
        self.effects().actions.push(EntityAction::StartNewOrchestration {
            instance_id: instance_id.clone(),
            name: name.to_owned(),
            // DTFx clients send the empty text when there is none.
            version: Some(version.unwrap_or_default()),
            input: to_payload(&input)?,
            scheduled_start_at,
        });
        Ok(instance_id)
    }

    /// The error of an operation that this entity does not have.
    pub fn unknown_operation(&self) -> OperationError {
        let text = format!("no operation {}", self.operation());
        ApplicationError::new("System.NotSupportedException", text).non_retriable().into()
    }

    /// A result for the caller.
    ///
    /// # Errors
    /// It has no JSON form.
    pub fn reply<T: Serialize + ?Sized>(&self, result: &T) -> Result<Reply, PayloadError> {
        Reply::of(result)
    }
}

impl fmt::Debug for EntityContext {
    /// Without state and input.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EntityContext")
            .field("id", &self.call.id)
            .field("operation", &self.call.operation.operation)
            .finish_non_exhaustive()
    }
}
