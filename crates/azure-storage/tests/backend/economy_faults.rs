//! The requests that are saved, when others fail or whoever waits for them goes away.

use std::sync::Arc;
use std::time::Duration;

use taskhub_azure_storage::{AzureStorageService, AzureStorageSettings};
use taskhub_core::{
    OrchestrationInstance, OrchestrationService, OrchestrationServiceClient, ServiceError, TaskMessage,
};
use taskhub_testkit::faults::{Effect, FaultPlan, Rule};
use tokio::time::Instant;

use crate::support::*;

const MINUTE: Duration = Duration::from_secs(60);
const REFUSED: Effect = Effect::Answer(403, "AuthorizationFailure");

/// Begins a request that hangs, and drops it then.
async fn cut_off<F>(plan: &FaultPlan, rule: Rule, work: F)
where
    F: Future<Output = Result<(), ServiceError>> + Send + 'static,
{
    plan.clear();
    plan.add(rule);
    let work = tokio::spawn(work);
    taskhub_testkit::eventually("the request", || async { (plan.fired() == 1).then_some(()) }).await;
    work.abort();
    let _ = work.await;
    plan.clear();
}

/// Looks for work for some minutes; there is none.
async fn nothing_comes(worker: &AzureStorageService) {
    let (orchestration, activity) =
        tokio::join!(worker.lock_next_orchestration(MINUTE * 3), worker.lock_next_activity(MINUTE * 3));
    assert!(orchestration.unwrap().is_none() && activity.unwrap().is_none());
}

#[tokio::test(start_paused = true)]
async fn what_an_episode_has_put_becomes_visible_when_it_is_cut_off_while_it_puts_more() {
    let (world, plan) = World::with_faults();
    let settings =
        AzureStorageSettings { max_storage_operation_concurrency: 1, ..World::default_settings("w1") };
    let worker = Arc::new(world.worker_with(settings).await);
    worker.set_activity_slots(10);
    start(&world.client(), "a").await;
    let item = lock(&worker).await;
    let mut commit = episode(&world, &item, (0..4).map(|at| schedule(&world, at, "[]")).collect());
    for _ in 0..4 {
        let event = TaskMessage::new(raised("Go"), OrchestrationInstance::current("other"));
        commit.orchestrator_messages.push(event);
    }
    let again = worker.clone();
    cut_off(&plan, Rule::on("PutMessage", Effect::HangBefore).nth(6), async move {
        again.complete_orchestration(item.token, commit).await
    })
    .await;
    tokio::time::sleep(Duration::from_secs(3)).await;
    let requests = world.store.messages("testhub-workitems");
    assert!(requests.len() + world.control_messages() > 5, "some are put");
    assert!(requests.iter().all(|request| request.next_visible_at <= world.clock.now()));
    let queues = world.store.queues();
    let mut events = queues.iter().filter(|q| q.contains("-control-")).flat_map(|q| world.store.messages(q));
    assert!(events.all(|event| event.dequeue_count > 0), "not received");
    let item = lock(&worker).await;
    assert_eq!(item.attempt, 2, "the start once more");
}

#[tokio::test(start_paused = true)]
async fn a_message_whose_deletion_is_cut_off_is_deleted_when_it_comes_again() {
    for (queue, concurrency) in [("control", 50), ("workitems", 50), ("control", 1), ("workitems", 1)] {
        let (world, plan) = World::with_faults();
        let settings = AzureStorageSettings {
            max_storage_operation_concurrency: concurrency,
            ..World::default_settings("w1")
        };
        let worker = Arc::new(world.worker_with(settings).await);
        worker.set_activity_slots(10);
        begin(&world, &worker, "a", 1).await;
        let activity = lock_activity(&worker).await;
        worker.complete_activity(activity.token, reply(&world, &activity.message, "1")).await.unwrap();
        world.client().send_event(OrchestrationInstance::current("a"), raised("Go")).await.unwrap();
        tokio::time::sleep(MINUTE).await;
        let item = lock(&worker).await;
        assert_eq!(item.messages.len(), 2);
        let commit = episode(&world, &item, vec![completed(&world, 1, "1")]);
        let again = worker.clone();
        cut_off(&plan, Rule::on("DeleteMessage", Effect::HangBefore).resource(queue).nth(1), async move {
            again.complete_orchestration(item.token, commit).await
        })
        .await;
        assert!(world.control_messages() + world.work_item_messages() > 0, "{queue}");
        nothing_comes(&worker).await;
        assert_eq!((world.control_messages(), world.work_item_messages()), (0, 0), "{queue}");
    }
}

#[tokio::test(start_paused = true)]
async fn an_activity_runs_again_whose_result_was_lost_while_it_was_sent_after_all() {
    let (world, plan) = World::with_faults();
    let worker = Arc::new(economical(&world).await);
    begin(&world, &worker, "a", 1).await;
    let activity = lock_activity(&worker).await;
    worker.complete_activity(activity.token, reply(&world, &activity.message, "1")).await.unwrap();
    let item = lock(&worker).await;
    let again = worker.clone();
    cut_off(&plan, Rule::on("PutMessage", Effect::HangBefore).nth(1), async move {
        again.abandon_orchestration(item.token).await
    })
    .await;
    worker.release_orchestration(item.token).await;
    let activity = lock_activity(&worker).await;
    worker.complete_activity(activity.token, reply(&world, &activity.message, "1")).await.unwrap();
    let item = lock(&worker).await;
    let commit = episode(&world, &item, vec![completed(&world, 1, "1")]);
    finish(&worker, item, commit).await;
    assert_eq!((world.control_messages(), world.work_item_messages()), (0, 0));
}

