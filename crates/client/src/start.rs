use serde::Serialize;
use taskhub_core::{
    ExecutionId, InstanceId, OrchestrationStatus, StartOutcome, StartRequest, Tags, Timestamp,
};

use crate::{ClientError, Operation, TaskHubClient, instance_id};

/// A new instance, described step by step.
#[derive(Debug, Clone)]
pub struct Start {
    request: StartRequest,
    has_dedupe: bool,
}

/// What a start gave.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Started {
    /// The instance.
    pub instance_id: InstanceId,
    /// Its new execution.
    pub execution_id: ExecutionId,
}

impl Start {
    /// An instance of the orchestrator `name`, with a random id, without input.
    pub fn new(name: impl Into<String>) -> Self {
        Self { request: StartRequest { name: name.into(), ..StartRequest::default() }, has_dedupe: false }
    }

    /// The input, written as JSON.
    ///
    /// # Errors
    /// `Invalid`: the value has no JSON form.
    pub fn input<T: Serialize + ?Sized>(self, input: &T) -> Result<Self, ClientError> {
        let text = serde_json::to_string(input)
            .map_err(|source| ClientError::Payload { argument: "input", source })?;
        Ok(self.raw_input(text))
    }

    /// The input as it is to be stored; workers expect JSON text.
    pub fn raw_input(mut self, input: impl Into<String>) -> Self {
        self.request.input = Some(input.into());
        self
    }

    /// The id; a blank one is replaced by a random GUID of 32 hex digits.
    pub fn instance_id(mut self, instance_id: impl Into<InstanceId>) -> Self {
        self.request.instance_id = instance_id.into();
        self
    }

    /// The version of the orchestrator; empty when not set.
    pub fn version(mut self, version: impl Into<String>) -> Self {
        self.request.version = Some(version.into());
        self
    }

    /// Adds a tag.
    pub fn tag(mut self, key: impl Into<String>, value: impl Into<String>) -> Self {
        self.request.tags.get_or_insert_with(Tags::new).insert(key, value);
        self
    }

    /// Does not run before this time.
    pub fn scheduled_at(mut self, at: Timestamp) -> Self {
        self.request.scheduled_start_at = Some(at);
        self
    }

    /// Refuses the start when an instance with this id has one of these statuses. Without it, an
    /// existing instance is replaced in any status, as by DTFx's own client.
    pub fn unless_in(mut self, statuses: impl IntoIterator<Item = OrchestrationStatus>) -> Self {
        self.request.dedupe_statuses = statuses.into_iter().collect();
        self.has_dedupe = true;
        self
    }

    /// Replaces an existing instance in any status, also in [`TaskHubClient::start_new`].
    /// Source: Azure/azure-functions-durable-extension, `OverridableStates.AnyState`.
    pub fn replacing_any(self) -> Self {
        self.unless_in([])
    }

    /// Refuses the start while an instance with this id is not finished.
    /// Source: Azure/azure-functions-durable-extension, `OverridableStates.NonRunningStates`.
    pub fn unless_active(self) -> Self {
        use OrchestrationStatus::*;
        self.unless_in([Running, ContinuedAsNew, Pending, Suspended])
    }
}

impl TaskHubClient {
    /// Starts an instance as Durable Functions' client does: [`TaskHubClient::start`] with its rules for ids
    /// (no `/ \\ # ?`, at most 256 characters), and refused while an instance with this id is not finished,
    /// unless the start says otherwise.
    ///
    /// # Errors
    /// As [`TaskHubClient::start`].
    pub async fn start_new(&self, start: Start) -> Result<Started, ClientError> {
        if !start.request.instance_id.as_str().trim().is_empty() {
            instance_id::check_new_strictly(&start.request.instance_id)?;
        }
        let start = if start.has_dedupe { start } else { start.unless_active() };
        self.start(start).await
    }

