//! What a rewind changes in one history, decided on values.
//!
//! A history can be replayed only if every decision it records is made again under the same id. Taking a
//! failure away is safe when the code made no decision because of it: the call is then made again under its
//! old id. Where the code went on after a failure, the failure was handled (a retry, a catch block) and stays;
//! unless it is what the instance failed with at last (a `finally` block, a rethrow, the timer that DTFx
//! creates after the last attempt), in which case everything decided after it is undone and decided anew.
//!
//! Differs: .NET takes every failure away, and none of the decisions after it, so that a retried call or a
//! handled failure makes the replay fail as not deterministic.

use std::collections::{BTreeMap, HashMap, HashSet};

use taskhub_core::{
    EventKind, FIRE_AND_FORGET_TAG, FailureDetails, HistoryEvent, InstanceId, ParentInstance, SPLIT_TIMER_ID,
    Timestamp,
};

/// A row as far as it matters here.
#[derive(Debug, Clone)]
pub(super) struct Row {
    pub(super) event: HistoryEvent,
    /// What it was before an earlier rewind.
    pub(super) was: Was,
}

/// What an earlier rewind made of a row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Was {
    /// Nothing.
    Untouched,
    /// The failed end of the execution.
    Completion,
    /// A request that is made again under its id.
    Request {
        /// Of what.
        name: Option<String>,
        /// Whether it is of a sub-orchestration.
        is_sub: bool,
    },
    /// Anything else.
    Other,
}

/// What becomes of a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Edit {
    /// It counts no longer: the step is done again, under the same id.
    Rewound,
    /// It counts no longer, and its id may go to another step.
    Undone,
    /// It stays as it is, with a note: the sub-orchestration goes on.
    Noted,
}

/// A sub-orchestration whose result the instance waits for after the rewind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Child {
    /// Its request, by position.
    pub(super) at: usize,
    pub(super) task_id: i32,
    pub(super) instance_id: InstanceId,
}

/// What a rewind changes.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Plan {
    /// Changes by position of the row.
    pub(super) edits: BTreeMap<usize, Edit>,
    /// The row that ends the execution; rewritten last.
    pub(super) completion: Option<usize>,
    pub(super) children: Vec<Child>,
    /// Timers whose message may have come while the instance was failed.
    pub(super) unfired: Vec<(i32, Timestamp)>,
    /// Whether there are timers that no retry explains.
    pub(super) has_timers: bool,
    /// Whether the end has been rewound before and no episode has followed.
    pub(super) is_waiting: bool,
    /// Whether there is work besides what children will report.
    pub(super) has_own_work: bool,
    /// Who waits for the instance.
    pub(super) parent: Option<ParentInstance>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum What {
    Task,
    Sub,
    Timer,
    Event,
}

#[derive(Debug)]
struct Decision<'a> {
    at: usize,
    episode: usize,
    id: i32,
    what: What,
    name: Option<&'a str>,
    /// Positions of answers, the one that counts first.
    answers: Vec<usize>,
    failed: bool,
    /// Rewound before: it only explains what came before it.
    gone: bool,
}

#[derive(Debug, Default)]
struct History<'a> {
    decisions: Vec<Decision<'a>>,
    /// Episode of each row.
    episodes: Vec<usize>,
    /// Largest id decided in the rows before each one.
    largest_id: Vec<i32>,
    completion: Option<usize>,
    last_rewound_completion: Option<usize>,
    last_episode_at: usize,
}

