use anyhow::Result;
use serde_json::json;
use taskhub_client::Start;
use taskhub_core::InstanceFetch;

use super::Session;
use crate::args::{OutputForm, StartNewArgs};
use crate::{Exit, payload};

impl Session<'_> {
    /// Starts an instance whatever the status of one with the same id, as `func durable` does.
    pub(super) async fn start_new(&mut self, args: StartNewArgs) -> Result<Exit> {
        let mut start = Start::new(&args.function_name).instance_id(args.id.unwrap_or_default());
        if let Some(input) = &args.input {
            start = start.raw_input(payload::parse(input, args.raw_string, &self.directory)?);
        }
        if let Some(version) = args.version {
            start = start.version(version);
        }
        for (key, value) in args.tag {
            start = start.tag(key, value);
        }
        if let Some(at) = args.start_at {
            start = start.scheduled_at(at.0);
        }
        let started = self.client.start(start).await?;
        let state = self.client.state(&started.instance_id, InstanceFetch::NONE).await?;
        // A worker may be so quick, or a purge, that the row says something else by now.
        let created_at = state.map_or_else(|| self.client.now(), |s| s.created_at);
        let (name, id) = (&args.function_name, &started.instance_id);
        self.console.say(&format!("Started '{name}' at {created_at}. Instance ID: '{id}'."))?;
        if self.console.form == Some(OutputForm::Json) {
            self.console.json(&json!({
                "instanceId": id.as_str(),
                "executionId": started.execution_id.as_str(),
                "createdTime": created_at.to_iso(),
            }))?;
        } else if self.console.form == Some(OutputForm::Table) {
            self.console.data(&format!("{id}\n"))?;
        }
        Ok(Exit::Done)
    }
}

#[cfg(test)]
mod tests {
    use taskhub_client::fake::FakeService;

    use crate::commands::testing::{run, succeeded};

    #[tokio::test]
    async fn a_start_prints_the_line_of_func_durable() {
        let ran = run(FakeService::default(), &["start-new", "--function-name", "Greet", "--id", "a"]).await;
        succeeded(&ran);
        assert_eq!(ran.out, "Started 'Greet' at 2026-01-15T09:30:00.1234567Z. Instance ID: 'a'.\n");
        assert_eq!(ran.fake.started()[0].input, None);
    }

    #[tokio::test]
    async fn json_output_is_one_document_and_the_text_a_note() {
        let line = ["start-new", "--function-name", "Greet", "--input", "3", "--output", "json"];
        let ran = run(FakeService::default(), &line).await;
        succeeded(&ran);
        let document: serde_json::Value = serde_json::from_str(&ran.out).unwrap();
        assert_eq!(document["instanceId"].as_str().map(str::len), Some(32));
        assert!(ran.err.starts_with("Started 'Greet'"), "{}", ran.err);
        assert_eq!(ran.fake.started()[0].input.as_deref(), Some("3"));
    }

    #[tokio::test]
    async fn ids_of_entities_are_refused() {
        let ran =
            run(FakeService::default(), &["start-new", "--function-name", "Greet", "--id", "@a@b"]).await;
        assert!(ran.exit.unwrap_err().to_string().contains("reserved for entities"));
    }
}
