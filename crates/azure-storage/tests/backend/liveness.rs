//! Nothing that this process holds gets stuck or lost: renewals, pauses, lost replies, hanging requests, panics.

use std::sync::Arc;
use std::time::Duration;

use taskhub_core::{OrchestrationInstance, OrchestrationService, OrchestrationServiceClient, SeededIds};
use taskhub_storage::request::{OperationCounts, RequestSettings};
use taskhub_testkit::faults::{Effect, FaultPlan, FaultyAccount, Rule};

use crate::support::*;

const MINUTE: Duration = Duration::from_secs(60);

/// A world whose workers send all requests through the request layer, as programs do.
fn layered(plan: &FaultPlan) -> (World, OperationCounts) {
    let mut world = World::new();
    let counts = OperationCounts::default();
    let faulty = FaultyAccount::wrap(world.store.account(), plan);
    // One jitter for every run: which requests a plan meets depends on it.
    let requests = RequestSettings { ids: Arc::new(SeededIds::new(1)), ..RequestSettings::default() };
    world.account = faulty.layered(requests, &counts);
    (world, counts)
}

/// The same hub for a program whose requests do not fail.
fn plain(world: &World) -> World {
    World { clock: world.clock.clone(), store: world.store.clone(), account: world.store.account() }
}

/// How often the least lucky message has been received.
fn receptions(world: &World) -> u32 {
    let queues = world.store.queues();
    queues.iter().flat_map(|q| world.store.messages(q)).map(|m| m.dequeue_count).max().unwrap_or(0)
}

#[tokio::test(start_paused = true)]
async fn an_episode_of_ten_minutes_keeps_its_messages_and_one_of_nine_seconds_renews_nothing() {
    let (world, counts) = layered(&FaultPlan::default());
    let (client, worker) = (world.client(), world.worker("w1").await);
    start(&client, "quick").await;
    let item = lock(&worker).await;
    tokio::time::sleep(Duration::from_secs(9)).await;
    let commit = episode(&world, &item, vec![completed(&world, 0, "1")]);
    finish(&worker, item, commit).await;
    assert_eq!(counts.of("UpdateMessage").count, 0);

    start(&client, "slow").await;
    let item = lock(&worker).await;
    client.send_event(OrchestrationInstance::current("slow"), raised("Waiting")).await.unwrap();
    tokio::time::sleep(MINUTE * 10).await;
    assert_eq!(receptions(&world), 1);
    let renewals = counts.of("UpdateMessage").count;
    assert!((100..=130).contains(&renewals), "two messages, every 10 s: {renewals}");
    let commit = episode(&world, &item, vec![completed(&world, 0, "1")]);
    finish(&worker, item, commit).await;
}

#[tokio::test(start_paused = true)]
async fn activities_in_hand_and_handed_over_are_renewed() {
    let (world, _) = layered(&FaultPlan::default());
    let mut settings = World::settings("w1");
    settings.hand_off_local_activities = true;
    let (client, worker) = (world.client(), world.worker_with(settings).await);
    start(&client, "a").await;
    let item = lock(&worker).await;
    let commit = episode(&world, &item, vec![schedule(&world, 0, "[]")]);
    let (activity, ()) = tokio::join!(lock_activity(&worker), async {
        tokio::time::sleep(Duration::from_secs(1)).await;
        finish(&worker, item, commit).await;
    });
    let other = world.worker("w2").await;
    assert!(other.lock_next_activity(MINUTE * 10).await.unwrap().is_none(), "received a second time");
    worker.complete_activity(activity.token, reply(&world, &activity.message, "1")).await.unwrap();
    assert_eq!(world.work_item_messages(), 0);
}

#[tokio::test(start_paused = true)]
async fn renewals_that_hang_or_fail_are_repeated_and_do_not_hinder_others() {
    let plan = FaultPlan::default();
    let (world, _) = layered(&plan);
    let (client, worker) = (world.client(), world.worker("w1").await);
    for n in 0..40 {
        start(&client, &format!("i{n}")).await;
    }
    let mut items = Vec::new();
    for _ in 0..40 {
        items.push(lock(&worker).await);
    }
    // Seldom enough that no message meets four in a row: there is time for three before it shows again.
    plan.add(Rule::on("UpdateMessage", Effect::HangBefore).every(20));
    plan.add(Rule::on("UpdateMessage", Effect::Answer(503, "ServerBusy")).every(17));
    plan.add(Rule::on("UpdateMessage", Effect::DelayAfter(Duration::from_secs(3))));
    tokio::time::sleep(MINUTE * 5).await;
    assert!(plan.fired() > 40 * 20, "{}", plan.fired());
    assert_eq!(receptions(&world), 1, "a message was received again while it was held");
}

