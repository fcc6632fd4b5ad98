//! Options of `purge-history`.

use std::num::NonZeroU32;
use std::time::Duration;

use clap::Args;

use super::{FilterArgs, parse_seconds};

/// Options of `purge-history`.
#[derive(Debug, Args)]
pub struct PurgeHistoryArgs {
    /// Remove this instance only
    #[arg(long, value_name = "ID", conflicts_with_all = [
        "created_after", "created_before", "runtime_status", "older_than", "id_prefix", "include_entities", "per_second",
        "concurrency", "timeout", "cursor", "dry_run", "yes",
    ])]
    pub id: Option<String>,
    /// With --id: remove the instance even if it has not finished
    #[arg(long, requires = "id")]
    pub force: bool,
    #[command(flatten)]
    #[allow(missing_docs, reason = "the type says it")]
    pub filter: FilterArgs,
    /// Created so long ago or longer: a number and s, m, h, d or w, as in 30d
    #[arg(long, value_name = "AGE", value_parser = parse_age, conflicts_with = "created_before")]
    pub older_than: Option<Duration>,
    /// Only ids that begin with this text
    #[arg(long, value_name = "TEXT")]
    pub id_prefix: Option<String>,
    /// Entities too, whatever their state: all whose last operation was in the time given
    #[arg(long)]
    pub include_entities: bool,
    /// Remove no more instances in a second than this
    #[arg(long, value_name = "N")]
    pub per_second: Option<NonZeroU32>,
    /// Remove so many instances at once
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..=256))]
    pub concurrency: u32,
    /// Seconds after which no further instance is removed; exit code 4 when there was more to do
    #[arg(long, value_name = "SECONDS", value_parser = parse_seconds)]
    pub timeout: Option<Duration>,
    /// Go on where an earlier purge with the same filter has ended
    #[arg(long, value_name = "CURSOR", allow_hyphen_values = true)]
    pub cursor: Option<String>,
    /// Only count what would be removed
    #[arg(long, conflicts_with_all = ["cursor", "timeout"])]
    pub dry_run: bool,
    /// Do not ask (nothing is asked when standard input is not a terminal)
    #[arg(long, short)]
    pub yes: bool,
}

/// A number and its unit.
fn parse_age(text: &str) -> Result<Duration, String> {
    let bad = || "an age is a number and s, m, h, d or w, as in 30d".to_owned();
    let unit = text.chars().next_back().ok_or_else(bad)?;
    let seconds: u64 = match unit {
        's' => 1,
        'm' => 60,
        'h' => 3600,
        'd' => 24 * 3600,
        'w' => 7 * 24 * 3600,
        _ => return Err(bad()),
    };
    let number = text.strip_suffix(unit).unwrap_or_default();
    let number: u32 = number.parse().map_err(|_| bad())?;
    Ok(Duration::from_secs(u64::from(number) * seconds))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages_are_a_number_and_a_unit() {
        for (text, seconds) in [("30d", 2_592_000), ("2w", 1_209_600), ("0s", 0), ("90m", 5400), ("1h", 3600)]
        {
            assert_eq!(parse_age(text), Ok(Duration::from_secs(seconds)), "{text}");
        }
        for text in ["", "30", "d", "-1d", "1.5d", "30 d", "3é", "99999999999d"] {
            assert!(parse_age(text).is_err(), "{text}");
        }
    }
}
