//! A fleet of real worker processes that are killed and stopped at random while 500 instances run.
//!
//! `TASKHUB_TEST_SEED` repeats the instances and the blows; what the machine makes of them differs from
//! run to run, the verdict must not.

#[path = "fleet/crew.rs"]
mod crew;
#[path = "fleet/plan.rs"]
mod plan;
#[path = "fleet/verdict.rs"]
mod verdict;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::Write as _;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use azurite_tests::on_a_hub;
use azurite_tests::process::{Site, taskhub};
use crew::{Crew, Tally};
use plan::{Blow, Dice, Planned, Then};
use serde_json::json;
use taskhub_azure_storage::{OwnershipState, PartitionManagerKind};
use taskhub_client::{ClientError, Start, TaskHubClient};
use taskhub_core::{ErrorKind, InstanceId};
use taskhub_testkit::{TestHub, seed, seeded_ids};
use tokio::task::JoinSet;
use tokio::time::Instant;

/// How large a fleet and its trouble are.
struct Size {
    instances: usize,
    workers: usize,
    partitions: u32,
    kills: usize,
    terms: usize,
    /// Time within which all instances are started and all blows are dealt.
    window: Duration,
}

const FULL: Size =
    Size { instances: 500, workers: 4, partitions: 8, kills: 22, terms: 11, window: Duration::from_secs(75) };

/// A call that takes longer is lost: the slowest way back is a lease and a visibility timeout in a row,
/// several times.
const ENDS_WITHIN: Duration = Duration::from_secs(600);
/// A message that nobody works on is visible again by then.
const SETTLES_WITHIN: Duration = Duration::from_secs(120);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn five_hundred_instances_survive_thirty_blows_to_their_workers() -> Result<()> {
    on_a_hub(async |hub| fleet(hub, &FULL, PartitionManagerKind::Table).await).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "nightly: takes minutes"]
async fn five_hundred_instances_survive_thirty_blows_with_the_safe_partition_manager() -> Result<()> {
    on_a_hub(async |hub| fleet(hub, &FULL, PartitionManagerKind::Safe).await).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "nightly: takes minutes"]
async fn five_hundred_instances_survive_thirty_blows_with_the_legacy_partition_manager() -> Result<()> {
    on_a_hub(async |hub| fleet(hub, &FULL, PartitionManagerKind::Legacy).await).await
}

/// Three fleets at once are more than a small machine carries.
static ONE_AT_A_TIME: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

async fn fleet(hub: &TestHub, size: &Size, manager: PartitionManagerKind) -> Result<()> {
    let _turn = ONE_AT_A_TIME.lock().await;
    let seed = seed();
    let dice = Dice(seeded_ids(seed));
    let planned = Arc::new(plan::instances(&dice, size.instances, size.window));
    let blows = plan::blows(&dice, size.kills, size.terms, size.window);
    let site = Arc::new(Site::new(hub.name(), &json!({"maxQueuePollingInterval": "00:00:01"}))?);
    create(hub, size, manager).await?;
    // Built before the time of the blows begins.
    let program = taskhub();
    ensure!(program.is_file(), "the program is not where cargo has put it: {}", program.display());
    let fleet = Fleet { hub, site: site.clone(), begun: Instant::now(), tally: Arc::default() };
    let ended = fleet.run(size, &planned, blows).await;
    drop(fleet);
    match ended {
        Ok(report) => {
            // Past the test harness, which would hide it.
            writeln!(std::io::stderr(), "fleet: {manager} manager, seed {seed}: {report}")?;
        }
        Err(error) => bail!(
            "{manager} manager, seed {seed}, logs of the workers in {}, hub {}: {error:#}",
            site.directory().display(),
            hub.name()
        ),
    }
    Arc::into_inner(site).context("somebody still uses the directory")?.remove()
}

/// Before the workers, who find out themselves what hub it is.
async fn create(hub: &TestHub, size: &Size, manager: PartitionManagerKind) -> Result<()> {
    let mut creator = hub.open("creator")?;
    let settings = Arc::make_mut(&mut creator.settings);
    settings.partition_count = Some(size.partitions);
    settings.partition_manager = Some(manager);
    creator.create().await?;
    Ok(())
}

