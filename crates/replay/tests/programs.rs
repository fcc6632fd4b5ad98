//! Random orchestrators under random arrivals: every episode is run in an extended session and as a fresh
//! replay from the stored history (see `support`), and both must record the same.

#![allow(clippy::unwrap_used, reason = "tests")]

mod support;

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use proptest::prelude::*;
use support::*;
use taskhub_core::*;
use taskhub_replay::*;

/// One step of a program. Numbers are small so that names collide.
#[derive(Debug, Clone)]
enum Step {
    Activity { fails: bool },
    Retry { fails: bool, attempts: u32, coefficient: u8 },
    FanOut(u8),
    Timer(u8),
    LongTimer(u8),
    CancelledTimer,
    DetachedTimer(u8),
    Event(u8),
    EventWithTimeout(u8, u8),
    AbandonedWait(u8),
    Race(u8),
    SendToSelf(u8),
    Child { fails: bool },
    ForgottenChild,
    Both(Vec<Step>, Vec<Step>),
    Status(u8),
    Guid,
}

type Trace = Vec<String>;

fn run_steps(ctx: OrchestrationContext, steps: Arc<[Step]>) -> Pin<Box<dyn Future<Output = Trace> + Send>> {
    Box::pin(async move {
        let mut trace = Trace::new();
        for step in steps.iter() {
            let line = run_step(&ctx, step, &mut trace).await;
            trace.push(format!("{line} at {}", ctx.now().ticks() - at(0).ticks()));
        }
        trace
    })
}

async fn run_step(ctx: &OrchestrationContext, step: &Step, trace: &mut Trace) -> String {
    let activity = |fails: bool| if fails { "Boom" } else { "Echo" };
    let seconds = |n: &u8| Duration::from_secs(u64::from(*n));
    match step {
        Step::Activity { fails } => {
            format!(
                "{:?}",
                ctx.call_activity::<_, i32>(activity(*fails), 1).await.map_err(|f| f.message.clone())
            )
        }
        Step::Retry { fails, attempts, coefficient } => {
            let policy = RetryPolicy::new(*attempts, Duration::from_secs(1))
                .with_backoff_coefficient(f64::from(*coefficient));
            let options = ActivityOptions { retry: Some(policy), ..Default::default() };
            let result = ctx.call_activity_with::<_, Option<i32>>(activity(*fails), 2, options).await;
            format!("{:?}", result.map_err(|f| f.schedule_id))
        }
        Step::FanOut(n) => {
            let results = join_all((0..*n).map(|k| ctx.call_activity::<_, i32>("Echo", k))).await;
            format!("{}", results.into_iter().flatten().sum::<i32>())
        }
        Step::Timer(n) => {
            ctx.sleep(seconds(n)).await;
            "slept".into()
        }
        Step::LongTimer(days) => {
            ctx.sleep(seconds(days) * 24 * 60 * 60).await;
            "slept long".into()
        }
        Step::CancelledTimer => {
            ctx.sleep(Duration::from_secs(3)).cancel();
            "cancelled".into()
        }
        Step::DetachedTimer(n) => {
            ctx.sleep(seconds(n)).detach();
            "detached".into()
        }
        Step::Event(name) => format!("{:?}", ctx.wait_for_event::<i32>(&format!("e{name}")).await.ok()),
        Step::EventWithTimeout(name, n) => {
            format!(
                "{:?}",
                ctx.wait_for_event_with_timeout::<i32>(&format!("E{name}"), seconds(n)).await.ok()
            )
        }
        Step::AbandonedWait(name) => {
            let wait = ctx.wait_for_event::<i32>(&format!("e{name}"));
            ctx.sleep(Duration::from_secs(1)).await;
            drop(wait);
            "abandoned".into()
        }
        Step::Race(n) => {
            let timer = ctx.sleep(seconds(n));
            match select(timer, ctx.call_activity::<_, i32>("Echo", 5)).await {
                Either::Left(()) => "timer".into(),
                Either::Right(result) => format!("{:?}", result.ok()),
            }
        }
        Step::SendToSelf(name) => {
            let sent = ctx.send_event(ctx.instance_id().clone(), &format!("e{name}"), &7);
            format!("sent {}", sent.is_ok())
        }
        Step::Child { fails } => {
            let result = ctx.call_sub_orchestration::<_, i32>("Child", *fails).await;
            format!("{:?}", result.map_err(|f| f.message.clone()))
        }
        Step::ForgottenChild => {
            let id = ctx.start_orchestration("Child", false, SubOrchestrationOptions::default());
            format!("{}", id.is_ok_and(|id| !id.is_empty()))
        }
        Step::Both(a, b) => {
            let (a, b) =
                join(run_steps(ctx.clone(), a.clone().into()), run_steps(ctx.clone(), b.clone().into()))
                    .await;
            trace.extend(a);
            trace.extend(b);
            "both".into()
        }
        Step::Status(n) => format!("{}", ctx.set_custom_status(n).is_ok()),
        Step::Guid => ctx.new_guid().to_string(),
    }
}

