//! Sequences of events in which a message, an instance or a partition could get lost.

use std::time::Duration;

use taskhub_azure_storage::{AzureStorageService, PartitionManagerKind};
use taskhub_core::{
    EventKind, HistoryEvent, OrchestrationInstance, OrchestrationService, OrchestrationServiceClient,
};
use taskhub_testkit::faults::{Effect, FaultPlan, FaultyAccount, Rule};

use crate::support::*;

fn faulty(plan: &FaultPlan) -> World {
    let mut world = World::new();
    world.account = FaultyAccount::wrap(world.store.account(), plan);
    world
}

#[tokio::test(start_paused = true)]
async fn an_event_received_with_a_stale_timer_is_not_discarded_with_it() {
    let world = World::new();
    let (client, first) = (world.client(), world.worker("w1").await);
    begin(&world, &first, "eternal", 0).await;
    let stale = OrchestrationInstance::new("eternal", "an-earlier-generation");
    let fire_at = world.clock.now() + Duration::from_secs(900);
    let timer = HistoryEvent::message(world.clock.now(), EventKind::TimerFired { timer_id: 7, fire_at });
    client.send_event(stale, timer).await.unwrap();
    // It fires, is out of order and is put back five times, after which it is given up.
    let received = || {
        let queues = world.store.queues();
        queues.iter().flat_map(|q| world.store.messages(q)).map(|m| m.dequeue_count).max().unwrap_or(0)
    };
    while received() < 5 {
        assert!(first.lock_next_orchestration(Duration::from_secs(1)).await.unwrap().is_none());
    }
    first.stop(Duration::from_secs(60)).await.unwrap();
    tokio::time::sleep(Duration::from_secs(60)).await;
    client.send_event(OrchestrationInstance::current("eternal"), raised("Go")).await.unwrap();
    assert_eq!(world.control_messages(), 2);
    let second = world.worker("w2").await;
    let item = second.lock_next_orchestration(Duration::from_secs(1200)).await.unwrap();
    assert!(item.is_some(), "the event is lost; messages left: {}", world.control_messages());
}

#[tokio::test(start_paused = true)]
async fn a_failed_delete_does_not_leave_the_rest_of_the_batch_held_for_ever() {
    let plan = FaultPlan::default();
    let world = faulty(&plan);
    let mut settings = World::settings("w1");
    settings.control_queue_buffer_threshold = 8;
    let (client, worker) = (world.client(), world.worker_with(settings).await);
    begin(&world, &worker, "many", 0).await;
    for n in 0..10 {
        client.send_event(OrchestrationInstance::current("many"), raised(&format!("E{n}"))).await.unwrap();
    }
    let item = lock(&worker).await;
    assert_eq!(item.messages.len(), 10);
    plan.add(Rule::on("DeleteMessage", Effect::ResetBefore).resource("control").nth(1));
    let commit = episode(&world, &item, vec![]);
    assert!(worker.complete_orchestration(item.token, commit).await.is_err());
    worker.abandon_orchestration(item.token).await.unwrap();
    worker.release_orchestration(item.token).await;
    plan.clear();
    tokio::time::sleep(Duration::from_secs(1200)).await;
    start(&client, "next").await;
    let next = worker.lock_next_orchestration(Duration::from_secs(1200)).await.unwrap();
    assert!(next.is_some(), "receiving has stopped for good; messages left: {}", world.control_messages());
}

#[tokio::test(start_paused = true)]
async fn an_id_started_again_while_it_runs_runs_the_new_execution() {
    let world = World::new();
    let (client, worker) = (world.client(), world.worker("w1").await);
    start(&client, "again").await;
    let item = lock(&worker).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    let second = start(&client, "again").await;
    tokio::time::sleep(Duration::from_secs(40)).await; // the second start is received and checked
    let commit = episode(&world, &item, vec![completed(&world, 0, "\"first\"")]);
    finish(&worker, item, commit).await;
    let row = (world.row("again", "ExecutionId"), world.row("again", "RuntimeStatus"));
    let next = worker.lock_next_orchestration(Duration::from_secs(1)).await.unwrap();
    if let Some(next) = next {
        let commit = episode(&world, &next, vec![completed(&world, 0, "\"second\"")]);
        if worker.complete_orchestration(next.token, commit).await.is_err() {
            worker.abandon_orchestration(next.token).await.unwrap();
        }
        worker.release_orchestration(next.token).await;
    }
    if let Some(next) = worker.lock_next_orchestration(Duration::from_secs(1200)).await.unwrap() {
        let commit = episode(&world, &next, vec![completed(&world, 0, "\"second\"")]);
        finish(&worker, next, commit).await;
    }
    assert_eq!(
        (row, world.row("again", "Output"), world.control_messages()),
        (
            (second.execution_id.unwrap().as_str().to_owned(), "Pending".to_owned()),
            "\"second\"".to_owned(),
            0
        )
    );
}

