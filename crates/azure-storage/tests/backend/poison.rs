//! Messages that cannot be processed: their back-off, their dead letters, quarantine, and the good traffic
//! beside them.

use std::collections::BTreeSet;
use std::time::Duration;

use taskhub_azure_storage::dead_letter::{
    DeadLetter, DeadLetterQuery, DeadLetterState, DeadLetters, Outcome,
};
use taskhub_azure_storage::message::{self, MessageData, MessageEncoding};
use taskhub_azure_storage::{AzureStorageService, AzureStorageSettings, Hub};
use taskhub_core::{
    EventKind, ExecutionStarted, GiveBackReason, HistoryEvent, OrchestrationInstance, OrchestrationService,
    OrchestrationServiceClient, SeededIds, TaskMessage,
};
use taskhub_storage::StorageAccount;
use taskhub_storage::request::OperationCounts;
use taskhub_testkit::faults::{Effect, FaultPlan, FaultyAccount, Rule};
use tokio::time::Instant;

use crate::support::*;

const CONTAINER: &str = "testhub-deadletters";
const CONTROL: &str = "testhub-control-00";
const WORK_ITEMS: &str = "testhub-workitems";

const FUTURE: &str = r#"{"$type":"DurableTask.AzureStorage.MessageData","TaskMessage":{"Event":{"EventType":99},"OrchestrationInstance":{"InstanceId":"order-1"}},"CompressedBlobName":null,"SequenceNumber":0}"#;
const NO_BLOB: &str = r#"{"TaskMessage":null,"CompressedBlobName":"order-2/message-01-TaskCompleted.json.gz","SequenceNumber":0}"#;
const FOREIGN_BLOB: &str =
    r#"{"TaskMessage":null,"CompressedBlobName":"../other-container/secret.json.gz","SequenceNumber":0}"#;

impl World {
    fn letters(&self) -> DeadLetters {
        DeadLetters::new(&self.hub(Self::settings("person")))
    }

    async fn all_letters(&self) -> Vec<DeadLetter> {
        let letters = self.letters();
        let query = DeadLetterQuery { limit: 1000, ..DeadLetterQuery::default() };
        let page = letters.list(&query).await.unwrap();
        assert!(page.unreadable.is_empty(), "{:?}", page.unreadable);
        let mut whole = Vec::new();
        for letter in page.letters {
            whole.push(letters.find(&letter.message_id).await.unwrap().unwrap());
        }
        whole
    }

    async fn put(&self, queue: &str, text: &str) -> String {
        let put = self.account.queues.put_message(queue, text, Duration::ZERO).await.unwrap();
        put.receipt.message_id
    }

    fn quarantining(&self, failures: u32) -> AzureStorageSettings {
        AzureStorageSettings { quarantine_poison_messages: Some(failures), ..Self::settings("w1") }
    }

    /// A hub over an account with faults.
    fn faulty(&self, settings: AzureStorageSettings, plan: &FaultPlan) -> Hub {
        let account = FaultyAccount::wrap(self.account.clone(), plan);
        Hub::new(settings, account, self.clock.clone(), std::sync::Arc::new(SeededIds::new(7))).unwrap()
    }

    /// Lets a worker receive for a while, with nothing that it could run.
    async fn idle(&self, worker: &AzureStorageService, time: Duration) {
        let (orchestration, activity) =
            tokio::join!(worker.lock_next_orchestration(time), worker.lock_next_activity(time));
        assert!(orchestration.unwrap().is_none() && activity.unwrap().is_none());
    }
}

fn of<'a>(letters: &'a [DeadLetter], id: &str) -> &'a DeadLetter {
    letters.iter().find(|letter| letter.message_id == id).unwrap_or_else(|| panic!("no dead letter {id}"))
}

