use std::time::Duration;

use taskhub_azure_storage::message::{Decoded, decode};
use taskhub_core::{
    ErrorKind, EventKind, HistoryEvent, InstanceFetch, OrchestrationInstance, OrchestrationService,
    OrchestrationServiceClient, OrchestrationStatus, TaskMessage,
};

use taskhub_storage::memory::StoredMessage;

use crate::support::*;

#[tokio::test(start_paused = true)]
async fn an_instance_runs_through_queues_and_tables_and_leaves_no_message() {
    let world = World::new();
    let (client, worker) = (world.client(), world.worker("w1").await);
    let instance = start(&client, "order-42").await;
    assert_eq!(world.row("order-42", "RuntimeStatus"), "Pending");

    let item = lock(&worker).await;
    assert_eq!(item.instance, instance);
    assert!(item.history.is_empty());
    let commit = episode(&world, &item, vec![schedule(&world, 0, "[\"Tokyo\"]")]);
    finish(&worker, item, commit).await;
    assert_eq!(world.row("order-42", "RuntimeStatus"), "Running");

    let activity = lock_activity(&worker).await;
    assert_eq!(activity.message.target, instance);
    worker.complete_activity(activity.token, reply(&world, &activity.message, "\"hi\"")).await.unwrap();

    let item = lock(&worker).await;
    assert_eq!(item.history.len(), 4);
    assert!(matches!(item.messages[0].event.kind, EventKind::TaskCompleted { task_scheduled_id: 0, .. }));
    let commit = episode(&world, &item, vec![completed(&world, 1, "\"hi\"")]);
    finish(&worker, item, commit).await;

    let state = client.instance_state(&"order-42".into(), InstanceFetch::ALL).await.unwrap().unwrap();
    assert_eq!(state.status, Some(OrchestrationStatus::Completed));
    assert_eq!(state.output.as_deref(), Some("\"hi\""));
    assert_eq!((world.control_messages(), world.work_item_messages()), (0, 0));
    assert_eq!(
        world.history("order-42"),
        [
            "OrchestratorStarted",
            "ExecutionStarted",
            "TaskScheduled",
            "OrchestratorCompleted",
            "OrchestratorStarted",
            "TaskCompleted",
            "ExecutionCompleted",
            "OrchestratorCompleted",
            "sentinel"
        ]
    );
    worker.stop(Duration::from_secs(60)).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn messages_of_an_entity_tell_their_sender_as_dotnet_does() {
    let world = World::new();
    let (client, worker) = (world.client(), world.worker("w1").await);
    let mut senders = Vec::new();
    for _ in 0..2 {
        client.send_event(OrchestrationInstance::current("@counter@a"), raised("op")).await.unwrap();
        let item = lock_entity(&worker).await;
        let mut commit = episode(&world, &item, Vec::new());
        commit.orchestrator_messages =
            vec![TaskMessage::new(raised("told"), OrchestrationInstance::current("nobody"))];
        finish(&worker, item, commit).await;
        let texts = (0..4).flat_map(|n| world.store.messages(&format!("testhub-control-{n:02}")));
        let data = texts.filter_map(|message| match decode(&message.text) {
            Ok(Decoded::Message(data)) if data.task_message.target.instance_id.as_str() == "nobody" => {
                Some(data)
            }
            _ => None,
        });
        let data = data.max_by_key(|data| data.sequence_number).unwrap();
        let sender = data.sender.unwrap();
        assert_eq!(sender.instance_id.as_str(), "@counter@a");
        senders.push((sender.execution_id.is_some(), data.episode));
    }
    assert_eq!(senders, [(false, Some(1)), (true, Some(2))]);
}

#[tokio::test(start_paused = true)]
async fn of_two_workers_with_one_work_item_the_second_to_commit_is_aborted_and_stores_nothing() {
    let world = World::new();
    let (client, first) = (world.client(), world.worker("w1").await);
    start(&client, "a1").await;
    let stale = lock(&first).await;
    // The first worker stalls until its messages are visible and its lease has run out.
    first.renew_orchestration(stale.token).await.unwrap();
    for queue in world.store.queues() {
        for message in world.store.messages(&queue) {
            let visible = StoredMessage { next_visible_at: world.clock.now(), ..message };
            world.store.load_message(&queue, StoredMessage { message_id: String::new(), ..visible });
        }
    }
    let rows = world.store.entities("TestHubPartitions");
    for mut row in rows {
        row.columns.retain(|name, _| name == "IsDraining");
        world.store.load_entity("TestHubPartitions", row);
    }
    let second = world.worker("w2").await;
    let item = lock(&second).await;
    let commit = episode(&world, &item, vec![completed(&world, 0, "\"second\"")]);
    finish(&second, item, commit).await;

    let commit = episode(&world, &stale, vec![completed(&world, 0, "\"first\"")]);
    let error = first.complete_orchestration(stale.token, commit).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::SessionAborted, "{}", error.chain());
    assert!(error.chain().contains("instance=`a1`") && error.chain().contains("hub=`TestHub`"));
    first.abandon_orchestration(stale.token).await.unwrap();
    first.release_orchestration(stale.token).await;
    assert_eq!(world.row("a1", "Output"), "\"second\"");
}

