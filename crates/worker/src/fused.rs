//! Activities that run inside the episode that asks for them.

use std::collections::BTreeSet;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use futures::stream::{FuturesUnordered, StreamExt};
use taskhub_core::{Clock, EpisodeCommit, EventKind, OrchestrationStatus, TaskMessage};
use tokio::sync::Semaphore;
use tokio::time::Instant;
use tracing::debug;

use crate::activity::{answer, request};
use crate::executor::{ActivityExecutor, ActivityOutcome};
use crate::lifecycle::Lifecycle;
use crate::metrics::WorkerMetrics;

/// Which activities run inside the episode that asks for them; none by default.
///
/// Their requests and results are not sent: the episode goes on with the results, and all of its events are stored
/// at once, in the order in which DTFx would have stored them. Other workers cannot tell the difference.
///
/// Nothing is stored before: if the process dies, the orchestration goes on from its last checkpoint and **all**
/// activities since then run again, not only the last one; and other messages of the instance wait meanwhile. That is
/// for activities which are short and harmless to repeat.
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
    /// Most events that an episode may have with them; further activities are sent as requests.
    pub max_events: usize,
    /// Most bytes of their results; further activities are sent as requests.
    pub max_bytes: usize,
}

impl Default for FusedActivities {
    fn default() -> Self {
        Self {
            all: false,
            names: BTreeSet::new(),
            max_duration: Duration::from_secs(5),
            max_events: 1000,
            max_bytes: 1024 * 1024,
        }
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
    pub(crate) executor: Arc<dyn ActivityExecutor>,
    /// As many as the dispatcher of activities has, but of their own: one that waits for a request holds its slot.
    pub(crate) slots: Arc<Semaphore>,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) life: Lifecycle,
    pub(crate) metrics: WorkerMetrics,
}

/// What is left for one episode.
pub(crate) struct Budget {
    ends_at: Instant,
    events: usize,
    bytes: usize,
}

impl Fused {
    /// For an episode that begins now.
    pub(crate) fn budget(&self) -> Budget {
        let FusedActivities { max_duration, max_events, max_bytes, .. } = self.settings;
        Budget { ends_at: Instant::now() + max_duration, events: max_events, bytes: max_bytes }
    }

    /// Runs what an episode has asked for, and takes it out of what is to be sent. The results, in the order in
    /// which they came; none when there is nothing to run or no budget for it.
    pub(crate) async fn run(&self, commit: &mut EpisodeCommit, budget: &mut Budget) -> Vec<TaskMessage> {
        if commit.status != OrchestrationStatus::Running || self.life.stopping.is_cancelled() {
            return Vec::new();
        }
        let mut requests: Vec<_> =
            std::mem::take(&mut commit.activity_messages).into_iter().map(Some).collect();
        let mut running: FuturesUnordered<_> = (0..)
            .zip(&requests)
            .filter_map(|(at, request)| Some((at, request.clone().filter(|m| self.settings.include(m))?)))
            .take(budget.events)
            .map(|(at, request)| async move { (at, self.run_one(request).await) })
            .collect();
        let mut answers = Vec::new();
        while budget.bytes > 0 {
            let ended = tokio::select! {
                biased;
                ended = running.next() => ended,
                () = tokio::time::sleep_until(budget.ends_at) => {
                    debug!(instance = %commit.instance.instance_id, count = running.len(), "activities take too long for an episode, sent as requests");
                    break;
                }
            };
            let Some((at, answer)) = ended else { break };
            let Some(answer) = answer else { continue };
            budget.events = budget.events.saturating_sub(1);
            budget.bytes = budget.bytes.saturating_sub(size(&answer));
            answers.push(answer);
            if let Some(request) = requests.get_mut(at) {
                *request = None;
            }
        }
        drop(running);
        commit.activity_messages = requests.into_iter().flatten().collect();
        answers
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

    /// Adds the episode that followed in the same work item.
    pub(crate) fn append(commit: &mut EpisodeCommit, next: EpisodeCommit, budget: &mut Budget) {
        budget.events = budget.events.saturating_sub(next.new_events.len());
        if next.replaces_history {
            // What has led to the next generation is never stored.
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
    }
}

/// Bytes of a result, and some for its event.
fn size(answer: &TaskMessage) -> usize {
    let text = |text: &Option<String>| text.as_ref().map_or(0, String::len);
    100 + match &answer.event.kind {
        EventKind::TaskCompleted { result, .. } => text(result),
        EventKind::TaskFailed { reason, details, .. } => text(reason) + text(details),
        _ => 0,
    }
}
