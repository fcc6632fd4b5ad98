//! `hub show`.

use std::time::Duration;

use anyhow::Result;
use serde_json::{Value, json};
use taskhub_azure_storage::{HubInspection, PartitionManagerKind};
use taskhub_core::TaskHubName;

use crate::args::{CommonArgs, CreateArgs, OutputForm};
use crate::config::{Environment, HubConfig};
use crate::console::Console;
use crate::table::Table;
use crate::{Exit, wire};

/// Shows partitions with their owners, queue lengths and instance counts.
pub(crate) async fn run(
    common: &CommonArgs,
    environment: &Environment,
    console: &mut Console,
) -> Result<Exit> {
    let config = HubConfig::load(common, environment, console)?;
    let seen = wire::hub(&config, &CreateArgs::default(), wire::worker_id())?.inspect().await?;
    if console.form == Some(OutputForm::Json) {
        console.json(&as_json(&config.hub, &seen))?;
    } else if seen.layout.is_none() && seen.queues.iter().all(|q| q.length.is_none()) {
        console.data(&format!("Task hub '{}' does not exist.\n", config.hub))?;
    } else {
        console.data(&as_text(&config.hub, &seen))?;
    }
    Ok(Exit::Done)
}

fn manager(kind: PartitionManagerKind) -> &'static str {
    match kind {
        PartitionManagerKind::Table => "table",
        PartitionManagerKind::Safe => "safe",
        PartitionManagerKind::Legacy => "legacy",
    }
}

fn as_text(hub: &TaskHubName, seen: &HubInspection) -> String {
    let head = match &seen.layout {
        Some(layout) => {
            format!("{} partitions, {} partition manager", layout.partition_count, manager(layout.manager))
        }
        None => "incomplete".to_owned(),
    };
    let mut queues = Table::new(["QUEUE", "MESSAGES", "OLDEST", "OWNER", "NEXT", "LEASE"]);
    for queue in &seen.queues {
        let row = seen.partitions.iter().find(|p| p.queue == queue.name);
        let owner =
            |id: Option<&taskhub_core::WorkerId>| id.map_or_else(|| "-".to_owned(), ToString::to_string);
        let lease = match row {
            None => String::new(),
            Some(row) if row.is_draining => "draining".to_owned(),
            Some(row) => match (&row.current_owner, row.expires_at) {
                (Some(_), Some(end)) if end > seen.at => {
                    format!("{} left", seconds(end.saturating_since(seen.at)))
                }
                (Some(_), _) => "expired".to_owned(),
                (None, _) => "free".to_owned(),
            },
        };
        queues.row([
            queue.name.clone(),
            queue.length.map_or_else(|| "missing".to_owned(), |n| n.to_string()),
            queue.oldest_age.map(seconds).unwrap_or_default(),
            row.map(|r| owner(r.current_owner.as_ref())).unwrap_or_default(),
            row.map(|r| owner(r.next_owner.as_ref())).unwrap_or_default(),
            lease,
        ]);
    }
    let mut instances = Table::new(["INSTANCES", "COUNT"]);
    for (status, count) in &seen.instances {
        instances.row([status.clone(), count.to_string()]);
    }
    let counts = if seen.instances.is_empty() { "No instances.\n".to_owned() } else { instances.render() };
    format!("Task hub '{hub}': {head}\n\n{}\n{counts}", queues.render())
}

fn as_json(hub: &TaskHubName, seen: &HubInspection) -> Value {
    let queues: Vec<Value> = seen
        .queues
        .iter()
        .map(|q| {
            json!({
                "name": q.name,
                "messages": q.length,
                "oldestAgeSeconds": q.oldest_age.map(|a| a.as_secs_f64()),
            })
        })
        .collect();
    let partitions: Vec<Value> = seen
        .partitions
        .iter()
        .map(|p| {
            json!({
                "queue": p.queue,
                "currentOwner": p.current_owner.as_ref().map(|w| w.as_str()),
                "nextOwner": p.next_owner.as_ref().map(|w| w.as_str()),
                "expiresAt": p.expires_at.map(|t| t.to_iso()),
                "isDraining": p.is_draining,
            })
        })
        .collect();
    json!({
        "taskHubName": hub.as_str(),
        "exists": seen.layout.is_some(),
        "partitionCount": seen.layout.as_ref().map(|l| l.partition_count),
        "partitionManager": seen.layout.as_ref().map(|l| manager(l.manager)),
        "queues": queues,
        "partitions": partitions,
        "instances": seen.instances,
        "at": seen.at.to_iso(),
    })
}

fn seconds(duration: Duration) -> String {
    format!("{} s", duration.as_secs())
}
