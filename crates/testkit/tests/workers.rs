//! Several workers of one hub, in memory and in virtual time.

use anyhow::Result;
use taskhub_core::{Clock as _, TaskHubName};
use taskhub_testkit::contract::workers;
use taskhub_testkit::{TestHub, VirtualClock};

fn hub() -> Result<TestHub> {
    Ok(TestHub::in_memory(&TaskHubName::new("Workers")?, 1, VirtualClock::default().now()))
}

#[tokio::test(start_paused = true)]
async fn two_workers_share_the_partitions_and_hand_them_over() -> Result<()> {
    workers::share_the_partitions_and_hand_them_over(&hub()?).await
}

#[tokio::test(start_paused = true)]
async fn a_successor_completes_what_a_stopped_worker_began() -> Result<()> {
    workers::a_successor_completes_what_a_stopped_worker_began(&hub()?).await
}
