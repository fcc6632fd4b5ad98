//! `healthcheck`.

use std::net::SocketAddr;

use anyhow::{Context, Result};
use taskhub::HEALTH_LISTEN_VARIABLE;
use taskhub_http::{livez_at, probe};

use crate::Exit;
use crate::args::HealthcheckArgs;
use crate::config::Environment;

/// Asks a health endpoint once. An image needs no other program for its `HEALTHCHECK`.
pub(crate) async fn run(args: HealthcheckArgs, environment: &Environment) -> Result<Exit> {
    let url = match args.url {
        Some(url) => url,
        None => {
            let listen = (environment.variable)(HEALTH_LISTEN_VARIABLE).with_context(|| {
                format!("name a URL, or say where the worker listens. variable=`{HEALTH_LISTEN_VARIABLE}`")
            })?;
            let address: SocketAddr = listen.trim().parse().with_context(|| {
                format!("not an address and a port. variable=`{HEALTH_LISTEN_VARIABLE}` value=`{listen}`")
            })?;
            livez_at(address)
        }
    };
    probe(&url, args.timeout).await?;
    Ok(Exit::Done)
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use taskhub_core::{SystemClock, TaskHubName};
    use taskhub_http::{Health, Server, health};
    use taskhub_worker::{WorkerHandle, WorkerState};
    use tokio_util::sync::CancellationToken;

    use super::*;
    use crate::args::Cli;
    use crate::console::captured::console;

    /// Runs the command line with this variable set.
    async fn healthcheck(arguments: &[&str], variable: Option<String>) -> Result<Exit> {
        let cli = Cli::try_parse_from([&["taskhub", "healthcheck"], arguments].concat())?;
        let environment = Environment {
            variable: Box::new(move |name| variable.clone().filter(|_| name == HEALTH_LISTEN_VARIABLE)),
            directory: std::env::temp_dir(),
        };
        crate::run(cli, &environment, &mut console(None).0).await
    }

    /// A worker on a hub in memory, with its endpoints.
    async fn started() -> (Server, WorkerHandle, CancellationToken) {
        let name = TaskHubName::new("Test").unwrap();
        let hub = taskhub::TaskHub::in_memory(name.as_str(), std::sync::Arc::new(SystemClock)).unwrap();
        let worker = hub.worker().build().unwrap();
        let (handle, shutdown) = (worker.handle(), CancellationToken::new());
        let any = "127.0.0.1:0".parse().unwrap();
        let server = Server::start(any, health(Health::of(handle.clone()))).await.unwrap();
        tokio::spawn(worker.run(shutdown.clone()));
        handle.reached(WorkerState::Running).await;
        (server, handle, shutdown)
    }

    #[tokio::test]
    async fn the_exit_code_is_that_of_the_endpoint() {
        let (server, handle, shutdown) = started().await;
        let (url, listen) = (livez_at(server.address()), server.address().to_string());
        assert_eq!(healthcheck(&[&url], None).await.unwrap(), Exit::Done);
        assert_eq!(healthcheck(&[], Some(listen)).await.unwrap(), Exit::Done);
        shutdown.cancel();
        handle.reached(WorkerState::Stopped).await;
        let error = healthcheck(&[&url], None).await.unwrap_err().to_string();
        assert!(error.contains("status=`503`"), "{error}");
        server.stop().await.unwrap();
        assert!(healthcheck(&[&url, "--timeout", "1"], None).await.is_err());
    }

    #[tokio::test]
    async fn without_knowing_whom_to_ask_it_fails() {
        for variable in [None, Some("8080".to_owned())] {
            let error = healthcheck(&[], variable).await.unwrap_err().to_string();
            assert!(error.contains(HEALTH_LISTEN_VARIABLE), "{error}");
        }
    }
}
