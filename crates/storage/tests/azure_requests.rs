//! What goes over the wire to Azure Storage and what becomes of its answers, against a server of our own.
//! The semantics are the contract's, which runs against the emulator.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use taskhub_core::Timestamp;
use taskhub_storage::connection::{AccessToken, Credential, Secret, TokenProvider};
use taskhub_storage::request::OperationCounts;
use taskhub_storage::{Condition, Entity, ErrorKind, TableOperation, TableQuery};

use support::{SILENCE, Server, answer, busy, key};

const PUT: &str = "<?xml version=\"1.0\"?><QueueMessagesList><QueueMessage><MessageId>id</MessageId>\
    <InsertionTime>Thu, 15 Jan 2026 09:30:00 GMT</InsertionTime>\
    <ExpirationTime>Fri, 31 Dec 9999 23:59:59 GMT</ExpirationTime><PopReceipt>pop</PopReceipt>\
    <TimeNextVisible>Thu, 15 Jan 2026 09:30:02 GMT</TimeNextVisible></QueueMessage></QueueMessagesList>";

#[tokio::test]
async fn a_message_never_expires_and_its_quotes_are_not_escaped() {
    let server = Server::start(&[&answer("201 Created", "", PUT)]).await;
    let text = "{\"a\":\"it's <b>&\"}";
    let put = server.account(key()).queues.put_message("queue", text, Duration::from_millis(1500)).await;
    let put = put.unwrap();
    assert_eq!((put.receipt.message_id.as_str(), put.receipt.token.as_str()), ("id", "pop"));
    assert_eq!(put.next_visible_at.to_iso(), "2026-01-15T09:30:02Z");
    let request = server.request(0);
    assert!(
        request.starts_with("POST /queue/queue/messages?visibilitytimeout=2&messagettl=-1 "),
        "{request}"
    );
    assert!(request.contains("<MessageText>{\"a\":\"it's &lt;b&gt;&amp;\"}</MessageText>"), "{request}");
    assert!(request.contains("x-ms-client-request-id: "), "{request}");
}

#[tokio::test]
async fn a_busy_service_is_asked_again() {
    let server = Server::start(&[&busy(), &answer("201 Created", "", PUT)]).await;
    server.account(key()).queues.put_message("queue", "x", Duration::ZERO).await.unwrap();
    assert_eq!(server.requests.lock().unwrap().len(), 2);
}

#[tokio::test]
async fn the_service_says_how_long_to_wait() {
    let headers = "Retry-After: 1\r\nx-ms-error-code: ServerBusy\r\n";
    let server = Server::start(&[&answer("503 Busy", headers, ""), &answer("201 Created", "", PUT)]).await;
    let started = tokio::time::Instant::now();
    server.account(key()).queues.put_message("queue", "x", Duration::ZERO).await.unwrap();
    assert!(started.elapsed() >= Duration::from_secs(1));
}

#[tokio::test]
async fn requests_are_counted_whatever_becomes_of_them() {
    let counts = OperationCounts::default();
    let server = Server::start(&[&busy(), &answer("201 Created", "", PUT), SILENCE]).await;
    let account = server.counted_account(key(), &counts);
    account.queues.put_message("queue", "x", Duration::ZERO).await.unwrap();
    assert_eq!(counts.of("PutMessage").count, 2);
    // Nobody waits for the third.
    let seen = async {
        while server.requests.lock().unwrap().len() < 3 {
            tokio::task::yield_now().await;
        }
    };
    tokio::select! {
        put = account.queues.put_message("queue", "x", Duration::ZERO) => panic!("{put:?}"),
        () = seen => {}
    }
    assert_eq!((counts.of("PutMessage").count, counts.of("PutMessage").errors), (3, 2));
}

#[tokio::test]
async fn a_lost_reply_shows_in_the_error_of_the_repetition() {
    let body = "{\"odata.error\":{\"code\":\"EntityAlreadyExists\",\"message\":{\"lang\":\"en-US\",\"value\":\"x\"}}}";
    let exists = answer("409 Conflict", "Content-Type: application/json\r\n", body);
    let server = Server::start(&["", &exists]).await;
    let insert = TableOperation::Insert(Entity::new("p", "r"));
    let error = server.account(key()).tables.execute("table", insert).await.unwrap_err();
    assert_eq!((error.kind(), error.code()), (ErrorKind::AlreadyExists, Some("EntityAlreadyExists")));
    assert!(error.maybe_applied());
}

#[tokio::test]
async fn a_delete_that_finds_nothing_the_second_time_has_succeeded() {
    let gone = answer("404 Not Found", "x-ms-error-code: BlobNotFound\r\n", "");
    let server = Server::start(&[&busy(), &gone]).await;
    server.account(key()).blobs.delete_blob("container", "b", None).await.unwrap();
}

