//! Histories that .NET workers have written, replayed by the sample functions: every recorded decision
//! must be made again, at the same place and with the same ids, and nothing else.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use taskhub_azure_storage::tracking::{history_row, sentinel};
use taskhub_azure_storage::{AzureStorageService, AzureStorageSettings, Hub};
use taskhub_core::{
    ActionKind, EventKind, ExecutionStarted, FailureDetails, HistoryEvent, OrchestrationStatus,
    OrchestratorAction, SeededIds, TaskHubName,
};
use taskhub_entities::RequestMessage;
use taskhub_replay::{Execution, OrchestratorSource};
use taskhub_storage::memory::MemoryStore;
use taskhub_storage::{Entity, Value};
use taskhub_testkit::VirtualClock;
use taskhub_testkit::dump::{self, HubDump};
use taskhub_testkit::golden::{self, Provider};
use taskhub_worker::samples::{self, SampleOptions};
use taskhub_worker::{ErrorPropagationMode, Worker, WorkerSettings};

/// One execution out of a captured hub.
struct Recorded {
    file: String,
    events: Vec<HistoryEvent>,
}

impl Recorded {
    fn started(&self) -> Option<&ExecutionStarted> {
        self.events.iter().find_map(|event| match &event.kind {
            EventKind::ExecutionStarted(started) => Some(&**started),
            _ => None,
        })
    }

    fn label(&self) -> String {
        let started = self.started().unwrap();
        format!("{} {} {}", self.file, started.name, started.instance.instance_id)
    }
}

/// Every captured hub: `(name, path)`.
fn captures() -> Vec<(String, PathBuf)> {
    fn collect(directory: &Path, prefix: &str, found: &mut Vec<(String, PathBuf)>) {
        for entry in fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            let name = format!("{prefix}{}", path.file_name().unwrap().to_str().unwrap());
            if path.is_dir() {
                collect(&path, &format!("{name}/"), found);
            } else if let Some(name) = name.strip_suffix(".json.gz") {
                // The one the client saw, and messages on their own: no hubs.
                if !name.ends_with("/states") && name != "v1/wire/messages" {
                    found.push((name.to_owned(), path));
                }
            }
        }
    }
    let mut found = Vec::new();
    collect(&golden::directory(Provider::V2), "", &mut found);
    found.sort();
    found
}

/// All executions in a hub, in order of their keys.
fn executions(file: &str, hub: &HubDump) -> Vec<Recorded> {
    let mut rows: BTreeMap<(String, String), Vec<Entity>> = BTreeMap::new();
    for row in hub.table("History").into_iter().flat_map(|table| &table.rows) {
        if !sentinel::is_sentinel(row) {
            let execution = history_row::execution_id(row).unwrap().to_owned();
            rows.entry((row.partition_key.clone(), execution)).or_default().push(restored(row, hub));
        }
    }
    rows.into_values()
        .map(|mut rows| {
            rows.sort_by(|a, b| a.row_key.cmp(&b.row_key));
            let events = rows.iter().map(|row| history_row::read(row).unwrap()).collect();
            Recorded { file: file.to_owned(), events }
        })
        .collect()
}

/// Puts large columns back from their blobs.
fn restored(row: &Entity, hub: &HubDump) -> Entity {
    let mut row = row.clone();
    let references: Vec<(String, String)> = row
        .columns
        .iter()
        .filter_map(|(name, value)| match (name.strip_suffix("BlobName"), value) {
            (Some(column), Value::String(blob)) => Some((column.to_owned(), blob.clone())),
            _ => None,
        })
        .collect();
    for (column, blob) in references {
        let blobs = &hub.container("-largemessages").unwrap().blobs;
        let text = blobs.iter().find(|b| b.name == blob).unwrap().text().unwrap();
        row.set(column, text.as_str());
    }
    row
}

/// The sample orchestrators, with failures in the form of the capture.
fn sample_source(file: &str) -> Arc<dyn OrchestratorSource> {
    let scenario = file.rsplit_once('/').unwrap().0;
    let details = scenario.ends_with("Details") && !scenario.ends_with("IncludeDetails");
    let error_propagation_mode = if details {
        ErrorPropagationMode::UseFailureDetails
    } else {
        ErrorPropagationMode::SerializeExceptions
    };
    let settings = WorkerSettings { error_propagation_mode, ..WorkerSettings::default() };
    let clock = Arc::new(VirtualClock::default());
    let hub = AzureStorageSettings::new(TaskHubName::new("unused").unwrap(), "worker");
    let account = MemoryStore::new(clock.clone()).account();
    let hub = Hub::new(hub, account, clock, Arc::new(SeededIds::new(1))).unwrap();
    let builder = Worker::builder(Arc::new(AzureStorageService::new(hub))).settings(settings);
    samples::register(builder, SampleOptions::default()).orchestrator_source().unwrap()
}

