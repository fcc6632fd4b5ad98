//! Who may ask, what is kept secret, and input that wants to do harm.

use std::io::Write;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use taskhub_client::fake::FakeService;
use taskhub_core::OrchestrationStatus::Running;
use taskhub_http::axum::body::Body;
use taskhub_http::axum::http::Request;
use taskhub_http::management::{ApiKey, Options};
use taskhub_http::{ServeSettings, listen, serve_with};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_util::sync::CancellationToken;
use tracing_subscriber::fmt::MakeWriter;

use crate::support::{Api, BASE, Reply, request};

const KEY: &str = "0123456789abcdef/+=";

fn with_key() -> Api {
    let options = Options { key: Some(ApiKey::new(KEY).unwrap()), ..Options::default() };
    Api::new(FakeService::default().with_state("x", Running), options)
}

#[tokio::test]
async fn every_path_of_the_api_needs_the_key_in_query_or_header() {
    let api = with_key();
    for path in ["/instances/x", "/instances/nobody", "/nothing", ""] {
        for query in ["", "?code=", "?code=0123456789abcdef", "?x=0123456789abcdef%2F%2B%3D"] {
            let reply = api.send(&format!("GET {path}{query}"), None).await;
            assert_eq!(reply.code, 401, "{path}{query}");
            reply.has_no_body();
        }
    }
    for path in ["/durabletask/instances/x", "/api/orchestrators/F/wait"] {
        assert_eq!(api.raw(request("POST", path, None)).await.code, 401, "{path}");
    }
    assert_eq!(api.send("GET /instances/x?CODE=0123456789abcdef%2F%2B%3D", None).await.code, 202);
    let header = |key: &str| {
        Request::get(format!("{BASE}/instances/x")).header("x-functions-key", key).body(Body::empty())
    };
    assert_eq!(api.raw(header(KEY).unwrap()).await.code, 202);
    assert_eq!(api.raw(header("0123456789abcdef/+").unwrap()).await.code, 401);
    // The description is no secret.
    assert_eq!(api.raw(request("GET", "/openapi.json", None)).await.code, 200);
}

#[tokio::test]
async fn generated_addresses_carry_the_key_and_work() {
    let api = with_key();
    let reply = api.send("POST /orchestrators/F/y?code=0123456789abcdef%2F%2B%3D", None).await;
    let url = reply.json()["statusQueryGetUri"].as_str().unwrap().to_owned();
    assert!(url.ends_with("&code=0123456789abcdef%2F%2B%3D"), "{url}");
    let path = url.strip_prefix("http://localhost:7071").unwrap();
    assert_eq!(api.raw(request("GET", path, None)).await.code, 202);
}

/// What is logged.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Log {
    type Writer = Self;
    fn make_writer(&'a self) -> Self {
        self.clone()
    }
}

#[tokio::test]
async fn keys_ids_and_payloads_are_not_logged() {
    let log = Log::default();
    let subscriber =
        tracing_subscriber::fmt().with_max_level(tracing::Level::TRACE).with_writer(log.clone()).finish();
    let guard = tracing::subscriber::set_default(subscriber);
    let api = with_key();
    for query in ["?code=0123456789abcdef%2F%2B%3D", "?code=0123456789wrong"] {
        api.send(&format!("POST /orchestrators/F{query}&reason=hush"), Some("\"hush\"")).await;
        api.send(&format!("POST /instances/x/terminate{query}&reason=hush"), None).await;
    }
    drop(guard);
    let text = String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
    assert!(text.contains("answered"), "{text}");
    assert!(!text.contains("0123456789") && !text.contains("hush"), "{text}");
}

#[tokio::test]
async fn only_this_machine_and_its_own_pages_are_answered_where_that_is_asked_for() {
    let options = Options { local_only: true, ..Options::default() };
    let api = Api::new(FakeService::default().with_state("x", Running), options);
    let code = async |host: &str, page: Option<&str>| {
        let request = Request::get(format!("{BASE}/instances/x")).header("host", host);
        let request = page.into_iter().fold(request, |request, page| request.header("origin", page));
        api.raw(request.body(Body::empty()).unwrap()).await.code.as_u16()
    };
    for host in ["localhost:7071", "127.0.0.1", "[::1]:7071", "LOCALHOST"] {
        assert_eq!(code(host, None).await, 202, "{host}");
    }
    for host in ["evil.example", "127.0.0.1.evil.example", "10.0.0.1:7071", "user@localhost", ""] {
        assert_eq!(code(host, None).await, 403, "{host}");
    }
    assert_eq!(code("localhost", Some("http://localhost:3000")).await, 202);
    for page in ["http://evil.example", "null", "file://"] {
        assert_eq!(code("localhost", Some(page)).await, 403, "{page}");
    }
}

