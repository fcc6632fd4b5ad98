use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;
use taskhub_core::{
    ActionKind, ExecutionId, FIRE_AND_FORGET_TAG, InstanceId, OrchestrationInstance, ParentInstance, Tags,
    Timestamp,
};
use uuid::Uuid;

use crate::failure::rejected;
use crate::machine::{Call, Shared};
use crate::payload::to_activity_input;
use crate::task::{EventWait, EventWaitWithTimeout, RawTask, Slot, Task, Timer};
use crate::{
    ActivityDefinition, ApplicationError, OrchestrationDefinition, OrchestratorError, PayloadError,
    RetryPolicy, from_payload, to_payload,
};

/// How an activity is called.
#[derive(Debug, Clone, Default)]
pub struct ActivityOptions {
    /// Version; DTFx writes the empty text when there is none, and so does `None`.
    pub version: Option<String>,
    /// Tags of this call.
    pub tags: Option<Tags>,
    /// When and how often a failed call is tried again.
    pub retry: Option<RetryPolicy>,
}

/// How a sub-orchestration is started.
#[derive(Debug, Clone, Default)]
pub struct SubOrchestrationOptions {
    /// Instance id; made by [`SubOrchestrationIds`](crate::SubOrchestrationIds) when there is none or a
    /// blank one.
    pub instance_id: Option<InstanceId>,
    /// Version; DTFx writes the empty text when there is none, and so does `None`.
    pub version: Option<String>,
    /// Tags of the child, in addition to those of the parent. A call with the tag `FireAndForget` is ready
    /// at once, without a result.
    pub tags: Option<Tags>,
    /// When and how often a failed call is tried again.
    pub retry: Option<RetryPolicy>,
}

/// How an orchestration continues as new.
#[derive(Debug, Clone, Default)]
pub struct ContinueAsNewOptions {
    /// Version of the next generation; the same by default.
    pub version: Option<String>,
    /// Whether the next generation begins a new trace.
    pub generate_new_trace: bool,
    /// Whether external events that nobody has waited for reach the next generation; by default as in
    /// [`ReplaySettings::preserve_unprocessed_events`](crate::ReplaySettings::preserve_unprocessed_events).
    /// Those that arrive after the request follow
    /// [`ReplaySettings::event_behaviour`](crate::ReplaySettings::event_behaviour) in any case.
    pub preserve_unprocessed_events: Option<bool>,
}

/// What an orchestrator sees and does: its identity, its clock, and the calls that become history.
///
/// Calls take effect when they are made, in that order; what they return can be awaited later, or
/// together (see [`join_all`](crate::join_all), [`race`](crate::race)).
#[derive(Debug, Clone)]
pub struct OrchestrationContext {
    shared: Arc<Shared>,
}

impl OrchestrationContext {
    pub(crate) fn new(shared: Arc<Shared>) -> Self {
        Self { shared }
    }

    pub(crate) fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    /// Id of this instance.
    pub fn instance_id(&self) -> &InstanceId {
        &self.shared.started.instance.instance_id
    }

    /// Id of this generation. Empty only in histories that DTFx did not write.
    pub fn execution_id(&self) -> &str {
        self.shared.started.instance.execution_id.as_ref().map_or("", ExecutionId::as_str)
    }

    /// Name under which this orchestrator was started.
    pub fn name(&self) -> &str {
        &self.shared.started.name
    }

    /// Version under which this orchestrator was started; empty when there is none.
    pub fn version(&self) -> &str {
        self.shared.started.version.as_deref().unwrap_or_default()
    }

    /// Who started this orchestration, if an orchestration or entity did.
    pub fn parent(&self) -> Option<&ParentInstance> {
        self.shared.started.parent.as_ref()
    }

    /// Tags of this instance.
    pub fn tags(&self) -> Option<&Tags> {
        self.shared.started.tags.as_ref()
    }

    /// The serialised input.
    pub fn raw_input(&self) -> Option<&str> {
        self.shared.started.input.as_deref()
    }

    /// The input.
    ///
    /// # Errors
    /// It is not the JSON of a `T`.
    pub fn input<T: DeserializeOwned>(&self) -> Result<T, PayloadError> {
        from_payload(self.raw_input())
    }

    /// The current time: when this episode began. The same in every replay.
    pub fn now(&self) -> Timestamp {
        self.shared.lock().now
    }

    /// Whether the code runs over what has happened already. For side effects such as logs only:
    /// decisions must not depend on it.
    pub fn is_replaying(&self) -> bool {
        self.shared.lock().is_replaying
    }

