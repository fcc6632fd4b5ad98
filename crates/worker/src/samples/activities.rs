use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde_json::Value;
use taskhub_core::InstanceId;
use taskhub_replay::ApplicationError;

use super::SampleOptions;
use super::hold::Holds;
use crate::{ActivityContext, ActivityError, WorkerBuilder};

pub(super) fn register(builder: WorkerBuilder, options: &Arc<SampleOptions>) -> WorkerBuilder {
    let gate = Gate { holds: Arc::new(Holds::new(&options.hold)), options: options.clone() };
    let first_calls = Arc::new(Mutex::new(HashSet::<InstanceId>::new()));
    let fixed = options.fixed;
    let builder =
        gate.activity(
            builder,
            "SayHello",
            |_, name| async move { Ok(format!("Hello {}!", plain(&name)).into()) },
        );
    let builder = gate.activity(builder, "Echo", |_, input| async move { Ok(input) });
    let builder = gate.activity(builder, "Slow", |_, input| async move {
        let millis = number(&input, 1000)?;
        tokio::time::sleep(Duration::from_millis(millis)).await;
        Ok(format!("slept {millis}").into())
    });
    let builder = gate.activity(builder, "Big", |_, input| async move {
        let length = usize::try_from(number(&input, 100_000)?).unwrap_or(usize::MAX).min(MAX_BIG);
        Ok("x".repeat(length).into())
    });
    let builder = gate.activity(builder, "Boom", |_, input| async move {
        Err(invalid_operation(format!("boom {}", plain(&input))))
    });
    gate.activity(builder, "BoomOnce", move |context, _| {
        let instance = context.instance_id().clone();
        let first = first_calls.lock().unwrap_or_else(PoisonError::into_inner).insert(instance);
        async move {
            if first && !fixed {
                return Err(invalid_operation("first try fails".to_owned()));
            }
            Ok("second try".into())
        }
    })
}

/// Most that `Big` makes, in bytes.
const MAX_BIG: usize = 64 << 20;

fn invalid_operation(message: String) -> ActivityError {
    ApplicationError::new("System.InvalidOperationException", message).into()
}

/// A text without its quotes, nothing for null, anything else as JSON.
fn plain(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

fn number(value: &Value, default: u64) -> Result<u64, ActivityError> {
    match (value, value.as_u64()) {
        (Value::Null, _) => Ok(default),
        (_, Some(number)) => Ok(number),
        _ => Err(ApplicationError::new("System.ArgumentException", "a positive number is expected").into()),
    }
}

/// In front of every activity: holds the calls that are to be held.
struct Gate {
    holds: Arc<Holds>,
    options: Arc<SampleOptions>,
}

impl Gate {
    fn activity<F, R>(&self, builder: WorkerBuilder, name: &'static str, body: F) -> WorkerBuilder
    where
        F: Fn(ActivityContext, Value) -> R + Send + Sync + 'static,
        R: Future<Output = Result<Value, ActivityError>> + Send + 'static,
    {
        let (holds, options, body) = (self.holds.clone(), self.options.clone(), Arc::new(body));
        builder.activity(name, move |context: ActivityContext, input: Value| {
            let (holds, options, body) = (holds.clone(), options.clone(), body.clone());
            async move {
                let text = plain(&input);
                if holds.holds(name, &text) {
                    if let Some(on_hold) = &options.on_hold {
                        on_hold(name, &text);
                    }
                    std::future::pending::<()>().await;
                }
                let outcome = body(context.clone(), input).await;
                if let Some(on_activity) = &options.on_activity {
                    on_activity(&context);
                }
                outcome
            }
        })
    }
}
