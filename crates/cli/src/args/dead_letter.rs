use clap::{Args, Subcommand};
use taskhub_azure_storage::dead_letter::DeadLetterState;

/// What to do with dead letters.
#[derive(Debug, Subcommand)]
pub enum DeadLetterCommand {
    /// List messages that could not be processed, one page at a time
    List(ListDeadLettersArgs),
    /// Show one with its message
    Show(ShowDeadLetterArgs),
    /// Let the message be processed again
    Requeue(RequeueArgs),
    /// Throw the message away
    Drop(DropArgs),
}

/// Options of `dead-letter list`.
#[derive(Debug, Args)]
pub struct ListDeadLettersArgs {
    /// Only those in this state: held, quarantined, dropped
    #[arg(long, value_name = "STATE", value_parser = parse_state)]
    pub state: Option<DeadLetterState>,
    /// Dead letters per page, at most 1000
    #[arg(long, value_name = "N", default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub top: u32,
    /// Where the previous page ended
    #[arg(long, value_name = "TOKEN", default_value = "", allow_hyphen_values = true)]
    pub continuation_token: String,
}

/// Options of `dead-letter show`.
#[derive(Debug, Args)]
pub struct ShowDeadLetterArgs {
    /// Id of the message, or as much of its beginning as is unique
    pub id: String,
}

/// Which dead letters.
#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
pub struct SelectArgs {
    /// Id of the message, or as much of its beginning as is unique
    pub id: Option<String>,
    /// All of them
    #[arg(long)]
    pub all: bool,
}

/// Options of `dead-letter requeue`.
#[derive(Debug, Args)]
pub struct RequeueArgs {
    #[command(flatten)]
    #[allow(missing_docs, reason = "the type says it")]
    pub which: SelectArgs,
    /// With --all: only those in this state
    #[arg(long, value_name = "STATE", value_parser = parse_state, conflicts_with = "id")]
    pub state: Option<DeadLetterState>,
}

/// Options of `dead-letter drop`.
#[derive(Debug, Args)]
pub struct DropArgs {
    #[command(flatten)]
    #[allow(missing_docs, reason = "the type says it")]
    pub which: SelectArgs,
    /// With --all: only those in this state
    #[arg(long, value_name = "STATE", value_parser = parse_state, conflicts_with = "id")]
    pub state: Option<DeadLetterState>,
    /// Do not ask (nothing is asked when standard input is not a terminal)
    #[arg(long, short)]
    pub yes: bool,
}

fn parse_state(name: &str) -> Result<DeadLetterState, String> {
    let found = DeadLetterState::ALL.into_iter().find(|state| state.name().eq_ignore_ascii_case(name.trim()));
    found.ok_or_else(|| {
        let names: Vec<_> = DeadLetterState::ALL.iter().map(|s| s.name()).collect();
        format!("the states are {}", names.join(", "))
    })
}
