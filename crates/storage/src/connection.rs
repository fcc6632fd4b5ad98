//! Which account, and by what right.

use std::collections::HashMap;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use async_trait::async_trait;
use base64::Engine;
use taskhub_core::Timestamp;
use url::Url;

/// Account name of the emulator. Source: Azurite, "Well-known storage account and key".
const EMULATOR_ACCOUNT: &str = "devstoreaccount1";
/// The emulator's key, public and the same everywhere.
const EMULATOR_KEY: &str =
    "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw==";
/// Where accounts of the public cloud are.
const PUBLIC_SUFFIX: &str = "core.windows.net";

/// A text that `Debug` does not show.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Wraps a secret.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    pub(crate) fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("<secret>")
    }
}

/// An OAuth token for Azure Storage.
#[derive(Debug, Clone)]
pub struct AccessToken {
    /// The bearer token.
    pub secret: Secret,
    /// When it becomes useless.
    pub expires_at: Timestamp,
}

/// Where Entra ID tokens come from: a managed identity, a workload identity, the Azure CLI ..
///
/// The caller supplies one. With the feature `entra`, `azure::entra` has some.
#[async_trait]
pub trait TokenProvider: Send + Sync + fmt::Debug {
    /// A token for the scope `https://storage.azure.com/.default`, valid for some more minutes. Called for
    /// every request: the provider keeps its token. An error's text goes into errors and logs, so it must not
    /// hold secrets.
    async fn token(&self) -> Result<AccessToken, String>;
}

/// By what right the account is used.
#[derive(Debug, Clone)]
pub enum Credential {
    /// The account's key, in Base64.
    Key(Secret),
    /// A shared access signature, without a question mark before it.
    Sas(Secret),
    /// Entra ID.
    Token(Arc<dyn TokenProvider>),
}

/// Absolute addresses of the three services, without trailing slashes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoints {
    /// Queues.
    pub queue: String,
    /// Tables.
    pub table: String,
    /// Blobs.
    pub blob: String,
}

/// Addresses of services as they are configured: where there is none, it is made from the account's name.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ServiceAddresses {
    /// Queues.
    pub queue: Option<String>,
    /// Tables.
    pub table: Option<String>,
    /// Blobs.
    pub blob: Option<String>,
}

/// A storage account and the right to use it.
#[derive(Debug, Clone)]
pub struct ConnectionSettings {
    /// Account name.
    pub account: String,
    /// By what right.
    pub credential: Credential,
    /// Where its services are.
    pub endpoints: Endpoints,
}

/// A connection string, or what stands for one, is wrong. Says which part, never its value.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ConnectionStringError {
    /// A part between semicolons is not `key=value`.
    #[error("a part of the connection string is not `key=value`. part=`{number}`")]
    Malformed {
        /// Which part, counted from 1.
        number: usize,
    },
    /// A needed part is missing.
    #[error("the connection lacks a part. missing=`{key}`")]
    Missing {
        /// Its key.
        key: &'static str,
    },
    /// The value of a part is wrong.
    #[error("a value of the connection is wrong. key=`{key}` reason=`{reason}`")]
    Wrong {
        /// Its key.
        key: &'static str,
        /// What is wrong with it.
        reason: &'static str,
    },
}

impl ConnectionSettings {
    /// Parses a connection string. Keys are compared ignoring case, unknown ones are ignored, explicit
    /// endpoints win over derived ones, and a shared access signature wins over a key.
    ///
    /// # Errors
    /// A part is malformed, missing or wrong.
    pub fn parse(text: &str) -> Result<Self, ConnectionStringError> {
        let mut parts = parts_of(text)?;
        let mut take = |key: &str| parts.remove(key).filter(|value| !value.is_empty());
        let emulator = take("usedevelopmentstorage").is_some_and(|value| value.eq_ignore_ascii_case("true"));
        let proxy = take("developmentstorageproxyuri");
        let explicit = [take("queueendpoint"), take("tableendpoint"), take("blobendpoint")];
        let account = take("accountname").or_else(|| emulator.then(|| EMULATOR_ACCOUNT.to_owned()));
        let key = take("accountkey").or_else(|| emulator.then(|| EMULATOR_KEY.to_owned()));
        let credential = match (take("sharedaccesssignature"), key) {
            (Some(sas), _) => Credential::Sas(Secret::new(sas.trim_start_matches('?'))),
            (None, Some(key)) => {
                let decoded = base64::engine::general_purpose::STANDARD.decode(&key);
                decoded.map_err(|_| wrong("AccountKey", "not Base64"))?;
                Credential::Key(Secret::new(key))
            }
            (None, None) => return Err(ConnectionStringError::Missing { key: "AccountKey" }),
        };
        let protocol = take("defaultendpointsprotocol").unwrap_or_else(|| "https".to_owned());
        let suffix = take("endpointsuffix").unwrap_or_else(|| PUBLIC_SUFFIX.to_owned());
        let derived = match (&account, emulator) {
            (_, true) => Some(emulator_endpoints(proxy.as_deref())?),
            (Some(account), false) if explicit.contains(&None) => {
                Some(cloud_endpoints(&protocol, account, &suffix)?)
            }
            _ => None,
        };
        let endpoints = join_endpoints(explicit, derived)?;
        let account = match account {
            Some(account) => account,
            None => {
                account_of(&endpoints.blob).ok_or(ConnectionStringError::Missing { key: "AccountName" })?
            }
        };
        Ok(Self { account, credential, endpoints })
    }

