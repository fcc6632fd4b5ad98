//! How the program `taskhub worker` ends: signals, exit codes, and what it leaves behind.

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use azurite_tests::on_a_hub;
use azurite_tests::process::{Signal, Site, WorkerProcess};
use serde_json::json;
use taskhub_client::Start;
use taskhub_testkit::{TestHub, eventually};
use tokio::time::{Instant, timeout};

/// What a machine that is busy may add to the time that a worker was given.
const SLACK: Duration = Duration::from_secs(15);

fn site(hub: &TestHub) -> Result<Site> {
    Site::new(hub.name(), &json!({"maxQueuePollingInterval": "00:00:01", "partitionCount": 2}))
}

/// The exit code of a process that ends in time.
async fn exit_code(worker: &mut WorkerProcess, bound: Duration) -> Result<i32> {
    let status = timeout(bound, worker.ended()).await;
    let status = status.with_context(|| format!("no end within {bound:?}: {}", worker.log_text()))??;
    status.code().with_context(|| format!("ended by a signal: {status}"))
}

/// Nothing is owned, and whatever is in the queues can be received now.
async fn is_handed_back(hub: &TestHub) -> Result<()> {
    let seen = hub.open("observer")?.inspect().await?;
    for row in &seen.partitions {
        ensure!(row.current_owner.is_none() && !row.is_draining, "not released: {row:?}");
    }
    for queue in hub.take().await?.queues {
        ensure!(queue.unseen == 0, "{} messages are hidden in {}", queue.unseen, queue.name);
    }
    Ok(())
}

/// Waits until the activity of `instance` is under way: its request, the only one in the hub, has been received.
async fn runs_its_activity(hub: &TestHub, instance: &str) {
    hub.until_event(instance, "TaskScheduled").await;
    eventually("the request to be received", async || {
        let taken = hub.take().await.ok()?;
        let queue = taken.queue("-workitems")?;
        (queue.messages.is_empty() && queue.unseen > 0).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_terminated_worker_finishes_what_runs_hands_the_rest_back_and_exits_with_0() -> Result<()> {
    on_a_hub(async |hub| {
        let (client, site) = (hub.client()?, site(hub)?);
        let mut worker = site.start("first", "first", &[])?;
        worker.runs().await;
        client.start(Start::new("SlowOne").instance_id("slow").raw_input("8000")).await?;
        runs_its_activity(hub, "slow").await;
        for n in 0..10 {
            let chain = Start::new("Loop").instance_id(format!("chain-{n}")).raw_input("200");
            client.start(chain).await?;
        }
        hub.until_event("chain-9", "TaskCompleted").await;

        worker.send(Signal::Terminate).await?;
        let code = exit_code(&mut worker, Duration::from_secs(30) + SLACK).await?;
        ensure!(code == 0, "exit code {code}: {}", worker.log_text());
        is_handed_back(hub).await?;
        let activities = std::fs::read_to_string(site.activity_log())?;
        ensure!(activities.contains(r#""name":"Slow""#), "the running activity was cut off");

        // Nothing waits for a timeout: the next worker goes on at once.
        let mut next = site.start("next", "next", &[])?;
        next.runs().await;
        let begun = Instant::now();
        hub.until("slow", "finished", |state| state.completed_at.is_some()).await;
        ensure!(begun.elapsed() < Duration::from_secs(15), "it went on after {:?}", begun.elapsed());
        let activities = std::fs::read_to_string(site.activity_log())?;
        ensure!(activities.matches(r#""name":"Slow""#).count() == 1, "the activity ran again");
        next.send(Signal::Terminate).await?;
        exit_code(&mut next, Duration::from_secs(30) + SLACK).await?;
        site.remove()
    })
    .await
}

#[tokio::test]
async fn what_does_not_finish_within_the_drain_timeout_is_given_back_and_the_exit_code_is_0() -> Result<()> {
    on_a_hub(async |hub| {
        let (client, site) = (hub.client()?, site(hub)?);
        let mut worker = site.start("first", "first", &["--drain-timeout", "3"])?;
        worker.runs().await;
        client.start(Start::new("SlowOne").instance_id("slow").raw_input("3600000")).await?;
        runs_its_activity(hub, "slow").await;

        worker.send(Signal::Terminate).await?;
        let code = exit_code(&mut worker, Duration::from_secs(3) + SLACK).await?;
        ensure!(code == 0, "exit code {code}: {}", worker.log_text());
        is_handed_back(hub).await?;
        let taken = hub.take().await?;
        let requests = taken.queue("-workitems").map(|queue| queue.messages.len());
        ensure!(requests == Some(1), "requests to be received: {requests:?}");
        site.remove()
    })
    .await
}

#[tokio::test]
async fn a_second_signal_ends_a_worker_at_once_with_exit_code_1() -> Result<()> {
    on_a_hub(async |hub| {
        let (client, site) = (hub.client()?, site(hub)?);
        let mut worker = site.start("first", "first", &["--drain-timeout", "3600"])?;
        worker.runs().await;
        client.start(Start::new("SlowOne").instance_id("slow").raw_input("3600000")).await?;
        runs_its_activity(hub, "slow").await;

        worker.send(Signal::Terminate).await?;
        worker.says("Stopping; waiting for running work.").await;
        worker.send(Signal::Interrupt).await?;
        let code = exit_code(&mut worker, SLACK).await?;
        ensure!(code == 1, "exit code {code}");
        worker.says("stopped without waiting for running work").await;
        site.remove()
    })
    .await
}

#[tokio::test]
async fn an_idle_worker_ends_in_order_on_every_signal() -> Result<()> {
    on_a_hub(async |hub| {
        let site = site(hub)?;
        for (signal, name) in
            [(Signal::Terminate, "term"), (Signal::Interrupt, "int"), (Signal::HangUp, "hup")]
        {
            let mut worker = site.start(name, name, &[])?;
            worker.runs().await;
            worker.send(signal).await?;
            let code = exit_code(&mut worker, SLACK).await?;
            ensure!(code == 0, "{signal:?}: exit code {code}: {}", worker.log_text());
            is_handed_back(hub).await?;
        }
        site.remove()
    })
    .await
}

#[tokio::test]
async fn a_worker_started_by_nohup_survives_the_end_of_its_terminal() -> Result<()> {
    on_a_hub(async |hub| {
        let (client, site) = (hub.client()?, site(hub)?);
        let mut worker = site.start_under("nohup", "first", "first", &[])?;
        worker.runs().await;
        worker.send(Signal::HangUp).await?;
        client.start(Start::new("HelloSequence").instance_id("after")).await?;
        hub.until("after", "finished", |state| state.completed_at.is_some()).await;
        if worker.log_text().contains("Stopping") {
            bail!("it stops: {}", worker.log_text());
        }
        worker.send(Signal::Terminate).await?;
        let code = exit_code(&mut worker, SLACK).await?;
        ensure!(code == 0, "exit code {code}: {}", worker.log_text());
        site.remove()
    })
    .await
}
