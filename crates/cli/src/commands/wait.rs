use std::time::Duration;

use anyhow::Result;
use taskhub_client::{PollInterval, Waited};
use taskhub_core::{InstanceId, OrchestrationStatus};

use super::Session;
use crate::Exit;
use crate::args::{Awaited, WaitArgs};

impl Session<'_> {
    /// Waits for an instance to finish, or to begin, and shows it; the exit code tells how it went.
    pub(super) async fn wait(&mut self, args: WaitArgs) -> Result<Exit> {
        let id = InstanceId::new(args.id);
        if args.awaited == Awaited::Start {
            return self.wait_for_start(&id, args.timeout).await;
        }
        let interval = PollInterval::every(args.retry_interval);
        match self.client.wait_polling(&id, args.timeout, interval).await? {
            Waited::Finished(state) => {
                self.show(&state)?;
                let completed = state.status == Some(OrchestrationStatus::Completed);
                Ok(if completed { Exit::Done } else { Exit::NotCompleted })
            }
            Waited::TimedOut(Some(state)) => {
                let status = state.status.map_or("unknown", OrchestrationStatus::name);
                let seconds = args.timeout.as_secs_f64();
                self.console.warn(&format!("Instance '{id}' is still {status} after {seconds} seconds."))?;
                Ok(Exit::TimedOut)
            }
            Waited::TimedOut(None) => {
                self.console.warn(&format!("Could not find an orchestration instance with id '{id}'"))?;
                Ok(Exit::TimedOut)
            }
        }
    }

    async fn wait_for_start(&mut self, id: &InstanceId, timeout: Duration) -> Result<Exit> {
        match self.client.wait_for_start(id, timeout).await? {
            Some(state) => {
                self.show(&state)?;
                Ok(Exit::Done)
            }
            None => {
                let seconds = timeout.as_secs_f64();
                self.console.warn(&format!("Instance '{id}' has not begun after {seconds} seconds."))?;
                Ok(Exit::TimedOut)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use taskhub_client::fake::FakeService;
    use taskhub_core::OrchestrationStatus::{Completed, Failed, Pending, Running};

    use crate::Exit;
    use crate::commands::testing::run;

    #[tokio::test(start_paused = true)]
    async fn the_exit_code_tells_how_the_instance_ended() {
        for (status, expected) in
            [(Completed, Exit::Done), (Failed, Exit::NotCompleted), (Running, Exit::TimedOut)]
        {
            let ran = run(FakeService::default().with_state("a", status), &["wait", "--id", "a"]).await;
            assert_eq!(ran.exit.unwrap(), expected, "{status}");
            assert_eq!(ran.out.is_empty(), expected == Exit::TimedOut, "{status}");
        }
        let ran = run(FakeService::default(), &["wait", "--id", "a"]).await;
        assert_eq!(ran.exit.unwrap(), Exit::TimedOut);
    }

    #[tokio::test(start_paused = true)]
    async fn a_wait_for_the_start_is_over_when_the_instance_runs_or_has_run() {
        for (status, expected) in [(Running, Exit::Done), (Failed, Exit::Done), (Pending, Exit::TimedOut)] {
            let fake = FakeService::default().with_state("a", status);
            let ran = run(fake, &["wait", "--id", "a", "--for", "start"]).await;
            assert_eq!(ran.exit.unwrap(), expected, "{status}");
        }
    }
}