/// What a worker hands to itself does not keep its queues from being looked at seldom.
#[tokio::test(start_paused = true)]
async fn what_is_put_back_is_looked_for_when_it_is_due_however_silent_the_queues_are() {
    let (world, plan) = World::with_faults();
    let worker = economical(&world).await;
    begin(&world, &worker, "a", 1).await;
    let activity = lock_activity(&worker).await;
    let silence = MINUTE * 5;
    assert!(worker.lock_next_activity(silence).await.unwrap().is_none());
    let begun = Instant::now();
    worker.abandon_activity(activity.token).await.unwrap();
    let activity = lock_activity(&worker).await;
    assert!(begun.elapsed() < Duration::from_secs(3), "an activity: {:?}", begun.elapsed());

    worker.complete_activity(activity.token, reply(&world, &activity.message, "1")).await.unwrap();
    let item = lock(&worker).await;
    assert!(worker.lock_next_activity(silence).await.unwrap().is_none());
    let begun = Instant::now();
    plan.add(Rule::on("EntityGroupTransaction", REFUSED).nth(1));
    let commit = episode(&world, &item, vec![schedule(&world, 1, "[]")]);
    assert!(worker.complete_orchestration(item.token, commit).await.is_err());
    // It may have been stored.
    lock_activity(&worker).await;
    assert!(begun.elapsed() < Duration::from_secs(1), "what was put: {:?}", begun.elapsed());
    worker.abandon_orchestration(item.token).await.unwrap();
    worker.release_orchestration(item.token).await;
    let item = lock(&worker).await;
    assert!(begun.elapsed() < Duration::from_secs(3), "a result: {:?}", begun.elapsed());
    assert_eq!(item.messages[0].event.name(), "TaskCompleted");
}

#[tokio::test(start_paused = true)]
async fn that_an_instance_runs_is_shown_although_a_write_of_its_row_has_failed() {
    let (world, plan) = World::with_faults();
    let worker = economical(&world).await;
    begin(&world, &worker, "a", 0).await;
    for refused in [true, false] {
        world.client().send_event(OrchestrationInstance::current("a"), raised("Go")).await.unwrap();
        let item = lock(&worker).await;
        if refused {
            plan.add(Rule::on("MergeEntity", REFUSED).resource("Instances").nth(1));
        }
        let mut commit = episode(&world, &item, vec![]);
        commit.custom_status = Some("\"half\"".into());
        assert_eq!(worker.complete_orchestration(item.token, commit).await.is_err(), refused);
        worker.abandon_orchestration(item.token).await.unwrap();
        worker.release_orchestration(item.token).await;
    }
    assert_eq!(plan.fired(), 1);
    assert_eq!(world.row("a", "CustomStatus"), "\"half\"");
    assert_eq!(world.row("a", "RuntimeStatus"), "Running");
}

/// As in DTFx, which leaves the messages of an episode that loses.
#[tokio::test(start_paused = true)]
async fn with_dtfx_cadence_an_episode_that_loses_takes_nothing_back() {
    for (dtfx_cadence, left) in [(false, 0), (true, 1)] {
        let (world, plan) = World::with_faults();
        let mut settings = World::default_settings("w1");
        settings.dtfx_cadence = dtfx_cadence;
        let worker = world.worker_with(settings).await;
        start(&world.client(), "a").await;
        let item = lock(&worker).await;
        plan.add(Rule::on("EntityGroupTransaction", Effect::Answer(412, "UpdateConditionNotSatisfied")));
        let commit = episode(&world, &item, vec![schedule(&world, 0, "[]")]);
        assert!(worker.complete_orchestration(item.token, commit).await.is_err());
        assert_eq!(world.work_item_messages(), left);
    }
}

#[tokio::test(start_paused = true)]
async fn messages_whose_giving_back_panics_are_not_kept_for_ever() {
    let (world, plan) = World::with_faults();
    let worker = Arc::new(economical(&world).await);
    begin(&world, &worker, "a", 0).await;
    for _ in 0..3 {
        world.client().send_event(OrchestrationInstance::current("a"), raised("Go")).await.unwrap();
    }
    tokio::time::sleep(MINUTE).await;
    let item = lock(&worker).await;
    assert_eq!(item.messages.len(), 3);
    plan.add(Rule::on("UpdateMessage", Effect::Panic).nth(1));
    let (again, token) = (worker.clone(), item.token);
    let given_back = tokio::spawn(async move { again.abandon_orchestration(token).await });
    assert!(given_back.await.unwrap_err().is_panic());
    worker.release_orchestration(token).await;
    let mut received = 0;
    while received < 3 {
        let item = lock(&worker).await;
        received += item.messages.len();
        let commit = episode(&world, &item, vec![]);
        finish(&worker, item, commit).await;
    }
    assert_eq!(world.control_messages(), 0);
}
