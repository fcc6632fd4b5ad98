//! Blobs, containers, leases.

use std::time::Duration;

use bytes::Bytes;
use taskhub_core::Timestamp;
use taskhub_storage::{Condition, ETag, ErrorKind, LeaseState, PutBlob, StorageAccount};
use uuid::Uuid;

use super::refused;
use crate::eventually_within;

const LEASE: Duration = Duration::from_secs(15);
const ME: Uuid = Uuid::from_u128(1);
const OTHER: Uuid = Uuid::from_u128(2);

/// A new container.
async fn container(account: &StorageAccount, prefix: &str) -> String {
    let name = format!("{prefix}-blobs");
    assert!(account.blobs.create_container(&name).await.unwrap());
    name
}

async fn put(account: &StorageAccount, container: &str, blob: &str, content: &str) -> ETag {
    let content = Bytes::from(content.to_owned());
    account.blobs.put_blob(container, blob, content, PutBlob::default()).await.unwrap()
}

async fn read(account: &StorageAccount, container: &str, blob: &str) -> Option<Bytes> {
    account.blobs.get_blob(container, blob).await.unwrap().map(|blob| blob.content)
}

fn with_lease(lease_id: Uuid) -> PutBlob {
    PutBlob { lease_id: Some(lease_id), ..PutBlob::default() }
}

fn when(condition: Condition) -> PutBlob {
    PutBlob { condition: Some(condition), ..PutBlob::default() }
}

/// Create, list, delete.
pub async fn a_container_is_created_once_listed_and_deleted(account: &StorageAccount, prefix: &str) {
    let blobs = &account.blobs;
    let (a, b) = (format!("{prefix}-a"), format!("{prefix}-b"));
    assert!(blobs.create_container(&b).await.unwrap());
    assert!(blobs.create_container(&a).await.unwrap());
    assert!(!blobs.create_container(&a).await.unwrap(), "it exists");
    assert_eq!(blobs.list_containers(&format!("{prefix}-")).await.unwrap(), [a.clone(), b.clone()]);
    blobs.delete_container(&a, None).await.unwrap();
    assert_eq!(blobs.list_containers(&format!("{prefix}-")).await.unwrap(), [b]);
    refused(blobs.create_container("No Name").await, ErrorKind::Invalid, 400, "InvalidResourceName");
}

/// Reads say `None`, writes fail.
pub async fn a_missing_container_or_blob_is_not_found(account: &StorageAccount, prefix: &str) {
    let blobs = &account.blobs;
    let there = container(account, prefix).await;
    let missing = format!("{prefix}-missing");
    for name in [&there, &missing] {
        assert_eq!(blobs.get_blob(name, "b").await.unwrap(), None);
        assert_eq!(blobs.blob_properties(name, "b").await.unwrap(), None);
    }
    refused(blobs.delete_blob(&there, "b", None).await, ErrorKind::NotFound, 404, "BlobNotFound");
    let outcome = blobs.acquire_lease(&there, Some("b"), ME, LEASE).await;
    refused(outcome, ErrorKind::NotFound, 404, "BlobNotFound");
    let code = "ContainerNotFound";
    let outcome = blobs.put_blob(&missing, "b", Bytes::new(), PutBlob::default()).await;
    refused(outcome, ErrorKind::NotFound, 404, code);
    refused(blobs.list_blobs(&missing, "", None).await, ErrorKind::NotFound, 404, code);
    refused(blobs.delete_container(&missing, None).await, ErrorKind::NotFound, 404, code);
    refused(blobs.acquire_lease(&missing, None, ME, LEASE).await, ErrorKind::NotFound, 404, code);
}

/// The life of a blob.
pub async fn a_blob_is_written_read_and_deleted(account: &StorageAccount, prefix: &str) {
    let name = container(account, prefix).await;
    let first = put(account, &name, "b", "one").await;
    let second = put(account, &name, "b", "three").await;
    assert_ne!(first, second);
    let blob = account.blobs.get_blob(&name, "b").await.unwrap().unwrap();
    assert_eq!(blob.content, Bytes::from_static(b"three"));
    assert_eq!(blob.properties.etag, second);
    assert_eq!((blob.properties.size_bytes, blob.properties.lease), (5, LeaseState::Free));
    assert!(blob.properties.last_modified_at > Timestamp::parse("2020-01-01").unwrap());
    assert_eq!(account.blobs.blob_properties(&name, "b").await.unwrap(), Some(blob.properties));
    account.blobs.delete_blob(&name, "b", None).await.unwrap();
    assert_eq!(read(account, &name, "b").await, None);
}

