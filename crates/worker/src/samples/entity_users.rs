//! Orchestrations that use the sample entity `counter`.

use serde::Serialize;
use serde_json::Value;
use taskhub_replay::{EntityId, EntityOperationDefinition, OrchestrationContext, OrchestratorError};

use super::orchestrations::duration;
use crate::WorkerBuilder;

type Outcome<T> = Result<T, OrchestratorError>;

pub(super) fn register(builder: WorkerBuilder) -> WorkerBuilder {
    builder
        .orchestration("CallEntity", call_entity)
        .orchestration("LockEntities", lock_entities)
        .orchestration("SignalLater", signal_later)
}

/// Adds to a counter.
struct Add;

impl EntityOperationDefinition for Add {
    const ENTITY: &'static str = "counter";
    const NAME: &'static str = "add";
    type Input = i64;
    type Output = ();
}

#[derive(Serialize)]
struct Answers {
    before: String,
    after: String,
    bad: String,
}

async fn call_entity(ctx: OrchestrationContext, id: Option<String>) -> Outcome<Answers> {
    let counter: EntityId = id.as_deref().unwrap_or("@counter@c1").parse()?;
    let shown = |value: Value| value.to_string();
    ctx.signal_entity(&counter, "add", 5)?;
    let before = ctx.call_entity(&counter, "get", ()).await.map(shown)?;
    let _: () = ctx.call_entity(&counter, "add", 7).await?;
    let after = ctx.call_entity(&counter, "get", ()).await.map(shown)?;
    let bad = match ctx.call_entity::<_, Value>(&counter, "nonsense", ()).await {
        Ok(value) => shown(value),
        Err(failure) => failure.message.clone(),
    };
    Ok(Answers { before, after, bad })
}

async fn lock_entities(ctx: OrchestrationContext, seconds: Option<f64>) -> Outcome<&'static str> {
    let (a, b) = (EntityId::new("counter", "a")?, EntityId::new("counter", "b")?);
    let locks = ctx.lock_entities([&b, &a]).await?;
    ctx.call_operation::<Add>(a.key(), -3).await?;
    ctx.call_operation::<Add>(b.key(), 3).await?;
    if let Some(seconds) = seconds {
        ctx.sleep(duration(seconds)).await;
    }
    locks.release();
    Ok("moved")
}

async fn signal_later(ctx: OrchestrationContext, seconds: Option<f64>) -> Outcome<String> {
    let due_at = ctx.now() + duration(seconds.unwrap_or(5.0));
    ctx.signal_operation_at::<Add>("later", 1, due_at)?;
    ctx.signal_entity(&EntityId::new("counter", "relay")?, "relay", "@counter@end")?;
    Ok(ctx.call_activity("SayHello", "signaller").await?)
}
