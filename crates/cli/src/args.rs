//! The command line. Names and defaults are those of `func durable` where that tool has the command.

mod bench;
mod dead_letter;
mod serve;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

pub use bench::{BenchArgs, FleetCase, Scenario};
use clap::{ArgAction, Args, Parser, Subcommand, ValueEnum};
pub use dead_letter::{
    DeadLetterCommand, DropArgs, ListDeadLettersArgs, RequeueArgs, SelectArgs, ShowDeadLetterArgs,
};
pub use serve::ServeArgs;
use taskhub_azure_storage::PartitionManagerKind;
use taskhub_core::{OrchestrationStatus, Timestamp};

const EXIT_CODES: &str = "\
Exit codes:
  0  done (also when the instance asked for does not exist)
  1  the command failed; the reason is on standard error
  2  wrong arguments
  3  `wait`: the instance finished, but did not complete
  4  `wait`: the instance has not finished in time

Without --task-hub-name and an account (--connection-string, --account-name), host.json and local.settings.json in the current
directory and the environment are asked.";

/// Works with task hubs of the Durable Task Framework in Azure Storage.
#[derive(Debug, Parser)]
#[command(name = "taskhub", version, after_help = EXIT_CODES, disable_help_subcommand = true)]
pub struct Cli {
    /// Options of every command.
    #[command(flatten)]
    pub common: CommonArgs,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// Options of every command.
#[derive(Debug, Clone, Args)]
pub struct CommonArgs {
    /// Task hub [default: hubName of host.json, else DurableFunctionsHub]
    #[arg(long, global = true, value_name = "NAME")]
    pub task_hub_name: Option<String>,
    /// Connection string of the storage account
    #[arg(long, global = true, value_name = "TEXT", conflicts_with = "connection_string_setting")]
    pub connection_string: Option<ConnectionString>,
    /// Setting that holds the connection string, in the environment or in local.settings.json
    /// [default: connectionName of host.json, else AzureWebJobsStorage]
    #[arg(long, global = true, value_name = "NAME")]
    pub connection_string_setting: Option<String>,
    /// Storage account in the public cloud, by Entra ID instead of a connection string
    #[arg(long, global = true, value_name = "NAME", conflicts_with_all = ["connection_string", "connection_string_setting"])]
    pub account_name: Option<String>,
    /// Form of the result; without it, the texts of `func durable`
    #[arg(long, global = true, value_enum, value_name = "FORM")]
    pub output: Option<OutputForm>,
    /// Log more to standard error; repeat for still more (RUST_LOG takes precedence)
    #[arg(short, long, global = true, action = ArgAction::Count)]
    pub verbose: u8,
}

impl CommonArgs {
    /// Whether the command line says where the account is.
    pub(crate) fn names_account(&self) -> bool {
        self.connection_string.is_some()
            || self.connection_string_setting.is_some()
            || self.account_name.is_some()
    }
}

/// A connection string. `Debug` hides it.
#[derive(Clone, PartialEq, Eq)]
pub struct ConnectionString(pub String);

impl std::fmt::Debug for ConnectionString {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ConnectionString(hidden)")
    }
}

impl From<&str> for ConnectionString {
    fn from(text: &str) -> Self {
        Self(text.to_owned())
    }
}

