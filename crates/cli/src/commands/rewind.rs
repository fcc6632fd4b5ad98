use std::time::Duration;

use anyhow::Result;
use serde_json::json;
use taskhub_client::{RestartId, Rewind};
use taskhub_core::{InstanceFetch, InstanceId, OrchestrationState};

use super::Session;
use crate::Exit;
use crate::args::{OutputForm, RestartArgs, RewindArgs};

/// How long `rewind` waits before it looks at the status again.
const REWIND_PAUSE: Duration = Duration::from_secs(3);

fn name_of(state: Option<&OrchestrationState>) -> &'static str {
    state.and_then(|s| s.status).map_or("Unknown", |s| s.name())
}

impl Session<'_> {
    /// Lets a failed instance go on, and shows its status before and after.
    pub(super) async fn rewind(&mut self, args: RewindArgs) -> Result<Exit> {
        let id = InstanceId::new(args.target.id);
        let before = self.client.state(&id, InstanceFetch::NONE).await?;
        let mut rewind = Rewind::new();
        if let Some(reason) = args.target.reason {
            rewind = rewind.reason(reason);
        }
        if args.allow_timers {
            rewind = rewind.allow_timers();
        }
        let rewound = self.client.rewind(&id, rewind).await?;
        self.console.say(&format!("Rewind message sent to instance '{id}'. Retrieving new status now..."))?;
        tokio::time::sleep(REWIND_PAUSE).await;
        let after = self.client.state(&id, InstanceFetch::NONE).await?;
        let (before, after) = (name_of(before.as_ref()), name_of(after.as_ref()));
        self.console.say(&format!("Status before rewind: {before}"))?;
        self.console.say(&format!("Status after rewind: {after}"))?;
        if self.console.form == Some(OutputForm::Json) {
            let instances: Vec<_> = rewound.instances.iter().map(InstanceId::as_str).collect();
            self.console.json(&json!({
                "instanceId": id.as_str(),
                "statusBefore": before,
                "statusAfter": after,
                "rewound": instances,
            }))?;
        }
        Ok(Exit::Done)
    }

    /// Starts an instance again.
    pub(super) async fn restart(&mut self, args: RestartArgs) -> Result<Exit> {
        let id = InstanceId::new(args.id);
        let which = if args.same_id { RestartId::Same } else { RestartId::New };
        let started = self.client.restart(&id, which).await?;
        self.console.say(&format!("Restarted instance '{id}'. Instance ID: '{}'.", started.instance_id))?;
        match self.console.form {
            Some(OutputForm::Json) => self.console.json(&json!({
                "instanceId": started.instance_id.as_str(),
                "executionId": started.execution_id.as_str(),
            }))?,
            Some(OutputForm::Table) => self.console.data(&format!("{}\n", started.instance_id))?,
            None => {}
        }
        Ok(Exit::Done)
    }

    /// Asks whoever processes the hub to leave it to this application.
    pub(super) async fn make_primary(&mut self) -> Result<Exit> {
        self.client.make_primary().await?;
        let (app, hub) = (&self.app_name, &self.hub);
        self.console.say(&format!("Application '{app}' takes over task hub '{hub}'."))?;
        if self.console.form == Some(OutputForm::Json) {
            self.console.json(&json!({"taskHubName": hub.as_str(), "appName": app}))?;
        }
        Ok(Exit::Done)
    }
}

#[cfg(test)]
mod tests {
    use taskhub_client::fake::FakeService;
    use taskhub_core::OrchestrationStatus::{Completed, Failed, Running};

    use crate::commands::testing::{run, succeeded};

    #[tokio::test(start_paused = true)]
    async fn a_rewind_prints_the_lines_of_func_durable() {
        let line = ["rewind", "--id", "a", "--reason", "Orchestrator failed and needs to be revived."];
        let ran = run(FakeService::default().with_state("a", Failed), &line).await;
        succeeded(&ran);
        assert_eq!(
            ran.out,
            "Rewind message sent to instance 'a'. Retrieving new status now...\n\
             Status before rewind: Failed\nStatus after rewind: Pending\n"
        );
        let rewound = ran.fake.rewound();
        assert_eq!(rewound[0].reason.as_deref(), Some("Orchestrator failed and needs to be revived."));
        assert!(!rewound[0].allow_timers);
        for fake in [FakeService::default(), FakeService::default().with_state("a", Running)] {
            assert!(run(fake, &["rewind", "--id", "a"]).await.exit.is_err());
        }
    }

    #[tokio::test]
    async fn a_restart_tells_the_id() {
        let hub = || FakeService::default().with_state("a", Completed).with_state("b", Running);
        let ran = run(hub(), &["restart", "--id", "a", "--same-id"]).await;
        succeeded(&ran);
        assert_eq!(ran.out, "Restarted instance 'a'. Instance ID: 'a'.\n");
        let ran = run(hub(), &["restart", "--id", "b", "--output", "json"]).await;
        let document: serde_json::Value = serde_json::from_str(&ran.out).unwrap();
        assert_eq!(document["instanceId"].as_str().map(str::len), Some(32));
        assert!(run(hub(), &["restart", "--id", "b", "--same-id"]).await.exit.is_err());
        assert!(run(hub(), &["restart", "--id", "nobody"]).await.exit.is_err());
    }

    #[tokio::test]
    async fn an_application_is_made_the_primary_one() {
        let ran = run(FakeService::default(), &["make-primary"]).await;
        succeeded(&ran);
        assert_eq!(ran.out, "Application 'my-app' takes over task hub 'TestHub'.\n");
        assert_eq!(ran.fake.made_primary(), 1);
    }
}
