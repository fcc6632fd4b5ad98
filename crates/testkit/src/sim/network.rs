//! The way between a process and the store: every request takes a seeded time, and may go wrong.

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use taskhub_storage::memory::MemoryStore;
use taskhub_storage::{Error, ErrorKind, Result, StorageAccount};
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;
use uuid::Uuid;

use super::clock::SkewedClock;
use super::entity::Requests;
use super::rng::Rng;
use super::trace::Trace;

/// How often which fault happens: once in so many requests, 0 for never.
#[derive(Debug, Clone, Default)]
pub(crate) struct FaultRates {
    /// The request does not arrive.
    pub(crate) lost_before: u64,
    /// The request is done, the reply does not arrive.
    pub(crate) lost_reply: u64,
    /// No answer at all, done or not.
    pub(crate) hang: u64,
    /// The service is busy.
    pub(crate) busy: u64,
    /// A condition is said not to be met; only to workers, for to a client it means that somebody else has
    /// started the same instance.
    pub(crate) conflict: u64,
    /// A message is stored twice, or becomes visible although somebody holds it.
    pub(crate) duplicate: u64,
    /// The request or its reply takes seconds.
    pub(crate) slow: u64,
    /// The process dies at this request.
    pub(crate) death: u64,
}

/// What happens to one request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    Fine,
    LostBefore,
    LostReply,
    HangBefore,
    HangAfter,
    Busy,
    Conflict,
    Duplicate,
    Death,
}

impl Fate {
    fn name(self) -> &'static str {
        match self {
            Self::Fine => "",
            Self::LostBefore => "lost-before",
            Self::LostReply => "lost-reply",
            Self::HangBefore => "hang-before",
            Self::HangAfter => "hang-after",
            Self::Busy => "503",
            Self::Conflict => "412",
            Self::Duplicate => "duplicate",
            Self::Death => "death",
        }
    }
}

/// What all processes share: the store, the choice of faults, and the record of what happened.
#[derive(Debug)]
pub(crate) struct Network {
    pub(crate) store: MemoryStore,
    pub(crate) trace: Trace,
    /// Visibility timeout of whoever goes on holding a message.
    pub(crate) visibility: Duration,
    /// How long a partition lease holds.
    pub(crate) lease: Duration,
    rng: Rng,
    rates: FaultRates,
    /// Faults happen only while this is set.
    stormy: AtomicBool,
    faults: AtomicU64,
    /// From when until when no message can be put.
    outage: Option<(Instant, Instant)>,
    violations: Mutex<Vec<String>>,
    /// What was asked of entities.
    pub(crate) requests: Requests,
    /// Instances whose row was made from what the history tells, by their keys.
    repaired: Mutex<BTreeSet<String>>,
    deaths: mpsc::UnboundedSender<String>,
}

impl Network {
    pub(crate) fn new(
        store: MemoryStore,
        trace: Trace,
        visibility: Duration,
        lease: Duration,
        rng: Rng,
        rates: FaultRates,
        deaths: mpsc::UnboundedSender<String>,
    ) -> Self {
        Self {
            store,
            trace,
            visibility,
            lease,
            rng,
            rates,
            stormy: AtomicBool::new(false),
            faults: AtomicU64::new(0),
            outage: None,
            violations: Mutex::default(),
            requests: Requests::default(),
            repaired: Mutex::default(),
            deaths,
        }
    }

    /// No message can be put for a while: longer than a request is repeated.
    pub(crate) fn with_outage(mut self, from: Duration, lasts: Duration) -> Self {
        let from = Instant::now() + from;
        self.outage = Some((from, from + lasts));
        self
    }

    /// Whether faults happen from now on.
    pub(crate) fn set_stormy(&self, stormy: bool) {
        self.stormy.store(stormy, Ordering::Relaxed);
        self.trace.add("world", &[if stormy { "faults begin" } else { "faults end" }], "");
    }

    /// How many requests were spoilt.
    pub(crate) fn faults(&self) -> u64 {
        self.faults.load(Ordering::Relaxed)
    }

