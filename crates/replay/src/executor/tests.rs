use std::time::Duration;

use taskhub_core::{ActionKind, ExecutionStarted, OrchestrationInstance};

use super::*;
use crate::*;

fn at(seconds: u64) -> Timestamp {
    Timestamp::from_ticks(638_000_000_000_000_000) + Duration::from_secs(seconds)
}

fn mark(seconds: u64) -> HistoryEvent {
    HistoryEvent::message(at(seconds), EventKind::OrchestratorStarted)
}

fn message(kind: EventKind) -> HistoryEvent {
    HistoryEvent::message(at(0), kind)
}

fn start() -> HistoryEvent {
    message(EventKind::ExecutionStarted(Box::new(ExecutionStarted::new(
        OrchestrationInstance::new("abc123", "e1"),
        "O",
    ))))
}

fn completed(task_scheduled_id: i32, result: &str) -> HistoryEvent {
    message(EventKind::TaskCompleted { task_scheduled_id, result: Some(result.into()) })
}

fn failed(task_scheduled_id: i32, reason: &str) -> HistoryEvent {
    message(EventKind::TaskFailed {
        task_scheduled_id,
        reason: Some(reason.into()),
        details: None,
        failure_details: None,
    })
}

fn fired(timer_id: i32) -> HistoryEvent {
    message(EventKind::TimerFired { timer_id, fire_at: at(0) })
}

fn raised(name: &str, json: &str) -> HistoryEvent {
    message(EventKind::EventRaised {
        name: Some(name.into()),
        input: Some(json.into()),
        parent_trace_context: None,
    })
}

fn scheduled(id: i32, name: &str) -> HistoryEvent {
    let kind = EventKind::TaskScheduled {
        name: Some(name.into()),
        version: None,
        input: None,
        parent_trace_context: None,
        tags: None,
    };
    HistoryEvent::decision(id, at(0), kind)
}

fn body<F, R>(body: F) -> Execution
where
    F: Fn(OrchestrationContext) -> R + Send + Sync + 'static,
    R: Future<Output = Result<Option<String>, OrchestratorError>> + Send + 'static,
{
    Execution::new(Arc::new(raw_orchestrator(body)), ReplaySettings::default())
}

/// Actions in short: `0 ScheduleTask Echo`.
fn short(result: &EpisodeResult) -> Vec<String> {
    let kind = |kind: &ActionKind| match kind {
        ActionKind::ScheduleTask { name, .. } => format!("ScheduleTask {name}"),
        ActionKind::CreateSubOrchestration { name, instance_id, .. } => {
            format!("CreateSubOrchestration {name} {instance_id}")
        }
        ActionKind::CreateTimer { fire_at } => {
            format!("CreateTimer {}", fire_at.saturating_since(at(0)).as_secs_f64())
        }
        ActionKind::SendEvent { target, name, .. } => format!("SendEvent {name} {}", target.instance_id),
        ActionKind::Complete(c) => format!("{} {}", c.status, c.result.as_deref().unwrap_or("-")),
    };
    result.actions.iter().map(|action| format!("{} {}", action.id, kind(&action.kind))).collect()
}

#[test]
fn every_call_takes_the_next_id_when_it_is_made() {
    let mut execution = body(|ctx| async move {
        let late: Task<i32> = ctx.call_activity("First", 1); // awaited last
        let _guid = ctx.new_guid();
        ctx.set_custom_status("s")?;
        ctx.send_event("other", "e", &1)?;
        let timer = ctx.sleep(Duration::from_secs(5));
        let event = ctx.wait_for_event::<i32>("e");
        let id = SubOrchestrationOptions { instance_id: Some("f".into()), ..Default::default() };
        ctx.start_orchestration("Forgotten", (), id)?;
        let child: Task<i32> = ctx.call_sub_orchestration("Child", ());
        event.await?;
        timer.cancel();
        let second: i32 = ctx.call_activity("Second", 1).await?;
        ctx.continue_as_new(second)?;
        child.await?;
        late.await?;
        Err("after all".into())
    });
    let first = execution.advance(&[], &mut [mark(0), start()]);
    let expected = [
        "0 ScheduleTask First",
        "1 SendEvent e other",
        "2 CreateTimer 5",
        "3 CreateSubOrchestration Forgotten f",
        "4 CreateSubOrchestration Child e1:4",
    ];
    assert_eq!(short(&first), expected);
    assert_eq!(first.custom_status.as_deref(), Some("\"s\""));
    let next = execution.advance(&[], &mut [mark(1), raised("E", "1")]);
    assert_eq!(short(&next), ["5 ScheduleTask Second"]);
    let child = message(EventKind::SubOrchestrationInstanceCompleted {
        task_scheduled_id: 4,
        result: Some("1".into()),
    });
    let last = execution.advance(&[], &mut [mark(2), completed(5, "1"), child, completed(0, "1")]);
    // The request to continue as new is void: the code failed afterwards.
    assert_eq!(short(&last), ["6 Failed after all"]);
}

