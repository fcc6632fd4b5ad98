use std::fmt;
use std::sync::Arc;

use serde::Serialize;
use serde::de::DeserializeOwned;
use taskhub_core::{Clock, ErrorKind, IdSource, OrchestrationService, RandomIds, ServiceError, SystemClock};
use taskhub_replay::{
    ActivityDefinition, OrchestrationContext, OrchestrationDefinition, Orchestrator, OrchestratorError,
    OrchestratorSource, ReplaySettings,
};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::activity::ActivityWork;
use crate::context::ActivityContext;
use crate::dispatcher::dispatch;
use crate::entity::{
    self, EntityContext, EntityExecutor, EntityFn, EntityWork, LocalEntities, OperationError, Reply,
    TypedEntity,
};
use crate::executor::{ActivityExecutor, OrchestrationExecutor};
use crate::fused::Fused;
use crate::give_back::GaveBack;
use crate::instance::InstanceWork;
use crate::lifecycle::{ABANDON_GRACE, Lifecycle, WorkerHandle, WorkerState};
use crate::metrics::WorkerMetrics;
use crate::orchestration::{self, OrchestrationWork};
use crate::registry::{
    ActivityError, DuplicateRegistration, LocalActivities, LocalOrchestrations, LocalSource, Registry,
};
use crate::settings::WorkerSettings;

/// Receives the work of a task hub and runs it: with the functions registered at its builder, or with
/// executors of your own.
///
/// A worker runs once. It is stopped by the token given to [`Worker::run`] or by its handle.
pub struct Worker {
    service: Arc<dyn OrchestrationService>,
    orchestrations: Arc<dyn OrchestrationExecutor>,
    activities: Arc<dyn ActivityExecutor>,
    entities: Arc<dyn EntityExecutor>,
    settings: WorkerSettings,
    clock: Arc<dyn Clock>,
    ids: Arc<dyn IdSource>,
    shutdown: CancellationToken,
    state: watch::Sender<WorkerState>,
    metrics: WorkerMetrics,
}

impl Worker {
    /// Begins a worker for this hub.
    pub fn builder(service: Arc<dyn OrchestrationService>) -> WorkerBuilder {
        WorkerBuilder {
            service,
            registry: Registry::default(),
            orchestrations: None,
            activities: None,
            entities: None,
            settings: WorkerSettings::default(),
            clock: Arc::new(SystemClock),
            ids: Arc::new(RandomIds),
        }
    }

    /// Watches and stops this worker, from now until after it has stopped.
    pub fn handle(&self) -> WorkerHandle {
        WorkerHandle {
            shutdown: self.shutdown.clone(),
            state: self.state.subscribe(),
            metrics: self.metrics.clone(),
            service: Arc::downgrade(&self.service),
        }
    }

    /// What this worker counts.
    pub fn metrics(&self) -> &WorkerMetrics {
        &self.metrics
    }

    /// Starts the backend and works until `shutdown` (or the handle) says stop. Then nothing more is
    /// received; running work has `drain_timeout` to finish, after which it is given back.
    ///
    /// # Errors
    /// The backend could not be started or not be stopped in order. `Internal`: it panicked while
    /// receiving, which stops the worker. All tasks have ended in any case.
    pub async fn run(self, shutdown: CancellationToken) -> Result<(), ServiceError> {
        self.service.set_activity_slots(self.settings.max_concurrent_task_activity_work_items);
        self.service.start().await?;
        let life = Lifecycle::default();
        let mut dispatchers = self.dispatchers(&life);
        self.state.send_replace(WorkerState::Running);
        info!("worker started");

        let crashed = tokio::select! {
            biased;
            () = shutdown.cancelled() => false,
            () = self.shutdown.cancelled() => false,
            _ = dispatchers.join_next() => true,
        };
        info!("worker stopping");
        self.state.send_replace(WorkerState::Stopping);
        life.stopping.cancel();

        let drain_timeout = self.settings.drain_timeout;
        let stop = async {
            let stopped = self.service.stop(drain_timeout + ABANDON_GRACE).await;
            life.service_stopped.cancel();
            stopped
        };
        let finish = async {
            let joined = async {
                while let Some(result) = dispatchers.join_next().await {
                    if let Err(error) = result {
                        warn!(%error, "a dispatcher ended early");
                    }
                }
            };
            tokio::pin!(joined);
            if tokio::time::timeout(drain_timeout, &mut joined).await.is_err() {
                life.give_up.cancel();
                joined.await;
            }
        };
        let (stopped, ()) = tokio::join!(stop, finish);
        self.state.send_replace(WorkerState::Stopped);
        info!("worker stopped");
        if crashed {
            return Err(ServiceError::new(ErrorKind::Internal, "a dispatcher ended on its own"));
        }
        stopped
    }

