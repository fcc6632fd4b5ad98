//! The hubs captured from the .NET provider, and how each of them must end.
//!
//! `crates/azure-storage/tests/golden/README.md` tells how they were made. `expected.json` there names the
//! phases whose hubs a worker can finish: what a client does first, and the end of every instance.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use serde_json::Value as Json;

use crate::dump::{self, HubDump};

/// Which provider wrote a hub.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Provider {
    /// `DurableTask.AzureStorage` 2.9.1.
    #[default]
    V2,
    /// `DurableTask.AzureStorage` 1.17.5, in the folder `v1`.
    V1,
}

/// Which partition manager a hub was captured with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Manager {
    /// Rows of the Partitions table.
    #[default]
    Table,
    /// Two lease blobs per partition.
    Safe,
    /// One lease blob per partition.
    Legacy,
}

/// Settings of the worker that finishes a hub.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct WorkerFlags {
    /// Failure details instead of serialised exceptions.
    pub failure_details: bool,
    /// Serialised exceptions go into the history too.
    pub include_details: bool,
    /// The activity `BoomOnce` succeeds at once.
    pub fixed: bool,
}

/// What a client does to a loaded hub before a worker starts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Raises an event.
    Raise {
        /// To which instance.
        instance: String,
        /// Its name.
        event: String,
        /// Its serialised payload.
        payload: String,
    },
    /// Resumes a suspended instance.
    Resume {
        /// Which instance.
        instance: String,
        /// Why.
        reason: Option<String>,
    },
    /// Terminates an instance.
    Terminate {
        /// Which instance.
        instance: String,
        /// Why.
        reason: Option<String>,
    },
}

/// How an instance must end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ending {
    /// Instance id.
    pub instance: String,
    /// DTFx's number of the runtime status.
    pub status: i32,
    /// Serialised output, where it counts.
    pub output: Option<String>,
    /// Beginning and length (in UTF-16 code units) of an output too long to write down.
    pub long_output: Option<(String, usize)>,
    /// Custom status, JSON text.
    pub custom_status: Option<String>,
    /// Serialised state of an entity.
    pub entity_state: Option<String>,
}

/// A captured hub that a worker can finish.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Phase {
    /// Who wrote it.
    pub provider: Provider,
    /// Name of the scenario.
    pub scenario: String,
    /// Name of the phase.
    pub phase: String,
    /// Its partition manager.
    pub manager: Manager,
    /// Settings of the worker.
    pub worker: WorkerFlags,
    /// What comes first.
    pub steps: Vec<Step>,
    /// How it ends.
    pub endings: Vec<Ending>,
}

impl Phase {
    /// `Scenario/phase`.
    pub fn name(&self) -> String {
        format!("{}/{}", self.scenario, self.phase)
    }

    /// Whether an entity takes part.
    pub fn has_entities(&self) -> bool {
        let scenario = self.scenario.as_str();
        matches!(scenario, "CallEntity" | "LockEntities" | "SignalEntity" | "SignalLater" | "Entity")
    }

    /// The captured hub.
    ///
    /// # Errors
    /// The file is missing or damaged.
    pub fn hub(&self) -> Result<HubDump> {
        hub(self.provider, &self.scenario, &self.phase)
    }
}

/// Where the captures of a provider are.
pub fn directory(provider: Provider) -> PathBuf {
    let captures = Path::new(env!("CARGO_MANIFEST_DIR")).join("../azure-storage/tests/golden");
    match provider {
        Provider::V2 => captures,
        Provider::V1 => captures.join("v1"),
    }
}

/// A captured hub.
///
/// # Errors
/// The file is missing or damaged.
pub fn hub(provider: Provider, scenario: &str, phase: &str) -> Result<HubDump> {
    dump::read(&directory(provider).join(scenario).join(format!("{phase}.json.gz")))
}

/// All phases of `expected.json`, in its order.
///
/// # Errors
/// The file is missing or says something unknown.
pub fn phases(provider: Provider) -> Result<Vec<Phase>> {
    let expected: Json = serde_json::from_str(&dump::read_text(&directory(provider).join("expected.json"))?)?;
    let mut found = Vec::new();
    for (scenario, entry) in expected.as_object().context("not an object")? {
        let endings = members(&entry["instances"]).map(|(id, ending)| self::ending(id, ending));
        let endings: Vec<Ending> = endings.collect::<Result<_>>().with_context(|| scenario.clone())?;
        for (phase, steps) in members(&entry["phases"]) {
            let steps = list(steps).map(step).collect::<Result<_>>();
            found.push(Phase {
                provider,
                scenario: scenario.clone(),
                phase: phase.clone(),
                manager: manager(&entry["flags"]).with_context(|| scenario.clone())?,
                worker: worker(&entry["worker"]).with_context(|| scenario.clone())?,
                steps: steps.with_context(|| format!("{scenario}/{phase}"))?,
                endings: endings.clone(),
            });
        }
    }
    Ok(found)
}

fn members(json: &Json) -> impl Iterator<Item = (&String, &Json)> {
    json.as_object().into_iter().flatten()
}

fn list(json: &Json) -> impl Iterator<Item = &Json> {
    json.as_array().into_iter().flatten()
}

fn ending(instance: &str, json: &Json) -> Result<Ending> {
    let text = |key: &str| json[key].as_str().map(str::to_owned);
    Ok(Ending {
        instance: instance.to_owned(),
        status: i32::try_from(json["status"].as_i64().context("no status")?)?,
        output: text("output"),
        long_output: match (text("outputStart"), json["outputLength"].as_u64()) {
            (Some(start), Some(length)) => Some((start, usize::try_from(length)?)),
            _ => None,
        },
        custom_status: text("customStatus"),
        entity_state: text("state"),
    })
}

fn manager(flags: &Json) -> Result<Manager> {
    let flags: Vec<&str> = list(flags).filter_map(Json::as_str).collect();
    Ok(match flags[..] {
        [] => Manager::Table,
        ["--manager", "safe"] => Manager::Safe,
        ["--manager", "legacy"] => Manager::Legacy,
        _ => bail!("unknown flags {flags:?}"),
    })
}

fn worker(flags: &Json) -> Result<WorkerFlags> {
    let mut worker = WorkerFlags::default();
    for flag in list(flags) {
        match flag.as_str() {
            Some("--details") => worker.failure_details = true,
            Some("--include-details") => worker.include_details = true,
            Some("--fixed") => worker.fixed = true,
            _ => bail!("unknown worker flag {flag}"),
        }
    }
    Ok(worker)
}

fn step(json: &Json) -> Result<Step> {
    let words: Vec<String> = list(json).filter_map(Json::as_str).map(str::to_owned).collect();
    let mut words = words.into_iter();
    let verb = words.next().context("an empty step")?;
    let instance = words.next().context("no instance")?;
    Ok(match verb.as_str() {
        "raise" => Step::Raise {
            instance,
            event: words.next().context("no event name")?,
            payload: words.next().context("no payload")?,
        },
        "resume" => Step::Resume { instance, reason: words.next() },
        "terminate" => Step::Terminate { instance, reason: words.next() },
        other => bail!("unknown step {other}"),
    })
}
