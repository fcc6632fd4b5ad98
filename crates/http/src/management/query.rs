//! Query strings.

use std::time::Duration;

use taskhub_core::{OrchestrationStatus, Timestamp};
use url::form_urlencoded;

/// The parameters of a request. Names ignore case; of a name given twice the first value counts, except for
/// lists.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Query(Vec<(String, String)>);

/// Statuses as a request names them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Statuses {
    /// Those that exist.
    pub(super) known: Vec<OrchestrationStatus>,
    /// The texts that name none.
    pub(super) unknown: Vec<String>,
}

impl Query {
    /// Reads a query string. Bytes that are not UTF-8 become replacement characters.
    pub(super) fn parse(query: Option<&str>) -> Self {
        let pairs = form_urlencoded::parse(query.unwrap_or_default().as_bytes());
        Self(pairs.map(|(name, value)| (name.into_owned(), value.into_owned())).collect())
    }

    fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        self.0.iter().filter(move |(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
    }

    pub(super) fn text(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
    }

    /// A text that is not blank.
    pub(super) fn filled(&self, name: &str) -> Option<&str> {
        self.text(name).filter(|value| !value.trim().is_empty())
    }

    /// `true` or `false` in any letter case; anything else is absent.
    pub(super) fn boolean(&self, name: &str) -> Option<bool> {
        match self.text(name)?.trim() {
            text if text.eq_ignore_ascii_case("true") => Some(true),
            text if text.eq_ignore_ascii_case("false") => Some(false),
            _ => None,
        }
    }

    /// A whole number; anything else is absent.
    pub(super) fn number(&self, name: &str) -> Option<i64> {
        self.text(name)?.trim().parse().ok()
    }

    /// Decimal seconds; anything else is absent, so are negative numbers.
    pub(super) fn seconds(&self, name: &str) -> Option<Duration> {
        Duration::try_from_secs_f64(self.text(name)?.trim().parse().ok()?).ok()
    }

    /// A date and time, as [`Timestamp::parse`] reads it; anything else is absent.
    ///
    /// Differs: form decoding makes a space of the `+` in `+01:00`, and the reference then ignores the date.
    pub(super) fn time(&self, name: &str) -> Option<Timestamp> {
        let text = self.text(name)?.trim();
        let parse = |text: &str| Timestamp::parse(&padded(text)).ok();
        parse(text).or_else(|| {
            let (date, offset) = text.rsplit_once(' ')?;
            parse(&format!("{date}+{offset}"))
        })
    }

    /// Statuses, separated by commas or in several parameters. Numbers count as the status they stand for.
    pub(super) fn statuses(&self, name: &str, ignore_case: bool) -> Statuses {
        let mut statuses = Statuses::default();
        for text in self.all(name).flat_map(|value| value.split(',')).map(str::trim).filter(|t| !t.is_empty())
        {
            let by_name = || OrchestrationStatus::ALL.into_iter().find(|s| s.name() == text);
            let by_any_case = || text.parse().ok().filter(|_| ignore_case);
            let by_number = || OrchestrationStatus::from_number(text.parse().ok()?);
            match by_name().or_else(by_any_case).or_else(by_number) {
                // Once: each becomes a part of the filter that storage is sent.
                Some(status) if statuses.known.contains(&status) => {}
                Some(status) => statuses.known.push(status),
                None => statuses.unknown.push(text.to_owned()),
            }
        }
        statuses
    }
}

/// Python's `strftime` leaves out the zeros before a year of less than four digits.
fn padded(text: &str) -> String {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    if (1..4).contains(&digits) && text[digits..].starts_with('-') {
        format!("{}{text}", &"000"[..4 - digits])
    } else {
        text.to_owned()
    }
}

#[cfg(test)]
mod tests {
    use OrchestrationStatus::{Failed, Pending, Running};

    use super::*;

    fn query(text: &str) -> Query {
        Query::parse(Some(text))
    }

    #[test]
    fn names_ignore_case_and_the_first_of_several_values_counts() {
        let query = query("Reason=a+b&reason=c&%74op=7&blank=+&none");
        assert_eq!(query.text("reason"), Some("a b"));
        assert_eq!(query.number("TOP"), Some(7));
        assert_eq!((query.filled("blank"), query.filled("none"), query.filled("other")), (None, None, None));
        assert_eq!(Query::parse(None), Query::default());
    }

    #[test]
    fn booleans_are_true_or_false_in_any_case() {
        for (text, expected) in [
            ("TRUE", Some(true)),
            ("false", Some(false)),
            ("+True+", Some(true)),
            ("1", None),
            ("yes", None),
            ("", None),
        ] {
            assert_eq!(query(&format!("x={text}")).boolean("x"), expected, "{text}");
        }
    }

    #[test]
    fn numbers_of_seconds_are_decimal() {
        for (text, millis) in [
            ("0.5", Some(500)),
            ("2", Some(2000)),
            ("0", Some(0)),
            ("-1", None),
            ("NaN", None),
            ("inf", None),
            ("1e300", None),
            ("00:00:01", None),
        ] {
            assert_eq!(query(&format!("t={text}")).seconds("t"), millis.map(Duration::from_millis), "{text}");
        }
    }

    #[test]
    fn dates_are_read_with_their_plus_sign_and_without_their_zeros() {
        for (text, expected) in [
            ("2024-01-01T00:00:00Z", Some("2024-01-01T00:00:00Z")),
            ("2024-01-01T02:00:00+02:00", Some("2024-01-01T00:00:00Z")),
            ("2024-01-01T02:00:00%2B02:00", Some("2024-01-01T00:00:00Z")),
            ("2024-01-01+10:00", Some("2024-01-01T10:00:00Z")),
            ("2024-01-01", Some("2024-01-01T00:00:00Z")),
            ("1-01-01T00:00:00.000000Z", Some("0001-01-01T00:00:00")),
            ("yesterday", None),
            ("", None),
        ] {
            let read = query(&format!("t={text}")).time("t").map(Timestamp::to_iso);
            assert_eq!(read.as_deref(), expected, "{text}");
        }
    }

    #[test]
    fn statuses_come_with_commas_or_repeated() {
        let query = query("runtimeStatus=Running,Failed&RUNTIMESTATUS=6&runtimeStatus=+pending,,sleeping");
        let read = query.statuses("runtimeStatus", false);
        assert_eq!(read.known, [Running, Failed, Pending]);
        assert_eq!(read.unknown, ["pending", "sleeping"]);
        let read = query.statuses("runtimeStatus", true);
        assert_eq!(read.known, [Running, Failed, Pending]);
        assert_eq!(read.unknown, ["sleeping"]);
    }
}
