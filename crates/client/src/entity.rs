//! Entities as clients use them. Their messages and rows are those of DTFx's own entities.

use std::time::Duration;

use taskhub_core::{
    EventKind, HistoryEvent, InstanceFetch, InstanceId, InstanceQuery, OrchestrationInstance,
    OrchestrationState, OrchestrationStatus, Timestamp,
};
pub use taskhub_entities::EntityId;
use taskhub_entities::{
    EntityStatus, InvalidEntityId, ORPHANED_LOCK, REORDER_WINDOW, ReleaseMessage, RequestMessage,
    SchedulerState, event_name,
};
use tokio::time::Instant;

use crate::{ClientError, Operation, TaskHubClient};

/// How long one call cleans. Source: Azure/durabletask, `EntityTrackingStoreQueries.CleanEntityStorageAsync`.
const CLEANING_TIME: Duration = Duration::from_secs(5);
/// How long empty pages are followed. Source: Azure/durabletask, `EntityTrackingStoreQueries`.
const EMPTY_PAGES_TIME: Duration = Duration::from_millis(100);
/// Entities per page when the caller does not say. Source: Azure/durabletask, `EntityQuery.PageSize`.
const DEFAULT_PAGE_SIZE: u32 = 100;

/// What storage tells of an entity.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EntityState {
    /// The entity.
    pub id: EntityId,
    /// Whether it has a state; `false` for one that was deleted and is not cleaned away yet.
    pub exists: bool,
    /// Its state as JSON text, when asked for.
    pub state: Option<String>,
    /// When it last did something.
    pub last_operation_at: Timestamp,
    /// Requests that wait.
    pub queue_size: u64,
    /// Instance that has locked it.
    pub locked_by: Option<InstanceId>,
}

/// Which entities to list.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct EntityQuery {
    /// Only entities of this name; any case.
    pub name: Option<String>,
    /// Last operation at or after.
    pub last_operation_from: Option<Timestamp>,
    /// Last operation at or before.
    pub last_operation_to: Option<Timestamp>,
    /// Rows per page; 100 when not given.
    pub page_size: Option<u32>,
    /// Where the previous page ended; opaque.
    pub continuation: Option<String>,
    /// Return states.
    pub fetch_state: bool,
    /// Return entities that were deleted and are not cleaned away yet.
    pub include_deleted: bool,
}

/// One page of entities. It may be short or empty while there is more.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct EntityPage {
    /// Entities in the order of their ids.
    pub entities: Vec<EntityState>,
    /// Where the next page begins; `None` at the end.
    pub continuation: Option<String>,
}

/// What to clean.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CleanEntities {
    /// Remove entities that have no state, are not in use and have done nothing for half an hour.
    pub remove_empty: bool,
    /// Unlock entities whose lock is held by an instance that does not run.
    pub release_orphaned_locks: bool,
    /// Where the last call ended.
    pub continuation: Option<String>,
}

impl Default for CleanEntities {
    fn default() -> Self {
        Self { remove_empty: true, release_orphaned_locks: true, continuation: None }
    }
}

/// What was cleaned.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CleanedEntities {
    /// Entities removed.
    pub removed: u64,
    /// Locks released, as soon as a worker gets the message.
    pub released: u64,
    /// Where to go on; `None` when everything has been looked at.
    pub continuation: Option<String>,
}

impl TaskHubClient {
    /// Sends an operation to an entity and waits for nothing. The entity is created on demand. `input` is JSON
    /// text. With `due` the operation runs at that time or later.
    ///
    /// # Errors
    /// The backend failed.
    pub async fn signal_entity(
        &self,
        id: &EntityId,
        operation: &str,
        input: Option<String>,
        due: Option<Timestamp>,
    ) -> Result<(), ClientError> {
        let now = self.now();
        let due = due.filter(|due| *due > now);
        let request = RequestMessage::signal(self.ids().guid(), operation, input);
        let request = RequestMessage { due_at: due, ..request };
        let name =
            due.map_or_else(|| event_name::REQUEST.to_owned(), |due| event_name::request_due(due, now));
        self.send_to_entity(id, &name, request.to_json()).await
    }

