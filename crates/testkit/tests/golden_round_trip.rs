//! A captured hub that is loaded and taken again is the same hub.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use taskhub_core::{Clock as _, TaskHubName};
use taskhub_storage::memory::MemoryStore;
use taskhub_testkit::VirtualClock;
use taskhub_testkit::compare::{Comparison, assert_same};
use taskhub_testkit::dump::{self, HubDump, MessageState};
use taskhub_testkit::golden::{self, Provider};
use taskhub_testkit::load::{self, Hidden};

async fn reloaded(golden: &HubDump, hub: &TaskHubName, hidden: Hidden) -> Result<HubDump> {
    let clock = VirtualClock::default();
    let store = MemoryStore::new(Arc::new(clock.clone()));
    load::load(&store, golden, hub, hidden, clock.now()).await?;
    dump::take(&store, hub, clock.now()).await
}

#[tokio::test(start_paused = true)]
async fn every_captured_hub_comes_back_under_another_name() -> Result<()> {
    let other = TaskHubName::new("Reloaded")?;
    let (new, old) = (golden::phases(Provider::V2)?, golden::phases(Provider::V1)?);
    assert_eq!((new.len(), old.len()), (72, 25));
    for phase in new.into_iter().chain(old) {
        let golden = phase.hub()?.with_free_leases();
        let ours = reloaded(&golden, &other, Hidden::Keep).await?;
        let name = golden.hub.to_ascii_lowercase();
        assert!(
            !format!("{ours:?}").to_ascii_lowercase().contains(&name),
            "{}: a name is left",
            phase.name()
        );
        assert_same(&ours, &golden, Comparison { values: true, ..Comparison::default() });
        for (ours, golden) in ours.messages().zip(golden.messages()) {
            assert_eq!(
                (ours.hidden_for, ours.dequeue_count, ours.state),
                (golden.hidden_for, golden.dequeue_count, golden.state)
            );
        }
    }
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn released_messages_are_visible_and_timers_are_not() -> Result<()> {
    let hub = TaskHubName::new("Released")?;
    let states = async |scenario: &str, hidden| -> Result<Vec<MessageState>> {
        let golden = golden::hub(Provider::V2, scenario, "midflight")?;
        Ok(reloaded(&golden, &hub, hidden).await?.messages().map(|message| message.state).collect())
    };
    assert_eq!(states("HelloSequence", Hidden::Keep).await?, [MessageState::Dequeued]);
    assert_eq!(states("HelloSequence", Hidden::Release).await?, [MessageState::Visible]);
    assert_eq!(states("Timer", Hidden::Release).await?, [MessageState::Scheduled]);
    assert_eq!(states("Timer", Hidden::Due).await?, [MessageState::Visible]);
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn a_timer_becomes_visible_when_its_rest_has_passed() -> Result<()> {
    let clock = VirtualClock::default();
    let store = MemoryStore::new(Arc::new(clock.clone()));
    let hub = TaskHubName::new("Waiting")?;
    let golden = golden::hub(Provider::V2, "Timer", "midflight")?;
    let rest = golden.messages().next().context("no message")?.hidden_for;
    load::load(&store, &golden, &hub, Hidden::Release, clock.now()).await?;

    tokio::time::sleep(rest - Duration::from_secs(1)).await;
    let before = dump::take(&store, &hub, clock.now()).await?;
    assert_eq!(before.messages().next().context("no message")?.state, MessageState::Scheduled);
    tokio::time::sleep(Duration::from_secs(2)).await;
    let after = dump::take(&store, &hub, clock.now()).await?;
    assert_eq!(after.messages().next().context("no message")?.state, MessageState::Visible);
    Ok(())
}
