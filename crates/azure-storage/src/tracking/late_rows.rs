//! Instances rows that need not be written at once.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use taskhub_core::{
    EpisodeCommit, EventKind, ExecutionId, HistoryEvent, InstanceFetch, InstanceId, OrchestrationInstance,
    OrchestrationStatus, ServiceError, TaskMessage,
};
use taskhub_storage as storage;
use taskhub_storage::{Condition, Entity, TableOperation};

use crate::tracking::etags::Remembered;
use crate::tracking::instances::RowOutcome;
use crate::tracking::store::{CommittedHistory, TrackingStore};
use crate::tracking::{blob_column, instance_row};

/// How long the row of an instance that has begun may say that it is pending.
pub(crate) const LATE_BY: Duration = Duration::from_millis(900);

/// What a row shows of an execution that runs, or will show within a second.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Shown {
    pub(crate) custom_status: Option<String>,
}

/// The row of an instance that has begun.
#[derive(Debug, Clone)]
pub(crate) struct LateRow {
    pub(crate) execution_id: ExecutionId,
    /// The start with its History row.
    pub(crate) start: (HistoryEvent, Entity),
}

/// Rows of instances that have begun, until they are written. Whoever takes one out writes it, by itself or
/// with what has changed since.
#[derive(Debug, Default)]
pub(crate) struct LateRows(Mutex<BTreeMap<InstanceId, LateRow>>);

impl LateRows {
    fn rows(&self) -> MutexGuard<'_, BTreeMap<InstanceId, LateRow>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn put(&self, instance: InstanceId, row: LateRow) {
        self.rows().insert(instance, row);
    }

    /// The row of this execution, if it is not written yet.
    fn get(&self, instance: &InstanceId, execution_id: &ExecutionId) -> Option<LateRow> {
        self.rows().get(instance).filter(|row| row.execution_id == *execution_id).cloned()
    }

    /// Takes the row of this execution.
    pub(crate) fn take(&self, instance: &InstanceId, execution_id: Option<&ExecutionId>) -> Option<LateRow> {
        let mut rows = self.rows();
        let is_own = rows.get(instance).is_some_and(|row| Some(&row.execution_id) == execution_id);
        if is_own { rows.remove(instance) } else { None }
    }
}

/// Whoever cleans entities looks whether the row of a lock's holder says that it runs.
fn asks_for_locks(message: &TaskMessage) -> bool {
    let EventKind::EventRaised { input, .. } = &message.event.kind else { return false };
    message.target.instance_id.is_entity()
        && input.as_ref().is_some_and(|input| input.contains("\"IsLockRequest\":true"))
}

impl TrackingStore {
    /// Whether an episode's changes of the Instances row need not be written now: there are none, or only
    /// that the instance has begun, which is then written by [`TrackingStore::write_late`].
    ///
    /// Differs: DTFx writes the row in every episode.
    pub(crate) fn row_may_wait(
        &self,
        commit: &EpisodeCommit,
        committed: &CommittedHistory,
        shown: Option<&Shown>,
    ) -> bool {
        let changes_status = |event: &HistoryEvent| {
            matches!(
                event.kind,
                EventKind::ExecutionCompleted(_)
                    | EventKind::ExecutionTerminated { .. }
                    | EventKind::ExecutionSuspended { .. }
                    | EventKind::ExecutionResumed { .. }
                    | EventKind::ContinueAsNew(_)
            )
        };
        if !self.hub.settings.writes_rows_late()
            || commit.replaces_history
            || commit.status.is_terminal()
            || commit.new_events.iter().any(changes_status)
            || commit.orchestrator_messages.iter().any(asks_for_locks)
        {
            return false;
        }
        let instance_id = &commit.instance.instance_id;
        let is_start = |event: &HistoryEvent| matches!(event.kind, EventKind::ExecutionStarted(_));
        let Some(at) = commit.new_events.iter().position(is_start) else {
            return shown.is_some_and(|shown| shown.custom_status == commit.custom_status);
        };
        let (Some(event), Some(row), Some(execution_id)) =
            (commit.new_events.get(at), committed.rows.get(at), commit.instance.execution_id.clone())
        else {
            return false;
        };
        if commit.custom_status.is_some() {
            return false;
        }
        // A sub-orchestration has no row yet: if this process died, nobody could see it.
        let known = self.etags.get(instance_id);
        let has_row = known.is_some_and(|row| row.execution_id.as_ref() == Some(&execution_id));
        if has_row {
            let start = (event.clone(), row.clone());
            self.late.put(instance_id.clone(), LateRow { execution_id, start });
        }
        has_row
    }

    /// Writes the row of an instance that has begun, unless that has been done with a later change. A row that
    /// somebody else has written meanwhile is left as it is.
    ///
    /// # Errors
    /// Of storage; the row waits on.
    pub(crate) async fn write_late(
        &self,
        instance: &OrchestrationInstance,
    ) -> Result<RowOutcome, ServiceError> {
        let OrchestrationInstance { instance_id, execution_id: Some(execution_id) } = instance else {
            return Ok(RowOutcome::Written);
        };
        let Some(late) = self.late.get(instance_id, execution_id) else { return Ok(RowOutcome::Written) };
        let container_url = self.large().container_url();
        let context = self.row_context(instance_id, execution_id, &container_url);
        let (event, history) = &late.start;
        let mut row = instance_row::checkpoint(context, None, [(event, history)]);
        self.upload(blob_column::offload_instance(&mut row, &container_url, &*self.hub.ids)).await?;
        let known = self.etags.get(instance_id).filter(|row| row.execution_id.as_ref() == Some(execution_id));
        let Some(known) = known else {
            // Its version is not known any more: the next change reads it.
            self.late.take(instance_id, Some(execution_id));
            return Ok(RowOutcome::Written);
        };
        let operation = TableOperation::Merge(row, Condition::Matches(known.etag));
        // The version changes now, and whoever writes next reads it again if this one does not end.
        let written = self.hub.account.tables.execute(&self.hub.names.instances_table(), operation).await;
        let is_last = self.late.take(instance_id, Some(execution_id)).is_some();
        match written {
            Ok(etag) => {
                if is_last {
                    let execution_id = Some(execution_id.clone());
                    let row = etag.map(|etag| Remembered { execution_id, etag, is_pending: false });
                    self.etags.set(instance_id, row);
                }
                Ok(RowOutcome::Written)
            }
            Err(e) if matches!(e.kind(), storage::ErrorKind::Conflict | storage::ErrorKind::NotFound) => {
                if !is_last {
                    return Ok(RowOutcome::Written);
                }
                self.etags.set(instance_id, None);
                let stored = self.instance_state(instance_id, InstanceFetch::ALL).await?;
                Ok(match stored {
                    Some(stored)
                        if stored.status == Some(OrchestrationStatus::Terminated)
                            && stored.instance == *instance =>
                    {
                        RowOutcome::TerminatedBefore { reason: stored.output }
                    }
                    _ => RowOutcome::Written,
                })
            }
            Err(e) => {
                if is_last {
                    self.late.put(instance_id.clone(), late);
                }
                let what = format!("cannot show an instance as running. instance=`{instance_id}`");
                Err(self.hub.failed(what, e))
            }
        }
    }
}
