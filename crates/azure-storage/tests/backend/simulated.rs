//! What the simulation of `taskhub-testkit` has found, each as small as it can be.

use std::sync::Arc;
use std::time::Duration;

use taskhub_azure_storage::{AzureStorageClient, AzureStorageService};
use taskhub_core::{
    ErrorKind, EventKind, HistoryEvent, InstanceFetch, OrchestrationInstance, OrchestrationService,
    OrchestrationServiceClient, OrchestrationStatus, TaskMessage,
};
use taskhub_storage::memory::StoredMessage;
use taskhub_storage::{Condition, Entity, TableOperation};
use taskhub_testkit::VirtualClock;
use taskhub_testkit::faults::{Effect, FaultPlan, Rule};

use crate::support::*;

/// The start of the child `child`.
fn start_of_child(world: &World, parent: &OrchestrationInstance, execution: &str) -> TaskMessage {
    child_start(world, parent, OrchestrationInstance::new("child", execution))
}

/// An episode that was sent twice, the second time with another execution id: the child must not forget what
/// its first execution has seen.
#[tokio::test(start_paused = true)]
async fn a_child_started_twice_by_its_parent_runs_once() {
    let world = World::new();
    let (client, worker) = (world.client(), world.worker("w1").await);
    let parent = start(&client, "parent").await;
    let item = lock(&worker).await;
    let mut commit = episode(&world, &item, vec![schedule(&world, 7, "[]")]);
    commit.orchestrator_messages = vec![start_of_child(&world, &parent, "first")];
    finish(&worker, item, commit).await;
    let child = lock(&worker).await;
    assert_eq!(child.instance, OrchestrationInstance::new("child", "first"));
    let commit = episode(&world, &child, vec![schedule(&world, 0, "[]")]);
    finish(&worker, child, commit).await;

    client.send_event(OrchestrationInstance::current("parent"), raised("Again")).await.unwrap();
    let item = lock(&worker).await;
    let mut commit = episode(&world, &item, Vec::new());
    commit.orchestrator_messages = vec![start_of_child(&world, &parent, "second")];
    finish(&worker, item, commit).await;
    assert!(worker.lock_next_orchestration(SOON).await.unwrap().is_none(), "the child is not run anew");
    assert_eq!(world.row("child", "ExecutionId"), "first");
    assert_eq!(world.control_messages(), 0);
}

/// The first episode of a child is stored, its row is not: the next episode must not write half a row.
#[tokio::test(start_paused = true)]
async fn a_child_whose_first_row_was_never_written_gets_a_whole_one() {
    let world = World::new();
    let (client, worker) = (world.client(), world.worker("w1").await);
    let parent = start(&client, "parent").await;
    let item = lock(&worker).await;
    let mut commit = episode(&world, &item, vec![schedule(&world, 7, "[]")]);
    commit.orchestrator_messages = vec![start_of_child(&world, &parent, "first")];
    finish(&worker, item, commit).await;
    let child = lock(&worker).await;
    let commit = episode(&world, &child, vec![schedule(&world, 0, "[]")]);
    finish(&worker, child, commit).await;
    let delete = TableOperation::Delete {
        partition_key: "child".into(),
        row_key: String::new(),
        condition: Condition::Any,
    };
    world.account.tables.execute("TestHubInstances", delete).await.unwrap();

    client.send_event(OrchestrationInstance::current("child"), raised("Go")).await.unwrap();
    let child = lock(&worker).await;
    let commit = episode(&world, &child, Vec::new());
    finish(&worker, child, commit).await;
    let row = ["Name", "RuntimeStatus", "Input", "ExecutionId"].map(|column| world.row("child", column));
    assert_eq!(row, ["Child", "Running", "1", "first"]);
}

