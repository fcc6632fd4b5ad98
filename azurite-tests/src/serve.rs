//! `taskhub serve`, driven by programs in other languages.

use std::io::{self, Write};
use std::process::Stdio;
use std::sync::{Arc, Mutex};

use anyhow::{Context, Result, bail, ensure};
use clap::Parser;
use serde_json::Value;
use taskhub_cli::args::Cli;
use taskhub_cli::{Console, Environment};
use taskhub_testkit::eventually;
use tokio::io::AsyncWriteExt;
use tokio::process::Command;

use crate::{connection, unique_hub_name};

/// The key of the served API.
const KEY: &str = "a key that is long enough=&%";

/// What a command has written to standard output.
#[derive(Clone, Default)]
struct Output(Arc<Mutex<Vec<u8>>>);

impl Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().expect("nobody panics while writing").extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Serves a hub of its own with the sample functions, behind a key and at a local address without one, and
/// gives what `serve` announces to the standard input of the programs, one after the other.
///
/// # Errors
/// A program cannot be run or ends with another code than 0; the error holds what it wrote.
pub async fn drive(programs: Vec<Command>) -> Result<()> {
    let hub = unique_hub_name().to_string();
    let line = "taskhub serve --samples --listen 127.0.0.1:0 --rpc-listen 127.0.0.1:0 --output json \
                --connection-string-setting Emulator --task-hub-name";
    let cli = Cli::try_parse_from(line.split_whitespace().chain([hub.as_str()]))?;
    // Idle queues are looked at often, so that nothing waits for a worker that has nothing to do.
    let directory = std::env::temp_dir().join(&hub);
    std::fs::create_dir_all(&directory)?;
    let often = r#"{"durableTask": {"storageProvider": {"maxQueuePollingInterval": "00:00:00.5"}}}"#;
    std::fs::write(directory.join("host.json"), often)?;
    let environment = Environment {
        variable: Box::new(|name| match name {
            "Emulator" => Some(connection()),
            "TASKHUB_HTTP_KEY" => Some(KEY.replace(' ', "-")),
            _ => None,
        }),
        directory: directory.clone(),
    };
    let out = Output::default();
    let mut console = Console::to_writers(cli.common.output, out.clone(), io::sink());
    let serving = taskhub_cli::run(cli, &environment, &mut console);
    let driving = async {
        let announced: Value = eventually("it is served", || async {
            serde_json::from_slice(&out.0.lock().expect("nobody panics while writing")).ok()
        })
        .await;
        for program in programs {
            run(program, &announced.to_string()).await?;
        }
        anyhow::Ok(())
    };
    tokio::select! {
        ended = serving => { ended?; bail!("serving ended") }
        done = driving => done?,
    }
    let delete = ["taskhub", "delete-task-hub", "--yes", "--connection-string-setting", "Emulator"];
    let cli = Cli::try_parse_from(delete.into_iter().chain(["--task-hub-name", &hub]))?;
    taskhub_cli::run(cli, &environment, &mut Console::to_writers(None, io::sink(), io::sink())).await?;
    Ok(std::fs::remove_dir_all(directory)?)
}

async fn run(mut program: Command, input: &str) -> Result<()> {
    program.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    let mut child = program.spawn().with_context(|| format!("cannot run {program:?}"))?;
    let mut stdin = child.stdin.take().context("a pipe")?;
    stdin.write_all(input.as_bytes()).await?;
    drop(stdin);
    let ended = child.wait_with_output().await?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    ensure!(
        ended.status.success(),
        "{program:?}: {}\n{}{}",
        ended.status,
        text(&ended.stdout),
        text(&ended.stderr)
    );
    Ok(())
}
