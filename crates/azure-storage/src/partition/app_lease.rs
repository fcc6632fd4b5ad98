//! The app lease: one application at a time processes a hub.
//!
//! It is not released on a graceful stop, as in DTFx: other workers of the same application share it. It
//! runs out within a minute of the last renewal.
//!
//! Source: Azure/durabletask, `Partitioning/AppLeaseManager.cs`.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use taskhub_core::{ErrorKind, ServiceError};
use taskhub_storage::PutBlob;
use tokio::sync::watch;
use tokio::time::Instant;
use uuid::Uuid;

use crate::hub::{Hub, PartitionManagerKind};
use crate::partition::hash::app_lease_id;
use crate::partition::owner::PartitionOwner;

/// Longest time for one request; a renewal that comes later is worth nothing.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);
/// Wait before a request whose outcome nobody knows is repeated.
const UNKNOWN_INTERVAL: Duration = Duration::from_secs(5);

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

    fn to_bytes(&self) -> Bytes {
        let owner = serde_json::json!(self.owner);
        let desired_swap = serde_json::json!(self.desired_swap);
        format!(r#"{{"OwnerId":{owner},"DesiredSwapId":{desired_swap}}}"#).into()
    }
}

/// Asks whoever holds the lease to hand it to this application: its holder reads the info blob and steps
/// aside. Nothing happens when this application holds it.
/// Source: Azure/durabletask, `AppLeaseManager.ForceChangeAppLeaseAsync`.
pub(crate) async fn ask_for(hub: &Hub) -> Result<(), ServiceError> {
    if !hub.settings.use_app_lease {
        return Err(ServiceError::new(
            taskhub_core::ErrorKind::Invalid,
            format!(
                "the app lease is switched off, so there is no primary application. hub=`{}`",
                hub.name()
            ),
        ));
    }
    hub.ensure().await?;
    let lease = AppLease::new(hub.clone())?;
    let own = lease.id.to_string();
    let blobs = &hub.account.blobs;
    let found = blobs.get_blob(&lease.container, &lease.blob).await;
    let found = found.map_err(|e| hub.failed("cannot read the app-lease info blob", e))?;
    let info = found.map(|blob| Info::parse(&blob.content)).unwrap_or_default();
    let is = |id: &Option<String>| id.as_deref().is_some_and(|id| id.eq_ignore_ascii_case(&own));
    if is(&info.owner) || is(&info.desired_swap) {
        return Ok(());
    }
    let text = serde_json::json!({ "OwnerId": info.owner, "DesiredSwapId": own }).to_string();
    let put = blobs.put_blob(&lease.container, &lease.blob, Bytes::from(text), PutBlob::default());
    put.await.map(drop).map_err(|e| hub.failed("cannot write the app-lease info blob", e))
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

    /// Gets the lease and keeps it, for ever. `held` tells until when it holds, on the hub's
    /// [`Hub::awake`] clock and counted from before the request that took or renewed it; `None` while another application has it.
    ///
    /// Differs: DTFx takes the lease for renewed when a renewal fails in an unknown way.
    pub(crate) async fn hold(
        self,
        kind: PartitionManagerKind,
        owner: Arc<dyn PartitionOwner>,
        held: watch::Sender<Option<Instant>>,
    ) {
        let settings = self.hub.settings.clone();
        if settings.take_app_lease {
            self.demand(kind).await;
        }
        loop {
            let (sent_at, have) = (self.hub.awake().now(), held.borrow().is_some());
            // Not renewed while this process was stalled: take it again, unless somebody else has.
            let kept = match if have { self.renew().await } else { Ok(false) } {
                Ok(false) => self.acquire().await,
                other => other,
            };
            let wait = match kept {
                Ok(true) => {
                    owner.status().has_app_lease();
                    held.send_replace(Some(sent_at + settings.app_lease_interval));
                    settings.app_lease_renew_interval
                }
                Ok(false) => {
                    owner.status().waits_for_app_lease(&settings.app_name);
                    held.send_replace(None);
                    settings.app_lease_acquire_interval
                }
                Err(e) => {
                    tracing::warn!(hub = %self.hub.name(), error = e.chain(), "cannot get hold of the app lease");
                    owner.status().failed(&e);
                    if held.borrow().is_some_and(|until| until <= self.hub.awake().now()) {
                        held.send_replace(None);
                    }
                    UNKNOWN_INTERVAL.min(settings.app_lease_renew_interval)
                }
            };
            let deadline = held.borrow().map(|until| self.hub.awake().on_timer(until));
            tokio::select! {
                biased;
                () = tokio::time::sleep(wait) => {}
                () = at(deadline) => {}
            }
        }
    }

    /// Asks whoever holds the lease, by way of the info blob, to give it to this application.
    async fn demand(&self, kind: PartitionManagerKind) {
        let own = self.id.to_string();
        let info = match self.info().await {
            Ok(info) if info.owner.as_deref() == Some(own.as_str()) || info.owner.is_none() => return,
            Ok(info) => info,
            Err(e) => {
                tracing::warn!(hub = %self.hub.name(), error = e.chain(), "cannot ask for the app lease");
                return;
            }
        };
        tracing::warn!(
            hub = %self.hub.name(), app_name = self.hub.settings.app_name, owner = info.owner,
            "taking the app lease from another application"
        );
        self.write(&Info { desired_swap: Some(own), ..info }).await;
        // Its workers may read queues until their next renewal fails, and only the legacy manager lets two
        // workers read one queue. Source: `AppLeaseManager.ForceChangeAppLeaseAsync`.
        if kind == PartitionManagerKind::Legacy {
            tokio::time::sleep(self.hub.settings.app_lease_renew_interval).await;
        }
    }

    async fn info(&self) -> Result<Info, ServiceError> {
        let read = self.hub.account.blobs.get_blob(&self.container, &self.blob);
        let blob = self.bounded("cannot read the app-lease info blob", read).await?;
        Ok(blob.map(|b| Info::parse(&b.content)).unwrap_or_default())
    }

    async fn write(&self, info: &Info) {
        let blobs = &self.hub.account.blobs;
        let put = blobs.put_blob(&self.container, &self.blob, info.to_bytes(), PutBlob::default());
        if let Err(e) = self.bounded("cannot write the app-lease info blob", put).await {
            tracing::debug!(hub = %self.hub.name(), error = e.chain(), "nobody is told who has the app lease");
        }
    }

    /// Takes the lease, by changing another application's where it was told to step aside.
    /// `Ok(false)`: another application holds it.
    async fn acquire(&self) -> Result<bool, ServiceError> {
        let blobs = &self.hub.account.blobs;
        let info = self.info().await?;
        let own = self.id.to_string();
        let swap_from = info.owner.as_deref().and_then(|owner| Uuid::parse_str(owner).ok());
        let taken = match swap_from.filter(|_| info.desired_swap.as_deref() == Some(own.as_str())) {
            Some(owner) => {
                let change = blobs.change_lease(&self.container, None, owner, self.id);
                match self.bounded("cannot change the app lease", change).await {
                    // The owner's lease has run out, or the blob names the wrong one.
                    Err(e) if e.kind() == ErrorKind::SessionAborted => self.acquire_free().await,
                    // A change does not prolong it.
                    Ok(()) => self.renew().await.map(drop),
                    other => other,
                }
            }
            None => self.acquire_free().await,
        };
        match taken {
            Ok(()) => {}
            Err(e) if e.kind() == ErrorKind::SessionAborted => {
                tracing::warn!(
                    hub = %self.hub.name(),
                    app_name = self.hub.settings.app_name,
                    owner = info.owner,
                    "another application holds the app lease; waiting for it. Use its app name to share the \
                     hub, or take the lease from it"
                );
                return Ok(false);
            }
            // Somebody deleted the container; with it went the lease.
            Err(e) if e.kind() == ErrorKind::NotFound => {
                let create = blobs.create_container(&self.container);
                self.bounded("cannot create the app-lease container", create).await?;
                return Err(e);
            }
            Err(e) => return Err(e),
        }
        if info.owner.as_deref() != Some(own.as_str()) || info.desired_swap.is_some() {
            self.write(&Info { owner: Some(own), desired_swap: None }).await;
        }
        Ok(true)
    }

    async fn acquire_free(&self) -> Result<(), ServiceError> {
        let interval = self.hub.settings.app_lease_interval;
        let acquire = self.hub.account.blobs.acquire_lease(&self.container, None, self.id, interval);
        self.bounded("cannot acquire the app lease", acquire).await
    }

    /// Prolongs the lease. `Ok(false)`: it is lost.
    async fn renew(&self) -> Result<bool, ServiceError> {
        let renew = self.hub.account.blobs.renew_lease(&self.container, None, self.id);
        match self.bounded("cannot renew the app lease", renew).await {
            Ok(()) => Ok(true),
            Err(e) if matches!(e.kind(), ErrorKind::SessionAborted | ErrorKind::NotFound) => Ok(false),
            Err(e) => Err(e),
        }
    }

    async fn bounded<T>(
        &self,
        what: &'static str,
        request: impl Future<Output = taskhub_storage::Result<T>>,
    ) -> Result<T, ServiceError> {
        match tokio::time::timeout(REQUEST_TIMEOUT, request).await {
            Ok(done) => done.map_err(|e| self.hub.failed(what, e)),
            Err(_) => Err(ServiceError::new(
                ErrorKind::Unavailable,
                format!("{what}: the request took too long. hub=`{}`", self.hub.name()),
            )),
        }
    }
}

/// Waits until a moment; for ever without one.
async fn at(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_info_blob_is_written_byte_for_byte_as_dtfx_writes_it() {
        let info = Info { owner: Some("811c9dc5-0000-0000-0000-000000000000".into()), desired_swap: None };
        let text = r#"{"OwnerId":"811c9dc5-0000-0000-0000-000000000000","DesiredSwapId":null}"#;
        assert_eq!(info.to_bytes(), text);
        assert_eq!(Info::parse(text.as_bytes()), info);
        assert_eq!(Info::parse(b"{}"), Info::default());
        assert_eq!(Info::parse(b"\xff"), Info::default());
    }
}
