//! `get-management-urls`.

use anyhow::{Result, ensure};
use taskhub_client::{DEFAULT_CONNECTION_NAME, ManagementUrls};
use taskhub_core::InstanceId;
use taskhub_http::management::PUBLIC_BASE;

use crate::Exit;
use crate::args::{CommonArgs, ManagementUrlsArgs, OutputForm};
use crate::config::{self, Environment, HubConfig};
use crate::console::Console;
use crate::serve::KEY_SETTING;
use crate::table::Table;

/// Where the API is unless something else is configured: where `serve` listens, and the Functions host.
const DEFAULT_HOST: &str = "localhost:7071";
/// Setting with the public host of the API. Source: Azure/azure-functions-durable-extension, `HttpApiHandler`.
const HOST_SETTING: &str = "WEBSITE_HOSTNAME";

/// Prints the management URLs of an instance. Nothing is asked of storage: they are the same whether it exists.
pub(crate) fn run(
    common: &CommonArgs,
    args: ManagementUrlsArgs,
    environment: &Environment,
    console: &mut Console,
) -> Result<Exit> {
    let config = HubConfig::load(common, environment, console)?;
    let base = match args.base_url {
        Some(url) => url,
        None => base_url(config::setting(environment, HOST_SETTING)?.as_deref(), console)?,
    };
    let name = args.key_setting.as_deref().unwrap_or(KEY_SETTING);
    let key = config::setting(environment, name)?;
    ensure!(key.is_some() || args.key_setting.is_none(), "no such setting. setting=`{name}`");
    let connection = config.connection_name.as_deref().unwrap_or(DEFAULT_CONNECTION_NAME);
    let urls = ManagementUrls::new(&base, config.hub.as_str(), connection).with_code(key.as_deref());
    let payload = urls.instance(&InstanceId::new(args.id), false).to_json();
    if console.form == Some(OutputForm::Table) {
        let mut table = Table::new(["NAME", "VALUE"]);
        for (name, value) in payload.as_object().into_iter().flatten() {
            table.whole_row([name.clone(), value.as_str().unwrap_or_default().to_owned()]);
        }
        console.data(&table.render())?;
    } else {
        console.json(&payload)?;
    }
    Ok(Exit::Done)
}

/// A host name on this machine is spoken to in the clear, any other one is not.
fn base_url(host: Option<&str>, console: &mut Console) -> Result<String> {
    let host = match host {
        Some(host) => host,
        None => {
            console
                .note(&format!("Neither --base-url nor {HOST_SETTING} is given; using {DEFAULT_HOST}."))?;
            DEFAULT_HOST
        }
    };
    let name = host.rsplit_once(':').map_or(host, |(name, _)| name);
    let scheme = if matches!(name, "localhost" | "127.0.0.1" | "[::1]") { "http" } else { "https" };
    Ok(format!("{scheme}://{host}{PUBLIC_BASE}"))
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use serde_json::Value;

    use super::*;
    use crate::args::{Cli, Command};
    use crate::console::captured::console;

    fn urls(
        variables: &'static [(&'static str, &'static str)],
        more: &[&str],
    ) -> (Result<Exit>, String, String) {
        let own = ["taskhub", "get-management-urls", "--id", "a b", "--task-hub-name", "Hub"];
        let cli = Cli::try_parse_from([&own, more].concat()).unwrap();
        let directory = tempfile::tempdir().unwrap();
        let environment = Environment {
            variable: Box::new(|name| {
                let known = variables.iter().find(|(k, _)| *k == name).map(|(_, v)| (*v).to_owned());
                known.or_else(|| (name == "AzureWebJobsStorage").then(|| "UseDevelopmentStorage=true".into()))
            }),
            directory: directory.path().to_owned(),
        };
        let (mut console, out, err) = console(cli.common.output);
        let Command::GetManagementUrls(args) = cli.command else { panic!("{:?}", cli.command) };
        (run(&cli.common, args, &environment, &mut console), out.take(), err.take())
    }

    #[test]
    fn urls_are_where_serve_listens_or_where_the_settings_say() {
        let (done, out, err) = urls(&[], &[]);
        assert_eq!(done.unwrap(), Exit::Done);
        let document: Value = serde_json::from_str(&out).unwrap();
        assert_eq!(document["id"], "a b");
        assert_eq!(
            document["statusQueryGetUri"],
            "http://localhost:7071/runtime/webhooks/durabletask/instances/a%20b?taskHub=Hub&connection=Storage"
        );
        assert!(document["rewindPostUri"].is_string());
        assert!(err.contains("WEBSITE_HOSTNAME"), "{err}");

        let site = &[("WEBSITE_HOSTNAME", "my.example"), ("TASKHUB_HTTP_KEY", "k=")];
        let (_, out, err) = urls(site, &["--connection-string-setting", "AzureWebJobsStorage"]);
        assert!(
            out.contains("https://my.example/runtime/webhooks/durabletask/instances/a%20b/restart?taskHub=Hub&connection=AzureWebJobsStorage&code=k%3D"),
            "{out}"
        );
        assert!(!err.contains("WEBSITE_HOSTNAME"), "{err}");
        let (_, out, _) = urls(site, &["--base-url", "http://10.0.0.1/api/", "--output", "table"]);
        assert!(out.contains("\nterminatePostUri"), "{out}");
        assert!(out.contains("http://10.0.0.1/api/instances/a%20b/terminate?reason={text}&"), "{out}");
        assert!(urls(&[], &["--key-setting", "NOTHING"]).0.is_err());
    }
}
