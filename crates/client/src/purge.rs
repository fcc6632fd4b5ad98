use std::fmt;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures::{StreamExt as _, stream};
use taskhub_core::{
    ErrorKind, InstanceFetch, InstanceId, InstanceQuery, OrchestrationStatus, PurgeGate, PurgeMany,
    PurgeResult, PurgedInstance, ServiceError, Timestamp,
};
use tokio::sync::Mutex;
use tokio::time::Instant;

use crate::{ClientError, Operation, TaskHubClient, instance_id};

/// Instances purged at once when the caller does not say. Source: Azure/durabletask, a third of
/// `MaxStorageOperationConcurrency` (25 per processor) on one processor.
const CONCURRENCY: usize = 8;
/// Instances held at once: those of one page. Source: Azure/durabletask, `PurgeInstanceHistoryAsync`.
const PAGE_SIZE: u32 = 100;
/// Ids of failures that are remembered; more are counted.
const MAX_FAILED_IDS: usize = 100;

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
    /// Instance id begins with.
    pub instance_id_prefix: Option<String>,
    /// Entities too, which have no final status: all that last did something in the time given.
    pub include_entities: bool,
}

impl PurgeFilter {
    /// What a purge may remove of these statuses: any final one when none is given.
    ///
    /// # Errors
    /// `Invalid`: there are some, but no final one.
    fn final_statuses(&self) -> Result<Vec<OrchestrationStatus>, ClientError> {
        let wanted = |s: &OrchestrationStatus| self.statuses.is_empty() || self.statuses.contains(s);
        let statuses: Vec<_> = FINISHED.into_iter().filter(wanted).collect();
        if statuses.is_empty() { Err(ClientError::NothingToPurge) } else { Ok(statuses) }
    }
}

/// Receives how far a purge is.
pub type PurgeProgress = Arc<dyn Fn(&Purged) + Send + Sync>;

/// How to purge many instances.
#[derive(Clone)]
pub struct PurgeOptions {
    /// Instances purged at once.
    pub concurrency: usize,
    /// Instances begun per second at most.
    pub per_second: Option<NonZeroU32>,
    /// Time after which no further instance is begun.
    pub timeout: Option<Duration>,
    /// Where an earlier purge with the same filter has ended ([`Purged::cursor`]).
    pub cursor: Option<String>,
    /// Called after each page.
    pub progress: Option<PurgeProgress>,
}

impl Default for PurgeOptions {
    fn default() -> Self {
        Self { concurrency: CONCURRENCY, per_second: None, timeout: None, cursor: None, progress: None }
    }
}

impl fmt::Debug for PurgeOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PurgeOptions")
            .field("concurrency", &self.concurrency)
            .field("per_second", &self.per_second)
            .field("timeout", &self.timeout)
            .finish_non_exhaustive()
    }
}

/// What a purge of many instances did.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Purged {
    /// What was removed.
    pub removed: PurgeResult,
    /// The first hundred instances that could not be removed; the reasons are logged.
    pub failed: Vec<InstanceId>,
    /// How many could not be removed.
    pub failures: u64,
    /// With a timeout: whether everything was looked at and removed in time.
    pub is_complete: Option<bool>,
    /// Where to go on; `None` when everything has been looked at.
    pub cursor: Option<String>,
}

impl Purged {
    fn add(&mut self, id: InstanceId, result: Result<PurgeResult, ClientError>) {
        match result {
            Ok(removed) => self.removed += removed,
            Err(error) => {
                tracing::warn!(instance = %id, error = &error as &dyn std::error::Error, "not purged");
                self.failures += 1;
                if self.failed.len() < MAX_FAILED_IDS {
                    self.failed.push(id);
                }
            }
        }
    }
}

/// A part of the hub that a purge walks through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    Orchestrations,
    Entities,
}

/// Lets no more than so many instances begin in a second, and none when the time is up.
#[derive(Debug)]
struct Limits {
    interval: Option<Duration>,
    next: Mutex<Instant>,
    deadline: Option<Instant>,
}

