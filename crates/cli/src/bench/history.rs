//! Long histories as workers write them, and orchestrators that have them.

use std::sync::Arc;
use std::time::Duration;

use taskhub_core::{EventKind, ExecutionStarted, HistoryEvent, OrchestrationInstance, Timestamp};
use taskhub_replay::{
    ActivityOptions, OrchestrationContext, Orchestrator, OrchestratorError, RetryPolicy, join_all,
    orchestrator,
};

/// Results that wake an orchestrator at once: as many as one receive from a queue brings.
const RESULTS_PER_EPISODE: usize = 32;

/// What an orchestrator does with its activities.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Shape {
    /// One after the other, an episode each.
    Sequence,
    /// The same, and the history is read from table rows first.
    SequenceRows,
    /// All at once.
    FanOut,
    /// The same, and the history is read from table rows first.
    FanOutRows,
    /// All at once, each with a retry policy that is not needed.
    Retries,
}

impl Shape {
    pub(super) const ALL: [Self; 5] =
        [Self::Sequence, Self::SequenceRows, Self::FanOut, Self::FanOutRows, Self::Retries];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Sequence => "sequence",
            Self::SequenceRows => "sequence-rows",
            Self::FanOut => "fan-out",
            Self::FanOutRows => "fan-out-rows",
            Self::Retries => "fan-out-retry",
        }
    }

    pub(super) fn reads_rows(self) -> bool {
        matches!(self, Self::SequenceRows | Self::FanOutRows)
    }

    pub(super) fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|shape| shape.name() == name)
    }

    pub(super) fn orchestrator(self) -> Arc<dyn Orchestrator> {
        match self {
            Self::Sequence | Self::SequenceRows => {
                Arc::new(orchestrator(|ctx: OrchestrationContext, n: usize| async move {
                    for k in 0..n {
                        let _: usize = ctx.call_activity("Echo", k).await?;
                    }
                    Ok::<_, OrchestratorError>(n)
                }))
            }
            Self::FanOut | Self::FanOutRows => {
                Arc::new(orchestrator(|ctx: OrchestrationContext, n: usize| async move {
                    let results = join_all((0..n).map(|k| ctx.call_activity::<_, usize>("Echo", k))).await;
                    Ok::<_, OrchestratorError>(results.len())
                }))
            }
            Self::Retries => Arc::new(orchestrator(|ctx: OrchestrationContext, n: usize| async move {
                let retry = Some(RetryPolicy::new(3, Duration::from_secs(1)));
                let options = ActivityOptions { retry, ..ActivityOptions::default() };
                let calls = (0..n).map(|k| ctx.call_activity_with::<_, usize>("Echo", k, options.clone()));
                Ok::<_, OrchestratorError>(join_all(calls).await.len())
            })),
        }
    }

    /// The longest history of at most `events` events (but one activity at least) that is one episode
    /// short of its end. Its last two events are those that wake the orchestrator for the last time.
    pub(super) fn history(self, events: usize) -> Vec<HistoryEvent> {
        let mut calls = match self {
            Self::Sequence | Self::SequenceRows => events.saturating_sub(2) / 4,
            // Two events per call, and two around the results of each episode.
            Self::FanOut | Self::FanOutRows | Self::Retries => {
                events.saturating_sub(5) * RESULTS_PER_EPISODE / (2 * RESULTS_PER_EPISODE + 2)
            }
        };
        calls = calls.max(1);
        let mut history = Vec::with_capacity(events);
        history.extend([message(EventKind::OrchestratorStarted), started(calls)]);
        match self {
            Self::Sequence | Self::SequenceRows => {
                for call in 0..calls {
                    history.extend([scheduled(call), message(EventKind::OrchestratorCompleted)]);
                    history.extend([message(EventKind::OrchestratorStarted), completed(call)]);
                }
            }
            Self::FanOut | Self::FanOutRows | Self::Retries => {
                history.extend((0..calls).map(scheduled));
                let mut done = 0;
                while done < calls {
                    // The last result comes alone.
                    let until =
                        if done + 1 < calls { (done + RESULTS_PER_EPISODE).min(calls - 1) } else { calls };
                    history.push(message(EventKind::OrchestratorCompleted));
                    history.push(message(EventKind::OrchestratorStarted));
                    history.extend((done..until).map(completed));
                    done = until;
                }
            }
        }
        history
    }
}

fn message(kind: EventKind) -> HistoryEvent {
    HistoryEvent::message(Timestamp::MIN, kind)
}

fn started(calls: usize) -> HistoryEvent {
    message(EventKind::ExecutionStarted(Box::new(ExecutionStarted {
        input: Some(calls.to_string()),
        ..ExecutionStarted::new(OrchestrationInstance::new("bench", "e1"), "Bench")
    })))
}

fn scheduled(call: usize) -> HistoryEvent {
    let kind = EventKind::TaskScheduled {
        name: Some("Echo".into()),
        version: None,
        input: None,
        parent_trace_context: None,
        tags: None,
    };
    HistoryEvent::decision(id(call), Timestamp::MIN, kind)
}

fn completed(call: usize) -> HistoryEvent {
    message(EventKind::TaskCompleted { task_scheduled_id: id(call), result: Some(call.to_string()) })
}

fn id(call: usize) -> i32 {
    i32::try_from(call).unwrap_or(i32::MAX)
}
