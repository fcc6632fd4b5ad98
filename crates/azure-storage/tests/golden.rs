//! Everything that .NET workers wrote is read, and written back as it was.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod capture;

use std::collections::{BTreeMap, BTreeSet};

use capture::{AllowedDifferences, Capture, Kind, as_v1};
use serde_json::Value as Json;
use taskhub_azure_storage::message::{
    self, Decoded, MessageData, MessageEncoding, blob_name_of, message_blob_name,
};
use taskhub_azure_storage::names::ResourceNames;
use taskhub_azure_storage::partition::partition_of;
use taskhub_azure_storage::tracking::instance_row::RowContext;
use taskhub_azure_storage::tracking::{blob_column, history_row, instance_row, key, sentinel};
use taskhub_core::{
    EventKind, ExecutionId, HistoryEvent, InstanceId, OrchestrationStatus, SeededIds, TaskHubName, Timestamp,
};
use taskhub_storage::{Entity, Value};
use taskhub_testkit::dump::HubDump;

fn decoded(text: &str) -> MessageData {
    match message::decode(text).unwrap() {
        Decoded::Message(message) => *message,
        Decoded::Wrapper { blob_name } => panic!("a wrapper for {blob_name}"),
    }
}

/// Checks one captured envelope; `json` is its text without queue encoding.
#[track_caller]
fn check_envelope(v1: bool, json: &str, allowed: &mut AllowedDifferences) {
    let message = match message::decode(json).unwrap() {
        Decoded::Message(message) => message,
        Decoded::Wrapper { blob_name } => {
            assert_eq!(message::encode_wrapper(&blob_name, MessageEncoding::Utf8), json);
            return;
        }
    };
    let ours = message::encode(&message, MessageEncoding::Utf8);
    assert_eq!(decoded(&ours), *message);
    let base64 = message::encode(&message, MessageEncoding::Base64);
    assert_eq!(decoded(&base64), *message);
    if json.contains("\"__type\":") {
        return; // The members of a data contract come in another order.
    }
    let expected = allowed.applied(json);
    assert_eq!(if v1 { as_v1(&ours) } else { ours }, expected);
}

#[test]
fn every_message_is_written_back_byte_for_byte() {
    let mut allowed = AllowedDifferences::of("message");
    let mut count = 0;
    for capture in capture::of(Kind::Hub) {
        let hub = capture.hub();
        for message in hub.messages() {
            check_envelope(capture.is_v1(), &message.json_text(), &mut allowed);
            count += 1;
        }
        for (name, text) in large_blobs(&hub) {
            if name.contains("/message-") {
                assert_eq!(message_blob_name(&decoded(&text)), name);
                check_envelope(capture.is_v1(), &text, &mut allowed);
                count += 1;
            }
        }
    }
    for capture in capture::of(Kind::Wire) {
        let messages: Vec<Json> = serde_json::from_str(&capture.text()).unwrap();
        for message in messages {
            check_envelope(true, message["text"].as_str().unwrap(), &mut allowed);
            count += 1;
        }
    }
    for (text, _) in sent_in_traffic() {
        check_envelope(false, &text, &mut allowed);
        count += 1;
    }
    assert!(count > 600, "{count}");
    allowed.check();
}

#[test]
fn messages_hidden_when_sent_get_our_delay_rounded_up() {
    let mut delayed = 0;
    for (text, seconds) in sent_in_traffic() {
        let message = decoded(&text).task_message;
        // .NET computes the delay a moment after it made the event, and cuts it.
        let delay = message::visibility_delay(&message, message.event.timestamp).as_secs();
        assert!(seconds <= delay && delay <= seconds + 2, "{seconds} {delay}");
        delayed += u32::from(delay > 0);
    }
    assert!(delayed > 0);
}

/// Messages sent in the recorded runs of 2.9.1, with their visibility timeouts in seconds.
fn sent_in_traffic() -> Vec<(String, u64)> {
    let mut sent = Vec::new();
    for capture in capture::of(Kind::Traffic) {
        for line in capture.text().lines() {
            let request: Json = serde_json::from_str(line).unwrap();
            if request["op"] != "PutMessage" {
                continue;
            }
            let body = request["body"].as_str().unwrap();
            let (_, text) = body.split_once("<MessageText>").unwrap();
            let (text, _) = text.split_once("</MessageText>").unwrap();
            let target = request["target"].as_str().unwrap();
            let delay = target.split(['?', '&']).find_map(|part| part.strip_prefix("visibilitytimeout="));
            sent.push((xml_unescaped(text), delay.map_or(0, |seconds| seconds.parse().unwrap())));
        }
    }
    sent
}

