//! `POST /orchestrators/{function}[/{id}]` and `POST /instances/{id}/restart`.

use std::time::Duration;

use axum::body::Body;
use axum::response::Response;
use taskhub_client::{CHECK_STATUS_INTERVAL, CHECK_STATUS_TIMEOUT, RestartId, Start};
use taskhub_core::{ErrorKind, InstanceId};

use super::links::check_status;
use super::route::SampleRoute;
use super::wait::Wait;
use super::{Call, Next, body, reply, undisturbed};

impl Call {
    pub(super) async fn start(self, function: String, instance_id: Option<String>, body: Body) -> Next {
        let (timeout, interval) = self.wait_parameters();
        match self.start_instance(function, instance_id, body).await {
            Err(refused) => refused.into(),
            Ok((call, id)) => call.started(id, timeout.zip(interval)),
        }
    }

    /// What the functions `HttpStart` and `HttpSyncStart` of the samples do.
    pub(super) async fn start_sample(self, sample: SampleRoute, body: Body) -> Next {
        let (timeout, interval) = self.wait_parameters();
        let wait = (timeout.unwrap_or(CHECK_STATUS_TIMEOUT), interval.unwrap_or(CHECK_STATUS_INTERVAL));
        match self.start_instance(sample.function, None, body).await {
            Err(refused) => refused.into(),
            Ok((call, id)) => call.started(id, sample.waits.then_some(wait)),
        }
    }

    /// Source: Azure/azure-functions-durable-extension, `HttpApiHandler.HandleRestartInstanceRequestAsync`.
    pub(super) async fn restart(self, instance_id: InstanceId) -> Next {
        let (timeout, interval) = self.wait_parameters();
        let id = match self.query.boolean("restartWithNewInstanceId") {
            Some(false) => RestartId::Same,
            _ => RestartId::New,
        };
        let client = self.hub.client.clone();
        match undisturbed(async move { client.restart(&instance_id, id).await }).await {
            Ok(started) => self.started(started.instance_id, timeout.zip(interval)),
            Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::Invalid) => {
                let message = "InstanceId does not match a valid orchestration instance.";
                reply::argument_as(message, &error.to_string()).into()
            }
            Err(error) => self.failed(&error).into(),
        }
    }

    /// Both are needed for a wait. The sample functions call the interval `retryInterval`.
    fn wait_parameters(&self) -> (Option<Duration>, Option<Duration>) {
        let interval = self.query.seconds("pollingInterval").or_else(|| self.query.seconds("retryInterval"));
        (self.query.seconds("timeout"), interval)
    }

    async fn start_instance(
        self,
        function: String,
        instance_id: Option<String>,
        body: Body,
    ) -> Result<(Self, InstanceId), Response> {
        let bytes = body::read(&self.headers, body, &self.api.options).await?;
        let mut start = Start::new(&function);
        if !bytes.iter().all(u8::is_ascii_whitespace) {
            start = start.raw_input(body::json(&bytes).map_err(|reason| reply::invalid_json(&reason))?);
        }
        if let Some(id) = instance_id {
            start = start.instance_id(id);
        }
        if let Some(refusal) = self.api.hubs.refuse_orchestrator(&self.hub, &function) {
            return Err(reply::argument(&refusal));
        }
        let version = self.query.text("version").or(self.api.options.default_version.as_deref());
        if let Some(version) = version {
            start = start.version(version);
        }
        if self.api.options.overrides_any_state {
            start = start.replacing_any();
        }
        let client = self.hub.client.clone();
        match undisturbed(async move { client.start_new(start).await }).await {
            Ok(started) => Ok((self, started.instance_id)),
            Err(error) => Err(self.failed(&error)),
        }
    }

    fn started(self, instance_id: InstanceId, wait: Option<(Duration, Duration)>) -> Next {
        let addresses = self.addresses(&instance_id);
        match wait {
            None => check_status(&addresses).into(),
            Some((timeout, interval)) if interval > timeout => reply::argument(&format!(
                "Total timeout {} should be bigger than retry timeout {}",
                timeout.as_secs_f64(),
                interval.as_secs_f64()
            ))
            .into(),
            Some((timeout, interval)) => {
                Next::Wait(Box::new(Wait { call: self, instance_id, addresses, timeout, interval }))
            }
        }
    }
}
