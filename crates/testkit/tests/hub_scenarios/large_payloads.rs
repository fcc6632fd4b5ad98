use taskhub_azure_storage::AzureStorageClient;
use taskhub_client::{Start, TaskHubClient};
use taskhub_core::{EventKind, OrchestrationStatus};
use taskhub_worker::samples;
use taskhub_worker::{OrchestrationContext, OrchestratorError};

use crate::support::{Running, World};

type Outcome<T> = Result<T, OrchestratorError>;

fn echoing(world: &World) -> Running {
    world.worker(|b| samples::register(b, Default::default()))
}

async fn blobs(world: &World) -> usize {
    let container = "scenariohub-largemessages";
    match world.hub.account().blobs.list_blobs(container, "", None).await {
        Ok(page) => page.blobs.len(),
        Err(_) => 0,
    }
}

async fn round_trip(id: &str, text: &str) -> (World, usize) {
    let world = World::new();
    let worker = echoing(&world);
    world.start(id, Start::new("EchoInput").input(text).unwrap()).await;
    let state = world.end(id).await;
    assert_eq!(state.status, Some(OrchestrationStatus::Completed), "{:?}", state.output);
    let json = serde_json::to_string(text).unwrap();
    assert!(state.output.as_ref() == Some(&json), "the output of {id} is not the input");
    assert!(state.input.as_ref() == Some(&json), "the input of {id} is not the input");
    worker.stop().await;
    let blobs = blobs(&world).await;
    (world, blobs)
}

#[tokio::test(start_paused = true)]
async fn small_payloads_stay_inline() {
    let (_, blobs) = round_trip("small", &"x".repeat(10_000)).await;
    assert_eq!(blobs, 0);
}

#[tokio::test(start_paused = true)]
async fn payloads_too_large_for_a_queue_go_through_blobs() {
    let (_, blobs) = round_trip("large", &"x".repeat(80_000)).await;
    assert!(blobs >= 3, "{blobs}");
}

#[tokio::test(start_paused = true)]
async fn payloads_that_fit_a_queue_but_no_column_go_to_blobs_by_their_utf_16_size() {
    // 31,000 characters: 31 KB of UTF-8, but 62,000 bytes of UTF-16.
    let (world, blobs) = round_trip("column", &"x".repeat(31_000)).await;
    assert!(blobs > 0);
    let history = world.client.history(&"column".into()).await.unwrap();
    let results = history.iter().filter_map(|e| match &e.kind {
        EventKind::TaskCompleted { result: Some(result), .. } => Some(result.len()),
        _ => None,
    });
    assert_eq!(results.collect::<Vec<_>>(), [31_002]);
}

