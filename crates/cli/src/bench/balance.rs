//! How long partitions take to follow workers that come and go.

use std::time::Duration;

use anyhow::Result;

use super::rig::Place;
use super::workers::Fleet;

/// Control queues of the hubs that are measured.
pub(super) const PARTITIONS: [u32; 2] = [4, 16];

/// Times until all partitions are owned and no worker has two more than another.
#[derive(Debug, Clone)]
pub(super) struct Balanced {
    pub(super) partitions: u32,
    /// One worker on a new hub, from its start.
    pub(super) first: Duration,
    /// Four workers, from the start of three more.
    pub(super) four: Duration,
    /// Two workers, from the moment the others are told to stop.
    pub(super) two: Duration,
}

impl Balanced {
    pub(super) fn slowest(&self) -> f64 {
        self.first.max(self.four).max(self.two).as_secs_f64()
    }
}

/// 1 -> 4 -> 2 workers.
pub(super) async fn measure(place: &Place, partitions: u32) -> Result<Balanced> {
    let fleet = Fleet::create(place, partitions).await?;
    fleet
        .during(async |fleet| {
            fleet.start("bench-1")?;
            let first = fleet.balanced().await?;
            for id in ["bench-2", "bench-3", "bench-4"] {
                fleet.start(id)?;
            }
            let four = fleet.balanced().await?;
            let leaving = [fleet.terminate("bench-1").await?, fleet.terminate("bench-3").await?];
            let two = fleet.balanced().await?;
            for worker in leaving {
                worker.ended().await?;
            }
            Ok(Balanced { partitions, first, four, two })
        })
        .await
}
