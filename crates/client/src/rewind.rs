use taskhub_core::{InstanceId, RewindOutcome, RewindRequest, Rewound};

use crate::{ClientError, Operation, TaskHubClient, instance_id};

/// How to rewind.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Rewind {
    reason: Option<String>,
    allow_timers: bool,
}

impl Rewind {
    /// Without a reason; instances with durable timers are refused.
    pub fn new() -> Self {
        Self::default()
    }

    /// Why.
    #[must_use]
    pub fn reason(mut self, reason: impl Into<String>) -> Self {
        self.reason = Some(reason.into());
        self
    }

    /// Rewinds instances with durable timers too. Timers that have fired stay fired; others fire when they
    /// are due, or at once.
    #[must_use]
    pub fn allow_timers(mut self) -> Self {
        self.allow_timers = true;
        self
    }
}

impl TaskHubClient {
    /// Lets a failed instance go on from before its failure: the failed activities and sub-orchestrations
    /// run again, what has succeeded does not, and failures that the code has handled stay. Its status is
    /// `Pending` until it ends. What was cut off is continued by calling this again.
    ///
    /// # Errors
    /// `NotFound`: no such instance. `Invalid`: it has not failed, or has durable timers; nothing was changed.
    /// Others: the backend failed.
    pub async fn rewind(&self, instance_id: &InstanceId, rewind: Rewind) -> Result<Rewound, ClientError> {
        instance_id::check(instance_id)?;
        let request = RewindRequest {
            instance_id: instance_id.clone(),
            reason: rewind.reason,
            allow_timers: rewind.allow_timers,
        };
        let operation = Operation::Rewind;
        let outcome = self.service().rewind_instance(&request).await;
        match outcome.map_err(ClientError::service(operation))? {
            RewindOutcome::Rewound(rewound) => Ok(rewound),
            RewindOutcome::NotFound => Err(ClientError::NotFound { instance: instance_id.clone() }),
            RewindOutcome::WrongStatus { status } => Err(match status {
                Some(status) => ClientError::WrongStatus { operation, instance: instance_id.clone(), status },
                None => ClientError::UnknownStatus { operation, instance: instance_id.clone() },
            }),
            RewindOutcome::HasTimers { instance } => Err(ClientError::HasTimers { instance }),
            RewindOutcome::NoHistory { instance } => Err(ClientError::NoHistory { instance }),
        }
    }

    /// Makes this application (by its name in the settings) the one that processes the hub.
    ///
    /// # Errors
    /// `Invalid`: the hub is not configured for one application at a time. Others: the backend failed.
    pub async fn make_primary(&self) -> Result<(), ClientError> {
        self.service().make_primary().await.map_err(ClientError::service(Operation::MakePrimary))
    }
}

#[cfg(test)]
mod tests {
    use taskhub_core::ErrorKind;
    use taskhub_core::OrchestrationStatus::{Completed, Failed, Running};

    use super::*;
    use crate::fake::{FakeService, client};

    #[tokio::test]
    async fn only_failed_instances_are_rewound() {
        let fake = FakeService::default()
            .with_state("failed", Failed)
            .with_state("running", Running)
            .with_state("completed", Completed);
        let (client, fake) = client(fake);
        let rewind = Rewind::new().reason("fixed").allow_timers();
        client.rewind(&"failed".into(), rewind).await.unwrap();
        assert_eq!(fake.rewound()[0].reason.as_deref(), Some("fixed"));
        assert!(fake.rewound()[0].allow_timers);
        for (id, kind) in [
            ("running", ErrorKind::Invalid),
            ("completed", ErrorKind::Invalid),
            ("nobody", ErrorKind::NotFound),
            (" ", ErrorKind::Invalid),
        ] {
            let error = client.rewind(&id.into(), Rewind::new()).await.unwrap_err();
            assert_eq!(error.kind(), kind, "{id}");
        }
        let error = client.rewind(&"running".into(), Rewind::new()).await.unwrap_err();
        assert_eq!(
            error.to_string(),
            "cannot rewind the instance in its current status. instance=`running` status=`Running`"
        );
    }
}
