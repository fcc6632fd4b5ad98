//! `serve`.

use std::sync::Arc;

use anyhow::{Context, Result, bail, ensure};
use serde_json::json;
use taskhub::Signals;
use taskhub_azure_storage::AzureStorageSettings;
use taskhub_client::{DEFAULT_CONNECTION_NAME, ManagementUrls, TaskHubClient};
use taskhub_core::{ServiceError, TaskHubName, WorkerId};
use taskhub_http::axum::Router;
use taskhub_http::management::{
    ApiKey, Conflicts, HubResolver, Hubs, Options, PUBLIC_BASE, RPC_BASE, UnknownHub, router,
};
use taskhub_http::{Health, ServeError, ServeSettings, listen, serve_with};
use taskhub_storage::StorageAccount;
use taskhub_worker::samples::{self, SampleOptions};
use taskhub_worker::{Worker, WorkerSettings};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::args::{CommonArgs, OutputForm, ServeArgs};
use crate::config::{self, Environment, HostJson, HubConfig};
use crate::console::Console;
use crate::{Exit, wire, worker};

/// Setting that holds the key unless another one is named.
pub(crate) const KEY_SETTING: &str = "TASKHUB_HTTP_KEY";

type Ended = Result<(), ServiceError>;

/// Serves the management API until it is told to stop.
pub(crate) async fn run(
    common: &CommonArgs,
    args: ServeArgs,
    environment: &Environment,
    console: &mut Console,
) -> Result<Exit> {
    let config = HubConfig::load(common, environment, console)?;
    let key = key(&args, environment)?;
    refuse_open_doors(&args, key.is_some())?;
    let worker_id = args.worker_id.clone().map_or_else(wire::worker_id, WorkerId::new);
    let hub = wire::hub(&config, &args.create, worker_id)?;
    let signals = taskhub::on_signals()?;
    let options = options(&args, &config.host, key, signals.first.clone())?;

    let mut hubs = Hubs::new(config.hub.as_str(), wire::client(&hub));
    if let Some(name) = &config.connection_name {
        hubs = hubs.connection_name(name.clone());
    }
    if !args.only_this_hub {
        hubs = hubs.resolver(Others::load(&args, &config, environment)?);
    }
    let mut health = Health::of_server();
    let mut samples = None;
    if args.samples {
        let builder = samples::register(Worker::builder(wire::service(&hub)), SampleOptions::default())
            .settings(WorkerSettings { drain_timeout: args.drain_timeout, ..worker::settings(&config.host) });
        hubs = hubs.orchestrators(builder.orchestration_names());
        let built = builder.build()?;
        health = Health::of(built.handle());
        samples = Some(built);
    }
    let hubs = Arc::new(hubs);

    // Both sockets are there before anything runs.
    let public = listen(args.listen).await?;
    let rpc = match args.rpc_listen {
        Some(address) => Some(listen(address).await?),
        None => None,
    };
    announce(&args, &config, &options, &public, rpc.as_ref(), console)?;
    let settings = ServeSettings { stop_grace: args.drain_timeout, ..ServeSettings::default() };
    let start = |listener: TcpListener, router: Router| {
        tokio::spawn(serve_with(listener, router, settings, signals.first.clone()))
    };
    let rpc_options = Options {
        base_path: RPC_BASE.to_owned(),
        key: None,
        local_only: true,
        public_url: None,
        use_forwarded_host: false,
        sample_functions: false,
        ..options.clone()
    };
    let mut servers = vec![start(public, taskhub_http::health(health).merge(router(hubs.clone(), options)))];
    servers.extend(rpc.map(|listener| start(listener, router(hubs.clone(), rpc_options))));
    let worker = samples.map(|worker| tokio::spawn(worker.run(signals.first.clone())));
    attend(servers, worker, signals, console).await
}

