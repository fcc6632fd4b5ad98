//! What the .NET SDKs decide in corners that captured histories do not show, event by event.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::sync::Arc;
use std::time::Duration;

use taskhub_core::*;
use taskhub_replay::*;

const DAY: u64 = 86_400;

type Output = Result<Option<String>, OrchestratorError>;

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

fn fired(timer_id: i32) -> HistoryEvent {
    message(EventKind::TimerFired { timer_id, fire_at: at(0) })
}

fn timer_created(id: i32, seconds: u64) -> HistoryEvent {
    HistoryEvent::decision(id, at(0), EventKind::TimerCreated { fire_at: at(seconds) })
}

fn done(task_scheduled_id: i32) -> HistoryEvent {
    message(EventKind::TaskCompleted { task_scheduled_id, result: Some("1".into()) })
}

fn raised(name: &str, json: &str) -> HistoryEvent {
    message(EventKind::EventRaised {
        name: Some(name.into()),
        input: Some(json.into()),
        parent_trace_context: None,
    })
}

fn run<F, R>(settings: ReplaySettings, body: F) -> Execution
where
    F: Fn(OrchestrationContext) -> R + Send + Sync + 'static,
    R: Future<Output = Output> + Send + 'static,
{
    Execution::new(Arc::new(raw_orchestrator(body)), settings)
}

fn in_process<F, R>(body: F) -> Execution
where
    F: Fn(OrchestrationContext) -> R + Send + Sync + 'static,
    R: Future<Output = Output> + Send + 'static,
{
    run(ReplaySettings::default(), body)
}

/// Actions in short: `0 task A`.
fn short(result: &EpisodeResult) -> Vec<String> {
    let kind = |kind: &ActionKind| match kind {
        ActionKind::CreateTimer { fire_at } => {
            format!("timer {}d", fire_at.saturating_since(at(0)).as_secs_f64() / DAY as f64)
        }
        ActionKind::ScheduleTask { name, .. } => format!("task {name}"),
        ActionKind::CreateSubOrchestration { name, instance_id, .. } => {
            format!("child {name} '{instance_id}'")
        }
        ActionKind::SendEvent { name, target, .. } => format!("send {name} '{}'", target.instance_id),
        ActionKind::Complete(c) => format!("{} {}", c.status, c.result.as_deref().unwrap_or("-")),
    };
    result.actions.iter().map(|action| format!("{} {}", action.id, kind(&action.kind))).collect()
}

async fn sleep_then_call(ctx: OrchestrationContext, days: u64) -> Output {
    ctx.sleep(Duration::from_secs(days * DAY)).await;
    let _: i32 = ctx.call_activity("A", 1).await?;
    Ok(None)
}

#[test]
fn seven_days_in_process_are_three_timers() {
    let mut execution = in_process(|ctx| sleep_then_call(ctx, 7));
    let past = [
        mark(0),
        start(),
        timer_created(0, 3 * DAY),
        mark(3 * DAY),
        fired(0),
        timer_created(1, 6 * DAY),
        mark(6 * DAY),
        fired(1),
        timer_created(2, 7 * DAY),
    ];
    let result = execution.advance(&past, &mut [mark(7 * DAY), fired(2)]);
    assert_eq!(short(&result), ["3 task A"]);
}

#[test]
fn a_last_part_in_process_that_fires_early_is_followed_by_another() {
    let mut execution = in_process(|ctx| sleep_then_call(ctx, 8));
    execution.advance(&[], &mut [mark(0), start()]);
    execution.advance(&[], &mut [mark(3 * DAY), fired(0)]);
    execution.advance(&[], &mut [mark(6 * DAY), fired(1)]);
    let result = execution.advance(&[], &mut [mark(8 * DAY - 1), fired(2)]);
    assert_eq!(short(&result), ["3 timer 8d"]);
    let result = execution.advance(&[], &mut [mark(8 * DAY), fired(3)]);
    assert_eq!(short(&result), ["4 task A"]);
}

