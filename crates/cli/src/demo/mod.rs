//! `demo`: the patterns of durable orchestrations, live.

mod azurite;
mod patterns;
mod view;

use std::time::Duration;

use anyhow::{Context, Result, bail};
pub(crate) use azurite::Emulator;
use patterns::{APPROVAL_EVENT, COUNTER, Expense, Report, WAITING};
use serde_json::json;
use taskhub_azure_storage::{AzureStorageSettings, Hub};
use taskhub_client::json::functions::payload;
use taskhub_client::json::{EventTypes, history, state};
use taskhub_client::{EntityId, EntityState, Start, TaskHubClient};
use taskhub_core::{InstanceFetch, InstanceId, OrchestrationState, SystemClock, TaskHubName};
use taskhub_storage::StorageAccount;
use taskhub_storage::memory::MemoryStore;
use taskhub_worker::{Worker, WorkerSettings, WorkerState};
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use view::View;

use crate::args::{CommonArgs, DemoArgs, OutputForm};
use crate::commands::{history_table, instance_table};
use crate::config::{Environment, HubConfig};
use crate::console::Console;
use crate::{Exit, wire};

/// A hub of its own unless the user names one.
const HUB: &str = "TaskhubDemo";
/// The demonstration takes some 10 seconds; a slow account may take longer.
const TIMEOUT: Duration = Duration::from_secs(120);
/// How often the live view looks.
const LOOK_INTERVAL: Duration = Duration::from_millis(250);
/// How long the person in the demonstration thinks.
const THINKING: Duration = Duration::from_secs(2);

const CHAIN: &str = "demo-1-chaining";
const FAN_OUT: &str = "demo-2-fan-out";
const MONITOR: &str = "demo-3-monitor";
const APPROVAL: &str = "demo-4-approval";
const ESCALATION: &str = "demo-5-escalation";
const AGGREGATOR: &str = "demo-6-aggregator";
const ALL: [&str; 6] = [CHAIN, FAN_OUT, MONITOR, APPROVAL, ESCALATION, AGGREGATOR];

/// Where the demonstration runs.
struct Stage {
    account: StorageAccount,
    hub: TaskHubName,
    emulator: Option<Emulator>,
    /// Longest pause between two receives: short where requests cost nothing.
    max_polling_interval: Duration,
    /// Whether the hub is there afterwards.
    stays: bool,
}

impl Stage {
    async fn open(
        common: &CommonArgs,
        args: &DemoArgs,
        environment: &Environment,
        console: &mut Console,
    ) -> Result<Self> {
        let hub = TaskHubName::new(common.task_hub_name.as_deref().unwrap_or(HUB))?;
        if args.azurite {
            console.note("Starting the storage emulator.")?;
            let emulator = Emulator::start(args.keep).await?;
            return Ok(Self {
                account: wire::account(&emulator.connection_string().into())?,
                hub,
                emulator: Some(emulator),
                max_polling_interval: Duration::from_millis(250),
                stays: args.keep,
            });
        }
        if common.names_account() {
            let common = CommonArgs { task_hub_name: Some(hub.to_string()), ..common.clone() };
            let config = HubConfig::load(&common, environment, console)?;
            return Ok(Self {
                account: wire::account(&config.connection)?,
                hub,
                emulator: None,
                max_polling_interval: Duration::from_secs(1),
                stays: true,
            });
        }
        Ok(Self {
            account: MemoryStore::new(std::sync::Arc::new(SystemClock)).account(),
            hub,
            emulator: None,
            max_polling_interval: Duration::from_millis(100),
            stays: false,
        })
    }

    fn settings(&self) -> AzureStorageSettings {
        let mut settings = AzureStorageSettings::new(self.hub.clone(), wire::worker_id());
        settings.max_queue_polling_interval = self.max_polling_interval;
        settings.lease_acquire_interval = Duration::from_secs(1);
        settings.use_app_lease = false;
        settings
    }
}

/// Runs the demonstration.
pub(crate) async fn run(
    common: &CommonArgs,
    args: DemoArgs,
    environment: &Environment,
    console: &mut Console,
) -> Result<Exit> {
    let signal = taskhub::on_signals()?.first;
    let stage = tokio::select! {
        stage = Stage::open(common, &args, environment, console) => stage?,
        () = signal.cancelled() => bail!("interrupted"),
    };
    let hub = wire::hub_in(stage.account.clone(), stage.settings())?;
    perform(&hub, &signal, console).await?;
    farewell(&stage, console)?;
    Ok(Exit::Done)
}

