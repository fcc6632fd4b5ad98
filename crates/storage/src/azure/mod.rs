//! Azure Storage and its emulator, over the `azure_*` 0.21 packages.
//!
//! The packages send single requests; repetition, deadlines and counts are the request layer's. What they
//! get wrong or leave out is put right by two policies (`policy`): error codes in bodies, failures inside
//! group transactions, messages without expiry, table rows with types.

mod batch;
mod blob;
mod entity;
#[cfg(feature = "entra")]
pub mod entra;
mod failure;
mod policy;
mod queue;
mod table;

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use azure_core::{ClientOptions, Policy, RetryOptions, TransportOptions};
use azure_storage::{CloudLocation, StorageCredentials};
use taskhub_core::{IdSource, RandomIds};

use crate::connection::{ConnectionSettings, Credential, TokenProvider};
use crate::request::{OperationCounts, RequestSettings};
use crate::{Error, ErrorKind, Result, StorageAccount};

/// How an account is reached.
#[derive(Debug, Clone)]
pub struct AzureOptions {
    /// How requests are bounded and repeated.
    pub requests: RequestSettings,
    /// Where requests are counted.
    pub counts: OperationCounts,
    /// Where the ids of requests come from (`x-ms-client-request-id`).
    pub ids: Arc<dyn IdSource>,
    /// Idle connections kept per host.
    pub max_idle_connections: usize,
    /// How long an idle connection is kept. The emulator closes them after 5 s.
    pub idle_timeout: Duration,
    /// Longest time to connect.
    pub connect_timeout: Duration,
}

impl Default for AzureOptions {
    fn default() -> Self {
        Self {
            requests: RequestSettings::default(),
            counts: OperationCounts::default(),
            ids: Arc::new(RandomIds),
            max_idle_connections: 64,
            idle_timeout: Duration::from_secs(4),
            connect_timeout: Duration::from_secs(5),
        }
    }
}

/// Makes accounts of Azure Storage or its emulator.
#[derive(Debug)]
pub struct AzureStore;

impl AzureStore {
    /// The account behind the request layer. Sends nothing yet.
    ///
    /// # Errors
    /// `Invalid` when the HTTP client cannot be made or the signature cannot be parsed.
    pub fn connect(settings: &ConnectionSettings, options: &AzureOptions) -> Result<StorageAccount> {
        let account = Self::connect_unlayered(settings, options)?;
        Ok(account.layered(options.requests.clone(), &options.counts))
    }

    /// The account without the request layer, to put something else between the two.
    ///
    /// # Errors
    /// As [`AzureStore::connect`].
    pub fn connect_unlayered(
        settings: &ConnectionSettings,
        options: &AzureOptions,
    ) -> Result<StorageAccount> {
        let credentials = credentials(settings)?;
        let client_options = client_options(options)?;
        let at = |uri: &str| CloudLocation::Custom { account: settings.account.clone(), uri: uri.to_owned() };
        let endpoints = &settings.endpoints;
        let queues = azure_storage_queues::QueueServiceClientBuilder::with_location(
            at(&endpoints.queue),
            credentials.clone(),
        );
        let tables = azure_data_tables::clients::TableServiceClientBuilder::with_location(
            at(&endpoints.table),
            credentials.clone(),
        );
        let blobs =
            azure_storage_blobs::prelude::ClientBuilder::with_location(at(&endpoints.blob), credentials);
        Ok(StorageAccount {
            queues: Arc::new(queue::Queues(queues.client_options(client_options.clone()).build())),
            tables: Arc::new(table::Tables(tables.client_options(client_options.clone()).build())),
            blobs: Arc::new(blob::Blobs {
                client: blobs.client_options(client_options).blob_service_client(),
                base_url: endpoints.blob.clone(),
            }),
        })
    }
}

fn connect_error(message: &'static str) -> Error {
    Error::new(ErrorKind::Invalid, "Connect", "", message)
}

fn credentials(settings: &ConnectionSettings) -> Result<StorageCredentials> {
    Ok(match &settings.credential {
        Credential::Key(key) => StorageCredentials::access_key(
            settings.account.clone(),
            azure_core::auth::Secret::new(key.expose().to_owned()),
        ),
        Credential::Sas(sas) => StorageCredentials::sas_token(sas.expose())
            .map_err(|_| connect_error("the shared access signature is malformed"))?,
        Credential::Token(provider) => {
            StorageCredentials::token_credential(Arc::new(Tokens(provider.clone())))
        }
    })
}

/// One HTTP client for all three services: a pool of connections, no repetition, nothing unpacked on the
/// way (blobs are stored gzipped).
fn client_options(options: &AzureOptions) -> Result<ClientOptions> {
    let http = reqwest::Client::builder()
        .pool_max_idle_per_host(options.max_idle_connections)
        .pool_idle_timeout(options.idle_timeout)
        .tcp_nodelay(true)
        .connect_timeout(options.connect_timeout)
        .timeout(options.requests.attempt_timeout)
        .no_gzip()
        .redirect(reqwest::redirect::Policy::none())
        .build()
        .map_err(|_| connect_error("the HTTP client cannot be made"))?;
    let mut client_options =
        ClientOptions::new(TransportOptions::new(Arc::new(http))).retry(RetryOptions::none());
    let requests = policy::Requests { ids: options.ids.clone() };
    client_options.per_call_policies_mut().push(Arc::new(requests) as Arc<dyn Policy>);
    client_options.per_retry_policies_mut().push(Arc::new(policy::Answers) as Arc<dyn Policy>);
    Ok(client_options)
}

/// What a token provider says of its failure, on its way through the packages.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct NoToken(String);

/// A token provider as the packages want it.
#[derive(Debug)]
struct Tokens(Arc<dyn TokenProvider>);

#[async_trait]
impl azure_core::auth::TokenCredential for Tokens {
    async fn get_token(&self, _scopes: &[&str]) -> azure_core::Result<azure_core::auth::AccessToken> {
        let token = self.0.token().await.map_err(|reason| {
            azure_core::Error::new(azure_core::error::ErrorKind::Credential, NoToken(reason))
        })?;
        let seconds = token.expires_at.unix_millis().div_euclid(1000);
        let expires_on =
            time::OffsetDateTime::from_unix_timestamp(seconds).unwrap_or(time::OffsetDateTime::UNIX_EPOCH);
        let secret = azure_core::auth::Secret::new(token.secret.expose().to_owned());
        Ok(azure_core::auth::AccessToken::new(secret, expires_on))
    }

    async fn clear_cache(&self) -> azure_core::Result<()> {
        Ok(())
    }
}