impl Limits {
    fn of(options: &PurgeOptions) -> Self {
        let now = Instant::now();
        Self {
            interval: options.per_second.map(|n| Duration::from_secs(1) / n.get()),
            next: Mutex::new(now),
            // A timeout beyond all clocks is none.
            deadline: options.timeout.and_then(|timeout| now.checked_add(timeout)),
        }
    }

    fn time_is_up(&self) -> bool {
        self.deadline.is_some_and(|at| Instant::now() >= at)
    }
}

#[async_trait]
impl PurgeGate for Limits {
    async fn pass(&self) -> bool {
        if let Some(interval) = self.interval {
            let at = {
                let mut next = self.next.lock().await;
                let at = (*next).max(Instant::now());
                *next = at + interval;
                at
            };
            tokio::time::sleep_until(at).await;
        }
        !self.time_is_up()
    }
}

impl TaskHubClient {
    /// Removes rows and blobs of one instance; zeros when there is no such instance. With status checks only
    /// an instance that has finished, or an entity.
    ///
    /// # Errors
    /// `Invalid`: a blank id, or with status checks an instance that has not finished. Others: the
    /// backend failed.
    pub async fn purge(&self, instance_id: &InstanceId) -> Result<PurgeResult, ClientError> {
        instance_id::check(instance_id)?;
        let failed = ClientError::service(Operation::Purge);
        if !self.checks_status() || instance_id.is_entity() {
            return self.service().purge_instance(instance_id).await.map_err(failed);
        }
        if let Some(purged) = self.service().purge_if_finished(instance_id).await.map_err(failed)? {
            return Ok(purged);
        }
        let (operation, instance) = (Operation::Purge, instance_id.clone());
        let state = self.state(instance_id, InstanceFetch::NONE).await?;
        Err(match state.and_then(|state| state.status) {
            Some(status) => ClientError::WrongStatus { operation, instance, status },
            None => ClientError::UnknownStatus { operation, instance },
        })
    }

    /// Removes several instances; see [`TaskHubClient::purge`] for each.
    ///
    /// # Errors
    /// None for single instances, which are counted as failures.
    pub async fn purge_all(&self, instance_ids: Vec<InstanceId>) -> Result<Purged, ClientError> {
        let mut purged = Purged::default();
        let mut purging = stream::iter(instance_ids)
            .map(|id| async move {
                let result = self.purge(&id).await;
                (id, result)
            })
            .buffer_unordered(CONCURRENCY);
        while let Some((id, result)) = purging.next().await {
            purged.add(id, result);
        }
        Ok(purged)
    }

    /// Removes all finished instances that match. One that cannot be removed does not stop the others.
    ///
    /// # Errors
    /// As [`TaskHubClient::purge_with`].
    pub async fn purge_matching(&self, filter: &PurgeFilter) -> Result<Purged, ClientError> {
        self.purge_with(filter, PurgeOptions::default()).await
    }

    /// Removes all finished instances that match, a page of a hundred at a time, so that memory does not grow
    /// with the hub. One that cannot be removed does not stop the others; one that is started again meanwhile
    /// stays. Dropped or timed out, a later call goes on from [`Purged::cursor`], or begins anew.
    ///
    /// Differs: in DTFx a filter without a final status removes running instances and entities too.
    ///
    /// # Errors
    /// `Invalid`: the filter has statuses, but no final one; a cursor of something else. Others: the list
    /// could not be read.
    pub async fn purge_with(
        &self,
        filter: &PurgeFilter,
        options: PurgeOptions,
    ) -> Result<Purged, ClientError> {
        let statuses = filter.final_statuses()?;
        let (mut part, mut continuation) = parse_cursor(options.cursor.as_deref())?;
        let limits = Limits::of(&options);
        let mut purged = Purged::default();
        loop {
            if limits.time_is_up() {
                purged.cursor = Some(cursor(part, continuation.as_deref()));
                break;
            }
            let Some(query) = filter.query(part, &statuses, continuation.clone()) else {
                break;
            };
            let page = self.list(&query).await?;
            let ids = page.instances.into_iter().map(|state| state.instance.instance_id);
            let ids = ids.filter(|id| id.is_entity() == (part == Part::Entities));
            let in_time = self.purge_page(ids, &options, &limits, part, &mut purged).await;
            if !in_time {
                // The page is looked at again: what is gone by then takes no time.
                purged.cursor = Some(cursor(part, continuation.as_deref()));
                break;
            }
            let is_stuck = page.continuation == continuation;
            continuation = page.continuation.filter(|_| !is_stuck);
            if continuation.is_none() {
                match part {
                    Part::Orchestrations if filter.include_entities => part = Part::Entities,
                    _ => break,
                }
            }
            if let Some(progress) = &options.progress {
                purged.cursor = Some(cursor(part, continuation.as_deref()));
                progress(&purged);
                purged.cursor = None;
            }
        }
        if let Some(progress) = &options.progress {
            progress(&purged);
        }
        purged.is_complete = options.timeout.map(|_| purged.cursor.is_none() && purged.failures == 0);
        Ok(purged)
    }

