//! Instances in the hands of this process: grouping of messages, admission, ownership.

pub(crate) mod admission;
pub(crate) mod cache;
pub(crate) mod history_index;
mod intake;
pub(crate) mod manager;
mod settle;
