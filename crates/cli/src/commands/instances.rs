use anyhow::Result;
use serde_json::{Value, json};
use taskhub_client::json::state;
use taskhub_core::InstanceQuery;

use super::{Session, status::instance_table};
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
            page_size: Some(args.top),
            continuation: Some(args.continuation_token).filter(|t| !t.is_empty()),
            ..InstanceQuery::default()
        };
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
        assert!(ran.out.ends_with("]\nContinuation token for next set of results: ''\n"), "{}", ran.out);
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
}
