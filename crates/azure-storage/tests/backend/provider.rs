//! Scenarios of the reference's own tests about hubs, partitions and workers.

use std::collections::BTreeSet;
use std::time::Duration;

use futures::future::join_all;
use taskhub_azure_storage::AzureStorageClient;
use taskhub_core::{
    EventKind, IdSource, InstanceFetch, OrchestrationInstance, OrchestrationService,
    OrchestrationServiceClient, OrchestrationStatus, SeededIds, Timestamp,
};
use taskhub_testkit::faults::{Effect, FaultPlan, FaultyAccount, Rule};

use crate::support::*;

#[tokio::test(start_paused = true)]
async fn messages_received_ahead_are_visible_at_once_when_their_partition_is_lost() {
    let world = World::new();
    let mut settings = World::settings("w1");
    settings.partition_count = Some(1);
    let (client, worker) = (world.client(), world.worker_with(settings).await);
    for n in 0..5 {
        start(&client, &format!("i{n}")).await;
    }
    tokio::time::sleep(Duration::from_secs(5)).await;
    let visible = || {
        let messages = world.store.messages("testhub-control-00");
        messages.iter().filter(|m| m.next_visible_at <= world.clock.now()).count()
    };
    assert_eq!(visible(), 0);
    let mut row = world.store.entities("TestHubPartitions").remove(0);
    row.set("CurrentOwner", "w2");
    row.set("ExpiresAt", world.clock.now() + Duration::from_secs(3600));
    world.store.load_entity("TestHubPartitions", row);
    tokio::time::sleep(Duration::from_secs(12)).await;
    assert_eq!(visible(), 5);
    assert!(worker.lock_next_orchestration(Duration::from_secs(60)).await.unwrap().is_none());
}

#[tokio::test(start_paused = true)]
async fn many_instances_started_at_once_run_once_each_and_every_partition_gets_work() {
    let world = World::new();
    let client = world.client();
    client.create_hub().await.unwrap();
    let ids: Vec<_> = (0..100).map(|n| format!("i{n}")).collect();
    join_all(ids.iter().map(|id| start(&client, id))).await;
    let control: Vec<_> = world.store.queues().into_iter().filter(|q| q.contains("-control-")).collect();
    assert_eq!(control.len(), 4);
    for queue in &control {
        assert!(world.store.messages(queue).len() > 10, "{queue}");
    }
    let worker = world.worker("w1").await;
    let mut ran = BTreeSet::new();
    for _ in 0..100 {
        let item = lock(&worker).await;
        assert!(ran.insert(item.instance.instance_id.to_string()), "{} ran twice", item.instance.instance_id);
        let commit = episode(&world, &item, vec![completed(&world, 0, "1")]);
        finish(&worker, item, commit).await;
    }
    assert_eq!(world.control_messages(), 0);
}

