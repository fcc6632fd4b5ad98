use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use futures::{StreamExt as _, TryStreamExt as _, stream};
use serde::Serialize;
use taskhub_core::{
    Clock, EventKind, ExecutionId, FIRE_AND_FORGET_TAG, HistoryEvent, IdSource, InstanceFetch, InstanceId,
    OrchestrationInstance, OrchestrationServiceClient, OrchestrationState, RandomIds, SystemClock, Timestamp,
};

use crate::{ClientError, Operation, instance_id};

/// States read at once by one call.
const STATES_AT_ONCE: usize = 16;

/// A client of one task hub. Clones share the backend.
#[derive(Clone)]
pub struct TaskHubClient {
    service: Arc<dyn OrchestrationServiceClient>,
    clock: Arc<dyn Clock>,
    ids: Arc<dyn IdSource>,
    checks_status: bool,
}

impl fmt::Debug for TaskHubClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TaskHubClient").field("checks_status", &self.checks_status).finish_non_exhaustive()
    }
}

impl TaskHubClient {
    /// A client with this machine's clock and random ids.
    pub fn new(service: Arc<dyn OrchestrationServiceClient>) -> Self {
        Self { service, clock: Arc::new(SystemClock), ids: Arc::new(RandomIds), checks_status: false }
    }

    /// The same client with another clock and source of ids.
    pub fn with_environment(mut self, clock: Arc<dyn Clock>, ids: Arc<dyn IdSource>) -> Self {
        self.clock = clock;
        self.ids = ids;
        self
    }

    /// Whether to look before sending. With checks, as Durable Functions' client does: raising an event,
    /// terminating, suspending and resuming are errors when there is no such instance or its status does
    /// not allow it, and only finished instances are purged. Without (the default), as DTFx's
    /// `TaskHubClient` does: everything is sent, and workers discard what has no effect.
    pub fn with_status_checks(mut self, on: bool) -> Self {
        self.checks_status = on;
        self
    }

    pub(crate) fn checks_status(&self) -> bool {
        self.checks_status
    }

    pub(crate) fn service(&self) -> &dyn OrchestrationServiceClient {
        &*self.service
    }

    /// A new random GUID as 32 hex digits, the form of generated instance ids.
    pub fn new_guid(&self) -> String {
        self.ids.guid().simple().to_string()
    }

    pub(crate) fn ids(&self) -> &dyn IdSource {
        &*self.ids
    }

    /// The current time of the client's clock.
    pub fn now(&self) -> Timestamp {
        self.clock.now()
    }

    /// The state of an instance, `None` when there is no such instance.
    ///
    /// # Errors
    /// `Invalid`: a blank or impossible id. Others: the backend failed.
    pub async fn state(
        &self,
        instance_id: &InstanceId,
        fetch: InstanceFetch,
    ) -> Result<Option<OrchestrationState>, ClientError> {
        instance_id::check(instance_id)?;
        self.service.instance_state(instance_id, fetch).await.map_err(ClientError::service(Operation::Query))
    }

    /// The states of several instances, in the order of their ids; `None` where there is no such instance.
    ///
    /// # Errors
    /// As [`TaskHubClient::state`].
    pub async fn states(
        &self,
        instance_ids: &[InstanceId],
        fetch: InstanceFetch,
    ) -> Result<Vec<Option<OrchestrationState>>, ClientError> {
        let reads = instance_ids.iter().map(|id| self.state(id, fetch));
        stream::iter(reads).buffered(STATES_AT_ONCE).try_collect().await
    }

    /// The history of the current execution, in order; empty when there is none.
    ///
    /// # Errors
    /// `Invalid`: a blank or impossible id. Others: the backend failed.
    pub async fn history(&self, instance_id: &InstanceId) -> Result<Vec<HistoryEvent>, ClientError> {
        self.history_of(instance_id, None).await
    }