#[tokio::test(start_paused = true)]
async fn a_graceful_stop_waits_for_a_running_activity() {
    let world = World::new();
    let worker = world.worker("w1").await;
    begin(&world, &worker, "a", 1).await;
    let activity = lock_activity(&worker).await;
    let stopping = worker.stop(Duration::from_secs(60));
    let finishing = async {
        tokio::time::sleep(Duration::from_secs(10)).await;
        worker.complete_activity(activity.token, reply(&world, &activity.message, "1")).await
    };
    let (stopped, completed) = tokio::join!(stopping, finishing);
    stopped.unwrap();
    completed.unwrap();
    assert_eq!(world.work_item_messages(), 0);
}

#[tokio::test(start_paused = true)]
async fn the_partitions_of_a_dropped_worker_are_taken_over_and_its_messages_come_back() {
    let world = World::new();
    let first = world.worker("w1").await;
    tokio::time::sleep(Duration::from_secs(30)).await;
    drop(first);
    tokio::time::sleep(Duration::from_secs(120)).await;
    let client = world.client();
    for n in 0..8 {
        start(&client, &format!("i{n}")).await;
    }
    let second = world.worker("w2").await;
    let mut ran = 0;
    while let Some(item) = second.lock_next_orchestration(Duration::from_secs(700)).await.unwrap() {
        let commit = episode(&world, &item, vec![completed(&world, 0, "1")]);
        finish(&second, item, commit).await;
        ran += 1;
    }
    assert_eq!(ran, 8);
}

#[tokio::test(start_paused = true)]
async fn slow_tables_do_not_keep_partitions_unclaimed() {
    let plan = FaultPlan::default();
    let world = faulty(&plan);
    let mut settings = World::settings("w1");
    settings.partition_count = Some(16);
    world.hub(settings.clone()).create().await.unwrap();
    plan.add(Rule::on_all(Effect::DelayAfter(Duration::from_millis(130))).resource("Partitions"));
    let _worker = world.worker_with(settings).await;
    tokio::time::sleep(Duration::from_secs(600)).await;
    let owned =
        world.store.entities("TestHubPartitions").iter().filter(|r| r.str("CurrentOwner").is_some()).count();
    assert_eq!(owned, 16);
}

#[tokio::test(start_paused = true)]
async fn workers_that_create_a_hub_at_the_same_time_agree_on_its_size() {
    let world = World::new();
    let mut big = World::settings("w1");
    big.partition_count = Some(8);
    let (a, b) = (world.hub(big), world.hub(World::settings("w2")));
    // b found nothing, and creates while a does.
    let (a, b) = (a.create().await, b.create().await);
    assert_eq!(a.unwrap().partition_count, b.unwrap().partition_count);
}

#[tokio::test(start_paused = true)]
async fn a_half_created_hub_is_not_taken_for_a_smaller_one() {
    let plan = FaultPlan::default();
    let world = faulty(&plan);
    for n in 2..4 {
        let queue = format!("control-0{n}");
        plan.add(Rule::on("CreateQueue", Effect::DelayBefore(Duration::from_secs(4))).resource(queue));
    }
    let (a, b) = (world.hub(World::settings("w1")), world.hub(World::settings("w2")));
    let (a, b) = tokio::join!(a.create(), async {
        tokio::time::sleep(Duration::from_secs(1)).await;
        b.ensure().await
    });
    assert_eq!(a.unwrap().partition_count, 4);
    assert_eq!(b.unwrap().partition_count, 4);
}