#[tokio::test]
async fn forwarded_hosts_count_only_when_asked_for() {
    let send = async |use_forwarded_host: bool, host: &str| -> String {
        let options = Options { use_forwarded_host, ..Options::default() };
        let request = Request::post(format!("{BASE}/orchestrators/F/a"))
            .header("host", "inside:80")
            .header("x-forwarded-host", host)
            .header("x-forwarded-proto", "https");
        let reply = Api::new(FakeService::default(), options).raw(request.body(Body::empty()).unwrap()).await;
        reply.header("location").unwrap().to_owned()
    };
    assert!(send(false, "outside.example").await.starts_with("http://inside:80/"));
    assert!(send(true, "outside.example, proxy").await.starts_with("https://outside.example/runtime/"));
    for bad in ["a b", "me:secret@outside", "x/y", ""] {
        assert!(send(true, bad).await.starts_with("http://inside:80/"), "{bad}");
    }
}

#[tokio::test]
async fn a_public_address_stands_in_front_of_all_others() {
    let options = Options {
        public_url: Some("https://outside.example/hub/api/".parse().unwrap()),
        base_path: "management/".into(),
        ..Options::default()
    };
    let api = Api::new(FakeService::default(), options);
    let reply = api.raw(request("POST", "/Management/orchestrators/F/a", None)).await;
    assert_eq!(reply.code, 202);
    assert!(reply.header("location").unwrap().starts_with("https://outside.example/hub/api/instances/a?"));
    let status = api.raw(request("GET", "/management/instances/a?x=1", None)).await;
    assert_eq!(status.header("location"), Some("https://outside.example/hub/api/instances/a?x=1"));
    assert_eq!(api.send("GET /instances/a", None).await.code, 404);
}

#[tokio::test]
async fn large_bodies_are_refused_before_and_while_they_come() {
    let options = Options { max_body_bytes: 1000, ..Options::default() };
    let api = Api::new(FakeService::default().with_state("x", Running), options);
    let large = format!("\"{}\"", "x".repeat(2000));
    for line in ["POST /orchestrators/F", "POST /instances/x/raiseEvent/E", "POST /entities/e/k?op=o"] {
        // Without a length, as it comes in chunks.
        let reply = api.send(line, Some(&large)).await;
        assert_eq!(reply.code, 413, "{line}");
        let (method, path) = line.split_once(' ').unwrap();
        let said = Request::builder().method(method).uri(format!("{BASE}{path}"));
        let said = said.header("content-type", "application/json").header("content-length", "5000000000");
        assert_eq!(api.raw(said.body(Body::empty()).unwrap()).await.code, 413, "{line}");
    }
    assert!(api.fake.started().is_empty() && api.fake.sent().is_empty());
    // What needs no body does not look at it.
    assert_eq!(api.send("POST /instances/x/suspend", Some(&large)).await.code, 202);
}

#[tokio::test]
async fn deep_and_broken_json_is_an_error_and_no_crash() {
    let api = Api::with(Some(Running));
    for body in [&"[".repeat(1_000_000), "{\"a\":", "\u{1}", "nul", "1e", "\"\\ud8\"", "[1] [2]"] {
        assert_eq!(api.send("POST /orchestrators/F", Some(body)).await.code, 400, "{body:.10}");
        assert_eq!(api.send("POST /instances/x/raiseEvent/E", Some(body)).await.code, 400, "{body:.10}");
    }
    let bytes =
        Request::post(format!("{BASE}/orchestrators/F")).body(Body::from(vec![b'"', 0xff, b'"'])).unwrap();
    assert_eq!(api.raw(bytes).await.code, 400);
}

#[tokio::test]
async fn bad_escapes_doubled_parameters_and_line_breaks_in_ids_do_no_harm() {
    let api = Api::with(Some(Running));
    for (path, code) in [
        ("/instances/%ff", 400),
        ("/instances/%", 404),
        ("/instances/%zz%1", 404),
        ("/instances/x?top=%ff&showInput=%&&&=&a", 202),
        ("/instances/x?taskHub=TestHub&taskHub=Other", 202),
        ("/instances/x%0D%0ASet-Cookie:%20a=b", 404),
        ("/instances/..%2F..%2Fetc", 404),
        ("/instances/%00", 404),
        ("/../../instances/x", 404),
    ] {
        let reply = api.send(&format!("GET {path}"), None).await;
        assert_eq!(reply.code, code, "{path}");
        assert!(reply.header("set-cookie").is_none());
    }
    assert_eq!(api.send("POST /orchestrators/F/a%0D%0ASet-Cookie:%20a=b", None).await.code, 400);
    // A restart gives addresses of ids that exist, whatever they hold.
    let fake = FakeService::default()
        .with_state("a\r\nb: c\u{e9}\u{7f}", taskhub_core::OrchestrationStatus::Completed);
    let api = Api::new(fake, Options::default());
    let status = api.send("GET /instances/a%0D%0Ab:%20c%C3%A9%7F", None).await;
    assert_eq!(status.code, 200);
    let long = "x".repeat(60_000);
    assert_eq!(api.send(&format!("GET /instances/{long}"), None).await.code, 400);
    let header = Request::get(format!("{BASE}/instances")).header("x-ms-continuation-token", "  ");
    assert_eq!(api.raw(header.body(Body::empty()).unwrap()).await.code, 200);
}

