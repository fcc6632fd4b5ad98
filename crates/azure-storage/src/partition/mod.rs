//! Which control queue an instance belongs to.

pub(crate) mod app_lease;
pub mod hash;
pub(crate) mod manager;
pub(crate) mod owner;
pub(crate) mod status;
pub mod table;

pub use hash::{app_lease_id, fnv1a32, partition_of};
