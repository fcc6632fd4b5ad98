//! The behaviours that DTFx's own scenario tests prove, on the hub of `support`. Comments name those tests
//! (Azure/durabletask, `AzureStorageScenarioTests` and the tests of `DurableTask.Core`).

#![allow(clippy::unwrap_used, reason = "tests")]

mod support;

use std::time::Duration;

use support::*;
use taskhub_core::*;
use taskhub_replay::*;

type Output<T> = Result<T, OrchestratorError>;

fn hello_sequence() -> impl Orchestrator + 'static {
    orchestrator(|ctx: OrchestrationContext, (): ()| async move {
        let mut answers: Vec<String> = Vec::new();
        for city in ["Tokyo", "Seattle", "London"] {
            answers.push(ctx.call_activity("SayHello", city).await?);
        }
        Output::Ok(answers)
    })
}

fn approval() -> impl Orchestrator + 'static {
    orchestrator(|ctx: OrchestrationContext, seconds: Option<u64>| async move {
        let _: String = ctx.call_activity("SayHello", "approver").await?;
        let timer = ctx.sleep(Duration::from_secs(seconds.unwrap_or(3600)));
        let event = ctx.wait_for_event::<String>("ApprovalEvent");
        Output::Ok(match select(event, timer).await {
            Either::Left(answer) => format!("approved:{:?}", answer?),
            Either::Right(()) => "escalated".to_owned(),
        })
    })
}