    /// A GUID that is the same in every replay, and the one a .NET orchestrator would get here (see
    /// [`ReplaySettings::guid_namespace`](crate::ReplaySettings::guid_namespace)).
    pub fn new_guid(&self) -> Uuid {
        self.shared.new_guid()
    }

    /// Sets the custom status that clients see, from the end of this episode on.
    ///
    /// # Errors
    /// The value has no JSON form.
    pub fn set_custom_status<T: Serialize + ?Sized>(&self, status: &T) -> Result<(), PayloadError> {
        self.shared.lock().custom_status = to_payload(status)?;
        Ok(())
    }

    /// Calls an activity by name. Its argument is written as an array, as .NET activities expect it.
    pub fn call_activity<I: Serialize, O: DeserializeOwned>(&self, name: &str, input: I) -> Task<O> {
        self.call_activity_with(name, input, ActivityOptions::default())
    }

    /// Calls an activity by name, with options.
    pub fn call_activity_with<I: Serialize, O: DeserializeOwned>(
        &self,
        name: &str,
        input: I,
        options: ActivityOptions,
    ) -> Task<O> {
        match to_activity_input(&input) {
            Ok(input) => Task::new(self.call_activity_raw(name, Some(input), options).0, name),
            Err(error) => Task::unsent(name, &error),
        }
    }

    /// Calls an activity by its definition.
    pub fn call<A: ActivityDefinition>(&self, input: A::Input) -> Task<A::Output> {
        self.call_with::<A>(input, ActivityOptions::default())
    }

    /// Calls an activity by its definition, with options. A version in the options comes first.
    pub fn call_with<A: ActivityDefinition>(
        &self,
        input: A::Input,
        mut options: ActivityOptions,
    ) -> Task<A::Output> {
        options.version.get_or_insert_with(|| A::VERSION.to_owned());
        self.call_activity_with(A::NAME, input, options)
    }

    /// Calls an activity with the input as it is: .NET activities need a JSON array of one argument.
    pub fn call_activity_raw(&self, name: &str, input: Option<String>, options: ActivityOptions) -> RawTask {
        let version = Some(options.version.unwrap_or_default());
        let call = Call::Activity { name: name.to_owned(), version, input, tags: options.tags };
        RawTask(self.shared.call(call, options.retry))
    }

    /// Runs another orchestration and waits for its result.
    pub fn call_sub_orchestration<I: Serialize, O: DeserializeOwned>(&self, name: &str, input: I) -> Task<O> {
        self.call_sub_orchestration_with(name, input, SubOrchestrationOptions::default())
    }

    /// Runs another orchestration and waits for its result, with options.
    pub fn call_sub_orchestration_with<I: Serialize, O: DeserializeOwned>(
        &self,
        name: &str,
        input: I,
        options: SubOrchestrationOptions,
    ) -> Task<O> {
        match to_payload(&input) {
            Ok(input) => Task::new(self.call_sub_orchestration_raw(name, input, options).0, name),
            Err(error) => Task::unsent(name, &error),
        }
    }

    /// Runs another orchestration by its definition. A version in the options comes first.
    pub fn call_orchestration<D: OrchestrationDefinition>(
        &self,
        input: D::Input,
        mut options: SubOrchestrationOptions,
    ) -> Task<D::Output> {
        options.version.get_or_insert_with(|| D::VERSION.to_owned());
        self.call_sub_orchestration_with(D::NAME, input, options)
    }

    /// Runs another orchestration on serialised values.
    ///
    /// Fails at once in a critical section ([`TaskKind::Rejected`](crate::TaskKind)).
    pub fn call_sub_orchestration_raw(
        &self,
        name: &str,
        input: Option<String>,
        options: SubOrchestrationOptions,
    ) -> RawTask {
        let is_forgotten = options.tags.as_ref().is_some_and(|tags| tags.get(FIRE_AND_FORGET_TAG).is_some());
        if let Some(rule) = self.shared.lock().may_call_orchestration().err().filter(|_| !is_forgotten) {
            return RawTask(rejected(name, &rule));
        }
        let call = Call::SubOrchestration {
            name: name.to_owned(),
            version: Some(options.version.unwrap_or_default()),
            instance_id: unless_blank(options.instance_id),
            input,
            tags: options.tags,
        };
        RawTask(self.shared.call(call, options.retry))
    }

