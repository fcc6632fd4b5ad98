//! The layout of `DurableTask.AzureStorage`: how a task hub lies in queues, tables and blobs.
//!
//! [`names`] and [`partition`] say where things are, [`message`] what travels on the queues,
//! [`tracking`] what the History and Instances tables hold. These modules are pure: bytes in, values
//! out, and the other way round; what they write is what the .NET provider writes.

mod checkpoint;
mod client;
pub mod dead_letter;
mod doorbell;
mod error;
mod guard;
mod hub;
mod instance_names;
mod large_messages;
pub mod message;
pub mod metrics;
pub mod names;
mod ownership;
pub mod partition;
mod queue;
mod renewal;
#[cfg_attr(not(feature = "simulation"), allow(dead_code, unreachable_pub))]
mod sabotage;
mod service;
mod session;
mod settings;
mod shared;
pub mod tracking;
mod watchdog;

pub use client::{AzureStorageClient, HubMissing};
pub use hub::{
    DEFAULT_PARTITION_COUNT, Hub, HubInspection, HubLayout, PartitionManagerKind, QueueInspection,
};
pub use metrics::StorageMetrics;
pub use partition::{OwnershipState, PartitionOwnership};
#[cfg(feature = "simulation")]
pub use sabotage::{Planted, Sabotage};
pub use service::AzureStorageService;
pub use settings::{AzureStorageSettings, DOTNET_VISIBILITY_TIMEOUT};