/// Form of the result on standard output.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum OutputForm {
    /// One JSON document.
    Json,
    /// A table for reading.
    Table,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Start an instance
    StartNew(StartNewArgs),
    /// Show the status of an instance
    GetRuntimeStatus(GetRuntimeStatusArgs),
    /// Show the history of an instance
    GetHistory(InstanceArgs),
    /// List instances, one page at a time
    GetInstances(GetInstancesArgs),
    /// Send an external event to an instance
    RaiseEvent(RaiseEventArgs),
    /// Terminate an instance and wait until it has ended
    Terminate(ReasonArgs),
    /// Pause an instance
    Suspend(ReasonArgs),
    /// Let a paused instance go on
    Resume(ReasonArgs),
    /// Wait until an instance has finished
    Wait(WaitArgs),
    /// Remove finished instances: one by id, or all of a time range
    PurgeHistory(PurgeHistoryArgs),
    /// Create what is missing of a task hub
    CreateTaskHub(CreateArgs),
    /// Delete a task hub with everything in it
    DeleteTaskHub(DeleteArgs),
    /// Show, create or delete a task hub
    #[command(subcommand)]
    Hub(HubCommand),
    /// Look at messages that could not be processed; try them again or throw them away
    #[command(subcommand)]
    DeadLetter(DeadLetterCommand),
    /// Run a worker until it is told to stop (Ctrl-C, SIGTERM or SIGHUP)
    Worker(WorkerArgs),
    /// Serve the HTTP management API of Durable Functions until told to stop
    Serve(ServeArgs),
    /// Ask the health endpoint of a worker; exit code 1 when it does not answer with a success
    Healthcheck(HealthcheckArgs),
    /// Show what a task hub does, on the embedded store or on a storage emulator
    Demo(DemoArgs),
    /// Measure replay, codec, throughput and requests; nothing is left behind
    Bench(BenchArgs),
}

/// Options of `start-new`.
#[derive(Debug, Args)]
pub struct StartNewArgs {
    /// Name of the orchestrator
    #[arg(long, value_name = "NAME", required_unless_present = "batch")]
    pub function_name: Option<String>,
    /// Start several: a JSON file with an object or a list of {"FunctionName", "Input", "InstanceId"}
    #[arg(long, value_name = "@FILE", conflicts_with_all = ["function_name", "input", "id"])]
    pub batch: Option<String>,
    /// Input: JSON, or other text (sent as a JSON string), or @FILE with JSON
    #[arg(long, value_name = "JSON|@FILE", allow_hyphen_values = true)]
    pub input: Option<String>,
    /// Send an inline input as a JSON string even when it is JSON, as `func durable` does
    #[arg(long)]
    pub raw_string: bool,
    /// Instance id [default: a random one]
    #[arg(long, value_name = "ID")]
    pub id: Option<String>,
    /// Version of the orchestrator
    #[arg(long, value_name = "VERSION")]
    pub version: Option<String>,
    /// A tag; may be repeated
    #[arg(long, value_name = "KEY=VALUE", value_parser = parse_tag)]
    pub tag: Vec<(String, String)>,
    /// Earliest start, ISO 8601 in UTC
    #[arg(long, value_name = "TIME")]
    pub start_at: Option<Time>,
}

/// Options of `get-runtime-status`.
#[derive(Debug, Args)]
pub struct GetRuntimeStatusArgs {
    /// Instance id
    #[arg(long, value_name = "ID")]
    pub id: String,
    /// Show the input
    #[arg(long, value_name = "BOOL", num_args = 0..=1, default_value_t = false, default_missing_value = "true", action = ArgAction::Set)]
    pub show_input: bool,
    /// Show the output
    #[arg(long, value_name = "BOOL", num_args = 0..=1, default_value_t = false, default_missing_value = "true", action = ArgAction::Set)]
    pub show_output: bool,
}

/// An instance.
#[derive(Debug, Args)]
pub struct InstanceArgs {
    /// Instance id
    #[arg(long, value_name = "ID")]
    pub id: String,
}

/// Which instances.
#[derive(Debug, Args)]
pub struct FilterArgs {
    /// Created at this time or later, ISO 8601 in UTC
    #[arg(long, value_name = "TIME")]
    pub created_after: Option<Time>,
    /// Created at this time or earlier, ISO 8601 in UTC
    #[arg(long, value_name = "TIME")]
    pub created_before: Option<Time>,
    /// With one of these statuses, separated by spaces
    #[arg(long, value_name = "STATUS", value_delimiter = ' ', num_args = 1.., value_parser = parse_status)]
    pub runtime_status: Vec<OrchestrationStatus>,
}

