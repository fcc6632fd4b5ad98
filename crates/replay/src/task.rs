//! The futures an orchestrator awaits. Each is made by a call that has already taken its sequence id, so
//! the order of calls counts, not the order of awaits. Awaited again, each gives the same result again.

use std::fmt;
use std::marker::PhantomData;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use serde::de::DeserializeOwned;
use taskhub_core::{EventKind, HistoryEvent};

use crate::machine::Shared;
use crate::{FailedTask, PayloadError, TaskFailure, TaskKind, from_payload};

/// What a slot waits for or has received.
#[derive(Debug)]
pub(crate) enum Outcome {
    Task(Result<Option<String>, TaskFailure>),
    Timer,
    /// An external event, with the number of its arrival.
    Event(u64, Box<HistoryEvent>),
}

#[derive(Debug, Default)]
struct SlotState {
    outcome: Option<Arc<Outcome>>,
    waker: Option<Waker>,
    links: Links,
}

/// By which ways an outcome can still come.
#[derive(Debug, Default)]
pub(crate) struct Links {
    /// Id of the open timer.
    pub(crate) open_timer: Option<i32>,
    /// Key and number of the wait for an event.
    pub(crate) waiter: Option<(String, u64)>,
}

/// Where a result is left for the future that awaits it. Never locks anything else while locked.
#[derive(Debug, Default)]
pub(crate) struct Slot(Mutex<SlotState>);

impl Slot {
    pub(crate) fn resolved(outcome: Outcome) -> Arc<Self> {
        Arc::new(Self(Mutex::new(SlotState { outcome: Some(Arc::new(outcome)), ..SlotState::default() })))
    }

    fn lock(&self) -> MutexGuard<'_, SlotState> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn resolve(&self, outcome: Outcome) {
        let waker = {
            let mut state = self.lock();
            state.outcome = Some(Arc::new(outcome));
            state.waker.take()
        };
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// Remembers which open task must go when the timer behind this slot is cancelled.
    pub(crate) fn set_open_timer(&self, id: i32) {
        self.lock().links.open_timer = Some(id);
    }

    /// Remembers which wait must end when the slot gets its outcome from elsewhere or is given up.
    pub(crate) fn set_waiter(&self, key: String, number: u64) {
        self.lock().links.waiter = Some((key, number));
    }

    pub(crate) fn take_links(&self) -> Links {
        std::mem::take(&mut self.lock().links)
    }

    /// The outcome stays, so a future that is awaited again is ready again.
    pub(crate) fn poll(&self, cx: &Context<'_>) -> Poll<Arc<Outcome>> {
        let mut state = self.lock();
        match &state.outcome {
            Some(outcome) => Poll::Ready(outcome.clone()),
            None => {
                match &mut state.waker {
                    Some(waker) => waker.clone_from(cx.waker()),
                    None => state.waker = Some(cx.waker().clone()),
                }
                Poll::Pending
            }
        }
    }
}

/// A called activity or sub-orchestration. Dropping it does not undo the call: the orchestration cannot
/// complete before the result has arrived.
#[must_use = "the orchestration does not wait for the call unless the task is awaited"]
pub struct Task<T> {
    slot: Arc<Slot>,
    name: String,
    result: PhantomData<fn() -> T>,
}

impl<T> Task<T> {
    pub(crate) fn new(slot: Arc<Slot>, name: &str) -> Self {
        Self { slot, name: name.to_owned(), result: PhantomData }
    }

    /// A call that was never made because its input has no JSON form.
    pub(crate) fn unsent(name: &str, error: &PayloadError) -> Self {
        let failure = payload_failure(name, error);
        Self::new(Slot::resolved(Outcome::Task(Err(failure))), name)
    }
}

fn payload_failure(name: &str, error: &PayloadError) -> TaskFailure {
    TaskFailure::from(FailedTask {
        kind: TaskKind::Payload,
        name: name.to_owned(),
        entity: None,
        version: None,
        schedule_id: -1,
        message: error.to_string(),
        details: None,
        failure_details: None,
    })
}

impl<T: DeserializeOwned> Future for Task<T> {
    type Output = Result<T, TaskFailure>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        self.slot.poll(cx).map(|outcome| match &*outcome {
            Outcome::Task(Ok(result)) => {
                from_payload(result.as_deref()).map_err(|error| payload_failure(&self.name, &error))
            }
            Outcome::Task(Err(failure)) => Err(failure.clone()),
            // Ids are not checked against kinds: a timer's event may name an activity's id.
            Outcome::Timer | Outcome::Event(..) => {
                from_payload(None).map_err(|error| payload_failure(&self.name, &error))
            }
        })
    }
}

impl<T> fmt::Debug for Task<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Task").field("name", &self.name).finish_non_exhaustive()
    }
}