    /// Something that must never happen has happened.
    pub(crate) fn violation(&self, what: String) {
        self.trace.add("world", &["VIOLATION"], &what);
        self.violations.lock().unwrap_or_else(PoisonError::into_inner).push(what);
    }

    /// An Instances row is made from a history.
    pub(crate) fn repairs(&self, key: &str) {
        self.repaired.lock().unwrap_or_else(PoisonError::into_inner).insert(key.to_owned());
    }

    /// Whether an Instances row was ever made from its history.
    pub(crate) fn is_repaired(&self, key: &str) -> bool {
        self.repaired.lock().unwrap_or_else(PoisonError::into_inner).contains(key)
    }

    /// What must never have happened and did.
    pub(crate) fn violations(&self) -> Vec<String> {
        self.violations.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn fate(&self, operation: &str, is_worker: bool) -> Fate {
        if !self.stormy.load(Ordering::Relaxed) {
            return Fate::Fine;
        }
        let now = Instant::now();
        if is_worker
            && operation == "PutMessage"
            && self.outage.is_some_and(|(from, to)| (from..to).contains(&now))
        {
            self.faults.fetch_add(1, Ordering::Relaxed);
            return Fate::Busy;
        }
        let rates = &self.rates;
        let hit = |rate| self.rng.once_in(rate);
        let fate = if is_worker && hit(rates.death) {
            Fate::Death
        } else if hit(rates.lost_before) {
            Fate::LostBefore
        } else if hit(rates.lost_reply) {
            Fate::LostReply
        } else if hit(rates.hang) {
            if self.rng.once_in(2) { Fate::HangBefore } else { Fate::HangAfter }
        } else if hit(rates.busy) {
            Fate::Busy
        } else if is_worker && has_condition(operation) && hit(rates.conflict) {
            Fate::Conflict
        } else if may_repeat(operation) && hit(rates.duplicate) {
            Fate::Duplicate
        } else {
            return Fate::Fine;
        };
        self.faults.fetch_add(1, Ordering::Relaxed);
        fate
    }

    fn delay(&self) -> Duration {
        if self.stormy.load(Ordering::Relaxed) && self.rng.once_in(self.rates.slow) {
            self.rng.millis(500, 8000)
        } else {
            self.rng.millis(1, 12)
        }
    }
}

fn has_condition(operation: &str) -> bool {
    matches!(operation, "MergeEntity" | "UpdateEntity" | "EntityGroupTransaction")
}

fn may_repeat(operation: &str) -> bool {
    matches!(operation, "PutMessage" | "GetMessages")
}

/// One process as the network sees it.
#[derive(Debug)]
pub(crate) struct ProcessState {
    pub(crate) name: String,
    /// Owner in the lease records; empty for a client.
    pub(crate) worker_id: String,
    pub(crate) clock: Arc<SkewedClock>,
    is_dead: AtomicBool,
    has_stalled: AtomicBool,
    /// Until when nothing of it moves.
    stalled_until: Mutex<Instant>,
    leases: Mutex<Leases>,
    /// Messages it has received and neither deleted nor given back, as far as it knows.
    held: Mutex<BTreeMap<String, String>>,
}

/// What a worker process knows of the partitions it owns, as the replies tell it.
#[derive(Debug, Default)]
struct Leases {
    until: BTreeMap<String, Instant>,
    /// By which lease of its blob a queue is owned.
    of_blobs: BTreeMap<String, Uuid>,
    /// When a receive has failed.
    failed: BTreeMap<String, Vec<Instant>>,
}

/// The queue that the lease of a blob gives the right to receive from.
fn owned_by_blob(resource: &str) -> Option<&str> {
    let (place, queue) = resource.rsplit_once('/')?;
    (queue.contains("-control-") && !place.ends_with("intent")).then_some(queue)
}

/// How long a receive may be repeated after it has failed once.
const REPEATED_FOR: Duration = Duration::from_secs(61);

impl ProcessState {
    pub(crate) fn new(name: String, worker_id: String, clock: Arc<SkewedClock>) -> Self {
        Self {
            name,
            worker_id,
            clock,
            is_dead: AtomicBool::new(false),
            has_stalled: AtomicBool::new(false),
            stalled_until: Mutex::new(Instant::now()),
            leases: Mutex::default(),
            held: Mutex::default(),
        }
    }

