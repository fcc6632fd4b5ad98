use std::time::Duration;

use taskhub_core::{
    EventKind, HistoryEvent, InstanceFetch, OrchestrationInstance, OrchestrationService,
    OrchestrationServiceClient, OrchestrationStatus, OrchestrationWorkItem, StartRequest, TaskMessage,
};

use crate::support::*;

#[tokio::test(start_paused = true)]
async fn a_reply_that_beats_its_own_checkpoint_waits_and_is_delivered_later() {
    let world = World::new();
    let (client, worker) = (world.client(), world.worker("w1").await);
    let instance = start(&client, "early").await;
    let item = lock(&worker).await;
    // The reply to task 0 comes before the episode that schedules task 0 is stored.
    let request = TaskMessage::new(schedule(&world, 0, "[]"), instance.clone());
    client.send_event(instance, reply(&world, &request, "1").event).await.unwrap();
    let commit = episode(&world, &item, vec![]);
    finish(&worker, item, commit).await;
    assert!(worker.lock_next_orchestration(Duration::from_secs(1)).await.unwrap().is_none());
    assert_eq!(world.control_messages(), 1, "put back");

    client.send_event(OrchestrationInstance::current("early"), raised("Go")).await.unwrap();
    let item = lock(&worker).await;
    let commit = episode(&world, &item, vec![schedule(&world, 0, "[]")]);
    finish(&worker, item, commit).await;
    let item = lock(&worker).await;
    assert!(matches!(item.messages[0].event.kind, EventKind::TaskCompleted { .. }));
}

#[tokio::test(start_paused = true)]
async fn an_event_whose_start_is_hidden_in_a_dead_workers_hands_is_kept_for_it() {
    let world = World::new();
    let client = world.client();
    start(&client, "h37").await;
    // A worker took the start and died.
    let queue = world.store.queues().into_iter().find(|q| !world.store.messages(q).is_empty()).unwrap();
    let visibility = Duration::from_secs(300);
    assert_eq!(world.account.queues.get_messages(&queue, 32, visibility).await.unwrap().len(), 1);
    client.send_event(OrchestrationInstance::current("h37"), raised("Go")).await.unwrap();

    let worker = world.worker("w2").await;
    let item = worker.lock_next_orchestration(Duration::from_secs(1200)).await.unwrap().unwrap();
    let names = |item: &taskhub_core::OrchestrationWorkItem| {
        item.messages.iter().map(|m| m.event.name()).collect::<Vec<_>>()
    };
    assert_eq!(names(&item)[0], "ExecutionStarted");
    let commit = episode(&world, &item, vec![]);
    let early = names(&item).contains(&"EventRaised");
    finish(&worker, item, commit).await;
    if !early {
        let item = worker.lock_next_orchestration(Duration::from_secs(1200)).await.unwrap().unwrap();
        assert_eq!(names(&item), ["EventRaised"]);
    }
}

#[tokio::test(start_paused = true)]
async fn messages_for_an_instance_nobody_knows_are_kept_for_a_while_and_then_discarded() {
    let world = World::new();
    let (client, worker) = (world.client(), world.worker("w1").await);
    client.send_event(OrchestrationInstance::current("nobody"), raised("Go")).await.unwrap();
    assert!(worker.lock_next_orchestration(Duration::from_secs(300)).await.unwrap().is_none());
    assert_eq!(world.control_messages(), 1, "its start may still come");
    assert!(worker.lock_next_orchestration(Duration::from_secs(3600)).await.unwrap().is_none());
    assert_eq!(world.control_messages(), 0);
}

