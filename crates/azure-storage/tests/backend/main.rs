//! The backend against the embedded store in virtual time, driven through the worker's trait by hand.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod admission;
mod bad_input;
mod balance;
mod checkpoint;
mod client;
mod economy;
mod economy_faults;
mod fleet;
mod liveness;
mod managers;
mod poison;
mod provider;
mod races;
mod simulated;
mod stalled;
mod status;
mod support;
mod suspended;