#[test]
fn a_failure_is_emitted_with_the_decisions_before_it() {
    let mut execution = body(|ctx| async move {
        ctx.send_event("other", "e", &1)?;
        Err("no".into())
    });
    let result = execution.advance(&[], &mut [mark(0), start()]);
    assert_eq!(short(&result), ["0 SendEvent e other", "1 Failed no"]);
}

#[test]
fn open_tasks_keep_a_finished_orchestrator_running() {
    let mut execution = body(|ctx| async move {
        ctx.sleep(Duration::from_secs(5)).detach();
        drop(ctx.call_activity::<_, i32>("Echo", 1));
        drop(ctx.sleep(Duration::from_secs(9))); // cancelled
        drop(ctx.wait_for_event::<i32>("e"));
        Ok(Some("1".into()))
    });
    let first = execution.advance(&[], &mut [mark(0), start()]);
    assert_eq!(short(&first), ["0 CreateTimer 5", "1 ScheduleTask Echo", "2 CreateTimer 9"]);
    assert_eq!(short(&execution.advance(&[], &mut [mark(1), completed(1, "1")])), [""; 0]);
    // The cancelled timer's event, a duplicate and an unknown id change nothing.
    let ignored = &mut [mark(2), fired(2), completed(1, "1"), completed(77, "1"), fired(-100)];
    assert_eq!(short(&execution.advance(&[], ignored)), [""; 0]);
    assert_eq!(short(&execution.advance(&[], &mut [mark(3), fired(0)])), ["3 Completed 1"]);
}

#[test]
fn termination_waits_for_nothing_and_the_later_completion_only_takes_an_id() {
    let mut execution = body(|ctx| async move {
        let _: i32 = ctx.call_activity("Echo", 1).await?;
        let _: i32 = ctx.call_activity("Echo", 2).await?;
        Ok(None)
    });
    execution.advance(&[], &mut [mark(0), start()]);
    let terminated = message(EventKind::ExecutionTerminated { input: Some("stop".into()) });
    let result = execution.advance(&[], &mut [mark(1), terminated, completed(0, "1")]);
    assert_eq!(short(&result), ["1 Terminated stop", "2 ScheduleTask Echo"]);
    let result = execution.advance(&[], &mut [mark(2), completed(2, "1")]);
    assert_eq!(short(&result), [""; 0]);
    assert_eq!(execution.shared.as_ref().unwrap().lock().take_id(), 4);
}

#[test]
fn locks_asked_for_after_a_termination_are_not_requested() {
    let mut execution = body(|ctx| async move {
        let _: i32 = ctx.call_activity("Echo", 1).await?;
        let _locks = ctx.lock_entities([&crate::EntityId::new("counter", "a")?]).await?;
        Ok(None)
    });
    execution.advance(&[], &mut [mark(0), start()]);
    let terminated = message(EventKind::ExecutionTerminated { input: None });
    let result = execution.advance(&[], &mut [mark(1), terminated, completed(0, "1")]);
    assert_eq!(short(&result), ["1 Terminated -"]);
}

#[track_caller]
fn check_mismatch(recorded: HistoryEvent, said: &str) {
    let mut execution = body(|ctx| async move {
        let _: i32 = ctx.call_activity("Echo", 1).await?;
        Ok(None)
    });
    let result = execution.advance(&[mark(0), start(), recorded], &mut [mark(1)]);
    let last = short(&result).pop().unwrap();
    assert!(last.contains("Failed Non-Deterministic workflow detected: "), "{last}");
    assert!(last.contains(said), "{last}");
}

