//! Partition managers that keep their leases in blobs, and hubs that change hands.

use std::collections::BTreeMap;
use std::time::Duration;

use taskhub_azure_storage::{
    AzureStorageClient, AzureStorageService, AzureStorageSettings, HubLayout, OwnershipState,
    PartitionManagerKind,
};
use taskhub_core::{Clock, ErrorKind, OrchestrationService, OrchestrationServiceClient, Timestamp};
use taskhub_storage::LeaseState;
use taskhub_testkit::eventually_within;
use taskhub_testkit::faults::{Effect, FaultPlan, FaultyAccount, Rule};

use crate::support::*;

const STOP: Duration = Duration::from_secs(60);
const BLOB_KINDS: [PartitionManagerKind; 2] = [PartitionManagerKind::Safe, PartitionManagerKind::Legacy];

fn folder(kind: PartitionManagerKind) -> &'static str {
    if kind == PartitionManagerKind::Legacy { "default/" } else { "ownership/" }
}

pub(crate) fn settings(kind: PartitionManagerKind, worker: &str) -> AzureStorageSettings {
    let mut settings = World::settings(worker);
    settings.partition_manager = Some(kind);
    settings
}

/// Who holds which lease in a folder: `blob -> owner`, only what is leased.
fn holders(world: &World, folder: &str) -> BTreeMap<String, String> {
    let mut holders = BTreeMap::new();
    for (name, blob) in world.store.blobs("testhub-leases") {
        if let Some(queue) = name.strip_prefix(folder)
            && blob.properties.lease == LeaseState::Leased
        {
            let content: serde_json::Value = serde_json::from_slice(&blob.content).unwrap();
            let owner = content["Owner"].as_str().unwrap_or("nobody").to_owned();
            holders.insert(queue.to_owned(), owner);
        }
    }
    holders
}

/// How many partitions each worker reads.
pub(crate) fn counts(world: &World, kind: PartitionManagerKind) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    if kind == PartitionManagerKind::Table {
        let now = world.clock.now();
        for row in world.store.entities("TestHubPartitions") {
            let expires_at = match row.get("ExpiresAt") {
                Some(taskhub_storage::Value::DateTime(at)) => *at,
                _ => Timestamp::MIN,
            };
            if let Some(owner) = row.str("CurrentOwner").filter(|_| now < expires_at) {
                *counts.entry(owner.to_owned()).or_default() += 1;
            }
        }
    } else {
        for owner in holders(world, folder(kind)).into_values() {
            *counts.entry(owner).or_default() += 1;
        }
    }
    counts
}

async fn await_counts(world: &World, kind: PartitionManagerKind, within: u64, expected: &[(&str, usize)]) {
    let expected: BTreeMap<String, usize> = expected.iter().map(|(w, n)| ((*w).to_owned(), *n)).collect();
    let what = format!("{kind}: {expected:?}");
    let limit = Duration::from_secs(within);
    eventually_within(limit, &what, || async { (counts(world, kind) == expected).then_some(()) }).await;
}

#[tokio::test(start_paused = true)]
async fn workers_of_a_blob_manager_come_share_and_go_and_partitions_follow() {
    for kind in BLOB_KINDS {
        let world = World::new();
        let first = world.worker_with(settings(kind, "w1")).await;
        await_counts(&world, kind, 5, &[("w1", 4)]).await;
        // Which manager the hub has is found out.
        let second = world.worker("w2").await;
        await_counts(&world, kind, 60, &[("w1", 2), ("w2", 2)]).await;
        first.stop(STOP).await.unwrap();
        await_counts(&world, kind, 20, &[("w2", 4)]).await;
        second.stop(STOP).await.unwrap();
        assert_eq!(counts(&world, kind), BTreeMap::new(), "a graceful stop releases at once");
        assert!(holders(&world, "intent/").is_empty());
    }
}

