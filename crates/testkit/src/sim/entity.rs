//! The entity of the simulated workers, who has asked it for what, and what must have come of it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard, PoisonError};

use taskhub_azure_storage::message::{self, Decoded};
use taskhub_client::CleanEntities;
use taskhub_core::{EventKind, OrchestrationStatus};
use taskhub_entities::{EntityId, EntityStatus, RequestMessage};
use taskhub_worker::{EntityContext, OperationError, Reply, WorkerBuilder};

use super::plan::Story;
use super::world::World;

/// Name of the entity. Its state is the list of all that was added to it, in order.
const LEDGER: &str = "ledger";
/// Its keys.
pub(crate) const LEDGERS: [&str; 3] = ["a", "b", "c"];
/// How often in a row a lock is seen in the hands of who has ended before it counts as left: a release may be on
/// its way for minutes.
const ORPHANED_AFTER: u32 = 6;
/// Its operation.
pub(crate) const ADD: &str = "add";

/// The ledger with this key.
pub(crate) fn ledger(key: &str) -> EntityId {
    EntityId::new(LEDGER, key).expect("letters")
}

/// Registers the entity.
pub(crate) fn register(builder: WorkerBuilder) -> WorkerBuilder {
    builder.entity(LEDGER, add)
}

async fn add(ctx: EntityContext) -> Result<Reply, OperationError> {
    let mut done: Vec<String> = ctx.state()?.unwrap_or_default();
    done.push(ctx.input::<String>()?);
    ctx.set_state(&done)?;
    Ok(Reply::NONE)
}

/// Every request to an entity that somebody has tried to send.
#[derive(Debug, Default)]
pub(crate) struct Requests(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    /// By what is added.
    entries: BTreeMap<String, Sent>,
    /// How often each lock of an entity was asked for, by who asked: by execution, id and entity.
    locks: BTreeMap<String, BTreeMap<(String, String, String), u32>>,
    /// Executions of an instance that have sent anything to an entity.
    executions: BTreeMap<(String, String), BTreeSet<String>>,
}

#[derive(Debug, Default)]
struct Sent {
    /// Orchestration and entity; absent for what the sorter lets pass: requests of clients and delayed ones.
    stamped_by: Option<(String, String)>,
    /// Each time an episode was run that sends it there is another stamp.
    stamps: BTreeSet<(String, String)>,
}

impl Requests {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Somebody puts a message.
    pub(crate) fn note(&self, text: &str) {
        // What goes to orchestrations, cheaply.
        if !text.contains("Predecessor") {
            return;
        }
        let Ok(Decoded::Message(data)) = message::decode(text) else { return };
        let EventKind::EventRaised { input: Some(input), .. } = &data.task_message.event.kind else { return };
        let Ok(request) = RequestMessage::from_json(input) else { return };
        let entity = data.task_message.target.instance_id.to_string();
        let target = entity.clone();
        let mut state = self.lock();
        let stamped_by = match (&request.parent_instance_id, request.due_at) {
            (Some(parent), None) => Some((parent.clone(), entity)),
            _ => None,
        };
        if let (Some(pair), Some(execution)) = (&stamped_by, &request.parent_execution_id) {
            state.executions.entry(pair.clone()).or_default().insert(execution.clone());
        }
        if let (Some(parent), true) = (&request.parent_instance_id, request.is_lock_request()) {
            let own = state.locks.entry(parent.clone()).or_default();
            let execution = request.parent_execution_id.clone().unwrap_or_default();
            *own.entry((execution, request.id.to_string(), target)).or_default() += 1;
        }
        let entry = request.input.as_deref().and_then(|input| serde_json::from_str::<String>(input).ok());
        if let Some(entry) = entry {
            let sent = state.entries.entry(entry).or_default();
            sent.stamped_by = stamped_by;
            sent.stamps.insert((request.id.to_string(), format!("{:?}", request.timestamp)));
        }
    }

    /// Whether the request for a lock may have been seen twice, or an episode that asks for one run twice.
    fn has_asked_twice(&self, holder: &str) -> bool {
        let state = self.lock();
        let Some(own) = state.locks.get(holder) else { return false };
        let mut firsts: BTreeMap<_, BTreeSet<_>> = BTreeMap::new();
        for (execution, id, _) in own.keys() {
            firsts.entry(execution).or_default().insert(id);
        }
        firsts.values().any(|ids| ids.len() > 1) || own.values().any(|times| *times > 1)
    }

    /// Whether that is so of any instance.
    fn has_anybody_asked_twice(&self) -> bool {
        let holders: Vec<_> = self.lock().locks.keys().cloned().collect();
        holders.iter().any(|holder| self.has_asked_twice(holder))
    }

