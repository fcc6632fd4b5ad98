//! Every fault at every operation, through the request layer: each combination ends in bounded time, with
//! the documented kind of error, and leaves the account as it was or as the operation makes it.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::fmt::Debug;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use taskhub_core::{Clock, SeededIds, Timestamp};
use taskhub_storage::memory::MemoryStore;
use taskhub_storage::request::{OperationCounts, RequestSettings};
use taskhub_storage::{
    Condition, ETag, Entity, Error, ErrorKind, OPERATIONS, Operation, PopReceipt, PutBlob, Repetition,
    StorageAccount, TableOperation, TableQuery,
};
use taskhub_testkit::faults::{Effect, FaultPlan, FaultyAccount, Rule};
use tokio::time::Instant;
use uuid::Uuid;

const MINUTE: Duration = Duration::from_secs(60);
const LEASE: Uuid = Uuid::from_u128(1);
const NEW_LEASE: Uuid = Uuid::from_u128(2);

/// The account's clock stands still, so that no lease ends while a request is repeated.
#[derive(Debug)]
struct StoppedClock;

impl Clock for StoppedClock {
    fn now(&self) -> Timestamp {
        Timestamp::from_unix(Duration::from_secs(1_768_000_000))
    }
}

/// An account with something of everything.
struct Fixture {
    store: MemoryStore,
    receipt: PopReceipt,
    row: ETag,
    blob: ETag,
}

async fn fixture() -> Fixture {
    let store = MemoryStore::new(Arc::new(StoppedClock));
    let account = store.account();
    account.queues.create_queue("queue").await.unwrap();
    account.queues.put_message("queue", "received", Duration::ZERO).await.unwrap();
    let received = account.queues.get_messages("queue", 1, 60 * MINUTE).await.unwrap().remove(0);
    account.queues.put_message("queue", "waiting", Duration::ZERO).await.unwrap();
    account.tables.create_table("table").await.unwrap();
    let insert = TableOperation::Insert(Entity::new("p", "r").with("Old", 1));
    let row = account.tables.execute("table", insert).await.unwrap().unwrap();
    for container in ["blobs", "leased"] {
        account.blobs.create_container(container).await.unwrap();
    }
    let old = Bytes::from_static(b"old");
    let blob = account.blobs.put_blob("blobs", "b", old.clone(), PutBlob::default()).await.unwrap();
    account.blobs.put_blob("blobs", "leased", old, PutBlob::default()).await.unwrap();
    account.blobs.acquire_lease("blobs", Some("leased"), LEASE, MINUTE).await.unwrap();
    Fixture { store, receipt: received.receipt, row, blob }
}

/// All that the account holds, without ids, versions and times.
async fn state(store: &MemoryStore) -> String {
    let mut lines = vec![format!("tables {:?}", store.tables())];
    for queue in store.queues() {
        let messages = store.messages(&queue);
        let messages: Vec<_> = messages.iter().map(|m| (&m.text, m.dequeue_count)).collect();
        lines.push(format!("queue {queue} {messages:?}"));
    }
    for table in store.tables() {
        for row in store.entities(&table) {
            lines.push(format!("row {} {} {:?}", row.partition_key, row.row_key, row.columns));
        }
    }
    for container in store.containers() {
        lines.push(format!("container {container}"));
        for (name, blob) in store.blobs(&container) {
            // Whose lease it is shows in who may renew it; the clock does not move here.
            let lease = blob.properties.lease;
            let mut holders = Vec::new();
            for id in [LEASE, NEW_LEASE] {
                holders
                    .push(store.account().blobs.change_lease(&container, Some(&name), id, id).await.is_ok());
            }
            lines.push(format!("blob {name} {:?} {lease:?} {holders:?}", blob.content));
        }
    }
    lines.join("\n")
}

