//! An aggregator: an entity adds up what many orchestrations and clients tell it, one operation after the other.
//! Its type is its state, its methods are its operations.
//!
//! `cargo run -p taskhub-worker --example aggregator`

#![allow(clippy::print_stdout)]

mod common;

use std::time::Duration;

use common::{Example, Outcome, describe};
use serde::{Deserialize, Serialize};
use taskhub_client::Start;
use taskhub_worker::{
    EntityContext, EntityId, OperationError, Operations, OrchestrationContext, OrchestratorError, TypedEntity,
};

/// What has been sold, and how often.
#[derive(Default, Serialize, Deserialize)]
struct Sales {
    total: u64,
    count: u64,
}

impl Sales {
    async fn add(&mut self, ctx: EntityContext, amount: u64) -> Result<u64, OperationError> {
        if amount == 0 {
            // What fails leaves the state as it was, and its caller is told.
            return Err("nothing was sold".into());
        }
        self.total += amount;
        self.count += 1;
        if self.count.is_multiple_of(3) {
            // Sent with the new state, or not at all.
            ctx.signal_entity(&EntityId::new("sales", "milestones")?, "add", self.count)?;
        }
        Ok(self.total)
    }
}

impl TypedEntity for Sales {
    fn operations() -> Operations<Self> {
        Operations::new().operation("add", Sales::add)
    }
}

/// Tells the entity what was sold, and waits for the new total.
async fn sell(ctx: OrchestrationContext, amount: u64) -> Result<u64, OrchestratorError> {
    Ok(ctx.call_entity(&EntityId::new("sales", "today")?, "add", amount).await?)
}

#[tokio::main]
async fn main() -> Outcome {
    let register = |worker: taskhub_worker::WorkerBuilder| {
        worker.typed_entity::<Sales>("sales").orchestration("Sell", sell)
    };
    let example = Example::start(register).await?;
    for amount in [5, 7, 0] {
        println!("{}", describe(&example.run(Start::new("Sell").input(&amount)?).await?));
    }
    let today = EntityId::new("sales", "today")?;
    example.client.signal_entity(&today, "add", Some("30".into()), None).await?;
    let milestones = EntityId::new("sales", "milestones")?;
    while example.client.read_entity(&milestones).await?.is_none() {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    for id in [today, milestones] {
        let state = example.client.read_entity(&id).await?.and_then(|entity| entity.state);
        println!("{id}: {}", state.unwrap_or_default());
    }
    example.stop().await
}