#[tokio::test(start_paused = true)]
async fn an_event_with_a_stale_history_read_is_not_discarded() {
    let plan = FaultPlan::default();
    let world = faulty(&plan);
    let mut settings = World::settings("w1");
    settings.max_queue_polling_interval = Duration::from_millis(100);
    let (client, worker) = (world.client(), world.worker_with(settings).await);
    start(&client, "again").await;
    let item = lock(&worker).await;
    let commit = episode(&world, &item, vec![completed(&world, 0, "1")]);
    finish(&worker, item, commit).await;
    tokio::time::sleep(Duration::from_secs(60)).await;
    // The row is written half a second after the start message, which is put back for 2 s meanwhile; the
    // event is then received before the start, and reading its history is slow.
    plan.add(
        Rule::on("UpdateEntity", Effect::DelayBefore(Duration::from_millis(500)))
            .resource("Instances")
            .nth(1),
    );
    plan.add(
        Rule::on("QueryEntities", Effect::DelayAfter(Duration::from_secs(8))).resource("History").nth(1),
    );
    start(&client, "again").await;
    client.send_event(OrchestrationInstance::current("again"), raised("Go")).await.unwrap();
    let item = lock(&worker).await;
    assert_eq!(item.messages.len(), 1, "the start");
    let commit = episode(&world, &item, vec![]);
    finish(&worker, item, commit).await;
    assert_eq!(plan.fired(), 2);
    let item = worker.lock_next_orchestration(Duration::from_secs(1200)).await.unwrap();
    assert!(item.is_some(), "the event is lost; messages left: {}", world.control_messages());
}

// The reply to what a new generation asks for comes while that generation is being stored.
#[tokio::test(start_paused = true)]
async fn a_quick_reply_to_a_new_generation_is_not_put_back() {
    let plan = FaultPlan::default();
    let world = faulty(&plan);
    let mut settings = World::settings("w1");
    settings.max_queue_polling_interval = Duration::from_millis(100);
    let (client, worker) = (world.client(), world.worker_with(settings).await);
    begin(&world, &worker, "loop", 0).await;
    client.send_event(OrchestrationInstance::current("loop"), raised("Go")).await.unwrap();
    let mut item = lock(&worker).await;
    let token = item.token;
    item.instance.execution_id = Some("0123456789abcdef0123456789abcdef".into());
    let mut started = taskhub_core::HistoryEvent::clone(&item.history[1]);
    if let EventKind::ExecutionStarted(s) = &mut started.kind {
        s.instance = item.instance.clone();
    }
    let mut commit = episode(&world, &item, vec![schedule(&world, 0, "[]")]);
    commit.replaces_history = true;
    commit.new_events[1] = started;
    plan.add(Rule::on("EntityGroupTransaction", Effect::DelayBefore(Duration::from_millis(500))).nth(1));
    let store = async {
        worker.complete_orchestration(token, commit).await.unwrap();
        worker.release_orchestration(token).await;
    };
    let reply_quickly = async {
        let a = lock_activity(&worker).await;
        worker.complete_activity(a.token, reply(&world, &a.message, "1")).await.unwrap();
        tokio::time::sleep(Duration::from_millis(50)).await;
    };
    tokio::join!(store, reply_quickly);
    let begun = world.clock.now();
    lock(&worker).await;
    let took = world.clock.now().saturating_since(begun);
    assert!(took < Duration::from_secs(1), "{took:?}");
}

#[tokio::test(start_paused = true)]
async fn a_second_start_of_a_service_does_nothing() {
    let world = World::new();
    let worker = world.worker("w1").await;
    assert!(worker.start().await.is_err());
    tokio::time::sleep(Duration::from_millis(50)).await;
    let client = world.client();
    for n in 0..8 {
        start(&client, &format!("i{n}")).await;
    }
    let begun = world.clock.now();
    for _ in 0..8 {
        let item = lock(&worker).await;
        let commit = episode(&world, &item, vec![completed(&world, 0, "1")]);
        finish(&worker, item, commit).await;
    }
    assert!(world.clock.now().saturating_since(begun) < Duration::from_secs(60));
}

#[tokio::test(start_paused = true)]
async fn a_stop_waits_for_sessions_longer_than_the_partition_drain() {
    let world = World::new();
    let mut settings = World::settings("w1");
    settings.drain_timeout = Duration::from_secs(5);
    let (client, worker) = (world.client(), world.worker_with(settings).await);
    start(&client, "slow").await;
    let item = lock(&worker).await;
    let commit = episode(&world, &item, vec![completed(&world, 0, "1")]);
    let stopping = worker.stop(Duration::from_secs(60));
    let finishing = async {
        tokio::time::sleep(Duration::from_secs(20)).await;
        let queue = world.store.queues().into_iter().find(|q| !world.store.messages(q).is_empty()).unwrap();
        let visible = world.store.messages(&queue)[0].next_visible_at <= world.clock.now();
        finish(&worker, item, commit).await;
        visible
    };
    let (stopped, visible) = tokio::join!(stopping, finishing);
    stopped.unwrap();
    assert!(!visible, "given back while it is being worked on");
}

