use std::borrow::Cow;

use proptest::prelude::*;
use taskhub_core::{
    ErrorKind, EventKind, HistoryEvent, IdSource, OrchestrationInstance, SeededIds, Tags, TaskMessage,
    Timestamp,
};
use uuid::Uuid;

use super::json::{Form, Json, Writer};
use super::*;

const EVENTS: &str = include_str!("../../tests/samples/events.jsonl");
const ENVELOPES: &str = include_str!("../../tests/samples/envelopes.jsonl");

fn event_json(event: &HistoryEvent) -> String {
    let mut writer = Writer::new(Form::Message);
    event::write_json(event, &mut writer);
    writer.finish()
}

fn read_event(text: &str) -> Result<HistoryEvent, DecodeError> {
    event::read_json(&Json::parse(text)?)
}

/// Members of an object.
type Members<'a> = Vec<(Cow<'a, str>, Json<'a>)>;

fn json(value: &Json<'_>) -> String {
    let mut writer = Writer::new(Form::Message);
    writer.json(value);
    writer.finish()
}

fn message(text: &str) -> MessageData {
    match decode(text).unwrap() {
        Decoded::Message(message) => *message,
        Decoded::Wrapper { .. } => panic!("a wrapper"),
    }
}

/// A message with which a client starts an instance.
fn start_sample() -> &'static str {
    ENVELOPES.lines().find(|sample| sample.contains("ExecutionStartedEvent")).unwrap()
}

