//! Entities as an orchestrator uses them: calls, signals, critical sections.

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use serde::Serialize;
use serde::de::DeserializeOwned;
use taskhub_core::Timestamp;
use taskhub_entities::EntityId;

use crate::failure::{locking_error, rejected};
use crate::machine::{LockRule, Shared};
use crate::task::{RawTask, Slot, Task};
use crate::{OrchestrationContext, OrchestratorError, to_payload};

/// Names an operation of an entity and the types of its input and result, so that calls are checked at
/// compile time.
///
/// ```
/// use taskhub_replay::EntityOperationDefinition;
///
/// struct Add;
/// impl EntityOperationDefinition for Add {
///     const ENTITY: &'static str = "counter";
///     const NAME: &'static str = "add";
///     type Input = i64;
///     type Output = ();
/// }
/// ```
pub trait EntityOperationDefinition {
    /// Name of the entity; case does not matter.
    const ENTITY: &'static str;
    /// Name of the operation, as it is.
    const NAME: &'static str;
    /// Its input; `()` for none.
    type Input: Serialize + DeserializeOwned;
    /// What it returns; `()` for nothing.
    type Output: Serialize + DeserializeOwned;
}

/// Entities. Requests of one orchestration to one entity run in the order in which they were made.
///
/// ```
/// use taskhub_replay::*;
///
/// async fn transfer(ctx: OrchestrationContext, amount: i64) -> Result<(), OrchestratorError> {
///     let from = EntityId::new("account", "alice")?;
///     let to = EntityId::new("account", "bob")?;
///     let locks = ctx.lock_entities([&from, &to]).await?;
///     let balance: i64 = ctx.call_entity(&from, "get", ()).await?;
///     if balance >= amount {
///         let _: () = ctx.call_entity(&from, "add", -amount).await?;
///         let _: () = ctx.call_entity(&to, "add", amount).await?;
///     }
///     locks.release();
///     Ok(())
/// }
/// ```
impl OrchestrationContext {
    /// Calls an operation of an entity and waits for its result. The entity is created on demand.
    ///
    /// The task fails when the operation failed ([`TaskKind::Entity`](crate::TaskKind)), or at once when a rule
    /// of critical sections forbids the call ([`TaskKind::Rejected`](crate::TaskKind); see
    /// [`OrchestrationContext::lock_entities`]).
    pub fn call_entity<I: Serialize, O: DeserializeOwned>(
        &self,
        entity: &EntityId,
        operation: &str,
        input: I,
    ) -> Task<O> {
        match to_payload(&input) {
            Ok(input) => Task::new(self.call_entity_raw(entity, operation, input).0, operation),
            Err(error) => Task::unsent(operation, &error),
        }
    }

    /// Calls an operation of an entity on serialised values.
    pub fn call_entity_raw(&self, entity: &EntityId, operation: &str, input: Option<String>) -> RawTask {
        let slot = self.shared().call_entity(entity, operation, input);
        RawTask(slot.unwrap_or_else(|rule| rejected(operation, &rule)))
    }

    /// Calls an operation by its definition, on the entity with this key.
    pub fn call_operation<E: EntityOperationDefinition>(
        &self,
        key: &str,
        input: E::Input,
    ) -> Task<E::Output> {
        match EntityId::new(E::ENTITY, key) {
            Ok(entity) => self.call_entity(&entity, E::NAME, input),
            Err(error) => Task::new(rejected(E::NAME, &error), E::NAME),
        }
    }

    /// Sends an operation to an entity and waits for nothing. The entity is created on demand.
    ///
    /// # Errors
    /// The input has no JSON form, or this orchestration has locked the entity.
    pub fn signal_entity<I: Serialize>(
        &self,
        entity: &EntityId,
        operation: &str,
        input: I,
    ) -> Result<(), OrchestratorError> {
        self.signal_entity_raw(entity, operation, to_payload(&input)?, None)
    }

    /// Sends an operation to an entity, to run at `due_at` or soon after; other requests do not wait for it.
    ///
    /// # Errors
    /// As [`OrchestrationContext::signal_entity`].
    pub fn signal_entity_at<I: Serialize>(
        &self,
        entity: &EntityId,
        operation: &str,
        input: I,
        due_at: Timestamp,
    ) -> Result<(), OrchestratorError> {
        self.signal_entity_raw(entity, operation, to_payload(&input)?, Some(due_at))
    }

