use std::sync::Arc;

use anyhow::{Result, bail};
use serde_json::json;
use taskhub_client::{ListOptions, PurgeFilter, PurgeOptions, Purged};
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
            self.report_purge(&removed, 0, None)?;
            return Ok(Exit::Done);
        }
        let now = self.client.now();
        let filter = PurgeFilter {
            created_from: args.filter.created_after.map(|t| t.0),
            created_to: args.filter.created_before.map(|t| t.0).or(args.older_than.map(|age| now - age)),
            statuses: args.filter.runtime_status.clone(),
            instance_id_prefix: args.id_prefix.clone(),
            include_entities: args.include_entities,
        };
        let range = range(&filter);
        if args.dry_run {
            return self.count_matching(&filter, &range).await;
        }
        if !args.yes && self.console.can_ask {
            let question = format!("Purge all finished instances created {range}?");
            if !self.console.confirm(&question)? {
                self.console.note("Nothing was deleted.")?;
                return Ok(Exit::Done);
            }
        }
        let progress = self.console.progress();
        let shown = progress.clone();
        let options = PurgeOptions {
            concurrency: args.concurrency as usize,
            per_second: args.per_second,
            timeout: args.timeout,
            cursor: args.cursor,
            progress: Some(Arc::new(move |purged: &Purged| {
                shown.show(|| {
                    let failures = if purged.failures > 0 {
                        format!(", failed: {}", purged.failures)
                    } else {
                        String::new()
                    };
                    format!(
                        "Instances deleted: {}, rows: {}{failures}",
                        purged.removed.instances, purged.removed.rows
                    )
                });
            })),
        };
        let purged = self.client.purge_with(&filter, options).await;
        progress.clear();
        let purged = purged?;
        self.console.say(&format!("Purged orchestration history for all instances created {range}"))?;
        self.report_purge(&purged.removed, purged.failures, purged.cursor.as_deref())?;
        if purged.failures > 0 {
            bail!("some instances could not be purged. count=`{}`", purged.failures);
        }
        match purged.cursor {
            None => Ok(Exit::Done),
            Some(cursor) => {
                self.console
                    .warn(&format!("There is more to purge; --cursor '{cursor}' goes on from here."))?;
                Ok(Exit::TimedOut)
            }
        }
    }

    /// Tells how many instances a purge would remove.
    async fn count_matching(&mut self, filter: &PurgeFilter, range: &str) -> Result<Exit> {
        let progress = self.console.progress();
        let mut count: u64 = 0;
        for query in filter.queries()? {
            let wants_entities = !query.exclude_entities;
            let mut pages = self.client.list_stream(query, ListOptions::default());
            loop {
                let page = pages.next().await;
                progress.clear();
                let Some(page) = page? else { break };
                let ids = page.iter().map(|state| &state.instance.instance_id);
                count += ids.filter(|id| id.is_entity() == wants_entities).count() as u64;
                progress.show(|| format!("Instances: {count}"));
            }
        }
        progress.clear();
        self.console.say(&format!("Would purge orchestration history for all instances created {range}"))?;
        self.console.say(&format!("Instances: {count}"))?;
        if self.console.form == Some(OutputForm::Json) {
            self.console.json(&json!({"instances": count}))?;
        }
        Ok(Exit::Done)
    }

    fn report_purge(&mut self, removed: &PurgeResult, failures: u64, cursor: Option<&str>) -> Result<()> {
        self.console.say(&format!("Instances deleted: {}", removed.instances))?;
        self.console.say(&format!("Rows deleted: {}", removed.rows))?;
        if self.console.form == Some(OutputForm::Json) {
            self.console.json(&json!({
                "instancesDeleted": removed.instances,
                "rowsDeleted": removed.rows,
                "blobsDeleted": removed.blobs,
                "failures": failures,
                "cursor": cursor,
            }))?;
        }
        Ok(())
    }
}

/// Which instances, in the words of `func durable`.
fn range(filter: &PurgeFilter) -> String {
    let (from, to) =
        (filter.created_from.unwrap_or(Timestamp::MIN), filter.created_to.unwrap_or(Timestamp::MAX));
    let mut text = format!("between '{from}' and '{to}'");
    if !filter.statuses.is_empty() {
        let names: Vec<_> = filter.statuses.iter().map(|s| s.name()).collect();
        text.push_str(&format!(
            " and whose runtime status matched one of the following: [{}]",
            names.join(", ")
        ));
    }
    text
}

