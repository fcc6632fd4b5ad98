use serde_json::{Map, Value, json};
use taskhub_core::InstanceId;

/// Name of the connection in URLs when none is configured.
/// Source: Azure/azure-functions-durable-extension, `DurableClient.ConnectionName`.
pub const DEFAULT_CONNECTION_NAME: &str = "Storage";

/// Where the management API of a hub is reached.
#[derive(Clone, PartialEq, Eq)]
pub struct ManagementUrls {
    base: String,
    query: String,
    code: Option<String>,
}

impl std::fmt::Debug for ManagementUrls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ManagementUrls").field("base", &self.base).finish_non_exhaustive()
    }
}

/// URLs that manage one instance: plain data that can be stored and used elsewhere. They hold the key.
///
/// Source: Azure/azure-functions-durable-extension, `HttpManagementPayload`.
#[derive(Clone, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names are those of the JSON members")]
pub struct ManagementPayload {
    pub id: String,
    pub status_query_get_uri: String,
    pub send_event_post_uri: String,
    pub terminate_post_uri: String,
    pub rewind_post_uri: String,
    pub purge_history_delete_uri: String,
    pub restart_post_uri: String,
    pub suspend_post_uri: String,
    pub resume_post_uri: String,
}

impl std::fmt::Debug for ManagementPayload {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ManagementPayload").field("id", &self.id).finish_non_exhaustive()
    }
}

impl ManagementUrls {
    /// `base` is the public URL of the API, such as `http://localhost:7071/runtime/webhooks/durabletask`.
    pub fn new(base: &str, task_hub: &str, connection: &str) -> Self {
        let query = format!("taskHub={}&connection={}", encode_form(task_hub), encode_form(connection));
        Self { base: base.trim_end_matches('/').to_owned(), query, code: None }
    }

    /// The key that every URL carries.
    #[must_use]
    pub fn with_code(mut self, code: Option<&str>) -> Self {
        self.code = code.map(encode_form);
        self
    }

    /// The public URL of the API.
    pub fn base(&self) -> &str {
        &self.base
    }

    /// Query items that every URL needs: hub, connection and key.
    pub fn required_query(&self) -> String {
        self.with_key(&self.query, '&')
    }

    /// The query items of the key alone; empty without one.
    pub fn code_query(&self) -> String {
        self.code.as_ref().map_or_else(String::new, |code| format!("code={code}"))
    }

    /// The URLs of an instance. `fails_with_500` makes the status of a failed one an error of the server.
    ///
    /// Differs: the reference writes a space in an id as `+`, which a path does not turn back into a space.
    pub fn instance(&self, instance_id: &InstanceId, fails_with_500: bool) -> ManagementPayload {
        let root = format!("{}/instances/{}", self.base, encode(instance_id.as_str(), false));
        let query = self.required_query();
        let status = if fails_with_500 { "&returnInternalServerErrorOnFailure=true" } else { "" };
        let with_reason = |verb: &str| format!("{root}/{verb}?reason={{text}}&{query}");
        ManagementPayload {
            id: instance_id.to_string(),
            status_query_get_uri: format!("{root}?{query}{status}"),
            send_event_post_uri: format!("{root}/raiseEvent/{{eventName}}?{query}"),
            terminate_post_uri: with_reason("terminate"),
            rewind_post_uri: with_reason("rewind"),
            purge_history_delete_uri: format!("{root}?{query}"),
            restart_post_uri: format!("{root}/restart?{query}"),
            suspend_post_uri: with_reason("suspend"),
            resume_post_uri: with_reason("resume"),
        }
    }

    /// What SDKs of Durable Functions get as the binding of a client, with `INSTANCEID` in place of an id.
    ///
    /// Source: Azure/azure-functions-durable-extension, `BindingHelper.DurableOrchestrationClientToString`.
    pub fn client_binding(&self, task_hub: &str, connection: Option<&str>, rpc_base: Option<&str>) -> Value {
        let create = format!("{}/orchestrators/{{functionName}}[/{{instanceId}}]", self.base);
        let wait = "?timeout={timeoutInSeconds}&pollingInterval={intervalInSeconds}";
        json!({
            "taskHubName": task_hub,
            "connectionName": connection,
            "creationUrls": {
                "createNewInstancePostUri": self.with_key(&create, '?'),
                "createAndWaitOnNewInstancePostUri": self.with_key(&format!("{create}{wait}"), '&'),
            },
            "managementUrls": self.instance(&InstanceId::new("INSTANCEID"), false).to_json(),
            "baseUrl": self.base,
            "requiredQueryStringParameters": self.code_query(),
            "rpcBaseUrl": rpc_base,
            "httpBaseUrl": null,
        })
    }

    fn with_key(&self, url: &str, separator: char) -> String {
        match &self.code {
            Some(code) => format!("{url}{separator}code={code}"),
            None => url.to_owned(),
        }
    }
}