    fn dispatchers(&self, life: &Lifecycle) -> JoinSet<()> {
        let gave_back = Arc::new(GaveBack::new(self.metrics.clone()));
        let instances = |kind, slots| InstanceWork {
            kind,
            service: self.service.clone(),
            clock: self.clock.clone(),
            life: life.clone(),
            gave_back: gave_back.clone(),
            sessions: Arc::new(Semaphore::new(self.settings.max_extended_sessions(slots))),
        };
        let orchestration_slots = self.settings.max_concurrent_task_orchestration_work_items;
        let entity_slots = self.settings.max_concurrent_task_entity_work_items;
        let activity_slots = self.settings.max_concurrent_task_activity_work_items;
        let fused = Fused {
            settings: self.settings.fused_activities.clone(),
            max_events: self.service.max_atomic_events(),
            executor: self.activities.clone(),
            slots: Arc::new(Semaphore::new(activity_slots.clamp(1, Semaphore::MAX_PERMITS))),
            clock: self.clock.clone(),
            life: life.clone(),
            metrics: self.metrics.clone(),
        };
        let orchestrations = OrchestrationWork {
            base: instances(orchestration::KIND, orchestration_slots),
            fused,
            executor: self.orchestrations.clone(),
            settings: self.settings.episode_settings(),
            ids: self.ids.clone(),
        };
        let entities = EntityWork {
            base: instances(entity::KIND, entity_slots),
            executor: self.entities.clone(),
            settings: self.settings.entity_settings(),
            ids: self.ids.clone(),
        };
        let activities = ActivityWork {
            service: self.service.clone(),
            executor: self.activities.clone(),
            clock: self.clock.clone(),
            life: life.clone(),
            gave_back: gave_back.clone(),
        };
        let mut dispatchers = JoinSet::new();
        dispatchers.spawn(dispatch(Arc::new(orchestrations), orchestration_slots, life.clone()));
        dispatchers.spawn(dispatch(Arc::new(entities), entity_slots, life.clone()));
        dispatchers.spawn(dispatch(Arc::new(activities), activity_slots, life.clone()));
        dispatchers
    }
}

impl fmt::Debug for Worker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Worker")
            .field("orchestrations", &self.orchestrations)
            .field("activities", &self.activities)
            .field("entities", &self.entities)
            .field("settings", &self.settings)
            .finish_non_exhaustive()
    }
}

/// Collects the functions and settings of a [`Worker`].
pub struct WorkerBuilder {
    service: Arc<dyn OrchestrationService>,
    registry: Registry,
    orchestrations: Option<Arc<dyn OrchestrationExecutor>>,
    activities: Option<Arc<dyn ActivityExecutor>>,
    entities: Option<Arc<dyn EntityExecutor>>,
    settings: WorkerSettings,
    clock: Arc<dyn Clock>,
    ids: Arc<dyn IdSource>,
}

impl WorkerBuilder {
    /// Registers an orchestrator without version: `async fn(OrchestrationContext, Input) -> Result<Output, E>`.
    ///
    /// An input that is not of type `Input` fails the orchestration; an absent one reads as JSON `null`.
    #[must_use]
    pub fn orchestration<I, O, E, F, R>(self, name: &str, orchestrator: F) -> Self
    where
        I: DeserializeOwned + Send + 'static,
        O: Serialize + Send + 'static,
        E: Into<OrchestratorError> + 'static,
        F: Fn(OrchestrationContext, I) -> R + Send + Sync + 'static,
        R: Future<Output = Result<O, E>> + Send + 'static,
    {
        self.orchestration_version(name, "", orchestrator)
    }

