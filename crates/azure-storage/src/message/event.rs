//! The members of history events, in the order in which .NET writes them: public fields, then
//! `EventType`, then properties, then those of the base class. Written and read once for both forms,
//! queue messages and History rows.

use taskhub_core::{
    EventKind, ExecutionCompleted, ExecutionStarted, HistoryEvent, InstanceId, OrchestrationStatus, Timestamp,
};

use super::DecodeError;
use super::json::{Json, Writer};
use super::parts::{self, Part};

/// Event types by DTFx's number and name. `ExecutionFailed` (2) has no class and never occurs.
/// Source: Azure/durabletask, `EventType`.
const EVENT_TYPES: [(i32, &str); 21] = [
    (0, "ExecutionStarted"),
    (1, "ExecutionCompleted"),
    (3, "ExecutionTerminated"),
    (4, "TaskScheduled"),
    (5, "TaskCompleted"),
    (6, "TaskFailed"),
    (7, "SubOrchestrationInstanceCreated"),
    (8, "SubOrchestrationInstanceCompleted"),
    (9, "SubOrchestrationInstanceFailed"),
    (10, "TimerCreated"),
    (11, "TimerFired"),
    (12, "OrchestratorStarted"),
    (13, "OrchestratorCompleted"),
    (14, "EventSent"),
    (15, "EventRaised"),
    (16, "ContinueAsNew"),
    (17, "GenericEvent"),
    (18, "HistoryState"),
    (19, "ExecutionSuspended"),
    (20, "ExecutionResumed"),
    (21, "ExecutionRewound"),
];

