//! Single requests whose answers the specification of the API gives.

use taskhub_client::fake::{FakeService, NOW, state};
use taskhub_core::OrchestrationStatus::{self, Completed, Pending, Running};
use taskhub_core::{EventKind, HistoryEvent};
use taskhub_http::axum::body::Body;
use taskhub_http::axum::http::Request;
use taskhub_http::management::Options;

use crate::support::{Api, BASE};

#[tokio::test]
async fn a_body_that_is_not_json_is_refused() {
    let reply = Api::with(None).send("POST /orchestrators/F", Some("{bad")).await;
    assert_eq!((reply.code.as_u16(), &reply.json()["Message"]), (400, &"Invalid JSON content".into()));
    let keys: Vec<_> = reply.json().as_object().unwrap().keys().cloned().collect();
    assert_eq!(keys, ["Message", "ExceptionMessage", "ExceptionType", "StackTrace"]);
}

#[tokio::test]
async fn ids_of_entities_and_long_and_impossible_ids_are_refused() {
    let long = "a".repeat(257);
    for id in ["@x", &long, "a%2Fb", "a%5Cb", "a%23b", "a%3Fb", "a%0Ab"] {
        let api = Api::with(None);
        let reply = api.send(&format!("POST /orchestrators/F/{id}"), None).await;
        assert_eq!(reply.code, 400, "{id}");
        assert_eq!(reply.json()["Message"], "One or more of the arguments submitted is incorrect");
        assert!(api.fake.started().is_empty());
    }
    let reply = Api::with(None).send(&format!("POST /orchestrators/F/{}", &long[1..]), None).await;
    assert_eq!(reply.code, 202);
}

#[tokio::test]
async fn wrong_verbs_and_unknown_routes_are_404_without_a_body() {
    let api = Api::with(Some(Running));
    for line in [
        "GET /orchestrators/F",
        "PUT /instances/x",
        "POST /instances/x",
        "POST /instances",
        "GET /instances/x/terminate",
        "POST /instances/x/explode",
        "GET /instances/x/raiseEvent/E",
        "OPTIONS /instances/x",
        "HEAD /instances/x",
        "GET ",
        "GET /nothing",
    ] {
        let reply = api.send(line, None).await;
        assert_eq!(reply.code, 404, "{line}");
        reply.has_no_body();
    }
}

#[tokio::test]
async fn pages_are_followed_by_the_token_in_the_header() {
    let fake =
        ["a", "b", "c", "d", "e"].iter().fold(FakeService::default(), |f, id| f.with_state(id, Running));
    let api = Api::new(fake, Options::default());
    let (mut pages, mut token) = (Vec::new(), String::new());
    loop {
        let request =
            Request::get(format!("{BASE}/instances?top=2")).header("x-ms-continuation-token", &token);
        let reply = api.raw(request.body(Body::empty()).unwrap()).await;
        assert_eq!(reply.code, 200);
        pages.push(reply.json().as_array().unwrap().len());
        token = reply.header("x-ms-continuation-token").unwrap().to_owned();
        if token.is_empty() {
            break;
        }
    }
    assert_eq!(pages, [2, 2, 1]);
}

