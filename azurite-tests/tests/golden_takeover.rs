//! A worker of ours finishes, in the emulator, the hubs that a .NET worker has left.
//!
//! Some run with every change, all of them at night (`scripts/nightly.sh`).

use anyhow::Result;
use azurite_tests::on_a_hub;
use taskhub_testkit::{for_each_golden_phase, golden};

async fn take_over(phase: &str) -> Result<()> {
    let phase = golden::phase(phase)?;
    on_a_hub(async |hub| hub.take_over(&phase).await).await
}

macro_rules! some {
    ($($test:ident: $phase:literal,)*) => { $(
        #[tokio::test]
        async fn $test() -> Result<()> {
            take_over($phase).await
        }
    )* };
}

some! {
    an_activity_that_was_running_runs_again: "HelloSequence/midflight",
    an_event_that_was_on_its_way_arrives: "Approval/raised",
    a_fan_out_with_four_of_five_results_completes: "FanOutFanIn/midflight",
    a_parent_hears_from_its_child: "Parent/midflight",
    a_third_generation_goes_on: "Eternal/midflight",
    a_suspended_instance_resumes: "SuspendResume/midflight",
    a_timer_that_was_set_fires: "Timer/midflight",
    a_failure_keeps_its_details: "FailUnhandledDetails/midflight",
    a_hub_of_the_older_provider_goes_on: "v1/ParentNamedChild/midflight",
    large_messages_of_the_older_provider_are_read: "v1/LargePayload/midflight",
}

/// Every phase.
mod nightly {
    use super::*;

    macro_rules! takes_over {
        ($test:ident, $phase:literal) => {
            #[tokio::test]
            #[ignore = "nightly"]
            async fn $test() -> Result<()> {
                take_over($phase).await
            }
        };
    }

    for_each_golden_phase!(takes_over);
}
