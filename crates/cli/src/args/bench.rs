use clap::{Args, ValueEnum};

use super::PartitionManager;
pub use crate::bench::FleetCase;

/// Options of `bench`.
#[derive(Debug, Args)]
pub struct BenchArgs {
    /// What to measure; may be repeated [default: all but fleet and balance, which take minutes]
    #[arg(long, value_enum, value_name = "SCENARIO")]
    pub scenario: Vec<Scenario>,
    /// What happens in the fleet scenario; may be repeated [default: all]
    #[arg(long, value_enum, value_name = "CASE")]
    pub case: Vec<FleetCase>,
    /// Who distributes the partitions in the fleet and balance scenarios
    #[arg(long, value_enum, value_name = "MANAGER", default_value = "table")]
    pub partition_manager: PartitionManager,
    /// Orchestrations of each scenario from hello to payloads
    /// [default: hello 1000, fan-out 20, timers 200, sub-orchestrations 300, payloads 100]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub instances: Option<u32>,
    /// Activities of each orchestration of hello and fan-out [default: hello 3, fan-out 100]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub activities: Option<u32>,
    /// Seconds of the timers
    #[arg(long, value_name = "SECONDS", default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..=60))]
    pub timer_seconds: u32,
    /// Size of the payloads
    #[arg(long, value_name = "BYTES", default_value_t = 100_000, value_parser = clap::value_parser!(u32).range(1..=16_777_216))]
    pub payload_bytes: u32,
    /// Signals of the entities scenario
    #[arg(long, value_name = "N", default_value_t = 5000, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub signals: u32,
    /// Orchestrations under way, or signals on their way, at the same time
    #[arg(long, value_name = "N", default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub concurrency: u32,
    /// Measure everything so many times and show the run in the middle
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=99))]
    pub repeat: u32,
    /// Send storage requests as the .NET worker does, more of them
    #[arg(long)]
    pub dtfx_cadence: bool,
    /// Run activities inside the episodes that ask for them
    #[arg(long, conflicts_with_all = ["dtfx_cadence", "compare_dtfx_cadence"])]
    pub fuse_activities: bool,
    /// Measure each scenario from hello to payloads with and without --dtfx-cadence, in turns, and compare
    #[arg(long, conflicts_with = "dtfx_cadence")]
    pub compare_dtfx_cadence: bool,
    /// Run orchestrations on a storage emulator (Azurite), started for it, instead of the embedded store;
    /// needs Node.js
    #[arg(long, conflicts_with_all = ["connection_string", "connection_string_setting", "account_name"])]
    pub azurite: bool,
    /// What a measurement in a process of its own is asked to do.
    #[arg(long, hide = true, value_name = "SHAPE:EVENTS", exclusive = true)]
    pub replay_here: Option<String>,
}

/// What can be measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Scenario {
    /// Replay of long histories: events per second, peak memory.
    Replay,
    /// Messages and history rows, written and read: MB per second.
    Codec,
    /// Orchestrations with activities, one after the other: orchestrations per second, latency, requests,
    /// CPU time, memory; so the next four.
    Hello,
    /// Orchestrations with activities, all at once.
    FanOut,
    /// Orchestrations with a durable timer.
    Timers,
    /// Orchestrations with a sub-orchestration.
    SubOrchestrations,
    /// Orchestrations with large results and inputs of activities.
    Payloads,
    /// One `HelloSequence` alone: every request it causes.
    Isolated,
    /// Signals to one entity and to a hundred: signals per second, batch size, requests.
    Entities,
    /// Two worker processes, one of which is stopped or killed: how long instances wait. Needs an account or
    /// --azurite.
    Fleet,
    /// One, four, then two worker processes: how long partitions take to follow. As fleet.
    Balance,
}

impl Scenario {
    /// Those that are measured unless others are asked for, in their order.
    pub const DEFAULT: [Self; 9] = [
        Self::Replay,
        Self::Codec,
        Self::Hello,
        Self::FanOut,
        Self::Timers,
        Self::SubOrchestrations,
        Self::Payloads,
        Self::Isolated,
        Self::Entities,
    ];
}
