//! `taskhub bench` as a process: its measurements start processes of their own.

use std::process::{Command, Output};

use serde_json::Value;

fn run(arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_taskhub"));
    command.arg("bench").args(arguments).output().expect("the program starts")
}

/// Standard output of a benchmark that has to succeed, and not say anything else.
#[track_caller]
fn bench(arguments: &[&str]) -> String {
    let output = run(arguments);
    let err = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{err}");
    let only_a_warning = err.lines().all(|line| line.contains("debug build"));
    assert!(only_a_warning, "{err}");
    String::from_utf8(output.stdout).expect("UTF-8")
}

#[test]
fn a_replay_measurement_answers_with_one_document() {
    let replayed: Value = serde_json::from_str(&bench(&["--replay-here", "fan-out-rows:1000"])).unwrap();
    assert_eq!((&replayed["shape"], &replayed["events"]), (&"fan-out-rows".into(), &1000.into()));
    assert!(replayed["seconds"].as_f64().unwrap() > 0.0, "{replayed}");
    if cfg!(target_os = "linux") {
        assert!(replayed["peakMemoryBytes"].as_u64().unwrap() > 1_000_000, "{replayed}");
    }
}

#[test]
fn an_isolated_orchestration_is_counted_on_the_embedded_store() {
    let report: Value =
        serde_json::from_str(&bench(&["--scenario", "isolated", "--output", "json"])).unwrap();
    let isolated = &report["isolated"];
    assert_eq!(
        (&isolated["workerRequests"]["work"], &isolated["clientRequests"]["work"]),
        (&33.into(), &3.into())
    );
    assert_eq!(
        (&report["conditions"]["version"], &report["throughput"]),
        (&env!("CARGO_PKG_VERSION").into(), &Value::Null)
    );
}

#[test]
fn throughput_and_codec_are_shown_as_tables() {
    let text = bench(&[
        "--scenario",
        "throughput",
        "--scenario",
        "codec",
        "--instances",
        "6",
        "--concurrency",
        "2",
        "--repeat",
        "2",
    ]);
    for heading in
        ["HelloSequence, embedded store", "REQUESTS PER ORCHESTRATION", "message read   30000", " to "]
    {
        assert!(text.contains(heading), "{heading}: {text}");
    }
}

#[test]
fn what_cannot_be_measured_is_refused() {
    for arguments in [
        &["--replay-here", "circle:10"][..],
        &["--scenario", "everything"],
        &["--instances", "0"],
        &["--scenario", "balance", "--partition-manager", "fair"],
        &["--azurite", "--connection-string", "x"],
    ] {
        let status = run(arguments).status;
        assert!(!status.success(), "{arguments:?}");
    }
}
