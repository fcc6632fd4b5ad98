//! `create-task-hub`, `delete-task-hub`, `hub create` and `hub delete`.

use anyhow::{Context, Result};
use serde_json::{Value, json};
use taskhub_azure_storage::{DEFAULT_PARTITION_COUNT, Hub, PartitionManagerKind};
use taskhub_core::{PartitionId, TaskHubName};

use crate::args::{CommonArgs, CreateArgs, CreateHubArgs, DeleteArgs, OutputForm};
use crate::config::{Environment, HubConfig};
use crate::console::Console;
use crate::{Exit, wire};

/// Queues, tables and containers of a hub.
#[derive(Debug, Default, PartialEq, Eq)]
struct Resources {
    queues: Vec<String>,
    tables: Vec<String>,
    containers: Vec<String>,
}

/// Creates what is missing of a hub.
pub(crate) async fn create(
    common: &CommonArgs,
    args: CreateHubArgs,
    environment: &Environment,
    console: &mut Console,
) -> Result<Exit> {
    let config = HubConfig::load(common, environment, console)?;
    // Stricter for new hubs than for existing ones: the documented rule, not the lenient one.
    TaskHubName::new(config.hub.as_str())?;
    create_in(&wire::hub(&config, &args.create, wire::worker_id())?, args.dry_run, console).await
}

/// Deletes a hub.
pub(crate) async fn delete(
    common: &CommonArgs,
    args: DeleteArgs,
    environment: &Environment,
    console: &mut Console,
) -> Result<Exit> {
    let config = HubConfig::load(common, environment, console)?;
    delete_in(&wire::hub(&config, &CreateArgs::default(), wire::worker_id())?, &args, console).await
}

async fn create_in(hub: &Hub, dry_run: bool, console: &mut Console) -> Result<Exit> {
    if dry_run {
        let found = Resources::existing(hub).await?;
        let missing = Resources::wanted(hub).await?.without(&found);
        if missing.is_empty() {
            console.say(&format!("Task hub '{}' is complete; nothing would be created.", hub.name()))?;
        } else {
            console.say(&format!("Of task hub '{}' would be created:", hub.name()))?;
        }
        missing.show(console)?;
        return Ok(Exit::Done);
    }
    hub.ensure().await.context("could not create the task hub")?;
    console.say(&format!("Task hub '{}' successfully created.", hub.name()))?;
    report(hub, "created", console)
}

/// Differs: `func durable` never asks, and deletes the control queues of the local configuration instead of
/// those that there are.
async fn delete_in(hub: &Hub, args: &DeleteArgs, console: &mut Console) -> Result<Exit> {
    let asks = !args.yes && console.can_ask;
    if args.dry_run || asks {
        let found = Resources::existing(hub).await?;
        if args.dry_run {
            if found.is_empty() {
                console
                    .say(&format!("Task hub '{}' does not exist; nothing would be deleted.", hub.name()))?;
            } else {
                console.say(&format!("Of task hub '{}' would be deleted:", hub.name()))?;
            }
            found.show(console)?;
            return Ok(Exit::Done);
        }
        for (kind, name) in found.lines() {
            console.note(&format!("  {kind} {name}"))?;
        }
        let question = format!("Delete task hub '{}' with all its instances?", hub.name());
        if !console.confirm(&question)? {
            console.note("Nothing was deleted.")?;
            return Ok(Exit::Done);
        }
    }
    hub.delete().await.context("could not delete the task hub")?;
    console.say(&format!("Task hub '{}' successfully deleted.", hub.name()))?;
    report(hub, "deleted", console)
}

fn report(hub: &Hub, what: &str, console: &mut Console) -> Result<Exit> {
    if console.form == Some(OutputForm::Json) {
        console.json(&json!({"taskHubName": hub.name().as_str(), what: true}))?;
    }
    Ok(Exit::Done)
}

impl Resources {
    /// What there is of a hub, whoever made it.
    async fn existing(hub: &Hub) -> Result<Self> {
        let (names, account) = (&hub.names, &hub.account);
        let lower = hub.name().lower();
        let mut queues = account.queues.list_queues(&format!("{lower}-")).await?;
        queues.retain(|name| names.partition_of_queue(name).is_some() || *name == names.work_item_queue());
        let own = [names.history_table(), names.instances_table(), names.partitions_table()];
        let mut tables = account.tables.list_tables(hub.name().as_str()).await?;
        tables.retain(|name| own.iter().any(|own| own.eq_ignore_ascii_case(name)));
        let own = [
            names.app_lease_container(),
            names.lease_container(),
            names.large_message_container(),
            names.dead_letter_container(),
        ];
        let mut containers = account.blobs.list_containers(&format!("{lower}-")).await?;
        containers.retain(|name| own.contains(name));
        Ok(Self { queues, tables, containers })
    }

    /// What a creation makes: containers of messages and dead letters come with the first one.
    async fn wanted(hub: &Hub) -> Result<Self> {
        let layout = hub.detect().await?;
        let count = layout.map(|l| l.partition_count).or(hub.settings.partition_count);
        let manager = layout.map(|l| l.manager).or(hub.settings.partition_manager).unwrap_or_default();
        let names = &hub.names;
        let partitions = 0..count.unwrap_or(DEFAULT_PARTITION_COUNT);
        let mut wanted = Self {
            queues: partitions.map(|p| names.control_queue(PartitionId(p))).collect(),
            tables: vec![names.history_table(), names.instances_table()],
            containers: vec![names.app_lease_container()],
        };
        wanted.queues.push(names.work_item_queue());
        match manager {
            PartitionManagerKind::Table => wanted.tables.push(names.partitions_table()),
            _ => wanted.containers.push(names.lease_container()),
        }
        Ok(wanted)
    }

