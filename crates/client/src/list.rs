use taskhub_core::{InstancePage, InstanceQuery};

use crate::{ClientError, Operation, TaskHubClient};

impl TaskHubClient {
    /// One page of instances. The page may be short or empty and still have a continuation.
    ///
    /// # Errors
    /// The backend failed, or does not know the continuation (`Invalid`).
    pub async fn list(&self, query: &InstanceQuery) -> Result<InstancePage, ClientError> {
        self.service().list_instances(query).await.map_err(ClientError::service(Operation::List))
    }

    /// All pages from the query's continuation (or the beginning) on.
    pub fn pages(&self, query: InstanceQuery) -> InstancePages {
        InstancePages { client: self.clone(), query, ended: false }
    }
}

/// Pages of a list, fetched one at a time. Dropping it between pages ends the walk.
#[derive(Debug)]
pub struct InstancePages {
    client: TaskHubClient,
    query: InstanceQuery,
    ended: bool,
}

impl InstancePages {
    /// The next page, `None` after the last one. After an error the same page is tried again.
    ///
    /// # Errors
    /// As [`TaskHubClient::list`].
    pub async fn next(&mut self) -> Result<Option<InstancePage>, ClientError> {
        if self.ended {
            return Ok(None);
        }
        let page = self.client.list(&self.query).await?;
        // A continuation that stays the same would repeat its page for ever.
        self.ended = page.continuation.is_none() || page.continuation == self.query.continuation;
        self.query.continuation.clone_from(&page.continuation);
        Ok(Some(page))
    }
}

#[cfg(test)]
mod tests {
    use taskhub_core::OrchestrationStatus;

    use super::*;
    use crate::fake::{FakeService, client};

    #[tokio::test]
    async fn pages_follow_the_continuation_to_the_end() {
        let mut fake = FakeService::default();
        for id in ["a", "b", "c", "d", "e"] {
            fake = fake.with_state(id, OrchestrationStatus::Completed);
        }
        let (client, _) = client(fake);
        let mut pages = client.pages(InstanceQuery { page_size: Some(2), ..InstanceQuery::default() });
        let mut sizes = Vec::new();
        while let Some(page) = pages.next().await.unwrap() {
            sizes.push(page.instances.len());
        }
        assert_eq!(sizes, [2, 2, 1]);
    }
}