/// Which the service cannot read by range.
pub async fn an_empty_blob_is_read(account: &StorageAccount, prefix: &str) {
    let name = container(account, prefix).await;
    let etag = put(account, &name, "empty", "").await;
    let blob = account.blobs.get_blob(&name, "empty").await.unwrap().unwrap();
    assert_eq!((blob.content, blob.properties.size_bytes, blob.properties.etag), (Bytes::new(), 0, etag));
}

/// Over more than one range.
pub async fn a_large_blob_is_read_whole(account: &StorageAccount, prefix: &str) {
    let name = container(account, prefix).await;
    let content: Vec<u8> = (0..17 * 1024 * 1024u32).map(|n| (n / 7) as u8).collect();
    let content = Bytes::from(content);
    let written = account.blobs.put_blob(&name, "large", content.clone(), PutBlob::default()).await.unwrap();
    let blob = account.blobs.get_blob(&name, "large").await.unwrap().unwrap();
    assert!(blob.content == content, "17 MiB");
    assert_eq!((blob.properties.etag, blob.properties.size_bytes), (written, 17 * 1024 * 1024));
}

/// What URLs could spoil. A name that no client can send is refused.
pub async fn blob_names_survive(account: &StorageAccount, prefix: &str) {
    let name = container(account, prefix).await;
    let mut names = [
        "order-42/message-1.json.gz",
        "a b+c%20d@e?f=g&h",
        "\u{e9}\u{4e2d}\u{1f600}/x",
        "/leading",
        "trailing/",
        "a//b",
        "~!$'()*,;:[]{}|<>\"^`",
    ];
    for blob in names {
        put(account, &name, blob, blob).await;
    }
    for blob in names {
        assert_eq!(read(account, &name, blob).await, Some(Bytes::from(blob)), "{blob}");
    }
    let page = account.blobs.list_blobs(&name, "", None).await.unwrap();
    names.sort_unstable();
    assert_eq!(page.blobs.iter().map(|blob| blob.name.as_str()).collect::<Vec<_>>(), names);
    for blob in ["", "a/../b", "./b"] {
        let outcome = account.blobs.put_blob(&name, blob, Bytes::new(), PutBlob::default()).await;
        refused(outcome, ErrorKind::Invalid, 400, "InvalidResourceName");
    }
}

/// 409 and 412.
pub async fn writes_can_be_conditional(account: &StorageAccount, prefix: &str) {
    let blobs = &account.blobs;
    let name = container(account, prefix).await;
    let put_blob = async |blob: &str, options: PutBlob| {
        blobs.put_blob(&name, blob, Bytes::from_static(b"x"), options).await
    };
    let create = || PutBlob { create_only: true, ..PutBlob::default() };
    let first = put_blob("b", create()).await.unwrap();
    refused(put_blob("b", create()).await, ErrorKind::AlreadyExists, 409, "BlobAlreadyExists");
    let second = put_blob("b", when(Condition::Matches(first.clone()))).await.unwrap();
    let stale = put_blob("b", when(Condition::Matches(first))).await;
    refused(stale, ErrorKind::Conflict, 412, "ConditionNotMet");
    assert_eq!(blobs.blob_properties(&name, "b").await.unwrap().unwrap().etag, second);
    put_blob("b", when(Condition::Any)).await.unwrap();
    let both = PutBlob { condition: Some(Condition::Any), ..create() };
    assert_eq!(put_blob("b", both).await.unwrap_err().kind(), ErrorKind::Invalid);
}

/// Not on the emulator, which writes.
pub async fn a_write_to_any_version_needs_the_blob(account: &StorageAccount, prefix: &str) {
    let name = container(account, prefix).await;
    let outcome = account.blobs.put_blob(&name, "b", Bytes::new(), when(Condition::Any)).await;
    refused(outcome, ErrorKind::Conflict, 412, "ConditionNotMet");
}

/// List.
pub async fn blobs_are_listed_by_prefix(account: &StorageAccount, prefix: &str) {
    let name = container(account, prefix).await;
    for blob in ["b/2", "a/1", "b/1", "bc"] {
        put(account, &name, blob, "four").await;
    }
    let mut found = Vec::new();
    let mut continuation = None;
    loop {
        let page = account.blobs.list_blobs(&name, "b/", continuation).await.unwrap();
        found.extend(page.blobs);
        continuation = page.continuation;
        if continuation.is_none() {
            break;
        }
    }
    assert_eq!(found.iter().map(|blob| blob.name.as_str()).collect::<Vec<_>>(), ["b/1", "b/2"]);
    let properties = account.blobs.blob_properties(&name, "b/1").await.unwrap().unwrap();
    assert_eq!((&found[0].properties, found[0].metadata.len()), (&properties, 0));
    assert!(account.blobs.list_blobs(&name, "none", None).await.unwrap().blobs.is_empty());
}