#[tokio::test(start_paused = true)]
async fn messages_that_cannot_be_read_have_dead_letters_from_the_first_reception_on() {
    let world = World::new();
    world.client().create_hub().await.unwrap();
    let cases = [
        ("not json", "not_a_message", None, None),
        ("!!!bad base64", "not_a_message", None, None),
        ("{\"a\":\t<&\u{1f600}", "not_a_message", None, None),
        ("{}", "malformed_message", None, None),
        ("{\"$type\":\"Other.Message\"}", "unknown_type", None, None),
        (FUTURE, "unknown_event_type", Some("order-1"), Some("99")),
        (NO_BLOB, "missing_blob", Some("order-2"), Some("TaskCompleted")),
        (FOREIGN_BLOB, "foreign_blob", None, None),
    ];
    let mut ids = Vec::new();
    for queue in [CONTROL, WORK_ITEMS] {
        for (text, ..) in cases {
            ids.push(world.put(queue, text).await);
        }
    }
    let worker = world.worker("w1").await;
    world.idle(&worker, Duration::from_secs(30)).await;
    let letters = world.all_letters().await;
    assert_eq!(letters.len(), ids.len());
    for (n, id) in ids.iter().enumerate() {
        let (text, reason, instance, event) = cases[n % cases.len()];
        let letter = of(&letters, id);
        assert_eq!((letter.state, letter.reason.as_str()), (DeadLetterState::Held, reason), "{text}");
        assert_eq!(letter.text.as_deref(), Some(text), "byte for byte");
        assert_eq!(letter.instance_id.as_deref().filter(|_| instance.is_some()), instance);
        assert_eq!(letter.event_type.as_deref().filter(|_| event.is_some()), event);
        assert_eq!(letter.worker_id, "w1");
        assert!(letter.failures >= 3 && letter.failures == letter.dequeue_count, "{letter:?}");
        assert!(letter.first_failed_at < letter.last_failed_at);
        assert!(letter.visible_at.unwrap() > letter.last_failed_at);
        let queue = if n < cases.len() { CONTROL } else { WORK_ITEMS };
        assert_eq!(letter.queue, queue);
    }
    assert_eq!(world.store.messages(CONTROL).len() + world.store.messages(WORK_ITEMS).len(), ids.len());
}

#[tokio::test(start_paused = true)]
async fn the_back_off_ends_at_ten_minutes_and_a_hub_without_failures_has_no_container() {
    let world = World::new();
    let (client, worker) = (world.client(), world.worker("w1").await);
    start(&client, "good").await;
    let item = lock(&worker).await;
    let commit = episode(&world, &item, vec![completed(&world, 0, "1")]);
    finish(&worker, item, commit).await;
    assert!(!world.store.containers().iter().any(|c| c == CONTAINER));

    let id = world.put(CONTROL, "not json").await;
    world.idle(&worker, Duration::from_secs(2 * 3600)).await;
    let letter = world.letters().find(&id).await.unwrap().unwrap();
    // 2 + 4 + ... + 512 s are 9 receptions in 17 minutes, then one every ten minutes.
    assert!((18..=21).contains(&letter.dequeue_count), "{}", letter.dequeue_count);
    let hidden = letter.visible_at.unwrap().saturating_since(letter.last_failed_at);
    assert!((599..=601).contains(&hidden.as_secs()), "{hidden:?}");
    client.delete_hub().await.unwrap();
    assert!(world.store.containers().is_empty(), "a hub is deleted with its dead letters");
}

#[tokio::test(start_paused = true)]
async fn a_message_that_is_processed_after_all_loses_its_dead_letter() {
    let world = World::new();
    let (client, old) = (world.client(), world.worker("old").await);
    start(&client, "good").await;
    let queue = world.store.queues().into_iter().find(|q| !world.store.messages(q).is_empty()).unwrap();
    for _ in 0..6 {
        let item = old.lock_next_orchestration(Duration::from_secs(1200)).await.unwrap().unwrap();
        let reason = GiveBackReason::Failed { reason: "test".to_owned() };
        old.give_back_orchestration(item.token, reason).await.unwrap();
        old.release_orchestration(item.token).await;
    }
    tokio::time::sleep(Duration::from_millis(10)).await;
    let letters = world.all_letters().await;
    assert_eq!(letters.len(), 1, "one message, one dead letter, from the fifth failure on");
    assert_eq!((letters[0].reason.as_str(), letters[0].failures), ("processing_failed", 6));
    assert_eq!(letters[0].instance_id.as_deref(), Some("good"));
    assert_eq!(letters[0].queue, queue);
    old.stop(Duration::from_secs(1)).await.unwrap();

    // Another worker, which knows nothing of it.
    let new = world.worker("new").await;
    let item = new.lock_next_orchestration(Duration::from_secs(1200)).await.unwrap().unwrap();
    let commit = episode(&world, &item, vec![completed(&world, 0, "1")]);
    finish(&new, item, commit).await;
    new.stop(Duration::from_secs(1)).await.unwrap();
    assert!(world.all_letters().await.is_empty());
}