    /// An account of the public cloud, or of the cloud with another suffix, by Entra ID.
    ///
    /// # Errors
    /// The name or suffix does not make an address.
    pub fn with_token(
        account: &str,
        endpoint_suffix: Option<&str>,
        provider: Arc<dyn TokenProvider>,
    ) -> Result<Self, ConnectionStringError> {
        let endpoints = cloud_endpoints("https", account, endpoint_suffix.unwrap_or(PUBLIC_SUFFIX))?;
        Ok(Self { account: account.to_owned(), credential: Credential::Token(provider), endpoints })
    }

    /// An account by Entra ID, at these addresses or at those of the public cloud. Without a name, all three
    /// addresses are needed.
    ///
    /// # Errors
    /// The name or an address is missing or wrong. `http` is for this machine only: elsewhere whoever listens
    /// could take the token.
    pub fn with_token_at(
        account: Option<&str>,
        addresses: ServiceAddresses,
        provider: Arc<dyn TokenProvider>,
    ) -> Result<Self, ConnectionStringError> {
        let explicit = [addresses.queue, addresses.table, addresses.blob];
        let derived = match account {
            Some(account) if explicit.contains(&None) => {
                Some(cloud_endpoints("https", account, PUBLIC_SUFFIX)?)
            }
            _ => None,
        };
        let endpoints = join_endpoints(explicit, derived)?;
        let Endpoints { queue, table, blob } = &endpoints;
        for (key, address) in [("QueueEndpoint", queue), ("TableEndpoint", table), ("BlobEndpoint", blob)] {
            if !keeps_tokens(address) {
                return Err(wrong(key, "http, which shows the token to others"));
            }
        }
        let account = match account {
            Some(account) => account.to_owned(),
            None => account_of(blob).ok_or(ConnectionStringError::Missing { key: "AccountName" })?,
        };
        Ok(Self { account, credential: Credential::Token(provider), endpoints })
    }
}

impl FromStr for ConnectionSettings {
    type Err = ConnectionStringError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::parse(text)
    }
}

fn wrong(key: &'static str, reason: &'static str) -> ConnectionStringError {
    ConnectionStringError::Wrong { key, reason }
}

/// Values by lower-case key; of a repeated key the last counts.
fn parts_of(text: &str) -> Result<HashMap<String, String>, ConnectionStringError> {
    let mut parts = HashMap::new();
    for (index, part) in text.split(';').enumerate() {
        if part.trim().is_empty() {
            continue;
        }
        let malformed = ConnectionStringError::Malformed { number: index + 1 };
        let (key, value) = part.split_once('=').ok_or(malformed)?;
        parts.insert(key.trim().to_ascii_lowercase(), value.trim().to_owned());
    }
    Ok(parts)
}

fn emulator_endpoints(proxy: Option<&str>) -> Result<Endpoints, ConnectionStringError> {
    let base = match proxy {
        None => "http://127.0.0.1".to_owned(),
        Some(proxy) => {
            let key = "DevelopmentStorageProxyUri";
            let url = Url::parse(proxy).map_err(|_| wrong(key, "not an absolute URL"))?;
            let host = url.host_str().ok_or_else(|| wrong(key, "without a host"))?;
            format!("{}://{host}", url.scheme())
        }
    };
    let at = |port: u16| format!("{base}:{port}/{EMULATOR_ACCOUNT}");
    Ok(Endpoints { blob: at(10000), queue: at(10001), table: at(10002) })
}