    /// Registers one version of an orchestrator. An instance started with that version runs this one and
    /// no other.
    #[must_use]
    pub fn orchestration_version<I, O, E, F, R>(self, name: &str, version: &str, orchestrator: F) -> Self
    where
        I: DeserializeOwned + Send + 'static,
        O: Serialize + Send + 'static,
        E: Into<OrchestratorError> + 'static,
        F: Fn(OrchestrationContext, I) -> R + Send + Sync + 'static,
        R: Future<Output = Result<O, E>> + Send + 'static,
    {
        let orchestrator = taskhub_replay::orchestrator(move |context: OrchestrationContext, input: I| {
            let running = orchestrator(context, input);
            async move { running.await.map_err(Into::into) }
        });
        self.orchestrator(name, version, orchestrator)
    }

    /// Registers an orchestrator under the name, version and types of its definition.
    #[must_use]
    pub fn typed_orchestration<D, E, F, R>(self, _definition: D, orchestrator: F) -> Self
    where
        D: OrchestrationDefinition,
        D::Input: Send + 'static,
        D::Output: Send + 'static,
        E: Into<OrchestratorError> + 'static,
        F: Fn(OrchestrationContext, D::Input) -> R + Send + Sync + 'static,
        R: Future<Output = Result<D::Output, E>> + Send + 'static,
    {
        self.orchestration_version(D::NAME, D::VERSION, orchestrator)
    }

    /// Registers any implementation of [`Orchestrator`].
    #[must_use]
    pub fn orchestrator(
        mut self,
        name: &str,
        version: &str,
        orchestrator: impl Orchestrator + 'static,
    ) -> Self {
        self.registry.add_orchestration(name, version, (Arc::new(orchestrator), None));
        self
    }

    /// Registers an orchestrator that is replayed with settings of its own: one that continues instances
    /// which another SDK has begun, in a worker whose other orchestrators do not.
    #[must_use]
    pub fn orchestrator_with(
        mut self,
        name: &str,
        version: &str,
        orchestrator: impl Orchestrator + 'static,
        settings: ReplaySettings,
    ) -> Self {
        self.registry.add_orchestration(name, version, (Arc::new(orchestrator), Some(settings)));
        self
    }

    /// Registers an activity without version: `async fn(ActivityContext, Input) -> Result<Output, E>`.
    ///
    /// The input is the one argument of a JSON array, as .NET writes it, or the bare value; several
    /// arguments are a tuple. An input of another type, an error and a panic fail the call.
    #[must_use]
    pub fn activity<I, O, E, F, R>(self, name: &str, activity: F) -> Self
    where
        I: DeserializeOwned + Send + 'static,
        O: Serialize + Send + 'static,
        E: Into<ActivityError> + 'static,
        F: Fn(ActivityContext, I) -> R + Send + Sync + 'static,
        R: Future<Output = Result<O, E>> + Send + 'static,
    {
        self.activity_version(name, "", activity)
    }

    /// Registers one version of an activity.
    #[must_use]
    pub fn activity_version<I, O, E, F, R>(mut self, name: &str, version: &str, activity: F) -> Self
    where
        I: DeserializeOwned + Send + 'static,
        O: Serialize + Send + 'static,
        E: Into<ActivityError> + 'static,
        F: Fn(ActivityContext, I) -> R + Send + Sync + 'static,
        R: Future<Output = Result<O, E>> + Send + 'static,
    {
        self.registry.add_activity(name, version, activity);
        self
    }

    /// Registers an activity under the name, version and types of its definition.
    #[must_use]
    pub fn typed_activity<D, E, F, R>(self, _definition: D, activity: F) -> Self
    where
        D: ActivityDefinition,
        D::Input: Send + 'static,
        D::Output: Send + 'static,
        E: Into<ActivityError> + 'static,
        F: Fn(ActivityContext, D::Input) -> R + Send + Sync + 'static,
        R: Future<Output = Result<D::Output, E>> + Send + 'static,
    {
        self.activity_version(D::NAME, D::VERSION, activity)
    }

