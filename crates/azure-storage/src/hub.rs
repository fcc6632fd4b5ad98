//! The resources of a task hub: detect, create, delete, look into.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use futures::future::try_join_all;
use taskhub_core::{
    Clock, ErrorKind, IdSource, OrchestrationStatus, PartitionId, ServiceError, TaskHubName, Timestamp,
};
use taskhub_storage as storage;
use taskhub_storage::{PutBlob, StorageAccount, TableQuery};

use crate::doorbell::Doorbell;
use crate::error::{failed, unreadable};
use crate::metrics::StorageMetrics;
use crate::names::{ResourceNames, TASK_HUB_INFO_BLOB};
use crate::partition::awake::AwakeClock;
use crate::partition::evidence::chosen;
use crate::partition::ownership::PartitionOwnership;
use crate::partition::table::PartitionLease;
use crate::settings::AzureStorageSettings;

/// Partitions of a hub that is created without a number. Source: Azure/durabletask,
/// `AzureStorageOrchestrationServiceSettings.DefaultPartitionCount`.
pub const DEFAULT_PARTITION_COUNT: u32 = 4;
/// Most partitions a hub can have. Source: Azure/durabletask, `AzureStorageOrchestrationService`.
pub(crate) const MAX_PARTITION_COUNT: u32 = 16;
/// How often a create is repeated while the service still deletes a resource of the same name.
const BEING_DELETED_ATTEMPTS: u32 = 40;
const BEING_DELETED_INTERVAL: Duration = Duration::from_secs(2);
/// How long an incomplete hub may take until its creator has finished.
const INCOMPLETE_ATTEMPTS: u32 = 10;
const INCOMPLETE_INTERVAL: Duration = Duration::from_secs(1);

/// Which of DTFx's partition managers a hub uses.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum PartitionManagerKind {
    /// Rows of the Partitions table, the default of provider 2.x.
    #[default]
    Table,
    /// Two lease blobs per partition, the default of provider 1.x.
    Safe,
    /// One lease blob per partition.
    Legacy,
}

impl PartitionManagerKind {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Table, Self::Safe, Self::Legacy];

    /// Its name in settings, logs and errors.
    pub fn name(self) -> &'static str {
        match self {
            Self::Table => "table",
            Self::Safe => "safe",
            Self::Legacy => "legacy",
        }
    }
}

impl fmt::Display for PartitionManagerKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The rows of the Partitions table.
#[derive(Debug, Default)]
pub(crate) struct PartitionRows {
    pub(crate) rows: Vec<PartitionLease>,
    /// The server's clock when it answered.
    pub(crate) served_at: Option<Timestamp>,
    /// When the last of them was written.
    pub(crate) written_at: Option<Timestamp>,
}

/// What a hub's resources tell of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HubLayout {
    /// Number of control queues.
    pub partition_count: u32,
    /// Who distributes them.
    pub manager: PartitionManagerKind,
}

/// A task hub in a storage account: its names, its services and this process's view of time and ids.
#[derive(Clone)]
pub struct Hub {
    /// Settings of this process.
    pub settings: Arc<AzureStorageSettings>,
    /// The hub's resource names.
    pub names: ResourceNames,
    /// The account.
    pub account: StorageAccount,
    /// Wall clock.
    pub clock: Arc<dyn Clock>,
    /// Ids.
    pub ids: Arc<dyn IdSource>,
    /// What this process counts.
    pub metrics: StorageMetrics,
    awake: Arc<AwakeClock>,
    pub(crate) doorbell: Doorbell,
}

impl fmt::Debug for Hub {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Hub").field("name", &self.settings.task_hub_name).finish_non_exhaustive()
    }
}

/// One queue as [`Hub::inspect`] sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QueueInspection {
    /// Name of the queue.
    pub name: String,
    /// Approximate number of messages, hidden ones included; `None` when the queue is missing.
    pub length: Option<u64>,
    /// Age of the first visible message.
    pub oldest_age: Option<Duration>,
}