fn step() -> impl Strategy<Value = Step> {
    let leaf = prop_oneof![
        4 => any::<bool>().prop_map(|fails| Step::Activity { fails }),
        3 => (any::<bool>(), 0..4u32, 1..4u8)
            .prop_map(|(fails, attempts, coefficient)| Step::Retry { fails, attempts, coefficient }),
        2 => (0..5u8).prop_map(Step::FanOut),
        2 => (0..5u8).prop_map(Step::Timer),
        1 => (5..14u8).prop_map(Step::LongTimer),
        1 => Just(Step::CancelledTimer),
        1 => (1..9u8).prop_map(Step::DetachedTimer),
        3 => (0..3u8).prop_map(Step::Event),
        2 => (0..3u8, 1..5u8).prop_map(|(name, n)| Step::EventWithTimeout(name, n)),
        1 => (0..3u8).prop_map(Step::AbandonedWait),
        2 => (0..4u8).prop_map(Step::Race),
        2 => (0..3u8).prop_map(Step::SendToSelf),
        2 => any::<bool>().prop_map(|fails| Step::Child { fails }),
        1 => Just(Step::ForgottenChild),
        1 => (0..9u8).prop_map(Step::Status),
        1 => Just(Step::Guid),
    ];
    leaf.prop_recursive(2, 16, 4, |inner| {
        let steps = || prop::collection::vec(inner.clone(), 0..4);
        (steps(), steps()).prop_map(|(a, b)| Step::Both(a, b))
    })
}

fn hub(steps: &[Step], generations: u32, limit: usize) -> Hub {
    let steps: Arc<[Step]> = steps.into();
    let program = orchestrator(move |ctx: OrchestrationContext, generation: u32| {
        let steps = steps.clone();
        async move {
            let trace = run_steps(ctx.clone(), steps).await;
            if generation + 1 < generations {
                ctx.continue_as_new(generation + 1)?;
            }
            Ok::<_, OrchestratorError>(trace)
        }
    });
    let child = orchestrator(|ctx: OrchestrationContext, fails: bool| async move {
        let result: i32 = ctx.call_activity(if fails { "Boom" } else { "Echo" }, 3).await?;
        Ok::<_, OrchestratorError>(result)
    });
    let mut hub = Hub::new().with("Program", program).with("Child", child);
    hub.settings.max_checkpoint_batch_size = limit;
    hub.hold_activities = true;
    hub
}

/// What comes next: which kind of thing, and which of them.
type Choice = (u8, prop::sample::Index);