/// They come together when no worker has run for a while. Found by the simulation, seed 39215.
#[tokio::test(start_paused = true)]
async fn a_young_message_for_an_instance_nobody_knows_is_not_discarded_with_an_old_one() {
    let world = World::new();
    let client = world.client();
    client.send_event(OrchestrationInstance::current("late"), raised("Old")).await.unwrap();
    tokio::time::sleep(Duration::from_secs(3600)).await;
    client.send_event(OrchestrationInstance::current("late"), raised("Young")).await.unwrap();
    let worker = world.worker("w1").await;
    assert!(worker.lock_next_orchestration(Duration::from_secs(60)).await.unwrap().is_none());
    assert_eq!(world.control_messages(), 1, "the old one is discarded");
    start(&client, "late").await;
    let item = lock(&worker).await;
    let mut events = raised_in(&item);
    let commit = episode(&world, &item, Vec::new());
    finish(&worker, item, commit).await;
    if events.is_empty() {
        events = raised_in(&lock(&worker).await);
    }
    assert_eq!(events, ["Young"]);
}

fn raised_in(item: &OrchestrationWorkItem) -> Vec<String> {
    let name = |message: &TaskMessage| match &message.event.kind {
        EventKind::EventRaised { name, .. } => name.clone(),
        _ => None,
    };
    item.messages.iter().filter_map(name).collect()
}

#[tokio::test(start_paused = true)]
async fn messages_for_a_finished_instance_are_discarded_and_its_stale_row_is_repaired() {
    let world = World::new();
    let (client, worker) = (world.client(), world.worker("w1").await);
    start(&client, "done").await;
    let item = lock(&worker).await;
    let commit = episode(&world, &item, vec![completed(&world, 0, "\"right\"")]);
    finish(&worker, item, commit).await;
    // As after a crash between the history and the Instances row.
    let mut row = world.store.entities("TestHubInstances").remove(0);
    row.set("RuntimeStatus", "Running");
    row.columns.remove("Output");
    row.columns.remove("CompletedTime");
    world.store.load_entity("TestHubInstances", row);

    client.send_event(OrchestrationInstance::current("done"), raised("Late")).await.unwrap();
    assert!(worker.lock_next_orchestration(Duration::from_secs(60)).await.unwrap().is_none());
    assert_eq!(world.control_messages(), 0);
    let state = client.instance_state(&"done".into(), InstanceFetch::ALL).await.unwrap().unwrap();
    assert_eq!(state.status, Some(OrchestrationStatus::Completed));
    assert_eq!(state.output.as_deref(), Some("\"right\""));
    assert!(state.completed_at.is_some());
}

#[tokio::test(start_paused = true)]
async fn an_instance_terminated_before_its_scheduled_start_never_runs() {
    let world = World::new();
    let (client, worker) = (world.client(), world.worker("w1").await);
    let request = StartRequest {
        name: "Echo".into(),
        instance_id: "later".into(),
        scheduled_start_at: Some(world.clock.now() + Duration::from_secs(600)),
        ..StartRequest::default()
    };
    client.start_instance(request).await.unwrap();
    client.send_event(OrchestrationInstance::current("later"), terminated("not wanted")).await.unwrap();
    assert!(worker.lock_next_orchestration(Duration::from_secs(60)).await.unwrap().is_none());
    let state = client.instance_state(&"later".into(), InstanceFetch::ALL).await.unwrap().unwrap();
    assert_eq!(state.status, Some(OrchestrationStatus::Terminated));
    assert_eq!(state.output.as_deref(), Some("not wanted"));
    assert!(worker.lock_next_orchestration(Duration::from_secs(900)).await.unwrap().is_none());
    assert_eq!(world.control_messages(), 0, "the start is dropped when it is due");
    assert_eq!(world.row("later", "RuntimeStatus"), "Terminated");
}

