//! Puts account, hub, client and worker together: the only place that knows all of them.

use std::sync::Arc;

use anyhow::{Context, Result};
use taskhub_azure_storage::message::MessageEncoding;
use taskhub_azure_storage::{AzureStorageClient, AzureStorageService, AzureStorageSettings, Hub, HubMissing};
use taskhub_client::TaskHubClient;
use taskhub_core::{
    Clock, IdSource, OrchestrationService, OrchestrationServiceClient, RandomIds, SystemClock, TaskHubName,
    WorkerId,
};
use taskhub_storage::StorageAccount;
#[cfg(feature = "entra")]
use taskhub_storage::azure::entra;
use taskhub_storage::azure::{AzureOptions, AzureStore};
use taskhub_storage::connection::{ConnectionSettings, TokenProvider};
use taskhub_storage::request::OperationCounts;

use crate::args::{Command, CommonArgs, CreateArgs};
use crate::commands::Session;
use crate::config::{Connection, Environment, HostJson, HubConfig, Identity};
use crate::console::Console;

/// What a command line that needs only a client works with.
///
/// Differs: in `func durable` every command creates the hub, so that a mistyped name leaves one behind. Here
/// only a start does; what concerns instances that are there fails.
pub(crate) async fn session<'a>(
    common: &CommonArgs,
    command: &Command,
    environment: &Environment,
    console: &'a mut Console,
) -> Result<Session<'a>> {
    let mut config = HubConfig::load(common, environment, console)?;
    if let Command::MakePrimary(args) = command
        && let Some(name) = &args.app_name
    {
        config.app_name.clone_from(name);
    }
    let hub = hub(&config, &CreateArgs::default(), worker_id())?;
    let backend = AzureStorageClient::new(hub);
    let backend = match command {
        Command::StartNew(_) => backend,
        // Nothing is found in a hub that does not exist.
        Command::GetRuntimeStatus(_) | Command::GetHistory(_) | Command::GetInstances(_) => backend,
        _ => existing(backend).await?,
    };
    Ok(Session {
        client: TaskHubClient::new(Arc::new(backend)),
        hub: config.hub,
        app_name: config.app_name,
        directory: environment.directory.clone(),
        console,
    })
}

/// The client of a hub that has to be there.
async fn existing(backend: AzureStorageClient) -> Result<AzureStorageClient> {
    let backend = backend.of_existing_hub();
    backend.connect().await.map_err(|error| {
        let error = anyhow::Error::from(error);
        if error.chain().any(|cause| cause.is::<HubMissing>()) {
            let hub = backend.hub().name();
            let text = format!(
                "task hub '{hub}' does not exist. Check its name, or create it with `taskhub create-task-hub \
                 --task-hub-name {hub}`"
            );
            error.context(text)
        } else {
            error
        }
    })?;
    Ok(backend)
}

/// The services of an account.
pub(crate) fn account(connection: &Connection) -> Result<StorageAccount> {
    counted_account(connection, &OperationCounts::default())
}

/// The services of an account, whose requests are counted.
pub(crate) fn counted_account(connection: &Connection, counts: &OperationCounts) -> Result<StorageAccount> {
    let settings = match connection {
        Connection::Text(text) => ConnectionSettings::parse(&text.0)?,
        Connection::Identity(found) => {
            let (account, addresses) = (found.account.as_deref(), found.addresses.clone());
            token_provider(&found.identity)
                .and_then(|tokens| Ok(ConnectionSettings::with_token_at(account, addresses, tokens)?))
                .with_context(|| {
                    format!("could not connect with Entra ID. configured_by=`{}`", found.origin)
                })?
        }
    };
    let options = AzureOptions { counts: counts.clone(), ..AzureOptions::default() };
    AzureStore::connect(&settings, &options).context("could not set up the storage client")
}

#[cfg(feature = "entra")]
fn token_provider(identity: &Identity) -> Result<Arc<dyn TokenProvider>> {
    Ok(match identity {
        Identity::Default => entra::default_credential()?,
        Identity::Managed => entra::managed_identity(),
        Identity::Application { tenant_id, client_id, secret } => {
            entra::client_secret(tenant_id, client_id, secret)?
        }
    })
}

#[cfg(not(feature = "entra"))]
fn token_provider(_: &Identity) -> Result<Arc<dyn TokenProvider>> {
    anyhow::bail!(
        "this program is built without Entra ID: use a connection string, or build it with `cargo install \
         --path crates/cli --features entra`"
    )
}

/// A hub as configured. What the command line says beats host.json.
pub(crate) fn hub(config: &HubConfig, create: &CreateArgs, worker_id: WorkerId) -> Result<Hub> {
    hub_in(account(&config.connection)?, hub_settings(config, create, worker_id))
}

