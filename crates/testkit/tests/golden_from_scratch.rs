//! A scenario that runs from its start to its end here leaves the hub that it left under .NET.
//!
//! The captures were interrupted half-way, so an episode there may have taken other messages together than
//! here; scenarios in which that shows are covered by `golden_takeover` alone.

use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use taskhub_client::Start;
use taskhub_core::{Clock as _, OrchestrationState, OrchestrationStatus, TaskHubName};
use taskhub_testkit::compare::{Comparison, assert_same};
use taskhub_testkit::golden::{self, Provider, WorkerFlags};
use taskhub_testkit::{TestHub, VirtualClock};

/// What the client does before a worker runs.
async fn begin(hub: &TestHub, scenario: &str) -> Result<()> {
    let start = |name: &str, instance: &str| Start::new(name).instance_id(instance);
    let start = match scenario {
        "CallEntity" => start("CallEntity", "call-1"),
        "LockEntities" => start("LockEntities", "lock-1").raw_input("30"),
        "SignalEntity" => {
            let client = hub.client()?;
            let counter = "@counter@direct".parse()?;
            client.signal_entity(&counter, "add", Some("5".into()), None).await?;
            hub.pass_a_second().await;
            return Ok(client.signal_entity(&counter, "add", None, None).await?);
        }
        "SignalLater" => start("SignalLater", "signal-1").raw_input("30"),
        "HelloSequence" | "SafeManager" | "LegacyManager" => start("HelloSequence", "hello-1"),
        "Timer" => start("Timer", "timer-1").raw_input("30"),
        "Approval" => start("Approval", "approval-1"),
        "ApprovalTimeout" => start("Approval", "approval-2").raw_input("20"),
        "BufferedEvent" => start("Approval", "buffered-1"),
        "Parent" => start("Parent", "parent-1"),
        "ParentNamedChild" => start("ParentNamedChild", "parent-2").raw_input("\"child-1\""),
        "ParentOfFailing" | "ParentOfFailingSerialized" => start("ParentOfFailing", "parent-3"),
        "FireAndForget" => start("FireAndForget", "parent-4").raw_input("\"forgotten-1\""),
        "Eternal" => start("Eternal", "eternal-1"),
        "FailUnhandled" | "FailUnhandledDetails" | "FailUnhandledSerialized" => {
            start("FailUnhandled", "fail-1").raw_input("\"x\"")
        }
        "FailHandled" | "FailHandledDetails" | "FailHandledSerialized" => start("FailHandled", "fail-2"),
        "FailSelf" | "FailSelfDetails" => start("FailSelf", "fail-3"),
        "RetryOk" => start("RetryOk", "retry-1"),
        "Retry" => start("Retry", "retry-2"),
        "CustomStatus" => start("CustomStatus", "custom-1"),
        "Versioned" => start("Versioned", "version-1").version("2.0"),
        "Tags" => start("HelloSequence", "tags-1").tag("env", "prod").tag("owner", "José"),
        "ScheduledStart" => {
            start("HelloSequence", "later-1").scheduled_at(hub.clock().now() + Duration::from_secs(30))
        }
        "SuspendResume" => start("Approval", "suspend-1"),
        "SuspendWithEvent" => start("Approval", "suspend-2"),
        "TerminateRunning" => start("Approval", "terminate-1"),
        "TerminatePending" => start("Approval", "terminate-2"),
        "SendEventTo" => start("Approval", "target-1"),
        "RestartSameId" => start("HelloSequence", "again-1"),
        "Purge" => start("HelloSequence", "purge-1"),
        other => bail!("no such scenario: {other}"),
    };
    let client = hub.client()?;
    client.start(start).await?;
    hub.pass_a_second().await;
    match scenario {
        "BufferedEvent" => client.raise_event(&"buffered-1".into(), "ApprovalEvent", "early").await?,
        "Purge" => drop(client.start(Start::new("HelloSequence").instance_id("purge-2")).await?),
        "TerminatePending" => client.terminate(&"terminate-2".into(), Some("not wanted")).await?,
        _ => {}
    }
    Ok(())
}

