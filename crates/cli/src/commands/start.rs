use anyhow::{Context, Result, bail};
use futures::{StreamExt as _, pin_mut};
use serde_json::{Value, json};
use taskhub_client::{STARTS_AT_ONCE, Start};
use taskhub_core::InstanceFetch;

use super::Session;
use crate::args::{OutputForm, StartNewArgs};
use crate::{Exit, payload};

impl Session<'_> {
    /// Starts one instance, or those of a file, whatever the status of one with the same id, as
    /// `func durable` does.
    pub(super) async fn start_new(&mut self, args: StartNewArgs) -> Result<Exit> {
        let one = match (&args.batch, args.function_name) {
            (Some(batch), _) => {
                let text = payload::parse(batch, false, &self.directory)?;
                return self.start_batch(&serde_json::from_str(&text)?).await;
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

    /// Starts what a file describes, several at once. Ends with the first failure, and then tells what has been
    /// started.
    async fn start_batch(&mut self, objects: &Value) -> Result<Exit> {
        let starts = Start::from_objects(objects)?;
        let (total, mut count) = (starts.len(), 0);
        let client = self.client.clone();
        let progress = (!self.console.out_is_terminal).then(|| self.console.progress());
        let starting = client.start_each(starts);
        pin_mut!(starting);
        let mut documents = Vec::new();
        let mut failure = None;
        while let Some(result) = starting.next().await {
            if let Some(progress) = &progress {
                progress.clear();
            }
            match result {
                Ok(started) => {
                    count += 1;
                    let id = &started.instance_id;
                    match self.console.form {
                        Some(OutputForm::Json) => documents.push(json!({
                            "instanceId": id.as_str(),
                            "executionId": started.execution_id.as_str(),
                        })),
                        Some(OutputForm::Table) => self.console.data(&format!("{id}\n"))?,
                        None => self
                            .console
                            .say(&format!("Started instance {count} of {total}. Instance ID: '{id}'."))?,
                    }
                }
                Err(error) => {
                    failure = Some(error);
                    break;
                }
            }
            if let Some(progress) = &progress {
                progress.show(|| format!("Started {count} of {total}"));
            }
        }
        if let Some(progress) = &progress {
            progress.clear();
        }
        if self.console.form == Some(OutputForm::Json) {
            self.console.json(&Value::Array(documents))?;
        }
        match failure {
            None => Ok(Exit::Done),
            Some(error) => Err(error).with_context(|| {
                format!(
                    "the first {count} of {total} were started, perhaps some of the next {STARTS_AT_ONCE}"
                )
            }),
        }
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

    #[tokio::test]
    async fn a_batch_that_lacks_a_name_starts_nothing_and_one_that_fails_tells_how_far_it_was() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("starts.json");
        let argument = format!("@{}", file.display());
        std::fs::write(&file, r#"[{"FunctionName": "A"}, {"Input": 1}]"#).unwrap();
        let ran = run(FakeService::default(), &["start-new", "--batch", &argument]).await;
        let error = ran.exit.unwrap_err();
        assert!(error.to_string().ends_with("FunctionName is missing. number=`2`"), "{error}");
        assert!(ran.fake.started().is_empty());

        let text = r#"[{"FunctionName": "A"}, {"FunctionName": "A", "InstanceId": "@a@b"}]"#;
        std::fs::write(&file, text).unwrap();
        let ran = run(FakeService::default(), &["start-new", "--batch", &argument, "--output", "json"]).await;
        assert!(format!("{:#}", ran.exit.unwrap_err()).starts_with("the first 1 of 2 were started"));
        let started: Vec<Value> = serde_json::from_str(&ran.out).unwrap();
        assert_eq!(started.len(), 1);
    }
}