    fn without(self, found: &Self) -> Self {
        let rest = |wanted: Vec<String>, found: &[String]| -> Vec<String> {
            wanted.into_iter().filter(|name| !found.iter().any(|f| f.eq_ignore_ascii_case(name))).collect()
        };
        Self {
            queues: rest(self.queues, &found.queues),
            tables: rest(self.tables, &found.tables),
            containers: rest(self.containers, &found.containers),
        }
    }

    fn is_empty(&self) -> bool {
        self.queues.is_empty() && self.tables.is_empty() && self.containers.is_empty()
    }

    fn lines(&self) -> impl Iterator<Item = (&'static str, &String)> {
        let queues = self.queues.iter().map(|name| ("queue", name));
        let tables = self.tables.iter().map(|name| ("table", name));
        queues.chain(tables).chain(self.containers.iter().map(|name| ("container", name)))
    }

    fn show(&self, console: &mut Console) -> Result<()> {
        if console.form == Some(OutputForm::Json) {
            console.json(&Value::from_iter([
                ("queues", json!(self.queues)),
                ("tables", json!(self.tables)),
                ("containers", json!(self.containers)),
            ]))?;
        } else {
            let text: String = self.lines().map(|(kind, name)| format!("{kind} {name}\n")).collect();
            console.data(&text)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use taskhub_core::Timestamp;
    use taskhub_testkit::TestHub;

    use super::*;
    use crate::console::captured::console;

    fn hub() -> (TestHub, Hub) {
        let test = TestHub::in_memory(&TaskHubName::new("TestHub").unwrap(), 1, Timestamp::MIN);
        let hub = test.open("w").unwrap();
        (test, hub)
    }

    const LIST: &str = "queue testhub-control-00\nqueue testhub-control-01\nqueue testhub-control-02\n\
        queue testhub-control-03\nqueue testhub-workitems\ntable TestHubHistory\ntable TestHubInstances\n\
        table TestHubPartitions\ncontainer testhub-applease\n";

    #[tokio::test(start_paused = true)]
    async fn hubs_are_created_and_deleted_without_questions_where_nobody_can_answer() {
        let (test, hub) = hub();
        let (mut console, out, _) = console(None);
        create_in(&hub, false, &mut console).await.unwrap();
        assert_eq!(out.take(), "Task hub 'TestHub' successfully created.\n");
        let args = DeleteArgs { yes: false, dry_run: false };
        delete_in(&hub, &args, &mut console).await.unwrap();
        assert_eq!(out.take(), "Task hub 'TestHub' successfully deleted.\n");
        assert!(test.memory().unwrap().queues().is_empty());
        delete_in(&hub, &args, &mut console).await.unwrap();
        assert_eq!(out.take(), "Task hub 'TestHub' successfully deleted.\n");
    }

    #[tokio::test(start_paused = true)]
    async fn a_dry_run_lists_what_there_is_or_would_be_and_changes_nothing() {
        let (test, hub) = hub();
        let (mut console, out, _) = console(None);
        create_in(&hub, true, &mut console).await.unwrap();
        assert_eq!(out.take(), format!("Of task hub 'TestHub' would be created:\n{LIST}"));
        assert!(test.memory().unwrap().queues().is_empty());
        let args = DeleteArgs { yes: true, dry_run: true };
        delete_in(&hub, &args, &mut console).await.unwrap();
        assert_eq!(out.take(), "Task hub 'TestHub' does not exist; nothing would be deleted.\n");

        hub.create().await.unwrap();
        // Neighbours whose names begin alike are others.
        for name in ["testhub2-control-00", "testhub-control-00-old", "testhub-mine"] {
            hub.account.queues.create_queue(name).await.unwrap();
        }
        hub.account.tables.create_table("TestHubHistory2").await.unwrap();
        delete_in(&hub, &args, &mut console).await.unwrap();
        assert_eq!(out.take(), format!("Of task hub 'TestHub' would be deleted:\n{LIST}"));
        create_in(&hub, true, &mut console).await.unwrap();
        assert_eq!(out.take(), "Task hub 'TestHub' is complete; nothing would be created.\n");
        assert_eq!(test.memory().unwrap().queues().len(), 8);
    }

    #[tokio::test(start_paused = true)]
    async fn json_output_is_one_document() {
        let (_, hub) = hub();
        let (mut console, out, err) = console(Some(OutputForm::Json));
        create_in(&hub, false, &mut console).await.unwrap();
        let created: Value = serde_json::from_str(&out.take()).unwrap();
        assert_eq!(created, json!({"taskHubName": "TestHub", "created": true}));
        delete_in(&hub, &DeleteArgs { yes: false, dry_run: true }, &mut console).await.unwrap();
        let listed: Value = serde_json::from_str(&out.take()).unwrap();
        assert_eq!(listed["containers"], json!(["testhub-applease"]));
        assert!(err.take().contains("would be deleted"));
    }
}