    /// The history of one execution, or of the current one.
    ///
    /// # Errors
    /// As [`TaskHubClient::history`].
    pub async fn history_of(
        &self,
        instance_id: &InstanceId,
        execution_id: Option<&ExecutionId>,
    ) -> Result<Vec<HistoryEvent>, ClientError> {
        instance_id::check(instance_id)?;
        self.service
            .history(instance_id, execution_id)
            .await
            .map_err(ClientError::service(Operation::History))
    }

    /// Sends an external event. It is addressed to the instance, not to an execution, so that a
    /// continue-as-new does not lose it; an instance that does not wait for it keeps it.
    ///
    /// # Errors
    /// `Invalid`: a blank id or event name, a payload without JSON form. Others: see
    /// [`TaskHubClient::with_status_checks`]; the backend failed.
    pub async fn raise_event<T: Serialize + ?Sized>(
        &self,
        instance_id: &InstanceId,
        name: &str,
        payload: &T,
    ) -> Result<(), ClientError> {
        let text = serde_json::to_string(payload)
            .map_err(|source| ClientError::Payload { argument: "event data", source })?;
        self.raise_raw_event(instance_id, name, Some(text)).await
    }

    /// As [`TaskHubClient::raise_event`], with the payload as it is to be stored: JSON text or nothing.
    ///
    /// # Errors
    /// As there.
    pub async fn raise_raw_event(
        &self,
        instance_id: &InstanceId,
        name: &str,
        payload: Option<String>,
    ) -> Result<(), ClientError> {
        if name.trim().is_empty() {
            return Err(ClientError::Blank { argument: "event name" });
        }
        let kind = EventKind::EventRaised {
            name: Some(name.to_owned()),
            input: payload,
            parent_trace_context: None,
        };
        self.send(Operation::RaiseEvent, instance_id, kind).await
    }

    /// Asks an instance to end. It stops at its next await, with the reason as output; its activities
    /// and sub-orchestrations run on.
    ///
    /// # Errors
    /// `Invalid`: a blank id. Others: see [`TaskHubClient::with_status_checks`]; the backend failed.
    pub async fn terminate(&self, instance_id: &InstanceId, reason: Option<&str>) -> Result<(), ClientError> {
        let kind = EventKind::ExecutionTerminated { input: reason.map(str::to_owned) };
        self.send(Operation::Terminate, instance_id, kind).await
    }

    /// Terminates an instance and its sub-orchestrations, theirs too, but none that was started without
    /// waiting for it. Returns whom it has sent the message to, the instance itself first. The instance gets
    /// its message before its children are looked for, so what it started until then is found.
    ///
    /// # Errors
    /// As [`TaskHubClient::terminate`]; a sub-orchestration that has finished is no error.
    pub async fn terminate_recursively(
        &self,
        instance_id: &InstanceId,
        reason: Option<&str>,
    ) -> Result<Vec<InstanceId>, ClientError> {
        self.terminate(instance_id, reason).await?;
        let unchecked = self.clone().with_status_checks(false);
        let mut sent = vec![instance_id.clone()];
        let mut next = 0;
        while let Some(parent) = sent.get(next) {
            next += 1;
            let children = open_children(&self.history(parent).await?);
            for child in children {
                if !sent.contains(&child) {
                    unchecked.terminate(&child, reason).await?;
                    sent.push(child);
                }
            }
        }
        Ok(sent)
    }

    /// Asks an instance to pause. Results and events are kept, the orchestrator makes no progress.
    ///
    /// # Errors
    /// As [`TaskHubClient::terminate`].
    pub async fn suspend(&self, instance_id: &InstanceId, reason: Option<&str>) -> Result<(), ClientError> {
        let kind = EventKind::ExecutionSuspended { reason: reason.map(str::to_owned) };
        self.send(Operation::Suspend, instance_id, kind).await
    }

    /// Lets a suspended instance go on.
    ///
    /// # Errors
    /// As [`TaskHubClient::terminate`].
    pub async fn resume(&self, instance_id: &InstanceId, reason: Option<&str>) -> Result<(), ClientError> {
        let kind = EventKind::ExecutionResumed { reason: reason.map(str::to_owned) };
        self.send(Operation::Resume, instance_id, kind).await
    }

