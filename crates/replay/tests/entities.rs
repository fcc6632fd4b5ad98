//! Orchestrations that call, signal and lock entities, on the hub of `support` with counters that follow the
//! protocol of locks.

#![allow(clippy::unwrap_used, reason = "tests")]

mod support;

use std::cell::RefCell;
use std::collections::{HashMap, VecDeque};
use std::rc::Rc;
use std::time::Duration;

use support::*;
use taskhub_core::*;
use taskhub_entities::{ReleaseMessage, RequestMessage, ResponseMessage, event_name};
use taskhub_replay::*;

type Output<T> = Result<T, OrchestratorError>;

/// Counters: `add`, `get`, `boom`.
#[derive(Default)]
struct Counters {
    all: HashMap<InstanceId, Counter>,
    /// `{entity} {what}`, in the order in which it happened.
    log: Vec<String>,
    /// Requests as they came.
    received: Vec<(String, RequestMessage)>,
    /// No answers are sent while this is set.
    silent: bool,
}

#[derive(Default)]
struct Counter {
    value: i64,
    locked_by: Option<String>,
    queue: VecDeque<RequestMessage>,
}

type Shared = Rc<RefCell<Counters>>;

fn with_counters(hub: &mut Hub) -> Shared {
    let counters = Shared::default();
    let shared = counters.clone();
    hub.entities = Some(Box::new(move |message| shared.borrow_mut().receive(message)));
    counters
}

impl Counters {
    fn receive(&mut self, message: TaskMessage) -> Vec<TaskMessage> {
        let id = message.target.instance_id.clone();
        let EventKind::EventRaised { name, input, .. } = message.event.kind else { panic!("no event") };
        let (name, input) = (name.unwrap(), input.unwrap());
        let counter = self.all.entry(id.clone()).or_default();
        if name == event_name::RELEASE {
            let owner = ReleaseMessage::from_json(&input).unwrap().parent_instance_id;
            let was_held = counter.locked_by == owner;
            if was_held {
                counter.locked_by = None;
            }
            self.log.push(format!("{id} {}", if was_held { "released" } else { "not held" }));
        } else {
            let request = RequestMessage::from_json(&input).unwrap();
            self.received.push((name, request.clone()));
            if counter.locked_by.is_some() && counter.locked_by == request.parent_instance_id {
                counter.queue.push_front(request);
            } else {
                counter.queue.push_back(request);
            }
        }
        self.work(&id)
    }

    fn work(&mut self, id: &InstanceId) -> Vec<TaskMessage> {
        let mut sent = Vec::new();
        let counter = self.all.get_mut(id).unwrap();
        loop {
            let may_run = |next: &RequestMessage| {
                counter.locked_by.is_none() || counter.locked_by == next.parent_instance_id
            };
            if !counter.queue.front().is_some_and(may_run) {
                return sent;
            }
            let Some(request) = counter.queue.pop_front() else { return sent };
            let Some(operation) = &request.operation else {
                self.log.push(format!("{id} locked"));
                counter.locked_by.clone_from(&request.parent_instance_id);
                let mut next = RequestMessage { position: request.position + 1, ..request.clone() };
                match request.lock_set.as_ref().unwrap().get(next.position as usize) {
                    Some(entity) => {
                        next.timestamp = taskhub_entities::Stamp::MIN;
                        let kind = raised(event_name::REQUEST, &next.to_json());
                        sent.push(message(entity.instance_id(), kind));
                    }
                    None => sent.push(answer(&request, &ResponseMessage::lock_acquired())),
                }
                continue;
            };
            self.log.push(format!("{id} {operation}"));
            let response = match operation.as_str() {
                "add" => {
                    counter.value += request.input.as_ref().unwrap().parse::<i64>().unwrap();
                    ResponseMessage::completed(None)
                }
                "get" => ResponseMessage::completed(Some(counter.value.to_string())),
                other => {
                    let details =
                        FailureDetails::new("System.NotSupportedException", format!("no operation {other}"));
                    ResponseMessage::failed(None, None, Some(details))
                }
            };
            if !request.is_signal && !self.silent {
                sent.push(answer(&request, &response));
            }
        }
    }

