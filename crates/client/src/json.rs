//! States and histories as DTFx's own client prints them: PascalCase members in its order, statuses as
//! integers, payloads as JSON text in strings.
//!
//! Source: Azure/durabletask, `OrchestrationState` and `HistoryEvent` under Newtonsoft.Json, as
//! `AzureStorageOrchestrationService.GetOrchestrationHistoryAsync` and the Core Tools' `durable` commands
//! write them. [`functions`] has the forms of the HTTP API.

pub mod functions;

mod compact;

pub use compact::compact;
use serde_json::{Map, Value, json};
use taskhub_core::{
    EventKind, ExecutionCompleted, FailureDetails, HistoryEvent, OrchestrationInstance, OrchestrationState,
    ParentInstance, Tags, Timestamp, TraceContext,
};

/// How the `EventType` of an event is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EventTypes {
    /// As DTFx's number.
    Numbers,
    /// As DTFx's name.
    Names,
}

/// The state of an instance. Dates that are not set are .NET's default date, as DTFx has it.
pub fn state(state: &OrchestrationState) -> Value {
    json!({
        "CompletedTime": state.completed_at.unwrap_or(Timestamp::MIN).to_iso(),
        "CompressedSize": 0,
        "CreatedTime": state.created_at.to_iso(),
        "Input": state.input,
        "LastUpdatedTime": state.last_updated_at.to_iso(),
        "Name": state.name,
        "OrchestrationInstance": instance(&state.instance),
        // A status that this program does not know has no number.
        "OrchestrationStatus": state.status.map(|s| s.number()),
        "Output": state.output,
        "ParentInstance": null,
        "Size": 0,
        "Status": state.custom_status,
        "Tags": tags(state.tags.as_ref()),
        "Version": state.version,
        // A row without the column, as sub-orchestrations and entities have it, is the first use of its id.
        "Generation": state.generation.unwrap_or(0),
        "ScheduledStartTime": date(state.scheduled_start_at),
        "FailureDetails": null,
    })
}

/// A history as an array of events.
pub fn history(events: &[HistoryEvent], types: EventTypes) -> Value {
    events.iter().map(|e| event(e, types)).collect()
}

/// One event. Members come in DTFx's order: fields, `EventType`, own properties, base members.
pub fn event(event: &HistoryEvent, types: EventTypes) -> Value {
    let event_type = match types {
        EventTypes::Numbers => json!(event.kind.number()),
        EventTypes::Names => json!(event.kind.name()),
    };
    let mut out = match &event.kind {
        EventKind::ExecutionStarted(started) => {
            object([("OrchestrationInstance", instance(&started.instance))])
        }
        EventKind::GenericEvent { data } => object([("Data", json!(data))]),
        _ => Map::new(),
    };
    out.insert("EventType".into(), event_type);
    out.extend(properties(&event.kind));
    out.insert("EventId".into(), json!(event.event_id));
    out.insert("IsPlayed".into(), json!(event.is_played));
    out.insert("Timestamp".into(), json!(event.timestamp.to_iso()));
    Value::Object(out)
}