    /// Starts another orchestration and forgets it. Returns its instance id, which
    /// [`ReplaySettings::fire_and_forget_ids`](crate::ReplaySettings::fire_and_forget_ids) makes when the
    /// options name none. Retry options have no effect:
    /// nobody learns whether it fails.
    ///
    /// # Errors
    /// The input has no JSON form.
    pub fn start_orchestration<I: Serialize>(
        &self,
        name: &str,
        input: I,
        options: SubOrchestrationOptions,
    ) -> Result<InstanceId, PayloadError> {
        let input = to_payload(&input)?;
        let version = Some(options.version.unwrap_or_default());
        let instance_id = unless_blank(options.instance_id);
        Ok(self.shared.start(name.to_owned(), version, instance_id, input, options.tags))
    }

    /// A timer that fires at a time. A time in the past fires as soon as its message is received.
    pub fn create_timer(&self, fire_at: Timestamp) -> Timer {
        Timer::new(self.shared.create_timer(fire_at), self.shared.clone())
    }

    /// A timer that fires after a duration.
    pub fn sleep(&self, duration: Duration) -> Timer {
        self.create_timer(self.now() + duration)
    }

    /// Waits for an external event; names are compared without case. Events that came before are handed
    /// out in order; of several waits for one name the most recent gets the next event, as in .NET.
    pub fn wait_for_event<T: DeserializeOwned>(&self, name: &str) -> EventWait<T> {
        self.wait_on(Arc::default(), name)
    }

    fn wait_on<T>(&self, slot: Arc<Slot>, name: &str) -> EventWait<T> {
        self.shared.lock().wait_for_event(name, &slot);
        EventWait::new(slot, self.shared.clone(), name)
    }

    /// Waits for an external event until a timer fires, which is then `None`. Whichever comes first
    /// decides when it comes, also while the code awaits something else: the event cancels the timer, the
    /// timer ends the wait.
    pub fn wait_for_event_with_timeout<T: DeserializeOwned>(
        &self,
        name: &str,
        timeout: Duration,
    ) -> EventWaitWithTimeout<T> {
        let timer = self.shared.create_timer(self.now() + timeout);
        EventWaitWithTimeout::new(self.wait_on(timer, name))
    }

    /// Sends an external event to an instance, whichever execution of it is current.
    ///
    /// # Errors
    /// The value has no JSON form, or the id is blank.
    pub fn send_event<T: Serialize + ?Sized>(
        &self,
        instance_id: impl Into<InstanceId>,
        name: &str,
        value: &T,
    ) -> Result<(), OrchestratorError> {
        self.send_event_raw(OrchestrationInstance::current(instance_id), name, to_payload(value)?)
    }

    /// Sends an external event with a serialised value.
    ///
    /// # Errors
    /// The id of the target is blank.
    pub fn send_event_raw(
        &self,
        target: OrchestrationInstance,
        name: &str,
        input: Option<String>,
    ) -> Result<(), OrchestratorError> {
        if is_blank(&target.instance_id) {
            let message = "an event needs the id of an instance";
            return Err(ApplicationError::new("System.ArgumentException", message).into());
        }
        let mut machine = self.shared.lock();
        let id = machine.take_id();
        machine.decide(id, ActionKind::SendEvent { target, name: name.to_owned(), input });
        Ok(())
    }

    /// Asks for a new generation with this input. It begins when the orchestrator returns successfully
    /// (whatever it returns) and no task is open; the last request counts.
    ///
    /// # Errors
    /// The input has no JSON form.
    pub fn continue_as_new<I: Serialize>(&self, input: I) -> Result<(), OrchestratorError> {
        self.continue_as_new_with(input, ContinueAsNewOptions::default())
    }

    /// As [`OrchestrationContext::continue_as_new`], with options.
    ///
    /// # Errors
    /// The input has no JSON form.
    pub fn continue_as_new_with<I: Serialize>(
        &self,
        input: I,
        options: ContinueAsNewOptions,
    ) -> Result<(), OrchestratorError> {
        let input = to_payload(&input)?;
        self.shared.lock().continue_as_new(input, options, &self.shared);
        Ok(())
    }
}

fn is_blank(id: &InstanceId) -> bool {
    id.as_str().trim().is_empty()
}

fn unless_blank(id: Option<InstanceId>) -> Option<InstanceId> {
    id.filter(|id| !is_blank(id))
}

/// Emits a `tracing` event unless the orchestrator is replaying, so that each line appears once.
///
/// ```
/// # fn example(ctx: &taskhub_replay::OrchestrationContext) {
/// use taskhub_replay::log;
///
/// log!(ctx, INFO, attempt = 1, "asking for approval");
/// # }
/// ```
#[macro_export]
macro_rules! log {
    ($context:expr, $level:ident, $($fields:tt)+) => {
        if !$context.is_replaying() {
            $crate::__private::tracing::event!(
                $crate::__private::tracing::Level::$level,
                instance = %$context.instance_id(),
                $($fields)+
            );
        }
    };
}