/// Everything that was recorded and can be replayed. Fails when an instance that has run has no history.
fn recorded() -> Vec<Recorded> {
    let mut replayable = Vec::new();
    for (file, path) in captures() {
        let hub = dump::read(&path).unwrap();
        let found = executions(&file, &hub);
        for row in hub.table("Instances").into_iter().flat_map(|table| &table.rows) {
            let id = row.str("ExecutionId").unwrap();
            let has_history = found.iter().filter_map(Recorded::started).any(|started| {
                started.instance.execution_id.as_ref().is_some_and(|execution| execution.as_str() == id)
            });
            let has_run = row.str("RuntimeStatus") != Some("Pending");
            assert_eq!(has_history, has_run, "{file}: {}", row.partition_key);
        }
        // What is left behind of an execution that a shorter one has overwritten has no start.
        let whole = found.into_iter().filter(|recorded| recorded.started().is_some());
        // Entities are not replayed.
        let is_entity = |recorded: &Recorded| recorded.started().unwrap().instance.instance_id.is_entity();
        replayable.extend(whole.filter(|recorded| !is_entity(recorded)));
    }
    replayable
}

fn execution(source: &dyn OrchestratorSource, started: &ExecutionStarted) -> Execution {
    let (orchestrator, settings) = source
        .orchestrator(&started.name, started.version.as_deref())
        .unwrap_or_else(|| panic!("no sample for `{}`", started.name));
    Execution::new(orchestrator, settings)
}

/// Events of one episode that the orchestrator was given, and those that it decided.
struct Episode {
    begins: usize,
    given: usize,
}

/// Episodes begin with `OrchestratorStarted`; what an orchestrator decides has an id.
fn episodes(events: &[HistoryEvent]) -> Vec<Episode> {
    let begins = |event: &HistoryEvent| event.kind == EventKind::OrchestratorStarted;
    let starts: Vec<usize> = (0..events.len()).filter(|i| begins(&events[*i])).collect();
    let ends = starts.iter().skip(1).copied().chain([events.len()]);
    starts
        .iter()
        .zip(ends)
        .map(|(begins, end)| {
            let episode = &events[*begins..end];
            let given = episode.iter().take_while(|event| event.event_id < 0).count();
            Episode { begins: *begins, given }
        })
        .collect()
}

/// The 1.x provider does not keep a child's tags in the parent's history.
fn without_child_tags(action: &OrchestratorAction) -> OrchestratorAction {
    let mut action = action.clone();
    if let ActionKind::CreateSubOrchestration { tags, .. } = &mut action.kind {
        *tags = None;
    }
    action
}

