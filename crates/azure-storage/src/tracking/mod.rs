//! The rows of the History and Instances tables.

pub mod blob_column;
mod error;
pub(crate) mod etags;
pub mod history_row;
pub mod instance_row;
pub(crate) mod instances;
pub mod key;
pub(crate) mod late_rows;
pub(crate) mod purge;
mod purge_many;
mod rewind;
pub mod sentinel;
pub(crate) mod store;

pub use error::RowError;