    /// The process has received a message.
    pub(crate) fn holds(&self, message: &str, about: String) {
        self.held.lock().unwrap_or_else(PoisonError::into_inner).insert(message.to_owned(), about);
    }

    /// The process has tried to get rid of a message.
    pub(crate) fn lets_go(&self, message: &str) {
        self.held.lock().unwrap_or_else(PoisonError::into_inner).remove(message);
    }

    /// Messages it has received and not let go.
    pub(crate) fn held(&self) -> Vec<String> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }

    /// It begins anew.
    pub(crate) fn forget_all(&self) {
        self.held.lock().unwrap_or_else(PoisonError::into_inner).clear();
        *self.leases() = Leases::default();
    }

    /// From now on nothing leaves or reaches the process.
    pub(crate) fn die(&self) {
        self.is_dead.store(true, Ordering::Relaxed);
    }

    pub(crate) fn is_dead(&self) -> bool {
        self.is_dead.load(Ordering::Relaxed)
    }

    /// Whether it has ever stood still.
    pub(crate) fn has_stalled(&self) -> bool {
        self.has_stalled.load(Ordering::Relaxed)
    }

    /// Nothing of it moves for a while.
    pub(crate) fn stall(&self, duration: Duration) {
        self.has_stalled.store(true, Ordering::Relaxed);
        *self.stalled_until.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now() + duration;
    }

    /// Waits while the process is stalled; for ever when it is dead.
    async fn alive(&self) {
        loop {
            if self.is_dead() {
                return std::future::pending().await;
            }
            let until = *self.stalled_until.lock().unwrap_or_else(PoisonError::into_inner);
            if Instant::now() >= until {
                return;
            }
            tokio::time::sleep_until(until).await;
        }
    }

    fn leases(&self) -> std::sync::MutexGuard<'_, Leases> {
        self.leases.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The process has learnt that it owns a queue until then, or that it does not.
    pub(crate) fn learn_lease(&self, queue: &str, until: Option<Instant>) {
        match until {
            Some(until) => self.leases().until.insert(queue.to_owned(), until),
            None => self.leases().until.remove(queue),
        };
    }

    /// The process has acquired, renewed or changed the lease of a blob. That of an intent gives no right to receive.
    pub(crate) fn learn_blob_lease(&self, resource: &str, lease_id: Uuid, until: Instant) {
        if let Some(queue) = owned_by_blob(resource) {
            self.leases().of_blobs.insert(queue.to_owned(), lease_id);
            self.learn_lease(queue, Some(until));
        }
    }

    /// The process gives up the lease of a blob, perhaps for the second time: it may have another one meanwhile.
    pub(crate) fn gives_up_blob_lease(&self, resource: &str, lease_id: Uuid) {
        if let Some(queue) = owned_by_blob(resource)
            && self.leases().of_blobs.get(queue).is_none_or(|current| *current == lease_id)
        {
            self.learn_lease(queue, None);
        }
    }

    /// The process has read that it owns a queue, perhaps since before it was started.
    pub(crate) fn finds_lease(&self, queue: &str, until: Instant) {
        self.leases().until.entry(queue.to_owned()).or_insert(until);
    }

    /// The process receives from a control queue.
    ///
    /// # Errors
    /// Why it may not. What failed may be repeated for a while, by who does not know the lease.
    pub(crate) fn receives<'a>(&'a self, queue: &'a str) -> (Receive<'a>, std::result::Result<(), String>) {
        let (now, mut leases) = (Instant::now(), self.leases());
        let until = leases.until.get(queue).copied();
        let allowed = if until.is_some_and(|until| now < until) {
            Ok(())
        } else {
            let failed = leases.failed.entry(queue.to_owned()).or_default();
            failed.retain(|at| now.duration_since(*at) < REPEATED_FOR);
            match (failed.pop(), until) {
                (Some(_), _) => Ok(()),
                (None, Some(_)) => {
                    Err(format!("{} receives from {queue} after its lease has run out", self.name))
                }
                (None, None) => Err(format!("{} receives from {queue} without a lease", self.name)),
            }
        };
        (Receive { process: self, queue, has_succeeded: false }, allowed)
    }
}

