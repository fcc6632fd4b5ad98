//! The management API, by its requests.
#![allow(clippy::unwrap_used, reason = "tests")]

mod cases;
mod entities;
mod live_entities;
mod matrix;
mod openapi;
mod security;
mod storage;
mod support;
mod waits;