#[test]
fn code_that_leaves_its_history_fails_the_orchestration() {
    check_mismatch(scheduled(0, "Other"), "decided ScheduleTask of 'Echo'");
    check_mismatch(scheduled(1, "Echo"), "sequence number 1, where the replayed code has decided nothing");
    let timer = EventKind::TimerCreated { fire_at: at(0) };
    check_mismatch(HistoryEvent::decision(0, at(0), timer), "a timer");
    let child = EventKind::SubOrchestrationInstanceCreated {
        name: Some("Echo".into()),
        version: None,
        instance_id: "c".into(),
        input: None,
        client_span_id: None,
        tags: None,
    };
    check_mismatch(HistoryEvent::decision(0, at(0), child), "a sub-orchestration 'Echo' (instance 'c')");
    let sent = EventKind::EventSent { instance_id: "t".into(), name: Some("Echo".into()), input: None };
    check_mismatch(HistoryEvent::decision(0, at(0), sent), "an event 'Echo' sent (to instance 't')");
}

#[test]
fn a_mismatch_stops_the_events_but_not_the_pending_decisions() {
    let mut execution = body(|ctx| async move {
        let a: Task<i32> = ctx.call_activity("A", 1);
        let b: Task<i32> = ctx.call_activity("B", 1);
        a.await?;
        b.await?;
        Ok(None)
    });
    let mut new = [mark(1), scheduled(7, "C"), completed(0, "1")];
    let result = execution.advance(&[mark(0), start(), scheduled(0, "a")], &mut new);
    let actions = short(&result);
    assert_eq!(actions.len(), 2);
    assert_eq!(actions[0], "1 ScheduleTask B");
    assert!(actions[1].starts_with("2 Failed Non-Deterministic"));
    assert_eq!(new.map(|event| event.is_played), [false, false, false]);
}

#[test]
fn what_is_not_compared_does_not_matter() {
    // Names without case; versions, inputs and times not at all; the timer that splits checkpoints is ignored.
    let mut execution = body(|ctx| async move {
        let _: i32 = ctx.call_activity("Echo", 1).await?;
        ctx.sleep(Duration::from_secs(1)).await;
        Ok(None)
    });
    let timer = |id| HistoryEvent::decision(id, at(0), EventKind::TimerCreated { fire_at: at(77) });
    let past = [mark(0), start(), scheduled(0, "ECHO"), timer(SPLIT_TIMER_ID), completed(0, "1"), timer(1)];
    assert_eq!(short(&execution.advance(&past, &mut [mark(1), fired(1)])), ["2 Completed -"]);
}

#[test]
fn events_recorded_between_suspension_and_resumption_match_after_it() {
    // Older DTFx recorded decisions while suspended.
    let run = |events: &[HistoryEvent], new: &mut [HistoryEvent]| {
        let mut execution = body(|ctx| async move {
            let _: i32 = ctx.call_activity("Echo", 1).await?;
            Ok(None)
        });
        short(&execution.advance(events, new))
    };
    let suspended = || message(EventKind::ExecutionSuspended { reason: None });
    let resumed = || message(EventKind::ExecutionResumed { reason: None });
    let past = [mark(0), start(), suspended(), scheduled(0, "Echo"), suspended(), completed(0, "1")];
    assert_eq!(run(&past, &mut [mark(1)]), [""; 0]);
    assert_eq!(run(&past, &mut [mark(1), resumed()]), ["1 Completed -"]);
    let terminated = message(EventKind::ExecutionTerminated { input: None });
    assert_eq!(run(&past, &mut [mark(1), terminated]), ["1 Terminated -"]);
}

#[test]
fn what_was_decided_before_a_suspension_is_not_lost_when_the_code_returns_in_the_same_episode() {
    let mut execution = body(|ctx| async move {
        ctx.send_event("other", "Go", &1)?;
        Ok(None)
    });
    let suspended = message(EventKind::ExecutionSuspended { reason: None });
    assert!(execution.advance(&[], &mut [mark(0), start(), suspended]).actions.is_empty());
    let resumed = message(EventKind::ExecutionResumed { reason: None });
    let actions = execution.advance(&[], &mut [mark(1), resumed]).actions;
    let kinds: Vec<_> = actions.iter().map(|action| &action.kind).collect();
    assert!(matches!(kinds[..], [ActionKind::SendEvent { .. }, ActionKind::Complete(_)]), "{kinds:?}");
}

