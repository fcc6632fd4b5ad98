//! Which control queue an instance belongs to.

pub mod hash;

pub use hash::{app_lease_id, fnv1a32, partition_of};