    fn locked(&self) -> usize {
        self.all.values().filter(|counter| counter.locked_by.is_some()).count()
    }
}

fn message(target: InstanceId, kind: EventKind) -> TaskMessage {
    TaskMessage::new(HistoryEvent::message(at(0), kind), OrchestrationInstance::current(target))
}

fn answer(request: &RequestMessage, response: &ResponseMessage) -> TaskMessage {
    let target = OrchestrationInstance {
        instance_id: request.parent_instance_id.clone().unwrap().into(),
        execution_id: request.parent_execution_id.clone().map(Into::into),
    };
    let kind = raised(&event_name::response(request.id), &response.to_json());
    TaskMessage::new(HistoryEvent::message(at(0), kind), target)
}

fn counter(key: &str) -> EntityId {
    EntityId::new("Counter", key).unwrap()
}

/// A hub with one orchestration, `O`, and its counters.
fn hub<F, R>(body: F) -> (Hub, Shared)
where
    F: Fn(OrchestrationContext) -> R + Send + Sync + 'static,
    R: Future<Output = Output<Option<String>>> + Send + 'static,
{
    let mut hub = Hub::new().with("O", raw_orchestrator(body));
    let counters = with_counters(&mut hub);
    (hub, counters)
}

struct Add;
impl EntityOperationDefinition for Add {
    const ENTITY: &'static str = "Counter";
    const NAME: &'static str = "add";
    type Input = i64;
    type Output = ();
}

#[test]
fn calls_return_results_and_failures_and_signals_nothing() {
    let (mut hub, counters) = hub(|ctx| async move {
        let a = counter("a");
        ctx.signal_operation::<Add>("a", 5)?;
        ctx.call_operation::<Add>("a", 2).await?;
        let value: i64 = ctx.call_entity(&a, "get", ()).await?;
        let failure = ctx.call_entity::<_, ()>(&a, "boom", ()).await.unwrap_err();
        assert_eq!((failure.kind, failure.entity.as_ref()), (TaskKind::Entity, Some(&a)));
        assert!(failure.is_caused_by("System.NotSupportedException"), "{failure:?}");
        let unreadable = ctx.call_entity::<_, String>(&a, "get", ()).await.unwrap_err();
        assert_eq!(unreadable.kind, TaskKind::Payload);
        let nowhere = ctx.call_operation::<Add>("a/b", 1).await.unwrap_err();
        assert_eq!(nowhere.kind, TaskKind::Rejected);
        Ok(Some(format!("{value} {failure}")))
    });
    hub.start("O", "x", "");
    hub.run();
    assert_eq!(hub.output("x"), "7 no operation boom");
    assert_eq!(
        counters.borrow().log,
        ["@counter@a add", "@counter@a add", "@counter@a get", "@counter@a boom", "@counter@a get"]
    );
    let received = &counters.borrow().received;
    assert!(received.windows(2).all(|pair| pair[1].1.predecessor == pair[0].1.timestamp), "{received:?}");
}

#[test]
fn an_unhandled_failure_of_an_entity_fails_the_orchestration_in_every_form() {
    let boom = |ctx: OrchestrationContext| async move {
        ctx.call_entity_raw(&counter("a"), "boom", None).await?;
        Ok(None)
    };
    let (mut plain, _) = hub(boom);
    plain.start("O", "x", "");
    plain.run();
    assert_eq!(plain.output("x"), "no operation boom");
    let (mut details, _) = hub(boom);
    details.error_mode(ErrorMode::FailureDetails);
    details.start("O", "x", "");
    details.run();
    assert_eq!(
        details.output("x"),
        "Microsoft.DurableTask.Entities.EntityOperationFailedException: \
         Operation 'boom' of entity '@counter@a' failed: no operation boom"
    );
}