fn properties(kind: &EventKind) -> Map<String, Value> {
    match kind {
        EventKind::ExecutionStarted(e) => object([
            ("ParentInstance", e.parent.as_ref().map_or(Value::Null, parent)),
            ("Name", json!(e.name)),
            ("Version", json!(e.version)),
            ("Input", json!(e.input)),
            ("Tags", tags(e.tags.as_ref())),
            ("Correlation", json!(e.correlation)),
            ("ParentTraceContext", trace(e.parent_trace_context.as_ref())),
            ("ScheduledStartTime", date(e.scheduled_start_time)),
            ("Generation", json!(e.generation)),
            ("GenerateNewTrace", json!(e.generate_new_trace)),
        ]),
        EventKind::ExecutionCompleted(e) | EventKind::ContinueAsNew(e) => completion(e),
        EventKind::ExecutionTerminated { input } => object([("Input", json!(input))]),
        EventKind::TaskScheduled { name, version, input, parent_trace_context, tags: own } => object([
            ("Name", json!(name)),
            ("Version", json!(version)),
            ("Input", json!(input)),
            ("ParentTraceContext", trace(parent_trace_context.as_ref())),
            ("Tags", tags(own.as_ref())),
        ]),
        EventKind::TaskCompleted { task_scheduled_id, result }
        | EventKind::SubOrchestrationInstanceCompleted { task_scheduled_id, result } => {
            object([("TaskScheduledId", json!(task_scheduled_id)), ("Result", json!(result))])
        }
        EventKind::TaskFailed { task_scheduled_id, reason, details, failure_details }
        | EventKind::SubOrchestrationInstanceFailed { task_scheduled_id, reason, details, failure_details } => {
            object([
                ("TaskScheduledId", json!(task_scheduled_id)),
                ("Reason", json!(reason)),
                ("Details", json!(details)),
                ("FailureDetails", failure(failure_details.as_ref())),
            ])
        }
        EventKind::SubOrchestrationInstanceCreated {
            name,
            version,
            instance_id,
            input,
            client_span_id,
            tags: own,
        } => object([
            ("Name", json!(name)),
            ("Version", json!(version)),
            ("InstanceId", json!(instance_id.as_str())),
            ("Input", json!(input)),
            ("ClientSpanId", json!(client_span_id)),
            ("Tags", tags(own.as_ref())),
        ]),
        EventKind::TimerCreated { fire_at } => object([("FireAt", date(Some(*fire_at)))]),
        EventKind::TimerFired { timer_id, fire_at } => {
            object([("TimerId", json!(timer_id)), ("FireAt", date(Some(*fire_at)))])
        }
        EventKind::OrchestratorStarted
        | EventKind::OrchestratorCompleted
        | EventKind::GenericEvent { .. } => Map::new(),
        EventKind::EventSent { instance_id, name, input } => object([
            ("InstanceId", json!(instance_id.as_str())),
            ("Name", json!(name)),
            ("Input", json!(input)),
        ]),
        EventKind::EventRaised { name, input, parent_trace_context } => object([
            ("Name", json!(name)),
            ("Input", json!(input)),
            ("ParentTraceContext", trace(parent_trace_context.as_ref())),
        ]),
        EventKind::HistoryState { state } => object([("State", embedded(state.as_deref()))]),
        EventKind::ExecutionSuspended { reason } | EventKind::ExecutionResumed { reason } => {
            object([("Reason", json!(reason))])
        }
        EventKind::ExecutionRewound { reason, parent_execution_id, instance_id, parent_trace_context } => {
            object([
                ("Reason", json!(reason)),
                ("ParentExecutionId", json!(parent_execution_id)),
                ("InstanceId", json!(instance_id)),
                ("ParentTraceContext", trace(parent_trace_context.as_ref())),
            ])
        }
    }
}

fn object<const N: usize>(members: [(&str, Value); N]) -> Map<String, Value> {
    members.into_iter().map(|(k, v)| (k.to_owned(), v)).collect()
}

fn instance(instance: &OrchestrationInstance) -> Value {
    json!({
        "InstanceId": instance.instance_id.as_str(),
        "ExecutionId": instance.execution_id.as_ref().map(|e| e.as_str()),
    })
}

fn parent(parent: &ParentInstance) -> Value {
    json!({
        "Name": parent.name,
        "OrchestrationInstance": instance(&parent.instance),
        "TaskScheduleId": parent.task_schedule_id,
        "Version": parent.version,
    })
}

fn completion(completed: &ExecutionCompleted) -> Map<String, Value> {
    object([
        ("OrchestrationStatus", json!(completed.status.number())),
        ("Result", json!(completed.result)),
        ("FailureDetails", failure(completed.failure_details.as_ref())),
    ])
}

/// Chains of causes from storage may be long; more than this is cut, so that writing them stays cheap.
const MAX_CAUSES: usize = 64;

fn failure(failure: Option<&FailureDetails>) -> Value {
    let chain: Vec<&FailureDetails> =
        std::iter::successors(failure, |f| f.inner_failure.as_deref()).take(MAX_CAUSES).collect();
    chain.into_iter().rfold(Value::Null, |inner, f| {
        json!({
            "ErrorType": f.error_type,
            "ErrorMessage": f.error_message,
            "StackTrace": f.stack_trace,
            "InnerFailure": inner,
            "IsNonRetriable": f.is_non_retriable,
            "Properties": embedded(f.properties.as_deref()),
        })
    })
}

/// JSON text as JSON; text that is not JSON as a string.
fn embedded(text: Option<&str>) -> Value {
    text.map_or(Value::Null, |t| serde_json::from_str(t).unwrap_or_else(|_| t.into()))
}

fn tags(tags: Option<&Tags>) -> Value {
    tags.map_or(Value::Null, |t| {
        t.iter().map(|(k, v)| (k.to_owned(), json!(v))).collect::<Map<_, _>>().into()
    })
}

fn trace(context: Option<&TraceContext>) -> Value {
    context.map_or(Value::Null, |c| {
        json!({
            "TraceParent": c.trace_parent,
            "TraceState": c.trace_state,
            "Id": c.id,
            "SpanId": c.span_id,
            "ActivityStartTime": date(c.activity_start_time),
        })
    })
}

fn date(at: Option<Timestamp>) -> Value {
    at.map_or(Value::Null, |t| t.to_iso().into())
}

#[cfg(test)]
mod tests;
