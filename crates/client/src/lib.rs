//! A task hub client: starts instances, sends them events, asks for their state, removes them.
//!
//! [`TaskHubClient`] is the entry point; it works on any backend that implements
//! [`OrchestrationServiceClient`](taskhub_core::OrchestrationServiceClient). [`Start`] describes a new
//! instance, [`InstancePages`] walks a list page by page, [`json`] writes states and histories as the
//! .NET client prints them.
//!
//! ```
//! use std::{sync::Arc, time::Duration};
//! use taskhub_client::{Start, TaskHubClient, Waited};
//! use taskhub_core::OrchestrationServiceClient;
//!
//! async fn greet(backend: Arc<dyn OrchestrationServiceClient>) -> Result<(), Box<dyn std::error::Error>> {
//!     let client = TaskHubClient::new(backend);
//!     let started = client.start(Start::new("Greet").input(&"Tokyo")?).await?;
//!     if let Waited::Finished(state) =
//!         client.wait_for_completion(&started.instance_id, Duration::from_secs(30)).await?
//!     {
//!         println!("{:?}", state.output);
//!     }
//!     Ok(())
//! }
//! ```
//!
//! Messages are sent, not delivered: every operation ends when the backend has stored it, and works with
//! no worker running.

mod batch;
mod client;
mod entity;
mod error;
#[cfg(any(test, feature = "fake"))]
pub mod fake;
mod instance_id;
pub mod json;
mod list;
mod list_stream;
mod management;
mod purge;
mod restart;
mod rewind;
mod start;
mod wait;

pub use batch::STARTS_AT_ONCE;
pub use client::TaskHubClient;
pub use entity::{CleanEntities, CleanedEntities, EntityId, EntityPage, EntityQuery, EntityState};
pub use error::{ClientError, Operation};
pub use list::InstancePages;
pub use list_stream::{InstanceStream, ListOptions};
pub use management::{DEFAULT_CONNECTION_NAME, ManagementPayload, ManagementUrls};
pub use purge::{PurgeFilter, PurgeOptions, PurgeProgress, Purged};
pub use restart::RestartId;
pub use rewind::Rewind;
pub use start::{Start, Started};
pub use wait::{CHECK_STATUS_INTERVAL, CHECK_STATUS_TIMEOUT, PollInterval, Waited};
