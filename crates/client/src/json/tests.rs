use taskhub_core::{ExecutionStarted, InstanceId, OrchestrationStatus};

use super::*;
use crate::fake;

fn at(text: &str) -> Timestamp {
    Timestamp::parse(text).unwrap()
}

/// Expected texts are what DTFx 2.9.1 prints for the same event, times and ids included.
#[track_caller]
fn check(event_id: i32, is_played: bool, timestamp: &str, kind: EventKind, expected: &str) {
    let made = HistoryEvent { event_id, is_played, timestamp: at(timestamp), kind };
    assert_eq!(event(&made, EventTypes::Numbers).to_string(), expected);
}

#[test]
fn events_are_written_as_dtfx_writes_them() {
    check(
        -1,
        false,
        "2026-11-21T03:12:42.979543Z",
        EventKind::OrchestratorStarted,
        r#"{"EventType":12,"EventId":-1,"IsPlayed":false,"Timestamp":"2026-11-21T03:12:42.979543Z"}"#,
    );
    check(
        -1,
        true,
        "2026-11-21T03:12:37.947408Z",
        EventKind::ExecutionStarted(Box::new(ExecutionStarted {
            version: Some(String::new()),
            generation: Some(0),
            ..ExecutionStarted::new(
                OrchestrationInstance::new("hello-1", "1a2be7175a84421aa93bd4b52e50cf5d"),
                "HelloSequence",
            )
        })),
        r#"{"OrchestrationInstance":{"InstanceId":"hello-1","ExecutionId":"1a2be7175a84421aa93bd4b52e50cf5d"},"EventType":0,"ParentInstance":null,"Name":"HelloSequence","Version":"","Input":null,"Tags":null,"Correlation":null,"ParentTraceContext":null,"ScheduledStartTime":null,"Generation":0,"GenerateNewTrace":false,"EventId":-1,"IsPlayed":true,"Timestamp":"2026-11-21T03:12:37.947408Z"}"#,
    );
    check(
        0,
        false,
        "2026-11-21T03:41:54.5026364Z",
        EventKind::SubOrchestrationInstanceCreated {
            name: Some("FailUnhandled".into()),
            version: Some(String::new()),
            instance_id: InstanceId::new("be894d3e719442ada4876ff1ded63eec:0"),
            input: None,
            client_span_id: None,
            tags: None,
        },
        r#"{"EventType":7,"Name":"FailUnhandled","Version":"","InstanceId":"be894d3e719442ada4876ff1ded63eec:0","Input":null,"ClientSpanId":null,"Tags":null,"EventId":0,"IsPlayed":false,"Timestamp":"2026-11-21T03:41:54.5026364Z"}"#,
    );
    check(
        3,
        false,
        "2026-11-21T03:12:54.1232155Z",
        EventKind::ExecutionCompleted(ExecutionCompleted {
            status: OrchestrationStatus::Completed,
            result: Some(r#"["Hello Tokyo!"]"#.into()),
            failure_details: None,
        }),
        r#"{"EventType":1,"OrchestrationStatus":1,"Result":"[\"Hello Tokyo!\"]","FailureDetails":null,"EventId":3,"IsPlayed":false,"Timestamp":"2026-11-21T03:12:54.1232155Z"}"#,
    );
    check(
        -1,
        false,
        "2026-01-15T09:38:00Z",
        EventKind::GenericEvent { data: Some("fixed".into()) },
        r#"{"Data":"fixed","EventType":17,"EventId":-1,"IsPlayed":false,"Timestamp":"2026-01-15T09:38:00Z"}"#,
    );
}

#[test]
fn failures_nest_and_properties_are_json() {
    let mut details = FailureDetails::new("System.InvalidOperationException", "boom x");
    details.inner_failure = Some(Box::new(FailureDetails::new("E", "cause")));
    details.properties = Some(r#"{"code":7}"#.into());
    check(
        -1,
        true,
        "2026-11-21T03:14:17.7841223Z",
        EventKind::TaskFailed {
            task_scheduled_id: 0,
            reason: Some("boom x".into()),
            details: None,
            failure_details: Some(details),
        },
        r#"{"EventType":6,"TaskScheduledId":0,"Reason":"boom x","Details":null,"FailureDetails":{"ErrorType":"System.InvalidOperationException","ErrorMessage":"boom x","StackTrace":null,"InnerFailure":{"ErrorType":"E","ErrorMessage":"cause","StackTrace":null,"InnerFailure":null,"IsNonRetriable":false,"Properties":null},"IsNonRetriable":false,"Properties":{"code":7}},"EventId":-1,"IsPlayed":true,"Timestamp":"2026-11-21T03:14:17.7841223Z"}"#,
    );
}

#[test]
fn event_types_can_be_names() {
    let fired = EventKind::TimerFired { timer_id: 0, fire_at: at("2026-11-21T03:13:13.1030241Z") };
    let made = HistoryEvent::message(at("2026-11-21T03:12:43.1481415Z"), fired);
    assert_eq!(
        history(&[made], EventTypes::Names).to_string(),
        r#"[{"EventType":"TimerFired","TimerId":0,"FireAt":"2026-11-21T03:13:13.1030241Z","EventId":-1,"IsPlayed":false,"Timestamp":"2026-11-21T03:12:43.1481415Z"}]"#
    );
}

#[test]
fn a_state_has_dtfx_members_in_their_order() {
    let mut pending = fake::state("order-17", OrchestrationStatus::Pending);
    pending.tags = Some([("env", "prod"), ("owner", "José")].into_iter().collect());
    assert_eq!(
        state(&pending).to_string(),
        r#"{"CompletedTime":"0001-01-01T00:00:00","CompressedSize":0,"CreatedTime":"2026-01-15T09:30:00.1234567Z","Input":null,"LastUpdatedTime":"2026-01-15T09:30:00.1234567Z","Name":"Greet","OrchestrationInstance":{"InstanceId":"order-17","ExecutionId":"e1"},"OrchestrationStatus":6,"Output":null,"ParentInstance":null,"Size":0,"Status":"null","Tags":{"env":"prod","owner":"José"},"Version":"","Generation":0,"ScheduledStartTime":null,"FailureDetails":null}"#
    );
}

#[test]
fn a_state_without_a_generation_is_that_of_the_first_use_of_its_id() {
    let mut entity = fake::state("@counter@a", OrchestrationStatus::Running);
    entity.generation = None;
    assert_eq!(state(&entity)["Generation"], 0);
}
