//! What must be true in the end, and what to show when it is not.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use taskhub_client::TaskHubClient;
use taskhub_client::json::{self, EventTypes};
use taskhub_core::{
    EventKind, HistoryEvent, InstanceFetch, InstanceId, InstanceQuery, OrchestrationState,
    OrchestrationStatus,
};
use taskhub_testkit::TestHub;
use tokio::task::JoinSet;

use crate::plan::{Call, Expected, Planned, hello_calls};

/// Instances that are shown in full when something is wrong with them.
const SHOWN: usize = 3;
/// Instances that are looked at at the same time.
const READERS: usize = 16;

/// Ids and statuses of all instances.
pub(crate) async fn statuses(client: &TaskHubClient) -> Result<BTreeMap<String, OrchestrationStatus>> {
    let mut pages = client.pages(InstanceQuery::default());
    let mut found = BTreeMap::new();
    while let Some(page) = pages.next().await? {
        for state in page.instances {
            let status =
                state.status.with_context(|| format!("no status: {}", state.instance.instance_id))?;
            found.insert(state.instance.instance_id.to_string(), status);
        }
    }
    Ok(found)
}

/// What the hub says of all instances.
pub(crate) struct Outcome {
    pub(crate) wrong: Vec<(String, String)>,
    /// Calls that must have run.
    pub(crate) calls: BTreeSet<Call>,
    /// Timers that were created and have not fired.
    pub(crate) open_timers: u64,
    pub(crate) instances: usize,
}

/// Compares every instance with what was planned.
pub(crate) async fn judge(client: &TaskHubClient, planned: &Arc<Vec<Planned>>) -> Result<Outcome> {
    let mut outcome = Outcome { wrong: Vec::new(), calls: BTreeSet::new(), open_timers: 0, instances: 0 };
    let mut known = BTreeSet::new();
    let next = Arc::new(AtomicUsize::new(0));
    let mut lanes = JoinSet::new();
    for _ in 0..READERS {
        let (client, planned, next) = (client.clone(), planned.clone(), next.clone());
        lanes.spawn(async move {
            let mut found = Vec::new();
            while let Some(one) = planned.get(next.fetch_add(1, Ordering::Relaxed)) {
                for one in one.and_sender() {
                    found.push(look_at(&client, one).await?);
                }
            }
            anyhow::Ok(found)
        });
    }
    while let Some(lane) = lanes.join_next().await {
        for found in lane?? {
            outcome.wrong.extend(found.wrong);
            outcome.calls.extend(found.calls);
            outcome.open_timers += found.open_timers;
            known.extend(found.ids);
        }
    }
    for id in statuses(client).await?.into_keys() {
        outcome.instances += 1;
        if !known.contains(&id) {
            outcome.wrong.push((id, "nobody has started it".to_owned()));
        }
    }
    Ok(outcome)
}

/// What was found about one instance and its child.
struct Found {
    ids: Vec<String>,
    wrong: Vec<(String, String)>,
    calls: Vec<Call>,
    open_timers: u64,
}

async fn look_at(client: &TaskHubClient, one: &Planned) -> Result<Found> {
    let id = InstanceId::new(&one.id);
    let history = client.history(&id).await?;
    let state = client.state(&id, InstanceFetch::ALL).await?;
    let mut found = Found {
        ids: vec![one.id.clone()],
        wrong: Vec::new(),
        calls: one.calls.clone(),
        open_timers: open_timers(&history),
    };
    let children: Vec<_> = history.iter().filter_map(child).collect();
    let checked = state
        .context("it has no row")
        .and_then(|state| check_row(one, &state))
        .and_then(|()| check_history(&history, one.status))
        .and_then(|()| {
            ensure!(children.len() == usize::from(one.has_child), "sub-orchestrations {children:?}");
            Ok(())
        });
    if let Err(error) = checked {
        found.wrong.push((one.id.clone(), format!("{error:#}")));
    }
    for child in children {
        found.calls.extend(hello_calls(&child));
        if let Err(error) = check_child(client, &child).await {
            found.wrong.push((child.clone(), format!("{error:#}")));
        }
        found.ids.push(child);
    }
    Ok(found)
}

