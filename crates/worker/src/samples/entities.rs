use std::sync::Arc;

use taskhub_core::InstanceId;
use taskhub_entities::EntityId;
use taskhub_replay::ApplicationError;

use super::SampleOptions;
use super::hold::Holds;
use crate::{EntityContext, OperationError, Reply, StartOptions, WorkerBuilder};

pub(super) fn register(builder: WorkerBuilder, options: &Arc<SampleOptions>) -> WorkerBuilder {
    let holds = Arc::new(Holds::new(&options.hold));
    let options = options.clone();
    builder.entity("counter", move |ctx: EntityContext| {
        let (holds, options) = (holds.clone(), options.clone());
        async move {
            if holds.holds(HELD, ctx.operation()) {
                if let Some(on_hold) = &options.on_hold {
                    on_hold(HELD, ctx.operation());
                }
                std::future::pending::<()>().await;
            }
            counter(ctx).await
        }
    })
}

/// What stands for the name of an activity when an operation is held.
const HELD: &str = "entity";

/// A number that begins at 0. `relay` adds 11 to the counter that its input names and starts `HelloSequence`.
async fn counter(ctx: EntityContext) -> Result<Reply, OperationError> {
    let value: i64 = ctx.state()?.unwrap_or_default();
    match ctx.operation() {
        "add" => {
            let amount = ctx.input::<Option<i64>>()?.unwrap_or(1);
            ctx.set_state(&value.wrapping_add(amount))?;
        }
        "reset" => ctx.set_state(&0)?,
        "get" => return Ok(ctx.reply(&value)?),
        "delete" => ctx.delete_state(),
        "relay" => {
            let to = InstanceId::new(ctx.input::<String>()?);
            let Some(to) = EntityId::of_instance(&to) else {
                let text = "an entity id is expected";
                return Err(ApplicationError::new("System.ArgumentException", text).into());
            };
            ctx.signal_entity(&to, "add", 11)?;
            let options =
                StartOptions { instance_id: Some("started-by-entity".into()), ..StartOptions::default() };
            ctx.start_orchestration_with("HelloSequence", (), options)?;
            ctx.set_state(&value)?;
        }
        _ => return Err(ctx.unknown_operation()),
    }
    Ok(Reply::NONE)
}
