//! Names of the events that entities receive and answer with.
//! Source: Azure/durabletask, `EntityMessageEventNames`.

use taskhub_core::Timestamp;
use uuid::Uuid;

use crate::limits::MAX_SIGNAL_DELAY;

/// A request that is due at once.
pub const REQUEST: &str = "op";
/// The end of a lock.
pub const RELEASE: &str = "release";
/// An entity's reminder to itself that requests wait.
pub const CONTINUE: &str = "continue";

/// What an event of this name tells an entity.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EntityEventKind {
    /// An operation or a lock is asked for.
    Request,
    /// A lock ends.
    Release,
    /// Anything else: requests that wait may go on.
    Continue,
}

/// Classifies an event as DTFx does.
pub fn kind(name: &str) -> EntityEventKind {
    match name {
        RELEASE => EntityEventKind::Release,
        name if name.starts_with(REQUEST) => EntityEventKind::Request,
        _ => EntityEventKind::Continue,
    }
}

/// Name of a request that is to be delivered at `at`.
pub fn delayed_request(at: Timestamp) -> String {
    format!("{REQUEST}@{}", at.to_round_trip())
}

/// Name of a request that is due at `due`: delivered at that time, or after the longest delay of a message,
/// from where it goes on. Source: Azure/durabletask, `EntityBackendProperties.GetCappedScheduledTime`.
pub fn request_due(due: Timestamp, now: Timestamp) -> String {
    delayed_request(due.min(now + MAX_SIGNAL_DELAY))
}

/// Name of the answer to a request.
pub fn response(request_id: Uuid) -> String {
    request_id.hyphenated().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_told_by_how_their_names_begin() {
        for (name, expected) in [
            ("op", EntityEventKind::Request),
            ("op@2026-01-01T00:00:00.0000000Z", EntityEventKind::Request),
            ("operation", EntityEventKind::Request),
            ("release", EntityEventKind::Release),
            ("continue", EntityEventKind::Continue),
            ("Release", EntityEventKind::Continue),
            ("", EntityEventKind::Continue),
        ] {
            assert_eq!(kind(name), expected, "{name}");
        }
    }

    #[test]
    fn late_requests_travel_for_six_days_at_most() {
        let now = Timestamp::parse("2026-01-01T00:00:00Z").unwrap();
        let day = std::time::Duration::from_secs(24 * 3600);
        assert_eq!(request_due(now + day, now), "op@2026-01-02T00:00:00.0000000Z");
        assert_eq!(request_due(now + day * 30, now), "op@2026-01-07T00:00:00.0000000Z");
        assert_eq!(request_due(Timestamp::MAX, Timestamp::MAX), "op@9999-12-31T23:59:59.9999999Z");
    }
}
