//! Paths.

use std::borrow::Cow;

use axum::http::Method;
use percent_encoding::percent_decode_str;

/// What a path names. Ids and names are decoded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Route {
    /// `/orchestrators/{function}[/{id}]`
    Start { function: String, instance_id: Option<String> },
    /// `/instances`
    Instances,
    /// `/instances/{id}`
    Instance { instance_id: String },
    /// `/instances/{id}/raiseEvent/{event}`
    RaiseEvent { instance_id: String, event: String },
    /// `/instances/{id}/{verb}`
    Control { instance_id: String, verb: Verb },
    /// `/entities[/{name}[/{key}]]`
    Entity { name: Option<String>, key: Option<String> },
    /// `/makeprimary`
    MakePrimary,
}

/// What to do with an instance.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verb {
    Terminate,
    Suspend,
    Resume,
    Rewind,
    Restart,
}

/// Why a path names nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum NoRoute {
    /// No such endpoint.
    Unknown,
    /// An id or a name is not UTF-8 once decoded.
    NotText,
}

/// The path below `base`, which is matched without regard to case; `None` when it is somewhere else.
/// `base` begins with a slash and does not end with one.
pub(super) fn below<'a>(path: &'a str, base: &str) -> Option<&'a str> {
    let (head, rest) = path.split_at_checked(base.len())?;
    (head.eq_ignore_ascii_case(base) && (rest.is_empty() || rest.starts_with('/'))).then_some(rest)
}

impl Route {
    /// Reads a path below the base. Literals are matched without regard to case; slashes at both ends do not
    /// count; each segment is decoded once, so that an id may hold `%2F`.
    /// Source: Azure/azure-functions-durable-extension, `HttpApiHandler.HandleRequestAsync`.
    ///
    /// Differs: there a `+` in the path means a space, which makes ids with a plus sign unreachable.
    pub(super) fn parse(path: &str) -> Result<Self, NoRoute> {
        let path = path.trim_matches('/');
        let segments: Vec<&str> = path.split('/').collect();
        if segments.len() > 4 || segments.iter().any(|s| s.is_empty()) {
            return Err(NoRoute::Unknown);
        }
        let is = |at: usize, literal: &str| segments[at].eq_ignore_ascii_case(literal);
        let text = |at: usize| decode(segments[at]);
        match segments.len() {
            1 if is(0, "instances") => Ok(Self::Instances),
            1 if is(0, "entities") => Ok(Self::Entity { name: None, key: None }),
            1 if is(0, "makeprimary") => Ok(Self::MakePrimary),
            2 if is(0, "orchestrators") => Ok(Self::Start { function: text(1)?, instance_id: None }),
            3 if is(0, "orchestrators") => {
                Ok(Self::Start { function: text(1)?, instance_id: Some(text(2)?) })
            }
            2 if is(0, "entities") => Ok(Self::Entity { name: Some(text(1)?), key: None }),
            3 if is(0, "entities") => Ok(Self::Entity { name: Some(text(1)?), key: Some(text(2)?) }),
            2 if is(0, "instances") => Ok(Self::Instance { instance_id: text(1)? }),
            3 if is(0, "instances") => {
                let verb = Verb::parse(segments[2]).ok_or(NoRoute::Unknown)?;
                Ok(Self::Control { instance_id: text(1)?, verb })
            }
            4 if is(0, "instances") && is(2, "raiseEvent") => {
                Ok(Self::RaiseEvent { instance_id: text(1)?, event: text(3)? })
            }
            _ => Err(NoRoute::Unknown),
        }
    }

    /// Whether the endpoint answers to the method.
    pub(super) fn allows(&self, method: &Method) -> bool {
        let allowed: &[Method] = match self {
            Self::Start { .. } | Self::RaiseEvent { .. } | Self::Control { .. } => &[Method::POST],
            Self::Instances | Self::Instance { .. } => &[Method::GET, Method::DELETE],
            Self::Entity { .. } => &[Method::GET, Method::POST, Method::DELETE],
            Self::MakePrimary => return true,
        };
        allowed.contains(method)
    }

    /// A name for logs, without ids.
    pub(super) fn name(&self) -> &'static str {
        match self {
            Self::Start { .. } => "start",
            Self::Instances => "instances",
            Self::Instance { .. } => "instance",
            Self::RaiseEvent { .. } => "raiseEvent",
            Self::Control { verb, .. } => verb.name(),
            Self::Entity { .. } => "entities",
            Self::MakePrimary => "makeprimary",
        }
    }
}

impl Verb {
    pub(super) const ALL: [Self; 5] =
        [Self::Terminate, Self::Suspend, Self::Resume, Self::Rewind, Self::Restart];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Terminate => "terminate",
            Self::Suspend => "suspend",
            Self::Resume => "resume",
            Self::Rewind => "rewind",
            Self::Restart => "restart",
        }
    }

    fn parse(segment: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|verb| verb.name().eq_ignore_ascii_case(segment))
    }
}

