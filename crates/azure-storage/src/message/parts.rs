//! The objects inside events and messages. Their members are the same in queue messages and in the JSON
//! columns of the History table; only `$type` differs.

use std::borrow::Cow;

use taskhub_core::{
    ExecutionId, FailureDetails, InstanceId, OrchestrationInstance, ParentInstance, Tags, Timestamp,
    TraceContext,
};

use super::DecodeError;
use super::json::{Json, Writer, is_metadata};

/// Longest trace state that is kept, in UTF-16 units.
/// Source: Azure/durabletask, `DistributedTraceContext.TraceState`.
const MAX_TRACE_STATE_UNITS: usize = 513;

/// An object-valued member to be written.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Part<'a> {
    Instance(&'a OrchestrationInstance),
    Parent(&'a ParentInstance),
    Trace(&'a TraceContext),
    Failure(&'a FailureDetails),
    Tags(&'a Tags),
    /// JSON text of an object; anything else is written as null.
    Object(&'a str),
}

impl Part<'_> {
    pub(crate) fn write(self, w: &mut Writer) {
        match self {
            Self::Instance(instance) => w.typed("DurableTask.Core.OrchestrationInstance", |w| {
                instance_members(w, instance);
            }),
            Self::Parent(parent) => w.typed("DurableTask.Core.ParentInstance", |w| {
                member(w, "Name", parent.name.as_deref());
                w.name("OrchestrationInstance");
                Part::Instance(&parent.instance).write(w);
                w.name("TaskScheduleId");
                w.int(parent.task_schedule_id.into());
                member(w, "Version", parent.version.as_deref());
            }),
            Self::Trace(trace) => w.typed("DurableTask.Core.Tracing.DistributedTraceContext", |w| {
                let state = trace.trace_state.as_deref();
                member(w, "TraceParent", trace.trace_parent.as_deref());
                member(w, "TraceState", state.filter(|s| s.encode_utf16().count() <= MAX_TRACE_STATE_UNITS));
                member(w, "Id", trace.id.as_deref());
                member(w, "SpanId", trace.span_id.as_deref());
                member(w, "ActivityStartTime", trace.activity_start_time.map(offset_date).as_deref());
            }),
            Self::Failure(failure) => w.typed("DurableTask.Core.FailureDetails", |w| {
                member(w, "ErrorType", Some(&failure.error_type));
                member(w, "ErrorMessage", Some(&failure.error_message));
                member(w, "StackTrace", failure.stack_trace.as_deref());
                w.name("InnerFailure");
                optional(w, failure.inner_failure.as_deref().map(Part::Failure));
                w.name("IsNonRetriable");
                w.bool(failure.is_non_retriable);
                w.name("Properties");
                optional(w, failure.properties.as_deref().map(Part::Object));
            }),
            // Differs: .NET begins dictionaries with a `$type` that names its core library. The declared
            // type is enough for its reader, and the name can make one on .NET Framework throw. A tag that
            // is called `$type` would be taken for one.
            Self::Tags(tags) => w.object(|w| {
                for (key, value) in tags.iter().filter(|(key, _)| !is_metadata(key)) {
                    member(w, key, Some(value));
                }
            }),
            Self::Object(text) => match Json::parse(text) {
                Ok(object @ Json::Object(_)) => w.json(&object.without_types()),
                _ => w.null(),
            },
        }
    }

    /// The text of a column; what .NET writes without type names.
    pub(crate) fn column(self) -> String {
        let mut writer = Writer::new(super::json::Form::Column);
        self.write(&mut writer);
        writer.finish()
    }
}

/// Writes a string member, null when there is none.
pub(crate) fn member(w: &mut Writer, name: &str, value: Option<&str>) {
    w.name(name);
    w.text(value);
}

/// Writes an object, null when there is none.
pub(crate) fn optional(w: &mut Writer, part: Option<Part<'_>>) {
    match part {
        Some(part) => part.write(w),
        None => w.null(),
    }
}

/// Members of an `OrchestrationInstance`, which as the sender of a message has no `$type`.
pub(crate) fn instance_members(w: &mut Writer, instance: &OrchestrationInstance) {
    member(w, "InstanceId", Some(instance.instance_id.as_str()));
    member(w, "ExecutionId", instance.execution_id.as_ref().map(ExecutionId::as_str));
}

/// .NET's `DateTimeOffset`: a zero offset instead of `Z`.
fn offset_date(at: Timestamp) -> String {
    format!("{}+00:00", at.to_iso().trim_end_matches('Z'))
}

/// Reads an `OrchestrationInstance`; a missing instance id counts as empty.
pub(crate) fn read_instance(json: &Json<'_>) -> Result<OrchestrationInstance, DecodeError> {
    let json = object(json, "OrchestrationInstance")?;
    Ok(OrchestrationInstance {
        instance_id: InstanceId::new(text(json, "InstanceId")?.unwrap_or_default()),
        execution_id: text(json, "ExecutionId")?.map(ExecutionId::new),
    })
}

pub(crate) fn read_parent(json: &Json<'_>) -> Result<ParentInstance, DecodeError> {
    let json = object(json, "ParentInstance")?;
    Ok(ParentInstance {
        name: text(json, "Name")?,
        instance: part(json, "OrchestrationInstance", read_instance)?.unwrap_or_default(),
        task_schedule_id: int(json, "TaskScheduleId")?.unwrap_or_default(),
        version: text(json, "Version")?,
    })
}

pub(crate) fn read_trace(json: &Json<'_>) -> Result<TraceContext, DecodeError> {
    let json = object(json, "ParentTraceContext")?;
    Ok(TraceContext {
        trace_parent: text(json, "TraceParent")?,
        trace_state: text(json, "TraceState")?,
        id: text(json, "Id")?,
        span_id: text(json, "SpanId")?,
        activity_start_time: date(json, "ActivityStartTime")?,
    })
}

pub(crate) fn read_failure(json: &Json<'_>) -> Result<FailureDetails, DecodeError> {
    let json = object(json, "FailureDetails")?;
    Ok(FailureDetails {
        error_type: text(json, "ErrorType")?.unwrap_or_default(),
        error_message: text(json, "ErrorMessage")?.unwrap_or_default(),
        stack_trace: text(json, "StackTrace")?,
        inner_failure: part(json, "InnerFailure", read_failure)?.map(Box::new),
        is_non_retriable: flag(json, "IsNonRetriable")?,
        properties: part(json, "Properties", read_object)?,
    })
}

/// Reads a dictionary: an object, or the key/value array of .NET's data-contract serialiser.
pub(crate) fn read_tags(json: &Json<'_>) -> Result<Tags, DecodeError> {
    let mut tags = Tags::new();
    match json {
        Json::Object(members) => {
            for (key, value) in members.iter().filter(|(key, _)| !is_metadata(key)) {
                tags.insert(&**key, as_text("Tags", value)?.unwrap_or_default());
            }
        }
        Json::Array(pairs) => {
            for pair in pairs {
                let key = text(pair, "Key")?.ok_or(DecodeError::Missing { member: "Key" })?;
                tags.insert(key, text(pair, "Value")?.unwrap_or_default());
            }
        }
        other => return Err(unexpected("Tags", "an object", other)),
    }
    Ok(tags)
}

/// Reads an object as its JSON text, without type names.
pub(crate) fn read_object(json: &Json<'_>) -> Result<String, DecodeError> {
    let mut writer = Writer::new(super::json::Form::Column);
    writer.json(&object(json, "Properties")?.clone().without_types());
    Ok(writer.finish())
}

fn unexpected(member: &'static str, expected: &'static str, found: &Json<'_>) -> DecodeError {
    DecodeError::Member { member, expected, found: found.kind() }
}

fn object<'j, 'a>(json: &'j Json<'a>, member: &'static str) -> Result<&'j Json<'a>, DecodeError> {
    if let Json::Object(_) = json { Ok(json) } else { Err(unexpected(member, "an object", json)) }
}

/// A member read by `read`; `None` when it is missing or null.
pub(crate) fn part<T>(
    json: &Json<'_>,
    name: &'static str,
    read: impl FnOnce(&Json<'_>) -> Result<T, DecodeError>,
) -> Result<Option<T>, DecodeError> {
    match json.member(name) {
        None | Some(Json::Null) => Ok(None),
        Some(value) => read(value).map(Some),
    }
}

/// A string member. Numbers and booleans are taken as their text, as Newtonsoft does.
pub(crate) fn text(json: &Json<'_>, name: &'static str) -> Result<Option<String>, DecodeError> {
    part(json, name, |value| as_text(name, value)).map(Option::flatten)
}

fn as_text(name: &'static str, value: &Json<'_>) -> Result<Option<String>, DecodeError> {
    match value {
        Json::Null => Ok(None),
        Json::String(text) | Json::Number(text) => Ok(Some(text.as_ref().to_owned())),
        Json::Bool(value) => Ok(Some(value.to_string())),
        other => Err(unexpected(name, "a string", other)),
    }
}

/// An integer of 64 bits; the text of one, and a number without fraction, will do.
pub(crate) fn long(json: &Json<'_>, name: &'static str) -> Result<Option<i64>, DecodeError> {
    part(json, name, |value| {
        let text = match value {
            Json::Number(text) | Json::String(text) => Cow::Borrowed(text.trim()),
            other => return Err(unexpected(name, "an integer", other)),
        };
        let whole = |number: f64| (number.fract() == 0.0 && number.abs() < 1e15).then_some(number as i64);
        let number = text.parse().ok().or_else(|| text.parse().ok().and_then(whole));
        number.ok_or_else(|| unexpected(name, "an integer", value))
    })
}

/// An integer of 32 bits.
pub(crate) fn int(json: &Json<'_>, name: &'static str) -> Result<Option<i32>, DecodeError> {
    let Some(number) = long(json, name)? else { return Ok(None) };
    match i32::try_from(number) {
        Ok(number) => Ok(Some(number)),
        Err(_) => Err(DecodeError::Member { member: name, expected: "32 bits", found: "a larger number" }),
    }
}

/// A boolean, false when missing or null.
pub(crate) fn flag(json: &Json<'_>, name: &'static str) -> Result<bool, DecodeError> {
    part(json, name, |value| match value {
        Json::Bool(flag) => Ok(*flag),
        Json::String(text) if text.eq_ignore_ascii_case("true") => Ok(true),
        Json::String(text) if text.eq_ignore_ascii_case("false") => Ok(false),
        other => Err(unexpected(name, "a boolean", other)),
    })
    .map(Option::unwrap_or_default)
}

/// A date in ISO 8601, or `/Date(milliseconds)/` as data contracts have it.
pub(crate) fn date(json: &Json<'_>, name: &'static str) -> Result<Option<Timestamp>, DecodeError> {
    let Some(text) = text(json, name)?.filter(|text| !text.is_empty()) else { return Ok(None) };
    match Timestamp::parse(&text).ok().or_else(|| contract_date(&text)) {
        Some(at) => Ok(Some(at)),
        None => Err(DecodeError::Member { member: name, expected: "a date", found: "another text" }),
    }
}

fn contract_date(text: &str) -> Option<Timestamp> {
    const TICKS_PER_MILLISECOND: i64 = 10_000;
    let inner = text.strip_prefix("/Date(")?.strip_suffix(")/")?;
    // An offset may follow; the milliseconds are UTC all the same.
    let end =
        inner.char_indices().skip(1).find(|(_, c)| matches!(c, '+' | '-')).map_or(inner.len(), |(at, _)| at);
    let millis: i64 = inner[..end].parse().ok()?;
    let epoch = Timestamp::from_unix(std::time::Duration::ZERO).ticks();
    Some(Timestamp::from_ticks(epoch.checked_add(millis.checked_mul(TICKS_PER_MILLISECOND)?)?))
}
