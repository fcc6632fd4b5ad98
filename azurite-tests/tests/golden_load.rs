//! A captured hub that is loaded through the services is the same hub.

use anyhow::{Result, ensure};
use azurite_tests::on_a_hub;
use taskhub_testkit::compare::{Comparison, assert_same};
use taskhub_testkit::golden::{self, Provider};
use taskhub_testkit::load::Hidden;

async fn comes_back(provider: Provider, scenario: &str, phase: &str) -> Result<()> {
    on_a_hub(async |hub| {
        let golden = golden::hub(provider, scenario, phase)?.with_free_leases();
        hub.load(&golden, Hidden::Due).await?;
        let mut golden = golden;
        for message in golden.queues.iter_mut().flat_map(|queue| &mut queue.messages) {
            message.state = taskhub_testkit::dump::MessageState::Visible;
        }
        assert_same(&hub.take().await?, &golden, Comparison { values: true, ..Comparison::default() });
        Ok(())
    })
    .await
}

#[tokio::test]
async fn a_hub_of_the_table_manager_comes_back() -> Result<()> {
    comes_back(Provider::V2, "Approval", "raised").await
}

#[tokio::test]
async fn a_hub_of_the_safe_manager_comes_back() -> Result<()> {
    comes_back(Provider::V2, "SafeManager", "midflight").await
}

#[tokio::test]
async fn a_hub_of_the_older_provider_with_large_messages_comes_back() -> Result<()> {
    comes_back(Provider::V1, "LargePayload", "midflight").await
}

#[tokio::test]
async fn a_hidden_message_stays_hidden() -> Result<()> {
    on_a_hub(async |hub| {
        hub.load(&golden::hub(Provider::V2, "Timer", "midflight")?, Hidden::Release).await?;
        let taken = hub.take().await?;
        let unseen: u64 = taken.queues.iter().map(|queue| queue.unseen).sum();
        ensure!((taken.messages().count(), unseen) == (0, 1), "{:?}", taken.queues);
        Ok(())
    })
    .await
}
