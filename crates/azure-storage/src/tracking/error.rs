use taskhub_core::ErrorKind;
use taskhub_storage::Entity;

use super::key::KeyError;
use crate::message::DecodeError;

/// A row of a tracking table that cannot be read. The row itself stays with the caller.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RowError {
    /// A column is missing or holds something else than it must.
    #[error("a row cannot be read. table=`{table}` partition_key=`{partition_key}` row_key=`{row_key}`")]
    Column {
        /// `History` or `Instances`.
        table: &'static str,
        /// Partition key of the row.
        partition_key: String,
        /// Row key of the row.
        row_key: String,
        /// What is wrong; [`DecodeError::UnknownEventType`] for events of newer providers.
        source: DecodeError,
    },
    /// The partition key is no instance id.
    #[error("a row's key cannot be read. table=`{table}` partition_key=`{partition_key}`")]
    Key {
        /// `History` or `Instances`.
        table: &'static str,
        /// Partition key of the row.
        partition_key: String,
        /// What is wrong.
        source: KeyError,
    },
}

impl RowError {
    pub(crate) fn column(table: &'static str, row: &Entity, source: DecodeError) -> Self {
        Self::Column { table, partition_key: row.partition_key.clone(), row_key: row.row_key.clone(), source }
    }

    /// Always [`ErrorKind::Data`].
    pub fn kind(&self) -> ErrorKind {
        ErrorKind::Data
    }
}
