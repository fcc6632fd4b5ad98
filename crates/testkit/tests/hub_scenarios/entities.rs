//! Entities of hubs that .NET wrote, as a client sees them.

use std::time::Duration;

use taskhub_client::{CleanEntities, EntityId, EntityQuery};
use taskhub_testkit::golden::{self, Provider};
use taskhub_testkit::load::Hidden;

use crate::support::{LONG, World};

async fn loaded(scenario: &str, phase: &str) -> World {
    let world = World::new();
    let dump = golden::hub(Provider::V2, scenario, phase).unwrap();
    world.hub.load(&dump, Hidden::Release).await.unwrap();
    world
}

fn id(text: &str) -> EntityId {
    text.parse().unwrap()
}

#[tokio::test(start_paused = true)]
async fn the_state_of_an_entity_is_read_from_a_hub_of_dotnet() {
    for (scenario, phase, entity, state) in [
        ("SignalEntity", "completed", "@Counter@direct", "6"),
        ("CallEntity", "completed", "@counter@c1", "12"),
        ("LockEntities", "midflight", "@counter@a", "-3"),
    ] {
        let world = loaded(scenario, phase).await;
        let found = world.client.read_entity(&id(entity)).await.unwrap().unwrap();
        assert_eq!(found.state.as_deref(), Some(state), "{scenario}");
        assert_eq!(world.client.read_entity(&id("@counter@NOBODY")).await.unwrap(), None);
    }
}

#[tokio::test(start_paused = true)]
async fn an_entity_of_the_older_provider_goes_on() {
    for (phase, expected) in [("midflight-signalled", "12"), ("completed", "12")] {
        let world = World::new();
        let dump = golden::hub(Provider::V1, "Entity", phase).unwrap();
        world.hub.load(&dump, Hidden::Release).await.unwrap();
        let worker = world.samples();
        let counter = id("@counter@x");
        let reached = async |state: &str| {
            while world.client.read_entity(&counter).await.unwrap().unwrap().state.as_deref() != Some(state) {
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        };
        tokio::time::timeout(LONG, reached(expected)).await.expect(phase);
        world.client.signal_entity(&counter, "add", None, None).await.unwrap();
        tokio::time::timeout(LONG, reached("13")).await.expect(phase);
        worker.stop().await;
    }
}

#[tokio::test(start_paused = true)]
async fn entities_of_a_hub_of_dotnet_are_listed_with_their_locks() {
    let world = loaded("LockEntities", "midflight").await;
    let query = EntityQuery { name: Some("Counter".into()), fetch_state: true, ..EntityQuery::default() };
    let page = world.client.list_entities(&query).await.unwrap();
    let found: Vec<_> =
        page.entities.iter().map(|e| (e.id.key(), e.state.as_deref(), e.locked_by.clone())).collect();
    let owner = Some("lock-1".into());
    assert_eq!(found, [("a", Some("-3"), owner.clone()), ("b", Some("3"), owner)]);
    assert_eq!(page.continuation, None);
}

#[tokio::test(start_paused = true)]
async fn a_lock_is_released_when_its_owner_runs_no_longer() {
    let world = loaded("LockEntities", "midflight").await;
    let cleaned = world.client.clean_entity_storage(&CleanEntities::default()).await.unwrap();
    assert_eq!((cleaned.removed, cleaned.released), (0, 0), "the owner runs");
    world.client.purge(&"lock-1".into()).await.unwrap();
    let cleaned = world.client.clean_entity_storage(&CleanEntities::default()).await.unwrap();
    assert_eq!((cleaned.removed, cleaned.released), (0, 2));
}
