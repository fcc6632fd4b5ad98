//! Queues.

use std::time::Duration;

use taskhub_core::Timestamp;
use taskhub_storage::{ErrorKind, QueueMessage, StorageAccount};

use super::refused;
use crate::eventually;

const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_secs(60);

/// A new queue.
async fn queue(account: &StorageAccount, prefix: &str) -> String {
    let name = format!("{prefix}-queue");
    assert!(account.queues.create_queue(&name).await.unwrap());
    name
}

fn texts(messages: &[QueueMessage]) -> Vec<&str> {
    messages.iter().map(|message| message.text.as_str()).collect()
}

/// Receives one message as soon as there is one.
async fn next(account: &StorageAccount, queue: &str) -> QueueMessage {
    eventually("a message", || async { account.queues.get_messages(queue, 1, MINUTE).await.unwrap().pop() })
        .await
}

/// Create, list, delete.
pub async fn a_queue_is_created_once_listed_and_deleted(account: &StorageAccount, prefix: &str) {
    let queues = &account.queues;
    let (a, b) = (format!("{prefix}-a"), format!("{prefix}-b"));
    assert!(queues.create_queue(&b).await.unwrap());
    assert!(queues.create_queue(&a).await.unwrap());
    assert!(!queues.create_queue(&a).await.unwrap(), "it exists");
    assert_eq!(queues.list_queues(&format!("{prefix}-")).await.unwrap(), [a.clone(), b.clone()]);
    queues.delete_queue(&a).await.unwrap();
    assert_eq!(queues.list_queues(&format!("{prefix}-")).await.unwrap(), [b]);
    refused(queues.create_queue("No Name").await, ErrorKind::Invalid, 400, "InvalidResourceName");
}

/// Every method but create and list.
pub async fn a_missing_queue_is_not_found(account: &StorageAccount, prefix: &str) {
    let queues = &account.queues;
    let name = queue(account, prefix).await;
    let receipt = queues.put_message(&name, "x", Duration::ZERO).await.unwrap().receipt;
    queues.delete_queue(&name).await.unwrap();
    let missing = (ErrorKind::NotFound, 404, "QueueNotFound");
    macro_rules! check {
        ($outcome:expr) => {
            refused($outcome.await, missing.0, missing.1, missing.2)
        };
    }
    check!(queues.put_message(&name, "x", Duration::ZERO));
    check!(queues.get_messages(&name, 1, MINUTE));
    check!(queues.peek_messages(&name, 1));
    check!(queues.message_count(&name));
    check!(queues.delete_queue(&name));
    check!(queues.delete_message(&name, &receipt));
    check!(queues.update_message(&name, &receipt, "x", MINUTE));
}

/// The life of a message.
pub async fn a_message_is_put_received_and_deleted(account: &StorageAccount, prefix: &str) {
    let queues = &account.queues;
    let name = queue(account, prefix).await;
    assert!(queues.get_messages(&name, 32, MINUTE).await.unwrap().is_empty());
    let put = queues.put_message(&name, "hello", Duration::ZERO).await.unwrap();
    assert_eq!(put.inserted_at, put.inserted_at.truncated_to_second());
    assert_eq!(queues.message_count(&name).await.unwrap(), 1);

    let received = queues.get_messages(&name, 32, MINUTE).await.unwrap();
    assert_eq!(texts(&received), ["hello"]);
    let message = &received[0];
    assert_eq!(message.receipt.message_id, put.receipt.message_id);
    assert_ne!(message.receipt.token, put.receipt.token);
    assert_eq!((message.inserted_at, message.dequeue_count), (put.inserted_at, 1));
    let hidden_for = message.next_visible_at.saturating_since(message.inserted_at);
    assert!((MINUTE - SECOND..=MINUTE * 2).contains(&hidden_for), "{hidden_for:?}");
    assert!(queues.get_messages(&name, 32, MINUTE).await.unwrap().is_empty(), "it is hidden");
    assert_eq!(queues.message_count(&name).await.unwrap(), 1, "hidden ones count");

    queues.delete_message(&name, &message.receipt).await.unwrap();
    assert_eq!(queues.message_count(&name).await.unwrap(), 0);
    let gone = queues.delete_message(&name, &message.receipt).await;
    refused(gone, ErrorKind::NotFound, 404, "MessageNotFound");
    let gone = queues.update_message(&name, &message.receipt, "x", MINUTE).await;
    refused(gone, ErrorKind::NotFound, 404, "MessageNotFound");
}