/// 412 on writes and deletes.
pub async fn a_lease_keeps_others_from_writing(account: &StorageAccount, prefix: &str) {
    let blobs = &account.blobs;
    let name = container(account, prefix).await;
    put(account, &name, "b", "x").await;
    let put_blob =
        async |options: PutBlob| blobs.put_blob(&name, "b", Bytes::from_static(b"y"), options).await;
    let no_lease = put_blob(with_lease(ME)).await;
    refused(no_lease, ErrorKind::Conflict, 412, "LeaseNotPresentWithBlobOperation");
    blobs.acquire_lease(&name, Some("b"), ME, LEASE).await.unwrap();
    assert_eq!(blobs.blob_properties(&name, "b").await.unwrap().unwrap().lease, LeaseState::Leased);
    refused(put_blob(PutBlob::default()).await, ErrorKind::Conflict, 412, "LeaseIdMissing");
    let mismatch = "LeaseIdMismatchWithBlobOperation";
    refused(put_blob(with_lease(OTHER)).await, ErrorKind::Conflict, 412, mismatch);
    refused(blobs.delete_blob(&name, "b", None).await, ErrorKind::Conflict, 412, "LeaseIdMissing");
    refused(blobs.delete_blob(&name, "b", Some(OTHER)).await, ErrorKind::Conflict, 412, mismatch);
    assert_eq!(read(account, &name, "b").await, Some(Bytes::from_static(b"x")), "anybody may read");
    put_blob(with_lease(ME)).await.unwrap();
    assert_eq!(blobs.blob_properties(&name, "b").await.unwrap().unwrap().lease, LeaseState::Leased);
    blobs.delete_blob(&name, "b", Some(ME)).await.unwrap();
}

/// Acquire, renew, change, release.
pub async fn a_lease_is_taken_renewed_changed_and_released(account: &StorageAccount, prefix: &str) {
    let blobs = &account.blobs;
    let name = container(account, prefix).await;
    put(account, &name, "b", "x").await;
    let b = Some("b");
    let mismatch = "LeaseIdMismatchWithLeaseOperation";
    blobs.acquire_lease(&name, b, ME, LEASE).await.unwrap();
    blobs.acquire_lease(&name, b, ME, LEASE).await.expect("holding it already is a success");
    let taken = blobs.acquire_lease(&name, b, OTHER, LEASE).await;
    refused(taken, ErrorKind::Conflict, 409, "LeaseAlreadyPresent");
    blobs.renew_lease(&name, b, ME).await.unwrap();
    refused(blobs.renew_lease(&name, b, OTHER).await, ErrorKind::Conflict, 409, mismatch);
    blobs.change_lease(&name, b, ME, OTHER).await.unwrap();
    blobs.change_lease(&name, b, ME, OTHER).await.expect("having the new id already is a success");
    refused(blobs.renew_lease(&name, b, ME).await, ErrorKind::Conflict, 409, mismatch);
    let outcome = blobs.change_lease(&name, b, ME, Uuid::from_u128(3)).await;
    refused(outcome, ErrorKind::Conflict, 409, mismatch);
    refused(blobs.release_lease(&name, b, ME).await, ErrorKind::Conflict, 409, mismatch);
    blobs.release_lease(&name, b, OTHER).await.unwrap();
    assert_eq!(blobs.blob_properties(&name, "b").await.unwrap().unwrap().lease, LeaseState::Free);
    let outcome = blobs.release_lease(&name, b, OTHER).await;
    assert_eq!(outcome.unwrap_err().kind(), ErrorKind::Conflict);
    blobs.acquire_lease(&name, b, ME, LEASE).await.unwrap();
}

