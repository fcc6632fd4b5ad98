//! The scenarios of the .NET provider's own test suite, each in a form of our own: workers, client and
//! backend together on the embedded store, in virtual time. `docs/compatibility.md` maps their names.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod control;
mod counts;
mod entities;
mod entity_faults;
mod entity_users;
mod errors;
mod large_payloads;
mod lists;
mod live_entities;
mod orchestrations;
mod purge;
mod purge_many;
mod rewind;
mod rewind_storage;
mod support;
mod timers;
