use std::sync::Arc;
use std::time::Duration;

use taskhub_core::{ExecutionId, ParentInstance, SPLIT_TIMER_ID, SeededIds};

use super::*;
use crate::*;

#[derive(Debug)]
struct Fixed;

impl Clock for Fixed {
    fn now(&self) -> Timestamp {
        at(0)
    }
}

fn at(seconds: u64) -> Timestamp {
    Timestamp::from_ticks(638_000_000_000_000_000) + Duration::from_secs(seconds)
}

fn started() -> ExecutionStarted {
    ExecutionStarted {
        version: Some("1.0".into()),
        generation: Some(3),
        ..ExecutionStarted::new(OrchestrationInstance::new("i", "e1"), "O")
    }
}

fn parent() -> ParentInstance {
    ParentInstance {
        name: Some("P".into()),
        instance: OrchestrationInstance::new("p", "pe"),
        task_schedule_id: 7,
        version: None,
    }
}

fn message(execution_id: Option<&str>, kind: EventKind) -> TaskMessage {
    let target =
        OrchestrationInstance { instance_id: "i".into(), execution_id: execution_id.map(ExecutionId::new) };
    TaskMessage::new(HistoryEvent::message(at(0), kind), target)
}

fn start() -> TaskMessage {
    message(Some("e1"), EventKind::ExecutionStarted(Box::new(started())))
}

fn child_start() -> TaskMessage {
    let started = ExecutionStarted { parent: Some(parent()), ..started() };
    message(Some("e1"), EventKind::ExecutionStarted(Box::new(started)))
}

fn raised(execution_id: Option<&str>, name: &str) -> TaskMessage {
    let kind = EventKind::EventRaised { name: Some(name.into()), input: None, parent_trace_context: None };
    message(execution_id, kind)
}

fn rewound() -> TaskMessage {
    let kind = EventKind::ExecutionRewound {
        reason: None,
        parent_execution_id: None,
        instance_id: None,
        parent_trace_context: None,
    };
    message(None, kind)
}

/// Answers each turn with the next list of actions.
struct Scripted(std::vec::IntoIter<Vec<ActionKind>>);

impl EpisodeExecutor for Scripted {
    fn execute(&mut self, _: Turn<'_>) -> Result<EpisodeResult, EpisodeError> {
        let actions = self.0.next().unwrap_or_default();
        let actions =
            actions.into_iter().zip(0..).map(|(kind, id)| OrchestratorAction { id, kind }).collect();
        Ok(EpisodeResult { actions, ..EpisodeResult::default() })
    }
}

fn scripted(turns: Vec<Vec<ActionKind>>) -> Scripted {
    Scripted(turns.into_iter())
}

fn run_in(
    state: &mut RuntimeState,
    messages: Vec<TaskMessage>,
    executor: &mut dyn EpisodeExecutor,
    settings: &EpisodeSettings,
) -> Result<EpisodeOutcome, EpisodeError> {
    run_episode(state, messages, executor, settings, &Fixed, &SeededIds::new(1))
}

fn run(messages: Vec<TaskMessage>, turns: Vec<Vec<ActionKind>>) -> EpisodeCommit {
    let mut state = RuntimeState::default();
    commit(run_in(&mut state, messages, &mut scripted(turns), &EpisodeSettings::default()).unwrap())
}

#[track_caller]
fn commit(outcome: EpisodeOutcome) -> EpisodeCommit {
    match outcome {
        EpisodeOutcome::Commit(commit) => commit,
        other => panic!("{other:?}"),
    }
}

fn names(events: &[HistoryEvent]) -> Vec<String> {
    let name = |event: &HistoryEvent| match &event.kind {
        EventKind::EventRaised { name, .. } => name.clone().unwrap_or_default(),
        _ => event.name().to_owned(),
    };
    let mark = |name: &String| name != "OrchestratorStarted" && name != "OrchestratorCompleted";
    events.iter().map(name).filter(mark).collect()
}

fn end(status: OrchestrationStatus, result: &str) -> ActionKind {
    ActionKind::Complete(CompletionAction::new(status, Some(result.into())))
}

fn task(name: &str) -> ActionKind {
    ActionKind::ScheduleTask { name: name.into(), version: None, input: Some("[1]".into()), tags: None }
}

#[track_caller]
fn check_accepted(messages: Vec<TaskMessage>, expected: &[&str]) {
    assert_eq!(names(&run(messages, vec![]).new_events), expected);
}

