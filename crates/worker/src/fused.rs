//! Activities that run inside the episode that asks for them.

use std::collections::BTreeSet;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use futures::stream::{FuturesUnordered, StreamExt};
use taskhub_core::{Clock, EpisodeCommit, EventKind, HistoryEvent, OrchestrationStatus, TaskMessage};
use tokio::sync::Semaphore;
use tokio::time::Instant;
use tracing::debug;

use crate::activity::{answer, request};
use crate::executor::{ActivityExecutor, ActivityOutcome};
use crate::lifecycle::Lifecycle;
use crate::metrics::WorkerMetrics;

/// Most bytes of texts in an episode that is to be stored at once. A transaction of Azure Table storage has 4 MiB,
/// and an escaped byte takes up to six.
const MAX_BYTES: usize = 256 * 1024;

/// Most activities inside the episodes of one work item: an orchestration that continues as new after each is
/// stored now and then.
const MAX_ACTIVITIES: usize = 1000;

/// Which activities run inside the episode that asks for them; none by default.
///
/// Their requests and results are not sent: the episode goes on with the results, and all of its events are stored
/// at once, in the order in which DTFx would have stored them. Other workers cannot tell the difference.
///
/// Nothing is stored before: if the process dies, the orchestration goes on from its last checkpoint and **all**
/// activities since then run again, not only the last one; and other messages of the instance wait meanwhile. That is
/// for activities which are short and harmless to repeat.
///
/// An episode must fit into one transaction, 99 events and 256 KiB of texts: cut off between two, it would have
/// requests that nobody has sent. Where it would not, its last activities are sent as requests.
///
/// Differs: DTFx sends each request and each result.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FusedActivities {
    /// All activities that this worker has.
    pub all: bool,
    /// Activities of these names, in all versions.
    pub names: BTreeSet<String>,
    /// How long an episode may take for them. What runs longer is cut off there and sent as a request, to run again.
    pub max_duration: Duration,
}

impl Default for FusedActivities {
    fn default() -> Self {
        Self { all: false, names: BTreeSet::new(), max_duration: Duration::from_secs(5) }
    }
}

impl FusedActivities {
    /// All activities of the worker, within the default bounds.
    pub fn all() -> Self {
        Self { all: true, ..Self::default() }
    }

    /// Activities of these names, within the default bounds.
    pub fn named<N: Into<String>>(names: impl IntoIterator<Item = N>) -> Self {
        Self { names: names.into_iter().map(Into::into).collect(), ..Self::default() }
    }

    fn include(&self, message: &TaskMessage) -> bool {
        let name = match &message.event.kind {
            EventKind::TaskScheduled { name, .. } => name.as_deref().unwrap_or_default(),
            _ => return false,
        };
        self.all || self.names.contains(name)
    }
}

/// Runs them.
pub(crate) struct Fused {
    pub(crate) settings: FusedActivities,
    /// Most events of an episode.
    pub(crate) max_events: usize,
    pub(crate) executor: Arc<dyn ActivityExecutor>,
    /// As many as the dispatcher of activities has, but of their own: one that waits for a request holds its slot.
    pub(crate) slots: Arc<Semaphore>,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) life: Lifecycle,
    pub(crate) metrics: WorkerMetrics,
}

/// What is left for one work item.
pub(crate) struct Budget {
    ends_at: Instant,
    activities: usize,
}

/// Activities that have run inside an episode.
#[derive(Default)]
pub(crate) struct Ran {
    /// What they were asked.
    requests: Vec<TaskMessage>,
    /// What they answered, in the order in which they ended.
    pub(crate) answers: Vec<TaskMessage>,
}

impl Fused {
    /// For a work item that begins now.
    pub(crate) fn budget(&self) -> Budget {
        Budget { ends_at: Instant::now() + self.settings.max_duration, activities: MAX_ACTIVITIES }
    }