#[tokio::test]
async fn a_failure_inside_a_transaction_is_an_error_with_its_index() {
    let body = "--batchresponse_1\r\nContent-Type: multipart/mixed; boundary=changesetresponse_1\r\n\r\n\
        --changesetresponse_1\r\nContent-Type: application/http\r\n\r\nHTTP/1.1 412 Precondition Failed\r\n\r\n\
        {\"odata.error\":{\"code\":\"UpdateConditionNotSatisfied\",\"message\":{\"lang\":\"en-US\",\"value\":\"1:no\"}}}\r\n\
        --changesetresponse_1--\r\n--batchresponse_1--\r\n";
    let server = Server::start(&[&answer("202 Accepted", "", body)]).await;
    let operations = vec![
        TableOperation::Insert(Entity::new("it's", "a").with("Text", "x")),
        TableOperation::Delete {
            partition_key: "it's".to_owned(),
            row_key: "b".to_owned(),
            condition: Condition::Any,
        },
    ];
    let error = server.account(key()).tables.transaction("table", &operations).await.unwrap_err();
    assert_eq!((error.kind(), error.status()), (ErrorKind::Conflict, Some(412)));
    assert_eq!(error.code(), Some("UpdateConditionNotSatisfied"));
    assert!(error.to_string().starts_with("1: "), "{error}");
    let (head, body) =
        server.request(0).split_once("\r\n\r\n").map(|(a, b)| (a.to_owned(), b.to_owned())).unwrap();
    assert!(head.starts_with("POST /table/$batch "), "{head}");
    assert_eq!(body.matches('\n').count(), body.matches("\r\n").count(), "{body}");
    assert!(body.contains("HTTP/1.1\r\nPrefer: return-no-content\r\n"), "{body}");
    assert!(body.contains("(PartitionKey='it''s',RowKey='b')"), "{body}");
    assert!(body.trim_end().ends_with("--"), "the outer boundary is closed: {body}");
}

#[tokio::test]
async fn a_page_carries_the_token_of_the_next() {
    let headers = "x-ms-continuation-NextPartitionKey: 1!4!cA--\r\nx-ms-continuation-NextRowKey: 1!4!cg--\r\nContent-Type: application/json\r\n";
    let body = "{\"odata.metadata\":\"m\",\"value\":[{\"odata.etag\":\"e\",\"PartitionKey\":\"p\",\"RowKey\":\"r\"}]}";
    let empty = "{\"odata.metadata\":\"m\",\"value\":[]}";
    let server = Server::start(&[&answer("200 OK", headers, body), &answer("200 OK", "", empty)]).await;
    let tables = server.account(key()).tables;
    let mut query = TableQuery { filter: Some("A eq 1".to_owned()), top: Some(1), ..TableQuery::default() };
    let page = tables.query("table", &query).await.unwrap();
    assert_eq!(page.entities.len(), 1);
    query.continuation = page.continuation;
    assert_eq!(query.continuation.as_deref(), Some("1!4!cA-- 1!4!cg--"));
    let page = tables.query("table", &query).await.unwrap();
    assert_eq!((page.entities.len(), page.continuation), (0, None));
    let request = server.request(1);
    assert!(request.contains("NextPartitionKey=1%214%21cA--&NextRowKey=1%214%21cg--"), "{request}");
    assert!(request.contains("accept: application/json;odata=minimalmetadata"), "{request}");
}

#[tokio::test]
async fn answers_that_make_no_sense_are_data_errors() {
    let server = Server::start(&[&answer("200 OK", "", "<nonsense"), &answer("200 OK", "", "{}")]).await;
    let account = server.account(key());
    let error = account.queues.get_messages("queue", 1, Duration::from_secs(1)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Data);
    let error = account.tables.query("table", &TableQuery::default()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Data);
}

/// A provider of one token, or none.
#[derive(Debug)]
struct Provider(Option<&'static str>);

#[async_trait]
impl TokenProvider for Provider {
    async fn token(&self) -> Result<AccessToken, String> {
        let secret = Secret::new(self.0.ok_or("the identity has no token")?);
        Ok(AccessToken { secret, expires_at: Timestamp::MAX })
    }
}

#[tokio::test]
async fn a_token_is_sent_as_a_bearer() {
    let server = Server::start(&[&answer("201 Created", "", PUT)]).await;
    let account = server.account(Credential::Token(Arc::new(Provider(Some("entra-token")))));
    account.queues.put_message("queue", "x", Duration::ZERO).await.unwrap();
    assert!(server.request(0).contains("authorization: Bearer entra-token\r\n"));
    let account = server.account(Credential::Token(Arc::new(Provider(None))));
    let error = account.queues.put_message("queue", "x", Duration::ZERO).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Denied);
    assert!(error.to_string().starts_with("no token from Entra ID: the identity has no token. "), "{error}");
}
