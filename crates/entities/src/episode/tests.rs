use proptest::prelude::*;
use taskhub_core::{FailureDetails, SeededIds};
use uuid::Uuid;

use super::*;
use crate::{Sections, Stamp};

const ENTITY: &str = "@counter@a";

fn now() -> Timestamp {
    Timestamp::parse("2026-01-15T10:00:00Z").unwrap()
}

fn raised(name: &str, input: Option<String>) -> TaskMessage {
    let kind = EventKind::EventRaised { name: Some(name.into()), input, parent_trace_context: None };
    TaskMessage::new(HistoryEvent::message(now(), kind), OrchestrationInstance::current(ENTITY))
}

fn op(request: &RequestMessage) -> TaskMessage {
    raised("op", Some(request.to_json()))
}

fn id(n: u128) -> Uuid {
    Uuid::from_u128(n)
}

fn signal(operation: &str) -> RequestMessage {
    RequestMessage::signal(id(1), operation, None)
}

fn call(n: u128, operation: &str, from: &str) -> RequestMessage {
    RequestMessage::call(id(n), operation, None).from_instance(from, Some("e".into()))
}

fn lock(n: u128, from: &str, keys: &[&str]) -> RequestMessage {
    let set = keys.iter().map(|key| EntityId::new("counter", *key).unwrap()).collect();
    RequestMessage::lock(id(n), set).from_instance(from, Some("e".into()))
}

fn release(from: &str) -> TaskMessage {
    raised("release", Some(ReleaseMessage::new(from, "x").to_json()))
}

/// An entity as it is stored, with its batches run by a pretended user: the state counts operations, `get`
/// answers it, `stop` ends the batch there.
struct Hub {
    history: Vec<HistoryEvent>,
    now: Timestamp,
    ids: SeededIds,
    limit: usize,
    ran: Vec<String>,
}

impl Hub {
    fn new() -> Self {
        let started = |input: Option<&str>| {
            EventKind::ExecutionStarted(Box::new(ExecutionStarted {
                version: Some(String::new()),
                input: input.map(str::to_owned),
                ..ExecutionStarted::new(OrchestrationInstance::new(ENTITY, "first"), ENTITY)
            }))
        };
        let history = vec![HistoryEvent::message(now(), started(None))];
        Self { history, now: now(), ids: SeededIds::new(1), limit: 0, ran: Vec::new() }
    }

    fn with_state(mut self, json: &str) -> Self {
        let EventKind::ExecutionStarted(started) = &mut self.history[0].kind else { unreachable!() };
        started.input = Some(json.to_owned());
        self
    }

    fn scheduler(&self) -> SchedulerState {
        let input = self.history.iter().find_map(|event| match &event.kind {
            EventKind::ExecutionStarted(started) => started.input.clone(),
            _ => None,
        });
        input.map_or_else(SchedulerState::default, |input| SchedulerState::from_json(&input).unwrap())
    }

    /// Runs one batch from what is stored; returns its messages as `target name input`.
    fn run(&mut self, messages: Vec<TaskMessage>) -> Vec<String> {
        self.run_with(messages, Vec::new())
    }

    /// Runs a batch and those that follow by themselves; their messages to others.
    fn run_all(&mut self, messages: Vec<TaskMessage>) -> Vec<String> {
        let (mut sent, mut others) = (self.run(messages), Vec::new());
        loop {
            let before = sent.len();
            sent.retain(|message| message != "@counter@a continue");
            let goes_on = sent.len() < before;
            others.append(&mut sent);
            if !goes_on {
                return others;
            }
            sent = self.run(vec![raised("continue", None)]);
        }
    }

    fn run_with(&mut self, messages: Vec<TaskMessage>, actions: Vec<EntityAction>) -> Vec<String> {
        let mut entity = Entity::from_history(ENTITY.into(), self.history.clone()).unwrap();
        let settings = EntitySettings { max_entity_operation_batch_size: self.limit };
        let batch = entity.receive(messages, self.now, &settings).unwrap().unwrap();
        let mut count: u64 = entity.state().map_or(0, |state| state.parse().unwrap());
        let mut result = BatchResult { actions, ..BatchResult::default() };
        for operation in batch.operations() {
            if operation.operation == "stop" {
                break;
            }
            self.ran.push(operation.operation.clone());
            count += 1;
            result.results.push(ResponseMessage::completed(Some(count.to_string())));
        }
        result.state = (count > 0).then(|| count.to_string());
        let commit = entity.commit(batch, result, self.now, &self.ids);
        assert!(commit.replaces_history && commit.status == OrchestrationStatus::Running);
        let names: Vec<_> = commit.new_events.iter().map(HistoryEvent::name).collect();
        assert_eq!(names, ["OrchestratorStarted", "ExecutionStarted", "OrchestratorCompleted"]);
        assert_ne!(commit.instance.execution_id, Some("first".into()));
        self.history = commit.new_events;
        assert_eq!(commit.custom_status, Some(EntityStatus::of(&self.scheduler()).to_json()));
        commit.orchestrator_messages.iter().map(text).collect()
    }

