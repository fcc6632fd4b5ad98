use taskhub_core::{ExecutionCompleted, FailureDetails, SeededIds};
use taskhub_storage::Value;

use super::*;
use crate::tracking::{blob_column, history_row};

const CONTAINER: &str = "http://127.0.0.1:10000/devstoreaccount1/myhub-largemessages";

fn at(second: u32) -> Timestamp {
    Timestamp::parse(&format!("2026-01-15T09:30:{second:02}Z")).unwrap()
}

fn hub() -> TaskHubName {
    TaskHubName::new("MyHub").unwrap()
}

fn started(input: &str) -> ExecutionStarted {
    ExecutionStarted {
        version: Some(String::new()),
        input: Some(input.to_owned()),
        generation: Some(0),
        ..ExecutionStarted::new(OrchestrationInstance::new("order/42", "e1"), "ProcessOrder")
    }
}

fn checkpoint_of(kinds: Vec<EventKind>) -> Entity {
    let (instance, execution, hub) = (InstanceId::new("order/42"), ExecutionId::new("e1"), hub());
    let context = RowContext {
        instance_id: &instance,
        execution_id: &execution,
        hub: &hub,
        container_url: CONTAINER,
        now: at(50),
    };
    let ids = SeededIds::new(1);
    let events: Vec<(HistoryEvent, Entity)> = kinds
        .into_iter()
        .zip(1..)
        .map(|(kind, second)| {
            let event = HistoryEvent::message(at(second), kind);
            let mut row = history_row::write("order^042", u64::from(second), &execution, &event);
            blob_column::offload_history(&mut row, &ids);
            (event, row)
        })
        .collect();
    checkpoint(context, None, events.iter().map(|(event, row)| (event, row)))
}

fn start_event(input: &str) -> EventKind {
    EventKind::ExecutionStarted(Box::new(started(input)))
}

fn end(result: &str, failure_details: Option<FailureDetails>) -> EventKind {
    let status =
        if failure_details.is_some() { OrchestrationStatus::Failed } else { OrchestrationStatus::Completed };
    EventKind::ExecutionCompleted(ExecutionCompleted {
        status,
        result: Some(result.to_owned()),
        failure_details,
    })
}

fn base(last: Timestamp) -> Entity {
    Entity::new("order^042", "")
        .with("CustomStatus", "null")
        .with("ExecutionId", "e1")
        .with("LastUpdatedTime", last)
        .with("TaskHubName", "MyHub")
}

