use anyhow::{Context, Result, bail};
use serde_json::{Value, json};
use taskhub_client::Start;
use taskhub_core::InstanceFetch;

use super::Session;
use crate::args::{OutputForm, StartNewArgs};
use crate::config::member;
use crate::{Exit, payload};

impl Session<'_> {
    /// Starts one instance, or those of a file, whatever the status of one with the same id, as
    /// `func durable` does.
    pub(super) async fn start_new(&mut self, args: StartNewArgs) -> Result<Exit> {
        let one = match (&args.batch, args.function_name) {
            (Some(batch), _) => {
                let text = payload::parse(batch, false, &self.directory)?;
                let starts = parse_batch(&serde_json::from_str(&text)?)?;
                let mut started = Vec::new();
                for (name, start) in starts {
                    started.push(self.start_one(&name, start).await?);
                }
                if self.console.form == Some(OutputForm::Json) {
                    self.console.json(&Value::Array(started))?;
                }
                return Ok(Exit::Done);
            }
            (None, Some(name)) => name,
            (None, None) => bail!("--function-name is missing"),
        };
        let mut start = Start::new(&one).instance_id(args.id.unwrap_or_default());
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
        let started = self.start_one(&one, start).await?;
        if self.console.form == Some(OutputForm::Json) {
            self.console.json(&started)?;
        }
        Ok(Exit::Done)
    }

    async fn start_one(&mut self, name: &str, start: Start) -> Result<Value> {
        let started = self.client.start(start).await?;
        let id = &started.instance_id;
        let state = self.client.state(id, InstanceFetch::NONE).await?;
        // A worker may be so quick, or a purge, that the row says something else by now.
        let created_at = state.map_or_else(|| self.client.now(), |s| s.created_at);
        self.console.say(&format!("Started '{name}' at {created_at}. Instance ID: '{id}'."))?;
        if self.console.form == Some(OutputForm::Table) {
            self.console.data(&format!("{id}\n"))?;
        }
        Ok(json!({
            "instanceId": id.as_str(),
            "executionId": started.execution_id.as_str(),
            "createdTime": created_at.to_iso(),
        }))
    }
}

/// The objects that Durable Functions' output binding starts instances from, one or a list.
/// Source: Azure/azure-functions-durable-extension, `StartOrchestrationArgs`.
fn parse_batch(value: &Value) -> Result<Vec<(String, Start)>> {
    let items = value.as_array().map_or_else(|| std::slice::from_ref(value), Vec::as_slice);
    items
        .iter()
        .enumerate()
        .map(|(index, item)| parse_item(item).with_context(|| format!("bad start. number=`{}`", index + 1)))
        .collect()
}

fn parse_item(item: &Value) -> Result<(String, Start)> {
    let text = |key| match member(item, key) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) => Ok(Some(text.as_str())),
        Some(_) => bail!("{key} must be a text"),
    };
    let name = text("FunctionName")?.context("FunctionName is missing")?;
    let mut start = Start::new(name).instance_id(text("InstanceId")?.unwrap_or_default());
    if let Some(input) = member(item, "Input").filter(|i| !i.is_null()) {
        start = start.input(input)?;
    }
    Ok((name.to_owned(), start))
}

#[cfg(test)]
mod tests {
    use taskhub_client::fake::FakeService;

    use super::*;
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
        let document: Value = serde_json::from_str(&ran.out).unwrap();
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

    #[tokio::test]
    async fn a_file_starts_one_instance_per_object() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("starts.json");
        let text =
            r#"[{"FunctionName": "A", "Input": {"x": 1.50}, "InstanceId": "a"}, {"functionname": "B"}]"#;
        std::fs::write(&file, text).unwrap();
        let ran =
            run(FakeService::default(), &["start-new", "--batch", &format!("@{}", file.display())]).await;
        succeeded(&ran);
        assert_eq!(ran.out.lines().count(), 2);
        let started = ran.fake.started();
        assert_eq!((started[0].name.as_str(), started[0].instance_id.as_str()), ("A", "a"));
        assert_eq!(started[0].input.as_deref(), Some(r#"{"x":1.5}"#));
        assert_eq!((started[1].name.as_str(), started[1].input.as_deref()), ("B", None));
    }

    #[test]
    fn a_batch_that_lacks_a_name_starts_nothing() {
        let error = parse_batch(&json!([{"FunctionName": "A"}, {"Input": 1}])).unwrap_err();
        assert_eq!(format!("{error:#}"), "bad start. number=`2`: FunctionName is missing");
    }
}
