//! Signals to entities: how many in a second, and what one costs.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context, Result};
use taskhub_client::EntityId;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::requests::{Purpose, Requests, settle};
use super::rig::{ClientPlace, Place, Rig, Signals};

/// How many entities share the signals.
pub(super) const ENTITIES: [u32; 2] = [1, 100];
/// The entity that is measured; it adds.
const ENTITY: &str = "counter";
const OPERATION: &str = "add";

/// What many signals took.
#[derive(Debug, Clone)]
pub(super) struct Signalled {
    pub(super) entities: u32,
    pub(super) signals: u32,
    /// From the first signal to the checkpoint of the last batch.
    pub(super) elapsed: Duration,
    /// Batches of operations.
    pub(super) batches: u64,
    pub(super) worker: Requests,
    pub(super) client: Requests,
}

impl Signalled {
    pub(super) fn rate(&self) -> f64 {
        f64::from(self.signals) / self.elapsed.as_secs_f64()
    }

    /// Operations of a batch, on average.
    pub(super) fn batch_size(&self) -> f64 {
        f64::from(self.signals) / self.batches.max(1) as f64
    }

    /// What .NET's worker sends for these batches: for each the query of the history, its replacement and the
    /// write of the Instances row; for each signal the deletion of its message. Receives depend on the pace
    /// alone and are taken to be as many. Counted in a recorded run of `DurableTask.AzureStorage` 2.9.1.
    pub(super) fn dotnet_worker(&self) -> BTreeMap<&'static str, u64> {
        let receives = self.worker.work().get("GetMessages").copied().unwrap_or(0);
        BTreeMap::from([
            ("DeleteMessage", u64::from(self.signals)),
            ("EntityGroupTransaction", self.batches),
            ("GetMessages", receives),
            ("InsertOrMergeEntity", self.batches),
            ("QueryEntities", self.batches),
        ])
    }

    pub(super) fn worker_requests(&self) -> u64 {
        self.worker.total(Purpose::Work)
    }
}

/// Signals every entity once to warm up, then as often as counts.
pub(super) async fn measure(
    place: &Place,
    entities: u32,
    signals: u32,
    concurrency: u32,
) -> Result<Signalled> {
    let mut rig = Rig::start(place, place.cadence, ClientPlace::WithTheWorker).await?;
    let measured = run(&mut rig, entities, signals, concurrency).await;
    let stopped = rig.stop().await;
    let measured = measured?;
    stopped?;
    Ok(measured)
}

async fn run(rig: &mut Rig, entities: u32, signals: u32, concurrency: u32) -> Result<Signalled> {
    rig.signal(async |on| send_all(on, entities, entities, concurrency).await).await?;
    settle(&[&rig.worker_counts, &rig.client_counts], &rig.names).await;
    let counted = |rig: &Rig| {
        [&rig.worker_counts, &rig.client_counts].map(|counts| Requests::counted(counts, &rig.names))
    };
    let before = counted(rig);
    let batches = rig.batches();
    let begun = Instant::now();
    rig.signal(async |on| send_all(on, entities, signals, concurrency).await).await?;
    let elapsed = begun.elapsed();
    settle(&[&rig.worker_counts, &rig.client_counts], &rig.names).await;
    let after = counted(rig);
    Ok(Signalled {
        entities,
        signals,
        elapsed,
        batches: rig.batches() - batches,
        worker: after[0].since(&before[0]),
        client: after[1].since(&before[1]),
    })
}

/// Sends signals, some at a time, to one entity after the other; returns when all have been run and stored.
async fn send_all(on: &Signals, entities: u32, signals: u32, concurrency: u32) -> Result<()> {
    let stored = on.stored(u64::from(signals));
    let next = Arc::new(AtomicU32::new(0));
    let mut lanes = JoinSet::new();
    for _ in 0..concurrency.min(signals) {
        let (on, next) = (on.clone(), next.clone());
        lanes.spawn(async move {
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                if number >= signals {
                    return anyhow::Ok(());
                }
                let entity = EntityId::new(ENTITY, format!("bench-{}", number % entities))?;
                on.client.signal_entity(&entity, OPERATION, Some("1".to_owned()), None).await?;
            }
        });
    }
    while let Some(lane) = lanes.join_next().await {
        lane.context("a client crashed")??;
    }
    stored.await
}

#[cfg(test)]
mod tests {
    use taskhub_testkit::VirtualClock;
    use tokio_util::sync::CancellationToken;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn every_signal_is_run_and_costs_no_more_than_in_dotnet() {
        for entities in [1, 10] {
            let place = Place::embedded(None, Arc::new(VirtualClock::default()), CancellationToken::new());
            let measured = measure(&place, entities, 200, 20).await.unwrap();
            assert_eq!(measured.client.work(), BTreeMap::from([("PutMessage", 200)]));
            assert_eq!(measured.worker.work()["DeleteMessage"], 200);
            assert!(measured.batch_size() > 1.0 && measured.rate() > 0.0, "{measured:?}");
            let dotnet: u64 = measured.dotnet_worker().values().sum();
            assert!(measured.worker_requests() <= dotnet, "{measured:?}");
        }
    }
}
