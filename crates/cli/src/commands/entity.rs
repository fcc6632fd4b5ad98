use anyhow::Result;
use serde_json::{Value, json};
use taskhub_client::json::functions::payload;
use taskhub_client::{CleanEntities, ClientError, EntityId, EntityQuery, EntityState};

use super::Session;
use crate::args::{CleanArgs, EntityArgs, EntityCommand, ListEntitiesArgs, OutputForm, SignalArgs};
use crate::table::Table;
use crate::{Exit, payload as argument};

impl Session<'_> {
    pub(super) async fn entity(&mut self, command: EntityCommand) -> Result<Exit> {
        match command {
            EntityCommand::Signal(args) => self.signal_entity(args).await,
            EntityCommand::Get(args) => self.get_entity(args).await,
            EntityCommand::List(args) => self.list_entities(args).await,
            EntityCommand::Clean(args) => self.clean_entities(args).await,
        }
    }

    async fn signal_entity(&mut self, args: SignalArgs) -> Result<Exit> {
        let id = EntityId::new(&args.entity.name, args.entity.key).map_err(ClientError::from)?;
        let input = args.input.map(|i| argument::parse(&i, args.raw_string, &self.directory)).transpose()?;
        self.client.signal_entity(&id, &args.op, input, args.at.map(|t| t.0)).await?;
        self.console.say(&format!("Sent signal '{}' to entity '{id}'.", args.op))?;
        if self.console.form == Some(OutputForm::Json) {
            self.console.json(&json!({
                "entityName": id.name(), "entityKey": id.key(), "operation": args.op,
                "scheduledTime": args.at.map(|t| t.0.to_iso()),
            }))?;
        }
        Ok(Exit::Done)
    }

    /// Shows the state of an entity as a JSON document. A missing one is no failure, as with instances.
    async fn get_entity(&mut self, args: EntityArgs) -> Result<Exit> {
        let id = EntityId::new(&args.name, args.key).map_err(ClientError::from)?;
        let found = self.client.read_entity(&id).await?;
        match (found, self.console.form) {
            (Some(entity), None) => self.console.json(&payload(entity.state.as_deref()))?,
            (Some(entity), Some(OutputForm::Json)) => self.console.json(&as_json(&entity))?,
            (Some(entity), Some(OutputForm::Table)) => self.console.data(&entity_table(&[entity]))?,
            (None, form) => {
                self.console.say(&format!("Could not find an entity with id '{id}'"))?;
                if form == Some(OutputForm::Json) {
                    self.console.data("null\n")?;
                }
            }
        }
        Ok(Exit::Done)
    }

    async fn list_entities(&mut self, args: ListEntitiesArgs) -> Result<Exit> {
        let query = EntityQuery {
            name: args.name,
            last_operation_from: args.last_operation_after.map(|t| t.0),
            last_operation_to: args.last_operation_before.map(|t| t.0),
            page_size: Some(args.top),
            continuation: Some(args.continuation_token).filter(|t| !t.is_empty()),
            fetch_state: args.fetch_state,
            include_deleted: args.include_deleted,
        };
        let page = self.client.list_entities(&query).await?;
        let entities = || -> Value { page.entities.iter().map(as_json).collect() };
        let token = page.continuation.as_deref().unwrap_or_default();
        let token_line = format!("Continuation token for next set of results: '{token}'");
        match self.console.form {
            None => {
                self.console.json(&entities())?;
                self.console.say(&token_line)?;
            }
            Some(OutputForm::Json) => {
                self.console
                    .json(&json!({"entities": entities(), "continuationToken": page.continuation}))?;
            }
            Some(OutputForm::Table) => {
                self.console.data(&entity_table(&page.entities))?;
                if page.continuation.is_some() {
                    self.console.note(&token_line)?;
                }
            }
        }
        Ok(Exit::Done)
    }

    /// Cleans the whole hub, some seconds at a time.
    async fn clean_entities(&mut self, args: CleanArgs) -> Result<Exit> {
        let mut what = CleanEntities {
            remove_empty: !args.keep_empty,
            release_orphaned_locks: !args.keep_locks,
            continuation: None,
        };
        let (mut removed, mut released) = (0, 0);
        let progress = self.console.progress();
        loop {
            let cleaned = self.client.clean_entity_storage(&what).await;
            progress.clear();
            let cleaned = cleaned?;
            removed += cleaned.removed;
            released += cleaned.released;
            progress.show(|| format!("Entities removed: {removed}, locks released: {released}"));
            // A continuation that stays the same would be followed for ever.
            let is_stuck = cleaned.continuation == what.continuation;
            what.continuation = cleaned.continuation.filter(|_| !is_stuck);
            if what.continuation.is_none() {
                break;
            }
        }
        progress.clear();
        self.console.say(&format!("Empty entities removed: {removed}"))?;
        self.console.say(&format!("Orphaned locks released: {released}"))?;
        if self.console.form == Some(OutputForm::Json) {
            self.console.json(
                &json!({"numberOfEmptyEntitiesRemoved": removed, "numberOfOrphanedLocksRemoved": released}),
            )?;
        }
        Ok(Exit::Done)
    }
}

