use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use azure_core::date::parse_rfc1123;
use azure_core::headers::{HeaderName, Headers};
use azure_core::{Body, BytesStream, Context, Method, Policy, PolicyResult, Request, Response, StatusCode};
use azure_storage::clients::ServiceType;
use bytes::Bytes;
use taskhub_core::{IdSource, Timestamp};

use super::batch;
use super::queue::timestamp;
use crate::request::one_more_is_sent;

const ERROR_CODE: HeaderName = HeaderName::from_static("x-ms-error-code");
const REQUEST_ID: HeaderName = HeaderName::from_static("x-ms-client-request-id");
const NEXT_PARTITION_KEY: HeaderName = HeaderName::from_static("x-ms-continuation-nextpartitionkey");
const NEXT_ROW_KEY: HeaderName = HeaderName::from_static("x-ms-continuation-nextrowkey");
const RETRY_AFTER: HeaderName = HeaderName::from_static("retry-after");
const CONTENT_LENGTH: HeaderName = HeaderName::from_static("content-length");
/// Longest wait that an answer may ask for.
const MAX_RETRY_AFTER_SECONDS: u64 = 3600;
const DATE: HeaderName = HeaderName::from_static("date");
const ACCEPT: HeaderName = HeaderName::from_static("accept");

/// In a request's context: the message never expires (`messagettl=-1`), which a `Duration` cannot say.
#[derive(Debug)]
pub(super) struct NeverExpires;

/// In a request's context: the path of a blob whose name begins or ends with a slash, which the package
/// trims.
#[derive(Debug)]
pub(super) struct ExactPath(pub(super) String);

/// In a request's context: takes what the packages do not hand out of an answer.
#[derive(Debug, Clone, Default)]
pub(super) struct Answer(Arc<Mutex<Seen>>);

/// What was seen of the last answer.
#[derive(Debug, Clone, Default)]
pub(super) struct Seen {
    pub(super) status: u16,
    /// The two parts of a table's continuation token.
    pub(super) next_keys: Option<(String, String)>,
    pub(super) retry_after: Option<Duration>,
    /// The server's clock.
    pub(super) served_at: Option<Timestamp>,
    /// Index of the operation that made a group transaction fail.
    pub(super) failed_index: Option<usize>,
}

impl Answer {
    pub(super) fn seen(&self) -> MutexGuard<'_, Seen> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A context that reports to this answer.
    pub(super) fn context(&self) -> Context {
        let mut context = Context::new();
        context.insert(self.clone());
        context
    }
}

/// Runs once per request, before it is signed.
#[derive(Debug)]
pub(super) struct Requests {
    pub(super) ids: Arc<dyn IdSource>,
}

#[async_trait]
impl Policy for Requests {
    async fn send(&self, ctx: &Context, request: &mut Request, next: &[Arc<dyn Policy>]) -> PolicyResult {
        request.insert_header(REQUEST_ID, self.ids.guid().to_string());
        if ctx.get::<NeverExpires>().is_some() {
            request.url_mut().query_pairs_mut().append_pair("messagettl", "-1");
        }
        if let Some(ExactPath(path)) = ctx.get::<ExactPath>() {
            request.url_mut().set_path(path);
        }
        // The URL package leaves these bare. They are no legal part of a path: what the service signs could
        // be another spelling than what was signed here.
        let path = request.url().path();
        if path.contains(['^', '|', '[', ']']) {
            let escaped =
                path.replace('^', "%5E").replace('|', "%7C").replace('[', "%5B").replace(']', "%5D");
            request.url_mut().set_path(&escaped);
        }
        let path = request.url().path();
        match ctx.get::<ServiceType>() {
            // The package asks for full metadata, which triples the size of rows. It cannot read tables
            // without.
            Some(ServiceType::Table) if *request.method() == Method::Get && !path.ends_with("/Tables") => {
                request.insert_header(ACCEPT, "application/json;odata=minimalmetadata");
            }
            Some(ServiceType::Table) if path.ends_with("/$batch") => replace_body(request, batch::rewrite),
            Some(ServiceType::Queue) => replace_body(request, unescape_quotes),
            _ => {}
        }
        one_more_is_sent();
        next[0].send(ctx, request, &next[1..]).await
    }
}

/// Puts another text in place of the body's.
fn replace_body(request: &mut Request, rewrite: impl FnOnce(&str) -> Option<String>) {
    let Body::Bytes(body) = request.body() else { return };
    let Some(text) = std::str::from_utf8(body).ok().and_then(rewrite) else { return };
    request.insert_header(CONTENT_LENGTH, text.len().to_string());
    request.set_body(text);
}

