use std::fmt;
use std::ops::{Add, Sub};
use std::time::Duration;

use time::{Date, Month, PrimitiveDateTime, Time, UtcOffset};

const TICKS_PER_SECOND: i64 = 10_000_000;
/// Ticks from 0001-01-01 to 1970-01-01. Source: .NET `DateTime.UnixEpoch.Ticks`.
const UNIX_EPOCH_TICKS: i64 = 621_355_968_000_000_000;
/// Julian day of 0001-01-01.
const FIRST_JULIAN_DAY: i64 = 1_721_426;

/// An instant in UTC with the precision of .NET's `DateTime`: ticks of 100 ns since 0001-01-01.
///
/// Replay depends on that precision: the current time of an episode is the timestamp of its
/// `OrchestratorStarted` event and goes into generated GUIDs.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp(i64);

/// A text is not an ISO 8601 date and time.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not an ISO 8601 date and time. text=`{0}`")]
pub struct ParseTimestampError(String);

impl Timestamp {
    /// 0001-01-01T00:00:00, .NET's `DateTime.MinValue`; DTFx's "not set".
    pub const MIN: Self = Self(0);
    /// 9999-12-31T23:59:59.9999999, .NET's `DateTime.MaxValue`.
    pub const MAX: Self = Self(3_155_378_975_999_999_999);

    /// From ticks of 100 ns since 0001-01-01, limited to what .NET can represent.
    pub fn from_ticks(ticks: i64) -> Self {
        Self(ticks.clamp(Self::MIN.0, Self::MAX.0))
    }

    /// Ticks of 100 ns since 0001-01-01.
    pub fn ticks(self) -> i64 {
        self.0
    }

    /// From the time since 1970-01-01, cut to 100 ns.
    pub fn from_unix(since_epoch: Duration) -> Self {
        Self::from_ticks(UNIX_EPOCH_TICKS.saturating_add(ticks_of(since_epoch)))
    }

    /// Time from `earlier` to `self`, zero if `earlier` is later.
    pub fn saturating_since(self, earlier: Self) -> Duration {
        let ticks = self.0.saturating_sub(earlier.0).max(0) as u64;
        Duration::from_nanos(ticks.saturating_mul(100))
    }

    /// Whole milliseconds since 1970-01-01, negative before.
    pub fn unix_millis(self) -> i64 {
        (self.0 - UNIX_EPOCH_TICKS).div_euclid(10_000)
    }

    /// Cut to whole seconds, as queue services report insertion times.
    pub fn truncated_to_second(self) -> Self {
        Self(self.0 - self.0.rem_euclid(TICKS_PER_SECOND))
    }

    /// Parses ISO 8601 with 0 to 9 fractional digits and `Z`, an offset, or no suffix (taken as UTC).
    /// A missing part of the time of day counts as zero, as in `2018-03-10T23:59Z` or `2018-03-10`.
    ///
    /// # Errors
    /// Text of another form, or outside the years 1 to 9999.
    pub fn parse(text: &str) -> Result<Self, ParseTimestampError> {
        parse(text.trim()).ok_or_else(|| ParseTimestampError(text.chars().take(64).collect()))
    }

    /// Newtonsoft's form: up to 7 fractional digits without trailing zeros, none when zero, and `Z`;
    /// [`Timestamp::MIN`] has no `Z` because .NET's default date has no kind.
    pub fn to_iso(self) -> String {
        let (mut text, fraction) = self.parts();
        if fraction != 0 {
            text.push('.');
            push_digits(&mut text, fraction, 7);
            text.truncate(text.trim_end_matches('0').len());
        }
        if self != Self::MIN {
            text.push('Z');
        }
        text
    }

    /// .NET's round-trip form `o`: always 7 fractional digits and `Z`.
    pub fn to_round_trip(self) -> String {
        let (mut text, fraction) = self.parts();
        text.push('.');
        push_digits(&mut text, fraction, 7);
        text.push('Z');
        text
    }

    fn parts(self) -> (String, i64) {
        let days = self.0.div_euclid(86_400 * TICKS_PER_SECOND);
        let in_day = self.0.rem_euclid(86_400 * TICKS_PER_SECOND);
        let date = Date::from_julian_day((days + FIRST_JULIAN_DAY) as i32).unwrap_or(Date::MIN);
        let (year, month, day) = date.to_calendar_date();
        let seconds = in_day / TICKS_PER_SECOND;
        let mut text = String::with_capacity("0001-01-01T00:00:00.0000000Z".len());
        push_digits(&mut text, i64::from(year), 4);
        for (before, part) in [
            ('-', i64::from(u8::from(month))),
            ('-', i64::from(day)),
            ('T', seconds / 3600),
            (':', seconds / 60 % 60),
            (':', seconds % 60),
        ] {
            text.push(before);
            push_digits(&mut text, part, 2);
        }
        (text, in_day % TICKS_PER_SECOND)
    }
}

/// Appends the last `count` decimal digits of a number that is not negative. Every message and row has several
/// dates: the formatting machinery would be among the largest costs of a worker.
fn push_digits(text: &mut String, number: i64, count: u32) {
    for place in (0..count).rev() {
        text.push(char::from(b'0' + (number / 10_i64.pow(place) % 10) as u8));
    }
}

fn ticks_of(duration: Duration) -> i64 {
    i64::try_from(duration.as_nanos() / 100).unwrap_or(i64::MAX)
}

