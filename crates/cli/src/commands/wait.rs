use anyhow::Result;
use taskhub_client::{PollInterval, Waited};
use taskhub_core::{InstanceId, OrchestrationStatus};

use super::Session;
use crate::Exit;
use crate::args::WaitArgs;

impl Session<'_> {
    /// Waits for an instance to finish and shows it; the exit code tells how it went.
    pub(super) async fn wait(&mut self, args: WaitArgs) -> Result<Exit> {
        let id = InstanceId::new(args.id);
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
}

#[cfg(test)]
mod tests {
    use taskhub_client::fake::FakeService;
    use taskhub_core::OrchestrationStatus::{Completed, Failed, Running};

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
}