#[test]
fn a_start_is_handled_before_the_events_that_overtook_it() {
    check_accepted(vec![start(), raised(None, "a")], &["ExecutionStarted", "a"]);
    check_accepted(vec![raised(None, "a"), start(), raised(None, "b")], &["ExecutionStarted", "a", "b"]);
    check_accepted(
        vec![raised(None, "a"), raised(Some("e1"), "b"), start()],
        &["ExecutionStarted", "a", "b"],
    );
}

#[test]
fn a_start_moves_only_behind_messages_of_another_execution() {
    let order = |messages: Vec<TaskMessage>| {
        let mut messages = messages;
        ensure_started_is_first(&mut messages);
        let events: Vec<_> = messages.into_iter().map(|m| m.event).collect();
        names(&events)
    };
    let expected = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
    // Without an execution id before it: to the front.
    assert_eq!(
        order(vec![raised(None, "a"), raised(None, "b"), start()]),
        expected(&["ExecutionStarted", "a", "b"])
    );
    // Behind the messages of an old execution, before those without id that followed them.
    assert_eq!(
        order(vec![raised(Some("e0"), "a"), raised(None, "b"), start()]),
        expected(&["a", "ExecutionStarted", "b"])
    );
    // Messages of its own execution do not hold it back.
    assert_eq!(
        order(vec![raised(Some("e0"), "a"), raised(Some("e1"), "b"), start()]),
        expected(&["a", "ExecutionStarted", "b"])
    );
    // Starts of sub-orchestrations stay.
    assert_eq!(order(vec![raised(None, "a"), child_start()]), expected(&["a", "ExecutionStarted"]));
    assert_eq!(order(vec![raised(None, "a")]), expected(&["a"]));
}

#[test]
fn messages_for_other_executions_and_second_starts_are_dropped() {
    check_accepted(
        vec![
            start(),
            start(),
            raised(Some("e0"), "old"),
            raised(Some("E1"), "case"),
            raised(Some("e1"), "mine"),
        ],
        &["ExecutionStarted", "mine"],
    );
    check_accepted(vec![start(), raised(Some(" "), "blank")], &["ExecutionStarted", "blank"]);
    let second = ExecutionStarted { instance: OrchestrationInstance::new("i", "e2"), ..started() };
    let second = message(Some("e2"), EventKind::ExecutionStarted(Box::new(second)));
    check_accepted(vec![start(), second], &["ExecutionStarted"]);
}

#[test]
fn duplicates_of_results_are_recorded() {
    let fired = || message(Some("e1"), EventKind::TimerFired { timer_id: 0, fire_at: at(0) });
    check_accepted(vec![start(), fired(), fired()], &["ExecutionStarted", "TimerFired", "TimerFired"]);
}

#[track_caller]
fn check_discarded(history: Vec<HistoryEvent>, messages: Vec<TaskMessage>) {
    let mut state = RuntimeState::from_history(history.clone()).unwrap();
    let outcome = run_in(&mut state, messages, &mut scripted(vec![]), &EpisodeSettings::default()).unwrap();
    assert!(matches!(outcome, EpisodeOutcome::Discard), "{outcome:?}");
    assert_eq!(state.past(), history, "the state is as it was");
    assert!(state.new_events().is_empty());
}

#[test]
fn stale_work_items_are_discarded() {
    check_discarded(vec![], vec![raised(None, "a")]);
    check_discarded(vec![], vec![raised(None, "a"), child_start()]);
    let corrupt = vec![HistoryEvent::message(at(0), EventKind::OrchestratorCompleted)];
    check_discarded(corrupt, vec![start()]);
    let failed = EventKind::ExecutionCompleted(taskhub_core::ExecutionCompleted {
        status: OrchestrationStatus::Failed,
        result: None,
        failure_details: None,
    });
    let failed = vec![start().event, HistoryEvent::message(at(0), failed)];
    check_discarded(failed.clone(), vec![rewound(), raised(None, "a")]);
    check_discarded(failed, vec![rewound()]);
}

#[test]
fn a_rewind_of_a_running_instance_only_wakes_it() {
    check_accepted(vec![start(), rewound()], &["ExecutionStarted"]);
}

