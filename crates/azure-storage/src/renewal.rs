//! Keeps what this process holds hidden from others for as long as it is alive.

use std::sync::Arc;
use std::time::Duration;

use taskhub_core::ServiceError;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::queue::held::{HeldMessage, Renewal, Turn};
use crate::shared::Shared;

/// Shortest time between two looks at what is held.
const SHORTEST_INTERVAL: Duration = Duration::from_millis(50);
/// Wait until a renewal that failed is repeated; the request itself has waited before.
const LONGEST_INTERVAL: Duration = Duration::from_secs(1);
/// Longest time one renewal may take.
const LONGEST_DEADLINE: Duration = Duration::from_secs(10);

impl Shared {
    /// Everything this process holds: received and being admitted, waiting, worked on, deferred; activity
    /// requests that run or wait for a dispatcher.
    pub(crate) fn all_held(&self) -> Vec<Arc<HeldMessage>> {
        let mut held = self.sessions.all_held();
        held.extend(self.work_items.all_held());
        held
    }

    /// Renews a message if it is time to. Requests that others have under way for it are not waited for.
    ///
    /// # Errors
    /// `SessionAborted`: somebody else may have the message by now.
    pub(crate) async fn renew(&self, message: &HeldMessage) -> Result<(), ServiceError> {
        match message.begin_renewal() {
            Some(turn) => self.renew_in_turn(message, turn).await,
            None if message.is_lost() => Err(self.lock_lost(message)),
            None => Ok(()),
        }
    }

    async fn renew_in_turn(&self, message: &HeldMessage, turn: Turn) -> Result<(), ServiceError> {
        let queues = &*self.hub.account.queues;
        match message.renew(turn, queues, deadline(message.visibility())).await {
            Ok(Renewal::Kept) => Ok(()),
            Ok(Renewal::Lost) => {
                tracing::warn!(
                    hub = %self.hub.name(), queue = message.queue, instance = %message.instance_id(),
                    event = message.task().event.name(),
                    "the lock of a message is lost: it may be received and worked on once more"
                );
                Err(self.lock_lost(message))
            }
            Err(e) => {
                let what = format!("cannot renew a message. instance=`{}`", message.instance_id());
                Err(self.hub.failed(what, e))
            }
        }
    }

    fn lock_lost(&self, message: &HeldMessage) -> ServiceError {
        ServiceError::new(
            taskhub_core::ErrorKind::SessionAborted,
            format!(
                "the lock of a message is lost. hub=`{}` queue=`{}` instance=`{}`",
                self.hub.name(),
                message.queue,
                message.instance_id()
            ),
        )
    }
}

/// Time for one renewal: short enough for some more before the message reappears, so that one request that
/// hangs does not lose it.
fn deadline(visibility: Duration) -> Duration {
    (visibility / 6).min(LONGEST_DEADLINE)
}

/// How long to wait until the next look, given when the next renewal is due.
fn wait(due_in: Option<Duration>, visibility: Duration) -> Duration {
    let longest = (visibility / 6).max(SHORTEST_INTERVAL);
    let shortest = (visibility / 30).clamp(SHORTEST_INTERVAL, LONGEST_INTERVAL);
    due_in.unwrap_or(longest).clamp(shortest, longest.max(shortest))
}

/// Renews what this process holds whenever a third of its time has passed, waiting messages included, so
/// that nothing is delivered twice while the process is alive. No renewal waits for another one: a request
/// that hangs costs its own message at most. Ends, with what is under way, after `stop`.
///
/// Differs: DTFx renews only the messages of running episodes, half a minute before the end of their five
/// minutes, and nothing after a renewal of an activity has failed.
pub(crate) async fn renew_held(shared: Arc<Shared>, stop: CancellationToken) {
    let settings = &shared.hub.settings;
    let visibility =
        settings.control_queue_visibility_timeout.min(settings.work_item_queue_visibility_timeout);
    let mut renewals = JoinSet::new();
    while !stop.is_cancelled() {
        while renewals.try_join_next().is_some() {}
        let mut due_in = None;
        for message in shared.all_held() {
            let Some(left) = message.renewal_due_in() else { continue };
            if left.is_zero() && renewals.len() < settings.max_storage_operation_concurrency {
                if let Some(turn) = message.begin_renewal() {
                    renewals.spawn(renew_one(shared.clone(), message, turn));
                }
            } else {
                due_in = Some(due_in.map_or(left, |due: Duration| due.min(left)));
            }
        }
        // Those under way are looked at again soon: one that fails is repeated quickly.
        let due_in = if renewals.is_empty() { due_in } else { Some(Duration::ZERO) };
        tokio::select! {
            biased;
            () = stop.cancelled() => {}
            () = tokio::time::sleep(wait(due_in, visibility)) => {}
        }
    }
    while renewals.join_next().await.is_some() {}
}

async fn renew_one(shared: Arc<Shared>, message: Arc<HeldMessage>, turn: Turn) {
    if let Err(e) = shared.renew_in_turn(&message, turn).await
        && !message.is_lost()
    {
        let (hub, left) = (shared.hub.name(), message.remaining().as_secs());
        tracing::debug!(%hub, error = e.chain(), left_seconds = left, "cannot renew a message; trying again");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn looks_come_when_something_is_due_and_often_enough_for_what_arrives_meanwhile() {
        let seconds = Duration::from_secs;
        assert_eq!(wait(None, seconds(30)), seconds(5));
        assert_eq!(wait(Some(seconds(3)), seconds(30)), seconds(3));
        assert_eq!(wait(Some(seconds(20)), seconds(30)), seconds(5));
        assert_eq!(wait(Some(Duration::ZERO), seconds(30)), seconds(1));
        assert_eq!(wait(Some(Duration::ZERO), seconds(3600)), seconds(1));
        assert_eq!(wait(Some(Duration::ZERO), seconds(1)), Duration::from_millis(50));
    }

    #[test]
    fn three_renewals_fit_between_the_first_and_the_end() {
        for seconds in [1, 30, 300, 3600] {
            let visibility = Duration::from_secs(seconds);
            let each = deadline(visibility) + wait(Some(Duration::ZERO), visibility);
            let begins = visibility / 3 + wait(None, visibility).min(visibility / 6);
            assert!(begins + each * 2 < visibility, "{seconds} s");
            assert!(deadline(visibility) < visibility / 3, "{seconds} s");
        }
    }
}