/// What XML could spoil.
pub async fn texts_survive(account: &StorageAccount, prefix: &str) {
    let name = queue(account, prefix).await;
    for text in
        ["{\"a\":\"<b>&amp;&quot;'\u{e9}\u{4e2d}\u{1f600}\"}", "a\nb", "&quot;", "eyJhIjoxfQ==", "x y  z"]
    {
        account.queues.put_message(&name, text, Duration::ZERO).await.unwrap();
        let message = next(account, &name).await;
        assert_eq!(message.text, text);
        let update = account.queues.update_message(&name, &message.receipt, text, Duration::ZERO).await;
        update.unwrap();
        let message = next(account, &name).await;
        assert_eq!(message.text, text, "updated");
        account.queues.delete_message(&name, &message.receipt).await.unwrap();
    }
}

/// First in, first out, as far as the service promises.
pub async fn messages_come_in_order_of_insertion(account: &StorageAccount, prefix: &str) {
    let name = queue(account, prefix).await;
    for text in ["1", "2", "3"] {
        account.queues.put_message(&name, text, Duration::ZERO).await.unwrap();
    }
    let first = account.queues.get_messages(&name, 2, MINUTE).await.unwrap();
    assert_eq!(texts(&first), ["1", "2"]);
    assert_eq!(texts(&account.queues.get_messages(&name, 2, MINUTE).await.unwrap()), ["3"]);
}

/// The delay of a put.
pub async fn a_delayed_message_shows_when_its_time_has_come(account: &StorageAccount, prefix: &str) {
    let name = queue(account, prefix).await;
    let put = account.queues.put_message(&name, "later", Duration::from_millis(1100)).await.unwrap();
    let delay = put.next_visible_at.saturating_since(put.inserted_at);
    assert!((SECOND..=SECOND * 3).contains(&delay), "{delay:?}");
    assert!(account.queues.get_messages(&name, 1, MINUTE).await.unwrap().is_empty());
    let message = next(account, &name).await;
    assert_eq!((message.text.as_str(), message.dequeue_count), ("later", 1));
}

/// Peek.
pub async fn a_peek_shows_only_what_is_visible_and_receives_nothing(account: &StorageAccount, prefix: &str) {
    let queues = &account.queues;
    let name = queue(account, prefix).await;
    queues.put_message(&name, "hidden", MINUTE).await.unwrap();
    let put = queues.put_message(&name, "visible", Duration::ZERO).await.unwrap();
    for _ in 0..2 {
        let peeked = queues.peek_messages(&name, 32).await.unwrap();
        assert_eq!(texts(&peeked), ["visible"]);
        assert_eq!(peeked[0].receipt.message_id, put.receipt.message_id);
        assert_eq!(peeked[0].receipt.token, "");
        assert_eq!((peeked[0].dequeue_count, peeked[0].next_visible_at), (0, Timestamp::MIN));
    }
}

/// Update.
pub async fn an_update_hides_the_message_and_voids_the_old_receipt(account: &StorageAccount, prefix: &str) {
    let queues = &account.queues;
    let name = queue(account, prefix).await;
    queues.put_message(&name, "old", Duration::ZERO).await.unwrap();
    let message = next(account, &name).await;
    let (receipt, _) = queues.update_message(&name, &message.receipt, "new", SECOND).await.unwrap();
    assert_eq!(receipt.message_id, message.receipt.message_id);
    let stale = queues.delete_message(&name, &message.receipt).await;
    refused(stale, ErrorKind::PopReceiptMismatch, 400, "PopReceiptMismatch");
    assert!(queues.get_messages(&name, 1, MINUTE).await.unwrap().is_empty());
    let again = next(account, &name).await;
    assert_eq!((again.text.as_str(), again.dequeue_count), ("new", 2));
}