/// Applies `change` to every object, innermost first.
fn each_object<'a>(json: Json<'a>, change: &impl Fn(&mut Members<'_>)) -> Json<'a> {
    match json {
        Json::Object(members) => {
            let mut members: Vec<_> =
                members.into_iter().map(|(name, value)| (name, each_object(value, change))).collect();
            change(&mut members);
            Json::Object(members)
        }
        Json::Array(items) => Json::Array(items.into_iter().map(|item| each_object(item, change)).collect()),
        other => other,
    }
}

/// Every sample, changed in every object, reads as the sample does.
#[track_caller]
fn check_reads_the_same(change: impl Fn(&mut Members<'_>)) {
    for sample in EVENTS.lines() {
        let changed = each_object(Json::parse(sample).unwrap(), &change);
        assert_eq!(event::read_json(&changed), read_event(sample), "{sample}");
    }
    for sample in ENVELOPES.lines() {
        let changed = json(&each_object(Json::parse(sample).unwrap(), &change));
        assert_eq!(decode(&changed), decode(sample), "{sample}");
    }
}

#[test]
fn samples_of_every_event_are_written_back_byte_for_byte() {
    let mut numbers = std::collections::BTreeSet::new();
    for sample in EVENTS.lines() {
        let event = read_event(sample).unwrap();
        numbers.insert(event.kind.number());
        assert_eq!(event_json(&event), sample);
    }
    let all: Vec<i32> = (0..=21).filter(|number| ![2, 18].contains(number)).collect();
    assert_eq!(numbers.into_iter().collect::<Vec<_>>(), all);
}

#[test]
fn samples_of_envelopes_are_written_back_byte_for_byte() {
    for sample in ENVELOPES.lines() {
        let text = match decode(sample).unwrap() {
            Decoded::Message(message) => encode(&message, MessageEncoding::Utf8),
            Decoded::Wrapper { blob_name } => encode_wrapper(&blob_name, MessageEncoding::Utf8),
        };
        assert_eq!(text, sample);
    }
}

#[test]
fn members_may_come_in_any_order() {
    check_reads_the_same(|members| members.reverse());
    check_reads_the_same(|members| members.sort_by(|a, b| a.0.cmp(&b.0)));
    let ids = SeededIds::new(3);
    check_reads_the_same(|members| members.sort_by_key(|_| ids.random()));
}

#[test]
fn members_may_be_missing_unknown_or_of_another_case() {
    check_reads_the_same(|members| {
        members.retain(|(_, value)| !matches!(value, Json::Null | Json::Bool(false)))
    });
    check_reads_the_same(|members| {
        if !members.is_empty() {
            members.insert(0, (Cow::Borrowed("Later"), Json::Array(vec![Json::Object(Vec::new())])));
        }
    });
    check_reads_the_same(|members| {
        members.iter_mut().for_each(|(name, _)| *name = Cow::Owned(name.to_lowercase()))
    });
}

#[test]
fn every_dialect_of_type_names_is_read() {
    let rename = |to: &dyn Fn(&str) -> String, members: &mut Members<'_>| {
        for (name, value) in members {
            if name == "$type"
                && let Json::String(type_name) = value
            {
                *type_name = Cow::Owned(to(type_name));
            }
        }
    };
    check_reads_the_same(|members| rename(&|name| format!("{name}, DurableTask.Core"), members));
    check_reads_the_same(|members| {
        rename(&|name| format!("{name}, DurableTask.Core, Version=2.17.1.0, Culture=neutral"), members);
    });
    check_reads_the_same(|members| rename(&|name| name.replace("DurableTask.Core", "DurableTask"), members));
    check_reads_the_same(|members| members.retain(|(name, _)| name != "$type"));
    check_reads_the_same(|members| {
        for (name, value) in members {
            if name == "$type"
                && let Json::String(type_name) = value
            {
                let (space, class) = type_name.rsplit_once('.').unwrap();
                *type_name = Cow::Owned(format!("{class}:#{space}"));
                *name = Cow::Borrowed("__type");
            }
        }
    });
}

#[test]
fn messages_of_the_data_contract_serialiser_are_read() {
    let text = r#"{"$type":"DurableTask.AzureStorage.MessageData","ActivityId":"9915609e-7de1-41e0-ac54-cd2eafe16171","TaskMessage":{"Event":{"__type":"TaskScheduledEvent:#DurableTask.Core.History","EventId":2,"EventType":4,"IsPlayed":false,"Timestamp":"\/Date(1768469401250+0100)\/","Input":"[1]","Name":"SayHello","ParentTraceContext":null,"Version":""},"OrchestrationExecutionContext":{"OrchestrationTags":[{"Key":"a","Value":"1"},{"Key":"b","Value":null}]},"OrchestrationInstance":{"ExecutionId":"e","InstanceId":"dc-1"},"SequenceNumber":0},"CompressedBlobName":null,"SequenceNumber":1,"Episode":1,"Sender":{"ExecutionId":"e","InstanceId":"dc-1"},"SerializableTraceContext":null}"#;
    let message = message(text).task_message;
    assert_eq!(message.event.event_id, 2);
    assert_eq!(message.event.timestamp.to_iso(), "2026-01-15T09:30:01.25Z");
    assert_eq!(message.execution_context, Some(Tags::from_iter([("a", "1"), ("b", "")])));
    assert_eq!(message.target, OrchestrationInstance::new("dc-1", "e"));
}

#[test]
fn type_names_in_dictionaries_are_no_entries() {
    let sample = ENVELOPES.lines().find(|sample| sample.contains("\"OrchestrationTags\":{}")).unwrap();
    for name in ["System.Private.CoreLib", "mscorlib"] {
        let dictionary = format!(
            r#""OrchestrationTags":{{"$id":"1","$type":"System.Collections.Generic.Dictionary`2[[System.String, {name}],[System.String, {name}]], {name}","env":"prod"}}"#
        );
        let context =
            message(&sample.replace("\"OrchestrationTags\":{}", &dictionary)).task_message.execution_context;
        assert_eq!(context, Some(Tags::from_iter([("env", "prod")])));
    }
}

#[test]
fn queue_texts_are_told_apart() {
    let sample = start_sample();
    let expected = decode(sample).unwrap();
    let base64 = encode(&message(sample), MessageEncoding::Base64);
    assert!(base64.starts_with("eyIkdHlwZSI6IkR1cmFibGVUYXNr"), "{base64}");
    let wrapped: Vec<String> =
        base64.as_bytes().chunks(76).map(|c| String::from_utf8_lossy(c).into_owned()).collect();
    for text in [
        format!("\u{feff}{sample}"),
        format!(" \r\n\t{sample}\n"),
        base64.clone(),
        format!("\u{feff} {base64}\n"),
        base64.trim_end_matches('=').to_owned(),
        wrapped.join("\r\n"),
    ] {
        assert_eq!(decode(&text).as_ref(), Ok(&expected), "{text}");
    }
}

#[test]
fn a_missing_sender_is_read_and_written_as_a_client() {
    let sample = start_sample();
    for text in [
        sample.replace(r#""Sender":{"InstanceId":"","ExecutionId":""}"#, r#""Sender":null"#),
        sample.replace(r#""Sender":{"InstanceId":"","ExecutionId":""},"#, ""),
    ] {
        let message = message(&text);
        assert_eq!(message.sender, None);
        assert_eq!(encode(&message, MessageEncoding::Utf8), sample);
    }
}

#[track_caller]
fn check_error(text: &str, expected: &str) {
    let error = decode(text).unwrap_err();
    assert_eq!(error.to_string(), expected, "{text}");
    assert_eq!(error.kind(), ErrorKind::Data);
}

#[test]
fn errors_name_what_is_wrong() {
    let event =
        |event: &str| format!(r#"{{"TaskMessage":{{"Event":{event},"OrchestrationInstance":{{}}}}}}"#);
    check_error("", "the text is not JSON. at=`0`");
    check_error("{", "the text is not JSON. at=`1`");
    check_error("no base64!", "the text is neither JSON nor Base64 of JSON");
    check_error("/w==", "the text is not UTF-8");
    check_error(
        "W10=",
        "a member cannot be read. member=`MessageData` expected=`an object` found=`an array`",
    );
    check_error("{}", "a member is missing. member=`TaskMessage`");
    check_error(r#"{"$type":"My.Message, My"}"#, "unknown type in a message. type=`My.Message, My`");
    check_error(r#"{"TaskMessage":{}}"#, "a member is missing. member=`Event`");
    check_error(
        &event(r#"{"$type":"DurableTask.Core.History.FutureEvent","EventType":1}"#),
        "unknown type in a message. type=`DurableTask.Core.History.FutureEvent`",
    );
    check_error(&event(r#"{"EventType":22}"#), "unknown event type. event_type=`22`");
    check_error(&event(r#"{"EventType":2}"#), "unknown event type. event_type=`2`");
    check_error(&event("{}"), "an event without a type");
    check_error(
        &event(r#"{"EventType":12,"Timestamp":"soon"}"#),
        "a member cannot be read. member=`Timestamp` expected=`a date` found=`another text`",
    );
    check_error(
        &event(r#"{"EventType":11,"TimerId":4294967296}"#),
        "a member cannot be read. member=`TimerId` expected=`32 bits` found=`a larger number`",
    );
    check_error(
        &event(r#"{"EventType":3,"Input":{}}"#),
        "a member cannot be read. member=`Input` expected=`a string` found=`an object`",
    );
    check_error(r#"{"CompressedBlobName":"../other/a"}"#, "a blob name with dot segments");
}

#[test]
fn values_of_other_kinds_are_read_as_newtonsoft_does() {
    let event = read_event(
        r#"{"EventType":"11","TimerId":"3","FireAt":"2026-01-15T10:00:00","EventId":-1.0,"IsPlayed":"True"}"#,
    );
    let event = event.unwrap();
    assert_eq!((event.event_id, event.is_played, event.timestamp), (-1, true, Timestamp::MIN));
    let fire_at = Timestamp::parse("2026-01-15T10:00:00Z").unwrap();
    assert_eq!(event.kind, EventKind::TimerFired { timer_id: 3, fire_at });
}

/// A message whose JSON has this many bytes; `filler` must have one or two.
fn message_of(bytes: usize, filler: char) -> MessageData {
    let build = |input: String| {
        let event =
            HistoryEvent::message(Timestamp::MAX, EventKind::ExecutionTerminated { input: Some(input) });
        let message = TaskMessage::new(event, OrchestrationInstance::current("order/42"));
        MessageData::new(Uuid::from_u128(0x0f8f_ad5b_d9cb_469f), message, 1, None, MessageData::client())
    };
    let rest = bytes - encode(&build(String::new()), MessageEncoding::Utf8).len();
    let fill = String::from_iter(std::iter::repeat_n(filler, rest / filler.len_utf8()));
    build("x".repeat(rest - fill.len()) + &fill)
}

#[test]
fn messages_above_45_kib_of_utf8_go_to_a_blob() {
    for filler in ['x', 'é'] {
        for encoding in [MessageEncoding::Utf8, MessageEncoding::Base64] {
            let fits = message_of(46_080, filler);
            assert_eq!(pack(&fits, encoding), Packed::Inline { text: encode(&fits, encoding) });

            let large = message_of(46_081, filler);
            let Packed::Large { text, blob_name, blob } = pack(&large, encoding) else {
                panic!("46081 bytes in the queue");
            };
            assert_eq!(
                blob_name,
                "order/42/message-00000000000000000f8fad5bd9cb469f-ExecutionTerminated.json.gz"
            );
            assert_eq!(decode(&text), Ok(Decoded::Wrapper { blob_name }));
            let unpacked = decompress(&blob).unwrap();
            assert_eq!(unpacked.len(), 46_081);
            assert_eq!(message(&unpacked), large);
        }
    }
}

#[test]
fn failures_nested_to_the_limit_are_read_and_written() {
    let nested = |depth: usize| {
        let inner = r#"{"InnerFailure":"#.repeat(depth) + "null" + &"}".repeat(depth);
        read_event(&format!(r#"{{"EventType":6,"FailureDetails":{inner}}}"#))
    };
    let event = nested(127).unwrap();
    assert_eq!(read_event(&event_json(&event)), Ok(event));
    assert_eq!(nested(128), Err(DecodeError::TooDeep { limit: 128 }));
}

#[test]
fn the_blob_of_a_start_message_gives_the_input() {
    let sample = start_sample();
    assert_eq!(start_message_input(sample), Ok(Some("{\"sku\":\"A1\"}".to_owned())));
    assert!(is_start_message_blob(&message_blob_name(&message(sample))));
    let other = ENVELOPES.lines().find(|sample| sample.contains("TaskCompletedEvent")).unwrap();
    assert!(start_message_input(other).is_err());
    assert!(start_message_input("{\"CompressedBlobName\":\"a\"}").is_err());
}

#[test]
fn trace_states_that_dtfx_would_drop_are_not_written() {
    let event = |units: usize| {
        let trace = taskhub_core::TraceContext { trace_state: Some("x".repeat(units)), ..Default::default() };
        let kind = EventKind::EventRaised { name: None, input: None, parent_trace_context: Some(trace) };
        event_json(&HistoryEvent::message(Timestamp::MAX, kind))
    };
    assert!(event(513).contains(&"x".repeat(513)));
    assert!(event(514).contains(r#""TraceState":null"#));
}

#[test]
fn tags_and_properties_never_bring_type_names() {
    let kind = EventKind::TaskFailed {
        task_scheduled_id: 1,
        reason: None,
        details: None,
        failure_details: Some(taskhub_core::FailureDetails {
            properties: Some(r#"{"$type":"Evil","a":{"$type":"Evil","b":1}}"#.to_owned()),
            ..Default::default()
        }),
    };
    let text = event_json(&HistoryEvent::message(Timestamp::MAX, kind));
    assert!(text.contains(r#""Properties":{"a":{"b":1}}}"#), "{text}");
    let tags = Tags::from_iter([("$type", "Evil"), ("a", "1")]);
    assert_eq!(parts::Part::Tags(&tags).column(), r#"{"a":"1"}"#);
}

proptest! {
    #[test]
    fn every_event_comes_back_from_its_json(event in arbitrary::event()) {
        let text = event_json(&event);
        let forbidden = |c: char| c < ' ' || matches!(c, '\u{fffe}' | '\u{ffff}');
        prop_assert!(!text.contains(forbidden));
        prop_assert_eq!(read_event(&text), Ok(event));
    }

    #[test]
    fn no_text_makes_the_reader_panic(text in ".*", bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let _ = decode(&text);
        let _ = decode(&format!("{{{text}"));
        let _ = decode(&String::from_utf8_lossy(&bytes));
        let _ = decompress(&bytes);
        let _ = blob_name_of("http://h/c", &format!("http://h/c/{text}"));
    }

    #[test]
    fn damaged_messages_are_errors_or_other_messages(
        sample in 0..ENVELOPES.lines().count() + EVENTS.lines().count(),
        cuts in proptest::collection::vec((any::<prop::sample::Index>(), 0usize..20, ".{0,3}"), 1..4),
    ) {
        let sample = ENVELOPES.lines().chain(EVENTS.lines()).nth(sample).unwrap();
        let mut text: Vec<char> = sample.chars().collect();
        for (at, length, insert) in cuts {
            let at = at.index(text.len() + 1);
            let end = (at + length).min(text.len());
            text.splice(at..end, insert.chars());
        }
        let text: String = text.into_iter().collect();
        let _ = read_event(&text);
        if let Ok(Decoded::Message(mut message)) = decode(&text) {
            message.sender.get_or_insert_with(MessageData::client);
            let again = decode(&encode(&message, MessageEncoding::Base64));
            prop_assert_eq!(again, Ok(Decoded::Message(message)));
        }
    }

    #[test]
    fn blobs_that_are_damaged_are_errors_or_text(at in any::<prop::sample::Index>(), byte in any::<u8>()) {
        let mut blob = compress(&"some text ".repeat(50));
        let at = at.index(blob.len());
        blob[at] = byte;
        let _ = decompress(&blob);
    }
}
