//! The description is that of the routes.

use std::collections::BTreeSet;

use serde_json::Value;
use taskhub_client::fake::FakeService;
use taskhub_core::OrchestrationStatus::{Completed, Failed, Running};
use taskhub_http::management::{ApiKey, Options};

use crate::support::{Api, request};

async fn document(options: Options) -> Value {
    let api = Api::new(FakeService::default(), options);
    let reply = api.raw(request("GET", "/openapi.json", None)).await;
    assert_eq!(reply.code, 200);
    reply.json()
}

/// All that a request may be: every literal of the API, with ids between.
const PATHS: [&str; 15] = [
    "/orchestrators/{functionName}",
    "/orchestrators/{functionName}/{instanceId}",
    "/instances",
    "/instances/{instanceId}",
    "/instances/{instanceId}/raiseEvent/{eventName}",
    "/instances/{instanceId}/terminate",
    "/instances/{instanceId}/suspend",
    "/instances/{instanceId}/resume",
    "/instances/{instanceId}/rewind",
    "/instances/{instanceId}/restart",
    "/entities",
    "/entities/{entityName}",
    "/entities/{entityName}/{entityKey}",
    "/makeprimary",
    "/orchestrators",
];

#[tokio::test]
async fn every_route_is_described_and_what_is_described_is_a_route() {
    let document = document(Options::default()).await;
    let described = document["paths"].as_object().unwrap();
    for path in described.keys() {
        assert!(PATHS.contains(&path.as_str()), "{path}");
    }
    for path in PATHS {
        for method in ["GET", "POST", "DELETE", "PUT", "PATCH"] {
            // One that a route answers otherwise than with the 404 of an unknown one.
            let mut codes = BTreeSet::new();
            let concrete = path
                .replace("{functionName}", "F")
                .replace("{eventName}", "E")
                .replace("{entityName}", "e")
                .replace("{entityKey}", "k");
            for state in [Running, Completed, Failed] {
                let exists = r#"{"exists":true,"state":"5"}"#;
                let mut entity = taskhub_client::fake::state("@e@k", Running);
                (entity.input, entity.custom_status) =
                    (Some(exists.into()), Some(r#"{"entityExists":true}"#.into()));
                let fake = FakeService::default().with_state("x", state).with_row(entity);
                let concrete = concrete.replace("{instanceId}", "x");
                let reply =
                    Api::new(fake, Options::default()).send(&format!("{method} {concrete}"), Some("1")).await;
                codes.insert(reply.code.as_u16());
            }
            let operation = &document["paths"][path][method.to_lowercase()];
            // A signal to no entity is refused whatever it says.
            let is_route = codes != BTreeSet::from([404]) && (path != "/entities" || method == "GET");
            if path == "/makeprimary" {
                assert!(is_route, "{method} {path}");
                continue;
            }
            assert_eq!(is_route, operation.is_object(), "{method} {path} {codes:?}");
            for code in codes.into_iter().filter(|_| is_route) {
                assert!(operation["responses"][code.to_string()].is_object(), "{method} {path} {code}");
            }
        }
    }
}

#[tokio::test]
async fn references_lead_somewhere_and_parameters_of_paths_are_declared() {
    let document = document(Options::default()).await;
    let mut references = Vec::new();
    collect(&document, &mut references);
    assert!(!references.is_empty());
    for reference in references {
        assert!(document.pointer(reference.trim_start_matches('#')).is_some(), "{reference}");
    }
    let mut ids = BTreeSet::new();
    for (path, methods) in document["paths"].as_object().unwrap() {
        for operation in methods.as_object().unwrap().values() {
            assert!(ids.insert(operation["operationId"].as_str().unwrap().to_owned()), "{path}");
            let declared = operation["parameters"].as_array().unwrap();
            let declared = declared.iter().filter(|p| p["in"] == "path").map(|p| p["name"].as_str().unwrap());
            let named = path.split('/').filter_map(|s| s.strip_prefix('{')?.strip_suffix('}'));
            assert_eq!(declared.collect::<Vec<_>>(), named.collect::<Vec<_>>(), "{path}");
        }
    }
}

fn collect(value: &Value, references: &mut Vec<String>) {
    match value {
        Value::Object(members) => {
            references.extend(members.get("$ref").and_then(Value::as_str).map(str::to_owned));
            members.values().for_each(|value| collect(value, references));
        }
        Value::Array(values) => values.iter().for_each(|value| collect(value, references)),
        _ => {}
    }
}

#[tokio::test]
async fn the_description_says_whether_a_key_is_needed_and_does_not_hold_it() {
    let open = document(Options::default()).await;
    assert_eq!(open["security"], serde_json::json!([]));
    assert_eq!(open["servers"][0]["url"], "/runtime/webhooks/durabletask");
    let key = ApiKey::new("0123456789abcdef").unwrap();
    let closed = document(Options { key: Some(key), ..Options::default() }).await;
    assert_eq!(closed["security"].as_array().unwrap().len(), 2);
    assert!(!closed.to_string().contains("0123456789"));
}