#[tokio::test(start_paused = true)]
async fn a_partition_claimed_again_during_its_drain_is_worked_on() {
    let plan = FaultPlan::default();
    let mut world = World::new();
    let plain = world.account.clone();
    world.account = FaultyAccount::wrap(world.store.account(), &plan);
    let mut settings = World::settings("w1");
    settings.partition_count = Some(1);
    settings.use_app_lease = false;
    let first = world.worker_with(settings.clone()).await;
    tokio::time::sleep(Duration::from_secs(5)).await;
    // A brownout: one receive takes 100 s, the rows cannot be read for 60 s.
    plan.add(
        Rule::on("GetMessages", Effect::DelayAfter(Duration::from_secs(100))).resource("control").nth(1),
    );
    tokio::time::sleep(Duration::from_secs(40)).await;
    assert_eq!(plan.fired(), 1);
    // Somebody else wants the partition.
    let mut row = world.store.entities("TestHubPartitions").remove(0);
    row.set("NextOwner", "w2");
    world.store.load_entity("TestHubPartitions", row);
    tokio::time::sleep(Duration::from_secs(15)).await; // the drain has begun
    // and takes it when it has expired, and hands it back.
    let mut row = world.store.entities("TestHubPartitions").remove(0);
    row.columns.remove("NextOwner");
    row.columns.remove("CurrentOwner");
    row.set("IsDraining", false);
    world.store.load_entity("TestHubPartitions", row);
    tokio::time::sleep(Duration::from_secs(120)).await;
    world.account = plain;
    let client = world.client();
    start(&client, "x").await;
    assert!(first.lock_next_orchestration(Duration::from_secs(600)).await.unwrap().is_some());
}

#[tokio::test(start_paused = true)]
async fn a_drain_that_ends_because_the_partition_is_claimed_again_gives_everything_back() {
    let plan = FaultPlan::default();
    let world = faulty(&plan);
    let mut settings = World::settings("w1");
    settings.partition_count = Some(1);
    let worker = world.worker_with(settings).await;
    tokio::time::sleep(Duration::from_secs(5)).await;
    let change = |change: &dyn Fn(&mut taskhub_storage::Entity)| {
        let mut row = world.store.entities("TestHubPartitions").remove(0);
        change(&mut row);
        world.store.load_entity("TestHubPartitions", row);
    };
    let received = || world.store.messages("testhub-control-00").iter().any(|m| m.dequeue_count == 1);
    start(&world.client(), "i").await;
    taskhub_testkit::eventually_within(Duration::from_secs(40), "a reception", || async {
        received().then_some(())
    })
    .await;
    let received_at = world.clock.now();
    plan.add(Rule::on("UpdateMessage", Effect::DelayBefore(Duration::from_secs(3))).resource("control"));
    change(&|row| row.set("NextOwner", "w2"));
    taskhub_testkit::eventually_within(Duration::from_secs(15), "the drain", || async {
        let row = world.store.entities("TestHubPartitions").remove(0);
        (row.get("IsDraining") == Some(&taskhub_storage::Value::Bool(true))).then_some(())
    })
    .await;
    change(&|row| {
        row.columns.remove("NextOwner");
        row.columns.remove("CurrentOwner");
        row.set("IsDraining", false);
    });
    assert!(worker.lock_next_orchestration(Duration::from_secs(60)).await.unwrap().is_some());
    let took = world.clock.now().saturating_since(received_at);
    assert!(took < Duration::from_secs(20), "it stayed hidden: {took:?}");
}

#[tokio::test(start_paused = true)]
async fn a_custom_status_too_large_for_a_column_does_not_stop_the_instance() {
    let world = World::new();
    let (client, worker) = (world.client(), world.worker("w1").await);
    start(&client, "loud").await;
    let item = lock(&worker).await;
    let mut commit = episode(&world, &item, vec![completed(&world, 0, "1")]);
    commit.custom_status = Some(format!("\"{}\"", "x".repeat(40_000)));
    finish(&worker, item, commit).await;
    assert_eq!(world.row("loud", "RuntimeStatus"), "Completed");
    assert!(world.row("loud", "CustomStatus").contains("too large"));
}

