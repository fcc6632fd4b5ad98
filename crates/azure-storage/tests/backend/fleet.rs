use std::collections::BTreeMap;
use std::time::Duration;

use taskhub_core::OrchestrationService;
use taskhub_testkit::eventually_within;

use crate::support::*;

impl World {
    fn owners(&self) -> BTreeMap<String, usize> {
        let mut owners = BTreeMap::new();
        for row in self.store.entities("TestHubPartitions") {
            let owner = if row.str("NextOwner").is_some() {
                "moving"
            } else {
                row.str("CurrentOwner").unwrap_or("nobody")
            };
            *owners.entry(owner.to_owned()).or_default() += 1;
        }
        owners
    }

    async fn await_owners(&self, expected: &[(&str, usize)]) {
        let expected: BTreeMap<String, usize> = expected.iter().map(|(w, n)| ((*w).to_owned(), *n)).collect();
        eventually_within(Duration::from_secs(60), &format!("{expected:?}"), || async {
            (self.owners() == expected).then_some(())
        })
        .await;
    }
}

#[tokio::test(start_paused = true)]
async fn workers_come_share_and_go_and_partitions_follow() {
    let world = World::new();
    let first = world.worker("w1").await;
    world.await_owners(&[("w1", 4)]).await;
    let second = world.worker("w2").await;
    world.await_owners(&[("w1", 2), ("w2", 2)]).await;
    first.stop(Duration::from_secs(60)).await.unwrap();
    world.await_owners(&[("w2", 4)]).await;
    second.stop(Duration::from_secs(60)).await.unwrap();
    world.await_owners(&[("nobody", 4)]).await;
    let rows = world.store.entities("TestHubPartitions");
    assert!(rows.iter().all(|r| r.get("ExpiresAt").is_some() && r.get("NextOwner").is_none()));
}

#[tokio::test(start_paused = true)]
async fn the_partitions_of_a_worker_that_falls_silent_are_taken_over() {
    let world = World::new();
    let first = world.worker("w1").await;
    world.await_owners(&[("w1", 4)]).await;
    // As if killed: nothing of it runs any more, its rows stay.
    drop(first);
    assert_eq!(world.owners(), [("w1".to_owned(), 4)].into());
    let second = world.worker("w2").await;
    world.await_owners(&[("w2", 4)]).await;
    second.stop(Duration::from_secs(60)).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_graceful_stop_gives_everything_back_at_once() {
    let world = World::new();
    let (client, first) = (world.client(), world.worker("w1").await);
    for n in 0..8 {
        start(&client, &format!("i{n}")).await;
    }
    let item = lock(&first).await;
    let commit = episode(&world, &item, vec![schedule(&world, 0, "[]")]);
    let stopping = first.stop(Duration::from_secs(60));
    let finishing = async {
        tokio::time::sleep(Duration::from_secs(3)).await;
        finish(&first, item, commit).await;
    };
    let (stopped, ()) = tokio::join!(stopping, finishing);
    stopped.unwrap();
    let hidden: usize = world
        .store
        .queues()
        .iter()
        .flat_map(|q| world.store.messages(q))
        .filter(|m| m.next_visible_at > world.clock.now())
        .count();
    assert_eq!(hidden, 0);
    assert_eq!(world.control_messages(), 7);
    let second = world.worker("w2").await;
    let begun = world.clock.now();
    for _ in 0..7 {
        let item = lock(&second).await;
        second.release_orchestration(item.token).await;
    }
    assert!(world.clock.now().saturating_since(begun) < Duration::from_secs(15));
}

#[tokio::test(start_paused = true)]
async fn an_activity_in_hand_when_a_worker_is_cut_off_is_visible_at_once() {
    let world = World::new();
    let (client, worker) = (world.client(), world.worker("w1").await);
    start(&client, "a").await;
    let item = lock(&worker).await;
    let commit = episode(&world, &item, vec![schedule(&world, 0, "[]")]);
    finish(&worker, item, commit).await;
    let activity = lock_activity(&worker).await;
    assert_eq!(activity.attempt, 1);
    worker.stop(Duration::from_secs(1)).await.unwrap();
    let messages = world.store.messages("testhub-workitems");
    assert!(messages[0].next_visible_at <= world.clock.now());
}

#[tokio::test(start_paused = true)]
async fn held_messages_are_renewed_so_that_nobody_else_receives_them() {
    let world = World::new();
    let (client, worker) = (world.client(), world.worker("w1").await);
    start(&client, "slow").await;
    let item = lock(&worker).await;
    tokio::time::sleep(Duration::from_secs(1800)).await;
    assert_eq!(world.control_messages(), 1);
    let queue = world.store.queues().into_iter().find(|q| !world.store.messages(q).is_empty()).unwrap();
    assert_eq!(world.store.messages(&queue)[0].dequeue_count, 1);
    let commit = episode(&world, &item, vec![completed(&world, 0, "1")]);
    finish(&worker, item, commit).await;
    assert_eq!(world.control_messages(), 0);
}

#[tokio::test(start_paused = true)]
async fn an_application_with_another_name_waits_for_the_app_lease() {
    let world = World::new();
    let first = world.worker("w1").await;
    world.await_owners(&[("w1", 4)]).await;
    let mut settings = World::settings("w2");
    settings.app_name = "other".into();
    let second = world.worker_with(settings).await;
    tokio::time::sleep(Duration::from_secs(900)).await;
    assert_eq!(world.owners(), [("w1".to_owned(), 4)].into());
    first.stop(Duration::from_secs(60)).await.unwrap();
    eventually_within(Duration::from_secs(600), "the other application", || async {
        (world.owners().get("w2") == Some(&4)).then_some(())
    })
    .await;
    second.stop(Duration::from_secs(60)).await.unwrap();
}