/// What the client does while a worker runs.
async fn go_on(hub: &TestHub, scenario: &str) -> Result<()> {
    let client = hub.client()?;
    let suspended = |state: &OrchestrationState| state.status == Some(OrchestrationStatus::Suspended);
    match scenario {
        "Approval" => {
            hub.until_event("approval-1", "TimerCreated").await;
            client.raise_event(&"approval-1".into(), "ApprovalEvent", "yes").await?;
        }
        "CustomStatus" => {
            let second = |status: &str| status.contains("\"step\":2");
            hub.until("custom-1", "step 2", |state| state.custom_status.as_deref().is_some_and(second)).await;
            client.raise_event(&"custom-1".into(), "Go", "go é日本😀").await?;
        }
        "SuspendResume" => {
            let instance = "suspend-1".into();
            hub.until_event("suspend-1", "TimerCreated").await;
            client.suspend(&instance, Some("maintenance")).await?;
            hub.until("suspend-1", "suspended", suspended).await;
            // Of one client, within a second: the worker takes both in this order.
            client.raise_event(&instance, "ApprovalEvent", "yes").await?;
            client.resume(&instance, Some("all clear")).await?;
        }
        "SuspendWithEvent" => {
            let instance = "suspend-2".into();
            hub.until_event("suspend-2", "TimerCreated").await;
            client.suspend(&instance, Some("maintenance")).await?;
            hub.until("suspend-2", "suspended", suspended).await;
            client.raise_event(&instance, "ApprovalEvent", "while suspended").await?;
            hub.until_event("suspend-2", "EventRaised").await;
            client.resume(&instance, None).await?;
        }
        "SendEventTo" => {
            hub.until_event("target-1", "TimerCreated").await;
            let sender = Start::new("SendEventTo").instance_id("sender-1").raw_input("\"target-1\"");
            client.start(sender).await?;
        }
        "RestartSameId" => {
            hub.until("again-1", "the first one", |state| state.completed_at.is_some()).await;
            hub.pass_a_second().await;
            client.start(Start::new("Approval").instance_id("again-1")).await?;
            hub.until_event("again-1", "TimerCreated").await;
            client.raise_event(&"again-1".into(), "ApprovalEvent", "second time").await?;
        }
        "TerminateRunning" => {
            hub.until_event("terminate-1", "TimerCreated").await;
            client.terminate(&"terminate-1".into(), Some("operator request")).await?;
        }
        _ => {}
    }
    Ok(())
}

/// Runs a scenario to its end.
async fn finished(scenario: &str) -> Result<TestHub> {
    let phases = golden::phases(Provider::V2)?;
    let phase = phases.iter().find(|phase| phase.scenario == scenario).context("no such scenario")?;
    let hub = TestHub::in_memory(&TaskHubName::new("Scratch")?, 1, VirtualClock::default().now())
        .with_manager(phase.manager);
    begin(&hub, scenario).await?;
    // Here the same worker goes on after the first failure; there it was another one, with the fault fixed.
    let flags = WorkerFlags { fixed: false, ..phase.worker };
    let worker = hub.start_worker("golden-worker", flags).await?;
    go_on(&hub, scenario).await?;
    hub.ends(&phase.endings).await?;
    tokio::time::sleep(Duration::from_secs(2)).await;
    worker.stop().await?;
    Ok(hub)
}

/// Compares everything but ids and times, values too.
async fn assert_like(hub: &TestHub, scenario: &str, phase: &str, allowed: &[&str]) -> Result<()> {
    let golden = golden::hub(Provider::V2, scenario, phase)?;
    let comparison = Comparison { values: true, pool_control_queues: true, allowed };
    assert_same(&hub.take().await?, &golden, comparison);
    Ok(())
}