    async fn send_to_entity(&self, id: &EntityId, name: &str, content: String) -> Result<(), ClientError> {
        let kind = EventKind::EventRaised {
            name: Some(name.to_owned()),
            input: Some(content),
            parent_trace_context: None,
        };
        let event = HistoryEvent::message(self.now(), kind);
        self.service()
            .send_event(OrchestrationInstance::current(id.instance_id()), event)
            .await
            .map_err(ClientError::service(Operation::SignalEntity))
    }

    /// The state of an entity as its last batch of operations left it; `None` when it has none.
    ///
    /// # Errors
    /// The backend failed.
    pub async fn read_entity(&self, id: &EntityId) -> Result<Option<EntityState>, ClientError> {
        let fetch = InstanceFetch { input: true, output: false };
        let state = self.service().instance_state(&id.instance_id(), fetch).await;
        let state = state.map_err(ClientError::service(Operation::ReadEntity))?;
        Ok(state.and_then(|state| entity_of(&state, true)).filter(|entity| entity.exists))
    }

    /// One page of entities. Pages without any are followed for a tenth of a second.
    ///
    /// # Errors
    /// The backend failed, or does not know the continuation (`Invalid`).
    pub async fn list_entities(&self, query: &EntityQuery) -> Result<EntityPage, ClientError> {
        let began = Instant::now();
        let prefix = match query.name.as_deref().filter(|name| !name.is_empty()) {
            Some(name) => format!("@{}@", name.to_lowercase().trim_start_matches('@')),
            None => "@".to_owned(),
        };
        let mut instances = InstanceQuery {
            instance_id_prefix: Some(prefix),
            created_from: query.last_operation_from,
            created_to: query.last_operation_to,
            fetch: InstanceFetch { input: query.fetch_state, output: false },
            page_size: Some(query.page_size.unwrap_or(DEFAULT_PAGE_SIZE)),
            continuation: query.continuation.clone(),
            ..InstanceQuery::default()
        };
        loop {
            let page = self.list(&instances).await?;
            let entities: Vec<_> = page
                .instances
                .iter()
                .filter_map(|state| entity_of(state, query.fetch_state))
                .filter(|entity| entity.exists || query.include_deleted)
                .collect();
            let is_stuck = page.continuation == instances.continuation;
            let done = !entities.is_empty() || page.continuation.is_none() || is_stuck;
            if done || began.elapsed() >= EMPTY_PAGES_TIME {
                let continuation = page.continuation.filter(|_| !is_stuck);
                return Ok(EntityPage { entities, continuation });
            }
            instances.continuation = page.continuation;
        }
    }

    /// Removes entities that are empty and releases locks that nobody holds, for five seconds or until
    /// everything has been looked at.
    ///
    /// # Errors
    /// The backend failed.
    pub async fn clean_entity_storage(&self, what: &CleanEntities) -> Result<CleanedEntities, ClientError> {
        let began = Instant::now();
        let mut cleaned = CleanedEntities::default();
        let mut query = EntityQuery {
            continuation: what.continuation.clone(),
            include_deleted: true,
            ..EntityQuery::default()
        };
        loop {
            let page = self.list_entities(&query).await?;
            for entity in &page.entities {
                self.clean(entity, what, &mut cleaned).await?;
            }
            cleaned.continuation.clone_from(&page.continuation);
            query.continuation = page.continuation;
            if query.continuation.is_none() || began.elapsed() >= CLEANING_TIME {
                return Ok(cleaned);
            }
        }
    }

    async fn clean(
        &self,
        entity: &EntityState,
        what: &CleanEntities,
        cleaned: &mut CleanedEntities,
    ) -> Result<(), ClientError> {
        let instance_id = entity.id.instance_id();
        if let Some(owner) = entity.locked_by.as_ref().filter(|_| what.release_orphaned_locks) {
            let status = self.state(owner, InstanceFetch::NONE).await?.and_then(|state| state.status);
            if !matches!(status, Some(OrchestrationStatus::Running | OrchestrationStatus::Suspended)) {
                let release = ReleaseMessage::new(owner.as_str(), ORPHANED_LOCK);
                self.send_to_entity(&entity.id, event_name::RELEASE, release.to_json()).await?;
                cleaned.released += 1;
            }
            return Ok(());
        }
        let is_idle = !entity.exists && entity.locked_by.is_none() && entity.queue_size == 0;
        if !what.remove_empty || !is_idle {
            return Ok(());
        }
        // The list may be old by now.
        let state = self.service().instance_state(&instance_id, InstanceFetch::NONE).await;
        let Some(state) = state.map_err(ClientError::service(Operation::ReadEntity))? else { return Ok(()) };
        let still =
            entity_of(&state, false).is_some_and(|e| !e.exists && e.locked_by.is_none() && e.queue_size == 0);
        if still && self.now().saturating_since(state.last_updated_at) > REORDER_WINDOW {
            let purged = self.service().purge_instance(&instance_id).await;
            cleaned.removed += purged.map_err(ClientError::service(Operation::Purge))?.instances;
        }
        Ok(())
    }
}

