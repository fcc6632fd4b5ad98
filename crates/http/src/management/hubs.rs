//! The task hub of a request.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use taskhub_client::{DEFAULT_CONNECTION_NAME, TaskHubClient};

use super::query::Query;

/// Clients of other hubs that are kept for the next request.
const MAX_OTHERS: usize = 32;

/// The application's own task hub, and how to get at others.
pub struct Hubs {
    own: Hub,
    resolver: Option<Arc<dyn HubResolver>>,
    /// Lately used last.
    others: Mutex<Vec<Hub>>,
    orchestrators: Option<Vec<String>>,
}

/// Makes clients of the hubs that requests name with `taskHub` and `connection`.
pub trait HubResolver: Send + Sync {
    /// A client of a hub. `connection` is the name of a setting, as the request gave it; without one, the
    /// application's own account is meant. It is called once per hub and must not wait for anything.
    ///
    /// # Errors
    /// There is no such setting, or the hub's name is impossible. The text goes to whoever asked: it must not
    /// hold a secret.
    fn client(&self, task_hub: &str, connection: Option<&str>) -> Result<TaskHubClient, UnknownHub>;
}

/// A request names a hub that this application cannot get at. Holds the reason, for whoever asked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct UnknownHub(pub String);

/// A hub under the names that a request gives it.
#[derive(Debug, Clone)]
pub(super) struct Hub {
    pub(super) task_hub: String,
    pub(super) connection: String,
    pub(super) client: TaskHubClient,
    pub(super) is_own: bool,
}

impl fmt::Debug for Hubs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Hubs").field("own", &self.own).finish_non_exhaustive()
    }
}

impl Hubs {
    /// Serves one hub; requests that name another are refused.
    pub fn new(task_hub: impl Into<String>, client: TaskHubClient) -> Self {
        // The API looks itself, and answers by what it finds.
        let client = client.with_status_checks(false);
        let own = Hub {
            task_hub: task_hub.into(),
            connection: DEFAULT_CONNECTION_NAME.to_owned(),
            client,
            is_own: true,
        };
        Self { own, resolver: None, others: Mutex::new(Vec::new()), orchestrators: None }
    }

    /// Name of the setting that holds the hub's connection; [`DEFAULT_CONNECTION_NAME`] unless set.
    #[must_use]
    pub fn connection_name(mut self, name: impl Into<String>) -> Self {
        self.own.connection = name.into();
        self
    }

    /// Serves other hubs too.
    #[must_use]
    pub fn resolver(mut self, resolver: impl HubResolver + 'static) -> Self {
        self.resolver = Some(Arc::new(resolver));
        self
    }

    /// The orchestrators that the workers of the own hub have: starts of others are refused. Without it, every
    /// name is accepted, as nobody here knows what runs elsewhere.
    #[must_use]
    pub fn orchestrators(mut self, names: impl IntoIterator<Item = impl Into<String>>) -> Self {
        self.orchestrators = Some(names.into_iter().map(Into::into).collect());
        self
    }

    /// The hub a request is about.
    pub(super) fn of(&self, query: &Query) -> Result<Hub, UnknownHub> {
        let task_hub = query.filled("taskHub").unwrap_or(&self.own.task_hub);
        let connection =
            query.filled("connection").filter(|name| !name.eq_ignore_ascii_case(&self.own.connection));
        if connection.is_none() && task_hub.eq_ignore_ascii_case(&self.own.task_hub) {
            return Ok(self.own.clone());
        }
        let Some(resolver) = &self.resolver else {
            return Err(UnknownHub(format!("Only the task hub '{}' is served here.", self.own.task_hub)));
        };
        let name = connection.unwrap_or(&self.own.connection);
        let known = |hub: &Hub| {
            hub.task_hub.eq_ignore_ascii_case(task_hub) && hub.connection.eq_ignore_ascii_case(name)
        };
        let mut others = self.others.lock().unwrap_or_else(PoisonError::into_inner);
        let hub = match others.iter().position(known) {
            Some(at) => others.remove(at),
            None => Hub {
                task_hub: task_hub.to_owned(),
                connection: name.to_owned(),
                client: resolver.client(task_hub, connection)?.with_status_checks(false),
                is_own: false,
            },
        };
        if others.len() == MAX_OTHERS {
            others.remove(0);
        }
        others.push(hub.clone());
        Ok(hub)
    }

