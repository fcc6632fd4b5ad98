use serde::ser::SerializeMap;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use taskhub_core::{Timestamp, TraceContext};

use crate::time;

/// A trace context as entity messages carry it: all members, no `$type`.
pub(crate) struct Trace<'a>(pub(crate) &'a TraceContext);

impl Serialize for Trace<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(5))?;
        map.serialize_entry("TraceParent", &self.0.trace_parent)?;
        map.serialize_entry("TraceState", &self.0.trace_state)?;
        map.serialize_entry("Id", &self.0.id)?;
        map.serialize_entry("SpanId", &self.0.span_id)?;
        map.serialize_entry("ActivityStartTime", &self.0.activity_start_time.map(time::OffsetDate))?;
        map.end()
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Read {
    #[serde(default)]
    trace_parent: Option<String>,
    #[serde(default)]
    trace_state: Option<String>,
    #[serde(default)]
    id: Option<String>,
    #[serde(default)]
    span_id: Option<String>,
    #[serde(default, deserialize_with = "time::date::deserialize")]
    activity_start_time: Option<Timestamp>,
}

pub(crate) fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<Option<TraceContext>, D::Error> {
    Ok(Option::<Read>::deserialize(d)?.map(|read| TraceContext {
        trace_parent: read.trace_parent,
        trace_state: read.trace_state,
        id: read.id,
        span_id: read.span_id,
        activity_start_time: read.activity_start_time,
    }))
}
