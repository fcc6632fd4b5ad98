//! Entities when storage fails between a batch's messages and its state, and when messages make no sense.

use std::time::Duration;

use serde_json::Value;
use taskhub_azure_storage::dead_letter::{DeadLetterQuery, DeadLetterState, DeadLetters};
use taskhub_azure_storage::{AzureStorageClient, AzureStorageService};
use taskhub_client::{EntityId, Start};
use taskhub_core::{EventKind, HistoryEvent, OrchestrationInstance, OrchestrationServiceClient as _};
use taskhub_testkit::faults::{Effect, FaultPlan, FaultyAccount, Rule};
use taskhub_worker::samples::{self, SampleOptions};
use taskhub_worker::{
    EntityId as WorkerEntityId, OrchestrationContext, OrchestratorError, Worker, WorkerSettings,
};
use tokio_util::sync::CancellationToken;

use crate::support::World;

/// Moves something twice, each time with both entities locked.
async fn twice(ctx: OrchestrationContext, (): ()) -> Result<(), OrchestratorError> {
    let (a, b) = (WorkerEntityId::new("counter", "a")?, WorkerEntityId::new("counter", "b")?);
    for _ in 0..2 {
        let locks = ctx.lock_entities([&a, &b]).await?;
        for entity in [&a, &b] {
            let _: Value = ctx.call_entity(entity, "add", 1).await?;
        }
        locks.release();
    }
    Ok(())
}

/// Whatever is stored after its messages are sent fails once: a lock that was passed on or answered, a request,
/// a release. Nobody waits for ever, and no lock stays.
#[tokio::test(start_paused = true)]
async fn no_lock_is_left_and_nobody_waits_whichever_state_could_not_be_stored() {
    let mut unstored = 0;
    for nth in 1..=40 {
        let world = World::new();
        let plan = FaultPlan::default();
        let answer = Effect::Answer(412, "UpdateConditionNotSatisfied");
        plan.add(Rule::on("EntityGroupTransaction", answer).resource("History").nth(nth));
        let mut hub = world.hub.open("w1").unwrap();
        hub.account = FaultyAccount::wrap(hub.account.clone(), &plan);
        let (clock, ids) = (hub.clock.clone(), hub.ids.clone());
        let builder = Worker::builder(std::sync::Arc::new(AzureStorageService::new(hub)))
            .settings(WorkerSettings::default())
            .clock(clock)
            .ids(ids);
        let builder = samples::register(builder, SampleOptions::default());
        let worker = builder.orchestration("Twice", twice).build().unwrap();
        let stop = CancellationToken::new();
        let running = tokio::spawn(worker.run(stop.clone()));
        for id in ["x", "y"] {
            world.start(id, Start::new("Twice")).await;
        }
        for id in ["x", "y"] {
            world.end(id).await;
        }
        tokio::time::sleep(Duration::from_secs(120)).await;
        for key in ["@counter@a", "@counter@b"] {
            let id: EntityId = key.parse().unwrap();
            let entity = world.client.read_entity(&id).await.unwrap().unwrap();
            assert_eq!((entity.locked_by, entity.queue_size), (None, 0), "{key} after {nth}");
            assert!(entity.state.and_then(|text| text.parse::<u32>().ok()).unwrap() >= 4);
        }
        stop.cancel();
        running.await.unwrap().unwrap();
        unstored += plan.fired();
    }
    assert!(unstored >= 30, "{unstored}");
}

#[tokio::test(start_paused = true)]
async fn an_event_that_no_entity_can_read_is_a_dead_letter_and_the_others_are_run() {
    let world = World::new();
    let sender = AzureStorageClient::new(world.hub.open("sender").unwrap());
    sender.create_hub().await.unwrap();
    let raise = async |name: &str, input: &str| {
        let (name, input) = (Some(name.to_owned()), Some(input.to_owned()));
        let kind = EventKind::EventRaised { name, input, parent_trace_context: None };
        let event = HistoryEvent::message(world.client.now(), kind);
        sender.send_event(OrchestrationInstance::current("@counter@a"), event).await.unwrap();
    };
    let id: EntityId = "@counter@a".parse().unwrap();
    raise("operation", r#"{"secret":7}"#).await;
    world.client.signal_entity(&id, "add", Some("5".into()), None).await.unwrap();
    let worker = world.samples();
    tokio::time::sleep(Duration::from_secs(30)).await;
    raise("release", "nonsense").await;
    tokio::time::sleep(Duration::from_secs(30)).await;
    world.client.signal_entity(&id, "add", Some("2".into()), None).await.unwrap();
    tokio::time::sleep(Duration::from_secs(300)).await;
    let entity = world.client.read_entity(&id).await.unwrap().unwrap();
    assert_eq!(entity.state.as_deref(), Some("7"));
    let letters = DeadLetters::new(&world.hub.open("person").unwrap());
    let page = letters.list(&DeadLetterQuery { limit: 10, ..DeadLetterQuery::default() }).await.unwrap();
    assert_eq!(page.letters.len(), 2, "{:?}", page.letters);
    for letter in &page.letters {
        assert_eq!(
            (letter.state, letter.reason.as_str()),
            (DeadLetterState::Held, "unreadable_entity_event")
        );
        assert_eq!(letter.instance_id.as_deref(), Some("@counter@a"));
        assert!(letter.failures >= 3 && !letter.detail.contains("secret"), "{letter:?}");
        let message =
            letters.message(&letters.find(&letter.message_id).await.unwrap().unwrap()).await.unwrap();
        let EventKind::EventRaised { input: Some(input), .. } = message.task_message.event.kind else {
            panic!()
        };
        assert!([r#"{"secret":7}"#, "nonsense"].contains(&input.as_str()));
        letters.discard(letter).await.unwrap();
    }
    // An entity that has nothing else is not written again and again.
    assert!(worker.entity_batches() <= 4, "{}", worker.entity_batches());
    worker.stop().await;
}
