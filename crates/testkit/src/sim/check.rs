//! What must be true when everything has ended.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use taskhub_azure_storage::message::{self, Decoded};
use taskhub_azure_storage::tracking::{history_row, key, sentinel};
use taskhub_core::{
    ActionKind, EventKind, ExecutionCompleted, HistoryEvent, InstanceFetch, InstanceId, InstanceQuery,
    OrchestrationState, OrchestrationStatus,
};
use taskhub_replay::Execution;

use super::entity;
use super::interpreter::PLAN;
use super::plan::Story;
use super::world::World;

/// Messages that become visible later than this are timers that nobody waits for.
const DISTANT: Duration = Duration::from_secs(3600);

/// Messages that are still there and ought not to be.
pub(crate) async fn left_behind(world: &World) -> Vec<String> {
    let store = &world.network.store;
    let now = taskhub_core::Clock::now(&*world.truth);
    let mut left = Vec::new();
    for queue in store.queues() {
        for message in store.messages(&queue) {
            let text = match message::decode(&message.text) {
                Ok(Decoded::Message(data)) => {
                    let event = &data.task_message.event;
                    let is_timer = matches!(event.kind, EventKind::TimerFired { .. });
                    if is_timer && message.next_visible_at.saturating_since(now) > DISTANT {
                        continue;
                    }
                    let instance = &data.task_message.target.instance_id;
                    format!("{} #{} for {instance}", event.name(), event.event_id)
                }
                Ok(Decoded::Wrapper { blob_name }) => format!("a message in {blob_name}"),
                Err(error) => format!("an unreadable message ({error})"),
            };
            left.push(format!(
                "left in {queue}: {text}, received {} times, inserted {} s ago",
                message.dequeue_count,
                now.saturating_since(message.inserted_at).as_secs()
            ));
        }
    }
    left
}

/// Everything else that is wrong.
pub(crate) async fn all(world: &World, stories: &[Story]) -> Vec<String> {
    let mut wrong = Vec::new();
    let mut states = BTreeMap::new();
    let mut query = InstanceQuery { fetch: InstanceFetch::ALL, ..InstanceQuery::default() };
    loop {
        match world.direct.list(&query).await {
            Ok(page) => {
                let of = |state: OrchestrationState| (state.instance.instance_id.to_string(), state);
                states.extend(page.instances.into_iter().map(of));
                match page.continuation {
                    Some(next) => query.continuation = Some(next),
                    None => break,
                }
            }
            Err(error) => return vec![format!("the instances cannot be listed: {error}")],
        }
    }
    for story in stories {
        expected(world, story, &states, &mut wrong);
    }
    entity::check(world, stories, &mut wrong).await;
    for (id, state) in states.iter().filter(|(id, _)| !id.starts_with('@')) {
        if !state.status.is_some_and(OrchestrationStatus::is_terminal) {
            wrong.push(format!("{id} has not ended: {:?}", state.status));
            continue;
        }
        if let Err(why) = history(world, state).await {
            wrong.push(format!("{id}: {why}"));
        }
    }
    wrong
}

/// Whether an instance has the result that its plan foresees.
fn expected(
    world: &World,
    story: &Story,
    states: &BTreeMap<String, OrchestrationState>,
    wrong: &mut Vec<String>,
) {
    let mut check = |id: &str, status, output: Option<Vec<String>>, custom: Option<&str>| {
        let Some(state) = states.get(id) else {
            wrong.push(format!("{id} does not exist"));
            return;
        };
        if state.status != Some(status) {
            wrong.push(format!("{id} is {:?} and should be {status}: {:?}", state.status, state.output));
            return;
        }
        if let Some(output) = output {
            let found =
                state.output.as_deref().and_then(|text| serde_json::from_str::<Vec<String>>(text).ok());
            if found.as_ref() != Some(&output) {
                wrong.push(format!("{id} has the output {:?} and should have {output:?}", state.output));
            }
            let shown = state.custom_status.as_deref();
            let shown = shown.and_then(|text| serde_json::from_str::<Option<String>>(text).ok());
            // The history does not tell it: a row that had to be made from the history shows what the row
            // before has shown, if anything.
            let may_be_older = world.network.is_repaired(&key::escape(id));
            if shown.flatten().as_deref() != custom && !may_be_older {
                wrong.push(format!("{id} shows {:?} and should show {custom:?}", state.custom_status));
            }
        }
    };
    if story.terminate_at.is_some() {
        check(&story.id, OrchestrationStatus::Terminated, None, None);
        return;
    }
    for (id, plan) in World::expected(std::slice::from_ref(story)) {
        let output = (!plan.fails).then(|| plan.output());
        check(&id, plan.status(), output, plan.custom_status());
    }
    let plans = [Some(&story.plan), story.again.as_ref()];
    for key in plans.into_iter().flatten().flat_map(|plan| plan.keys()) {
        if world.log.runs(&key) == 0 {
            wrong.push(format!("{}: activity {key} was never run", story.id));
        }
    }
}

