//! Workers that come, share partitions, stop and are killed leave the same lease records as .NET workers.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Result, ensure};
use taskhub_azure_storage::{AzureStorageService, OwnershipState, PartitionManagerKind};
use taskhub_core::{Clock as _, OrchestrationService as _, TaskHubName};
use taskhub_testkit::compare::{Comparison, compare};
use taskhub_testkit::golden::{self, Provider};
use taskhub_testkit::{TestHub, VirtualClock, eventually_within};

fn hub_of(manager: PartitionManagerKind) -> Result<TestHub> {
    let hub = TestHub::in_memory(&TaskHubName::new("Managed")?, 1, VirtualClock::default().now());
    Ok(hub.with_manager(manager))
}

async fn worker(hub: &TestHub, id: &str) -> Result<AzureStorageService> {
    let service = AzureStorageService::new(hub.open(id)?);
    service.start().await?;
    Ok(service)
}

async fn owners(hub: &TestHub) -> Result<BTreeMap<String, usize>> {
    let mut owners = BTreeMap::new();
    for partition in hub.open("viewer")?.inspect().await?.owners {
        let owner = match (partition.state, partition.next_owner, partition.owner) {
            (OwnershipState::Owned, None, Some(owner)) => owner.to_string(),
            _ => "nobody".to_owned(),
        };
        *owners.entry(owner).or_default() += 1;
    }
    Ok(owners)
}

async fn await_owners(hub: &TestHub, expected: &[(&str, usize)]) {
    let expected: BTreeMap<String, usize> = expected.iter().map(|(w, n)| ((*w).to_owned(), *n)).collect();
    eventually_within(Duration::from_secs(150), &format!("{expected:?}"), || async {
        (owners(hub).await.ok()? == expected).then_some(())
    })
    .await;
}

async fn assert_like(hub: &TestHub, scenario: &str, phase: &str, values: bool) -> Result<()> {
    let golden = golden::hub(Provider::V2, scenario, phase)?;
    let found = compare(&hub.take().await?, &golden, Comparison { values, ..Comparison::default() });
    let lines: Vec<String> = found.iter().map(ToString::to_string).collect();
    ensure!(lines.is_empty(), "{scenario}/{phase}\n{}", lines.join("\n"));
    Ok(())
}

async fn idle(scenario: &str, manager: PartitionManagerKind) -> Result<()> {
    let hub = hub_of(manager)?;
    hub.client()?.create_hub().await?;
    assert_like(&hub, scenario, "pending", true).await?;
    let worker = worker(&hub, "golden-worker").await?;
    await_owners(&hub, &[("golden-worker", 4)]).await;
    tokio::time::sleep(Duration::from_secs(12)).await;
    assert_like(&hub, scenario, "midflight", true).await?;
    worker.stop(Duration::from_secs(60)).await?;
    assert_like(&hub, scenario, "completed", true).await
}

async fn handover(scenario: &str, manager: PartitionManagerKind) -> Result<()> {
    let hub = hub_of(manager)?;
    let settle = || tokio::time::sleep(Duration::from_secs(3));
    let first = worker(&hub, "worker-1").await?;
    await_owners(&hub, &[("worker-1", 4)]).await;
    assert_like(&hub, scenario, "alone", true).await?;
    let second = worker(&hub, "worker-2").await?;
    await_owners(&hub, &[("worker-1", 2), ("worker-2", 2)]).await;
    settle().await;
    assert_like(&hub, scenario, "balanced", false).await?;
    first.stop(Duration::from_secs(60)).await?;
    if manager == PartitionManagerKind::Legacy {
        // The capture was taken when the other worker had already looked.
        await_owners(&hub, &[("worker-2", 4)]).await;
    }
    assert_like(&hub, scenario, "stopped", false).await?;
    await_owners(&hub, &[("worker-2", 4)]).await;
    settle().await;
    assert_like(&hub, scenario, "takenover", false).await?;
    // As if killed: nothing of it runs any more.
    drop(second);
    assert_like(&hub, scenario, "killed", false).await?;
    let third = worker(&hub, "worker-3").await?;
    await_owners(&hub, &[("worker-3", 4)]).await;
    settle().await;
    assert_like(&hub, scenario, "recovered", false).await?;
    third.stop(Duration::from_secs(60)).await?;
    assert_like(&hub, scenario, "completed", false).await
}

macro_rules! leaves_the_same_leases {
    ($($test:ident: $run:ident $scenario:literal $manager:ident,)*) => { $(
        #[tokio::test(start_paused = true)]
        async fn $test() -> Result<()> {
            $run($scenario, PartitionManagerKind::$manager).await
        }
    )* };
}

leaves_the_same_leases! {
    idle_table: idle "IdleTable" Table,
    idle_safe: idle "IdleSafe" Safe,
    idle_legacy: idle "IdleLegacy" Legacy,
    handover_table: handover "HandoverTable" Table,
    handover_safe: handover "HandoverSafe" Safe,
    handover_legacy: handover "HandoverLegacy" Legacy,
}
