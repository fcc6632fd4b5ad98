use anyhow::Result;
use serde_json::{Value, json};
use taskhub_client::ListOptions;
use taskhub_client::json::state;
use taskhub_core::{InstanceQuery, OrchestrationState};

use super::Session;
use super::status::{instance_rows, instance_table};
use crate::Exit;
use crate::args::{GetInstancesArgs, OutputForm};

impl Session<'_> {
    /// Lists one page of instances and tells how to get the next one.
    pub(super) async fn get_instances(&mut self, args: GetInstancesArgs) -> Result<Exit> {
        let query = InstanceQuery {
            created_from: args.filter.created_after.map(|t| t.0),
            created_to: args.filter.created_before.map(|t| t.0),
            statuses: args.filter.runtime_status,
            instance_id_prefix: args.id_prefix,
            exclude_entities: args.exclude_entities,
            page_size: (!args.all).then_some(args.top),
            continuation: Some(args.continuation_token).filter(|t| !t.is_empty()),
            ..InstanceQuery::default()
        };
        if args.all {
            return self.get_all_instances(query).await;
        }
        let page = self.client.list(&query).await?;
        let states = || -> Value { page.instances.iter().map(state).collect() };
        let token = page.continuation.as_deref().unwrap_or_default();
        let token_line = format!("Continuation token for next set of results: '{token}'");
        match self.console.form {
            None => {
                self.console.json(&states())?;
                self.console.say(&token_line)?;
            }
            Some(OutputForm::Json) => {
                self.console.json(&json!({"instances": states(), "continuationToken": page.continuation}))?;
            }
            Some(OutputForm::Table) => {
                self.console.data(&instance_table(&page.instances))?;
                if page.continuation.is_some() {
                    self.console.note(&token_line)?;
                }
            }
        }
        Ok(Exit::Done)
    }

    /// Writes all instances as they come, so that memory does not grow with the hub.
    async fn get_all_instances(&mut self, query: InstanceQuery) -> Result<Exit> {
        // Rows on the same terminal tell the progress themselves.
        let progress = (!self.console.out_is_terminal).then(|| self.console.progress());
        let mut pages = self.client.list_stream(query, ListOptions::default());
        let mut widths = Vec::new();
        let mut count = 0;
        let (head, indent, tail) = match self.console.form {
            None => ("[", "  ", "]\n"),
            Some(OutputForm::Json) => {
                ("{\n  \"instances\": [", "    ", "],\n  \"continuationToken\": null\n}\n")
            }
            Some(OutputForm::Table) => ("", "", ""),
        };
        self.console.data(head)?;
        loop {
            let page = pages.next().await;
            if let Some(progress) = &progress {
                progress.clear();
            }
            let Some(page) = page? else { break };
            let text = if self.console.form == Some(OutputForm::Table) {
                // The headings come with the first page.
                instance_rows(&page).render_part(&mut widths, usize::from(count > 0))
            } else {
                elements(&page, count == 0, indent)
            };
            self.console.data(&text)?;
            count += page.len();
            if let Some(progress) = &progress {
                progress.show(|| format!("Instances: {count}"));
            }
        }
        match self.console.form {
            Some(OutputForm::Table) if count == 0 => self.console.data(&instance_table(&[]))?,
            Some(OutputForm::Table) => {}
            _ if count == 0 => self.console.data(tail)?,
            _ => self.console.data(&format!("\n{}{tail}", &indent[2..]))?,
        }
        Ok(Exit::Done)
    }
}

