//! Contracts: one suite of functions per trait, run against every implementation of it.

pub mod storage;
