//! A backend in memory that hands out prepared work, fails on demand and writes down every call.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use async_trait::async_trait;
use taskhub_core::{
    ActivityWorkItem, Clock, EpisodeCommit, ErrorKind, EventKind, ExecutionStarted, HistoryEvent, IdSource,
    LockToken, OrchestrationInstance, OrchestrationService, OrchestrationWorkItem, SeededIds, ServiceError,
    TaskMessage, Timestamp,
};
use taskhub_testkit::VirtualClock;
use taskhub_worker::{Worker, WorkerBuilder};
use tokio::sync::Notify;

/// Locks of the fake hold this long.
pub(crate) const LOCK: Duration = Duration::from_secs(60);

/// One call, without its arguments but with what tests look at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Call {
    Start,
    Stop,
    FetchOrchestration,
    FetchEntity,
    FetchActivity,
    Complete(LockToken),
    Discard(LockToken),
    Abandon(LockToken),
    NextMessages(LockToken),
    Renew(LockToken),
    Release(LockToken),
    CompleteActivity(LockToken),
    AbandonActivity(LockToken),
    RenewActivity(LockToken),
}

#[derive(Default)]
struct State {
    next_token: u64,
    orchestrations: VecDeque<OrchestrationWorkItem>,
    activities: VecDeque<ActivityWorkItem>,
    session_messages: HashMap<LockToken, VecDeque<Vec<TaskMessage>>>,
    failures: HashMap<&'static str, VecDeque<ErrorKind>>,
    open: HashSet<LockToken>,
    flaky: Option<SeededIds>,
    calls: Vec<(Duration, Call)>,
    commits: Vec<EpisodeCommit>,
    responses: Vec<TaskMessage>,
    stopped: bool,
}

#[derive(Clone)]
pub(crate) struct FakeService {
    state: Arc<Mutex<State>>,
    changed: Arc<Notify>,
    pub(crate) clock: VirtualClock,
    began: tokio::time::Instant,
}

impl FakeService {
    pub(crate) fn new() -> Self {
        Self {
            state: Arc::default(),
            changed: Arc::default(),
            clock: VirtualClock::default(),
            began: tokio::time::Instant::now(),
        }
    }