    /// What is wrong with the name of an orchestrator, if this process can know.
    ///
    /// Differs: letter case matters, as it does to the worker that will look for the name.
    pub(super) fn refuse_orchestrator(&self, hub: &Hub, name: &str) -> Option<String> {
        let known = self.orchestrators.as_ref().filter(|_| hub.is_own)?;
        if known.iter().any(|n| n == name) {
            return None;
        }
        // Source: Azure/azure-functions-durable-extension, `DurableTaskExtension.ThrowIfFunctionDoesNotExist`.
        let mut text = format!(
            "The function '{name}' doesn't exist, is disabled, or is not an orchestrator function. Additional info: "
        );
        if known.is_empty() {
            text.push_str("No orchestrator functions are currently registered!");
        } else {
            text.push_str(&format!(
                "The following are the known orchestrator functions: '{}'.",
                known.join("', '")
            ));
        }
        Some(text)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use taskhub_client::fake::{FakeService, client};

    use super::*;

    #[derive(Default)]
    struct Counting(Arc<AtomicUsize>);

    impl HubResolver for Counting {
        fn client(&self, task_hub: &str, _: Option<&str>) -> Result<TaskHubClient, UnknownHub> {
            self.0.fetch_add(1, Ordering::Relaxed);
            if task_hub == "Bad" {
                return Err(UnknownHub("no".into()));
            }
            Ok(client(FakeService::default()).0)
        }
    }

    fn hubs() -> Hubs {
        Hubs::new("Own", client(FakeService::default()).0)
    }

    fn of(hubs: &Hubs, query: &str) -> Result<(String, String, bool), UnknownHub> {
        hubs.of(&Query::parse(Some(query))).map(|hub| (hub.task_hub, hub.connection, hub.is_own))
    }

    #[test]
    fn the_own_hub_is_meant_when_nothing_else_is_said() {
        let hubs = hubs();
        for query in ["", "taskHub=own", "TASKHUB=+&connection=", "taskHub=OWN&connection=storage"] {
            assert_eq!(of(&hubs, query), Ok(("Own".into(), "Storage".into(), true)), "{query}");
        }
        assert!(of(&hubs, "taskHub=Other").is_err());
        assert!(of(&hubs, "connection=Other").is_err());
    }

    #[test]
    fn clients_of_other_hubs_are_made_once_and_not_kept_without_bound() {
        let made = Arc::new(AtomicUsize::new(0));
        let hubs = hubs().resolver(Counting(made.clone()));
        for query in ["taskHub=Other", "taskHub=other&connection=STORAGE"] {
            assert!(matches!(of(&hubs, query), Ok((_, _, false))), "{query}");
        }
        assert_eq!(made.load(Ordering::Relaxed), 1);
        assert!(of(&hubs, "taskHub=Bad").is_err());
        for n in 0..100 {
            assert!(of(&hubs, &format!("taskHub=Hub{n}&connection=Elsewhere")).is_ok());
        }
        assert_eq!(hubs.others.lock().unwrap().len(), MAX_OTHERS);
    }

    #[test]
    fn unknown_orchestrators_are_named_with_the_known_ones() {
        let hubs = hubs().orchestrators(["Greet", "Count"]);
        let own = hubs.of(&Query::default()).unwrap();
        assert_eq!(hubs.refuse_orchestrator(&own, "Greet"), None);
        let text = hubs.refuse_orchestrator(&own, "Nope").unwrap();
        assert!(
            text.starts_with("The function 'Nope' doesn't exist") && text.contains("'Greet', 'Count'"),
            "{text}"
        );
        let other = Hub { is_own: false, ..own };
        assert_eq!(hubs.refuse_orchestrator(&other, "Nope"), None);
    }
}
