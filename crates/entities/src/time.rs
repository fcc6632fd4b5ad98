use std::cmp::Ordering;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use taskhub_core::Timestamp;

/// A stamp of the message sorter: an instant that remembers whether it is written with `Z`.
///
/// .NET forgets the kind of a date when it adds a tick, so a stamp that was made unique has no `Z`, nor have
/// its copies. Compares by the instant alone.
#[derive(Debug, Clone, Copy)]
pub struct Stamp {
    at: Timestamp,
    utc: bool,
}

impl Stamp {
    /// Not set; .NET's `DateTime.MinValue`.
    pub const MIN: Self = Self { at: Timestamp::MIN, utc: false };

    /// An instant of the clock, written with `Z`.
    pub fn utc(at: Timestamp) -> Self {
        Self { at, utc: true }
    }

    /// The instant.
    pub fn at(self) -> Timestamp {
        self.at
    }

    /// The next instant there is, 100 ns later, written without `Z`.
    #[must_use]
    pub fn next(self) -> Self {
        Self { at: Timestamp::from_ticks(self.at.ticks().saturating_add(1)), utc: false }
    }

    /// The same kind of stamp at another time.
    #[must_use]
    pub(crate) fn moved_to(self, at: Timestamp) -> Self {
        Self { at, ..self }
    }

    pub(crate) fn is_min(&self) -> bool {
        self.at == Timestamp::MIN
    }

    fn to_text(self) -> String {
        let mut text = self.at.to_iso();
        if !self.utc && text.ends_with('Z') {
            text.pop();
        }
        text
    }
}

impl Default for Stamp {
    fn default() -> Self {
        Self::MIN
    }
}

impl PartialEq for Stamp {
    fn eq(&self, other: &Self) -> bool {
        self.at == other.at
    }
}

impl Eq for Stamp {}

impl Ord for Stamp {
    fn cmp(&self, other: &Self) -> Ordering {
        self.at.cmp(&other.at)
    }
}

impl PartialOrd for Stamp {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Serialize for Stamp {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.to_text())
    }
}

impl<'de> Deserialize<'de> for Stamp {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let at = Timestamp::parse(&text).map_err(|_| serde::de::Error::custom("not a date"))?;
        let clock = text.split_once(['T', 't', ' ']).map_or("", |(_, clock)| clock);
        Ok(Self { at, utc: clock.contains(['Z', 'z', '+', '-']) })
    }
}

/// Reads dates of members that are always of UTC.
pub(crate) mod date {
    use super::*;

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<Option<Timestamp>, D::Error> {
        Ok(Option::<Stamp>::deserialize(d)?.map(Stamp::at))
    }
}

/// Written with an offset, as .NET's `DateTimeOffset`.
pub(crate) struct OffsetDate(pub(crate) Timestamp);

impl Serialize for OffsetDate {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&format_args!("{}+00:00", self.0.to_iso().trim_end_matches('Z')))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stamp_keeps_its_form_and_a_tick_takes_its_z() {
        for text in ["2026-11-21T03:22:47.2899915Z", "2026-11-21T03:22:47.2899916", "0001-01-01T00:00:00"] {
            let json = format!("\"{text}\"");
            let stamp: Stamp = serde_json::from_str(&json).unwrap();
            assert_eq!(serde_json::to_string(&stamp).unwrap(), json);
        }
        let first: Stamp = serde_json::from_str("\"2026-11-21T03:22:47.2899915Z\"").unwrap();
        assert_eq!(serde_json::to_string(&first.next()).unwrap(), "\"2026-11-21T03:22:47.2899916\"");
        assert!(first < first.next());
        assert!(serde_json::from_str::<Stamp>("\"soon\"").is_err());
        assert_eq!(Stamp::utc(Timestamp::MAX).next().at(), Timestamp::MAX);
    }
}
