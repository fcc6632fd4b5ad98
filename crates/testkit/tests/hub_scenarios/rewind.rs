//! Rewinds, finished by real workers. Activities fail while their input is in a list of broken things.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::Value;
use taskhub_client::{ClientError, Rewind, Start};
use taskhub_core::OrchestrationStatus::{Completed, Failed, Pending};
use taskhub_core::{ErrorKind, InstanceId};
use taskhub_replay::{
    ActivityOptions, ApplicationError, OrchestrationContext, OrchestratorError, RetryPolicy,
    SubOrchestrationOptions, join_all,
};
use taskhub_worker::{ActivityContext, ActivityError, WorkerBuilder};

use crate::support::{Running, World};

type Outcome<T> = Result<T, OrchestratorError>;

/// What is broken, and what has been done how often.
#[derive(Debug, Clone, Default)]
pub(crate) struct Plant(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    broken: BTreeSet<String>,
    done: BTreeMap<String, usize>,
}

impl Plant {
    pub(crate) fn broken(things: &[&str]) -> Self {
        let plant = Self::default();
        plant.0.lock().unwrap().broken.extend(things.iter().map(|t| (*t).to_owned()));
        plant
    }

    pub(crate) fn repair(&self, thing: &str) {
        assert!(self.0.lock().unwrap().broken.remove(thing), "{thing} is not broken");
    }

    pub(crate) fn breaks(&self, thing: &str) {
        self.0.lock().unwrap().broken.insert(thing.to_owned());
    }

    fn is_broken(&self, thing: &str) -> bool {
        self.0.lock().unwrap().broken.contains(thing)
    }

    /// How often each step has been attempted.
    #[track_caller]
    pub(crate) fn attempts(&self, expected: &[(&str, usize)]) {
        let done = self.0.lock().unwrap().done.clone();
        let expected: BTreeMap<_, _> = expected.iter().map(|(k, v)| ((*k).to_owned(), *v)).collect();
        assert_eq!(done, expected);
    }

    fn step(&self, thing: String) -> Result<String, ActivityError> {
        let mut state = self.0.lock().unwrap();
        *state.done.entry(thing.clone()).or_default() += 1;
        if state.broken.contains(&thing) {
            return Err(ApplicationError::new("System.Exception", format!("{thing} is broken")).into());
        }
        Ok(thing)
    }

    pub(crate) fn register(&self, builder: WorkerBuilder) -> WorkerBuilder {
        let (steps, own) = (self.clone(), self.clone());
        builder
            .activity("Step", move |_: ActivityContext, thing: String| {
                let plant = steps.clone();
                async move { plant.step(thing) }
            })
            .orchestration("Chain", chain)
            .orchestration("SelfFail", move |ctx, ()| self_fail(ctx, own.clone()))
            .orchestration("FanOut", fan_out)
            .orchestration("Retried", retried)
            .orchestration("Caught", caught)
            .orchestration("Finally", finally)
            .orchestration("Chains", chains)
            .orchestration("Parent", parent)
            .orchestration("Mixed", mixed)
            .orchestration("Sleeper", sleeper)
    }
}

async fn step(ctx: &OrchestrationContext, thing: &str) -> Outcome<String> {
    Ok(ctx.call_activity("Step", thing).await?)
}

/// One step after the other.
async fn chain(ctx: OrchestrationContext, things: Vec<String>) -> Outcome<Vec<String>> {
    let mut done = Vec::new();
    for thing in &things {
        done.push(step(&ctx, thing).await?);
    }
    Ok(done)
}

/// Fails by itself, after a step.
async fn self_fail(ctx: OrchestrationContext, plant: Plant) -> Outcome<String> {
    let done = step(&ctx, "before").await?;
    if plant.is_broken("self") {
        return Err(ApplicationError::new("System.Exception", "orchestrator says no").into());
    }
    Ok(done)
}