/// Options of `get-instances`.
#[derive(Debug, Args)]
pub struct GetInstancesArgs {
    #[command(flatten)]
    #[allow(missing_docs, reason = "the type says it")]
    pub filter: FilterArgs,
    /// Instances per page, at most 1000
    #[arg(long, value_name = "N", default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub top: u32,
    /// Where the previous page ended
    #[arg(long, value_name = "TOKEN", default_value = "", allow_hyphen_values = true)]
    pub continuation_token: String,
    /// Only ids that begin with this text
    #[arg(long, value_name = "TEXT")]
    pub id_prefix: Option<String>,
    /// Leave out entities
    #[arg(long)]
    pub exclude_entities: bool,
}

/// Options of `raise-event`.
#[derive(Debug, Args)]
pub struct RaiseEventArgs {
    /// Instance id
    #[arg(long, value_name = "ID")]
    pub id: String,
    /// Name of the event [default: Event_ and a random id]
    #[arg(long, value_name = "NAME")]
    pub event_name: Option<String>,
    /// Payload: JSON, or other text (sent as a JSON string), or @FILE with JSON
    #[arg(long, value_name = "JSON|@FILE", allow_hyphen_values = true)]
    pub event_data: Option<String>,
    /// Send an inline payload as a JSON string even when it is JSON, as `func durable` does
    #[arg(long)]
    pub raw_string: bool,
}

/// An instance and a reason.
#[derive(Debug, Args)]
pub struct ReasonArgs {
    /// Instance id
    #[arg(long, value_name = "ID")]
    pub id: String,
    /// Why; free text
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    pub reason: Option<String>,
}

/// Options of `wait`.
#[derive(Debug, Args)]
pub struct WaitArgs {
    /// Instance id
    #[arg(long, value_name = "ID")]
    pub id: String,
    /// Seconds to wait at most
    #[arg(long, value_name = "SECONDS", default_value = "10", value_parser = parse_seconds)]
    pub timeout: Duration,
    /// Seconds between two looks
    #[arg(long, value_name = "SECONDS", default_value = "1", value_parser = parse_seconds)]
    pub retry_interval: Duration,
}

/// Options of `purge-history`.
#[derive(Debug, Args)]
pub struct PurgeHistoryArgs {
    /// Remove this instance only
    #[arg(long, value_name = "ID", conflicts_with_all = ["created_after", "created_before", "runtime_status"])]
    pub id: Option<String>,
    /// With --id: remove the instance even if it has not finished
    #[arg(long, requires = "id")]
    pub force: bool,
    #[command(flatten)]
    #[allow(missing_docs, reason = "the type says it")]
    pub filter: FilterArgs,
}

/// Options of commands that create a hub.
#[derive(Debug, Default, Args)]
pub struct CreateArgs {
    /// Control queues, 1 to 16; cannot be changed later [default: partitionCount of host.json, else 4]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=16))]
    pub partition_count: Option<u32>,
    /// Who distributes the partitions; an existing hub has one already [default: as host.json says, else table]
    #[arg(long, value_enum, value_name = "MANAGER")]
    pub partition_manager: Option<PartitionManager>,
}

/// A partition manager.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum PartitionManager {
    /// Rows of a table; what provider 2.x does by default.
    Table,
    /// Two lease blobs per partition; what provider 1.x does by default.
    Safe,
    /// One lease blob per partition.
    Legacy,
}

impl From<PartitionManager> for PartitionManagerKind {
    fn from(manager: PartitionManager) -> Self {
        match manager {
            PartitionManager::Table => Self::Table,
            PartitionManager::Safe => Self::Safe,
            PartitionManager::Legacy => Self::Legacy,
        }
    }
}

/// Options of commands that delete a hub.
#[derive(Debug, Args)]
pub struct DeleteArgs {
    /// Do not ask (nothing is asked when standard input is not a terminal)
    #[arg(long, short)]
    pub yes: bool,
}