fn cloud_endpoints(protocol: &str, account: &str, suffix: &str) -> Result<Endpoints, ConnectionStringError> {
    let protocol = protocol.to_ascii_lowercase();
    if protocol != "http" && protocol != "https" {
        return Err(wrong("DefaultEndpointsProtocol", "neither http nor https"));
    }
    if account.is_empty() || !account.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-') {
        return Err(wrong("AccountName", "not letters and digits"));
    }
    let at = |service: &str| {
        let address = format!("{protocol}://{account}.{service}.{suffix}");
        endpoint("EndpointSuffix", &address)
    };
    Ok(Endpoints { queue: at("queue")?, table: at("table")?, blob: at("blob")? })
}

fn join_endpoints(
    [queue, table, blob]: [Option<String>; 3],
    derived: Option<Endpoints>,
) -> Result<Endpoints, ConnectionStringError> {
    let pick = |key: &'static str, explicit: Option<String>, derived: Option<&String>| match explicit {
        Some(address) => endpoint(key, &address),
        None => derived.cloned().ok_or(ConnectionStringError::Missing { key }),
    };
    let derived = derived.as_ref();
    Ok(Endpoints {
        queue: pick("QueueEndpoint", queue, derived.map(|d| &d.queue))?,
        table: pick("TableEndpoint", table, derived.map(|d| &d.table))?,
        blob: pick("BlobEndpoint", blob, derived.map(|d| &d.blob))?,
    })
}

fn endpoint(key: &'static str, address: &str) -> Result<String, ConnectionStringError> {
    let url = Url::parse(address).map_err(|_| wrong(key, "not an absolute URL"))?;
    if !matches!(url.scheme(), "http" | "https") || url.host_str().is_none() {
        return Err(wrong(key, "neither http nor https"));
    }
    if url.query().is_some() || url.fragment().is_some() || !url.username().is_empty() {
        return Err(wrong(key, "more than a scheme, host and path"));
    }
    Ok(url.as_str().trim_end_matches('/').to_owned())
}

/// Whether nobody on the way sees a token that is sent to this address.
fn keeps_tokens(endpoint: &str) -> bool {
    let Ok(url) = Url::parse(endpoint) else { return false };
    let here = match url.host() {
        Some(url::Host::Domain(name)) => name == "localhost",
        Some(url::Host::Ipv4(address)) => address.is_loopback(),
        Some(url::Host::Ipv6(address)) => address.is_loopback(),
        None => false,
    };
    here || url.scheme() == "https"
}

