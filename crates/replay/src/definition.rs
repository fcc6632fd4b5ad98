use std::pin::Pin;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::failure::InputError;
use crate::{OrchestrationContext, OrchestratorError, from_payload, to_payload};

/// Names an activity and the types of its input and output, so that calls are checked at compile time.
///
/// ```
/// use taskhub_replay::ActivityDefinition;
///
/// struct SayHello;
/// impl ActivityDefinition for SayHello {
///     const NAME: &'static str = "SayHello";
///     type Input = String;
///     type Output = String;
/// }
/// ```
pub trait ActivityDefinition {
    /// Name under which the activity is registered; case-sensitive.
    const NAME: &'static str;
    /// Version; DTFx writes the empty text when there is none.
    const VERSION: &'static str = "";
    /// Its one argument; `()` for none.
    type Input: Serialize + DeserializeOwned;
    /// What it returns; `()` for nothing.
    type Output: Serialize + DeserializeOwned;
}

/// Names an orchestrator and the types of its input and output.
pub trait OrchestrationDefinition {
    /// Name under which the orchestrator is registered; case-sensitive.
    const NAME: &'static str;
    /// Version; DTFx writes the empty text when there is none.
    const VERSION: &'static str = "";
    /// Its input; `()` for none.
    type Input: Serialize + DeserializeOwned;
    /// What it returns; `()` for nothing.
    type Output: Serialize + DeserializeOwned;
}

/// The running body of an orchestrator: its serialised result, or why it failed.
pub type OrchestratorFuture =
    Pin<Box<dyn Future<Output = Result<Option<String>, OrchestratorError>> + Send + 'static>>;

/// Orchestrator code: makes the body of one generation.
///
/// The body must be deterministic: whatever it decides follows from its input and from what the context
/// returned. It awaits futures of the context only; anything else (tokio timers, channels, I/O) either
/// never wakes it or breaks its replay.
pub trait Orchestrator: Send + Sync {
    /// Starts the body. Its input is [`OrchestrationContext::input`].
    fn run(&self, context: OrchestrationContext) -> OrchestratorFuture;
}

/// An orchestrator from a function that takes and returns serialised values.
pub fn raw_orchestrator<F, R>(body: F) -> impl Orchestrator + 'static
where
    F: Fn(OrchestrationContext) -> R + Send + Sync + 'static,
    R: Future<Output = Result<Option<String>, OrchestratorError>> + Send + 'static,
{
    Function(move |context| Box::pin(body(context)) as OrchestratorFuture)
}

/// An orchestrator from a function on typed values. An input of another type fails the orchestration.
///
/// ```
/// use taskhub_replay::{OrchestrationContext, OrchestratorError, orchestrator};
///
/// let greet = orchestrator(|ctx: OrchestrationContext, name: String| async move {
///     let greeting: String = ctx.call_activity("SayHello", name).await?;
///     Ok::<_, OrchestratorError>(greeting.to_uppercase())
/// });
/// # let _ = greet;
/// ```
pub fn orchestrator<I, O, F, R>(body: F) -> impl Orchestrator + 'static
where
    I: DeserializeOwned + Send + 'static,
    O: Serialize + Send + 'static,
    F: Fn(OrchestrationContext, I) -> R + Send + Sync + 'static,
    R: Future<Output = Result<O, OrchestratorError>> + Send + 'static,
{
    Function(move |context: OrchestrationContext| -> OrchestratorFuture {
        match from_payload::<I>(context.raw_input()) {
            Ok(input) => {
                let running = body(context, input);
                Box::pin(async move { Ok(to_payload(&running.await?)?) })
            }
            Err(error) => Box::pin(async move { Err(InputError(error.to_string()).into()) }),
        }
    })
}

struct Function<F>(F);

impl<F> Orchestrator for Function<F>
where
    F: Fn(OrchestrationContext) -> OrchestratorFuture + Send + Sync,
{
    fn run(&self, context: OrchestrationContext) -> OrchestratorFuture {
        (self.0)(context)
    }
}