fn parse(text: &str) -> Option<Timestamp> {
    let (date_text, rest) = match text.split_once(['T', 't', ' ']) {
        Some((date, rest)) => (date, rest),
        None => (text, ""),
    };
    let mut date_parts = date_text.splitn(3, '-');
    let mut next = |len: usize| -> Option<u16> {
        let part = date_parts.next()?;
        (part.len() == len && part.bytes().all(|b| b.is_ascii_digit())).then(|| part.parse().ok())?
    };
    let (year, month, day) = (next(4)?, next(2)?, next(2)?);
    let date =
        Date::from_calendar_date(i32::from(year), Month::try_from(month as u8).ok()?, day as u8).ok()?;

    let (clock, offset) = split_offset(rest)?;
    let (clock, fraction) = match clock.split_once('.') {
        Some((clock, digits)) => (clock, parse_fraction(digits)?),
        None => (clock, 0),
    };
    let mut fields = [0u8; 3];
    if !clock.is_empty() {
        let parts: Vec<&str> = clock.split(':').collect();
        if parts.len() > 3 {
            return None;
        }
        for (field, part) in fields.iter_mut().zip(parts) {
            if part.len() != 2 || !part.bytes().all(|b| b.is_ascii_digit()) {
                return None;
            }
            *field = part.parse().ok()?;
        }
    }
    let time = Time::from_hms(fields[0], fields[1], fields[2]).ok()?;
    let unix = PrimitiveDateTime::new(date, time).assume_offset(offset).unix_timestamp();
    let ticks = UNIX_EPOCH_TICKS.checked_add(unix.checked_mul(TICKS_PER_SECOND)?)?.checked_add(fraction)?;
    (Timestamp::MIN.0..=Timestamp::MAX.0).contains(&ticks).then_some(Timestamp(ticks))
}

fn split_offset(text: &str) -> Option<(&str, UtcOffset)> {
    if let Some(clock) = text.strip_suffix(['Z', 'z']) {
        return Some((clock, UtcOffset::UTC));
    }
    let Some(at) = text.rfind(['+', '-']) else {
        return Some((text, UtcOffset::UTC));
    };
    let sign: i8 = if text.as_bytes()[at] == b'-' { -1 } else { 1 };
    let digits: String = text[at + 1..].chars().filter(|c| *c != ':').collect();
    if !digits.bytes().all(|b| b.is_ascii_digit()) || !matches!(digits.len(), 2 | 4) {
        return None;
    }
    let hours: i8 = digits[..2].parse().ok()?;
    let minutes: i8 = if digits.len() == 4 { digits[2..].parse().ok()? } else { 0 };
    Some((&text[..at], UtcOffset::from_hms(sign * hours, sign * minutes, 0).ok()?))
}

/// Digits after the point as ticks; more than 7 are cut.
fn parse_fraction(digits: &str) -> Option<i64> {
    if digits.is_empty() || digits.len() > 9 || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    format!("{digits:0<7}")[..7].parse().ok()
}

impl Add<Duration> for Timestamp {
    type Output = Self;
    fn add(self, duration: Duration) -> Self {
        Self::from_ticks(self.0.saturating_add(ticks_of(duration)))
    }
}

impl Sub<Duration> for Timestamp {
    type Output = Self;
    fn sub(self, duration: Duration) -> Self {
        Self::from_ticks(self.0.saturating_sub(ticks_of(duration)))
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.to_iso())
    }
}

impl fmt::Debug for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.to_round_trip())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, iso: &str) {
        let parsed = Timestamp::parse(text).unwrap();
        assert_eq!(parsed.to_iso(), iso, "{text}");
        assert_eq!(Timestamp::parse(&parsed.to_round_trip()), Ok(parsed), "{text}");
    }

    #[test]
    fn dates_are_read_in_every_form_and_written_as_dtfx_writes_them() {
        check("2026-01-15T09:30:00.1234567Z", "2026-01-15T09:30:00.1234567Z");
        check("2026-01-15T09:30:00.1230000Z", "2026-01-15T09:30:00.123Z");
        check("2026-01-15T09:30:00Z", "2026-01-15T09:30:00Z");
        check("2026-01-15T09:30:00", "2026-01-15T09:30:00Z");
        check("2026-01-15T10:30:00.5+01:00", "2026-01-15T09:30:00.5Z");
        check("2026-01-15T09:30:00.123456789Z", "2026-01-15T09:30:00.1234567Z");
        check("2018-03-10T23:59Z", "2018-03-10T23:59:00Z");
        check("2018-03-10", "2018-03-10T00:00:00Z");
        check("0001-01-01T00:00:00", "0001-01-01T00:00:00");
        check("9999-12-31T23:59:59.9999999Z", "9999-12-31T23:59:59.9999999Z");
    }

    #[test]
    fn other_texts_are_errors() {
        for text in [
            "",
            "yesterday",
            "2026-13-01T00:00:00Z",
            "2026-01-01T25:00:00Z",
            "2026-01-01T00:00:00.Z",
            "2026-01-01T00:00:00+1",
            "0000-01-01",
            "٢٠٢٦-01-01",
            "2026-01-15T09:30:00+99:99",
        ] {
            assert!(Timestamp::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn arithmetic_keeps_100_ns_and_saturates() {
        let at = Timestamp::from_unix(Duration::new(1_700_000_000, 123_456_789));
        assert_eq!(at.to_iso(), "2023-11-14T22:13:20.1234567Z");
        assert_eq!((at + Duration::from_nanos(100)).to_iso(), "2023-11-14T22:13:20.1234568Z");
        assert_eq!(Timestamp::MAX + Duration::from_secs(1), Timestamp::MAX);
        assert_eq!(Timestamp::MIN - Duration::from_secs(1), Timestamp::MIN);
        assert_eq!(at.saturating_since(at + Duration::from_secs(1)), Duration::ZERO);
        assert_eq!(at.truncated_to_second().to_iso(), "2023-11-14T22:13:20Z");
    }
}