    /// Purges the instances of a page; whether all of them were begun in time.
    async fn purge_page(
        &self,
        ids: impl Iterator<Item = InstanceId>,
        options: &PurgeOptions,
        limits: &Limits,
        part: Part,
        purged: &mut Purged,
    ) -> bool {
        let purge = PurgeMany {
            instance_ids: ids.collect(),
            // One that has been started again since it was listed stays.
            only_finished: part == Part::Orchestrations,
            concurrency: options.concurrency.max(1),
        };
        let wanted = purge.instance_ids.len();
        let done = self.service().purge_many(purge, limits).await;
        let in_time = done.len() == wanted;
        for PurgedInstance { instance_id, result } in done {
            let result = result.map(Option::unwrap_or_default);
            purged.add(instance_id, result.map_err(ClientError::service(Operation::Purge)));
        }
        in_time
    }
}

impl PurgeFilter {
    /// Lists of what a purge would remove: orchestrations without entities, then the entities, where these are
    /// wanted.
    ///
    /// # Errors
    /// `Invalid`: the filter has statuses, but no final one.
    pub fn queries(&self) -> Result<Vec<InstanceQuery>, ClientError> {
        let statuses = self.final_statuses()?;
        let parts = [Some(Part::Orchestrations), self.include_entities.then_some(Part::Entities)];
        Ok(parts.into_iter().flatten().filter_map(|part| self.query(part, &statuses, None)).collect())
    }

    /// The list of a part; `None` when nothing of it is wanted.
    fn query(
        &self,
        part: Part,
        statuses: &[OrchestrationStatus],
        continuation: Option<String>,
    ) -> Option<InstanceQuery> {
        let prefix = self.instance_id_prefix.clone().filter(|prefix| !prefix.is_empty());
        let is_entities = part == Part::Entities;
        let prefix = match prefix {
            Some(prefix) if is_entities => Some(prefix).filter(|prefix| prefix.starts_with('@')),
            None if is_entities => Some("@".to_owned()),
            other => other,
        };
        if is_entities && prefix.is_none() {
            return None;
        }
        Some(InstanceQuery {
            created_from: self.created_from,
            created_to: self.created_to,
            statuses: if is_entities { Vec::new() } else { statuses.to_vec() },
            instance_id_prefix: prefix,
            exclude_entities: !is_entities,
            fetch: InstanceFetch::NONE,
            page_size: Some(PAGE_SIZE),
            continuation,
            ..InstanceQuery::default()
        })
    }
}

/// `o` or `e` for the part, and where the page begins.
fn cursor(part: Part, continuation: Option<&str>) -> String {
    let letter = if part == Part::Entities { 'e' } else { 'o' };
    format!("{letter}:{}", continuation.unwrap_or_default())
}

fn parse_cursor(cursor: Option<&str>) -> Result<(Part, Option<String>), ClientError> {
    let Some(cursor) = cursor else { return Ok((Part::Orchestrations, None)) };
    let (part, continuation) = match cursor.split_once(':') {
        Some(("o", continuation)) => (Part::Orchestrations, continuation),
        Some(("e", continuation)) => (Part::Entities, continuation),
        _ => {
            let source = ServiceError::new(ErrorKind::Invalid, "this is not the cursor of a purge");
            return Err(ClientError::Service { operation: Operation::Purge, source });
        }
    };
    Ok((part, Some(continuation.to_owned()).filter(|text| !text.is_empty())))
}

