//! What a worker that stops, dies, or never hears of its messages costs the instances under way.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::ValueEnum;
use serde_json::{Value, json};
use taskhub_azure_storage::message::{Decoded, decode};
use taskhub_client::{Start, TaskHubClient};
use taskhub_core::{HistoryEvent, InstanceFetch, InstanceId, OrchestrationStatus, Timestamp};
use tokio::time::Instant;

use super::rig::Place;
use super::workers::Fleet;
use crate::wire;

const PARTITIONS: u32 = 4;
const ACTIVITIES: usize = 20;
const ACTIVITY_TIME: Duration = Duration::from_secs(8);
const CHAINS: usize = 8;
const CHAIN_LENGTH: usize = 60;
const TIMERS: usize = 4;
const TIMER_TIME: Duration = Duration::from_secs(20);
/// From the last start to the trouble.
const CALM: Duration = Duration::from_secs(4);
/// An instance that was silent for longer than it had to be has stalled.
pub(super) const STALL: Duration = Duration::from_secs(15);
/// Instances that take longer count as lost.
const LONGEST: Duration = Duration::from_secs(900);

/// What happens to one of the two workers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum FleetCase {
    /// SIGTERM.
    GracefulStop,
    /// SIGKILL.
    Kill,
    /// Nothing; but the reply to one receive is lost, so that its messages are hidden and nobody has them.
    LostReceive,
}

impl FleetCase {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::GracefulStop, Self::Kill, Self::LostReceive];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::GracefulStop => "graceful-stop",
            Self::Kill => "kill",
            Self::LostReceive => "lost-receive",
        }
    }
}

/// One run of a case.
#[derive(Debug, Clone)]
pub(super) struct Disturbed {
    pub(super) case: FleetCase,
    /// Instances that were under way (with a lost receive: had a message in the reply).
    pub(super) interrupted: usize,
    /// From the trouble until the last of them began its next episode.
    pub(super) last_resumed: Duration,
    /// Instances that were silent for 15 s more than an activity or a timer of theirs explains.
    pub(super) stalled: usize,
    /// Longest such silence.
    pub(super) longest_silence: Duration,
    /// From the first start to the last end.
    pub(super) completed: Duration,
    /// Activities that ran more than once.
    pub(super) repeated: usize,
    /// How long the worker took to stop.
    pub(super) stop: Option<Duration>,
    /// Longest time between two events of the history, by instance.
    gaps: BTreeMap<String, Duration>,
}

impl Disturbed {
    pub(super) fn figure(&self) -> f64 {
        self.last_resumed.as_secs_f64()
    }

    pub(super) fn json(&self) -> Value {
        let gaps = self.gaps.iter().map(|(id, gap)| (id.clone(), json!(gap.as_secs_f64())));
        json!({
            "case": self.case.name(),
            "instances": self.gaps.len(),
            "interrupted": self.interrupted,
            "stalled": self.stalled,
            "longestSilenceSeconds": self.longest_silence.as_secs_f64(),
            "completedSeconds": self.completed.as_secs_f64(),
            "repeatedActivities": self.repeated,
            "stopSeconds": self.stop.map(|stop| stop.as_secs_f64()),
            "longestGapSeconds": gaps.collect::<serde_json::Map<_, _>>(),
        })
    }
}

/// Two workers, 32 instances, and the trouble of one case.
pub(super) async fn measure(place: &Place, case: FleetCase) -> Result<Disturbed> {
    Fleet::create(place, PARTITIONS).await?.during(async |fleet| run(fleet, case).await).await
}

/// An instance and how long it is silent by itself.
struct Instance {
    id: String,
    patience: Duration,
}

async fn run(fleet: &mut Fleet, case: FleetCase) -> Result<Disturbed> {
    for id in ["bench-1", "bench-2"] {
        fleet.start(id)?;
    }
    fleet.balanced().await?;
    let client = wire::client(&fleet.hub);
    let begun = client.now();
    let instances = start_all(&client).await?;
    tokio::time::sleep(CALM).await;

    let mut leaving = None;
    let struck_at = client.now();
    let (struck_at, interrupted) = match case {
        FleetCase::GracefulStop => {
            let running = unfinished(&client, &instances).await?;
            leaving = Some(fleet.terminate("bench-1").await?);
            (struck_at, running)
        }
        FleetCase::Kill => {
            let running = unfinished(&client, &instances).await?;
            fleet.kill("bench-1").await?;
            (struck_at, running)
        }
        FleetCase::LostReceive => lose_a_receive(fleet, &client).await?,
    };
    let (histories, completed_at) = finish(&client, &instances).await?;
    let stop = match leaving {
        Some(worker) => Some(worker.ended().await?),
        None => None,
    };

    let (mut last_resumed, mut counted) = (Duration::ZERO, 0);
    let (mut gaps, mut stalled, mut longest_silence) = (BTreeMap::new(), 0, Duration::ZERO);
    for instance in &instances {
        let history = &histories[&instance.id];
        // A timer goes on when it is due.
        if interrupted.contains(&instance.id) && !instance.id.starts_with("timer") {
            let next = history.iter().filter(|e| e.name() == "OrchestratorStarted").map(|e| e.timestamp);
            if let Some(next) = next.filter(|at| *at > struck_at).min() {
                last_resumed = last_resumed.max(next.saturating_since(struck_at));
                counted += 1;
            }
        }
        let gap = longest_gap(history);
        let silence = gap.saturating_sub(instance.patience);
        stalled += usize::from(silence > STALL);
        longest_silence = longest_silence.max(silence);
        gaps.insert(instance.id.clone(), gap);
    }
    let activities = fleet.activities()?;
    let distinct: BTreeSet<_> = activities.iter().collect();
    Ok(Disturbed {
        case,
        interrupted: counted,
        last_resumed,
        stalled,
        longest_silence,
        completed: completed_at.saturating_since(begun),
        repeated: activities.len() - distinct.len(),
        stop,
        gaps,
    })
}

