use std::time::Duration;

use anyhow::{Result, bail};
use serde_json::{Value, json};
use taskhub_client::{PollInterval, Waited};
use taskhub_core::{InstanceFetch, InstanceId, OrchestrationStatus};

use super::Session;
use crate::args::{OutputForm, RaiseEventArgs, ReasonArgs, TerminateArgs};
use crate::{Exit, payload};

/// How long `terminate` waits for the end.
const TERMINATE_TIMEOUT: Duration = Duration::from_secs(30);

impl Session<'_> {
    /// Sends an event without looking whether anybody is there, as `func durable` does.
    pub(super) async fn raise_event(&mut self, args: RaiseEventArgs) -> Result<Exit> {
        let name = args.event_name.unwrap_or_else(|| format!("Event_{}", self.client.new_guid()));
        let data =
            args.event_data.map(|d| payload::parse(&d, args.raw_string, &self.directory)).transpose()?;
        let id = InstanceId::new(args.id);
        self.client.raise_raw_event(&id, &name, data).await?;
        self.console.say(&format!("Raised event '{name}' to instance '{id}'."))?;
        self.report(json!({"instanceId": id.as_str(), "eventName": name}))
    }

    /// Terminates an instance and waits for its end. A missing instance is no failure.
    ///
    /// Differs: `func durable` sends the message to a missing instance too, and waits for one that has
    /// finished already until its time is up.
    pub(super) async fn terminate(&mut self, args: TerminateArgs) -> Result<Exit> {
        let id = InstanceId::new(args.target.id);
        let Some(state) = self.client.state(&id, InstanceFetch::NONE).await? else {
            self.console.warn(&format!("Could not find an orchestration instance with id '{id}'"))?;
            return Ok(Exit::Done);
        };
        if let Some(status) = state.status.filter(|s| s.is_terminal()) {
            bail!("instance '{id}' has finished already. status=`{status}`");
        }
        let reason = args.target.reason.as_deref();
        let sent = if args.recursive {
            self.client.terminate_recursively(&id, reason).await?
        } else {
            self.client.terminate(&id, reason).await?;
            vec![id.clone()]
        };
        let seconds = TERMINATE_TIMEOUT.as_secs();
        self.console.say(&format!(
            "Sent a termination message to instance '{id}'. Waiting up to {seconds} seconds ..."
        ))?;
        for child in sent.iter().skip(1) {
            self.console.note(&format!("Sent a termination message to sub-orchestration '{child}'."))?;
        }
        let interval = PollInterval { longest: Duration::from_secs(1), ..PollInterval::default() };
        match self.client.wait_polling(&id, TERMINATE_TIMEOUT, interval).await? {
            Waited::Finished(state) if state.status == Some(OrchestrationStatus::Terminated) => {
                self.console.say(&format!("Successfully terminated '{id}'"))?;
                let sent: Vec<_> = sent.iter().map(InstanceId::as_str).collect();
                self.report(json!({"instanceId": id.as_str(), "status": "Terminated", "sentTo": sent}))
            }
            Waited::Finished(state) => {
                let status = state.status.map_or("unknown", OrchestrationStatus::name);
                bail!("instance '{id}' finished before it was terminated. status=`{status}`")
            }
            Waited::TimedOut(_) => {
                bail!(
                    "instance '{id}' was not terminated within {seconds} seconds; the message is still queued"
                )
            }
        }
    }

    /// Pauses an instance that can be paused.
    pub(super) async fn suspend(&mut self, args: ReasonArgs) -> Result<Exit> {
        let id = InstanceId::new(args.id);
        self.client.clone().with_status_checks(true).suspend(&id, args.reason.as_deref()).await?;
        self.console.say(&format!("Sent a suspend message to instance '{id}'."))?;
        self.report(json!({"instanceId": id.as_str(), "sent": "suspend"}))
    }

    /// Lets a suspended instance go on.
    pub(super) async fn resume(&mut self, args: ReasonArgs) -> Result<Exit> {
        let id = InstanceId::new(args.id);
        self.client.clone().with_status_checks(true).resume(&id, args.reason.as_deref()).await?;
        self.console.say(&format!("Sent a resume message to instance '{id}'."))?;
        self.report(json!({"instanceId": id.as_str(), "sent": "resume"}))
    }

    /// The result as JSON, when that was asked for.
    fn report(&mut self, document: Value) -> Result<Exit> {
        if self.console.form == Some(OutputForm::Json) {
            self.console.json(&document)?;
        }
        Ok(Exit::Done)
    }
}