/// All at once; the first failure counts when all have ended.
async fn fan_out(ctx: OrchestrationContext, things: Vec<String>) -> Outcome<usize> {
    let calls: Vec<_> = things.iter().map(|t| ctx.call_activity::<_, String>("Step", t)).collect();
    let all: Result<Vec<_>, _> = join_all(calls).await.into_iter().collect();
    Ok(all?.len())
}

/// All at once, each tried three times.
async fn retried(ctx: OrchestrationContext, things: Vec<String>) -> Outcome<usize> {
    let policy = RetryPolicy::new(3, Duration::from_secs(5));
    let options = || ActivityOptions { retry: Some(policy.clone()), ..ActivityOptions::default() };
    let calls: Vec<_> =
        things.iter().map(|t| ctx.call_activity_with::<_, String>("Step", t, options())).collect();
    let all: Result<Vec<_>, _> = join_all(calls).await.into_iter().collect();
    Ok(all?.len())
}

/// The failure of the first thing is handled by the second one; the third one follows.
async fn caught(ctx: OrchestrationContext, _: Value) -> Outcome<String> {
    let first = match step(&ctx, "first").await {
        Ok(first) => first,
        Err(_) => step(&ctx, "instead").await?,
    };
    let last = step(&ctx, "last").await?;
    Ok(format!("{first} {last}"))
}

/// Cleans up and fails with what has failed.
async fn finally(ctx: OrchestrationContext, _: Value) -> Outcome<String> {
    let result = step(&ctx, "work").await;
    step(&ctx, "clean up").await?;
    result
}

/// Two chains side by side: the first one fails at once, the second one goes on.
async fn chains(ctx: OrchestrationContext, _: Value) -> Outcome<usize> {
    let first = async { step(&ctx, "a1").await };
    let second = async {
        for thing in ["b1", "b2", "b3"] {
            step(&ctx, thing).await?;
        }
        Ok::<_, OrchestratorError>("b".to_owned())
    };
    let (first, second) = futures::future::join(first, second).await;
    Ok(first?.len() + second?.len())
}

/// Descends through instances `{id}-child`, the last of which is a chain.
async fn parent(ctx: OrchestrationContext, (depth, things): (u32, Vec<String>)) -> Outcome<Value> {
    let id = InstanceId::new(format!("{}-child", ctx.instance_id()));
    let options = SubOrchestrationOptions { instance_id: Some(id), ..SubOrchestrationOptions::default() };
    Ok(match depth {
        0 => ctx.call_sub_orchestration_with("Chain", things, options).await?,
        depth => ctx.call_sub_orchestration_with("Parent", (depth - 1, things), options).await?,
    })
}

/// An activity and a sub-orchestration side by side, both of which may fail.
async fn mixed(ctx: OrchestrationContext, _: Value) -> Outcome<usize> {
    let own = ctx.call_activity::<_, String>("Step", "own");
    let options = |n| SubOrchestrationOptions {
        instance_id: Some(InstanceId::new(format!("mixed-{n}"))),
        ..SubOrchestrationOptions::default()
    };
    let children: Vec<_> = ["x", "y"]
        .iter()
        .map(|n| ctx.call_sub_orchestration_with::<_, Value>("Chain", vec![format!("child {n}")], options(n)))
        .collect();
    let children = join_all(children).await;
    let own = own.await?;
    let children: Result<Vec<_>, _> = children.into_iter().collect();
    Ok(children?.len() + own.len())
}

async fn sleeper(ctx: OrchestrationContext, _: Value) -> Outcome<String> {
    ctx.sleep(Duration::from_secs(60)).await;
    step(&ctx, "after").await
}

/// A plant with a worker, and the instance `x` that has failed.
async fn failed(plant: &Plant, start: Start) -> (World, Running) {
    let world = World::new();
    let worker = world.worker(|builder| plant.register(builder));
    world.start("x", start).await;
    assert_eq!(world.end("x").await.status, Some(Failed));
    (world, worker)
}

async fn rewind(world: &World) {
    world.hub.pass_a_second().await;
    world.client.rewind(&"x".into(), Rewind::new().reason("repaired")).await.unwrap();
    assert_eq!(world.state("x").await.status, Some(Pending));
}

