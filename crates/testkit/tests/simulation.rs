//! The simulation of a hub with several workers under faults; see `docs/testing.md`.
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::disallowed_methods,
    reason = "a test fails by panicking, shows what it saw, and measures real time"
)]

use taskhub_testkit::sim::{self, Options, Planted, Report};

/// Where each planted fault was found first; some seeds later when the schedule has changed since.
const FOUND_AT: [(Planted, u64); 16] = [
    (Planted::DeleteBeforeCommit, 4),
    (Planted::CommitWithoutEtag, 402),
    (Planted::ReceiveAfterLease, 8),
    (Planted::DiscardBeforeStart, 2),
    (Planted::RowWithoutEtag, 12),
    (Planted::SendAfterCommit, 25),
    (Planted::KeepReceived, 20),
    (Planted::RequestBeforeReply, 15),
    (Planted::BlobsBeforeCommit, 232),
    (Planted::RepliesInAnyOrder, 27),
    (Planted::AnyStart, 382),
    (Planted::OldRows, 9),
    (Planted::NoRepair, 34),
    (Planted::IgnoreFailedSend, 37),
    (Planted::UnstampedRequests, 1),
    (Planted::KeepLocks, 1),
];

fn number(variable: &str, default: u64) -> u64 {
    std::env::var(variable).ok().map_or(default, |text| text.parse().unwrap())
}

#[test]
fn one_seed() {
    let seed = number("TASKHUB_SIM_SEED", 1);
    let entities = number("TASKHUB_SIM_ENTITIES", 0) > 0;
    let report = sim::run(seed, &Options { trace: true, entities, ..Options::default() });
    println!("{report}");
    assert!(report.wrong.is_empty(), "seed {seed} fails");
}

#[test]
fn a_seed_repeats_exactly() {
    for seed in 1..=number("TASKHUB_SIM_REPEATED", 10) {
        let (first, second) = (sim::run(seed, &Options::default()), sim::run(seed, &Options::default()));
        assert_eq!((first.hash, first.entries), (second.hash, second.entries), "seed {seed}");
    }
}

/// Runs seeds on all processors; those of whose reports `keep` says so, by seed.
fn run_all(seeds: std::ops::Range<u64>, options: &Options, keep: fn(&Report) -> bool) -> Vec<Report> {
    let threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get) as u64;
    let mut kept: Vec<_> = std::thread::scope(|scope| {
        let run = |thread| {
            let own = seeds.clone().filter(move |seed| seed % threads == thread);
            let kept = own.map(|seed| sim::run(seed, options)).filter(keep);
            // At once: the rest may take minutes.
            kept.inspect(|report| {
                if options.planted.is_none() {
                    println!("{report}")
                }
            })
            .collect::<Vec<_>>()
        };
        let running: Vec<_> = (0..threads).map(|thread| scope.spawn(move || run(thread))).collect();
        running.into_iter().flat_map(|running| running.join().unwrap()).collect()
    });
    kept.sort_by_key(|report| report.seed);
    kept
}

fn check_many(count: u64, options: &Options) {
    let from = number("TASKHUB_SIM_FROM", 1);
    let begun = std::time::Instant::now();
    let failed = run_all(from..from + count, options, |report| !report.wrong.is_empty());
    println!("{count} seeds in {:.1} s", begun.elapsed().as_secs_f64());
    assert!(failed.is_empty(), "{} of {count} seeds fail", failed.len());
}

#[test]
fn many_seeds_come_to_their_right_end() {
    check_many(number("TASKHUB_SIM_SEEDS", 200), &Options::default());
}

#[test]
fn many_seeds_with_entities_come_to_their_right_end() {
    let count = number("TASKHUB_SIM_ENTITY_SEEDS", 50);
    check_many(count, &Options { entities: true, ..Options::default() });
}

/// The first seed from `from` on, of at most `count`, in which a planted fault shows.
fn first_find(planted: Planted, from: u64, count: u64) -> Option<Report> {
    let entities = matches!(planted, Planted::UnstampedRequests | Planted::KeepLocks);
    let options = Options { planted: Some(planted), entities, ..Options::default() };
    let (mut at, mut chunk) = (from, 1);
    while at < from + count {
        let next = (at + chunk).min(from + count);
        chunk = 16;
        let found = run_all(at..next, &options, |report| !report.wrong.is_empty());
        if let Some(first) = found.into_iter().next() {
            return Some(first);
        }
        at = next;
    }
    None
}

#[test]
fn every_planted_fault_is_found_where_docs_say() {
    let mut missed = Vec::new();
    for (planted, seed) in FOUND_AT {
        match first_find(planted, seed, 200) {
            Some(report) => println!("{planted:?}: seed {}: {}", report.seed, report.wrong[0]),
            None => missed.push(planted),
        }
    }
    assert!(missed.is_empty(), "not found: {missed:?}");
}

#[test]
#[ignore = "takes a minute; nightly.sh runs it"]
fn every_planted_fault_is_found_within_2000_seeds() {
    let mut missed = Vec::new();
    for planted in Planted::ALL {
        match first_find(planted, 1, 2000) {
            Some(report) => println!("{planted:?}: seed {}: {}", report.seed, report.wrong[0]),
            None => missed.push(planted),
        }
    }
    assert!(missed.is_empty(), "not found: {missed:?}");
}
