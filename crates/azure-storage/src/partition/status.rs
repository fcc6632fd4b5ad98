//! How partition management goes, for whoever watches the process.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use taskhub_core::{PartitionId, Readiness, ServiceError, ServiceStatus};
use tokio::time::Instant;

use crate::partition::ownership::PartitionOwnership;

/// What the partition manager and the app lease put up, and a probe reads.
#[derive(Debug, Default)]
pub(crate) struct StatusBoard(Mutex<Board>);

#[derive(Debug, Default)]
struct Board {
    waits_for_app_lease: Option<String>,
    looked_at: Option<Instant>,
    trouble: Option<String>,
    owners: Option<Vec<PartitionOwnership>>,
}

impl StatusBoard {
    fn board(&self) -> MutexGuard<'_, Board> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Another application has the hub.
    pub(crate) fn waits_for_app_lease(&self, app_name: &str) {
        let text = format!(
            "another application holds the app lease; with its name this worker would share the hub. \
             app_name=`{app_name}`"
        );
        self.board().waits_for_app_lease = Some(text);
    }

    /// This application has the hub.
    pub(crate) fn has_app_lease(&self) {
        self.board().waits_for_app_lease = None;
    }

    /// The partitions were seen, and what had to be done about them is done.
    pub(crate) fn looked(&self) {
        let mut board = self.board();
        board.looked_at = Some(Instant::now());
        board.trouble = None;
    }

    /// Who owns which partition, as it was just seen or written.
    pub(crate) fn owners(&self, owners: Vec<PartitionOwnership>) {
        self.board().owners = Some(owners);
    }

    /// Who owned which partition when somebody last put it up, if that was since the last question.
    pub(crate) fn take_owners(&self) -> Option<Vec<PartitionOwnership>> {
        self.board().owners.take()
    }

    /// Something about partitions or the app lease did not work.
    pub(crate) fn failed(&self, error: &ServiceError) {
        self.board().trouble = Some(error.chain());
    }

    /// The state of a worker that receives from `partitions`. After `patience` without a look it has lost
    /// touch: its leases have run out or are about to.
    pub(crate) fn status(&self, partitions: Vec<PartitionId>, patience: Duration) -> ServiceStatus {
        let board = self.board();
        let last_look_age = board.looked_at.map(|at| at.elapsed());
        let (readiness, detail) = match (&board.waits_for_app_lease, last_look_age) {
            (Some(text), _) => (Readiness::WaitingForAppLease, Some(text.clone())),
            (None, Some(age)) if age <= patience => (Readiness::Ready, board.trouble.clone()),
            (None, None) if board.trouble.is_none() => (Readiness::Starting, None),
            _ => (Readiness::StorageUnreachable, board.trouble.clone()),
        };
        ServiceStatus { readiness, detail, partitions, last_look_age }
    }
}

#[cfg(test)]
mod tests {
    use taskhub_core::ErrorKind;

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(30);

    #[tokio::test(start_paused = true)]
    async fn readiness_follows_what_the_manager_puts_up() {
        let board = StatusBoard::default();
        let now = || board.status(vec![PartitionId(1)], PATIENCE);
        let lost = ServiceError::new(ErrorKind::Unavailable, "no route");
        assert_eq!(now().readiness, Readiness::Starting);
        board.failed(&lost);
        assert_eq!(
            (now().readiness, now().detail.as_deref()),
            (Readiness::StorageUnreachable, Some("no route"))
        );
        board.waits_for_app_lease("orders");
        assert_eq!(now().readiness, Readiness::WaitingForAppLease);
        assert!(now().detail.unwrap().contains("app_name=`orders`"));
        board.has_app_lease();
        board.looked();
        assert_eq!(now().partitions, [PartitionId(1)]);
        assert_eq!((now().readiness, now().detail), (Readiness::Ready, None));
        // One failed look is no reason to be taken out; that the leases run out is.
        board.failed(&lost);
        tokio::time::sleep(PATIENCE).await;
        assert_eq!((now().readiness, now().last_look_age), (Readiness::Ready, Some(PATIENCE)));
        tokio::time::sleep(Duration::from_millis(1)).await;
        assert_eq!(now().readiness, Readiness::StorageUnreachable);
        board.looked();
        assert_eq!((now().readiness, now().detail), (Readiness::Ready, None));
    }
}
