//! Waiting for several futures, deterministically.

use std::collections::VecDeque;
use std::fmt;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Wake, Waker};

/// Waits for all futures and returns their outputs in order. Each wake-up polls only the futures that
/// became ready, so a fan-in of n tasks costs n polls.
///
/// # Panics
/// When it is polled again after it has handed out the outputs.
pub fn join_all<F: Future>(futures: impl IntoIterator<Item = F>) -> JoinAll<F> {
    let ready = Arc::new(Ready::default());
    let children: Vec<_> = futures
        .into_iter()
        .enumerate()
        .map(|(index, future)| {
            let waker = Arc::new(ChildWaker { index, queued: AtomicBool::new(true), ready: ready.clone() });
            Child::Running(Box::pin(future), waker)
        })
        .collect();
    ready.lock().indices.extend(0..children.len());
    JoinAll { open: children.len(), children, ready, is_done: false }
}

/// The future of [`join_all`].
#[must_use = "futures do nothing unless awaited"]
pub struct JoinAll<F: Future> {
    children: Vec<Child<F>>,
    open: usize,
    ready: Arc<Ready>,
    is_done: bool,
}

enum Child<F: Future> {
    Running(Pin<Box<F>>, Arc<ChildWaker>),
    Done(Option<F::Output>),
}

#[derive(Default)]
struct Ready(Mutex<ReadyState>);

#[derive(Default)]
struct ReadyState {
    indices: VecDeque<usize>,
    parent: Option<Waker>,
}

impl Ready {
    fn lock(&self) -> MutexGuard<'_, ReadyState> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

struct ChildWaker {
    index: usize,
    queued: AtomicBool,
    ready: Arc<Ready>,
}

impl Wake for ChildWaker {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if self.queued.swap(true, Ordering::AcqRel) {
            return;
        }
        let parent = {
            let mut state = self.ready.lock();
            state.indices.push_back(self.index);
            state.parent.clone()
        };
        if let Some(parent) = parent {
            parent.wake();
        }
    }
}

// The children are boxed; nothing else is pinned.
impl<F: Future> Unpin for JoinAll<F> {}

impl<F: Future> Future for JoinAll<F> {
    type Output = Vec<F::Output>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = &mut *self;
        assert!(!this.is_done, "join_all polled after completion");
        let ready = {
            let mut state = this.ready.lock();
            state.parent = Some(cx.waker().clone());
            state.indices.len()
        };
        // Children that wake themselves meanwhile are for the next poll.
        for _ in 0..ready {
            let Some(index) = this.ready.lock().indices.pop_front() else { break };
            let Child::Running(future, waker) = &mut this.children[index] else { continue };
            waker.queued.store(false, Ordering::Release);
            let waker = Waker::from(waker.clone());
            if let Poll::Ready(output) = future.as_mut().poll(&mut Context::from_waker(&waker)) {
                this.children[index] = Child::Done(Some(output));
                this.open -= 1;
            }
        }
        if this.open > 0 {
            return Poll::Pending;
        }
        this.is_done = true;
        let outputs = this.children.drain(..).filter_map(|child| match child {
            Child::Done(output) => output,
            Child::Running(..) => None,
        });
        Poll::Ready(outputs.collect())
    }
}

impl<F: Future> fmt::Debug for JoinAll<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JoinAll").field("open", &self.open).finish_non_exhaustive()
    }
}

/// Waits for both futures.
pub async fn join<A: Future, B: Future>(a: A, b: B) -> (A::Output, B::Output) {
    let (mut a, mut b) = (Box::pin(a), Box::pin(b));
    let (mut first, mut second) = (None, None);
    std::future::poll_fn(|cx| {
        if first.is_none()
            && let Poll::Ready(output) = a.as_mut().poll(cx)
        {
            first = Some(output);
        }
        if second.is_none()
            && let Poll::Ready(output) = b.as_mut().poll(cx)
        {
            second = Some(output);
        }
        match (first.take(), second.take()) {
            (Some(a), Some(b)) => Poll::Ready((a, b)),
            (a, b) => {
                (first, second) = (a, b);
                Poll::Pending
            }
        }
    })
    .await
}

/// The output of [`select`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Either<A, B> {
    /// The first future was ready.
    Left(A),
    /// The second future was ready and the first one was not.
    Right(B),
}

/// Waits for the first of two futures and drops the other, which cancels a timer and ends a wait for an
/// event. If both are ready, the left one wins. Pass `&mut future` to keep both: calls, timers and waits
/// can be awaited again, with the same result.
pub async fn select<A: Future, B: Future>(a: A, b: B) -> Either<A::Output, B::Output> {
    let (mut a, mut b) = (Box::pin(a), Box::pin(b));
    std::future::poll_fn(|cx| {
        if let Poll::Ready(output) = a.as_mut().poll(cx) {
            return Poll::Ready(Either::Left(output));
        }
        b.as_mut().poll(cx).map(Either::Right)
    })
    .await
}

/// Waits for the first of many futures: its index and output. The others are dropped, which cancels
/// timers; pass `&mut` futures to keep all of them, such as for a [`join_all`] afterwards: calls, timers and
/// waits can be awaited again, with the same result, so one that has won wins again. If several are ready, the one with the least index wins. None
/// at all never end.
pub async fn race<F: Future>(futures: impl IntoIterator<Item = F>) -> (usize, F::Output) {
    let mut futures: Vec<_> = futures.into_iter().map(Box::pin).collect();
    std::future::poll_fn(|cx| {
        for (index, future) in futures.iter_mut().enumerate() {
            if let Poll::Ready(output) = future.as_mut().poll(cx) {
                return Poll::Ready((index, output));
            }
        }
        Poll::Pending
    })
    .await
}