// As SIGSTOP: nothing of the process runs, not even its clock is looked at, while its messages reappear.
#[tokio::test(start_paused = true)]
async fn a_process_that_was_paused_for_a_minute_does_not_overwrite_what_others_did() {
    let plan = FaultPlan::default();
    let (world, _) = layered(&plan);
    let (client, first) = (world.client(), world.worker("w1").await);
    start(&client, "i").await;
    let item = lock(&first).await;
    let paused = Effect::DelayBefore(Duration::from_secs(65));
    plan.add(Rule::on_all(paused));
    let fresh = plain(&world);
    let second = fresh.worker("w2").await;
    let taken = lock(&second).await;
    let waited = world.clock.now();
    let commit = episode(&fresh, &taken, vec![completed(&fresh, 0, "\"second\"")]);
    finish(&second, taken, commit).await;
    plan.clear();
    let commit = episode(&world, &item, vec![completed(&world, 0, "\"first\"")]);
    assert!(first.complete_orchestration(item.token, commit).await.is_err(), "at {waited:?}");
    first.abandon_orchestration(item.token).await.unwrap();
    first.release_orchestration(item.token).await;
    assert_eq!(world.row("i", "Output"), "\"second\"");
    // It goes on as a member of the fleet.
    tokio::time::sleep(MINUTE * 2).await;
    start(&client, "later").await;
    let both = async {
        tokio::select! {
            item = first.lock_next_orchestration(MINUTE * 2) => item,
            item = second.lock_next_orchestration(MINUTE * 2) => item,
        }
    };
    assert!(both.await.unwrap().is_some());
}

#[tokio::test(start_paused = true)]
async fn a_lost_reply_to_a_receive_costs_as_long_as_the_messages_are_hidden() {
    for (effect, bound) in [(Effect::LoseReply, 35), (Effect::HangAfter, 35)] {
        let plan = FaultPlan::default();
        let (world, _) = layered(&plan);
        let (client, worker) = (world.client(), world.worker("w1").await);
        tokio::time::sleep(Duration::from_secs(5)).await;
        start(&client, "i").await;
        // The receive that finds it.
        let queue = world.store.queues().into_iter().find(|q| !world.store.messages(q).is_empty()).unwrap();
        plan.add(Rule::on("GetMessages", effect.clone()).resource(queue).nth(1));
        let begun = world.clock.now();
        lock(&worker).await;
        let took = world.clock.now().saturating_since(begun);
        assert!(took <= Duration::from_secs(bound), "{effect:?}: {took:?}");
        assert!(receptions(&world) == 2, "{effect:?}: the reply was not lost");
    }
}

#[tokio::test(start_paused = true)]
async fn a_stop_ends_and_frees_what_it_can_when_storage_hangs() {
    let plan = FaultPlan::default();
    let (world, _) = layered(&plan);
    let (client, worker) = (world.client(), world.worker("w1").await);
    for n in 0..4 {
        start(&client, &format!("i{n}")).await;
    }
    let item = lock(&worker).await;
    let commit = episode(&world, &item, vec![schedule(&world, 0, "[]")]);
    finish(&worker, item, commit).await;
    lock_activity(&worker).await;
    lock(&worker).await;
    plan.add(Rule::on_all(Effect::HangBefore));
    let begun = world.clock.now();
    worker.stop(Duration::from_secs(10)).await.unwrap();
    let took = world.clock.now().saturating_since(begun);
    assert!(took < Duration::from_secs(45), "{took:?}");
}

