//! `dead-letter`.

use anyhow::{Result, bail};
use serde_json::{Value, json};
use taskhub_azure_storage::dead_letter::{
    DeadLetter, DeadLetterQuery, DeadLetterState, DeadLetters, Outcome,
};
use taskhub_azure_storage::message::{self, MessageEncoding};
use taskhub_core::Timestamp;

use crate::args::{
    CommonArgs, CreateArgs, DeadLetterCommand, DropArgs, ListDeadLettersArgs, OutputForm, SelectArgs,
    ShowDeadLetterArgs,
};
use crate::config::{Environment, HubConfig};
use crate::console::Console;
use crate::table::Table;
use crate::{Exit, wire};

/// Dead letters looked at together when all are meant.
const PAGE: usize = 100;

/// Runs a command about dead letters; no worker is needed.
pub(crate) async fn run(
    common: &CommonArgs,
    command: DeadLetterCommand,
    environment: &Environment,
    console: &mut Console,
) -> Result<Exit> {
    let config = HubConfig::load(common, environment, console)?;
    let hub = wire::hub(&config, &CreateArgs::default(), wire::worker_id())?;
    Command { letters: DeadLetters::new(&hub), console }.run(command).await
}

struct Command<'a> {
    letters: DeadLetters,
    console: &'a mut Console,
}

/// What is done to several dead letters.
#[derive(Clone, Copy)]
enum Action {
    Requeue,
    Drop,
}

#[derive(Default)]
struct Tally {
    done: u64,
    gone: u64,
    busy: u64,
    failed: u64,
}