/// A called activity or sub-orchestration whose result is taken as the text it is.
#[must_use = "the orchestration does not wait for the call unless the task is awaited"]
#[derive(Debug)]
pub struct RawTask(pub(crate) Arc<Slot>);

impl Future for RawTask {
    type Output = Result<Option<String>, TaskFailure>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        self.0.poll(cx).map(|outcome| match &*outcome {
            Outcome::Task(result) => result.clone(),
            Outcome::Timer | Outcome::Event(..) => Ok(None),
        })
    }
}

/// A durable timer. Dropping it cancels it: nothing waits for it any more, and its event is ignored.
/// (The recorded timer and its message stay, as in DTFx.)
#[must_use = "a timer that is dropped is cancelled"]
pub struct Timer {
    slot: Arc<Slot>,
    shared: Arc<Shared>,
    detached: bool,
}

impl Timer {
    pub(crate) fn new(slot: Arc<Slot>, shared: Arc<Shared>) -> Self {
        Self { slot, shared, detached: false }
    }

    /// Cancels the timer; the same as dropping it.
    pub fn cancel(self) {
        drop(self);
    }

    /// Stops waiting without cancelling: the orchestration cannot complete before the timer has fired.
    /// That is what a .NET orchestrator gets that never cancels its timer.
    pub fn detach(mut self) {
        self.detached = true;
    }
}

impl Future for Timer {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        self.slot.poll(cx).map(drop)
    }
}

impl Drop for Timer {
    fn drop(&mut self) {
        if self.detached {
            return;
        }
        let links = self.slot.take_links();
        if links.open_timer.is_some() {
            self.shared.lock().unlink(links);
        }
    }
}

impl fmt::Debug for Timer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Timer").finish_non_exhaustive()
    }
}

/// A wait for an external event. Dropping it ends the wait; an event it has received but not handed out
/// goes to the next wait.
#[must_use = "an event is not received unless the wait is awaited"]
pub struct EventWait<T> {
    slot: Arc<Slot>,
    shared: Arc<Shared>,
    name: String,
    /// Whether the event has reached the code.
    handed_out: bool,
    value: PhantomData<fn() -> T>,
}

impl<T> EventWait<T> {
    pub(crate) fn new(slot: Arc<Slot>, shared: Arc<Shared>, name: &str) -> Self {
        Self { slot, shared, name: name.to_owned(), handed_out: false, value: PhantomData }
    }

    fn poll_outcome(&mut self, cx: &Context<'_>) -> Poll<Arc<Outcome>> {
        let outcome = self.slot.poll(cx);
        self.handed_out |= outcome.is_ready();
        outcome
    }
}

/// The payload of an external event.
fn event_value<T: DeserializeOwned>(event: &HistoryEvent) -> Result<T, PayloadError> {
    match &event.kind {
        EventKind::EventRaised { input, .. } => from_payload(input.as_deref()),
        _ => from_payload(None),
    }
}

impl<T: DeserializeOwned> Future for EventWait<T> {
    type Output = Result<T, PayloadError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        self.poll_outcome(cx).map(|outcome| match &*outcome {
            Outcome::Event(_, event) => event_value(event),
            Outcome::Task(_) | Outcome::Timer => from_payload(None),
        })
    }
}

impl<T> Drop for EventWait<T> {
    fn drop(&mut self) {
        let links = self.slot.take_links();
        let received = self.slot.lock().outcome.take().filter(|_| !self.handed_out);
        let mut machine = self.shared.lock();
        machine.unlink(links);
        if let Some(Outcome::Event(number, event)) = received.as_deref() {
            machine.return_event(&self.name, *number, HistoryEvent::clone(event));
        }
    }
}

impl<T> fmt::Debug for EventWait<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EventWait").field("name", &self.name).finish_non_exhaustive()
    }
}

/// A wait for an external event that ends at a time; see
/// [`wait_for_event_with_timeout`](crate::OrchestrationContext::wait_for_event_with_timeout).
#[must_use = "an event is not received unless the wait is awaited"]
#[derive(Debug)]
pub struct EventWaitWithTimeout<T>(EventWait<T>);

impl<T> EventWaitWithTimeout<T> {
    /// `wait` shares its slot with the timer.
    pub(crate) fn new(wait: EventWait<T>) -> Self {
        Self(wait)
    }
}

impl<T: DeserializeOwned> Future for EventWaitWithTimeout<T> {
    type Output = Result<Option<T>, PayloadError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        self.0.poll_outcome(cx).map(|outcome| match &*outcome {
            Outcome::Event(_, event) => event_value(event).map(Some),
            Outcome::Task(_) | Outcome::Timer => Ok(None),
        })
    }
}
