use futures::{Stream, StreamExt as _, TryStreamExt as _, stream};
use serde_json::Value;

use crate::{ClientError, Start, Started, TaskHubClient};

/// Instances of a batch started at once.
pub const STARTS_AT_ONCE: usize = 16;

impl Start {
    /// Starts described by an object `{"FunctionName": .., "Input": .., "InstanceId": ..}` or an array of them,
    /// as output bindings of Durable Functions take them. Names of members are matched in any case, others
    /// are ignored, all but the first are optional.
    /// Source: Azure/azure-functions-durable-extension, `StartOrchestrationArgs`.
    ///
    /// # Errors
    /// `Invalid`, naming the first object that is none.
    pub fn from_objects(value: &Value) -> Result<Vec<Self>, ClientError> {
        let objects = value.as_array().map_or_else(|| std::slice::from_ref(value), Vec::as_slice);
        objects.iter().enumerate().map(|(at, object)| from_object(object, at + 1)).collect()
    }
}

fn from_object(object: &Value, number: usize) -> Result<Start, ClientError> {
    let bad = |problem| ClientError::BadStartObject { problem, number };
    let members = object.as_object().ok_or_else(|| bad("an object is expected"))?;
    let member = |name: &str| {
        members
            .iter()
            .find(|(key, _)| key.eq_ignore_ascii_case(name))
            .map(|(_, v)| v)
            .filter(|v| !v.is_null())
    };
    let name = match member("FunctionName") {
        None => return Err(bad("FunctionName is missing")),
        Some(name) => name.as_str().ok_or_else(|| bad("FunctionName must be a text"))?,
    };
    let id = match member("InstanceId") {
        None => "",
        Some(id) => id.as_str().ok_or_else(|| bad("InstanceId must be a text"))?,
    };
    let start = Start::new(name).instance_id(id);
    member("Input").map_or(Ok(start.clone()), |input| start.input(input))
}

impl TaskHubClient {
    /// Starts several instances at once; see [`TaskHubClient::start_new`] for each. Gives what was started in
    /// the order of the list.
    ///
    /// # Errors
    /// The first failure; instances before it have been started, and perhaps some of the next
    /// [`STARTS_AT_ONCE`].
    pub async fn start_all(&self, starts: Vec<Start>) -> Result<Vec<Started>, ClientError> {
        self.starting(starts, |client, start| client.start_new(start)).try_collect().await
    }

    /// The same one by one, as they are started, each by [`TaskHubClient::start`]: whatever the status of an
    /// instance with the same id. A caller that stops at a failure starts no more than [`STARTS_AT_ONCE`]
    /// beyond it.
    pub fn start_each(&self, starts: Vec<Start>) -> impl Stream<Item = Result<Started, ClientError>> + '_ {
        self.starting(starts, |client, start| client.start(start))
    }

    fn starting<'a, F>(
        &'a self,
        starts: Vec<Start>,
        start: impl Fn(&'a Self, Start) -> F + 'a,
    ) -> impl Stream<Item = Result<Started, ClientError>> + 'a
    where
        F: Future<Output = Result<Started, ClientError>> + 'a,
    {
        stream::iter(starts).map(move |described| start(self, described)).buffered(STARTS_AT_ONCE)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::fake::{FakeService, client};

    #[tokio::test]
    async fn objects_start_instances_whatever_the_case_of_their_members() {
        let (client, fake) = client(FakeService::default());
        let list = json!([
            {"FunctionName": "A", "Input": {"x": [1, null]}, "InstanceId": "a", "Version": 3},
            {"functionname": "B", "input": null, "instanceID": null},
        ]);
        let started = client.start_all(Start::from_objects(&list).unwrap()).await.unwrap();
        assert_eq!((started.len(), started[0].instance_id.as_str()), (2, "a"));
        let requests = fake.started();
        assert_eq!(requests[0].input.as_deref(), Some(r#"{"x":[1,null]}"#));
        assert_eq!((requests[1].name.as_str(), requests[1].input.as_deref()), ("B", None));
        assert_eq!(requests[1].instance_id.as_str().len(), 32);
        let one = Start::from_objects(&json!({"FUNCTIONNAME": "C", "Input": "text"})).unwrap();
        client.start_all(one).await.unwrap();
        assert_eq!(fake.started()[2].input.as_deref(), Some("\"text\""));
    }

    #[test]
    fn objects_that_describe_no_start_are_named() {
        for (list, problem) in [
            (json!([{"FunctionName": "A"}, {"Input": 1}]), "FunctionName is missing. number=`2`"),
            (json!({"FunctionName": 1}), "FunctionName must be a text. number=`1`"),
            (json!([{"FunctionName": "A", "InstanceId": 7}]), "InstanceId must be a text. number=`1`"),
            (json!("A"), "an object is expected. number=`1`"),
        ] {
            let error = Start::from_objects(&list).unwrap_err().to_string();
            assert!(error.ends_with(problem), "{error}");
        }
    }
}
