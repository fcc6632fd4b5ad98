//! The patterns of the demonstration: a chain of steps, a fan-out, a monitor, a person who decides, a counter that
//! many add to.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use taskhub_core::InstanceId;
use taskhub_worker::{
    ActivityContext, ActivityError, EntityContext, EntityId, OperationError, Operations,
    OrchestrationContext, OrchestratorError, TypedEntity, WorkerBuilder, join_all,
};
use tokio::sync::mpsc;

/// The event a person sends to decide.
pub(crate) const APPROVAL_EVENT: &str = "Approval";
/// Custom status of an instance that waits for a person.
pub(crate) const WAITING: &str = "waiting for a decision";

/// Name and key of the counter of steps.
pub(crate) const COUNTER: (&str, &str) = ("Counter", "steps");

const STEP: Duration = Duration::from_millis(400);

/// Told what an activity does, for the live view.
#[derive(Debug, Clone)]
pub(crate) struct Report(mpsc::Sender<(InstanceId, String)>);

impl Report {
    pub(crate) fn new(sender: mpsc::Sender<(InstanceId, String)>) -> Self {
        Self(sender)
    }

    fn tell(&self, ctx: &ActivityContext, text: String) {
        // The view is for people: what it cannot take up in time may be lost.
        let _ = self.0.try_send((ctx.instance_id().clone(), text));
    }
}

/// Registers everything.
pub(crate) fn register(builder: WorkerBuilder, report: &Report) -> WorkerBuilder {
    let builder = builder
        .orchestration("ProcessOrder", process_order)
        .orchestration("CountWords", count_words)
        .orchestration("WatchJob", watch_job)
        .orchestration("ApproveExpense", approve_expense)
        .orchestration("CountSteps", count_steps)
        .typed_entity::<Counter>(COUNTER.0);
    let builder = step(builder, report, "ReserveStock", |order: String| format!("{order}: stock reserved"));
    let builder = step(builder, report, "ChargeCard", |order: String| format!("{order}, card charged"));
    let builder = step(builder, report, "ShipOrder", |order: String| format!("{order}, shipped"));
    let builder = step(builder, report, "CountPage", |page: String| page.split_whitespace().count());
    let builder = step(builder, report, "LookAtJob", |look: u32| (look * 34).min(100));
    step(builder, report, "AskManager", |expense: Expense| {
        format!("mail sent about {} for {}", expense.amount, expense.what)
    })
}

/// An activity that takes a moment, tells what it did, and answers.
fn step<I, O>(builder: WorkerBuilder, report: &Report, name: &'static str, work: fn(I) -> O) -> WorkerBuilder
where
    I: for<'a> Deserialize<'a> + Send + 'static,
    O: Serialize + Send + 'static,
{
    let report = report.clone();
    builder.activity(name, move |ctx: ActivityContext, input: I| {
        let report = report.clone();
        async move {
            tokio::time::sleep(STEP).await;
            let output = work(input);
            let text = serde_json::to_string(&output)?;
            // The one argument of the JSON array that an activity's input is.
            let input = ctx.raw_input().unwrap_or_default();
            let argument = input.strip_prefix('[').and_then(|i| i.strip_suffix(']')).unwrap_or(input);
            report.tell(&ctx, format!("{name}({argument}) -> {text}"));
            Ok::<_, ActivityError>(output)
        }
    })
}

/// Chaining: each step gets what the one before made.
async fn process_order(ctx: OrchestrationContext, order: String) -> Result<String, OrchestratorError> {
    let order: String = ctx.call_activity("ReserveStock", order).await?;
    let order: String = ctx.call_activity("ChargeCard", order).await?;
    Ok(ctx.call_activity("ShipOrder", order).await?)
}

/// Fan-out and fan-in: all pages at once, then the sum.
async fn count_words(ctx: OrchestrationContext, pages: Vec<String>) -> Result<usize, OrchestratorError> {
    let calls = pages.into_iter().map(|page| ctx.call_activity::<_, usize>("CountPage", page));
    let mut sum = 0;
    for count in join_all(calls).await {
        sum += count?;
    }
    Ok(sum)
}

/// Monitor: looks, sleeps on a durable timer, looks again.
async fn watch_job(ctx: OrchestrationContext, job: String) -> Result<String, OrchestratorError> {
    for look in 1..=10u32 {
        let percent: u32 = ctx.call_activity("LookAtJob", look).await?;
        ctx.set_custom_status(&format!("{percent} % done"))?;
        if percent >= 100 {
            return Ok(format!("{job} finished after {look} looks"));
        }
        ctx.sleep(Duration::from_secs(1)).await;
    }
    Ok(format!("gave up on {job}"))
}

/// What a person has to decide about.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Expense {
    pub(crate) what: String,
    pub(crate) amount: u32,
    /// Seconds until somebody else decides.
    pub(crate) patience: u64,
}

/// Human interaction: an event or a timer, whichever comes first.
async fn approve_expense(ctx: OrchestrationContext, expense: Expense) -> Result<String, OrchestratorError> {
    let _: String = ctx.call_activity("AskManager", &expense).await?;
    ctx.set_custom_status(WAITING)?;
    let patience = Duration::from_secs(expense.patience);
    let decision = ctx.wait_for_event_with_timeout::<bool>(APPROVAL_EVENT, patience).await?;
    ctx.set_custom_status("decided")?;
    Ok(match decision {
        Some(true) => format!("{} approved", expense.what),
        Some(false) => format!("{} rejected", expense.what),
        None => format!("{} escalated: no answer in {} s", expense.what, expense.patience),
    })
}

/// Aggregator: an entity that many add to. The value is its state, the methods are its operations.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Counter {
    value: i64,
}

impl Counter {
    async fn add(&mut self, _: EntityContext, amount: i64) -> Result<(), OperationError> {
        self.value += amount;
        Ok(())
    }

    async fn reset(&mut self, _: EntityContext, _: ()) -> Result<(), OperationError> {
        self.value = 0;
        Ok(())
    }

    async fn get(&mut self, _: EntityContext, _: ()) -> Result<i64, OperationError> {
        Ok(self.value)
    }
}

impl TypedEntity for Counter {
    fn operations() -> Operations<Self> {
        Operations::new()
            .operation("add", Counter::add)
            .operation("reset", Counter::reset)
            .operation("get", Counter::get)
    }
}

/// Walks are added as they end, without waiting; at last the counter is asked.
async fn count_steps(ctx: OrchestrationContext, walks: Vec<i64>) -> Result<String, OrchestratorError> {
    let counter = EntityId::new(COUNTER.0, COUNTER.1)?;
    for steps in walks {
        ctx.sleep(Duration::from_secs(1)).await;
        ctx.signal_entity(&counter, "add", steps)?;
    }
    let total: i64 = ctx.call_entity(&counter, "get", ()).await?;
    Ok(format!("{total} steps"))
}
