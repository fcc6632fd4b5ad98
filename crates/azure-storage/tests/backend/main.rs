//! The backend against the embedded store in virtual time, driven through the worker's trait by hand.

mod admission;
mod bad_input;
mod checkpoint;
mod client;
mod fleet;
mod support;