/// What a person wants to see of a hub.
#[derive(Debug, Clone)]
pub struct HubInspection {
    /// Layout; `None` when the hub does not exist.
    pub layout: Option<HubLayout>,
    /// Control queues and the work-item queue.
    pub queues: Vec<QueueInspection>,
    /// Rows of the Partitions table.
    pub partitions: Vec<PartitionLease>,
    /// Who reads which queue, whatever the partition manager.
    pub owners: Vec<PartitionOwnership>,
    /// Number of instances by status name.
    pub instances: BTreeMap<String, u64>,
    /// When this was seen.
    pub at: Timestamp,
}

impl Hub {
    /// A hub; nothing is read or written yet.
    ///
    /// # Errors
    /// `Invalid` when a setting is out of range.
    pub fn new(
        settings: AzureStorageSettings,
        account: StorageAccount,
        clock: Arc<dyn Clock>,
        ids: Arc<dyn IdSource>,
    ) -> Result<Self, ServiceError> {
        settings.validate().map_err(|text| ServiceError::new(ErrorKind::Invalid, text))?;
        let names = ResourceNames::new(&settings.task_hub_name, None);
        let metrics = StorageMetrics::default();
        let awake = Arc::new(AwakeClock::new(clock.clone()));
        let doorbell = Doorbell::default();
        Ok(Self { settings: Arc::new(settings), names, account, clock, ids, metrics, awake, doorbell })
    }

    /// Name of the hub.
    pub fn name(&self) -> &TaskHubName {
        &self.settings.task_hub_name
    }

    /// The clock that leases are measured with.
    pub(crate) fn awake(&self) -> &AwakeClock {
        &self.awake
    }

    pub(crate) fn failed(&self, what: impl fmt::Display, error: storage::Error) -> ServiceError {
        failed(self.name(), what, error)
    }

