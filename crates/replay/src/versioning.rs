use std::cmp::Ordering;

/// Which instances this worker runs. Source: Azure/durabletask, `VersioningSettings`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VersioningSettings {
    /// Version of this worker; `None` is not the empty text.
    pub worker_version: Option<String>,
    /// Which versions match.
    pub match_strategy: VersionMatch,
    /// What happens to instances that do not.
    pub failure_strategy: VersionFailure,
}

/// Which instance versions a worker takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum VersionMatch {
    /// All.
    #[default]
    None,
    /// Exactly its own.
    Strict,
    /// Its own and older ones.
    CurrentOrOlder,
}

/// What happens to an instance of another version.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum VersionFailure {
    /// Its messages go back to the queue, for another worker or for later.
    #[default]
    Reject,
    /// It fails.
    Fail,
}

impl VersioningSettings {
    /// Whether this worker runs an instance of this version.
    pub fn matches(&self, instance_version: Option<&str>) -> bool {
        let worker = self.worker_version.as_deref();
        match self.match_strategy {
            VersionMatch::None => true,
            VersionMatch::Strict => instance_version == worker,
            VersionMatch::CurrentOrOlder => compare(instance_version, worker) != Ordering::Greater,
        }
    }
}

/// Source: Azure/durabletask, `VersioningSettings.CompareVersions`.
fn compare(a: Option<&str>, b: Option<&str>) -> Ordering {
    let (a, b) = (a.unwrap_or_default(), b.unwrap_or_default());
    match (a.trim().is_empty(), b.trim().is_empty()) {
        (true, true) => return Ordering::Equal,
        (true, false) => return Ordering::Less,
        (false, true) => return Ordering::Greater,
        (false, false) => {}
    }
    match (parse(a), parse(b)) {
        (Some(a), Some(b)) => a.cmp(&b),
        _ => a.to_uppercase().cmp(&b.to_uppercase()),
    }
}

/// .NET's `System.Version`: two to four integers; a missing one sorts before 0, as a shorter list does.
fn parse(text: &str) -> Option<Vec<i32>> {
    let parts: Vec<i32> = text
        .split('.')
        .map(|part| {
            let part = part.trim();
            let part = part.strip_prefix('+').unwrap_or(part);
            part.bytes().all(|b| b.is_ascii_digit()).then(|| part.parse().ok()).flatten()
        })
        .collect::<Option<_>>()?;
    (2..=4).contains(&parts.len()).then_some(parts)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(a: &str, b: &str, expected: Ordering) {
        assert_eq!(compare(Some(a), Some(b)), expected, "{a} {b}");
        assert_eq!(compare(Some(b), Some(a)), expected.reverse(), "{b} {a}");
    }

    #[test]
    fn versions_compare_as_in_dotnet() {
        check("1.0", "1.0.0", Ordering::Less);
        check("1.2", "1.10", Ordering::Less);
        check("2.0", "2.0", Ordering::Equal);
        check("10", "9", Ordering::Less); // one number is no version: compared as text
        check("1.0.0.0.1", "1.0.0.0", Ordering::Greater); // five parts neither
        check("beta", "BETA", Ordering::Equal);
        check("", "1.0", Ordering::Less);
        check(" ", "", Ordering::Equal);
        assert_eq!(compare(None, Some("")), Ordering::Equal);
        check("99999999999.0", "1.0", Ordering::Greater);
    }

    #[test]
    fn strategies_decide_which_instances_match() {
        let settings = |match_strategy| VersioningSettings {
            worker_version: Some("2.0".into()),
            match_strategy,
            failure_strategy: VersionFailure::Reject,
        };
        for (strategy, version, expected) in [
            (VersionMatch::None, Some("9.9"), true),
            (VersionMatch::Strict, Some("2.0"), true),
            (VersionMatch::Strict, Some("2.0.0"), false),
            (VersionMatch::Strict, None, false),
            (VersionMatch::CurrentOrOlder, None, true),
            (VersionMatch::CurrentOrOlder, Some("1.9"), true),
            (VersionMatch::CurrentOrOlder, Some("2.0"), true),
            (VersionMatch::CurrentOrOlder, Some("2.1"), false),
        ] {
            assert_eq!(settings(strategy).matches(version), expected, "{strategy:?} {version:?}");
        }
        let unversioned = VersioningSettings { worker_version: None, ..settings(VersionMatch::Strict) };
        assert!(unversioned.matches(None));
        assert!(!unversioned.matches(Some("")));
    }
}