/// Settings of a hub as configured.
pub(crate) fn hub_settings(
    config: &HubConfig,
    create: &CreateArgs,
    worker_id: WorkerId,
) -> AzureStorageSettings {
    let mut settings = settings(&config.host, config.hub.clone(), worker_id);
    settings.app_name.clone_from(&config.app_name);
    settings.partition_count = create.partition_count.or(config.host.partition_count);
    settings.partition_manager = create.partition_manager.map(Into::into).or(config.host.partition_manager);
    settings
}

/// A hub in an account, with this machine's clock and random ids.
pub(crate) fn hub_in(account: StorageAccount, settings: AzureStorageSettings) -> Result<Hub> {
    let (clock, ids): (Arc<dyn Clock>, Arc<dyn IdSource>) = (Arc::new(SystemClock), Arc::new(RandomIds));
    Ok(Hub::new(settings, account, clock, ids)?)
}

/// A client of a hub.
pub(crate) fn client(hub: &Hub) -> TaskHubClient {
    let backend: Arc<dyn OrchestrationServiceClient> = Arc::new(AzureStorageClient::new(hub.clone()));
    TaskHubClient::new(backend)
}

/// The backend of a worker of a hub.
pub(crate) fn service(hub: &Hub) -> Arc<dyn OrchestrationService> {
    Arc::new(AzureStorageService::new(hub.clone()))
}

pub(crate) fn settings(host: &HostJson, hub: TaskHubName, worker_id: WorkerId) -> AzureStorageSettings {
    let mut settings = AzureStorageSettings::new(hub, worker_id);
    if let Some(size) = host.control_queue_batch_size {
        settings.control_queue_batch_size = size;
    }
    if let Some(threshold) = host.control_queue_buffer_threshold {
        settings.control_queue_buffer_threshold = threshold as usize;
    }
    if let Some(timeout) = host.control_queue_visibility_timeout {
        settings.control_queue_visibility_timeout = timeout;
    }
    if let Some(timeout) = host.work_item_queue_visibility_timeout {
        settings.work_item_queue_visibility_timeout = timeout;
    }
    if let Some(interval) = host.max_queue_polling_interval {
        settings.max_queue_polling_interval = interval;
    }
    settings.max_control_queue_polling_interval = host.max_control_queue_polling_interval;
    if host.base64_messages == Some(true) {
        settings.queue_client_message_encoding = MessageEncoding::Base64;
    }
    if let Some(on) = host.extended_sessions_enabled {
        settings.extended_sessions_enabled = on;
    }
    if let Some(timeout) = host.extended_session_idle_timeout {
        settings.extended_session_idle_timeout = timeout;
    }
    settings.quarantine_poison_messages = host.quarantine_after;
    if let Some(on) = host.dtfx_cadence {
        settings.dtfx_cadence = on;
    }
    if let Some(on) = host.use_app_lease {
        settings.use_app_lease = on;
    }
    settings
}

pub(crate) use taskhub::unique_worker_id as worker_id;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::ConnectionString;

    #[test]
    fn bad_connection_strings_are_errors_without_their_text() {
        for text in ["nonsense-c2VjcmV0", "AccountName=a;AccountKey=!c2VjcmV0!", ""] {
            let error = format!("{:#}", account(&ConnectionString(text.into()).into()).unwrap_err());
            assert!(!error.contains("c2VjcmV0"), "{error}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_mistyped_hub_is_an_error_that_names_it_and_creates_nothing() {
        use taskhub_core::Timestamp;
        use taskhub_testkit::TestHub;

        let test = TestHub::in_memory(&TaskHubName::new("TestHob").unwrap(), 1, Timestamp::MIN);
        let client = || AzureStorageClient::new(test.open("client").unwrap());
        let error = format!("{:#}", existing(client()).await.unwrap_err());
        assert!(error.starts_with("task hub 'TestHob' does not exist."), "{error}");
        assert!(error.contains("`taskhub create-task-hub --task-hub-name TestHob`"), "{error}");
        assert!(test.memory().unwrap().queues().is_empty());
        client().hub().create().await.unwrap();
        existing(client()).await.unwrap();
    }

    #[cfg(not(feature = "entra"))]
    #[test]
    fn without_the_feature_entra_id_is_an_error_that_tells_how_to_build_it() {
        use taskhub_storage::connection::ServiceAddresses;

        let found = crate::config::IdentityConnection {
            origin: "AzureWebJobsStorage".to_owned(),
            account: Some("acct".to_owned()),
            addresses: ServiceAddresses::default(),
            identity: Identity::Default,
        };
        let error = format!("{:#}", account(&Connection::Identity(found)).unwrap_err());
        assert!(error.contains("configured_by=`AzureWebJobsStorage`"), "{error}");
        assert!(error.contains("cargo install --path crates/cli --features entra"), "{error}");
    }
}
