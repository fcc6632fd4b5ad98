//! Which hub, which account: flags, host.json, local.settings.json, environment.

mod host_json;
mod identity;
mod settings;

use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use taskhub_core::TaskHubName;

pub(crate) use host_json::HostJson;
pub(crate) use identity::{Connection, Identity, IdentityConnection};
use settings::AppSettings;

use crate::args::CommonArgs;
use crate::console::Console;

/// Hub of `func durable` without configuration. The runtime's default is another one.
const DEFAULT_HUB: &str = "DurableFunctionsHub";
const DEFAULT_CONNECTION_SETTING: &str = "AzureWebJobsStorage";

/// The value of a name, if it has one.
pub type Lookup = dyn Fn(&str) -> Option<String> + Send + Sync;

/// What a command sees of the process it runs in.
pub struct Environment {
    /// Looks up an environment variable.
    pub variable: Box<Lookup>,
    /// Where host.json, local.settings.json and `@FILE` arguments are looked for.
    pub directory: PathBuf,
}

impl std::fmt::Debug for Environment {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Environment").field("directory", &self.directory).finish_non_exhaustive()
    }
}

impl Environment {
    /// The environment of this process.
    ///
    /// # Errors
    /// There is no current directory.
    pub fn process() -> std::io::Result<Self> {
        Ok(Self { variable: Box::new(|name| std::env::var(name).ok()), directory: std::env::current_dir()? })
    }
}

/// The hub a command works on.
#[derive(Debug)]
pub(crate) struct HubConfig {
    pub(crate) hub: TaskHubName,
    pub(crate) connection: Connection,
    /// Name of the setting the connection comes from, where one was named.
    pub(crate) connection_name: Option<String>,
    /// Settings of host.json; defaults when there is none.
    pub(crate) host: HostJson,
    /// Name of the application, for the app lease.
    pub(crate) app_name: String,
}

impl HubConfig {
    /// Puts flags, host.json and settings together.
    ///
    /// # Errors
    /// A file that cannot be read, a hub name that cannot be, another backend, no account.
    pub(crate) fn load(args: &CommonArgs, environment: &Environment, console: &mut Console) -> Result<Self> {
        let explicit = args.task_hub_name.is_some() && args.names_account();
        let host = match HostJson::load(&environment.directory)? {
            Some(host) => host,
            None => {
                if !explicit {
                    console.warn(&format!(
                        "No host.json in '{}'; using defaults.",
                        environment.directory.display()
                    ))?;
                }
                HostJson::default()
            }
        };
        if let Some(backend) =
            host.storage_type.as_deref().filter(|t| !t.eq_ignore_ascii_case("AzureStorage"))
        {
            bail!(
                "this task hub is not in Azure Storage, and other backends are not supported. type=`{backend}`"
            );
        }
        let settings = AppSettings::load(environment)?;
        let hub = match (&args.task_hub_name, &host.hub_name) {
            (Some(name), _) => name.clone(),
            (None, Some(name)) => settings.expand(name)?,
            (None, None) => DEFAULT_HUB.to_owned(),
        };
        // Existing hubs of Durable Functions may be longer than what a new one should be.
        let hub = TaskHubName::existing(hub)?;
        if args.task_hub_name.is_none() {
            console.note(&format!("Using task hub '{hub}'."))?;
        }
        let connection = match (&args.connection_string, &args.account_name) {
            (Some(text), _) => text.clone().into(),
            (None, Some(account)) => Connection::Identity(IdentityConnection::of_flag(account)),
            (None, None) => {
                let setting = args
                    .connection_string_setting
                    .as_deref()
                    .or(host.connection_name.as_deref())
                    .unwrap_or(DEFAULT_CONNECTION_SETTING);
                // The text of a connection string must not appear in an error.
                anyhow::ensure!(
                    !setting.contains(['=', ';']),
                    "the name of a setting is expected, and this looks like a connection string: use --connection-string"
                );
                settings.connection(setting)?.with_context(|| {
                    format!(
                        "No storage connection string found. setting=`{setting}` (or `{setting}__accountName`)"
                    )
                })?
            }
        };
        let connection_name = if args.connection_string.is_some() || args.account_name.is_some() {
            None
        } else {
            args.connection_string_setting.clone().or_else(|| host.connection_name.clone())
        };
        let app_name = taskhub::app_name(|name| settings.get(name));
        Ok(Self { hub, connection, connection_name, host, app_name })
    }
}

/// A setting that is not empty, from the environment or local.settings.json.
///
/// # Errors
/// The file cannot be read.
pub(crate) fn setting(environment: &Environment, name: &str) -> Result<Option<String>> {
    Ok(AppSettings::load(environment)?.get(name))
}

