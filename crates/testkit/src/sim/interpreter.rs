//! The functions that every simulated worker has: an orchestrator that follows the plan in its input.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde_json::Value;
use taskhub_worker::{
    ActivityContext, ActivityError, ActivityOptions, ApplicationError, OrchestrationContext,
    OrchestratorError, RetryPolicy, SubOrchestrationOptions, Task, WorkerBuilder, join_all,
};

use super::entity::{self, ADD, ledger};
use super::plan::{Plan, Step, activity_result, entry, event_payload, short};

/// Name of the orchestrator.
pub(crate) const PLAN: &str = "Plan";
/// Longer than any run.
const FOR_EVER: Duration = Duration::from_secs(6 * 3600);
/// What an activity takes as a rule.
const WORK: Duration = Duration::from_millis(40);

/// What activities have been run, over all workers of a world.
#[derive(Debug, Default)]
pub(crate) struct ActivityLog(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    /// How often each was run, by its key.
    runs: BTreeMap<String, u64>,
    /// Calls by key, in the order in which they were first run.
    calls: BTreeMap<String, Vec<(String, i32)>>,
}

impl ActivityLog {
    /// Notes a run; the ordinal of the call among those with this key, from 1.
    fn note(&self, key: &str, context: &ActivityContext) -> usize {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        *state.runs.entry(key.to_owned()).or_default() += 1;
        let execution = context.execution_id().map(|id| id.as_str().to_owned()).unwrap_or_default();
        let call = (execution, context.task_id());
        let calls = state.calls.entry(key.to_owned()).or_default();
        match calls.iter().position(|known| *known == call) {
            Some(at) => at + 1,
            None => {
                calls.push(call);
                calls.len()
            }
        }
    }

    /// How often an activity was run.
    pub(crate) fn runs(&self, key: &str) -> u64 {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).runs.get(key).copied().unwrap_or_default()
    }
}

/// Registers the functions.
pub(crate) fn register(builder: WorkerBuilder, log: &Arc<ActivityLog>) -> WorkerBuilder {
    let (work, fail) = (log.clone(), log.clone());
    entity::register(builder)
        .orchestration(PLAN, follow)
        .activity("Work", move |context, input: (String, usize)| {
            let log = work.clone();
            async move {
                log.note(&input.0, &context);
                tokio::time::sleep(WORK).await;
                Ok::<_, ActivityError>(activity_result(&input.0, input.1))
            }
        })
        .activity("Fail", move |context, input: (String, u32)| {
            let log = fail.clone();
            async move {
                let (key, failures) = input;
                if log.note(&key, &context) <= failures as usize {
                    return Err(ActivityError::from(ApplicationError::new("System.Exception", "as planned")));
                }
                Ok(activity_result(&key, 0))
            }
        })
}

async fn follow(context: OrchestrationContext, plan: Plan) -> Result<Option<Vec<String>>, OrchestratorError> {
    let mut gathered = plan.gathered.clone();
    for step in &plan.steps {
        gathered.push(take(&context, step, plan.round).await?);
    }
    if plan.round < plan.last_round {
        context.continue_as_new(Plan { round: plan.round + 1, gathered, ..plan })?;
        return Ok(None);
    }
    if plan.fails {
        return Err(ApplicationError::new("System.Exception", "as planned").into());
    }
    Ok(Some(gathered))
}

