use taskhub_core::{InstanceFetch, InstanceId};

use crate::{ClientError, Start, Started, TaskHubClient};

/// Under which id an instance is started again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RestartId {
    /// A new random one; the old instance stays.
    New,
    /// The same one: refused while the instance is not finished, replaces it otherwise.
    Same,
}

impl TaskHubClient {
    /// Starts the orchestrator of an existing instance again, with the input that is stored. An instance
    /// without input gets JSON `null`, as in Durable Functions.
    ///
    /// Version and tags are taken over too.
    ///
    /// Differs: Durable Functions starts it again without them.
    ///
    /// # Errors
    /// `NotFound`: no such instance. `AlreadyExists`: the same id is asked for and still in use. Others as
    /// [`TaskHubClient::start`].
    pub async fn restart(&self, instance_id: &InstanceId, id: RestartId) -> Result<Started, ClientError> {
        let fetch = InstanceFetch { input: true, output: false };
        let Some(state) = self.state(instance_id, fetch).await? else {
            return Err(ClientError::NotFound { instance: instance_id.clone() });
        };
        let mut start = Start::new(state.name).raw_input(state.input.unwrap_or_else(|| "null".to_owned()));
        if let Some(version) = state.version {
            start = start.version(version);
        }
        for (key, value) in state.tags.iter().flat_map(|tags| tags.iter()) {
            start = start.tag(key, value);
        }
        match id {
            RestartId::New => self.start(start).await,
            RestartId::Same => self.start(start.instance_id(instance_id.clone()).unless_active()).await,
        }
    }
}

#[cfg(test)]
mod tests {
    use taskhub_core::ErrorKind;
    use taskhub_core::OrchestrationStatus::{Completed, Failed, Pending, Running, Suspended, Terminated};

    use super::*;
    use crate::fake::{FakeService, client};

    #[tokio::test]
    async fn a_restart_uses_name_and_input_under_a_new_id_or_the_same() {
        let (client, fake) = client(FakeService::default().with_state("a", Completed));
        let fresh = client.restart(&"a".into(), RestartId::New).await.unwrap();
        assert_eq!(fresh.instance_id.as_str().len(), 32);
        let same = client.restart(&"a".into(), RestartId::Same).await.unwrap();
        assert_eq!(same.instance_id.as_str(), "a");
        for request in fake.started() {
            assert_eq!((request.name.as_str(), request.input.as_deref()), ("Greet", Some("null")));
        }
        let missing = client.restart(&"nobody".into(), RestartId::New).await.unwrap_err();
        assert_eq!(missing.kind(), ErrorKind::NotFound);
    }

    #[tokio::test]
    async fn the_same_id_must_be_free() {
        for (status, free) in
            [(Running, false), (Pending, false), (Suspended, false), (Failed, true), (Terminated, true)]
        {
            let (client, _) = client(FakeService::default().with_state("a", status));
            let same = client.restart(&"a".into(), RestartId::Same).await;
            assert_eq!(same.is_ok(), free, "{status}");
            if let Err(error) = same {
                assert_eq!(error.kind(), ErrorKind::AlreadyExists);
            }
            assert!(client.restart(&"a".into(), RestartId::New).await.is_ok(), "{status}");
        }
    }
}
