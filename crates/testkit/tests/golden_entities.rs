//! Everything that entities and their callers have written in the captured hubs is read and written again byte for
//! byte, with the one difference that is on purpose: a state says that it exists.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use taskhub_entities::event_name::{self, EntityEventKind};
use taskhub_entities::{
    EntityId, EntityStatus, ReleaseMessage, RequestMessage, ResponseMessage, SchedulerState,
};
use taskhub_storage::Entity;
use taskhub_testkit::dump;
use taskhub_testkit::golden::{self, Provider};

fn captures(directory: &Path, found: &mut Vec<PathBuf>) -> Result<()> {
    for entry in std::fs::read_dir(directory)? {
        let path = entry?.path();
        if path.is_dir() {
            captures(&path, found)?;
        } else if path.to_string_lossy().ends_with(".json.gz") {
            found.push(path);
        }
    }
    Ok(())
}

/// How many texts of each kind were compared.
#[derive(Debug, Default)]
struct Seen {
    states: usize,
    statuses: usize,
    requests: usize,
    releases: usize,
    responses: usize,
}

impl Seen {
    fn state(&mut self, text: &str) -> Result<()> {
        let state = SchedulerState::from_json(text).context("a state")?;
        let ours = state.to_json();
        let theirs = if state.exists() && !text.contains("\"exists\"") {
            ours.replacen("\"exists\":true,", "", 1)
        } else {
            ours
        };
        assert_eq!(theirs, text);
        self.states += 1;
        Ok(())
    }

    /// An event to an entity, or one named by a GUID: the answer to a request.
    fn event(&mut self, to_entity: bool, name: &str, input: &str) -> Result<()> {
        let is_guid = name.len() == 36 && name.split('-').count() == 5;
        let ours = match event_name::kind(name) {
            EntityEventKind::Request if to_entity => {
                self.requests += 1;
                RequestMessage::from_json(input).context("a request")?.to_json()
            }
            EntityEventKind::Release if to_entity => {
                self.releases += 1;
                ReleaseMessage::from_json(input).context("a release")?.to_json()
            }
            _ if is_guid => {
                self.responses += 1;
                ResponseMessage::from_json(input).context("a response")?.to_json()
            }
            _ => return Ok(()),
        };
        assert_eq!(ours, input);
        Ok(())
    }

    fn history(&mut self, row: &Entity) -> Result<()> {
        let is_entity = row.partition_key.starts_with('@');
        match (row.str("EventType"), row.str("Input")) {
            (Some("ExecutionStarted"), Some(input)) if is_entity => self.state(input),
            (Some("EventSent"), Some(input)) => {
                let target = row.str("InstanceId").unwrap_or_default();
                let to_entity = EntityId::of_instance(&target.into()).is_some();
                self.event(to_entity, row.str("Name").unwrap_or_default(), input)
            }
            (Some("EventRaised"), Some(input)) => {
                self.event(is_entity, row.str("Name").unwrap_or_default(), input)
            }
            _ => Ok(()),
        }
    }
}

#[test]
fn what_entities_wrote_under_dotnet_is_written_again_byte_for_byte() -> Result<()> {
    let mut files = Vec::new();
    captures(&golden::directory(Provider::V2), &mut files)?;
    let mut seen = Seen::default();
    for file in files {
        let named = |name: &str| file.to_string_lossy().ends_with(name);
        // What the client saw, requests and messages on their own: no hubs.
        if named("states.json.gz") || named("wire/messages.json.gz") {
            continue;
        }
        let hub = dump::read(&file).with_context(|| file.display().to_string())?;
        let rows = |table: &str| hub.table(table).map(|table| table.rows.clone()).unwrap_or_default();
        for row in rows("History") {
            seen.history(&row).with_context(|| format!("{} {}", file.display(), row.partition_key))?;
        }
        for row in rows("Instances").iter().filter(|row| row.partition_key.starts_with('@')) {
            if let Some(status) = row.str("CustomStatus") {
                assert_eq!(EntityStatus::from_json(status)?.to_json(), status);
                seen.statuses += 1;
            }
            if let Some(input) = row.str("Input") {
                seen.state(input)?;
            }
        }
    }
    assert!(seen.states >= 20 && seen.statuses >= 10 && seen.requests >= 10, "{seen:?}");
    assert!(seen.releases >= 2 && seen.responses >= 8, "{seen:?}");
    Ok(())
}