#[tokio::test(start_paused = true)]
async fn nothing_is_quarantined_unless_asked_for_and_never_what_a_newer_worker_may_understand() {
    let world = World::new();
    world.client().create_hub().await.unwrap();
    let (poison, blob, future) = (
        world.put(CONTROL, "not json").await,
        world.put(WORK_ITEMS, NO_BLOB).await,
        world.put(CONTROL, FUTURE).await,
    );
    let worker = world.worker_with(world.quarantining(3)).await;
    world.idle(&worker, Duration::from_secs(3600)).await;
    let letters = world.all_letters().await;
    for (id, text) in [(&poison, "not json"), (&blob, NO_BLOB)] {
        let letter = of(&letters, id);
        assert_eq!((letter.state, letter.failures), (DeadLetterState::Quarantined, 3));
        assert_eq!(letter.text.as_deref(), Some(text), "the original bytes");
    }
    assert_eq!(of(&letters, &future).state, DeadLetterState::Held);
    assert!(of(&letters, &future).failures > 10);
    assert_eq!(world.store.messages(CONTROL).len(), 1);
    assert!(world.store.messages(WORK_ITEMS).is_empty());
    worker.stop(Duration::from_secs(1)).await.unwrap();

    let quarantined = of(&letters, &poison);
    assert_eq!(world.letters().requeue(quarantined).await.unwrap(), Outcome::Done);
    let texts: BTreeSet<_> = world.store.messages(CONTROL).into_iter().map(|m| m.text).collect();
    assert!(texts.contains("not json"));
    assert!(world.letters().find(&poison).await.unwrap().is_none());
    assert_eq!(world.letters().discard(of(&letters, &blob)).await.unwrap(), Outcome::Done);
    assert_eq!(world.all_letters().await.len(), 1);
}