/// The account that an address names: the first label of a host name, or the first segment of the path
/// when the host is an address or has no dot.
fn account_of(endpoint: &str) -> Option<String> {
    let url = Url::parse(endpoint).ok()?;
    let account = match url.host()? {
        url::Host::Domain(name) if name.contains('.') => name.split('.').next()?.to_owned(),
        _ => url.path_segments()?.next()?.to_owned(),
    };
    (!account.is_empty()).then_some(account)
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str = "c2VjcmV0LWtleQ==";

    fn parse(text: &str) -> ConnectionSettings {
        ConnectionSettings::parse(text).unwrap()
    }

    #[test]
    fn endpoints_come_from_the_account_and_the_suffix() {
        let found = parse(&format!("DefaultEndpointsProtocol=https;AccountName=acct;AccountKey={KEY}"));
        assert_eq!(found.account, "acct");
        assert_eq!(found.endpoints.queue, "https://acct.queue.core.windows.net");
        let found =
            parse(&format!("accountname=acct;ACCOUNTKEY={KEY};endpointsuffix=core.chinacloudapi.cn;X=1"));
        assert_eq!(found.endpoints.table, "https://acct.table.core.chinacloudapi.cn");
    }

    #[test]
    fn explicit_endpoints_win() {
        let found = parse(&format!(
            "AccountName=acct;AccountKey={KEY};BlobEndpoint=http://127.0.0.1:12500/acct/;EndpointSuffix=x.y"
        ));
        assert_eq!(found.endpoints.blob, "http://127.0.0.1:12500/acct");
        assert_eq!(found.endpoints.queue, "https://acct.queue.x.y");
    }

    #[test]
    fn development_storage_is_the_emulator() {
        let found = parse("usedevelopmentstorage=TRUE");
        assert_eq!(found.endpoints.blob, "http://127.0.0.1:10000/devstoreaccount1");
        assert_eq!(found.endpoints.queue, "http://127.0.0.1:10001/devstoreaccount1");
        assert_eq!(found.endpoints.table, "http://127.0.0.1:10002/devstoreaccount1");
        let found = parse("UseDevelopmentStorage=true;DevelopmentStorageProxyUri=http://azurite/");
        assert_eq!(found.endpoints.blob, "http://azurite:10000/devstoreaccount1");
    }

    #[test]
    fn a_signature_needs_no_account_name() {
        let found = parse(
            "BlobEndpoint=https://acct.blob.core.windows.net;QueueEndpoint=https://acct.queue.core.windows.net;\
             TableEndpoint=https://acct.table.core.windows.net;SharedAccessSignature=?sv=2022&sig=a%3D",
        );
        assert_eq!(found.account, "acct");
        assert!(matches!(&found.credential, Credential::Sas(sas) if sas.expose() == "sv=2022&sig=a%3D"));
        assert_eq!(
            ConnectionSettings::parse("BlobEndpoint=https://a.blob.x.y;SharedAccessSignature=sig=1")
                .unwrap_err(),
            ConnectionStringError::Missing { key: "QueueEndpoint" }
        );
    }

    #[derive(Debug)]
    struct Nobody;

    #[async_trait]
    impl TokenProvider for Nobody {
        async fn token(&self) -> Result<AccessToken, String> {
            Err("nobody".to_owned())
        }
    }

    fn by_token(
        account: Option<&str>,
        [queue, table, blob]: [Option<&str>; 3],
    ) -> Result<ConnectionSettings, ConnectionStringError> {
        let [queue, table, blob] = [queue, table, blob].map(|address| address.map(str::to_owned));
        ConnectionSettings::with_token_at(account, ServiceAddresses { queue, table, blob }, Arc::new(Nobody))
    }

    #[test]
    fn accounts_by_entra_id_have_addresses_of_the_public_cloud_or_their_own() {
        let found = by_token(Some("acct"), [None, Some("https://t.example/"), None]).unwrap();
        assert_eq!(found.account, "acct");
        assert_eq!(found.endpoints.queue, "https://acct.queue.core.windows.net");
        assert_eq!(found.endpoints.table, "https://t.example");
        let own = ["https://a.queue.x.y", "https://a.table.x.y", "https://acct.blob.x.y/"].map(Some);
        let found = by_token(None, own).unwrap();
        assert_eq!(
            (found.account.as_str(), found.endpoints.blob.as_str()),
            ("acct", "https://acct.blob.x.y")
        );
        let missing = by_token(None, [None, own[1], own[2]]).unwrap_err();
        assert_eq!(missing, ConnectionStringError::Missing { key: "QueueEndpoint" });
        assert!(by_token(Some("a/b?"), [None; 3]).is_err());
    }

    #[test]
    fn tokens_are_not_sent_in_the_clear_to_another_machine() {
        for here in ["http://127.0.0.1:10000/acct", "http://[::1]:1/acct", "http://localhost:10000/acct"] {
            by_token(None, [Some(here); 3]).unwrap();
        }
        for elsewhere in ["http://acct.blob.core.windows.net", "http://10.0.0.1/acct", "http://localhost.x/a"]
        {
            let error = by_token(Some("acct"), [None, Some(elsewhere), None]).unwrap_err();
            assert!(
                matches!(error, ConnectionStringError::Wrong { key: "TableEndpoint", .. }),
                "{elsewhere}"
            );
        }
    }

    #[test]
    fn errors_and_debug_texts_hold_no_secret() {
        for text in [
            "AccountName=acct;AccountKey=hush!hush",
            "AccountName=acct;hush",
            "AccountName=acct",
            "AccountName=a/b?;AccountKey=aHVzaA==",
            "AccountName=acct;AccountKey=aHVzaA==;BlobEndpoint=https://x/?sig=hush",
            "AccountName=acct;AccountKey=aHVzaA==;QueueEndpoint=hush",
            "AccountName=acct;AccountKey=aHVzaA==;DefaultEndpointsProtocol=hush",
            "",
        ] {
            let error = ConnectionSettings::parse(text).unwrap_err();
            let shown = format!("{error} {error:?}");
            assert!(!shown.contains("hush") && !shown.contains("aHVzaA"), "{shown}");
        }
        let shown = format!("{:?}", parse("AccountName=acct;AccountKey=aHVzaA=="));
        assert!(!shown.contains("aHVzaA"), "{shown}");
        let shown = format!("{:?}", parse("AccountName=acct;SharedAccessSignature=sig=hush"));
        assert!(!shown.contains("hush"), "{shown}");
    }
}