/// Azure/azure-functions-durable-extension #332: a worker dies between two batches of a checkpoint. Here it
/// is the first checkpoint of a new generation, and what caused it is addressed to the one before.
#[tokio::test(start_paused = true)]
async fn a_generation_whose_first_checkpoint_was_cut_off_goes_on() {
    let (world, plan) = World::with_faults();
    let mut settings = World::settings("w1");
    settings.sabotage.max_batch_rows = Some(3);
    let worker = world.worker_with(settings).await;
    begin(&world, &worker, "eternal", 1).await;
    let activity = lock_activity(&worker).await;
    worker.complete_activity(activity.token, reply(&world, &activity.message, "1")).await.unwrap();

    let item = lock(&worker).await;
    let next = OrchestrationInstance::new("eternal", "next");
    let mut started = start_of_child(&world, &next, "next").event;
    if let EventKind::ExecutionStarted(started) = &mut started.kind {
        started.instance = next.clone();
        started.parent = None;
    }
    let mut commit = episode(&world, &item, vec![schedule(&world, 0, "[]")]);
    commit.instance = next.clone();
    commit.replaces_history = true;
    commit.new_events[1] = started;
    // The second of its two batches.
    plan.add(Rule::on("EntityGroupTransaction", Effect::Answer(412, "UpdateConditionNotSatisfied")).nth(2));
    let error = worker.complete_orchestration(item.token, commit).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::SessionAborted);
    worker.abandon_orchestration(item.token).await.unwrap();
    worker.release_orchestration(item.token).await;

    let item = lock(&worker).await;
    assert_eq!(item.instance, next, "the new generation is run again on what is stored of it");
    assert_eq!(item.history.len(), 3);
    let commit = episode(&world, &item, vec![completed(&world, 1, "true")]);
    finish(&worker, item, commit).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(world.row("eternal", "RuntimeStatus"), "Completed");
    assert_eq!(world.row("eternal", "Name"), "Child");
    assert_eq!(world.control_messages(), 0);
}

/// Azure/durabletask #890: of two workers with one episode, the one that loses must not leave its large
/// result in place of the winner's.
#[tokio::test(start_paused = true)]
async fn the_large_result_of_the_worker_that_loses_replaces_nothing() {
    let world = World::new();
    let (client, first) = (world.client(), world.worker("w1").await);
    start(&client, "a1").await;
    let stale = lock(&first).await;
    for queue in world.store.queues() {
        for message in world.store.messages(&queue) {
            let visible = StoredMessage { next_visible_at: world.clock.now(), ..message };
            world.store.load_message(&queue, StoredMessage { message_id: String::new(), ..visible });
        }
    }
    for mut row in world.store.entities("TestHubPartitions") {
        row.columns.retain(|name, _| name == "IsDraining");
        world.store.load_entity("TestHubPartitions", row);
    }
    let second = world.worker("w2").await;
    let item = lock(&second).await;
    let of = |letter: &str| format!("\"{}\"", letter.repeat(40_000));
    let commit = episode(&world, &item, vec![completed(&world, 0, &of("w"))]);
    finish(&second, item, commit).await;
    let commit = episode(&world, &stale, vec![completed(&world, 0, &of("l"))]);
    let error = first.complete_orchestration(stale.token, commit).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::SessionAborted);
    let state = client.instance_state(&"a1".into(), InstanceFetch::ALL).await.unwrap().unwrap();
    assert_eq!((state.status, state.output), (Some(OrchestrationStatus::Completed), Some(of("w"))));
    let history = client.history(&"a1".into(), None).await.unwrap();
    let ends = history.iter().filter(|event| match &event.kind {
        EventKind::ExecutionCompleted(end) => end.result == Some(of("w")),
        _ => false,
    });
    assert_eq!(ends.count(), 1);
}

/// What a worker writes that knows no history of the instance.
async fn terminate_as_pending(world: &World, instance: &str) {
    let row = Entity::new(instance, "").with("RuntimeStatus", "Terminated").with("Output", "\"enough\"");
    let merge = TableOperation::Merge(row, Condition::Any);
    world.account.tables.execute("TestHubInstances", merge).await.unwrap();
}

/// Another worker terminates an instance as pending while its first episode runs: the row says so, the
/// history begins and would go on.
#[tokio::test(start_paused = true)]
async fn an_instance_terminated_as_pending_in_its_first_episode_ends_in_the_next() {
    let world = World::new();
    let (client, worker) = (world.client(), world.worker("w1").await);
    start(&client, "a").await;
    let item = lock(&worker).await;
    terminate_as_pending(&world, "a").await;
    let commit = episode(&world, &item, vec![schedule(&world, 0, "[]")]);
    finish(&worker, item, commit).await;
    assert_eq!(world.row("a", "RuntimeStatus"), "Terminated", "who was told so is not told otherwise");
    let item = lock(&worker).await;
    let [message] = &item.messages[..] else { panic!("{:?}", item.messages) };
    assert_eq!(message.event.kind, EventKind::ExecutionTerminated { input: Some("\"enough\"".into()) });
}