/// Where an error was thrown is told in other words: a text as in .NET, but not the same.
const NOT_DOTNET: &[&str] = &[
    "*.StackTrace: ours \"   at *\", golden \"*",
    "*.StackTraceString: ours \"   at *\", golden \"*",
    "*.Source: ours \"taskhub\", golden \"*",
];
/// A worker numbers its messages from the start of its process; the capture has two processes.
const TWO_PROCESSES: &[&str] = &["control queues message $.SequenceNumber: *"];

/// States of entities say that they exist, for Durable Functions' in-process entities. No time passes here between
/// two episodes, so that stamps are made unique by a tick, which takes their `Z`.
const EXISTS: &[&str] = &[
    "* column Input $: ours keys [exists, state, sorter], golden keys [state, sorter]",
    "* column Input $*: ours \"<ts:local>\", golden \"<ts:Z>\"",
];
/// The same, and what entities remember of critical sections.
const SECTIONS: &[&str] = &[
    "* column Input $: ours keys [exists, state, sorter, sections], golden keys [state, sorter]",
    "* column Input $*: ours \"<ts:local>\", golden \"<ts:Z>\"",
];
/// The capture was interrupted, so its leases have changed hands once more.
const EPOCHS: &[&str] = &["container <hub>-leases blob * content $.Epoch: ours 1, golden 2"];

macro_rules! leaves_the_same_hub {
    ($($test:ident: $scenario:literal $(except $allowed:ident)?,)*) => { $(
        #[tokio::test(start_paused = true)]
        async fn $test() -> Result<()> {
            let allowed: &[&[&str]] = &[$($allowed)?];
            assert_like(&finished($scenario).await?, $scenario, "completed", &allowed.concat()).await
        }
    )* };
}

leaves_the_same_hub! {
    hello_sequence: "HelloSequence",
    timer: "Timer",
    approval: "Approval",
    approval_timeout: "ApprovalTimeout",
    buffered_event: "BufferedEvent" except TWO_PROCESSES,
    call_entity: "CallEntity" except EXISTS,
    parent: "Parent",
    parent_named_child: "ParentNamedChild",
    parent_of_failing: "ParentOfFailing",
    parent_of_failing_serialized: "ParentOfFailingSerialized" except NOT_DOTNET,
    fire_and_forget: "FireAndForget",
    send_event_to: "SendEventTo",
    lock_entities: "LockEntities" except SECTIONS,
    signal_entity: "SignalEntity" except EXISTS,
    signal_later: "SignalLater" except EXISTS,
    eternal: "Eternal",
    fail_unhandled: "FailUnhandled",
    fail_unhandled_details: "FailUnhandledDetails" except NOT_DOTNET,
    fail_unhandled_serialized: "FailUnhandledSerialized" except NOT_DOTNET,
    fail_handled: "FailHandled",
    fail_handled_details: "FailHandledDetails" except NOT_DOTNET,
    fail_handled_serialized: "FailHandledSerialized" except NOT_DOTNET,
    fail_self: "FailSelf",
    fail_self_details: "FailSelfDetails" except NOT_DOTNET,
    retry_ok: "RetryOk",
    retry: "Retry",
    custom_status: "CustomStatus",
    versioned: "Versioned",
    tags: "Tags",
    scheduled_start: "ScheduledStart",
    suspend_resume: "SuspendResume",
    suspend_with_event: "SuspendWithEvent",
    terminate_running: "TerminateRunning",
    terminate_pending: "TerminatePending",
    purge_before: "Purge",
    restart_same_id: "RestartSameId" except TWO_PROCESSES,
    safe_manager: "SafeManager" except EPOCHS,
    legacy_manager: "LegacyManager" except EPOCHS,
}

#[tokio::test(start_paused = true)]
async fn a_purge_leaves_the_same_hub() -> Result<()> {
    let hub = finished("Purge").await?;
    hub.client()?.purge(&"purge-1".into()).await?;
    assert_like(&hub, "Purge", "purged", &[]).await
}