impl ManagementPayload {
    /// All members, as `CreateHttpManagementPayload` gives them.
    pub fn to_json(&self) -> Value {
        self.members(true).into()
    }

    /// The body of a check-status response, which has no `rewindPostUri`.
    pub fn to_check_status_json(&self) -> Value {
        self.members(false).into()
    }

    fn members(&self, with_rewind: bool) -> Map<String, Value> {
        [
            ("id", &self.id),
            ("statusQueryGetUri", &self.status_query_get_uri),
            ("sendEventPostUri", &self.send_event_post_uri),
            ("terminatePostUri", &self.terminate_post_uri),
            ("rewindPostUri", &self.rewind_post_uri),
            ("purgeHistoryDeleteUri", &self.purge_history_delete_uri),
            ("restartPostUri", &self.restart_post_uri),
            ("suspendPostUri", &self.suspend_post_uri),
            ("resumePostUri", &self.resume_post_uri),
        ]
        .into_iter()
        .filter(|(name, _)| with_rewind || *name != "rewindPostUri")
        .map(|(name, text)| (name.to_owned(), text.as_str().into()))
        .collect()
    }
}

/// Form encoding of a query value: a space is `+`.
fn encode_form(text: &str) -> String {
    encode(text, true)
}

/// Percent encoding. Unreserved are letters, digits and `-_.!*()`, as for .NET's `WebUtility`.
fn encode(text: &str, form: bool) -> String {
    use std::fmt::Write as _;
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' => encoded.push(char::from(byte)),
            b'-' | b'_' | b'.' | b'!' | b'*' | b'(' | b')' => encoded.push(char::from(byte)),
            b' ' if form => encoded.push('+'),
            other => {
                let _ = write!(encoded, "%{other:02X}");
            }
        }
    }
    encoded
}

#[cfg(test)]
mod tests {
    use super::*;

    const BASE: &str = "http://localhost:7071/runtime/webhooks/durabletask";

    #[test]
    fn urls_carry_hub_connection_and_key() {
        let urls = ManagementUrls::new(&format!("{BASE}/"), "TestHubName", "Storage").with_code(Some("K=="));
        let payload = urls.instance(&"order-17".into(), true);
        let query = "taskHub=TestHubName&connection=Storage&code=K%3D%3D";
        let root = format!("{BASE}/instances/order-17");
        assert_eq!(
            payload.status_query_get_uri,
            format!("{root}?{query}&returnInternalServerErrorOnFailure=true")
        );
        assert_eq!(payload.send_event_post_uri, format!("{root}/raiseEvent/{{eventName}}?{query}"));
        assert_eq!(payload.rewind_post_uri, format!("{root}/rewind?reason={{text}}&{query}"));
        let names = |value: &Value| value.as_object().unwrap().keys().cloned().collect::<Vec<_>>();
        assert_eq!(
            names(&payload.to_json()),
            [
                "id",
                "statusQueryGetUri",
                "sendEventPostUri",
                "terminatePostUri",
                "rewindPostUri",
                "purgeHistoryDeleteUri",
                "restartPostUri",
                "suspendPostUri",
                "resumePostUri"
            ]
        );
        assert!(payload.to_check_status_json().get("rewindPostUri").is_none());
        assert!(!format!("{urls:?} {payload:?}").contains("K="), "keys stay out of debug texts");
    }

    #[test]
    fn ids_are_encoded_so_that_a_path_gives_them_back() {
        let urls = ManagementUrls::new(BASE, "My Hub", DEFAULT_CONNECTION_NAME);
        let payload = urls.instance(&"@counter@a b/é".into(), false);
        assert_eq!(
            payload.purge_history_delete_uri,
            format!("{BASE}/instances/%40counter%40a%20b%2F%C3%A9?taskHub=My+Hub&connection=Storage")
        );
        assert_eq!(payload.id, "@counter@a b/é");
    }

    #[test]
    fn the_binding_of_a_client_has_placeholders() {
        let urls = ManagementUrls::new(BASE, "Hub", "Storage").with_code(Some("k"));
        let binding = urls.client_binding("Hub", None, Some("http://127.0.0.1:17071/durabletask/"));
        assert_eq!(
            binding["creationUrls"]["createNewInstancePostUri"],
            format!("{BASE}/orchestrators/{{functionName}}[/{{instanceId}}]?code=k")
        );
        assert_eq!(
            binding["creationUrls"]["createAndWaitOnNewInstancePostUri"],
            format!(
                "{BASE}/orchestrators/{{functionName}}[/{{instanceId}}]?timeout={{timeoutInSeconds}}&pollingInterval={{intervalInSeconds}}&code=k"
            )
        );
        assert_eq!(binding["managementUrls"]["id"], "INSTANCEID");
        assert_eq!(binding["requiredQueryStringParameters"], "code=k");
    }
}
