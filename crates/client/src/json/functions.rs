//! States and histories as Durable Functions' HTTP API shows them: camelCase members, payloads as JSON,
//! histories with each result merged into its request.
//!
//! Source: Azure/azure-functions-durable-extension, `DurableClient.ConvertOrchestrationStateToStatus`,
//! `HttpApiHandler.GetStatusResponsePayload`.

use std::collections::HashMap;

use serde_json::{Map, Value, json};
use taskhub_core::{EventKind, HistoryEvent, OrchestrationState, Timestamp};

use super::EventTypes;

/// Which payloads are shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Show {
    /// Inputs: of the instance, and of each event that stores one.
    pub input: bool,
    /// Results in the history (`showHistoryOutput`); the instance's output is always shown.
    pub history_output: bool,
}

impl Default for Show {
    /// Inputs, no results in the history.
    fn default() -> Self {
        Self { input: true, history_output: false }
    }
}

/// The status of an instance; `history` adds `historyEvents`.
///
/// Differs: the reference reads the first JSON value of a payload and ignores what follows; here a payload
/// is JSON as a whole, or shown as text.
pub fn status(state: &OrchestrationState, show: Show, history: Option<&[HistoryEvent]>) -> Value {
    let input = if show.input { payload(state.input.as_deref()) } else { Value::Null };
    let mut status = json!({
        "name": state.name,
        "instanceId": state.instance.instance_id.as_str(),
        "runtimeStatus": state.status.map_or("Unknown", |s| s.name()),
        "input": input,
        "customStatus": payload(state.custom_status.as_deref()),
        "output": payload(state.output.as_deref()),
        "createdTime": to_second(state.created_at),
        "lastUpdatedTime": to_second(state.last_updated_at),
    });
    if let (Some(events), Some(members)) = (history, status.as_object_mut()) {
        members.insert("historyEvents".into(), history_events(events, show));
    }
    status
}

/// A payload as JSON; what is not JSON as a string.
pub fn payload(text: Option<&str>) -> Value {
    match text.map(str::trim) {
        None => Value::Null,
        Some("") => "".into(),
        Some(trimmed) => serde_json::from_str(trimmed).unwrap_or_else(|_| text.unwrap_or_default().into()),
    }
}

/// The history of an execution: marks of episodes left out, results merged into their requests.
///
/// Of two requests with one id, as a rewind leaves them, the last one counts.
///
/// Differs: the reference fails on two such requests.
pub fn history_events(events: &[HistoryEvent], show: Show) -> Value {
    let mut requests: HashMap<i32, &HistoryEvent> = HashMap::new();
    let mut shown: Vec<Option<Value>> = Vec::with_capacity(events.len());
    let mut request_at: HashMap<i32, usize> = HashMap::new();
    for event in events {
        let next = shown.len();
        match &event.kind {
            EventKind::OrchestratorStarted | EventKind::OrchestratorCompleted => continue,
            EventKind::TaskScheduled { .. } | EventKind::SubOrchestrationInstanceCreated { .. } => {
                requests.insert(event.event_id, event);
                request_at.insert(event.event_id, next);
            }
            _ => {}
        }
        let mut members = plain(event, show);
        if let Some(id) = answered(&event.kind)
            && let Some(request) = requests.get(&id)
        {
            merge(&mut members, request, show);
            if let Some(merged) = request_at.get(&id).and_then(|at| shown.get_mut(*at)) {
                *merged = None;
            }
        }
        shown.push(Some(Value::Object(members)));
    }
    shown.into_iter().flatten().collect()
}

/// The request that an event answers.
fn answered(kind: &EventKind) -> Option<i32> {
    match kind {
        EventKind::TaskCompleted { task_scheduled_id, .. }
        | EventKind::TaskFailed { task_scheduled_id, .. }
        | EventKind::SubOrchestrationInstanceCompleted { task_scheduled_id, .. }
        | EventKind::SubOrchestrationInstanceFailed { task_scheduled_id, .. } => Some(*task_scheduled_id),
        _ => None,
    }
}