async fn end_with(world: World, worker: Running, output: &str) {
    world.completes("x", output).await;
    worker.stop().await;
}

fn things(list: &[&str]) -> Vec<String> {
    list.iter().map(|t| (*t).to_owned()).collect()
}

#[tokio::test(start_paused = true)]
async fn an_orchestrator_that_failed_by_itself_is_run_again() {
    let plant = Plant::broken(&["self"]);
    let (world, worker) = failed(&plant, Start::new("SelfFail")).await;
    plant.repair("self");
    rewind(&world).await;
    world.completes("x", "\"before\"").await;
    plant.attempts(&[("before", 1)]);
    worker.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_failed_activity_is_called_again_and_no_other() {
    let plant = Plant::broken(&["b"]);
    let (world, worker) = failed(&plant, Start::new("Chain").input(&["a", "b", "c"]).unwrap()).await;
    plant.repair("b");
    rewind(&world).await;
    world.completes("x", r#"["a","b","c"]"#).await;
    plant.attempts(&[("a", 1), ("b", 2), ("c", 1)]);
    worker.stop().await;
}

#[tokio::test(start_paused = true)]
async fn one_rewind_after_the_other_repairs_one_activity_after_the_other() {
    let plant = Plant::broken(&["a", "b", "c"]);
    let (world, worker) = failed(&plant, Start::new("Chain").input(&["a", "b", "c"]).unwrap()).await;
    for thing in ["a", "b", "c"] {
        assert_eq!(world.end("x").await.output, Some(format!("{thing} is broken")));
        // Nothing is repaired yet: it fails in the same way.
        rewind(&world).await;
        world.hub.until("x", "failed again", |s| s.status == Some(Failed)).await;
        plant.repair(thing);
        rewind(&world).await;
        world.hub.until("x", "ended", |s| s.status != Some(Pending)).await;
    }
    end_with(world, worker, r#"["a","b","c"]"#).await;
    plant.attempts(&[("a", 3), ("b", 3), ("c", 3)]);
}

#[tokio::test(start_paused = true)]
async fn all_failed_activities_of_a_fan_out_are_called_again() {
    let plant = Plant::broken(&["b", "d"]);
    let (world, worker) = failed(&plant, Start::new("FanOut").input(&["a", "b", "c", "d"]).unwrap()).await;
    plant.repair("b");
    rewind(&world).await;
    world.hub.until("x", "failed again", |s| s.status == Some(Failed)).await;
    plant.attempts(&[("a", 1), ("b", 2), ("c", 1), ("d", 2)]);
    plant.repair("d");
    rewind(&world).await;
    end_with(world, worker, "4").await;
    plant.attempts(&[("a", 1), ("b", 2), ("c", 1), ("d", 3)]);
}

#[tokio::test(start_paused = true)]
async fn a_fan_out_of_hundreds_of_failures_is_rewound_in_several_transactions() {
    let plant = Plant::default();
    let names: Vec<String> = (0..150).map(|n| format!("t{n:03}")).collect();
    plant.0.lock().unwrap().broken.extend(names.iter().cloned());
    let (world, worker) = failed(&plant, Start::new("FanOut").input(&names).unwrap()).await;
    plant.0.lock().unwrap().broken.clear();
    rewind(&world).await;
    end_with(world, worker, "150").await;
}

#[tokio::test(start_paused = true)]
async fn of_a_call_that_was_tried_in_vain_the_last_attempt_is_made_again() {
    let plant = Plant::broken(&["a"]);
    let (world, worker) = failed(&plant, Start::new("Retried").input(&["a", "b"]).unwrap()).await;
    plant.attempts(&[("a", 3), ("b", 1)]);
    rewind(&world).await;
    world.hub.until("x", "failed again", |s| s.status == Some(Failed)).await;
    plant.attempts(&[("a", 4), ("b", 1)]);
    plant.repair("a");
    rewind(&world).await;
    end_with(world, worker, "2").await;
    plant.attempts(&[("a", 5), ("b", 1)]);
}

#[tokio::test(start_paused = true)]
async fn calls_tried_in_vain_side_by_side_are_made_again() {
    let plant = Plant::broken(&["a", "b"]);
    let (world, worker) = failed(&plant, Start::new("Retried").input(&["a", "b", "c"]).unwrap()).await;
    plant.attempts(&[("a", 3), ("b", 3), ("c", 1)]);
    plant.repair("a");
    plant.repair("b");
    rewind(&world).await;
    end_with(world, worker, "3").await;
    plant.attempts(&[("a", 4), ("b", 4), ("c", 1)]);
}

#[tokio::test(start_paused = true)]
async fn a_failure_that_the_code_has_handled_stays() {
    let plant = Plant::broken(&["first", "last"]);
    let (world, worker) = failed(&plant, Start::new("Caught")).await;
    plant.repair("first");
    plant.repair("last");
    rewind(&world).await;
    end_with(world, worker, "\"instead last\"").await;
    plant.attempts(&[("first", 1), ("instead", 1), ("last", 2)]);
}

#[tokio::test(start_paused = true)]
async fn a_catch_block_that_failed_itself_is_run_again() {
    let plant = Plant::broken(&["first", "instead"]);
    let (world, worker) = failed(&plant, Start::new("Caught")).await;
    plant.repair("first");
    plant.repair("instead");
    rewind(&world).await;
    end_with(world, worker, "\"instead last\"").await;
    plant.attempts(&[("first", 1), ("instead", 2), ("last", 1)]);
}

#[tokio::test(start_paused = true)]
async fn a_failure_that_is_passed_on_after_a_clean_up_is_rewound_with_the_clean_up() {
    let plant = Plant::broken(&["work"]);
    let (world, worker) = failed(&plant, Start::new("Finally")).await;
    plant.repair("work");
    rewind(&world).await;
    end_with(world, worker, "\"work\"").await;
    plant.attempts(&[("work", 2), ("clean up", 2)]);
}

#[tokio::test(start_paused = true)]
async fn a_chain_that_failed_beside_another_one_is_gone_on_with() {
    let plant = Plant::broken(&["a1"]);
    let (world, worker) = failed(&plant, Start::new("Chains")).await;
    plant.repair("a1");
    rewind(&world).await;
    end_with(world, worker, "3").await;
}

/// An instance with sub-orchestrations, `depth` below each other, the last of which fails.
async fn nested(depth: u32) {
    let plant = Plant::broken(&["b"]);
    let input = (depth, things(&["a", "b"]));
    let (world, worker) = failed(&plant, Start::new("Parent").input(&input).unwrap()).await;
    plant.repair("b");
    world.hub.pass_a_second().await;
    let rewound = world.client.rewind(&"x".into(), Rewind::new()).await.unwrap();
    assert_eq!(rewound.instances.len(), depth as usize + 2);
    assert_eq!(rewound.instances.last(), Some(&"x".into()));
    assert_eq!(rewound.woken.len(), 1, "only the deepest one: {:?}", rewound.woken);
    end_with(world, worker, r#"["a","b"]"#).await;
    plant.attempts(&[("a", 1), ("b", 2)]);
}

#[tokio::test(start_paused = true)]
async fn a_failed_sub_orchestration_is_rewound_with_its_parent() {
    nested(0).await;
}

#[tokio::test(start_paused = true)]
async fn a_sub_orchestration_that_failed_by_itself_is_rewound_with_its_parent() {
    let plant = Plant::broken(&["self"]);
    let world = World::new();
    let worker = world.worker(|builder| {
        let outer = |ctx: OrchestrationContext, (): ()| async move {
            let id = Some(InstanceId::new("child"));
            let options = SubOrchestrationOptions { instance_id: id, ..SubOrchestrationOptions::default() };
            let done: String = ctx.call_sub_orchestration_with("SelfFail", (), options).await?;
            Ok::<_, OrchestratorError>(done)
        };
        plant.register(builder).orchestration("Outer", outer)
    });
    world.start("x", Start::new("Outer")).await;
    assert_eq!(world.end("x").await.status, Some(Failed));
    assert_eq!(world.state("child").await.status, Some(Failed));
    plant.repair("self");
    rewind(&world).await;
    end_with(world, worker, "\"before\"").await;
    plant.attempts(&[("before", 1)]);
}

#[tokio::test(start_paused = true)]
async fn nested_sub_orchestrations_are_rewound_down_to_the_failed_activity() {
    nested(3).await;
}

#[tokio::test(start_paused = true)]
async fn a_failed_activity_beside_failed_sub_orchestrations_is_called_at_once() {
    let plant = Plant::broken(&["own", "child x", "child y"]);
    let (world, worker) = failed(&plant, Start::new("Mixed")).await;
    for thing in ["own", "child x", "child y"] {
        plant.repair(thing);
    }
    rewind(&world).await;
    end_with(world, worker, "5").await;
    plant.attempts(&[("own", 2), ("child x", 2), ("child y", 2)]);
}

#[tokio::test(start_paused = true)]
async fn a_sub_orchestration_that_was_rewound_and_completed_before_is_not_run_again() {
    let plant = Plant::broken(&["b"]);
    let input = (0, things(&["a", "b"]));
    let (world, worker) = failed(&plant, Start::new("Parent").input(&input).unwrap()).await;
    plant.repair("b");
    world.client.rewind(&"x-child".into(), Rewind::new()).await.unwrap();
    world.completes("x-child", r#"["a","b"]"#).await;
    assert_eq!(world.state("x").await.status, Some(Failed), "nobody has told it");
    rewind(&world).await;
    end_with(world, worker, r#"["a","b"]"#).await;
    plant.attempts(&[("a", 1), ("b", 2)]);
}

#[tokio::test(start_paused = true)]
async fn a_sub_orchestration_that_is_gone_is_started_again() {
    let plant = Plant::broken(&["b"]);
    let input = (0, things(&["a", "b"]));
    let (world, worker) = failed(&plant, Start::new("Parent").input(&input).unwrap()).await;
    plant.repair("b");
    world.client.purge(&"x-child".into()).await.unwrap();
    rewind(&world).await;
    end_with(world, worker, r#"["a","b"]"#).await;
    plant.attempts(&[("a", 2), ("b", 2)]);
}

#[tokio::test(start_paused = true)]
async fn instances_with_durable_timers_are_refused_unless_that_is_allowed() {
    let plant = Plant::broken(&["after"]);
    let (world, worker) = failed(&plant, Start::new("Sleeper")).await;
    plant.repair("after");
    let before = world.hub.take().await.unwrap();
    let error = world.client.rewind(&"x".into(), Rewind::new()).await.unwrap_err();
    assert!(matches!(error, ClientError::HasTimers { .. }), "{error}");
    assert_eq!(error.kind(), ErrorKind::Invalid);
    let after = world.hub.take().await.unwrap();
    assert_eq!(before.tables, after.tables, "nothing was changed");
    world.client.rewind(&"x".into(), Rewind::new().allow_timers()).await.unwrap();
    end_with(world, worker, "\"after\"").await;
}

#[tokio::test(start_paused = true)]
async fn only_failed_instances_are_rewound() {
    let plant = Plant::broken(&["b"]);
    let (world, worker) = failed(&plant, Start::new("Chain").input(&["b"]).unwrap()).await;
    plant.repair("b");
    rewind(&world).await;
    world.completes("x", r#"["b"]"#).await;
    let error = world.client.rewind(&"x".into(), Rewind::new()).await.unwrap_err();
    assert_eq!(
        error.to_string(),
        "cannot rewind the instance in its current status. instance=`x` status=`Completed`"
    );
    worker.stop().await;
    world.start("waiting", Start::new("Chain")).await;
    for (id, kind) in [("waiting", ErrorKind::Invalid), ("nobody", ErrorKind::NotFound)] {
        let error = world.client.rewind(&id.into(), Rewind::new()).await.unwrap_err();
        assert_eq!(error.kind(), kind, "{id}: {error}");
    }
    assert_eq!(world.state("x").await.status, Some(Completed));
}