/// Serves on a socket, with little patience.
async fn served(options: Options) -> (std::net::SocketAddr, CancellationToken, tokio::task::JoinHandle<()>) {
    let api = Api::new(FakeService::default().with_state("x", Running), options);
    let listener = listen("127.0.0.1:0".parse().unwrap()).await.unwrap();
    let address = listener.local_addr().unwrap();
    let stop = CancellationToken::new();
    let settings = ServeSettings {
        max_connections: 2,
        header_timeout: Duration::from_millis(300),
        write_timeout: Duration::from_millis(300),
        stop_grace: Duration::from_secs(5),
    };
    let stopped = stop.clone();
    let serving =
        tokio::spawn(async move { serve_with(listener, api.router, settings, stopped).await.unwrap() });
    (address, stop, serving)
}

async fn exchange(address: std::net::SocketAddr, bytes: &[u8]) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(bytes).await.unwrap();
    let mut answer = Vec::new();
    // A reset is an end too.
    let _ = stream.read_to_end(&mut answer).await;
    String::from_utf8_lossy(&answer).into_owned()
}

#[tokio::test]
async fn slow_and_broken_connections_end_and_others_get_their_turn() {
    let (address, stop, serving) = served(Options::default()).await;
    let get = format!("GET {BASE}/instances/x HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n");
    // More connections that never send a whole head than there is room for.
    let slow: Vec<_> = (0..4)
        .map(|_| tokio::spawn(async move { exchange(address, b"GET / HTTP/1.1\r\nhost: x\r\n").await }))
        .collect();
    assert!(exchange(address, get.as_bytes()).await.starts_with("HTTP/1.1 202 "));
    for ended in slow {
        ended.await.unwrap();
    }
    for bytes in
        [&b"\x16\x03\x01\x02\x00"[..], b"GET /\r\n\r\n", b"POST / HTTP/1.1\r\ncontent-length: x\r\n\r\n"]
    {
        let answer = exchange(address, bytes).await;
        assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 400"), "{answer}");
    }
    stop.cancel();
    serving.await.unwrap();
}

#[tokio::test]
async fn a_wait_under_way_is_answered_when_the_server_stops() {
    let options = Options::default();
    let waits = options.shutdown.clone();
    let (address, stop, serving) = served(options).await;
    let head = "host: localhost\r\nconnection: close\r\ncontent-length: 0\r\n\r\n";
    let post = format!("POST {BASE}/orchestrators/F?timeout=100&pollingInterval=1 HTTP/1.1\r\n{head}");
    let asking = tokio::spawn(async move { exchange(address, post.as_bytes()).await });
    tokio::time::sleep(Duration::from_millis(200)).await;
    waits.cancel();
    stop.cancel();
    let answer = asking.await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 202 ") && answer.contains("retry-after: 10"), "{answer}");
    serving.await.unwrap();
}

#[tokio::test]
async fn a_body_that_does_not_come_is_given_up() {
    let options = Options { body_timeout: Duration::from_millis(100), ..Options::default() };
    let (address, stop, serving) = served(options).await;
    let post =
        format!("POST {BASE}/orchestrators/F HTTP/1.1\r\nhost: localhost\r\ncontent-length: 10\r\n\r\n123");
    let answer = exchange(address, post.as_bytes()).await;
    assert!(answer.starts_with("HTTP/1.1 408 "), "{answer}");
    stop.cancel();
    serving.await.unwrap();
}

#[tokio::test]
async fn a_start_is_finished_when_whoever_asked_has_gone() {
    let api = Api::with(None);
    let asking = api.raw(request("POST", &format!("{BASE}/orchestrators/F/a"), None));
    // Polled once, then dropped.
    let _: Option<Reply> = tokio::time::timeout(Duration::ZERO, asking).await.ok();
    tokio::task::yield_now().await;
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert_eq!(api.fake.ids(), ["a"]);
}

#[tokio::test]
async fn connections_that_take_no_answers_end() {
    let (address, stop, serving) = served(Options::default()).await;
    // Asks on and on and reads nothing, until the server has no room for its answers.
    let greedy = || async move {
        let mut stream = TcpStream::connect(address).await.unwrap();
        let many = "GET /nowhere HTTP/1.1\r\nhost: localhost\r\n\r\n".repeat(1000);
        while stream.write_all(many.as_bytes()).await.is_ok() {}
    };
    tokio::time::timeout(Duration::from_secs(60), async { tokio::join!(greedy(), greedy()) }).await.unwrap();
    let get = format!("GET {BASE}/instances/x HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n");
    assert!(exchange(address, get.as_bytes()).await.starts_with("HTTP/1.1 202 "));
    stop.cancel();
    serving.await.unwrap();
}
