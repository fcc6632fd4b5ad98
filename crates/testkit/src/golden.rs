//! The hubs captured from the .NET provider, and how each of them must end.
//!
//! `crates/azure-storage/tests/golden/README.md` tells how they were made. `expected.json` there names the
//! phases whose hubs a worker can finish: what a client does first, and the end of every instance.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use serde_json::Value as Json;
use taskhub_azure_storage::PartitionManagerKind;

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
    pub manager: PartitionManagerKind,
    /// Settings of the worker.
    pub worker: WorkerFlags,
    /// What comes first.
    pub steps: Vec<Step>,
    /// How it ends.
    pub endings: Vec<Ending>,
}

impl Phase {
    /// `Scenario/phase`, with `v1/` before it for the older provider.
    pub fn name(&self) -> String {
        let folder = if self.provider == Provider::V1 { "v1/" } else { "" };
        format!("{folder}{}/{}", self.scenario, self.phase)
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

/// The phase of this [name](Phase::name).
///
/// # Errors
/// `expected.json` does not know it.
pub fn phase(name: &str) -> Result<Phase> {
    let provider = if name.starts_with("v1/") { Provider::V1 } else { Provider::V2 };
    phases(provider)?
        .into_iter()
        .find(|phase| phase.name() == name)
        .with_context(|| format!("no phase {name}"))
}

/// Calls a macro with a test name and a [name](Phase::name) for every phase that a worker can
/// finish.
#[macro_export]
macro_rules! for_each_golden_phase {
    ($test:ident) => {
        $test!(approval_pending, "Approval/pending");
        $test!(approval_midflight, "Approval/midflight");
        $test!(approval_raised, "Approval/raised");
        $test!(approval_timeout_pending, "ApprovalTimeout/pending");
        $test!(approval_timeout_midflight, "ApprovalTimeout/midflight");
        $test!(buffered_event_pending, "BufferedEvent/pending");
        $test!(buffered_event_midflight, "BufferedEvent/midflight");
        $test!(call_entity_pending, "CallEntity/pending");
        $test!(call_entity_midflight, "CallEntity/midflight");
        $test!(custom_status_pending, "CustomStatus/pending");
        $test!(custom_status_midflight, "CustomStatus/midflight");
        $test!(eternal_pending, "Eternal/pending");
        $test!(eternal_midflight, "Eternal/midflight");
        $test!(fail_handled_pending, "FailHandled/pending");
        $test!(fail_handled_midflight, "FailHandled/midflight");
        $test!(fail_handled_details_pending, "FailHandledDetails/pending");
        $test!(fail_handled_details_midflight, "FailHandledDetails/midflight");
        $test!(fail_handled_serialized_pending, "FailHandledSerialized/pending");
        $test!(fail_handled_serialized_midflight, "FailHandledSerialized/midflight");
        $test!(fail_self_pending, "FailSelf/pending");
        $test!(fail_self_details_pending, "FailSelfDetails/pending");
        $test!(fail_unhandled_pending, "FailUnhandled/pending");
        $test!(fail_unhandled_midflight, "FailUnhandled/midflight");
        $test!(fail_unhandled_details_pending, "FailUnhandledDetails/pending");
        $test!(fail_unhandled_details_midflight, "FailUnhandledDetails/midflight");
        $test!(fail_unhandled_serialized_pending, "FailUnhandledSerialized/pending");
        $test!(fail_unhandled_serialized_midflight, "FailUnhandledSerialized/midflight");
        $test!(fan_out_fan_in_pending, "FanOutFanIn/pending");
        $test!(fan_out_fan_in_midflight, "FanOutFanIn/midflight");
        $test!(fire_and_forget_pending, "FireAndForget/pending");
        $test!(fire_and_forget_midflight, "FireAndForget/midflight");
        $test!(hello_sequence_pending, "HelloSequence/pending");
        $test!(hello_sequence_midflight, "HelloSequence/midflight");
        $test!(legacy_manager_pending, "LegacyManager/pending");
        $test!(legacy_manager_midflight, "LegacyManager/midflight");
        $test!(lock_entities_pending, "LockEntities/pending");
        $test!(lock_entities_midflight, "LockEntities/midflight");
        $test!(parent_pending, "Parent/pending");
        $test!(parent_midflight, "Parent/midflight");
        $test!(parent_named_child_pending, "ParentNamedChild/pending");
        $test!(parent_named_child_midflight, "ParentNamedChild/midflight");
        $test!(parent_of_failing_pending, "ParentOfFailing/pending");
        $test!(parent_of_failing_midflight, "ParentOfFailing/midflight");
        $test!(parent_of_failing_serialized_pending, "ParentOfFailingSerialized/pending");
        $test!(parent_of_failing_serialized_midflight, "ParentOfFailingSerialized/midflight");
        $test!(purge_pending, "Purge/pending");
        $test!(restart_same_id_pending, "RestartSameId/pending");
        $test!(restart_same_id_midflight, "RestartSameId/midflight");
        $test!(retry_pending, "Retry/pending");
        $test!(retry_midflight, "Retry/midflight");
        $test!(retry_ok_pending, "RetryOk/pending");
        $test!(retry_ok_midflight, "RetryOk/midflight");
        $test!(safe_manager_pending, "SafeManager/pending");
        $test!(safe_manager_midflight, "SafeManager/midflight");
        $test!(scheduled_start_pending, "ScheduledStart/pending");
        $test!(scheduled_start_midflight, "ScheduledStart/midflight");
        $test!(send_event_to_pending, "SendEventTo/pending");
        $test!(send_event_to_midflight, "SendEventTo/midflight");
        $test!(signal_entity_pending, "SignalEntity/pending");
        $test!(signal_later_pending, "SignalLater/pending");
        $test!(signal_later_midflight, "SignalLater/midflight");
        $test!(suspend_resume_midflight, "SuspendResume/midflight");
        $test!(suspend_with_event_midflight, "SuspendWithEvent/midflight");
        $test!(tags_pending, "Tags/pending");
        $test!(tags_midflight, "Tags/midflight");
        $test!(terminate_pending_pending, "TerminatePending/pending");
        $test!(terminate_pending_midflight, "TerminatePending/midflight");
        $test!(terminate_running_midflight, "TerminateRunning/midflight");
        $test!(timer_pending, "Timer/pending");
        $test!(timer_midflight, "Timer/midflight");
        $test!(versioned_pending, "Versioned/pending");
        $test!(versioned_midflight, "Versioned/midflight");
        $test!(v1_hello_sequence_pending, "v1/HelloSequence/pending");
        $test!(v1_hello_sequence_midflight, "v1/HelloSequence/midflight");
        $test!(v1_hello_sequence_legacy_pending, "v1/HelloSequenceLegacy/pending");
        $test!(v1_hello_sequence_legacy_midflight, "v1/HelloSequenceLegacy/midflight");
        $test!(v1_fan_out_fan_in_pending, "v1/FanOutFanIn/pending");
        $test!(v1_fan_out_fan_in_midflight, "v1/FanOutFanIn/midflight");
        $test!(v1_parent_pending, "v1/Parent/pending");
        $test!(v1_parent_midflight, "v1/Parent/midflight");
        $test!(v1_parent_named_child_pending, "v1/ParentNamedChild/pending");
        $test!(v1_parent_named_child_midflight, "v1/ParentNamedChild/midflight");
        $test!(v1_parent_of_failing_pending, "v1/ParentOfFailing/pending");
        $test!(v1_parent_of_failing_midflight, "v1/ParentOfFailing/midflight");
        $test!(v1_eternal_pending, "v1/Eternal/pending");
        $test!(v1_eternal_midflight, "v1/Eternal/midflight");
        $test!(v1_fail_handled_pending, "v1/FailHandled/pending");
        $test!(v1_fail_handled_midflight, "v1/FailHandled/midflight");
        $test!(v1_fail_unhandled_pending, "v1/FailUnhandled/pending");
        $test!(v1_fail_unhandled_midflight, "v1/FailUnhandled/midflight");
        $test!(v1_fire_and_forget_pending, "v1/FireAndForget/pending");
        $test!(v1_fire_and_forget_midflight, "v1/FireAndForget/midflight");
        $test!(v1_fail_self_pending, "v1/FailSelf/pending");
        $test!(v1_large_payload_pending, "v1/LargePayload/pending");
        $test!(v1_large_payload_midflight, "v1/LargePayload/midflight");
        $test!(v1_custom_status_midflight_raised, "v1/CustomStatus/midflight-raised");
        $test!(v1_timer_midflight_due, "v1/Timer/midflight-due");
    };
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

fn manager(flags: &Json) -> Result<PartitionManagerKind> {
    let flags: Vec<&str> = list(flags).filter_map(Json::as_str).collect();
    Ok(match flags[..] {
        [] => PartitionManagerKind::Table,
        ["--manager", "safe"] => PartitionManagerKind::Safe,
        ["--manager", "legacy"] => PartitionManagerKind::Legacy,
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