#[tokio::test]
async fn a_content_type_other_than_json_matters_only_to_a_live_instance() {
    for (status, code) in [(Some(Running), 400), (None, 404), (Some(Completed), 410)] {
        let request =
            Request::post(format!("{BASE}/instances/x/raiseEvent/E")).header("content-type", "text/plain");
        let reply = Api::with(status).raw(request.body(Body::from("1")).unwrap()).await;
        assert_eq!(reply.code, code, "{status:?}");
        if code == 400 {
            assert_eq!(reply.body, r#"{"Message":"Only application/json request content is supported"}"#);
        }
    }
}

fn finished(input: &str, output: &str) -> FakeService {
    let mut state = state("x", Completed);
    (state.input, state.output) = (Some(input.into()), Some(output.into()));
    FakeService::default().with_row(state)
}

#[tokio::test]
async fn a_start_is_answered_with_all_addresses() {
    let api = Api::with(None);
    let reply = api.send("POST /orchestrators/HelloWorld/order-17", Some(r#"{"city": "Lyon"}"#)).await;
    assert_eq!(reply.code, 202);
    let root = format!("http://localhost:7071{BASE}/instances/order-17");
    let query = "taskHub=TestHub&connection=Storage";
    assert_eq!(reply.header("location"), Some(format!("{root}?{query}").as_str()));
    assert_eq!(reply.header("retry-after"), Some("10"));
    let expected = format!(
        r#"{{"id":"order-17","statusQueryGetUri":"{root}?{query}","sendEventPostUri":"{root}/raiseEvent/{{eventName}}?{query}","terminatePostUri":"{root}/terminate?reason={{text}}&{query}","purgeHistoryDeleteUri":"{root}?{query}","restartPostUri":"{root}/restart?{query}","suspendPostUri":"{root}/suspend?reason={{text}}&{query}","resumePostUri":"{root}/resume?reason={{text}}&{query}"}}"#
    );
    assert_eq!(reply.body, expected);
    let started = &api.fake.started()[0];
    assert_eq!((started.name.as_str(), started.input.as_deref()), ("HelloWorld", Some(r#"{"city":"Lyon"}"#)));
}

#[tokio::test]
async fn a_start_without_id_and_input_gets_a_guid_and_none() {
    let api = Api::with(None);
    let reply = api.send("POST /orchestrators/F?version=2.0", None).await;
    let id = reply.json()["id"].as_str().unwrap().to_owned();
    assert!(id.len() == 32 && id.bytes().all(|b| b.is_ascii_hexdigit()), "{id}");
    let started = &api.fake.started()[0];
    assert_eq!((&started.input, started.version.as_deref()), (&None, Some("2.0")));
}

#[tokio::test]
async fn a_duplicate_start_is_an_error_with_the_reference_names() {
    let reply = Api::with(Some(Running)).send("POST /orchestrators/F/x", None).await;
    let expected = concat!(
        r#"{"Message":"Something went wrong while processing your request","#,
        r#""ExceptionMessage":"An Orchestration instance with the status Running already exists.","#,
        r#""ExceptionType":"DurableTask.Core.Exceptions.OrchestrationAlreadyExistsException","StackTrace":null}"#
    );
    assert_eq!((reply.code.as_u16(), reply.body.as_str()), (500, expected));
}

#[tokio::test]
async fn unknown_functions_are_refused_where_the_functions_are_known() {
    let with = |hubs: taskhub_http::management::Hubs| hubs.orchestrators(["Greet"]);
    let api = Api::of_hubs(FakeService::default(), Options::default(), with);
    let reply = api.send("POST /orchestrators/Nope", None).await;
    assert_eq!(reply.code, 400);
    let text = reply.json()["ExceptionMessage"].as_str().unwrap().to_owned();
    assert!(
        text.starts_with(
            "The function 'Nope' doesn't exist, is disabled, or is not an orchestrator function."
        ),
        "{text}"
    );
    assert_eq!(api.send("POST /orchestrators/Greet", None).await.code, 202);
}

#[tokio::test]
async fn statuses_have_their_members_in_order_and_dates_without_fraction() {
    let reply = Api::new(finished(r#"{"city":"Lyon"}"#, "boom"), Options::default())
        .send("GET /instances/x", None)
        .await;
    let expected = concat!(
        r#"{"name":"Greet","instanceId":"x","runtimeStatus":"Completed","input":{"city":"Lyon"},"customStatus":null,"#,
        r#""output":"boom","createdTime":"2026-01-15T09:30:00Z","lastUpdatedTime":"2026-01-15T09:30:00Z"}"#
    );
    assert_eq!((reply.code.as_u16(), reply.body.as_str()), (200, expected));
    assert_eq!((reply.header("location"), reply.header("retry-after")), (None, None));
}

#[tokio::test]
async fn a_running_instance_is_asked_for_again_at_the_same_address() {
    let reply = Api::with(Some(Running)).send("GET /instances/x?showInput=False&code=abc&x=%20", None).await;
    assert_eq!(reply.code, 202);
    let location = format!("http://localhost:7071{BASE}/instances/x?showInput=False&code=abc&x=%20");
    assert_eq!(reply.header("location"), Some(location.as_str()));
    assert_eq!(reply.header("retry-after"), Some("5"));
}

#[tokio::test]
async fn large_inputs_are_shown_in_full_and_not_at_all_when_not_wanted() {
    let large = format!("\"{}\"", "x".repeat(70 * 1024));
    let api = Api::new(finished(&large, "null"), Options::default());
    assert_eq!(api.send("GET /instances/x", None).await.json()["input"].as_str().unwrap().len(), 70 * 1024);
    assert!(api.send("GET /instances/x?showInput=false", None).await.json()["input"].is_null());
}

#[tokio::test]
async fn a_history_is_there_when_it_is_asked_for_and_there_is_one() {
    let event = HistoryEvent::message(
        NOW.parse(),
        EventKind::EventRaised {
            name: Some("E".into()),
            input: Some("1".into()),
            parent_trace_context: None,
        },
    );
    let fake = || FakeService::default().with_history("x", vec![event.clone()]);
    let running = Api::new(fake().with_state("x", Running), Options::default());
    let shown = running.send("GET /instances/x?showHistory=TRUE", None).await.json();
    assert_eq!(shown["historyEvents"][0]["EventType"], "EventRaised");
    assert_eq!(shown["historyEvents"][0]["Input"], "1");
    for path in ["/instances/x", "/instances/x?showHistory=1"] {
        assert!(
            running.send(&format!("GET {path}"), None).await.json().get("historyEvents").is_none(),
            "{path}"
        );
    }
    let pending = Api::new(fake().with_state("x", Pending), Options::default());
    assert!(
        pending.send("GET /instances/x?showHistory=true", None).await.json().get("historyEvents").is_none()
    );
}

#[tokio::test]
async fn lists_are_filtered_by_the_union_of_statuses() {
    let all = OrchestrationStatus::ALL;
    let fake =
        || all.iter().fold(FakeService::default(), |fake, status| fake.with_state(status.name(), *status));
    let ids = async |options: Options, query: &str| -> Vec<String> {
        let reply = Api::new(fake(), options).send(&format!("GET /instances?{query}"), None).await;
        let json = reply.json();
        let list = json.as_array().unwrap_or_else(|| panic!("{query} {reply:?}")).iter();
        list.map(|state| state["instanceId"].as_str().unwrap().to_owned()).collect()
    };
    let three = ids(Options::default(), "runtimeStatus=Running,Failed&runtimeStatus=Pending").await;
    assert_eq!(three, ["Failed", "Pending", "Running"]);
    assert_eq!(ids(Options::default(), "runtimeStatus=running").await, ["Running"]);
    assert_eq!(ids(Options::default(), "").await.len(), 8);
    let lenient = || Options { lenient_statuses: true, ..Options::default() };
    assert_eq!(ids(lenient(), "runtimeStatus=running").await.len(), 8);
    assert_eq!(ids(lenient(), "runtimeStatus=Running,sleeping").await, ["Running"]);
    let refused =
        Api::new(fake(), Options::default()).send("GET /instances?runtimeStatus=sleeping", None).await;
    assert_eq!(refused.code, 400);
    assert_eq!(Api::with(None).send("GET /instances?top=0", None).await.code, 400);
}

#[tokio::test]
async fn reasons_are_form_decoded_and_verbs_ignore_case() {
    let api = Api::with(Some(Running));
    assert_eq!(api.send("POST /instances/x/TERMINATE?reason=a+b%26", None).await.code, 202);
    assert_eq!(api.send("POST /instances/x/Suspend", None).await.code, 202);
    let sent: Vec<_> = api.fake.sent().into_iter().map(|(_, event)| event.kind).collect();
    let expected = [
        EventKind::ExecutionTerminated { input: Some("a b&".into()) },
        EventKind::ExecutionSuspended { reason: None },
    ];
    assert_eq!(sent, expected);
}

#[tokio::test]
async fn events_are_compact_json_and_empty_ones_are_refused() {
    let api = Api::with(Some(Running));
    assert_eq!(
        api.send("POST /instances/x/raiseEvent/ApprovalEvent", Some(" { \"a\" : 1 } ")).await.code,
        202
    );
    let EventKind::EventRaised { name, input, .. } = &api.fake.sent()[0].1.kind else { panic!() };
    assert_eq!((name.as_deref(), input.as_deref()), (Some("ApprovalEvent"), Some(r#"{"a":1}"#)));
    let empty = api.send("POST /instances/x/raiseEvent/E", Some("")).await;
    assert_eq!((empty.code.as_u16(), &empty.json()["Message"]), (400, &"Invalid JSON content".into()));
}

#[tokio::test]
async fn ids_in_paths_are_decoded_once() {
    let fake = FakeService::default().with_state("a b", Running).with_state("me@home%40", Running);
    let api = Api::new(fake, Options::default());
    for path in ["/instances/a%20b", "/instances/me%40home%2540", "/instances/me@home%2540"] {
        assert_eq!(api.send(&format!("GET {path}"), None).await.code, 202, "{path}");
    }
    assert_eq!(api.send("GET /instances/me@home%40", None).await.code, 404);
}

#[tokio::test]
async fn a_purge_by_filter_needs_its_beginning_and_finds_something() {
    let fake = || {
        FakeService::default().with_state("x", Completed).with_state("y", Running).with_state("@e@k", Running)
    };
    let api = Api::new(fake(), Options::default());
    let reply = api.send("DELETE /instances", None).await;
    assert_eq!(reply.code, 400);
    assert_eq!(reply.json(), "Please provide value for 'createdTimeFrom' parameter.");
    for query in ["createdTimeFrom=yesterday", "createdTimeFrom=2000-01-01&createdTimeTo=tomorrow"] {
        assert_eq!(api.send(&format!("DELETE /instances?{query}"), None).await.code, 400, "{query}");
    }
    for status in ["Running", "running,Completed", "sleeping", "Suspended"] {
        let line = format!("DELETE /instances?createdTimeFrom=2000-01-01&runtimeStatus={status}");
        assert_eq!(api.send(&line, None).await.code, 400, "{status}");
    }
    let none = api.send("DELETE /instances?createdTimeFrom=2000-01-01&runtimeStatus=Failed", None).await;
    assert_eq!(none.code, 404);
    none.has_no_body();
    let one = api.send("DELETE /instances/?createdTimeFrom=2000-01-01T00:00:00+00:00", None).await;
    assert_eq!((one.code.as_u16(), one.body.as_str()), (200, r#"{"instancesDeleted":1}"#));
    assert_eq!(api.fake.ids(), ["@e@k", "y"]);
}

#[tokio::test]
async fn a_purge_by_filter_takes_more_only_when_it_is_told_to() {
    let left = async |options: Options, query: &str| {
        let fake = FakeService::default().with_state("@e@k", Running);
        let fake = fake.with_state("c", Completed).with_state("p", Pending).with_state("r", Running);
        let api = Api::new(fake, options);
        let line = format!("DELETE /instances?createdTimeFrom=2000-01-01{query}");
        assert_eq!(api.send(&line, None).await.code, 200, "{query}");
        api.fake.ids()
    };
    let default = Options::default;
    assert_eq!(left(default(), "").await, ["@e@k", "p", "r"]);
    assert_eq!(left(default(), "&force=true&runtimeStatus=Pending").await, ["@e@k", "c", "r"]);
    assert_eq!(left(default(), "&force=true").await, ["@e@k"]);
    assert!(left(default(), "&force=true&includeEntities=true").await.is_empty());
    let any = Options { purges_any_status: true, ..Options::default() };
    assert!(left(any, "").await.is_empty());
}

#[tokio::test]
async fn an_entity_is_purged_by_id_although_it_never_finishes() {
    let api = Api::new(FakeService::default().with_state("@e@k", Running), Options::default());
    assert_eq!(api.send("DELETE /instances/%40e%40k", None).await.body, r#"{"instancesDeleted":1}"#);
}

#[tokio::test]
async fn other_hubs_are_refused_without_a_resolver() {
    let api = Api::with(Some(Running));
    assert_eq!(api.send("GET /instances/x?taskHub=testhub&connection=Storage", None).await.code, 202);
    let reply = api.send("GET /instances/x?taskHub=Other", None).await;
    assert_eq!(
        (reply.code.as_u16(), &reply.json()["ExceptionMessage"]),
        (400, &"Only the task hub 'TestHub' is served here.".into())
    );
}

#[tokio::test]
async fn the_primary_application_is_chosen_by_any_verb() {
    let api = Api::with(None);
    for method in ["POST", "GET"] {
        let reply = api.send(&format!("{method} /makePrimary"), None).await;
        assert_eq!(reply.code, 200);
        reply.has_no_body();
    }
}

#[tokio::test]
async fn restarts_take_the_input_and_a_missing_instance_is_400() {
    let api = Api::new(finished("[1]", "null"), Options::default());
    let reply = api.send("POST /instances/x/restart", None).await;
    assert_eq!((reply.code.as_u16(), reply.json()["id"] == "x"), (202, false));
    assert_eq!(api.fake.started()[0].input.as_deref(), Some("[1]"));
    let missing = api.send("POST /instances/nobody/restart", None).await;
    assert_eq!(missing.code, 400);
    assert_eq!(missing.json()["Message"], "InstanceId does not match a valid orchestration instance.");
}