/// What to do with a hub.
#[derive(Debug, Subcommand)]
pub enum HubCommand {
    /// Show partitions, their owners and queue lengths
    Show,
    /// Create what is missing
    Create(CreateArgs),
    /// Delete it with everything in it
    Delete(DeleteArgs),
}

/// Options of `worker`.
#[derive(Debug, Args)]
pub struct WorkerArgs {
    /// Register the sample orchestrations and activities
    #[arg(long)]
    pub samples: bool,
    /// Answer /livez, /readyz and /metrics here, as in 0.0.0.0:8080 [default: nowhere]
    #[arg(long, value_name = "ADDRESS:PORT", env = taskhub::HEALTH_LISTEN_VARIABLE)]
    pub health_listen: Option<SocketAddr>,
    /// Identity in the lease records, unique per process [default: made from host name, process and chance]
    #[arg(long, value_name = "ID")]
    pub worker_id: Option<String>,
    /// Application, the same for all workers of the hub: the app lease goes by it
    /// [default: WEBSITE_SITE_NAME, else DTFX_APP_NAME, else the empty name]
    #[arg(long, value_name = "NAME")]
    pub app_name: Option<String>,
    /// Seconds that running work gets to finish when the worker is told to stop; the rest is given back
    #[arg(long, value_name = "SECONDS", default_value = "30", value_parser = parse_seconds)]
    pub drain_timeout: Duration,
    /// Take a message out of its queue after so many failures and keep it as a dead letter
    /// [default: quarantinePoisonMessagesAfter of host.json, else try for ever]
    #[arg(long, value_name = "N", env = "TASKHUB_QUARANTINE_AFTER", value_parser = clap::value_parser!(u32).range(1..))]
    pub quarantine_after: Option<u32>,
    /// Append a line of JSON to this file for every activity that has run
    #[arg(long, value_name = "FILE")]
    pub activity_log: Option<PathBuf>,
    #[command(flatten)]
    #[allow(missing_docs, reason = "the type says it")]
    pub create: CreateArgs,
    /// Use --partition-manager although the hub has another one; stop all its workers first
    #[arg(long, requires = "partition_manager")]
    pub force_partition_manager: bool,
    /// Take the hub from the application that has it, once, when the worker starts
    #[arg(long)]
    pub take_app_lease: bool,
}

/// Options of `healthcheck`.
#[derive(Debug, Args)]
pub struct HealthcheckArgs {
    /// Endpoint to ask, plain http [default: /livez at the address in TASKHUB_HEALTH_LISTEN]
    #[arg(value_name = "URL")]
    pub url: Option<String>,
    /// Seconds to wait for the answer
    #[arg(long, value_name = "SECONDS", default_value = "3", value_parser = parse_seconds)]
    pub timeout: Duration,
}

/// Options of `demo`.
#[derive(Debug, Args)]
pub struct DemoArgs {
    /// Run on a storage emulator (Azurite), started for the demo; needs Node.js
    #[arg(long, conflicts_with_all = ["connection_string", "connection_string_setting", "account_name"])]
    pub azurite: bool,
    /// With --azurite: leave the emulator running and print its connection string
    #[arg(long, requires = "azurite")]
    pub keep: bool,
}

/// A time, in any ISO 8601 form; UTC without offset.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Time(pub Timestamp);

impl std::str::FromStr for Time {
    type Err = taskhub_core::ParseTimestampError;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Timestamp::parse(text).map(Self)
    }
}

fn parse_status(name: &str) -> Result<OrchestrationStatus, String> {
    name.trim().parse().map_err(|_| {
        let names: Vec<_> = OrchestrationStatus::ALL.iter().map(|s| s.name()).collect();
        format!("the statuses are {}", names.join(", "))
    })
}

