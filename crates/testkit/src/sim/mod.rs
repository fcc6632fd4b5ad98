//! A task hub with several workers, simulated from one seed.
//!
//! [`run`] makes a world: the store in memory, virtual time, two or three worker processes, and clients that
//! start random orchestrations and send them events. Between each process and the store lies a network on
//! which every request takes a seeded time and may be lost, be repeated, be refused or hang; processes are
//! killed between any two requests, stopped, stalled, and started again; their clocks are wrong. Then the
//! faults end, and everything must come to its right end: see `check`.
//!
//! A seed repeats exactly: the [`Report`] has a hash over every request with its time and outcome.
//!
//! ```
//! use taskhub_testkit::sim::{self, Options};
//!
//! let report = sim::run(1, &Options::default());
//! assert!(report.wrong.is_empty(), "{report}");
//! ```

mod check;
mod clock;
mod entity;
mod interpreter;
mod link;
mod network;
mod plan;
mod process;
mod rng;
mod trace;
mod world;

use std::fmt;
use std::time::Duration;

use taskhub_azure_storage::AzureStorageSettings;
pub use taskhub_azure_storage::Planted;
use tokio::sync::mpsc;
use tokio::time::Instant;

use world::World;

/// How a world is run.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// Whether the report has the lines of the trace.
    pub trace: bool,
    /// Whether orchestrations and clients use entities; then everything is drawn anew.
    pub entities: bool,
    /// A fault to be found.
    pub planted: Option<Planted>,
}

impl Options {
    fn apply(&self, settings: &mut AzureStorageSettings) {
        settings.sabotage.planted = self.planted;
    }
}

/// What came of a seed.
#[derive(Debug, Clone)]
pub struct Report {
    /// The seed.
    pub seed: u64,
    /// Whether entities were used.
    pub entities: bool,
    /// What is wrong, in sentences; empty when all is well.
    pub wrong: Vec<String>,
    /// Hash over everything that happened, with its time.
    pub hash: u64,
    /// How many things happened: requests, deaths, starts.
    pub entries: u64,
    /// How many requests were spoilt.
    pub faults: u64,
    /// How long it took in virtual time.
    pub lasted: Duration,
    /// What happened, if asked for.
    pub lines: Vec<String>,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for line in &self.lines {
            writeln!(f, "{line}")?;
        }
        writeln!(
            f,
            "seed {}: hash {:016x}, {} entries, {} faults, {:.0} virtual seconds",
            self.seed,
            self.hash,
            self.entries,
            self.faults,
            self.lasted.as_secs_f64()
        )?;
        for wrong in &self.wrong {
            writeln!(f, "  WRONG: {wrong}")?;
        }
        if !self.wrong.is_empty() {
            writeln!(
                f,
                "repeat with: {}TASKHUB_SIM_SEED={} cargo test -p taskhub-testkit --test simulation one_seed -- --nocapture",
                if self.entities { "TASKHUB_SIM_ENTITIES=1 " } else { "" },
                self.seed
            )?;
        }
        Ok(())
    }
}

/// Runs the world of a seed.
///
/// # Panics
/// No runtime can be made.
pub fn run(seed: u64, options: &Options) -> Report {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
    let runtime = runtime.expect("a runtime of one thread");
    runtime.block_on(async {
        let (deaths, died) = mpsc::unbounded_channel();
        let begun = Instant::now();
        let world = World::new(seed, options, deaths);
        let network = world.network.clone();
        let wrong = world.run(died).await;
        let (hash, entries, lines) = network.trace.take();
        let entities = options.entities;
        Report {
            seed,
            entities,
            wrong,
            hash,
            entries,
            faults: network.faults(),
            lasted: begun.elapsed(),
            lines,
        }
    })
}