#[test]
fn requests_of_one_episode_are_a_tick_apart_and_those_to_others_do_not_count() {
    let (mut hub, counters) = hub(|ctx| async move {
        for key in ["a", "b", "a"] {
            ctx.signal_entity(&counter(key), "add", 1)?;
        }
        ctx.signal_entity_at(&counter("a"), "add", 1, ctx.now() + Duration::from_secs(60))?;
        Ok(None)
    });
    hub.start("O", "x", "");
    hub.run();
    let received = &counters.borrow().received;
    let stamps: Vec<_> = received.iter().map(|(_, r)| r.timestamp.at().ticks() - at(0).ticks()).collect();
    // Delivered per entity; a delayed one has no stamp.
    let unstamped = Timestamp::MIN.ticks() - at(0).ticks();
    assert_eq!(stamps, [0, 1, unstamped, 0]);
}

#[test]
fn far_signals_say_when_they_are_due_and_travel_as_far_as_a_message_can() {
    let days = |n: u64| Duration::from_secs(n * 24 * 3600);
    for (settings, hop) in [(ReplaySettings::default(), 3), (ReplaySettings::isolated(), 3)] {
        for (due, delivered) in [(2, 2), (30, hop)] {
            let (mut hub, counters) = hub(move |ctx| async move {
                ctx.signal_operation_at::<Add>("a", 1, ctx.now() + days(due))?;
                Ok(None)
            });
            hub.registry.get_mut("O").unwrap().1 = settings.clone();
            hub.start("O", "x", "");
            hub.run();
            let (name, request) = &counters.borrow().received[0];
            assert_eq!(*name, event_name::delayed_request(at(0) + days(delivered)), "{settings:?}");
            assert_eq!(request.due_at, Some(at(0) + days(due)));
        }
    }
}

/// Locks `a` and `b`, then leaves the section in one of many ways.
fn leaves(how: &'static str) -> (Hub, Shared) {
    hub(move |ctx| async move {
        let input: Option<String> = ctx.input()?;
        if input.is_some() {
            return Ok(Some("next".into()));
        }
        let locks = ctx.lock_entities([&counter("b"), &counter("a"), &counter("b")]).await?;
        assert_eq!(ctx.locked_entities(), Some(vec![counter("a"), counter("b")]));
        ctx.call_operation::<Add>("a", 1).await?;
        match how {
            "release" => {
                locks.release();
                assert_eq!(ctx.locked_entities(), None);
                // Outside, all is allowed again.
                ctx.signal_operation::<Add>("a", 1)?;
            }
            "return" => {}
            "forget" => std::mem::forget(locks),
            "error" => return Err("bad luck".into()),
            "panic" => panic!("bad luck"),
            "again" => ctx.continue_as_new("again")?,
            "wait" => ctx.wait_for_event("never").await?,
            other => panic!("{other}"),
        }
        Ok(None)
    })
}

#[test]
fn locks_are_released_in_their_order_on_every_way_out() {
    for (how, status) in [
        ("release", OrchestrationStatus::Completed),
        ("return", OrchestrationStatus::Completed),
        ("forget", OrchestrationStatus::Completed),
        ("error", OrchestrationStatus::Failed),
        ("panic", OrchestrationStatus::Failed),
        ("again", OrchestrationStatus::Completed),
    ] {
        let (mut hub, counters) = leaves(how);
        hub.start("O", "x", "");
        hub.run();
        assert_eq!(hub.get("x").status, status, "{how} {:?}", hub.output("x"));
        let counters = counters.borrow();
        assert_eq!(counters.locked(), 0, "{how}");
        let log: Vec<_> = counters.log.iter().map(String::as_str).collect();
        let expected = [
            "@counter@a locked",
            "@counter@b locked",
            "@counter@a add",
            "@counter@a released",
            "@counter@b released",
        ];
        assert_eq!(
            log.iter().filter(|line| expected.contains(line)).count() - usize::from(how == "release"),
            5
        );
        assert_eq!(log[..4], expected[..4], "{how}");
        if how != "again" {
            // Ids: lock request, call, releases, end.
            let trace = hub.get("x").trace();
            let sent: Vec<_> = trace.iter().filter(|line| line.ends_with("EventSent")).collect();
            assert_eq!(sent[2..4], ["2 EventSent", "3 EventSent"], "{how} {trace:?}");
            assert!(trace.last().unwrap().ends_with("ExecutionCompleted"), "{how} {trace:?}");
        }
    }
}

