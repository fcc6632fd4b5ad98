//! Options of `entity`.

use clap::{Args, Subcommand};

use super::Time;

/// What to do with entities.
#[derive(Debug, Subcommand)]
pub enum EntityCommand {
    /// Send an operation to an entity, and wait for nothing
    Signal(SignalArgs),
    /// Show the state of an entity
    Get(EntityArgs),
    /// List entities, one page at a time
    List(ListEntitiesArgs),
    /// Remove entities without state, and release locks that nobody holds
    Clean(CleanArgs),
}

/// An entity.
#[derive(Debug, Args)]
pub struct EntityArgs {
    /// Name of the entity, in any case
    pub name: String,
    /// Key of the entity
    #[arg(allow_hyphen_values = true)]
    pub key: String,
}

/// Options of `entity signal`.
#[derive(Debug, Args)]
pub struct SignalArgs {
    #[command(flatten)]
    #[allow(missing_docs, reason = "the type says it")]
    pub entity: EntityArgs,
    /// Name of the operation
    #[arg(long, value_name = "NAME")]
    pub op: String,
    /// Input: JSON, or other text (sent as a JSON string), or @FILE with JSON
    #[arg(long, value_name = "JSON|@FILE", allow_hyphen_values = true)]
    pub input: Option<String>,
    /// Send an inline input as a JSON string even when it is JSON
    #[arg(long)]
    pub raw_string: bool,
    /// When to run it at the earliest, ISO 8601 in UTC
    #[arg(long, value_name = "TIME")]
    pub at: Option<Time>,
}

/// Options of `entity list`.
#[derive(Debug, Args)]
pub struct ListEntitiesArgs {
    /// Only entities of this name, in any case
    pub name: Option<String>,
    /// With their last operation at this time or later, ISO 8601 in UTC
    #[arg(long, value_name = "TIME")]
    pub last_operation_after: Option<Time>,
    /// With their last operation at this time or earlier, ISO 8601 in UTC
    #[arg(long, value_name = "TIME")]
    pub last_operation_before: Option<Time>,
    /// Show states
    #[arg(long)]
    pub fetch_state: bool,
    /// Show entities that were deleted and are not cleaned away yet
    #[arg(long)]
    pub include_deleted: bool,
    /// Entities per page, at most 1000
    #[arg(long, value_name = "N", default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub top: u32,
    /// Where the previous page ended
    #[arg(long, value_name = "TOKEN", default_value = "", allow_hyphen_values = true)]
    pub continuation_token: String,
}

/// Options of `entity clean`.
#[derive(Debug, Args)]
pub struct CleanArgs {
    /// Leave entities without state where they are
    #[arg(long, conflicts_with = "keep_locks")]
    pub keep_empty: bool,
    /// Leave locks as they are
    #[arg(long)]
    pub keep_locks: bool,
}
