use taskhub_core::ErrorKind;

use super::*;
use crate::message::arbitrary;

fn execution() -> ExecutionId {
    ExecutionId::new("5d1c7d1f0a5e4d0c9c1d0d6b1b7f2a10")
}

fn row(event_type: &str) -> Entity {
    Entity::new("order-42", row_key(10))
        .with("EventType", event_type)
        .with("EventId", -1)
        .with("IsPlayed", false)
}

#[test]
fn row_keys_are_sixteen_upper_case_hex_digits() {
    for (index, key) in [(0, "0000000000000000"), (10, "000000000000000A"), (255, "00000000000000FF")] {
        assert_eq!(row_key(index), key);
        assert_eq!(index_of(key), Some(index));
    }
    for key in ["sentinel", "", "A", "+000000000000001", "00000000000000000"] {
        assert_eq!(index_of(key), None, "{key}");
    }
}

#[test]
fn a_row_has_typed_columns_and_null_as_text() {
    let at = Timestamp::parse("2026-01-15T09:30:01.25Z").unwrap();
    let event = HistoryEvent::decision(
        0,
        at,
        EventKind::TaskScheduled {
            name: Some("ChargeCard".to_owned()),
            version: Some(String::new()),
            input: None,
            parent_trace_context: None,
            tags: None,
        },
    );
    let expected = Entity::new("order-42", "0000000000000002")
        .with("ExecutionId", execution().as_str())
        .with("EventType", "TaskScheduled")
        .with("EventId", 0)
        .with("IsPlayed", false)
        .with("_Timestamp", at)
        .with("Name", "ChargeCard")
        .with("Version", "")
        .with("ParentTraceContext", "null")
        .with("Tags", "null");
    assert_eq!(write("order-42", 2, &execution(), &event), expected);
}

#[test]
fn absent_empty_and_null_columns_are_all_null() {
    let expected = read(&row("TaskScheduled")).unwrap();
    for text in ["", "null", " null "] {
        let row = row("TaskScheduled").with("Tags", text).with("ParentTraceContext", text);
        assert_eq!(read(&row).as_ref(), Ok(&expected), "{text:?}");
    }
    let EventKind::TaskScheduled { tags, name, .. } = expected.kind else { panic!("{expected:?}") };
    assert_eq!((tags, name), (None, None));
}

#[test]
fn rows_that_a_rewind_has_rewritten_are_read() {
    let row = row("GenericEvent")
        .with("TaskScheduledId", 3)
        .with("FailureDetails", "null")
        .with("Reason", "Rewound: TaskFailed");
    assert_eq!(read(&row).unwrap().kind, EventKind::GenericEvent { data: None });
    let created = self::row("SubOrchestrationInstanceCreated")
        .with("Reason", "Rewound: SubOrchestrationInstanceCreated");
    assert!(read(&created).is_ok());
}

#[test]
fn unknown_event_types_and_wrong_columns_are_errors_that_name_the_row() {
    for (row, cause) in [
        (row("ExecutionFailed"), "unknown event type. event_type=`ExecutionFailed`"),
        (Entity::new("order-42", row_key(10)), "an event without a type"),
        (
            row("TimerFired").with("TimerId", "x"),
            "a member cannot be read. member=`TimerId` expected=`an integer of 32 bits` found=`another text`",
        ),
        (
            row("TimerFired").with("FireAt", true),
            "a member cannot be read. member=`FireAt` expected=`a date` found=`a boolean`",
        ),
        (row("TaskFailed").with("FailureDetails", "{"), "the text is not JSON. at=`1`"),
        (
            row("TaskFailed").with("FailureDetails", "[]"),
            "a member cannot be read. member=`FailureDetails` expected=`an object` found=`an array`",
        ),
        (
            row("ExecutionCompleted").with("OrchestrationStatus", "Odd"),
            "a member cannot be read. member=`OrchestrationStatus` expected=`a runtime status` found=`another value`",
        ),
    ] {
        let error = read(&row).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Data);
        assert_eq!(
            error.to_string(),
            "a row cannot be read. table=`History` partition_key=`order-42` row_key=`000000000000000A`"
        );
        assert_eq!(std::error::Error::source(&error).unwrap().to_string(), cause);
    }
}

#[test]
fn columns_of_related_types_are_read() {
    let mut row = row("TimerFired").with("FireAt", "2026-01-15T09:30:00Z");
    row.set("TimerId", Value::Int64(4));
    let fire_at = Timestamp::parse("2026-01-15T09:30:00Z").unwrap();
    assert_eq!(read(&row).unwrap().kind, EventKind::TimerFired { timer_id: 4, fire_at });
}

proptest::proptest! {
    #[test]
    fn every_event_comes_back_from_its_row_and_every_row_from_its_event(event in arbitrary::event()) {
        let row = write("order-42", 7, &execution(), &event);
        let read = read(&row);
        proptest::prop_assert_eq!(read.as_ref(), Ok(&event));
        proptest::prop_assert_eq!(write("order-42", 7, &execution(), &read.unwrap()), row);
    }

    #[test]
    fn no_column_makes_the_reader_panic(event in arbitrary::event(), column in 0usize..20, text in ".*") {
        let mut row = write("order-42", 7, &execution(), &event);
        let name = row.columns.keys().nth(column % row.columns.len()).unwrap().clone();
        row.set(name, text);
        let _ = read(&row);
    }
}
