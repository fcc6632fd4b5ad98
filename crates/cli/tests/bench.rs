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
    let arguments = ["--scenario", "isolated", "--dtfx-cadence", "--output", "json"];
    let report: Value = serde_json::from_str(&bench(&arguments)).unwrap();
    let isolated = &report["isolated"];
    assert_eq!(
        (&isolated["workerRequests"]["work"], &isolated["clientRequests"]["work"]),
        (&33.into(), &3.into())
    );
    assert_eq!(
        (&report["conditions"]["version"], &report["orchestrations"]),
        (&env!("CARGO_PKG_VERSION").into(), &Value::Null)
    );
}

const FEW: [&str; 4] = ["--instances", "4", "--concurrency", "2"];

#[test]
fn every_kind_of_orchestration_is_measured_on_the_embedded_store() {
    let mut arguments = vec!["--output", "json", "--timer-seconds", "1", "--payload-bytes", "60000"];
    let scenarios = ["hello", "fan-out", "timers", "sub-orchestrations", "payloads"];
    for scenario in scenarios {
        arguments.extend(["--scenario", scenario]);
    }
    arguments.extend(["--activities", "2"]);
    arguments.extend(FEW);
    let report: Value = serde_json::from_str(&bench(&arguments)).unwrap();
    let all = &report["orchestrations"];
    assert_eq!(all["store"], "embedded store");
    let cases = all["cases"].as_array().unwrap();
    let names: Vec<_> = cases.iter().map(|case| case["scenario"].as_str().unwrap()).collect();
    assert_eq!(names, scenarios);
    assert_eq!(
        (&cases[0]["activities"], &cases[2]["timerSeconds"], &cases[4]["payloadBytes"]),
        (&2.into(), &1.into(), &60000.into())
    );
    assert_eq!((&cases[0]["function"], &cases[0]["dotnetWorkerRequestsEach"]), (&"Loop".into(), &24.into()));
    for case in cases {
        assert_eq!((&case["instances"], &case["concurrency"]), (&4.into(), &2.into()), "{case}");
        let [mode] = &case["modes"].as_array().unwrap()[..] else { panic!("{case}") };
        assert_eq!((&mode["dtfxCadence"], &mode["runs"]), (&false.into(), &1.into()));
        for figure in ["perSecond", "p50Seconds", "p99Seconds", "workerRequestsEach", "clientRequestsEach"] {
            assert!(mode[figure]["median"].as_f64().unwrap() > 0.0, "{figure}: {case}");
        }
        for figure in ["emptyPollsEach", "partitionRowsEach", "appLeaseEach"] {
            assert!(mode[figure]["median"].as_f64().unwrap() >= 0.0, "{figure}: {case}");
        }
        if cfg!(target_os = "linux") {
            assert!(mode["cpuSeconds"]["median"].as_f64().unwrap() >= 0.0, "{case}");
            assert!(mode["peakMemoryBytes"]["median"].as_f64().unwrap() > 1e6, "{case}");
        }
        let worker = &mode["requestsOfLastRun"]["worker"];
        let meters: u64 =
            worker["allByMeter"].as_object().unwrap().values().map(|n| n.as_u64().unwrap()).sum();
        let of = |name: &str| worker[name].as_u64().unwrap();
        let purposes = of("work") + of("emptyPolls") + of("partitionRows") + of("appLease");
        assert_eq!(meters, purposes, "{case}");
    }
    // The bill of all of them, with an account for each.
    let lines = report["cost"]["lines"].as_array().unwrap();
    for name in ["Loop", "FanOutFanIn", "Timer", "Parent", "LargePayload"] {
        assert!(lines.iter().any(|line| line["orchestration"] == name), "{name}: {lines:?}");
    }
}

#[test]
fn two_cadences_and_the_bill_are_shown_as_tables() {
    let mut arguments = vec!["--scenario", "hello", "--compare-dtfx-cadence", "--scenario", "codec"];
    arguments.extend(["--repeat", "2"]);
    arguments.extend(FEW);
    let text = bench(&arguments);
    for heading in [
        "HelloSequence, 3 activities in a row, embedded store",
        "OWN CADENCE",
        "DTFX CADENCE",
        "OWN / DTFX",
        "worker: PutMessage (queue class 1)",
        "worker, .NET, one alone",
        "message read   30000",
        " to ",
        "Storage requests of all that",
        "METER",
    ] {
        assert!(text.contains(heading), "{heading}: {text}");
    }
}

#[test]
fn what_cannot_be_measured_is_refused() {
    for arguments in [
        &["--replay-here", "circle:10"][..],
        &["--scenario", "everything"],
        &["--instances", "0"],
        &["--scenario", "hello", "--dtfx-cadence", "--compare-dtfx-cadence"],
        &["--scenario", "balance", "--partition-manager", "fair"],
        &["--azurite", "--connection-string", "x"],
    ] {
        let status = run(arguments).status;
        assert!(!status.success(), "{arguments:?}");
    }
}
