//! The safe and the legacy partition manager's loops over lease blobs.
//!
//! Source: Azure/durabletask, `Partitioning/LeaseCollectionBalancer.cs`.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::future::join_all;
use taskhub_core::{PartitionId, ServiceError};
use tokio::sync::Notify;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use crate::hub::{Hub, PartitionManagerKind};
use crate::names::{INTENT_LEASES, LEGACY_LEASES, OWNERSHIP_LEASES};
use crate::partition::balance::{self, Plan};
use crate::partition::blob::{self, Act, Drain, View};
use crate::partition::lease_blob::{FoundLease, HeldLease, LeaseFolder, Renewal};
use crate::partition::owner::PartitionOwner;

/// Interval of attempts to acquire ownership leases.
/// Source: Azure/durabletask, `SafePartitionManager` (5 s).
const OWNERSHIP_ACQUIRE_INTERVAL: Duration = Duration::from_secs(5);
/// Interval of looks at deadlines and drains.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);
/// Wait before a renewal whose outcome nobody knows is repeated.
const UNKNOWN_INTERVAL: Duration = Duration::from_secs(2);

/// How often the leases are looked at again because another worker stole the same one first.
///
/// Differs: DTFx waits for the next interval, so that workers which join together get one lease in ten
/// seconds among them.
const LOST_RACES: u32 = 8;

/// Requests that an attempt to take a lease may still send after a stop, each bounded by the interval of
/// renewals: it is acquired and written.
const LAST_REQUESTS: u32 = 2;

/// How long leases are not listed while this worker holds all it may hold: whoever takes one makes its next
/// renewal fail.
const RELIST_INTERVAL: Duration = Duration::from_secs(60);

/// How an attempt to take leases ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Taken {
    /// There is nothing more to do for now.
    Settled,
    /// This worker may hold none, which tells nothing of the storage.
    NotAllowed,
    /// Another worker has stolen the lease that this one wanted.
    LostRace,
}

/// The leases of one kind: which are held, and how new ones are got.
#[derive(Debug)]
struct Leases {
    folder: LeaseFolder,
    held: Mutex<BTreeMap<PartitionId, HeldLease>>,
    /// Leases that are being given back: until that has ended they still look like ours.
    releasing: Mutex<BTreeSet<PartitionId>>,
    /// The partitions that have a lease, and when that was seen.
    listed: Mutex<Option<(Instant, Vec<PartitionId>)>>,
    acquire_interval: Duration,
    may_steal: bool,
    /// Look for leases before the interval is over.
    hurry: Notify,
}

impl Leases {
    fn new(hub: &Hub, folder: &'static str, acquire_interval: Duration, may_steal: bool) -> Self {
        Self {
            folder: LeaseFolder::new(hub.clone(), folder),
            held: Mutex::default(),
            releasing: Mutex::default(),
            listed: Mutex::default(),
            acquire_interval,
            may_steal,
            hurry: Notify::new(),
        }
    }