fn xml_unescaped(text: &str) -> String {
    text.replace("&lt;", "<").replace("&gt;", ">").replace("&quot;", "\"").replace("&amp;", "&")
}

fn large_blobs(hub: &HubDump) -> Vec<(String, String)> {
    let Some(container) = hub.container("-largemessages") else { return Vec::new() };
    container
        .blobs
        .iter()
        .map(|blob| (blob.name.clone(), message::decompress(&blob.content).unwrap()))
        .collect()
}

fn container_url(hub: &HubDump) -> String {
    let names = ResourceNames::new(&TaskHubName::existing(hub.hub.clone()).unwrap(), None);
    format!("{}/{}", hub.blob_endpoint, names.large_message_container())
}

/// History rows of a hub, those of one instance in a row.
fn history(hub: &HubDump) -> &[Entity] {
    hub.table("History").map_or(&[], |table| &table.rows)
}

fn instances(hub: &HubDump) -> &[Entity] {
    hub.table("Instances").map_or(&[], |table| &table.rows)
}

/// A row with its large columns back in place; `None` when a blob is gone (its execution was replaced).
fn restored(hub: &HubDump, row: &Entity) -> Option<Entity> {
    let mut whole = row.clone();
    for (column, blob_name) in blob_column::references(row) {
        let blobs = large_blobs(hub);
        let (_, text) = blobs.into_iter().find(|(name, _)| name == blob_name)?;
        whole.set(column, text);
        whole.columns.remove(blob_column::blob_name_column(column).as_str());
    }
    Some(whole)
}

#[test]
fn every_history_row_is_written_back_with_the_same_columns() {
    let (mut count, mut large) = (0, 0);
    for capture in capture::of(Kind::Hub) {
        let hub = capture.hub();
        for row in history(&hub) {
            if sentinel::is_sentinel(row) {
                let read = sentinel::read(row);
                let written =
                    sentinel::write(&row.partition_key, &read.execution_id, read.checkpoint_completed_at);
                assert_eq!(written.columns, row.columns);
                continue;
            }
            let whole = restored(&hub, row).unwrap();
            let event = history_row::read(&whole).unwrap();
            let index = history_row::index_of(&row.row_key).unwrap();
            let execution = ExecutionId::new(history_row::execution_id(row).unwrap());
            let mut ours = history_row::write(&row.partition_key, index, &execution, &event);
            assert_eq!((&ours.partition_key, &ours.row_key), (&row.partition_key, &row.row_key));
            assert_eq!(history_row::read(&ours).as_ref(), Ok(&event), "{}", capture.name);
            assert_eq!(columns(&capture, ours.clone()), whole.columns, "{}", capture.name);

            let blobs = blob_column::offload_history(&mut ours, &SeededIds::new(1));
            assert_eq!(shape(&ours), shape(row));
            large += blobs.len();
            count += 1;
        }
    }
    assert!(count > 1500, "{count}");
    assert!(large > 0);
}

/// Columns of our row; for a 1.x capture, as 1.x writes them: no text `null`, no later members.
fn columns(capture: &Capture, ours: Entity) -> taskhub_storage::Properties {
    let mut columns = ours.columns;
    if capture.is_v1() {
        columns.remove("GenerateNewTrace");
        for column in ["ParentInstance", "Tags", "ParentTraceContext", "FailureDetails"] {
            if columns.get(column) == Some(&Value::from("null")) {
                columns.remove(column);
            }
        }
        for value in columns.values_mut() {
            if let Value::String(text) = value {
                *text = text.replace(",\"Properties\":null}", "}");
            }
        }
    }
    columns
}

/// Large columns and the names of their blobs without the random number.
fn shape(row: &Entity) -> Vec<(&'static str, String)> {
    let without_random = |name: &str| {
        let end = name.rfind('-').unwrap();
        let random = &name[end - 8..end];
        assert!(random.bytes().all(|b| b.is_ascii_digit() || (b'A'..=b'F').contains(&b)), "{name}");
        format!("{}{}", &name[..end - 8], &name[end..])
    };
    blob_column::references(row).into_iter().map(|(column, name)| (column, without_random(name))).collect()
}