#[test]
fn a_terminated_orchestration_releases_its_locks_with_its_end() {
    for suspended in [false, true] {
        let (mut hub, counters) = leaves("wait");
        hub.start("O", "x", "");
        hub.settle();
        assert_eq!(counters.borrow().locked(), 2);
        if suspended {
            hub.send("x", EventKind::ExecutionSuspended { reason: None });
            hub.settle();
        }
        hub.send("x", EventKind::ExecutionTerminated { input: Some("enough".into()) });
        hub.run();
        assert_eq!(hub.get("x").status, OrchestrationStatus::Terminated);
        assert_eq!(counters.borrow().locked(), 0, "suspended: {suspended}");
        let trace = hub.get("x").trace();
        assert_eq!(trace[trace.len() - 3..], ["2 EventSent", "3 EventSent", "4 ExecutionCompleted"]);
    }
}

#[test]
fn code_that_leaves_its_history_releases_its_locks_too() {
    let (mut hub, counters) = leaves("wait");
    hub.start("O", "x", "");
    hub.settle();
    hub.get("x");
    // The replaced code locks the same entities and then does something else.
    let (changed, _) = self::hub(|ctx| async move {
        let _locks = ctx.lock_entities([&counter("a"), &counter("b")]).await?;
        let _: () = ctx.call_activity("Echo", ()).await?;
        Ok(None)
    });
    let history = hub.get("x").history.clone();
    let (orchestrator, settings) = changed.registry["O"].clone();
    let result = Execution::new(orchestrator, settings).advance(&history, &mut []);
    let names: Vec<_> = result
        .actions
        .iter()
        .filter_map(|action| match &action.kind {
            ActionKind::SendEvent { name, target, .. } => Some(format!("{name} {}", target.instance_id)),
            _ => None,
        })
        .collect();
    assert_eq!(names, ["release @counter@a", "release @counter@b"], "{result:?}");
    assert!(matches!(&result.actions.last().unwrap().kind,
        ActionKind::Complete(end) if end.status == OrchestrationStatus::Failed));
    drop(counters);
}

#[test]
fn rules_of_critical_sections_are_errors_and_nothing_is_sent() {
    let (mut hub, counters) = hub(|ctx| async move {
        let (a, c) = (counter("a"), counter("c"));
        let said = |error: OrchestratorError| error.to_string();
        let none: [&EntityId; 0] = [];
        assert!(said(ctx.lock_entities(none).await.unwrap_err()).contains("without an entity"));
        let request = ctx.lock_entities([&a]);
        let early = ctx.call_entity::<_, ()>(&a, "add", 1).await.unwrap_err();
        assert_eq!(early.kind, TaskKind::Rejected);
        assert!(said(ctx.lock_entities([&c]).await.unwrap_err()).contains("cannot be locked"));
        let locks = request.await?;
        assert!(said(ctx.lock_entities([&c]).await.unwrap_err()).contains("cannot be locked"));
        let other = ctx.call_entity::<_, ()>(&c, "add", 1).await.unwrap_err();
        assert!(other.message.contains("only locked"), "{other}");
        assert!(said(ctx.signal_entity(&a, "add", 1).unwrap_err()).contains("signalled"));
        let (first, second) =
            (ctx.call_entity::<_, ()>(&a, "add", 1), ctx.call_entity::<_, ()>(&a, "add", 1));
        assert!(second.await.unwrap_err().message.contains("before it has answered"));
        first.await?;
        ctx.call_entity::<_, ()>(&a, "add", 1).await?;
        let child = ctx.call_sub_orchestration::<_, ()>("Child", ()).await.unwrap_err();
        assert_eq!(child.kind, TaskKind::Rejected);
        // What nobody waits for is allowed, and so are signals to others.
        ctx.signal_entity(&c, "add", 1)?;
        ctx.start_orchestration("Child", (), SubOrchestrationOptions::default())?;
        locks.release();
        let _: () = ctx.call_sub_orchestration("Child", ()).await?;
        Ok(Some(format!("{:?}", ctx.locked_entities())))
    });
    hub.add("Child", raw_orchestrator(|_| async { Ok(None) }));
    hub.start("O", "x", "");
    hub.run();
    assert_eq!(hub.output("x"), "None");
    let mut log = counters.borrow().log.clone();
    log.retain(|line| line.starts_with("@counter@a"));
    assert_eq!(log, ["@counter@a locked", "@counter@a add", "@counter@a add", "@counter@a released"]);
}