#[test]
fn a_message_without_addressee_is_an_error() {
    let mut blank = raised(None, "a");
    blank.target.instance_id = " ".into();
    let mut state = RuntimeState::default();
    let error = run_in(&mut state, vec![blank], &mut scripted(vec![]), &EpisodeSettings::default());
    assert_eq!(error.unwrap_err().kind(), ErrorKind::Data);
}

#[test]
fn actions_become_events_and_messages() {
    let target = OrchestrationInstance::current("other");
    let turn = vec![
        task("Echo"),
        ActionKind::CreateTimer { fire_at: at(9) },
        ActionKind::CreateSubOrchestration {
            name: "C".into(),
            version: None,
            instance_id: "child".into(),
            input: Some("2".into()),
            tags: None,
        },
        ActionKind::SendEvent { target: target.clone(), name: "n".into(), input: Some("3".into()) },
    ];
    for include_parameters in [false, true] {
        let settings = EpisodeSettings { include_parameters, ..EpisodeSettings::default() };
        let mut state = RuntimeState::default();
        let outcome = run_in(&mut state, vec![start()], &mut scripted(vec![turn.clone()]), &settings);
        let commit = commit(outcome.unwrap());
        let rows: Vec<_> = commit.new_events.iter().map(|e| (e.event_id, e.name())).collect();
        let expected = [
            (-1, "OrchestratorStarted"),
            (-1, "ExecutionStarted"),
            (0, "TaskScheduled"),
            (1, "TimerCreated"),
            (2, "SubOrchestrationInstanceCreated"),
            (3, "EventSent"),
            (-1, "OrchestratorCompleted"),
        ];
        assert_eq!(rows, expected);
        let recorded = |event: &HistoryEvent| match &event.kind {
            EventKind::TaskScheduled { input, .. }
            | EventKind::SubOrchestrationInstanceCreated { input, .. } => input.is_some(),
            _ => panic!("{event:?}"),
        };
        assert_eq!(recorded(&commit.new_events[2]), include_parameters);
        assert_eq!(recorded(&commit.new_events[4]), include_parameters);

        let me = OrchestrationInstance::new("i", "e1");
        let [activity] = &commit.activity_messages[..] else { panic!() };
        assert_eq!((activity.event.event_id, &activity.target), (0, &me));
        assert!(recorded(&activity.event), "the message always has the input");
        let [timer] = &commit.timer_messages[..] else { panic!() };
        assert_eq!(timer.event.kind, EventKind::TimerFired { timer_id: 1, fire_at: at(9) });
        assert_eq!((timer.event.event_id, &timer.target), (-1, &me));
        let [child, raised] = &commit.orchestrator_messages[..] else { panic!() };
        let EventKind::ExecutionStarted(begun) = &child.event.kind else { panic!() };
        assert_eq!(begun.instance, child.target);
        assert_eq!(begun.instance.execution_id.as_ref().unwrap().as_str().len(), 32);
        let waiting = begun.parent.as_ref().unwrap();
        assert_eq!((&waiting.instance, waiting.task_schedule_id), (&me, 2));
        assert_eq!((waiting.name.as_deref(), waiting.version.as_deref()), (Some("O"), Some("1.0")));
        assert_eq!(
            (raised.event.name(), raised.event.event_id, &raised.target),
            ("EventRaised", -1, &target)
        );
        assert_eq!(commit.status, OrchestrationStatus::Running);
    }
}

#[test]
fn parents_are_told_how_their_children_ended() {
    use OrchestrationStatus::*;
    let reply = |action: ActionKind, mode| {
        let settings = EpisodeSettings { error_mode: mode, ..EpisodeSettings::default() };
        let mut state = RuntimeState::default();
        let outcome = run_in(&mut state, vec![child_start()], &mut scripted(vec![vec![action]]), &settings);
        commit(outcome.unwrap()).orchestrator_messages
    };
    let failed = |reason: &str, details: Option<&str>| EventKind::SubOrchestrationInstanceFailed {
        task_scheduled_id: 7,
        reason: Some(reason.into()),
        details: details.map(str::to_owned),
        failure_details: None,
    };
    let [done] = &reply(end(Completed, "1"), ErrorMode::ReasonOnly)[..] else { panic!() };
    let expected =
        EventKind::SubOrchestrationInstanceCompleted { task_scheduled_id: 7, result: Some("1".into()) };
    assert_eq!((&done.event.kind, &done.target), (&expected, &parent().instance));
    assert_eq!(reply(end(Terminated, "stop"), ErrorMode::ReasonOnly)[0].event.kind, failed("stop", None));
    assert!(reply(end(Canceled, "x"), ErrorMode::ReasonOnly).is_empty());
    let boom = || {
        let completion = CompletionAction::new(Failed, Some("boom".into()));
        ActionKind::Complete(CompletionAction { details: Some("{}".into()), ..completion })
    };
    assert_eq!(reply(boom(), ErrorMode::ReasonOnly)[0].event.kind, failed("boom", None));
    let serialized = reply(boom(), ErrorMode::SerializedException);
    assert_eq!(serialized[0].event.kind, failed("boom", Some("{}")));
}

