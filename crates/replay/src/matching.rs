//! Recorded decisions against those of the replay. Source: Azure/durabletask, `TaskOrchestrationContext`,
//! `HandleTaskScheduledEvent` and its siblings.

use taskhub_core::ActionKind;
use taskhub_entities::event_name;

use crate::failure::NonDeterminism;
use crate::machine::{Machine, same_name};

/// What the replay has decided under an id, for the message about a mismatch.
fn decided(machine: &Machine, id: i32) -> String {
    match machine.decision(id) {
        None => "nothing".to_owned(),
        Some(ActionKind::ScheduleTask { name, .. }) => format!("ScheduleTask of '{name}'"),
        Some(ActionKind::CreateSubOrchestration { name, .. }) => {
            format!("CreateSubOrchestration of '{name}'")
        }
        Some(ActionKind::CreateTimer { .. }) => "CreateTimer".to_owned(),
        Some(ActionKind::SendEvent { name, .. }) => format!("SendEvent of '{name}'"),
        Some(ActionKind::Complete(_)) => "OrchestrationComplete".to_owned(),
    }
}

fn mismatch(machine: &Machine, id: i32, recorded: &str) -> NonDeterminism {
    NonDeterminism(format!(
        "the history has {recorded} with sequence number {id}, where the replayed code has decided {}. \
         Has the orchestrator's code changed since this instance started?",
        decided(machine, id)
    ))
}

pub(crate) fn match_task_scheduled(
    machine: &mut Machine,
    id: i32,
    recorded: &Option<String>,
    version: &Option<String>,
) -> Result<(), NonDeterminism> {
    let recorded = recorded.as_deref().unwrap_or_default();
    match machine.decision(id) {
        Some(ActionKind::ScheduleTask { name, .. }) if same_name(name, recorded) => {
            machine.remove_decision(id);
            Ok(())
        }
        _ => {
            let version = version.as_deref().unwrap_or_default();
            Err(mismatch(machine, id, &format!("a scheduled activity '{recorded}' (version '{version}')")))
        }
    }
}

pub(crate) fn match_sub_orchestration(
    machine: &mut Machine,
    id: i32,
    recorded: &Option<String>,
    instance_id: &str,
) -> Result<(), NonDeterminism> {
    let recorded = recorded.as_deref().unwrap_or_default();
    match machine.decision(id) {
        Some(ActionKind::CreateSubOrchestration { name, .. }) if same_name(name, recorded) => {
            machine.remove_decision(id);
            Ok(())
        }
        _ => {
            let recorded = format!("a sub-orchestration '{recorded}' (instance '{instance_id}')");
            Err(mismatch(machine, id, &recorded))
        }
    }
}

pub(crate) fn match_timer(machine: &mut Machine, id: i32) -> Result<(), NonDeterminism> {
    match machine.decision(id) {
        Some(ActionKind::CreateTimer { .. }) => {
            machine.remove_decision(id);
            Ok(())
        }
        _ => Err(mismatch(machine, id, "a timer")),
    }
}

pub(crate) fn match_event_sent(
    machine: &mut Machine,
    id: i32,
    recorded: &Option<String>,
    instance_id: &str,
) -> Result<(), NonDeterminism> {
    let recorded = recorded.as_deref().unwrap_or_default();
    match machine.decision(id) {
        Some(ActionKind::SendEvent { name, .. })
            if same_name(name, recorded) || is_delayed_request(name) && is_delayed_request(recorded) =>
        {
            machine.remove_decision(id);
            Ok(())
        }
        _ => {
            let recorded = format!("an event '{recorded}' sent (to instance '{instance_id}')");
            Err(mismatch(machine, id, &recorded))
        }
    }
}

/// Whether an event is a request to an entity that names the time of its delivery. In-process Durable Functions
/// takes the time of a far one from the wall clock, so that each of its replays makes another name.
fn is_delayed_request(name: &str) -> bool {
    name.strip_prefix(event_name::REQUEST).is_some_and(|rest| rest.starts_with('@'))
}
