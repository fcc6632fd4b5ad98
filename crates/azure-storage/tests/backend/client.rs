use std::time::Duration;

use taskhub_azure_storage::AzureStorageClient;
use taskhub_core::{
    ErrorKind, InstanceFetch, InstanceQuery, OrchestrationInstance, OrchestrationService,
    OrchestrationServiceClient, OrchestrationStatus, RewindRequest, StartOutcome, StartRequest,
};
use taskhub_testkit::faults::{Effect, FaultPlan, FaultyAccount, Rule};

use crate::support::*;

#[tokio::test(start_paused = true)]
async fn a_hub_is_created_once_and_deleted_whole() {
    let world = World::new();
    let client = world.client();
    client.create_hub().await.unwrap();
    client.create_hub().await.unwrap();
    assert_eq!(world.store.queues().len(), 5);
    assert_eq!(world.store.tables(), ["TestHubHistory", "TestHubInstances", "TestHubPartitions"]);
    assert_eq!(world.store.containers(), ["testhub-applease"]);
    world.account.blobs.create_container("testhub-leases").await.unwrap();
    let worker = world.worker("w1").await;
    start(&client, "x").await;
    worker.stop(Duration::from_secs(10)).await.unwrap();
    client.delete_hub().await.unwrap();
    assert!(world.store.queues().is_empty(), "{:?}", world.store.queues());
    assert!(world.store.tables().is_empty() && world.store.containers().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_start_is_one_message_to_the_function_of_that_name_and_a_row_that_says_pending() {
    let world = World::new();
    let client = world.client();
    let started = start(&client, "x").await;
    let queues = world.store.queues();
    let messages: Vec<_> = queues.iter().flat_map(|queue| world.store.messages(queue)).collect();
    assert_eq!((messages.len(), world.control_messages()), (1, 1));
    let envelope: serde_json::Value = serde_json::from_str(&messages[0].text).unwrap();
    let event = &envelope["TaskMessage"]["Event"];
    assert_eq!((&event["EventType"], &event["Name"]), (&0.into(), &"Echo".into()));
    assert_eq!(event["OrchestrationInstance"]["InstanceId"], "x");
    let state = client.instance_state(&"x".into(), InstanceFetch::ALL).await.unwrap().unwrap();
    assert_eq!((state.status, state.instance), (Some(OrchestrationStatus::Pending), started));
    assert!(world.store.entities("TestHubHistory").is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_second_start_counts_generations_and_forgets_the_old_output() {
    let world = World::new();
    let (client, worker) = (world.client(), world.worker("w1").await);
    start(&client, "again").await;
    let item = lock(&worker).await;
    let commit = episode(&world, &item, vec![completed(&world, 0, "\"first\"")]);
    finish(&worker, item, commit).await;
    start(&client, "again").await;
    let state = client.instance_state(&"again".into(), InstanceFetch::ALL).await.unwrap().unwrap();
    assert_eq!((state.status, state.generation), (Some(OrchestrationStatus::Pending), Some(1)));
    assert_eq!((state.output, state.completed_at), (None, None));
    let item = lock(&worker).await;
    assert!(item.history.is_empty());
    let commit = episode(&world, &item, vec![]);
    finish(&worker, item, commit).await;
    assert_eq!(client.history(&"again".into(), None).await.unwrap().len(), 3);
}

#[tokio::test(start_paused = true)]
async fn a_dedupe_status_blocks_a_start_silently_or_with_an_error() {
    let world = World::new();
    let client = world.client();
    start(&client, "once").await;
    let request = StartRequest {
        name: "Echo".into(),
        instance_id: "once".into(),
        dedupe_statuses: vec![OrchestrationStatus::Pending],
        ..StartRequest::default()
    };
    let outcome = client.start_instance(request.clone()).await.unwrap();
    assert_eq!(outcome, StartOutcome::Exists { status: OrchestrationStatus::Pending });
    assert_eq!(world.control_messages(), 1);
    let mut settings = World::settings("strict");
    settings.throw_exception_on_invalid_dedupe_status = true;
    let strict = taskhub_azure_storage::AzureStorageClient::new(world.hub(settings));
    assert_eq!(strict.start_instance(request).await.unwrap_err().kind(), ErrorKind::AlreadyExists);
}

#[tokio::test(start_paused = true)]
async fn lists_come_in_pages_by_prefix_and_status() {
    let world = World::new();
    let client = world.client();
    for n in 0..5 {
        start(&client, &format!("a{n}")).await;
    }
    start(&client, "b0").await;
    let mut query = InstanceQuery {
        instance_id_prefix: Some("a".into()),
        page_size: Some(2),
        statuses: vec![OrchestrationStatus::Pending],
        ..InstanceQuery::default()
    };
    let mut ids = Vec::new();
    loop {
        let page = client.list_instances(&query).await.unwrap();
        assert!(page.instances.len() <= 2);
        ids.extend(page.instances.into_iter().map(|i| i.instance.instance_id.to_string()));
        query.continuation = page.continuation;
        if query.continuation.is_none() {
            break;
        }
    }
    assert_eq!(ids, ["a0", "a1", "a2", "a3", "a4"]);
}

#[tokio::test(start_paused = true)]
async fn a_purge_leaves_the_blobs_of_neighbours_whose_ids_begin_alike() {
    let world = World::new();
    let client = world.client();
    let big = format!("\"{}\"", "x".repeat(100_000));
    for id in ["abc", "abcd", "abc/d", "a^c"] {
        let request = StartRequest {
            name: "Echo".into(),
            instance_id: id.into(),
            input: Some(big.clone()),
            ..StartRequest::default()
        };
        client.start_instance(request).await.unwrap();
    }
    let blobs = || world.store.blobs("testhub-largemessages").len();
    assert_eq!(blobs(), 4);
    let purged = client.purge_instance(&"abc".into()).await.unwrap();
    assert_eq!(purged.instances, 1);
    for id in ["abcd", "abc/d", "a^c"] {
        let state = client.instance_state(&id.into(), InstanceFetch::ALL).await;
        assert_eq!(state.unwrap().unwrap().input.as_ref(), Some(&big), "{id}");
    }
    assert_eq!(blobs(), 3);
    assert_eq!(client.purge_instance(&"abc".into()).await.unwrap().instances, 0, "twice is no error");
}

#[tokio::test(start_paused = true)]
async fn an_inspection_shows_queues_partitions_and_counts() {
    let world = World::new();
    let client = world.client();
    let none = client.hub().inspect().await.unwrap();
    assert!(none.layout.is_none() && none.partitions.is_empty());
    start(&client, "x").await;
    let worker = world.worker("w1").await;
    let item = lock(&worker).await;
    let seen = client.hub().inspect().await.unwrap();
    assert_eq!(seen.layout.unwrap().partition_count, 4);
    assert_eq!(seen.queues.len(), 5);
    assert_eq!(seen.queues.iter().filter_map(|q| q.length).sum::<u64>(), 1);
    assert!(seen.partitions.iter().all(|p| p.current_owner == Some("w1".into())));
    assert_eq!(seen.instances.get("Pending"), Some(&1));
    worker.release_orchestration(item.token).await;
}

#[tokio::test(start_paused = true)]
async fn a_page_reads_its_payloads_several_at_once_and_ends_before_they_are_too_many() {
    const INSTANCES: usize = 60;
    let world = World::new();
    let client = world.client();
    let input = format!("\"{}\"", "x".repeat(400_000));
    for n in 0..INSTANCES {
        let request = StartRequest {
            name: "Echo".into(),
            instance_id: format!("é/{n:02}").as_str().into(),
            input: Some(input.clone()),
            ..StartRequest::default()
        };
        client.start_instance(request).await.unwrap();
    }
    let plan = FaultPlan::default();
    let mut hub = world.hub(World::settings("reader"));
    hub.account = FaultyAccount::wrap(hub.account, &plan);
    let client = AzureStorageClient::new(hub);
    plan.add(Rule::on("GetBlob", Effect::DelayBefore(Duration::from_millis(30))));

    let mut query = InstanceQuery { page_size: Some(1000), ..InstanceQuery::default() };
    let (mut ids, mut sizes) = (Vec::new(), Vec::new());
    let began = tokio::time::Instant::now();
    loop {
        let page = client.list_instances(&query).await.unwrap();
        sizes.push(page.instances.iter().map(|i| i.input.as_ref().map_or(0, String::len)).sum::<usize>());
        ids.extend(page.instances.into_iter().map(|i| i.instance.instance_id.to_string()));
        query.continuation = page.continuation;
        let Some(token) = &query.continuation else { break };
        assert!(token.is_ascii(), "it travels in a header");
    }
    let expected: Vec<_> = (0..INSTANCES).map(|n| format!("é/{n:02}")).collect();
    assert_eq!(ids, expected);
    // 16 MiB and what has come with the last one.
    assert!(sizes.len() == 2 && sizes.iter().all(|size| *size < 16 * 1024 * 1024 + 400_002), "{sizes:?}");
    assert!(began.elapsed() <= Duration::from_millis(30) * INSTANCES as u32 / 4, "{:?}", began.elapsed());

    let wrong = InstanceQuery { continuation: Some("from! é".into()), ..InstanceQuery::default() };
    assert_eq!(client.list_instances(&wrong).await.unwrap_err().kind(), ErrorKind::Invalid);
}

#[tokio::test(start_paused = true)]
async fn a_client_of_an_existing_hub_creates_none() {
    let world = World::new();
    let client = world.client().of_existing_hub();
    let event = || client.send_event(OrchestrationInstance::new("x", "e"), raised("Go"));
    let request = RewindRequest { instance_id: "x".into(), reason: None, allow_timers: false };
    for error in [
        event().await.unwrap_err(),
        client.rewind_instance(&request).await.unwrap_err(),
        client.make_primary().await.unwrap_err(),
    ] {
        assert_eq!(error.kind(), ErrorKind::NotFound);
        assert!(error.chain().contains("there is no task hub of this name"), "{}", error.chain());
        assert!(error.to_string().contains("hub=`TestHub`"), "{error}");
    }
    assert!(world.store.queues().is_empty() && world.store.containers().is_empty());
    client.create_hub().await.unwrap();
    event().await.unwrap();
    assert_eq!(world.control_messages(), 1);
}
