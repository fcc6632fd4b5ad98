//! Orchestrations that use entities, and what is left of them.

use std::time::Duration;

use taskhub_client::{CleanEntities, EntityId, EntityQuery, EntityState, Start};
use taskhub_core::{InstanceQuery, OrchestrationStatus};
use taskhub_worker::{EntityId as WorkerEntityId, OrchestrationContext, OrchestratorError};

use crate::support::World;

fn id(text: &str) -> EntityId {
    text.parse().unwrap()
}

async fn entity(world: &World, text: &str) -> Option<EntityState> {
    world.client.read_entity(&id(text)).await.unwrap()
}

/// Waits until an entity is as wanted; a virtual hour at most.
async fn until(world: &World, text: &str, wanted: impl Fn(Option<&EntityState>) -> bool) {
    for _ in 0..36_000 {
        if wanted(entity(world, text).await.as_ref()) {
            return;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    panic!("{text} is {:?}", entity(world, text).await);
}

#[tokio::test(start_paused = true)]
async fn an_orchestration_signals_and_calls_an_entity() {
    let world = World::new();
    let worker = world.samples();
    world.start("call-1", Start::new("CallEntity")).await;
    world.completes("call-1", r#"{"before":"5","after":"12","bad":"no operation nonsense"}"#).await;
    let counter = entity(&world, "@counter@c1").await.unwrap();
    assert_eq!((counter.state.as_deref(), counter.queue_size, counter.locked_by), (Some("12"), 0, None));
    worker.stop().await;
}

#[tokio::test(start_paused = true)]
async fn two_counters_are_locked_while_something_is_moved_between_them() {
    let world = World::new();
    let worker = world.samples();
    world.start("lock-1", Start::new("LockEntities").raw_input("30")).await;
    until(&world, "@counter@b", |b| b.is_some_and(|b| b.state.as_deref() == Some("3"))).await;
    for key in ["a", "b"] {
        let locked = entity(&world, &format!("@counter@{key}")).await.unwrap();
        assert_eq!(locked.locked_by, Some("lock-1".into()));
        // Others wait.
        world.client.signal_entity(&locked.id, "add", Some("100".into()), None).await.unwrap();
    }
    tokio::time::sleep(Duration::from_secs(10)).await;
    assert_eq!(entity(&world, "@counter@a").await.unwrap().state.as_deref(), Some("-3"));
    world.completes("lock-1", r#""moved""#).await;
    for (key, value) in [("a", "97"), ("b", "103")] {
        let state = Some(value);
        until(&world, &format!("@counter@{key}"), |e| {
            e.is_some_and(|e| e.state.as_deref() == state && e.locked_by.is_none())
        })
        .await;
    }
    worker.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_delayed_signal_runs_at_its_time_and_others_at_once() {
    let world = World::new();
    let worker = world.samples();
    world.start("signal-1", Start::new("SignalLater").raw_input("3600")).await;
    world.completes("signal-1", r#""Hello signaller!""#).await;
    until(&world, "@counter@end", |end| end.is_some_and(|end| end.state.as_deref() == Some("11"))).await;
    assert_eq!(entity(&world, "@counter@later").await, None);
    tokio::time::sleep(Duration::from_secs(3000)).await;
    assert_eq!(entity(&world, "@counter@later").await, None);
    until(&world, "@counter@later", |later| later.is_some_and(|l| l.state.as_deref() == Some("1"))).await;
    worker.stop().await;
}

#[tokio::test(start_paused = true)]
async fn many_orchestrations_move_between_the_same_counters_and_none_is_lost() {
    let world = World::new();
    let worker = world.samples();
    for n in 0..20 {
        world.start(&format!("lock-{n}"), Start::new("LockEntities").raw_input("0.5")).await;
    }
    for n in 0..20 {
        world.completes(&format!("lock-{n}"), r#""moved""#).await;
    }
    for (key, value) in [("a", "-60"), ("b", "60")] {
        let counter = format!("@counter@{key}");
        until(&world, &counter, |e| e.is_some_and(|e| e.locked_by.is_none())).await;
        assert_eq!(entity(&world, &counter).await.unwrap().state.as_deref(), Some(value));
    }
    worker.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_terminated_owner_gives_its_locks_back_at_once() {
    let world = World::new();
    let worker = world.samples();
    world.start("lock-1", Start::new("LockEntities").raw_input("86400")).await;
    until(&world, "@counter@b", |b| b.is_some_and(|b| b.state.as_deref() == Some("3"))).await;
    world.client.terminate(&"lock-1".into(), Some("enough")).await.unwrap();
    assert_eq!(world.end("lock-1").await.status, Some(OrchestrationStatus::Terminated));
    for key in ["a", "b"] {
        until(&world, &format!("@counter@{key}"), |e| e.is_some_and(|e| e.locked_by.is_none())).await;
    }
    let cleaned = world.client.clean_entity_storage(&CleanEntities::default()).await.unwrap();
    assert_eq!((cleaned.removed, cleaned.released), (0, 0));
    worker.stop().await;
}

#[tokio::test(start_paused = true)]
async fn orphaned_locks_are_released_and_those_of_running_owners_kept() {
    let world = World::new();
    let worker = world.samples();
    world.start("lock-1", Start::new("LockEntities").raw_input("86400")).await;
    until(&world, "@counter@b", |b| b.is_some_and(|b| b.state.as_deref() == Some("3"))).await;
    let clean = || async { world.client.clean_entity_storage(&CleanEntities::default()).await.unwrap() };
    assert_eq!(clean().await.released, 0);
    // Nobody tells the entities that their owner is gone.
    world.client.purge(&"lock-1".into()).await.unwrap();
    world.client.signal_entity(&id("@counter@a"), "add", Some("1".into()), None).await.unwrap();
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(entity(&world, "@counter@a").await.unwrap().state.as_deref(), Some("-3"));
    assert_eq!(clean().await.released, 2);
    until(&world, "@counter@a", |a| {
        a.is_some_and(|a| a.state.as_deref() == Some("-2") && a.locked_by.is_none())
    })
    .await;
    until(&world, "@counter@b", |b| b.is_some_and(|b| b.locked_by.is_none())).await;
    assert_eq!(clean().await.released, 0);
    worker.stop().await;
}

#[tokio::test(start_paused = true)]
async fn empty_entities_are_removed_after_half_an_hour_and_left_out_of_lists_when_asked() {
    let world = World::new();
    let worker = world.samples();
    for key in ["kept", "empty"] {
        world.client.signal_entity(&id(&format!("@counter@{key}")), "add", None, None).await.unwrap();
        until(&world, &format!("@counter@{key}"), |e| e.is_some()).await;
    }
    world.start("hello", Start::new("HelloSequence")).await;
    world.end("hello").await;
    world.client.signal_entity(&id("@counter@empty"), "delete", None, None).await.unwrap();
    until(&world, "@counter@empty", |e| e.is_none()).await;
    let listed = |exclude_entities| {
        let query = InstanceQuery { exclude_entities, ..InstanceQuery::default() };
        let client = world.client.clone();
        async move {
            let page = client.list(&query).await.unwrap();
            page.instances.iter().map(|i| i.instance.instance_id.to_string()).collect::<Vec<_>>()
        }
    };
    assert_eq!(listed(false).await, ["@counter@empty", "@counter@kept", "hello"]);
    assert_eq!(listed(true).await, ["hello"]);
    let clean = || async { world.client.clean_entity_storage(&CleanEntities::default()).await.unwrap() };
    tokio::time::sleep(Duration::from_secs(29 * 60)).await;
    assert_eq!(clean().await.removed, 0);
    tokio::time::sleep(Duration::from_secs(2 * 60)).await;
    assert_eq!(clean().await.removed, 1);
    assert_eq!(listed(false).await, ["@counter@kept", "hello"]);
    // What was cleaned away comes back with the next operation.
    world.client.signal_entity(&id("@counter@empty"), "add", None, None).await.unwrap();
    until(&world, "@counter@empty", |e| e.is_some_and(|e| e.state.as_deref() == Some("1"))).await;
    let query = EntityQuery { fetch_state: true, ..EntityQuery::default() };
    assert_eq!(world.client.list_entities(&query).await.unwrap().entities.len(), 2);
    worker.stop().await;
}

/// Takes a lock and fails inside the section, again and again.
async fn clumsy(ctx: OrchestrationContext, round: u32) -> Result<u32, OrchestratorError> {
    let counter = WorkerEntityId::new("counter", "shared")?;
    let _lock = ctx.lock_entities([&counter]).await?;
    let _: () = ctx.call_entity(&counter, "add", 1).await?;
    match round % 3 {
        0 => Err("no luck".into()),
        1 => panic!("no luck at all"),
        _ => Ok(round),
    }
}

#[tokio::test(start_paused = true)]
async fn orchestrations_that_fail_in_a_critical_section_hold_nobody_up() {
    let world = World::new();
    let worker = world.worker(|builder| {
        let builder = taskhub_worker::samples::register(builder, Default::default());
        builder.orchestration("Clumsy", clumsy)
    });
    for n in 0..9 {
        world.start(&format!("clumsy-{n}"), Start::new("Clumsy").raw_input(n.to_string())).await;
    }
    let mut failed = 0;
    for n in 0..9 {
        failed +=
            usize::from(world.end(&format!("clumsy-{n}")).await.status == Some(OrchestrationStatus::Failed));
    }
    assert_eq!(failed, 6);
    until(&world, "@counter@shared", |e| {
        e.is_some_and(|e| e.locked_by.is_none() && e.queue_size == 0 && e.state.as_deref() == Some("9"))
    })
    .await;
    worker.stop().await;
}