#[tokio::test(start_paused = true)]
async fn several_medium_columns_make_one_large_transaction() {
    let world = World::new();
    let worker = world.worker(|b| {
        samples::register(b, Default::default()).orchestration(
            "Many",
            |ctx: OrchestrationContext, (): ()| async move {
                let calls: Vec<_> = (0..60).map(|_| ctx.call_activity::<_, String>("Big", 30_000)).collect();
                let mut total = 0;
                for answer in taskhub_worker::join_all(calls).await {
                    total += answer?.len();
                }
                Outcome::Ok(total)
            },
        )
    });
    world.start("many", Start::new("Many")).await;
    world.completes("many", "1800000").await;
    worker.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_client_that_does_not_fetch_large_data_sees_the_escaped_url() {
    let (world, _) = round_trip("url id#1", &"x".repeat(80_000)).await;
    let mut hub = world.hub.open("client-2").unwrap();
    std::sync::Arc::make_mut(&mut hub.settings).fetch_large_message_data_enabled = false;
    let client = TaskHubClient::new(std::sync::Arc::new(AzureStorageClient::new(hub)));
    let state = client.state(&"url id#1".into(), taskhub_core::InstanceFetch::ALL).await.unwrap().unwrap();
    for text in [state.input.unwrap(), state.output.unwrap()] {
        assert!(
            text.starts_with("http://") && text.contains("/scenariohub-largemessages/url%20id"),
            "{text}"
        );
        assert!(!text.contains('#') && text.ends_with(".json.gz"), "{text}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_payload_that_merely_looks_like_a_url_stays_as_it_is() {
    for text in ["http://example.com/x.json.gz", "error:timeout"] {
        let world = World::new();
        let worker = world.samples();
        world.start("looks", Start::new("Approval")).await;
        world.waits("looks", "TimerCreated").await;
        world.client.terminate(&"looks".into(), Some(text)).await.unwrap();
        world.ends("looks", OrchestrationStatus::Terminated, text).await;
        worker.stop().await;
    }
}

#[tokio::test(start_paused = true)]
async fn ids_with_every_special_character_carry_large_payloads() {
    for id in ["a/b\\c#d?e^f", "@user@1", "e space%20+&='(){}[]", "日本語😀"] {
        if id.starts_with('@') {
            continue;
        }
        let (world, blobs) = round_trip(id, &"é".repeat(50_000)).await;
        assert!(blobs >= 3, "{id}: {blobs}");
        let purged = world.client.purge(&id.into()).await.unwrap();
        assert_eq!(purged.blobs as usize, blobs, "{id}");
    }
}

#[tokio::test(start_paused = true)]
async fn binary_and_incompressible_payloads_survive() {
    let mut state = 1u32;
    let noise: String = (0..200_000)
        .map(|_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            char::from_u32(0x20 + (state >> 16) % 0xd000).unwrap()
        })
        .collect();
    round_trip("noise", &noise).await;
    let control: String = (0..40_000).map(|n| char::from_u32(n % 0x100).unwrap()).collect();
    round_trip("control", &control).await;
}

#[tokio::test(start_paused = true)]
async fn an_actor_with_a_large_state_leaves_no_blobs_of_old_generations() {
    let world = World::new();
    let worker = world.worker(|b| {
        b.orchestration("Grow", |ctx: OrchestrationContext, (round, text): (i32, String)| async move {
            if round < 3 {
                ctx.sleep(std::time::Duration::from_secs(1)).await;
                ctx.continue_as_new((round + 1, text))?;
                return Ok(None);
            }
            Outcome::Ok(Some(text.len()))
        })
    });
    world.start("grow", Start::new("Grow").input(&(0, "x".repeat(100_000))).unwrap()).await;
    world.completes("grow", "100000").await;
    let blobs = blobs(&world).await;
    assert!(blobs <= 3, "the start message, and what the last generation refers to: {blobs}");
    worker.stop().await;
}

#[tokio::test(start_paused = true)]
async fn large_tags_come_back() {
    let world = World::new();
    let worker = world.samples();
    let value = "t".repeat(40_000);
    world.start("tags", Start::new("Timer").input(&1).unwrap().tag("big", &value)).await;
    let state = world.end("tags").await;
    assert!(state.tags.unwrap().get("big") == Some(value.as_str()));
    worker.stop().await;
}

#[tokio::test(start_paused = true)]
async fn markup_that_grows_as_xml_goes_through_a_blob() {
    let (_, blobs) = round_trip("markup", &"<item>1</item>\n".repeat(2_600)).await;
    assert!(blobs > 0);
}

#[tokio::test(start_paused = true)]
async fn a_fan_in_of_large_non_latin_results_fits_its_transactions() {
    let world = World::new();
    let worker = world.worker(|b| {
        samples::register(b, Default::default()).orchestration(
            "Wide",
            |ctx: OrchestrationContext, (): ()| async move {
                let text = "日".repeat(15_000);
                let calls: Vec<_> = (0..120).map(|_| ctx.call_activity::<_, String>("Echo", &text)).collect();
                let mut length = 0;
                for answer in taskhub_worker::join_all(calls).await {
                    length += answer?.chars().count();
                }
                Outcome::Ok(length)
            },
        )
    });
    world.start("wide", Start::new("Wide")).await;
    world.completes("wide", "1800000").await;
    worker.stop().await;
}
