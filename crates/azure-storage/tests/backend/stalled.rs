//! A worker that stalls between the history and the Instances row of an episode, while another one goes on.

use std::sync::Arc;
use std::time::Duration;

use taskhub_core::{OrchestrationInstance, OrchestrationService};
use taskhub_testkit::faults::{Effect, Rule};

use crate::support::*;

/// The first worker's row is on its way for five minutes, in which it neither renews nor receives.
async fn check(as_child: bool, write: &'static str) {
    let (world, plan) = World::with_faults();
    let (client, first) = (world.client(), Arc::new(world.worker("w1").await));
    if as_child {
        start(&client, "p").await;
        let item = lock(&first).await;
        let mut commit = episode(&world, &item, vec![]);
        let child = OrchestrationInstance::new("c", "0123456789abcdef0123456789abcdef");
        commit.orchestrator_messages.push(child_start(&world, &item.instance, child));
        finish(&first, item, commit).await;
    } else {
        start(&client, "c").await;
    }
    let item = lock(&first).await;
    let begun = episode(&world, &item, vec![schedule(&world, 0, "[]")]);
    plan.add(Rule::on(write, Effect::DelayBefore(Duration::from_secs(300))).resource("Instances").nth(1));
    let stalled = tokio::spawn({
        let first = first.clone();
        async move { first.complete_orchestration(item.token, begun).await }
    });
    taskhub_testkit::eventually("the stall", || async { (plan.fired() == 1).then_some(()) }).await;
    assert!(world.history("c").len() > 2, "the episode is stored");
    plan.add(Rule::on_all(Effect::DelayBefore(Duration::from_secs(200))));

    let healthy =
        World { clock: world.clock.clone(), store: world.store.clone(), account: world.store.account() };
    let second = healthy.worker("w2").await;
    let activity = lock_activity(&second).await;
    second.complete_activity(activity.token, reply(&healthy, &activity.message, "1")).await.unwrap();
    loop {
        let item = lock(&second).await;
        if item.messages.iter().any(|m| m.event.name() == "TaskCompleted") {
            let commit = episode(&healthy, &item, vec![completed(&healthy, 1, "\"second\"")]);
            finish(&second, item, commit).await;
            break;
        }
        // What caused the first episode.
        second.discard_orchestration(item.token).await.unwrap();
        second.release_orchestration(item.token).await;
    }
    assert_eq!(world.row("c", "RuntimeStatus"), "Completed");

    plan.clear();
    assert!(!stalled.is_finished(), "the row was not on its way all the time");
    stalled.await.unwrap().unwrap();
    assert_eq!(world.row("c", "RuntimeStatus"), "Completed", "the stale episode has overwritten the row");
    assert_eq!(world.row("c", "Output"), "\"second\"");
}

#[tokio::test(start_paused = true)]
async fn the_row_of_a_stalled_episode_does_not_overwrite_that_of_a_later_one() {
    check(false, "MergeEntity").await;
}

#[tokio::test(start_paused = true)]
async fn the_row_of_a_sub_orchestrations_stalled_episode_does_not_overwrite_that_of_a_later_one() {
    check(true, "InsertEntity").await;
}