/// A request to an entity, by its first member.
fn request(input: &Option<String>) -> Option<RequestMessage> {
    let text = input.as_deref().filter(|text| text.starts_with(r#"{"op":"#))?;
    Some(RequestMessage::from_json(text).unwrap())
}

/// A request to an entity with the id of the recorded one: the programs that were captured made their request
/// ids in a way of their own, in which no SDK makes them.
fn with_id_of(input: &Option<String>, recorded: &Option<String>) -> Option<String> {
    match (request(input), request(recorded)) {
        (Some(request), Some(recorded)) => Some(RequestMessage { id: recorded.id, ..request }.to_json()),
        _ => input.clone(),
    }
}

#[track_caller]
fn assert_decided(label: &str, action: &OrchestratorAction, event: &HistoryEvent) {
    assert_eq!(action.id, event.event_id, "{label}: id");
    let action = if label.starts_with("v1/") { without_child_tags(action) } else { action.clone() };
    match (&action.kind, &event.kind) {
        (
            ActionKind::ScheduleTask { name, version, tags, .. },
            EventKind::TaskScheduled {
                name: recorded, version: recorded_version, tags: recorded_tags, ..
            },
        ) => {
            assert_eq!(
                (Some(name), version, tags),
                (recorded.as_ref(), recorded_version, recorded_tags),
                "{label}"
            );
        }
        (
            ActionKind::CreateSubOrchestration { name, version, instance_id, tags, .. },
            EventKind::SubOrchestrationInstanceCreated {
                name: recorded,
                version: recorded_version,
                instance_id: recorded_id,
                tags: recorded_tags,
                ..
            },
        ) => {
            assert_eq!(
                (Some(name), version, instance_id, tags),
                (recorded.as_ref(), recorded_version, recorded_id, recorded_tags),
                "{label}"
            );
        }
        (ActionKind::CreateTimer { fire_at }, EventKind::TimerCreated { fire_at: recorded }) => {
            assert_eq!(fire_at, recorded, "{label}: timer {}", action.id);
        }
        (
            ActionKind::SendEvent { target, name, input },
            EventKind::EventSent { instance_id, name: recorded, input: recorded_input },
        ) => {
            assert_eq!((&target.instance_id, Some(name)), (instance_id, recorded.as_ref()), "{label}");
            assert_eq!(with_id_of(input, recorded_input).as_ref(), recorded_input.as_ref(), "{label}");
        }
        (ActionKind::Complete(completion), EventKind::ExecutionCompleted(recorded)) => {
            assert_eq!(
                (completion.status, &completion.result),
                (recorded.status, &recorded.result),
                "{label}: end"
            );
            // Stack traces differ; Terminated has none.
            let text = |failure: &Option<FailureDetails>| failure.as_ref().map(ToString::to_string);
            assert_eq!(
                text(&completion.failure_details),
                text(&recorded.failure_details),
                "{label}: failure"
            );
        }
        (action, event) => panic!("{label}: decided {action:?}, recorded {event:?}"),
    }
}

#[test]
fn every_episode_decides_what_its_history_records() {
    for recorded in recorded() {
        let label = recorded.label();
        let source = sample_source(&recorded.file);
        for Episode { begins, given } in episodes(&recorded.events) {
            let mut execution = execution(source.as_ref(), recorded.started().unwrap());
            let mut new = recorded.events[begins..begins + given].to_vec();
            let result = execution.advance(&recorded.events[..begins], &mut new);
            let decided = recorded.events[begins + given..].iter();
            let decided: Vec<_> = decided
                .take_while(|event| event.kind != EventKind::OrchestratorStarted)
                .filter(|event| event.event_id >= 0)
                .collect();
            assert_eq!(result.actions.len(), decided.len(), "{label}: {:?} {decided:?}", result.actions);
            for (action, event) in result.actions.iter().zip(decided) {
                assert_decided(&label, action, event);
            }
        }
    }
}

#[test]
fn a_whole_history_leaves_nothing_to_decide_but_its_end() {
    let mut ends = BTreeMap::new();
    for recorded in recorded() {
        let label = recorded.label();
        let source = sample_source(&recorded.file);
        let mut execution = execution(source.as_ref(), recorded.started().unwrap());
        let actions = execution.advance(&recorded.events, &mut []).actions;
        let end = recorded.events.iter().find(|event| matches!(event.kind, EventKind::ExecutionCompleted(_)));
        match (&actions[..], end) {
            ([], None) => *ends.entry("running".to_owned()).or_insert(0) += 1,
            ([action], Some(end)) => {
                assert_decided(&label, action, end);
                let ActionKind::Complete(completion) = &action.kind else { panic!("{label}") };
                *ends.entry(completion.status.to_string()).or_insert(0) += 1;
            }
            other => panic!("{label}: {other:?}"),
        }
    }
    // Each way to end is among them.
    for end in ["running", "Completed", "Failed", OrchestrationStatus::Terminated.name()] {
        assert!(ends.get(end).is_some_and(|count| *count > 0), "{end}: {ends:?}");
    }
}

/// The history with the request ids that its replay makes.
fn with_own_ids(recorded: Recorded, source: &dyn OrchestratorSource) -> Recorded {
    let mut ids = Vec::new();
    for Episode { begins, given } in episodes(&recorded.events) {
        let mut execution = execution(source, recorded.started().unwrap());
        let mut new = recorded.events[begins..begins + given].to_vec();
        for action in execution.advance(&recorded.events[..begins], &mut new).actions {
            let event = recorded.events.iter().find(|event| event.event_id == action.id).unwrap();
            if let ActionKind::SendEvent { input, .. } = action.kind
                && let EventKind::EventSent { input: recorded, .. } = &event.kind
                && let (Some(own), Some(recorded)) = (request(&input), request(recorded))
            {
                ids.push((recorded.id.to_string(), own.id.to_string()));
            }
        }
    }
    let rename = |text: &mut Option<String>| {
        for (id, own) in &ids {
            *text = text.take().map(|text| text.replace(id, own));
        }
    };
    let mut recorded = recorded;
    for event in &mut recorded.events {
        if let EventKind::EventSent { name, input, .. } | EventKind::EventRaised { name, input, .. } =
            &mut event.kind
        {
            rename(name);
            rename(input);
        }
    }
    recorded
}

#[test]
fn an_extended_session_decides_the_same_as_a_replay() {
    for recorded in recorded() {
        let label = recorded.label();
        let source = sample_source(&recorded.file);
        let recorded = with_own_ids(recorded, source.as_ref());
        let mut execution = execution(source.as_ref(), recorded.started().unwrap());
        for (index, Episode { begins, given }) in episodes(&recorded.events).into_iter().enumerate() {
            let mut new = recorded.events[begins..begins + given].to_vec();
            let decided = execution.advance(&[], &mut new).actions;
            let mut replay = self::execution(source.as_ref(), recorded.started().unwrap());
            let mut new = recorded.events[begins..begins + given].to_vec();
            let replayed = replay.advance(&recorded.events[..begins], &mut new).actions;
            assert_eq!(decided, replayed, "{label}: episode {index}");
        }
    }
}
