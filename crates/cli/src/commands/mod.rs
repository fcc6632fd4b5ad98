//! One function per command. Texts are those of `func durable` where it has the command.

mod entity;
mod events;
mod instances;
mod purge;
mod rewind;
mod start;
mod status;
mod wait;

pub(crate) use status::{history_table, instance_table};

use std::path::PathBuf;

use anyhow::Result;
use taskhub_client::TaskHubClient;
use taskhub_core::TaskHubName;

use crate::Exit;
use crate::args::Command;
use crate::console::Console;

/// What a command works with.
#[derive(Debug)]
pub(crate) struct Session<'a> {
    pub(crate) client: TaskHubClient,
    pub(crate) hub: TaskHubName,
    /// Name of the application, for the app lease.
    pub(crate) app_name: String,
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
            Command::Rewind(args) => self.rewind(args).await,
            Command::Restart(args) => self.restart(args).await,
            Command::Wait(args) => self.wait(args).await,
            Command::PurgeHistory(args) => self.purge_history(args).await,
            Command::Entity(command) => self.entity(command).await,
            Command::MakePrimary(_) => self.make_primary().await,
            Command::CreateTaskHub(_)
            | Command::DeleteTaskHub(_)
            | Command::DeadLetter(_)
            | Command::Hub(_)
            | Command::GetManagementUrls(_)
            | Command::Completions(_)
            | Command::Worker(_)
            | Command::Serve(_)
            | Command::Healthcheck(_)
            | Command::Cost(_)
            | Command::Demo(_)
            | Command::Bench(_) => {
                unreachable!("needs more than a client, or none; `run` of the program has it")
            }
        }
    }
}

#[cfg(test)]
pub(crate) mod testing {
    use std::path::Path;

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
        run_in(fake, Path::new("."), line).await
    }

    /// The same with files in a directory.
    pub(crate) async fn run_in(fake: FakeService, directory: &Path, line: &[&str]) -> Ran {
        let cli = Cli::try_parse_from([&["taskhub"], line].concat()).unwrap();
        let (mut console, out, err) = console(cli.common.output);
        let (client, fake) = client(fake);
        let mut session = Session {
            client,
            hub: TaskHubName::new("TestHub").unwrap(),
            app_name: "my-app".to_owned(),
            directory: directory.to_owned(),
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

#[cfg(test)]
mod tests {
    use taskhub_client::fake::FakeService;
    use taskhub_core::EventKind;
    use taskhub_core::OrchestrationStatus::{Failed, Running};

    use super::testing::{run_in, succeeded};

    /// The lines of Microsoft's page on managing instances, as a user types them.
    #[tokio::test(start_paused = true)]
    async fn the_documented_example_lines_do_what_the_page_says() {
        const ID: &str = "0ab8c55a66644d68a3a8b220b12d209c";
        let directory = tempfile::tempdir().unwrap();
        for (file, text) in [("counter-data.json", "{\n  \"count\": 3\n}\n"), ("eventdata.json", "[1, 2, 3]")]
        {
            std::fs::write(directory.path().join(file), text).unwrap();
        }
        for (line, status, said) in [
            (
                &[
                    "start-new",
                    "--function-name",
                    "HelloWorld",
                    "--input",
                    "@counter-data.json",
                    "--task-hub-name",
                    "TestTaskHub",
                ][..],
                Running,
                "Started 'HelloWorld' at ",
            ),
            (
                &["get-runtime-status", "--id", ID, "--show-input", "true", "--show-output", "true"],
                Running,
                "{\n",
            ),
            (&["get-history", "--id", ID], Running, "[]"),
            (&["get-instances"], Running, "[\n"),
            (
                &[
                    "get-instances",
                    "--created-after",
                    "2018-03-10T13:57:31Z",
                    "--created-before",
                    "2018-03-10T23:59Z",
                    "--top",
                    "15",
                ],
                Running,
                "[",
            ),
            (
                &["terminate", "--id", ID, "--reason", "It was time to be done."],
                Running,
                "Sent a termination message",
            ),
            (
                &["raise-event", "--id", ID, "--event-name", "MyEvent", "--event-data", "@eventdata.json"],
                Running,
                "Raised event 'MyEvent'",
            ),
            (
                &["raise-event", "--id", "1234567", "--event-name", "MyOtherEvent", "--event-data", "3"],
                Running,
                "Raised event 'MyOtherEvent'",
            ),
            (
                &["rewind", "--id", ID, "--reason", "Orchestrator failed and needs to be revived."],
                Failed,
                "Rewind message sent",
            ),
            (
                &[
                    "purge-history",
                    "--created-before",
                    "2018-11-14T19:35:00.0000000Z",
                    "--runtime-status",
                    "failed",
                ],
                Failed,
                "Purged orchestration history for all instances created between '0001-01-01T00:00:00' and '2018-11-14T19:35:00Z'",
            ),
        ] {
            let fake = FakeService::default().with_state(ID, status).obeying();
            let ran = run_in(fake, directory.path(), line).await;
            succeeded(&ran);
            assert!(ran.out.starts_with(said), "{line:?}: {}", ran.out);
            if line[0] == "start-new" {
                assert_eq!(ran.fake.started()[0].input.as_deref(), Some(r#"{"count":3}"#));
            }
            if line[0] == "raise-event" {
                let EventKind::EventRaised { input, .. } = &ran.fake.sent()[0].1.kind else {
                    panic!("{ran:?}")
                };
                assert!(matches!(input.as_deref(), Some("[1,2,3]" | "3")), "{input:?}");
            }
        }
    }
}
