//! Arbitrary events for property tests.

use proptest::collection::vec;
use proptest::option::of;
use proptest::prelude::*;
use taskhub_core::{
    EventKind, ExecutionCompleted, ExecutionStarted, FailureDetails, HistoryEvent, InstanceId,
    OrchestrationInstance, OrchestrationStatus, ParentInstance, Tags, Timestamp, TraceContext,
};

fn text() -> BoxedStrategy<String> {
    prop_oneof![".{0,12}", "[\\x00-\\x1f\"\\\\\u{85}\u{2028}\u{fffe}\u{ffff}]{1,6}", Just("null".to_owned())]
        .boxed()
}

/// 1601-01-01.
const FIRST_TICKS: i64 = 504_911_232_000_000_000;

/// Dates that a table can hold: from 1601 on. Earlier ones do not come back from a row.
fn time() -> BoxedStrategy<Timestamp> {
    prop_oneof![
        (FIRST_TICKS..=Timestamp::MAX.ticks()).prop_map(Timestamp::from_ticks),
        Just(Timestamp::from_ticks(FIRST_TICKS)),
        Just(Timestamp::MAX),
    ]
    .boxed()
}

fn tags() -> BoxedStrategy<Tags> {
    vec((text(), text()), 0..4).prop_map(Tags::from_iter).boxed()
}

fn instance() -> BoxedStrategy<OrchestrationInstance> {
    (text(), of(text()))
        .prop_map(|(id, execution)| OrchestrationInstance {
            instance_id: InstanceId::new(id),
            execution_id: execution.map(Into::into),
        })
        .boxed()
}

fn trace() -> BoxedStrategy<TraceContext> {
    (of(text()), of(text()), of(text()), of(text()), of(time()))
        .prop_map(|(trace_parent, trace_state, id, span_id, activity_start_time)| TraceContext {
            trace_parent,
            trace_state,
            id,
            span_id,
            activity_start_time,
        })
        .boxed()
}

fn failure() -> BoxedStrategy<FailureDetails> {
    let properties = prop_oneof![Just("{}"), Just(r#"{"a":1,"b":[{"c":null}],"d":-0.50,"é":"\u0085"}"#)];
    let leaf = (text(), text(), of(text()), any::<bool>(), of(properties.prop_map(str::to_owned)));
    let leaf = leaf.prop_map(|(error_type, error_message, stack_trace, is_non_retriable, properties)| {
        FailureDetails {
            error_type,
            error_message,
            stack_trace,
            inner_failure: None,
            is_non_retriable,
            properties,
        }
    });
    leaf.prop_recursive(4, 4, 1, |inner| {
        inner.prop_map(|inner| FailureDetails {
            inner_failure: Some(Box::new(inner)),
            ..FailureDetails::new("outer", "")
        })
    })
    .boxed()
}

fn completed() -> BoxedStrategy<ExecutionCompleted> {
    (0usize..8, of(text()), of(failure()))
        .prop_map(|(status, result, failure_details)| ExecutionCompleted {
            status: OrchestrationStatus::ALL[status],
            result,
            failure_details,
        })
        .boxed()
}

fn started() -> BoxedStrategy<ExecutionStarted> {
    let parent = (of(text()), instance(), any::<i32>(), of(text())).prop_map(
        |(name, instance, task_schedule_id, version)| ParentInstance {
            name,
            instance,
            task_schedule_id,
            version,
        },
    );
    let first = (instance(), of(parent), text(), of(text()), of(text()), of(tags()));
    let second = (of(text()), of(trace()), of(time()), of(any::<i32>()), any::<bool>());
    (first, second)
        .prop_map(|(first, second)| {
            let (instance, parent, name, version, input, tags) = first;
            let (correlation, parent_trace_context, scheduled_start_time, generation, generate_new_trace) =
                second;
            ExecutionStarted {
                instance,
                parent,
                name,
                version,
                input,
                tags,
                correlation,
                parent_trace_context,
                scheduled_start_time,
                generation,
                generate_new_trace,
            }
        })
        .boxed()
}

/// Any event of any type.
pub(crate) fn event() -> BoxedStrategy<HistoryEvent> {
    let id = text().prop_map(InstanceId::new);
    let parts = (of(text()), of(text()), of(text()), of(text()), any::<i32>(), time());
    let objects = (of(tags()), of(trace()), of(failure()), completed(), started(), id);
    let base = (any::<i32>(), any::<bool>(), time());
    (0..21, parts, objects, base)
        .prop_map(|(kind, parts, objects, base)| {
            let (a, b, c, d, number, time) = parts;
            let (tags, trace, failure, completed, started, id) = objects;
            let kind = match kind {
                0 => EventKind::ExecutionStarted(Box::new(started)),
                1 => EventKind::ExecutionCompleted(completed),
                2 => EventKind::ExecutionTerminated { input: a },
                3 => EventKind::TaskScheduled {
                    name: a,
                    version: b,
                    input: c,
                    parent_trace_context: trace,
                    tags,
                },
                4 => EventKind::TaskCompleted { task_scheduled_id: number, result: a },
                5 => EventKind::TaskFailed {
                    task_scheduled_id: number,
                    reason: a,
                    details: b,
                    failure_details: failure,
                },
                6 => EventKind::SubOrchestrationInstanceCreated {
                    name: a,
                    version: b,
                    instance_id: id,
                    input: c,
                    client_span_id: d,
                    tags,
                },
                7 => EventKind::SubOrchestrationInstanceCompleted { task_scheduled_id: number, result: a },
                8 => EventKind::SubOrchestrationInstanceFailed {
                    task_scheduled_id: number,
                    reason: a,
                    details: b,
                    failure_details: failure,
                },
                9 => EventKind::TimerCreated { fire_at: time },
                10 => EventKind::TimerFired { timer_id: number, fire_at: time },
                11 => EventKind::OrchestratorStarted,
                12 => EventKind::OrchestratorCompleted,
                13 => EventKind::EventSent { instance_id: id, name: a, input: b },
                14 => EventKind::EventRaised { name: a, input: b, parent_trace_context: trace },
                15 => EventKind::ContinueAsNew(completed),
                16 => EventKind::GenericEvent { data: a },
                17 => EventKind::HistoryState { state: a.map(|_| r#"{"Status":"x","Size":0}"#.to_owned()) },
                18 => EventKind::ExecutionSuspended { reason: a },
                19 => EventKind::ExecutionResumed { reason: a },
                _ => EventKind::ExecutionRewound {
                    reason: a,
                    parent_execution_id: b,
                    instance_id: c,
                    parent_trace_context: trace,
                },
            };
            let (event_id, is_played, timestamp) = base;
            HistoryEvent { event_id, is_played, timestamp, kind }
        })
        .boxed()
}