async fn start_all(client: &TaskHubClient) -> Result<Vec<Instance>> {
    let kinds = [
        ("activity", ACTIVITIES, "SlowOne", json!(ACTIVITY_TIME.as_millis() as u64), ACTIVITY_TIME),
        ("chain", CHAINS, "Loop", json!(CHAIN_LENGTH), Duration::ZERO),
        ("timer", TIMERS, "Timer", json!(TIMER_TIME.as_secs()), TIMER_TIME),
    ];
    let mut instances = Vec::new();
    for (prefix, count, function, input, patience) in kinds {
        for n in 0..count {
            let id = format!("{prefix}-{n}");
            client.start(Start::new(function).instance_id(id.as_str()).input(&input)?).await?;
            instances.push(Instance { id, patience });
        }
    }
    Ok(instances)
}

async fn unfinished(client: &TaskHubClient, instances: &[Instance]) -> Result<BTreeSet<String>> {
    let mut running = BTreeSet::new();
    for instance in instances {
        let state = client.state(&InstanceId::new(&instance.id), InstanceFetch::NONE).await?;
        if !state.and_then(|state| state.status).is_some_and(|status| status.is_terminal()) {
            running.insert(instance.id.clone());
        }
    }
    Ok(running)
}

/// Receives as a worker does and forgets the reply: when, and whose messages were in it.
async fn lose_a_receive(fleet: &Fleet, client: &TaskHubClient) -> Result<(Timestamp, BTreeSet<String>)> {
    let (queues, settings) = (&*fleet.hub.account.queues, &fleet.hub.settings);
    let names = queues.list_queues(&format!("{}-", fleet.hub.name().lower())).await?;
    let deadline = Instant::now() + Duration::from_secs(60);
    while Instant::now() < deadline {
        for name in &names {
            let (batch, visibility) = if name.ends_with("-workitems") {
                (1, settings.work_item_queue_visibility_timeout)
            } else {
                (settings.control_queue_batch_size, settings.control_queue_visibility_timeout)
            };
            let lost = queues.get_messages(name, batch, visibility).await?;
            if lost.is_empty() {
                continue;
            }
            let whose = lost.iter().filter_map(|message| match decode(&message.text) {
                Ok(Decoded::Message(data)) => Some(data.task_message.target.instance_id.to_string()),
                _ => None,
            });
            return Ok((client.now(), whose.collect()));
        }
    }
    bail!("no message could be taken from the workers")
}

/// Waits for the end of all: their histories, and when the last one ended.
async fn finish(
    client: &TaskHubClient,
    instances: &[Instance],
) -> Result<(BTreeMap<String, Vec<HistoryEvent>>, Timestamp)> {
    let mut completed_at = Timestamp::MIN;
    let mut histories = BTreeMap::new();
    let deadline = Instant::now() + LONGEST;
    for instance in instances {
        let id = InstanceId::new(&instance.id);
        let left = deadline.saturating_duration_since(Instant::now());
        let state = client.wait_for_completion(&id, left).await?.finished();
        let state = state.with_context(|| format!("an orchestration does not end. instance=`{id}`"))?;
        if state.status != Some(OrchestrationStatus::Completed) {
            bail!("an orchestration did not complete. instance=`{id}` status=`{:?}`", state.status);
        }
        completed_at = completed_at.max(state.completed_at.unwrap_or(Timestamp::MIN));
        histories.insert(instance.id.clone(), client.history(&id).await?);
    }
    Ok((histories, completed_at))
}

fn longest_gap(history: &[HistoryEvent]) -> Duration {
    let mut times: Vec<_> = history.iter().map(|event| event.timestamp).collect();
    times.sort_unstable();
    times.windows(2).map(|pair| pair[1].saturating_since(pair[0])).max().unwrap_or_default()
}
