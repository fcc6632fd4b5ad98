use std::str::FromStr;
use std::sync::Mutex;
use std::sync::PoisonError;

/// Calls of an activity, or of an entity's operation, that are held: they begin and never return.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hold {
    /// Name of the activity; `entity` for operations, whose name is then the input.
    pub activity: String,
    /// Only calls with this input; a text without its quotes, anything else as JSON.
    pub input: Option<String>,
    /// Only from this call on, counting from 1 those that match otherwise.
    pub nth: Option<u32>,
}

/// A text is not of the form `NAME[:INPUT][@N]`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not of the form NAME[:INPUT][@N]. text=`{0}`")]
pub struct InvalidHold(String);

impl FromStr for Hold {
    type Err = InvalidHold;

    /// Parses `NAME[:INPUT][@N]`. What follows the last `@` belongs to the input unless it is a number.
    fn from_str(text: &str) -> Result<Self, InvalidHold> {
        let (call, nth) = match text.rsplit_once('@').map(|(call, n)| (call, n.parse())) {
            Some((call, Ok(nth))) => (call, Some(nth)),
            _ => (text, None),
        };
        let (activity, input) = match call.split_once(':') {
            Some((activity, input)) => (activity, Some(input.to_owned())),
            None => (call, None),
        };
        if activity.is_empty() || nth == Some(0) {
            return Err(InvalidHold(text.to_owned()));
        }
        Ok(Self { activity: activity.to_owned(), input, nth })
    }
}

/// Decides which calls are held, counting them.
#[derive(Debug)]
pub(super) struct Holds(Mutex<Vec<(Hold, u32)>>);

impl Holds {
    pub(super) fn new(holds: &[Hold]) -> Self {
        Self(Mutex::new(holds.iter().map(|hold| (hold.clone(), 0)).collect()))
    }

    pub(super) fn holds(&self, activity: &str, input: &str) -> bool {
        let mut held = false;
        for (hold, count) in self.0.lock().unwrap_or_else(PoisonError::into_inner).iter_mut() {
            if hold.activity == activity && hold.input.as_deref().is_none_or(|wanted| wanted == input) {
                *count += 1;
                held |= *count >= hold.nth.unwrap_or(1);
            }
        }
        held
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, activity: &str, input: Option<&str>, nth: Option<u32>) {
        let expected = Hold { activity: activity.into(), input: input.map(Into::into), nth };
        assert_eq!(text.parse(), Ok(expected), "{text}");
    }

    #[test]
    fn holds_are_parsed() {
        check("Boom", "Boom", None, None);
        check("SayHello:Seattle", "SayHello", Some("Seattle"), None);
        check("SayHello:round 2", "SayHello", Some("round 2"), None);
        check("BoomOnce@2", "BoomOnce", None, Some(2));
        check("Echo:a:b@c@3", "Echo", Some("a:b@c"), Some(3));
        check("Echo:@counter@a", "Echo", Some("@counter@a"), None);
        for bad in ["", ":x", "@2", "Boom@0"] {
            assert!(bad.parse::<Hold>().is_err(), "{bad}");
        }
    }

    #[test]
    fn the_nth_and_later_matching_calls_are_held() {
        let holds = Holds::new(&["Boom@2".parse().unwrap(), "Echo:3".parse().unwrap()]);
        assert_eq!([1, 2, 3].map(|_| holds.holds("Boom", "x")), [false, true, true]);
        assert!(!holds.holds("Echo", "2"));
        assert!(holds.holds("Echo", "3"));
        assert!(!holds.holds("SayHello", "3"));
    }
}
