use anyhow::Result;

use super::Session;
use crate::Exit;
use crate::args::DeleteArgs;

impl Session<'_> {
    /// Creates what is missing of the hub.
    pub(super) async fn create_task_hub(&mut self) -> Result<Exit> {
        self.client.create_hub().await?;
        self.console.say(&format!("Task hub '{}' successfully created.", self.hub))?;
        Ok(Exit::Done)
    }

    /// Deletes the hub.
    ///
    /// Differs: `func durable` never asks.
    pub(super) async fn delete_task_hub(&mut self, args: DeleteArgs) -> Result<Exit> {
        let question = format!("Delete task hub '{}' with all its instances?", self.hub);
        if !args.yes && self.console.can_ask && !self.console.confirm(&question)? {
            self.console.note("Nothing was deleted.")?;
            return Ok(Exit::Done);
        }
        self.client.delete_hub().await?;
        self.console.say(&format!("Task hub '{}' successfully deleted.", self.hub))?;
        Ok(Exit::Done)
    }
}

#[cfg(test)]
mod tests {
    use taskhub_client::fake::FakeService;

    use crate::commands::testing::{run, succeeded};

    #[tokio::test]
    async fn hubs_are_created_and_deleted_without_questions_where_nobody_can_answer() {
        for (line, expected) in [
            (&["create-task-hub"][..], "Task hub 'TestHub' successfully created.\n"),
            (&["hub", "create"], "Task hub 'TestHub' successfully created.\n"),
            (&["delete-task-hub"], "Task hub 'TestHub' successfully deleted.\n"),
            (&["hub", "delete", "--yes"], "Task hub 'TestHub' successfully deleted.\n"),
        ] {
            let ran = run(FakeService::default(), line).await;
            succeeded(&ran);
            assert_eq!(ran.out, expected);
        }
    }
}