/// How a message is given back.
pub async fn an_update_to_zero_shows_the_message_at_once(account: &StorageAccount, prefix: &str) {
    let queues = &account.queues;
    let name = queue(account, prefix).await;
    queues.put_message(&name, "x", Duration::ZERO).await.unwrap();
    let message = next(account, &name).await;
    queues.update_message(&name, &message.receipt, "x", Duration::ZERO).await.unwrap();
    assert_eq!(queues.get_messages(&name, 1, MINUTE).await.unwrap().len(), 1);
}

/// The end of the visibility timeout alone voids nothing.
pub async fn an_old_receipt_works_until_somebody_else_receives(account: &StorageAccount, prefix: &str) {
    let queues = &account.queues;
    let name = queue(account, prefix).await;
    queues.put_message(&name, "x", Duration::ZERO).await.unwrap();
    let first = queues.get_messages(&name, 1, SECOND).await.unwrap().remove(0);
    let visible = || async { queues.peek_messages(&name, 1).await.unwrap().pop() };
    eventually("the message is visible", visible).await;
    let (renewed, _) = queues.update_message(&name, &first.receipt, "x", SECOND).await.unwrap();
    eventually("the message is visible", visible).await;
    let second = next(account, &name).await;
    assert_eq!(second.dequeue_count, 2);
    let stale = queues.update_message(&name, &renewed, "x", MINUTE).await;
    refused(stale, ErrorKind::PopReceiptMismatch, 400, "PopReceiptMismatch");
    let stale = queues.delete_message(&name, &renewed).await;
    refused(stale, ErrorKind::PopReceiptMismatch, 400, "PopReceiptMismatch");
    queues.delete_message(&name, &second.receipt).await.unwrap();
}

/// A message can be taken back.
pub async fn the_receipt_of_a_put_can_delete_the_message(account: &StorageAccount, prefix: &str) {
    let name = queue(account, prefix).await;
    let put = account.queues.put_message(&name, "x", MINUTE).await.unwrap();
    account.queues.delete_message(&name, &put.receipt).await.unwrap();
    assert_eq!(account.queues.message_count(&name).await.unwrap(), 0);
}

/// 32 messages, 7 days.
pub async fn counts_and_delays_have_limits(account: &StorageAccount, prefix: &str) {
    let queues = &account.queues;
    let name = queue(account, prefix).await;
    let week = Duration::from_secs(7 * 24 * 3600);
    let code = "OutOfRangeQueryParameterValue";
    for count in [0, 33] {
        refused(queues.get_messages(&name, count, MINUTE).await, ErrorKind::Invalid, 400, code);
        refused(queues.peek_messages(&name, count).await, ErrorKind::Invalid, 400, code);
    }
    refused(queues.put_message(&name, "x", week + SECOND).await, ErrorKind::Invalid, 400, code);
    let put = queues.put_message(&name, "x", week).await.unwrap();
    let too_long = queues.update_message(&name, &put.receipt, "x", week + SECOND).await;
    refused(too_long, ErrorKind::Invalid, 400, code);
    queues.update_message(&name, &put.receipt, "x", week).await.unwrap();
}

/// 64 KiB, measured as XML. Quotes count once, although the package would send six bytes for each.
pub async fn a_message_has_a_largest_size(account: &StorageAccount, prefix: &str) {
    let name = queue(account, prefix).await;
    let quotes = "\"".repeat(46_080);
    account.queues.put_message(&name, &quotes, Duration::ZERO).await.unwrap();
    assert_eq!(next(account, &name).await.text, quotes);
    let large = account.queues.put_message(&name, &"a".repeat(65_537), Duration::ZERO).await;
    refused(large, ErrorKind::Invalid, 413, "RequestBodyTooLarge");
}

/// Checked before anything is sent: the emulator lets them through, the service cannot read the XML.
pub async fn control_characters_are_refused(account: &StorageAccount, prefix: &str) {
    let name = queue(account, prefix).await;
    for text in ["a\u{0}", "\u{1f}", "\u{fffe}"] {
        let outcome = account.queues.put_message(&name, text, Duration::ZERO).await;
        refused(outcome, ErrorKind::Invalid, 400, "InvalidXmlDocument");
    }
}