#[test]
fn sections_over_the_same_entities_never_overlap_nor_wait_for_each_other() {
    let (mut hub, counters) = hub(|ctx| async move {
        let mut wanted = [counter("a"), counter("b"), counter("c")];
        if ctx.instance_id().as_str().ends_with(['1', '3']) {
            wanted.reverse();
        }
        let locks = ctx.lock_entities(&wanted).await?;
        for entity in &wanted {
            let seen: i64 = ctx.call_entity(entity, "get", ()).await?;
            ctx.sleep(Duration::from_secs(1)).await;
            let _: () = ctx.call_entity(entity, "add", 1).await?;
            let now: i64 = ctx.call_entity(entity, "get", ()).await?;
            assert_eq!(now, seen + 1);
        }
        drop(locks);
        Ok(None)
    });
    for n in 0..5 {
        hub.start("O", &format!("x{n}"), "");
    }
    hub.run();
    for n in 0..5 {
        assert_eq!(hub.get(&format!("x{n}")).status, OrchestrationStatus::Completed);
    }
    let counters = counters.borrow();
    assert!(counters.locked() == 0 && counters.all.values().all(|counter| counter.value == 5));
}

/// `holder` holds `a` for an hour; `x` tries for a minute.
fn impatient(gives_up: bool) -> (Hub, Shared) {
    let (mut hub, counters) = hub(move |ctx| async move {
        let (a, b) = (counter("a"), counter("b"));
        if ctx.instance_id().as_str() == "holder" {
            let _locks = ctx.lock_entities([&a]).await?;
            ctx.sleep(Duration::from_secs(3600)).await;
            return Ok(None);
        }
        let request = ctx.lock_entities([&a, &b]);
        if !gives_up {
            return Ok(Some("left".into()));
        }
        match select(request, ctx.sleep(Duration::from_secs(60))).await {
            Either::Left(_) => Ok(Some("locked".into())),
            Either::Right(()) => {
                // Given up: other entities can be called, another section has to wait.
                let _: () = ctx.call_entity(&counter("c"), "add", 1).await?;
                assert!(ctx.lock_entities([&counter("c")]).await.is_err());
                Ok(Some("gave up".into()))
            }
        }
    });
    hub.start("O", "holder", "");
    hub.settle();
    hub.start("O", "x", "");
    hub.settle();
    (hub, counters)
}

#[test]
fn locks_that_were_given_up_are_released_when_they_are_granted() {
    for gives_up in [true, false] {
        let (mut hub, counters) = impatient(gives_up);
        if gives_up {
            hub.fire_next_timer();
            hub.settle();
        }
        assert_eq!(hub.get("x").status, OrchestrationStatus::Running, "its locks are still to come");
        hub.run();
        assert_eq!(hub.output("x"), if gives_up { "gave up" } else { "left" });
        assert_eq!(counters.borrow().locked(), 0, "{:?}", counters.borrow().log);
        let released = counters.borrow().log.iter().filter(|line| line.ends_with("released")).count();
        assert_eq!(released, 3);
    }
}

#[test]
fn a_termination_does_not_wait_for_locks() {
    let (mut hub, counters) = impatient(false);
    hub.send("x", EventKind::ExecutionTerminated { input: None });
    hub.settle();
    assert_eq!(hub.get("x").status, OrchestrationStatus::Terminated);
    let log = &counters.borrow().log;
    assert_eq!(log[log.len() - 2..], ["@counter@a not held", "@counter@b not held"]);
}

