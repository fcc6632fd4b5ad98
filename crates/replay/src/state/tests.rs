use taskhub_core::{ExecutionCompleted, OrchestrationInstance};

use super::*;

fn event(kind: EventKind) -> HistoryEvent {
    HistoryEvent::message(Timestamp::MIN, kind)
}

fn start() -> HistoryEvent {
    event(EventKind::ExecutionStarted(Box::new(ExecutionStarted::new(
        OrchestrationInstance::new("i", "e"),
        "O",
    ))))
}

fn completed(status: OrchestrationStatus) -> HistoryEvent {
    event(EventKind::ExecutionCompleted(ExecutionCompleted {
        status,
        result: Some(status.name().to_owned()),
        failure_details: None,
    }))
}

fn continued() -> HistoryEvent {
    event(EventKind::ContinueAsNew(ExecutionCompleted {
        status: OrchestrationStatus::ContinuedAsNew,
        result: None,
        failure_details: None,
    }))
}

#[track_caller]
fn check(events: Vec<HistoryEvent>, expected: OrchestrationStatus) {
    assert_eq!(RuntimeState::from_history(events).unwrap().status(), expected);
}

#[test]
fn status_follows_the_events() {
    use OrchestrationStatus::*;
    let suspended = || event(EventKind::ExecutionSuspended { reason: None });
    let resumed = || event(EventKind::ExecutionResumed { reason: None });
    let terminated = || event(EventKind::ExecutionTerminated { input: None });
    check(vec![start()], Running);
    check(vec![start(), suspended()], Suspended);
    check(vec![start(), suspended(), resumed()], Running);
    check(vec![start(), terminated()], Running);
    check(vec![start(), completed(Failed), completed(Completed)], Failed);
    check(vec![start(), completed(Completed), suspended()], Suspended);
    check(vec![start(), completed(Completed), resumed()], Completed);
    check(vec![start(), continued(), completed(Completed)], ContinuedAsNew);
    check(vec![start(), continued(), completed(Terminated)], Terminated);
    check(vec![start(), completed(Terminated), continued()], Terminated);
}

#[test]
fn a_second_start_is_an_error() {
    assert!(RuntimeState::from_history(vec![start(), start()]).is_err());
}

#[test]
fn validity_needs_a_start_or_a_lone_mark() {
    let valid = |events| RuntimeState::from_history(events).unwrap().is_valid();
    let mark = || event(EventKind::OrchestratorStarted);
    assert!(valid(vec![]));
    assert!(valid(vec![mark()]));
    assert!(valid(vec![mark(), start()]));
    assert!(!valid(vec![mark(), mark()]));
    assert!(!valid(vec![event(EventKind::OrchestratorCompleted)]));
}

#[test]
fn output_is_the_failure_or_the_result() {
    let failed = |failure_details| {
        event(EventKind::ExecutionCompleted(ExecutionCompleted {
            status: OrchestrationStatus::Failed,
            result: Some("boom".into()),
            failure_details,
        }))
    };
    let output = |events| RuntimeState::from_history(events).unwrap().output();
    assert_eq!(output(vec![start()]), None);
    assert_eq!(output(vec![start(), failed(None)]).as_deref(), Some("boom"));
    let details = FailureDetails::new("T", "m");
    assert_eq!(output(vec![start(), failed(Some(details))]).as_deref(), Some("T: m"));
}

#[test]
fn only_results_with_an_id_of_their_own_are_dropped_as_duplicates() {
    let result = |event_id| HistoryEvent {
        event_id,
        ..event(EventKind::TaskCompleted { task_scheduled_id: 0, result: None })
    };
    let count = |events| RuntimeState::from_history(events).unwrap().len();
    assert_eq!(count(vec![start(), result(-1), result(-1)]), 3);
    assert_eq!(count(vec![start(), result(4), result(4)]), 2);
}