#[cfg(test)]
mod tests {
    use crate::Exit;
    use crate::commands::testing::{run, succeeded};
    use taskhub_client::fake::FakeService;
    use taskhub_core::OrchestrationStatus::{Completed, Failed, Running};
    use taskhub_core::Timestamp;

    fn hub() -> FakeService {
        FakeService::default().with_state("a", Completed).with_state("b", Failed).with_state("c", Running)
    }

    /// The same, and a finished instance whose siblings were created at this time.
    fn hub_of(created_at: &str) -> FakeService {
        let at = Timestamp::parse(created_at).unwrap();
        let old = |fake: FakeService, id| fake.with(id, |state| state.created_at = at);
        ["a", "b", "c"].into_iter().fold(hub().with_state("new", Completed), old)
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
        let ran = run(hub_of("2021-11-14T19:35:00Z"), &line).await;
        succeeded(&ran);
        assert_eq!(
            ran.out,
            "Purged orchestration history for all instances created between '0001-01-01T00:00:00' and \
             '2021-11-14T19:35:00Z' and whose runtime status matched one of the following: [Failed, Completed]\n\
             Instances deleted: 2\nRows deleted: 0\n"
        );
        assert_eq!(ran.fake.ids(), ["c", "new"]);
        let ran = run(hub_of("2021-11-14T19:35:00.0000001Z"), &line).await;
        assert_eq!(ran.fake.ids().len(), 4, "{}", ran.out);
        let after = ["purge-history", "--created-after", "2021-11-14T19:36Z"];
        let ran = run(hub_of("2021-11-14T19:35:00Z"), &after).await;
        assert_eq!(ran.fake.ids(), ["a", "b", "c"], "{}", ran.out);
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

    #[tokio::test]
    async fn old_instances_are_purged_by_age_and_a_dry_run_counts_them() {
        let line = ["purge-history", "--older-than", "30d"];
        let hub = || hub_of("2025-12-16T09:30:00Z");
        let ran = run(hub(), &[&line[..], &["--dry-run"]].concat()).await;
        succeeded(&ran);
        assert_eq!(
            ran.out,
            "Would purge orchestration history for all instances created between '0001-01-01T00:00:00' and \
             '2025-12-16T09:30:00.1234567Z'\nInstances: 2\n"
        );
        assert_eq!(ran.fake.ids().len(), 4);
        let ran = run(hub(), &[&line[..], &["--output", "json"]].concat()).await;
        succeeded(&ran);
        let document: serde_json::Value = serde_json::from_str(&ran.out).unwrap();
        assert_eq!((document["instancesDeleted"].as_u64(), document["cursor"].is_null()), (Some(2), true));
        assert_eq!(ran.fake.ids(), ["c", "new"]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_purge_that_is_cut_off_gives_a_cursor_from_which_the_next_goes_on() {
        let many =
            (0..450).fold(FakeService::default(), |fake, n| fake.with_state(&format!("i{n:04}"), Completed));
        let line = ["purge-history", "--per-second", "100", "--timeout", "2.505", "--output", "json"];
        let ran = run(many, &line).await;
        assert_eq!(ran.exit.unwrap(), Exit::TimedOut);
        let document: serde_json::Value = serde_json::from_str(&ran.out).unwrap();
        assert_eq!(document["instancesDeleted"], 251);
        let cursor = document["cursor"].as_str().unwrap();
        assert!(ran.err.contains(&format!("--cursor '{cursor}'")), "{}", ran.err);
        let rest = (251..450)
            .fold(FakeService::default(), |fake, n| fake.with_state(&format!("i{n:04}"), Completed));
        let ran = run(rest, &["purge-history", "--cursor", cursor]).await;
        succeeded(&ran);
        assert!(ran.out.contains("Instances deleted: 199\n") && ran.fake.ids().is_empty(), "{}", ran.out);
        assert!(run(hub(), &["purge-history", "--cursor", "x"]).await.exit.is_err());
    }
}