#[test]
fn guids_are_those_of_dotnet() {
    let guids = |namespace| {
        let settings = ReplaySettings { guid_namespace: namespace, ..ReplaySettings::default() };
        let orchestrator = raw_orchestrator(|ctx: OrchestrationContext| async move {
            Ok(Some(format!("{} {}", ctx.new_guid(), ctx.new_guid())))
        });
        let mut execution = Execution::new(Arc::new(orchestrator), settings);
        let mut mark = mark(0);
        mark.timestamp = Timestamp::parse("2024-01-02T03:04:05.1234567Z").unwrap();
        short(&execution.advance(&[], &mut [mark, start()]))
    };
    assert_eq!(
        guids(GUID_NAMESPACE_IN_PROCESS),
        ["0 Completed 34994850-4d2c-56e3-af45-19cc3dc621bf cadbb7bc-d3bf-58ac-a49b-cf71c3c32240"]
    );
    assert_eq!(
        guids(GUID_NAMESPACE_ISOLATED),
        ["0 Completed 706797c6-62d8-589a-8b95-ec0e0c03129c 6741c6a0-7ac1-5d7f-b602-659bcb802c00"]
    );
}

#[test]
fn sub_orchestrations_get_the_ids_of_the_chosen_sdk() {
    let run = |settings| {
        let orchestrator = raw_orchestrator(|ctx: OrchestrationContext| async move {
            let retry = Some(RetryPolicy::new(2, Duration::from_secs(1)));
            let options = SubOrchestrationOptions { retry, ..Default::default() };
            let _: i32 = ctx.call_sub_orchestration_with("C", (), options).await?;
            Ok(None)
        });
        let mut execution = Execution::new(Arc::new(orchestrator), settings);
        let failed = message(EventKind::SubOrchestrationInstanceFailed {
            task_scheduled_id: 0,
            reason: None,
            details: None,
            failure_details: None,
        });
        let first = execution.advance(&[], &mut [mark(0), start()]);
        let again = execution.advance(&[], &mut [mark(1), failed, fired(1)]);
        (short(&first)[0].clone(), short(&again)[1].clone())
    };
    let (first, again) = run(ReplaySettings::default());
    assert_eq!(first, "0 CreateSubOrchestration C e1:0");
    assert_eq!(again, "2 CreateSubOrchestration C e1:2");
    let (first, again) = run(ReplaySettings::isolated());
    assert_eq!(first[1..], again[1..], "one id for all attempts");
    assert_eq!(first.rsplit(' ').next().unwrap().len(), 32);
}

/// Runs `Boom` under a policy; every attempt fails. Returns the trace and the number of attempts.
fn retry_trace(policy: RetryPolicy) -> (Vec<String>, usize) {
    let mut execution = body(move |ctx| {
        let options = ActivityOptions { retry: Some(policy.clone()), ..Default::default() };
        async move {
            let result: Option<i32> = ctx.call_activity_with("Boom", 1, options).await?;
            Ok(to_payload(&result)?)
        }
    });
    let mut trace = Vec::new();
    let mut seconds = 0;
    let mut result = execution.advance(&[], &mut [mark(0), start()]);
    while let Some(action) = result.actions.first() {
        trace.extend(short(&result));
        let event = match action.kind {
            ActionKind::ScheduleTask { .. } => failed(action.id, &format!("boom {}", action.id)),
            ActionKind::CreateTimer { .. } => fired(action.id),
            _ => break,
        };
        seconds += 10;
        result = execution.advance(&[], &mut [mark(seconds), event]);
    }
    let attempts = trace.iter().filter(|line| line.contains("ScheduleTask")).count();
    (trace, attempts)
}

#[test]
fn retries_create_the_timers_of_dtfx() {
    // As in DTFx: RetryInterceptorTests; the history of golden `Retry`.
    let policy = RetryPolicy::new(3, Duration::from_secs(1)).with_backoff_coefficient(2.0);
    let expected = [
        "0 ScheduleTask Boom",
        "1 CreateTimer 11",
        "2 ScheduleTask Boom",
        "3 CreateTimer 32",
        "4 ScheduleTask Boom",
        "5 CreateTimer 50", // now: nothing to wait for, but DTFx does
        "6 Failed boom 4",
    ];
    assert_eq!(retry_trace(policy).0, expected);
    for n in [1, 2, 3, 10] {
        let (trace, attempts) = retry_trace(RetryPolicy::new(n, Duration::from_secs(1)));
        assert_eq!(attempts, n as usize);
        assert_eq!(trace.iter().filter(|line| line.contains("CreateTimer")).count(), n as usize);
    }
}

