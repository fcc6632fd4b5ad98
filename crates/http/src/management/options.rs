//! What is served, and how.

use std::fmt;
use std::time::Duration;

use axum::http::StatusCode;
use subtle::ConstantTimeEq;
use tokio_util::sync::CancellationToken;
use url::Url;

/// Path of the public API in the Functions host.
/// Source: Azure/azure-functions-durable-extension, `DurableTaskExtension` (its webhook).
pub const PUBLIC_BASE: &str = "/runtime/webhooks/durabletask";

/// Path of the API that the classic Node, Python and PowerShell SDKs call on their own machine.
/// Source: Azure/azure-functions-durable-extension, `LocalHttpListener`.
pub const RPC_BASE: &str = "/durabletask";

/// How the management API behaves. The defaults are those of Durable Functions, but for what could destroy
/// something by mistake.
#[derive(Debug, Clone)]
pub struct Options {
    /// Path of the API; letter case does not matter. [`PUBLIC_BASE`] unless set.
    pub base_path: String,
    /// Serve the API under [`RPC_BASE`] too.
    pub rpc_base: bool,
    /// Serve `/api/orchestrators/{name}` and `/orchestrators/{name}/wait`, the functions `HttpStart` and
    /// `HttpSyncStart` of the Durable Functions samples.
    pub sample_functions: bool,
    /// The key every request must carry, as query parameter `code` or header `x-functions-key`; the generated
    /// addresses carry it too. Without one, everybody who reaches the socket may do everything.
    pub key: Option<ApiKey>,
    /// Refuse requests (403) that name another host than this machine itself, and those of web pages from
    /// elsewhere. Without it, a page in a browser of somebody on this machine could use an API without a key.
    pub local_only: bool,
    /// Scheme, host and path in front of the endpoints in generated addresses. Without it, scheme and host are
    /// those of the request and the path is `base_path`.
    pub public_url: Option<Url>,
    /// Take scheme and host of generated addresses from `X-Forwarded-Proto` and `X-Forwarded-Host`. Only
    /// behind a proxy that sets them: who can choose them chooses where the key is sent.
    pub use_forwarded_host: bool,
    /// Largest body of a request, in bytes.
    pub max_body_bytes: usize,
    /// How long a body may take to arrive.
    pub body_timeout: Duration,
    /// How long an operation may take, waits and purges by filter apart.
    pub request_timeout: Duration,
    /// Longest time a request waits for an instance; one that asks for more is answered 202 by then.
    pub longest_wait: Duration,
    /// Code for what the status of an instance does not allow.
    pub conflicts: Conflicts,
    /// Let an existing instance be replaced in any status by a start (`overridableExistingInstanceStates` =
    /// `AnyState`).
    pub overrides_any_state: bool,
    /// Purge instances in any status, entities included, as Durable Functions 2.x does. Otherwise only finished
    /// orchestrations are purged, unless the request says `force=true` or `includeEntities=true`.
    pub purges_any_status: bool,
    /// Read `runtimeStatus` as the reference does: with regard to letter case, ignoring what it does not know.
    /// Otherwise in any letter case, and unknown statuses are an error.
    pub lenient_statuses: bool,
    /// Version of instances whose start names none.
    pub default_version: Option<String>,
    /// Ends waits with their 202 once cancelled.
    pub shutdown: CancellationToken,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            base_path: PUBLIC_BASE.to_owned(),
            rpc_base: true,
            sample_functions: true,
            key: None,
            local_only: false,
            public_url: None,
            use_forwarded_host: false,
            max_body_bytes: 16 * 1024 * 1024,
            body_timeout: Duration::from_secs(60),
            request_timeout: Duration::from_secs(100),
            longest_wait: Duration::from_secs(230),
            conflicts: Conflicts::default(),
            overrides_any_state: false,
            purges_any_status: false,
            lenient_statuses: false,
            default_version: None,
            shutdown: CancellationToken::new(),
        }
    }
}

/// Code for what the status of an instance does not allow: a start with an id in use, suspending what is
/// suspended, resuming what runs, rewinding what has not failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Conflicts {
    /// 500, as Durable Functions 2.x and its SDKs have it.
    #[default]
    ServerError,
    /// 409, with the same body.
    Conflict,
}

impl Conflicts {
    pub(super) fn code(self) -> StatusCode {
        match self {
            Self::ServerError => StatusCode::INTERNAL_SERVER_ERROR,
            Self::Conflict => StatusCode::CONFLICT,
        }
    }
}

/// The key of the API. `Debug` hides it.
#[derive(Clone)]
pub struct ApiKey(String);

/// A text cannot be a key.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a key has at least {MIN_KEY_LENGTH} characters, all of them visible ASCII. length=`{length}`")]
pub struct InvalidKey {
    /// How many characters it has.
    length: usize,
}

/// Shorter keys could be guessed.
const MIN_KEY_LENGTH: usize = 16;

impl ApiKey {
    /// Checks that a key can be sent in a header and is not easily guessed.
    ///
    /// # Errors
    /// It has less than 16 characters, or other ones than visible ASCII.
    pub fn new(key: impl Into<String>) -> Result<Self, InvalidKey> {
        let key = key.into();
        if key.len() < MIN_KEY_LENGTH || !key.bytes().all(|b| b.is_ascii_graphic()) {
            return Err(InvalidKey { length: key.chars().count() });
        }
        Ok(Self(key))
    }

    /// Whether `given` is the key. The time it takes depends on the lengths alone.
    pub(super) fn is(&self, given: &str) -> bool {
        self.0.as_bytes().ct_eq(given.as_bytes()).into()
    }

    /// The key itself, for generated addresses.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for ApiKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ApiKey(hidden)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_long_and_visible_and_hidden_in_debug_output() {
        let key = ApiKey::new("0123456789abcdef").unwrap();
        assert!(key.is("0123456789abcdef"));
        for other in ["", "0123456789abcdeF", "0123456789abcde", "0123456789abcdef0"] {
            assert!(!key.is(other), "{other}");
        }
        assert!(
            !format!("{key:?} {:?}", Options { key: Some(key.clone()), ..Options::default() })
                .contains("0123")
        );
        for text in ["", "short", "0123456789 abcdef", "0123456789abcdef\n", "ééééééééééééééééé"]
        {
            let error = ApiKey::new(text).unwrap_err().to_string();
            assert!(text.is_empty() || !error.contains(text), "{error}");
        }
    }
}
