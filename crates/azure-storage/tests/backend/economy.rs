//! The requests that are saved: hand-off, answers that are not sent, remembered histories, late rows.

use std::time::Duration;

use taskhub_azure_storage::{AzureStorageClient, AzureStorageService, AzureStorageSettings};
use taskhub_core::{
    ActivityWorkItem, ErrorKind, EventKind, GiveBackReason, HistoryEvent, OrchestrationInstance,
    OrchestrationService, OrchestrationServiceClient, OrchestrationStatus, TaskMessage,
};
use taskhub_storage::Service;
use taskhub_storage::request::{OperationCounts, RequestSettings};
use taskhub_testkit::faults::{Effect, Rule};
use tokio::time::Instant;

use crate::support::*;

/// The event types in all control queues, with the seconds until they are visible.
fn control_queue(world: &World) -> Vec<(String, u64)> {
    let queues = world.store.queues();
    let control = queues.iter().filter(|queue| queue.contains("-control-"));
    control
        .flat_map(|queue| world.store.messages(queue))
        .map(|message| {
            let text = message.text.clone();
            let hidden = message.next_visible_at.saturating_since(world.clock.now()).as_secs();
            match taskhub_azure_storage::message::decode(&text).unwrap() {
                taskhub_azure_storage::message::Decoded::Message(data) => {
                    (data.task_message.event.name().to_owned(), hidden)
                }
                taskhub_azure_storage::message::Decoded::Wrapper { blob_name } => (blob_name, hidden),
            }
        })
        .collect()
}

#[tokio::test(start_paused = true)]
async fn as_many_activities_as_there_are_slots_are_handed_over_the_others_are_for_everybody() {
    let world = World::new();
    let worker = economical(&world).await;
    begin(&world, &worker, "wide", 15).await;
    let messages = world.store.messages("testhub-workitems");
    let hidden = messages.iter().filter(|m| m.next_visible_at > world.clock.now());
    assert_eq!((messages.len(), hidden.count()), (15, 10));
    for at in 0..15 {
        let activity = lock_activity(&worker).await;
        if at < 5 {
            let result = reply(&world, &activity.message, "1");
            worker.complete_activity(activity.token, result).await.unwrap();
        }
    }
    let received = world.store.messages("testhub-workitems").iter().filter(|m| m.dequeue_count > 0).count();
    assert_eq!(received, 5, "the others were never received");
}

#[tokio::test(start_paused = true)]
async fn requests_that_wait_in_the_queue_go_before_newer_ones() {
    let world = World::new();
    let worker = economical(&world).await;
    let hidden = |world: &World| {
        let messages = world.store.messages("testhub-workitems");
        messages.iter().filter(|m| m.next_visible_at > world.clock.now()).count()
    };
    begin(&world, &worker, "wide", 15).await;
    start(&world.client(), "late").await;
    let late = lock(&worker).await;
    start(&world.client(), "later").await;
    let later = lock(&worker).await;
    let mut running = Vec::new();
    for _ in 0..10 {
        running.push(lock_activity(&worker).await);
    }
    let end = async |activity: ActivityWorkItem| {
        let result = reply(&world, &activity.message, "1");
        worker.complete_activity(activity.token, result).await.unwrap();
    };
    for activity in running.drain(..7) {
        end(activity).await;
    }
    let commit = episode(&world, &late, vec![schedule(&world, 0, "[]")]);
    finish(&worker, late, commit).await;
    assert_eq!(hidden(&world), 10, "slots are free, and five requests wait for them");
    let mut order = Vec::new();
    for _ in 0..6 {
        let activity = lock_activity(&worker).await;
        order.push(activity.message.target.instance_id.to_string());
        end(activity).await;
    }
    assert_eq!(order, ["wide", "wide", "wide", "wide", "wide", "late"]);
    let commit = episode(&world, &later, vec![schedule(&world, 0, "[]")]);
    finish(&worker, later, commit).await;
    assert_eq!(lock_activity(&worker).await.message.target.instance_id.to_string(), "later");
    let received = world.store.messages("testhub-workitems").iter().filter(|m| m.dequeue_count > 0).count();
    assert_eq!(received, 6, "the queue was empty: handed over again");
}