#[tokio::test(start_paused = true)]
async fn a_checkpoint_of_150_events_is_two_chained_batches() {
    let world = World::new();
    let (client, worker) = (world.client(), world.worker("w1").await);
    start(&client, "wide").await;
    let item = lock(&worker).await;
    let decisions = (0..150).map(|id| schedule(&world, id, "[]")).collect();
    let commit = episode(&world, &item, decisions);
    finish(&worker, item, commit).await;
    let rows = world.store.entities("TestHubHistory");
    assert_eq!(rows.len(), 154);
    assert_eq!(rows[152].row_key, format!("{:016X}", 152));
    assert_eq!(world.work_item_messages(), 150);
    let history = client.history(&"wide".into(), None).await.unwrap();
    assert_eq!(history.len(), 153);
}

#[tokio::test(start_paused = true)]
async fn a_new_generation_overwrites_the_rows_and_hides_what_is_left_of_the_old_one() {
    let world = World::new();
    let (client, worker) = (world.client(), world.worker("w1").await);
    start(&client, "eternal").await;
    let item = lock(&worker).await;
    let commit = episode(&world, &item, (0..5).map(|id| schedule(&world, id, "[]")).collect());
    finish(&worker, item, commit).await;
    let activity = lock_activity(&worker).await;
    worker.complete_activity(activity.token, reply(&world, &activity.message, "1")).await.unwrap();

    let item = lock(&worker).await;
    let next = OrchestrationInstance::new("eternal", "nextexecution");
    let mut commit = episode(&world, &item, vec![]);
    commit.replaces_history = true;
    commit.instance = next.clone();
    let EventKind::ExecutionStarted(mut started) = item.history[1].kind.clone() else { panic!() };
    started.instance = next.clone();
    started.input = Some("2".into());
    commit.new_events = vec![
        HistoryEvent::message(world.clock.now(), EventKind::OrchestratorStarted),
        HistoryEvent::message(world.clock.now(), EventKind::ExecutionStarted(started)),
        HistoryEvent::message(world.clock.now(), EventKind::OrchestratorCompleted),
    ];
    finish(&worker, item, commit).await;
    assert_eq!(world.row("eternal", "ExecutionId"), "nextexecution");
    assert_eq!(world.store.entities("TestHubHistory").len(), 9, "old rows stay behind the new ones");
    assert_eq!(client.history(&"eternal".into(), None).await.unwrap().len(), 3);

    // Replies to the old generation are dropped by the worker; events go to the new one.
    client.send_event(OrchestrationInstance::current("eternal"), raised("Go")).await.unwrap();
    let item = lock(&worker).await;
    assert_eq!(item.instance, next);
    assert_eq!(item.history.len(), 3);
}

#[tokio::test(start_paused = true)]
async fn large_messages_and_columns_travel_in_blobs_and_come_back_whole() {
    let world = World::new();
    let (client, worker) = (world.client(), world.worker("w1").await);
    let big = format!("\"{}\"", "x".repeat(100_000));
    let request = taskhub_core::StartRequest {
        name: "Echo".into(),
        instance_id: "big/one".into(),
        input: Some(big.clone()),
        ..Default::default()
    };
    client.start_instance(request).await.unwrap();
    let state = client.instance_state(&"big/one".into(), InstanceFetch::ALL).await.unwrap().unwrap();
    assert_eq!(state.input.as_ref(), Some(&big), "read from the start message's blob");

    let item = lock(&worker).await;
    let EventKind::ExecutionStarted(started) = &item.messages[0].event.kind else { panic!() };
    assert_eq!(started.input.as_ref(), Some(&big));
    let commit = episode(&world, &item, vec![completed(&world, 0, &big)]);
    finish(&worker, item, commit).await;
    let state = client.instance_state(&"big/one".into(), InstanceFetch::ALL).await.unwrap().unwrap();
    assert_eq!(state.output.as_ref(), Some(&big));
    assert!(world.row("big^0one", "Output").starts_with("http://"), "a URL in the row");
    let history = client.history(&"big/one".into(), None).await.unwrap();
    let EventKind::ExecutionStarted(started) = &history[1].kind else { panic!() };
    assert_eq!(started.input.as_ref(), Some(&big));

    let purged = client.purge_instance(&"big/one".into()).await.unwrap();
    assert_eq!((purged.instances, purged.rows, purged.blobs), (1, 5, 3));
    assert!(world.store.blobs("testhub-largemessages").is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_worker_that_waits_for_activities_gets_them_without_receiving_when_it_asks_for_that() {
    let world = World::new();
    let mut settings = World::default_settings("w1");
    settings.elide_responses = false;
    let (client, worker) = (world.client(), world.worker_with(settings).await);
    start(&client, "a1").await;
    let item = lock(&worker).await;
    let commit = episode(&world, &item, vec![schedule(&world, 0, "[]"), schedule(&world, 1, "[]")]);
    let waiting = lock_activity(&worker);
    let working = async {
        tokio::task::yield_now().await;
        finish(&worker, item, commit).await;
    };
    let (activity, ()) = tokio::join!(waiting, working);
    let messages = world.store.messages("testhub-workitems");
    let never_received =
        messages.iter().filter(|m| m.dequeue_count == 0 && m.next_visible_at > world.clock.now());
    assert_eq!(never_received.count(), 1, "put hidden, handed over, never received");
    assert_eq!(messages.len(), 2);
    worker.complete_activity(activity.token, reply(&world, &activity.message, "1")).await.unwrap();
    assert_eq!(world.work_item_messages(), 1);
}