#[test]
fn the_dotnet_sdk_ends_a_split_timer_with_a_timer_even_when_it_is_late() {
    let mut execution = run(ReplaySettings::isolated(), |ctx| sleep_then_call(ctx, 4));
    execution.advance(&[], &mut [mark(0), start()]);
    let result = execution.advance(&[], &mut [mark(5 * DAY), fired(0)]);
    assert_eq!(short(&result), ["1 timer 4d"]);
    let result = execution.advance(&[], &mut [mark(5 * DAY), fired(1)]);
    assert_eq!(short(&result), ["2 task A"]);
}

/// Waits up to `seconds` for an event, but looks only after an activity.
fn look_later(seconds: u64) -> Execution {
    in_process(move |ctx| async move {
        let wait = ctx.wait_for_event_with_timeout::<i32>("E", Duration::from_secs(seconds));
        let _: i32 = ctx.call_activity("A", 1).await?;
        Ok(Some(format!("{:?}", wait.await?)))
    })
}

#[test]
fn a_timeout_that_came_before_the_event_counts_although_nobody_looked() {
    let mut execution = look_later(1);
    execution.advance(&[], &mut [mark(0), start()]);
    execution.advance(&[], &mut [mark(1), fired(0)]);
    execution.advance(&[], &mut [mark(2), raised("E", "7")]);
    let result = execution.advance(&[], &mut [mark(3), done(1)]);
    assert_eq!(short(&result), ["2 Completed None"]);
}

#[test]
fn an_event_cancels_the_timer_of_its_wait_although_nobody_looked() {
    let mut execution = look_later(100 * DAY);
    execution.advance(&[], &mut [mark(0), start()]);
    execution.advance(&[], &mut [mark(1), raised("E", "7")]);
    let result = execution.advance(&[], &mut [mark(3 * DAY), fired(0)]);
    assert_eq!(short(&result), Vec::<String>::new(), "no next part");
    let result = execution.advance(&[], &mut [mark(3 * DAY), done(1)]);
    assert_eq!(short(&result), ["2 Completed Some(7)"]);
}

#[test]
fn an_event_of_a_dropped_wait_goes_to_the_wait_before_it() {
    let mut execution = in_process(|ctx| async move {
        let old = ctx.wait_for_event::<i32>("E");
        let new = ctx.wait_for_event::<i32>("E");
        let _: i32 = ctx.call_activity("A", 1).await?;
        drop(new);
        Ok(Some(old.await?.to_string()))
    });
    execution.advance(&[], &mut [mark(0), start()]);
    execution.advance(&[], &mut [mark(1), raised("E", "7")]);
    let result = execution.advance(&[], &mut [mark(2), done(0)]);
    assert_eq!(short(&result), ["1 Completed 7"]);
}

#[test]
fn events_of_dropped_waits_keep_the_order_in_which_they_came() {
    let mut execution = in_process(|ctx| async move {
        let first = ctx.wait_for_event::<i32>("E");
        let second = ctx.wait_for_event::<i32>("E");
        let _: i32 = ctx.call_activity("A", 1).await?;
        drop(second); // has 1
        drop(first); // has 2
        let x = ctx.wait_for_event::<i32>("E").await?;
        let y = ctx.wait_for_event::<i32>("E").await?;
        Ok(Some(format!("{x},{y}")))
    });
    execution.advance(&[], &mut [mark(0), start()]);
    let result = execution.advance(&[], &mut [mark(1), raised("E", "1"), raised("E", "2"), done(0)]);
    assert_eq!(short(&result), ["1 Completed 1,2"]);
}

