use std::fmt;

use anyhow::{Result, bail};
use taskhub_storage::connection::{Secret, ServiceAddresses};

use super::settings::AppSettings;
use crate::args::ConnectionString;

/// How the account is found and by what right.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Connection {
    /// A connection string.
    Text(ConnectionString),
    /// An account and an identity in Entra ID.
    Identity(IdentityConnection),
}

impl From<ConnectionString> for Connection {
    fn from(text: ConnectionString) -> Self {
        Self::Text(text)
    }
}

/// An account and an identity in Entra ID.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct IdentityConnection {
    /// What configures it: a flag, or the common beginning of settings.
    pub(crate) origin: String,
    pub(crate) account: Option<String>,
    pub(crate) addresses: ServiceAddresses,
    pub(crate) identity: Identity,
}

/// Who the program is.
#[derive(Clone, PartialEq, Eq)]
pub(crate) enum Identity {
    /// What the environment offers.
    Default,
    /// The managed identity of the machine, system-assigned.
    Managed,
    /// An application with a secret.
    #[cfg_attr(not(feature = "entra"), allow(dead_code, reason = "read by what the feature adds"))]
    Application { tenant_id: String, client_id: String, secret: Secret },
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Default => "Default",
            Self::Managed => "Managed",
            Self::Application { .. } => "Application",
        })
    }
}

impl IdentityConnection {
    /// The flag `--account-name`.
    pub(super) fn of_flag(account: &str) -> Self {
        Self {
            origin: "--account-name".to_owned(),
            account: Some(account.to_owned()),
            addresses: ServiceAddresses::default(),
            identity: Identity::Default,
        }
    }

    /// The settings that begin with `section`; `None` when none of them names an account.
    ///
    /// # Errors
    /// Some of the addresses are missing, or the identity is one that is not supported: another one than
    /// configured would be used otherwise.
    pub(super) fn of_settings(settings: &AppSettings<'_>, section: &str) -> Result<Option<Self>> {
        let get = |key: &str| settings.get(&format!("{section}:{key}"));
        let account = get("accountName");
        let addresses = ServiceAddresses {
            queue: get("queueServiceUri"),
            table: get("tableServiceUri"),
            blob: get("blobServiceUri"),
        };
        if account.is_none() {
            if addresses == ServiceAddresses::default() {
                return Ok(None);
            }
            for (key, address) in
                [("queue", &addresses.queue), ("table", &addresses.table), ("blob", &addresses.blob)]
            {
                if address.is_none() {
                    bail!(
                        "without an account name all three service addresses are needed. \
                         missing=`{section}__{key}ServiceUri`"
                    );
                }
            }
        }
        let application = (get("tenantId"), get("clientId"), get("clientSecret"));
        let identity = match (get("credential"), application) {
            (None, (None, None, None)) => Identity::Default,
            (None, (Some(tenant_id), Some(client_id), Some(secret))) => {
                Identity::Application { tenant_id, client_id, secret: Secret::new(secret) }
            }
            (None, _) => bail!(
                "an application is configured by tenant, client and secret together; a user-assigned managed \
                 identity is not supported. settings=`{section}__tenantId {section}__clientId \
                 {section}__clientSecret`"
            ),
            (Some(kind), (None, None, None)) if kind.eq_ignore_ascii_case("managedidentity") => {
                Identity::Managed
            }
            (Some(kind), _) if kind.eq_ignore_ascii_case("managedidentity") => bail!(
                "of the managed identities only the system-assigned one is supported. \
                 setting=`{section}__clientId`"
            ),
            (Some(_), _) => bail!(
                "the only kind of credential that can be set here is `managedidentity`; the variable \
                 AZURE_CREDENTIAL_KIND has others. setting=`{section}__credential`"
            ),
        };
        Ok(Some(Self { origin: section.replace(':', "__"), account, addresses, identity }))
    }
}