/// An event by itself, without the members that the extension removes.
fn plain(event: &HistoryEvent, show: Show) -> Map<String, Value> {
    let Value::Object(mut members) = super::event(event, EventTypes::Names) else { return Map::new() };
    let mut remove: Vec<&str> = vec!["EventId", "IsPlayed"];
    if !show.input {
        remove.push("Input");
    }
    match &event.kind {
        EventKind::ExecutionStarted(started) => {
            remove.extend(["OrchestrationInstance", "ParentInstance", "Version", "Tags", "Name"]);
            members.insert("FunctionName".into(), json!(started.name));
        }
        EventKind::TaskScheduled { .. } | EventKind::SubOrchestrationInstanceCreated { .. } => {
            remove.push("Version");
        }
        EventKind::ExecutionCompleted(completed) => {
            members.insert("OrchestrationStatus".into(), completed.status.name().into());
            result(&mut members, completed.result.as_deref(), show);
        }
        EventKind::TaskCompleted { result: text, .. }
        | EventKind::SubOrchestrationInstanceCompleted { result: text, .. } => {
            remove.push("TaskScheduledId");
            result(&mut members, text.as_deref(), show);
        }
        EventKind::TaskFailed { .. } | EventKind::SubOrchestrationInstanceFailed { .. } => {
            remove.push("TaskScheduledId");
        }
        EventKind::TimerFired { .. } => remove.push("TimerId"),
        _ => {}
    }
    members.retain(|name, _| !remove.contains(&name.as_str()));
    members
}

fn result(members: &mut Map<String, Value>, text: Option<&str>, show: Show) {
    match show.history_output {
        true => members.insert("Result".into(), payload(text)),
        false => members.remove("Result"),
    };
}

/// What a result takes over from its request.
fn merge(members: &mut Map<String, Value>, request: &HistoryEvent, show: Show) {
    let (EventKind::TaskScheduled { name, input, .. }
    | EventKind::SubOrchestrationInstanceCreated { name, input, .. }) = &request.kind
    else {
        return;
    };
    members.insert("ScheduledTime".into(), request.timestamp.to_iso().into());
    members.insert("FunctionName".into(), json!(name));
    if show.input {
        members.insert("Input".into(), json!(input));
    }
}

/// `yyyy-MM-ddTHH:mm:ssZ`, cut off.
fn to_second(at: Timestamp) -> String {
    let text = at.to_round_trip();
    format!("{}Z", text.get(..19).unwrap_or(&text))
}

#[cfg(test)]
mod tests {
    use taskhub_core::{ExecutionCompleted, ExecutionStarted, OrchestrationInstance, OrchestrationStatus};

    use super::*;
    use crate::fake;

    fn at(text: &str) -> Timestamp {
        Timestamp::parse(text).unwrap()
    }

    const ALL: Show = Show { input: true, history_output: true };