/// The package writes quotes as XML entities, although they need none inside an element. JSON is full of
/// quotes, so a message that the service takes from .NET would be too large.
fn unescape_quotes(xml: &str) -> Option<String> {
    let escaped = xml.contains("&quot;") || xml.contains("&apos;");
    escaped.then(|| xml.replace("&quot;", "\"").replace("&apos;", "'"))
}

/// Sees every answer.
#[derive(Debug)]
pub(super) struct Answers;

#[async_trait]
impl Policy for Answers {
    async fn send(&self, ctx: &Context, request: &mut Request, next: &[Arc<dyn Policy>]) -> PolicyResult {
        let response = next[0].send(ctx, request, &next[1..]).await?;
        let is_batch = request.url().path().ends_with("/$batch");
        let answer = ctx.get::<Answer>();
        if let Some(answer) = answer {
            let headers = response.headers();
            let next = headers.get_optional_string(&NEXT_PARTITION_KEY);
            let row = headers.get_optional_string(&NEXT_ROW_KEY).unwrap_or_default();
            let seconds = headers.get_optional_str(&RETRY_AFTER).and_then(|text| text.parse::<u64>().ok());
            let date = headers.get_optional_str(&DATE).and_then(|text| parse_rfc1123(text).ok());
            let mut seen = answer.seen();
            seen.served_at = date.map(timestamp);
            seen.status = u16::from(response.status());
            seen.next_keys = next.map(|partition| (partition, row));
            seen.retry_after = seconds.map(|s| Duration::from_secs(s.min(MAX_RETRY_AFTER_SECONDS)));
        }
        if response.status().is_success() {
            return if is_batch { open_batch(response, answer).await } else { Ok(response) };
        }
        if response.headers().get_optional_str(&ERROR_CODE).is_some() {
            return Ok(response);
        }
        // A body is where the table service, and a HEAD's missing body is where nobody, says what is wrong.
        let (status, mut headers, body) = response.deconstruct();
        let body = body.collect().await?;
        if let Some(code) = error_code(&body) {
            headers.insert(ERROR_CODE, code);
        }
        Ok(rebuild(status, headers, body))
    }
}

/// A group transaction is always accepted; what failed stands inside.
async fn open_batch(response: Response, answer: Option<&Answer>) -> PolicyResult {
    let (status, mut headers, body) = response.deconstruct();
    let body = body.collect().await?;
    let Some(failed) = batch::failed_part(&String::from_utf8_lossy(&body)) else {
        return Ok(rebuild(status, headers, body));
    };
    if let Some(answer) = answer {
        answer.seen().failed_index = failed.index;
    }
    headers.insert(ERROR_CODE, failed.code);
    let status = StatusCode::try_from(failed.status).unwrap_or(StatusCode::InternalServerError);
    Ok(rebuild(status, headers, body))
}

fn rebuild(status: StatusCode, headers: Headers, body: Bytes) -> Response {
    Response::new(status, headers, Box::pin(BytesStream::new(body)))
}

/// The code in a JSON or XML error body.
fn error_code(body: &[u8]) -> Option<String> {
    let text = std::str::from_utf8(body).ok()?.trim_start_matches('\u{feff}').trim();
    let code = if text.starts_with('{') {
        let json: serde_json::Value = serde_json::from_str(text).ok()?;
        json.get("odata.error")?.get("code")?.as_str()?.to_owned()
    } else {
        text.split_once("<Code>")?.1.split_once("</Code>")?.0.to_owned()
    };
    is_code(&code).then_some(code)
}

/// Whether a text can be a code: it goes into errors and logs.
pub(super) fn is_code(text: &str) -> bool {
    (1..=100).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_alphanumeric())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_found_in_json_and_xml_bodies() {
        let json = br#"{"odata.error":{"code":"TableNotFound","message":{"lang":"en-US","value":"x"}}}"#;
        assert_eq!(error_code(json).as_deref(), Some("TableNotFound"));
        let xml =
            "\u{feff}<?xml version=\"1.0\"?><Error><Code>QueueNotFound</Code><Message>x</Message></Error>";
        assert_eq!(error_code(xml.as_bytes()).as_deref(), Some("QueueNotFound"));
        assert_eq!(error_code(b"<Code>no such thing!</Code>"), None);
        assert_eq!(error_code(b""), None);
        assert_eq!(error_code(&[0xff]), None);
    }

    #[test]
    fn quotes_of_a_message_are_sent_as_they_are() {
        assert_eq!(
            unescape_quotes("<a>&quot;x&quot; &apos;&amp;quot;</a>").as_deref(),
            Some("<a>\"x\" '&amp;quot;</a>")
        );
        assert_eq!(unescape_quotes("<a>&apos;</a>").as_deref(), Some("<a>'</a>"));
        assert_eq!(unescape_quotes("<a>x</a>"), None);
    }
}