#[tokio::test(start_paused = true)]
async fn a_receive_under_way_when_a_stop_begins_is_given_back() {
    let plan = FaultPlan::default();
    let (world, _) = layered(&plan);
    let (client, worker) = (world.client(), world.worker("w1").await);
    start(&client, "a").await;
    let item = lock(&worker).await;
    let commit = episode(&world, &item, vec![schedule(&world, 0, "[]")]);
    plan.add(Rule::on("GetMessages", Effect::DelayAfter(Duration::from_secs(3))));
    finish(&worker, item, commit).await;
    start(&client, "b").await;
    // Whoever waits for the activity gives up before the reply comes.
    let waited = worker.lock_next_activity(MINUTE);
    assert!(tokio::time::timeout(Duration::from_secs(1), waited).await.is_err());
    tokio::time::sleep(Duration::from_secs(1)).await;
    worker.stop(Duration::from_secs(20)).await.unwrap();
    let queues = world.store.queues();
    let all = queues.iter().flat_map(|q| world.store.messages(q));
    assert_eq!(all.filter(|m| m.next_visible_at > world.clock.now()).count(), 0);
    assert_eq!((world.work_item_messages(), world.control_messages()), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn a_panic_in_any_request_leaves_no_session_and_no_message_behind() {
    for (operation, resource) in [
        ("QueryEntities", "History"),
        ("QueryEntities", "Instances"),
        ("EntityGroupTransaction", ""),
        ("MergeEntity", "Instances"),
        ("DeleteMessage", "control"),
        ("DeleteMessage", "workitems"),
        ("PutMessage", "control"),
        ("PutMessage", "workitems"),
        ("GetMessages", "control"),
        ("GetMessages", "workitems"),
        ("UpdateMessage", ""),
    ] {
        let plan = FaultPlan::default();
        let (world, _) = layered(&plan);
        let worker = std::sync::Arc::new(world.worker("w1").await);
        let driver = tokio::spawn(drive(worker.clone(), world.clock.clone()));
        tokio::time::sleep(Duration::from_secs(3)).await;
        let client = plain(&world).client();
        plan.add(Rule::on(operation, Effect::Panic).resource(resource).nth(1));
        start(&client, "i").await;
        taskhub_testkit::eventually_within(MINUTE * 3, &format!("{operation} {resource}"), || async {
            (world.row("i", "RuntimeStatus") == "Completed").then_some(())
        })
        .await;
        if operation != "UpdateMessage" {
            assert_eq!(plan.fired(), 1, "{operation} {resource}");
        }
        driver.abort();
    }
}

/// A worker of the simplest kind: one activity per instance, whose reply completes it. Each call into the
/// backend runs in a task of its own, so that a panic costs that call.
async fn drive(
    worker: std::sync::Arc<taskhub_azure_storage::AzureStorageService>,
    clock: std::sync::Arc<dyn taskhub_core::Clock>,
) {
    let world = std::sync::Arc::new({
        let mut world = World::new();
        world.clock = clock;
        world
    });
    let orchestrations = async {
        loop {
            let (worker, world) = (worker.clone(), world.clone());
            let _ = tokio::spawn(async move {
                let Ok(Some(item)) = worker.lock_next_orchestration(MINUTE).await else { return };
                let replied = item.messages.iter().any(|m| m.event.name() == "TaskCompleted");
                let decisions =
                    if replied { vec![completed(&world, 1, "1")] } else { vec![schedule(&world, 0, "[]")] };
                let commit = episode(&world, &item, decisions);
                if worker.complete_orchestration(item.token, commit).await.is_err() {
                    let _ = worker.abandon_orchestration(item.token).await;
                }
                worker.release_orchestration(item.token).await;
            })
            .await;
        }
    };
    let activities = async {
        loop {
            let (worker, world) = (worker.clone(), world.clone());
            let _ = tokio::spawn(async move {
                let Ok(Some(item)) = worker.lock_next_activity(MINUTE).await else { return };
                let reply = reply(&world, &item.message, "1");
                if worker.complete_activity(item.token, reply).await.is_err() {
                    let _ = worker.abandon_activity(item.token).await;
                }
            })
            .await;
        }
    };
    tokio::join!(orchestrations, activities);
}

// Without the deadlines of the request layer, so that the loop really hangs.
#[tokio::test(start_paused = true)]
async fn a_receive_loop_that_hangs_is_replaced() {
    let (world, plan) = World::with_faults();
    let (client, worker) = (plain(&world).client(), world.worker("w1").await);
    tokio::time::sleep(Duration::from_secs(5)).await;
    start(&client, "i").await;
    let queue = world.store.queues().into_iter().find(|q| !world.store.messages(q).is_empty()).unwrap();
    plan.add(Rule::on("GetMessages", Effect::HangBefore).resource(queue).nth(1));
    let begun = world.clock.now();
    let item = worker.lock_next_orchestration(MINUTE * 10).await.unwrap();
    let took = world.clock.now().saturating_since(begun);
    assert!(item.is_some() && took < MINUTE * 3, "{took:?}");
}

// The renewal took place, so that the receipt is a wrong one from then on, and the request reappears.
#[tokio::test(start_paused = true)]
async fn an_activity_that_its_own_worker_receives_again_is_held_again_and_runs_once() {
    let plan = FaultPlan::default();
    let (world, _) = layered(&plan);
    let worker = world.worker("w1").await;
    begin(&world, &worker, "i", 1).await;
    let activity = lock_activity(&worker).await;
    plan.add(Rule::on("UpdateMessage", Effect::HangAfter).resource("workitems").nth(1));
    assert!(worker.lock_next_activity(MINUTE * 5).await.unwrap().is_none(), "it runs a second time");
    assert_eq!((plan.fired(), receptions(&world)), (1, 2), "received again once, and then renewed again");
    worker.complete_activity(activity.token, reply(&world, &activity.message, "1")).await.unwrap();
    assert_eq!(world.work_item_messages(), 0);
}

// The renewal took place, its reply was lost, and the activity ends before anybody has noticed.
#[tokio::test(start_paused = true)]
async fn an_answered_activity_whose_delete_met_a_stale_receipt_is_deleted_and_not_run_again() {
    for effect in [Effect::HangAfter, Effect::LoseReply] {
        let plan = FaultPlan::default();
        let (world, _) = layered(&plan);
        let worker = world.worker("w1").await;
        begin(&world, &worker, "i", 1).await;
        let activity = lock_activity(&worker).await;
        plan.add(Rule::on("UpdateMessage", effect).resource("workitems"));
        while plan.fired() == 0 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        worker.complete_activity(activity.token, reply(&world, &activity.message, "1")).await.unwrap();
        assert_eq!(world.work_item_messages(), 1, "the receipt was the newest");
        plan.clear();
        assert!(worker.lock_next_activity(MINUTE * 5).await.unwrap().is_none(), "it runs a second time");
        assert_eq!(world.work_item_messages(), 0);
    }
}

#[tokio::test(start_paused = true)]
async fn an_activity_whose_large_request_is_read_slowly_runs_once() {
    let (world, plan) = World::with_faults();
    let plain = plain(&world);
    let (client, second) = (plain.client(), plain.worker("w2").await);
    start(&client, "i").await;
    let item = lock(&second).await;
    let commit = episode(&plain, &item, vec![schedule(&plain, 0, &format!("[\"{}\"]", "x".repeat(100_000)))]);
    finish(&second, item, commit).await;
    let first = world.worker("w1").await;
    plan.add(Rule::on("GetBlob", Effect::DelayAfter(Duration::from_secs(35))).resource("largemessages"));
    let slow = first.lock_next_activity(MINUTE * 2);
    let quick = async {
        while plan.fired() == 0 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let activity = lock_activity(&second).await;
        tokio::time::sleep(MINUTE).await;
        second.complete_activity(activity.token, reply(&plain, &activity.message, "1")).await.unwrap();
    };
    let (slow, ()) = tokio::join!(slow, quick);
    assert!(slow.unwrap().is_none(), "it runs a second time");
    assert_eq!(world.work_item_messages(), 0);
}

#[tokio::test(start_paused = true)]
async fn what_a_session_leaves_undone_comes_again() {
    let (world, _) = layered(&FaultPlan::default());
    let (client, worker) = (world.client(), world.worker("w1").await);
    start(&client, "i").await;
    let item = lock(&worker).await;
    worker.release_orchestration(item.token).await;
    let again = worker.lock_next_orchestration(MINUTE).await.unwrap().expect("the start once more");
    assert_eq!((again.instance, again.attempt), (item.instance, 2));
}

#[tokio::test(start_paused = true)]
async fn the_age_of_messages_is_told_for_owned_queues_only() {
    let (world, _) = layered(&FaultPlan::default());
    let first = world.worker("w1").await;
    let queues = || {
        let (mut registry, mut text) = (prometheus_client::registry::Registry::default(), String::new());
        first.metrics().register(&mut registry);
        prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
        text.lines().filter(|line| line.starts_with("taskhub_oldest_message_age_seconds{")).count()
    };
    tokio::time::sleep(MINUTE + MINUTE / 2).await;
    assert_eq!(queues(), 4);
    let _second = world.worker("w2").await;
    tokio::time::sleep(MINUTE * 2).await;
    assert_eq!(queues(), 2, "two have gone to the other worker");
}
