//! One function per command. Texts are those of `func durable` where it has the command.

mod events;
mod hub;
mod instances;
mod purge;
mod start;
mod status;
mod wait;

pub(crate) use status::{history_table, instance_table};

use std::path::PathBuf;

use anyhow::Result;
use taskhub_client::TaskHubClient;
use taskhub_core::TaskHubName;

use crate::Exit;
use crate::args::{Command, HubCommand};
use crate::console::Console;

/// What a command works with.
#[derive(Debug)]
pub(crate) struct Session<'a> {
    pub(crate) client: TaskHubClient,
    pub(crate) hub: TaskHubName,
    /// Where `@FILE` arguments are looked for.
    pub(crate) directory: PathBuf,
    pub(crate) console: &'a mut Console,
}

impl Session<'_> {
    /// Runs a command that needs no more than a client.
    pub(crate) async fn run(&mut self, command: Command) -> Result<Exit> {
        match command {
            Command::StartNew(args) => self.start_new(args).await,
            Command::GetRuntimeStatus(args) => self.get_runtime_status(args).await,
            Command::GetHistory(args) => self.get_history(args).await,
            Command::GetInstances(args) => self.get_instances(args).await,
            Command::RaiseEvent(args) => self.raise_event(args).await,
            Command::Terminate(args) => self.terminate(args).await,
            Command::Suspend(args) => self.suspend(args).await,
            Command::Resume(args) => self.resume(args).await,
            Command::Wait(args) => self.wait(args).await,
            Command::PurgeHistory(args) => self.purge_history(args).await,
            Command::CreateTaskHub(_) | Command::Hub(HubCommand::Create(_)) => self.create_task_hub().await,
            Command::DeleteTaskHub(args) | Command::Hub(HubCommand::Delete(args)) => {
                self.delete_task_hub(args).await
            }
            Command::Hub(HubCommand::Show)
            | Command::DeadLetter(_)
            | Command::Worker(_)
            | Command::Serve(_)
            | Command::Healthcheck(_)
            | Command::Demo(_)
            | Command::Bench(_) => {
                unreachable!("needs more than a client; run by `wire`")
            }
        }
    }
}

#[cfg(test)]
pub(crate) mod testing {
    use clap::Parser;
    use taskhub_client::fake::{FakeService, client};

    use super::*;
    use crate::args::Cli;
    use crate::console::captured::console;

    /// What a command gave.
    #[derive(Debug)]
    pub(crate) struct Ran {
        pub(crate) exit: Result<Exit>,
        pub(crate) out: String,
        pub(crate) err: String,
        pub(crate) fake: std::sync::Arc<FakeService>,
    }

    /// Runs a command line against a fake backend.
    pub(crate) async fn run(fake: FakeService, line: &[&str]) -> Ran {
        let cli = Cli::try_parse_from([&["taskhub"], line].concat()).unwrap();
        let (mut console, out, err) = console(cli.common.output);
        let (client, fake) = client(fake);
        let mut session = Session {
            client,
            hub: TaskHubName::new("TestHub").unwrap(),
            directory: ".".into(),
            console: &mut console,
        };
        let exit = session.run(cli.command).await;
        Ran { exit, out: out.take(), err: err.take(), fake }
    }

    /// Runs a command line that has to succeed.
    #[track_caller]
    pub(crate) fn succeeded(ran: &Ran) {
        assert!(matches!(ran.exit, Ok(Exit::Done)), "{ran:?}");
    }
}
