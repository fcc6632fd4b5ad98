use std::collections::hash_map::Entry;
use std::collections::{BTreeSet, HashMap};
use std::fmt;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use async_trait::async_trait;
use futures::FutureExt;
use futures::future::BoxFuture;
use serde::Serialize;
use serde::de::DeserializeOwned;
use taskhub_core::OrchestrationInstance;
use taskhub_replay::{
    ApplicationError, EpisodeError, EpisodeExecutor, EpisodeResult, ErrorMode, Orchestrator,
    OrchestratorError, OrchestratorSource, ReplayExecutor, ReplaySettings, SessionAborted, Turn,
    encode_activity_failure, from_activity_input, from_payload, to_payload,
};

use crate::context::ActivityContext;
use crate::entity::EntityFn;
use crate::executor::{
    ActivityExecutor, ActivityOutcome, ActivityRequest, ExecutorError, OrchestrationExecutor,
    OrchestrationSession,
};

/// Any error of an activity. `?` converts from every error type and from text; use [`ApplicationError`]
/// to choose the type name that other workers see.
pub type ActivityError = OrchestratorError;

/// What a panic of user code looks like to an orchestration.
pub(crate) const PANIC_TYPE: &str = "System.Exception";

type ActivityFn =
    Arc<dyn Fn(ActivityContext) -> BoxFuture<'static, Result<Option<String>, ActivityError>> + Send + Sync>;

/// Name and version; both exact, and no version is the empty text.
/// Source: Azure/durabletask, `NameVersionHelper`.
type Key = (String, String);

/// A name and version was registered twice.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{kind} registered twice. name=`{name}` version=`{version}`")]
pub struct DuplicateRegistration {
    /// `orchestration`, `activity` or `entity`.
    pub kind: &'static str,
    /// Its name.
    pub name: String,
    /// Its version; empty when there is none.
    pub version: String,
}

/// An orchestrator, and how it is replayed if not as the worker's settings say.
type Registered = (Arc<dyn Orchestrator>, Option<ReplaySettings>);

/// The functions of this process, by name and version.
#[derive(Default)]
pub(crate) struct Registry {
    orchestrations: HashMap<Key, Registered>,
    activities: HashMap<Key, ActivityFn>,
    entities: HashMap<Key, EntityFn>,
    duplicate: Option<DuplicateRegistration>,
}

impl Registry {
    pub(crate) fn add_orchestration(&mut self, name: &str, version: &str, orchestration: Registered) {
        let added = add(&mut self.orchestrations, name, version, orchestration, "orchestration");
        self.duplicate = self.duplicate.take().or(added.err());
    }

    pub(crate) fn add_activity<I, O, E, F, R>(&mut self, name: &str, version: &str, activity: F)
    where
        I: DeserializeOwned + Send + 'static,
        O: Serialize + Send + 'static,
        E: Into<ActivityError> + 'static,
        F: Fn(ActivityContext, I) -> R + Send + Sync + 'static,
        R: Future<Output = Result<O, E>> + Send + 'static,
    {
        let activity = Arc::new(activity);
        let erased: ActivityFn = Arc::new(move |context| {
            let activity = activity.clone();
            Box::pin(async move {
                let input = read_input::<I>(context.raw_input())?;
                let output = activity(context, input).await.map_err(Into::into)?;
                Ok(to_payload(&output)?)
            })
        });
        let added = add(&mut self.activities, name, version, erased, "activity");
        self.duplicate = self.duplicate.take().or(added.err());
    }

    /// Names of entities ignore case: Durable Functions lowers them, DTFx's core does not.
    pub(crate) fn add_entity(&mut self, name: &str, entity: EntityFn) {
        let added = add(&mut self.entities, &name.to_lowercase(), "", entity, "entity");
        self.duplicate = self.duplicate.take().or(added.err());
    }

    pub(crate) fn entity(&self, name: &str) -> Option<EntityFn> {
        self.entities.get(&key(&name.to_lowercase(), "")).cloned()
    }

    /// Without versions, sorted.
    pub(crate) fn orchestration_names(&self) -> Vec<String> {
        let names: BTreeSet<&String> = self.orchestrations.keys().map(|(name, _)| name).collect();
        names.into_iter().cloned().collect()
    }

    /// Fails when something was registered twice.
    pub(crate) fn check(&mut self) -> Result<(), DuplicateRegistration> {
        self.duplicate.take().map_or(Ok(()), Err)
    }
}

fn key(name: &str, version: &str) -> Key {
    (name.to_owned(), version.to_owned())
}

fn add<T>(
    map: &mut HashMap<Key, T>,
    name: &str,
    version: &str,
    value: T,
    kind: &'static str,
) -> Result<(), DuplicateRegistration> {
    match map.entry(key(name, version)) {
        Entry::Vacant(entry) => {
            entry.insert(value);
            Ok(())
        }
        Entry::Occupied(_) => {
            Err(DuplicateRegistration { kind, name: name.to_owned(), version: version.to_owned() })
        }
    }
}

/// One argument, as .NET writes it, or else the whole text as one value: a bare list from a worker that
/// does not wrap arguments, or several arguments for a tuple.
fn read_input<I: DeserializeOwned>(text: Option<&str>) -> Result<I, ActivityError> {
    from_activity_input(text).or_else(|error| from_payload(text).map_err(|_| error.into()))
}

