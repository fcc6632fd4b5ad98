//! Options of `serve`.

use std::net::SocketAddr;
use std::time::Duration;

use clap::Args;

use super::{CreateArgs, parse_seconds};

/// Options of `serve`.
#[derive(Debug, Args)]
pub struct ServeArgs {
    /// Where to listen; without a key only addresses of this machine itself are taken
    #[arg(long, value_name = "ADDRESS:PORT", default_value = "127.0.0.1:7071")]
    pub listen: SocketAddr,
    /// Listen here too, without a key, for SDKs on this machine that call /durabletask/ (Node, Python,
    /// PowerShell) [default when given without a value: 127.0.0.1:17071]
    #[arg(long, value_name = "ADDRESS:PORT", num_args = 0..=1, default_missing_value = "127.0.0.1:17071")]
    pub rpc_listen: Option<SocketAddr>,
    /// Setting that holds the key requests must carry, as `code=` or `x-functions-key`
    /// [default: TASKHUB_HTTP_KEY, if there is such a setting]
    #[arg(long, value_name = "NAME")]
    pub key_setting: Option<String>,
    /// Listen at any address without a key: everybody who reaches it may start, read and purge
    #[arg(long)]
    pub allow_anonymous: bool,
    /// Run a worker with the sample functions in this process too
    #[arg(long)]
    pub samples: bool,
    /// With --samples: identity in the lease records [default: made from host name, process and chance]
    #[arg(long, value_name = "ID", requires = "samples")]
    pub worker_id: Option<String>,
    /// Seconds that requests and running work get to finish when the program is told to stop
    #[arg(long, value_name = "SECONDS", default_value = "10", value_parser = parse_seconds)]
    pub drain_timeout: Duration,
    /// Connection that requests may name besides the own one; may be repeated
    #[arg(long, value_name = "NAME")]
    pub allow_connection: Vec<String>,
    /// Do not let requests name another task hub
    #[arg(long, conflicts_with = "allow_connection")]
    pub only_this_hub: bool,
    /// Address of the API in generated URLs, path included [default: the host that the request names]
    #[arg(long, value_name = "URL")]
    pub public_url: Option<String>,
    /// Take the host of generated URLs from X-Forwarded-Host and -Proto; only behind a proxy that sets them
    /// [default: httpSettings.useForwardedHost of host.json]
    #[arg(long)]
    pub use_forwarded_host: bool,
    /// Largest body of a request, in bytes
    #[arg(long, value_name = "BYTES", default_value_t = 16 * 1024 * 1024)]
    pub max_body_bytes: usize,
    /// Let purges remove instances that have not finished, as Durable Functions 2.x does
    #[arg(long)]
    pub purge_any_status: bool,
    /// Ignore values of runtimeStatus that name no status, and mind their letter case, as Durable Functions does
    #[arg(long)]
    pub lenient_runtime_status: bool,
    /// Answer 409 instead of 500 when the status of an instance does not allow the operation
    #[arg(long)]
    pub conflict_409: bool,
    #[command(flatten)]
    #[allow(missing_docs, reason = "the type says it")]
    pub create: CreateArgs,
}
