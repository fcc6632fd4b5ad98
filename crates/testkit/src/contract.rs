//! Contracts: one suite of functions per trait, run against every implementation of it.

#![allow(clippy::unwrap_used, clippy::missing_panics_doc, reason = "the functions are tests")]

pub mod storage;
pub mod workers;
