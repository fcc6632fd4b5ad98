use std::collections::BTreeMap;
use std::sync::Arc;

use futures::future::BoxFuture;
use serde::Serialize;
use serde::de::DeserializeOwned;
use taskhub_replay::{OrchestratorError, PayloadError, to_payload};

use super::EntityContext;

/// Any error of an operation. `?` converts from every error type and from text; use
/// [`ApplicationError`](crate::ApplicationError) to choose the type name that callers see.
pub type OperationError = OrchestratorError;

/// The result of an operation, serialised.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Reply(Option<String>);

impl Reply {
    /// No result.
    pub const NONE: Self = Self(None);

    /// A result.
    ///
    /// # Errors
    /// It has no JSON form.
    pub fn of<T: Serialize + ?Sized>(result: &T) -> Result<Self, PayloadError> {
        to_payload(result).map(Self)
    }

    /// A result that is JSON text already.
    pub fn raw(json: impl Into<String>) -> Self {
        Self(Some(json.into()))
    }

    pub(crate) fn into_payload(self) -> Option<String> {
        self.0
    }
}

pub(crate) type EntityFn =
    Arc<dyn Fn(EntityContext) -> BoxFuture<'static, Result<Reply, OperationError>> + Send + Sync>;

/// An entity as a type: its value is the state, its methods are the operations.
///
/// ```
/// use serde::{Deserialize, Serialize};
/// use taskhub_worker::{EntityContext, OperationError, Operations, TypedEntity};
///
/// #[derive(Default, Serialize, Deserialize)]
/// struct Counter {
///     value: i64,
/// }
///
/// impl Counter {
///     async fn add(&mut self, _: EntityContext, amount: i64) -> Result<(), OperationError> {
///         self.value += amount;
///         Ok(())
///     }
///
///     async fn get(&mut self, _: EntityContext, _: ()) -> Result<i64, OperationError> {
///         Ok(self.value)
///     }
/// }
///
/// impl TypedEntity for Counter {
///     fn operations() -> Operations<Self> {
///         Operations::new().operation("add", Counter::add).operation("get", Counter::get)
///     }
/// }
/// ```
///
/// An entity that does not exist begins with [`Default`]. After an operation that succeeds, the value is the
/// state, unless the operation has called [`EntityContext::delete_state`]; an operation that fails leaves it as it
/// was. Names of operations are found without regard to the case of ASCII letters. `delete` removes the state if
/// the type has no such operation of its own.
pub trait TypedEntity: Default + Serialize + DeserializeOwned + Send + 'static {
    /// The operations by name.
    fn operations() -> Operations<Self>;
}

/// The operations of a [`TypedEntity`].
pub struct Operations<S> {
    by_name: BTreeMap<String, OperationFn<S>>,
}

type OperationFn<S> = Box<
    dyn for<'a> Fn(&'a mut S, EntityContext) -> BoxFuture<'a, Result<Reply, OperationError>> + Send + Sync,
>;

/// An `async` method of an entity type that is an operation:
/// `async fn(&mut Self, EntityContext, Input) -> Result<Output, Error>`.
pub trait EntityMethod<'a, S, I, O>: Send + Sync + 'static {
    /// Runs it.
    fn run(
        &self,
        state: &'a mut S,
        context: EntityContext,
        input: I,
    ) -> BoxFuture<'a, Result<O, OperationError>>;
}

impl<'a, S, I, O, E, F, R> EntityMethod<'a, S, I, O> for F
where
    S: 'a,
    E: Into<OperationError>,
    F: Fn(&'a mut S, EntityContext, I) -> R + Send + Sync + 'static,
    R: Future<Output = Result<O, E>> + Send + 'a,
{
    fn run(
        &self,
        state: &'a mut S,
        context: EntityContext,
        input: I,
    ) -> BoxFuture<'a, Result<O, OperationError>> {
        let running = self(state, context, input);
        Box::pin(async move { running.await.map_err(Into::into) })
    }
}

impl<S> Operations<S> {
    /// None yet.
    pub fn new() -> Self {
        Self { by_name: BTreeMap::new() }
    }

    /// Adds a method under a name; a later one of the same name counts. Its input reads from JSON, an absent one
    /// from `null`.
    #[must_use]
    pub fn operation<I, O, F>(mut self, name: &str, operation: F) -> Self
    where
        S: Send + 'static,
        I: DeserializeOwned + Send + 'static,
        O: Serialize + Send + 'static,
        F: for<'a> EntityMethod<'a, S, I, O>,
    {
        let operation = Arc::new(operation);
        let run: OperationFn<S> = Box::new(move |state, context| {
            let operation = operation.clone();
            Box::pin(async move {
                let input = context.input::<I>()?;
                let output = operation.run(state, context, input).await?;
                Ok(Reply::of(&output)?)
            })
        });
        self.by_name.insert(name.to_owned(), run);
        self
    }

    fn find(&self, name: &str) -> Option<&OperationFn<S>> {
        let ignoring_case = || self.by_name.iter().find(|(own, _)| own.eq_ignore_ascii_case(name));
        self.by_name.get(name).or_else(|| ignoring_case().map(|(_, operation)| operation))
    }
}

impl<S> Default for Operations<S> {
    fn default() -> Self {
        Self::new()
    }
}

impl<S> std::fmt::Debug for Operations<S> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.by_name.keys()).finish()
    }
}

/// A typed entity as a function of the context.
pub(crate) fn typed<S: TypedEntity>() -> EntityFn {
    let operations = Arc::new(S::operations());
    Arc::new(move |context| {
        let operations = operations.clone();
        Box::pin(async move {
            let Some(operation) = operations.find(context.operation()) else {
                if context.operation().eq_ignore_ascii_case("delete") {
                    context.delete_state();
                    return Ok(Reply::NONE);
                }
                return Err(context.unknown_operation());
            };
            let mut state: S = context.state()?.unwrap_or_default();
            let reply = operation(&mut state, context.clone()).await?;
            if !context.is_deleted() {
                context.set_state(&state)?;
            }
            Ok(reply)
        })
    })
}
