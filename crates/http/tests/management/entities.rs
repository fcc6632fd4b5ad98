//! Entities, as they are in storage: nothing runs here.

use taskhub_client::fake::{FakeService, state};
use taskhub_core::{EventKind, OrchestrationStatus};
use taskhub_http::axum::body::Body;
use taskhub_http::axum::http::Request;
use taskhub_http::management::Options;

use crate::support::{Api, BASE, Reply};

/// A hub with entities as Durable Functions writes them.
fn api() -> Api {
    let entity = |id: &str, scheduler: &str, custom: &str| {
        let mut state = state(id, OrchestrationStatus::Running);
        state.name = id.into();
        state.input = Some(scheduler.into());
        state.custom_status = Some(custom.into());
        state
    };
    let exists = r#"{"entityExists":true}"#;
    let fake = FakeService::default()
        .with_row(entity("@counter@a", r#"{"exists":true,"state":"5"}"#, exists))
        .with_row(entity("@counter@", r#"{"exists":true,"state":"{\"v\":1}"}"#, exists))
        .with_row(entity("@counter@gone", "{}", "{}"))
        .with_row(entity("@lamp@k@ey", r#"{"exists":true,"state":"\"on\""}"#, exists));
    Api::new(fake, Options::default())
}

fn input_of(api: &Api) -> (String, String, serde_json::Value) {
    let (target, event) = api.fake.sent().pop().expect("a message");
    let EventKind::EventRaised { name, input, .. } = event.kind else { panic!("{event:?}") };
    assert_eq!(name.as_deref(), Some("op"));
    let request: serde_json::Value = serde_json::from_str(&input.unwrap()).unwrap();
    let operation = request["op"].as_str().unwrap().to_owned();
    (target.instance_id.to_string(), operation, request.get("input").cloned().unwrap_or_default())
}

#[tokio::test]
async fn states_are_read_by_name_in_any_case_and_by_key_in_its_own() {
    let api = api();
    for (path, code, body) in [
        ("/entities/Counter/a", 200, "5"),
        ("/entities/COUNTER/$", 200, r#"{"v":1}"#),
        ("/entities/lamp/k%40ey", 200, "\"on\""),
        ("/entities/counter/A", 404, ""),
        ("/entities/counter/gone", 404, ""),
        ("/entities/counter/nobody", 404, ""),
        ("/entities/counter/a%2Fb", 400, "{"),
    ] {
        let reply = api.send(&format!("GET {path}"), None).await;
        assert_eq!(reply.code, code, "{path} {reply:?}");
        assert!(reply.body.starts_with(body) && (code == 400 || reply.body == body), "{path} {reply:?}");
    }
}

#[tokio::test]
async fn lists_have_entities_with_a_state_and_say_it_when_asked() {
    let api = api();
    let ids = |reply: &Reply| {
        let all = reply.json();
        let all = all.as_array().unwrap().iter();
        all.map(|e| format!("{}/{}", e["entityId"]["name"], e["entityId"]["key"])).collect::<Vec<_>>()
    };
    let all = api.send("GET /entities", None).await;
    assert_eq!((all.code.as_u16(), all.header("x-ms-continuation-token")), (200, Some("")));
    assert_eq!(all.json()[0]["state"], serde_json::Value::Null);
    assert_eq!(all.json()[0]["lastOperationTime"], "2026-01-15T09:30:00.1234567Z");
    let keys: Vec<_> = all.json()[0].as_object().unwrap().keys().cloned().collect();
    assert_eq!(keys, ["entityId", "lastOperationTime", "state"]);
    assert_eq!(ids(&all), [r#""counter"/"""#, r#""counter"/"a""#, r#""lamp"/"k@ey""#]);
    let lamps = api.send("GET /entities/lamp?fetchState=true", None).await;
    assert_eq!((ids(&lamps).len(), &lamps.json()[0]["state"]), (1, &"on".into()));
}

#[tokio::test]
async fn signals_are_operations_with_json_text_or_nothing_as_input() {
    let api = api();
    let reply = api.send("POST /entities/Counter/a?op=add", Some(" 1 ")).await;
    assert_eq!(reply.code, 202);
    reply.has_no_body();
    assert_eq!(input_of(&api), ("@counter@a".into(), "add".into(), "1".into()));

    api.send("POST /entities/Counter", None).await;
    assert_eq!(input_of(&api), ("@counter@".into(), String::new(), serde_json::Value::Null));

    let text =
        Request::post(format!("{BASE}/entities/Counter/$?op=say")).header("content-type", "text/plain");
    assert_eq!(api.raw(text.body(Body::from("1 \"x\"")).unwrap()).await.code, 202);
    // Only for reading does the sign stand for the empty key.
    assert_eq!(input_of(&api), ("@counter@$".into(), "say".into(), r#""1 \"x\"""#.into()));

    assert_eq!(api.send("DELETE /entities/counter/a", None).await.code, 202);
    assert_eq!(input_of(&api), ("@counter@a".into(), "delete".into(), serde_json::Value::Null));
}

#[tokio::test]
async fn signals_that_cannot_be_are_refused() {
    let api = api();
    let bad = api.send("POST /entities/Counter/a?op=add", Some("{")).await;
    assert_eq!(bad.code, 400);
    assert!(bad.json()["Message"].as_str().unwrap().starts_with("Could not parse JSON content: "), "{bad:?}");
    for line in ["POST /entities", "DELETE /entities", "POST /entities/c/a%23b", "DELETE /entities/a%40b/c"] {
        assert_eq!(api.send(line, None).await.code, 400, "{line}");
    }
    assert_eq!(api.send("PUT /entities/c/a", None).await.code, 404);
    assert!(api.fake.sent().is_empty());
}
