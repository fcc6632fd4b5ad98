use std::time::Duration;

use taskhub_core::{EventKind, TaskMessage, Timestamp};

/// How long a message stays invisible after it is sent, in whole seconds; zero when it is due.
///
/// Timers wait for `FireAt`, starts for `ScheduledStartTime`, and requests to entities for the date in
/// their name (`op@2026-03-01T10:00:00.0000000Z`). The service takes 7 days at most; longer timers have
/// to be split before.
///
/// Differs: .NET cuts to whole seconds, and its timers fire up to a second early; this rounds up.
pub fn visibility_delay(message: &TaskMessage, now: Timestamp) -> Duration {
    let due = match &message.event.kind {
        EventKind::TimerFired { fire_at, .. } => Some(*fire_at),
        EventKind::ExecutionStarted(started) => started.scheduled_start_time,
        EventKind::EventRaised { name: Some(name), .. } if message.target.instance_id.is_entity() => {
            due_in_name(name)
        }
        _ => None,
    };
    let wait = due.map_or(Duration::ZERO, |due| due.saturating_since(now));
    Duration::from_secs(wait.as_secs() + u64::from(wait.subsec_nanos() > 0))
}

/// The date of a delayed request to an entity: the third character of its name is `@`.
/// Source: Azure/durabletask, `EntityMessageEvent`, `ClientEntityHelpers`.
fn due_in_name(name: &str) -> Option<Timestamp> {
    let (at, separator) = name.char_indices().nth(2)?;
    if separator != '@' {
        return None;
    }
    Timestamp::parse(&name[at + 1..]).ok()
}

#[cfg(test)]
mod tests {
    use taskhub_core::{ExecutionStarted, HistoryEvent, OrchestrationInstance};

    use super::*;

    #[track_caller]
    fn check(target: &str, kind: EventKind, seconds: u64) {
        let now = Timestamp::parse("2026-01-15T10:00:00.5Z").unwrap();
        let event = HistoryEvent::message(now, kind);
        let message = TaskMessage::new(event, OrchestrationInstance::current(target));
        assert_eq!(visibility_delay(&message, now), Duration::from_secs(seconds), "{message:?}");
    }

    #[test]
    fn timers_wait_until_they_fire_never_less() {
        for (fire_at, seconds) in [
            ("2026-01-15T10:00:30.5Z", 30),
            ("2026-01-15T10:00:30.4999999Z", 30),
            ("2026-01-15T10:00:30.5000001Z", 31),
            ("2026-01-15T10:00:00.5Z", 0),
            ("2026-01-15T09:00:00Z", 0),
        ] {
            let fire_at = Timestamp::parse(fire_at).unwrap();
            check("a", EventKind::TimerFired { timer_id: 1, fire_at }, seconds);
        }
    }

    #[test]
    fn scheduled_starts_wait() {
        let started = |at: Option<&str>| {
            EventKind::ExecutionStarted(Box::new(ExecutionStarted {
                scheduled_start_time: at.map(|at| Timestamp::parse(at).unwrap()),
                ..ExecutionStarted::new(OrchestrationInstance::current("a"), "A")
            }))
        };
        check("a", started(Some("2026-01-15T10:01:00.5Z")), 60);
        check("a", started(None), 0);
    }

    #[test]
    fn delayed_requests_wait_at_entities_only() {
        let raised = |name: &str| EventKind::EventRaised {
            name: Some(name.to_owned()),
            input: None,
            parent_trace_context: None,
        };
        check("@counter@x", raised("op@2026-01-15T10:00:10.5000000Z"), 10);
        check("@counter@x", raised("op@2026-01-15T09:00:00.0000000Z"), 0);
        check("order-1", raised("op@2026-01-15T10:00:10.5000000Z"), 0);
        for name in ["op", "op@", "op@soon", "", "é@", "release", "日本@2026-01-15T10:00:05.5Z@"] {
            check("@counter@x", raised(name), 0);
        }
    }
}