#[cfg(test)]
mod tests {
    use taskhub_core::OrchestrationStatus::{Completed, Failed, Running, Terminated};

    use super::*;
    use crate::fake::{FakeService, client};

    fn hub() -> FakeService {
        FakeService::default()
            .with_state("@counter@a", Running)
            .with_state("completed", Completed)
            .with_state("failed", Failed)
            .with_state("running", Running)
            .with_state("terminated", Terminated)
    }

    #[tokio::test]
    async fn only_finished_instances_are_purged() {
        let (client, fake) = client(hub());
        let purged = client.purge_matching(&PurgeFilter::default()).await.unwrap();
        assert_eq!((purged.removed.instances, purged.failed.len(), purged.is_complete), (3, 0, None));
        assert_eq!(fake.ids(), ["@counter@a", "running"]);
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
        assert_eq!(fake.ids(), ["@counter@a", "completed", "running", "terminated"]);
    }

    #[tokio::test]
    async fn entities_are_purged_on_request_only() {
        let (client, fake) = client(hub().with_state("@other@b", Completed));
        let mut filter = PurgeFilter { instance_id_prefix: Some("@".into()), ..PurgeFilter::default() };
        assert_eq!(client.purge_matching(&filter).await.unwrap().removed.instances, 0);
        filter.include_entities = true;
        assert_eq!(client.purge_matching(&filter).await.unwrap().removed.instances, 2);
        assert_eq!(fake.ids(), ["completed", "failed", "running", "terminated"]);
    }

    fn many(instances: usize) -> FakeService {
        (0..instances).fold(FakeService::default(), |fake, n| fake.with_state(&format!("i{n:05}"), Completed))
    }

    #[tokio::test(start_paused = true)]
    async fn a_timeout_leaves_a_cursor_from_which_the_next_call_goes_on() {
        let (client, fake) = client(many(450));
        let filter = PurgeFilter::default();
        let slow = |cursor: Option<String>| PurgeOptions {
            per_second: NonZeroU32::new(100),
            timeout: Some(Duration::from_millis(2_505)),
            cursor,
            ..PurgeOptions::default()
        };
        let first = client.purge_with(&filter, slow(None)).await.unwrap();
        assert_eq!((first.removed.instances, first.is_complete), (251, Some(false)));
        let second = client.purge_with(&filter, slow(first.cursor)).await.unwrap();
        assert_eq!((second.removed.instances, second.is_complete, second.cursor), (199, Some(true), None));
        assert!(fake.ids().is_empty());
        let wrong = client.purge_with(&filter, slow(Some("x".into()))).await.unwrap_err();
        assert_eq!(wrong.kind(), ErrorKind::Invalid);
    }

    #[tokio::test(start_paused = true)]
    async fn progress_is_told_after_each_page() {
        let (client, _) = client(many(250));
        let seen = Arc::new(std::sync::Mutex::new(Vec::new()));
        let told = seen.clone();
        let progress: PurgeProgress = Arc::new(move |p| told.lock().unwrap().push(p.removed.instances));
        let options = PurgeOptions { progress: Some(progress), ..PurgeOptions::default() };
        client.purge_with(&PurgeFilter::default(), options).await.unwrap();
        assert_eq!(seen.lock().unwrap().last(), Some(&250));
        assert!(seen.lock().unwrap().len() >= 3);
    }

    #[tokio::test]
    async fn several_instances_are_purged_by_id() {
        let (client, fake) = client(hub());
        let client = client.with_status_checks(true);
        let ids = ["completed", "running", "nobody", "@counter@a"].map(InstanceId::from).to_vec();
        let purged = client.purge_all(ids).await.unwrap();
        assert_eq!((purged.removed.instances, purged.failures), (2, 1));
        assert_eq!(purged.failed, ["running".into()]);
        assert_eq!(fake.ids(), ["failed", "running", "terminated"]);
    }
}