#[test]
fn a_start_inserts_a_pending_row() {
    let expected = Entity::new("order^042", "")
        .with("Input", "1")
        .with("CreatedTime", at(1))
        .with("Name", "ProcessOrder")
        .with("Version", "")
        .with("RuntimeStatus", "Pending")
        .with("LastUpdatedTime", at(2))
        .with("TaskHubName", "MyHub")
        .with("ExecutionId", "e1")
        .with("Generation", 0)
        .with("Tags", "null");
    assert_eq!(start(&hub(), at(1), &started("1"), None, at(2)), expected);

    let mut later = started("1");
    later.scheduled_start_time = Some(at(30));
    later.tags = Some(Tags::from_iter([("env", "prod"), ("owner", "José")]));
    let row = start(&hub(), at(1), &later, Some("http://blob"), at(2));
    assert_eq!(row.str("Input"), Some("http://blob"));
    assert_eq!(row.get("ScheduledStartTime"), Some(&Value::DateTime(at(30))));
    assert_eq!(row.str("Tags"), Some(r#"{"env":"prod","owner":"José"}"#));
}

#[test]
fn an_episode_without_notable_events_writes_four_columns() {
    assert_eq!(
        checkpoint_of(vec![EventKind::OrchestratorStarted, EventKind::OrchestratorCompleted]),
        base(at(2))
    );
    assert_eq!(checkpoint_of(Vec::new()), base(at(50)));
}

#[test]
fn each_event_writes_its_columns_and_later_ones_win() {
    let running = base(at(1))
        .with("Name", "ProcessOrder")
        .with("Version", "")
        .with("CreatedTime", at(1))
        .with("RuntimeStatus", "Running")
        .with("Tags", "null")
        .with("Generation", 0)
        .with("Input", "1");
    assert_eq!(checkpoint_of(vec![start_event("1")]), running);

    let completed = running
        .clone()
        .with("LastUpdatedTime", at(2))
        .with("RuntimeStatus", "Completed")
        .with("CompletedTime", at(50))
        .with("Output", "\"done\"");
    assert_eq!(checkpoint_of(vec![start_event("1"), end("\"done\"", None)]), completed);

    let failed = end("boom", Some(FailureDetails::new("System.Exception", "boom")));
    assert_eq!(checkpoint_of(vec![failed]).str("Output"), Some("System.Exception: boom"));

    for (kind, status, terminal) in [
        (EventKind::ExecutionTerminated { input: Some("why".to_owned()) }, "Terminated", true),
        (EventKind::ExecutionSuspended { reason: Some("why".to_owned()) }, "Suspended", false),
        (EventKind::ExecutionResumed { reason: Some("why".to_owned()) }, "Running", false),
    ] {
        let row = checkpoint_of(vec![kind]);
        assert_eq!((row.str("RuntimeStatus"), row.str("Output")), (Some(status), Some("why")));
        assert_eq!(row.get("CompletedTime").is_some(), terminal, "{status}");
    }
}

#[test]
fn texts_that_went_to_a_blob_become_urls() {
    let large = "x".repeat(40_000);
    let row = checkpoint_of(vec![start_event(&large), end(&large, None)]);
    let urls = [row.str("Input").unwrap(), row.str("Output").unwrap()];
    let start = format!("{CONTAINER}/order%5E042/history-0000000000000001-ExecutionStarted-");
    assert!(urls[0].starts_with(&start) && urls[0].ends_with("-Input.json.gz"), "{}", urls[0]);
    let references = blob_references(&row, CONTAINER);
    let columns: Vec<_> =
        references.iter().map(|(column, name)| (*column, name.starts_with("order^042/history-"))).collect();
    assert_eq!(columns, [("Input", true), ("Output", true)]);
}

#[test]
fn requests_without_history_and_rewinds_write_few_columns() {
    let id = InstanceId::new("a");
    let terminated = Entity::new("a", "")
        .with("RuntimeStatus", "Terminated")
        .with("LastUpdatedTime", at(1))
        .with("CompletedTime", at(2))
        .with("Output", "why");
    assert_eq!(terminate(&id, at(1), Some("why"), at(2)), terminated);
    let rewound = Entity::new("a", "").with("RuntimeStatus", "Pending").with("LastUpdatedTime", at(2));
    assert_eq!(rewind(&id, at(2)), rewound);
}

#[test]
fn references_are_found_in_every_form_and_only_in_the_hubs_container() {
    let url = blob_url(CONTAINER, "a/message-1-ExecutionStarted.json.gz");
    for (row, expected) in [
        (Entity::new("a", "").with("Input", url), vec![("Input", "a/message-1-ExecutionStarted.json.gz")]),
        (Entity::new("a", "").with("Input", "").with("InputBlobName", "a/b"), vec![("Input", "a/b")]),
        (Entity::new("a", "").with("InputBlobName", "a/b"), vec![("Input", "a/b")]),
        (Entity::new("a", "").with("Input", "text").with("InputBlobName", "a/b"), vec![]),
        (Entity::new("a", "").with("Tags", "").with("TagsBlobName", "a/b"), vec![("Tags", "a/b")]),
        (Entity::new("a", "").with("Output", "error:timeout"), vec![]),
        (Entity::new("a", "").with("Output", "http://127.0.0.1:10000/devstoreaccount1/other/a"), vec![]),
        (Entity::new("a", "").with("Name", "").with("NameBlobName", "a/b"), vec![]),
    ] {
        let found = blob_references(&row, CONTAINER);
        let found: Vec<_> = found.iter().map(|(column, name)| (*column, name.as_str())).collect();
        assert_eq!(found, expected);
    }
}

#[test]
fn rows_with_missing_columns_and_unknown_statuses_are_read() {
    let state = read(&Entity::new("@a@b^0c", "")).unwrap();
    assert_eq!(state.instance, OrchestrationInstance::current("@a@b/c"));
    assert_eq!((state.status, state.created_at, state.tags), (None, Timestamp::MIN, None));
    let row = Entity::new("a", "").with("RuntimeStatus", "Frozen").with("Tags", r#"{"a":"1"}"#);
    let state = read(&row).unwrap();
    assert_eq!((state.status, state.tags), (None, Some(Tags::from_iter([("a", "1")]))));

    assert!(matches!(read(&Entity::new("a^", "")), Err(RowError::Key { .. })));
    assert!(read(&Entity::new("a", "").with("Tags", "{")).is_err());
    assert!(read(&Entity::new("a", "").with("CreatedTime", "yesterday")).is_err());
}

#[track_caller]
fn check_filter(query: InstanceQuery, expected: &str) {
    assert_eq!(filter(&query).as_deref().unwrap_or_default(), expected);
}

fn query() -> InstanceQuery {
    InstanceQuery::default()
}

#[test]
fn filters_are_dtfxs() {
    check_filter(query(), "");
    check_filter(
        InstanceQuery {
            created_from: Some(Timestamp::parse("2018-01-10T10:10:10Z").unwrap()),
            created_to: Some(Timestamp::parse("2018-01-10T10:10:50Z").unwrap()),
            statuses: vec![OrchestrationStatus::Running, OrchestrationStatus::Completed],
            task_hubs: vec!["FooProduction".to_owned(), "BarStaging".to_owned()],
            ..query()
        },
        "(CreatedTime ge datetime'2018-01-10T10:10:10.0000000Z') and (CreatedTime le datetime'2018-01-10T10:10:50.0000000Z') and (RuntimeStatus eq 'Running' or RuntimeStatus eq 'Completed') and (TaskHubName eq 'FooProduction' or TaskHubName eq 'BarStaging')",
    );
    check_filter(
        InstanceQuery { created_from: Some(at(1)), ..query() },
        "CreatedTime ge datetime'2026-01-15T09:30:01.0000000Z'",
    );
    check_filter(
        InstanceQuery { created_from: Some(Timestamp::MIN), created_to: Some(Timestamp::MAX), ..query() },
        "",
    );
    check_filter(
        InstanceQuery {
            statuses: vec![OrchestrationStatus::Running, OrchestrationStatus::Failed],
            ..query()
        },
        "RuntimeStatus eq 'Running' or RuntimeStatus eq 'Failed'",
    );
    check_filter(InstanceQuery { task_hubs: vec!["O'Hub".to_owned()], ..query() }, "TaskHubName eq 'O''Hub'");
    check_filter(
        InstanceQuery { exclude_entities: true, ..query() },
        "PartitionKey lt '@' or PartitionKey ge 'A'",
    );
    assert_eq!(filter_by_id(&InstanceId::new("in#st'ance")), "PartitionKey eq 'in^2st''ance'");
}

#[test]
fn prefixes_are_escaped_and_end_before_the_next_text() {
    let prefix = |prefix: &str| InstanceQuery {
        instance_id_prefix: Some(prefix.to_owned()),
        exclude_entities: true,
        ..query()
    };
    check_filter(prefix("aaab"), "(PartitionKey ge 'aaab') and (PartitionKey lt 'aaac')");
    check_filter(prefix("a/"), "(PartitionKey ge 'a^0') and (PartitionKey lt 'a^1')");
    check_filter(prefix("a&"), "(PartitionKey ge 'a&') and (PartitionKey lt 'a''')");
    check_filter(prefix("😀"), "(PartitionKey ge '😀') and (PartitionKey lt '😁')");
    check_filter(prefix("\u{10ffff}"), "PartitionKey ge '\u{10ffff}'");
    check_filter(prefix("\u{ffff}"), "PartitionKey ge '\u{ffff}'");
    check_filter(prefix(""), "PartitionKey lt '@' or PartitionKey ge 'A'");
}

#[test]
fn inputs_and_outputs_are_selected_when_wanted() {
    assert!(select(InstanceFetch::ALL).is_empty());
    let has =
        |input, output, column: &str| select(InstanceFetch { input, output }).iter().any(|c| c == column);
    assert!(has(false, false, "PartitionKey") && has(false, false, "TaskHubName"));
    assert!(!has(false, false, "Input") && !has(false, false, "Output"));
    assert!(has(true, false, "Input") && has(true, false, "InputBlobName") && !has(true, false, "Output"));
    assert!(has(false, true, "Output") && !has(false, true, "Input"));
}