#[test]
fn sequence_of_activities_completes_with_the_rows_dtfx_writes() {
    // As in DTFx: HelloWorldOrchestration, SequentialOrchestration(NoReplay)
    let mut hub = Hub::new().with("HelloSequence", hello_sequence());
    hub.start("HelloSequence", "hello-1", "");
    hub.run();
    let instance = hub.get("hello-1");
    assert_eq!(instance.output().unwrap(), r#"["Hello Tokyo!","Hello Seattle!","Hello London!"]"#);
    let rows: Vec<_> =
        instance.history.iter().map(|e| format!("{} {} {}", e.event_id, e.name(), e.is_played)).collect();
    assert_eq!(
        rows,
        [
            "-1 OrchestratorStarted false",
            "-1 ExecutionStarted true",
            "0 TaskScheduled false",
            "-1 OrchestratorCompleted false",
            "-1 OrchestratorStarted false",
            "-1 TaskCompleted true",
            "1 TaskScheduled false",
            "-1 OrchestratorCompleted false",
            "-1 OrchestratorStarted false",
            "-1 TaskCompleted true",
            "2 TaskScheduled false",
            "-1 OrchestratorCompleted false",
            "-1 OrchestratorStarted false",
            "-1 TaskCompleted true",
            "3 ExecutionCompleted false",
            "-1 OrchestratorCompleted false",
        ]
    );
    let inputs: Vec<_> = hub.activity_calls.iter().map(|(_, input)| input.clone().unwrap()).collect();
    assert_eq!(inputs, [r#"["Tokyo"]"#, r#"["Seattle"]"#, r#"["London"]"#]);
}

#[test]
fn an_orchestrator_without_calls_completes_in_its_first_episode() {
    // As in DTFx: HelloWorldOrchestration_Inline
    let mut hub = Hub::new().with(
        "Inline",
        orchestrator(
            |_: OrchestrationContext, name: String| async move { Output::Ok(format!("Hello, {name}!")) },
        ),
    );
    hub.start("Inline", "i", "\"World\"");
    hub.run();
    assert_eq!(hub.output("i"), "\"Hello, World!\"");
    assert_eq!(hub.get("i").trace(), ["-1 ExecutionStarted", "0 ExecutionCompleted"]);
}

#[test]
fn fan_out_waits_for_all_and_keeps_the_order() {
    // As in DTFx: ParallelOrchestration, LargeFanOut, FanOutOrchestration_LargeHistoryBatches
    let mut hub = Hub::new().with(
        "FanOutFanIn",
        orchestrator(|ctx: OrchestrationContext, n: u64| async move {
            let results = join_all((0..n).map(|k| ctx.call_activity::<_, u64>("Echo", k))).await;
            let values = results.into_iter().collect::<Result<Vec<_>, _>>()?;
            assert!(values.is_sorted());
            Output::Ok(values.iter().sum::<u64>())
        }),
    );
    hub.start("FanOutFanIn", "fan-5", "5");
    hub.start("FanOutFanIn", "fan-300", "300");
    hub.run();
    assert_eq!((hub.output("fan-5"), hub.output("fan-300")), ("10".into(), "44850".into()));
    assert_eq!(hub.get("fan-300").history.len(), 4 + 300 + 3 + 300 - 2 + 1);
}

fn counter() -> impl Orchestrator + 'static {
    orchestrator(|ctx: OrchestrationContext, value: i64| async move {
        let operation: String = ctx.wait_for_event("operation").await?;
        match operation.as_str() {
            "incr" => ctx.continue_as_new(value + 1)?,
            "decr" => ctx.continue_as_new(value - 1)?,
            "end" => return Ok(value),
            _ => return Err(format!("no operation {operation}").into()),
        }
        Output::Ok(0)
    })
}

#[test]
fn an_actor_loses_no_event_over_its_generations() {
    // As in DTFx: ActorOrchestration, RestartOrchestrationWithExternalEvents
    for together in [false, true] {
        let mut hub = Hub::new().with("Counter", counter());
        hub.start("Counter", "c", "0");
        for operation in ["incr", "incr", "incr", "decr", "incr", "end"] {
            hub.raise("c", "Operation", &format!("\"{operation}\""));
            if !together {
                hub.run();
            }
        }
        hub.run();
        assert_eq!(hub.output("c"), "3", "all in one batch: {together}");
        assert_eq!(hub.discarded, 0);
    }
}

#[test]
fn events_buffered_before_continue_as_new_reach_the_next_generation_in_order() {
    let log = orchestrator(|ctx: OrchestrationContext, mut seen: Vec<String>| async move {
        let _: i32 = ctx.call_activity("Echo", 1).await?;
        seen.push(ctx.wait_for_event("a").await?);
        if seen.len() < 4 {
            ctx.continue_as_new(&seen)?;
        }
        Output::Ok(seen)
    });
    let mut hub = Hub::new().with("Log", log);
    hub.start("Log", "l", "[]");
    for event in ["one", "two", "three", "four"] {
        hub.raise("l", "A", &format!("\"{event}\""));
    }
    hub.run();
    assert_eq!(hub.output("l"), r#"["one","two","three","four"]"#);
}

#[test]
fn events_that_nobody_waited_for_can_be_left_behind() {
    let body = |call: Option<bool>| {
        orchestrator(move |ctx: OrchestrationContext, generation: u32| async move {
            if generation == 0 {
                let _: i32 = ctx.call_activity("Echo", 1).await?;
                let options =
                    ContinueAsNewOptions { preserve_unprocessed_events: call, ..Default::default() };
                ctx.continue_as_new_with(1, options)?;
                return Output::Ok(String::new());
            }
            let wait = ctx.wait_for_event_with_timeout::<String>("e", Duration::from_secs(5)).await?;
            Output::Ok(wait.unwrap_or_else(|| "none".into()))
        })
    };
    for settings in [ReplaySettings::default(), ReplaySettings::isolated()] {
        for (setting, call, kept) in
            [(true, None, true), (false, None, false), (true, Some(false), false), (false, Some(true), true)]
        {
            let mut hub = Hub::new();
            hub.replay = ReplaySettings { preserve_unprocessed_events: setting, ..settings.clone() };
            hub.add("Body", body(call));
            hub.start("Body", "b", "0");
            hub.raise("b", "e", "\"kept\"");
            hub.run();
            let expected = if kept { "\"kept\"" } else { "\"none\"" };
            assert_eq!(hub.output("b"), expected, "setting {setting}, call {call:?}");
        }
    }
}

#[test]
fn an_event_after_the_request_goes_to_the_generation_that_the_setting_names() {
    for (behaviour, expected) in
        [(EventBehaviour::Carryover, "\"next\""), (EventBehaviour::Ignore, "\"this\"")]
    {
        let mut hub = Hub::new();
        hub.replay.event_behaviour = behaviour;
        hub.add(
            "Can",
            orchestrator(|ctx: OrchestrationContext, from: Option<String>| async move {
                if let Some(from) = from {
                    return Output::Ok(from);
                }
                ctx.continue_as_new("next")?;
                let timeout = Duration::from_secs(10);
                if ctx.wait_for_event_with_timeout::<()>("e", timeout).await?.is_some() {
                    ctx.continue_as_new("this")?;
                }
                Output::Ok(String::new())
            }),
        );
        hub.start("Can", "c", "");
        hub.raise("c", "e", "null");
        hub.run();
        assert_eq!(hub.output("c"), expected);
    }
}

#[test]
fn a_continued_generation_starts_with_the_events_in_dtfx_order() {
    // As in DTFx: ContinueAsNewThenTimer, and the golden history of Eternal
    let body = orchestrator(|ctx: OrchestrationContext, n: u32| async move {
        if n == 0 {
            ctx.continue_as_new(1)?;
        } else {
            ctx.sleep(Duration::from_secs(10)).await;
        }
        Output::Ok("done")
    });
    let mut hub = Hub::new().with("Can", body);
    hub.start("Can", "c", "0");
    hub.settle();
    let instance = hub.get("c");
    assert_eq!(
        instance.names(),
        [
            "OrchestratorStarted",
            "ExecutionStarted",
            "OrchestratorCompleted",
            "TimerCreated",
            "OrchestratorCompleted"
        ]
    );
    let played: Vec<_> = instance.history.iter().map(|event| event.is_played).collect();
    assert_eq!(played, [false, true, true, false, false]);
    assert!(instance.commits[0].replaces_history);
    assert_ne!(instance.commits[0].instance.execution_id, Some("c-e1".into()));
    let EventKind::ExecutionStarted(next) = &instance.history[1].kind else { panic!() };
    assert_eq!((next.input.as_deref(), next.generation), (Some("1"), None));
    hub.run();
    assert_eq!(hub.output("c"), "\"done\"");
}

#[test]
fn a_generation_that_begins_in_the_same_way_has_the_same_execution_id() {
    // Run again, an episode takes other random ids, at another time.
    let run = |seed: u64, execution: &str, input: &str, event: Option<&str>| {
        let body = orchestrator(|ctx: OrchestrationContext, input: String| async move {
            if !input.ends_with('+') {
                ctx.continue_as_new(input + "+")?;
                return Output::Ok(());
            }
            ctx.wait_for_event::<()>("never").await?;
            Output::Ok(())
        });
        let mut hub = Hub::new().with("Can", body);
        hub.ids = CountingIds::new(seed);
        hub.clock.advance_to(at(seed));
        hub.queue.push_back(start_message("Can", "c", execution, input, hub.clock.now()));
        event.into_iter().for_each(|event| hub.raise("c", "e", event));
        hub.settle();
        let instance = hub.get("c");
        assert!(instance.commits[0].replaces_history);
        instance.commits[0].instance.execution_id.clone().unwrap()
    };
    let id = run(1, "e1", "\"a\"", Some("1"));
    assert!(id.as_str().len() == 32 && id.as_str().bytes().all(|digit| digit.is_ascii_hexdigit()), "{id}");
    assert_eq!(run(2, "e1", "\"a\"", Some("1")), id);
    let others = [
        ("e2", "\"a\"", Some("1")),
        ("e1", "\"b\"", Some("1")),
        ("e1", "\"a\"", None),
        ("e1", "\"a\"", Some("2")),
    ];
    for (execution, input, event) in others {
        assert_ne!(run(1, execution, input, event), id, "{execution} {input} {event:?}");
    }
}

#[test]
fn the_last_request_to_continue_as_new_counts_with_all_its_options() {
    // As in DTFx: Context_ContinueAsNew_LastCallWins
    let body = orchestrator(|ctx: OrchestrationContext, n: u32| async move {
        if n == 0 {
            let new_trace = ContinueAsNewOptions {
                version: Some("9".into()),
                generate_new_trace: true,
                ..ContinueAsNewOptions::default()
            };
            ctx.continue_as_new_with(5, new_trace.clone())?;
            ctx.continue_as_new_with(7, ContinueAsNewOptions::default())?;
        } else {
            let _: () = ctx.wait_for_event("never").await?;
        }
        Output::Ok(n)
    });
    let mut hub = Hub::new().with("Can", body);
    hub.start("Can", "c", "0");
    hub.run();
    let EventKind::ExecutionStarted(next) = &hub.get("c").history[1].kind else { panic!() };
    assert_eq!((next.input.as_deref(), next.version.as_deref()), (Some("7"), Some("")));
    assert!(!next.generate_new_trace);
}

#[test]
fn approval_by_event_cancels_the_timer_and_timeout_escalates() {
    // As in DTFx: TimerExpiration, TimerDelay, TimerCancellation
    let mut hub = Hub::new().with("Approval", approval());
    hub.start("Approval", "yes", "");
    hub.start("Approval", "late", "20");
    hub.settle();
    hub.raise("yes", "approvalevent", "\"ok\"");
    hub.settle();
    assert_eq!(hub.output("yes"), r#""approved:\"ok\"""#);
    assert_eq!(
        hub.get("yes").trace(),
        [
            "-1 ExecutionStarted",
            "0 TaskScheduled",
            "-1 TaskCompleted",
            "1 TimerCreated",
            "-1 EventRaised",
            "2 ExecutionCompleted"
        ]
    );
    assert_eq!(hub.timers.len(), 2, "the timer's message stays");
    hub.run();
    assert_eq!(hub.output("late"), "\"escalated\"");
    assert_eq!(hub.clock.now(), at(3600), "the clock went on to the stale timer");
}

#[test]
fn a_buffered_event_is_taken_at_once_but_the_timer_is_recorded() {
    let mut hub = Hub::new().with("Approval", approval());
    hub.start("Approval", "buffered-1", "");
    hub.raise("buffered-1", "ApprovalEvent", "\"early\"");
    hub.settle();
    assert_eq!(
        hub.get("buffered-1").trace(),
        [
            "-1 ExecutionStarted",
            "-1 EventRaised",
            "0 TaskScheduled",
            "-1 TaskCompleted",
            "1 TimerCreated",
            "2 ExecutionCompleted"
        ]
    );
}

#[test]
fn many_instances_run_side_by_side() {
    // As in DTFx: OrchestrationConcurrency
    let mut hub = Hub::new().with("HelloSequence", hello_sequence());
    for k in 0..200 {
        hub.start("HelloSequence", &format!("i{k}"), "");
    }
    hub.run();
    assert!(hub.instances.values().all(|i| i.status == OrchestrationStatus::Completed));
}

#[test]
fn two_orchestrations_converse_by_events() {
    // As in DTFx: EventConversation
    for forget in [false, true] {
        let ping = orchestrator(move |ctx: OrchestrationContext, (): ()| async move {
            let me = ctx.instance_id().to_string();
            let child = SubOrchestrationOptions { instance_id: Some("pong".into()), ..Default::default() };
            let running = if forget {
                ctx.start_orchestration("Pong", me, child)?;
                None
            } else {
                Some(ctx.call_sub_orchestration_with::<_, String>("Pong", me, child))
            };
            ctx.send_event("pong", "ball", &1)?;
            let back: i32 = ctx.wait_for_event("ball").await?;
            let last = match running {
                Some(task) => task.await?,
                None => "forgotten".into(),
            };
            Output::Ok(format!("{back} {last}"))
        });
        let pong = orchestrator(|ctx: OrchestrationContext, other: String| async move {
            let ball: i32 = ctx.wait_for_event("ball").await?;
            ctx.send_event(other, "ball", &(ball + 1))?;
            Output::Ok("pong is done")
        });
        let mut hub = Hub::new().with("Ping", ping).with("Pong", pong);
        hub.start("Ping", "ping", "");
        hub.run();
        let expected = if forget { "\"2 forgotten\"" } else { "\"2 pong is done\"" };
        assert_eq!(hub.output("ping"), expected);
        let EventKind::ExecutionStarted(child) = &hub.get("pong").history[1].kind else { panic!() };
        assert_eq!(child.parent.as_ref().unwrap().instance, OrchestrationInstance::new("ping", "ping-e1"));
        assert_eq!(child.tags.as_ref().is_some_and(|t| t.get("FireAndForget") == Some("")), forget);
        let replies = hub.get("pong").commits.last().unwrap().orchestrator_messages.len();
        assert_eq!(replies, if forget { 1 } else { 2 }, "the event, and the result if a parent waits");
    }
}

#[test]
fn sub_orchestrations_return_results_and_failures() {
    let parent = orchestrator(|ctx: OrchestrationContext, fails: bool| async move {
        let name = if fails { "FailUnhandled" } else { "HelloSequence" };
        let input = if fails { Some("x") } else { None };
        match ctx.call_sub_orchestration::<_, serde_json::Value>(name, input).await {
            Ok(answer) => Output::Ok(answer.to_string()),
            Err(failure) => Output::Ok(format!("caught {failure}")),
        }
    });
    let mut hub = Hub::new()
        .with("Parent", parent)
        .with("HelloSequence", hello_sequence())
        .with("FailUnhandled", fail_unhandled());
    hub.start("Parent", "good", "false");
    hub.start("Parent", "bad", "true");
    hub.run();
    assert!(hub.output("good").contains("Tokyo"));
    assert_eq!(hub.output("bad"), "\"caught boom x\"");
    assert_eq!(hub.get("bad-e1:0").status, OrchestrationStatus::Failed, "Core's default id");
}

fn fail_unhandled() -> impl Orchestrator + 'static {
    orchestrator(|ctx: OrchestrationContext, i: serde_json::Value| async move {
        Output::Ok(ctx.call_activity::<_, String>("Boom", i).await?)
    })
}

#[test]
fn suspension_keeps_events_until_the_orchestration_resumes() {
    // As in DTFx: SuspendResumeOrchestration
    let mut hub = Hub::new().with("Approval", approval());
    hub.start("Approval", "s", "");
    hub.settle();
    hub.send("s", EventKind::ExecutionSuspended { reason: Some("maintenance".into()) });
    hub.settle();
    assert_eq!(hub.get("s").status, OrchestrationStatus::Suspended);
    hub.raise("s", "ApprovalEvent", "\"while suspended\"");
    hub.settle();
    assert_eq!(hub.get("s").status, OrchestrationStatus::Suspended);
    hub.send("s", EventKind::ExecutionResumed { reason: None });
    hub.settle();
    assert_eq!(hub.output("s"), r#""approved:\"while suspended\"""#);
}

#[test]
fn decisions_made_before_a_suspension_in_the_same_batch_are_sent_after_it() {
    let mut hub = Hub::new().with("HelloSequence", hello_sequence());
    hub.start("HelloSequence", "h", "");
    hub.send("h", EventKind::ExecutionSuspended { reason: None });
    hub.settle();
    assert_eq!(hub.get("h").trace(), ["-1 ExecutionStarted", "-1 ExecutionSuspended"]);
    assert!(hub.activity_calls.is_empty());
    hub.send("h", EventKind::ExecutionResumed { reason: None });
    hub.run();
    assert_eq!(hub.get("h").trace()[2..4], ["-1 ExecutionResumed", "0 TaskScheduled"]);
    assert_eq!(hub.get("h").status, OrchestrationStatus::Completed);
}

#[test]
fn termination_works_in_every_state() {
    // As in DTFx: TerminateOrchestration, TerminatePending, TerminateSuspended
    let terminate = || EventKind::ExecutionTerminated { input: Some("not wanted".into()) };
    let mut hub = Hub::new().with("Approval", approval());
    for id in ["pending", "running", "suspended"] {
        hub.start("Approval", id, "");
    }
    hub.send("pending", terminate());
    hub.settle();
    hub.send("suspended", EventKind::ExecutionSuspended { reason: None });
    hub.settle();
    for id in ["running", "suspended"] {
        hub.send(id, terminate());
    }
    hub.settle();
    for id in ["pending", "running", "suspended"] {
        assert_eq!(hub.get(id).status, OrchestrationStatus::Terminated, "{id}");
        assert_eq!(hub.output(id), "not wanted", "{id}");
    }
    // As in the golden history: the activity is scheduled although nobody will use its result.
    let trace = ["-1 ExecutionStarted", "-1 ExecutionTerminated", "0 TaskScheduled", "1 ExecutionCompleted"];
    assert_eq!(hub.get("pending").trace(), trace);
}

#[test]
fn termination_and_continue_as_new_in_one_batch_end_terminated() {
    for terminated_first in [true, false] {
        let mut hub = Hub::new().with("Counter", counter());
        hub.start("Counter", "c", "0");
        hub.settle();
        let terminate = EventKind::ExecutionTerminated { input: Some("stop".into()) };
        if terminated_first {
            hub.send("c", terminate.clone());
        }
        hub.raise("c", "operation", "\"incr\"");
        if !terminated_first {
            hub.send("c", terminate);
        }
        hub.settle();
        assert_eq!(hub.get("c").status, OrchestrationStatus::Terminated, "{terminated_first}");
        assert_eq!(hub.output("c"), "stop");
    }
}

#[test]
fn failures_end_the_orchestration_unless_it_catches_them() {
    // As in DTFx: UnhandledActivityException, HandledActivityException, UnhandledOrchestrationException
    let handled = orchestrator(|ctx: OrchestrationContext, (): ()| async move {
        match ctx.call_activity::<_, String>("Boom", "x").await {
            Ok(answer) => Output::Ok(answer),
            Err(failure) => Output::Ok(format!("caught {failure}")),
        }
    });
    let own = orchestrator(|_: OrchestrationContext, (): ()| async move {
        Output::<()>::Err(ApplicationError::new("System.ArgumentException", "orchestrator says no").into())
    });
    let mut hub =
        Hub::new().with("FailUnhandled", fail_unhandled()).with("FailHandled", handled).with("FailSelf", own);
    for mode in [ErrorMode::ReasonOnly, ErrorMode::SerializedException, ErrorMode::FailureDetails] {
        hub.error_mode(mode);
        let id = |name: &str| format!("{name}-{mode:?}");
        hub.start("FailUnhandled", &id("u"), "\"x\"");
        hub.start("FailHandled", &id("h"), "");
        hub.start("FailSelf", &id("s"), "");
        hub.run();
        assert_eq!(hub.output(&id("h")), "\"caught boom x\"");
        for (name, own_type) in [("u", "boom x"), ("s", "orchestrator says no")] {
            assert_eq!(hub.get(&id(name)).status, OrchestrationStatus::Failed);
            let expected = match (mode, name) {
                (ErrorMode::FailureDetails, "u") => "DurableTask.Core.Exceptions.TaskFailedException: Task \
                     'Boom' (#0) failed with an unhandled exception: boom x"
                    .to_owned(),
                (ErrorMode::FailureDetails, _) => format!("System.ArgumentException: {own_type}"),
                _ => own_type.to_owned(),
            };
            assert_eq!(hub.output(&id(name)), expected); // As in DTFx: FailureDetailsOnUnhandled
        }
    }
}

#[test]
fn custom_status_is_stored_with_every_episode() {
    // As in DTFx: ValidateCustomStatusPersists, ValidateNullCustomStatusPersists
    let body = orchestrator(|ctx: OrchestrationContext, (): ()| async move {
        ctx.set_custom_status(&serde_json::json!({"step": 1}))?;
        let _: String = ctx.call_activity("SayHello", "one").await?;
        ctx.set_custom_status("é日本😀")?;
        let _: () = ctx.wait_for_event("Go").await?;
        ctx.set_custom_status(&())?;
        Output::Ok(())
    });
    let mut hub = Hub::new().with("CustomStatus", body);
    hub.start("CustomStatus", "c", "");
    hub.settle();
    let statuses: Vec<_> = hub.get("c").commits.iter().map(|c| c.custom_status.clone()).collect();
    assert_eq!(statuses, [Some(r#"{"step":1}"#.to_owned()), Some("\"é日本😀\"".to_owned())]);
    hub.raise("c", "Go", "null");
    hub.settle();
    assert_eq!(hub.get("c").custom_status, None);
    assert_eq!(hub.get("c").status, OrchestrationStatus::Completed);
}

#[test]
fn custom_status_is_carried_into_the_next_generation() {
    let body = orchestrator(|ctx: OrchestrationContext, n: u32| async move {
        if n == 0 {
            ctx.set_custom_status("from the first")?;
            ctx.continue_as_new(1)?;
        } else if n == 1 {
            ctx.continue_as_new(2)?;
        }
        Output::Ok(n)
    });
    let mut hub = Hub::new().with("Can", body);
    hub.start("Can", "c", "0");
    hub.run();
    assert_eq!(hub.get("c").custom_status.as_deref(), Some("\"from the first\""));
}

#[test]
fn tags_reach_activities_and_children() {
    // As in DTFx: Ensure…OrchestrationExecutionContext, TagsAreAvailableInOrchestrationState
    let parent = orchestrator(|ctx: OrchestrationContext, (): ()| async move {
        let _: i32 = ctx.call_activity("Echo", 1).await?;
        let own = Tags::from_iter([("owner", "child"), ("level", "2")]);
        let options = SubOrchestrationOptions { tags: Some(own), ..Default::default() };
        ctx.start_orchestration("Child", (), options.clone())?;
        Output::Ok(ctx.call_sub_orchestration_with::<_, Vec<String>>("Child", (), options).await?)
    });
    let child = orchestrator(|ctx: OrchestrationContext, (): ()| async move {
        let tags = ctx.tags().cloned().unwrap_or_default();
        let mut tags: Vec<_> = tags.iter().map(|(k, v)| format!("{k}={v}")).collect();
        tags.sort();
        Output::Ok(tags)
    });
    let mut hub = Hub::new().with("Parent", parent).with("Child", child);
    let mut message = start_message("Parent", "p", "e", "", hub.clock.now());
    let tags = Tags::from_iter([("env", "prod"), ("owner", "José"), ("FireAndForget", "")]);
    let EventKind::ExecutionStarted(started) = &mut message.event.kind else { panic!() };
    started.tags = Some(tags.clone());
    hub.queue.push_back(message);
    hub.run();
    assert_eq!(hub.output("p"), r#"["env=prod","level=2","owner=child"]"#);
    let activity = &hub.get("p").commits[0].activity_messages[0];
    assert_eq!(activity.execution_context, Some(tags.clone()));
    let children = &hub.get("p").commits[1].orchestrator_messages;
    assert_eq!(children[0].execution_context, Some(tags));
}

#[test]
fn without_tags_messages_carry_an_empty_context() {
    let mut hub = Hub::new().with("HelloSequence", hello_sequence());
    hub.start("HelloSequence", "h", "");
    hub.run();
    let message = &hub.get("h").commits[0].activity_messages[0];
    assert_eq!(message.execution_context, Some(Tags::new()));
    assert_eq!(message.target, OrchestrationInstance::new("h", "h-e1"));
}

#[test]
fn a_forgotten_child_that_hands_its_tags_to_a_call_does_not_wait_for_ever() {
    let mut hub = Hub::new().with("Leaf", raw_orchestrator(|_| async { Ok(Some("1".into())) }));
    hub.add(
        "Middle",
        raw_orchestrator(|ctx: OrchestrationContext| async move {
            let instance_id = Some("leaf".into());
            let options =
                SubOrchestrationOptions { instance_id, tags: ctx.tags().cloned(), ..Default::default() };
            let nothing: Option<i32> = ctx.call_sub_orchestration_with("Leaf", (), options).await?;
            Ok(Some(format!("{nothing:?}")))
        }),
    );
    hub.add(
        "Top",
        raw_orchestrator(|ctx: OrchestrationContext| async move {
            let options =
                SubOrchestrationOptions { instance_id: Some("middle".into()), ..Default::default() };
            ctx.start_orchestration("Middle", (), options)?;
            Ok(None)
        }),
    );
    hub.start("Top", "top", "");
    hub.run();
    assert_eq!(hub.output("leaf"), "1");
    assert_eq!(hub.output("middle"), "None");
}