fn as_json(entity: &EntityState) -> Value {
    json!({
        "entityName": entity.id.name(),
        "entityKey": entity.id.key(),
        "exists": entity.exists,
        "state": payload(entity.state.as_deref()),
        "lastOperationTime": entity.last_operation_at.to_iso(),
        "queueSize": entity.queue_size,
        "lockedBy": entity.locked_by.as_ref().map(|id| id.as_str()),
    })
}

fn entity_table(entities: &[EntityState]) -> String {
    let mut table = Table::new(["NAME", "KEY", "LAST OPERATION", "QUEUED", "LOCKED BY", "STATE"]);
    for entity in entities {
        let state = match &entity.state {
            Some(state) => state.clone(),
            None if entity.exists => String::new(),
            None => "(none)".to_owned(),
        };
        table.row([
            entity.id.name().to_owned(),
            entity.id.key().to_owned(),
            entity.last_operation_at.truncated_to_second().to_iso(),
            entity.queue_size.to_string(),
            entity.locked_by.as_ref().map(ToString::to_string).unwrap_or_default(),
            state,
        ]);
    }
    table.render()
}

#[cfg(test)]
mod tests {
    use taskhub_client::fake::FakeService;
    use taskhub_core::EventKind;
    use taskhub_core::OrchestrationStatus::Running;

    use crate::commands::testing::{run, succeeded};

    fn hub() -> FakeService {
        let entity = |fake: FakeService, id: &str, state: &str| {
            fake.with_state(id, Running).with(id, |row| {
                row.input = Some(state.to_owned());
                row.custom_status = Some(r#"{"entityExists":true,"queueSize":2}"#.into());
            })
        };
        let fake = entity(FakeService::default(), "@counter@a", r#"{"state":"{\"value\":3}"}"#);
        entity(fake.with_state("order", Running), "@other@b", r#"{"state":"1"}"#)
    }

    #[tokio::test]
    async fn a_signal_carries_operation_and_input() {
        let line = ["entity", "signal", "Counter", "a", "--op", "add", "--input", "5"];
        let ran = run(hub(), &line).await;
        succeeded(&ran);
        assert_eq!(ran.out, "Sent signal 'add' to entity '@counter@a'.\n");
        let (target, event) = &ran.fake.sent()[0];
        assert_eq!(target.instance_id.as_str(), "@counter@a");
        let EventKind::EventRaised { input: Some(input), .. } = &event.kind else { panic!("{event:?}") };
        assert!(input.starts_with(r#"{"op":"add","signal":true,"input":"5","#), "{input}");
        assert!(run(hub(), &["entity", "signal", "a@b", "c", "--op", "x"]).await.exit.is_err());
    }

    #[tokio::test]
    async fn a_state_is_shown_as_json_and_a_missing_entity_is_no_failure() {
        let ran = run(hub(), &["entity", "get", "COUNTER", "a"]).await;
        assert_eq!(ran.out, "{\n  \"value\": 3\n}\n");
        let ran = run(hub(), &["entity", "get", "counter", "A"]).await;
        succeeded(&ran);
        assert_eq!(ran.out, "Could not find an entity with id '@counter@A'\n");
        let ran = run(hub(), &["entity", "get", "counter", "A", "--output", "json"]).await;
        assert_eq!(ran.out, "null\n");
    }

    #[tokio::test]
    async fn entities_are_listed_by_name_and_page() {
        let line = ["entity", "list", "Counter", "--fetch-state", "--output", "json"];
        let ran = run(hub(), &line).await;
        let document: serde_json::Value = serde_json::from_str(&ran.out).unwrap();
        assert_eq!(document["entities"].as_array().map(Vec::len), Some(1));
        assert_eq!(document["entities"][0]["state"]["value"], 3);
        assert_eq!(document["entities"][0]["queueSize"], 2);
        let ran = run(hub(), &["entity", "list", "--output", "table"]).await;
        assert_eq!(ran.out.lines().count(), 3, "{}", ran.out);
        let ran = run(hub(), &["entity", "list", "--top", "1"]).await;
        assert!(!ran.out.ends_with("results: ''\n"), "{}", ran.out);
    }

    #[tokio::test]
    async fn entities_in_use_are_not_cleaned_away() {
        let ran = run(hub(), &["entity", "clean"]).await;
        succeeded(&ran);
        assert_eq!(ran.out, "Empty entities removed: 0\nOrphaned locks released: 0\n");
        assert_eq!(ran.fake.ids().len(), 3);
    }
}
