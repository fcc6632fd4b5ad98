//! A worker of ours finishes every hub that a .NET worker has left, in memory and in virtual time.

use anyhow::Result;
use taskhub_core::TaskHubName;
use taskhub_testkit::golden::{self, Provider};
use taskhub_testkit::{TestHub, for_each_golden_phase};

async fn take_over(phase: &str) -> Result<()> {
    let phase = golden::phase(phase)?;
    // Leases in the hub are as fresh as when its worker was killed.
    let hub = TestHub::in_memory(&TaskHubName::new("Takeover")?, 1, phase.hub()?.taken_at());
    hub.take_over(&phase).await
}

macro_rules! takes_over {
    ($test:ident, $phase:literal) => {
        #[tokio::test(start_paused = true)]
        async fn $test() -> Result<()> {
            take_over($phase).await
        }
    };
}

for_each_golden_phase!(takes_over);

#[test]
fn no_phase_is_left_out() -> Result<()> {
    let mut named = Vec::new();
    macro_rules! name {
        ($test:ident, $phase:literal) => {
            named.push($phase.to_owned());
        };
    }
    for_each_golden_phase!(name);
    let phases = golden::phases(Provider::V2)?.into_iter().chain(golden::phases(Provider::V1)?);
    let expected: Vec<String> = phases.map(|phase| phase.name()).collect();
    assert_eq!(named, expected);
    Ok(())
}