#[tokio::test(start_paused = true)]
async fn receptions_for_other_reasons_do_not_count_towards_quarantine() {
    let world = World::new();
    let (client, worker) = (world.client(), world.worker_with(world.quarantining(3)).await);
    start(&client, "x").await;
    for _ in 0..8 {
        let item = worker.lock_next_orchestration(Duration::from_secs(1200)).await.unwrap().unwrap();
        let reason = GiveBackReason::UnknownFunction { name: "Echo".to_owned() };
        worker.give_back_orchestration(item.token, reason).await.unwrap();
        worker.release_orchestration(item.token).await;
    }
    assert!(world.all_letters().await.is_empty(), "an unknown function is no failure of the message");
    let item = worker.lock_next_orchestration(Duration::from_secs(1200)).await.unwrap().unwrap();
    assert_eq!(item.attempt, 9);
    let reason = GiveBackReason::Failed { reason: "test".to_owned() };
    worker.give_back_orchestration(item.token, reason).await.unwrap();
    worker.release_orchestration(item.token).await;
    assert_eq!(world.control_messages(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_crash_between_copy_and_delete_and_lost_replies_duplicate_nothing_and_lose_nothing() {
    for (operation, effect) in [
        ("DeleteMessage", Effect::ResetBefore),
        ("DeleteMessage", Effect::LoseReply),
        ("PutBlob", Effect::ResetBefore),
        ("PutBlob", Effect::LoseReply),
        ("UpdateMessage", Effect::LoseReply),
        ("UpdateMessage", Effect::ResetBefore),
    ] {
        let world = World::new();
        world.client().create_hub().await.unwrap();
        let id = world.put(CONTROL, "not json").await;
        let plan = FaultPlan::default();
        plan.add(Rule::on(operation, effect).first(2));
        let worker = AzureStorageService::new(world.faulty(world.quarantining(2), &plan));
        worker.start().await.unwrap();
        world.idle(&worker, Duration::from_secs(1800)).await;
        assert!(plan.fired() > 0, "{operation}");
        let letters = world.all_letters().await;
        assert_eq!(letters.len(), 1, "{operation}");
        let letter = of(&letters, &id);
        assert_eq!(letter.state, DeadLetterState::Quarantined, "{operation} {letter:?}");
        assert_eq!(letter.text.as_deref(), Some("not json"));
        assert!(world.store.messages(CONTROL).is_empty(), "{operation}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_container_that_cannot_be_written_delays_nothing_and_loses_nothing() {
    let world = World::new();
    let client = world.client();
    client.create_hub().await.unwrap();
    world.put(CONTROL, "not json").await;
    let plan = FaultPlan::default();
    plan.add(Rule::on_all(Effect::ResetBefore).resource(CONTAINER));
    let worker = AzureStorageService::new(world.faulty(world.quarantining(2), &plan));
    worker.start().await.unwrap();
    start(&client, "good").await;
    let item = lock(&worker).await;
    let commit = episode(&world, &item, vec![completed(&world, 0, "1")]);
    finish(&worker, item, commit).await;
    world.idle(&worker, Duration::from_secs(600)).await;
    assert!(plan.fired() > 0);
    let left = world.store.messages(CONTROL);
    assert_eq!(left.len(), 1, "what cannot be copied is not deleted");
    assert!(left[0].dequeue_count >= 7, "{}", left[0].dequeue_count);
}

/// A start message whose client died before it wrote the Instances row.
fn start_text(world: &World, instance: &str) -> String {
    let target = OrchestrationInstance::new(instance, "0123456789abcdef0123456789abcdef");
    let started = ExecutionStarted {
        version: Some(String::new()),
        input: Some("7".to_owned()),
        generation: Some(0),
        ..ExecutionStarted::new(target.clone(), "Echo")
    };
    let kind = EventKind::ExecutionStarted(Box::new(started));
    let message = TaskMessage::new(HistoryEvent::message(world.clock.now(), kind), target);
    let data = MessageData::new(uuid::Uuid::nil(), message, 1, None, MessageData::client());
    message::encode(&data, MessageEncoding::Utf8)
}

#[tokio::test(start_paused = true)]
async fn a_dropped_start_can_be_found_and_started_after_all() {
    let world = World::new();
    world.client().create_hub().await.unwrap();
    let text = start_text(&world, "order-9");
    let id = world.put(CONTROL, &text).await;
    let worker = world.worker("w1").await;
    world.idle(&worker, Duration::from_secs(3 * 3600)).await;
    assert!(world.store.messages(CONTROL).is_empty(), "dropped as DTFx does");
    let letter = world.letters().find(&id).await.unwrap().unwrap();
    assert_eq!((letter.state, letter.reason.as_str()), (DeadLetterState::Dropped, "start_without_row"));
    assert_eq!(letter.text.as_deref(), Some(text.as_str()));
    assert_eq!(letter.instance_id.as_deref(), Some("order-9"));
    assert_eq!(world.row("order-9", "RuntimeStatus"), "");

    assert_eq!(world.letters().requeue(&letter).await.unwrap(), Outcome::Done);
    assert_eq!(world.row("order-9", "RuntimeStatus"), "Pending");
    let item = lock(&worker).await;
    let commit = episode(&world, &item, vec![completed(&world, 0, "1")]);
    finish(&worker, item, commit).await;
    assert_eq!(world.row("order-9", "RuntimeStatus"), "Completed");
    assert!(world.all_letters().await.is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_dropped_start_of_an_id_that_was_started_again_stays_where_it_is() {
    let world = World::new();
    let client = world.client();
    client.create_hub().await.unwrap();
    let id = world.put(CONTROL, &start_text(&world, "order-9")).await;
    let worker = world.worker("w1").await;
    world.idle(&worker, Duration::from_secs(3 * 3600)).await;
    start(&client, "order-9").await;
    let letter = world.letters().find(&id).await.unwrap().unwrap();
    let error = world.letters().requeue(&letter).await.unwrap_err();
    assert!(error.to_string().contains("started again"), "{error}");
    assert!(world.letters().find(&id).await.unwrap().is_some());
}

#[tokio::test(start_paused = true)]
async fn lists_are_paged_and_foreign_blobs_do_not_break_them() {
    let world = World::new();
    world.client().create_hub().await.unwrap();
    for n in 0..25 {
        world.put(CONTROL, &format!("poison {n}")).await;
    }
    let worker = world.worker("w1").await;
    world.idle(&worker, Duration::from_secs(30)).await;
    world.store.load_blob(CONTAINER, "zzz.json", "{}");
    world.store.load_blob(CONTAINER, "other.txt", "x");
    let (mut seen, mut unreadable, mut query) =
        (BTreeSet::new(), 0, DeadLetterQuery { limit: 4, ..DeadLetterQuery::default() });
    for _ in 0..10 {
        let page = world.letters().list(&query).await.unwrap();
        assert!(page.letters.len() <= 4);
        unreadable += page.unreadable.len();
        for letter in page.letters {
            assert!(letter.text.is_none());
            assert!(seen.insert(letter.message_id), "nothing twice");
        }
        query.continuation = page.continuation;
        if query.continuation.is_none() {
            break;
        }
    }
    assert_eq!((seen.len(), unreadable), (25, 1));
    let query = DeadLetterQuery { continuation: Some("nonsense".to_owned()), ..DeadLetterQuery::default() };
    assert!(world.letters().list(&query).await.is_err());
    assert!(world.letters().find("../x").await.unwrap().is_none());
}

/// Runs instances with one activity each beside `poison` messages per queue. Returns the virtual time and
/// the requests that it took.
async fn good_traffic(poison: usize) -> (Duration, u64) {
    const GOOD: usize = 40;
    let world = World::new();
    let counts = OperationCounts::default();
    let account: StorageAccount =
        world.account.clone().layered(taskhub_storage::request::RequestSettings::default(), &counts);
    let settings = World::settings("w1");
    let hub =
        Hub::new(settings, account, world.clock.clone(), std::sync::Arc::new(SeededIds::new(3))).unwrap();
    let client = world.client();
    client.create_hub().await.unwrap();
    for n in 0..poison {
        for queue in [CONTROL, "testhub-control-01", WORK_ITEMS] {
            world.put(queue, &format!("poison {n}")).await;
        }
    }
    for n in 0..GOOD {
        start(&client, &format!("good-{n}")).await;
    }
    let worker = AzureStorageService::new(hub);
    worker.start().await.unwrap();
    let began = Instant::now();
    let orchestrations = async {
        let mut finished = 0;
        while finished < GOOD {
            let item = lock(&worker).await;
            let first = item.history.is_empty();
            let decision = if first { schedule(&world, 0, "[1]") } else { completed(&world, 1, "1") };
            let commit = episode(&world, &item, vec![decision]);
            finish(&worker, item, commit).await;
            finished += usize::from(!first);
        }
    };
    let activities = async {
        for _ in 0..GOOD {
            let request = lock_activity(&worker).await;
            let response = reply(&world, &request.message, "1");
            worker.complete_activity(request.token, response).await.unwrap();
        }
    };
    tokio::join!(orchestrations, activities);
    let took = began.elapsed();
    let requests = counts.snapshot().values().map(|count| count.count).sum();
    worker.stop(Duration::from_secs(1)).await.unwrap();
    (took, requests)
}

#[tokio::test(start_paused = true)]
async fn a_hundred_poison_messages_per_queue_do_not_slow_good_instances_down() {
    let (alone, alone_requests) = good_traffic(0).await;
    let (beside, beside_requests) = good_traffic(100).await;
    assert!(beside <= alone * 2 + Duration::from_secs(2), "{beside:?} instead of {alone:?}");
    // Each of the 300 costs its share of a reception, a put-back and a record per failure, a few failures each.
    let extra = beside_requests.saturating_sub(alone_requests);
    assert!(extra <= 300 * 4 * 4, "{extra} more requests than {alone_requests}");
}