#[test]
fn retries_end_early_without_a_timer() {
    let policy = || RetryPolicy::new(5, Duration::from_secs(1));
    let once = |policy| assert_eq!(retry_trace(policy).0, ["0 ScheduleTask Boom", "1 Failed boom 0"]);
    once(policy().with_handle(|_| false));
    once(policy().with_handle(|_| panic!("in the predicate")));
    once(policy().with_timeout(Duration::from_secs(10)));
    once(RetryPolicy::new(5, Duration::ZERO));
    let (trace, attempts) = retry_trace(policy().with_timeout(Duration::from_secs(11)));
    assert_eq!((attempts, trace.last().unwrap().as_str()), (2, "3 Failed boom 2"));
    let capped = policy().with_backoff_coefficient(1e9).with_max_interval(Duration::from_secs(4));
    assert_eq!(retry_trace(capped).0[3], "3 CreateTimer 34");
    assert_eq!(retry_trace(RetryPolicy::new(0, Duration::from_secs(1))).0, ["0 Completed -"]);
}

#[test]
fn the_predicate_sees_the_failure_and_non_retriable_ones_are_final() {
    // As in DTFx: ExceptionHandling.FailureDetailsOnHandled
    let calls = Arc::new(std::sync::atomic::AtomicU32::new(0));
    let seen = calls.clone();
    let policy = RetryPolicy::new(3, Duration::from_secs(1)).with_handle(move |failure| {
        seen.fetch_add(1, Ordering::Relaxed);
        failure.is_caused_by("T") && failure.name == "Boom"
    });
    let mut execution = body(move |ctx| {
        let options = ActivityOptions { retry: Some(policy.clone()), ..Default::default() };
        async move { Ok(ctx.call_activity_with::<_, Option<String>>("Boom", 1, options).await?) }
    });
    let failure = |id, is_non_retriable| {
        let details = taskhub_core::FailureDetails {
            is_non_retriable,
            ..taskhub_core::FailureDetails::new("T", "boom")
        };
        message(EventKind::TaskFailed {
            task_scheduled_id: id,
            reason: Some("boom".into()),
            details: None,
            failure_details: Some(details),
        })
    };
    execution.advance(&[], &mut [mark(0), start()]);
    let result = execution.advance(&[], &mut [mark(1), failure(0, false)]);
    assert_eq!(short(&result), ["1 CreateTimer 2"]);
    assert_eq!(calls.load(Ordering::Relaxed), 1);
    execution.advance(&[], &mut [mark(2), fired(1)]);
    let result = execution.advance(&[], &mut [mark(3), failure(2, true)]);
    assert_eq!(short(&result), ["3 Failed boom"]);
    assert_eq!(calls.load(Ordering::Relaxed), 1);
}

#[test]
fn retries_go_on_while_the_code_waits_for_something_else() {
    let mut execution = body(|ctx| async move {
        let retry = Some(RetryPolicy::new(3, Duration::from_secs(1)));
        let call: Task<i32> =
            ctx.call_activity_with("Boom", 1, ActivityOptions { retry, ..Default::default() });
        let _: () = ctx.wait_for_event("go").await?;
        ctx.send_event("other", "gone", &())?;
        Ok(to_payload(&call.await?)?)
    });
    execution.advance(&[], &mut [mark(0), start()]);
    let result = execution.advance(&[], &mut [mark(1), failed(0, "no"), raised("go", "null")]);
    assert_eq!(short(&result), ["1 CreateTimer 2", "2 SendEvent gone other"]);
    let result = execution.advance(&[], &mut [mark(2), fired(1)]);
    assert_eq!(short(&result), ["3 ScheduleTask Boom"]);
    let result = execution.advance(&[], &mut [mark(3), completed(3, "5")]);
    assert_eq!(short(&result), ["4 Completed 5"]);
}