/// What a row tells of its entity: existence, queue and lock from its custom status, the state from its input.
///
/// Differs: DTFx looks for the text `entityExists` anywhere in the status, so that `false` counts as true.
fn entity_of(row: &OrchestrationState, with_state: bool) -> Option<EntityState> {
    let id = EntityId::of_instance(&row.instance.instance_id)?;
    let status = row.custom_status.as_deref().and_then(|text| EntityStatus::from_json(text).ok());
    let status = status.unwrap_or_default();
    let mut state = None;
    if with_state {
        let scheduler = row.input.as_deref().and_then(|text| SchedulerState::from_json(text).ok());
        state = scheduler.and_then(|scheduler| scheduler.state);
    }
    Some(EntityState {
        id,
        exists: if with_state { state.is_some() } else { status.entity_exists },
        state,
        last_operation_at: row.created_at,
        queue_size: status.queue_size,
        locked_by: status.locked_by.filter(|owner| !owner.is_empty()).map(Into::into),
    })
}

impl From<InvalidEntityId> for ClientError {
    fn from(error: InvalidEntityId) -> Self {
        match error {
            InvalidEntityId::NoName => Self::Blank { argument: "entity name" },
            _ => Self::BadEntityId,
        }
    }
}

#[cfg(test)]
mod tests {
    use taskhub_core::OrchestrationStatus::{Completed, Running};

    use super::*;
    use crate::fake::{FakeService, NOW, client};

    fn id(text: &str) -> EntityId {
        text.parse().unwrap()
    }

    /// The second one is a message of DTFx 2.9.1, but for its id.
    #[tokio::test]
    async fn a_signal_is_written_as_dtfx_writes_it() {
        let (client, fake) = client(FakeService::default());
        let counter = id("@counter@direct");
        client.signal_entity(&counter, "add", Some("5".into()), None).await.unwrap();
        client.signal_entity(&counter, "add", None, None).await.unwrap();
        let inputs: Vec<_> = fake
            .sent()
            .into_iter()
            .map(|(target, event)| match event.kind {
                EventKind::EventRaised { name: Some(name), input: Some(input), .. } => (target, name, input),
                other => panic!("{other:?}"),
            })
            .collect();
        let guid = |text: &str| text.split("\"id\":\"").nth(1).unwrap()[..36].to_owned();
        let expected = [
            r#"{"op":"add","signal":true,"input":"5","id":"GUID","Timestamp":"0001-01-01T00:00:00","Predecessor":"0001-01-01T00:00:00","IsLockRequest":false,"createTrace":false}"#,
            r#"{"op":"add","signal":true,"id":"GUID","Timestamp":"0001-01-01T00:00:00","Predecessor":"0001-01-01T00:00:00","IsLockRequest":false,"createTrace":false}"#,
        ];
        for ((target, name, input), expected) in inputs.iter().zip(expected) {
            assert_eq!(*target, OrchestrationInstance::current("@counter@direct"));
            assert_eq!(name, "op");
            assert_eq!(input.replace(&guid(input), "GUID"), expected);
        }
    }

    #[tokio::test]
    async fn a_late_signal_says_when_it_is_due_and_travels_for_six_days_at_most() {
        let (client, fake) = client(FakeService::default());
        let days = |n: u64| NOW.parse() + Duration::from_secs(n * 24 * 3600);
        for (due, name) in [
            (days(0), "op".to_owned()),
            (days(2), format!("op@{}", days(2).to_round_trip())),
            (days(10), format!("op@{}", days(6).to_round_trip())),
        ] {
            client.signal_entity(&id("@counter@a"), "reset", None, Some(due)).await.unwrap();
            let (_, event) = fake.sent().pop().unwrap();
            let EventKind::EventRaised { name: sent, input: Some(input), .. } = event.kind else { panic!() };
            assert_eq!(sent, Some(name.clone()));
            let asked_for = format!("\"due\":\"{}\"", due.to_iso());
            assert_eq!(input.contains(&asked_for), name != "op", "{input}");
        }
    }