    /// A worker of this backend.
    pub(crate) fn worker(&self) -> WorkerBuilder {
        Worker::builder(Arc::new(self.clone()))
            .clock(Arc::new(self.clock.clone()))
            .ids(Arc::new(SeededIds::new(1)))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    fn record(&self, call: Call) {
        let at = self.began.elapsed();
        self.lock().calls.push((at, call));
        self.changed.notify_waiters();
    }

    /// Lets the next calls of an operation fail, one kind each; `Internal` is a panic.
    pub(crate) fn fail(&self, operation: &'static str, kinds: &[ErrorKind]) {
        self.lock().failures.entry(operation).or_default().extend(kinds);
    }

    /// Lets one of four calls fail from now on.
    pub(crate) fn make_flaky(&self, seed: u64) {
        self.lock().flaky = Some(SeededIds::new(seed));
    }

    fn failure(&self, operation: &'static str) -> Result<(), ServiceError> {
        let failure = self.lock().failures.get_mut(operation).and_then(VecDeque::pop_front);
        let random = self.lock().flaky.as_ref().map(|random| random.random() as usize);
        let chance = random.filter(|random| random % 4 == 0).map(|random| {
            [ErrorKind::Unavailable, ErrorKind::SessionAborted, ErrorKind::Data][random / 4 % 3]
        });
        match failure.or(chance) {
            Some(ErrorKind::Internal) => panic!("prepared panic. operation=`{operation}`"),
            Some(kind) => Err(ServiceError::new(kind, format!("prepared failure. operation=`{operation}`"))),
            None => Ok(()),
        }
    }

    fn token(&self) -> LockToken {
        let mut state = self.lock();
        state.next_token += 1;
        LockToken(state.next_token)
    }

    /// Offers an orchestration with this history and these messages.
    pub(crate) fn offer(
        &self,
        instance: &str,
        history: Vec<HistoryEvent>,
        messages: Vec<TaskMessage>,
    ) -> LockToken {
        let token = self.token();
        let execution_id = (!history.is_empty()).then(|| "e".into());
        self.lock().orchestrations.push_back(OrchestrationWorkItem {
            token,
            instance: OrchestrationInstance { instance_id: instance.into(), execution_id },
            history,
            messages,
            locked_until: self.clock.now() + LOCK,
            attempt: 1,
        });
        self.changed.notify_waiters();
        token
    }

    /// Offers the start of an instance.
    pub(crate) fn offer_start(&self, instance: &str, name: &str, input: Option<&str>) -> LockToken {
        self.offer(instance, Vec::new(), vec![self.start_message(instance, name, input)])
    }

    pub(crate) fn start_message(&self, instance: &str, name: &str, input: Option<&str>) -> TaskMessage {
        self.message(
            instance,
            EventKind::ExecutionStarted(Box::new(ExecutionStarted {
                version: Some(String::new()),
                input: input.map(str::to_owned),
                generation: Some(0),
                ..ExecutionStarted::new(OrchestrationInstance::new(instance, "e"), name)
            })),
        )
    }

    pub(crate) fn message(&self, instance: &str, kind: EventKind) -> TaskMessage {
        TaskMessage::new(
            HistoryEvent::message(self.clock.now(), kind),
            OrchestrationInstance::new(instance, "e"),
        )
    }

    /// What `next_session_messages` answers for a work item, in order.
    pub(crate) fn offer_session(&self, token: LockToken, batches: Vec<Vec<TaskMessage>>) {
        self.lock().session_messages.insert(token, batches.into());
    }

    /// Offers an activity request.
    pub(crate) fn offer_activity(&self, name: &str, input: Option<&str>) -> LockToken {
        let kind = EventKind::TaskScheduled {
            name: Some(name.to_owned()),
            version: Some(String::new()),
            input: input.map(str::to_owned),
            parent_trace_context: None,
            tags: None,
        };
        let event = HistoryEvent::decision(7, self.clock.now(), kind);
        self.offer_activity_message(TaskMessage::new(event, OrchestrationInstance::new("waiting", "e")))
    }

    pub(crate) fn offer_activity_message(&self, message: TaskMessage) -> LockToken {
        let token = self.token();
        let locked_until = self.clock.now() + LOCK;
        self.lock().activities.push_back(ActivityWorkItem { token, message, locked_until, attempt: 1 });
        self.changed.notify_waiters();
        token
    }

    pub(crate) fn calls(&self) -> Vec<Call> {
        self.lock().calls.iter().map(|(_, call)| call.clone()).collect()
    }

    /// Calls that are about this work item.
    pub(crate) fn calls_of(&self, token: LockToken) -> Vec<Call> {
        let about = |call: &Call| match call {
            Call::Start | Call::Stop | Call::FetchOrchestration => false,
            Call::FetchEntity | Call::FetchActivity => false,
            Call::Complete(t) | Call::Discard(t) | Call::Abandon(t) | Call::NextMessages(t) => *t == token,
            Call::Renew(t) | Call::Release(t) | Call::CompleteActivity(t) => *t == token,
            Call::AbandonActivity(t) | Call::RenewActivity(t) => *t == token,
        };
        self.calls().into_iter().filter(about).collect()
    }

    /// When calls like this one were made, since the fake was made.
    pub(crate) fn times_of(&self, call: &Call) -> Vec<Duration> {
        self.lock().calls.iter().filter(|(_, c)| c == call).map(|(at, _)| *at).collect()
    }

    pub(crate) fn commits(&self) -> Vec<EpisodeCommit> {
        self.lock().commits.clone()
    }

    pub(crate) fn responses(&self) -> Vec<TaskMessage> {
        self.lock().responses.clone()
    }

    /// Work items handed out and not brought to an end.
    pub(crate) fn open(&self) -> usize {
        self.lock().open.len()
    }

    /// Waits until the condition holds; a virtual hour at most.
    pub(crate) async fn until(&self, what: &str, condition: impl Fn(&Self) -> bool) {
        let wait = async {
            loop {
                let changed = self.changed.notified();
                if condition(self) {
                    return;
                }
                changed.await;
            }
        };
        tokio::time::timeout(Duration::from_secs(3600), wait)
            .await
            .unwrap_or_else(|_| panic!("never happened: {what}; calls {:?}", self.calls()));
    }

    async fn next_instance(&self, timeout: Duration, entity: bool) -> Option<OrchestrationWorkItem> {
        let take = |state: &mut State| {
            let wanted = |item: &OrchestrationWorkItem| item.instance.instance_id.is_entity() == entity;
            let at = state.orchestrations.iter().position(wanted)?;
            let item = state.orchestrations.remove(at)?;
            state.open.insert(item.token);
            Some(item)
        };
        let mut item = self.next(timeout, take).await?;
        item.locked_until = self.clock.now() + LOCK;
        Some(item)
    }

    /// Waits for a prepared item, `None` after `timeout` or when stopped.
    async fn next<T>(&self, timeout: Duration, take: impl Fn(&mut State) -> Option<T>) -> Option<T> {
        let wait = async {
            loop {
                let changed = self.changed.notified();
                {
                    let mut state = self.lock();
                    if state.stopped {
                        return None;
                    }
                    if let Some(item) = take(&mut state) {
                        return Some(item);
                    }
                }
                changed.await;
            }
        };
        tokio::time::timeout(timeout, wait).await.ok().flatten()
    }
}

#[async_trait]
impl OrchestrationService for FakeService {
    /// That of the table service.
    fn max_atomic_events(&self) -> usize {
        99
    }