/// The same, and the worker dies before it can tell the instance: the start comes again.
#[tokio::test(start_paused = true)]
async fn the_start_of_an_instance_terminated_as_pending_is_kept_when_its_history_has_begun() {
    let (world, plan) = World::with_faults();
    let (client, worker) = (world.client(), world.worker("w1").await);
    start(&client, "a").await;
    let item = lock(&worker).await;
    terminate_as_pending(&world, "a").await;
    plan.add(Rule::on("PutMessage", Effect::ResetBefore).resource("control"));
    let commit = episode(&world, &item, vec![schedule(&world, 0, "[]")]);
    assert!(worker.complete_orchestration(item.token, commit).await.is_err());
    worker.abandon_orchestration(item.token).await.unwrap();
    worker.release_orchestration(item.token).await;
    plan.clear();
    let item = lock(&worker).await;
    let commit = episode(&world, &item, Vec::new());
    finish(&worker, item, commit).await;
    let item = lock(&worker).await;
    assert_eq!(item.messages[0].event.name(), "ExecutionTerminated");
}

/// An id is started again while a worker writes the row of the execution that is replaced.
#[tokio::test(start_paused = true)]
async fn the_row_of_a_restart_is_written_though_the_replaced_execution_has_changed_it() {
    let (world, plan) = World::with_faults();
    let world = Arc::new(world);
    let (client, worker) = (world.client(), world.worker("w1").await);
    start(&client, "a").await;
    let item = lock(&worker).await;
    plan.add(Rule::on("UpdateEntity", Effect::DelayBefore(SOON)).resource("Instances").nth(1));
    let restart = tokio::spawn({
        let world = world.clone();
        async move {
            let other = AzureStorageClient::new(world.hub(World::settings("other")));
            start(&other, "a").await
        }
    });
    taskhub_testkit::eventually("the restart", || async { (plan.fired() == 1).then_some(()) }).await;
    // It even goes on under another execution id.
    let next = OrchestrationInstance::new("a", "next");
    let mut commit = episode(&world, &item, vec![schedule(&world, 0, "[]")]);
    (commit.instance, commit.replaces_history) = (next, true);
    finish(&worker, item, commit).await;
    assert_eq!(world.row("a", "ExecutionId"), "next");
    let second = restart.await.unwrap();
    let row = (world.row("a", "ExecutionId"), world.row("a", "RuntimeStatus"));
    assert_eq!(row, (second.execution_id.unwrap().as_str().to_owned(), "Pending".to_owned()));
}

/// A reply is older than the history that asks for it: the first episode was sent and not stored.
#[tokio::test(start_paused = true)]
async fn a_reply_that_comes_with_its_start_waits_however_often_it_has_come() {
    let world = World::new();
    let client = world.client();
    let instance = start(&client, "a").await;
    let kind = EventKind::TaskCompleted { task_scheduled_id: 0, result: Some("1".into()) };
    client.send_event(instance, HistoryEvent::message(world.clock.now(), kind)).await.unwrap();
    for queue in world.store.queues() {
        for message in world.store.messages(&queue).into_iter().filter(|m| m.text.contains("TaskCompleted")) {
            world.store.load_message(&queue, StoredMessage { dequeue_count: 6, ..message });
        }
    }
    let worker = world.worker("w1").await;
    let item = lock(&worker).await;
    let names: Vec<_> = item.messages.iter().map(|message| message.event.name()).collect();
    assert_eq!(names, ["ExecutionStarted"]);
    let commit = episode(&world, &item, vec![schedule(&world, 0, "[]")]);
    finish(&worker, item, commit).await;
    let item = lock(&worker).await;
    assert_eq!(item.messages[0].event.name(), "TaskCompleted");
}

/// The row of an execution is late, and meanwhile a client has started the id again, whose clock is behind.
#[tokio::test(start_paused = true)]
async fn a_restart_by_a_client_whose_clock_is_behind_keeps_its_row() {
    let (world, plan) = World::with_faults();
    let (client, worker) = (world.client(), Arc::new(world.worker("w1").await));
    start(&client, "a").await;
    let item = lock(&worker).await;
    let commit = episode(&world, &item, vec![completed(&world, 0, "\"first\"")]);
    plan.add(Rule::on("MergeEntity", Effect::DelayBefore(SOON)).resource("Instances").nth(1));
    let late = tokio::spawn({
        let worker = worker.clone();
        async move { worker.complete_orchestration(item.token, commit).await }
    });
    taskhub_testkit::eventually("the delay", || async { (plan.fired() == 1).then_some(()) }).await;
    let behind = world.clock.now() - Duration::from_secs(600);
    let clock = Arc::new(VirtualClock::starting_at(behind));
    let elsewhere = World { clock, store: world.store.clone(), account: world.store.account() };
    let other = AzureStorageClient::new(elsewhere.hub(World::settings("other")));
    let second = start(&other, "a").await;
    late.await.unwrap().unwrap();
    let row = (world.row("a", "ExecutionId"), world.row("a", "RuntimeStatus"));
    assert_eq!(row, (second.execution_id.unwrap().as_str().to_owned(), "Pending".to_owned()));
}