    /// Starts an instance. Ends when the start message and the row with status `Pending` are stored; no
    /// worker is needed.
    ///
    /// # Errors
    /// `Invalid`: no name, an id that is too long or belongs to an entity. `AlreadyExists`: an instance
    /// in one of the statuses given to [`Start::unless_in`]. Others: the backend failed.
    pub async fn start(&self, start: Start) -> Result<Started, ClientError> {
        let mut request = start.request;
        if request.name.trim().is_empty() {
            return Err(ClientError::Blank { argument: "orchestrator name" });
        }
        if request.instance_id.as_str().trim().is_empty() {
            request.instance_id = InstanceId::new(self.new_guid());
            request.id_is_new = true;
        }
        instance_id::check_new(&request.instance_id)?;
        // Differs: DTFx starts it, and the worker then runs it as an entity that never completes.
        if request.instance_id.is_entity() {
            return Err(ClientError::EntityId { instance: request.instance_id });
        }
        // DTFx clients send an empty version when there is none; the column is never absent.
        request.version.get_or_insert_with(String::new);
        let instance = request.instance_id.clone();
        match self.service().start_instance(request).await {
            Ok(StartOutcome::Started { instance_id, execution_id }) => {
                tracing::debug!(instance = %instance_id, execution = %execution_id, "instance started");
                Ok(Started { instance_id, execution_id })
            }
            Ok(StartOutcome::Exists { status }) => Err(ClientError::AlreadyExists { instance, status }),
            Err(source) => Err(ClientError::Service { operation: Operation::Start, source }),
        }
    }
}

#[cfg(test)]
mod tests {
    use taskhub_core::ErrorKind;

    use super::*;
    use crate::fake::{FakeService, client};

    #[tokio::test]
    async fn a_start_without_an_id_gets_32_hex_digits_and_the_empty_version() {
        let (client, fake) = client(FakeService::default());
        let started = client.start(Start::new("Greet").input(&"Tokyo").unwrap()).await.unwrap();
        assert_eq!(started.instance_id.as_str().len(), 32);
        assert!(started.instance_id.as_str().bytes().all(|b| b.is_ascii_hexdigit()));
        let request = &fake.started()[0];
        assert_eq!(request.input.as_deref(), Some("\"Tokyo\""));
        assert_eq!(request.version.as_deref(), Some(""));
        assert_eq!(request.instance_id, started.instance_id);
        assert_eq!(request.tags, None);
    }

    #[tokio::test]
    async fn all_parts_of_a_start_reach_the_backend() {
        let (client, fake) = client(FakeService::default());
        let at = Timestamp::parse("2026-01-15T09:30:00Z").unwrap();
        let start = Start::new("Greet")
            .instance_id("order-17")
            .raw_input("{}")
            .version("2.0")
            .tag("env", "prod")
            .scheduled_at(at)
            .unless_active();
        client.start(start).await.unwrap();
        let request = &fake.started()[0];
        assert_eq!((request.name.as_str(), request.instance_id.as_str()), ("Greet", "order-17"));
        assert_eq!(request.input.as_deref(), Some("{}"));
        assert_eq!(request.version.as_deref(), Some("2.0"));
        assert_eq!(request.tags.as_ref().and_then(|t| t.get("env")), Some("prod"));
        assert_eq!(request.scheduled_start_at, Some(at));
        assert_eq!(request.dedupe_statuses.len(), 4);
    }

    #[tokio::test]
    async fn nothing_is_sent_for_arguments_that_cannot_work() {
        let (client, fake) = client(FakeService::default());
        for start in [
            Start::new(" "),
            Start::new("Greet").instance_id("@counter@a"),
            Start::new("Greet").instance_id("x".repeat(513)),
        ] {
            assert_eq!(client.start(start).await.unwrap_err().kind(), ErrorKind::Invalid);
        }
        assert!(fake.started().is_empty());
    }

    #[tokio::test]
    async fn a_duplicate_is_an_error_only_when_asked_for() {
        let fake = FakeService::default().with_state("a", OrchestrationStatus::Running);
        let (client, _) = client(fake);
        client.start(Start::new("Greet").instance_id("a")).await.unwrap();
        let error = client.start(Start::new("Greet").instance_id("a").unless_active()).await.unwrap_err();
        assert_eq!(
            error.to_string(),
            "an instance with this id already exists. instance=`a` status=`Pending`"
        );
    }
}
