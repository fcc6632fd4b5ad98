//! What several workers of one hub must do together.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Result, ensure};
use taskhub_client::Start;
use taskhub_core::OrchestrationStatus;

use crate::TestHub;
use crate::golden::WorkerFlags;
use crate::wait::eventually_within;

/// How long a change of owners may take: a lease that nobody renews, and some rounds of acquiring.
const HAND_OVER_WITHIN: Duration = Duration::from_secs(150);

/// Two workers divide the partitions, both work, and when one stops the other takes its partitions over.
///
/// # Errors
/// Something failed, or an instance did not complete.
pub async fn share_the_partitions_and_hand_them_over(hub: &TestHub) -> Result<()> {
    hub.client()?.create_hub().await?;
    let first = hub.start_worker("worker-1", WorkerFlags::default()).await?;
    owners_are(hub, &[("worker-1", 4)]).await;
    let second = hub.start_worker("worker-2", WorkerFlags::default()).await?;
    owners_are(hub, &[("worker-1", 2), ("worker-2", 2)]).await;
    complete(hub, "shared", 12).await?;

    first.stop().await?;
    owners_are(hub, &[("worker-2", 4)]).await;
    complete(hub, "inherited", 4).await?;
    second.stop().await?;
    owners_are(hub, &[]).await;
    Ok(())
}

/// A worker that stops in the middle of many instances loses none of them: its successor completes all.
///
/// # Errors
/// Something failed, or an instance did not complete.
pub async fn a_successor_completes_what_a_stopped_worker_began(hub: &TestHub) -> Result<()> {
    const INSTANCES: usize = 12;
    let client = hub.client()?;
    for n in 0..INSTANCES {
        client.start(Start::new("SlowOne").instance_id(format!("slow-{n}")).raw_input("2000")).await?;
    }
    let first = hub.start_worker("worker-1", WorkerFlags::default()).await?;
    hub.until("slow-0", "under way", |state| state.status == Some(OrchestrationStatus::Running)).await;
    first.stop().await?;

    let second = hub.start_worker("worker-2", WorkerFlags::default()).await?;
    for n in 0..INSTANCES {
        let instance = format!("slow-{n}");
        hub.until(&instance, "finished", |state| state.completed_at.is_some()).await;
        let state = hub.state(&instance).await?;
        ensure!(state.output.as_deref() == Some("\"slept 2000\""), "{instance}: {:?}", state.output);
    }
    second.stop().await
}

/// Runs instances to their end, side by side.
async fn complete(hub: &TestHub, prefix: &str, instances: usize) -> Result<()> {
    let client = hub.client()?;
    for n in 0..instances {
        client.start(Start::new("HelloSequence").instance_id(format!("{prefix}-{n}"))).await?;
    }
    for n in 0..instances {
        let instance = format!("{prefix}-{n}");
        hub.until(&instance, "finished", |state| state.completed_at.is_some()).await;
        let state = hub.state(&instance).await?;
        ensure!(state.status == Some(OrchestrationStatus::Completed), "{instance}: {:?}", state.status);
    }
    Ok(())
}

/// Waits until the partitions belong to these workers, so many to each.
async fn owners_are(hub: &TestHub, expected: &[(&str, usize)]) {
    let expected: BTreeMap<String, usize> = expected.iter().map(|(id, n)| ((*id).to_owned(), *n)).collect();
    eventually_within(HAND_OVER_WITHIN, &format!("owners {expected:?}"), || async {
        let partitions = hub.open("observer").ok()?.inspect().await.ok()?.partitions;
        let mut owners: BTreeMap<String, usize> = BTreeMap::new();
        for owner in partitions.into_iter().filter_map(|lease| lease.current_owner) {
            *owners.entry(owner.to_string()).or_default() += 1;
        }
        (owners == expected).then_some(())
    })
    .await;
}