/// The events of an instance's current execution, each with its row; `None` without a sentinel.
fn current_history(hub: &HubDump, partition_key: &str) -> Option<(ExecutionId, Vec<(HistoryEvent, Entity)>)> {
    let rows: Vec<&Entity> = history(hub).iter().filter(|row| row.partition_key == partition_key).collect();
    let execution = sentinel::read(rows.iter().find(|row| sentinel::is_sentinel(row))?).execution_id;
    let current = rows.into_iter().filter(|row| !sentinel::is_sentinel(row));
    let current = current.take_while(|row| history_row::execution_id(row) == Some(execution.as_str()));
    let events = current.map(|row| (history_row::read(&restored(hub, row).unwrap()).unwrap(), row.clone()));
    Some((execution.clone(), events.collect()))
}

#[test]
fn instances_rows_follow_from_the_history() {
    let (mut count, mut terminal) = (0, 0);
    for capture in capture::of(Kind::Hub) {
        let hub = capture.hub();
        let name = TaskHubName::existing(hub.hub.clone()).unwrap();
        let url = container_url(&hub);
        for row in instances(&hub) {
            let state = instance_row::read(row).unwrap();
            assert_eq!(key::escape(state.instance.instance_id.as_str()), row.partition_key);
            let Some((execution, events)) = current_history(&hub, &row.partition_key) else { continue };
            if state.instance.execution_id.as_ref() != Some(&execution) {
                continue; // A new execution has been requested and has not begun.
            }
            let context = RowContext {
                instance_id: &state.instance.instance_id,
                execution_id: &execution,
                hub: &name,
                container_url: &url,
                now: state.completed_at.unwrap_or(Timestamp::MAX),
            };
            let rows = events.iter().map(|(event, row)| (event, row));
            let mut ours = instance_row::checkpoint(context, state.custom_status.as_deref(), rows.clone());
            let mut theirs = row.clone();
            if capture.is_v1() {
                // Only the client's insert has them, which 1.x workers leave as they are.
                for column in ["TaskHubName", "Tags", "Generation"] {
                    ours.columns.remove(column);
                    theirs.columns.remove(column);
                }
            }
            // Left from the start or an earlier generation, which the current history does not tell.
            for column in ["Generation", "InputBlobName"] {
                if ours.get(column).is_none() {
                    theirs.columns.remove(column);
                }
            }
            normalise_urls(&url, &mut ours);
            normalise_urls(&url, &mut theirs);
            assert_eq!(ours.columns, theirs.columns, "{} {}", capture.name, row.partition_key);
            count += 1;

            let repaired = instance_row::repair(context, rows, instance_row::Stale::Same);
            assert_eq!(repaired.is_some(), state.status.unwrap().is_terminal());
            if let Some(mut repaired) = repaired {
                normalise_urls(&url, &mut repaired);
                for (column, value) in &repaired.columns {
                    let same = ours.get(column) == Some(value);
                    assert!(
                        same || column == "CompletedTime" || capture.is_v1(),
                        "{} {column}",
                        capture.name
                    );
                }
                terminal += 1;
            }
        }
    }
    assert!(count > 150 && terminal > 50, "{count} {terminal}");
}

/// 1.x leaves characters in URLs as they are that 2.x escapes: compare names.
fn normalise_urls(container_url: &str, row: &mut Entity) {
    for column in ["Input", "Output"] {
        if let Some(name) = row.str(column).and_then(|text| blob_name_of(container_url, text)) {
            row.set(column, format!("blob:{name}"));
        }
    }
}

#[test]
fn rows_of_requested_instances_follow_from_the_start_message() {
    let mut count = 0;
    for capture in capture::of(Kind::Hub) {
        let hub = capture.hub();
        let name = TaskHubName::existing(hub.hub.clone()).unwrap();
        for queued in hub.messages() {
            let Ok(Decoded::Message(message)) = message::decode(&queued.text) else { continue };
            let target = &message.task_message.target;
            let EventKind::ExecutionStarted(started) = &message.task_message.event.kind else { continue };
            let key = key::escape(target.instance_id.as_str());
            let Some(row) = instances(&hub).iter().find(|row| row.partition_key == key) else { continue };
            let state = instance_row::read(row).unwrap();
            if state.instance != *target || state.status != Some(OrchestrationStatus::Pending) {
                continue;
            }
            let at = message.task_message.event.timestamp;
            let ours = instance_row::start(&name, at, started, None, state.last_updated_at);
            let mut theirs = row.clone();
            // Differs: a large input becomes a URL, not an `InputBlobName`.
            if theirs.columns.remove("InputBlobName").is_some() {
                theirs.set("Input", started.input.clone().unwrap());
            }
            let mut ours = ours.columns;
            if capture.is_v1() && ours.get("Tags") == Some(&Value::from("null")) {
                ours.remove("Tags");
                theirs.columns.remove("Tags");
            }
            assert_eq!(ours, theirs.columns, "{}", capture.name);
            count += 1;
        }
    }
    assert!(count > 30, "{count}");
}

