//! What must be undone when a future is dropped, or unwinds, in the middle.

use std::future::Future;
use std::sync::Arc;

use taskhub_core::{GiveBackReason, LockToken};
use tokio::runtime::Handle;

use crate::queue::held::HeldMessage;
use crate::shared::Shared;

/// Runs its clean-up unless [`Guard::disarm`] is called before it goes out of scope.
#[must_use = "a guard that is dropped at once cleans up at once"]
pub(crate) struct Guard<F: FnOnce()>(Option<F>);

impl<F: FnOnce()> Guard<F> {
    pub(crate) fn new(clean_up: F) -> Self {
        Self(Some(clean_up))
    }

    /// All went well.
    pub(crate) fn disarm(mut self) {
        self.0 = None;
    }
}

impl<F: FnOnce()> Drop for Guard<F> {
    fn drop(&mut self) {
        if let Some(clean_up) = self.0.take() {
            clean_up();
        }
    }
}

impl Shared {
    /// Runs a clean-up in the background. Nothing happens when the runtime is gone, and the process with it.
    pub(crate) fn clean_up(&self, what: impl Future<Output = ()> + Send + 'static) {
        if let Ok(runtime) = Handle::try_current() {
            self.tasks.spawn_on(what, &runtime);
        }
    }

    /// Ends a session whose future did not come to its end: the instance's messages come back, and others can
    /// work on it.
    pub(crate) fn session_guard(self: &Arc<Self>, token: LockToken) -> Guard<impl FnOnce() + use<>> {
        let shared = self.clone();
        Guard::new(move || {
            let again = shared.clone();
            shared.clean_up(async move {
                tracing::warn!(hub = %again.hub.name(), lock = token.0, "work on a session was cut off");
                again.abandon(token, GiveBackReason::Interrupted).await;
                again.release(token).await;
            });
        })
    }

    /// Gives an activity request back whose completion did not come to its end.
    pub(crate) fn activity_guard(self: &Arc<Self>, token: LockToken) -> Guard<impl FnOnce() + use<>> {
        let shared = self.clone();
        Guard::new(move || {
            let again = shared.clone();
            shared.clean_up(async move {
                if let Some(request) = again.work_items.take(token) {
                    tracing::error!(hub = %again.hub.name(), lock = token.0, "completion of an activity was cut off");
                    again.put_back(&request).await;
                }
            });
        })
    }

    /// Puts the messages of a batch back whose history is not read to its end.
    pub(crate) fn batch_guard(self: &Arc<Self>, batch: u64) -> Guard<impl FnOnce() + use<>> {
        let shared = self.clone();
        Guard::new(move || {
            let again = shared.clone();
            shared.clean_up(async move {
                for message in again.sessions.unloadable(batch) {
                    again.put_back(&message).await;
                }
            });
        })
    }

    /// Puts messages back that do not get through their admission.
    pub(crate) fn message_guard(
        self: &Arc<Self>,
        messages: Vec<Arc<HeldMessage>>,
    ) -> Guard<impl FnOnce() + use<>> {
        let shared = self.clone();
        Guard::new(move || {
            let again = shared.clone();
            shared.clean_up(async move {
                for message in messages {
                    again.put_back(&message).await;
                }
            });
        })
    }
}