/// Runs a worker, follows the instances to their end, stops the worker and shows what there is to see.
async fn perform(hub: &Hub, signal: &CancellationToken, console: &mut Console) -> Result<()> {
    let client = wire::client(hub);
    client.create_hub().await?;
    let (sender, receiver) = mpsc::channel(256);
    let settings = WorkerSettings { drain_timeout: Duration::from_secs(5), ..WorkerSettings::default() };
    let worker = patterns::register(Worker::builder(wire::service(hub)), &Report::new(sender))
        .settings(settings)
        .clock(hub.clock.clone())
        .ids(hub.ids.clone())
        .build()?;
    let handle = worker.handle();
    let stop = CancellationToken::new();
    let mut running = tokio::spawn(worker.run(stop.clone()));
    let show = async {
        handle.reached(WorkerState::Running).await;
        console.note(&format!("A worker runs on task hub '{}'.\n", hub.name()))?;
        play(&client, View::new(receiver, console.err_has_colour), console).await
    };
    let played = tokio::select! {
        played = show => played,
        () = signal.cancelled() => Err(anyhow::anyhow!("interrupted")),
        ended = &mut running => {
            ended.context("the worker crashed")?.context("the worker failed")?;
            bail!("the worker ended early");
        }
    };
    console.note("\nStopping the worker.\n")?;
    stop.cancel();
    running.await.context("the worker crashed")?.context("the worker failed")?;
    show_results(&client, &played?, console).await
}

/// What has come of it.
struct Played {
    states: Vec<OrchestrationState>,
    counter: Option<EntityState>,
}

/// Starts the instances, plays the person, and follows everything to its end.
async fn play(client: &TaskHubClient, mut view: View, console: &mut Console) -> Result<Played> {
    let counter = EntityId::new(COUNTER.0, COUNTER.1)?;
    client.signal_entity(&counter, "reset", None, None).await?;
    for start in starts()? {
        client.start(start).await?;
    }
    let ids = ALL.map(InstanceId::new);
    client.signal_entity(&counter, "add", Some("1000".to_owned()), None).await?;
    view.person(&counter.instance_id(), "signals add(1000)", console)?;
    let deadline = Instant::now() + TIMEOUT;
    let mut decide_at = None;
    let mut decided = false;
    loop {
        let mut states = Vec::new();
        for id in &ids {
            if let Some(state) = client.state(id, InstanceFetch::ALL).await? {
                view.state(&state, console)?;
                states.push(state);
            }
        }
        let entity = client.read_entity(&counter).await?;
        if let Some(entity) = &entity {
            view.entity(entity, console)?;
        }
        view.activities(console)?;
        if states.len() == ids.len() && states.iter().all(|s| s.status.is_some_and(|s| s.is_terminal())) {
            return Ok(Played { states, counter: entity });
        }
        let waits = |s: &&OrchestrationState| {
            s.instance.instance_id.as_str() == APPROVAL
                && s.custom_status.as_deref().is_some_and(|c| c.contains(WAITING))
        };
        if decide_at.is_none() && states.iter().any(|s| waits(&s)) {
            decide_at = Some(Instant::now() + THINKING);
        }
        if !decided && decide_at.is_some_and(|at| Instant::now() >= at) {
            client.raise_event(&ids[3], APPROVAL_EVENT, &true).await?;
            view.person(&ids[3], &format!("raises the event {APPROVAL_EVENT}(true)"), console)?;
            decided = true;
        }
        if Instant::now() >= deadline {
            bail!("the demonstration did not finish in {} s", TIMEOUT.as_secs());
        }
        tokio::time::sleep(LOOK_INTERVAL).await;
    }
}

fn starts() -> Result<[Start; 6]> {
    let pages = [
        "the quick brown fox jumps over the lazy dog",
        "how vexingly quick daft zebras jump",
        "sphinx of black quartz judge my vow",
        "pack my box with five dozen liquor jugs",
        "five quacking zephyrs jolt my wax bed",
    ];
    let expense = |what: &str, amount, patience| Expense { what: what.into(), amount, patience };
    Ok([
        Start::new("ProcessOrder").instance_id(CHAIN).input("order 17")?,
        Start::new("CountWords").instance_id(FAN_OUT).input(&pages)?,
        Start::new("WatchJob").instance_id(MONITOR).input("the nightly build")?,
        Start::new("ApproveExpense").instance_id(APPROVAL).input(&expense("a flight", 420, 3600))?,
        Start::new("ApproveExpense").instance_id(ESCALATION).input(&expense("a yacht", 1_000_000, 4))?,
        Start::new("CountSteps").instance_id(AGGREGATOR).input(&[1200, 800, 4000])?,
    ])
}

