use async_trait::async_trait;

use crate::{InstanceId, ServiceError};

/// What a purge removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct PurgeResult {
    /// Instances rows deleted.
    pub instances: u64,
    /// History rows deleted.
    pub rows: u64,
    /// Large-message blobs deleted.
    pub blobs: u64,
}

impl std::ops::AddAssign for PurgeResult {
    fn add_assign(&mut self, other: Self) {
        self.instances += other.instances;
        self.rows += other.rows;
        self.blobs += other.blobs;
    }
}

/// Instances to be removed by one call; a few hundred at most, as what is found out about them is held in memory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PurgeMany {
    /// The instances.
    pub instance_ids: Vec<InstanceId>,
    /// Leave those that have not finished.
    pub only_finished: bool,
    /// Instances that are worked on at once.
    pub concurrency: usize,
}

/// Says when a purge of many may begin with its next instance.
#[async_trait]
pub trait PurgeGate: Send + Sync {
    /// Waits until an instance may be begun; `false`: no further one may.
    async fn pass(&self) -> bool;
}

/// What became of one instance of [`PurgeMany`].
#[derive(Debug)]
pub struct PurgedInstance {
    /// The instance.
    pub instance_id: InstanceId,
    /// What was removed: zeros when it is not there, or was started again meanwhile; `None` when it has not
    /// finished, and was to be left then.
    pub result: Result<Option<PurgeResult>, ServiceError>,
}
