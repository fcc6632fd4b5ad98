use std::sync::Arc;

use taskhub_azure_storage::{AzureStorageClient, AzureStorageService, AzureStorageSettings, Hub};
use taskhub_client::TaskHubClient;
use taskhub_core::{
    Clock, IdSource, InvalidTaskHubName, RandomIds, ServiceError, SystemClock, TaskHubName, WorkerId,
};
use taskhub_storage::StorageAccount;
use taskhub_storage::azure::{AzureOptions, AzureStore};
use taskhub_storage::connection::{ConnectionSettings, ConnectionStringError};
use taskhub_storage::memory::MemoryStore;
use taskhub_storage::request::{OperationCounts, RequestSettings};
use taskhub_worker::{Worker, WorkerBuilder};

/// Environment variable with the connection string; with the feature `entra`, `…__accountName` beside it
/// names an account that is used with the identity of the environment.
pub const CONNECTION_VARIABLE: &str = "AzureWebJobsStorage";
/// Environment variable with the name of the hub.
pub const HUB_VARIABLE: &str = "TASKHUB_NAME";
/// The hub without that variable. Source: Durable Functions' default.
pub const DEFAULT_HUB: &str = "DurableFunctionsHub";
#[cfg(feature = "entra")]
const ACCOUNT_VARIABLE: &str = "AzureWebJobsStorage__accountName";

