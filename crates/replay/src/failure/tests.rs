use super::*;

/// `Details` of golden `FailUnhandledSerialized`, its stack trace cut.
const ACTIVITY_DETAILS: &str = r#"{"$type":"System.InvalidOperationException, System.Private.CoreLib","ClassName":"System.InvalidOperationException","Message":"boom x","Data":null,"InnerException":null,"HelpURL":null,"StackTraceString":"   at Act.ExecuteAsync(TaskContext context, JToken input)","RemoteStackTraceString":null,"RemoteStackIndex":0,"ExceptionMethod":null,"HResult":-2146233079,"Source":"rig","WatsonBuckets":null}"#;

/// `Details` of golden `ParentOfFailingSerialized`, its stack traces cut.
const CHILD_DETAILS: &str = r#"{"$type":"DurableTask.Core.Exceptions.TaskFailedException, DurableTask.Core","ClassName":"DurableTask.Core.Exceptions.TaskFailedException","Message":"boom x","Data":null,"InnerException":{"$type":"System.InvalidOperationException, System.Private.CoreLib","ClassName":"System.InvalidOperationException","Message":"boom x","Data":null,"InnerException":null,"HelpURL":null,"StackTraceString":"   at Act.ExecuteAsync(TaskContext context, JToken input)","RemoteStackTraceString":null,"RemoteStackIndex":0,"ExceptionMethod":null,"HResult":-2146233079,"Source":"rig","WatsonBuckets":null},"HelpURL":null,"StackTraceString":"   at Scenarios","RemoteStackTraceString":null,"RemoteStackIndex":0,"ExceptionMethod":null,"HResult":-2146233088,"Source":"System.Private.CoreLib","WatsonBuckets":null,"EventId":-1,"FailureDetails":null,"ScheduleId":0,"Name":"Boom","Version":""}"#;

fn boom() -> ApplicationError {
    ApplicationError::new("System.InvalidOperationException", "boom x")
}

fn failed_boom(details: Option<&str>, failure_details: Option<FailureDetails>) -> TaskFailure {
    TaskFailure::from(FailedTask {
        kind: TaskKind::Activity,
        name: "Boom".into(),
        entity: None,
        version: Some(String::new()),
        schedule_id: 0,
        message: "boom x".into(),
        details: details.map(str::to_owned),
        failure_details,
    })
}

/// The text without where it was thrown, which every language tells in its own way.
fn without_origin(json: &str) -> String {
    fn clear(value: &mut Value) {
        if let Value::Object(members) = value {
            for (name, member) in members {
                match name.as_str() {
                    "StackTraceString" | "Source" if member.is_string() => *member = "somewhere".into(),
                    _ => clear(member),
                }
            }
        }
    }
    let mut value = serde_json::from_str(json).unwrap();
    clear(&mut value);
    value.to_string()
}

#[test]
fn activity_failures_are_encoded_as_dotnet_encodes_them() {
    let reason = encode_activity_failure(&boom(), ErrorMode::ReasonOnly, "Boom");
    assert_eq!(reason, EncodedFailure { reason: "boom x".into(), ..Default::default() });

    let serialized = encode_activity_failure(&boom(), ErrorMode::SerializedException, "Boom");
    assert_eq!(without_origin(&serialized.details.unwrap()), without_origin(ACTIVITY_DETAILS));
    assert_eq!((serialized.reason.as_str(), serialized.failure_details), ("boom x", None));

    let details = encode_activity_failure(&boom(), ErrorMode::FailureDetails, "Boom");
    let expected = FailureDetails {
        stack_trace: Some("   at Boom".to_owned()),
        ..FailureDetails::new("System.InvalidOperationException", "boom x")
    };
    assert_eq!((details.failure_details, details.details), (Some(expected), None));
}