    async fn start(&self) -> Result<(), ServiceError> {
        self.record(Call::Start);
        self.failure("start")
    }

    async fn stop(&self, drain_timeout: Duration) -> Result<(), ServiceError> {
        self.lock().stopped = true;
        self.record(Call::Stop);
        let drained = async {
            loop {
                let changed = self.changed.notified();
                if self.open() == 0 {
                    return;
                }
                changed.await;
            }
        };
        // Like a real backend: what is still open after the time is left to its locks.
        let _ = tokio::time::timeout(drain_timeout, drained).await;
        self.failure("stop")
    }

    async fn lock_next_orchestration(
        &self,
        timeout: Duration,
    ) -> Result<Option<OrchestrationWorkItem>, ServiceError> {
        self.record(Call::FetchOrchestration);
        self.failure("lock_next_orchestration")?;
        Ok(self.next_instance(timeout, false).await)
    }

    async fn lock_next_entity(
        &self,
        timeout: Duration,
    ) -> Result<Option<OrchestrationWorkItem>, ServiceError> {
        self.record(Call::FetchEntity);
        self.failure("lock_next_entity")?;
        Ok(self.next_instance(timeout, true).await)
    }

    async fn renew_orchestration(&self, token: LockToken) -> Result<Timestamp, ServiceError> {
        self.record(Call::Renew(token));
        self.failure("renew_orchestration")?;
        Ok(self.clock.now() + LOCK)
    }

    async fn complete_orchestration(
        &self,
        token: LockToken,
        commit: EpisodeCommit,
    ) -> Result<(), ServiceError> {
        self.record(Call::Complete(token));
        self.failure("complete_orchestration")?;
        self.lock().commits.push(commit);
        self.changed.notify_waiters();
        Ok(())
    }

    async fn discard_orchestration(&self, token: LockToken) -> Result<(), ServiceError> {
        self.record(Call::Discard(token));
        self.failure("discard_orchestration")
    }

    async fn abandon_orchestration(&self, token: LockToken) -> Result<(), ServiceError> {
        self.record(Call::Abandon(token));
        self.failure("abandon_orchestration")
    }

    async fn next_session_messages(
        &self,
        token: LockToken,
    ) -> Result<Option<Vec<TaskMessage>>, ServiceError> {
        self.record(Call::NextMessages(token));
        self.failure("next_session_messages")?;
        let take = |state: &mut State| state.session_messages.get_mut(&token)?.pop_front();
        Ok(self.next(Duration::from_secs(30), take).await)
    }

    async fn release_orchestration(&self, token: LockToken) {
        self.lock().open.remove(&token);
        self.record(Call::Release(token));
    }

    async fn lock_next_activity(&self, timeout: Duration) -> Result<Option<ActivityWorkItem>, ServiceError> {
        self.record(Call::FetchActivity);
        self.failure("lock_next_activity")?;
        let take = |state: &mut State| {
            let item = state.activities.pop_front()?;
            state.open.insert(item.token);
            Some(item)
        };
        let item = self.next(timeout, take).await;
        Ok(item.map(|mut item| {
            item.locked_until = self.clock.now() + LOCK;
            item
        }))
    }

    async fn renew_activity(&self, token: LockToken) -> Result<Timestamp, ServiceError> {
        self.record(Call::RenewActivity(token));
        self.failure("renew_activity")?;
        Ok(self.clock.now() + LOCK)
    }

    async fn complete_activity(&self, token: LockToken, response: TaskMessage) -> Result<(), ServiceError> {
        self.record(Call::CompleteActivity(token));
        self.failure("complete_activity")?;
        let mut state = self.lock();
        state.open.remove(&token);
        state.responses.push(response);
        drop(state);
        self.changed.notify_waiters();
        Ok(())
    }

    async fn abandon_activity(&self, token: LockToken) -> Result<(), ServiceError> {
        self.lock().open.remove(&token);
        self.record(Call::AbandonActivity(token));
        self.failure("abandon_activity")
    }
}
