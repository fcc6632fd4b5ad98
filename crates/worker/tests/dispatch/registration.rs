//! What can be registered, and how.

use taskhub_worker::{
    ActivityContext, ActivityDefinition, ActivityError, OrchestrationContext, OrchestrationDefinition,
    OrchestratorError,
};

use crate::fake::FakeService;

async fn nothing(_: ActivityContext, (): ()) -> Result<(), ActivityError> {
    Ok(())
}

async fn no_steps(_: OrchestrationContext, (): ()) -> Result<(), OrchestratorError> {
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn a_name_and_version_is_registered_once() {
    let service = FakeService::new();
    let builder = service.worker().activity("A", nothing).activity_version("A", "2", nothing);
    assert!(builder.orchestration("A", no_steps).orchestration_version("A", "2", no_steps).build().is_ok());

    let error = service.worker().activity("A", nothing).activity("B", nothing).activity("A", nothing).build();
    assert_eq!(error.unwrap_err().to_string(), "activity registered twice. name=`A` version=``");

    let builder = service.worker().orchestration_version("A", "2", no_steps);
    let error = builder.orchestration_version("A", "2", no_steps).build().unwrap_err();
    assert_eq!(error.to_string(), "orchestration registered twice. name=`A` version=`2`");
}

struct Length;
impl ActivityDefinition for Length {
    const NAME: &'static str = "Length";
    const VERSION: &'static str = "1";
    type Input = String;
    type Output = usize;
}

struct Measure;
impl OrchestrationDefinition for Measure {
    const NAME: &'static str = "Measure";
    type Input = String;
    type Output = usize;
}

#[tokio::test(start_paused = true)]
async fn definitions_register_under_their_own_names() {
    let service = FakeService::new();
    let builder = service
        .worker()
        .typed_activity(Length, |_, text: String| async move { Ok::<_, ActivityError>(text.len()) })
        .typed_orchestration(Measure, |ctx: OrchestrationContext, text: String| async move {
            Ok::<_, OrchestratorError>(ctx.call::<Length>(text).await?)
        });
    let error = builder.activity_version("Length", "1", nothing).build().unwrap_err();
    assert_eq!((error.kind, error.name.as_str()), ("activity", "Length"));
}
