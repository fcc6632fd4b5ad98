//! How soon partitions are spread evenly after workers have come or gone, with default settings.

use std::collections::BTreeSet;
use std::time::Duration;

use taskhub_azure_storage::{AzureStorageService, PartitionManagerKind};
use taskhub_core::{OrchestrationService, PartitionId};
use taskhub_testkit::eventually_within;

use crate::managers::settings;
use crate::support::*;

const STOP: Duration = Duration::from_secs(60);

/// A hub and its workers.
struct Fleet {
    world: World,
    kind: PartitionManagerKind,
    partitions: u32,
    workers: Vec<AzureStorageService>,
    started: usize,
}

impl Fleet {
    fn new(kind: PartitionManagerKind, partitions: u32) -> Self {
        Self { world: World::new(), kind, partitions, workers: Vec::new(), started: 0 }
    }

    async fn add(&mut self, count: usize) {
        for _ in 0..count {
            self.started += 1;
            let mut settings = settings(self.kind, &format!("w{}", self.started));
            settings.partition_count = Some(self.partitions);
            self.workers.push(self.world.worker_with(settings).await);
        }
    }

    /// The partitions that each worker receives from. No queue has two readers.
    fn read(&self) -> Vec<Vec<PartitionId>> {
        let read: Vec<_> = self.workers.iter().map(|worker| worker.status().partitions).collect();
        let all: Vec<_> = read.iter().flatten().copied().collect();
        let distinct: BTreeSet<_> = all.iter().copied().collect();
        assert_eq!(all.len(), distinct.len(), "{}: two readers: {read:?}", self.kind);
        read
    }

    fn is_spread(&self) -> bool {
        let counts: Vec<_> = self.read().iter().map(Vec::len).collect();
        let (most, least) = (counts.iter().max().unwrap(), counts.iter().min().unwrap());
        counts.iter().sum::<usize>() == self.partitions as usize && most - least <= 1
    }

    async fn spreads_within(&self, seconds: u64) {
        let what = format!("{} partitions, {} workers, {}", self.partitions, self.workers.len(), self.kind);
        eventually_within(Duration::from_secs(seconds), &what, || async { self.is_spread().then_some(()) })
            .await;
    }

    /// Stops some workers in order, all at the same time.
    async fn stop(&mut self, count: usize) {
        let leaving = self.workers.split_off(self.workers.len() - count);
        futures::future::join_all(leaving.iter().map(|worker| async { worker.stop(STOP).await.unwrap() }))
            .await;
    }
}

fn bound(kind: PartitionManagerKind) -> u64 {
    if kind == PartitionManagerKind::Table { 30 } else { 90 }
}

async fn one_four_two(kind: PartitionManagerKind) {
    for partitions in [4, 16] {
        let mut fleet = Fleet::new(kind, partitions);
        fleet.add(1).await;
        fleet.spreads_within(bound(kind)).await;
        // Not in step with the loops of the first one.
        tokio::time::sleep(Duration::from_millis(33_300)).await;
        fleet.add(3).await;
        fleet.spreads_within(bound(kind)).await;
        tokio::time::sleep(Duration::from_secs(60)).await;
        assert!(fleet.is_spread(), "and stays so");
        fleet.stop(2).await;
        fleet.spreads_within(bound(kind)).await;
        fleet.stop(2).await;
    }
}

#[tokio::test(start_paused = true)]
async fn partitions_of_the_table_manager_are_spread_within_30_s_when_workers_come_and_go() {
    one_four_two(PartitionManagerKind::Table).await;
}

#[tokio::test(start_paused = true)]
async fn partitions_of_the_safe_manager_are_spread_within_90_s_when_workers_come_and_go() {
    one_four_two(PartitionManagerKind::Safe).await;
}

#[tokio::test(start_paused = true)]
async fn partitions_of_the_legacy_manager_are_spread_within_90_s_when_workers_come_and_go() {
    one_four_two(PartitionManagerKind::Legacy).await;
}

#[tokio::test(start_paused = true)]
async fn three_workers_join_one_and_four_more_than_there_are_partitions_stay_idle() {
    for kind in PartitionManagerKind::ALL {
        let mut fleet = Fleet::new(kind, 4);
        fleet.add(1).await;
        fleet.spreads_within(15).await;
        fleet.add(3).await;
        fleet.spreads_within(bound(kind)).await;
        let before = fleet.read();
        fleet.add(4).await;
        tokio::time::sleep(Duration::from_secs(60)).await;
        let idle = vec![Vec::new(); 4];
        assert_eq!(fleet.read(), [before, idle].concat(), "{kind}");
        // Those that stood by step in.
        fleet.workers.rotate_left(4);
        fleet.stop(4).await;
        fleet.spreads_within(bound(kind)).await;
    }
}

#[tokio::test(start_paused = true)]
async fn four_workers_scale_down_to_three_and_to_one() {
    for kind in PartitionManagerKind::ALL {
        let mut fleet = Fleet::new(kind, 4);
        fleet.add(4).await;
        fleet.spreads_within(bound(kind)).await;
        fleet.stop(1).await;
        fleet.spreads_within(bound(kind)).await;
        fleet.stop(2).await;
        fleet.spreads_within(bound(kind)).await;
        assert_eq!(fleet.read()[0].len(), 4);
    }
}

#[tokio::test(start_paused = true)]
async fn one_and_three_of_four_workers_are_killed() {
    for kind in PartitionManagerKind::ALL {
        let mut fleet = Fleet::new(kind, 4);
        fleet.add(4).await;
        fleet.spreads_within(bound(kind)).await;
        drop(fleet.workers.pop());
        fleet.spreads_within(60).await;
        fleet.add(1).await;
        fleet.spreads_within(bound(kind)).await;
        fleet.workers.truncate(1);
        fleet.spreads_within(60).await;
        assert_eq!(fleet.read()[0].len(), 4);
    }
}

#[tokio::test(start_paused = true)]
async fn a_worker_that_is_restarted_before_its_leases_end_goes_on_at_once() {
    for kind in PartitionManagerKind::ALL {
        let mut fleet = Fleet::new(kind, 4);
        fleet.add(1).await;
        fleet.spreads_within(15).await;
        drop(fleet.workers.pop());
        fleet.started = 0;
        fleet.add(1).await;
        fleet.spreads_within(2).await;
    }
}
