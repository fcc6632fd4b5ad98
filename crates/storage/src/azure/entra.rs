//! Credentials for Entra ID, over `azure_identity` 0.21 (feature `entra`).
//!
//! Where a token comes from is decided anew whenever one is fetched, because the file with the token of a
//! workload identity changes about every hour and the package reads it only when a credential is made.

use std::fmt;
use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use azure_core::auth::TokenCredential;
use azure_core::error::ErrorKind;
use azure_identity::{
    AppServiceManagedIdentityCredential, ClientSecretCredential, TokenCredentialOptions,
    VirtualMachineManagedIdentityCredential,
};
use taskhub_core::{Clock, SystemClock, Timestamp};
use tokio::time::Instant;

use crate::connection::{AccessToken, Secret, TokenProvider};

/// What the tokens are for: Azure Storage, in every cloud.
const SCOPE: &str = "https://storage.azure.com/.default";
/// A token is replaced this long before its end, as Durable Functions does.
const REFRESH_AHEAD: Duration = Duration::from_secs(300);
/// Time between two attempts to get a better token, as Durable Functions has it.
const RETRY_INTERVAL: Duration = Duration::from_secs(30);
/// A token that ends sooner is not sent any more. Source: `azure_identity`, `TokenCache`.
const MIN_VALIDITY: Duration = Duration::from_secs(20);
/// Longest one attempt may take: the package bounds hardly any. Less than a storage request may take, so
/// that its error tells what was slow.
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(25);

/// What the package says of a failure, and what we say: its texts can hold answers and paths.
const REASONS: [(&str, &str); 9] = [
    (
        "error getting environment credential",
        "the identity in the environment (AZURE_CLIENT_ID) gets no token",
    ),
    ("Server returned error response", "Entra ID refuses the client id or its secret"),
    ("Request failed", "Entra ID cannot be reached"),
    ("credential for App Service", "the managed identity of App Service gives no token"),
    ("identity has not been assigned", "this machine has no managed identity"),
    ("virtual machine managed identity", "no managed identity of a virtual machine answers"),
    ("Azure CLI not installed", "the Azure CLI is not installed"),
    ("expires_on field not found", "the Azure CLI is older than 2.54"),
    ("command failed", "the Azure CLI gives no token (is `az login` done?)"),
];

/// The environment does not make a credential. Holds no value of a variable.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CredentialError {
    /// `AZURE_CREDENTIAL_KIND` is set, but not to a kind, or what the kind needs is missing.
    #[error(
        "AZURE_CREDENTIAL_KIND is not one of environment, workloadidentity, clientsecret, appservice, \
         virtualmachine and azurecli, or a variable that this kind needs is missing"
    )]
    Kind,
    /// `AZURE_AUTHORITY_HOST` is not a URL.
    #[error("AZURE_AUTHORITY_HOST is not a URL")]
    AuthorityHost,
}

/// The credential that the environment offers: the first that gives a token of a workload identity
/// (`AZURE_FEDERATED_TOKEN_FILE` with `AZURE_TENANT_ID` and `AZURE_CLIENT_ID`), a client secret
/// (`AZURE_CLIENT_SECRET` with the same two), the managed identity of App Service or of a virtual machine
/// (system-assigned), and the Azure CLI. `AZURE_CREDENTIAL_KIND` picks one of them.
///
/// # Errors
/// `AZURE_CREDENTIAL_KIND` is wrong. Whether there is an identity shows at the first token.
pub fn default_credential() -> Result<Arc<dyn TokenProvider>, CredentialError> {
    azure_identity::create_credential().map_err(|_| CredentialError::Kind)?;
    Ok(Tokens::provider(azure_identity::create_credential))
}

/// The system-assigned managed identity of App Service, Functions, Container Apps or a virtual machine.
pub fn managed_identity() -> Arc<dyn TokenProvider> {
    Tokens::provider(|| {
        let options = TokenCredentialOptions::default();
        Ok(match AppServiceManagedIdentityCredential::create(options.clone()) {
            Ok(credential) => Arc::new(credential) as Arc<dyn TokenCredential>,
            Err(_) => Arc::new(VirtualMachineManagedIdentityCredential::new(options)),
        })
    })
}

/// An application that shows a secret. `AZURE_AUTHORITY_HOST` is asked, or the public cloud's.
///
/// # Errors
/// `AZURE_AUTHORITY_HOST` is not a URL.
pub fn client_secret(
    tenant_id: &str,
    client_id: &str,
    secret: &Secret,
) -> Result<Arc<dyn TokenProvider>, CredentialError> {
    let options = TokenCredentialOptions::default();
    let host = options.authority_host().map_err(|_| CredentialError::AuthorityHost)?;
    let (tenant_id, client_id, secret) = (tenant_id.to_owned(), client_id.to_owned(), secret.clone());
    Ok(Tokens::provider(move || {
        Ok(Arc::new(ClientSecretCredential::new(
            options.http_client(),
            host.clone(),
            tenant_id.clone(),
            client_id.clone(),
            secret.expose().to_owned(),
        )))
    }))
}

type Source = dyn Fn() -> azure_core::Result<Arc<dyn TokenCredential>> + Send + Sync;

/// Keeps a token and replaces it in time. While one request does that, the others go on with the old one.
struct Tokens {
    source: Box<Source>,
    clock: Arc<dyn Clock>,
    kept: Mutex<Kept>,
    refresh: tokio::sync::Mutex<()>,
}