/// Where the members of an event are written to.
pub(crate) trait MemberSink {
    fn event_type(&mut self, kind: &EventKind);
    fn text(&mut self, name: &'static str, value: Option<&str>);
    fn int(&mut self, name: &'static str, value: Option<i32>);
    fn flag(&mut self, name: &'static str, value: bool);
    fn date(&mut self, name: &'static str, value: Option<Timestamp>);
    fn status(&mut self, name: &'static str, value: OrchestrationStatus);
    fn part(&mut self, name: &'static str, value: Option<Part<'_>>);
    /// The members that all events have, which come last.
    fn base(&mut self, event: &HistoryEvent);
}

/// Where the members of an event are read from. Missing members are `None`, false for flags.
pub(crate) trait MemberSource {
    fn text(&self, name: &'static str) -> Result<Option<String>, DecodeError>;
    fn int(&self, name: &'static str) -> Result<Option<i32>, DecodeError>;
    fn flag(&self, name: &'static str) -> Result<bool, DecodeError>;
    fn date(&self, name: &'static str) -> Result<Option<Timestamp>, DecodeError>;
    fn status(&self, name: &'static str) -> Result<Option<OrchestrationStatus>, DecodeError>;
    fn part<T>(
        &self,
        name: &'static str,
        read: impl FnOnce(&Json<'_>) -> Result<T, DecodeError>,
    ) -> Result<Option<T>, DecodeError>;
    /// When the event was made.
    fn timestamp(&self) -> Result<Option<Timestamp>, DecodeError>;
}

/// Writes all members of an event.
pub(crate) fn write_members(event: &HistoryEvent, to: &mut impl MemberSink) {
    let kind = &event.kind;
    match kind {
        EventKind::ExecutionStarted(e) => to.part("OrchestrationInstance", Some(Part::Instance(&e.instance))),
        EventKind::GenericEvent { data } => to.text("Data", data.as_deref()),
        _ => {}
    }
    to.event_type(kind);
    match kind {
        EventKind::ExecutionStarted(e) => {
            to.part("ParentInstance", e.parent.as_ref().map(Part::Parent));
            to.text("Name", Some(&e.name));
            to.text("Version", e.version.as_deref());
            to.text("Input", e.input.as_deref());
            to.part("Tags", e.tags.as_ref().map(Part::Tags));
            to.text("Correlation", e.correlation.as_deref());
            to.part("ParentTraceContext", e.parent_trace_context.as_ref().map(Part::Trace));
            to.date("ScheduledStartTime", e.scheduled_start_time);
            to.int("Generation", e.generation);
            to.flag("GenerateNewTrace", e.generate_new_trace);
        }
        EventKind::ExecutionCompleted(e) | EventKind::ContinueAsNew(e) => {
            to.status("OrchestrationStatus", e.status);
            to.text("Result", e.result.as_deref());
            to.part("FailureDetails", e.failure_details.as_ref().map(Part::Failure));
        }
        EventKind::ExecutionTerminated { input } => to.text("Input", input.as_deref()),
        EventKind::TaskScheduled { name, version, input, parent_trace_context, tags } => {
            to.text("Name", name.as_deref());
            to.text("Version", version.as_deref());
            to.text("Input", input.as_deref());
            to.part("ParentTraceContext", parent_trace_context.as_ref().map(Part::Trace));
            to.part("Tags", tags.as_ref().map(Part::Tags));
        }
        EventKind::TaskCompleted { task_scheduled_id, result }
        | EventKind::SubOrchestrationInstanceCompleted { task_scheduled_id, result } => {
            to.int("TaskScheduledId", Some(*task_scheduled_id));
            to.text("Result", result.as_deref());
        }
        EventKind::TaskFailed { task_scheduled_id, reason, details, failure_details }
        | EventKind::SubOrchestrationInstanceFailed { task_scheduled_id, reason, details, failure_details } =>
        {
            to.int("TaskScheduledId", Some(*task_scheduled_id));
            to.text("Reason", reason.as_deref());
            to.text("Details", details.as_deref());
            to.part("FailureDetails", failure_details.as_ref().map(Part::Failure));
        }
        EventKind::SubOrchestrationInstanceCreated {
            name,
            version,
            instance_id,
            input,
            client_span_id,
            tags,
        } => {
            to.text("Name", name.as_deref());
            to.text("Version", version.as_deref());
            to.text("InstanceId", Some(instance_id.as_str()));
            to.text("Input", input.as_deref());
            to.text("ClientSpanId", client_span_id.as_deref());
            to.part("Tags", tags.as_ref().map(Part::Tags));
        }
        EventKind::TimerCreated { fire_at } => to.date("FireAt", Some(*fire_at)),
        EventKind::TimerFired { timer_id, fire_at } => {
            to.int("TimerId", Some(*timer_id));
            to.date("FireAt", Some(*fire_at));
        }
        EventKind::EventSent { instance_id, name, input } => {
            to.text("InstanceId", Some(instance_id.as_str()));
            to.text("Name", name.as_deref());
            to.text("Input", input.as_deref());
        }
        EventKind::EventRaised { name, input, parent_trace_context } => {
            to.text("Name", name.as_deref());
            to.text("Input", input.as_deref());
            to.part("ParentTraceContext", parent_trace_context.as_ref().map(Part::Trace));
        }
        EventKind::HistoryState { state } => to.part("State", state.as_deref().map(Part::Object)),
        EventKind::ExecutionSuspended { reason } | EventKind::ExecutionResumed { reason } => {
            to.text("Reason", reason.as_deref());
        }
        EventKind::ExecutionRewound { reason, parent_execution_id, instance_id, parent_trace_context } => {
            to.text("Reason", reason.as_deref());
            to.text("ParentExecutionId", parent_execution_id.as_deref());
            to.text("InstanceId", instance_id.as_deref());
            to.part("ParentTraceContext", parent_trace_context.as_ref().map(Part::Trace));
        }
        EventKind::OrchestratorStarted
        | EventKind::OrchestratorCompleted
        | EventKind::GenericEvent { .. } => {}
    }
    to.base(event);
}

/// Reads all members of an event whose type has this name.
pub(crate) fn read_members(event_type: &str, from: &impl MemberSource) -> Result<HistoryEvent, DecodeError> {
    let tags = || from.part("Tags", parts::read_tags);
    let trace = || from.part("ParentTraceContext", parts::read_trace);
    let failure = || from.part("FailureDetails", parts::read_failure);
    let task_scheduled_id = || from.int("TaskScheduledId").map(Option::unwrap_or_default);
    let fire_at = || from.date("FireAt").map(|at| at.unwrap_or(Timestamp::MIN));
    let instance_id = || from.text("InstanceId").map(|id| InstanceId::new(id.unwrap_or_default()));
    let completed = |default| -> Result<ExecutionCompleted, DecodeError> {
        Ok(ExecutionCompleted {
            status: from.status("OrchestrationStatus")?.unwrap_or(default),
            result: from.text("Result")?,
            failure_details: failure()?,
        })
    };

    let kind = match event_type {
        "ExecutionStarted" => EventKind::ExecutionStarted(Box::new(ExecutionStarted {
            instance: from.part("OrchestrationInstance", parts::read_instance)?.unwrap_or_default(),
            parent: from.part("ParentInstance", parts::read_parent)?,
            name: from.text("Name")?.unwrap_or_default(),
            version: from.text("Version")?,
            input: from.text("Input")?,
            tags: tags()?,
            correlation: from.text("Correlation")?,
            parent_trace_context: trace()?,
            scheduled_start_time: from.date("ScheduledStartTime")?,
            generation: from.int("Generation")?,
            generate_new_trace: from.flag("GenerateNewTrace")?,
        })),
        "ExecutionCompleted" => EventKind::ExecutionCompleted(completed(OrchestrationStatus::Running)?),
        "ContinueAsNew" => EventKind::ContinueAsNew(completed(OrchestrationStatus::ContinuedAsNew)?),
        "ExecutionTerminated" => EventKind::ExecutionTerminated { input: from.text("Input")? },
        "TaskScheduled" => EventKind::TaskScheduled {
            name: from.text("Name")?,
            version: from.text("Version")?,
            input: from.text("Input")?,
            parent_trace_context: trace()?,
            tags: tags()?,
        },
        "TaskCompleted" => {
            EventKind::TaskCompleted { task_scheduled_id: task_scheduled_id()?, result: from.text("Result")? }
        }
        "TaskFailed" => EventKind::TaskFailed {
            task_scheduled_id: task_scheduled_id()?,
            reason: from.text("Reason")?,
            details: from.text("Details")?,
            failure_details: failure()?,
        },
        "SubOrchestrationInstanceCreated" => EventKind::SubOrchestrationInstanceCreated {
            name: from.text("Name")?,
            version: from.text("Version")?,
            instance_id: instance_id()?,
            input: from.text("Input")?,
            client_span_id: from.text("ClientSpanId")?,
            tags: tags()?,
        },
        "SubOrchestrationInstanceCompleted" => EventKind::SubOrchestrationInstanceCompleted {
            task_scheduled_id: task_scheduled_id()?,
            result: from.text("Result")?,
        },
        "SubOrchestrationInstanceFailed" => EventKind::SubOrchestrationInstanceFailed {
            task_scheduled_id: task_scheduled_id()?,
            reason: from.text("Reason")?,
            details: from.text("Details")?,
            failure_details: failure()?,
        },
        "TimerCreated" => EventKind::TimerCreated { fire_at: fire_at()? },
        "TimerFired" => {
            EventKind::TimerFired { timer_id: from.int("TimerId")?.unwrap_or_default(), fire_at: fire_at()? }
        }
        "OrchestratorStarted" => EventKind::OrchestratorStarted,
        "OrchestratorCompleted" => EventKind::OrchestratorCompleted,
        "EventSent" => EventKind::EventSent {
            instance_id: instance_id()?,
            name: from.text("Name")?,
            input: from.text("Input")?,
        },
        "EventRaised" => EventKind::EventRaised {
            name: from.text("Name")?,
            input: from.text("Input")?,
            parent_trace_context: trace()?,
        },
        "GenericEvent" => EventKind::GenericEvent { data: from.text("Data")? },
        "HistoryState" => EventKind::HistoryState { state: from.part("State", parts::read_object)? },
        "ExecutionSuspended" => EventKind::ExecutionSuspended { reason: from.text("Reason")? },
        "ExecutionResumed" => EventKind::ExecutionResumed { reason: from.text("Reason")? },
        "ExecutionRewound" => EventKind::ExecutionRewound {
            reason: from.text("Reason")?,
            parent_execution_id: from.text("ParentExecutionId")?,
            instance_id: from.text("InstanceId")?,
            parent_trace_context: trace()?,
        },
        other => return Err(DecodeError::UnknownEventType { event_type: DecodeError::shown(other) }),
    };
    Ok(HistoryEvent {
        event_id: from.int("EventId")?.unwrap_or_default(),
        is_played: from.flag("IsPlayed")?,
        timestamp: from.timestamp()?.unwrap_or(Timestamp::MIN),
        kind,
    })
}

/// Writes an event as it is in messages.
pub(crate) fn write_json(event: &HistoryEvent, w: &mut Writer) {
    let class = match event.kind {
        EventKind::GenericEvent { .. } => "DurableTask.Core.History.GenericEvent".to_owned(),
        _ => format!("DurableTask.Core.History.{}Event", event.name()),
    };
    w.typed(&class, |w| write_members(event, w));
}

impl MemberSink for Writer {
    fn event_type(&mut self, kind: &EventKind) {
        self.name("EventType");
        self.int(kind.number().into());
    }

    fn text(&mut self, name: &'static str, value: Option<&str>) {
        parts::member(self, name, value);
    }

    fn int(&mut self, name: &'static str, value: Option<i32>) {
        self.name(name);
        match value {
            Some(value) => Writer::int(self, value.into()),
            None => self.null(),
        }
    }

    fn flag(&mut self, name: &'static str, value: bool) {
        self.name(name);
        self.bool(value);
    }

    fn date(&mut self, name: &'static str, value: Option<Timestamp>) {
        parts::member(self, name, value.map(Timestamp::to_iso).as_deref());
    }

    fn status(&mut self, name: &'static str, value: OrchestrationStatus) {
        self.name(name);
        Writer::int(self, value.number().into());
    }

    fn part(&mut self, name: &'static str, value: Option<Part<'_>>) {
        self.name(name);
        parts::optional(self, value);
    }

    fn base(&mut self, event: &HistoryEvent) {
        MemberSink::int(self, "EventId", Some(event.event_id));
        self.flag("IsPlayed", event.is_played);
        self.date("Timestamp", Some(event.timestamp));
    }
}

/// Reads an event of a message. Its class comes from `$type`, else from `__type`, else from the number in
/// `EventType`.
///
/// Differs: .NET throws without a `$type`; the number says the same.
pub(crate) fn read_json(json: &Json<'_>) -> Result<HistoryEvent, DecodeError> {
    if !matches!(json, Json::Object(_)) {
        return Err(DecodeError::Member { member: "Event", expected: "an object", found: json.kind() });
    }
    read_members(event_type_of(json)?, json)
}

fn event_type_of(json: &Json<'_>) -> Result<&'static str, DecodeError> {
    if let Some(Json::String(type_name)) = json.member("$type").or_else(|| json.member("__type")) {
        let class = class_of(type_name);
        let named = EVENT_TYPES.iter().find(|(_, name)| {
            class == *name && class.ends_with("Event") || class.strip_suffix("Event") == Some(name)
        });
        return match named {
            Some((_, name)) => Ok(name),
            None => Err(DecodeError::UnknownType { type_name: DecodeError::shown(type_name) }),
        };
    }
    let unknown = |shown: &str| DecodeError::UnknownEventType { event_type: DecodeError::shown(shown) };
    match json.member("EventType") {
        None | Some(Json::Null) => Err(DecodeError::NoEventType),
        Some(Json::String(text) | Json::Number(text)) => {
            let number = text.trim().parse::<i32>().ok();
            let known = EVENT_TYPES.iter().find(|(n, name)| Some(*n) == number || name == text);
            known.map(|(_, name)| *name).ok_or_else(|| unknown(text))
        }
        Some(other) => Err(unknown(other.kind())),
    }
}

/// The class in a type name: `Class`, `Name.Space.Class`, `Name.Space.Class, Assembly, ...` (generic
/// arguments are in brackets), or `Class:#Name.Space` as data contracts have it.
pub(crate) fn class_of(type_name: &str) -> &str {
    let mut depth = 0usize;
    let mut end = type_name.len();
    for (at, c) in type_name.char_indices() {
        match c {
            '[' => depth += 1,
            ']' => depth = depth.saturating_sub(1),
            ',' if depth == 0 => {
                end = at;
                break;
            }
            _ => {}
        }
    }
    let full = type_name[..end].trim();
    let full = full.split_once(":#").map_or(full, |(class, _)| class);
    full.rsplit_once('.').map_or(full, |(_, class)| class)
}

impl MemberSource for Json<'_> {
    fn text(&self, name: &'static str) -> Result<Option<String>, DecodeError> {
        parts::text(self, name)
    }

    fn int(&self, name: &'static str) -> Result<Option<i32>, DecodeError> {
        parts::int(self, name)
    }

    fn flag(&self, name: &'static str) -> Result<bool, DecodeError> {
        parts::flag(self, name)
    }

    fn date(&self, name: &'static str) -> Result<Option<Timestamp>, DecodeError> {
        parts::date(self, name)
    }

    fn status(&self, name: &'static str) -> Result<Option<OrchestrationStatus>, DecodeError> {
        let Some(text) = parts::text(self, name)? else { return Ok(None) };
        status_of(&text, name).map(Some)
    }

    fn part<T>(
        &self,
        name: &'static str,
        read: impl FnOnce(&Json<'_>) -> Result<T, DecodeError>,
    ) -> Result<Option<T>, DecodeError> {
        parts::part(self, name, read)
    }

    fn timestamp(&self) -> Result<Option<Timestamp>, DecodeError> {
        parts::date(self, "Timestamp")
    }
}

/// A status by number or name.
pub(crate) fn status_of(text: &str, member: &'static str) -> Result<OrchestrationStatus, DecodeError> {
    let by_number = text.parse().ok().and_then(OrchestrationStatus::from_number);
    by_number.or_else(|| text.parse().ok()).ok_or(DecodeError::Member {
        member,
        expected: "a runtime status",
        found: "another value",
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_dialect_of_type_names_leads_to_the_class() {
        for name in [
            "TaskFailedEvent",
            "DurableTask.Core.History.TaskFailedEvent",
            "DurableTask.Core.History.TaskFailedEvent, DurableTask.Core",
            "DurableTask.Core.History.TaskFailedEvent, DurableTask.Core, Version=2.17.1.0, Culture=neutral, PublicKeyToken=d53979610a6e89dd",
            "DurableTask.History.TaskFailedEvent, DurableTaskFx",
            "TaskFailedEvent:#DurableTask.Core.History",
        ] {
            assert_eq!(class_of(name), "TaskFailedEvent", "{name}");
        }
        let dictionary = "System.Collections.Generic.Dictionary`2[[System.String, mscorlib],[System.String, mscorlib]], mscorlib";
        assert!(!class_of(dictionary).contains(", mscorlib],["));
        assert_eq!(class_of(""), "");
        assert_eq!(class_of("]],"), "]]");
    }

    #[test]
    fn numbers_and_names_are_those_of_the_vocabulary() {
        for (number, name) in EVENT_TYPES {
            let event =
                read_json(&Json::Object(vec![("EventType".into(), Json::Number(number.to_string().into()))]));
            let event = event.unwrap();
            assert_eq!((event.kind.number(), event.name()), (number, name));
        }
    }
}
