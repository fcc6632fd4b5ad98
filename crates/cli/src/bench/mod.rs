//! `bench`: how fast and how frugal everything is, on this machine.

mod balance;
mod bill;
mod codec;
mod conditions;
mod entities;
mod fleet;
mod history;
mod isolated;
mod median;
mod observe;
mod orchestrations;
mod replay;
mod report;
mod requests;
mod rig;
mod usage;
mod workers;

use std::io::IsTerminal;

use anyhow::{Result, bail};
pub use fleet::FleetCase;
use history::Shape;
use median::Runs;
use orchestrations::{Case, Load};
use report::Report;
use rig::{Cadence, Place};

use crate::Exit;
use crate::args::{BenchArgs, CommonArgs, OutputForm, Scenario};
use crate::config::Environment;
use crate::console::Console;

/// Measures what was asked for and shows the results.
pub(crate) async fn run(
    common: &CommonArgs,
    args: BenchArgs,
    environment: &Environment,
    console: &mut Console,
) -> Result<Exit> {
    if let Some(task) = &args.replay_here {
        console.json(&serde_json::to_value(replay::here(task)?)?)?;
        return Ok(Exit::Done);
    }
    let mut progress = Progress { on: common.verbose > 0 || std::io::stderr().is_terminal(), console };
    if cfg!(debug_assertions) {
        progress.console.warn("This is a debug build; its figures say nothing about a release build.")?;
    }
    let mut report = Report::new(&conditions::now());
    let default = args.scenario.is_empty();
    let wanted =
        |scenario| args.scenario.contains(&scenario) || (default && Scenario::DEFAULT.contains(&scenario));
    if wanted(Scenario::Replay) {
        measure_replay(&args, &mut report, &mut progress).await?;
    }
    if wanted(Scenario::Codec) {
        measure_codec(&args, &mut report, &mut progress)?;
    }
    let cases = Case::wanted(&args, wanted);
    let on_a_hub = [Scenario::Isolated, Scenario::Entities, Scenario::Fleet, Scenario::Balance];
    if !cases.is_empty() || on_a_hub.into_iter().any(wanted) {
        let interrupted = taskhub::on_signals()?.first;
        let place = tokio::select! {
            place = Place::open(common, &args, environment, interrupted.clone(), progress.console) => place?,
            () = interrupted.cancelled() => bail!("interrupted"),
        };
        for case in cases {
            measure_orchestrations(&place, case, &args, &mut report, &mut progress).await?;
        }
        if wanted(Scenario::Isolated) {
            measure_isolated(&place, &args, &mut report, &mut progress).await?;
        }
        if wanted(Scenario::Entities) {
            measure_entities(&place, &args, &mut report, &mut progress).await?;
        }
        if wanted(Scenario::Fleet) {
            measure_fleet(&place, &args, &mut report, &mut progress).await?;
        }
        if wanted(Scenario::Balance) {
            measure_balance(&place, &args, &mut report, &mut progress).await?;
        }
        report.cost(&place);
    }
    if console.form == Some(OutputForm::Json) {
        console.json(&report.json())?;
    } else {
        console.data(report.text())?;
    }
    Ok(Exit::Done)
}

/// Says what is being measured, when somebody watches.
struct Progress<'a> {
    on: bool,
    console: &'a mut Console,
}

impl Progress<'_> {
    fn say(&mut self, line: &str) -> Result<()> {
        if self.on {
            self.console.note(line)?;
        }
        Ok(())
    }

    fn round(&mut self, what: &str, round: u32, of: u32) -> Result<()> {
        if of == 1 {
            self.say(&format!("{what} ..."))
        } else {
            self.say(&format!("{what} ({} of {of}) ...", round + 1))
        }
    }

    /// Measures `of` times.
    async fn rounds<T, F: Future<Output = Result<T>>>(
        &mut self,
        what: &str,
        of: u32,
        measure: impl Fn() -> F,
    ) -> Result<Vec<T>> {
        let mut runs = Vec::new();
        for round in 0..of {
            self.round(what, round, of)?;
            runs.push(measure().await?);
        }
        Ok(runs)
    }
}