#[cfg(test)]
mod tests {
    use taskhub_client::fake::{FakeService, NOW};
    use taskhub_core::OrchestrationStatus::{Completed, Running, Suspended};
    use taskhub_core::{EventKind, HistoryEvent};

    use crate::commands::testing::{run, succeeded};

    #[tokio::test]
    async fn events_are_sent_without_a_look_and_named_if_they_have_no_name() {
        let ran = run(FakeService::default(), &["raise-event", "--id", "a", "--event-data", "3"]).await;
        succeeded(&ran);
        let EventKind::EventRaised { name: Some(name), input, .. } = &ran.fake.sent()[0].1.kind else {
            panic!("{ran:?}");
        };
        assert_eq!(ran.out, format!("Raised event '{name}' to instance 'a'.\n"));
        assert!(name.starts_with("Event_") && name.len() == 38, "{name}");
        assert_eq!(input.as_deref(), Some("3"));
    }

    #[tokio::test]
    async fn a_termination_is_reported_when_it_has_happened() {
        let fake = FakeService::default().with_state("a", Running).obeying();
        let ran = run(fake, &["terminate", "--id", "a", "--reason", "no longer needed"]).await;
        succeeded(&ran);
        let mut lines = ran.out.lines();
        assert!(lines.next().is_some_and(|l| {
            l.starts_with("Sent a termination message to instance 'a'. Waiting up to 30 seconds ")
        }));
        assert_eq!(lines.next(), Some("Successfully terminated 'a'"));
        let reason = Some("no longer needed".to_owned());
        assert_eq!(ran.fake.sent()[0].1.kind, EventKind::ExecutionTerminated { input: reason });
    }

    #[tokio::test]
    async fn a_recursive_termination_names_the_children_it_reached() {
        let kind = EventKind::SubOrchestrationInstanceCreated {
            name: Some("Child".into()),
            version: None,
            instance_id: "child".into(),
            input: None,
            client_span_id: None,
            tags: None,
        };
        let created = vec![HistoryEvent::decision(0, NOW.parse(), kind)];
        let fake = || {
            let fake = FakeService::default().with_state("a", Running).with_state("child", Running);
            fake.with_history("a", created.clone()).obeying()
        };
        let ran = run(fake(), &["terminate", "--id", "a", "--recursive", "--output", "json"]).await;
        succeeded(&ran);
        let document: serde_json::Value = serde_json::from_str(&ran.out).unwrap();
        assert_eq!(document["sentTo"], serde_json::json!(["a", "child"]));
        assert!(ran.err.contains("sub-orchestration 'child'"), "{}", ran.err);
        let ran = run(fake(), &["terminate", "--id", "a"]).await;
        assert_eq!(ran.fake.sent().len(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn a_termination_that_does_not_happen_is_an_error() {
        let ran = run(FakeService::default().with_state("a", Running), &["terminate", "--id", "a"]).await;
        assert!(ran.exit.unwrap_err().to_string().contains("within 30 seconds"));
    }

    #[tokio::test]
    async fn nothing_is_sent_where_there_is_nothing_to_terminate() {
        let ran = run(FakeService::default(), &["terminate", "--id", "a"]).await;
        succeeded(&ran);
        assert!(ran.err.contains("Could not find an orchestration instance with id 'a'"), "{}", ran.err);
        assert!(ran.fake.sent().is_empty());
        let ran = run(FakeService::default().with_state("a", Completed), &["terminate", "--id", "a"]).await;
        assert!(ran.exit.is_err() && ran.fake.sent().is_empty());
    }

    #[tokio::test]
    async fn only_what_can_be_suspended_and_resumed_is() {
        let ran = run(FakeService::default().with_state("a", Running), &["suspend", "--id", "a"]).await;
        assert_eq!(ran.out, "Sent a suspend message to instance 'a'.\n");
        let ran = run(FakeService::default().with_state("a", Suspended), &["resume", "--id", "a"]).await;
        assert_eq!(ran.out, "Sent a resume message to instance 'a'.\n");
        for (command, status) in [("suspend", Suspended), ("resume", Running), ("resume", Completed)] {
            let ran = run(FakeService::default().with_state("a", status), &[command, "--id", "a"]).await;
            assert!(ran.exit.is_err(), "{command} {status}");
        }
        assert!(run(FakeService::default(), &["suspend", "--id", "a"]).await.exit.is_err());
    }
}
