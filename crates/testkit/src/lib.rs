//! What the tests of a task hub are made of.
//!
//! - [`VirtualClock`], [`eventually`], [`seed`]: time, waiting and randomness that repeat.
//! - [`dump`], [`load`], [`compare`]: a whole hub as a value; captured hubs are loaded, finished by our
//!   worker and compared with what the .NET provider wrote ([`golden`]).
//! - [`TestHub`]: a hub in memory or in an account, its client, and workers that run the samples.
//! - [`contract`]: what every implementation of a trait must do; [`faults`]: an account that fails when told.
//! - [`sim`]: a fleet of workers under random faults, from one seed.
//!
//! ```
//! use taskhub_testkit::VirtualClock;
//! use taskhub_core::Clock;
//! # tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap().block_on(async {
//! let clock = VirtualClock::default();
//! tokio::time::sleep(std::time::Duration::from_secs(60)).await; // takes no time
//! assert_eq!(clock.now().to_iso(), "2026-01-15T09:31:00Z");
//! # });
//! ```

mod clock;
pub mod compare;
pub mod contract;
pub mod dump;
pub mod faults;
pub mod golden;
mod hub;
pub mod load;
mod seed;
pub mod sim;
mod wait;
mod worker;

pub use clock::VirtualClock;
pub use hub::TestHub;
pub use seed::{SEED_VARIABLE, seed, seeded_ids};
pub use wait::{PATIENCE, eventually, eventually_within};
pub use worker::RunningWorker;