async fn show_results(client: &TaskHubClient, played: &Played, console: &mut Console) -> Result<()> {
    let Played { states, counter } = played;
    let value = counter.as_ref().and_then(|counter| counter.state.as_deref()).unwrap_or_default();
    let events = client.history(&InstanceId::new(APPROVAL)).await?;
    if console.form == Some(OutputForm::Json) {
        let states: Vec<_> = states.iter().map(state).collect();
        console.json(&json!({
            "instances": states,
            "entities": [{"entityName": COUNTER.0, "entityKey": COUNTER.1, "state": payload(Some(value))}],
            "history": history(&events, EventTypes::Names),
        }))?;
    } else {
        console.data(&format!(
            "{}\nEntity {} {}: {value}\n\nHistory of {APPROVAL}:\n\n{}",
            instance_table(states),
            COUNTER.0,
            COUNTER.1,
            history_table(&events)
        ))?;
    }
    Ok(())
}

fn farewell(stage: &Stage, console: &mut Console) -> Result<()> {
    if let Some(emulator) = stage.emulator.as_ref().filter(|e| e.is_kept()) {
        console.note(&format!(
            "\nThe emulator keeps running (process {}, data in {}). Look at task hub '{}'\n\
             with Storage Explorer or with `taskhub hub show --task-hub-name {} --connection-string '...'`,\n\
             then end the process. Connection string:",
            emulator.process_id(),
            emulator.data().display(),
            stage.hub,
            stage.hub
        ))?;
        // Alone on standard output when a form was asked for would break it.
        let connection = emulator.connection_string().0;
        if console.form == Some(OutputForm::Json) {
            console.note(&connection)?
        } else {
            console.data(&format!("{connection}\n"))?
        }
    } else if stage.stays {
        console.note(&format!(
            "\nTask hub '{}' is left for you to look at; `taskhub delete-task-hub --task-hub-name {}` removes it.",
            stage.hub, stage.hub
        ))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use taskhub_core::{Clock, SeededIds};
    use taskhub_testkit::VirtualClock;

    use super::*;
    use crate::console::captured::console;

    async fn perform_in_memory(
        form: Option<OutputForm>,
        signal: &CancellationToken,
    ) -> (Result<()>, String, String) {
        let clock: Arc<dyn Clock> = Arc::new(VirtualClock::default());
        let stage = Stage {
            account: MemoryStore::new(clock.clone()).account(),
            hub: TaskHubName::new(HUB).unwrap(),
            emulator: None,
            max_polling_interval: Duration::from_millis(100),
            stays: false,
        };
        let hub =
            Hub::new(stage.settings(), stage.account.clone(), clock, Arc::new(SeededIds::new(1))).unwrap();
        let (mut console, out, err) = console(form);
        let performed = perform(&hub, signal, &mut console).await;
        (performed, out.take(), err.take())
    }

    #[tokio::test(start_paused = true)]
    async fn every_pattern_completes_on_the_embedded_store() {
        let (performed, out, err) = perform_in_memory(None, &CancellationToken::new()).await;
        performed.unwrap();
        for (id, output) in [
            (CHAIN, "order 17: stock reserved, card charged, shipped"),
            (FAN_OUT, "37"),
            (MONITOR, "finished after 3 looks"),
            (APPROVAL, "a flight approved"),
            (ESCALATION, "a yacht escalated: no answer in 4 s"),
            (AGGREGATOR, "7000 steps"),
        ] {
            let row = out.lines().find(|line| line.starts_with(id)).unwrap();
            assert!(row.contains("Completed") && row.contains(output), "{row}");
        }
        assert!(out.contains("EventRaised"), "{out}");
        assert!(out.contains("Entity Counter steps: {\"value\":7000}"), "{out}");
        assert!(err.contains("@counter@steps       entity    {\"value\":7000}"), "{err}");
        assert!(err.contains("raises the event Approval(true)"), "{err}");
    }

    #[tokio::test(start_paused = true)]
    async fn json_output_is_one_document() {
        let (performed, out, _) = perform_in_memory(Some(OutputForm::Json), &CancellationToken::new()).await;
        performed.unwrap();
        let document: serde_json::Value = serde_json::from_str(&out).unwrap();
        assert_eq!(document["instances"].as_array().map(Vec::len), Some(6));
        assert_eq!(document["entities"][0]["state"]["value"], 7000);
        assert_eq!(document["history"][0]["EventType"], "OrchestratorStarted");
    }

    #[tokio::test(start_paused = true)]
    async fn an_interruption_stops_the_worker_first() {
        let signal = CancellationToken::new();
        signal.cancel();
        let (performed, out, err) = perform_in_memory(None, &signal).await;
        assert!(performed.unwrap_err().to_string().contains("interrupted"));
        assert!(err.contains("Stopping the worker."), "{err}");
        assert_eq!(out, "");
    }
}