/// Of an instance whose first work item continues as new: the next execution is stored, the row is not.
async fn cut_between_history_and_row(
    world: &World,
    plan: &FaultPlan,
    ends: bool,
) -> (AzureStorageService, String) {
    let (client, worker) = (world.client(), world.worker("w1").await);
    let first = start(&client, "eternal").await;
    let item = lock(&worker).await;
    let next = OrchestrationInstance::new("eternal", "next");
    let decision = if ends { completed(world, 0, "\"done\"") } else { schedule(world, 0, "[]") };
    let mut commit = episode(world, &item, vec![decision]);
    if let EventKind::ExecutionStarted(started) = &mut commit.new_events[1].kind {
        (started.instance, started.generation) = (next.clone(), None);
    }
    // Of a clock that is behind.
    commit.new_events[1].timestamp = world.clock.now() - Duration::from_secs(600);
    (commit.instance, commit.replaces_history) = (next.clone(), true);
    commit.activity_messages.iter_mut().for_each(|message| message.target = next.clone());
    plan.add(Rule::on("MergeEntity", Effect::ResetBefore).resource("Instances").nth(2));
    assert!(worker.complete_orchestration(item.token, commit).await.is_err());
    assert!(world.history("eternal").len() > 2, "the next execution is stored");
    (worker, first.execution_id.unwrap().as_str().to_owned())
}

/// A worker dies between the history and the row of an instance that continued as new at once. The row is
/// that of no new start, whatever the clocks say, and the start is not run again over the history.
#[tokio::test(start_paused = true)]
async fn an_instance_that_continues_as_new_at_once_is_not_pending_any_more() {
    let (world, plan) = World::with_faults();
    let (worker, first) = cut_between_history_and_row(&world, &plan, false).await;
    let row = (world.row("eternal", "ExecutionId"), world.row("eternal", "RuntimeStatus"));
    assert_eq!(row, (first, "ContinuedAsNew".to_owned()));

    let activity = lock_activity(&worker).await;
    let reply = reply(&world, &activity.message, "1");
    worker.complete_activity(activity.token, reply).await.unwrap();
    worker.stop(Duration::ZERO).await.unwrap();
    let second = world.worker("w2").await;
    let item = lock(&second).await;
    assert_eq!(item.instance, OrchestrationInstance::new("eternal", "next"));
    assert_eq!(item.messages[0].event.name(), "TaskCompleted");
    let commit = episode(&world, &item, Vec::new());
    finish(&second, item, commit).await;
    let row = (world.row("eternal", "ExecutionId"), world.row("eternal", "RuntimeStatus"));
    assert_eq!(row, ("next".to_owned(), "Running".to_owned()));
    assert!(second.lock_next_orchestration(SOON).await.unwrap().is_none(), "the start is run again");
    assert_eq!(world.control_messages(), 0);
}

/// The same, and the next execution has ended at once.
#[tokio::test(start_paused = true)]
async fn the_row_of_an_instance_that_ended_as_another_execution_is_repaired() {
    let (world, plan) = World::with_faults();
    let (worker, _) = cut_between_history_and_row(&world, &plan, true).await;
    worker.stop(Duration::ZERO).await.unwrap();
    let second = world.worker("w2").await;
    // It finds the finished history of another execution than the row's before the start comes again.
    world.client().send_event(OrchestrationInstance::current("eternal"), raised("Late")).await.unwrap();
    assert!(second.lock_next_orchestration(SOON * 3).await.unwrap().is_none());
    let row = ["ExecutionId", "RuntimeStatus", "Output", "Name"].map(|column| world.row("eternal", column));
    assert_eq!(row, ["next", "Completed", "\"done\"", "Echo"]);
    assert_eq!(world.control_messages(), 0);
}