/// A `%` that begins no escape stands for itself, as in .NET.
fn decode(segment: &str) -> Result<String, NoRoute> {
    percent_decode_str(segment).decode_utf8().map(Cow::into_owned).map_err(|_| NoRoute::NotText)
}

/// `/api/orchestrators/{name}[/wait]` and `/orchestrators/{name}/wait`: the two functions of the Durable
/// Functions samples that start an instance, `HttpStart` and `HttpSyncStart`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct SampleRoute {
    pub(super) function: String,
    pub(super) waits: bool,
}

impl SampleRoute {
    pub(super) fn parse(path: &str) -> Result<Self, NoRoute> {
        let (path, api) = match below(path, "/api") {
            Some(rest) => (rest, true),
            None => (path, false),
        };
        let path = below(path, "/orchestrators").ok_or(NoRoute::Unknown)?.trim_matches('/');
        let mut segments = path.split('/');
        let (function, last) = (segments.next().unwrap_or_default(), segments.next());
        let waits = last.is_some_and(|s| s.eq_ignore_ascii_case("wait"));
        if function.is_empty() || segments.next().is_some() || last.is_some() != waits || !(api || waits) {
            return Err(NoRoute::Unknown);
        }
        Ok(Self { function: decode(function)?, waits })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(path: &str, expected: Route) {
        assert_eq!(Route::parse(path), Ok(expected), "{path}");
    }

    fn start(function: &str, id: Option<&str>) -> Route {
        Route::Start { function: function.into(), instance_id: id.map(Into::into) }
    }

    fn instance(id: &str) -> Route {
        Route::Instance { instance_id: id.into() }
    }

    #[test]
    fn literals_ignore_case_and_slashes_at_the_ends() {
        check("/orchestrators/F", start("F", None));
        check("/ORCHESTRATORS/F/a/", start("F", Some("a")));
        check("/instances", Route::Instances);
        check("/Instances/", Route::Instances);
        check("//instances//", Route::Instances);
        check("/instances/X", instance("X"));
        check("/instances/x/TERMINATE", Route::Control { instance_id: "x".into(), verb: Verb::Terminate });
        check("/instances/x/RaiseEvent/E", Route::RaiseEvent { instance_id: "x".into(), event: "E".into() });
        check("/MakePrimary", Route::MakePrimary);
        check("/entities", Route::Entity { name: None, key: None });
        check("/Entities/Counter", Route::Entity { name: Some("Counter".into()), key: None });
        check("/entities/c/K/", Route::Entity { name: Some("c".into()), key: Some("K".into()) });
    }

    #[test]
    fn ids_are_decoded_once_and_matched_exactly() {
        check("/instances/a%20b%2540", instance("a b%40"));
        check("/instances/%40counter%40a", instance("@counter@a"));
        check("/instances/a%2Fb+c", instance("a/b+c"));
        check("/instances/%zz%", instance("%zz%"));
        check("/instances/%E6%97%A5", instance("日"));
        assert_eq!(Route::parse("/instances/%ff"), Err(NoRoute::NotText));
    }

    #[test]
    fn other_paths_are_unknown() {
        for path in [
            "",
            "/",
            "/orchestrators",
            "/orchestrators/F/a/b",
            "/instances//terminate",
            "/instances/x/terminate/y",
            "/instances/x/raiseEvent",
            "/instances/x/explode",
            "/instances/x/y/z",
            "/entities/a/b/c",
            "/makeprimary/x",
            "/instancesx",
        ] {
            assert_eq!(Route::parse(path), Err(NoRoute::Unknown), "{path}");
        }
    }

    #[test]
    fn the_base_ignores_case_and_ends_at_a_slash() {
        let base = "/runtime/webhooks/durabletask";
        assert_eq!(below("/Runtime/webhooks/durableTask/instances", base), Some("/instances"));
        assert_eq!(below("/runtime/webhooks/durabletask", base), Some(""));
        assert_eq!(below("/runtime/webhooks/durabletasks", base), None);
        assert_eq!(below("/runtime", base), None);
        assert_eq!(below("/instances", ""), Some("/instances"));
        assert_eq!(below("/é/x", "/ab"), None);
    }

    #[test]
    fn the_functions_of_the_samples_have_their_paths() {
        let route = |function: &str, waits| Ok(SampleRoute { function: function.into(), waits });
        assert_eq!(SampleRoute::parse("/api/orchestrators/HelloSequence"), route("HelloSequence", false));
        assert_eq!(SampleRoute::parse("/API/Orchestrators/a%20b/wait"), route("a b", true));
        assert_eq!(SampleRoute::parse("/orchestrators/F/wait"), route("F", true));
        for path in [
            "/orchestrators/F",
            "/api/orchestrators",
            "/api/orchestrators/F/x",
            "/api",
            "/orchestrators//wait",
        ] {
            assert_eq!(SampleRoute::parse(path), Err(NoRoute::Unknown), "{path}");
        }
    }
}