/// Break.
pub async fn a_broken_lease_is_free_at_once(account: &StorageAccount, prefix: &str) {
    let blobs = &account.blobs;
    let name = container(account, prefix).await;
    put(account, &name, "b", "x").await;
    blobs.break_lease(&name, Some("b")).await.expect("there is none");
    blobs.acquire_lease(&name, Some("b"), ME, LEASE).await.unwrap();
    blobs.break_lease(&name, Some("b")).await.unwrap();
    blobs.break_lease(&name, Some("b")).await.expect("there is none any more");
    assert_eq!(blobs.renew_lease(&name, Some("b"), ME).await.unwrap_err().kind(), ErrorKind::Conflict);
    put(account, &name, "b", "anybody").await;
    blobs.acquire_lease(&name, Some("b"), OTHER, LEASE).await.unwrap();
}

/// Expiry.
pub async fn an_expired_lease_can_be_renewed_until_somebody_writes_or_takes_it(
    account: &StorageAccount,
    prefix: &str,
) {
    let blobs = &account.blobs;
    let name = container(account, prefix).await;
    for blob in ["renewed", "taken", "written"] {
        put(account, &name, blob, "x").await;
        blobs.acquire_lease(&name, Some(blob), ME, LEASE).await.unwrap();
    }
    let name = name.as_str();
    let free = |blob: &'static str| {
        eventually_within(LEASE * 4, "the lease expires", move || async move {
            let properties = blobs.blob_properties(name, blob).await.unwrap().unwrap();
            (properties.lease == LeaseState::Free).then_some(())
        })
    };
    free("written").await;
    free("renewed").await;
    free("taken").await;
    blobs.renew_lease(name, Some("renewed"), ME).await.unwrap();
    assert_eq!(blobs.blob_properties(name, "renewed").await.unwrap().unwrap().lease, LeaseState::Leased);
    blobs.acquire_lease(name, Some("taken"), OTHER, LEASE).await.unwrap();
    assert_eq!(blobs.renew_lease(name, Some("taken"), ME).await.unwrap_err().kind(), ErrorKind::Conflict);
    put(account, name, "written", "somebody").await;
    assert_eq!(blobs.renew_lease(name, Some("written"), ME).await.unwrap_err().kind(), ErrorKind::Conflict);
}

/// Leases on containers.
pub async fn a_container_can_be_leased(account: &StorageAccount, prefix: &str) {
    let blobs = &account.blobs;
    let name = container(account, prefix).await;
    let mismatch = "LeaseIdMismatchWithLeaseOperation";
    blobs.acquire_lease(&name, None, ME, LEASE).await.unwrap();
    blobs.acquire_lease(&name, None, ME, LEASE).await.expect("the other workers of one application");
    let taken = blobs.acquire_lease(&name, None, OTHER, LEASE).await;
    refused(taken, ErrorKind::Conflict, 409, "LeaseAlreadyPresent");
    blobs.renew_lease(&name, None, ME).await.unwrap();
    refused(blobs.renew_lease(&name, None, OTHER).await, ErrorKind::Conflict, 409, mismatch);
    put(account, &name, "b", "blobs are free").await;
    blobs.change_lease(&name, None, ME, OTHER).await.unwrap();
    refused(blobs.renew_lease(&name, None, ME).await, ErrorKind::Conflict, 409, mismatch);
    refused(blobs.delete_container(&name, None).await, ErrorKind::Conflict, 412, "LeaseIdMissing");
    let outcome = blobs.delete_container(&name, Some(ME)).await;
    refused(outcome, ErrorKind::Conflict, 412, "LeaseIdMismatchWithContainerOperation");
    blobs.release_lease(&name, None, OTHER).await.unwrap();
    blobs.acquire_lease(&name, None, ME, LEASE).await.unwrap();
    blobs.break_lease(&name, None).await.unwrap();
    blobs.acquire_lease(&name, None, OTHER, LEASE).await.unwrap();
    blobs.delete_container(&name, Some(OTHER)).await.unwrap();
}

/// 15 to 60 s.
pub async fn lease_durations_have_limits(account: &StorageAccount, prefix: &str) {
    let name = container(account, prefix).await;
    for seconds in [14, 61] {
        let outcome = account.blobs.acquire_lease(&name, None, ME, Duration::from_secs(seconds)).await;
        refused(outcome, ErrorKind::Invalid, 400, "InvalidHeaderValue");
    }
    account.blobs.acquire_lease(&name, None, ME, Duration::from_secs(60)).await.unwrap();
}

/// Which goes into rows.
pub async fn a_container_url_is_absolute(account: &StorageAccount, prefix: &str) {
    let url = account.blobs.container_url(prefix);
    assert!(url.starts_with("http") && url.ends_with(&format!("/{prefix}")), "{url}");
    assert!(!url.contains('?'), "no signature: {url}");
}