/// Sends one operation to the account.
async fn send(operation: Operation, account: &StorageAccount, fixture: &Fixture) -> Result<String, Error> {
    fn text<T: Debug>(outcome: Result<T, Error>) -> Result<String, Error> {
        outcome.map(|value| format!("{value:?}"))
    }
    let (queues, tables, blobs) = (&account.queues, &account.tables, &account.blobs);
    let same_row = || Condition::Matches(fixture.row.clone());
    let patch = || Entity::new("p", "r").with("New", 2);
    let execute = async |operation: TableOperation| text(tables.execute("table", operation).await);
    let delete = |condition| TableOperation::Delete {
        partition_key: "p".to_owned(),
        row_key: "r".to_owned(),
        condition,
    };
    match operation.name {
        "CreateQueue" => text(queues.create_queue("new").await),
        "DeleteQueue" => text(queues.delete_queue("queue").await),
        "ListQueues" => text(queues.list_queues("").await),
        "GetQueueMetadata" => text(queues.message_count("queue").await),
        "PutMessage" => text(queues.put_message("queue", "new", Duration::ZERO).await),
        "GetMessages" => text(queues.get_messages("queue", 32, 60 * MINUTE).await),
        "PeekMessages" => text(queues.peek_messages("queue", 32).await),
        "UpdateMessage" => text(queues.update_message("queue", &fixture.receipt, "new", 60 * MINUTE).await),
        "DeleteMessage" => text(queues.delete_message("queue", &fixture.receipt).await),
        "CreateTable" => text(tables.create_table("new").await),
        "DeleteTable" => text(tables.delete_table("table").await),
        "ListTables" => text(tables.list_tables("").await),
        "GetEntity" => text(tables.get_entity("table", "p", "r").await),
        "QueryEntities" => text(tables.query("table", &TableQuery::default()).await),
        "InsertEntity" => execute(TableOperation::Insert(Entity::new("p", "new"))).await,
        "UpdateEntity" => execute(TableOperation::Replace(patch(), same_row())).await,
        "MergeEntity" => execute(TableOperation::Merge(patch(), same_row())).await,
        "InsertOrReplaceEntity" => execute(TableOperation::InsertOrReplace(patch())).await,
        "InsertOrMergeEntity" => execute(TableOperation::InsertOrMerge(patch())).await,
        "DeleteEntity" => execute(delete(same_row())).await,
        "EntityGroupTransaction" => {
            let operations = vec![
                TableOperation::Insert(Entity::new("p", "new")),
                TableOperation::Merge(patch(), same_row()),
            ];
            text(tables.transaction("table", &operations).await)
        }
        "CreateContainer" => text(blobs.create_container("new").await),
        "DeleteContainer" => text(blobs.delete_container("blobs", None).await),
        "ListContainers" => text(blobs.list_containers("").await),
        "PutBlob" => {
            let condition = Some(Condition::Matches(fixture.blob.clone()));
            let options = PutBlob { condition, ..PutBlob::default() };
            text(blobs.put_blob("blobs", "b", Bytes::from_static(b"new"), options).await)
        }
        "GetBlob" => text(blobs.get_blob("blobs", "b").await),
        "GetBlobProperties" => text(blobs.blob_properties("blobs", "b").await),
        "DeleteBlob" => text(blobs.delete_blob("blobs", "b", None).await),
        "ListBlobs" => text(blobs.list_blobs("blobs", "", None).await),
        "AcquireLease" => text(blobs.acquire_lease("blobs", Some("b"), LEASE, MINUTE).await),
        "RenewLease" => text(blobs.renew_lease("blobs", Some("leased"), LEASE).await),
        "ChangeLease" => text(blobs.change_lease("blobs", Some("leased"), LEASE, NEW_LEASE).await),
        "ReleaseLease" => text(blobs.release_lease("blobs", Some("leased"), LEASE).await),
        "BreakLease" => text(blobs.break_lease("blobs", Some("leased")).await),
        other => panic!("an operation without a case: {other}"),
    }
}

/// What a run left behind.
struct Outcome {
    answer: Result<String, Error>,
    state: String,
    attempts: u64,
    took: Duration,
}

async fn run(operation: Operation, rule: Option<Rule>) -> Outcome {
    let fixture = fixture().await;
    let plan = FaultPlan::default();
    if let Some(rule) = rule {
        plan.add(rule);
    }
    let counts = OperationCounts::default();
    let settings = RequestSettings { ids: Arc::new(SeededIds::new(1)), ..RequestSettings::default() };
    let account = FaultyAccount::wrap(fixture.store.account(), &plan).layered(settings, &counts);
    let started = Instant::now();
    let answer = send(operation, &account, &fixture).await;
    let took = started.elapsed();
    let attempts = counts.of(operation.name).count;
    Outcome { answer, state: state(&fixture.store).await, attempts, took }
}

const FAULTS: &[Effect] = &[
    Effect::Answer(403, "AuthenticationFailed"),
    Effect::Answer(409, ""),
    Effect::Answer(412, "ConditionNotMet"),
    Effect::Answer(429, "TooManyRequests"),
    Effect::Answer(503, "ServerBusy"),
    Effect::HangBefore,
    Effect::HangAfter,
    Effect::ResetBefore,
    Effect::LoseReply,
];

