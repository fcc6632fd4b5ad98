use super::*;
use crate::dump::parse;

/// A hub with one History row, one message and one blob; `{{input}}` is the row's input.
fn hub(name: &str, columns: &str, message: &str, blob: &str) -> HubDump {
    let lower = name.to_ascii_lowercase();
    let text = serde_json::Value::from(message);
    let content = serde_json::Value::from(blob);
    parse(&format!(
        r#"{{"format":"hubdump/1","normalized":false,"hub":"{name}","capturedAt":"2026-11-21T03:13:11Z",
        "endpoints":{{"blob":"http://127.0.0.1:1/account"}},
        "tables":[{{"name":"{name}History","entities":[{{"PartitionKey":"i","RowKey":"00","columns":[
            {{"name":"EventType","edm":"Edm.String","value":"TaskScheduled"}}{columns}]}}]}}],
        "queues":[{{"name":"{lower}-control-00","unseenCount":0,"messages":[{{"rawText":{text},
            "insertionTime":"Sat, 21 Nov 2026 03:13:08 GMT","dequeueCount":0}}]}}],
        "containers":[{{"name":"{lower}-largemessages","blobs":[{{"name":"i/x","properties":{{}},
            "content":{{"kind":"json","text":{content}}}}}]}}]}}"#
    ))
    .unwrap()
}

fn differences(ours: &HubDump, golden: &HubDump, comparison: Comparison<'_>) -> Vec<String> {
    compare(ours, golden, comparison).iter().map(|found| format!("{}: {}", found.path, found.what)).collect()
}

const INPUT: &str = r#",{"name":"Input","edm":"Edm.String","value":"{\"a\":1,\"b\":\"x\"}"}"#;
const MESSAGE: &str = r#"{"Id":"d5649e7ace5a4ba68b3e6202cd7e1935","At":"2026-11-21T03:13:08Z","TaskMessage":{"Event":{"EventType":4}}}"#;
const BLOB: &str = r#"{"hub":"Golden"}"#;

#[test]
fn ids_times_names_and_values_do_not_count() {
    let golden = hub("Golden", INPUT, MESSAGE, BLOB);
    let ours = hub(
        "Other",
        r#",{"name":"Input","edm":"Edm.String","value":"{\"a\":2,\"b\":\"y\"}"}"#,
        r#"{"Id":"00049e7ace5a4ba68b3e6202cd7e1935","At":"2027-11-21T03:13:08.1Z","TaskMessage":{"Event":{"EventType":4}}}"#,
        r#"{"hub":"Other"}"#,
    );
    assert_same(&ours, &golden, Comparison::default());
    let found = differences(&ours, &golden, Comparison { values: true, ..Comparison::default() });
    assert_eq!(
        found,
        [
            "table <hub>History TaskScheduled column Input $.a: ours 2, golden 1",
            "table <hub>History TaskScheduled column Input $.b: ours \"y\", golden \"x\"",
        ]
    );
}

#[test]
fn columns_and_their_types_count() {
    let golden = hub("Golden", INPUT, MESSAGE, BLOB);
    let ours = hub("Golden", r#",{"name":"Input","edm":"Edm.Int32","value":1}"#, MESSAGE, BLOB);
    assert_eq!(
        differences(&ours, &golden, Comparison::default()),
        ["table <hub>History TaskScheduled column Input: ours Edm.Int32, golden Edm.String"]
    );
    let ours = hub("Golden", r#",{"name":"More","edm":"Edm.Int32","value":1}"#, MESSAGE, BLOB);
    assert_eq!(
        differences(&ours, &golden, Comparison::default()),
        [
            "table <hub>History TaskScheduled column More: only in ours (Edm.Int32)",
            "table <hub>History TaskScheduled column Input: only in golden (Edm.String)",
        ]
    );
}

#[test]
fn key_order_value_types_and_notations_within_json_count() {
    let golden = hub("Golden", INPUT, MESSAGE, BLOB);
    let ours = hub(
        "Golden",
        r#",{"name":"Input","edm":"Edm.String","value":"{\"b\":null,\"a\":1}"}"#,
        r#"{"Id":"d5649e7a-ce5a-4ba6-8b3e-6202cd7e1935","At":"2026-11-21T03:13:08Z","TaskMessage":{"Event":{"EventType":5}}}"#,
        BLOB,
    );
    assert_eq!(
        differences(&ours, &golden, Comparison::default()),
        [
            "table <hub>History TaskScheduled column Input $: ours keys [b, a], golden keys [a, b]",
            "table <hub>History TaskScheduled column Input $.b: ours null, golden a text",
            "queue <hub>-control-00 message $.Id: ours \"<guid:D>\", golden \"<guid:N>\"",
            "queue <hub>-control-00 message $.TaskMessage.Event.EventType: ours 5, golden 4",
        ]
    );
}

#[test]
fn missing_things_are_named() {
    let golden = hub("Golden", INPUT, MESSAGE, BLOB);
    let mut ours = golden.clone();
    ours.queues[0].messages.clear();
    ours.containers[0].blobs.clear();
    ours.tables.clear();
    assert_eq!(
        differences(&ours, &golden, Comparison::default()),
        [
            "table <hub>History: only in golden",
            &format!("queue <hub>-control-00: message only in golden: {MESSAGE:?}"),
            "container <hub>-largemessages blob i/x: only in golden",
        ]
    );
}

#[test]
fn allowed_differences_are_patterns_for_lines() {
    let golden = hub("Golden", INPUT, MESSAGE, BLOB);
    let ours = hub("Golden", r#",{"name":"Input","edm":"Edm.Int32","value":1}"#, MESSAGE, BLOB);
    let allowing = |allowed| compare(&ours, &golden, Comparison { allowed, ..Comparison::default() }).len();
    assert_eq!(allowing(&["*column Input: *"]), 0);
    assert_eq!(allowing(&["*column Inpu: *", "column Input"]), 1);
}

#[test]
fn pooled_control_queues_compare_as_one() {
    let golden = hub("Golden", INPUT, MESSAGE, BLOB);
    let mut ours = golden.clone();
    let messages = std::mem::take(&mut ours.queues[0].messages);
    ours.queues.push(QueueDump { name: "golden-control-01".into(), messages, unseen: 0 });
    let mut golden = golden;
    golden.queues.push(QueueDump { name: "golden-control-01".into(), messages: Vec::new(), unseen: 0 });
    let pooled = Comparison { pool_control_queues: true, ..Comparison::default() };
    assert_eq!(differences(&ours, &golden, pooled), Vec::<String>::new());
    assert_eq!(differences(&ours, &golden, Comparison::default()).len(), 2);
}