impl<'a> History<'a> {
    fn of(rows: &'a [Row]) -> Self {
        let mut history = Self::default();
        let mut open: HashMap<(i32, bool), usize> = HashMap::new();
        let (mut episode, mut largest_id) = (0, -1);
        for (at, row) in rows.iter().enumerate() {
            let event = &row.event;
            history.largest_id.push(largest_id);
            let mut decide = |what, name: Option<&'a str>, decisions: &mut Vec<Decision<'a>>| {
                open.insert((event.event_id, what == What::Timer), decisions.len());
                let id = event.event_id;
                let answers = Vec::new();
                decisions.push(Decision { at, episode, id, what, name, answers, failed: false, gone: false });
                largest_id = largest_id.max(id);
            };
            match &event.kind {
                EventKind::OrchestratorStarted => {
                    episode += 1;
                    history.last_episode_at = at;
                }
                EventKind::TaskScheduled { name, .. } => {
                    decide(What::Task, name.as_deref(), &mut history.decisions);
                }
                EventKind::SubOrchestrationInstanceCreated { name, tags, .. } => {
                    let forgotten = tags.as_ref().is_some_and(|t| t.get(FIRE_AND_FORGET_TAG).is_some());
                    let what = if forgotten { What::Event } else { What::Sub };
                    decide(what, name.as_deref(), &mut history.decisions);
                }
                EventKind::TimerCreated { .. } if event.event_id != SPLIT_TIMER_ID => {
                    decide(What::Timer, None, &mut history.decisions);
                }
                EventKind::EventSent { .. } => decide(What::Event, None, &mut history.decisions),
                EventKind::ExecutionCompleted(_) => history.completion = Some(at),
                EventKind::GenericEvent { .. } if row.was == Was::Completion => {
                    history.last_rewound_completion = Some(at);
                }
                EventKind::GenericEvent { .. } => {
                    if let Was::Request { name, is_sub } = &row.was {
                        let what = if *is_sub { What::Sub } else { What::Task };
                        decide(what, name.as_deref(), &mut history.decisions);
                        if let Some(gone) = history.decisions.last_mut() {
                            gone.gone = true;
                        }
                    }
                }
                _ => {}
            }
            if let Some((id, is_timer, failed)) = answer_of(&event.kind)
                && let Some(decision) = open.get(&(id, is_timer)).and_then(|d| history.decisions.get_mut(*d))
            {
                decision.failed |= failed && decision.answers.is_empty();
                decision.answers.push(at);
            }
            history.episodes.push(episode);
        }
        history
    }

    fn episode_of(&self, at: usize) -> usize {
        self.episodes.get(at).copied().unwrap_or_default()
    }

    /// Whether a decision was first made after the row at this position.
    fn is_new_after(&self, decision: &Decision<'_>, at: usize) -> bool {
        decision.at > at && self.largest_id.get(at).is_some_and(|largest| decision.id > *largest)
    }
}

fn answer_of(kind: &EventKind) -> Option<(i32, bool, bool)> {
    match kind {
        EventKind::TaskCompleted { task_scheduled_id: id, .. }
        | EventKind::SubOrchestrationInstanceCompleted { task_scheduled_id: id, .. } => {
            Some((*id, false, false))
        }
        EventKind::TaskFailed { task_scheduled_id: id, .. }
        | EventKind::SubOrchestrationInstanceFailed { task_scheduled_id: id, .. } => Some((*id, false, true)),
        EventKind::TimerFired { timer_id, .. } => Some((*timer_id, true, false)),
        _ => None,
    }
}

/// What retries explain.
#[derive(Debug, Default)]
struct Retries {
    /// Failed calls that were tried again, by decision.
    retried: HashSet<usize>,
    /// Further attempts.
    attempts: HashSet<usize>,
    /// Timers between attempts, and after the last one.
    timers: HashSet<usize>,
    /// Timers between attempts.
    between: HashSet<usize>,
}

impl Retries {
    fn of(history: &History<'_>) -> Self {
        let mut retries = Self::default();
        let mut failed: Vec<usize> =
            (0..history.decisions.len()).filter(|d| history.decisions[*d].failed).collect();
        failed.sort_by_key(|d| history.decisions[*d].answers.first());
        for d in failed.iter().copied() {
            let call = &history.decisions[d];
            let Some(at) = call.answers.first().copied() else { continue };
            let timers = retries.timers_of(history, &failed, d, at);
            let found = timers.into_iter().find_map(|t| {
                let fired = *history.decisions[t].answers.first()?;
                let again = history.decisions.iter().enumerate().find(|(r, again)| {
                    again.what == call.what
                        && again.name == call.name
                        && again.episode == history.episode_of(fired)
                        && again.at > fired
                        && !retries.attempts.contains(r)
                })?;
                Some((t, again.0))
            });
            if let Some((timer, again)) = found {
                retries.retried.insert(d);
                retries.timers.insert(timer);
                retries.between.insert(timer);
                let attempt = &history.decisions[again];
                // An attempt that was rewound has been made again.
                let same = history.decisions.iter().enumerate();
                let same = same.filter(|(_, d)| d.id == attempt.id && d.what == attempt.what);
                retries.attempts.extend(same.map(|(r, _)| r));
            }
        }
        // After the last attempt DTFx waits once more.
        for d in failed {
            if retries.attempts.contains(&d)
                && !retries.retried.contains(&d)
                && let Some(at) = history.decisions[d].answers.first().copied()
            {
                let timer = retries.timers_after(history, at).next();
                retries.timers.extend(timer);
            }
        }
        retries
    }