/// Instances as elements of a JSON array that has begun.
fn elements(page: &[OrchestrationState], is_first: bool, indent: &str) -> String {
    let mut text = String::new();
    for (number, instance) in page.iter().enumerate() {
        text.push_str(if is_first && number == 0 { "\n" } else { ",\n" });
        let element = format!("{:#}", state(instance));
        for (line, content) in element.lines().enumerate() {
            if line > 0 {
                text.push('\n');
            }
            text.push_str(indent);
            text.push_str(content);
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use taskhub_client::fake::FakeService;
    use taskhub_core::OrchestrationStatus::{Completed, Running};

    use crate::commands::testing::{run, succeeded};

    fn hub() -> FakeService {
        FakeService::default().with_state("a", Completed).with_state("b", Running).with_state("c", Running)
    }

    #[tokio::test]
    async fn a_page_ends_with_its_token_and_the_token_leads_on() {
        let ran = run(hub(), &["get-instances", "--top", "2"]).await;
        succeeded(&ran);
        let (array, token) = ran.out.rsplit_once("]\n").unwrap();
        let page: Vec<serde_json::Value> = serde_json::from_str(&format!("{array}]")).unwrap();
        assert_eq!(page.len(), 2);
        assert_eq!(token, "Continuation token for next set of results: 'b'\n");
        let ran = run(hub(), &["get-instances", "--top", "2", "--continuation-token", "b"]).await;
        let (array, token) = ran.out.rsplit_once("]\n").unwrap();
        assert_eq!(token, "Continuation token for next set of results: ''\n");
        let page: Vec<serde_json::Value> = serde_json::from_str(&format!("{array}]")).unwrap();
        assert!(page.len() == 1 && page[0].to_string().contains("\"c\""), "{}", ran.out);
    }

    #[tokio::test]
    async fn ten_instances_are_listed_by_default_and_dates_and_statuses_choose_them() {
        let many = || (0..12).fold(hub(), |fake, n| fake.with_state(&format!("i{n:02}"), Completed));
        let listed = async |fake, arguments: &[&str]| -> Vec<serde_json::Value> {
            let ran = run(fake, &[&["get-instances"], arguments].concat()).await;
            succeeded(&ran);
            let (array, _) = ran.out.rsplit_once("]\n").unwrap();
            serde_json::from_str(&format!("{array}]")).unwrap()
        };
        assert_eq!(listed(many(), &[]).await.len(), 10);
        assert_eq!(listed(many(), &["--top", "100"]).await.len(), 15);
        assert_eq!(listed(many(), &["--top", "100", "--runtime-status", "running FAILED"]).await.len(), 2);
        // All were created on 15 January 2026 at 09:30:00.1234567.
        assert_eq!(listed(hub(), &["--created-before", "2026-01-15T09:30Z"]).await.len(), 0);
        assert_eq!(listed(hub(), &["--created-before", "2026-01-15T09:30:00.1234567Z"]).await.len(), 3);
        assert_eq!(listed(hub(), &["--created-after", "2026-01-15T09:30:00.1234567Z"]).await.len(), 3);
        assert_eq!(listed(hub(), &["--created-after", "2026-01-15T09:31Z"]).await.len(), 0);
    }

    #[tokio::test]
    async fn json_output_has_instances_and_token_in_one_document() {
        let ran = run(hub(), &["get-instances", "--runtime-status", "running", "--output", "json"]).await;
        let document: serde_json::Value = serde_json::from_str(&ran.out).unwrap();
        assert_eq!(document["instances"].as_array().map(Vec::len), Some(2));
        assert!(document["continuationToken"].is_null());
    }

    #[tokio::test]
    async fn a_table_has_a_row_per_instance() {
        let ran = run(hub(), &["get-instances", "--output", "table"]).await;
        assert_eq!(ran.out.lines().count(), 4);
        assert!(ran.out.starts_with("INSTANCE  NAME   STATUS "), "{}", ran.out);
        assert_eq!(ran.err, "");
    }

    #[tokio::test]
    async fn all_instances_are_one_document_however_many_there_are() {
        let many = || {
            (0..2500).fold(FakeService::default(), |fake, n| fake.with_state(&format!("i{n:04}"), Running))
        };
        let ran = run(many(), &["get-instances", "--all"]).await;
        succeeded(&ran);
        let all: Vec<serde_json::Value> = serde_json::from_str(&ran.out).unwrap();
        assert_eq!(all.len(), 2500);
        assert!(ran.out.starts_with("[\n  {\n    \"CompletedTime\"") && ran.out.ends_with("\n  }\n]\n"));
        let ran = run(many(), &["get-instances", "--all", "--output", "json"]).await;
        let document: serde_json::Value = serde_json::from_str(&ran.out).unwrap();
        assert_eq!(ran.out, format!("{document:#}\n"));
        assert_eq!(document["instances"].as_array().map(Vec::len), Some(2500));
        let ran = run(many(), &["get-instances", "--all", "--output", "table"]).await;
        assert_eq!(ran.out.lines().count(), 2501);
        assert_eq!(ran.out.matches("INSTANCE").count(), 1);
        for (form, expected) in [
            (&[][..], "[]\n"),
            (&["--output", "json"], "{\n  \"instances\": [],\n  \"continuationToken\": null\n}\n"),
            (&["--output", "table"], "INSTANCE  NAME  STATUS  CREATED  LAST UPDATED  OUTPUT\n"),
        ] {
            let ran = run(FakeService::default(), &[&["get-instances", "--all"], form].concat()).await;
            assert_eq!((ran.out.as_str(), ran.err.as_str()), (expected, ""));
        }
    }
}
