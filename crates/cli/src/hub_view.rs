//! `hub show`.

use std::time::Duration;

use anyhow::Result;
use serde_json::{Value, json};
use taskhub_azure_storage::{HubInspection, OwnershipState, PartitionManagerKind, PartitionOwnership};
use taskhub_core::{TaskHubName, Timestamp};

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
    let mut queues = Table::new(["QUEUE", "MESSAGES", "OLDEST", "OWNER", "SINCE", "NEXT", "LEASE"]);
    for queue in &seen.queues {
        let owned = seen.owners.iter().find(|p| p.queue == queue.name);
        let worker = |id: Option<&taskhub_core::WorkerId>| match owned {
            None => String::new(),
            Some(_) => id.map_or_else(|| "-".to_owned(), ToString::to_string),
        };
        let since = owned.and_then(|o| o.owner.as_ref().and(o.since));
        queues.row([
            queue.name.clone(),
            queue.length.map_or_else(|| "missing".to_owned(), |n| n.to_string()),
            queue.oldest_age.map(seconds).unwrap_or_default(),
            worker(owned.and_then(|o| o.owner.as_ref())),
            since.map(|at| format!("{} ago", seconds(seen.at.saturating_since(at)))).unwrap_or_default(),
            worker(owned.and_then(|o| o.next_owner.as_ref())),
            owned.map(|o| lease(o, seen.at)).unwrap_or_default(),
        ]);
    }
    let mut instances = Table::new(["INSTANCES", "COUNT"]);
    for (status, count) in &seen.instances {
        instances.row([status.clone(), count.to_string()]);
    }
    let counts = if seen.instances.is_empty() { "No instances.\n".to_owned() } else { instances.render() };
    format!("Task hub '{hub}': {head}\n\n{}\n{counts}", queues.render())
}

/// What is left of a lease; lease blobs do not tell how much, so they show their state.
fn lease(owned: &PartitionOwnership, now: Timestamp) -> String {
    match (owned.state, owned.expires_at) {
        (OwnershipState::Owned, Some(end)) => format!("{} left", seconds(end.saturating_since(now))),
        (state, _) => state.name().to_owned(),
    }
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
    let owners: Vec<Value> = seen
        .owners
        .iter()
        .map(|o| {
            json!({
                "queue": o.queue,
                "state": o.state.name(),
                "owner": o.owner.as_ref().map(|w| w.as_str()),
                "since": o.since.map(|t| t.to_iso()),
                "nextOwner": o.next_owner.as_ref().map(|w| w.as_str()),
                "expiresAt": o.expires_at.map(|t| t.to_iso()),
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
        "owners": owners,
        "instances": seen.instances,
        "at": seen.at.to_iso(),
    })
}

fn seconds(duration: Duration) -> String {
    format!("{} s", duration.as_secs())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_shows_its_end_or_its_state() {
        let at = |seconds: u64| Timestamp::from_unix(Duration::from_secs(1_768_469_400 + seconds));
        let mut owned = PartitionOwnership {
            queue: "hub-control-00".to_owned(),
            manager: PartitionManagerKind::Table,
            state: OwnershipState::Owned,
            owner: Some("w1".into()),
            next_owner: None,
            since: Some(at(0)),
            expires_at: Some(at(30)),
            epoch: None,
        };
        assert_eq!(lease(&owned, at(10)), "20 s left");
        owned.expires_at = None;
        assert_eq!(lease(&owned, at(10)), "owned");
        for (state, expected) in [
            (OwnershipState::HandingOver, "handing over"),
            (OwnershipState::Expired, "expired"),
            (OwnershipState::Free, "free"),
        ] {
            owned.state = state;
            assert_eq!(lease(&owned, at(10)), expected);
        }
    }
}
