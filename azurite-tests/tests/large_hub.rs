//! Lists and purges of hubs with many instances, against the emulator. The figures of
//! `docs/performance.md` come from the nightly one.

#![allow(clippy::print_stdout, reason = "the figures are what the nightly run is for")]

use std::sync::Arc;

use anyhow::{Result, ensure};
use azurite_tests::on_a_hub;
use futures::{StreamExt as _, TryStreamExt as _, stream};
use taskhub_azure_storage::AzureStorageClient;
use taskhub_client::{ListOptions, PurgeFilter, PurgeOptions, Purged, TaskHubClient};
use taskhub_core::{InstanceFetch, InstanceQuery, PurgeResult};
use taskhub_storage::request::{OperationCounts, RequestSettings};
use taskhub_storage::{Entity, TableOperation};
use taskhub_testkit::TestHub;
use tokio::time::Instant;

/// Rows of each history, with the sentinel.
const ROWS: u64 = 4;

/// Writes rows of finished instances with random-looking ids, each with a short history.
async fn fill(hub: &TestHub, client: &TaskHubClient, instances: u128) -> Result<()> {
    client.create_hub().await?;
    let (now, tables) = (hub.clock().now(), &hub.account().tables);
    let (rows, history) = (format!("{}Instances", hub.name()), format!("{}History", hub.name()));
    stream::iter(0..instances)
        .map(|n| {
            let id = format!("{:032x}", n.wrapping_mul(0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835));
            let row = Entity::new(id.as_str(), "")
                .with("Name", "Sample")
                .with("RuntimeStatus", "Completed")
                .with("CreatedTime", now)
                .with("LastUpdatedTime", now);
            let keys = ["0000000000000000", "0000000000000001", "0000000000000002", "sentinel"];
            let events = keys.map(|key| Entity::new(id.as_str(), key).with("ExecutionId", "e"));
            let (rows, history) = (rows.as_str(), history.as_str());
            async move {
                tables.transaction(history, &events.map(TableOperation::Insert)).await?;
                tables.execute(rows, TableOperation::Insert(row)).await
            }
        })
        .buffer_unordered(16)
        .try_for_each(async |_| Ok(()))
        .await?;
    Ok(())
}

async fn list_and_purge(hub: &TestHub, instances: u128, page_size: u32) -> Result<()> {
    let client = hub.client()?;
    fill(hub, &client, instances).await?;
    let query =
        InstanceQuery { fetch: InstanceFetch::NONE, page_size: Some(page_size), ..InstanceQuery::default() };

    let began = Instant::now();
    let mut pages = client.pages(query.clone());
    let mut serial = 0;
    while let Some(page) = pages.next().await? {
        serial += page.instances.len() as u128;
    }
    println!("serial list: {instances} instances in {:?}", began.elapsed());

    let began = Instant::now();
    let mut stream = client.list_stream(query, ListOptions::default());
    let mut seen = std::collections::HashSet::new();
    let mut parallel = 0;
    while let Some(page) = stream.next().await? {
        parallel += page.len() as u128;
        seen.extend(page.into_iter().map(|state| state.instance.instance_id));
    }
    println!("parallel list: {instances} instances in {:?}, {} requests", began.elapsed(), stream.requests());
    ensure!(
        (serial, parallel, seen.len() as u128) == (instances, instances, instances),
        "{serial} {parallel}"
    );

    let counts = OperationCounts::default();
    let mut counted = hub.open("purger")?;
    counted.account = counted.account.layered(RequestSettings::default(), &counts);
    let client = TaskHubClient::new(Arc::new(AzureStorageClient::new(counted)));
    let began = Instant::now();
    let progress = Arc::new(move |purged: &Purged| {
        if purged.removed.instances.is_multiple_of(1_000) {
            println!("purge: {} instances in {:?}", purged.removed.instances, began.elapsed());
        }
    });
    let options = PurgeOptions { progress: Some(progress), ..PurgeOptions::default() };
    let purged = client.purge_with(&PurgeFilter::default(), options).await?;
    let took = began.elapsed();
    let requests: u64 = counts.snapshot().values().map(|operation| operation.count).sum();
    println!("purge: {instances} instances in {took:?}, {requests} requests: {:?}", counts.snapshot());
    let expected = PurgeResult { instances: instances as u64, rows: instances as u64 * ROWS, blobs: 0 };
    ensure!(purged.removed == expected && purged.failures == 0, "{purged:?}");
    // Two for each instance, and no more than five for each page of a hundred.
    ensure!(u128::from(requests) <= instances * 2 + instances / 20, "{requests} requests");
    Ok(())
}

#[tokio::test]
async fn a_hub_is_listed_in_several_places_at_once_and_purged() -> Result<()> {
    on_a_hub(async |hub| list_and_purge(hub, 600, 20).await).await
}

mod nightly {
    use super::*;

    #[tokio::test]
    #[ignore = "writes 20,000 instances: nightly"]
    async fn twenty_thousand_instances_are_listed_and_purged() -> Result<()> {
        on_a_hub(async |hub| list_and_purge(hub, 20_000, 1000).await).await
    }
}