#[test]
fn a_forgotten_child_without_an_id_gets_the_next_guid_with_dashes() {
    let of = |settings: ReplaySettings| {
        let ids = |result: &EpisodeResult| {
            let last = short(result).pop().unwrap();
            last.split_once("Completed ").unwrap().1.to_owned()
        };
        let mut execution = run(settings.clone(), |ctx| async move {
            let id = ctx.start_orchestration("C", (), SubOrchestrationOptions::default())?;
            Ok(Some(format!("{id} {}", ctx.new_guid())))
        });
        let mut guids = run(settings, |ctx| async move {
            Ok(Some(format!("{} {} {}", ctx.new_guid(), ctx.new_guid(), ctx.new_guid())))
        });
        let first = &mut [mark(0), start()];
        (ids(&execution.advance(&[], first)), ids(&guids.advance(&[], &mut [mark(0), start()])))
    };
    let (child, guids) = of(ReplaySettings::default());
    assert!(guids.starts_with(&child), "{child} is not the first two of {guids}");
    let (child, guids) = of(ReplaySettings::isolated());
    let (id, next) = child.split_once(' ').unwrap();
    assert_eq!((id, next), (guids[..36].replace('-', "").as_str(), &guids[37..73]));
    let core = SubOrchestrationIds::ExecutionAndSequence;
    let (child, guids) = of(ReplaySettings { fire_and_forget_ids: core, ..ReplaySettings::default() });
    assert_eq!(child, format!("e1:0 {}", &guids[..36]));
}

#[test]
fn tasks_of_a_race_can_be_awaited_again() {
    let mut execution = in_process(|ctx| async move {
        let mut tasks: Vec<Task<i32>> = (0..2).map(|k| ctx.call_activity("A", k)).collect();
        let (winner, first) = race(tasks.iter_mut()).await;
        let all = join_all(tasks).await.into_iter().collect::<Result<Vec<_>, _>>()?;
        Ok(Some(format!("{winner} {} {all:?}", first?)))
    });
    execution.advance(&[], &mut [mark(0), start()]);
    let result = execution.advance(&[], &mut [mark(1), done(1)]);
    assert_eq!(short(&result), Vec::<String>::new());
    let result = execution.advance(&[], &mut [mark(1), done(0)]);
    assert_eq!(short(&result), ["2 Completed 1 1 [1, 1]"]);
}

#[test]
fn timers_and_waits_can_be_awaited_again_with_the_same_result() {
    let mut execution = in_process(|ctx| async move {
        let mut timer = ctx.sleep(Duration::from_secs(1));
        let mut event = ctx.wait_for_event::<i32>("E");
        let mut raw = ctx.call_activity_raw("A", None, ActivityOptions::default());
        (&mut timer).await;
        timer.await;
        let events = ((&mut event).await?, (&mut event).await?);
        drop(event); // handed out: nobody gets it again
        let texts = ((&mut raw).await?, raw.await?);
        let mut timeout = ctx.wait_for_event_with_timeout::<i32>("E", Duration::from_secs(1));
        let late = ((&mut timeout).await?, timeout.await?);
        Ok(Some(format!("{events:?} {texts:?} {late:?}")))
    });
    execution.advance(&[], &mut [mark(0), start()]);
    execution.advance(&[], &mut [mark(1), raised("E", "7"), fired(0), done(1)]);
    let result = execution.advance(&[], &mut [mark(2), fired(2)]);
    let expected = r#"3 Completed (7, 7) (Some("1"), Some("1")) (None, None)"#;
    assert_eq!(short(&result), [expected]);
}

#[test]
fn a_join_awaited_again_fails_the_orchestration_with_a_clear_text() {
    let mut execution = in_process(|_| async move {
        let mut nothing = join_all(Vec::<std::future::Ready<()>>::new());
        (&mut nothing).await;
        nothing.await;
        Ok(None)
    });
    let result = execution.advance(&[], &mut [mark(0), start()]);
    assert!(short(&result)[0].contains("polled after completion"), "{result:?}");
}

#[test]
fn a_future_that_wakes_itself_within_join_all_is_found_out() {
    let mut execution = in_process(|_| async move {
        join_all([std::future::poll_fn(|cx| {
            cx.waker().wake_by_ref();
            std::task::Poll::<()>::Pending
        })])
        .await;
        Ok(None)
    });
    let result = execution.advance(&[], &mut [mark(0), start()]);
    assert_eq!(short(&result), ["0 Failed orchestrator does not come to rest"]);
}