/// A receive that is under way.
#[derive(Debug)]
pub(crate) struct Receive<'a> {
    process: &'a ProcessState,
    queue: &'a str,
    pub(crate) has_succeeded: bool,
}

impl Drop for Receive<'_> {
    fn drop(&mut self) {
        if !self.has_succeeded {
            self.process.leases().failed.entry(self.queue.to_owned()).or_default().push(Instant::now());
        }
    }
}

/// The way of one process to the store.
#[derive(Debug, Clone)]
pub(crate) struct Link {
    pub(crate) network: Arc<Network>,
    pub(crate) process: Arc<ProcessState>,
}

impl Link {
    /// The account as the process sees it.
    pub(crate) fn account(&self) -> StorageAccount {
        let link = Arc::new(self.clone());
        StorageAccount { queues: link.clone(), tables: link.clone(), blobs: link }
    }

    /// Sends a request. Once sent it is on its own: it is carried out even if whoever waits for the reply
    /// has gone, unless it was still on its way when its process died.
    pub(crate) async fn send<T, F>(
        &self,
        operation: &'static str,
        resource: String,
        detail: String,
        request: impl Fn(MemoryStore, bool) -> F + Send + 'static,
    ) -> Result<T>
    where
        T: Send + 'static,
        F: Future<Output = Result<T>> + Send + 'static,
    {
        let Self { network, process } = self;
        process.alive().await;
        let fate = network.fate(operation, !process.worker_id.is_empty());
        let (there, back) = (network.delay(), network.delay());
        let survives = network.rng.once_in(2);
        let lost = |what: &str| Error::new(ErrorKind::Unavailable, operation, resource.clone(), what);
        let note = |outcome: &str| {
            network.trace.add(&process.name, &[operation, &resource, fate.name(), outcome], &detail);
        };
        match fate {
            Fate::LostBefore => {
                tokio::time::sleep(there).await;
                note("not done");
                process.alive().await;
                return Err(lost("the connection was reset"));
            }
            Fate::Busy | Fate::Conflict => {
                tokio::time::sleep(there).await;
                note("not done");
                process.alive().await;
                let (status, code) = match fate {
                    Fate::Busy => (503, "ServerBusy"),
                    _ => (412, "UpdateConditionNotSatisfied"),
                };
                return Err(Error::answered(operation, resource, status, code));
            }
            Fate::HangBefore => {
                note("not done");
                return std::future::pending().await;
            }
            Fate::Death if !survives => {
                note("not done");
                self.kill();
                return std::future::pending().await;
            }
            _ => {}
        }
        let (reply, answer) = oneshot::channel();
        let link = self.clone();
        let to = resource.clone();
        tokio::spawn(async move {
            let Self { network, process } = link;
            tokio::time::sleep(there).await;
            let note = |outcome: &str| {
                network.trace.add(&process.name, &[operation, &to, fate.name(), outcome], &detail);
            };
            if process.is_dead() && !survives && fate != Fate::Death {
                return note("died with its process");
            }
            if fate == Fate::Duplicate && operation == "PutMessage" {
                let _ = request(network.store.clone(), true).await;
            }
            let done = request(network.store.clone(), fate == Fate::Duplicate).await;
            match &done {
                Ok(_) => note("ok"),
                Err(error) => note(&format!("{:?}", error.kind())),
            }
            match fate {
                Fate::HangAfter => {}
                Fate::Death => {
                    process.die();
                    let _ = network.deaths.send(process.name.clone());
                }
                _ => {
                    tokio::time::sleep(back).await;
                    let _ = reply.send(done);
                }
            }
        });
        let answer = match answer.await {
            Ok(answer) => answer,
            Err(_) => return std::future::pending().await,
        };
        process.alive().await;
        if fate == Fate::LostReply { Err(lost("the reply was lost")) } else { answer }
    }

    fn kill(&self) {
        self.process.die();
        let _ = self.network.deaths.send(self.process.name.clone());
    }
}