#[derive(Debug, Default)]
struct Kept {
    token: Option<AccessToken>,
    /// Why the last attempt failed.
    failure: Option<String>,
    /// The last attempt brought no token that lasts; the next is made then.
    next_attempt_at: Option<Instant>,
}

/// What a request has to do for its token.
enum Need {
    Nothing(AccessToken),
    /// Get a better one, unless another request does so already.
    Better(AccessToken),
    Token,
    /// Nothing can be done now.
    Failed(String),
}

impl Kept {
    fn need(&self, now: Timestamp) -> Need {
        let left = |token: &AccessToken| token.expires_at.saturating_since(now);
        let waits = self.next_attempt_at.is_some_and(|at| Instant::now() < at);
        match (&self.token, &self.failure) {
            (Some(token), _) if left(token) > REFRESH_AHEAD => Need::Nothing(token.clone()),
            (Some(token), _) if left(token) > MIN_VALIDITY && waits => Need::Nothing(token.clone()),
            (Some(token), _) if left(token) > MIN_VALIDITY => Need::Better(token.clone()),
            (_, Some(failure)) if waits => Need::Failed(failure.clone()),
            _ => Need::Token,
        }
    }
}

impl Tokens {
    fn provider(
        source: impl Fn() -> azure_core::Result<Arc<dyn TokenCredential>> + Send + Sync + 'static,
    ) -> Arc<dyn TokenProvider> {
        Arc::new(Self::new(Box::new(source), Arc::new(SystemClock)))
    }

    fn new(source: Box<Source>, clock: Arc<dyn Clock>) -> Self {
        Self { source, clock, kept: Mutex::default(), refresh: tokio::sync::Mutex::default() }
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn need(&self) -> Need {
        let now = self.clock.now();
        self.kept().need(now)
    }

    /// Makes one attempt and keeps what comes of it.
    async fn fetch(&self) -> Result<AccessToken, String> {
        let got = bounded(async { (self.source)()?.get_token(&[SCOPE]).await }).await;
        let now = self.clock.now();
        let mut kept = self.kept();
        kept.next_attempt_at = Some(Instant::now() + RETRY_INTERVAL);
        let failure = match got {
            Ok(token) => {
                tracing::debug!(expires_at = %token.expires_at.to_iso(), "a new token from Entra ID");
                if token.expires_at.saturating_since(now) > REFRESH_AHEAD {
                    kept.next_attempt_at = None;
                }
                kept.failure = None;
                kept.token = Some(token.clone());
                return Ok(token);
            }
            Err(failure) => failure,
        };
        kept.failure = Some(failure.clone());
        match &kept.token {
            Some(token) if token.expires_at.saturating_since(now) > MIN_VALIDITY => {
                tracing::warn!(reason = %failure, "the token from Entra ID ends soon and cannot be replaced");
                Ok(token.clone())
            }
            _ => Err(failure),
        }
    }
}

#[async_trait]
impl TokenProvider for Tokens {
    async fn token(&self) -> Result<AccessToken, String> {
        let _alone = match self.need() {
            Need::Nothing(token) => return Ok(token),
            Need::Failed(failure) => return Err(failure),
            Need::Better(token) => match self.refresh.try_lock() {
                Ok(alone) => alone,
                Err(_) => return Ok(token),
            },
            Need::Token => self.refresh.lock().await,
        };
        // Another request may have been faster.
        match self.need() {
            Need::Nothing(token) => Ok(token),
            Need::Failed(failure) => Err(failure),
            Need::Better(_) | Need::Token => self.fetch().await,
        }
    }
}

impl fmt::Debug for Tokens {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tokens").field("kept", &self.kept).finish_non_exhaustive()
    }
}

async fn bounded(
    attempt: impl Future<Output = azure_core::Result<azure_core::auth::AccessToken>>,
) -> Result<AccessToken, String> {
    match tokio::time::timeout(ATTEMPT_TIMEOUT, attempt).await {
        Ok(Ok(token)) => {
            let seconds = u64::try_from(token.expires_on.unix_timestamp()).unwrap_or_default();
            let expires_at = Timestamp::from_unix(Duration::from_secs(seconds));
            Ok(AccessToken { secret: Secret::new(token.token.secret()), expires_at })
        }
        Ok(Err(error)) => Err(reason(&error)),
        Err(_) => Err("the identity does not answer in time".to_owned()),
    }
}

/// Why there is no token, in words of our own.
fn reason(error: &azure_core::Error) -> String {
    let mut said = String::new();
    let mut reasons = Vec::new();
    let mut next: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(cause) = next {
        let kind = cause.downcast_ref::<azure_core::Error>().map(azure_core::Error::kind);
        if let Some(ErrorKind::HttpResponse { status, .. }) = kind {
            reasons.push(format!("the identity's service refuses with status {}", u16::from(*status)));
        }
        said.push_str(&cause.to_string());
        said.push('\n');
        next = cause.source();
    }
    reasons.dedup();
    let known = REASONS.iter().filter(|(marker, _)| said.contains(marker));
    reasons.extend(known.map(|(_, reason)| (*reason).to_owned()));
    if reasons.is_empty() {
        reasons.push("the identity gives no token".to_owned());
    }
    reasons.join("; ")
}

#[cfg(test)]
mod tests;