    fn held(&self) -> MutexGuard<'_, BTreeMap<PartitionId, HeldLease>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn releasing(&self) -> MutexGuard<'_, BTreeSet<PartitionId>> {
        self.releasing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn until(&self, partition: PartitionId) -> Option<Instant> {
        self.held().get(&partition).map(|held| held.until)
    }

    fn listed(&self) -> MutexGuard<'_, Option<(Instant, Vec<PartitionId>)>> {
        self.listed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many leases there are that `may_hold` lets this worker have, if it holds all of them; `None` if not,
    /// or if it is long since they were listed.
    fn has_all(&self, may_hold: impl Fn(PartitionId) -> bool) -> Option<usize> {
        let listed = self.listed();
        let (at, partitions) = listed.as_ref()?;
        let mut wanted = partitions.iter().filter(|partition| may_hold(**partition));
        let all = at.elapsed() < RELIST_INTERVAL && wanted.clone().all(|partition| self.holds(*partition));
        all.then(|| wanted.by_ref().count())
    }

    fn holds(&self, partition: PartitionId) -> bool {
        self.until(partition).is_some_and(|until| until > self.folder.now())
    }
}

/// What is under way with partitions.
#[derive(Debug, Default)]
struct State {
    /// Partitions that are to be received from.
    assigned: BTreeSet<PartitionId>,
    drains: BTreeMap<PartitionId, AbortOnDropHandle<()>>,
    /// Stolen leases: from when the previous owner must have noticed.
    not_before: BTreeMap<PartitionId, Instant>,
    /// Partitions let go because their receive loop did not come to life, and until when they are left to
    /// others.
    shunned: BTreeMap<PartitionId, Instant>,
}

/// Acquires, balances, renews and hands back partitions of one worker.
pub(crate) struct BlobManager {
    hub: Hub,
    owner: Arc<dyn PartitionOwner>,
    /// Balanced between workers. With the legacy manager the only one.
    intent: Leases,
    /// What reading the queue takes, with the safe manager.
    ownership: Option<Leases>,
    state: Mutex<State>,
    /// A lease came or went.
    changed: Notify,
}

impl BlobManager {
    pub(crate) fn new(hub: Hub, owner: Arc<dyn PartitionOwner>, kind: PartitionManagerKind) -> Self {
        let interval = hub.settings.lease_acquire_interval;
        let (intent, ownership) = if kind == PartitionManagerKind::Legacy {
            (Leases::new(&hub, LEGACY_LEASES, interval, true), None)
        } else {
            let interval_of_ownership = OWNERSHIP_ACQUIRE_INTERVAL.min(interval);
            let ownership = Leases::new(&hub, OWNERSHIP_LEASES, interval_of_ownership, false);
            (Leases::new(&hub, INTENT_LEASES, interval, true), Some(ownership))
        };
        Self { hub, owner, intent, ownership, state: Mutex::default(), changed: Notify::new() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The leases that reading takes.
    fn owning(&self) -> &Leases {
        self.ownership.as_ref().unwrap_or(&self.intent)
    }

    /// Runs until `stop`, then hands all partitions back; `force` ends that early.
    pub(crate) async fn run(self, stop: CancellationToken, force: CancellationToken) {
        let work = async {
            self.adopt(&self.intent).await;
            self.adopt(self.owning()).await;
            let takers = async {
                tokio::join!(self.take(&self.intent, &stop), async {
                    if let Some(ownership) = &self.ownership {
                        self.take(ownership, &stop).await;
                    }
                });
            };
            tokio::pin!(takers);
            let ended = tokio::select! {
                biased;
                () = stop.cancelled() => false,
                () = &mut takers => true,
                () = self.conduct() => false,
            };
            // A lease whose acquisition is dropped half-way may be held, by nobody who knows of it. The attempt
            // under way ends, and what it has got is handed back, too.
            let limit = self.hub.settings.lease_renew_interval * LAST_REQUESTS;
            let last_attempt = async {
                if !ended {
                    let _ = tokio::time::timeout(limit, takers).await;
                }
            };
            tokio::join!(self.hand_back(), last_attempt);
            self.hand_back().await;
        };
        tokio::select! {
            biased;
            () = work => {}
            () = self.keep_renewing() => {}
            () = force.cancelled() => {}
        }
    }

    /// Leases of an earlier process with the same id are taken up.
    async fn adopt(&self, leases: &Leases) {
        let found = match leases.folder.list().await {
            Ok(found) => found,
            Err(e) => return self.failed(leases, "cannot list the lease blobs", &e),
        };
        join_all(
            found.iter().filter(|lease| self.names_me(lease)).map(|lease| self.adopt_one(leases, lease)),
        )
        .await;
    }

    fn names_me(&self, lease: &FoundLease) -> bool {
        let me = self.hub.settings.worker_id.as_str();
        lease.content.owner.as_deref().is_some_and(|owner| owner.eq_ignore_ascii_case(me))
    }

    async fn adopt_one(&self, leases: &Leases, lease: &FoundLease) {
        let is_releasing = leases.releasing().contains(&lease.partition);
        if is_releasing || leases.holds(lease.partition) || self.shuns(lease.partition) {
            return;
        }
        match leases.folder.adopt(lease).await {
            Ok(Some(held)) => self.gained(leases, lease.partition, held),
            Ok(None) => {}
            Err(e) => self.failed(leases, "cannot adopt a lease", &e),
        }
    }

    fn gained(&self, leases: &Leases, partition: PartitionId, held: HeldLease) {
        tracing::debug!(hub = %self.hub.name(), %partition, lease = leases.folder.name(), "lease gained");
        leases.held().insert(partition, held);
        self.changed.notify_one();
        if let Some(ownership) = self.ownership.as_ref().filter(|_| std::ptr::eq(leases, &self.intent)) {
            ownership.hurry.notify_one();
        }
    }

    fn failed(&self, leases: &Leases, what: &str, error: &ServiceError) {
        tracing::warn!(
            hub = %self.hub.name(), step = what, lease = leases.folder.name(), error = error.chain(), "cannot look after the lease blobs"
        );
    }

    /// Whether others shall have a partition: its receive loop is dead, or was when the lease was lost.
    fn shuns(&self, partition: PartitionId) -> bool {
        let state = self.state();
        let is_shunned = state.shunned.get(&partition).is_some_and(|until| Instant::now() < *until);
        is_shunned || (state.assigned.contains(&partition) && !self.owner.is_live(partition))
    }

    /// Takes leases, until `stop`.
    async fn take(&self, leases: &Leases, stop: &CancellationToken) {
        while !stop.is_cancelled() {
            let mut taken = self.take_once(leases, stop).await;
            for _ in 0..LOST_RACES {
                if !matches!(taken, Ok(Taken::LostRace)) {
                    break;
                }
                taken = self.take_once(leases, stop).await;
            }
            match taken {
                Ok(Taken::NotAllowed) => {}
                Ok(_) => self.owner.status().looked(),
                Err(e) => {
                    self.owner.status().failed(&e);
                    self.failed(leases, "cannot take leases", &e);
                }
            }
            tokio::select! {
                biased;
                () = tokio::time::sleep(leases.acquire_interval) => {}
                () = leases.hurry.notified() => {}
                () = stop.cancelled() => {}
            }
        }
    }

    /// Takes what the balance says: any number of free leases, or one of another worker's.
    async fn take_once(&self, leases: &Leases, stop: &CancellationToken) -> Result<Taken, ServiceError> {
        let owns = |partition| {
            // Ownership is acquired only while the intent is held.
            std::ptr::eq(leases, &self.intent) || self.intent.holds(partition)
        };
        // Differs: DTFx lists and reads all leases each time.
        if !self.hub.settings.dtfx_cadence
            && let Some(held) = leases.has_all(owns)
            && (held > 0 || !std::ptr::eq(leases, &self.intent))
        {
            return Ok(if held > 0 { Taken::Settled } else { Taken::NotAllowed });
        }
        let mut found = tokio::select! {
            biased;
            () = stop.cancelled() => return Ok(Taken::Settled),
            found = leases.folder.list() => found?,
        };
        *leases.listed() = Some((Instant::now(), found.iter().map(|lease| lease.partition).collect()));
        found.retain(|lease| owns(lease.partition));
        for lease in found.iter().filter(|lease| lease.leased && self.names_me(lease)) {
            self.adopt_one(leases, lease).await;
        }
        if stop.is_cancelled() {
            return Ok(Taken::Settled);
        }
        let candidates: Vec<_> = found.iter().map(FoundLease::candidate).collect();
        let lease_of = |partition| found.iter().find(|lease| lease.partition == partition);
        match balance::plan(&candidates, &self.hub.settings.worker_id, leases.may_steal) {
            Plan::Rest => {}
            Plan::Acquire { free, mut need } => {
                for partition in free.into_iter().filter(|partition| !self.shuns(*partition)) {
                    if need == 0 || stop.is_cancelled() {
                        break;
                    }
                    let Some(lease) = lease_of(partition) else { continue };
                    if let Some(held) = leases.folder.acquire(lease).await? {
                        self.state().not_before.remove(&partition);
                        self.gained(leases, partition, held);
                        need -= 1;
                    }
                }
            }
            Plan::Steal(partition) if self.shuns(partition) => {}
            Plan::Steal(partition) => {
                let Some(lease) = lease_of(partition) else { return Ok(Taken::Settled) };
                let Some(held) = leases.folder.acquire(lease).await? else { return Ok(Taken::LostRace) };
                if self.ownership.is_none() {
                    // Differs: DTFx reads at once, while the previous owner reads until its next renewal
                    // fails.
                    let noticed = self.hub.awake().now() + self.hub.settings.lease_renew_interval;
                    self.state().not_before.insert(partition, noticed);
                }
                self.gained(leases, partition, held);
            }
        }
        Ok(Taken::Settled)
    }

    /// Renews what is held, for ever. Goes on while partitions are handed back.
    async fn keep_renewing(&self) {
        tokio::join!(self.renew_all(&self.intent), async {
            if let Some(ownership) = &self.ownership {
                self.renew_all(ownership).await;
            }
        });
    }

    async fn renew_all(&self, leases: &Leases) {
        let interval = self.hub.settings.lease_renew_interval;
        loop {
            let held = leases.held().clone();
            let renewed = join_all(held.iter().map(|(partition, held)| self.renew(leases, *partition, held)));
            let all_known = renewed.await.into_iter().all(|known| known);
            tokio::time::sleep(if all_known { interval } else { UNKNOWN_INTERVAL.min(interval) }).await;
        }
    }

    /// Renews one lease; false when nobody knows whether that worked.
    async fn renew(&self, leases: &Leases, partition: PartitionId, held: &HeldLease) -> bool {
        if !self.is_alive(leases, partition) {
            self.forget_after_its_time(leases, partition);
            return true;
        }
        let renewal = leases.folder.renew(partition, held).await;
        let mut all = leases.held();
        // Released or taken anew meanwhile.
        let Some(current) = all.get_mut(&partition).filter(|current| current.is_same(held)) else {
            return true;
        };
        match renewal {
            Renewal::Kept(until) => current.until = current.until.max(until),
            Renewal::Lost => {
                all.remove(&partition);
                drop(all);
                tracing::info!(
                    hub = %self.hub.name(), %partition, lease = leases.folder.name(),
                    "another worker has taken the lease"
                );
            }
            Renewal::Unknown(e) => {
                drop(all);
                self.failed(leases, "cannot renew a lease; it holds until its deadline", &e);
                self.forget_after_its_time(leases, partition);
                return false;
            }
        }
        self.changed.notify_one();
        true
    }

    /// Whether the partition is in good hands here. A lease whose receive loop is dead is not renewed: if a
    /// new loop does not come to life, another worker gets the queue.
    fn is_alive(&self, leases: &Leases, partition: PartitionId) -> bool {
        if !self.state().assigned.contains(&partition) || self.owner.is_live(partition) {
            return true;
        }
        if std::ptr::eq(leases, self.owning()) {
            tracing::warn!(
                hub = %self.hub.name(), %partition,
                "the receive loop makes no progress; starting another and not renewing the lease"
            );
            self.owner.restart(partition);
        }
        false
    }

    /// A lease that was not renewed in time is somebody else's, for all we know.
    fn forget_after_its_time(&self, leases: &Leases, partition: PartitionId) {
        let mut all = leases.held();
        if all.get(&partition).is_some_and(|held| held.until <= self.hub.awake().now()) {
            all.remove(&partition);
            drop(all);
            self.changed.notify_one();
        }
    }

    /// Receives from what is owned, and drains what is not to be any more, for ever.
    async fn conduct(&self) {
        loop {
            self.look(false).await;
            tokio::select! {
                biased;
                () = tokio::time::sleep(LOOK_INTERVAL) => {}
                () = self.changed.notified() => {}
            }
        }
    }

    /// Stops receiving, lets others have the intent at once, and each partition when it is drained.
    async fn hand_back(&self) {
        let intents: Vec<PartitionId> = self.intent.held().keys().copied().collect();
        let early = self.ownership.is_some();
        self.look(true).await;
        if early {
            join_all(intents.iter().map(|partition| self.release(&self.intent, *partition))).await;
        }
        while !self.owning().held().is_empty() {
            self.look(true).await;
            if !self.owning().held().is_empty() {
                tokio::select! {
                    biased;
                    () = tokio::time::sleep(LOOK_INTERVAL) => {}
                    () = self.changed.notified() => {}
                }
            }
        }
    }

    async fn look(&self, stopping: bool) {
        let mut partitions = self.state().assigned.clone();
        partitions.extend(self.owning().held().keys());
        let (mut released, mut abandoned) = (Vec::new(), Vec::new());
        for partition in partitions {
            let act = blob::decide(self.view(partition, stopping), self.hub.awake().now());
            match act {
                Act::Rest => {}
                Act::Receive(until) => {
                    let mut state = self.state();
                    state.drains.remove(&partition);
                    state.assigned.insert(partition);
                    drop(state);
                    self.owner.receive(partition, until);
                }
                Act::Stop => {
                    if self.stop(partition) {
                        abandoned.push(partition);
                    }
                }
                Act::Drain => self.drain(partition),
                Act::Release => released.push(partition),
            }
        }
        join_all(released.into_iter().map(|partition| async move {
            self.release(self.owning(), partition).await;
            self.state().drains.remove(&partition);
        }))
        .await;
        // Whoever wants the queue needs the intent.
        join_all(abandoned.into_iter().map(|partition| self.release(&self.intent, partition))).await;
        let now = self.hub.awake().now();
        self.owning().held().retain(|_, held| held.until > now);
    }

    fn view(&self, partition: PartitionId, stopping: bool) -> View {
        let state = self.state();
        let drain = match state.drains.get(&partition) {
            None => Drain::Idle,
            Some(task) if task.is_finished() => Drain::Finished,
            Some(_) => Drain::Running,
        };
        View {
            intent: self.intent.until(partition),
            ownership: self.owning().until(partition),
            not_before: state.not_before.get(&partition).copied(),
            receiving: state.assigned.contains(&partition),
            drain,
            stopping,
        }
    }

    /// The lease is lost. True if that is because the receive loop is dead.
    fn stop(&self, partition: PartitionId) -> bool {
        let dead = !self.owner.is_live(partition);
        let mut state = self.state();
        state.assigned.remove(&partition);
        if dead {
            state.shunned.insert(partition, Instant::now() + self.hub.settings.lease_interval);
        }
        drop(state);
        if dead {
            tracing::error!(hub = %self.hub.name(), %partition, "the receive loop is dead; leaving the queue to others");
        } else {
            tracing::warn!(hub = %self.hub.name(), %partition, "the lease is lost; another worker may own the queue");
        }
        self.owner.stop_receiving(partition);
        dead
    }

    fn drain(&self, partition: PartitionId) {
        tracing::info!(hub = %self.hub.name(), %partition, "handing a control queue over");
        let owner = self.owner.clone();
        let task = tokio::spawn(async move { owner.drain(partition).await });
        let mut state = self.state();
        state.assigned.remove(&partition);
        state.drains.insert(partition, AbortOnDropHandle::new(task));
    }

    async fn release(&self, leases: &Leases, partition: PartitionId) {
        leases.releasing().insert(partition);
        let held = leases.held().remove(&partition);
        if let Some(held) = held
            && let Err(e) = leases.folder.release(partition, &held).await
        {
            self.failed(leases, "cannot release a lease; it runs out by itself", &e);
        }
        leases.releasing().remove(&partition);
    }
}