fn parse_tag(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err("a tag has the form KEY=VALUE".to_owned()),
    }
}

fn parse_seconds(text: &str) -> Result<Duration, String> {
    text.parse()
        .ok()
        .and_then(|s: f64| Duration::try_from_secs_f64(s).ok())
        .ok_or_else(|| "not a number of seconds".to_owned())
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    fn parse(line: &[&str]) -> Cli {
        Cli::try_parse_from([&["taskhub"], line].concat()).unwrap()
    }

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn the_documented_example_lines_parse() {
        let line =
            "start-new --function-name HelloWorld --input @counter-data.json --task-hub-name TestTaskHub";
        let cli = parse(&line.split(' ').collect::<Vec<_>>());
        assert_eq!(cli.common.task_hub_name.as_deref(), Some("TestTaskHub"));
        assert!(
            matches!(cli.command, Command::StartNew(a) if a.input.as_deref() == Some("@counter-data.json"))
        );

        let cli =
            parse(&["get-runtime-status", "--id", "x", "--show-input", "true", "--show-output", "true"]);
        assert!(matches!(cli.command, Command::GetRuntimeStatus(a) if a.show_input && a.show_output));
        let cli = parse(&["get-runtime-status", "--id", "x"]);
        assert!(matches!(cli.command, Command::GetRuntimeStatus(a) if !a.show_input && !a.show_output));
        let cli = parse(&["get-runtime-status", "--show-input", "--id", "x"]);
        assert!(matches!(cli.command, Command::GetRuntimeStatus(a) if a.show_input && a.id == "x"));

        let cli = parse(&[
            "get-instances",
            "--created-after",
            "2018-03-10T23:59Z",
            "--runtime-status",
            "running COMPLETED",
            "--top",
            "15",
        ]);
        let Command::GetInstances(args) = cli.command else { panic!("{cli:?}") };
        assert_eq!(
            args.filter.runtime_status,
            [OrchestrationStatus::Running, OrchestrationStatus::Completed]
        );
        assert_eq!(args.filter.created_after.unwrap().0.to_iso(), "2018-03-10T23:59:00Z");
        assert_eq!((args.top, args.continuation_token.as_str()), (15, ""));

        let cli = parse(&["raise-event", "--id", "x", "--event-name", "E", "--event-data", "-3"]);
        assert!(matches!(cli.command, Command::RaiseEvent(a) if a.event_data.as_deref() == Some("-3")));

        let cli = parse(&["wait", "--id", "x", "--timeout", "2", "--retry-interval", "0.5"]);
        assert!(matches!(cli.command, Command::Wait(a) if a.retry_interval == Duration::from_millis(500)));
    }

    #[test]
    fn wrong_arguments_are_refused() {
        for line in [
            &["start-new"][..],
            &["start-new", "--batch", "@x", "--function-name", "F"],
            &["get-runtime-status"],
            &["get-instances", "--runtime-status", "sleeping"],
            &["get-instances", "--top", "0"],
            &["get-instances", "--created-after", "yesterday"],
            &["purge-history", "--id", "a", "--runtime-status", "failed"],
            &["purge-history", "--force"],
            &["create-task-hub", "--partition-count", "17"],
            &["wait", "--id", "a", "--timeout", "-1"],
            &["get-history", "--id", "a", "--connection-string", "x", "--connection-string-setting", "y"],
            &["get-history", "--id", "a", "--connection-string", "x", "--account-name", "y"],
            &["demo", "--azurite", "--account-name", "y"],
        ] {
            let error = Cli::try_parse_from([&["taskhub"], line].concat()).unwrap_err();
            assert_eq!(error.exit_code(), 2, "{line:?}");
        }
    }

    #[test]
    fn connection_strings_stay_out_of_debug_output() {
        let cli = parse(&["hub", "show", "--connection-string", "AccountKey=c2VjcmV0"]);
        assert!(!format!("{cli:?}").contains("c2VjcmV0"));
    }
}
