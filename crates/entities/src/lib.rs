//! Durable entities: what they and their callers write to each other and into storage, and what one batch of
//! operations does. No clock, no I/O, no runtime: times and ids are arguments.
//!
//! An entity is an instance whose id is `@{name}@{key}` ([`EntityId`]). Others send it events ([`event_name`])
//! whose payload is a [`RequestMessage`] or a [`ReleaseMessage`]; it answers with a [`ResponseMessage`]. Between
//! batches it keeps a [`SchedulerState`] as the input of its execution and shows an [`EntityStatus`] as its
//! custom status.
//!
//! ```
//! use taskhub_core::Timestamp;
//! use taskhub_entities::{EntityId, MessageSorter, RequestMessage};
//!
//! let counter = EntityId::new("Counter", "a")?;
//! assert_eq!(counter.instance_id().as_str(), "@counter@a");
//!
//! let id = "706797c6-62d8-589a-8b95-ec0e0c03129c".parse()?;
//! let mut request = RequestMessage::signal(id, "add", Some("5".into()))
//!     .from_instance("order-17", Some("0f6c5b0d5c7f4a0e9a3d3b1d7f1f2a10".into()));
//! let now = Timestamp::parse("2026-01-02T03:04:05Z")?;
//! MessageSorter::default().label_outgoing(&mut request, counter.instance_id().as_str(), now);
//! assert!(request.to_json().starts_with(r#"{"op":"add","signal":true,"input":"5","id":"#));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod batch;
mod episode;
pub mod event_name;
mod id;
mod json;
mod limits;
mod release;
mod request;
mod response;
mod scheduler;
mod sections;
mod sorter;
mod time;
mod trace;

pub use batch::{BatchResult, EntityAction, OperationRequest};
pub use episode::{Batch, Entity, EntityError, EntitySettings, Unreadable};
pub use id::{EntityId, InvalidEntityId};
pub use json::WireError;
pub use limits::{MAX_SIGNAL_DELAY, REORDER_WINDOW};
pub use release::{ORPHANED_LOCK, ReleaseMessage};
pub use request::RequestMessage;
pub use response::{LOCK_ACQUISITION_COMPLETED, ResponseMessage};
pub use scheduler::{EntityStatus, SchedulerState};
pub use sections::Sections;
pub use sorter::MessageSorter;
pub use time::Stamp;