#[tokio::test(start_paused = true)]
async fn a_terminate_message_for_an_id_that_never_existed_does_not_circle_for_ever() {
    let world = World::new();
    let (client, worker) = (world.client(), world.worker("w1").await);
    client.send_event(OrchestrationInstance::current("ghost"), terminated("x")).await.unwrap();
    assert!(worker.lock_next_orchestration(Duration::from_secs(3600)).await.unwrap().is_none());
    assert_eq!(world.control_messages(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_start_that_lost_the_race_for_its_row_is_dropped() {
    let world = World::new();
    let client = world.client();
    start(&client, "twice").await;
    start(&client, "twice").await;
    assert_eq!(world.row("twice", "RuntimeStatus"), "Pending");
    let worker = world.worker("w1").await;
    let item = lock(&worker).await;
    assert_eq!(item.instance.execution_id.clone().unwrap().as_str(), world.row("twice", "ExecutionId"));
    let commit = episode(&world, &item, vec![completed(&world, 0, "1")]);
    finish(&worker, item, commit).await;
    assert!(worker.lock_next_orchestration(Duration::from_secs(3600)).await.unwrap().is_none());
    assert_eq!(world.control_messages(), 0);
    assert_eq!(world.row("twice", "RuntimeStatus"), "Completed");
}

#[tokio::test(start_paused = true)]
async fn an_event_for_a_restarted_id_waits_for_the_new_start_instead_of_the_old_end() {
    let world = World::new();
    let (client, worker) = (world.client(), world.worker("w1").await);
    start(&client, "again").await;
    let item = lock(&worker).await;
    let commit = episode(&world, &item, vec![completed(&world, 0, "1")]);
    finish(&worker, item, commit).await;
    worker.stop(Duration::from_secs(60)).await.unwrap();

    start(&client, "again").await;
    let queue = world.store.queues().into_iter().find(|q| !world.store.messages(q).is_empty()).unwrap();
    world.account.queues.get_messages(&queue, 32, Duration::from_secs(100)).await.unwrap();
    client.send_event(OrchestrationInstance::current("again"), raised("Go")).await.unwrap();
    let worker = world.worker("w2").await;
    let mut seen = Vec::new();
    while !seen.contains(&"EventRaised") {
        let item = worker.lock_next_orchestration(Duration::from_secs(1200)).await.unwrap().unwrap();
        seen.extend(item.messages.iter().map(|m| m.event.name()));
        let commit = episode(&world, &item, vec![]);
        finish(&worker, item, commit).await;
    }
    assert_eq!(seen, ["ExecutionStarted", "EventRaised"]);
}

#[tokio::test(start_paused = true)]
async fn an_event_to_an_unknown_entity_starts_it() {
    let world = World::new();
    let (client, worker) = (world.client(), world.worker("w1").await);
    client.send_event(OrchestrationInstance::current("@counter@a"), raised("op")).await.unwrap();
    assert!(worker.lock_next_orchestration(Duration::from_secs(60)).await.unwrap().is_none());
    let item = lock_entity(&worker).await;
    let EventKind::ExecutionStarted(started) = &item.messages[0].event.kind else { panic!() };
    assert_eq!(started.name, "@counter@a");
    assert_eq!(item.instance.execution_id, started.instance.execution_id);
    assert!(item.instance.execution_id.is_some());
    assert_eq!(item.messages.len(), 2);
}

#[tokio::test(start_paused = true)]
async fn messages_that_come_while_an_instance_runs_join_it_afterwards() {
    let world = World::new();
    let mut settings = World::settings("w1");
    settings.extended_sessions_enabled = true;
    let (client, worker) = (world.client(), world.worker_with(settings).await);
    start(&client, "long").await;
    let item = lock(&worker).await;
    let commit = episode(&world, &item, vec![]);
    worker.complete_orchestration(item.token, commit).await.unwrap();
    let (messages, ()) = tokio::join!(worker.next_session_messages(item.token), async {
        client.send_event(OrchestrationInstance::current("long"), raised("Go")).await.unwrap();
    });
    assert_eq!(messages.unwrap().unwrap()[0].event.name(), "EventRaised");
    let commit = taskhub_core::EpisodeCommit {
        new_events: vec![HistoryEvent::message(world.clock.now(), EventKind::OrchestratorStarted)],
        ..episode(&world, &item, vec![])
    };
    worker.complete_orchestration(item.token, commit).await.unwrap();
    assert_eq!(worker.next_session_messages(item.token).await.unwrap(), None, "idle");
    worker.release_orchestration(item.token).await;
    assert_eq!(world.history("long").len(), 5);
}

#[tokio::test(start_paused = true)]
async fn a_finished_instance_is_run_again_only_where_the_setting_says_so() {
    for allowed in [false, true] {
        let world = World::new();
        let mut settings = World::settings("w1");
        settings.allow_replaying_terminal_instances = allowed;
        let (client, worker) = (world.client(), world.worker_with(settings).await);
        start(&client, "done").await;
        let item = lock(&worker).await;
        let commit = episode(&world, &item, vec![completed(&world, 0, "1")]);
        finish(&worker, item, commit).await;
        client.send_event(OrchestrationInstance::current("done"), terminated("late")).await.unwrap();
        let item = worker.lock_next_orchestration(Duration::from_secs(60)).await.unwrap();
        assert_eq!(item.is_some(), allowed);
        if let Some(item) = item {
            let commit = episode(&world, &item, vec![]);
            finish(&worker, item, commit).await;
        }
        let status = if allowed { "Terminated" } else { "Completed" };
        assert_eq!(world.row("done", "RuntimeStatus"), status);
    }
}

/// An entity's answer to `caller` is an event named by the request's id.
async fn put_answer(world: &World, caller: OrchestrationInstance) {
    let data = taskhub_azure_storage::message::MessageData::new(
        uuid::Uuid::from_u128(1),
        TaskMessage::new(raised("11111111-2222-3333-4444-555555555555"), caller),
        1,
        Some(1),
        OrchestrationInstance::new("@counter@a", "e"),
    );
    let text = taskhub_azure_storage::message::encode(&data, Default::default());
    let partition = taskhub_azure_storage::partition::partition_of(&"caller".into(), 4);
    let queue = format!("testhub-control-{partition}");
    world.account.queues.put_message(&queue, &text, Duration::ZERO).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn an_answer_of_an_entity_waits_until_the_request_is_stored() {
    let world = World::new();
    let (client, worker) = (world.client(), world.worker("w1").await);
    let caller = begin(&world, &worker, "caller", 0).await.instance;
    put_answer(&world, caller).await;
    assert!(worker.lock_next_orchestration(Duration::from_secs(5)).await.unwrap().is_none());

    client.send_event(OrchestrationInstance::current("caller"), raised("Go")).await.unwrap();
    let item = lock(&worker).await;
    let sent = EventKind::EventSent {
        instance_id: "@counter@a".into(),
        name: Some("op".into()),
        input: Some(r#"{"op":"get","id":"11111111-2222-3333-4444-555555555555"}"#.into()),
    };
    let commit = episode(&world, &item, vec![HistoryEvent::decision(0, world.clock.now(), sent)]);
    finish(&worker, item, commit).await;
    let item = lock(&worker).await;
    let EventKind::EventRaised { name, .. } = &item.messages[0].event.kind else { panic!() };
    assert_eq!(name.as_deref(), Some("11111111-2222-3333-4444-555555555555"));
}

/// The episode that has asked was run again before it was stored, under another id.
#[tokio::test(start_paused = true)]
async fn an_answer_of_an_entity_to_what_was_never_stored_ends() {
    let world = World::new();
    let (client, worker) = (world.client(), world.worker("w1").await);
    let caller = begin(&world, &worker, "caller", 0).await.instance;
    put_answer(&world, caller.clone()).await;
    assert!(worker.lock_next_orchestration(Duration::from_secs(3600)).await.unwrap().is_none());
    assert_eq!(world.control_messages(), 0, "after a while");

    client.send_event(OrchestrationInstance::current("caller"), raised("Go")).await.unwrap();
    let item = lock(&worker).await;
    let commit = episode(&world, &item, vec![completed(&world, 0, "1")]);
    finish(&worker, item, commit).await;
    put_answer(&world, caller).await;
    assert!(worker.lock_next_orchestration(Duration::from_secs(5)).await.unwrap().is_none());
    assert_eq!(world.control_messages(), 0, "at once when the instance has finished");
}
