//! What a backend tells a readiness probe.

use std::time::Duration;

use taskhub_azure_storage::{AzureStorageService, AzureStorageSettings, PartitionManagerKind};
use taskhub_core::{OrchestrationService, PartitionId, Readiness};
use taskhub_testkit::eventually_within;
use taskhub_testkit::faults::{Effect, FaultPlan, FaultyAccount, Rule};

use crate::support::*;

/// Waits until the worker is in this state; returns how long that took.
async fn becomes(worker: &AzureStorageService, readiness: Readiness, within: u64) -> Duration {
    let begun = tokio::time::Instant::now();
    eventually_within(Duration::from_secs(within), readiness.name(), || async {
        (worker.status().readiness == readiness).then_some(())
    })
    .await;
    begun.elapsed()
}

#[tokio::test(start_paused = true)]
async fn a_worker_is_ready_once_it_has_seen_its_partitions() {
    let world = World::new();
    let worker = AzureStorageService::new(world.hub(World::settings("w")));
    assert_eq!(worker.status().readiness, Readiness::Starting);
    worker.start().await.unwrap();
    becomes(&worker, Readiness::Ready, 5).await;
    eventually_within(Duration::from_secs(30), "all partitions", || async {
        (worker.status().partitions == [0, 1, 2, 3].map(PartitionId)).then_some(())
    })
    .await;
    worker.stop(Duration::from_secs(60)).await.unwrap();
    assert!(worker.status().partitions.is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_worker_of_another_application_waits_for_the_app_lease_and_says_so() {
    let world = World::new();
    let named = |worker: &str, app: &str| AzureStorageSettings {
        app_name: app.to_owned(),
        app_lease_acquire_interval: Duration::from_secs(10),
        ..World::settings(worker)
    };
    let first = world.worker_with(named("w1", "one")).await;
    becomes(&first, Readiness::Ready, 5).await;
    let second = world.worker_with(named("w2", "two")).await;
    becomes(&second, Readiness::WaitingForAppLease, 5).await;
    assert!(second.status().detail.unwrap().contains("app_name=`two`"));
    assert!(second.status().partitions.is_empty());
    first.stop(Duration::from_secs(60)).await.unwrap();
    // The lease is not given back but runs out.
    becomes(&second, Readiness::Ready, 80).await;
    second.stop(Duration::from_secs(60)).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_worker_that_does_not_reach_the_storage_for_the_time_of_a_lease_is_not_ready() {
    let mut world = World::new();
    let plan = FaultPlan::default();
    world.account = FaultyAccount::wrap(world.account.clone(), &plan);
    let worker = world.worker("w").await;
    becomes(&worker, Readiness::Ready, 5).await;
    plan.add(Rule::on_all(Effect::Answer(503, "ServerBusy")));
    let after = becomes(&worker, Readiness::StorageUnreachable, 60).await;
    assert!(after > Duration::from_secs(15), "{after:?}");
    assert!(worker.status().detail.is_some());
    plan.clear();
    becomes(&worker, Readiness::Ready, 30).await;
    worker.stop(Duration::from_secs(60)).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_worker_whose_partition_records_are_deleted_is_not_ready() {
    for kind in PartitionManagerKind::ALL {
        let world = World::new();
        let settings = AzureStorageSettings { partition_manager: Some(kind), ..World::settings("w") };
        let worker = world.worker_with(settings).await;
        becomes(&worker, Readiness::Ready, 5).await;
        if kind == PartitionManagerKind::Table {
            world.account.tables.delete_table("TestHubPartitions").await.unwrap();
        } else {
            world.account.blobs.delete_container("testhub-leases", None).await.unwrap();
        }
        becomes(&worker, Readiness::StorageUnreachable, 60).await;
        assert!(worker.status().detail.unwrap().contains("is gone"), "{kind}");
        worker.stop(Duration::from_secs(60)).await.unwrap();
    }
}