    /// Timers that may be the answer to a failure: where an episode handled as many failures as it created
    /// timers, they belong together in their order.
    fn timers_of(&self, history: &History<'_>, failed: &[usize], d: usize, at: usize) -> Vec<usize> {
        let episode = history.episode_of(at);
        let first_answer = |d: &usize| history.decisions[*d].answers.first().copied();
        let here: Vec<_> = failed
            .iter()
            .filter(|f| first_answer(f).is_some_and(|at| history.episode_of(at) == episode))
            .collect();
        let timers: Vec<_> = (0..history.decisions.len())
            .filter(|t| history.decisions[*t].what == What::Timer && history.decisions[*t].episode == episode)
            .collect();
        if here.len() == timers.len() {
            let own = here.iter().position(|f| **f == d).and_then(|n| timers.get(n).copied());
            return own.filter(|t| !self.timers.contains(t)).into_iter().collect();
        }
        self.timers_after(history, at).collect()
    }

    /// Timers decided in the episode that handled the row at this position, and not explained yet.
    fn timers_after<'h>(&'h self, history: &'h History<'_>, at: usize) -> impl Iterator<Item = usize> + 'h {
        history.decisions.iter().enumerate().filter_map(move |(t, timer)| {
            (timer.what == What::Timer
                && timer.at > at
                && timer.episode == history.episode_of(at)
                && !self.timers.contains(&t))
            .then_some(t)
        })
    }
}

/// How the code went on after a failure that was not tried again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sequel {
    /// With no decision.
    None,
    /// With timers only.
    Timers,
    /// With other steps.
    Steps,
}

impl Plan {
    /// Plans the rewind of a failed execution.
    pub(super) fn of(rows: &[Row]) -> Self {
        let history = History::of(rows);
        let retries = Retries::of(&history);
        let (removed, cut) = choose(rows, &history, &retries);
        let mut plan = Self {
            completion: history.completion,
            is_waiting: history.completion.is_none()
                && history.last_rewound_completion.is_some_and(|at| at > history.last_episode_at),
            parent: rows
                .iter()
                .find_map(|row| match &row.event.kind {
                    EventKind::ExecutionStarted(started) => Some(started.parent.clone()),
                    _ => None,
                })
                .flatten(),
            ..Self::default()
        };
        if plan.completion.is_none() && !plan.is_waiting {
            return plan; // It runs.
        }
        for (d, decision) in history.decisions.iter().enumerate().filter(|(_, d)| !d.gone) {
            if cut.is_some_and(|cut| history.is_new_after(decision, cut)) {
                plan.undo(decision);
                continue;
            }
            let failed_after_cut =
                decision.failed && cut.is_some_and(|cut| decision.answers.first() >= Some(&cut));
            if removed.contains(&d) || failed_after_cut {
                plan.redo(rows, decision, true);
            } else if decision.answers.is_empty() {
                plan.reopen(rows, decision);
            }
            plan.has_timers |= decision.what == What::Timer && !retries.timers.contains(&d);
        }
        if let Some(at) = history.completion {
            plan.edits.insert(at, Edit::Rewound);
        }
        plan
    }

    /// Takes a decision back, with its answers.
    fn undo(&mut self, decision: &Decision<'_>) {
        self.edits.insert(decision.at, Edit::Undone);
        self.edits.extend(decision.answers.iter().map(|at| (*at, Edit::Undone)));
        self.has_own_work = true;
    }

    /// Lets a failed step be done again.
    fn redo(&mut self, rows: &[Row], decision: &Decision<'_>, failed: bool) {
        if failed {
            self.edits.extend(decision.answers.iter().map(|at| (*at, Edit::Rewound)));
        }
        match rows.get(decision.at).map(|row| &row.event.kind) {
            Some(EventKind::SubOrchestrationInstanceCreated { instance_id, .. }) => {
                if failed {
                    self.edits.insert(decision.at, Edit::Noted);
                }
                let instance_id = instance_id.clone();
                self.children.push(Child { at: decision.at, task_id: decision.id, instance_id });
            }
            _ => {
                self.edits.insert(decision.at, Edit::Rewound);
                self.has_own_work = true;
            }
        }
    }