/// Checks one fault at one operation, once and for ever, against what the layer documents.
async fn check(operation: Operation, effect: &Effect) {
    let untouched = state(&fixture().await.store).await;
    let applied = run(operation, None).await;
    assert_eq!(applied.state != untouched, operation.writes && operation.name != "RenewLease");
    assert_eq!((applied.answer.is_ok(), applied.attempts), (true, 1));

    let once = run(operation, Some(Rule::on(operation.name, effect.clone()).nth(1))).await;
    let always = run(operation, Some(Rule::on(operation.name, effect.clone()))).await;
    for outcome in [&once, &always] {
        assert!(outcome.took <= MINUTE, "bounded: {:?}", outcome.took);
        assert!(outcome.attempts <= 6);
    }

    if let Effect::Answer(status @ (403 | 409 | 412), _) = effect {
        let kind = match status {
            403 => ErrorKind::Denied,
            409 if operation.name.starts_with("Create") || operation.name.starts_with("Insert") => {
                ErrorKind::AlreadyExists
            }
            _ => ErrorKind::Conflict,
        };
        for outcome in [once, always] {
            let error = outcome.answer.unwrap_err();
            assert_eq!((error.kind(), error.status(), outcome.attempts), (kind, Some(*status), 1));
            assert!(!error.maybe_applied(), "there was no attempt before");
            assert_eq!(outcome.state, untouched);
        }
        return;
    }

    let carried_out = matches!(effect, Effect::LoseReply | Effect::HangAfter);
    let error = always.answer.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert_eq!(error.maybe_applied(), operation.writes);
    assert!(always.attempts > 1, "it was repeated");
    match (carried_out, operation.repetition) {
        (true, Repetition::Repeats) => {
            let copies = always.state.matches("\"new\"").count() as u64;
            assert_eq!(copies, always.attempts, "one message for each attempt");
        }
        (true, _) => assert_eq!(always.state, applied.state),
        (false, _) => assert_eq!(always.state, untouched),
    }

    assert_eq!(once.attempts, 2);
    if carried_out && operation.repetition == Repetition::FailsAfterSuccess {
        let error = once.answer.unwrap_err();
        assert!(error.maybe_applied(), "{error}");
        let kinds = [ErrorKind::AlreadyExists, ErrorKind::Conflict, ErrorKind::PopReceiptMismatch];
        assert!(kinds.contains(&error.kind()), "{error}");
        assert_eq!(once.state, applied.state);
    } else if carried_out && operation.repetition == Repetition::Repeats {
        assert!(once.answer.is_ok());
        assert_eq!(once.state.matches("\"new\"").count(), 2);
    } else {
        assert!(once.answer.is_ok(), "{:?}", once.answer);
        assert_eq!(once.state, applied.state);
    }
}

#[tokio::test(start_paused = true)]
async fn every_fault_at_every_operation_ends_as_documented() {
    for operation in OPERATIONS {
        for effect in FAULTS {
            println!("{} {effect:?}", operation.name); // shown when it fails
            Box::pin(check(*operation, effect)).await;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_seed_repeats_the_delays() {
    let rule = || Some(Rule::on("PutMessage", Effect::ResetBefore));
    let operation = *OPERATIONS.iter().find(|operation| operation.name == "PutMessage").unwrap();
    let (first, second) = (run(operation, rule()).await, run(operation, rule()).await);
    assert_eq!(first.took, second.took);
    assert_eq!(first.attempts, 6);
    // 0.2 + 0.4 + 0.8 + 1.6 + 3.2 s, of each delay at least half
    assert!((3100..=6200).contains(&first.took.as_millis()), "{:?}", first.took);
}

#[tokio::test(start_paused = true)]
async fn requests_are_counted_by_operation() {
    let fixture = fixture().await;
    let counts = OperationCounts::default();
    let plan = FaultPlan::default();
    plan.add(Rule::on("GetMessages", Effect::ResetBefore).nth(1));
    let account =
        FaultyAccount::wrap(fixture.store.account(), &plan).layered(RequestSettings::default(), &counts);
    for expected in [1, 0] {
        let messages = account.queues.get_messages("queue", 32, MINUTE).await.unwrap();
        assert_eq!(messages.len(), expected);
    }
    account.queues.get_messages("missing", 1, MINUTE).await.unwrap_err();
    let count = counts.of("GetMessages");
    assert_eq!((count.count, count.errors, count.empty, count.non_empty), (4, 2, 1, 1));
    assert_eq!(counts.snapshot().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_lease_renewal_gives_up_before_the_lease_is_lost() {
    let operation = *OPERATIONS.iter().find(|operation| operation.name == "RenewLease").unwrap();
    let outcome = run(operation, Some(Rule::on("RenewLease", Effect::HangBefore))).await;
    assert!(outcome.took <= Duration::from_secs(10), "{:?}", outcome.took);
}