#[tokio::test(start_paused = true)]
async fn a_crowd_of_requests_for_others_holds_no_newer_one_up() {
    let world = World::new();
    let worker = economical(&world).await;
    start(&world.client(), "others").await;
    let others = lock(&worker).await;
    start(&world.client(), "own").await;
    let own = lock(&worker).await;
    let mut crowd = episode(&world, &others, (0..40).map(|at| schedule(&world, at, "[]")).collect());
    for event in crowd.activity_messages.iter_mut().map(|m| &mut m.event).chain(&mut crowd.new_events) {
        if let EventKind::TaskScheduled { name, .. } = &mut event.kind {
            *name = Some("Foreign".to_owned());
        }
    }
    finish(&worker, others, crowd).await;
    let give_back = async |foreign: ActivityWorkItem| {
        let reason = GiveBackReason::UnknownFunction { name: "Foreign".to_owned() };
        worker.give_back_activity(foreign.token, reason).await.unwrap();
    };
    for _ in 0..20 {
        give_back(lock_activity(&worker).await).await;
    }
    let commit = episode(&world, &own, vec![schedule(&world, 0, "[]")]);
    finish(&worker, own, commit).await;
    let messages = world.store.messages("testhub-workitems");
    let is_own = |text: &str| text.contains("SayHello");
    let handed_over = messages.iter().find(|m| is_own(&m.text)).unwrap();
    assert!(handed_over.next_visible_at > world.clock.now() && handed_over.dequeue_count == 0);
    // Behind those that have been received before it.
    loop {
        let activity = lock_activity(&worker).await;
        if activity.message.target.instance_id.as_str() == "own" {
            break;
        }
        give_back(activity).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_result_that_was_not_sent_ends_its_request_when_it_is_stored() {
    let world = World::new();
    let worker = economical(&world).await;
    begin(&world, &worker, "a", 1).await;
    let activity = lock_activity(&worker).await;
    worker.complete_activity(activity.token, reply(&world, &activity.message, "1")).await.unwrap();
    assert_eq!((world.control_messages(), world.work_item_messages()), (0, 1));
    let item = lock(&worker).await;
    assert!(matches!(item.messages[0].event.kind, EventKind::TaskCompleted { task_scheduled_id: 0, .. }));
    assert_eq!(item.history.len(), 4, "remembered");
    // While it is worked on, the request stays hidden.
    tokio::time::sleep(Duration::from_secs(100)).await;
    let request = &world.store.messages("testhub-workitems")[0];
    assert!(request.next_visible_at > world.clock.now() && request.dequeue_count == 0);
    let commit = episode(&world, &item, vec![completed(&world, 1, "1")]);
    finish(&worker, item, commit).await;
    assert_eq!((world.control_messages(), world.work_item_messages()), (0, 0));
    assert_eq!(world.row("a", "RuntimeStatus"), "Completed");
}

#[tokio::test(start_paused = true)]
async fn a_result_that_cannot_be_used_here_is_sent_as_usual() {
    let world = World::new();
    let worker = economical(&world).await;
    begin(&world, &worker, "a", 1).await;
    let activity = lock_activity(&worker).await;
    worker.complete_activity(activity.token, reply(&world, &activity.message, "1")).await.unwrap();
    let item = lock(&worker).await;
    worker.abandon_orchestration(item.token).await.unwrap();
    worker.release_orchestration(item.token).await;
    assert_eq!(control_queue(&world), [("TaskCompleted".to_owned(), 2)]);
    assert_eq!(world.work_item_messages(), 0);

    begin(&world, &worker, "b", 1).await;
    let activity = lock_activity(&worker).await;
    worker.complete_activity(activity.token, reply(&world, &activity.message, "1")).await.unwrap();
    worker.stop(Duration::from_secs(10)).await.unwrap();
    assert_eq!(world.work_item_messages(), 0);
    let sent = control_queue(&world).into_iter().filter(|(name, _)| name == "TaskCompleted");
    assert_eq!(sent.count(), 2, "sent when the worker stops, once");
}

#[tokio::test(start_paused = true)]
async fn what_was_handed_over_is_made_visible_when_the_worker_stops() {
    let world = World::new();
    let worker = economical(&world).await;
    let mut settings = World::default_settings("w1");
    settings.use_app_lease = false;
    start(&world.client(), "p").await;
    let item = lock(&worker).await;
    let mut commit = episode(&world, &item, vec![schedule(&world, 0, "[]")]);
    let event = TaskMessage::new(raised("Go"), OrchestrationInstance::current("q"));
    commit.orchestrator_messages.push(event);
    finish(&worker, item, commit).await;
    assert_eq!(control_queue(&world), [("EventRaised".to_owned(), 30)]);
    worker.stop(Duration::from_secs(10)).await.unwrap();
    let visible = |queue: &str| {
        world.store.messages(queue).iter().filter(|m| m.next_visible_at <= world.clock.now()).count()
    };
    assert_eq!(visible("testhub-workitems"), 1);
    assert!(control_queue(&world).iter().all(|(_, hidden)| *hidden <= 2), "{:?}", control_queue(&world));
}

#[tokio::test(start_paused = true)]
async fn an_episode_on_an_old_memory_is_run_again_at_once_and_its_messages_are_taken_back() {
    let world = World::new();
    let worker = economical(&world).await;
    let first = begin(&world, &worker, "a", 0).await;
    store_elsewhere(&world);
    world.client().send_event(OrchestrationInstance::current("a"), raised("Go")).await.unwrap();
    let item = lock(&worker).await;
    assert_eq!((item.history.len(), &item.instance), (3, &first.instance));
    let commit = episode(&world, &item, vec![schedule(&world, 0, "[]")]);
    let error = worker.complete_orchestration(item.token, commit).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::SessionAborted);
    assert_eq!(world.work_item_messages(), 0, "taken back");
    worker.abandon_orchestration(item.token).await.unwrap();
    worker.release_orchestration(item.token).await;

    let begun = Instant::now();
    let item = lock(&worker).await;
    assert!(begun.elapsed() < Duration::from_millis(100), "{:?}", begun.elapsed());
    assert_eq!(item.history.len(), 5, "as it is stored");
    let commit = episode(&world, &item, vec![completed(&world, 0, "1")]);
    finish(&worker, item, commit).await;
    assert_eq!((world.control_messages(), world.work_item_messages()), (0, 0));
}

/// Another worker stores an empty episode of the only instance, after the one that is there.
fn store_elsewhere(world: &World) {
    let rows = world.store.entities("TestHubHistory");
    let mut row = rows.iter().find(|row| row.row_key.ends_with('2')).unwrap().clone();
    row.row_key = format!("{:016X}", 3);
    row.set("EventType", "OrchestratorStarted");
    world.store.load_entity("TestHubHistory", row.clone());
    row.row_key = format!("{:016X}", 4);
    row.set("EventType", "OrchestratorCompleted");
    world.store.load_entity("TestHubHistory", row);
    let sentinel = rows.iter().find(|row| row.row_key == "sentinel").unwrap().clone();
    world.store.load_entity("TestHubHistory", sentinel);
}

#[tokio::test(start_paused = true)]
async fn messages_are_discarded_by_what_is_stored_and_not_by_an_old_memory() {
    let world = World::new();
    let worker = economical(&world).await;
    begin(&world, &worker, "a", 0).await;
    store_elsewhere(&world);
    world.client().send_event(OrchestrationInstance::current("a"), raised("Go")).await.unwrap();
    for (history, left) in [(3, 1), (5, 0)] {
        let item = lock(&worker).await;
        assert_eq!(item.history.len(), history);
        worker.discard_orchestration(item.token).await.unwrap();
        worker.release_orchestration(item.token).await;
        assert_eq!(world.control_messages(), left);
    }
}

#[tokio::test(start_paused = true)]
async fn a_timer_of_this_worker_fires_without_being_received() {
    let world = World::new();
    let worker = economical(&world).await;
    start(&world.client(), "t").await;
    let item = lock(&worker).await;
    let mut commit = episode(&world, &item, vec![]);
    let fire_at = world.clock.now() + Duration::from_millis(2500);
    let timer = HistoryEvent::decision(0, world.clock.now(), EventKind::TimerCreated { fire_at });
    commit.new_events.insert(2, timer);
    let fired = HistoryEvent::message(world.clock.now(), EventKind::TimerFired { timer_id: 0, fire_at });
    commit.timer_messages.push(TaskMessage::new(fired, item.instance.clone()));
    finish(&worker, item, commit).await;
    let item = lock(&worker).await;
    let late = world.clock.now().saturating_since(fire_at);
    assert!(world.clock.now() >= fire_at && late < Duration::from_millis(20), "{late:?}");
    let never_received = |world: &World| {
        let queues = world.store.queues();
        queues.iter().flat_map(|queue| world.store.messages(queue)).all(|m| m.dequeue_count == 0)
    };
    assert!(never_received(&world));
    let commit = episode(&world, &item, vec![completed(&world, 1, "1")]);
    finish(&worker, item, commit).await;
    assert_eq!(world.control_messages(), 0);
}

#[tokio::test(start_paused = true)]
async fn that_an_instance_runs_is_shown_within_a_second_and_when_the_worker_stops() {
    let world = World::new();
    let worker = economical(&world).await;
    begin(&world, &worker, "a", 1).await;
    assert_eq!(world.row("a", "RuntimeStatus"), "Pending");
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(world.row("a", "RuntimeStatus"), "Running");
    assert_eq!(world.row("a", "Name"), "Echo");
    begin(&world, &worker, "b", 1).await;
    worker.stop(Duration::from_secs(10)).await.unwrap();
    assert_eq!(world.row("b", "RuntimeStatus"), "Running");
}

#[tokio::test(start_paused = true)]
async fn a_custom_status_is_shown_at_once_and_an_unchanged_one_is_not_written_again() {
    let world = World::new();
    let worker = economical(&world).await;
    start(&world.client(), "a").await;
    let item = lock(&worker).await;
    let mut commit = episode(&world, &item, vec![]);
    commit.custom_status = Some("\"half\"".into());
    finish(&worker, item, commit).await;
    assert_eq!(world.row("a", "CustomStatus"), "\"half\"");
    assert_eq!(world.row("a", "RuntimeStatus"), "Running");
    let etag = || {
        let rows = world.store.entities("TestHubInstances");
        rows.into_iter().find(|row| row.partition_key == "a").and_then(|row| row.etag)
    };
    let before = etag();
    world.client().send_event(OrchestrationInstance::current("a"), raised("Go")).await.unwrap();
    let item = lock(&worker).await;
    let mut commit = episode(&world, &item, vec![]);
    commit.custom_status = Some("\"half\"".into());
    finish(&worker, item, commit).await;
    assert_eq!(etag(), before);
    world.client().send_event(OrchestrationInstance::current("a"), raised("Go")).await.unwrap();
    let item = lock(&worker).await;
    let mut commit = episode(&world, &item, vec![completed(&world, 0, "1")]);
    commit.custom_status = Some("\"done\"".into());
    commit.status = OrchestrationStatus::Completed;
    finish(&worker, item, commit).await;
    assert_eq!(world.row("a", "CustomStatus"), "\"done\"");
}

/// The client puts the start and then writes the row; a worker of its process may be quicker than that. It asks for
/// the row when it is written, and not before.
#[tokio::test(start_paused = true)]
async fn a_start_received_before_its_row_waits_for_the_client_of_the_same_process() {
    const ROW_TAKES: Duration = Duration::from_millis(60);
    let (mut world, plan) = World::with_faults();
    let counts = OperationCounts::default();
    world.account = world.account.clone().layered(RequestSettings::default(), &counts);
    let hub = world.hub(AzureStorageSettings {
        // The shortest: it looks while the client waits for the row.
        max_queue_polling_interval: Duration::from_millis(50),
        ..World::default_settings("w1")
    });
    let (client, worker) = (AzureStorageClient::new(hub.clone()), AzureStorageService::new(hub));
    worker.start().await.unwrap();
    begin(&world, &worker, "first", 1).await;
    let looks =
        || counts.by_resource()[&(Service::Table, "QueryEntities", "TestHubInstances".to_owned())].count;
    plan.add(Rule::on("InsertEntity", Effect::DelayBefore(ROW_TAKES)).resource("Instances"));
    let (begun, before) = (Instant::now(), looks());
    let (_, item) = tokio::join!(start(&client, "late-row"), lock(&worker));
    assert_eq!(item.instance.instance_id.as_str(), "late-row");
    assert_eq!(begun.elapsed(), ROW_TAKES);
    assert_eq!(looks() - before, 2, "the client's look for an existing instance, and the worker's");
}
