//! One orchestration, two activities: an order is priced, and shipped unless it is too dear.

use serde::{Deserialize, Serialize};
use taskhub::{
    ActivityContext, ActivityDefinition, ActivityError, OrchestrationContext, OrchestrationDefinition,
    OrchestratorError, WorkerBuilder, log,
};

/// What somebody wants.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Order {
    pub item: String,
    pub count: u32,
    /// Most that it may cost.
    pub limit: u32,
}

/// The orchestration: its name in the hub, what it takes and what it gives.
pub struct ProcessOrder;
impl OrchestrationDefinition for ProcessOrder {
    const NAME: &'static str = "ProcessOrder";
    type Input = Order;
    type Output = String;
}

struct Price;
impl ActivityDefinition for Price {
    const NAME: &'static str = "Price";
    type Input = Order;
    type Output = u32;
}

struct Ship;
impl ActivityDefinition for Ship {
    const NAME: &'static str = "Ship";
    type Input = Order;
    type Output = String;
}

/// Adds the functions to a worker.
pub fn register(worker: WorkerBuilder) -> WorkerBuilder {
    worker
        .typed_orchestration(ProcessOrder, process_order)
        .typed_activity(Price, price)
        .typed_activity(Ship, ship)
}

/// Awaits only what `ctx` gives: this code runs again from the start after each step.
async fn process_order(ctx: OrchestrationContext, order: Order) -> Result<String, OrchestratorError> {
    let price = ctx.call::<Price>(order.clone()).await?;
    log!(ctx, INFO, price, "priced");
    if price > order.limit {
        return Ok(format!("too dear: {price}"));
    }
    Ok(ctx.call::<Ship>(order).await?)
}

/// Activities do the work, at least once each.
async fn price(_: ActivityContext, order: Order) -> Result<u32, ActivityError> {
    Ok(order.count * order.item.len() as u32)
}

async fn ship(ctx: ActivityContext, order: Order) -> Result<String, ActivityError> {
    tracing::info!(instance = %ctx.instance_id(), "shipping");
    Ok(format!("{} {} on the way", order.count, order.item))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use anyhow::{Context, Result};
    use taskhub::{Start, TaskHub};
    use taskhub_testkit::VirtualClock;

    use super::*;

    /// Runs an order in a hub in memory, in virtual time.
    async fn output(order: Order) -> Result<String> {
        let hub = TaskHub::in_memory("Test", Arc::new(VirtualClock::default()))?;
        let worker = register(hub.worker()).build()?;
        let handle = worker.handle();
        let running = tokio::spawn(worker.run(Default::default()));
        let client = hub.client();
        client.create_hub().await?;
        let started = client.start(Start::new(ProcessOrder::NAME).input(&order)?).await?;
        let waited = client.wait_for_completion(&started.instance_id, Duration::from_secs(60)).await?;
        handle.shutdown();
        running.await??;
        waited.finished().and_then(|state| state.output).context("no output")
    }

    #[tokio::test(start_paused = true)]
    async fn an_order_is_shipped_unless_it_is_too_dear() -> Result<()> {
        let order = Order { item: "lamp".to_owned(), count: 3, limit: 20 };
        assert_eq!(output(order.clone()).await?, r#""3 lamp on the way""#);
        assert_eq!(output(Order { limit: 10, ..order }).await?, r#""too dear: 12""#);
        Ok(())
    }
}
