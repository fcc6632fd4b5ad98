//! Workers that are killed and replaced.

use std::fmt::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use azurite_tests::process::{Signal, Site, WorkerProcess};
use taskhub_testkit::eventually;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::plan::Blow;

/// How long a worker may take to end after SIGTERM: what it gives running work, and what the machine needs.
const STOP_WITHIN: Duration = Duration::from_secs(60);

/// A fixed number of workers, each in a place of its own; whoever ends is replaced.
pub(crate) struct Crew {
    places: Vec<Place>,
}

struct Place {
    orders: mpsc::Sender<Order>,
    life: watch::Receiver<Life>,
    keeper: JoinHandle<Result<()>>,
}

/// What a place is told.
enum Order {
    Strike(Blow, oneshot::Sender<()>),
    /// Stop in order and let nobody follow.
    Close,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Life {
    Starting,
    Running,
    Stopping,
}

/// What the workers have been through.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    pub(crate) kills: AtomicUsize,
    pub(crate) stops: AtomicUsize,
    /// Of a worker that was told to stop and not killed before it had, in milliseconds.
    pub(crate) longest_stop: AtomicUsize,
}

impl Crew {
    /// Starts the workers.
    pub(crate) fn start(site: &Arc<Site>, size: usize, tally: &Arc<Tally>) -> Self {
        let place = |index| {
            let (orders, received) = mpsc::channel(1);
            let (life, seen) = watch::channel(Life::Starting);
            let keeper = Keeper {
                site: site.clone(),
                name: format!("worker-{index}"),
                orders: received,
                life,
                tally: tally.clone(),
            };
            Place { orders, life: seen, keeper: tokio::spawn(keeper.run()) }
        };
        Self { places: (0..size).map(place).collect() }
    }

    /// Strikes some worker: SIGKILL hits any, also one that starts or stops, SIGTERM one that runs.
    pub(crate) async fn strike(&self, blow: Blow) -> Result<()> {
        let find = || {
            let fits = |place: &&Place| blow.signal == Signal::Kill || *place.life.borrow() == Life::Running;
            let fitting: Vec<_> = self.places.iter().filter(fits).collect();
            fitting.get(blow.victim % fitting.len().max(1)).copied()
        };
        loop {
            self.check()?;
            let place = eventually("a worker to strike", async || find()).await;
            let (struck, done) = oneshot::channel();
            if place.orders.send(Order::Strike(blow, struck)).await.is_ok() && done.await.is_ok() {
                return Ok(());
            }
        }
    }

    /// Fails when a place has been given up.
    pub(crate) fn check(&self) -> Result<()> {
        ensure!(self.places.iter().all(|place| !place.keeper.is_finished()), "a worker failed by itself");
        Ok(())
    }

    /// Stops all in order, at the same time.
    pub(crate) async fn close(self) -> Result<()> {
        for place in &self.places {
            // One that has given up tells why below.
            let _ = place.orders.send(Order::Close).await;
        }
        let mut failures = String::new();
        for place in self.places {
            if let Err(error) = place.keeper.await.context("a keeper panicked")? {
                let _ = writeln!(failures, "{error:#}");
            }
        }
        ensure!(failures.is_empty(), "{failures}");
        Ok(())
    }
}

/// Looks after one place.
struct Keeper {
    site: Arc<Site>,
    name: String,
    orders: mpsc::Receiver<Order>,
    life: watch::Sender<Life>,
    tally: Arc<Tally>,
}

/// How a worker's life went on.
enum Next {
    Successor { keeps_id: bool },
    Nobody,
}

impl Keeper {
    async fn run(mut self) -> Result<()> {
        let (mut id, mut generation) = (self.name.clone(), 0);
        loop {
            self.life.send_replace(Life::Starting);
            let worker = self.site.start(&id, &format!("{}-{generation}", self.name), &[])?;
            match self.attend(worker).await? {
                Next::Nobody => return Ok(()),
                Next::Successor { keeps_id: true } => {}
                Next::Successor { keeps_id: false } => id = format!("{}-{}", self.name, generation + 1),
            }
            generation += 1;
        }
    }

    /// Sees a worker through its life.
    async fn attend(&mut self, mut worker: WorkerProcess) -> Result<Next> {
        let mut told: Option<(Instant, Next)> = None;
        let mut look = tokio::time::interval(Duration::from_millis(50));
        loop {
            let deadline = told.as_ref().map(|(at, _)| *at + STOP_WITHIN);
            tokio::select! {
                status = worker.ended() => {
                    let status = status?;
                    let Some((at, next)) = told else {
                        bail!("a worker ended by itself: {status}, see {}", worker.log().display());
                    };
                    ensure!(
                        status.success(),
                        "a worker that was told to stop ended with {status}, see {}", worker.log().display()
                    );
                    let took = usize::try_from(at.elapsed().as_millis()).unwrap_or(usize::MAX);
                    self.tally.longest_stop.fetch_max(took, Ordering::Relaxed);
                    return Ok(next);
                }
                Some(order) = self.orders.recv() => match order {
                    Order::Strike(blow, struck) if blow.signal == Signal::Kill => {
                        worker.send(Signal::Kill).await?;
                        worker.ended().await?;
                        self.tally.kills.fetch_add(1, Ordering::Relaxed);
                        self.life.send_replace(Life::Starting);
                        let _ = struck.send(());
                        return Ok(Next::Successor { keeps_id: blow.keeps_id });
                    }
                    // Told before already: somebody else is to be struck.
                    Order::Strike(..) if told.is_some() => {}
                    Order::Strike(blow, struck) => {
                        worker.send(blow.signal).await?;
                        self.tally.stops.fetch_add(1, Ordering::Relaxed);
                        told = Some((Instant::now(), Next::Successor { keeps_id: blow.keeps_id }));
                        self.life.send_replace(Life::Stopping);
                        let _ = struck.send(());
                    }
                    Order::Close => {
                        if told.is_none() {
                            worker.runs().await;
                            worker.send(Signal::Terminate).await?;
                        }
                        told = Some((Instant::now(), Next::Nobody));
                    }
                },
                _ = look.tick(), if told.is_none() && *self.life.borrow() == Life::Starting => {
                    if worker.log_text().contains("runs on task hub") {
                        self.life.send_replace(Life::Running);
                    }
                }
                () = tokio::time::sleep_until(deadline.unwrap_or_else(Instant::now)), if deadline.is_some() => {
                    bail!("a worker does not stop within {STOP_WITHIN:?}, see {}", worker.log().display());
                }
            }
        }
    }
}
