use std::time::Duration;

use taskhub_azure_storage::{AzureStorageService, AzureStorageSettings};
use taskhub_core::{
    ErrorKind, OrchestrationInstance, OrchestrationService, OrchestrationServiceClient, TaskHubName,
};
use taskhub_storage::Entity;

use crate::support::*;

#[tokio::test(start_paused = true)]
async fn messages_that_cannot_be_read_stay_in_the_queue_and_do_not_hinder_others() {
    let world = World::new();
    let (client, worker) = (world.client(), world.worker("w1").await);
    start(&client, "good").await;
    let queue = world.store.queues().into_iter().find(|q| !world.store.messages(q).is_empty()).unwrap();
    for text in [
        "not json",
        "{}",
        "{\"$type\":\"Other.Message\"}",
        "eyJ4IjoxfQ==",
        "{\"$type\":\"DurableTask.AzureStorage.MessageData\",\"ActivityId\":\"00000000-0000-0000-0000-000000000000\",\
         \"TaskMessage\":null,\"CompressedBlobName\":\"good/message-1-ExecutionStarted.json.gz\",\"SequenceNumber\":0}",
    ] {
        world.account.queues.put_message(&queue, text, Duration::ZERO).await.unwrap();
    }
    let item = lock(&worker).await;
    let commit = episode(&world, &item, vec![completed(&world, 0, "1")]);
    finish(&worker, item, commit).await;
    assert!(worker.lock_next_orchestration(Duration::from_secs(3600)).await.unwrap().is_none());
    let left = world.store.messages(&queue);
    assert_eq!(left.len(), 5, "nothing is lost");
    for message in left {
        assert!((8..=20).contains(&message.dequeue_count), "no hot loop: {}", message.dequeue_count);
    }
}

#[tokio::test(start_paused = true)]
async fn a_history_that_cannot_be_read_keeps_its_messages_and_names_the_row() {
    let world = World::new();
    let (client, worker) = (world.client(), world.worker("w1").await);
    begin(&world, &worker, "bad", 0).await;
    let rows = world.store.entities("TestHubHistory");
    let mut row = rows.into_iter().find(|r| r.str("EventType") == Some("OrchestratorStarted")).unwrap();
    row.set("EventType", "SomethingNew");
    world.store.load_entity("TestHubHistory", row);
    client.send_event(OrchestrationInstance::current("bad"), raised("Go")).await.unwrap();
    assert!(worker.lock_next_orchestration(Duration::from_secs(600)).await.unwrap().is_none());
    assert_eq!(world.control_messages(), 1);
    let error = client.history(&"bad".into(), None).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Data);
    let text = error.chain();
    for part in ["hub=`TestHub`", "instance=`bad`", "row_key=`0000000000000000`", "SomethingNew"] {
        assert!(text.contains(part), "{text}");
    }
}

#[tokio::test(start_paused = true)]
async fn rows_of_other_software_in_the_hubs_tables_are_ignored() {
    let world = World::new();
    let (client, worker) = (world.client(), world.worker("w1").await);
    start(&client, "mine").await;
    let foreign = |partition: &str, row: &str| Entity::new(partition, row).with("Colour", "blue");
    world.store.load_entity("TestHubHistory", foreign("mine", "zzz"));
    world.store.load_entity("TestHubInstances", foreign("other", ""));
    world.store.load_entity("TestHubPartitions", foreign("elsewhere", "thing"));
    let item = lock(&worker).await;
    let commit = episode(&world, &item, vec![completed(&world, 0, "1")]);
    finish(&worker, item, commit).await;
    assert_eq!(world.row("mine", "RuntimeStatus"), "Completed");
    let page = client.list_instances(&taskhub_core::InstanceQuery::default()).await.unwrap();
    assert!(page.instances.iter().any(|i| i.instance.instance_id.as_str() == "mine"));
}

#[tokio::test(start_paused = true)]
async fn a_hub_with_another_number_of_partitions_is_refused_and_gets_no_queues() {
    let world = World::new();
    world.client().create_hub().await.unwrap();
    let mut settings = World::settings("w1");
    settings.partition_count = Some(8);
    let service = AzureStorageService::new(world.hub(settings));
    let error = service.start().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Invalid);
    assert!(error.to_string().contains("configured=`8` hub_has=`4`"), "{error}");
    assert_eq!(world.store.queues().len(), 5);
}

#[tokio::test(start_paused = true)]
async fn a_hub_whose_records_contradict_each_other_is_refused() {
    let world = World::new();
    let client = world.client();
    client.create_hub().await.unwrap();
    world.account.queues.delete_queue("testhub-control-03").await.unwrap();
    let error = world.client().create_hub().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Data);
    assert!(error.to_string().contains("rows=`4` queues=`3`"), "{error}");
}

#[tokio::test(start_paused = true)]
async fn a_hub_that_provider_1_has_begun_to_create_serves_clients_and_is_finished_by_a_worker() {
    let world = World::new();
    world.account.blobs.create_container("testhub-leases").await.unwrap();
    let info = r#"{"TaskHubName":"TestHub","CreatedAt":"2026-01-15T09:30:12Z","PartitionCount":2}"#;
    world.store.load_blob("testhub-leases", "taskhub.json", info);
    for queue in ["testhub-control-00", "testhub-control-01", "testhub-workitems"] {
        world.account.queues.create_queue(queue).await.unwrap();
    }
    for table in ["TestHubHistory", "TestHubInstances"] {
        world.account.tables.create_table(table).await.unwrap();
    }
    start(&world.client(), "x").await;
    assert_eq!(world.control_messages(), 1);
    assert!(!world.store.tables().contains(&"TestHubPartitions".to_owned()));
    let worker = world.worker("w1").await;
    assert_eq!(lock(&worker).await.instance.instance_id.as_str(), "x");
    let blobs: Vec<_> = world.store.blobs("testhub-leases").into_iter().map(|(name, _)| name).collect();
    let leases =
        ["intent", "ownership"].map(|folder| [0, 1].map(|n| format!("{folder}/testhub-control-0{n}")));
    assert_eq!(blobs, [leases.concat(), vec!["taskhub.json".to_owned()]].concat());
}

#[test]
fn settings_out_of_range_are_named() {
    let mut settings = AzureStorageSettings::new(TaskHubName::new("abc").unwrap(), "w");
    settings.control_queue_batch_size = 33;
    let error = World::new_error(settings);
    assert!(error.contains("control_queue_batch_size must be 1 to 32. value=`33`"), "{error}");
}

impl World {
    fn new_error(settings: AzureStorageSettings) -> String {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        let _guard = runtime.enter();
        let world = Self::new();
        let ids = std::sync::Arc::new(taskhub_core::SeededIds::new(1));
        taskhub_azure_storage::Hub::new(settings, world.account, world.clock, ids).unwrap_err().to_string()
    }
}

#[tokio::test(start_paused = true)]
async fn a_date_that_no_table_can_hold_does_not_stop_an_instance() {
    let world = World::new();
    let (client, worker) = (world.client(), world.worker("w1").await);
    start(&client, "old").await;
    let mut event = raised("Go");
    event.timestamp = taskhub_core::Timestamp::MIN;
    client.send_event(OrchestrationInstance::current("old"), event).await.unwrap();
    let item = lock(&worker).await;
    let commit = episode(&world, &item, vec![completed(&world, 0, "1")]);
    finish(&worker, item, commit).await;
    assert_eq!(world.row("old", "RuntimeStatus"), "Completed");
}
