use std::time::Duration;

use taskhub_core::Timestamp;
use uuid::Uuid;

use crate::LeaseState;

/// The lease of a blob or container. Each method answers with the service's error code, to be sent with
/// status 409 for a lease operation and 412 for a write.
#[derive(Debug, Clone, Copy, Default)]
pub(super) enum Lease {
    /// Never taken, released, or forgotten after its end.
    #[default]
    None,
    /// Taken. Once expired it can be renewed or released until somebody takes it or writes.
    Taken { id: Uuid, duration: Duration, until: Timestamp },
    /// Broken by somebody; its holder can only release it.
    Broken { id: Uuid },
}

/// What a lease protects, for the error codes.
#[derive(Debug, Clone, Copy)]
pub(super) enum Protected {
    Blob,
    Container,
}

impl Lease {
    pub(super) fn state(&self, now: Timestamp) -> LeaseState {
        match self {
            Self::Taken { until, .. } if *until > now => LeaseState::Leased,
            _ => LeaseState::Free,
        }
    }

    pub(super) fn acquire(
        &mut self,
        lease_id: Uuid,
        duration: Duration,
        now: Timestamp,
    ) -> Result<(), &'static str> {
        match self {
            Self::Taken { id, until, .. } if *until > now && *id != lease_id => Err("LeaseAlreadyPresent"),
            _ => {
                *self = Self::Taken { id: lease_id, duration, until: now + duration };
                Ok(())
            }
        }
    }

    pub(super) fn renew(&mut self, lease_id: Uuid, now: Timestamp) -> Result<(), &'static str> {
        match self {
            Self::Taken { id, duration, until } if *id == lease_id => {
                *until = now + *duration;
                Ok(())
            }
            Self::Broken { id } if *id == lease_id => Err("LeaseIsBrokenAndCannotBeRenewed"),
            _ => Err("LeaseIdMismatchWithLeaseOperation"),
        }
    }

    pub(super) fn change(
        &mut self,
        lease_id: Uuid,
        new_lease_id: Uuid,
        now: Timestamp,
    ) -> Result<(), &'static str> {
        match self {
            Self::Taken { id, until, .. } if *until > now => {
                if *id != lease_id && *id != new_lease_id {
                    return Err("LeaseIdMismatchWithLeaseOperation");
                }
                *id = new_lease_id;
                Ok(())
            }
            Self::Broken { id } if *id == lease_id => Err("LeaseIsBrokenAndCannotBeChanged"),
            _ => Err("LeaseNotPresentWithLeaseOperation"),
        }
    }

    pub(super) fn release(&mut self, lease_id: Uuid) -> Result<(), &'static str> {
        match self {
            Self::Taken { id, .. } | Self::Broken { id } if *id == lease_id => {
                *self = Self::None;
                Ok(())
            }
            _ => Err("LeaseIdMismatchWithLeaseOperation"),
        }
    }

    /// Ends it at once. That there is none is no error.
    pub(super) fn end(&mut self) {
        if let Self::Taken { id, .. } = *self {
            *self = Self::Broken { id };
        }
    }

    /// Whether a write or delete that names `lease_id` is allowed.
    pub(super) fn check_write(
        &self,
        protected: Protected,
        lease_id: Option<Uuid>,
        now: Timestamp,
    ) -> Result<(), &'static str> {
        let code = |blob, container| match protected {
            Protected::Blob => blob,
            Protected::Container => container,
        };
        match (self, lease_id) {
            (Self::Taken { until, .. }, None) if *until > now => Err("LeaseIdMissing"),
            (_, None) => Ok(()),
            (Self::Taken { id, until, .. }, Some(lease_id)) if *until > now => {
                if *id == lease_id {
                    return Ok(());
                }
                Err(code("LeaseIdMismatchWithBlobOperation", "LeaseIdMismatchWithContainerOperation"))
            }
            (Self::Taken { .. }, Some(_)) => Err("LeaseLost"),
            (_, Some(_)) => {
                Err(code("LeaseNotPresentWithBlobOperation", "LeaseNotPresentWithContainerOperation"))
            }
        }
    }

    /// A write has happened: an ended lease can no longer be renewed.
    pub(super) fn forget_if_ended(&mut self, now: Timestamp) {
        if self.state(now) == LeaseState::Free {
            *self = Self::None;
        }
    }
}