/// Replays the registered orchestrators in this process.
pub(crate) struct LocalOrchestrations {
    source: Arc<LocalSource>,
}

/// Finds orchestrators in the registry.
pub(crate) struct LocalSource {
    pub(crate) registry: Arc<Registry>,
    pub(crate) settings: ReplaySettings,
}

impl LocalOrchestrations {
    pub(crate) fn new(registry: Arc<Registry>, settings: ReplaySettings) -> Self {
        Self { source: Arc::new(LocalSource { registry, settings }) }
    }
}

impl OrchestratorSource for LocalSource {
    fn orchestrator(
        &self,
        name: &str,
        version: Option<&str>,
    ) -> Option<(Arc<dyn Orchestrator>, ReplaySettings)> {
        let (orchestrator, own) =
            self.registry.orchestrations.get(&key(name, version.unwrap_or_default()))?;
        Some((orchestrator.clone(), own.as_ref().unwrap_or(&self.settings).clone()))
    }
}

impl OrchestrationExecutor for LocalOrchestrations {
    fn open(&self, _: &OrchestrationInstance) -> Box<dyn OrchestrationSession> {
        Box::new(LocalSession(ReplayExecutor::new(self.source.clone())))
    }
}

impl fmt::Debug for LocalOrchestrations {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LocalOrchestrations").field("settings", &self.source.settings).finish_non_exhaustive()
    }
}

struct LocalSession(ReplayExecutor);

#[async_trait]
impl OrchestrationSession for LocalSession {
    /// Replay is quick and needs no waiting: it runs in the task of its work item.
    async fn execute(&mut self, turn: Turn<'_>) -> Result<EpisodeResult, EpisodeError> {
        self.0.execute(turn)
    }
}

/// Runs the registered activities in this process.
pub(crate) struct LocalActivities {
    pub(crate) registry: Arc<Registry>,
    pub(crate) error_mode: ErrorMode,
}

#[async_trait]
impl ActivityExecutor for LocalActivities {
    async fn execute(&self, request: ActivityRequest) -> Result<ActivityOutcome, ExecutorError> {
        let version = request.version.clone().unwrap_or_default();
        let Some(activity) = self.registry.activities.get(&key(&request.name, &version)) else {
            return Err(ExecutorError::Missing { name: request.name, version });
        };
        let name = request.name.clone();
        let context = ActivityContext::new(request);
        // The function itself may panic as well as the future it returns.
        let running = AssertUnwindSafe(async move { activity(context).await });
        let result = running.catch_unwind().await.unwrap_or_else(|panic| {
            Err(ApplicationError::new(PANIC_TYPE, panic_message(panic.as_ref())).into())
        });
        match result {
            Ok(output) => Ok(ActivityOutcome::Completed(output)),
            Err(error) if error.is::<SessionAborted>() => {
                Err(ExecutorError::Aborted { reason: error.to_string() })
            }
            Err(error) => {
                let failure = encode_activity_failure(error.as_ref(), self.error_mode, &name);
                Ok(ActivityOutcome::Failed {
                    reason: Some(failure.reason),
                    details: failure.details,
                    failure_details: failure.failure_details,
                })
            }
        }
    }
}

impl fmt::Debug for LocalActivities {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LocalActivities").field("error_mode", &self.error_mode).finish_non_exhaustive()
    }
}

/// The text of a panic.
pub(crate) fn panic_message(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic
        .downcast_ref::<&str>()
        .map(|text| (*text).to_owned())
        .or_else(|| panic.downcast_ref::<String>().cloned());
    text.map_or_else(|| "panicked".to_owned(), |text| format!("panicked: {text}"))
}

/// What a log may tell of a panic: its text if that is fixed in the source. One put together at run time may
/// hold inputs; the panic hook of the process has seen it, with its place.
pub(crate) fn panic_kind(panic: &(dyn std::any::Any + Send)) -> String {
    match (panic.downcast_ref::<&str>(), panic.downcast_ref::<String>()) {
        (Some(text), _) => format!("panicked: {text}"),
        (None, Some(_)) => "panicked with a text that is not shown".to_owned(),
        (None, None) => "panicked with a value that is no text".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn caught(work: impl FnOnce()) -> Box<dyn std::any::Any + Send> {
        std::panic::catch_unwind(AssertUnwindSafe(work)).expect_err("it panics")
    }

    #[test]
    fn logs_tell_of_a_panic_no_text_that_was_put_together_at_run_time() {
        let input = String::from("4111 1111 1111 1111");
        let panic = caught(|| panic!("bad card {input}"));
        assert_eq!(panic_message(panic.as_ref()), "panicked: bad card 4111 1111 1111 1111");
        assert_eq!(panic_kind(panic.as_ref()), "panicked with a text that is not shown");
        assert_eq!(panic_kind(caught(|| panic!("no way")).as_ref()), "panicked: no way");
        let other = caught(|| std::panic::panic_any(7));
        assert_eq!(panic_kind(other.as_ref()), "panicked with a value that is no text");
    }
}
