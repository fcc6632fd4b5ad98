//! Many orchestrations of one kind, some at a time: how fast, and at what cost.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::{Value, json};
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::requests::{Requests, settle};
use super::rig::{Cadence, ClientPlace, Orchestrations, Place, Rig};
use super::usage::{Usage, forget_peak_memory};
use crate::args::{BenchArgs, Scenario};

/// What each of the orchestrations does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Case {
    /// So many activities, one after the other.
    Hello(u32),
    /// So many activities at once.
    FanOut(u32),
    /// A durable timer of so many seconds.
    Timers(u32),
    /// One sub-orchestration with three activities.
    SubOrchestrations,
    /// An activity that returns so many bytes, and one that takes and returns them.
    Payloads(u32),
}

impl Case {
    /// Those of a command line, in their order.
    pub(super) fn wanted(args: &BenchArgs, wanted: impl Fn(Scenario) -> bool) -> Vec<Self> {
        let cases = [
            (Scenario::Hello, Self::Hello(args.activities.unwrap_or(3))),
            (Scenario::FanOut, Self::FanOut(args.activities.unwrap_or(100))),
            (Scenario::Timers, Self::Timers(args.timer_seconds)),
            (Scenario::SubOrchestrations, Self::SubOrchestrations),
            (Scenario::Payloads, Self::Payloads(args.payload_bytes)),
        ];
        cases.into_iter().filter_map(|(scenario, case)| wanted(scenario).then_some(case)).collect()
    }

    /// The word of the command line.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Hello(_) => "hello",
            Self::FanOut(_) => "fan-out",
            Self::Timers(_) => "timers",
            Self::SubOrchestrations => "sub-orchestrations",
            Self::Payloads(_) => "payloads",
        }
    }

    /// The sample that does it.
    pub(super) fn function(self) -> &'static str {
        match self {
            Self::Hello(3) => "HelloSequence",
            Self::Hello(_) => "Loop",
            Self::FanOut(_) => "FanOutFanIn",
            Self::Timers(_) => "Timer",
            Self::SubOrchestrations => "Parent",
            Self::Payloads(_) => "LargePayload",
        }
    }

    pub(super) fn input(self) -> Option<Value> {
        match self {
            Self::Hello(3) | Self::SubOrchestrations => None,
            Self::Hello(n) | Self::FanOut(n) | Self::Timers(n) | Self::Payloads(n) => Some(json!(n)),
        }
    }

    /// For people.
    pub(super) fn title(self) -> String {
        match self {
            Self::Hello(n) => format!("{}, {n} activities in a row", self.function()),
            Self::FanOut(n) => format!("{}, {n} activities at once", self.function()),
            Self::Timers(seconds) => format!("{}, {seconds} s", self.function()),
            Self::SubOrchestrations => format!("{} of one HelloSequence", self.function()),
            Self::Payloads(bytes) => format!("{}, {bytes} bytes", self.function()),
        }
    }

    /// The name of its size in JSON.
    pub(super) fn size(self) -> Option<(&'static str, u32)> {
        match self {
            Self::Hello(n) | Self::FanOut(n) => Some(("activities", n)),
            Self::Timers(seconds) => Some(("timerSeconds", seconds)),
            Self::SubOrchestrations => None,
            Self::Payloads(bytes) => Some(("payloadBytes", bytes)),
        }
    }

    /// How many, if nobody says: so that a measurement on Azurite takes a minute or so.
    pub(super) fn default_instances(self) -> u32 {
        match self {
            Self::Hello(_) => 1000,
            Self::Timers(_) => 200,
            Self::SubOrchestrations => 300,
            Self::FanOut(_) => 20,
            Self::Payloads(_) => 100,
        }
    }

    /// What the .NET worker sends for one that has a warm worker for itself, without empty polls, partition rows
    /// and app lease. `None` where nobody has counted. Counted through a proxy in runs of
    /// `DurableTask.AzureStorage` 2.9.1 on Azurite: 15, 33 and 51 for 1, 3 and 5 activities in a row, so 6 and 9
    /// for each; the fan-out with 10 activity slots, about, the median of 5 runs.
    pub(super) fn dotnet_worker(self) -> Option<u64> {
        match self {
            Self::Hello(n) => Some(6 + 9 * u64::from(n)),
            Self::FanOut(100) => Some(695),
            Self::Timers(2) => Some(12),
            Self::SubOrchestrations => Some(45),
            Self::FanOut(_) | Self::Timers(_) | Self::Payloads(_) => None,
        }
    }
}

/// How many instances of it, and how many of them at a time.
#[derive(Debug, Clone, Copy)]
pub(super) struct Load {
    pub(super) case: Case,
    pub(super) instances: u32,
    pub(super) concurrency: u32,
}

/// What many orchestrations took.
#[derive(Debug, Clone)]
pub(super) struct Measured {
    pub(super) instances: u32,
    /// From the first start to the last end.
    pub(super) elapsed: Duration,
    /// Latencies of all, sorted.
    pub(super) latencies: Vec<Duration>,
    pub(super) worker: Requests,
    pub(super) client: Requests,
    /// Of this process, client and worker, until nothing was left to do.
    pub(super) process: Usage,
    /// Of the emulator; nothing where this program has not started it.
    pub(super) emulator: Usage,
}

impl Measured {
    pub(super) fn rate(&self) -> f64 {
        f64::from(self.instances) / self.elapsed.as_secs_f64()
    }