async fn take(context: &OrchestrationContext, step: &Step, round: u32) -> Result<String, OrchestratorError> {
    let work = |key: String, bytes: usize| -> Task<String> { context.call_activity("Work", (key, bytes)) };
    let fail = |key: String, failures: u32, retry: Option<RetryPolicy>| -> Task<String> {
        let options = ActivityOptions { retry, ..ActivityOptions::default() };
        context.call_activity_with("Fail", (key, failures), options)
    };
    Ok(match step {
        Step::Call { key, bytes } => short(&work(format!("{key}-{round}"), *bytes).await?),
        Step::FanOut { key, count, bytes } => {
            let calls = (0..*count).map(|at| work(format!("{key}-{round}-{at}"), *bytes)).collect::<Vec<_>>();
            let mut all = Vec::new();
            for result in join_all(calls).await {
                all.push(short(&result?));
            }
            all.join(",")
        }
        Step::Retry { key, failures } => {
            let policy = RetryPolicy::new(5, Duration::from_millis(1500));
            fail(format!("{key}-{round}"), *failures, Some(policy)).await?
        }
        Step::Caught { key } => match fail(format!("{key}-{round}"), u32::MAX, None).await {
            Ok(_) => "not caught".to_owned(),
            Err(_) => "caught".to_owned(),
        },
        Step::Sleep { millis } => {
            context.sleep(Duration::from_millis(*millis)).await;
            "slept".to_owned()
        }
        Step::Impatient { key } => {
            let timer = context.sleep(FOR_EVER);
            let result = work(format!("{key}-{round}"), 0).await?;
            drop(timer);
            result
        }
        Step::Event { name } => context.wait_for_event(&format!("{name}-{round}")).await?,
        Step::EventOrTimer { name } => {
            let event = context.wait_for_event_with_timeout(&format!("{name}-{round}"), FOR_EVER).await?;
            event.unwrap_or_else(|| "no event".to_owned())
        }
        Step::Child { plan, id } => child(context, plan, id.as_deref()).await?.join("/"),
        Step::Children { plans } => {
            let children = plans.iter().map(|plan| child(context, plan, None)).collect::<Vec<_>>();
            let mut all = Vec::new();
            for result in join_all(children).await {
                all.push(result?.join("/"));
            }
            all.join(",")
        }
        Step::FailingChild { plan } => match child(context, plan, None).await {
            Ok(_) => "child did not fail".to_owned(),
            Err(_) => "child failed".to_owned(),
        },
        Step::Forget { plan, id } => {
            context.start_orchestration(PLAN, plan, with_id(Some(id)))?;
            "forgotten".to_owned()
        }
        Step::Send { to, name } => {
            context.send_event(to.as_str(), name, &event_payload(name))?;
            "sent".to_owned()
        }
        Step::Signal { to, key, later: 0 } => {
            context.signal_entity(&ledger(to), ADD, entry(*key, round, ""))?;
            "signalled".to_owned()
        }
        Step::Signal { to, key, later } => {
            let due_at = context.now() + Duration::from_millis(*later);
            context.signal_entity_at(&ledger(to), ADD, entry(*key, round, ""), due_at)?;
            "signalled".to_owned()
        }
        Step::Ask { to, key } => {
            let _: Value = context.call_entity(&ledger(to), ADD, entry(*key, round, "")).await?;
            "added".to_owned()
        }
        Step::Transfer { from, to, key, millis } => {
            let (from, to) = (ledger(from), ledger(to));
            let locks = context.lock_entities([&from, &to]).await?;
            let _: Value = context.call_entity(&from, ADD, entry(*key, round, "-out")).await?;
            if *millis > 0 {
                context.sleep(Duration::from_millis(*millis)).await;
            }
            let _: Value = context.call_entity(&to, ADD, entry(*key, round, "-in")).await?;
            locks.release();
            "moved".to_owned()
        }
        Step::Hold { from, to } => {
            // Given back at the end of the orchestration, which only a termination brings.
            std::mem::forget(context.lock_entities([&ledger(from), &ledger(to)]).await?);
            "held".to_owned()
        }
        Step::Status { text } => {
            context.set_custom_status(&Value::from(text.as_str()))?;
            "shown".to_owned()
        }
    })
}

fn child(context: &OrchestrationContext, plan: &Plan, id: Option<&str>) -> Task<Vec<String>> {
    context.call_sub_orchestration_with(PLAN, plan, with_id(id))
}

fn with_id(id: Option<&str>) -> SubOrchestrationOptions {
    SubOrchestrationOptions { instance_id: id.map(Into::into), ..SubOrchestrationOptions::default() }
}
