//! Single requests whose answers the specification of the API gives.

use taskhub_client::fake::FakeService;
use taskhub_core::OrchestrationStatus::{Completed, Running};
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
