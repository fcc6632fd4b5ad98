//! The entity of the simulated workers, who has asked it for what, and what must have come of it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard, PoisonError};

use taskhub_azure_storage::message::{self, Decoded};
use taskhub_client::CleanEntities;
use taskhub_core::{EventKind, InstanceFetch, InstanceId, OrchestrationStatus};
use taskhub_entities::{EntityId, EntityStatus, RequestMessage, SchedulerState};
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

/// Every request to an entity that somebody has tried to send, by what is added.
#[derive(Debug, Default)]
pub(crate) struct Requests(Mutex<BTreeMap<String, Sent>>);

#[derive(Debug, Default)]
pub(crate) struct Sent {
    /// Whether the sorter sees it; it lets requests of clients and delayed ones pass.
    is_stamped: bool,
    /// Each time an episode was run that sends it there is another stamp.
    stamps: BTreeSet<(String, String)>,
}

impl Requests {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Sent>> {
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
        let entry = request.input.as_deref().and_then(|input| serde_json::from_str::<String>(input).ok());
        if let Some(entry) = entry {
            let mut sent = self.lock();
            let sent = sent.entry(entry).or_default();
            sent.is_stamped = request.parent_instance_id.is_some() && request.due_at.is_none();
            sent.stamps.insert((request.id.to_string(), format!("{:?}", request.timestamp)));
        }
    }

    /// How often an entry may have been added: what an orchestration sends is dropped when it comes again.
    fn most(&self, entry: &str) -> usize {
        let sent = self.lock();
        let Some(sent) = sent.get(entry) else { return 0 };
        if sent.is_stamped { sent.stamps.len() } else { usize::MAX }
    }
}

/// Entities that are locked by instances that have ended.
#[derive(Debug, Default)]
pub(crate) struct Orphans {
    /// How often in a row each was seen so.
    seen: BTreeMap<(String, String), u32>,
}

impl Orphans {
    /// Looks once more. A lock that has not been given back for long is freed, so that the rest can go on, and is an
    /// error, with one exception: see [`is_of_lost_episode`].
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
        if is_of_lost_episode(world, key, holder).await {
            world.network.trace.add("world", &["lock of a lost episode", key, holder], "");
        } else {
            world.network.violation(format!("{} stays locked by {holder}", ledger(key)));
        }
        let locks = CleanEntities { remove_empty: false, ..CleanEntities::default() };
        // What is left is freed the next time.
        let _ = world.direct.clean_entity_storage(&locks).await;
    }
}

/// Whether an entity is locked for an instance that was terminated and does not know of the lock: an episode that
/// asked for it was never stored, and the termination came before it was run again. Nobody can give it back.
async fn is_of_lost_episode(world: &World, key: &str, holder: &str) -> bool {
    let holder = InstanceId::new(holder);
    let row = world.direct.state(&ledger(key).instance_id(), InstanceFetch::ALL).await.ok().flatten();
    let state = row.and_then(|row| SchedulerState::from_json(row.input.as_deref()?).ok());
    let status = world.state(holder.as_str()).await.and_then(|state| state.status);
    let (Some(state), Ok(history)) = (state, world.direct.history(&holder).await) else { return false };
    let asked_for: BTreeSet<_> = history
        .iter()
        .filter_map(|event| match &event.kind {
            EventKind::EventSent { input, .. } => RequestMessage::from_json(input.as_deref()?).ok(),
            _ => None,
        })
        .map(|request| request.id)
        .collect();
    let mut held = state.sections.held().peekable();
    status == Some(OrchestrationStatus::Terminated)
        && held.peek().is_some()
        && held.all(|id| !asked_for.contains(&id))
}

/// Who has locked an entity, be it one without a state.
async fn lock_holder(world: &World, key: &str) -> Option<String> {
    let row = world.state(&ledger(key).to_string()).await?;
    EntityStatus::from_json(row.custom_status.as_deref()?).ok()?.locked_by
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