#[test]
fn answers_that_come_again_or_late_change_nothing() {
    let (mut hub, counters) = hub(|ctx| async move {
        let a = counter("a");
        let round: Option<u32> = ctx.input()?;
        let lost = ctx.call_entity::<_, i64>(&a, "get", ());
        drop(lost);
        let value: i64 = ctx.call_entity(&a, "get", ()).await?;
        if round.is_none() {
            ctx.continue_as_new(1)?;
            // The answer comes after the request, and yet is for this generation.
            let _: i64 = ctx.call_entity(&a, "get", ()).await?;
            return Ok(None);
        }
        let event: i64 = ctx.wait_for_event("Go").await?;
        let again: i64 = ctx.call_entity(&a, "get", ()).await?;
        Ok(Some(format!("{value} {event} {again}")))
    });
    hub.start("O", "x", "");
    hub.settle();
    let answers: Vec<_> = counters.borrow().received.iter().map(|(_, request)| request.clone()).collect();
    assert_eq!(answers.len(), 5);
    for request in answers {
        for result in ["1", "2"] {
            hub.queue.push_back(answer(&request, &ResponseMessage::completed(Some(result.into()))));
        }
    }
    hub.settle();
    hub.raise("x", "Go", "9");
    hub.settle();
    assert_eq!(hub.output("x"), "0 9 0");
}

#[test]
fn an_instance_goes_on_with_the_request_ids_of_the_worker_before() {
    let body = |ctx: OrchestrationContext| async move {
        let a = counter("a");
        let locks = ctx.lock_entities([&a]).await?;
        let first: i64 = ctx.call_entity(&a, "get", ()).await?;
        let _: () = ctx.call_entity(&a, "add", 2).await?;
        let second: i64 = ctx.call_entity(&a, "get", ()).await?;
        locks.release();
        Ok(Some(format!("{first} {second}")))
    };
    let (mut old, counters) = hub(body);
    old.registry.get_mut("O").unwrap().1 = ReplaySettings::isolated();
    old.start("O", "x", "");
    let mut steps = 0;
    // One message after the other, and a worker with other ids after each of them.
    while let Some(message) = old.queue.pop_front() {
        let id = message.target.instance_id.clone();
        let settings = if steps % 2 == 0 { ReplaySettings::isolated() } else { ReplaySettings::default() };
        let body: std::sync::Arc<dyn Orchestrator> = std::sync::Arc::new(raw_orchestrator(body));
        let mut next = Hub::new();
        next.registry.insert("O".into(), (body, settings));
        next.entities = old.entities.take();
        if let Some(instance) = old.instances.get(&id) {
            next.adopt(&id, instance.history.clone());
        }
        next.queue = std::mem::take(&mut old.queue);
        next.episode(&id, vec![message]);
        for (id, instance) in old.instances.drain() {
            next.instances.entry(id).or_insert(instance);
        }
        old = next;
        steps += 1;
    }
    assert!(steps > 8, "{steps}");
    assert_eq!(old.output("x"), "0 2");
    assert_eq!(counters.borrow().locked(), 0);
    let received = &counters.borrow().received;
    assert!(received.windows(2).all(|pair| pair[1].1.predecessor == pair[0].1.timestamp), "{received:?}");
}

#[test]
fn delayed_requests_match_whatever_time_their_name_says() {
    let (mut hub, _) = hub(|ctx| async move {
        ctx.signal_operation_at::<Add>("a", 1, ctx.now() + Duration::from_secs(3600))?;
        ctx.wait_for_event::<()>("never").await?;
        Ok(None)
    });
    hub.start("O", "x", "");
    hub.settle();
    let mut history = hub.get("x").history.clone();
    for event in &mut history {
        if let EventKind::EventSent { name, .. } = &mut event.kind {
            *name = Some("op@2026-01-01T00:00:00.0000000Z".into());
        }
    }
    let (orchestrator, settings) = hub.registry["O"].clone();
    assert_eq!(Execution::new(orchestrator, settings).advance(&history, &mut []).actions, []);
}