#[test]
fn messages_of_all_generations_are_sent_but_only_the_last_history_is_stored() {
    let commit = run(
        vec![start()],
        vec![
            vec![task("A"), end(OrchestrationStatus::ContinuedAsNew, "1")],
            vec![task("B"), end(OrchestrationStatus::ContinuedAsNew, "2")],
            vec![task("C")],
        ],
    );
    assert!(commit.replaces_history);
    assert_eq!(names(&commit.new_events), ["ExecutionStarted", "TaskScheduled"]);
    let senders: Vec<_> = commit.activity_messages.iter().map(|m| m.target.execution_id.clone()).collect();
    assert_eq!(senders[0], Some("e1".into()));
    assert_ne!(senders[1], senders[2]);
    assert_eq!(senders[2], commit.instance.execution_id);
    let EventKind::ExecutionStarted(next) = &commit.new_events[1].kind else { panic!() };
    assert_eq!((next.version.as_deref(), next.generation), (Some("1.0"), None));
}

#[test]
fn a_termination_beats_continue_as_new_in_both_orders() {
    let terminated = || end(OrchestrationStatus::Terminated, "stop");
    let continued = || end(OrchestrationStatus::ContinuedAsNew, "1");
    for turn in [vec![terminated(), continued()], vec![continued(), terminated()]] {
        let commit = run(vec![start()], vec![turn, vec![task("Never")]]);
        assert_eq!(commit.status, OrchestrationStatus::Terminated);
        assert!(!commit.replaces_history);
        assert_eq!(names(&commit.new_events), ["ExecutionStarted", "ExecutionCompleted"]);
    }
}

#[test]
fn a_runaway_chain_of_generations_is_stored_and_goes_on_later() {
    let looping = raw_orchestrator(|ctx: OrchestrationContext| async move {
        ctx.set_custom_status("looping")?;
        let n: u32 = ctx.input::<Option<u32>>()?.unwrap_or(0);
        if n < 25 {
            ctx.continue_as_new(n + 1)?;
        }
        Ok(Some(n.to_string()))
    });
    let looping: Arc<dyn Orchestrator> = Arc::new(looping);
    let source = move |_: &str, _: Option<&str>| Some((looping.clone(), ReplaySettings::default()));
    let mut executor = ReplayExecutor::new(Arc::new(source));
    let settings = EpisodeSettings { max_generations: 10, ..EpisodeSettings::default() };
    let mut state = RuntimeState::default();
    let first = commit(run_in(&mut state, vec![start()], &mut executor, &settings).unwrap());
    assert_eq!(first.status, OrchestrationStatus::Running);
    assert_eq!(first.custom_status.as_deref(), Some("\"looping\""));
    assert_eq!(names(&first.new_events), ["ExecutionStarted", "TimerCreated"]);
    let mut wake_up = first.timer_messages;
    for _ in 0..2 {
        assert_eq!(wake_up.len(), 1);
        let next = commit(run_in(&mut state, wake_up, &mut executor, &settings).unwrap());
        wake_up = next.timer_messages;
    }
    assert_eq!(state.status(), OrchestrationStatus::Completed);
    assert_eq!(state.output().as_deref(), Some("25"));
}

