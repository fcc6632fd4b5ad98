//! Typed functions: name, input and output are said once, and checked wherever they are used.
//!
//! `cargo run -p taskhub-worker --example typed_activities`

#![allow(clippy::print_stdout)]

mod common;

use common::{Example, Outcome, describe};
use serde::{Deserialize, Serialize};
use taskhub_client::Start;
use taskhub_worker::{
    ActivityContext, ActivityDefinition, ActivityError, OrchestrationContext, OrchestrationDefinition,
    OrchestratorError,
};

#[derive(Debug, Serialize, Deserialize)]
struct Order {
    item: String,
    count: u32,
}

struct Reserve;
impl ActivityDefinition for Reserve {
    const NAME: &'static str = "Reserve";
    type Input = Order;
    type Output = u32;
}

struct Ship;
impl ActivityDefinition for Ship {
    const NAME: &'static str = "Ship";
    type Input = u32;
    type Output = String;
}

struct ProcessOrder;
impl OrchestrationDefinition for ProcessOrder {
    const NAME: &'static str = "ProcessOrder";
    type Input = Order;
    type Output = String;
}

async fn process_order(ctx: OrchestrationContext, order: Order) -> Result<String, OrchestratorError> {
    // Another type of argument, or a result taken for something else, does not compile.
    let reservation = ctx.call::<Reserve>(order).await?;
    Ok(ctx.call::<Ship>(reservation).await?)
}

async fn reserve(_: ActivityContext, order: Order) -> Result<u32, ActivityError> {
    println!("reserving {} {}", order.count, order.item);
    Ok(order.count * 1000 + 7)
}

async fn ship(_: ActivityContext, reservation: u32) -> Result<String, ActivityError> {
    Ok(format!("parcel {reservation}"))
}

#[tokio::main]
async fn main() -> Outcome {
    let example = Example::start(|worker| {
        worker
            .typed_orchestration(ProcessOrder, process_order)
            .typed_activity(Reserve, reserve)
            .typed_activity(Ship, ship)
    })
    .await?;
    let order = Order { item: "lamps".to_owned(), count: 3 };
    let state = example.run(Start::new(ProcessOrder::NAME).input(&order)?).await?;
    println!("{}", describe(&state));
    example.stop().await
}