struct Fleet<'a> {
    hub: &'a TestHub,
    site: Arc<Site>,
    begun: Instant,
    tally: Arc<Tally>,
}

impl Fleet<'_> {
    async fn run(&self, size: &Size, planned: &Arc<Vec<Planned>>, blows: Vec<Blow>) -> Result<String> {
        let client = self.hub.client()?;
        let crew = Crew::start(&self.site, size.workers, &self.tally);
        let mut lives = JoinSet::new();
        for index in 0..planned.len() {
            let (client, planned, begun) = (client.clone(), planned.clone(), self.begun);
            lives.spawn(async move { live(&client, &planned[index], begun).await });
        }
        for blow in blows {
            tokio::time::sleep_until(self.begun + blow.at).await;
            crew.strike(blow).await?;
        }
        let struck = self.begun.elapsed();
        while let Some(lived) = lives.join_next().await {
            lived??;
        }
        let all: Vec<&Planned> = planned.iter().flat_map(Planned::and_sender).collect();
        ensure!(all.len() == size.instances, "{} instances were planned", all.len());
        self.wait_for_all(&client, &crew, &all).await?;
        let finished = self.begun.elapsed();

        let outcome = verdict::judge(&client, planned).await?;
        if !outcome.wrong.is_empty() {
            let ids: Vec<_> = outcome.wrong.iter().map(|(id, _)| id.clone()).collect();
            let list = outcome.wrong.iter().fold(String::new(), |mut list, (id, what)| {
                let _ = writeln!(list, "{id}: {what}");
                list
            });
            let evidence = verdict::evidence(self.hub, &ids).await?;
            bail!("{} instances are wrong:\n{list}{evidence}", ids.len());
        }
        let left = self.settle(outcome.open_timers).await?;
        crew.close().await?;
        self.nothing_is_left_but(outcome.open_timers, size).await?;

        let runs = verdict::runs(&self.site.activity_log())?;
        let missing: Vec<_> = outcome.calls.iter().filter(|call| !runs.contains_key(*call)).collect();
        ensure!(missing.is_empty(), "{} activities never ran: {missing:?}", missing.len());
        let unknown: Vec<_> = runs.keys().filter(|call| !outcome.calls.contains(*call)).collect();
        ensure!(unknown.is_empty(), "{} activities ran that nobody called: {unknown:?}", unknown.len());
        let total: usize = runs.values().sum();

        let count = |count: &std::sync::atomic::AtomicUsize| count.load(Ordering::Relaxed);
        let (kills, stops) = (count(&self.tally.kills), count(&self.tally.stops));
        ensure!((kills, stops) == (size.kills, size.terms), "{kills} SIGKILL and {stops} SIGTERM");
        Ok(format!(
            "{} instances ({} with sub-orchestrations) correct after {kills} SIGKILL and {stops} SIGTERM within \
             {:.0} s, finished after {:.0} s, everything checked after {:.0} s; {} activities ran, {} of them \
             more than once ({} runs too many); {left} timers left, {} of them cancelled ones; longest stop {:.1} s",
            all.len(),
            outcome.instances,
            struck.as_secs_f64(),
            finished.as_secs_f64(),
            self.begun.elapsed().as_secs_f64(),
            runs.len(),
            runs.values().filter(|n| **n > 1).count(),
            total - runs.len(),
            outcome.open_timers,
            count(&self.tally.longest_stop) as f64 / 1e3,
        ))
    }

    /// Waits until every instance has ended, well or not.
    async fn wait_for_all(&self, client: &TaskHubClient, crew: &Crew, all: &[&Planned]) -> Result<()> {
        let deadline = Instant::now() + ENDS_WITHIN;
        loop {
            crew.check()?;
            let statuses = verdict::statuses(client).await?;
            // A child may be seen before its parent, so all that are there count.
            let open: BTreeMap<_, _> = all
                .iter()
                .map(|one| (one.id.clone(), statuses.get(&one.id).copied()))
                .chain(statuses.iter().map(|(id, status)| (id.clone(), Some(*status))))
                .filter(|(_, status)| !status.is_some_and(|status| status.is_terminal()))
                .collect();
            if open.is_empty() {
                return Ok(());
            }
            if Instant::now() >= deadline {
                let ids: Vec<_> = open.keys().cloned().collect();
                let evidence = verdict::evidence(self.hub, &ids).await?;
                bail!("{} instances have not ended within {ENDS_WITHIN:?}: {open:?}\n{evidence}", open.len());
            }
            // Each look reads all rows: the workers need the emulator more.
            tokio::time::sleep(Duration::from_secs(3)).await;
        }
    }

    /// Waits until nothing but timers can be left: as many messages as there are open timers, or, where a
    /// repeated episode has put a timer twice, no change for longer than a message stays hidden.
    async fn settle(&self, open_timers: u64) -> Result<u64> {
        let deadline = Instant::now() + SETTLES_WITHIN;
        let (mut seen, mut since) = (u64::MAX, Instant::now());
        loop {
            let (visible, hidden) = self.messages().await?;
            if (visible, hidden) == (0, open_timers) {
                return Ok(hidden);
            }
            if visible > 0 || hidden != seen {
                (seen, since) = (hidden, Instant::now());
            }
            if since.elapsed() > Duration::from_secs(45) {
                return Ok(hidden);
            }
            if Instant::now() >= deadline {
                bail!("messages are left:\n{}", verdict::evidence(self.hub, &[]).await?);
            }
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    }

    /// All workers have stopped, so that nothing is hidden because somebody holds it.
    async fn nothing_is_left_but(&self, open_timers: u64, size: &Size) -> Result<()> {
        let (visible, hidden) = self.messages().await?;
        let repeated = u64::try_from(size.kills + size.terms)?;
        if visible > 0 || hidden < open_timers || hidden > open_timers + repeated {
            let evidence = verdict::evidence(self.hub, &[]).await?;
            bail!(
                "{visible} visible and {hidden} hidden messages, but {open_timers} open timers:\n{evidence}"
            );
        }
        let seen = self.hub.open("observer")?.inspect().await?;
        ensure!(seen.owners.len() == size.partitions as usize, "partitions: {:?}", seen.owners);
        let owned: Vec<_> = seen.owners.iter().filter(|one| one.state != OwnershipState::Free).collect();
        ensure!(owned.is_empty(), "not handed back: {owned:?}");
        Ok(())
    }

    /// Visible and hidden messages of all queues.
    async fn messages(&self) -> Result<(u64, u64)> {
        let queues = &self.hub.account().queues;
        let (mut visible, mut hidden) = (0, 0);
        for name in queues.list_queues(&format!("{}-", self.hub.name().lower())).await? {
            let seen = queues.peek_messages(&name, 32).await?.len() as u64;
            visible += seen;
            hidden += queues.message_count(&name).await?.saturating_sub(seen);
        }
        Ok((visible, hidden))
    }
}

