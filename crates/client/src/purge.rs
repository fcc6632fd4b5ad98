use std::sync::Arc;

use taskhub_core::{InstanceFetch, InstanceId, InstanceQuery, OrchestrationStatus, PurgeResult, Timestamp};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use crate::{ClientError, TaskHubClient};

/// Instances purged at once. Source: Azure/durabletask, a third of `MaxStorageOperationConcurrency`
/// (25 per processor) on one processor.
const CONCURRENCY: usize = 8;

/// Statuses that a purge by filter may remove.
const FINISHED: [OrchestrationStatus; 4] = [
    OrchestrationStatus::Completed,
    OrchestrationStatus::Failed,
    OrchestrationStatus::Canceled,
    OrchestrationStatus::Terminated,
];

/// Which finished instances to remove.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PurgeFilter {
    /// Created at or after.
    pub created_from: Option<Timestamp>,
    /// Created at or before.
    pub created_to: Option<Timestamp>,
    /// With one of these statuses; empty means any final one.
    pub statuses: Vec<OrchestrationStatus>,
}

/// What a purge by filter did.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Purged {
    /// What was removed.
    pub removed: PurgeResult,
    /// Instances that could not be removed; the reasons are logged.
    pub failed: Vec<InstanceId>,
}

impl TaskHubClient {
    /// Removes all finished instances that match. One that cannot be removed does not stop the others.
    ///
    /// Differs: in DTFx a filter without a final status removes running instances too.
    ///
    /// # Errors
    /// `Invalid`: the filter has statuses, but no final one. Others: the list could not be read.
    pub async fn purge_matching(&self, filter: &PurgeFilter) -> Result<Purged, ClientError> {
        let statuses: Vec<_> = FINISHED
            .into_iter()
            .filter(|s| filter.statuses.is_empty() || filter.statuses.contains(s))
            .collect();
        if statuses.is_empty() {
            return Err(ClientError::NothingToPurge);
        }
        let mut pages = self.pages(InstanceQuery {
            created_from: filter.created_from,
            created_to: filter.created_to,
            statuses,
            fetch: InstanceFetch::NONE,
            page_size: Some(100),
            ..InstanceQuery::default()
        });
        let permits = Arc::new(Semaphore::new(CONCURRENCY));
        let mut purged = Purged::default();
        while let Some(page) = pages.next().await? {
            let mut running = JoinSet::new();
            for state in page.instances {
                let (client, permits, id) = (self.clone(), permits.clone(), state.instance.instance_id);
                running.spawn(async move {
                    let _permit = permits.acquire_owned().await;
                    let result = client.purge(&id).await;
                    (id, result)
                });
            }
            while let Some(done) = running.join_next().await {
                match done {
                    Ok((_, Ok(removed))) => purged.removed += removed,
                    Ok((id, Err(error))) => {
                        tracing::warn!(instance = %id, error = &error as &dyn std::error::Error, "not purged");
                        purged.failed.push(id);
                    }
                    Err(ended) => {
                        if let Ok(panic) = ended.try_into_panic() {
                            std::panic::resume_unwind(panic);
                        }
                    }
                }
            }
        }
        Ok(purged)
    }
}

#[cfg(test)]
mod tests {
    use taskhub_core::ErrorKind;
    use taskhub_core::OrchestrationStatus::{Completed, Failed, Running, Terminated};

    use super::*;
    use crate::fake::{FakeService, client};

    fn hub() -> FakeService {
        FakeService::default()
            .with_state("completed", Completed)
            .with_state("failed", Failed)
            .with_state("running", Running)
            .with_state("terminated", Terminated)
    }

    #[tokio::test]
    async fn only_finished_instances_are_purged() {
        let (client, fake) = client(hub());
        let purged = client.purge_matching(&PurgeFilter::default()).await.unwrap();
        assert_eq!((purged.removed.instances, purged.failed.len()), (3, 0));
        assert_eq!(fake.ids(), ["running"]);
    }

    #[tokio::test]
    async fn statuses_that_are_not_final_are_left_out_and_alone_refused() {
        let (client, fake) = client(hub());
        let filter = |statuses: &[OrchestrationStatus]| PurgeFilter {
            statuses: statuses.to_vec(),
            ..PurgeFilter::default()
        };
        let error = client.purge_matching(&filter(&[Running])).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Invalid);
        client.purge_matching(&filter(&[Running, Failed])).await.unwrap();
        assert_eq!(fake.ids(), ["completed", "running", "terminated"]);
    }
}