    /// How often an entry may have been added. DTFx's sorter drops whatever comes again of one execution of an
    /// orchestration; what another execution of it sends makes it forget the one before.
    fn most(&self, entry: &str) -> usize {
        let state = self.lock();
        let Some(sent) = state.entries.get(entry) else { return 0 };
        match &sent.stamped_by {
            Some(pair) if state.executions.get(pair).is_some_and(|all| all.len() == 1) => sent.stamps.len(),
            _ => usize::MAX,
        }
    }
}

/// Entities that are locked by instances that have ended.
#[derive(Debug, Default)]
pub(crate) struct Orphans {
    /// How often in a row each was seen so.
    seen: BTreeMap<(String, String), u32>,
}

impl Orphans {
    /// Looks once more, and frees what has been locked for long. A lock that was asked for twice, because its
    /// request was delivered twice or an episode was run twice, may be taken twice, as in DTFx, whose remedy
    /// this is. Every other lock has to be given back by itself.
    pub(crate) async fn look(&mut self, world: &World) {
        let mut seen = BTreeMap::new();
        for key in LEDGERS {
            let Some(holder) = lock_holder(world, key).await else { continue };
            let status = world.state(&holder).await.and_then(|state| state.status);
            if status.is_none_or(OrchestrationStatus::is_terminal) {
                let pair = (key.to_owned(), holder);
                let times = self.seen.get(&pair).copied().unwrap_or(0) + 1;
                seen.insert(pair, times);
            }
        }
        self.seen = seen;
        let Some(((key, holder), _)) = self.seen.iter().find(|(_, times)| **times >= ORPHANED_AFTER) else {
            return;
        };
        if !world.network.requests.has_asked_twice(holder) {
            world.network.violation(format!("{} stays locked by {holder}", ledger(key)));
        }
        let locks = CleanEntities { remove_empty: false, ..CleanEntities::default() };
        // What is left is freed the next time.
        let _ = world.direct.clean_entity_storage(&locks).await;
    }
}

/// Who has locked an entity, be it one without a state.
async fn lock_holder(world: &World, key: &str) -> Option<String> {
    let row = world.state(&ledger(key).to_string()).await?;
    EntityStatus::from_json(row.custom_status.as_deref()?).ok()?.locked_by
}

/// Whether an entity is locked and somebody has asked for a lock twice. In DTFx's protocol the second one may come
/// when the first has been given back, and then stands in the way of whoever locks in order: a deadlock, about
/// which nothing can be said.
pub(crate) async fn has_lock_taken_twice(world: &World) -> bool {
    for key in LEDGERS {
        if let Some(holder) = lock_holder(world, key).await
            && world.network.requests.has_anybody_asked_twice()
        {
            world.network.trace.add("world", &["deadlock", key, &holder], "");
            return true;
        }
    }
    false
}

/// Whether any entity is locked.
pub(crate) async fn is_any_locked(world: &World) -> bool {
    for key in LEDGERS {
        if lock_holder(world, key).await.is_some() {
            return true;
        }
    }
    false
}

/// Whether the entities hold what was asked for, and nobody holds them.
pub(crate) async fn check(world: &World, stories: &[Story], wrong: &mut Vec<String>) {
    let mut expected: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for story in stories {
        // What is terminated uses no entity.
        let of_plans = [Some(&story.plan), story.again.as_ref()].into_iter().flatten();
        let of_client = story.signals.iter().map(|(_, to, entry)| (to.clone(), entry.clone()));
        for (to, entry) in of_plans.flat_map(|plan| plan.entries()).chain(of_client) {
            expected.entry(to).or_default().insert(entry);
        }
    }
    for (key, expected) in expected {
        let id = ledger(&key);
        let entity = match world.direct.read_entity(&id).await {
            Ok(Some(entity)) => entity,
            other => {
                wrong.push(format!("{id} cannot be read: {other:?}"));
                continue;
            }
        };
        if entity.locked_by.is_some() || entity.queue_size > 0 {
            wrong.push(format!("{id} is locked by {:?}, {} wait", entity.locked_by, entity.queue_size));
        }
        let done = entity.state.as_deref().and_then(|text| serde_json::from_str::<Vec<String>>(text).ok());
        let Some(done) = done else {
            wrong.push(format!("{id} has the state {:?}", entity.state));
            continue;
        };
        let mut times: BTreeMap<&str, usize> = BTreeMap::new();
        for entry in &done {
            *times.entry(entry).or_default() += 1;
        }
        for entry in &expected {
            let (times, most) =
                (times.remove(entry.as_str()).unwrap_or(0), world.network.requests.most(entry));
            if times == 0 {
                wrong.push(format!("{id}: {entry} was lost"));
            } else if times > most {
                wrong.push(format!("{id}: {entry} was added {times} times, and sent {most} times"));
            }
        }
        if !times.is_empty() {
            wrong.push(format!("{id}: nobody has asked for {times:?}"));
        }
    }
}
