use taskhub_core::{ExecutionCompleted, OrchestrationStatus};

use super::*;

fn at(second: i64) -> Timestamp {
    Timestamp::from_ticks(638_000_000_000_000_000 + second * 10_000_000)
}

/// A history in short: `o` an episode, `s0 Name` a call, `f0 text` its failure, `c0` its result, `t1` a timer,
/// `T1` that it fired, `x3 text` the failed end.
fn history(lines: &[&str]) -> Vec<Row> {
    lines.iter().enumerate().map(|(n, line)| Row { event: event(n, line), was: Was::Untouched }).collect()
}

fn event(n: usize, line: &str) -> HistoryEvent {
    let (head, text) = line.split_once(' ').unwrap_or((line, ""));
    let (letter, id) = head.split_at(1);
    let id: i32 = id.parse().unwrap_or(-1);
    let text = Some(text.to_owned());
    let kind = match letter {
        "o" => EventKind::OrchestratorStarted,
        "s" => EventKind::TaskScheduled {
            name: text,
            version: None,
            input: None,
            parent_trace_context: None,
            tags: None,
        },
        "n" => EventKind::SubOrchestrationInstanceCreated {
            name: Some("Child".into()),
            version: None,
            instance_id: text.iter().map(String::as_str).collect::<String>().into(),
            input: None,
            client_span_id: None,
            tags: None,
        },
        "f" => EventKind::TaskFailed {
            task_scheduled_id: id,
            reason: text,
            details: None,
            failure_details: None,
        },
        "c" => EventKind::TaskCompleted { task_scheduled_id: id, result: None },
        "t" => EventKind::TimerCreated { fire_at: at(60) },
        "T" => EventKind::TimerFired { timer_id: id, fire_at: at(60) },
        _ => EventKind::ExecutionCompleted(ExecutionCompleted {
            status: OrchestrationStatus::Failed,
            result: text,
            failure_details: None,
        }),
    };
    let is_message = matches!(letter, "o" | "f" | "c" | "T");
    HistoryEvent {
        event_id: if is_message { -1 } else { id },
        is_played: false,
        timestamp: at(n as i64),
        kind,
    }
}

#[track_caller]
fn check(lines: &[&str], rewound: &[usize], undone: &[usize]) -> Plan {
    let plan = Plan::of(&history(lines));
    let of = |edit: Edit| -> Vec<usize> {
        plan.edits.iter().filter(|(_, e)| **e == edit).map(|(at, _)| *at).collect()
    };
    assert_eq!((of(Edit::Rewound), of(Edit::Undone)), (rewound.to_vec(), undone.to_vec()), "{lines:?}");
    plan
}

#[test]
fn a_failed_call_its_failure_and_the_end_are_rewound() {
    check(&["o", "s0 A", "o", "c0", "s1 B", "o", "f1 boom", "x2 boom"], &[4, 6, 7], &[]);
}

#[test]
fn failures_before_further_steps_stay_unless_the_end_tells_of_them() {
    let handled = ["o", "s0 A", "o", "f0 boom", "s1 B", "o", "f1 bang", "x2 bang"];
    check(&handled, &[4, 6, 7], &[]);
    let same_text = ["o", "s0 A", "o", "f0 boom", "s1 B", "o", "f1 boom", "x2 boom"];
    check(&same_text, &[4, 6, 7], &[]);
    let passed_on = ["o", "s0 A", "o", "f0 boom", "s1 B", "o", "c1", "x2 boom"];
    check(&passed_on, &[1, 3, 7], &[4, 6]);
    let own_failure = ["o", "s0 A", "o", "f0 boom", "s1 B", "o", "c1", "x2 another reason"];
    check(&own_failure, &[7], &[]);
}

#[test]
fn texts_of_durable_functions_are_recognised() {
    let end = "x2 Orchestrator function 'O' failed: The activity function 'A' failed: \"boom\". See the \
               function execution logs for additional details.";
    let lines = ["o", "s0 A", "o", "f0 Activity function 'A' failed: boom", "s1 B", "o", "c1", end];
    check(&lines, &[1, 3, 7], &[4, 6]);
}

#[test]
fn attempts_and_their_timers_stay_but_for_the_last() {
    let lines =
        ["o", "s0 A", "o", "f0 boom", "t1", "o", "T1", "s2 A", "o", "f2 boom", "t3", "o", "T3", "x4 boom"];
    let plan = check(&lines, &[7, 9, 13], &[10, 12]);
    assert!(!plan.has_timers, "those of a retry do not count");
    let without_last_timer =
        ["o", "s0 A", "o", "f0 boom", "t1", "o", "T1", "s2 A", "o", "f2 boom", "x3 boom"];
    check(&without_last_timer, &[7, 9, 10], &[]);
}

#[test]
fn attempts_side_by_side_keep_their_ids() {
    // A has failed for good before B is tried for the second time.
    let lines =
        ["o", "s0 A", "s1 B", "o", "f0 boom", "o", "f1 bang", "t2", "o", "T2", "s3 B", "o", "c3", "x4 boom"];
    let plan = check(&lines, &[1, 4, 13], &[]);
    assert!(!plan.has_timers);
}

#[test]
fn timers_of_the_code_itself_are_noticed() {
    assert!(check(&["o", "t0", "o", "T0", "s1 A", "o", "f1 boom", "x2 boom"], &[4, 6, 7], &[]).has_timers);
}

#[test]
fn calls_that_were_open_when_the_instance_failed_are_made_again() {
    // An SDK that does not wait for them: what they answered since then was discarded.
    let lines = ["o", "s0 A", "s1 B", "n2 child", "t3", "o", "f0 boom", "x4 boom"];
    let plan = check(&lines, &[1, 2, 6, 7], &[]);
    assert_eq!(plan.children, [Child { at: 3, task_id: 2, instance_id: "child".into() }]);
    assert_eq!(plan.unfired, [(3, at(60))]);
}

#[test]
fn an_execution_that_runs_is_left_alone() {
    assert_eq!(check(&["o", "s0 A", "s1 B", "o", "f0 boom"], &[], &[]), Plan::default());
}

#[test]
fn what_was_rewound_before_is_recognised() {
    let generic = |n: usize, id: i32, was: Was| Row {
        event: HistoryEvent {
            event_id: id,
            ..HistoryEvent::message(at(n as i64), EventKind::GenericEvent { data: None })
        },
        was,
    };
    let request = || Was::Request { name: Some("A".into()), is_sub: false };
    let mut rows = history(&["o", "s0 A", "o", "f0 boom", "t1", "o", "T1"]);
    rows.extend([generic(7, 2, request()), generic(8, -1, Was::Other), generic(9, 3, Was::Completion)]);
    let waiting = Plan::of(&rows);
    assert!(waiting.is_waiting && waiting.edits.is_empty() && !waiting.has_timers, "{waiting:?}");
    rows.extend(history(&["o", "s2 A", "o", "f2 boom", "t3", "o", "T3", "x4 boom"]));
    let again = Plan::of(&rows);
    assert!(!again.is_waiting && !again.has_timers, "{again:?}");
    let of = |edit| again.edits.iter().filter(|(_, e)| **e == edit).map(|(at, _)| *at).collect::<Vec<_>>();
    assert_eq!((of(Edit::Rewound), of(Edit::Undone)), (vec![11, 13, 17], vec![14, 16]));
}