#[test]
fn long_timers_are_split_and_can_be_cancelled_in_every_part() {
    const DAY: u64 = 24 * 60 * 60;
    let sleeper = |days: u64| {
        body(move |ctx| async move {
            let timer = ctx.sleep(Duration::from_secs(days * DAY));
            match select(ctx.wait_for_event::<()>("stop"), timer).await {
                Either::Left(_) => Ok(Some("\"stopped\"".into())),
                Either::Right(()) => Ok(Some("\"slept\"".into())),
            }
        })
    };
    let timer = |id, days: u64| vec![format!("{id} CreateTimer {}", days * DAY)];
    let mut execution = sleeper(6);
    assert_eq!(short(&execution.advance(&[], &mut [mark(0), start()])), timer(0, 6));

    let mut execution = sleeper(10);
    assert_eq!(short(&execution.advance(&[], &mut [mark(0), start()])), timer(0, 3));
    assert_eq!(short(&execution.advance(&[], &mut [mark(3 * DAY), fired(0)])), timer(1, 6));
    assert_eq!(short(&execution.advance(&[], &mut [mark(6 * DAY), fired(1)])), timer(2, 9));
    assert_eq!(short(&execution.advance(&[], &mut [mark(9 * DAY), fired(2)])), timer(3, 10));
    let result = execution.advance(&[], &mut [mark(10 * DAY), fired(3)]);
    assert_eq!(short(&result), ["4 Completed \"slept\""]);

    let mut execution = sleeper(10);
    execution.advance(&[], &mut [mark(0), start()]);
    execution.advance(&[], &mut [mark(3 * DAY), fired(0)]);
    let result = execution.advance(&[], &mut [mark(3 * DAY), raised("stop", "null")]);
    assert_eq!(short(&result), ["2 Completed \"stopped\""]);
}

#[test]
fn the_most_recent_waiter_gets_the_event_and_buffered_ones_come_in_order() {
    let mut execution = body(|ctx| async move {
        let first = ctx.wait_for_event::<i32>("E");
        let second = ctx.wait_for_event::<i32>("e");
        let (first, second) = join(first, second).await;
        let third = ctx.wait_for_event::<i32>("e").await?;
        Ok(Some(format!("{} {} {third}", first?, second?)))
    });
    let new = &mut [mark(0), start(), raised("e", "1"), raised("E", "2"), raised("e", "3")];
    assert_eq!(short(&execution.advance(&[], new)), ["0 Completed 2 1 3"]);
}

#[test]
fn a_dropped_wait_gives_its_event_back() {
    let mut execution = body(|ctx| async move {
        let abandoned = ctx.wait_for_event::<i32>("e");
        let _: i32 = ctx.call_activity("Echo", 1).await?;
        drop(abandoned);
        Ok(Some(ctx.wait_for_event::<i32>("e").await?.to_string()))
    });
    let new = &mut [mark(0), start(), raised("e", "1"), raised("e", "2"), completed(0, "1")];
    assert_eq!(short(&execution.advance(&[], new)), ["0 ScheduleTask Echo", "1 Completed 1"]);
}

#[test]
fn a_request_to_continue_as_new_outlives_the_episode() {
    let run = |extended: bool| {
        let mut execution = body(|ctx| async move {
            let task: Task<i32> = ctx.call_activity("Echo", 1);
            ctx.continue_as_new(5)?;
            task.await?;
            Ok(None)
        });
        let mut first = [mark(0), start()];
        if extended {
            execution.advance(&[], &mut first);
            execution.advance(&[], &mut [mark(1), completed(0, "1")])
        } else {
            let past = [mark(0), start(), scheduled(0, "Echo")];
            execution.advance(&past, &mut [mark(1), completed(0, "1")])
        }
    };
    assert_eq!(short(&run(true)), ["1 ContinuedAsNew 5"]);
    assert_eq!(run(true), run(false));
}

#[test]
fn panics_fail_the_orchestration() {
    for early in [true, false] {
        let mut execution = body(move |ctx| {
            assert!(!early, "too early");
            async move {
                let _: i32 = ctx.call_activity("Echo", 1).await?;
                panic!("nothing there")
            }
        });
        let result = execution.advance(&[], &mut [mark(0), start(), completed(0, "1")]);
        let last = short(&result).pop().unwrap();
        assert!(last.contains("Failed orchestrator panicked: "), "{last}");
    }
}

#[test]
fn an_orchestrator_that_never_rests_is_stopped() {
    let mut execution = body(|_| {
        std::future::poll_fn(|cx| {
            cx.waker().wake_by_ref();
            Poll::Pending
        })
    });
    let result = execution.advance(&[], &mut [mark(0), start()]);
    assert_eq!(short(&result), ["0 Failed orchestrator does not come to rest"]);
}