#[test]
fn oversized_checkpoints_are_split_and_lose_nothing() {
    let many: Arc<dyn Orchestrator> =
        Arc::new(orchestrator(|ctx: OrchestrationContext, (): ()| async move {
            let tasks: Vec<Task<i32>> = (0..10).map(|k| ctx.call_activity("Echo", k)).collect();
            let results: Vec<_> = join_all(tasks).await.into_iter().collect::<Result<_, _>>()?;
            Ok(results.len())
        }));
    let source: Arc<dyn OrchestratorSource> =
        Arc::new(move |_: &str, _: Option<&str>| Some((many.clone(), ReplaySettings::default())));
    let mut executor = ReplayExecutor::new(source);
    let settings = EpisodeSettings { max_checkpoint_batch_size: 5, ..EpisodeSettings::default() };
    let mut state = RuntimeState::default();
    let mut scheduled = Vec::new();
    let mut messages = vec![start()];
    let mut episodes = 0;
    while !messages.is_empty() {
        let commit = commit(run_in(&mut state, messages, &mut executor, &settings).unwrap());
        episodes += 1;
        scheduled.extend(commit.activity_messages.iter().map(|m| m.event.event_id));
        let splits = commit.new_events.iter().filter(|e| e.event_id == SPLIT_TIMER_ID).count();
        assert_eq!(splits, commit.timer_messages.len());
        messages = commit.timer_messages;
    }
    assert_eq!(scheduled, (0..10).collect::<Vec<_>>());
    assert!(episodes > 2);
    let results = (0..10).map(|task_scheduled_id| {
        let kind = EventKind::TaskCompleted { task_scheduled_id, result: Some("1".into()) };
        message(Some("e1"), kind)
    });
    let last = commit(run_in(&mut state, results.collect(), &mut executor, &settings).unwrap());
    assert_eq!(last.status, OrchestrationStatus::Completed);
    assert!(last.timer_messages.is_empty(), "a completing episode is not split");
}

#[test]
fn versions_that_do_not_match_are_rejected_or_fail() {
    // As in DTFx: OrchestrationFailsWithVersionMismatch, RejectsWithVersionMismatch, SucceedsWithVersion
    let run = |match_strategy, failure_strategy| {
        let versioning =
            VersioningSettings { worker_version: Some("0.9".into()), match_strategy, failure_strategy };
        let settings = EpisodeSettings { versioning: Some(versioning), ..EpisodeSettings::default() };
        let done = scripted(vec![vec![end(OrchestrationStatus::Completed, "1")]]);
        run_in(&mut RuntimeState::default(), vec![start()], &mut { done }, &settings).unwrap()
    };
    for strategy in [VersionMatch::Strict, VersionMatch::CurrentOrOlder] {
        let outcome = run(strategy, VersionFailure::Reject);
        assert!(matches!(outcome, EpisodeOutcome::Reject { version } if version == "1.0"));
        let failed = commit(run(strategy, VersionFailure::Fail));
        assert_eq!(failed.status, OrchestrationStatus::Failed);
        let ended = &failed.new_events[2];
        let EventKind::ExecutionCompleted(completed) = &ended.kind else { panic!() };
        assert_eq!((ended.event_id, &completed.result), (0, &None));
        let details = completed.failure_details.as_ref().unwrap();
        assert_eq!(
            (details.to_string().as_str(), details.is_non_retriable),
            ("VersionMismatch: Orchestration version did not comply with Worker Versioning", true)
        );
    }
    let outcome = commit(run(VersionMatch::None, VersionFailure::Fail));
    assert_eq!(outcome.status, OrchestrationStatus::Completed);
}

#[test]
fn scheduled_starts_keep_their_time_but_the_next_generation_does_not() {
    // As in DTFx: CanCreateScheduledOrchestrations
    let later = ExecutionStarted { scheduled_start_time: Some(at(60)), ..started() };
    let later = message(Some("e1"), EventKind::ExecutionStarted(Box::new(later)));
    let time = |commit: &EpisodeCommit| match &commit.new_events[1].kind {
        EventKind::ExecutionStarted(started) => started.scheduled_start_time,
        other => panic!("{other:?}"),
    };
    assert_eq!(time(&run(vec![later.clone()], vec![])), Some(at(60)));
    let next = run(vec![later], vec![vec![end(OrchestrationStatus::ContinuedAsNew, "1")]]);
    assert_eq!(time(&next), None);
}

#[test]
fn an_orchestrator_that_is_not_registered_is_an_error_for_the_worker() {
    let source = |_: &str, _: Option<&str>| None;
    let mut executor = ReplayExecutor::new(Arc::new(source));
    let mut state = RuntimeState::default();
    let error = run_in(&mut state, vec![start()], &mut executor, &EpisodeSettings::default()).unwrap_err();
    assert_eq!(error.to_string(), "orchestrator is not registered. name=`O` version=`1.0`");
    assert_eq!(error.kind(), ErrorKind::NotFound);
}
