//! Entities: the dispatcher, and how a program writes them.

mod context;
mod definition;
mod dispatch;
mod executor;
mod local;

pub(crate) use definition::{EntityFn, typed};
pub(crate) use dispatch::{EntityWork, KIND};
pub(crate) use local::LocalEntities;

pub use context::{EntityContext, StartOptions};
pub use definition::{EntityMethod, OperationError, Operations, Reply, TypedEntity};
pub use executor::{EntityBatch, EntityExecutor};