    /// Sends an operation with a serialised input to an entity.
    ///
    /// # Errors
    /// This orchestration has locked the entity.
    pub fn signal_entity_raw(
        &self,
        entity: &EntityId,
        operation: &str,
        input: Option<String>,
        due_at: Option<Timestamp>,
    ) -> Result<(), OrchestratorError> {
        let sent = self.shared().signal_entity(entity, operation, input, due_at);
        sent.map_err(|rule| locking_error(&rule))
    }

    /// Sends an operation by its definition to the entity with this key.
    ///
    /// # Errors
    /// As [`OrchestrationContext::signal_entity`], or there can be no such key.
    pub fn signal_operation<E: EntityOperationDefinition>(
        &self,
        key: &str,
        input: E::Input,
    ) -> Result<(), OrchestratorError> {
        self.signal_entity(&EntityId::new(E::ENTITY, key)?, E::NAME, input)
    }

    /// Sends an operation by its definition to the entity with this key, to run at `due_at` or soon after.
    ///
    /// # Errors
    /// As [`OrchestrationContext::signal_operation`].
    pub fn signal_operation_at<E: EntityOperationDefinition>(
        &self,
        key: &str,
        input: E::Input,
        due_at: Timestamp,
    ) -> Result<(), OrchestratorError> {
        self.signal_entity_at(&EntityId::new(E::ENTITY, key)?, E::NAME, input, due_at)
    }

    /// Locks entities: begins a critical section, in which nobody else's requests reach them.
    ///
    /// All orchestrations take locks in the same order, so that none waits for another for ever. The section
    /// lasts until the [`EntityLock`] is released or dropped; at the latest until the orchestrator returns,
    /// fails, panics or continues as new, or is terminated. Inside it
    /// - only locked entities can be called, each once at a time, and none of them can be signalled;
    /// - no other section can begin, and no sub-orchestration can be called (but started and forgotten).
    ///
    /// Dropping the request gives it up: the locks are released as soon as they are granted, and the
    /// orchestration does not end before.
    pub fn lock_entities<'a>(&self, entities: impl IntoIterator<Item = &'a EntityId>) -> LockRequest {
        let entities: Vec<EntityId> = entities.into_iter().cloned().collect();
        let requested = self.shared().lock_entities(entities.clone());
        LockRequest { shared: self.shared().clone(), requested, entities, is_done: false }
    }

    /// The entities that this orchestration has locked, in the order of their locks; `None` outside a critical
    /// section.
    pub fn locked_entities(&self) -> Option<Vec<EntityId>> {
        self.shared().lock().locked_entities().map(<[EntityId]>::to_vec)
    }
}

/// Locks that have been asked for; see [`OrchestrationContext::lock_entities`]. Fails when there are no entities
/// to lock, or inside another critical section.
#[must_use = "locks that nobody waits for are given up"]
pub struct LockRequest {
    shared: Arc<Shared>,
    requested: Result<(i32, Arc<Slot>), LockRule>,
    entities: Vec<EntityId>,
    is_done: bool,
}

impl Future for LockRequest {
    type Output = Result<EntityLock, OrchestratorError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        assert!(!self.is_done, "a lock request is polled after completion");
        let number = match &self.requested {
            Err(rule) => return Poll::Ready(Err(locking_error(rule))),
            Ok((number, slot)) => {
                std::task::ready!(slot.poll(cx));
                *number
            }
        };
        self.is_done = true;
        let entities = std::mem::take(&mut self.entities);
        Poll::Ready(Ok(EntityLock { shared: self.shared.clone(), number, entities }))
    }
}

impl Drop for LockRequest {
    fn drop(&mut self) {
        if let Ok((number, _)) = self.requested
            && !self.is_done
        {
            self.shared.leave_section(number);
        }
    }
}

impl fmt::Debug for LockRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LockRequest").field("entities", &self.entities).finish_non_exhaustive()
    }
}

/// A critical section. Dropping it releases the locks.
#[must_use = "the locks are released when this is dropped"]
pub struct EntityLock {
    shared: Arc<Shared>,
    number: i32,
    entities: Vec<EntityId>,
}

impl EntityLock {
    /// The locked entities, as they were asked for.
    pub fn entities(&self) -> &[EntityId] {
        &self.entities
    }

    /// Releases the locks; the same as dropping it.
    pub fn release(self) {
        drop(self);
    }
}

impl Drop for EntityLock {
    fn drop(&mut self) {
        self.shared.leave_section(self.number);
    }
}

impl fmt::Debug for EntityLock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EntityLock").field("entities", &self.entities).finish_non_exhaustive()
    }
}