#[tokio::test(start_paused = true)]
async fn a_lease_that_is_being_acquired_when_a_stop_begins_is_released() {
    for (kind, resource) in [
        (PartitionManagerKind::Safe, "intent/"),
        (PartitionManagerKind::Safe, "ownership/"),
        (PartitionManagerKind::Legacy, "default/"),
    ] {
        let (world, plan) = World::with_faults();
        plan.add(Rule::on("AcquireLease", Effect::DelayAfter(Duration::from_secs(3))).resource(resource));
        let worker = world.worker_with(settings(kind, "w1")).await;
        let begun = || async { (plan.fired() > 0).then_some(()) };
        eventually_within(Duration::from_secs(20), "an acquisition", begun).await;
        worker.stop(STOP).await.unwrap();
        let held = ["intent/", "ownership/", "default/"].map(|folder| holders(&world, folder));
        assert!(held.iter().all(BTreeMap::is_empty), "{kind} {resource}: {held:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn partitions_of_a_worker_that_falls_silent_are_taken_over_when_its_leases_run_out() {
    for kind in BLOB_KINDS {
        let world = World::new();
        let first = world.worker_with(settings(kind, "w1")).await;
        await_counts(&world, kind, 5, &[("w1", 4)]).await;
        drop(first);
        let second = world.worker("w2").await;
        await_counts(&world, kind, 50, &[("w2", 4)]).await;
        second.stop(STOP).await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn a_process_with_the_same_id_adopts_the_leases_of_the_one_before() {
    for kind in BLOB_KINDS {
        let world = World::new();
        let first = world.worker_with(settings(kind, "w1")).await;
        await_counts(&world, kind, 5, &[("w1", 4)]).await;
        drop(first);
        let before = world.store.blobs("testhub-leases");
        start(&world.client(), "a").await;
        let again = world.worker("W1").await;
        let begun = world.clock.now();
        let item = lock(&again).await;
        assert!(world.clock.now().saturating_since(begun) < Duration::from_secs(3), "{kind}");
        again.release_orchestration(item.token).await;
        let after = world.store.blobs("testhub-leases");
        let contents = |blobs: &[(String, taskhub_storage::Blob)]| -> Vec<_> {
            blobs.iter().map(|(_, blob)| blob.content.clone()).collect()
        };
        assert_eq!(contents(&before), contents(&after), "adopted, not acquired");
        again.stop(STOP).await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn a_partition_is_drained_before_another_worker_of_the_safe_manager_reads_it() {
    let world = World::new();
    let mut one = settings(PartitionManagerKind::Safe, "w1");
    one.partition_count = Some(1);
    let first = world.worker_with(one).await;
    start(&world.client(), "busy").await;
    let item = lock(&first).await;
    // Its intent is stolen while an episode runs.
    let blob = world.store.blobs("testhub-leases").into_iter().find(|(name, _)| name.starts_with("intent/"));
    let (name, blob) = blob.unwrap();
    let content: serde_json::Value = serde_json::from_slice(&blob.content).unwrap();
    let token = content["Token"].as_str().unwrap().parse().unwrap();
    let thief = uuid::Uuid::from_u128(7);
    world.account.blobs.change_lease("testhub-leases", Some(&name), token, thief).await.unwrap();
    for _ in 0..4 {
        tokio::time::sleep(Duration::from_secs(10)).await;
        let _ = world.account.blobs.renew_lease("testhub-leases", Some(&name), thief).await;
        assert_eq!(counts(&world, PartitionManagerKind::Safe), [("w1".to_owned(), 1)].into());
    }
    // Messages that come now are not received.
    start(&world.client(), "later").await;
    let commit = episode(&world, &item, vec![completed(&world, 0, "1")]);
    finish(&first, item, commit).await;
    await_counts(&world, PartitionManagerKind::Safe, 3, &[]).await;
    let waiting: Vec<_> = world.store.messages("testhub-control-00");
    assert_eq!(waiting.len(), 1);
    assert_eq!(waiting[0].dequeue_count, 0);
    first.stop(STOP).await.unwrap();
}

/// Every message of a busy hub is received by one worker at a time, whatever moves.
#[tokio::test(start_paused = true)]
async fn nothing_is_delivered_twice_while_partitions_move_between_workers() {
    for kind in PartitionManagerKind::ALL {
        let world = World::new();
        let client = world.client();
        let first = world.worker_with(settings(kind, "w1")).await;
        let second = world.worker_with(settings(kind, "w2")).await;
        for n in 0..60 {
            start(&client, &format!("i{n}")).await;
            tokio::time::sleep(Duration::from_millis(900)).await;
        }
        assert_eq!(counts(&world, kind), [("w1".to_owned(), 2), ("w2".to_owned(), 2)].into(), "{kind}");
        first.stop(STOP).await.unwrap();
        tokio::time::sleep(Duration::from_secs(30)).await;
        let queues = world.store.queues();
        let counted: Vec<u32> =
            queues.iter().flat_map(|q| world.store.messages(q)).map(|m| m.dequeue_count).collect();
        assert_eq!(counted.len(), 60);
        // Given back by the one that let go, received by the other: never more.
        assert!(counted.iter().all(|n| (1..=3).contains(n)), "{kind}: {counted:?}");
        second.stop(STOP).await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn lost_replies_to_renewals_do_no_harm_and_silence_ends_at_the_own_deadline() {
    for kind in PartitionManagerKind::ALL {
        let world = World::new();
        let plan = FaultPlan::default();
        let hub = |name: &str| {
            let account = FaultyAccount::wrap(world.store.account(), &plan);
            let ids = std::sync::Arc::new(taskhub_core::SeededIds::new(3));
            let mut settings = settings(kind, name);
            settings.use_app_lease = false;
            taskhub_azure_storage::Hub::new(settings, account, world.clock.clone(), ids).unwrap()
        };
        let worker = AzureStorageService::new(hub("w1"));
        worker.start().await.unwrap();
        await_counts(&world, kind, 5, &[("w1", 4)]).await;
        let table = kind == PartitionManagerKind::Table;
        let renewal = if table { "EntityGroupTransaction" } else { "RenewLease" };
        plan.add(Rule::on(renewal, Effect::LoseReply).every(2));
        tokio::time::sleep(Duration::from_secs(120)).await;
        assert_eq!(counts(&world, kind), [("w1".to_owned(), 4)].into(), "{kind}");
        start(&world.client(), "a").await;
        let item = lock(&worker).await;
        worker.release_orchestration(item.token).await;
        // Nothing gets through any more: messages that come after the deadline are left alone.
        plan.clear();
        for operation in [renewal, "UpdateEntity", "AcquireLease", "ChangeLease"] {
            plan.add(Rule::on(operation, Effect::ResetBefore));
        }
        tokio::time::sleep(Duration::from_secs(32)).await;
        let received = |world: &World| -> u32 {
            world.store.queues().iter().flat_map(|q| world.store.messages(q)).map(|m| m.dequeue_count).sum()
        };
        let before = received(&world);
        for n in 0..8 {
            start(&world.client(), &format!("late{n}")).await;
        }
        tokio::time::sleep(Duration::from_secs(20)).await;
        assert!(received(&world) <= before + 1, "{kind}: {} after {before}", received(&world));
    }
}

#[tokio::test(start_paused = true)]
async fn a_hub_of_another_manager_is_refused_unless_forced() {
    for kind in PartitionManagerKind::ALL {
        for other in PartitionManagerKind::ALL.into_iter().filter(|other| *other != kind) {
            let world = World::new();
            let first = world.worker_with(settings(kind, "w1")).await;
            await_counts(&world, kind, 5, &[("w1", 4)]).await;
            let refused = AzureStorageService::new(world.hub(settings(other, "w2")));
            let error = refused.start().await.unwrap_err().to_string();
            let record = if kind == PartitionManagerKind::Table { "row=`testhub" } else { "blob=`testhub" };
            for text in [record, "owner=`w1`", "hub=`TestHub`", "force_partition_manager"] {
                assert!(error.contains(text), "{kind}, {other}: {error}");
            }
            first.stop(STOP).await.unwrap();
            // Nobody holds a lease now, but it is still the other manager's hub.
            let error = refused.start().await.unwrap_err().to_string();
            let both = format!("configured=`{other}` hub_has=`{kind}`");
            assert!(error.contains(&both) && error.contains("force_partition_manager"), "{error}");
            // Blobs are dated in whole seconds.
            tokio::time::sleep(Duration::from_secs(1)).await;
            let mut forced = settings(other, "w2");
            forced.force_partition_manager = true;
            let forced = world.worker_with(forced).await;
            await_counts(&world, other, 15, &[("w2", 4)]).await;
            // From now on it is the hub's.
            let layout = world.hub(World::settings("w3")).detect().await.unwrap();
            assert_eq!(layout, Some(HubLayout { partition_count: 4, manager: other }));
            forced.stop(STOP).await.unwrap();
            let layout = world.hub(World::settings("w3")).detect().await.unwrap();
            assert_eq!(layout, Some(HubLayout { partition_count: 4, manager: other }));
        }
    }
}

#[tokio::test(start_paused = true)]
async fn each_manager_creates_its_own_resources_and_deletion_removes_all() {
    for kind in PartitionManagerKind::ALL {
        let world = World::new();
        let mut settings = settings(kind, "w1");
        settings.partition_count = Some(3);
        let hub = world.hub(settings);
        let layout = hub.create().await.unwrap();
        assert_eq!(layout, HubLayout { partition_count: 3, manager: kind });
        assert_eq!(hub.create().await.unwrap(), layout, "again is no error");
        let tables = world.store.tables().contains(&"TestHubPartitions".to_owned());
        assert_eq!(tables, kind == PartitionManagerKind::Table);
        let blobs: Vec<_> = world.store.blobs("testhub-leases").into_iter().map(|(name, _)| name).collect();
        let folders: &[&str] = match kind {
            PartitionManagerKind::Table => &[],
            PartitionManagerKind::Safe => &["intent", "ownership"],
            PartitionManagerKind::Legacy => &["default"],
        };
        let mut expected: Vec<String> = Vec::new();
        for folder in folders {
            expected.extend((0..3).map(|n| format!("{folder}/testhub-control-0{n}")));
        }
        if kind != PartitionManagerKind::Table {
            expected.push("taskhub.json".to_owned());
        }
        assert_eq!(blobs, expected);
        hub.delete().await.unwrap();
        assert!(world.store.tables().is_empty() && world.store.containers().is_empty());
        assert_eq!(hub.detect().await.unwrap(), None);
    }
}

#[tokio::test(start_paused = true)]
async fn another_partition_count_is_refused_and_the_info_blob_is_never_overwritten() {
    for kind in BLOB_KINDS {
        let world = World::new();
        let first = world.worker_with(settings(kind, "w1")).await;
        first.stop(STOP).await.unwrap();
        let info = |world: &World| {
            let blobs = world.store.blobs("testhub-leases");
            let (_, blob) = blobs.into_iter().find(|(name, _)| name == "taskhub.json").unwrap();
            String::from_utf8(blob.content.to_vec()).unwrap()
        };
        let before = info(&world);
        assert_eq!(
            before,
            r#"{"TaskHubName":"TestHub","CreatedAt":"2026-03-01T12:00:00Z","PartitionCount":4}"#
        );
        let mut other = settings(kind, "w2");
        other.partition_count = Some(8);
        let error = AzureStorageService::new(world.hub(other)).start().await.unwrap_err().to_string();
        assert!(error.contains("configured=`8` hub_has=`4`"), "{error}");
        assert_eq!(info(&world), before);
    }
}

#[tokio::test(start_paused = true)]
async fn an_application_takes_the_app_lease_by_force() {
    for kind in PartitionManagerKind::ALL {
        let world = World::new();
        let first = world.worker_with(settings(kind, "w1")).await;
        await_counts(&world, kind, 5, &[("w1", 4)]).await;
        let mut other = settings(kind, "w2");
        other.app_name = "other".into();
        other.take_app_lease = true;
        let second = world.worker_with(other).await;
        await_counts(&world, kind, 90, &[("w2", 4)]).await;
        let info = world.store.blobs("testhub-applease").remove(0).1.content;
        let own = taskhub_azure_storage::partition::app_lease_id("other");
        assert_eq!(info, format!(r#"{{"OwnerId":"{own}","DesiredSwapId":null}}"#));
        // The first one waits for it, and gets it back when the other has gone.
        second.stop(STOP).await.unwrap();
        await_counts(&world, kind, 600, &[("w1", 4)]).await;
        first.stop(STOP).await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn an_inspection_tells_who_reads_what_since_when() {
    for kind in PartitionManagerKind::ALL {
        let world = World::new();
        let worker = world.worker_with(settings(kind, "w1")).await;
        await_counts(&world, kind, 5, &[("w1", 4)]).await;
        let seen = world.hub(World::settings("w9")).inspect().await.unwrap();
        assert_eq!(seen.layout.map(|layout| layout.manager), Some(kind));
        assert_eq!(seen.owners.len(), 4);
        for (n, owned) in seen.owners.iter().enumerate() {
            assert_eq!(owned.queue, format!("testhub-control-0{n}"));
            assert_eq!(owned.owner.as_ref().map(|w| w.as_str()), Some("w1"));
            assert_eq!((owned.state, owned.manager), (OwnershipState::Owned, kind));
            assert!(owned.since.is_some() && owned.next_owner.is_none());
        }
        worker.stop(STOP).await.unwrap();
        let seen = world.hub(World::settings("w9")).inspect().await.unwrap();
        assert!(seen.owners.iter().all(|o| o.state == OwnershipState::Free && o.owner.is_none()));
    }
}

/// A clock that is wrong by so many seconds.
#[derive(Debug)]
struct Wrong {
    clock: std::sync::Arc<dyn Clock>,
    seconds: i64,
}

impl Clock for Wrong {
    fn now(&self) -> Timestamp {
        let by = Duration::from_secs(self.seconds.unsigned_abs());
        if self.seconds < 0 { self.clock.now() - by } else { self.clock.now() + by }
    }
}

#[tokio::test(start_paused = true)]
async fn workers_whose_clocks_are_wrong_do_not_take_leases_early() {
    for seconds in [[20, -20], [-20, 20]] {
        let world = World::new();
        let worker = |name: &str, seconds: i64| {
            let clock = std::sync::Arc::new(Wrong { clock: world.clock.clone(), seconds });
            let ids = std::sync::Arc::new(taskhub_core::SeededIds::new(5));
            let account = world.account.clone();
            let hub = taskhub_azure_storage::Hub::new(World::settings(name), account, clock, ids);
            AzureStorageService::new(hub.unwrap())
        };
        let (first, second) = (worker("w1", seconds[0]), worker("w2", seconds[1]));
        first.start().await.unwrap();
        await_counts(&world, PartitionManagerKind::Table, 5, &[("w1", 4)]).await;
        second.start().await.unwrap();
        await_counts(&world, PartitionManagerKind::Table, 30, &[("w1", 2), ("w2", 2)]).await;
        let since = |world: &World| -> Vec<_> {
            let rows = world.store.entities("TestHubPartitions");
            rows.iter()
                .map(|row| (row.str("CurrentOwner").map(str::to_owned), row.get("OwnedSince").cloned()))
                .collect()
        };
        let before = since(&world);
        tokio::time::sleep(Duration::from_secs(300)).await;
        assert_eq!(since(&world), before, "nobody took anything");
        // Silence for 25 s is not the end of a lease, for 45 s it is.
        drop(first);
        tokio::time::sleep(Duration::from_secs(19)).await;
        assert_eq!(counts(&world, PartitionManagerKind::Table).get("w2"), Some(&2));
        await_counts(&world, PartitionManagerKind::Table, 25, &[("w2", 4)]).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_client_makes_its_application_the_primary_one() {
    for kind in PartitionManagerKind::ALL {
        let world = World::new();
        let first = world.worker_with(settings(kind, "w1")).await;
        await_counts(&world, kind, 5, &[("w1", 4)]).await;
        let mut other = settings(kind, "w2");
        other.app_name = "other".into();
        let second = world.worker_with(other.clone()).await;
        tokio::time::sleep(Duration::from_secs(120)).await;
        await_counts(&world, kind, 5, &[("w1", 4)]).await;

        let client = AzureStorageClient::new(world.hub(other));
        client.make_primary().await.unwrap();
        let info =
            || String::from_utf8(world.store.blobs("testhub-applease").remove(0).1.content.to_vec()).unwrap();
        let id = |app: &str| taskhub_azure_storage::partition::app_lease_id(app);
        let own_name = World::settings("w1").app_name;
        assert_eq!(info(), format!(r#"{{"OwnerId":"{}","DesiredSwapId":"{}"}}"#, id(&own_name), id("other")));
        // Who waits looks every five minutes.
        await_counts(&world, kind, 400, &[("w2", 4)]).await;
        assert_eq!(info(), format!(r#"{{"OwnerId":"{}","DesiredSwapId":null}}"#, id("other")));
        // Who is it already changes nothing.
        client.make_primary().await.unwrap();
        assert_eq!(info(), format!(r#"{{"OwnerId":"{}","DesiredSwapId":null}}"#, id("other")));

        let mut without = settings(kind, "w3");
        without.use_app_lease = false;
        let error = AzureStorageClient::new(world.hub(without)).make_primary().await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Invalid);
        second.stop(STOP).await.unwrap();
        first.stop(STOP).await.unwrap();
    }
}