#[tokio::test(start_paused = true)]
async fn random_ids_spread_evenly_over_the_queues() {
    for (partitions, ids) in [(4, 20_000), (16, 4_000)] {
        let world = World::new();
        let mut settings = World::settings("client");
        settings.partition_count = Some(partitions);
        let client = AzureStorageClient::new(world.hub(settings));
        let random = SeededIds::new(7);
        for _ in 0..ids {
            start(&client, &random.guid().simple().to_string()).await;
        }
        let queues = world.store.queues().into_iter().filter(|q| q.contains("-control-"));
        let lengths: Vec<_> = queues.map(|queue| world.store.messages(&queue).len()).collect();
        let mean = ids / partitions as usize;
        // Four times what chance makes of it.
        let spread = 4.0 * (mean as f64).sqrt();
        let is_even = |n: &usize| (*n as f64 - mean as f64).abs() < spread;
        assert!(lengths.len() == partitions as usize && lengths.iter().all(is_even), "{lengths:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_client_sends_to_the_partitions_that_the_hub_has_whatever_it_is_told_by_default() {
    let world = World::new();
    let mut settings = World::settings("creator");
    settings.partition_count = Some(7);
    world.hub(settings).create().await.unwrap();
    let client = world.client();
    for n in 0..50 {
        start(&client, &format!("i{n}")).await;
    }
    for n in 0..7 {
        for message in world.store.messages(&format!("testhub-control-{n:02}")) {
            let id =
                message.text.split("\"InstanceId\":\"").nth(1).unwrap().split('"').next().unwrap().to_owned();
            assert_eq!(taskhub_azure_storage::partition::partition_of(&id.as_str().into(), 7).0, n, "{id}");
        }
    }
    assert_eq!(world.control_messages(), 50);
    assert!(!world.store.messages("testhub-control-06").is_empty());
}

#[tokio::test(start_paused = true)]
async fn an_id_restarted_a_hundred_times_under_events_ends_with_the_last_one() {
    let world = World::new();
    let mut settings = World::settings("w1");
    settings.max_queue_polling_interval = Duration::from_millis(500);
    let (client, worker) = (world.client(), world.worker_with(settings).await);
    for n in 0..100 {
        tokio::time::sleep(Duration::from_secs(1)).await;
        let execution = start(&client, "again").await.execution_id;
        client.send_event(OrchestrationInstance::current("again"), raised(&format!("E{n}"))).await.unwrap();
        let mut waiting = true;
        while waiting {
            let item = lock(&worker).await;
            assert_eq!(item.instance.execution_id, execution, "round {n}");
            let event = |m: &taskhub_core::TaskMessage| matches!(m.event.kind, EventKind::EventRaised { .. });
            waiting = !item.messages.iter().any(event);
            let decisions = if waiting { vec![] } else { vec![completed(&world, 0, &n.to_string())] };
            let commit = episode(&world, &item, decisions);
            finish(&worker, item, commit).await;
        }
        assert_eq!(world.row("again", "Output"), n.to_string());
    }
    assert_eq!(world.control_messages(), 0);
}

/// The worker dies between the history and the Instances row of the last episode.
#[tokio::test(start_paused = true)]
async fn a_worker_that_dies_between_history_and_row_is_repaired_by_the_next_one() {
    use OrchestrationStatus::{Completed, Failed, Terminated};
    for status in [Completed, Failed, Terminated] {
        for length in [10, 100_000] {
            let plan = FaultPlan::default();
            let world = World::new();
            let mut first = world.hub(World::settings("w1"));
            first.account = FaultyAccount::wrap(first.account, &plan);
            let first = taskhub_azure_storage::AzureStorageService::new(first);
            first.start().await.unwrap();
            let client = world.client();
            let output = format!("\"{}\"", "x".repeat(length));
            start(&client, "i").await;
            let item = lock(&first).await;
            let mut end = completed(&world, 0, &output);
            if let EventKind::ExecutionCompleted(completed) = &mut end.kind {
                completed.status = status;
            }
            let commit = episode(&world, &item, vec![end]);
            plan.add(Rule::on("MergeEntity", Effect::HangBefore).resource("Instances").nth(1));
            let token = item.token;
            let dying = first.complete_orchestration(token, commit);
            assert!(tokio::time::timeout(Duration::from_secs(5), dying).await.is_err());
            plan.add(Rule::on_all(Effect::HangBefore));
            drop(first);
            assert_ne!(world.row("i", "RuntimeStatus"), status.name());
            let second = world.worker("w2").await;
            assert!(second.lock_next_orchestration(Duration::from_secs(120)).await.unwrap().is_none());
            let state = client.instance_state(&"i".into(), InstanceFetch::ALL).await.unwrap().unwrap();
            assert_eq!(state.status, Some(status), "{length}");
            assert_eq!(state.output.as_deref(), Some(output.as_str()), "{status}");
            assert!(state.completed_at.is_some_and(|at| at > Timestamp::MIN));
            assert_eq!(world.control_messages(), 0);
            second.stop(Duration::from_secs(5)).await.unwrap();
        }
    }
}

#[tokio::test(start_paused = true)]
async fn ids_that_differ_only_in_case_are_two_instances() {
    let world = World::new();
    let mut settings = World::settings("w1");
    settings.partition_count = Some(1);
    let (worker, client) = (world.worker_with(settings).await, world.client());
    // Both in the hands of one worker, and one of them at work.
    start(&client, "ABC").await;
    let upper = lock(&worker).await;
    start(&client, "abc").await;
    let lower = lock(&worker).await;
    client.send_event(OrchestrationInstance::current("abc"), raised("Go")).await.unwrap();
    for (item, id) in [(&upper, "ABC"), (&lower, "abc")] {
        assert_eq!((item.instance.instance_id.as_str(), item.messages.len()), (id, 1));
    }
    let commit = episode(&world, &lower, Vec::new());
    finish(&worker, lower, commit).await;
    let item = lock(&worker).await;
    assert_eq!((item.instance.instance_id.as_str(), item.messages[0].event.name()), ("abc", "EventRaised"));
    for (item, output) in [(item, "1"), (upper, "2")] {
        let commit = episode(&world, &item, vec![completed(&world, 0, output)]);
        finish(&worker, item, commit).await;
    }
    assert_eq!((world.row("abc", "Output"), world.row("ABC", "Output")), ("1".into(), "2".into()));
}