    fn ran(&mut self) -> String {
        std::mem::take(&mut self.ran).join(" ")
    }
}

fn text(message: &TaskMessage) -> String {
    let OrchestrationInstance { instance_id, execution_id } = &message.target;
    let execution = execution_id.as_ref().map(|e| format!("/{e}")).unwrap_or_default();
    match &message.event.kind {
        EventKind::EventRaised { name: Some(name), input, .. } => {
            let input = input.as_deref().map(|i| format!(" {i}")).unwrap_or_default();
            format!("{instance_id}{execution} {name}{input}")
        }
        other => format!("{instance_id} {}", other.name()),
    }
}

#[test]
fn operations_run_in_order_and_calls_are_answered() {
    let mut hub = Hub::new();
    let sent = hub.run(vec![op(&signal("a")), op(&call(7, "b", "order-1")), op(&signal("c"))]);
    assert_eq!(hub.ran(), "a b c");
    assert_eq!(sent, [r#"order-1/e 00000000-0000-0000-0000-000000000007 {"result":"2"}"#]);
    assert_eq!(hub.scheduler().state.as_deref(), Some("3"));
    hub.run(vec![op(&signal("d"))]);
    assert_eq!(hub.scheduler().state.as_deref(), Some("4"));
}

#[test]
fn a_message_of_an_old_execution_is_left_out_and_one_without_a_start_is_stale() {
    let mut hub = Hub::new();
    let mut old = op(&signal("old"));
    old.target.execution_id = Some("before".into());
    let mut current = op(&signal("new"));
    current.target.execution_id = Some("first".into());
    hub.run(vec![old, current]);
    assert_eq!(hub.ran(), "new");
    let mut unknown = Entity::from_history(ENTITY.into(), Vec::new()).unwrap();
    let messages = vec![op(&signal("a"))];
    assert!(unknown.receive(messages, now(), &EntitySettings::default()).unwrap().is_none());
    let history = vec![HistoryEvent::message(now(), EventKind::OrchestratorStarted)];
    let mut broken = Entity::from_history(ENTITY.into(), history).unwrap();
    let start = TaskMessage::new(Hub::new().history.remove(0), OrchestrationInstance::current(ENTITY));
    assert!(broken.receive(vec![start], now(), &EntitySettings::default()).unwrap().is_none());
}

#[test]
fn batches_are_bounded_and_go_on_by_themselves() {
    let mut hub = Hub { limit: 2, ..Hub::new() };
    let five: Vec<_> = ["a", "b", "c", "d", "e"].iter().map(|o| op(&signal(o))).collect();
    assert_eq!(hub.run(five), ["@counter@a continue"]);
    assert_eq!((hub.ran(), hub.scheduler().queue.len()), ("a b".into(), 3));
    assert_eq!(hub.run(vec![raised("continue", None)]), ["@counter@a continue"]);
    assert_eq!(hub.ran(), "c d");
    assert!(hub.run(vec![raised("continue", None)]).is_empty());
    assert_eq!((hub.ran(), hub.scheduler().queue.len()), ("e".into(), 0));
    let exactly_two = vec![op(&signal("f")), op(&signal("g"))];
    assert!(hub.run(exactly_two).is_empty());
}

#[test]
fn operations_that_were_not_run_wait_with_the_lock_request_behind_them() {
    let mut hub = Hub::new();
    let messages = ["a", "stop", "b"].map(|o| op(&signal(o)));
    let messages = messages.into_iter().chain([op(&lock(3, "order-1", &["a"])), op(&signal("c"))]).collect();
    assert_eq!(hub.run(messages), ["@counter@a continue"]);
    assert_eq!(hub.ran(), "a");
    let waiting: Vec<_> = hub.scheduler().queue.into_iter().map(|r| r.operation).collect();
    let expected = [Some("stop"), Some("b"), None, Some("c")].map(|o| o.map(str::to_owned));
    assert_eq!(waiting, expected);
    assert_eq!(hub.scheduler().locked_by, None);
}

#[test]
fn locks_go_from_entity_to_entity_and_the_last_one_answers() {
    let mut hub = Hub::new();
    let request = lock(3, "order-1", &["a", "b"]);
    let sent = hub.run(vec![op(&signal("x")), op(&request), op(&signal("y"))]);
    assert_eq!(sent, ["@counter@a continue"]);
    assert_eq!((hub.ran(), hub.scheduler().locked_by.as_deref()), ("x".into(), Some("order-1")));
    assert_eq!(hub.scheduler().queue.len(), 2);
    // Nobody learns of a lock before it is stored. A worker of .NET goes on from here in the same way.
    let mut dotnet = SchedulerState { sections: Sections::default(), ..hub.scheduler() };
    assert!(dotnet.may_dequeue() && dotnet.queue.pop_front().is_some_and(|r| r == request));
    let sent = hub.run(vec![raised("continue", None)]);
    let (target, forwarded) = sent[0].split_once(" op ").unwrap();
    let forwarded = RequestMessage::from_json(forwarded).unwrap();
    assert_eq!((sent.len(), target), (1, "@counter@b"));
    let expected = RequestMessage { position: 1, section: Some(request.id), ..request };
    assert_eq!(forwarded, expected);
    let answer = Hub::new().run_all(vec![op(&forwarded)]);
    let expected =
        r#"order-1/e 00000000-0000-0000-0000-000000000003 {"result":"Lock Acquisition Completed"}"#;
    assert_eq!(answer, [expected]);
}

#[test]
fn while_it_is_locked_only_the_holder_is_served_and_first() {
    let mut hub = Hub::new();
    hub.run(vec![op(&lock(3, "order-1", &["a"]))]);
    hub.run(vec![op(&signal("later")), op(&call(4, "mine", "order-1")), op(&call(5, "theirs", "order-2"))]);
    assert_eq!(hub.ran(), "mine");
    assert_eq!(hub.scheduler().queue.len(), 2);
    hub.run(vec![release("order-2")]);
    assert_eq!((hub.ran().as_str(), hub.scheduler().locked_by.as_deref()), ("", Some("order-1")));
    hub.run(vec![release("order-1")]);
    assert_eq!((hub.ran(), hub.scheduler().locked_by), ("later theirs".into(), None));
}

#[test]
fn a_lock_of_nobody_is_none_and_a_call_of_nobody_is_not_answered() {
    let mut hub = Hub::new();
    let mut nobody = lock(3, "", &["a"]);
    assert!(hub.run(vec![op(&nobody)]).is_empty());
    nobody.parent_instance_id = None;
    nobody.position = u32::MAX;
    let sent = hub.run(vec![op(&nobody), op(&RequestMessage::call(id(1), "a", None))]);
    assert_eq!(sent, ["@counter@a continue"]);
    assert!(hub.run(vec![raised("continue", None)]).is_empty());
    assert_eq!((hub.ran(), hub.scheduler().locked_by), ("a".into(), None));
}

/// A lock request with the stamp of the orchestration.
fn stamped(request: RequestMessage, seconds: u64) -> TaskMessage {
    op(&RequestMessage { timestamp: Stamp::utc(now() + Duration::from_secs(seconds)), ..request })
}

#[test]
fn a_lock_request_that_comes_again_is_dropped_before_and_after_its_release() {
    for position in [0, 1] {
        let mut hub = Hub::new();
        let request = RequestMessage { position, ..lock(3, "order-1", &["a", "a2", "a3"]) };
        assert_eq!(hub.run_all(vec![op(&request)]).len(), 1);
        assert_eq!(hub.run_all(vec![op(&request), op(&call(4, "mine", "order-1"))]).len(), 1);
        assert_eq!(hub.ran(), "mine");
        hub.run_all(vec![raised(
            "release",
            Some(ReleaseMessage::new("order-1", id(3).to_string()).to_json()),
        )]);
        assert!(hub.run_all(vec![op(&request), op(&signal("others"))]).is_empty());
        assert_eq!((hub.ran(), hub.scheduler().locked_by), ("others".into(), None));
    }
}

#[test]
fn a_lock_request_that_comes_after_its_release_is_dropped() {
    let mut hub = Hub::new();
    hub.run_all(vec![raised("release", Some(ReleaseMessage::new("order-1", id(3).to_string()).to_json()))]);
    assert!(hub.run_all(vec![op(&lock(3, "order-1", &["a", "b"])), op(&signal("x"))]).is_empty());
    assert_eq!((hub.ran(), hub.scheduler().locked_by), ("x".into(), None));
}

#[test]
fn locks_asked_for_by_two_runs_of_an_episode_are_granted_to_both_and_released_once() {
    // The run that is stored may be the older one, and come last.
    for stored in [3, 4] {
        for order in [[3, 4], [4, 3]] {
            let mut hub = Hub::new();
            for n in order {
                let request = lock(n, "order-1", &["a", "b"]);
                let sent = hub.run_all(vec![stamped(request, n as u64)]);
                let forwarded = RequestMessage::from_json(sent[0].split_once(" op ").unwrap().1).unwrap();
                assert_eq!((forwarded.id, forwarded.section), (id(n), Some(id(order[0]))));
            }
            let release = ReleaseMessage::new("order-1", id(stored).to_string()).to_json();
            hub.run_all(vec![raised("release", Some(release)), stamped(lock(4, "order-1", &["a", "b"]), 4)]);
            assert_eq!(hub.scheduler().locked_by, None);
        }
    }
}

#[test]
fn the_request_of_a_second_run_does_not_wait_behind_others_when_the_first_one_is_granted() {
    let mut hub = Hub::new();
    hub.run_all(vec![op(&lock(2, "order-2", &["a"]))]);
    let waiting = vec![
        stamped(lock(3, "order-1", &["a"]), 3),
        op(&signal("others")),
        stamped(lock(4, "order-1", &["a"]), 4),
    ];
    assert!(hub.run_all(waiting).is_empty());
    let release = ReleaseMessage::new("order-2", id(2).to_string()).to_json();
    let answers = hub.run_all(vec![raised("release", Some(release))]);
    assert_eq!(answers.len(), 2, "{answers:?}");
    assert_eq!((hub.ran(), hub.scheduler().queue.len()), ("".into(), 1));
}

#[test]
fn a_second_run_that_comes_when_the_section_has_ended_is_dropped() {
    let mut hub = Hub::new();
    hub.run_all(vec![stamped(lock(3, "order-1", &["a"]), 3)]);
    hub.run_all(vec![raised("release", Some(ReleaseMessage::new("order-1", id(3).to_string()).to_json()))]);
    assert!(hub.run_all(vec![stamped(lock(4, "order-1", &["a"]), 4)]).is_empty());
    assert_eq!(hub.scheduler().locked_by, None);
}

#[test]
fn a_release_that_comes_late_does_not_end_the_holders_next_section() {
    let mut hub = Hub::new();
    let release = |n| raised("release", Some(ReleaseMessage::new("order-1", id(n).to_string()).to_json()));
    hub.run_all(vec![stamped(lock(3, "order-1", &["a"]), 3)]);
    let next = RequestMessage {
        predecessor: Stamp::utc(now() + Duration::from_secs(3)),
        ..lock(4, "order-1", &["a", "b"])
    };
    assert_eq!(hub.run_all(vec![stamped(next, 10)]).len(), 1);
    hub.run_all(vec![release(3), op(&signal("others"))]);
    assert_eq!((hub.ran(), hub.scheduler().locked_by.as_deref()), ("".into(), Some("order-1")));
    hub.run_all(vec![release(3)]);
    assert_eq!(hub.scheduler().locked_by.as_deref(), Some("order-1"));
    hub.run_all(vec![release(4)]);
    assert_eq!((hub.ran(), hub.scheduler().locked_by), ("others".into(), None));
}

#[test]
fn what_an_entity_remembers_of_locks_is_gone_half_an_hour_after_the_release() {
    let mut hub = Hub::new();
    hub.run_all(vec![op(&lock(3, "order-1", &["a"])), op(&signal("x"))]);
    hub.run_all(vec![raised("release", Some(ReleaseMessage::new("order-1", id(3).to_string()).to_json()))]);
    assert!(
        hub.scheduler()
            .to_json()
            .contains(r#""sections":[{"requests":["00000000-0000-0000-0000-000000000003"]"#)
    );
    hub.now = now() + Duration::from_secs(30 * 60 + 1);
    hub.run_all(vec![op(&signal("x"))]);
    assert_eq!(hub.scheduler().to_json(), r#"{"exists":true,"state":"2","sorter":{}}"#);
}

#[test]
fn a_state_that_lost_what_it_remembered_is_locked_and_released_as_by_dotnet() {
    let mut hub = Hub::new().with_state(r#"{"lockedBy":"order-1","sorter":{}}"#);
    hub.run_all(vec![release("order-1"), op(&signal("x"))]);
    assert_eq!((hub.ran(), hub.scheduler().locked_by), ("x".into(), None));
}

#[test]
fn requests_that_come_too_early_are_sent_again_for_when_they_are_due() {
    let mut hub = Hub::new();
    let day = Duration::from_secs(24 * 3600);
    let due = |delay| RequestMessage { due_at: Some(now() + delay), ..signal("late") };
    let sent = hub.run(vec![op(&due(day * 2)), op(&due(day * 9)), op(&due(Duration::from_millis(100)))]);
    let expected = [
        format!("@counter@a op@2026-01-17T10:00:00.0000000Z {}", due(day * 2).to_json()),
        format!("@counter@a op@2026-01-21T10:00:00.0000000Z {}", due(day * 9).to_json()),
    ];
    assert_eq!((hub.ran(), sent), ("late".into(), expected.to_vec()));
    hub.now = now() + day * 2;
    assert!(hub.run(vec![raised("op@x", Some(due(day * 2).to_json()))]).is_empty());
    assert_eq!(hub.ran(), "late");
}

#[test]
fn actions_are_done_in_order_with_stamps_and_a_parent_that_does_not_wait() {
    let mut hub = Hub::new();
    let signal_to = |due_at| EntityAction::SendSignal {
        instance_id: "@counter@b".into(),
        operation: "add".into(),
        input: Some("11".into()),
        due_at,
    };
    let start = EntityAction::StartNewOrchestration {
        instance_id: "started".into(),
        name: "Hello".into(),
        version: None,
        input: Some("5".into()),
        scheduled_start_at: None,
    };
    let late = now() + Duration::from_secs(9 * 24 * 3600);
    let actions = vec![signal_to(None), start, signal_to(Some(late)), signal_to(None)];
    let mut entity = Entity::from_history(ENTITY.into(), hub.history.clone()).unwrap();
    let batch = entity.receive(vec![op(&signal("x"))], now(), &EntitySettings::default()).unwrap().unwrap();
    let results = vec![ResponseMessage::default()];
    let result = BatchResult { results, actions: actions.clone(), state: None, failure: None };
    let commit = entity.commit(batch, result, now(), &SeededIds::new(1));
    let EventKind::ExecutionStarted(started) = &commit.orchestrator_messages[1].event.kind else { panic!() };
    let parent = started.parent.as_ref().unwrap();
    assert_eq!((parent.name.as_deref(), parent.task_schedule_id), (Some(ENTITY), 1));
    assert_eq!(parent.instance, OrchestrationInstance::new(ENTITY, "first"));
    assert_eq!(started.tags.as_ref().and_then(|tags| tags.get(FIRE_AND_FORGET_TAG)), Some(""));
    assert_eq!(started.instance, commit.orchestrator_messages[1].target);

    let sent = hub.run_with(vec![op(&signal("x"))], actions);
    let requests: Vec<_> = [0, 2, 3]
        .iter()
        .map(|n| sent[*n].split_once('{').unwrap().1)
        .map(|json| RequestMessage::from_json(&format!("{{{json}")).unwrap())
        .collect();
    assert!(requests.iter().all(|r| r.parent_instance_id.as_deref() == Some(ENTITY)));
    assert!(requests.iter().all(|r| r.parent_execution_id.is_none() && r.is_signal));
    assert_eq!(requests[1].due_at, Some(late));
    assert!(sent[2].starts_with("@counter@b op@2026-01-21T10:00:00.0000000Z {"));
    assert_eq!(requests[2].predecessor, requests[0].timestamp);
    assert!(
        hub.scheduler()
            .to_json()
            .contains(r#""LastSentToInstance":{"@counter@b":"2026-01-15T10:00:00.0000001"}"#)
    );
}

#[test]
fn a_batch_that_fails_as_a_whole_answers_every_caller() {
    let mut hub = Hub::new();
    hub.run(vec![op(&signal("a"))]);
    let mut entity = Entity::from_history(ENTITY.into(), hub.history.clone()).unwrap();
    let messages = vec![op(&call(3, "x", "o")), op(&call(4, "y", "o")), op(&signal("z"))];
    let batch = entity.receive(messages, now(), &EntitySettings::default()).unwrap().unwrap();
    let result = BatchResult {
        results: vec![ResponseMessage::completed(None)],
        state: entity.state().map(str::to_owned),
        failure: Some(FailureDetails::new("E", "no")),
        ..BatchResult::default()
    };
    let commit = entity.commit(batch, result, now(), &hub.ids);
    let sent: Vec<_> = commit.orchestrator_messages.iter().map(text).collect();
    let failed = r#"{"result":"no","exceptionType":"entity dispatch failed","failureDetails":{"ErrorType":"E","ErrorMessage":"no","StackTrace":null,"InnerFailure":null,"IsNonRetriable":false,"Properties":null}}"#;
    let expected = [
        r#"o/e 00000000-0000-0000-0000-000000000003 {"result":null}"#.to_owned(),
        format!("o/e 00000000-0000-0000-0000-000000000004 {failed}"),
    ];
    assert_eq!(sent, expected);
    assert_eq!(entity.state(), Some("1"));
}

#[test]
fn a_suspension_is_honoured_for_ten_seconds_or_until_the_reminder_comes() {
    let suspended = r#"{"exists":true,"state":"1","suspended":true,"sorter":{}}"#;
    let mut hub = Hub::new().with_state(suspended);
    hub.run(vec![op(&signal("a"))]);
    assert_eq!((hub.ran(), hub.scheduler().queue.len(), hub.scheduler().suspended), ("".into(), 1, false));
    hub.run(vec![raised("continue", None)]);
    assert_eq!(hub.ran(), "a");
    let mut hub = Hub::new().with_state(suspended);
    hub.run(vec![op(&signal("a")), raised("continue", None)]);
    assert_eq!(hub.ran(), "a");
    let mut hub = Hub { now: now() + Duration::from_millis(10_001), ..Hub::new().with_state(suspended) };
    hub.run(vec![op(&signal("a"))]);
    assert_eq!(hub.ran(), "a");
}

#[test]
fn what_cannot_be_read_is_left_out_and_told() {
    let mut hub = Hub::new();
    let mut entity = Entity::from_history(ENTITY.into(), hub.history.clone()).unwrap();
    let unreadable = [raised("operation", Some("{}".into())), raised("release", None)];
    let messages = vec![unreadable[0].clone(), op(&signal("a")), unreadable[1].clone()];
    let batch = entity.receive(messages.clone(), now(), &EntitySettings::default()).unwrap().unwrap();
    let names: Vec<_> = batch.unreadable().iter().map(|u| u.event_name.as_str()).collect();
    assert_eq!((names, batch.operations().len()), (vec!["operation", "release"], 1));
    assert!(batch.unreadable().iter().map(|u| u.message.as_ref()).eq(unreadable.iter().map(Some)));
    assert!(!batch.is_idle());
    let batch = entity.receive(unreadable.to_vec(), now(), &EntitySettings::default()).unwrap().unwrap();
    assert!(batch.is_idle());
    hub.run(messages);
    assert_eq!(hub.ran(), "a");
    let history = Hub::new().with_state("\"input of an orchestration\"").history;
    assert!(matches!(Entity::from_history(ENTITY.into(), history), Err(EntityError::State { .. })));
}

#[test]
fn a_start_without_requests_makes_an_entity_that_does_not_exist() {
    let start = TaskMessage::new(Hub::new().history.remove(0), OrchestrationInstance::current(ENTITY));
    let mut hub = Hub { history: Vec::new(), ..Hub::new() };
    assert!(hub.run(vec![start.clone(), start]).is_empty());
    assert_eq!(hub.scheduler().to_json(), r#"{"sorter":{}}"#);
}

#[test]
fn an_entity_in_memory_goes_on_as_one_that_is_read_again() {
    let mut hub = Hub::new();
    let mut live = Entity::from_history(ENTITY.into(), hub.history.clone()).unwrap();
    let ids = SeededIds::new(1);
    for n in 0..4u128 {
        let messages = vec![op(&call(n, "x", "o")), op(&lock(n + 10, "o", &["a", "b"])), release("o")];
        let mut commit = || {
            let batch = live.receive(messages.clone(), now(), &EntitySettings::default()).unwrap().unwrap();
            let results = batch.operations().map(|_| ResponseMessage::default()).collect();
            live.commit(batch, BatchResult { results, ..BatchResult::default() }, now(), &ids)
        };
        let in_memory = commit();
        let mut read = Entity::from_history(ENTITY.into(), hub.history.clone()).unwrap();
        let batch = read.receive(messages.clone(), now(), &EntitySettings::default()).unwrap().unwrap();
        let results = batch.operations().map(|_| ResponseMessage::default()).collect();
        let from_store =
            read.commit(batch, BatchResult { results, ..BatchResult::default() }, now(), &hub.ids);
        assert_eq!(in_memory.new_events, from_store.new_events);
        assert_eq!(in_memory.orchestrator_messages, from_store.orchestrator_messages);
        hub.history = from_store.new_events;
    }
}

/// Requests as a hostile or confused sender may make them.
fn any_request() -> impl Strategy<Value = RequestMessage> {
    let text =
        || prop_oneof![Just("order-1"), Just("order-2"), Just("@counter@b"), Just(""), Just("é\u{2028}")];
    let at = || prop_oneof![Just(0i64), 0i64..4_000_000_000_000, Just(i64::MAX)];
    let stamp =
        move || at().prop_map(|ticks| Stamp::utc(Timestamp::from_ticks(now().ticks().saturating_add(ticks))));
    let set = prop::option::of(prop::collection::vec(prop_oneof![Just("a"), Just("b")], 0..3));
    let due = prop::option::weighted(0.2, at());
    let parent = prop::option::of(text());
    (text(), any::<bool>(), parent, prop::option::of(text()), due, stamp(), stamp(), set, 0u32..4).prop_map(
        |(operation, is_signal, parent, execution, due, timestamp, predecessor, set, position)| {
            RequestMessage {
                is_signal,
                parent_instance_id: parent.map(str::to_owned),
                parent_execution_id: execution.map(str::to_owned),
                due_at: due.map(|ticks| Timestamp::from_ticks(now().ticks().saturating_add(ticks))),
                timestamp,
                predecessor,
                lock_set: set
                    .map(|keys| keys.iter().map(|key| EntityId::new("counter", *key).unwrap()).collect()),
                position,
                ..RequestMessage::call(id(1), operation, None)
            }
        },
    )
}

fn any_message() -> impl Strategy<Value = TaskMessage> {
    let names = || prop_oneof![Just("op"), Just("release"), Just("continue"), Just("op@x"), Just("")];
    let texts = prop_oneof![
        Just("order-1".to_owned()).prop_map(|parent| ReleaseMessage::new(parent, "x").to_json()),
        "[\\[{\":,}\\]a0-9]{0,12}",
    ];
    prop_oneof![
        4 => any_request().prop_map(|request| op(&request)),
        1 => (names(), prop::option::of(texts)).prop_map(|(name, input)| raised(name, input)),
    ]
}

proptest! {
    /// Nothing that is sent to an entity stops it: each batch is stored, read again and goes on; and a request
    /// that is runnable is never left without a message that brings the next batch.
    #[test]
    fn an_entity_survives_whatever_is_sent_to_it(
        batches in prop::collection::vec(prop::collection::vec(any_message(), 0..8), 1..8),
        limit in 0usize..3,
    ) {
        let mut hub = Hub { limit, ..Hub::new() };
        for messages in batches {
            hub.now = hub.now + Duration::from_secs(700);
            let sent = hub.run(messages);
            let state = hub.scheduler();
            let continues = sent.iter().any(|message| message == "@counter@a continue");
            prop_assert!(!state.may_dequeue() || continues, "{sent:?} {}", state.to_json());
            prop_assert_eq!(SchedulerState::from_json(&state.to_json()), Ok(state));
        }
        // Reminders come to an end.
        for _ in 0..200 {
            if hub.run(vec![raised("continue", None)]).is_empty() {
                break;
            }
        }
        prop_assert!(!hub.scheduler().may_dequeue());
    }

    #[test]
    fn no_text_makes_a_reader_panic(text in prop_oneof![".{0,60}", "[\\[{\":,}\\]a-z0-9]{0,60}"]) {
        let _ = RequestMessage::from_json(&text);
        let _ = ReleaseMessage::from_json(&text);
        let _ = ResponseMessage::from_json(&text);
        let _ = SchedulerState::from_json(&text);
        let _ = EntityStatus::from_json(&text);
    }
}