/// Whether the stored history of an instance is one that DTFx accepts, ends as the row says, and leaves
/// nothing to decide.
async fn history(world: &World, state: &OrchestrationState) -> Result<(), String> {
    let id = &state.instance.instance_id;
    if state.name != PLAN || state.input.is_none() {
        return Err(format!("the row tells name {:?} and input {:?}", state.name, state.input));
    }
    let partition = key::escape(id.as_str());
    let table = world.direct_hub.names.history_table();
    let rows: Vec<_> = world
        .network
        .store
        .entities(&table)
        .into_iter()
        .filter(|row| row.partition_key == partition)
        .collect();
    let Some(last) = rows.iter().find(|row| sentinel::is_sentinel(row)) else {
        let is_terminated = state.status == Some(OrchestrationStatus::Terminated);
        return if rows.is_empty() && is_terminated { Ok(()) } else { Err("no sentinel".to_owned()) };
    };
    let sentinel = sentinel::read(last);
    if state.instance.execution_id.as_ref() != Some(&sentinel.execution_id) {
        return Err(format!(
            "the row is about execution {:?}, the history about {}",
            state.instance.execution_id, sentinel.execution_id
        ));
    }
    // The end may be in the first of several batches, after which nothing remains to be done.
    let is_cut = world.settings.sabotage.max_batch_rows.is_some();
    if sentinel.is_checkpoint_complete != Some(true) && !is_cut {
        return Err("the last checkpoint is not complete".to_owned());
    }
    let own = rows
        .iter()
        .take_while(|row| history_row::execution_id(row) == Some(sentinel.execution_id.as_str()))
        .filter(|row| !sentinel::is_sentinel(row));
    for (at, row) in own.enumerate() {
        if row.row_key != history_row::row_key(at as u64) {
            return Err(format!("row {} where {} belongs", row.row_key, history_row::row_key(at as u64)));
        }
    }
    let events = world.direct.history(&InstanceId::new(id.as_str())).await;
    let events = events.map_err(|error| format!("its history cannot be read: {error}"))?;
    let completed = legal(&events, is_cut)?;
    if Some(completed.status) != state.status {
        return Err(format!("the row says {:?}, the history {}", state.status, completed.status));
    }
    if completed.failure_details.is_none() && completed.result != state.output {
        return Err(format!("the row says {:?}, the history {:?}", state.output, completed.result));
    }
    replays(world, &events, &completed)
}

/// The rules that every history obeys. Returns its end.
fn legal(events: &[HistoryEvent], may_be_cut: bool) -> Result<ExecutionCompleted, String> {
    let mut decided: BTreeMap<i32, &'static str> = BTreeMap::new();
    let mut effective = BTreeSet::new();
    let mut is_open = false;
    let (mut starts, mut episodes) = (0, 0);
    let mut end = None;
    for (at, event) in events.iter().enumerate() {
        let wrong = |what: &str| Err(format!("event {at}, {} #{}: {what}", event.name(), event.event_id));
        if at == 0 && event.kind != EventKind::OrchestratorStarted {
            return wrong("a history begins with OrchestratorStarted");
        }
        // What a generation decides after a continue-as-new follows an OrchestratorCompleted, and another
        // one follows that.
        if !is_open && episodes != 1 && event.kind != EventKind::OrchestratorStarted {
            return wrong("outside of an episode");
        }
        match &event.kind {
            EventKind::OrchestratorStarted => {
                is_open = true;
                episodes += 1;
            }
            EventKind::OrchestratorCompleted => is_open = false,
            EventKind::ExecutionStarted(_) => {
                starts += 1;
                if starts > 1 {
                    return wrong("a second start");
                }
            }
            EventKind::ExecutionCompleted(completed) => {
                if end.is_some() {
                    return wrong("a second end");
                }
                end = Some(completed.clone());
            }
            EventKind::TaskCompleted { task_scheduled_id: id, .. }
            | EventKind::TaskFailed { task_scheduled_id: id, .. } => {
                if decided.get(id) != Some(&"TaskScheduled") {
                    return wrong("a result that nobody asked for");
                }
                effective.insert(*id);
            }
            EventKind::SubOrchestrationInstanceCompleted { task_scheduled_id: id, .. }
            | EventKind::SubOrchestrationInstanceFailed { task_scheduled_id: id, .. } => {
                if decided.get(id) != Some(&"SubOrchestrationInstanceCreated") {
                    return wrong("a child's result that nobody asked for");
                }
                effective.insert(*id);
            }
            EventKind::TimerFired { timer_id: id, .. } if decided.get(id) != Some(&"TimerCreated") => {
                return wrong("a timer that nobody has set");
            }
            EventKind::TaskScheduled { .. }
            | EventKind::SubOrchestrationInstanceCreated { .. }
            | EventKind::TimerCreated { .. }
            | EventKind::EventSent { .. }
                if decided.insert(event.event_id, event.name()).is_some() =>
            {
                return wrong("the id of a decision twice");
            }
            _ => {}
        }
    }
    if is_open && !may_be_cut {
        return Err("the last episode has no end".to_owned());
    }
    end.ok_or_else(|| "the history has no end".to_owned())
}

/// A replay of the whole history decides its end and nothing else.
fn replays(world: &World, events: &[HistoryEvent], completed: &ExecutionCompleted) -> Result<(), String> {
    let started = events.iter().find_map(|event| match &event.kind {
        EventKind::ExecutionStarted(started) => Some(started),
        _ => None,
    });
    let Some(started) = started else { return Err("the history has no start".to_owned()) };
    let found = world.source().orchestrator(&started.name, started.version.as_deref());
    let Some((orchestrator, settings)) = found else {
        return Err(format!("no orchestrator {}", started.name));
    };
    let actions = Execution::new(orchestrator, settings).advance(events, &mut []).actions;
    match &actions[..] {
        [action] => match &action.kind {
            ActionKind::Complete(end) if end.status == completed.status && end.result == completed.result => {
                Ok(())
            }
            other => Err(format!("a replay decides {other:?}, the history ends with {completed:?}")),
        },
        other => Err(format!("a replay decides {other:?}, the history ends with {completed:?}")),
    }
}