/// Why a hub cannot be opened. Holds no secret.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// The environment says no account.
    #[error("no storage account. variable=`{CONNECTION_VARIABLE}`")]
    NoConnection,
    /// The connection string is wrong.
    #[error(transparent)]
    Connection(#[from] ConnectionStringError),
    /// No hub can have this name.
    #[error(transparent)]
    Name(#[from] InvalidTaskHubName),
    /// The connection cannot be set up, for instance for want of TLS roots.
    #[error("cannot set up the storage client")]
    Storage(#[from] taskhub_storage::Error),
    /// The environment offers no identity.
    #[cfg(feature = "entra")]
    #[error("no identity for Entra ID")]
    Identity(#[from] taskhub_storage::azure::entra::CredentialError),
    /// A setting is out of its range.
    #[error(transparent)]
    Settings(#[from] ServiceError),
}

/// A task hub in a storage account, or in memory. Opening it reads and writes nothing; clones share the
/// connection.
#[derive(Debug, Clone)]
pub struct TaskHub {
    hub: Hub,
    requests: OperationCounts,
}

impl TaskHub {
    /// The hub that the environment names: the account by [`CONNECTION_VARIABLE`], the hub by
    /// [`HUB_VARIABLE`] or else [`DEFAULT_HUB`].
    ///
    /// # Errors
    /// No account, or one of those values is wrong.
    pub fn from_env() -> Result<Self, OpenError> {
        Self::from_variables(|name| std::env::var(name).ok())
    }

    fn from_variables(variable: impl Fn(&str) -> Option<String>) -> Result<Self, OpenError> {
        let variable = |name: &str| variable(name).filter(|value| !value.trim().is_empty());
        let name = variable(HUB_VARIABLE).unwrap_or_else(|| DEFAULT_HUB.to_owned());
        let connection = match variable(CONNECTION_VARIABLE) {
            Some(text) => ConnectionSettings::parse(&text)?,
            #[cfg(feature = "entra")]
            None => {
                let account = variable(ACCOUNT_VARIABLE).ok_or(OpenError::NoConnection)?;
                let identity = taskhub_storage::azure::entra::default_credential()?;
                ConnectionSettings::with_token(&account, None, identity)?
            }
            #[cfg(not(feature = "entra"))]
            None => return Err(OpenError::NoConnection),
        };
        let mut settings = settings(&name)?;
        settings.app_name = app_name(variable);
        Self::connected(&connection, settings)
    }

    /// A hub in the account of a connection string, with default settings.
    ///
    /// # Errors
    /// The connection string or the name is wrong.
    pub fn connect(connection_string: &str, name: &str) -> Result<Self, OpenError> {
        Self::connected(&ConnectionSettings::parse(connection_string)?, settings(name)?)
    }

    fn connected(connection: &ConnectionSettings, settings: AzureStorageSettings) -> Result<Self, OpenError> {
        let options = AzureOptions::default();
        let account = AzureStore::connect(connection, &options)?;
        Ok(Self { requests: options.counts, ..Self::open(account, settings)? })
    }

    /// A hub in an account, with settings of your own. The account counts its requests itself, or not.
    ///
    /// # Errors
    /// A setting is out of its range.
    pub fn open(account: StorageAccount, settings: AzureStorageSettings) -> Result<Self, OpenError> {
        Self::open_with(account, settings, Arc::new(SystemClock), Arc::new(RandomIds))
    }

    /// A hub in an account, with a clock and ids of your own.
    ///
    /// # Errors
    /// A setting is out of its range.
    pub fn open_with(
        account: StorageAccount,
        settings: AzureStorageSettings,
        clock: Arc<dyn Clock>,
        ids: Arc<dyn IdSource>,
    ) -> Result<Self, OpenError> {
        Ok(Self { hub: Hub::new(settings, account, clock, ids)?, requests: OperationCounts::default() })
    }

    /// An empty hub in memory, gone with the last of its workers and clients: for tests. With a clock that
    /// follows the paused timer of a test's runtime, hours pass in no time.
    ///
    /// # Errors
    /// The name is wrong.
    pub fn in_memory(name: &str, clock: Arc<dyn Clock>) -> Result<Self, OpenError> {
        let requests = OperationCounts::default();
        let account =
            MemoryStore::new(clock.clone()).account().layered(RequestSettings::default(), &requests);
        Ok(Self { requests, ..Self::open_with(account, settings(name)?, clock, Arc::new(RandomIds))? })
    }

    /// Begins a worker of this hub, with a worker id that no other has.
    pub fn worker(&self) -> WorkerBuilder {
        let mut hub = self.hub.clone();
        Arc::make_mut(&mut hub.settings).worker_id = unique_worker_id();
        let (clock, ids) = (hub.clock.clone(), hub.ids.clone());
        Worker::builder(Arc::new(AzureStorageService::new(hub))).clock(clock).ids(ids)
    }

    /// A client of this hub.
    pub fn client(&self) -> TaskHubClient {
        let client = TaskHubClient::new(Arc::new(AzureStorageClient::new(self.hub.clone())));
        client.with_environment(self.hub.clock.clone(), self.hub.ids.clone())
    }

    /// What the requests to the account cost, unless it came from outside ([`TaskHub::open`]).
    pub fn requests(&self) -> &OperationCounts {
        &self.requests
    }

    /// The hub itself: settings, resource names, services.
    pub fn hub(&self) -> &Hub {
        &self.hub
    }
}

/// Existing hubs of Durable Functions may have names that a new one should not have.
fn settings(name: &str) -> Result<AzureStorageSettings, OpenError> {
    Ok(AzureStorageSettings::new(TaskHubName::existing(name)?, unique_worker_id()))
}

/// Name of the application as the environment gives it, for the app lease: `WEBSITE_SITE_NAME`, else
/// `DTFX_APP_NAME`, else empty. Source: Azure/durabletask, `AzureStorageOrchestrationServiceSettings.AppName`.
pub fn app_name(variable: impl Fn(&str) -> Option<String>) -> String {
    ["WEBSITE_SITE_NAME", "DTFX_APP_NAME"]
        .iter()
        .find_map(|name| variable(name).filter(|value| !value.is_empty()))
        .unwrap_or_default()
}

/// `{host}-{process}-{8 hex digits}`.
///
/// Differs: DTFx takes the machine name alone, so that two workers of one machine believe to own the same
/// partitions.
pub fn unique_worker_id() -> WorkerId {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname")
        .ok()
        .or_else(|| std::env::var("COMPUTERNAME").ok())
        .or_else(|| std::env::var("HOSTNAME").ok())
        .unwrap_or_default();
    let host: String = host.trim().chars().filter(|c| !c.is_control()).take(60).collect();
    let host = if host.is_empty() { "worker" } else { &host };
    let chance = &RandomIds.guid().simple().to_string()[..8];
    WorkerId::new(format!("{host}-{}-{chance}", std::process::id()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn from(variables: &[(&str, &str)]) -> Result<TaskHub, OpenError> {
        TaskHub::from_variables(|name| {
            variables.iter().find(|(k, _)| *k == name).map(|(_, value)| (*value).to_owned())
        })
    }

    const EMULATOR: (&str, &str) = (CONNECTION_VARIABLE, "UseDevelopmentStorage=true");

    #[test]
    fn worker_ids_differ_within_one_process() {
        let (a, b) = (unique_worker_id(), unique_worker_id());
        assert_ne!(a, b);
        assert!(a.as_str().contains(&format!("-{}-", std::process::id())), "{a}");
    }

    #[test]
    fn the_environment_names_account_hub_and_application() {
        let hub = from(&[EMULATOR]).unwrap();
        assert_eq!((hub.hub().name().as_str(), hub.hub().settings.app_name.as_str()), (DEFAULT_HUB, ""));
        let hub = from(&[EMULATOR, (HUB_VARIABLE, "Orders"), ("DTFX_APP_NAME", "b")]).unwrap();
        assert_eq!((hub.hub().name().as_str(), hub.hub().settings.app_name.as_str()), ("Orders", "b"));
        let hub = from(&[EMULATOR, ("WEBSITE_SITE_NAME", "a"), ("DTFX_APP_NAME", "b")]).unwrap();
        assert_eq!(hub.hub().settings.app_name, "a");
    }

    #[test]
    fn what_the_environment_lacks_or_has_wrong_is_an_error_without_secrets() {
        assert!(matches!(from(&[]), Err(OpenError::NoConnection)));
        assert!(matches!(from(&[(CONNECTION_VARIABLE, " ")]), Err(OpenError::NoConnection)));
        assert!(matches!(from(&[EMULATOR, (HUB_VARIABLE, "my-hub")]), Err(OpenError::Name(_))));
        let error = from(&[(CONNECTION_VARIABLE, "AccountName=a;AccountKey=!c2VjcmV0!")]).unwrap_err();
        assert!(matches!(error, OpenError::Connection(_)) && !format!("{error:?}").contains("c2VjcmV0"));
    }
}