#[tokio::test(start_paused = true)]
async fn a_termination_is_not_undone_by_a_start_that_was_checked_before() {
    let plan = FaultPlan::default();
    let world = faulty(&plan);
    let mut settings = World::settings("w1");
    settings.max_queue_polling_interval = Duration::from_millis(100);
    let client = world.client();
    let request = taskhub_core::StartRequest {
        name: "Echo".into(),
        instance_id: "t".into(),
        scheduled_start_at: Some(world.clock.now() + Duration::from_secs(60)),
        ..Default::default()
    };
    client.start_instance(request).await.unwrap();
    let worker = world.worker_with(settings).await;
    tokio::time::sleep(Duration::from_millis(59_700)).await;
    // The start is due while the termination is being written.
    let slow = Effect::DelayBefore(Duration::from_secs(1));
    plan.add(Rule::on("MergeEntity", slow).resource("Instances").nth(1));
    client.send_event(OrchestrationInstance::current("t"), terminated("stop")).await.unwrap();
    let item = worker.lock_next_orchestration(Duration::from_secs(30)).await.unwrap().unwrap();
    let names: Vec<_> = item.messages.iter().map(|m| m.event.name()).collect();
    assert_eq!(names, ["ExecutionStarted", "ExecutionTerminated"]);
}

#[tokio::test(start_paused = true)]
async fn a_hub_whose_lease_blobs_are_held_is_left_to_the_other_manager() {
    let world = World::new();
    world.client().create_hub().await.unwrap();
    world.account.blobs.create_container("testhub-leases").await.unwrap();
    world.store.load_blob("testhub-leases", "ownership/testhub-control-00", r#"{"Owner":"other"}"#);
    world.worker("w0").await.stop(Duration::from_secs(60)).await.unwrap();
    let (blob, minute) = (Some("ownership/testhub-control-00"), Duration::from_secs(60));
    world
        .account
        .blobs
        .acquire_lease("testhub-leases", blob, uuid::Uuid::from_u128(1), minute)
        .await
        .unwrap();
    let mut settings = World::settings("w1");
    settings.partition_manager = Some(PartitionManagerKind::Table);
    let service = AzureStorageService::new(world.hub(settings));
    let error = service.start().await.unwrap_err().to_string();
    assert!(error.contains("blob=`testhub-leases/ownership/testhub-control-00` owner=`other`"), "{error}");
    assert!(error.contains("TestHub") && error.contains("force_partition_manager"), "{error}");
    tokio::time::sleep(Duration::from_secs(61)).await;
    service.start().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_half_made_hub_is_finished_by_whoever_names_its_size() {
    let world = World::new();
    world.client().create_hub().await.unwrap();
    let row = taskhub_storage::TableOperation::Delete {
        partition_key: String::new(),
        row_key: "testhub-control-01".into(),
        condition: taskhub_storage::Condition::Any,
    };
    world.account.tables.execute("TestHubPartitions", row).await.unwrap();
    assert!(world.client().create_hub().await.is_err());
    let mut settings = World::settings("w1");
    settings.partition_count = Some(4);
    assert_eq!(world.hub(settings).ensure().await.unwrap().partition_count, 4);
}

// Every process counts its messages from one, so the service's whole seconds and the numbers tell no order.
#[tokio::test(start_paused = true)]
async fn an_event_before_its_start_in_one_second_and_with_its_number_is_taken_in_after_the_start() {
    let world = World::new();
    world.hub(World::settings("any")).ensure().await.unwrap();
    let (eager, client) = (world.client(), world.client());
    eager.send_event(OrchestrationInstance::current("i"), raised("Go")).await.unwrap();
    start(&client, "i").await;
    let queue = world.store.queues().into_iter().find(|q| !world.store.messages(q).is_empty()).unwrap();
    let stored = world.store.messages(&queue);
    assert_eq!(stored.len(), 2);
    assert_eq!(stored[0].inserted_at.truncated_to_second(), stored[1].inserted_at.truncated_to_second());
    let first = &stored.iter().find(|m| m.text.contains("SequenceNumber\":1")).unwrap().text;
    assert!(first.contains("EventRaised") && stored.iter().all(|m| m.text.contains("SequenceNumber\":1")));
    let worker = world.worker("w1").await;
    let names: Vec<_> = lock(&worker).await.messages.iter().map(|m| m.event.name()).collect();
    assert_eq!(names, ["ExecutionStarted", "EventRaised"]);
}
