//! Entities that run: counters under signals of every kind.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use taskhub_azure_storage::AzureStorageSettings;
use taskhub_client::{EntityId, EntityQuery, Start};
use taskhub_core::{EventKind, HistoryEvent, OrchestrationInstance, OrchestrationServiceClient as _};
use taskhub_entities::{MessageSorter, RequestMessage, event_name};
use taskhub_worker::samples::{self, SampleOptions};
use taskhub_worker::{EntityContext, OperationError, Operations, Reply, TypedEntity, WorkerSettings};
use uuid::Uuid;

use crate::support::World;

fn id(text: &str) -> EntityId {
    text.parse().unwrap()
}

async fn signal(world: &World, entity: &str, operation: &str, input: &str) {
    let input = (!input.is_empty()).then(|| input.to_owned());
    world.client.signal_entity(&id(entity), operation, input, None).await.unwrap();
}

async fn state(world: &World, entity: &str) -> Option<String> {
    world.client.read_entity(&id(entity)).await.unwrap().and_then(|entity| entity.state)
}

/// Waits until the entity has this state; a virtual hour at most.
async fn becomes(world: &World, entity: &str, expected: &str) {
    let reached = async {
        while state(world, entity).await.as_deref() != Some(expected) {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    if tokio::time::timeout(Duration::from_secs(3600), reached).await.is_err() {
        panic!("{entity} is {:?} instead of {expected}", state(world, entity).await);
    }
}

/// Waits until nothing can be on its way any more.
async fn settle() {
    tokio::time::sleep(Duration::from_secs(120)).await;
}

#[tokio::test(start_paused = true)]
async fn signals_of_a_client_make_a_counter() {
    let world = World::new();
    signal(&world, "@Counter@direct", "add", "5").await;
    signal(&world, "@counter@direct", "add", "").await;
    let worker = world.samples();
    becomes(&world, "@counter@direct", "6").await;
    let row = world.state("@counter@direct").await;
    assert_eq!(row.custom_status.as_deref(), Some(r#"{"entityExists":true}"#));
    assert_eq!(row.input.as_deref(), Some(r#"{"exists":true,"state":"6","sorter":{}}"#));
    let events = world.events("@counter@direct").await;
    assert_eq!(events, ["OrchestratorStarted", "ExecutionStarted", "OrchestratorCompleted"]);
    signal(&world, "@counter@direct", "nonsense", "").await;
    signal(&world, "@counter@direct", "add", "\"not a number\"").await;
    signal(&world, "@counter@direct", "reset", "").await;
    becomes(&world, "@counter@direct", "0").await;
    signal(&world, "@counter@direct", "delete", "").await;
    settle().await;
    assert_eq!(state(&world, "@counter@direct").await, None);
    let query = EntityQuery { include_deleted: true, ..EntityQuery::default() };
    let page = world.client.list_entities(&query).await.unwrap();
    assert_eq!((page.entities.len(), page.entities[0].exists), (1, false));
    worker.stop().await;
}

#[tokio::test(start_paused = true)]
async fn an_entity_signals_others_and_starts_orchestrations() {
    let world = World::new();
    let worker = world.samples();
    signal(&world, "@counter@relay", "relay", "\"@counter@end\"").await;
    becomes(&world, "@counter@end", "11").await;
    world.completes("started-by-entity", r#"["Hello Tokyo!","Hello Seattle!","Hello London!"]"#).await;
    worker.stop().await;
}

#[tokio::test(start_paused = true)]
async fn delayed_signals_come_when_they_are_due_however_far_away() {
    let world = World::new();
    // Little goes on in a week.
    let rarely = |settings: &mut AzureStorageSettings| {
        settings.use_app_lease = false;
        settings.lease_interval = Duration::from_secs(4 * 3600);
        settings.lease_renew_interval = Duration::from_secs(3600);
        settings.lease_acquire_interval = Duration::from_secs(3600);
        settings.max_queue_polling_interval = Duration::from_secs(600);
    };
    let worker = world.worker_named("w1", rarely, |b| samples::register(b, SampleOptions::default()));
    let now = world.client.now();
    for seconds in [30, 8 * 24 * 3600] {
        let due = now + Duration::from_secs(seconds);
        let input = Some("1".to_owned());
        world.client.signal_entity(&id("@counter@later"), "add", input, Some(due)).await.unwrap();
    }
    tokio::time::sleep(Duration::from_secs(29)).await;
    assert_eq!(state(&world, "@counter@later").await, None);
    becomes(&world, "@counter@later", "1").await;
    tokio::time::sleep(Duration::from_secs(8 * 24 * 3600 - 1000)).await;
    assert_eq!(state(&world, "@counter@later").await.as_deref(), Some("1"));
    assert_eq!(worker.entity_batches(), 2, "one for the signal, one for the hop after six days");
    becomes(&world, "@counter@later", "2").await;
    assert!(world.client.now() > now + Duration::from_secs(8 * 24 * 3600));
    worker.stop().await;
}

/// Sends requests as another instance does.
struct Sender<'a> {
    world: &'a World,
    instance: &'a str,
    sorter: Option<MessageSorter>,
    sent: u128,
}

impl Sender<'_> {
    fn add(&mut self, entity: &str) -> RequestMessage {
        self.sent += 1;
        let mut request = RequestMessage::signal(Uuid::from_u128(self.sent), "add", Some("1".into()))
            .from_instance(self.instance, Some("e".into()));
        if let Some(sorter) = &mut self.sorter {
            sorter.label_outgoing(&mut request, entity, self.world.client.now());
        }
        request
    }
}

async fn send(world: &World, entity: &str, request: &RequestMessage) {
    raise(world, entity, event_name::REQUEST, &request.to_json()).await;
}

async fn raise(world: &World, entity: &str, name: &str, input: &str) {
    let kind = EventKind::EventRaised {
        name: Some(name.into()),
        input: Some(input.into()),
        parent_trace_context: None,
    };
    let event = HistoryEvent::message(world.client.now(), kind);
    let service = world.hub.open("sender").unwrap();
    let service = taskhub_azure_storage::AzureStorageClient::new(service);
    service.send_event(OrchestrationInstance::current(entity), event).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn stamped_requests_count_once_in_any_order_and_others_as_often_as_they_come() {
    let world = World::new();
    let worker = world.samples();
    let mut stamped =
        Sender { world: &world, instance: "order-1", sorter: Some(MessageSorter::default()), sent: 0 };
    let requests: Vec<_> = (0..6).map(|_| stamped.add("@counter@a")).collect();
    for at in [3, 1, 1, 0, 5, 3, 2, 4, 0, 5] {
        send(&world, "@counter@a", &requests[at]).await;
        tokio::time::sleep(Duration::from_secs(at as u64)).await;
    }
    becomes(&world, "@counter@a", "6").await;
    let mut bare = Sender { world: &world, instance: "order-2", sorter: None, sent: 0 };
    let request = bare.add("@counter@a");
    send(&world, "@counter@a", &request).await;
    send(&world, "@counter@a", &request).await;
    becomes(&world, "@counter@a", "8").await;
    settle().await;
    assert_eq!(state(&world, "@counter@a").await.as_deref(), Some("8"));
    worker.stop().await;
}

#[tokio::test(start_paused = true)]
async fn an_event_that_is_no_request_does_not_stop_an_entity() {
    let world = World::new();
    let worker = world.samples();
    for (name, input) in [("operation", "{}"), ("op", "5"), ("release", "x"), ("hello", "1")] {
        raise(&world, "@counter@a", name, input).await;
    }
    signal(&world, "@counter@a", "add", "").await;
    becomes(&world, "@counter@a", "1").await;
    worker.stop().await;
}

#[tokio::test(start_paused = true)]
async fn an_operation_that_fails_is_undone_with_all_it_asked_for_and_the_others_are_not() {
    let world = World::new();
    signal(&world, "@picky@a", "good", "").await;
    signal(&world, "@picky@a", "bad", "").await;
    signal(&world, "@picky@a", "panics", "").await;
    signal(&world, "@picky@a", "good", "").await;
    let worker = world.worker(|builder| {
        samples::register(builder, SampleOptions::default()).entity(
            "picky",
            |ctx: EntityContext| async move {
                ctx.signal_entity(&id("@counter@told"), "add", 1)?;
                ctx.set_state(&(ctx.state::<u32>()?.unwrap_or_default() + 1))?;
                match ctx.operation() {
                    "bad" => Err(OperationError::from("no")),
                    "panics" => panic!("no"),
                    _ => Ok(Reply::NONE),
                }
            },
        )
    });
    becomes(&world, "@picky@a", "2").await;
    becomes(&world, "@counter@told", "2").await;
    settle().await;
    assert_eq!(state(&world, "@counter@told").await.as_deref(), Some("2"));
    worker.stop().await;
}

#[derive(Default, Serialize, Deserialize)]
struct Account {
    value: i64,
}

impl Account {
    async fn add(&mut self, _: EntityContext, amount: i64) -> Result<(), OperationError> {
        self.value += amount;
        if self.value < 0 { Err("too little".into()) } else { Ok(()) }
    }

    async fn close(&mut self, ctx: EntityContext, _: ()) -> Result<i64, OperationError> {
        ctx.delete_state();
        Ok(self.value)
    }
}

impl TypedEntity for Account {
    fn operations() -> Operations<Self> {
        Operations::new().operation("Add", Account::add).operation("close", Account::close)
    }
}

#[tokio::test(start_paused = true)]
async fn a_type_is_an_entity_whose_methods_are_operations() {
    let world = World::new();
    let worker = world.worker(|builder| builder.typed_entity::<Account>("Account"));
    for (operation, input) in [("Add", "5"), ("add", "-9"), ("ADD", "2"), ("nonsense", "")] {
        signal(&world, "@account@a", operation, input).await;
    }
    becomes(&world, "@account@a", r#"{"value":7}"#).await;
    let more = [("@account@a", "close", ""), ("@account@b", "Delete", ""), ("@account@c", "add", "1")];
    for (entity, operation, input) in more {
        signal(&world, entity, operation, input).await;
    }
    becomes(&world, "@account@c", r#"{"value":1}"#).await;
    settle().await;
    assert_eq!(state(&world, "@account@a").await, None);
    assert_eq!(state(&world, "@account@b").await, None);
    worker.stop().await;
}

#[tokio::test(start_paused = true)]
async fn an_entity_of_an_unknown_name_waits_for_a_worker_that_has_it() {
    let world = World::new();
    signal(&world, "@rare@a", "add", "").await;
    signal(&world, "@counter@a", "add", "").await;
    let first = world.samples();
    becomes(&world, "@counter@a", "1").await;
    settle().await;
    assert_eq!(state(&world, "@rare@a").await, None);
    first.stop().await;
    let second = world.worker(|builder| {
        builder.entity("rare", |ctx: EntityContext| async move {
            ctx.set_state("found")?;
            Ok::<_, OperationError>(Reply::NONE)
        })
    });
    becomes(&world, "@rare@a", "\"found\"").await;
    second.stop().await;
}

#[tokio::test(start_paused = true)]
async fn batches_are_bounded_and_a_thousand_signals_make_no_storm() {
    let world = World::new();
    for _ in 0..1000 {
        signal(&world, "@busy@a", "add", "").await;
    }
    let operations = Arc::new(AtomicUsize::new(0));
    let counted = operations.clone();
    let worker = world.worker(|builder| {
        let settings = WorkerSettings { max_entity_operation_batch_size: 20, ..WorkerSettings::default() };
        builder.settings(settings).entity("busy", move |ctx: EntityContext| {
            counted.fetch_add(1, Ordering::Relaxed);
            async move {
                ctx.set_state(&(ctx.state::<u32>()?.unwrap_or_default() + 1))?;
                Ok::<_, OperationError>(Reply::NONE)
            }
        })
    });
    becomes(&world, "@busy@a", "1000").await;
    settle().await;
    assert_eq!(operations.load(Ordering::Relaxed), 1000);
    // Every batch stores something, so that none is run for nothing; reminders bring one more now and then.
    let batches = worker.entity_batches();
    assert!((50..=110).contains(&batches), "{batches}");
    worker.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_large_state_lives_in_a_blob_and_its_older_versions_do_not_stay() {
    let world = World::new();
    let worker = world.worker(|builder| {
        builder.entity("book", |ctx: EntityContext| async move {
            ctx.set_state(&ctx.input::<String>()?.repeat(100_000))?;
            Ok::<_, OperationError>(Reply::NONE)
        })
    });
    for letter in ["a", "b", "é"] {
        signal(&world, "@book@a", "write", &format!("\"{letter}\"")).await;
        becomes(&world, "@book@a", &format!("\"{}\"", letter.repeat(100_000))).await;
    }
    settle().await;
    let blobs = world.hub.take().await.unwrap();
    let blobs: Vec<_> = blobs.container("-largemessages").unwrap().blobs.iter().map(|b| &b.name).collect();
    // The history and the Instances row share one.
    assert!((1..=2).contains(&blobs.len()), "{blobs:?}");
    worker.stop().await;
}

#[tokio::test(start_paused = true)]
async fn an_extended_session_keeps_an_entity_in_memory_from_batch_to_batch() {
    let world = World::new();
    let sessions = |settings: &mut AzureStorageSettings| settings.extended_sessions_enabled = true;
    let worker = world.worker_named("w1", sessions, |builder| {
        let settings = WorkerSettings { extended_sessions_enabled: true, ..WorkerSettings::default() };
        samples::register(builder, SampleOptions::default()).settings(settings)
    });
    for _ in 0..20 {
        signal(&world, "@counter@a", "add", "").await;
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    becomes(&world, "@counter@a", "20").await;
    world
        .client
        .start(Start::new("CallEntity").instance_id("caller").raw_input("\"@counter@a\""))
        .await
        .unwrap();
    world.completes("caller", r#"{"before":"25","after":"32","bad":"no operation nonsense"}"#).await;
    settle().await;
    signal(&world, "@counter@a", "add", "").await;
    becomes(&world, "@counter@a", "33").await;
    worker.stop().await;
}

/// Workers come and go while signals come in; never do two of them run one entity at once.
#[tokio::test(start_paused = true)]
async fn no_signal_is_lost_or_counted_twice_while_workers_come_and_go() {
    let world = World::new();
    let inside = Arc::new(AtomicUsize::new(0));
    let worker = |name: &str| {
        let inside = inside.clone();
        world.worker_named(
            name,
            |_| {},
            |builder| {
                builder.entity("alone", move |ctx: EntityContext| {
                    let inside = inside.clone();
                    async move {
                        let before = inside.fetch_add(1, Ordering::SeqCst);
                        tokio::time::sleep(Duration::from_millis(200)).await;
                        inside.fetch_sub(1, Ordering::SeqCst);
                        assert_eq!(before, 0, "two at once");
                        ctx.set_state(&(ctx.state::<u32>()?.unwrap_or_default() + 1))?;
                        Ok::<_, OperationError>(Reply::NONE)
                    }
                })
            },
        )
    };
    let mut first = worker("w0");
    for round in 1..6 {
        let second = worker(&format!("w{round}"));
        for _ in 0..20 {
            signal(&world, "@alone@a", "add", "").await;
            tokio::time::sleep(Duration::from_secs(2)).await;
        }
        std::mem::replace(&mut first, second).stop().await;
    }
    becomes(&world, "@alone@a", "100").await;
    settle().await;
    assert_eq!(state(&world, "@alone@a").await.as_deref(), Some("100"));
    first.stop().await;
}