/// Waits for the stop, or for a part that ends without it.
async fn attend(
    servers: Vec<JoinHandle<Result<(), ServeError>>>,
    worker: Option<JoinHandle<Ended>>,
    signals: Signals,
    console: &mut Console,
) -> Result<Exit> {
    let parts = async {
        let serving = async {
            for server in servers {
                server.await.context("the server crashed")??;
            }
            Ok(())
        };
        let working = async {
            if let Some(worker) = worker {
                worker.await.context("the worker crashed")?.context("the worker failed")?;
                ensure!(signals.first.is_cancelled(), "the worker ended");
            }
            Ok(())
        };
        tokio::try_join!(serving, working).map(drop)
    };
    tokio::pin!(parts);
    tokio::select! {
        ended = &mut parts => return ended.map(|()| Exit::Done),
        () = signals.first.cancelled() => console.note("Stopping; waiting for running work.")?,
    }
    tokio::select! {
        ended = parts => ended.map(|()| Exit::Done),
        () = signals.second.cancelled() => bail!("stopped without waiting for running work"),
    }
}

fn key(args: &ServeArgs, environment: &Environment) -> Result<Option<ApiKey>> {
    let name = args.key_setting.as_deref().unwrap_or(KEY_SETTING);
    let Some(text) = config::setting(environment, name)? else {
        ensure!(args.key_setting.is_none(), "no such setting. setting=`{name}`");
        return Ok(None);
    };
    let key = ApiKey::new(text).with_context(|| format!("cannot be the key of the API. setting=`{name}`"))?;
    Ok(Some(key))
}

/// Without a key the API is for this machine only.
fn refuse_open_doors(args: &ServeArgs, has_key: bool) -> Result<()> {
    if !has_key && !args.allow_anonymous && !args.listen.ip().is_loopback() {
        bail!(
            "without a key this listens at addresses of this machine only: put a key into the setting \
             {KEY_SETTING}, or use --allow-anonymous. address=`{}`",
            args.listen
        );
    }
    match args.rpc_listen {
        Some(address) if !address.ip().is_loopback() => {
            bail!("--rpc-listen needs no key, and takes loopback addresses only. address=`{address}`")
        }
        _ => Ok(()),
    }
}

fn options(
    args: &ServeArgs,
    host: &HostJson,
    key: Option<ApiKey>,
    shutdown: CancellationToken,
) -> Result<Options> {
    let public_url = match &args.public_url {
        Some(text) => Some(text.parse().with_context(|| format!("not a URL. url=`{text}`"))?),
        None => None,
    };
    Ok(Options {
        local_only: key.is_none() && !args.allow_anonymous,
        key,
        public_url,
        use_forwarded_host: args.use_forwarded_host || host.use_forwarded_host == Some(true),
        max_body_bytes: args.max_body_bytes,
        conflicts: if args.conflict_409 { Conflicts::Conflict } else { Conflicts::ServerError },
        overrides_any_state: host.overrides_any_state == Some(true),
        purges_any_status: args.purge_any_status,
        lenient_statuses: args.lenient_runtime_status,
        default_version: host.default_version.clone(),
        shutdown,
        ..Options::default()
    })
}

/// Where it listens: for a person on standard error, for a program as JSON on standard output.
fn announce(
    args: &ServeArgs,
    config: &HubConfig,
    options: &Options,
    public: &TcpListener,
    rpc: Option<&TcpListener>,
    console: &mut Console,
) -> Result<()> {
    let listening = format!("http://{}{PUBLIC_BASE}", public.local_addr()?);
    let base = options.public_url.as_ref().map_or(listening, ToString::to_string);
    let rpc_base = match rpc {
        Some(listener) => Some(format!("http://{}{RPC_BASE}/", listener.local_addr()?)),
        None => None,
    };
    if console.form == Some(OutputForm::Json) {
        let connection = config.connection_name.as_deref();
        let urls =
            ManagementUrls::new(&base, config.hub.as_str(), connection.unwrap_or(DEFAULT_CONNECTION_NAME));
        let urls = urls.with_code(options.key.as_ref().map(ApiKey::expose));
        let binding = urls.client_binding(config.hub.as_str(), connection, rpc_base.as_deref());
        console.json(&json!({ "url": base, "rpcUrl": rpc_base, "clientBinding": binding }))?;
    }
    console.note(&format!("Management API of task hub '{}' at {base}", config.hub))?;
    if let Some(rpc_base) = rpc_base {
        console.note(&format!("For SDKs on this machine at {rpc_base}"))?;
    }
    if options.key.is_none() && !args.listen.ip().is_loopback() {
        console.warn("Everybody who reaches this address may start, read and purge: there is no key.")?;
    }
    console.note("Ctrl-C stops it.")?;
    Ok(())
}