/// Does to an instance what is planned for it.
async fn live(client: &TaskHubClient, one: &Planned, begun: Instant) -> Result<()> {
    tokio::time::sleep_until(begun + one.at).await;
    start(client, one).await?;
    match &one.then {
        Then::Nothing => {}
        Then::Raise { event, payload, after } => {
            tokio::time::sleep(*after).await;
            let id = InstanceId::new(&one.id);
            let mut tries = 0;
            while !done(client.raise_event(&id, event, payload).await, &mut tries)? {}
        }
        Then::Send { sender, after } => {
            tokio::time::sleep(*after).await;
            start(client, sender).await?;
        }
    }
    Ok(())
}

async fn start(client: &TaskHubClient, one: &Planned) -> Result<()> {
    let mut tries = 0;
    loop {
        let start = Start::new(one.function).instance_id(one.id.as_str()).input(&one.input)?;
        if done(client.start(start).await.map(drop), &mut tries)
            .with_context(|| format!("cannot start {}", one.id))?
        {
            return Ok(());
        }
    }
}

/// Whether a request is done. A client that gets no answer, as from an emulator on a busy machine, tries
/// again; what it asks for may then be done twice, with the same result.
fn done(outcome: Result<(), ClientError>, tries: &mut u32) -> Result<bool> {
    match outcome {
        Err(error) if error.kind() == ErrorKind::Unavailable && *tries < 5 => {
            *tries += 1;
            Ok(false)
        }
        outcome => Ok(outcome.map(|()| true)?),
    }
}