    /// Creates what is missing of the hub.
    ///
    /// # Errors
    /// The backend failed.
    pub async fn create_hub(&self) -> Result<(), ClientError> {
        self.service.create_hub().await.map_err(ClientError::service(Operation::CreateHub))
    }

    /// Deletes the hub with everything in it.
    ///
    /// # Errors
    /// The backend failed.
    pub async fn delete_hub(&self) -> Result<(), ClientError> {
        self.service.delete_hub().await.map_err(ClientError::service(Operation::DeleteHub))
    }

    async fn send(
        &self,
        operation: Operation,
        instance_id: &InstanceId,
        kind: EventKind,
    ) -> Result<(), ClientError> {
        instance_id::check(instance_id)?;
        self.checked(operation, instance_id).await?;
        let event = HistoryEvent::message(self.clock.now(), kind);
        tracing::debug!(instance = %instance_id, event = event.name(), "sending");
        self.service
            .send_event(OrchestrationInstance::current(instance_id.clone()), event)
            .await
            .map_err(ClientError::service(operation))
    }

    async fn checked(&self, operation: Operation, instance_id: &InstanceId) -> Result<(), ClientError> {
        if !self.checks_status {
            return Ok(());
        }
        let Some(state) = self.state(instance_id, InstanceFetch::NONE).await? else {
            return Err(ClientError::NotFound { instance: instance_id.clone() });
        };
        match state.status {
            Some(status) if !operation.allows(status) => {
                Err(ClientError::WrongStatus { operation, instance: instance_id.clone(), status })
            }
            _ => Ok(()),
        }
    }
}

/// Sub-orchestrations that the history has no result of.
fn open_children(history: &[HistoryEvent]) -> Vec<InstanceId> {
    let mut open: BTreeMap<i32, InstanceId> = BTreeMap::new();
    for event in history {
        match &event.kind {
            EventKind::SubOrchestrationInstanceCreated { instance_id, tags, .. }
                if tags.as_ref().is_none_or(|tags| tags.get(FIRE_AND_FORGET_TAG).is_none()) =>
            {
                open.insert(event.event_id, instance_id.clone());
            }
            EventKind::SubOrchestrationInstanceCompleted { task_scheduled_id, .. }
            | EventKind::SubOrchestrationInstanceFailed { task_scheduled_id, .. } => {
                open.remove(task_scheduled_id);
            }
            _ => {}
        }
    }
    open.into_values().collect()
}

#[cfg(test)]
mod tests {
    use taskhub_core::ErrorKind;
    use taskhub_core::OrchestrationStatus::{self, Completed, Failed, Pending, Running, Suspended};

    use super::*;
    use crate::fake::{FakeService, NOW, client};

    #[tokio::test]
    async fn events_are_dtfx_messages_to_whatever_execution_is_current() {
        let (client, fake) = client(FakeService::default());
        let id = InstanceId::new("order-42");
        client.raise_event(&id, "Approved", &true).await.unwrap();
        client.terminate(&id, Some("cancelled by user")).await.unwrap();
        client.suspend(&id, Some("maintenance")).await.unwrap();
        client.resume(&id, None).await.unwrap();

        let kinds = [
            EventKind::EventRaised {
                name: Some("Approved".into()),
                input: Some("true".into()),
                parent_trace_context: None,
            },
            EventKind::ExecutionTerminated { input: Some("cancelled by user".into()) },
            EventKind::ExecutionSuspended { reason: Some("maintenance".into()) },
            EventKind::ExecutionResumed { reason: None },
        ];
        let expected: Vec<_> = kinds
            .into_iter()
            .map(|kind| {
                (OrchestrationInstance::current("order-42"), HistoryEvent::message(NOW.parse(), kind))
            })
            .collect();
        assert_eq!(fake.sent(), expected);
    }