impl Command<'_> {
    async fn run(mut self, command: DeadLetterCommand) -> Result<Exit> {
        match command {
            DeadLetterCommand::List(args) => self.list(args).await,
            DeadLetterCommand::Show(args) => self.show(args).await,
            DeadLetterCommand::Requeue(args) => self.act(Action::Requeue, args.which, args.state).await,
            DeadLetterCommand::Drop(args) => self.drop(args).await,
        }
    }

    async fn list(&mut self, args: ListDeadLettersArgs) -> Result<Exit> {
        let page = self
            .letters
            .list(&DeadLetterQuery {
                state: args.state,
                limit: args.top as usize,
                continuation: Some(args.continuation_token).filter(|token| !token.is_empty()),
            })
            .await?;
        for problem in &page.unreadable {
            self.console.warn(problem)?;
        }
        if self.console.form == Some(OutputForm::Json) {
            let letters: Vec<Value> = page.letters.iter().map(as_json).collect();
            self.console.json(&json!({"deadLetters": letters, "continuationToken": page.continuation}))?;
            return Ok(Exit::Done);
        }
        if page.letters.is_empty() && page.continuation.is_none() {
            self.console.data("No dead letters.\n")?;
            return Ok(Exit::Done);
        }
        let mut table =
            Table::new(["ID", "STATE", "REASON", "FAILURES", "LAST", "QUEUE", "EVENT", "INSTANCE"]);
        for letter in &page.letters {
            table.row([
                letter.message_id.clone(),
                letter.state.to_string(),
                letter.reason.clone(),
                letter.failures.to_string(),
                letter.last_failed_at.truncated_to_second().to_iso(),
                letter.queue.clone(),
                letter.event_type.clone().unwrap_or_default(),
                letter.instance_id.clone().unwrap_or_default(),
            ]);
        }
        self.console.data(&table.render())?;
        if let Some(token) = &page.continuation {
            self.console.note(&format!("Continuation token for next set of results: '{token}'"))?;
        }
        Ok(Exit::Done)
    }

    async fn show(&mut self, args: ShowDeadLetterArgs) -> Result<Exit> {
        let Some(letter) = self.find(&args.id).await? else { return Ok(Exit::Done) };
        let decoded = self.letters.message(&letter).await;
        let decoded = decoded.map(|data| message::encode(&data, MessageEncoding::Utf8));
        let (decoded, problem) = match decoded {
            Ok(json) => (serde_json::from_str(&json).unwrap_or(Value::String(json)), None),
            Err(error) => (Value::Null, Some(error.chain())),
        };
        let text = letter.text.clone().unwrap_or_default();
        if self.console.form == Some(OutputForm::Json) {
            let mut shown = as_json(&letter);
            shown["text"] = text.into();
            shown["message"] = decoded;
            shown["messageError"] = problem.into();
            self.console.json(&shown)?;
            return Ok(Exit::Done);
        }
        let mut table = Table::new(["DEAD LETTER", ""]);
        let time = |at: Option<Timestamp>| at.map(Timestamp::to_iso);
        for (name, value) in [
            ("id", Some(letter.message_id.clone())),
            ("state", Some(letter.state.to_string())),
            ("reason", Some(letter.reason.clone())),
            ("detail", Some(letter.detail.clone())),
            ("queue", Some(letter.queue.clone())),
            ("instance", letter.instance_id.clone()),
            ("event", letter.event_type.clone()),
            ("blob", letter.blob_name.clone()),
            ("inserted", time(Some(letter.inserted_at))),
            ("first failure", time(Some(letter.first_failed_at))),
            ("last failure", time(Some(letter.last_failed_at))),
            ("failures", Some(letter.failures.to_string())),
            ("receptions", Some(letter.dequeue_count.to_string())),
            ("visible again", time(letter.visible_at)),
            ("worker", Some(letter.worker_id.clone())),
        ] {
            if let Some(value) = value {
                table.whole_row([name.to_owned(), value]);
            }
        }
        self.console.data(&table.render())?;
        if let Some(problem) = problem {
            self.console
                .data(&format!("\nThe message cannot be read: {}\nIts text:\n", visible(&problem)))?;
            self.console.data(&format!("{}\n", visible(&text)))?;
        } else {
            self.console.data(&format!("\nThe message:\n{}\n", visible(&format!("{decoded:#}"))))?;
        }
        Ok(Exit::Done)
    }

    async fn find(&mut self, id: &str) -> Result<Option<DeadLetter>> {
        let letter = self.letters.find(id).await?;
        if letter.is_none() {
            self.console.say(&format!("No dead letter with the id '{}'.", visible(id)))?;
        }
        Ok(letter)
    }

    async fn drop(&mut self, args: DropArgs) -> Result<Exit> {
        if !args.yes && self.console.can_ask {
            let what = match &args.which.id {
                Some(id) => format!("the message '{}'", visible(id)),
                None => "all of these messages".to_owned(),
            };
            if !self.console.confirm(&format!("Throw {what} away for ever?"))? {
                self.console.note("Nothing was thrown away.")?;
                return Ok(Exit::Done);
            }
        }
        self.act(Action::Drop, args.which, args.state).await
    }

    async fn act(
        &mut self,
        action: Action,
        which: SelectArgs,
        state: Option<DeadLetterState>,
    ) -> Result<Exit> {
        let mut tally = Tally::default();
        if let Some(id) = &which.id {
            if let Some(letter) = self.find(id).await? {
                self.act_on(action, &letter, &mut tally).await?;
            }
        } else {
            let mut query = DeadLetterQuery { state, limit: PAGE, continuation: None };
            loop {
                let page = self.letters.list(&query).await?;
                for problem in &page.unreadable {
                    self.console.warn(problem)?;
                }
                for letter in &page.letters {
                    self.act_on(action, letter, &mut tally).await?;
                }
                query.continuation = page.continuation;
                if query.continuation.is_none() {
                    break;
                }
            }
            let verb = action.past();
            self.console.say(&format!(
                "{} {verb}, {} gone already, {} in a worker's hands.",
                tally.done, tally.gone, tally.busy
            ))?;
        }
        if self.console.form == Some(OutputForm::Json) {
            self.console.json(&json!({
                (action.past()): tally.done,
                "gone": tally.gone,
                "busy": tally.busy,
                "failed": tally.failed,
            }))?;
        }
        if tally.failed > 0 {
            bail!("not everything could be done. failed=`{}`", tally.failed);
        }
        Ok(Exit::Done)
    }

    async fn act_on(&mut self, action: Action, letter: &DeadLetter, tally: &mut Tally) -> Result<()> {
        let done = match action {
            Action::Requeue => self.letters.requeue(letter).await,
            Action::Drop => self.letters.discard(letter).await,
        };
        let id = &letter.message_id;
        match done {
            Ok(Outcome::Done) => {
                tally.done += 1;
                let line = match action {
                    Action::Requeue => format!("Message '{id}' is in queue '{}' again.", letter.queue),
                    Action::Drop => format!("Message '{id}' is thrown away."),
                };
                self.console.say(&line)?;
            }
            Ok(Outcome::Gone) => {
                tally.gone += 1;
                self.console.say(&format!(
                    "Message '{id}' is not in its queue any more: it was processed or deleted. Its dead letter is removed."
                ))?;
            }
            Ok(Outcome::Busy) => {
                tally.busy += 1;
                let when =
                    letter.visible_at.map(|at| format!(", at {at} at the earliest")).unwrap_or_default();
                self.console.say(&format!(
                    "Message '{id}' is being processed, or comes back by itself{when}. Nothing was changed."
                ))?;
            }
            Err(error) => {
                tally.failed += 1;
                self.console.warn(&format!("Message '{id}': {}", error.chain()))?;
            }
        }
        Ok(())
    }
}

