use anyhow::Result;
use taskhub_client::json::functions::{Show, history_events};
use taskhub_client::json::{self, EventTypes};
use taskhub_core::{EventKind, ExecutionId, HistoryEvent, InstanceFetch, InstanceId, OrchestrationState};

use super::Session;
use crate::Exit;
use crate::args::{GetHistoryArgs, GetRuntimeStatusArgs, HistoryFormat, OutputForm};
use crate::table::Table;

impl Session<'_> {
    /// Shows one instance. A missing one is no failure, as in `func durable`.
    pub(super) async fn get_runtime_status(&mut self, args: GetRuntimeStatusArgs) -> Result<Exit> {
        let fetch = InstanceFetch { input: args.show_input, output: args.show_output };
        let id = InstanceId::new(args.id);
        match self.client.state(&id, fetch).await? {
            Some(state) => self.show(&state)?,
            None => {
                self.console.say(&format!("Could not find an orchestration instance with id '{id}'"))?;
                if self.console.form == Some(OutputForm::Json) {
                    self.console.data("null\n")?;
                }
            }
        }
        Ok(Exit::Done)
    }

    pub(super) fn show(&mut self, state: &OrchestrationState) -> Result<()> {
        match self.console.form {
            Some(OutputForm::Table) => self.console.data(&state_lines(state))?,
            _ => self.console.json(&json::state(state))?,
        }
        Ok(())
    }

    /// Shows the history as it is stored, event by event, or as the HTTP API shows it.
    pub(super) async fn get_history(&mut self, args: GetHistoryArgs) -> Result<Exit> {
        let execution = args.execution_id.map(ExecutionId::new);
        let events = self.client.history_of(&InstanceId::new(args.id), execution.as_ref()).await?;
        match self.console.form {
            Some(OutputForm::Table) => self.console.data(&history_table(&events))?,
            form => {
                // `func durable` ends without a line end, which a terminal should not suffer from.
                let end = if form.is_none() && !self.console.out_is_terminal { "" } else { "\n" };
                let document = match args.format {
                    HistoryFormat::Raw => json::history(&events, EventTypes::Names),
                    HistoryFormat::Events => {
                        let show = Show { input: args.show_input, history_output: args.show_output };
                        history_events(&events, show)
                    }
                };
                self.console.data(&format!("{document:#}{end}"))?;
            }
        }
        Ok(Exit::Done)
    }
}

fn status_name(state: &OrchestrationState) -> String {
    state.status.map_or_else(|| "(unknown)".to_owned(), |s| s.to_string())
}

fn state_lines(state: &OrchestrationState) -> String {
    let mut table = Table::new(["INSTANCE", state.instance.instance_id.as_str()]);
    let mut line = |name: &str, value: Option<String>| {
        if let Some(value) = value.filter(|v| !v.is_empty()) {
            table.whole_row([name.to_owned(), value]);
        }
    };
    line("Execution", state.instance.execution_id.as_ref().map(ToString::to_string));
    line("Name", Some(state.name.clone()));
    line("Version", state.version.clone());
    line("Status", Some(status_name(state)));
    line("Created", Some(state.created_at.to_iso()));
    line("Scheduled", state.scheduled_start_at.map(|t| t.to_iso()));
    line("Last updated", Some(state.last_updated_at.to_iso()));
    line("Completed", state.completed_at.map(|t| t.to_iso()));
    line("Custom status", state.custom_status.clone().filter(|s| s != "null"));
    line("Input", state.input.clone());
    line("Output", state.output.clone());
    for (key, value) in state.tags.iter().flat_map(|t| t.iter()) {
        line(&format!("Tag {key}"), Some(value.to_owned()));
    }
    table.render()
}

/// Instances as a table.
pub(crate) fn instance_table(instances: &[OrchestrationState]) -> String {
    instance_rows(instances).render()
}