fn drive(hub: &mut Hub, choices: &[Choice]) {
    hub.start("Program", "p", "0");
    for (kind, index) in choices {
        match kind {
            // A batch of some messages of one instance, in order or not.
            0..=4 if !hub.queue.is_empty() => deliver(hub, *kind, index),
            5 | 6 if !hub.held.is_empty() => {
                let message = hub.held.remove(index.index(hub.held.len())).unwrap();
                if *kind == 6 {
                    hub.run_activity(message.clone()); // at least once
                }
                hub.run_activity(message);
            }
            7 => {
                hub.fire_next_timer();
            }
            8 => hub.raise("p", &format!("E{}", index.index(3)), "1"),
            9 if index.index(4) == 0 => hub.send("p", EventKind::ExecutionSuspended { reason: None }),
            10 => hub.send("p", EventKind::ExecutionResumed { reason: None }),
            _ => {}
        }
    }
    // Let it end as far as it can: events for every wait, everything else at once.
    for round in 0..400 {
        hub.settle();
        if hub.instances.values().all(|instance| instance.status.is_terminal()) {
            return;
        }
        hub.send("p", EventKind::ExecutionResumed { reason: None });
        while let Some(message) = hub.held.pop_front() {
            hub.run_activity(message);
        }
        hub.fire_next_timer();
        hub.raise("p", &format!("e{}", round % 3), "2");
    }
}

fn deliver(hub: &mut Hub, kind: u8, index: &prop::sample::Index) {
    let id = hub.queue[index.index(hub.queue.len())].target.instance_id.clone();
    let (mut mine, rest): (Vec<_>, _) = hub.queue.drain(..).partition(|m| m.target.instance_id == id);
    hub.queue = rest.into();
    let is_start = matches!(mine[0].event.kind, EventKind::ExecutionStarted(_));
    if kind == 4 && !is_start {
        let count = mine.len();
        mine.rotate_left(index.index(count));
    }
    if kind == 3 && !is_start {
        let later = mine.split_off(1 + index.index(mine.len()) / 2);
        hub.queue.extend(later);
    }
    hub.episode(&id, mine);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn replay_from_every_episode_boundary_records_the_same(
        steps in prop::collection::vec(step(), 1..8),
        generations in 1..3u32,
        limit in prop_oneof![3 => Just(0usize), 1 => 4..12usize],
        choices in prop::collection::vec((0..11u8, any::<prop::sample::Index>()), 0..60),
    ) {
        let mut hub = hub(&steps, generations, limit);
        drive(&mut hub, &choices);
        let instance = hub.get("p");
        prop_assert!(instance.status.is_terminal(), "{:?} {:?}", instance.status, instance.trace());
        prop_assert_ne!(instance.status, OrchestrationStatus::Failed, "{:?}", instance.output());
        check_ids(&instance.history)?;
    }

    #[test]
    fn code_that_does_not_follow_its_history_fails_and_never_panics(
        steps in prop::collection::vec(step(), 1..6),
        others in prop::collection::vec(step(), 0..6),
        choices in prop::collection::vec((0..11u8, any::<prop::sample::Index>()), 0..40),
        cut in any::<prop::sample::Index>(),
    ) {
        let mut recorded = hub(&steps, 1, 0);
        drive(&mut recorded, &choices);
        let history = &recorded.get("p").history;
        let past = &history[..cut.index(history.len())];
        let (program, settings) = hub(&others, 1, 0).registry["Program"].clone();
        let result = Execution::new(program, settings).advance(past, &mut []);
        prop_assert!(!result.is_aborted);
        for action in result.actions {
            if let ActionKind::Complete(completion) = action.kind {
                let message = completion.result.unwrap_or_default();
                let failed = completion.status == OrchestrationStatus::Failed;
                prop_assert!(!failed || message.starts_with("Non-Deterministic workflow detected: "), "{message}");
            }
        }
    }
}

/// Each sequence id belongs to one decision, and each completion event follows its decision.
fn check_ids(history: &[HistoryEvent]) -> Result<(), TestCaseError> {
    let mut decided = HashMap::new();
    for event in history {
        if event.event_id >= 0 {
            prop_assert!(decided.insert(event.event_id, event.name()).is_none(), "{event:?}");
        }
        match &event.kind {
            EventKind::TaskCompleted { task_scheduled_id: id, .. }
            | EventKind::TaskFailed { task_scheduled_id: id, .. } => {
                prop_assert_eq!(decided.get(id), Some(&"TaskScheduled"));
            }
            EventKind::TimerFired { timer_id, .. } if *timer_id >= 0 => {
                prop_assert_eq!(decided.get(timer_id), Some(&"TimerCreated"));
            }
            _ => {}
        }
    }
    Ok(())
}