/// The same of an instance that had run for a while, and nobody writes to it: what is left is the message that caused
/// its last episode, addressed to the generation whose history is gone.
#[tokio::test(start_paused = true)]
async fn the_row_is_repaired_before_the_last_message_for_the_generation_before_is_discarded() {
    for is_named_by_row in [true, false] {
        let (world, plan) = World::with_faults();
        let worker = world.worker("w1").await;
        let first = begin(&world, &worker, "eternal", 1).await;
        let activity = lock_activity(&worker).await;
        worker.complete_activity(activity.token, reply(&world, &activity.message, "1")).await.unwrap();
        let item = lock(&worker).await;
        let next = OrchestrationInstance::new("eternal", "next");
        let mut commit = episode(&world, &item, vec![completed(&world, 0, "\"done\"")]);
        let start = item.history.iter().find(|event| matches!(event.kind, EventKind::ExecutionStarted(_)));
        let mut start = start.unwrap().clone();
        if let EventKind::ExecutionStarted(started) = &mut start.kind {
            started.instance = next.clone();
        }
        commit.new_events[1] = start;
        (commit.instance, commit.replaces_history) = (next, true);
        plan.add(Rule::on("MergeEntity", Effect::ResetBefore).resource("Instances"));
        assert!(worker.complete_orchestration(item.token, commit).await.is_err());
        worker.stop(Duration::ZERO).await.unwrap();
        plan.clear();
        assert_eq!((world.row("eternal", "RuntimeStatus"), world.control_messages()), ("Running".into(), 1));
        if !is_named_by_row {
            let before = Entity::new("eternal", "").with("ExecutionId", "before");
            let merge = TableOperation::Merge(before, Condition::Any);
            world.account.tables.execute("TestHubInstances", merge).await.unwrap();
        }
        assert_ne!(first.instance.execution_id.unwrap().as_str(), "next");

        let second = world.worker("w2").await;
        assert!(second.lock_next_orchestration(SOON * 600).await.unwrap().is_none());
        let row = ["ExecutionId", "RuntimeStatus", "Output"].map(|column| world.row("eternal", column));
        assert_eq!(row, ["next", "Completed", "\"done\""]);
        assert_eq!(world.control_messages(), 0);
    }
}

/// A worker dies between two batches of the history of an instance that continued as new at once: it is the start
/// that comes again, and it has to wake the next execution.
#[tokio::test(start_paused = true)]
async fn a_start_goes_on_with_the_cut_off_execution_as_which_it_continued() {
    let (world, plan) = World::with_faults();
    let mut settings = World::settings("w1");
    settings.sabotage.max_batch_rows = Some(3);
    let (client, worker) = (world.client(), world.worker_with(settings).await);
    start(&client, "eternal").await;
    let item = lock(&worker).await;
    let next = OrchestrationInstance::new("eternal", "next");
    let mut commit = episode(&world, &item, vec![schedule(&world, 0, "[]")]);
    if let EventKind::ExecutionStarted(started) = &mut commit.new_events[1].kind {
        (started.instance, started.generation) = (next.clone(), None);
    }
    (commit.instance, commit.replaces_history) = (next.clone(), true);
    plan.add(Rule::on("EntityGroupTransaction", Effect::Answer(412, "UpdateConditionNotSatisfied")).nth(2));
    assert!(worker.complete_orchestration(item.token, commit).await.is_err());
    worker.abandon_orchestration(item.token).await.unwrap();
    worker.release_orchestration(item.token).await;

    let item = lock(&worker).await;
    assert_eq!(item.instance, next);
    let commit = episode(&world, &item, vec![completed(&world, 1, "true")]);
    finish(&worker, item, commit).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(world.row("eternal", "RuntimeStatus"), "Completed");
    assert_eq!(world.control_messages(), 0);
}

/// The history of an instance is read when there is none, and its row, after a long wait for storage, when another
/// worker has stored its first episode.
#[tokio::test(start_paused = true)]
async fn an_event_is_kept_although_its_history_was_read_before_the_first_episode() {
    let other = World::new();
    let (world, plan) = World::with_faults();
    let first = begin(&other, &other.worker("w2").await, "a", 1).await;
    let worker = world.worker("w1").await;
    let long = Duration::from_secs(700);
    plan.add(Rule::on("QueryEntities", Effect::DelayBefore(long)).resource("Instances").nth(1));
    world.client().send_event(OrchestrationInstance::current("a"), raised("Go")).await.unwrap();
    let waiting = tokio::spawn({
        let worker = Arc::new(worker);
        async move {
            loop {
                if let Some(item) = worker.lock_next_orchestration(SOON).await.unwrap() {
                    return item;
                }
            }
        }
    });
    tokio::time::sleep(long / 2).await;
    for table in ["TestHubHistory", "TestHubInstances"] {
        other.store.entities(table).into_iter().for_each(|row| world.store.load_entity(table, row));
    }
    let item = tokio::time::timeout(long, waiting).await.expect("the event is lost").unwrap();
    assert_eq!((item.instance, item.history.len()), (first.instance, 4));
    assert!(matches!(item.messages[0].event.kind, EventKind::EventRaised { .. }));
}
