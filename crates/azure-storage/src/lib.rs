//! The layout of `DurableTask.AzureStorage`: how a task hub lies in queues, tables and blobs.
//!
//! [`names`] and [`partition`] say where things are, [`message`] what travels on the queues,
//! [`tracking`] what the History and Instances tables hold. These modules are pure: bytes in, values
//! out, and the other way round; what they write is what the .NET provider writes.

pub mod message;
pub mod names;
pub mod partition;
pub mod tracking;
