//! The command line. Names and defaults are those of `func durable` where that tool has the command.

mod bench;
mod dead_letter;
mod entity;
mod purge;
mod serve;

use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

pub use bench::{BenchArgs, FleetCase, Scenario};
use clap::{ArgAction, Args, CommandFactory, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;
pub use dead_letter::{
    DeadLetterCommand, DropArgs, ListDeadLettersArgs, RequeueArgs, SelectArgs, ShowDeadLetterArgs,
};
pub use entity::{CleanArgs, EntityArgs, EntityCommand, ListEntitiesArgs, SignalArgs};
pub use purge::PurgeHistoryArgs;
pub use serve::ServeArgs;
use taskhub_azure_storage::PartitionManagerKind;
use taskhub_core::{OrchestrationStatus, Timestamp};

const EXIT_CODES: &str = "\
Exit codes:
  0  done (also when the instance asked for does not exist)
  1  the command failed; the reason is on standard error
  2  wrong arguments
  3  `wait`: the instance finished, but did not complete
  4  `wait`, `purge-history --timeout`: not finished in time

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

impl Cli {
    /// Parses the arguments of a process, its name first. `durable` in front of the command, as in
    /// `func durable start-new`, is skipped.
    ///
    /// # Errors
    /// They are wrong, or ask for help.
    pub fn of_process(arguments: impl IntoIterator<Item = OsString>) -> Result<Self, clap::Error> {
        let mut arguments: Vec<_> = arguments.into_iter().collect();
        if arguments.get(1).is_some_and(|first| first == "durable") {
            arguments.remove(1);
        }
        Self::try_parse_from(arguments)
    }

    /// The script that completes command lines in a shell.
    pub(crate) fn completions(shell: Shell) -> Vec<u8> {
        let mut script = Vec::new();
        clap_complete::generate(shell, &mut Self::command(), "taskhub", &mut script);
        script
    }
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
    GetHistory(GetHistoryArgs),
    /// List instances, one page at a time
    GetInstances(GetInstancesArgs),
    /// Send an external event to an instance
    RaiseEvent(RaiseEventArgs),
    /// Terminate an instance and wait until it has ended
    Terminate(TerminateArgs),
    /// Pause an instance
    Suspend(ReasonArgs),
    /// Let a paused instance go on
    Resume(ReasonArgs),
    /// Let a failed instance go on from before its failure
    Rewind(RewindArgs),
    /// Start an instance again with the same input, under a new id or the same
    Restart(RestartArgs),
    /// Wait until an instance has finished, or has begun
    Wait(WaitArgs),
    /// Remove finished instances: one by id, or all of a time range
    PurgeHistory(PurgeHistoryArgs),
    /// Print the URLs with which an instance is managed through `serve`
    GetManagementUrls(ManagementUrlsArgs),
    /// Signal, show, list and clean entities
    #[command(subcommand)]
    Entity(EntityCommand),
    /// Make an application the one that processes the task hub
    MakePrimary(MakePrimaryArgs),
    /// Create what is missing of a task hub
    CreateTaskHub(CreateHubArgs),
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
    /// Show what the storage requests of a worker cost, by meter, operation and orchestration
    Cost(CostArgs),
    /// Show what a task hub does, on the embedded store or on a storage emulator
    Demo(DemoArgs),
    /// Measure replay, codec and orchestrations: speed, latency, requests, CPU time; nothing is left behind
    Bench(BenchArgs),
    /// Print the script that completes command lines of this program in a shell
    Completions(CompletionsArgs),
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

/// Options of `get-history`.
#[derive(Debug, Args)]
pub struct GetHistoryArgs {
    /// Instance id
    #[arg(long, value_name = "ID")]
    pub id: String,
    /// Which form events have
    #[arg(long, value_enum, value_name = "FORMAT", default_value_t = HistoryFormat::Raw)]
    pub format: HistoryFormat,
    /// Of this execution instead of the current one
    #[arg(long, value_name = "ID")]
    pub execution_id: Option<String>,
    /// With --format events: show inputs
    #[arg(long, value_name = "BOOL", num_args = 0..=1, default_value_t = true, default_missing_value = "true", action = ArgAction::Set)]
    pub show_input: bool,
    /// With --format events: show results
    #[arg(long, value_name = "BOOL", num_args = 0..=1, default_value_t = true, default_missing_value = "true", action = ArgAction::Set)]
    pub show_output: bool,
}

/// A form of histories.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum HistoryFormat {
    /// All events as they are stored.
    Raw,
    /// As the HTTP API shows them: results merged into their requests, payloads as JSON.
    Events,
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
    /// All of them, in no particular order, read in several places at once
    #[arg(long, conflicts_with_all = ["top", "continuation_token"])]
    pub all: bool,
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

/// Options of `terminate`.
#[derive(Debug, Args)]
pub struct TerminateArgs {
    #[command(flatten)]
    #[allow(missing_docs, reason = "the type says it")]
    pub target: ReasonArgs,
    /// Terminate its sub-orchestrations too, but none that was started without waiting for it
    #[arg(long)]
    pub recursive: bool,
}

/// Options of `rewind`.
#[derive(Debug, Args)]
pub struct RewindArgs {
    #[command(flatten)]
    #[allow(missing_docs, reason = "the type says it")]
    pub target: ReasonArgs,
    /// Rewind an instance with durable timers too; those that have not fired fire when they are due, or at once
    #[arg(long)]
    pub allow_timers: bool,
}

/// Options of `restart`.
#[derive(Debug, Args)]
pub struct RestartArgs {
    /// Instance id
    #[arg(long, value_name = "ID")]
    pub id: String,
    /// Under the same id, which replaces the instance; refused while it has not finished
    #[arg(long)]
    pub same_id: bool,
}

/// Options of `get-management-urls`.
#[derive(Debug, Args)]
pub struct ManagementUrlsArgs {
    /// Instance id
    #[arg(long, value_name = "ID")]
    pub id: String,
    /// Address of the API, path included [default: at the host in WEBSITE_HOSTNAME, else at localhost:7071]
    #[arg(long, value_name = "URL")]
    pub base_url: Option<String>,
    /// Setting that holds the key of the API, which the URLs then carry
    /// [default: TASKHUB_HTTP_KEY, if there is such a setting]
    #[arg(long, value_name = "NAME")]
    pub key_setting: Option<String>,
}

/// Options of `make-primary`.
#[derive(Debug, Args)]
pub struct MakePrimaryArgs {
    /// The application [default: WEBSITE_SITE_NAME, else DTFX_APP_NAME, else the empty name]
    #[arg(long, value_name = "NAME")]
    pub app_name: Option<String>,
}

/// Options of `completions`.
#[derive(Debug, Args)]
pub struct CompletionsArgs {
    /// The shell
    #[arg(value_enum)]
    pub shell: Shell,
}

/// What `wait` waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Awaited {
    /// The instance has finished.
    Completion,
    /// The instance has begun to run, or has finished.
    Start,
}

/// Options of `wait`.
#[derive(Debug, Args)]
pub struct WaitArgs {
    /// Instance id
    #[arg(long, value_name = "ID")]
    pub id: String,
    /// What to wait for
    #[arg(long = "for", value_enum, value_name = "WHAT", default_value_t = Awaited::Completion)]
    pub awaited: Awaited,
    /// Seconds to wait at most
    #[arg(long, value_name = "SECONDS", default_value = "10", value_parser = parse_seconds)]
    pub timeout: Duration,
    /// Seconds between two looks
    #[arg(long, value_name = "SECONDS", default_value = "1", value_parser = parse_seconds)]
    pub retry_interval: Duration,
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
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum PartitionManager {
    /// Rows of a table; what provider 2.x does by default.
    #[default]
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

/// Options of `create-task-hub` and `hub create`.
#[derive(Debug, Args)]
pub struct CreateHubArgs {
    #[command(flatten)]
    #[allow(missing_docs, reason = "the type says it")]
    pub create: CreateArgs,
    /// Only tell what is missing
    #[arg(long)]
    pub dry_run: bool,
}

/// Options of commands that delete a hub.
#[derive(Debug, Args)]
pub struct DeleteArgs {
    /// Do not ask (nothing is asked when standard input is not a terminal)
    #[arg(long, short)]
    pub yes: bool,
    /// Only list what would be deleted
    #[arg(long)]
    pub dry_run: bool,
}

/// What to do with a hub.
#[derive(Debug, Subcommand)]
pub enum HubCommand {
    /// Show partitions, their owners and queue lengths
    Show,
    /// Create what is missing
    Create(CreateHubArgs),
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
    /// Run activities inside the episodes that ask for them and store all at once, as far as it fits into one
    /// transaction; after a crash, all activities since the last checkpoint run again
    /// [default: fuseActivities of host.json, else off]
    #[arg(long, conflicts_with = "dtfx_cadence")]
    pub fuse_activities: bool,
    /// Send storage requests as the .NET worker does, more of them: every message is received, every history
    /// read, every episode written to the Instances row; partition rows are read each time and written one by
    /// one, lease blobs are listed and read each time
    /// [default: dtfxCadence of host.json, else off]
    #[arg(long)]
    pub dtfx_cadence: bool,
    /// Append a line of JSON to this file for every activity that has run
    #[arg(long, value_name = "FILE")]
    pub activity_log: Option<PathBuf>,
    /// Append a line of JSON to this file when the worker has ended: what its storage requests cost, as `cost`
    /// tells it
    #[arg(long, value_name = "FILE")]
    pub cost_log: Option<PathBuf>,
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

/// Options of `cost`.
#[derive(Debug, Args)]
pub struct CostArgs {
    /// Metrics of the worker, plain http
    #[arg(value_name = "URL", default_value = "http://127.0.0.1:8080/metrics")]
    pub url: String,
    /// Seconds to wait for the answer
    #[arg(long, value_name = "SECONDS", default_value = "10", value_parser = parse_seconds)]
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
    use super::*;

    fn parse(line: &[&str]) -> Cli {
        Cli::try_parse_from([&["taskhub"], line].concat()).unwrap()
    }

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    /// Splits a line as a shell does, as far as the examples need it.
    fn words(line: &str) -> Vec<String> {
        let mut words = Vec::new();
        for (number, part) in line.split('"').enumerate() {
            if number % 2 == 1 {
                words.push(part.to_owned());
            } else {
                words.extend(part.split_whitespace().map(str::to_owned));
            }
        }
        words
    }

    fn example(line: &str) -> Cli {
        Cli::of_process(words(line).into_iter().map(OsString::from)).unwrap_or_else(|e| panic!("{line}: {e}"))
    }

    /// The lines of Microsoft's page on managing instances, with the program's name changed; with `durable`
    /// left in place they work too.
    #[test]
    fn the_documented_example_lines_parse() {
        let id = "0ab8c55a66644d68a3a8b220b12d209c";
        let check = |line: &str, holds: &dyn Fn(&Cli) -> bool| {
            for program in ["taskhub", "taskhub durable"] {
                let cli = example(&format!("{program} {line}"));
                assert!(holds(&cli), "{line}: {cli:?}");
            }
        };
        check(
            "start-new --function-name HelloWorld --input @counter-data.json --task-hub-name TestTaskHub",
            &|cli| {
                cli.common.task_hub_name.as_deref() == Some("TestTaskHub")
                    && matches!(&cli.command, Command::StartNew(a) if a.input.as_deref() == Some("@counter-data.json"))
            },
        );
        check(
            &format!("get-runtime-status --id {id} --show-input true --show-output true"),
            &|cli| matches!(&cli.command, Command::GetRuntimeStatus(a) if a.show_input && a.show_output && a.id == id),
        );
        check(
            &format!("get-history --id {id}"),
            &|cli| matches!(&cli.command, Command::GetHistory(a) if a.id == id && a.format == HistoryFormat::Raw),
        );
        check(
            "get-instances",
            &|cli| matches!(&cli.command, Command::GetInstances(a) if a.top == 10 && a.continuation_token.is_empty() && !a.all),
        );
        let listed = |cli: &Cli, statuses: &[OrchestrationStatus]| {
            let Command::GetInstances(args) = &cli.command else { return false };
            let time = |t: Option<Time>| t.map(|t| t.0.to_iso());
            time(args.filter.created_after).as_deref() == Some("2018-03-10T13:57:31Z")
                && time(args.filter.created_before).as_deref() == Some("2018-03-10T23:59:00Z")
                && args.top == 15
                && args.filter.runtime_status == statuses
        };
        let dates = "--created-after 2018-03-10T13:57:31Z --created-before  2018-03-10T23:59Z --top 15";
        check(&format!("get-instances {dates}"), &|cli| listed(cli, &[]));
        let some = [OrchestrationStatus::Running, OrchestrationStatus::Completed];
        check(&format!("get-instances {dates} --runtime-status running COMPLETED"), &|cli| {
            listed(cli, &some)
        });
        check(&format!("get-instances {dates} --runtime-status \"running completed\""), &|cli| {
            listed(cli, &some)
        });
        check(
            &format!("terminate --id {id} --reason \"It was time to be done.\""),
            &|cli| matches!(&cli.command, Command::Terminate(a) if a.target.reason.as_deref() == Some("It was time to be done.")),
        );
        check(
            &format!("raise-event --id {id} --event-name MyEvent --event-data @eventdata.json"),
            &|cli| matches!(&cli.command, Command::RaiseEvent(a) if a.event_data.as_deref() == Some("@eventdata.json")),
        );
        check(
            "raise-event --id 1234567 --event-name MyOtherEvent --event-data 3",
            &|cli| matches!(&cli.command, Command::RaiseEvent(a) if a.id == "1234567" && a.event_data.as_deref() == Some("3")),
        );
        check(
            &format!("rewind --id {id} --reason \"Orchestrator failed and needs to be revived.\""),
            &|cli| matches!(&cli.command, Command::Rewind(a) if a.target.id == id && !a.allow_timers),
        );
        check(
            "purge-history --created-before 2018-11-14T19:35:00.0000000Z --runtime-status failed",
            &|cli| {
                matches!(&cli.command, Command::PurgeHistory(a)
                if a.filter.runtime_status == [OrchestrationStatus::Failed] && !a.force
                    && a.filter.created_before.unwrap().0.to_iso() == "2018-11-14T19:35:00Z")
            },
        );
        check("delete-task-hub --task-hub-name UserTest", &|cli| {
            matches!(&cli.command, Command::DeleteTaskHub(a) if !a.dry_run)
                && cli.common.task_hub_name.as_deref() == Some("UserTest")
        });
        check("get-history --id x --connection-string-setting MyStorageAppSetting", &|cli| {
            cli.common.connection_string_setting.as_deref() == Some("MyStorageAppSetting")
        });
    }

    /// Lines of Microsoft's pages, as they are: the one on managing instances, the reference of Core Tools (with
    /// its placeholders), and lines of users that name hub and account.
    #[test]
    fn lines_of_func_durable_work_with_the_programs_name_changed() {
        for line in [
            "func durable start-new --function-name HelloWorld --input @counter-data.json --task-hub-name TestTaskHub",
            "func durable get-runtime-status --id 0ab8c55a66644d68a3a8b220b12d209c --show-input true --show-output true",
            "func durable get-history --id 0ab8c55a66644d68a3a8b220b12d209c",
            "func durable get-instances",
            "func durable get-instances --created-after 2018-03-10T13:57:31Z --created-before  2018-03-10T23:59Z --top 15",
            "func durable terminate --id 0ab8c55a66644d68a3a8b220b12d209c --reason \"It was time to be done.\"",
            "func durable raise-event --id 0ab8c55a66644d68a3a8b220b12d209c --event-name MyEvent --event-data @eventdata.json",
            "func durable raise-event --id 1234567 --event-name MyOtherEvent --event-data 3",
            "func durable rewind --id 0ab8c55a66644d68a3a8b220b12d209c --reason \"Orchestrator failed and needs to be revived.\"",
            "func durable purge-history --created-before 2018-11-14T19:35:00.0000000Z --runtime-status failed",
            "func durable purge-history --created-before \"2025-01-01T00:00:00Z\"",
            "func durable delete-task-hub --task-hub-name UserTest",
            "func durable start-new --id <INSTANCE_ID> --function-name <FUNCTION_NAME> --input <INPUT>",
            "func durable get-history --id <INSTANCE_ID>",
            "func durable get-runtime-status --id <INSTANCE_ID>",
            "func durable rewind --id <INSTANCE_ID> --reason <REASON>",
            "func durable terminate --id <INSTANCE_ID> --reason <REASON>",
            "func durable purge-history",
            "func durable delete-task-hub --task-hub-name <TASK_HUB_NAME>",
            "func durable start-new --function-name SmsPhoneVerification --input \"+8109012345678\" --task-hub-name E4TaskHub",
            "func durable get-instances --connection-string-setting AzureWebJobsStorage --task-hub-name TASKHUB --runtime-status Running --top 10",
            "func durable get-runtime-status --connection-string-setting AzureWebJobsStorage --task-hub-name TASKHUB --id <instance-id> --show-output",
        ] {
            let rest = line.strip_prefix("func durable ").unwrap();
            let command = rest.split(' ').next().unwrap();
            for program in ["taskhub", "taskhub durable"] {
                let cli = format!("{:?}", example(&format!("{program} {rest}")).command);
                let name: String =
                    command.split('-').map(|word| word[..1].to_uppercase() + &word[1..]).collect();
                assert!(cli.starts_with(&name), "{line}: {cli}");
            }
        }
        // The reference leaves the id out of one line; `func` wants it, too.
        let line = words("taskhub raise-event --event-name <EVENT_NAME> --event-data <DATA>");
        let error = Cli::try_parse_from(line).unwrap_err().to_string();
        assert!(error.contains("--id"), "{error}");
    }

    #[test]
    fn flags_take_a_value_or_none() {
        let cli = parse(&["get-runtime-status", "--id", "x"]);
        assert!(matches!(cli.command, Command::GetRuntimeStatus(a) if !a.show_input && !a.show_output));
        let cli = parse(&["get-runtime-status", "--show-input", "--id", "x"]);
        assert!(matches!(cli.command, Command::GetRuntimeStatus(a) if a.show_input && a.id == "x"));
        let cli = parse(&["raise-event", "--id", "x", "--event-name", "E", "--event-data", "-3"]);
        assert!(matches!(cli.command, Command::RaiseEvent(a) if a.event_data.as_deref() == Some("-3")));
        let cli = parse(&["wait", "--id", "x", "--timeout", "2", "--retry-interval", "0.5"]);
        assert!(matches!(cli.command, Command::Wait(a) if a.retry_interval == Duration::from_millis(500)));
    }

    #[test]
    fn completions_know_the_commands_in_every_shell() {
        for shell in ["bash", "zsh", "fish", "powershell"] {
            let cli = parse(&["completions", shell]);
            let Command::Completions(args) = cli.command else { panic!("{cli:?}") };
            let script = String::from_utf8(Cli::completions(args.shell)).unwrap();
            for word in ["purge-history", "older-than", "get-management-urls", "taskhub"] {
                assert!(script.contains(word), "{shell} {word}");
            }
        }
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
            &["purge-history", "--older-than", "30"],
            &["purge-history", "--older-than", "30d", "--created-before", "2018-11-14"],
            &["purge-history", "--id", "a", "--older-than", "30d"],
            &["purge-history", "--per-second", "0"],
            &["get-instances", "--all", "--top", "5"],
            &["get-history", "--id", "a", "--format", "xml"],
            &["entity", "signal", "Counter", "a"],
            &["completions", "cmd"],
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