pub(super) fn instance_rows(instances: &[OrchestrationState]) -> Table {
    let mut table = Table::new(["INSTANCE", "NAME", "STATUS", "CREATED", "LAST UPDATED", "OUTPUT"]);
    for state in instances {
        table.row([
            state.instance.instance_id.to_string(),
            state.name.clone(),
            status_name(state),
            state.created_at.truncated_to_second().to_iso(),
            state.last_updated_at.truncated_to_second().to_iso(),
            state.output.clone().unwrap_or_default(),
        ]);
    }
    table
}

/// A history as a table for reading.
pub(crate) fn history_table(events: &[HistoryEvent]) -> String {
    let mut table = Table::new(["#", "TIME", "EVENT", "WHAT"]);
    for (number, event) in events.iter().enumerate() {
        let time = event.timestamp.to_round_trip();
        // The date is the same all along, as a rule; milliseconds are enough for reading.
        let clock = time.get(11..23).unwrap_or(&time).to_owned();
        table.row([number.to_string(), clock, event.name().to_owned(), summary(event)]);
    }
    table.render()
}

/// What a person wants to know about an event, on one line.
fn summary(event: &HistoryEvent) -> String {
    let text = |t: &Option<String>| t.clone().unwrap_or_default();
    match &event.kind {
        EventKind::ExecutionStarted(e) => format!("{}({})", e.name, text(&e.input)),
        EventKind::ExecutionCompleted(e) | EventKind::ContinueAsNew(e) => {
            format!("{} {}", e.status, text(&e.result))
        }
        EventKind::TaskScheduled { name, input, .. } => {
            let argument = input.as_ref().map(|i| format!("({i})")).unwrap_or_default();
            format!("[{}] {}{argument}", event.event_id, text(name))
        }
        EventKind::SubOrchestrationInstanceCreated { name, instance_id, .. } => {
            format!("[{}] {} as {instance_id}", event.event_id, text(name))
        }
        EventKind::TaskCompleted { task_scheduled_id, result }
        | EventKind::SubOrchestrationInstanceCompleted { task_scheduled_id, result } => {
            format!("[{task_scheduled_id}] {}", text(result))
        }
        EventKind::TaskFailed { task_scheduled_id, reason, failure_details, .. }
        | EventKind::SubOrchestrationInstanceFailed { task_scheduled_id, reason, failure_details, .. } => {
            let why = failure_details.as_ref().map_or_else(|| text(reason), ToString::to_string);
            format!("[{task_scheduled_id}] {why}")
        }
        EventKind::TimerCreated { fire_at } => format!("[{}] until {fire_at}", event.event_id),
        EventKind::TimerFired { timer_id, .. } => format!("[{timer_id}]"),
        EventKind::EventSent { instance_id, name, .. } => format!("{} to {instance_id}", text(name)),
        EventKind::EventRaised { name, input, .. } => format!("{} {}", text(name), text(input)),
        EventKind::ExecutionTerminated { input } => text(input),
        EventKind::ExecutionSuspended { reason }
        | EventKind::ExecutionResumed { reason }
        | EventKind::ExecutionRewound { reason, .. } => text(reason),
        EventKind::GenericEvent { data } => text(data),
        EventKind::HistoryState { .. }
        | EventKind::OrchestratorStarted
        | EventKind::OrchestratorCompleted => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use taskhub_client::fake::{FakeService, NOW};
    use taskhub_core::OrchestrationStatus::{Completed, Suspended};

    use super::*;
    use crate::commands::testing::{run, succeeded};

    #[tokio::test]
    async fn a_status_is_indented_json_with_an_integer_status() {
        let fake = FakeService::default().with_state("a", Suspended);
        let ran = run(fake, &["get-runtime-status", "--id", "a"]).await;
        succeeded(&ran);
        assert!(ran.out.starts_with("{\n  \"CompletedTime\": \"0001-01-01T00:00:00\",\n"), "{}", ran.out);
        assert!(ran.out.contains("\"OrchestrationStatus\": 7,"), "{}", ran.out);
        assert_eq!(ran.err, "");
    }

    #[tokio::test]
    async fn inputs_and_outputs_are_shown_where_that_is_asked_for() {
        let line = ["get-runtime-status", "--id", "a"];
        for (flags, input, output) in [
            (&[][..], false, false),
            (&["--show-input", "true", "--show-output", "true"], true, true),
            (&["--show-input", "--show-output", "false"], true, false),
            (&["--show-output"], false, true),
        ] {
            let fake = FakeService::default().with_state("a", Completed).with("a", |state| {
                (state.input, state.output) = (Some("\"in\"".into()), Some("\"out\"".into()));
            });
            let ran = run(fake, &[&line[..], flags].concat()).await;
            succeeded(&ran);
            let status: serde_json::Value = serde_json::from_str(&ran.out).unwrap();
            let shown = |name: &str, text: &str| status[name].to_string().contains(text);
            assert_eq!(
                (shown("Input", "in"), shown("Output", "out")),
                (input, output),
                "{flags:?} {}",
                ran.out
            );
        }
    }

    #[tokio::test]
    async fn a_missing_instance_is_reported_with_exit_code_0() {
        let ran = run(FakeService::default(), &["get-runtime-status", "--id", "a"]).await;
        succeeded(&ran);
        assert_eq!(ran.out, "Could not find an orchestration instance with id 'a'\n");
        let ran = run(FakeService::default(), &["get-runtime-status", "--id", "a", "--output", "json"]).await;
        assert_eq!(ran.out, "null\n");
    }

    fn history() -> Vec<HistoryEvent> {
        let made = |kind| HistoryEvent::message(NOW.parse(), kind);
        vec![
            made(EventKind::OrchestratorStarted),
            made(EventKind::TaskCompleted { task_scheduled_id: 0, result: Some("\"Hello\"".into()) }),
        ]
    }

    #[tokio::test]
    async fn a_history_is_indented_json_with_names_and_no_line_end() {
        let fake = FakeService::default().with_state("a", Completed).with_history("a", history());
        let ran = run(fake, &["get-history", "--id", "a"]).await;
        succeeded(&ran);
        assert!(ran.out.starts_with("[\n  {\n    \"EventType\": \"OrchestratorStarted\","), "{}", ran.out);
        assert!(ran.out.ends_with("\n]"), "{}", ran.out);
        assert!(ran.out.contains("\"Result\": \"\\\"Hello\\\"\""), "{}", ran.out);
    }

    #[tokio::test]
    async fn a_history_in_the_form_of_the_http_api_has_results_as_json() {
        let hub = || FakeService::default().with_state("a", Completed).with_history("a", history());
        let ran = run(hub(), &["get-history", "--id", "a", "--format", "events"]).await;
        let events: serde_json::Value = serde_json::from_str(&ran.out).unwrap();
        assert_eq!(events.as_array().map(Vec::len), Some(1));
        assert_eq!(
            (events[0]["EventType"].as_str(), events[0]["Result"].as_str()),
            (Some("TaskCompleted"), Some("Hello"))
        );
        let hidden =
            run(hub(), &["get-history", "--id", "a", "--format", "events", "--show-output", "false"]).await;
        assert!(!hidden.out.contains("Hello"), "{}", hidden.out);
    }

    #[tokio::test]
    async fn tables_are_for_reading() {
        let fake = FakeService::default().with_state("a", Completed).with_history("a", history());
        let ran = run(fake, &["get-history", "--id", "a", "--output", "table"]).await;
        assert_eq!(
            ran.out,
            "#  TIME          EVENT                WHAT\n\
             0  09:30:00.123  OrchestratorStarted\n\
             1  09:30:00.123  TaskCompleted        [0] \"Hello\"\n"
        );
        let fake = FakeService::default().with_state("a", Completed);
        let ran = run(fake, &["get-runtime-status", "--id", "a", "--output", "table"]).await;
        assert!(ran.out.contains("Status        Completed\n"), "{}", ran.out);
    }
}