    /// Runs what an episode has asked for, and takes it out of what is to be sent. Without answers there is nothing
    /// to run, or no room for it.
    pub(crate) async fn run(&self, commit: &mut EpisodeCommit, budget: &mut Budget) -> Ran {
        let mut ran = Ran::default();
        // With the marks around the answers.
        let room = self.max_events.saturating_sub(commit.new_events.len() + 2).min(budget.activities);
        if commit.status != OrchestrationStatus::Running
            || self.life.stopping.is_cancelled()
            || !commit.activity_messages.iter().any(|request| self.settings.include(request))
            // Whatever they answer, it would not fit.
            || text_bytes(&commit.new_events) > MAX_BYTES
            || Instant::now() >= budget.ends_at
        {
            return ran;
        }
        let mut requests: Vec<_> =
            std::mem::take(&mut commit.activity_messages).into_iter().map(Some).collect();
        let mut running: FuturesUnordered<_> = (0..)
            .zip(&requests)
            .filter_map(|(at, request)| Some((at, request.clone().filter(|m| self.settings.include(m))?)))
            .take(room)
            .inspect(|_| budget.activities -= 1)
            .map(|(at, request)| async move { (at, self.run_one(request).await) })
            .collect();
        loop {
            let ended = tokio::select! {
                biased;
                ended = running.next() => ended,
                () = tokio::time::sleep_until(budget.ends_at) => {
                    let (instance, count) = (&commit.instance.instance_id, running.len());
                    debug!(%instance, count, "activities take too long for an episode, sent as requests");
                    break;
                }
            };
            let Some((at, answer)) = ended else { break };
            if let (Some(answer), Some(request)) = (answer, requests.get_mut(at)) {
                ran.answers.push(answer);
                ran.requests.extend(request.take());
            }
        }
        drop(running);
        commit.activity_messages = requests.into_iter().flatten().collect();
        ran
    }

    /// `None`: whoever receives the request shall run it, or find out why nobody can.
    async fn run_one(&self, message: TaskMessage) -> Option<TaskMessage> {
        let target = message.target.clone();
        let request = request(message, 1, self.life.stopping.child_token())?;
        let task_id = request.task_id;
        let _slot = self.slots.acquire().await.ok()?;
        let ran = AssertUnwindSafe(self.executor.execute(request)).catch_unwind().await;
        let outcome = ran.ok()?.ok()?;
        let failed = matches!(outcome, ActivityOutcome::Failed { .. });
        self.metrics.ended(crate::activity::KIND, if failed { "failed" } else { "completed" });
        Some(answer(self.clock.now(), task_id, outcome, target))
    }

    /// Adds the episode that the answers have led to. `false` when both together cannot be stored at once: then the
    /// activities are requested after all, to run again.
    pub(crate) fn append(&self, commit: &mut EpisodeCommit, ran: Ran, next: EpisodeCommit) -> bool {
        // What has led to the next generation is never stored.
        let before = if next.replaces_history { &[][..] } else { &commit.new_events };
        let bytes = text_bytes(before) + text_bytes(&next.new_events);
        if before.len() + next.new_events.len() > self.max_events || bytes > MAX_BYTES {
            commit.activity_messages.extend(ran.requests);
            commit.activity_messages.sort_by_key(|request| request.event.event_id);
            return false;
        }
        if next.replaces_history {
            commit.new_events = next.new_events;
            commit.replaces_history = true;
        } else {
            commit.new_events.extend(next.new_events);
        }
        commit.instance = next.instance;
        commit.status = next.status;
        commit.custom_status = next.custom_status;
        commit.activity_messages.extend(next.activity_messages);
        commit.orchestrator_messages.extend(next.orchestrator_messages);
        commit.timer_messages.extend(next.timer_messages);
        true
    }
}

fn text_bytes(events: &[HistoryEvent]) -> usize {
    events.iter().map(|event| event.kind.text_bytes()).sum()
}