#[test]
fn an_aborted_session_records_nothing_once_nothing_is_open() {
    // As in DTFx: AbortOrchestrationAndActivity
    let mut execution = body(|ctx| async move {
        let task: Task<i32> = ctx.call_activity("Echo", 1);
        ctx.send_event("other", "e", &1)?;
        drop(task);
        Err(SessionAborted.into())
    });
    let result = execution.advance(&[], &mut [mark(0), start()]);
    let decided = ["0 ScheduleTask Echo", "1 SendEvent e other"];
    assert_eq!((short(&result), result.is_aborted), (decided.map(str::to_owned).to_vec(), false));
    let result = execution.advance(&[], &mut [mark(1), completed(0, "1")]);
    assert_eq!(result, EpisodeResult { is_aborted: true, ..EpisodeResult::default() });
}

#[test]
fn inputs_and_results_of_another_type_are_failures() {
    let wants_a_number = orchestrator(|_: OrchestrationContext, n: u32| async move { Ok(n) });
    let mut execution = Execution::new(Arc::new(wants_a_number), ReplaySettings::default());
    let result = execution.advance(&[], &mut [mark(0), start()]);
    assert!(short(&result)[0].contains("Failed the input of the orchestration cannot be read"));

    let mut execution = body(|ctx| async move {
        match ctx.call_activity::<_, i32>("Echo", "x").await {
            Err(failure) => Ok(Some(format!("{:?}", failure.kind))),
            Ok(_) => Ok(None),
        }
    });
    let result = execution.advance(&[], &mut [mark(0), start(), completed(0, "\"secret\"")]);
    assert_eq!(short(&result)[1], "1 Completed Payload");
}

#[test]
fn replaying_is_visible_and_time_is_that_of_the_episode() {
    let mut execution = body(|ctx| async move {
        let mut seen = vec![(ctx.is_replaying(), ctx.now())];
        let _: i32 = ctx.call_activity("Echo", 1).await?;
        seen.push((ctx.is_replaying(), ctx.now()));
        Ok(Some(format!("{}", seen == [(true, at(0)), (false, at(7))])))
    });
    let past = [mark(0), start(), scheduled(0, "Echo")];
    let result = execution.advance(&past, &mut [mark(7), completed(0, "1")]);
    assert_eq!(short(&result), ["1 Completed true"]);
}

#[test]
fn combinators_are_deterministic() {
    let mut execution = body(|ctx| async move {
        let mut tasks: Vec<Task<i32>> = (0..4).map(|k| ctx.call_activity("Echo", k)).collect();
        let (index, first) = race(tasks.iter_mut()).await;
        let rest = join_all(tasks.into_iter().enumerate().filter(|(k, _)| *k != index).map(|(_, t)| t)).await;
        let rest: Vec<_> = rest.into_iter().collect::<Result<_, _>>()?;
        assert!(join_all(Vec::<Task<i32>>::new()).await.is_empty());
        Ok(Some(format!("{index} {} {rest:?}", first?)))
    });
    let new = &mut [
        mark(0),
        start(),
        completed(2, "20"),
        completed(0, "0"),
        completed(3, "30"),
        completed(1, "10"),
    ];
    assert_eq!(short(&execution.advance(&[], new)).pop().unwrap(), "4 Completed 2 20 [0, 10, 30]");
}

#[test]
fn a_history_of_100_000_events_costs_one_poll_per_result() {
    const TASKS: i32 = 50_000;
    let mut execution = body(|ctx| async move {
        let results = join_all((0..TASKS).map(|k| ctx.call_activity::<_, i32>("Echo", k))).await;
        let sum: i64 = results.into_iter().map(|r| r.map(i64::from)).sum::<Result<_, _>>()?;
        Ok(Some(sum.to_string()))
    });
    let mut past = vec![mark(0), start()];
    past.extend((0..TASKS).map(|id| scheduled(id, "Echo")));
    past.extend((1..TASKS).rev().map(|id| completed(id, &id.to_string())));
    let result = execution.advance(&past, &mut [mark(1), completed(0, "0")]);
    assert_eq!(short(&result), ["50000 Completed 1249975000"]);
    assert!(execution.polls() <= TASKS as u64 + 1, "polls: {}", execution.polls());
}