async fn measure_replay(args: &BenchArgs, report: &mut Report, progress: &mut Progress<'_>) -> Result<()> {
    let mut all = Vec::new();
    for shape in Shape::ALL {
        for length in replay::LENGTHS {
            progress.say(&format!("replay: {}, {length} events ...", shape.name()))?;
            let mut runs = Vec::new();
            for _ in 0..args.repeat {
                runs.push(replay::in_own_process(shape, length).await?);
            }
            all.push(Runs::new(runs, replay::Replayed::rate));
        }
    }
    report.replay(&all);
    Ok(())
}

fn measure_codec(args: &BenchArgs, report: &mut Report, progress: &mut Progress<'_>) -> Result<()> {
    let mut rounds = Vec::new();
    for round in 0..args.repeat {
        progress.round("codec", round, args.repeat)?;
        rounds.push(codec::measure_all()?);
    }
    let steps = 0..rounds[0].len();
    let runs = steps.map(|step| {
        Runs::new(rounds.iter().map(|r| r[step].clone()).collect(), codec::Coded::bytes_per_second)
    });
    report.codec(&runs.collect::<Vec<_>>());
    Ok(())
}

async fn measure_orchestrations(
    place: &Place,
    case: Case,
    args: &BenchArgs,
    report: &mut Report,
    progress: &mut Progress<'_>,
) -> Result<()> {
    let instances = args.instances.unwrap_or(case.default_instances());
    let load = Load { case, instances, concurrency: args.concurrency };
    let mut runs = match args.compare_dtfx_cadence {
        true => vec![(Cadence::Own, Vec::new()), (Cadence::Dtfx, Vec::new())],
        false => vec![(place.cadence, Vec::new())],
    };
    for round in 0..args.repeat {
        // In turns, so that none is always the first.
        runs.rotate_left(usize::from(round > 0));
        for (cadence, runs) in &mut runs {
            let with = if *cadence == Cadence::Dtfx { ", dtfx cadence" } else { "" };
            progress.round(&format!("{}: {instances} instances{with}", case.name()), round, args.repeat)?;
            runs.push(orchestrations::measure(place, load, *cadence).await?);
        }
    }
    runs.sort_by_key(|(cadence, _)| *cadence == Cadence::Dtfx);
    report.orchestrations(place, load, &runs);
    Ok(())
}

async fn measure_isolated(
    place: &Place,
    args: &BenchArgs,
    report: &mut Report,
    progress: &mut Progress<'_>,
) -> Result<()> {
    let runs = progress.rounds("isolated", args.repeat, || isolated::measure(place)).await?;
    report.isolated(place, &Runs::new(runs, |run| run.latency.as_secs_f64()));
    Ok(())
}

async fn measure_entities(
    place: &Place,
    args: &BenchArgs,
    report: &mut Report,
    progress: &mut Progress<'_>,
) -> Result<()> {
    let mut all = Vec::new();
    for entities in entities::ENTITIES {
        let what = format!("entities: {} signals to {entities}", args.signals);
        let measure = || entities::measure(place, entities, args.signals, args.concurrency);
        let runs = progress.rounds(&what, args.repeat, measure).await?;
        all.push(Runs::new(runs, entities::Signalled::rate));
    }
    report.entities(place, args.concurrency, &all);
    Ok(())
}

async fn measure_fleet(
    place: &Place,
    args: &BenchArgs,
    report: &mut Report,
    progress: &mut Progress<'_>,
) -> Result<()> {
    let cases = if args.case.is_empty() { &FleetCase::ALL[..] } else { &args.case };
    let mut all = Vec::new();
    for case in cases {
        let what = format!("fleet: {}", case.name());
        let runs = progress.rounds(&what, args.repeat, || fleet::measure(place, *case)).await?;
        all.push(Runs::new(runs, fleet::Disturbed::figure));
    }
    report.fleet(place, &all);
    Ok(())
}

async fn measure_balance(
    place: &Place,
    args: &BenchArgs,
    report: &mut Report,
    progress: &mut Progress<'_>,
) -> Result<()> {
    let mut all = Vec::new();
    for partitions in balance::PARTITIONS {
        let what = format!("balance: {partitions} partitions");
        let measure = || balance::measure(place, partitions);
        let runs = progress.rounds(&what, args.repeat, measure).await?;
        all.push(Runs::new(runs, balance::Balanced::slowest));
    }
    report.balance(place, &all);
    Ok(())
}
