//! The app lease: one application at a time processes a hub.
//!
//! Source: Azure/durabletask, `Partitioning/AppLeaseManager.cs`.

use bytes::Bytes;
use taskhub_core::ServiceError;
use taskhub_storage::{ErrorKind, PutBlob};
use uuid::Uuid;

use crate::hub::Hub;
use crate::partition::hash::app_lease_id;

/// Who holds the lease, as the info blob says.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
struct Info {
    owner: Option<String>,
    desired_swap: Option<String>,
}

impl Info {
    fn parse(content: &[u8]) -> Self {
        let value = serde_json::from_slice::<serde_json::Value>(content).unwrap_or_default();
        let text = |name: &str| value.get(name).and_then(|v| v.as_str()).map(str::to_owned);
        Self { owner: text("OwnerId"), desired_swap: text("DesiredSwapId") }
    }
}

/// The lease of one application on one hub.
#[derive(Debug)]
pub(crate) struct AppLease {
    hub: Hub,
    container: String,
    blob: String,
    id: Uuid,
}

impl AppLease {
    pub(crate) fn new(hub: Hub) -> Result<Self, ServiceError> {
        let id = Uuid::parse_str(&app_lease_id(&hub.settings.app_name))
            .map_err(|e| hub.unreadable("the app lease id is no GUID", e))?;
        let (container, blob) = (hub.names.app_lease_container(), hub.names.app_lease_info_blob());
        Ok(Self { hub, container, blob, id })
    }

    /// Takes the lease, by changing another application's where it was told to step aside.
    /// `Ok(false)`: another application holds it.
    pub(crate) async fn acquire(&self) -> Result<bool, ServiceError> {
        let blobs = &self.hub.account.blobs;
        let info = match blobs.get_blob(&self.container, &self.blob).await {
            Ok(blob) => blob.map(|b| Info::parse(&b.content)).unwrap_or_default(),
            Err(e) => return Err(self.hub.failed("cannot read the app-lease info blob", e)),
        };
        let own = self.id.to_string();
        let swap_from = info.owner.as_deref().and_then(|owner| Uuid::parse_str(owner).ok());
        let taken = match swap_from {
            Some(owner) if info.desired_swap.as_deref() == Some(own.as_str()) => {
                blobs.change_lease(&self.container, None, owner, self.id).await
            }
            _ => {
                let interval = self.hub.settings.app_lease_interval;
                blobs.acquire_lease(&self.container, None, self.id, interval).await
            }
        };
        match taken {
            Ok(()) => {}
            Err(e) if e.kind() == ErrorKind::Conflict => {
                tracing::warn!(
                    hub = %self.hub.name(),
                    app_name = self.hub.settings.app_name,
                    owner = info.owner,
                    "another application holds the app lease; waiting for it. Use its app name to share the hub"
                );
                return Ok(false);
            }
            // Somebody deleted the container; with it went the lease.
            Err(e) if e.kind() == ErrorKind::NotFound => {
                let created = blobs.create_container(&self.container).await;
                created.map_err(|e| self.hub.failed("cannot create the app-lease container", e))?;
                return Ok(false);
            }
            Err(e) => return Err(self.hub.failed("cannot acquire the app lease", e)),
        }
        if info.owner.as_deref() != Some(own.as_str()) || info.desired_swap.is_some() {
            let text = serde_json::json!({ "OwnerId": own, "DesiredSwapId": null }).to_string();
            let put = blobs.put_blob(&self.container, &self.blob, Bytes::from(text), PutBlob::default());
            if let Err(e) = put.await {
                tracing::debug!(hub = %self.hub.name(), error = %e, "cannot write the app-lease info blob");
            }
        }
        Ok(true)
    }

    /// Prolongs the lease. `Ok(false)`: it is lost.
    pub(crate) async fn renew(&self) -> Result<bool, ServiceError> {
        match self.hub.account.blobs.renew_lease(&self.container, None, self.id).await {
            Ok(()) => Ok(true),
            Err(e) if e.kind() == ErrorKind::Conflict => Ok(false),
            Err(e) => Err(self.hub.failed("cannot renew the app lease", e)),
        }
    }
}