#[test]
fn an_uncaught_activity_failure_is_encoded_as_dotnet_encodes_it() {
    // Golden ParentOfFailingSerialized: what the child's parent receives.
    let failure = failed_boom(Some(ACTIVITY_DETAILS), None);
    let encoded = encode_orchestrator_failure(&failure, ErrorMode::SerializedException, "Outer");
    assert_eq!(without_origin(&encoded.details.unwrap()), without_origin(CHILD_DETAILS));

    // Golden FailUnhandledDetails: no inner failure in this mode.
    let cause = FailureDetails::new("System.InvalidOperationException", "boom x");
    let encoded =
        encode_orchestrator_failure(&failed_boom(None, Some(cause)), ErrorMode::FailureDetails, "Outer");
    let expected = FailureDetails {
        stack_trace: Some("   at Outer".to_owned()),
        ..FailureDetails::new(
            "DurableTask.Core.Exceptions.TaskFailedException",
            "Task 'Boom' (#0) failed with an unhandled exception: boom x",
        )
    };
    assert_eq!((encoded.reason.as_str(), encoded.failure_details), ("boom x", Some(expected)));
}

#[test]
fn the_cause_is_known_in_both_forms() {
    // As in DTFx: ExceptionHandling.CatchInvalidOperationException
    for failure in [
        failed_boom(Some(ACTIVITY_DETAILS), None),
        failed_boom(None, Some(FailureDetails::new("System.InvalidOperationException", "boom x"))),
    ] {
        assert!(failure.is_caused_by("System.InvalidOperationException"));
        assert_eq!(failure.cause().unwrap().error_message, "boom x");
        assert_eq!(failure.to_string(), "boom x");
    }
    assert_eq!(
        failed_boom(Some(CHILD_DETAILS), None).cause().unwrap().inner_failure.unwrap().error_message,
        "boom x"
    );
    for no_exception in ["", "no json", "[]", "{}", "\"text\"", "{\"ClassName\":1}"] {
        assert_eq!(failed_boom(Some(no_exception), None).cause(), None, "{no_exception}");
    }
}

#[test]
fn properties_and_causes_flow_into_failure_details() {
    // As in DTFx: ExceptionPropertiesProvider_*
    let Value::Object(properties) = json!({"order": 17}) else { unreachable!() };
    let error = boom().with_properties(properties).non_retriable().with_source("disk full");
    let details = encode_activity_failure(&error, ErrorMode::FailureDetails, "Boom").failure_details.unwrap();
    assert_eq!(details.properties.as_deref(), Some(r#"{"order":17}"#));
    assert!(details.is_non_retriable);
    assert_eq!(*details.inner_failure.unwrap(), FailureDetails::new("System.Exception", "disk full"));
    let plain = encode_activity_failure(&boom(), ErrorMode::FailureDetails, "Boom").failure_details.unwrap();
    assert_eq!(plain.properties, None);
    let serialized = encode_activity_failure(&error, ErrorMode::SerializedException, "Boom").details.unwrap();
    assert!(serialized.contains(r#""InnerException":{"$type":"System.Exception, System.Private.CoreLib""#));
}

#[test]
fn types_that_dotnet_could_not_load_travel_as_plain_exceptions() {
    let error = ApplicationError::new("OutOfStock", "none left");
    let details = encode_activity_failure(&error, ErrorMode::SerializedException, "Boom").details.unwrap();
    assert!(
        details
            .starts_with(r#"{"$type":"System.Exception, System.Private.CoreLib","ClassName":"OutOfStock""#)
    );
}

#[test]
fn framework_errors_are_described_as_text() {
    let error = NonDeterminism("x".into());
    let encoded = encode_orchestrator_failure(&error, ErrorMode::SerializedException, "Outer");
    assert_eq!(
        encoded.details.unwrap(),
        "Unhandled exception while executing orchestration: Non-Deterministic workflow detected: x"
    );
    let encoded = encode_orchestrator_failure(&error, ErrorMode::FailureDetails, "Outer");
    assert_eq!(
        encoded.failure_details.unwrap().error_type,
        "DurableTask.Core.Exceptions.NonDeterministicOrchestrationException"
    );
}

#[test]
fn results_with_an_application_error_stay_small() {
    assert!(size_of::<Result<(), ApplicationError>>() <= size_of::<usize>());
}