#[test]
fn large_inputs_and_outputs_of_instances_are_found() {
    let mut found = BTreeSet::new();
    for capture in capture::of(Kind::Hub) {
        let hub = capture.hub();
        let url = container_url(&hub);
        let blobs: BTreeMap<String, String> = large_blobs(&hub).into_iter().collect();
        for row in instances(&hub) {
            for (column, blob_name) in instance_row::blob_references(row, &url) {
                let text = instance_row::blob_text(&blob_name, blobs[&blob_name].clone()).unwrap().unwrap();
                assert!(text.len() > 30_000 && text.starts_with('"'), "{} {column}", capture.name);
                found.insert((column, blob_name.contains("/message-")));
            }
        }
    }
    assert!(found.contains(&("Input", true)) && found.contains(&("Input", false)), "{found:?}");
    assert!(found.contains(&("Output", false)), "{found:?}");
}

#[test]
fn states_are_what_the_reference_client_says() {
    let mut count = 0;
    for capture in capture::of(Kind::States) {
        let folder = capture.name.trim_end_matches("states");
        let Some(end) = capture::of(Kind::Hub).into_iter().find(|c| c.name == format!("{folder}completed"))
        else {
            continue;
        };
        let hub = end.hub();
        let said: BTreeMap<String, Json> = serde_json::from_str(&capture.text()).unwrap();
        for (instance, said) in said {
            let Some(row) = instances(&hub).iter().find(|row| row.partition_key == key::escape(&instance))
            else {
                continue;
            };
            let state = instance_row::read(row).unwrap();
            let status = &said["status"];
            let text = |name: &str| status[name].as_str();
            assert_eq!(Some(state.name.as_str()), text("Name"), "{instance}");
            assert_eq!(state.version.as_deref(), text("Version"), "{instance}");
            assert_eq!(state.input.as_deref(), text("Input"), "{instance}");
            assert_eq!(state.output.as_deref(), text("Output"), "{instance}");
            assert_eq!(state.custom_status.as_deref(), text("Status"), "{instance}");
            assert_eq!(
                Some(i64::from(state.generation.unwrap_or(0))),
                status["Generation"].as_i64(),
                "{instance}"
            );
            assert_eq!(state.status.map(|s| i64::from(s.number())), status["OrchestrationStatus"].as_i64());
            assert_eq!(Some(state.created_at.to_iso().as_str()), text("CreatedTime"), "{instance}");
            assert_eq!(Some(state.last_updated_at.to_iso().as_str()), text("LastUpdatedTime"), "{instance}");
            count += 1;
        }
    }
    assert!(count > 40, "{count}");
}

#[test]
fn resources_are_named_and_messages_are_routed_as_captured() {
    for capture in capture::of(Kind::Hub) {
        let hub = capture.hub();
        let names = ResourceNames::new(&TaskHubName::existing(hub.hub.clone()).unwrap(), None);
        let known = [names.history_table(), names.instances_table(), names.partitions_table()];
        assert!(hub.tables.iter().all(|table| known.contains(&table.name)), "{}", capture.name);
        let known = [names.lease_container(), names.app_lease_container(), names.large_message_container()];
        assert!(hub.containers.iter().all(|container| known.contains(&container.name)), "{}", capture.name);

        let control = hub.queues.iter().filter(|queue| queue.name != names.work_item_queue());
        let partitions = control.clone().count() as u32;
        for queue in control {
            let partition = names.partition_of_queue(&queue.name).unwrap();
            for message in &queue.messages {
                let instance = match message::decode(&message.text).unwrap() {
                    Decoded::Message(message) => message.task_message.target.instance_id,
                    Decoded::Wrapper { blob_name } => InstanceId::new(blob_name.rsplit_once('/').unwrap().0),
                };
                assert_eq!(partition_of(&instance, partitions), partition, "{} {instance}", capture.name);
            }
        }
    }
}