    pub(crate) fn unreadable(
        &self,
        what: impl fmt::Display,
        error: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> ServiceError {
        unreadable(self.name(), what, error)
    }

    /// Reads how many partitions the hub has and who manages them; `None` when there is no hub.
    ///
    /// # Errors
    /// `Invalid` when the settings name another number of partitions; `Data` when the hub's records
    /// contradict each other.
    pub async fn detect(&self) -> Result<Option<HubLayout>, ServiceError> {
        let mut attempt = 0;
        loop {
            attempt += 1;
            match self.detect_once().await? {
                Detected::Nothing => return Ok(None),
                Detected::Complete(layout) => return self.check(layout).map(Some),
                // Another process is creating the hub: queues and rows appear in parallel.
                Detected::Incomplete { .. } if attempt < INCOMPLETE_ATTEMPTS => {
                    tokio::time::sleep(INCOMPLETE_INTERVAL).await;
                }
                // Its creator died. Who says how many partitions it was to have may finish it.
                Detected::Incomplete { rows, queues }
                    if self.settings.partition_count.is_some_and(|n| rows.max(queues) <= n as usize) =>
                {
                    return Ok(None);
                }
                Detected::Incomplete { rows, queues } => {
                    return Err(ServiceError::new(
                        ErrorKind::Data,
                        format!(
                            "the hub's partition rows do not match its control queues. Delete the hub, or finish \
                             its creation by naming its partition count. hub=`{}` rows=`{rows}` queues=`{queues}`",
                            self.name()
                        ),
                    ));
                }
            }
        }
    }

    fn check(&self, layout: HubLayout) -> Result<HubLayout, ServiceError> {
        match self.settings.partition_count {
            Some(wanted) if wanted != layout.partition_count => Err(ServiceError::new(
                ErrorKind::Invalid,
                format!(
                    "the hub has another number of partitions; messages would go to queues that nobody reads. \
                     hub=`{}` configured=`{wanted}` hub_has=`{}`",
                    self.name(),
                    layout.partition_count
                ),
            )),
            _ => Ok(layout),
        }
    }

    async fn detect_once(&self) -> Result<Detected, ServiceError> {
        let rows = self.partition_rows().await?.unwrap_or_default();
        let by_rows = rows.evidence(self.clock.now());
        // Rows that are in use settle it.
        let manager = if by_rows.as_ref().is_some_and(|e| e.live.is_some()) {
            Some(PartitionManagerKind::Table)
        } else {
            let mut evidence: Vec<_> = by_rows.into_iter().collect();
            evidence.extend(self.blob_evidence().await?);
            chosen(&evidence)
        };
        if manager == Some(PartitionManagerKind::Table) {
            let queues = self.control_queues().await?;
            let rows = rows.rows;
            let mut partitions: Vec<_> =
                rows.iter().filter_map(|r| self.names.partition_of_queue(&r.queue)).collect();
            partitions.sort();
            let numbered = (0..rows.len() as u32).map(PartitionId).eq(partitions.iter().copied());
            if !numbered || queues.len() != rows.len() {
                return Ok(Detected::Incomplete { rows: rows.len(), queues: queues.len() });
            }
            return Ok(Detected::Complete(HubLayout {
                partition_count: rows.len() as u32,
                manager: PartitionManagerKind::Table,
            }));
        }
        let counted = rows.rows.len() as u32;
        let Some(partition_count) = self.info_partition_count().await?.or((counted > 0).then_some(counted))
        else {
            let queues = if manager.is_some() { self.control_queues().await? } else { Vec::new() };
            return Ok(match manager {
                None => Detected::Nothing,
                Some(_) => Detected::Incomplete { rows: 0, queues: queues.len() },
            });
        };
        // Without lease blobs a hub has just begun to be, as provider 1.x makes it.
        let configured = self.settings.partition_manager.filter(|kind| *kind != PartitionManagerKind::Table);
        let manager = manager.or(configured).unwrap_or(PartitionManagerKind::Safe);
        Ok(Detected::Complete(HubLayout { partition_count, manager }))
    }

    /// The partition count in the hub's info blob; `None` when there is no such blob.
    pub(crate) async fn info_partition_count(&self) -> Result<Option<u32>, ServiceError> {
        let container = self.names.lease_container();
        let info = self
            .account
            .blobs
            .get_blob(&container, TASK_HUB_INFO_BLOB)
            .await
            .map_err(|e| self.failed("cannot read the hub's info blob", e))?;
        let Some(info) = info else { return Ok(None) };
        let count = serde_json::from_slice::<serde_json::Value>(&info.content)
            .ok()
            .and_then(|v| v.get("PartitionCount")?.as_u64())
            .filter(|count| (1..=u64::from(MAX_PARTITION_COUNT)).contains(count))
            .ok_or_else(|| {
                self.unreadable(
                    format!(
                        "the info blob tells no partition count. blob=`{container}/{TASK_HUB_INFO_BLOB}`"
                    ),
                    "PartitionCount from 1 to 16 expected",
                )
            })?;
        Ok(Some(count as u32))
    }

    /// Rows of the Partitions table; `None` when there is no such table.
    pub(crate) async fn partition_rows(&self) -> Result<Option<PartitionRows>, ServiceError> {
        let table = self.names.partitions_table();
        let mut found = PartitionRows::default();
        let mut query = TableQuery::default();
        loop {
            match self.account.tables.query(&table, &query).await {
                Ok(page) => {
                    found.served_at = page.served_at;
                    for row in page.entities.iter().filter(|row| row.partition_key.is_empty()) {
                        found.written_at = found.written_at.max(row.timestamp);
                        found.rows.push(PartitionLease::from_entity(row));
                    }
                    match page.continuation {
                        Some(next) => query.continuation = Some(next),
                        None => return Ok(Some(found)),
                    }
                }
                Err(e) if e.kind() == storage::ErrorKind::NotFound => return Ok(None),
                Err(e) => return Err(self.failed("cannot read the partition rows", e)),
            }
        }
    }

    /// Who owns which partition, as the records of this partition manager say.
    pub(crate) async fn partition_owners(
        &self,
        manager: PartitionManagerKind,
    ) -> Result<Vec<PartitionOwnership>, ServiceError> {
        if manager != PartitionManagerKind::Table {
            return self.blob_ownerships(manager).await;
        }
        let found = self.partition_rows().await?.unwrap_or_default();
        let now = found.served_at.unwrap_or_else(|| self.clock.now());
        Ok(found.rows.iter().map(|row| PartitionOwnership::of_row(row, now)).collect())
    }

    async fn control_queues(&self) -> Result<Vec<String>, ServiceError> {
        let prefix = format!("{}-control-", self.name().lower());
        let queues = self.account.queues.list_queues(&prefix).await;
        let queues = queues.map_err(|e| self.failed("cannot list the control queues", e))?;
        Ok(queues.into_iter().filter(|q| self.names.partition_of_queue(q).is_some()).collect())
    }

    /// The hub's layout; creates the hub where it does not exist.
    ///
    /// # Errors
    /// As [`Hub::detect`].
    pub async fn ensure(&self) -> Result<HubLayout, ServiceError> {
        match self.detect().await? {
            Some(layout) => Ok(layout),
            None => self.create().await,
        }
    }

    /// The number of partitions, for a client, which needs no more than that: if rows and queues agree, or, where
    /// there are no rows, as the info blob has it. Two requests for a hub that is there and whole; `None`: it takes
    /// a closer look.
    ///
    /// Differs: DTFx clients try to create every resource first, in fourteen requests.
    pub(crate) async fn told_partition_count(&self) -> Result<Option<u32>, ServiceError> {
        if self.settings.dtfx_cadence {
            return Ok(None);
        }
        let count = self.count_partitions().await?;
        Ok(count.filter(|count| self.settings.partition_count.is_none_or(|wanted| wanted == *count)))
    }

    async fn count_partitions(&self) -> Result<Option<u32>, ServiceError> {
        let rows = self.partition_rows().await?.unwrap_or_default().rows;
        if rows.is_empty() {
            return self.info_partition_count().await;
        }
        let mut partitions: Vec<_> =
            rows.iter().filter_map(|row| self.names.partition_of_queue(&row.queue)).collect();
        partitions.sort();
        let numbered = (0..rows.len() as u32).map(PartitionId).eq(partitions);
        let whole = numbered && self.control_queues().await?.len() == rows.len();
        Ok(whole.then_some(rows.len() as u32))
    }

    /// Creates what is missing, for the configured partition manager, by default the table manager: its lease
    /// store, then all queues, then the lease records. Partition rows are made together, and where some exist from
    /// the last to the first, so that a hub that is half made never looks like a smaller one; with lease blobs the
    /// info blob tells the number of partitions.
    ///
    /// Differs: DTFx makes queues and lease records side by side.
    ///
    /// # Errors
    /// `Unavailable` when the service is still deleting a hub of this name; otherwise as [`Hub::detect`].
    pub async fn create(&self) -> Result<HubLayout, ServiceError> {
        let wanted_count = self.settings.partition_count.unwrap_or(DEFAULT_PARTITION_COUNT);
        let manager = self.settings.partition_manager.unwrap_or_default();
        let StorageAccount { queues, tables, blobs } = &self.account;
        let (container, info) = (self.names.app_lease_container(), self.names.app_lease_info_blob());
        self.when_deleted(|| blobs.create_container(&container)).await?;
        let create_only = PutBlob { create_only: true, ..PutBlob::default() };
        match blobs.put_blob(&container, &info, "{}".into(), create_only).await {
            Err(e) if e.kind() != storage::ErrorKind::AlreadyExists => {
                tracing::debug!(hub = %self.name(), error = %e, "cannot create the app-lease info blob");
            }
            _ => {}
        }
        let partition_count = self.create_lease_store(manager, wanted_count).await?;
        let (history, instances) = (self.names.history_table(), self.names.instances_table());
        let work_items = self.names.work_item_queue();
        tokio::try_join!(
            self.when_deleted(|| tables.create_table(&history)),
            self.when_deleted(|| tables.create_table(&instances)),
            self.when_deleted(|| queues.create_queue(&work_items)),
            try_join_all((0..partition_count).map(|partition| async move {
                let queue = self.names.control_queue(PartitionId(partition));
                self.when_deleted(|| queues.create_queue(&queue)).await
            })),
        )?;
        self.create_leases(manager, partition_count).await?;
        // Another process may have created the hub at the same time, with another count.
        self.detect().await?.ok_or_else(|| {
            self.unreadable("the hub is not there after its creation", "it was deleted at the same time")
        })
    }

    /// Makes the table or container of a partition manager's lease records, and tells how many partitions the
    /// hub has. An info blob that exists is never changed.
    ///
    /// Differs: DTFx overwrites it when the configured count differs.
    pub(crate) async fn create_lease_store(
        &self,
        manager: PartitionManagerKind,
        partition_count: u32,
    ) -> Result<u32, ServiceError> {
        if manager == PartitionManagerKind::Table {
            let partitions = self.names.partitions_table();
            self.when_deleted(|| self.account.tables.create_table(&partitions)).await?;
            return Ok(partition_count);
        }
        let (blobs, container) = (&self.account.blobs, self.names.lease_container());
        self.when_deleted(|| blobs.create_container(&container)).await?;
        let content = task_hub_info(self.name(), self.clock.now(), partition_count);
        let create_only = PutBlob { create_only: true, ..PutBlob::default() };
        match blobs.put_blob(&container, TASK_HUB_INFO_BLOB, content.into(), create_only).await {
            Err(e) if e.kind() == storage::ErrorKind::AlreadyExists => {
                Ok(self.info_partition_count().await?.unwrap_or(partition_count))
            }
            Err(e) => Err(self.failed("cannot create the hub's info blob", e)),
            Ok(_) => Ok(partition_count),
        }
    }

    /// All rows at once, so that a creation that is cut off leaves none or all; one by one where some exist.
    ///
    /// Differs: DTFx writes each by itself. A hub with some of its rows tells nobody its number of partitions.
    pub(crate) async fn create_partition_rows(&self, partition_count: u32) -> Result<(), ServiceError> {
        let (partitions, tables) = (self.names.partitions_table(), &self.account.tables);
        let insert = |partition| {
            let row = PartitionLease::free(self.names.control_queue(PartitionId(partition))).to_entity();
            storage::TableOperation::Insert(row)
        };
        let all: Vec<_> = (0..partition_count).map(insert).collect();
        match tables.transaction(&partitions, &all).await {
            Ok(_) => return Ok(()),
            Err(e) if e.kind() == storage::ErrorKind::AlreadyExists => {}
            Err(e) => return Err(self.failed("cannot create the partition rows", e)),
        }
        for row in all.into_iter().rev() {
            match tables.execute(&partitions, row).await {
                Err(e) if e.kind() != storage::ErrorKind::AlreadyExists => {
                    return Err(self.failed("cannot create a partition row", e));
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Repeats a create while the service still deletes a resource of the same name.
    async fn when_deleted<F, R>(&self, create: F) -> Result<(), ServiceError>
    where
        F: Fn() -> R,
        R: Future<Output = storage::Result<bool>>,
    {
        let mut attempt = 0;
        loop {
            attempt += 1;
            match create().await {
                Ok(_) => return Ok(()),
                Err(e)
                    if e.kind() == storage::ErrorKind::BeingDeleted && attempt < BEING_DELETED_ATTEMPTS =>
                {
                    tracing::info!(hub = %self.name(), "waiting for the service to finish deleting the old hub");
                    tokio::time::sleep(BEING_DELETED_INTERVAL).await;
                }
                Err(e) => return Err(self.failed("cannot create the hub", e)),
            }
        }
    }

    /// Deletes every resource of the hub, those of all partition managers, whatever exists.
    ///
    /// # Errors
    /// The first failure; what could be deleted is gone.
    pub async fn delete(&self) -> Result<(), ServiceError> {
        let StorageAccount { queues, tables, blobs } = &self.account;
        let mut first_error = None;
        let mut note = |result: storage::Result<()>| match result {
            Err(e) if e.kind() != storage::ErrorKind::NotFound => {
                first_error.get_or_insert(e);
            }
            _ => {}
        };
        let mut all_queues = self.control_queues().await?;
        all_queues.push(self.names.work_item_queue());
        for queue in all_queues {
            note(queues.delete_queue(&queue).await);
        }
        for table in [self.names.history_table(), self.names.instances_table(), self.names.partitions_table()]
        {
            note(tables.delete_table(&table).await);
        }
        let app_lease = self.names.app_lease_container();
        if let Err(e) = blobs.break_lease(&app_lease, None).await {
            tracing::debug!(hub = %self.name(), error = %e, "the app lease was not held");
        }
        let own = [self.names.large_message_container(), self.names.dead_letter_container()];
        for container in [app_lease, self.names.lease_container()].into_iter().chain(own) {
            note(blobs.delete_container(&container, None).await);
        }
        first_error.map_or(Ok(()), |e| Err(self.failed("cannot delete the whole hub", e)))
    }

    /// Looks at queues, partitions and instances without changing anything. Reads every Instances row.
    ///
    /// # Errors
    /// Of storage; a missing resource shows as missing.
    pub async fn inspect(&self) -> Result<HubInspection, ServiceError> {
        let layout = match self.detect_once().await? {
            Detected::Complete(layout) => Some(layout),
            _ => None,
        };
        let at = self.clock.now();
        let mut names = self.control_queues().await?;
        names.push(self.names.work_item_queue());
        let mut queues = Vec::new();
        for name in names {
            let length = match self.account.queues.message_count(&name).await {
                Ok(length) => Some(length),
                Err(e) if e.kind() == storage::ErrorKind::NotFound => None,
                Err(e) => return Err(self.failed("cannot read a queue", e)),
            };
            let first = match length {
                Some(_) => self.account.queues.peek_messages(&name, 1).await,
                None => Ok(Vec::new()),
            };
            let first = first.map_err(|e| self.failed("cannot peek into a queue", e))?;
            let oldest_age = first.first().map(|m| at.saturating_since(m.inserted_at));
            queues.push(QueueInspection { name, length, oldest_age });
        }
        let PartitionRows { rows: partitions, served_at, .. } =
            self.partition_rows().await?.unwrap_or_default();
        let owners = match layout.map(|layout| layout.manager) {
            Some(PartitionManagerKind::Table) => {
                let now = served_at.unwrap_or(at);
                partitions.iter().map(|row| PartitionOwnership::of_row(row, now)).collect()
            }
            Some(manager) => self.blob_ownerships(manager).await?,
            None => Vec::new(),
        };
        let instances = self.count_instances().await?;
        Ok(HubInspection { layout, queues, partitions, owners, instances, at })
    }

    async fn count_instances(&self) -> Result<BTreeMap<String, u64>, ServiceError> {
        let mut query = TableQuery {
            filter: Some("RowKey eq ''".to_owned()),
            select: vec!["RuntimeStatus".to_owned()],
            ..TableQuery::default()
        };
        let mut counts = BTreeMap::new();
        loop {
            match self.account.tables.query(&self.names.instances_table(), &query).await {
                Ok(page) => {
                    for row in &page.entities {
                        let status = row.str("RuntimeStatus").unwrap_or("unknown");
                        let name = status.parse::<OrchestrationStatus>().map_or("unknown", |s| s.name());
                        *counts.entry(name.to_owned()).or_default() += 1;
                    }
                    match page.continuation {
                        Some(next) => query.continuation = Some(next),
                        None => return Ok(counts),
                    }
                }
                Err(e) if e.kind() == storage::ErrorKind::NotFound => return Ok(counts),
                Err(e) => return Err(self.failed("cannot count the instances", e)),
            }
        }
    }
}

/// Content of the info blob. Source: Azure/durabletask, `TaskHubInfo`.
fn task_hub_info(hub: &TaskHubName, created_at: Timestamp, partition_count: u32) -> String {
    // Names are letters and digits.
    format!(
        r#"{{"TaskHubName":"{hub}","CreatedAt":"{}","PartitionCount":{partition_count}}}"#,
        created_at.to_iso()
    )
}

enum Detected {
    Nothing,
    Complete(HubLayout),
    Incomplete { rows: usize, queues: usize },
}