    #[test]
    fn a_status_has_the_members_of_the_http_api_in_their_order() {
        let mut state = fake::state("order-17", OrchestrationStatus::Completed);
        state.input = Some(r#"{"city":"Lyon"}"#.into());
        state.output = Some("boom".into());
        assert_eq!(
            status(&state, Show::default(), None).to_string(),
            r#"{"name":"Greet","instanceId":"order-17","runtimeStatus":"Completed","input":{"city":"Lyon"},"customStatus":null,"output":"boom","createdTime":"2026-01-15T09:30:00Z","lastUpdatedTime":"2026-01-15T09:30:00Z"}"#
        );
        let hidden = status(&state, Show { input: false, history_output: false }, Some(&[]));
        assert_eq!((&hidden["input"], &hidden["historyEvents"]), (&Value::Null, &json!([])));
        state.status = None;
        assert_eq!(status(&state, ALL, None)["runtimeStatus"], "Unknown");
    }

    #[test]
    fn payloads_are_json_or_text() {
        for (text, expected) in [
            (None, Value::Null),
            (Some("null"), Value::Null),
            (Some("  "), json!("")),
            (Some(" [1, 2]\n"), json!([1, 2])),
            (Some("boom"), json!("boom")),
            (Some("{} trailing"), json!("{} trailing")),
            (Some("\"2026-01-15T09:30:00Z\""), json!("2026-01-15T09:30:00Z")),
        ] {
            assert_eq!(payload(text), expected, "{text:?}");
        }
    }

    fn scheduled(id: i32, second: &str) -> HistoryEvent {
        let kind = EventKind::TaskScheduled {
            name: Some("SayHello".into()),
            version: Some(String::new()),
            input: None,
            parent_trace_context: None,
            tags: None,
        };
        HistoryEvent::decision(id, at(&format!("2024-03-10T13:57:{second}Z")), kind)
    }

    fn completed(id: i32) -> HistoryEvent {
        let kind = EventKind::TaskCompleted { task_scheduled_id: id, result: Some("\"Hello\"".into()) };
        HistoryEvent::message(at("2024-03-10T13:57:31.9Z"), kind)
    }

    #[test]
    fn a_history_is_shown_as_the_extension_shows_it() {
        let started = ExecutionStarted {
            version: Some(String::new()),
            input: Some(r#"{"city":"Lyon"}"#.into()),
            ..ExecutionStarted::new(OrchestrationInstance::new("order-17", "e1"), "HelloWorld")
        };
        let ended = ExecutionCompleted {
            status: OrchestrationStatus::Completed,
            result: Some("\"Hello\"".into()),
            failure_details: None,
        };
        let fire_at = at("2024-03-10T13:57:32Z");
        let events = [
            HistoryEvent::message(at("2024-03-10T13:57:31Z"), EventKind::OrchestratorStarted),
            HistoryEvent::message(
                at("2024-03-10T13:57:31.1234567Z"),
                EventKind::ExecutionStarted(Box::new(started)),
            ),
            scheduled(0, "31.5"),
            completed(0),
            HistoryEvent::message(
                at("2024-03-10T13:57:32.1Z"),
                EventKind::TimerFired { timer_id: 1, fire_at },
            ),
            HistoryEvent::decision(2, at("2024-03-10T13:57:32.4Z"), EventKind::ExecutionCompleted(ended)),
        ];
        let shown = history_events(&events, ALL);
        let expected = json!([
            {"EventType": "ExecutionStarted", "Timestamp": "2024-03-10T13:57:31.1234567Z",
             "FunctionName": "HelloWorld", "Input": "{\"city\":\"Lyon\"}", "Correlation": null,
             "ScheduledStartTime": null, "ParentTraceContext": null, "Generation": null,
             "GenerateNewTrace": false},
            {"EventType": "TaskCompleted", "Timestamp": "2024-03-10T13:57:31.9Z",
             "ScheduledTime": "2024-03-10T13:57:31.5Z", "FunctionName": "SayHello", "Input": null,
             "Result": "Hello"},
            {"EventType": "TimerFired", "Timestamp": "2024-03-10T13:57:32.1Z", "FireAt": "2024-03-10T13:57:32Z"},
            {"EventType": "ExecutionCompleted", "Timestamp": "2024-03-10T13:57:32.4Z",
             "OrchestrationStatus": "Completed", "Result": "Hello", "FailureDetails": null},
        ]);
        assert_eq!(shown, expected);
        let bare = history_events(&events, Show { input: false, history_output: false });
        assert!(bare[1].get("Result").is_none() && bare[1].get("Input").is_none(), "{bare}");
        assert!(bare[0].get("Input").is_none() && bare[3].get("Result").is_none(), "{bare}");
    }

    #[test]
    fn of_two_requests_with_one_id_the_last_one_counts() {
        let shown = history_events(&[scheduled(0, "31.5"), scheduled(0, "40.5"), completed(0)], ALL);
        assert_eq!(shown.as_array().map(Vec::len), Some(2), "the first one still stands: {shown}");
        assert_eq!(shown[1]["ScheduledTime"], "2024-03-10T13:57:40.5Z");
    }

    #[test]
    fn a_request_without_an_answer_stays() {
        let shown = history_events(&[scheduled(4, "31.5")], ALL);
        assert_eq!(shown[0]["Name"], "SayHello");
        assert!(shown[0].get("Version").is_none() && shown[0].get("EventId").is_none());
    }
}
