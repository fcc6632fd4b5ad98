//! One orchestration that has a hub for itself: what it costs.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::Result;
use tokio::time::Instant;

use super::orchestrations::Case;
use super::requests::{Requests, settle};
use super::rig::{ClientPlace, Place, Rig};

/// What the .NET worker sends for an isolated `HelloSequence`, besides empty polls and leases: counted in
/// a recorded run of `DurableTask.AzureStorage` 2.9.1.
pub(super) const DOTNET_WORKER: [(&str, u64); 6] = [
    ("DeleteMessage", 7),
    ("EntityGroupTransaction", 4),
    ("GetMessages", 7),
    ("InsertOrMergeEntity", 4),
    ("PutMessage", 6),
    ("QueryEntities", 5),
];
/// What the .NET client sends to start it, without the creation of the hub and without status reads.
pub(super) const DOTNET_CLIENT: [(&str, u64); 3] =
    [("InsertEntity", 1), ("PutMessage", 1), ("QueryEntities", 1)];

/// Requests of one orchestration.
#[derive(Debug, Clone)]
pub(super) struct Isolated {
    pub(super) latency: Duration,
    /// From the start until all was quiet again; upkeep is counted over this time.
    pub(super) window: Duration,
    pub(super) worker: Requests,
    pub(super) client: Requests,
}

/// Runs one orchestration to warm up, waits until nothing is left to do, then counts another one.
pub(super) async fn measure(place: &Place) -> Result<Isolated> {
    let mut rig = Rig::start(place, place.cadence, ClientPlace::Elsewhere).await?;
    let measured = run(&mut rig).await;
    let stopped = rig.stop().await;
    let measured = measured?;
    stopped?;
    Ok(measured)
}

async fn run(rig: &mut Rig) -> Result<Isolated> {
    rig.drive(async |on| on.run(Case::Hello(3), "warm").await).await?;
    settle(&[&rig.worker_counts, &rig.client_counts], &rig.names).await;
    let counted = |rig: &Rig| {
        [&rig.worker_counts, &rig.client_counts].map(|counts| Requests::counted(counts, &rig.names))
    };
    let before = counted(rig);
    let begun = Instant::now();
    let latency = rig.drive(async |on| on.run(Case::Hello(3), "counted").await).await?;
    settle(&[&rig.worker_counts, &rig.client_counts], &rig.names).await;
    let after = counted(rig);
    Ok(Isolated {
        latency,
        window: begun.elapsed(),
        worker: after[0].since(&before[0]),
        client: after[1].since(&before[1]),
    })
}

/// Operation, ours, .NET's; also those that only one of them sends.
pub(super) fn compared(ours: &Requests, dotnet: &[(&'static str, u64)]) -> Vec<(&'static str, u64, u64)> {
    let mut rows: BTreeMap<_, _> = ours.work().into_iter().map(|(name, n)| (name, (n, 0))).collect();
    for (name, n) in dotnet {
        rows.entry(name).or_default().1 = *n;
    }
    rows.into_iter().map(|(name, (ours, dotnet))| (name, ours, dotnet)).collect()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use taskhub_testkit::VirtualClock;
    use tokio_util::sync::CancellationToken;

    use super::*;
    use crate::bench::requests::Purpose;
    use crate::bench::rig::Cadence;

    async fn measured(cadence: Cadence) -> Isolated {
        let clock = Arc::new(VirtualClock::default());
        let mut place = Place::embedded(None, clock, CancellationToken::new());
        place.cadence = cadence;
        measure(&place).await.unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn an_isolated_orchestration_sends_14_requests_where_dotnet_sends_33() {
        let isolated = measured(Cadence::Own).await;
        assert_eq!(
            (isolated.worker.total(Purpose::Work), isolated.client.total(Purpose::Work)),
            (14, 3),
            "{isolated:?}"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn with_the_cadence_of_dotnet_an_isolated_orchestration_sends_no_more_than_dotnet() {
        let isolated = measured(Cadence::Dtfx).await;
        let sum = |of: &[(&str, u64)]| of.iter().map(|(_, n)| n).sum::<u64>();
        assert_eq!((sum(&DOTNET_WORKER), sum(&DOTNET_CLIENT)), (33, 3));
        assert!(isolated.worker.total(Purpose::Work) <= sum(&DOTNET_WORKER), "{isolated:?}");
        assert!(isolated.client.total(Purpose::Work) <= sum(&DOTNET_CLIENT), "{isolated:?}");
        assert!(isolated.worker.total(Purpose::EmptyPoll) > 0, "{isolated:?}");
        assert_eq!(isolated.client.total(Purpose::EmptyPoll), 0);
        let compared = compared(&isolated.worker, &DOTNET_WORKER);
        assert!(compared.contains(&("PutMessage", 6, 6)), "{compared:?}");
        assert_eq!(compared.iter().map(|(_, _, dotnet)| dotnet).sum::<u64>(), 33);
    }
}