async fn check_child(client: &TaskHubClient, id: &str) -> Result<()> {
    let id = InstanceId::new(id);
    let state = client.state(&id, InstanceFetch::ALL).await?.context("it has no row")?;
    ensure!(state.status == Some(OrchestrationStatus::Completed), "status {:?}", state.status);
    ensure!(state.name == "HelloSequence", "name {}", state.name);
    ensure!(
        state.output.as_deref() == Some(r#"["Hello Tokyo!","Hello Seattle!","Hello London!"]"#),
        "output {:?}",
        state.output
    );
    check_history(&client.history(&id).await?, OrchestrationStatus::Completed)
}

fn check_row(one: &Planned, state: &OrchestrationState) -> Result<()> {
    ensure!(state.status == Some(one.status), "status {:?} instead of {:?}", state.status, one.status);
    ensure!(state.name == one.function, "name {}", state.name);
    let output = state.output.as_deref().unwrap_or_default();
    match &one.output {
        Expected::Text(text) => {
            ensure!(
                output == text,
                "output of {} bytes instead of {}: {}",
                output.len(),
                text.len(),
                begin(output)
            );
        }
        Expected::Beginning(text) => ensure!(output.starts_with(text), "output {}", begin(output)),
    }
    if let Some(expected) = &one.custom_status {
        let status: Value = serde_json::from_str(state.custom_status.as_deref().unwrap_or("null"))?;
        ensure!(status == *expected, "custom status {status}");
    }
    let completed_at = state.completed_at.context("no time of completion")?;
    ensure!(state.created_at <= completed_at, "completed before it was created");
    ensure!(state.instance.execution_id.is_some(), "no execution id");
    Ok(())
}

/// One start, one end, and every task that was scheduled has a result. A result that was delivered again
/// after a crash is written again, as by .NET, and replay ignores it.
fn check_history(history: &[HistoryEvent], status: OrchestrationStatus) -> Result<()> {
    let (mut starts, mut ends, mut open, mut done) = (0, Vec::new(), BTreeSet::new(), BTreeSet::new());
    for event in history {
        match &event.kind {
            EventKind::ExecutionStarted(_) => starts += 1,
            EventKind::ExecutionCompleted(completed) => ends.push(completed.status),
            EventKind::TaskScheduled { .. } | EventKind::SubOrchestrationInstanceCreated { .. } => {
                ensure!(open.insert(event.event_id), "task {} was scheduled twice", event.event_id);
            }
            kind => {
                if let Some(id) = answers(kind) {
                    ensure!(open.contains(&id), "a result of task {id}, which was not scheduled");
                    done.insert(id);
                }
            }
        }
    }
    ensure!(starts == 1, "{starts} starts in its history");
    ensure!(ends == [status], "its history ends {ends:?}");
    ensure!(open == done, "tasks {open:?} were scheduled, {done:?} have ended");
    Ok(())
}

fn answers(kind: &EventKind) -> Option<i32> {
    match kind {
        EventKind::TaskCompleted { task_scheduled_id, .. }
        | EventKind::TaskFailed { task_scheduled_id, .. }
        | EventKind::SubOrchestrationInstanceCompleted { task_scheduled_id, .. }
        | EventKind::SubOrchestrationInstanceFailed { task_scheduled_id, .. } => Some(*task_scheduled_id),
        _ => None,
    }
}

fn child(event: &HistoryEvent) -> Option<String> {
    match &event.kind {
        EventKind::SubOrchestrationInstanceCreated { instance_id, .. } => Some(instance_id.to_string()),
        _ => None,
    }
}

fn open_timers(history: &[HistoryEvent]) -> u64 {
    let count = |name| history.iter().filter(|event| event.name() == name).count() as u64;
    count("TimerCreated").saturating_sub(count("TimerFired"))
}

fn begin(text: &str) -> String {
    text.chars().take(200).collect()
}

/// How often every call has run, by the log of activities.
pub(crate) fn runs(log: &Path) -> Result<BTreeMap<Call, usize>> {
    let mut runs = BTreeMap::new();
    for line in std::fs::read_to_string(log)?.lines() {
        let line: Value =
            serde_json::from_str(line).with_context(|| format!("not a line of a log: {line}"))?;
        let text = |name: &str| line[name].as_str().map(str::to_owned).with_context(|| format!("{line}"));
        let name = match text("name")?.as_str() {
            "SayHello" => "SayHello",
            "Echo" => "Echo",
            "Big" => "Big",
            "Boom" => "Boom",
            other => anyhow::bail!("nobody calls {other}"),
        };
        *runs.entry((text("instanceId")?, name, text("input")?)).or_default() += 1;
    }
    Ok(runs)
}

/// Everything there is about some instances, and all queues.
pub(crate) async fn evidence(hub: &TestHub, ids: &[String]) -> Result<String> {
    let client = hub.client()?;
    let mut text = String::new();
    for id in ids.iter().take(SHOWN) {
        let id = InstanceId::new(id);
        let state = client.state(&id, InstanceFetch::ALL).await?;
        let row = state.map_or_else(|| "no row".to_owned(), |state| begin(&json::state(&state).to_string()));
        let _ = writeln!(text, "instance {id}: {row}");
        for event in client.history(&id).await? {
            let event = json::event(&event, EventTypes::Names).to_string();
            let _ = writeln!(text, "  {}", begin(&event));
        }
    }
    let seen = hub.open("observer")?.inspect().await?;
    for partition in &seen.owners {
        let _ = writeln!(text, "partition {partition:?}");
    }
    for queue in &hub.take().await?.queues {
        let _ =
            writeln!(text, "queue {}: {} visible, {} hidden", queue.name, queue.messages.len(), queue.unseen);
        for message in &queue.messages {
            let (inserted, received) = (message.inserted_at.to_iso(), message.dequeue_count);
            let _ = writeln!(text, "  {inserted} received {received} times: {}", begin(&message.text));
        }
    }
    Ok(text)
}