    fn hub() -> FakeService {
        let row = |status: &str, input: &str| {
            let (status, input) = (status.to_owned(), input.to_owned());
            move |state: &mut OrchestrationState| {
                state.custom_status = Some(status);
                state.input = Some(input);
            }
        };
        let alive = r#"{"entityExists":true}"#;
        FakeService::default()
            .with_state("@counter@a", Running)
            .with("@counter@a", row(alive, r#"{"state":"5","sorter":{}}"#))
            .with_state("@counter@old", Running)
            .with("@counter@old", row("{}", r#"{"exists":false,"state":"null","sorter":{}}"#))
            .with_state("@counter@busy", Running)
            .with("@counter@busy", row(r#"{"queueSize":2}"#, r#"{"sorter":{}}"#))
            .with_state("@lock@x", Running)
            .with("@lock@x", row(r#"{"entityExists":true,"lockedBy":"owner"}"#, r#"{"state":"1"}"#))
            .with_state("owner", Completed)
            .with_state("counter", Running)
    }

    #[tokio::test]
    async fn a_state_is_read_if_there_is_one() {
        let (client, _) = client(hub());
        let found = client.read_entity(&id("@COUNTER@a")).await.unwrap().unwrap();
        assert_eq!((found.state.as_deref(), found.exists), (Some("5"), true));
        for none in ["@counter@A", "@counter@old", "@counter@busy"] {
            assert_eq!(client.read_entity(&id(none)).await.unwrap(), None, "{none}");
        }
    }

    #[tokio::test]
    async fn entities_are_listed_without_the_deleted_ones() {
        let (client, _) = client(hub());
        let keys = |page: EntityPage| page.entities.iter().map(|e| e.id.to_string()).collect::<Vec<_>>();
        let all = client.list_entities(&EntityQuery::default()).await.unwrap();
        assert_eq!(keys(all), ["@counter@a", "@lock@x"]);
        let query =
            EntityQuery { name: Some("Counter".into()), include_deleted: true, ..EntityQuery::default() };
        let counters = client.list_entities(&query).await.unwrap();
        assert_eq!(keys(counters), ["@counter@a", "@counter@busy", "@counter@old"]);
        let paged = EntityQuery { page_size: Some(1), fetch_state: true, ..EntityQuery::default() };
        let first = client.list_entities(&paged).await.unwrap();
        assert_eq!(first.entities[0].state.as_deref(), Some("5"));
        assert!(first.continuation.is_some());
    }

    #[tokio::test]
    async fn empty_entities_are_removed_after_half_an_hour_and_orphaned_locks_released() {
        let clean = CleanEntities::default();
        let (fresh, fake) = client(hub());
        let cleaned = fresh.clean_entity_storage(&clean).await.unwrap();
        assert_eq!((cleaned.removed, cleaned.released, cleaned.continuation), (0, 1, None));
        let (target, event) = fake.sent().pop().unwrap();
        assert_eq!(target, OrchestrationInstance::current("@lock@x"));
        let EventKind::EventRaised { name, input, .. } = event.kind else { panic!() };
        assert_eq!(name.as_deref(), Some("release"));
        assert_eq!(input.as_deref(), Some(r#"{"parent":"owner","id":"fix-orphaned-lock"}"#));

        let long_ago = Timestamp::parse("2026-01-15T08:59:00Z").unwrap();
        let (idle, fake) = client(hub().with("@counter@old", |state| state.last_updated_at = long_ago));
        let cleaned = idle.clean_entity_storage(&clean).await.unwrap();
        assert_eq!(cleaned.removed, 1);
        assert!(!fake.ids().contains(&"@counter@old".to_owned()));
        let (held, fake) = client(hub().with("owner", |owner| owner.status = Some(Running)));
        assert_eq!(held.clean_entity_storage(&clean).await.unwrap().released, 0);
        assert!(fake.sent().is_empty());
    }
}
