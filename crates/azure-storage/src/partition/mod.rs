//! Which control queue an instance belongs to, and which worker reads which queue.

pub(crate) mod app_lease;
pub(crate) mod awake;
pub(crate) mod balance;
pub(crate) mod blob;
pub(crate) mod blob_manager;
pub(crate) mod evidence;
pub mod hash;
pub(crate) mod lease_blob;
pub(crate) mod manager;
pub(crate) mod owner;
pub mod ownership;
pub(crate) mod server_clock;
pub(crate) mod status;
pub mod table;
pub(crate) mod table_manager;

pub use hash::{app_lease_id, fnv1a32, partition_of};
pub use ownership::{OwnershipState, PartitionOwnership};