    /// Asks again for a result that may have come, and been discarded, while the instance was failed.
    ///
    /// Differs: .NET does not; an SDK that fails an instance while calls are open then waits for ever.
    fn reopen(&mut self, rows: &[Row], decision: &Decision<'_>) {
        match (decision.what, rows.get(decision.at).map(|row| &row.event.kind)) {
            (What::Task | What::Sub, _) => self.redo(rows, decision, false),
            (What::Timer, Some(EventKind::TimerCreated { fire_at })) => {
                self.unfired.push((decision.id, *fire_at));
            }
            _ => {}
        }
    }
}

/// Which failed calls are made again, and from which row on everything is decided anew.
fn choose(rows: &[Row], history: &History<'_>, retries: &Retries) -> (HashSet<usize>, Option<usize>) {
    let text = history.completion.and_then(|at| rows.get(at)).map(|row| texts(&row.event.kind));
    let mut removed = HashSet::new();
    let mut cut: Option<usize> = None;
    let mut is_explained = false;
    let mut handled_cause: Option<usize> = None;
    for (d, call) in history.decisions.iter().enumerate() {
        let Some(at) = call.answers.first().copied().filter(|_| call.failed) else { continue };
        if retries.retried.contains(&d) {
            continue;
        }
        let is_cause = text.as_ref().is_some_and(|text| is_mentioned(rows, at, text));
        match sequel(history, retries, at) {
            Sequel::Steps => {
                if is_cause && handled_cause.is_none_or(|other| other < at) {
                    handled_cause = Some(at);
                }
                continue;
            }
            Sequel::Timers => cut = Some(cut.map_or(at, |cut| cut.min(at))),
            Sequel::None => {}
        }
        is_explained |= is_cause;
        removed.insert(d);
    }
    if !is_explained && let Some(at) = handled_cause {
        cut = Some(cut.map_or(at, |cut| cut.min(at)));
    }
    (removed, cut)
}

fn sequel(history: &History<'_>, retries: &Retries, at: usize) -> Sequel {
    let mut sequel = Sequel::None;
    let mut trailing = false;
    for (d, decision) in history.decisions.iter().enumerate() {
        let explained = decision.gone || retries.attempts.contains(&d) || retries.between.contains(&d);
        if explained || !history.is_new_after(decision, at) {
            continue;
        }
        match decision.what {
            What::Timer => trailing = true,
            _ => sequel = Sequel::Steps,
        }
    }
    if sequel == Sequel::None && trailing { Sequel::Timers } else { sequel }
}

/// Messages of a failure: its texts and those of its causes.
fn texts(kind: &EventKind) -> Vec<&str> {
    let (own, details): (_, Option<&FailureDetails>) = match kind {
        EventKind::ExecutionCompleted(e) => (e.result.as_deref(), e.failure_details.as_ref()),
        EventKind::TaskFailed { reason, failure_details, .. }
        | EventKind::SubOrchestrationInstanceFailed { reason, failure_details, .. } => {
            (reason.as_deref(), failure_details.as_ref())
        }
        _ => (None, None),
    };
    let causes = std::iter::successors(details, |d| d.inner_failure.as_deref()).take(MAX_CAUSES);
    own.into_iter().chain(causes.map(|d| d.error_message.as_str())).filter(|t| !t.trim().is_empty()).collect()
}

/// Chains of causes from storage may be long.
const MAX_CAUSES: usize = 64;

/// Whether the instance failed with a text that holds the failure's.
fn is_mentioned(rows: &[Row], at: usize, ended_with: &[&str]) -> bool {
    let Some(row) = rows.get(at) else { return false };
    texts(&row.event.kind).into_iter().any(|text| {
        // Durable Functions puts `Activity function 'F' failed: ` in front, and quotes what is behind.
        let bare = text.rsplit_once("failed: ").map_or(text, |(_, bare)| bare).trim();
        let bare = if bare.is_empty() { text } else { bare };
        ended_with.iter().any(|end| end.contains(text) || end.contains(bare))
    })
}

#[cfg(test)]
#[path = "plan_tests.rs"]
mod tests;