    #[tokio::test]
    async fn a_recursive_termination_reaches_all_that_is_waited_for() {
        let created = |id: i32, child: &str, forgotten: bool| {
            let kind = EventKind::SubOrchestrationInstanceCreated {
                name: Some("Child".into()),
                version: None,
                instance_id: child.into(),
                input: None,
                client_span_id: None,
                tags: forgotten.then(|| [(FIRE_AND_FORGET_TAG, "")].into_iter().collect()),
            };
            HistoryEvent::decision(id, NOW.parse(), kind)
        };
        let done = EventKind::SubOrchestrationInstanceCompleted { task_scheduled_id: 1, result: None };
        let fake = FakeService::default()
            .with_history(
                "root",
                vec![
                    created(0, "open", false),
                    created(1, "done", false),
                    created(2, "forgotten", true),
                    HistoryEvent::message(NOW.parse(), done),
                ],
            )
            // A circle does not go on for ever.
            .with_history("open", vec![created(0, "deep", false), created(1, "root", false)]);
        let (client, fake) = client(fake);
        let sent = client.terminate_recursively(&"root".into(), Some("stop")).await.unwrap();
        assert_eq!(sent, ["root", "open", "deep"].map(InstanceId::from));
        let targets: Vec<_> = fake.sent().into_iter().map(|(target, _)| target.instance_id).collect();
        assert_eq!(targets, sent);
    }

    #[tokio::test]
    async fn several_states_come_in_the_order_of_their_ids() {
        let fake = FakeService::default().with_state("a", Running).with_state("b", Failed);
        let (client, _) = client(fake);
        let ids = ["b", "nobody", "a"].map(InstanceId::from);
        let states = client.states(&ids, InstanceFetch::NONE).await.unwrap();
        let statuses: Vec<_> = states.into_iter().map(|s| s.and_then(|s| s.status)).collect();
        assert_eq!(statuses, [Some(Failed), None, Some(Running)]);
    }

    #[tokio::test]
    async fn blank_ids_and_event_names_are_refused() {
        let (client, fake) = client(FakeService::default());
        let event = client.raise_raw_event(&"a".into(), " ", None).await.unwrap_err();
        assert_eq!(event.to_string(), "the event name must not be empty");
        let id = client.terminate(&"".into(), None).await.unwrap_err();
        assert_eq!(id.to_string(), "the instance id must not be empty");
        assert!(fake.sent().is_empty());
    }

    #[tokio::test]
    async fn status_checks_follow_durable_functions() {
        use Operation::{Purge, RaiseEvent, Resume, Suspend, Terminate};
        for (operation, allowed) in [
            (RaiseEvent, &[Running, Pending, Suspended][..]),
            (Terminate, &[Running, Pending, Suspended]),
            (Suspend, &[Running, Pending]),
            (Resume, &[Suspended]),
            (Purge, &[Completed, Failed]),
        ] {
            for status in [Running, Pending, Suspended, Completed, Failed] {
                let result = run(operation, Some(status)).await;
                assert_eq!(result.is_ok(), allowed.contains(&status), "{operation:?} {status}");
            }
            let missing = run(operation, None).await.map_err(|e| e.kind());
            let expected = if operation == Purge { Ok(()) } else { Err(ErrorKind::NotFound) };
            assert_eq!(missing, expected, "{operation:?}");
        }
    }

    async fn run(operation: Operation, status: Option<OrchestrationStatus>) -> Result<(), ClientError> {
        let fake = FakeService::default();
        let (client, _) = client(match status {
            Some(status) => fake.with_state("a", status),
            None => fake,
        });
        let (client, id) = (client.with_status_checks(true), InstanceId::new("a"));
        match operation {
            Operation::RaiseEvent => client.raise_event(&id, "e", &1).await,
            Operation::Terminate => client.terminate(&id, None).await,
            Operation::Suspend => client.suspend(&id, None).await,
            Operation::Resume => client.resume(&id, None).await,
            Operation::Purge => client.purge(&id).await.map(|_| ()),
            _ => Ok(()),
        }
    }
}
