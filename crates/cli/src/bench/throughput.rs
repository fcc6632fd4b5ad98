//! Many orchestrations, some at a time.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context, Result};
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::requests::{Requests, settle};
use super::rig::{Orchestrations, Place, Rig};

/// What many orchestrations took.
#[derive(Debug, Clone)]
pub(super) struct Throughput {
    pub(super) instances: u32,
    pub(super) elapsed: Duration,
    /// Latencies of all, sorted.
    pub(super) latencies: Vec<Duration>,
    pub(super) worker: Requests,
    pub(super) client: Requests,
}

impl Throughput {
    pub(super) fn rate(&self) -> f64 {
        f64::from(self.instances) / self.elapsed.as_secs_f64()
    }

    /// The latency that this part (0 to 1) of all orchestrations did not exceed.
    pub(super) fn percentile(&self, part: f64) -> Duration {
        percentile(&self.latencies, part)
    }
}

/// Runs as many orchestrations as are to be under way at once to warm up, then those that count.
pub(super) async fn measure(place: &Place, instances: u32, concurrency: u32) -> Result<Throughput> {
    let mut rig = Rig::start(place).await?;
    let measured = run(&mut rig, instances, concurrency).await;
    let stopped = rig.stop().await;
    let measured = measured?;
    stopped?;
    Ok(measured)
}

async fn run(rig: &mut Rig, instances: u32, concurrency: u32) -> Result<Throughput> {
    rig.drive(async |on| run_all(on, "warm", concurrency, concurrency).await).await?;
    settle(&[&rig.worker_counts, &rig.client_counts], &rig.names).await;
    let counted = |rig: &Rig| {
        [&rig.worker_counts, &rig.client_counts].map(|counts| Requests::counted(counts, &rig.names))
    };
    let before = counted(rig);
    let begun = Instant::now();
    let mut latencies = rig.drive(async |on| run_all(on, "bench", instances, concurrency).await).await?;
    let elapsed = begun.elapsed();
    settle(&[&rig.worker_counts, &rig.client_counts], &rig.names).await;
    let after = counted(rig);
    latencies.sort_unstable();
    Ok(Throughput {
        instances,
        elapsed,
        latencies,
        worker: after[0].since(&before[0]),
        client: after[1].since(&before[1]),
    })
}

/// Keeps `concurrency` orchestrations under way until `instances` have finished.
async fn run_all(
    orchestrations: &Orchestrations,
    prefix: &'static str,
    instances: u32,
    concurrency: u32,
) -> Result<Vec<Duration>> {
    let next = Arc::new(AtomicU32::new(0));
    let mut lanes = JoinSet::new();
    for _ in 0..concurrency.min(instances) {
        let (orchestrations, next) = (orchestrations.clone(), next.clone());
        lanes.spawn(async move {
            let mut latencies = Vec::new();
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                if number >= instances {
                    return anyhow::Ok(latencies);
                }
                latencies.push(orchestrations.run(&format!("{prefix}-{number}")).await?);
            }
        });
    }
    let mut latencies = Vec::new();
    while let Some(lane) = lanes.join_next().await {
        latencies.extend(lane.context("a client crashed")??);
    }
    Ok(latencies)
}

/// Nearest rank.
fn percentile(sorted: &[Duration], part: f64) -> Duration {
    let rank = (part * sorted.len() as f64).ceil() as usize;
    sorted.get(rank.saturating_sub(1)).or(sorted.last()).copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use taskhub_testkit::VirtualClock;
    use tokio_util::sync::CancellationToken;

    use super::*;
    use crate::bench::requests::Purpose;

    #[test]
    fn percentiles_are_those_of_the_nearest_rank() {
        let sorted: Vec<_> = (1..=200).map(Duration::from_millis).collect();
        for (part, millis) in [(0.0, 1), (0.5, 100), (0.99, 198), (1.0, 200)] {
            assert_eq!(percentile(&sorted, part), Duration::from_millis(millis), "{part}");
        }
        assert_eq!(percentile(&sorted[..1], 0.99), Duration::from_millis(1));
        assert_eq!(percentile(&[], 0.5), Duration::ZERO);
    }

    #[tokio::test(start_paused = true)]
    async fn every_orchestration_is_measured_and_its_requests_are_counted() {
        let place = Place::embedded(None, Arc::new(VirtualClock::default()), CancellationToken::new());
        let measured = measure(&place, 20, 4).await.unwrap();
        assert_eq!((measured.latencies.len(), measured.instances), (20, 20));
        assert!(measured.rate() > 0.0 && measured.percentile(0.5) <= measured.percentile(0.99));
        assert_eq!(measured.client.work()["PutMessage"], 20);
        assert_eq!(measured.worker.work()["PutMessage"], 120);
        assert!(measured.worker.total(Purpose::Work) <= 20 * 33, "{measured:?}");
    }
}
