use anyhow::{Result, bail};
use serde_json::json;
use taskhub_client::PurgeFilter;
use taskhub_core::{InstanceId, PurgeResult, Timestamp};

use super::Session;
use crate::Exit;
use crate::args::{OutputForm, PurgeHistoryArgs};

impl Session<'_> {
    /// Removes one instance by id, or all finished ones that match.
    pub(super) async fn purge_history(&mut self, args: PurgeHistoryArgs) -> Result<Exit> {
        if let Some(id) = args.id {
            let id = InstanceId::new(id);
            let removed = self.client.clone().with_status_checks(!args.force).purge(&id).await?;
            self.console.say(&format!("Purged orchestration history of instance '{id}'"))?;
            self.report_purge(&removed)?;
            return Ok(Exit::Done);
        }
        let filter = PurgeFilter {
            created_from: args.filter.created_after.map(|t| t.0),
            created_to: args.filter.created_before.map(|t| t.0),
            statuses: args.filter.runtime_status,
            ..PurgeFilter::default()
        };
        let purged = self.client.purge_matching(&filter).await?;
        let (from, to) =
            (filter.created_from.unwrap_or(Timestamp::MIN), filter.created_to.unwrap_or(Timestamp::MAX));
        let mut line =
            format!("Purged orchestration history for all instances created between '{from}' and '{to}'");
        if !filter.statuses.is_empty() {
            let names: Vec<_> = filter.statuses.iter().map(|s| s.name()).collect();
            line.push_str(&format!(
                " and whose runtime status matched one of the following: [{}]",
                names.join(", ")
            ));
        }
        self.console.say(&line)?;
        self.report_purge(&purged.removed)?;
        if purged.failures > 0 {
            bail!("some instances could not be purged. count=`{}`", purged.failures);
        }
        Ok(Exit::Done)
    }

    fn report_purge(&mut self, removed: &PurgeResult) -> Result<()> {
        self.console.say(&format!("Instances deleted: {}", removed.instances))?;
        self.console.say(&format!("Rows deleted: {}", removed.rows))?;
        if self.console.form == Some(OutputForm::Json) {
            self.console.json(&json!({
                "instancesDeleted": removed.instances,
                "rowsDeleted": removed.rows,
                "blobsDeleted": removed.blobs,
            }))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use taskhub_client::fake::FakeService;
    use taskhub_core::OrchestrationStatus::{Completed, Failed, Running};

    use crate::commands::testing::{run, succeeded};

    fn hub() -> FakeService {
        FakeService::default().with_state("a", Completed).with_state("b", Failed).with_state("c", Running)
    }

    #[tokio::test]
    async fn a_purge_by_filter_prints_the_lines_of_func_durable() {
        let line = [
            "purge-history",
            "--created-before",
            "2021-11-14T19:35:00.0000000Z",
            "--runtime-status",
            "failed completed",
        ];
        let ran = run(hub(), &line).await;
        succeeded(&ran);
        assert_eq!(
            ran.out,
            "Purged orchestration history for all instances created between '0001-01-01T00:00:00' and \
             '2021-11-14T19:35:00Z' and whose runtime status matched one of the following: [Failed, Completed]\n\
             Instances deleted: 2\nRows deleted: 0\n"
        );
        assert_eq!(ran.fake.ids(), ["c"]);
    }

    #[tokio::test]
    async fn one_instance_is_purged_by_id_if_it_has_finished_or_by_force() {
        let ran = run(hub(), &["purge-history", "--id", "a"]).await;
        assert_eq!(
            ran.out,
            "Purged orchestration history of instance 'a'\nInstances deleted: 1\nRows deleted: 0\n"
        );
        assert!(run(hub(), &["purge-history", "--id", "c"]).await.exit.is_err());
        let ran = run(hub(), &["purge-history", "--id", "c", "--force"]).await;
        succeeded(&ran);
        assert_eq!(ran.fake.ids(), ["a", "b"]);
        let ran = run(hub(), &["purge-history", "--id", "nobody"]).await;
        assert!(ran.out.contains("Instances deleted: 0\n"), "{}", ran.out);
    }
}