    /// Registers an entity: `async fn(EntityContext) -> Result<Reply, E>`, which matches on the operation. Names of
    /// entities ignore case.
    ///
    /// ```
    /// use taskhub_worker::{EntityContext, OperationError, Reply};
    ///
    /// async fn counter(ctx: EntityContext) -> Result<Reply, OperationError> {
    ///     let value: i64 = ctx.state()?.unwrap_or_default();
    ///     match ctx.operation() {
    ///         "add" => ctx.set_state(&(value + ctx.input::<Option<i64>>()?.unwrap_or(1)))?,
    ///         "get" => return Ok(ctx.reply(&value)?),
    ///         "delete" => ctx.delete_state(),
    ///         _ => return Err(ctx.unknown_operation()),
    ///     }
    ///     Ok(Reply::NONE)
    /// }
    ///
    /// # fn register(builder: taskhub_worker::WorkerBuilder) -> taskhub_worker::WorkerBuilder {
    /// builder.entity("counter", counter)
    /// # }
    /// ```
    ///
    /// An operation that returns an error or panics leaves the state and everything it asked for undone, and the
    /// caller is told; the operations after it run.
    #[must_use]
    pub fn entity<E, F, R>(mut self, name: &str, entity: F) -> Self
    where
        E: Into<OperationError> + 'static,
        F: Fn(EntityContext) -> R + Send + Sync + 'static,
        R: Future<Output = Result<Reply, E>> + Send + 'static,
    {
        let erased: EntityFn = Arc::new(move |context| {
            let running = entity(context);
            Box::pin(async move { running.await.map_err(Into::into) })
        });
        self.registry.add_entity(name, erased);
        self
    }

    /// Registers an entity whose state is a value of type `S` and whose operations are its methods.
    #[must_use]
    pub fn typed_entity<S: TypedEntity>(mut self, name: &str) -> Self {
        self.registry.add_entity(name, entity::typed::<S>());
        self
    }

    /// Runs orchestrators elsewhere than in this process; registered ones are then not used.
    #[must_use]
    pub fn orchestration_executor(mut self, executor: Arc<dyn OrchestrationExecutor>) -> Self {
        self.orchestrations = Some(executor);
        self
    }

    /// Runs activities elsewhere than in this process; registered ones are then not used.
    #[must_use]
    pub fn activity_executor(mut self, executor: Arc<dyn ActivityExecutor>) -> Self {
        self.activities = Some(executor);
        self
    }

    /// Runs entities elsewhere than in this process; registered ones are then not used.
    #[must_use]
    pub fn entity_executor(mut self, executor: Arc<dyn EntityExecutor>) -> Self {
        self.entities = Some(executor);
        self
    }

    /// Replaces the default settings.
    #[must_use]
    pub fn settings(mut self, settings: WorkerSettings) -> Self {
        self.settings = settings;
        self
    }

    /// Replaces the machine's clock.
    #[must_use]
    pub fn clock(mut self, clock: Arc<dyn Clock>) -> Self {
        self.clock = clock;
        self
    }

    /// Replaces the operating system's random ids.
    #[must_use]
    pub fn ids(mut self, ids: Arc<dyn IdSource>) -> Self {
        self.ids = ids;
        self
    }

    /// The registered orchestrators alone, with the settings of their replay: what a test needs that runs
    /// new code over recorded histories with [`taskhub_replay`].
    ///
    /// # Errors
    /// A name and version was registered twice.
    pub fn orchestrator_source(mut self) -> Result<Arc<dyn OrchestratorSource>, DuplicateRegistration> {
        self.registry.check()?;
        Ok(Arc::new(LocalSource {
            registry: Arc::new(self.registry),
            settings: self.settings.replay_settings(),
        }))
    }

    /// Names of the orchestrators registered so far, sorted.
    pub fn orchestration_names(&self) -> Vec<String> {
        self.registry.orchestration_names()
    }

    /// Finishes the worker; nothing runs yet.
    ///
    /// # Errors
    /// A name and version was registered twice.
    pub fn build(mut self) -> Result<Worker, DuplicateRegistration> {
        self.registry.check()?;
        let registry = Arc::new(self.registry);
        let orchestrations = self.orchestrations.unwrap_or_else(|| {
            Arc::new(LocalOrchestrations::new(registry.clone(), self.settings.replay_settings()))
        });
        let activities = self.activities.unwrap_or_else(|| {
            Arc::new(LocalActivities { registry: registry.clone(), error_mode: self.settings.error_mode() })
        });
        let entities =
            self.entities.unwrap_or_else(|| Arc::new(LocalEntities { registry, ids: self.ids.clone() }));
        Ok(Worker {
            service: self.service,
            orchestrations,
            activities,
            entities,
            settings: self.settings,
            clock: self.clock,
            ids: self.ids,
            shutdown: CancellationToken::new(),
            state: watch::Sender::new(WorkerState::Starting),
            metrics: WorkerMetrics::default(),
        })
    }
}

impl fmt::Debug for WorkerBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WorkerBuilder").field("settings", &self.settings).finish_non_exhaustive()
    }
}