    /// The latency that this part (0 to 1) of all orchestrations did not exceed.
    pub(super) fn percentile(&self, part: f64) -> Duration {
        percentile(&self.latencies, part)
    }
}

/// Runs as many orchestrations as are to be under way at once to warm up, then those that count.
pub(super) async fn measure(place: &Place, load: Load, cadence: Cadence) -> Result<Measured> {
    let mut rig = Rig::start(place, cadence, ClientPlace::WithTheWorker).await?;
    let measured = run(&mut rig, place.emulator_process(), load).await;
    let stopped = rig.stop().await;
    let measured = measured?;
    stopped?;
    Ok(measured)
}

async fn run(rig: &mut Rig, emulator: Option<u32>, load: Load) -> Result<Measured> {
    let warm = Load { instances: load.concurrency.min(load.instances), ..load };
    rig.drive(async |on| run_all(on, "warm", warm).await).await?;
    settle(&[&rig.worker_counts, &rig.client_counts], &rig.names).await;
    let counted = |rig: &Rig| {
        [&rig.worker_counts, &rig.client_counts].map(|counts| Requests::counted(counts, &rig.names))
    };
    let processes = [Some(std::process::id()), emulator];
    processes.into_iter().flatten().for_each(forget_peak_memory);
    let before = counted(rig);
    let used = usages(processes).await;
    let begun = Instant::now();
    let mut latencies = rig.drive(async |on| run_all(on, "bench", load).await).await?;
    let elapsed = begun.elapsed();
    settle(&[&rig.worker_counts, &rig.client_counts], &rig.names).await;
    let [process, emulator] = usages(processes).await;
    let after = counted(rig);
    latencies.sort_unstable();
    Ok(Measured {
        instances: load.instances,
        elapsed,
        latencies,
        worker: after[0].since(&before[0]),
        client: after[1].since(&before[1]),
        process: process.since(used[0]),
        emulator: emulator.since(used[1]),
    })
}

async fn usages(processes: [Option<u32>; 2]) -> [Usage; 2] {
    let mut all = [Usage::default(); 2];
    for (usage, process) in all.iter_mut().zip(processes) {
        if let Some(process) = process {
            *usage = Usage::of(process).await;
        }
    }
    all
}

/// Keeps some orchestrations under way until all have finished.
async fn run_all(orchestrations: &Orchestrations, prefix: &'static str, load: Load) -> Result<Vec<Duration>> {
    let next = Arc::new(AtomicU32::new(0));
    let mut lanes = JoinSet::new();
    for _ in 0..load.concurrency.min(load.instances) {
        let (orchestrations, next) = (orchestrations.clone(), next.clone());
        lanes.spawn(async move {
            let mut latencies = Vec::new();
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                if number >= load.instances {
                    return anyhow::Ok(latencies);
                }
                latencies.push(orchestrations.run(load.case, &format!("{prefix}-{number}")).await?);
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

    async fn measured(case: Case, cadence: Cadence) -> Measured {
        let place = Place::embedded(None, Arc::new(VirtualClock::default()), CancellationToken::new());
        let measured = measure(&place, Load { case, instances: 10, concurrency: 4 }, cadence).await.unwrap();
        assert_eq!((measured.latencies.len(), measured.instances), (10, 10));
        assert!(measured.rate() > 0.0 && measured.percentile(0.5) <= measured.percentile(0.99));
        measured
    }

    #[tokio::test(start_paused = true)]
    async fn with_the_cadence_of_dotnet_orchestrations_cost_what_they_cost_there() {
        let each = measured(Case::Hello(3), Cadence::Dtfx).await;
        assert_eq!(each.client.work()["PutMessage"], 10);
        assert_eq!(each.worker.work()["PutMessage"], 60);
        for (case, messages) in [
            (Case::Hello(1), 2),
            (Case::FanOut(4), 8),
            (Case::Timers(2), 1),
            (Case::SubOrchestrations, 8),
            (Case::Payloads(100_000), 4),
        ] {
            let each = measured(case, Cadence::Dtfx).await;
            assert_eq!(each.worker.work()["PutMessage"], messages * 10, "{case:?}");
            if let Some(dotnet) = case.dotnet_worker() {
                assert!(each.worker.total(Purpose::Work) <= dotnet * 10, "{case:?}: {each:?}");
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn every_orchestration_costs_no_more_than_with_the_cadence_of_dotnet() {
        for case in [
            Case::Hello(5),
            Case::FanOut(20),
            Case::Timers(1),
            Case::SubOrchestrations,
            Case::Payloads(50_000),
        ] {
            let [own, dtfx] = [Cadence::Own, Cadence::Dtfx];
            let (own, dtfx) = (measured(case, own).await, measured(case, dtfx).await);
            let work = |measured: &Measured| measured.worker.total(Purpose::Work);
            // How many messages a receive brings is chance.
            assert!(work(&own) * 10 <= work(&dtfx) * 11, "{case:?}: {own:?} {dtfx:?}");
            assert!(own.client.total(Purpose::Work) <= dtfx.client.total(Purpose::Work), "{case:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn large_payloads_go_through_blobs() {
        let small = measured(Case::Payloads(100), Cadence::Own).await;
        assert!(!small.worker.work().contains_key("PutBlob"), "{small:?}");
        let large = measured(Case::Payloads(200_000), Cadence::Own).await;
        assert!(large.worker.work()["PutBlob"] >= 10, "{large:?}");
    }
}