/// Other hubs: of the same account, and of the accounts that were allowed.
struct Others {
    own: StorageAccount,
    named: Vec<(String, StorageAccount)>,
    settings: AzureStorageSettings,
}

impl Others {
    fn load(args: &ServeArgs, config: &HubConfig, environment: &Environment) -> Result<Self> {
        let account_of = |name: &String| {
            let found = wire::account(&config::connection(environment, name)?)?;
            Ok((name.clone(), found))
        };
        Ok(Self {
            own: wire::account(&config.connection)?,
            named: args.allow_connection.iter().map(account_of).collect::<Result<_>>()?,
            settings: wire::settings(&config.host, config.hub.clone(), wire::worker_id()),
        })
    }
}

impl HubResolver for Others {
    /// A hub that does not exist is created by the first message sent to it, as clients of the Durable Task
    /// Framework do; its other operations find nothing.
    fn client(&self, task_hub: &str, connection: Option<&str>) -> Result<TaskHubClient, UnknownHub> {
        let account = match connection {
            None => &self.own,
            Some(name) => match self.named.iter().find(|(known, _)| known.eq_ignore_ascii_case(name)) {
                Some((_, account)) => account,
                None => return Err(UnknownHub(format!("The connection '{name}' is not served here."))),
            },
        };
        let task_hub = TaskHubName::existing(task_hub).map_err(|error| UnknownHub(error.to_string()))?;
        let settings = AzureStorageSettings {
            task_hub_name: task_hub,
            partition_count: None,
            partition_manager: None,
            ..self.settings.clone()
        };
        let hub = wire::hub_in(account.clone(), settings).map_err(|error| UnknownHub(error.to_string()))?;
        Ok(wire::client(&hub))
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::args::{Cli, Command};

    fn args(line: &str) -> ServeArgs {
        match Cli::try_parse_from(["taskhub", "serve"].into_iter().chain(line.split_whitespace())) {
            Ok(Cli { command: Command::Serve(args), .. }) => args,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn without_a_key_only_this_machine_is_served_unless_asked_for() {
        for (line, has_key, allowed) in [
            ("", false, true),
            ("--listen [::1]:80", false, true),
            ("--listen 0.0.0.0:7071", false, false),
            ("--listen 0.0.0.0:7071", true, true),
            ("--listen 10.0.0.1:80 --allow-anonymous", false, true),
            ("--rpc-listen", false, true),
            ("--rpc-listen 0.0.0.0:17071", true, false),
            ("--rpc-listen 0.0.0.0:17071 --allow-anonymous", false, false),
        ] {
            assert_eq!(refuse_open_doors(&args(line), has_key).is_ok(), allowed, "{line}");
        }
        assert_eq!(args("--rpc-listen").rpc_listen, Some("127.0.0.1:17071".parse().unwrap()));
    }

    #[test]
    fn the_key_comes_from_a_setting_and_stays_out_of_errors() {
        let environment = |value: Option<&'static str>| Environment {
            variable: Box::new(move |name| value.filter(|_| name == KEY_SETTING).map(str::to_owned)),
            directory: std::env::temp_dir().join("no such directory"),
        };
        assert!(key(&args(""), &environment(None)).unwrap().is_none());
        assert!(key(&args(""), &environment(Some("0123456789abcdef"))).unwrap().is_some());
        let error = format!("{:#}", key(&args(""), &environment(Some("too-short"))).unwrap_err());
        assert!(error.contains(KEY_SETTING) && !error.contains("too-short"), "{error}");
        assert!(key(&args("--key-setting Other"), &environment(None)).is_err());
    }

    #[test]
    fn the_api_is_for_this_machine_alone_exactly_when_nothing_else_is_said() {
        let local = |line: &str, key: Option<&str>| {
            let key = key.map(|key| ApiKey::new(key).unwrap());
            options(&args(line), &HostJson::default(), key, CancellationToken::new()).unwrap().local_only
        };
        assert!(local("", None));
        assert!(!local("", Some("0123456789abcdef")));
        assert!(!local("--allow-anonymous", None));
        let bad = options(&args("--public-url x"), &HostJson::default(), None, CancellationToken::new());
        assert!(bad.is_err());
    }
}