/// What is configured under a connection name.
///
/// # Errors
/// The settings cannot be read, or there is nothing under this name.
pub(crate) fn connection(environment: &Environment, name: &str) -> Result<Connection> {
    AppSettings::load(environment)?
        .connection(name)?
        .with_context(|| format!("no such connection is configured. setting=`{name}`"))
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::args::Cli;
    use crate::console::captured::console;

    struct Case {
        dir: tempfile::TempDir,
        variables: Vec<(&'static str, &'static str)>,
    }

    impl Case {
        fn new(host_json: Option<&str>, local_settings: Option<&str>) -> Self {
            let dir = tempfile::tempdir().unwrap();
            for (name, text) in [("host.json", host_json), ("local.settings.json", local_settings)] {
                if let Some(text) = text {
                    std::fs::write(dir.path().join(name), text).unwrap();
                }
            }
            Self { dir, variables: Vec::new() }
        }

        fn variable(mut self, name: &'static str, value: &'static str) -> Self {
            self.variables.push((name, value));
            self
        }

        fn load(&self, flags: &[&str]) -> (Result<HubConfig>, String) {
            let cli = Cli::try_parse_from([&["taskhub", "hub", "show"], flags].concat()).unwrap();
            let variables = self.variables.clone();
            let environment = Environment {
                variable: Box::new(move |name| {
                    variables.iter().find(|(k, _)| *k == name).map(|(_, v)| (*v).to_owned())
                }),
                directory: self.dir.path().to_owned(),
            };
            let (mut console, _, err) = console(None);
            (HubConfig::load(&cli.common, &environment, &mut console), err.take())
        }

        #[track_caller]
        fn check(&self, flags: &[&str], hub: &str, connection: &str) {
            let (config, _) = self.load(flags);
            let config = config.unwrap();
            let Connection::Text(text) = config.connection else { panic!("{:?}", config.connection) };
            assert_eq!((config.hub.as_str(), text.0.as_str()), (hub, connection));
        }

        fn identity(&self, flags: &[&str]) -> IdentityConnection {
            match self.load(flags).0.unwrap().connection {
                Connection::Identity(found) => found,
                Connection::Text(_) => panic!("a connection string"),
            }
        }

        #[track_caller]
        fn check_error(&self, flags: &[&str], part: &str) {
            let error = format!("{:#}", self.load(flags).0.unwrap_err());
            assert!(error.contains(part), "{error}");
        }
    }

    const HOST: &str = r#"{
        // comments are allowed
        "version": "2.0",
        "extensions": {"durableTask": {"HubName": "FromHost", "storageProvider": {"partitionCount": 7}}}
    }"#;
    const LOCAL: &str = r#"{"IsEncrypted": false, "Values": {"AzureWebJobsStorage": "local", "Other": "other", "HUB": "FromSetting"}}"#;

    #[test]
    fn a_flag_beats_host_json_and_that_the_default() {
        let case = Case::new(Some(HOST), Some(LOCAL));
        case.check(&["--task-hub-name", "FromFlag"], "FromFlag", "local");
        case.check(&[], "FromHost", "local");
        Case::new(Some("{}"), Some(LOCAL)).check(&[], "DurableFunctionsHub", "local");
        assert_eq!(case.load(&[]).0.unwrap().host.partition_count, Some(7));
    }

    #[test]
    fn the_environment_beats_local_settings() {
        let case = Case::new(Some(HOST), Some(LOCAL)).variable("AzureWebJobsStorage", "env");
        case.check(&[], "FromHost", "env");
        case.check(&["--connection-string-setting", "Other"], "FromHost", "other");
        case.check(&["--connection-string", "flag"], "FromHost", "flag");
    }

    #[test]
    fn the_connection_name_of_host_json_is_followed() {
        for host in [
            r#"{"durableTask": {"azureStorageConnectionStringName": "Other"}}"#,
            r#"{"version": "2.0", "extensions": {"durableTask": {"storageProvider": {"connectionName": "Other"}}}}"#,
            r#"{"version": "2.0", "extensions": {"durableTask": {"storageProvider": {"connectionStringName": "Other"}}}}"#,
        ] {
            Case::new(Some(host), Some(LOCAL)).check(&[], "DurableFunctionsHub", "other");
        }
    }

    #[test]
    fn connection_names_are_found_under_their_prefixes() {
        let case = Case::new(Some("{}"), None)
            .variable("AzureWebJobsMain", "prefixed")
            .variable("ConnectionStrings__Second", "section");
        case.check(&["--connection-string-setting", "Main"], "DurableFunctionsHub", "prefixed");
        case.check(&["--connection-string-setting", "Second"], "DurableFunctionsHub", "section");
    }

    #[test]
    fn an_account_name_stands_in_for_a_connection_string() {
        let case = Case::new(Some("{}"), None).variable("AzureWebJobsStorage__accountName", "acct");
        let found = case.identity(&[]);
        assert_eq!((found.account.as_deref(), found.identity), (Some("acct"), Identity::Default));
        assert_eq!(found.origin, "AzureWebJobsStorage");
        assert_eq!(case.identity(&["--connection-string-setting", "Storage"]).account, found.account);
        assert_eq!(case.identity(&["--account-name", "other"]).account.as_deref(), Some("other"));
        case.variable("AzureWebJobsStorage", "text").check(&[], "DurableFunctionsHub", "text");

        let local = r#"{"Values": {"Main:accountName": "acct", "Main:credential": "ManagedIdentity"}}"#;
        let host = r#"{"durableTask": {"azureStorageConnectionStringName": "Main"}}"#;
        assert_eq!(Case::new(Some(host), Some(local)).identity(&[]).identity, Identity::Managed);
    }

    #[test]
    fn service_addresses_stand_in_for_an_account_name() {
        let some = Case::new(Some("{}"), None)
            .variable("AzureWebJobsStorage__blobServiceUri", "https://b")
            .variable("AzureWebJobsStorage__queueServiceUri", "https://q");
        some.check_error(&[], "AzureWebJobsStorage__tableServiceUri");
        let found = some.variable("AzureWebJobsStorage__tableServiceUri", "https://t").identity(&[]);
        let addresses = [&found.addresses.blob, &found.addresses.queue, &found.addresses.table];
        assert_eq!(addresses.map(|a| a.as_deref().unwrap()), ["https://b", "https://q", "https://t"]);
        assert_eq!(found.account, None);
    }

    #[test]
    fn another_identity_than_the_configured_one_is_never_used() {
        let case = || Case::new(Some("{}"), None).variable("AzureWebJobsStorage__accountName", "acct");
        let client = || case().variable("AzureWebJobsStorage__clientId", "client");
        client().check_error(&[], "AzureWebJobsStorage__clientSecret");
        client()
            .variable("AzureWebJobsStorage__credential", "managedidentity")
            .check_error(&[], "system-assigned");
        case().variable("AzureWebJobsStorage__credential", "magic").check_error(&[], "__credential");
        let found = client()
            .variable("AzureWebJobsStorage__tenantId", "tenant")
            .variable("AzureWebJobsStorage__clientSecret", "hush")
            .identity(&[]);
        assert!(matches!(&found.identity, Identity::Application { tenant_id, .. } if tenant_id == "tenant"));
        assert!(!format!("{found:?}").contains("hush"));
    }

    #[test]
    fn the_application_is_called_as_dtfx_calls_it() {
        let case = Case::new(Some("{}"), Some(LOCAL));
        assert_eq!(case.load(&[]).0.unwrap().app_name, "");
        let case = case.variable("DTFX_APP_NAME", "mine");
        assert_eq!(case.load(&[]).0.unwrap().app_name, "mine");
        let case = case.variable("WEBSITE_SITE_NAME", "site");
        assert_eq!(case.load(&[]).0.unwrap().app_name, "site");
    }

    #[test]
    fn hub_names_may_name_a_setting() {
        let host = r#"{"durableTask": {"hubName": "%HUB%"}}"#;
        Case::new(Some(host), Some(LOCAL)).check(&[], "FromSetting", "local");
        Case::new(Some(host), None).variable("AzureWebJobsStorage", "env").check_error(&[], "setting=`HUB`");
    }

    #[test]
    fn both_explicit_flags_work_in_any_directory_without_a_warning() {
        let case = Case::new(None, None);
        let (config, err) = case.load(&["--task-hub-name", "Hub", "--connection-string", "x"]);
        assert!(config.is_ok());
        assert_eq!(err, "");
        let named = Case::new(None, None).variable("Emulator", "x");
        let (config, err) =
            named.load(&["--task-hub-name", "Hub", "--connection-string-setting", "Emulator"]);
        assert_eq!((config.is_ok(), err.as_str()), (true, ""));
        let (_, err) = case.load(&["--connection-string", "x"]);
        assert!(
            err.contains("No host.json in") && err.contains("Using task hub 'DurableFunctionsHub'."),
            "{err}"
        );
    }

    #[test]
    fn what_cannot_work_is_an_error() {
        let slip = ["--connection-string-setting", "AccountName=a;AccountKey=U0VDUkVU"];
        let (config, err) = Case::new(Some("{}"), None).load(&slip);
        let text = format!("{:#} {err}", config.expect_err("it names no setting"));
        assert!(text.contains("--connection-string") && !text.contains("U0VDUkVU"), "{text}");
        Case::new(Some("{}"), None).check_error(&[], "No storage connection string found.");
        Case::new(Some("{"), Some(LOCAL)).check_error(&[], "host.json");
        Case::new(Some("[]"), Some(LOCAL)).check_error(&[], "host.json");
        Case::new(Some("{}"), Some("{")).check_error(&[], "local.settings.json");
        Case::new(Some("{}"), Some(LOCAL)).check_error(&["--task-hub-name", "my-hub"], "my-hub");
        for backend in ["Netherite", "mssql"] {
            let host = format!(r#"{{"durableTask": {{"storageProvider": {{"type": "{backend}"}}}}}}"#);
            Case::new(Some(&host), Some(LOCAL)).check_error(&[], backend);
        }
    }
}
