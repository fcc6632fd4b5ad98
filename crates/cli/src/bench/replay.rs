//! How fast long histories are replayed, and in how much memory.

use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};
use taskhub_azure_storage::tracking::history_row;
use taskhub_core::{ActionKind, ExecutionId, HistoryEvent, OrchestrationStatus};
use taskhub_replay::{Execution, ReplaySettings};
use taskhub_storage::Entity;
use tokio::process::Command;
use tokio::time::Instant;

use super::history::Shape;
use super::usage::peak_memory_bytes;

/// Lengths of the histories, in events.
pub(super) const LENGTHS: [usize; 3] = [1_000, 10_000, 100_000];
/// A short history is replayed again until so much time has passed.
const SHORTEST: Duration = Duration::from_millis(250);

/// One history, replayed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Replayed {
    pub(super) shape: String,
    /// Exact length; a little less than what was asked for.
    pub(super) events: usize,
    /// How often it was replayed.
    pub(super) rounds: u32,
    /// One replay, on average.
    pub(super) seconds: f64,
    /// Most memory the process ever had, in bytes; `None` where the system does not tell.
    pub(super) peak_memory_bytes: Option<u64>,
}

impl Replayed {
    pub(super) fn rate(&self) -> f64 {
        self.events as f64 / self.seconds
    }
}

/// Replays in a process of its own, whose memory nothing else has used.
pub(super) async fn in_own_process(shape: Shape, events: usize) -> Result<Replayed> {
    let program = std::env::current_exe().context("could not find this program")?;
    let output = Command::new(program)
        .args(["bench", "--replay-here", &format!("{}:{events}", shape.name())])
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .kill_on_drop(true)
        .output()
        .await
        .context("could not start a process for the measurement")?;
    if !output.status.success() {
        bail!("a measurement failed: {}", output.status);
    }
    serde_json::from_slice(&output.stdout).context("a measurement gave no result")
}

/// Replays in this process what `in_own_process` asked for.
pub(super) fn here(task: &str) -> Result<Replayed> {
    let (shape, events) = task
        .split_once(':')
        .and_then(|(shape, events)| Some((Shape::parse(shape)?, events.parse().ok()?)))
        .with_context(|| format!("not a measurement. task=`{task}`"))?;
    measure(shape, events, SHORTEST)
}

fn measure(shape: Shape, length: usize, shortest: Duration) -> Result<Replayed> {
    let history = shape.history(length);
    let events = history.len();
    let (rounds, spent) = if shape.reads_rows() {
        let rows = rows(&history);
        drop(history);
        repeat(shortest, || {
            let mut read = rows.iter().map(history_row::read).collect::<Result<Vec<_>, _>>()?;
            replay(shape, &mut read)
        })?
    } else {
        let mut history = history;
        repeat(shortest, || replay(shape, &mut history))?
    };
    Ok(Replayed {
        shape: shape.name().to_owned(),
        events,
        rounds,
        seconds: spent.as_secs_f64() / f64::from(rounds),
        peak_memory_bytes: peak_memory_bytes(),
    })
}

fn repeat(shortest: Duration, mut round: impl FnMut() -> Result<()>) -> Result<(u32, Duration)> {
    let begun = Instant::now();
    let mut rounds = 0;
    loop {
        round()?;
        rounds += 1;
        let spent = begun.elapsed();
        if spent >= shortest {
            return Ok((rounds, spent));
        }
    }
}

/// The last episode of a worker that has nothing in memory: everything but two events is replayed.
fn replay(shape: Shape, history: &mut [HistoryEvent]) -> Result<()> {
    let (past, new) = history.split_at_mut(history.len() - 2);
    let result = Execution::new(shape.orchestrator(), ReplaySettings::default()).advance(past, new);
    match result.actions.as_slice() {
        [action] if matches!(&action.kind, ActionKind::Complete(c) if c.status == OrchestrationStatus::Completed) => {
            Ok(())
        }
        actions => {
            bail!("the orchestrator did not complete. shape=`{}` actions=`{}`", shape.name(), actions.len())
        }
    }
}

fn rows(history: &[HistoryEvent]) -> Vec<Entity> {
    let execution_id = ExecutionId::new("e1");
    let row = |(index, event)| history_row::write("bench", index, &execution_id, event);
    (0..).zip(history).map(row).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_shape_replays_to_its_end_at_every_length() {
        for shape in Shape::ALL {
            for length in [0, 10, 66, 67, 68, 69, 70, 71, 500] {
                let replayed = measure(shape, length, Duration::ZERO).unwrap();
                assert_eq!((replayed.shape.as_str(), replayed.rounds), (shape.name(), 1));
                let shortest = length.saturating_sub(8);
                assert!((shortest..=length.max(6)).contains(&replayed.events), "{length} {replayed:?}");
            }
        }
    }

    #[test]
    fn what_is_not_a_measurement_is_refused() {
        for task in ["", "sequence", "sequence:", "circle:10", "sequence:-1"] {
            assert!(here(task).is_err(), "{task}");
        }
    }
}
