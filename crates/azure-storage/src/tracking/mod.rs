//! The rows of the History and Instances tables.

pub mod blob_column;
mod error;
pub mod history_row;
pub mod instance_row;
pub mod key;
pub mod sentinel;

pub use error::RowError;
