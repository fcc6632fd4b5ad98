//! The command line of a Durable Task hub: `func durable` and more, a worker, a demonstration, measurements.
//!
//! [`run`] is the whole program but for the process: it takes parsed arguments ([`args::Cli`]), what the
//! commands see of the process ([`Environment`]) and where they write ([`Console`]), and returns the
//! [`Exit`]. `wire` is the only place that puts a backend, a client and a worker together.

mod activity_log;
pub mod args;
mod bench;
mod commands;
mod config;
mod console;
mod cost;
mod dead_letters;
mod demo;
mod healthcheck;
mod hub_view;
mod hubs;
mod logging;
mod management_urls;
mod payload;
mod serve;
mod table;
mod wire;
mod worker;

pub use config::{Environment, Lookup};
pub use console::Console;

use anyhow::Result;
use args::{Cli, Command, HubCommand};

/// How a command ended, if it did not fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// It did what it was asked to.
    Done,
    /// `wait`: the instance finished, but did not complete.
    NotCompleted,
    /// `wait`, `purge-history`: not finished in time.
    TimedOut,
}

impl Exit {
    /// The exit code of the process. 1 is a failed command, 2 are wrong arguments.
    pub fn code(self) -> u8 {
        match self {
            Self::Done => 0,
            Self::NotCompleted => 3,
            Self::TimedOut => 4,
        }
    }
}

/// Starts logging to standard error: warnings, more with `verbose`, or what `RUST_LOG` says.
pub fn start_logging(verbose: u8) {
    logging::start(verbose);
}

/// Runs one command.
///
/// # Errors
/// The command failed; the chain of causes is for the user.
pub async fn run(cli: Cli, environment: &Environment, console: &mut Console) -> Result<Exit> {
    match cli.command {
        Command::Demo(args) => demo::run(&cli.common, args, environment, console).await,
        Command::Bench(args) => bench::run(&cli.common, args, environment, console).await,
        Command::Worker(args) => worker::run(&cli.common, args, environment, console).await,
        Command::Serve(args) => serve::run(&cli.common, args, environment, console).await,
        Command::Healthcheck(args) => healthcheck::run(args, environment).await,
        Command::Cost(args) => cost::run(args, console).await,
        Command::DeadLetter(command) => dead_letters::run(&cli.common, command, environment, console).await,
        Command::CreateTaskHub(args) | Command::Hub(HubCommand::Create(args)) => {
            hubs::create(&cli.common, args, environment, console).await
        }
        Command::DeleteTaskHub(args) | Command::Hub(HubCommand::Delete(args)) => {
            hubs::delete(&cli.common, args, environment, console).await
        }
        Command::GetManagementUrls(args) => management_urls::run(&cli.common, args, environment, console),
        Command::Completions(args) => {
            console.data(&String::from_utf8(Cli::completions(args.shell))?)?;
            Ok(Exit::Done)
        }
        Command::Hub(HubCommand::Show) => hub_view::run(&cli.common, environment, console).await,
        command => wire::session(&cli.common, &command, environment, console).await?.run(command).await,
    }
}

#[cfg(test)]
mod tests {
    use super::Exit;

    #[test]
    fn exit_codes_are_those_of_the_page() {
        let page = include_str!("../../../docs/cli.md");
        for (exit, meaning) in [
            (Exit::Done, "done;"),
            (Exit::NotCompleted, "`wait`: the instance finished, but did not complete"),
            (Exit::TimedOut, "`wait`, `purge-history --timeout`: not finished in time"),
        ] {
            let line = format!("| {} | {meaning}", exit.code());
            assert!(page.contains(&line), "{line}");
        }
    }
}