#[test]
fn blank_ids_of_children_are_none_and_blank_targets_of_events_are_errors() {
    let mut execution = in_process(|ctx| async move {
        let blank = || SubOrchestrationOptions { instance_id: Some(" ".into()), ..Default::default() };
        assert!(ctx.send_event("", "E", &1).is_err());
        let forgotten = ctx.start_orchestration("F", (), blank())?;
        assert_eq!(forgotten.as_str().len(), 36);
        let _: Option<i32> = ctx.call_sub_orchestration_with("C", (), blank()).await?;
        Ok(None)
    });
    let result = execution.advance(&[], &mut [mark(0), start()]);
    assert_eq!(short(&result)[1..], ["1 child C 'e1:1'"], "the failed send took no id");
}

#[test]
fn a_call_that_is_tagged_as_one_to_forget_is_ready_at_once() {
    for retry in [None, Some(RetryPolicy::new(3, Duration::from_secs(1)))] {
        let mut execution = in_process(move |ctx| {
            let mut tags = Tags::default();
            tags.insert(FIRE_AND_FORGET_TAG, "");
            let retry = retry.clone();
            let options = SubOrchestrationOptions { tags: Some(tags), retry, ..Default::default() };
            async move {
                let nothing: Option<i32> = ctx.call_sub_orchestration_with("C", (), options).await?;
                Ok(Some(format!("{nothing:?}")))
            }
        });
        let result = execution.advance(&[], &mut [mark(0), start()]);
        assert_eq!(short(&result), ["0 child C 'e1:0'", "1 Completed None"]);
    }
}

#[test]
fn a_retry_policy_whose_code_owns_a_timer_does_not_block_the_call() {
    let mut execution = in_process(|ctx| async move {
        let timer = ctx.sleep(Duration::from_secs(1));
        let retry = RetryPolicy::new(0, Duration::ZERO).with_handle(move |_| {
            let _ = &timer;
            true
        });
        let options = ActivityOptions { retry: Some(retry), ..Default::default() };
        let _: Option<i32> = ctx.call_activity_with("A", 1, options).await?;
        Ok(None)
    });
    let result = execution.advance(&[], &mut [mark(0), start()]);
    assert_eq!(short(&result).pop().unwrap(), "1 Completed -");
}

#[test]
fn an_unreadable_result_is_a_failure_that_is_not_tried_again() {
    // Differs: DTFx would set the timer of a retry.
    let mut execution = in_process(|ctx| async move {
        let retry = Some(RetryPolicy::new(3, Duration::from_secs(1)));
        let options = ActivityOptions { retry, ..Default::default() };
        let failure = ctx.call_activity_with::<_, Vec<i32>>("A", 1, options).await.unwrap_err();
        Ok(Some(format!("{:?}", failure.kind)))
    });
    execution.advance(&[], &mut [mark(0), start()]);
    let result = execution.advance(&[], &mut [mark(1), done(0)]);
    assert_eq!(short(&result), ["1 Completed Payload"]);
}

#[test]
fn the_dotnet_sdk_sends_unprocessed_events_again_when_it_continues_as_new() {
    let mut execution = run(ReplaySettings::isolated(), |ctx| async move {
        let _: i32 = ctx.call_activity("A", 1).await?;
        ctx.continue_as_new(1)?;
        let _: i32 = ctx.call_activity("B", 1).await?;
        Ok(None)
    });
    execution.advance(&[], &mut [mark(0), start()]);
    let events = &mut [mark(1), raised("E", "7"), raised("F", "8"), raised("e", "9"), done(0)];
    let result = execution.advance(&[], events);
    let sent: Vec<_> = result
        .actions
        .iter()
        .filter_map(|action| match &action.kind {
            ActionKind::SendEvent { input, .. } => input.as_deref(),
            _ => None,
        })
        .collect();
    assert_eq!(sent, ["7", "9", "8"], "name by name");
    let expected = ["1 send E 'abc123'", "2 send E 'abc123'", "3 send F 'abc123'", "4 task B"];
    assert_eq!(short(&result), expected);
    let result = execution.advance(&[], &mut [mark(2), done(4)]);
    assert_eq!(short(&result), ["5 ContinuedAsNew 1"]);
    let ActionKind::Complete(next) = &result.actions[0].kind else { unreachable!() };
    assert!(next.carryover.is_empty());
}