impl Action {
    fn past(self) -> &'static str {
        match self {
            Self::Requeue => "requeued",
            Self::Drop => "dropped",
        }
    }
}

/// Text from storage that must not control the terminal.
fn visible(text: &str) -> String {
    text.chars().map(|c| if c.is_control() && c != '\n' { ' ' } else { c }).collect()
}

fn as_json(letter: &DeadLetter) -> Value {
    json!({
        "id": letter.message_id,
        "state": letter.state.name(),
        "reason": letter.reason,
        "detail": letter.detail,
        "queue": letter.queue,
        "instanceId": letter.instance_id,
        "eventType": letter.event_type,
        "blobName": letter.blob_name,
        "insertedAt": letter.inserted_at.to_iso(),
        "firstFailedAt": letter.first_failed_at.to_iso(),
        "lastFailedAt": letter.last_failed_at.to_iso(),
        "failures": letter.failures,
        "dequeueCount": letter.dequeue_count,
        "visibleAt": letter.visible_at.map(Timestamp::to_iso),
        "workerId": letter.worker_id,
    })
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use clap::Parser;
    use taskhub_azure_storage::{AzureStorageService, AzureStorageSettings, Hub};
    use taskhub_core::{OrchestrationService, SeededIds, TaskHubName};
    use taskhub_storage::StorageAccount;
    use taskhub_storage::memory::MemoryStore;
    use taskhub_testkit::VirtualClock;

    use super::*;
    use crate::args::{Cli, Command as Parsed};
    use crate::console::captured::console;

    struct World {
        store: MemoryStore,
        hub: Hub,
    }

    /// A hub in which a worker has seen messages that it cannot read.
    async fn world(texts: &[&str], quarantine: Option<u32>) -> World {
        let clock = Arc::new(VirtualClock::default());
        let store = MemoryStore::new(clock.clone());
        let account: StorageAccount = store.account();
        let mut settings = AzureStorageSettings::new(TaskHubName::new("TestHub").unwrap(), "w");
        settings.quarantine_poison_messages = quarantine;
        let hub = Hub::new(settings, account.clone(), clock, Arc::new(SeededIds::new(1))).unwrap();
        hub.create().await.unwrap();
        for text in texts {
            account.queues.put_message("testhub-control-00", text, Duration::ZERO).await.unwrap();
        }
        let service = AzureStorageService::new(hub.clone());
        service.start().await.unwrap();
        assert!(service.lock_next_orchestration(Duration::from_secs(30)).await.unwrap().is_none());
        service.stop(Duration::from_secs(1)).await.unwrap();
        World { store, hub }
    }

    impl World {
        async fn run(&self, line: &[&str]) -> (Result<Exit>, String) {
            let cli = Cli::try_parse_from([&["taskhub", "dead-letter"], line].concat()).unwrap();
            let Parsed::DeadLetter(command) = cli.command else { panic!("another command") };
            let (mut console, out, _) = console(cli.common.output);
            let command_line = Command { letters: DeadLetters::new(&self.hub), console: &mut console };
            let exit = command_line.run(command).await;
            (exit, out.take())
        }

        async fn json(&self, line: &[&str]) -> Value {
            let (exit, out) = self.run(&[line, &["--output", "json"]].concat()).await;
            assert!(matches!(exit, Ok(Exit::Done)), "{exit:?}");
            serde_json::from_str(&out).unwrap()
        }
    }

    #[tokio::test(start_paused = true)]
    async fn held_messages_are_listed_shown_made_visible_and_thrown_away() {
        let world = world(&["not json", "{\"x\":1}\u{9b}[2J"], None).await;
        let (_, table) = world.run(&["list"]).await;
        assert!(table.starts_with("ID ") && table.lines().count() == 3, "{table}");
        assert!(table.contains("not_a_message") && table.contains("held"), "{table}");

        let list = world.json(&["list", "--top", "1"]).await;
        let id = list["deadLetters"][0]["id"].as_str().unwrap().to_owned();
        assert!(list["deadLetters"][0].get("text").is_none(), "no payloads in lists");
        let token = list["continuationToken"].as_str().unwrap();
        let rest = world.json(&["list", "--continuation-token", token]).await;
        assert_eq!(rest["deadLetters"].as_array().unwrap().len(), 1);
        assert!(rest["continuationToken"].is_null());

        let shown = world.json(&["show", &id]).await;
        assert!(["not json", "{\"x\":1}\u{9b}[2J"].contains(&shown["text"].as_str().unwrap()), "{shown}");
        assert!(shown["message"].is_null() && shown["messageError"].is_string());
        let (several, _) = world.run(&["show", &id[..13]]).await;
        assert!(several.unwrap_err().to_string().contains("several dead letters begin so"));
        let (_, text) = world.run(&["show", &id]).await;
        assert!(text.contains("cannot be read") && !text.contains('\u{9b}'), "{text}");

        let visible = || {
            let now = world.hub.clock.now();
            world.store.messages("testhub-control-00").iter().filter(|m| m.next_visible_at <= now).count()
        };
        assert_eq!(visible(), 0);
        let (exit, text) = world.run(&["requeue", &id]).await;
        assert!(exit.is_ok() && text.contains("is in queue 'testhub-control-00' again"), "{text}");
        assert_eq!(visible(), 1);

        let done = world.json(&["drop", "--all", "--yes"]).await;
        assert_eq!(done["dropped"], 2);
        assert!(world.store.messages("testhub-control-00").is_empty());
        let (_, text) = world.run(&["list"]).await;
        assert_eq!(text, "No dead letters.\n");
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_not_there_any_more_is_said() {
        let world = world(&["not json"], None).await;
        let (exit, text) = world.run(&["show", "nothing"]).await;
        assert!(exit.is_ok());
        assert_eq!(text, "No dead letter with the id 'nothing'.\n");

        let id = world.store.messages("testhub-control-00")[0].message_id.clone();
        assert_eq!(world.json(&["show", &id[..13]]).await["id"], id);
        let queues = &world.hub.account.queues;
        tokio::time::sleep(Duration::from_secs(600)).await;
        let received = queues.get_messages("testhub-control-00", 1, Duration::from_secs(30)).await.unwrap();
        for verb in ["requeue", "drop"] {
            let (_, text) = world.run(&[verb, &id]).await;
            assert!(text.contains("being processed, or comes back by itself"), "{text}");
        }
        queues.delete_message("testhub-control-00", &received[0].receipt).await.unwrap();
        let (_, text) = world.run(&["requeue", "--all"]).await;
        assert!(text.contains("not in its queue any more") && text.contains("1 gone already"), "{text}");
        assert_eq!(world.run(&["list"]).await.1, "No dead letters.\n");
    }

    #[tokio::test(start_paused = true)]
    async fn quarantined_messages_return_to_their_queue_unchanged() {
        let world = world(&["not json", "bm90IGpzb24"], Some(2)).await;
        assert!(world.store.messages("testhub-control-00").is_empty());
        let list = world.json(&["list", "--state", "quarantined"]).await;
        assert_eq!(list["deadLetters"].as_array().unwrap().len(), 2);
        assert!(world.json(&["list", "--state", "held"]).await["deadLetters"].as_array().unwrap().is_empty());
        assert_eq!(world.json(&["requeue", "--all"]).await["requeued"], 2);
        let mut texts: Vec<_> =
            world.store.messages("testhub-control-00").into_iter().map(|m| m.text).collect();
        texts.sort();
        assert_eq!(texts, ["bm90IGpzb24", "not json"]);
    }

    #[test]
    fn wrong_arguments_are_refused() {
        for line in [
            &["requeue"][..],
            &["requeue", "x", "--all"],
            &["drop", "x", "--state", "held"],
            &["list", "--state", "lost"],
            &["list", "--top", "0"],
        ] {
            assert!(Cli::try_parse_from([&["taskhub", "dead-letter"], line].concat()).is_err(), "{line:?}");
        }
    }
}
