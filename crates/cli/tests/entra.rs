//! The program with Entra ID: credentials of the environment, from the settings to the request. Microsoft's
//! services are played by a server of our own.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::Command;
use std::sync::{Arc, Mutex};

const DATES: &str = "Server: stub\r\nDate: Thu, 15 Jan 2026 09:30:00 GMT\r\nx-ms-request-id: 00000000-0000-0000-0000-000000000001\r\nx-ms-version: 2022-11-02\r\n";

/// Plays the storage account and whoever gives tokens.
struct Cloud {
    address: String,
    requests: Arc<Mutex<Vec<String>>>,
}

fn read_request(stream: &mut TcpStream) -> String {
    let (mut received, mut part) = (Vec::new(), [0; 4096]);
    loop {
        let text = String::from_utf8_lossy(&received).into_owned();
        if let Some((head, body)) = text.split_once("\r\n\r\n") {
            let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
            if body.len() >= length.map_or(0, |length| length.parse().unwrap()) {
                return text;
            }
        }
        let count = stream.read(&mut part).unwrap();
        if count == 0 {
            return text;
        }
        received.extend_from_slice(&part[..count]);
    }
}

fn answer_to(request: &str) -> (&'static str, &'static str, &'static str) {
    let token = request.to_ascii_lowercase().contains("authorization: bearer token-secret\r\n");
    match request.split_whitespace().nth(1).unwrap_or_default() {
        path if path.starts_with("/msi?") => {
            let body = "{\"access_token\":\"token-SECRET\",\"expires_on\":\"4102444800\",\"token_type\":\"Bearer\",\"resource\":\"x\"}";
            ("200 OK", "", body)
        }
        "/tenant/oauth2/v2.0/token" if request.contains("-bad-SECRET") => {
            let body = "{\"error\":\"invalid_client\",\"error_description\":\"AADSTS7000215: no\"}";
            ("401 Unauthorized", "Content-Type: application/json\r\n", body)
        }
        "/tenant/oauth2/v2.0/token" => {
            let body = "{\"access_token\":\"token-SECRET\",\"expires_in\":3600,\"ext_expires_in\":3600,\"token_type\":\"Bearer\"}";
            ("200 OK", "Content-Type: application/json\r\n", body)
        }
        path if path.starts_with("/table/") && token => {
            let body = "{\"odata.metadata\":\"m\",\"value\":[]}";
            ("200 OK", "Content-Type: application/json\r\n", body)
        }
        _ if token => ("404 Not Found", "x-ms-error-code: ContainerNotFound\r\n", ""),
        _ => ("403 Forbidden", "x-ms-error-code: AuthenticationFailed\r\n", ""),
    }
}

impl Cloud {
    fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let requests = Arc::new(Mutex::new(Vec::new()));
        let seen = requests.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                let request = read_request(&mut stream);
                let (status, headers, body) = answer_to(&request);
                let length = body.len();
                let head = format!(
                    "HTTP/1.1 {status}\r\n{DATES}{headers}Connection: close\r\nContent-Length: {length}\r\n\r\n"
                );
                seen.lock().unwrap().push(request);
                stream.write_all(format!("{head}{body}").as_bytes()).unwrap();
            }
        });
        Self { address, requests }
    }

    /// Lists instances, with every kind of logging; returns whether it worked, and both outputs.
    fn list(&self, variables: &[(&str, &str)]) -> (bool, String) {
        let directory = tempfile::tempdir().unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_taskhub"));
        command.args(["get-instances", "--task-hub-name", "TestHub"]).current_dir(directory.path());
        // Nothing leaves this machine, whatever the machine is: its own identity is no business of a test.
        // So each test names the kind of credential, and a request that leaves would come to our server.
        command.env_clear().env("HTTP_PROXY", &self.address).env("NO_PROXY", "127.0.0.1");
        command.env("RUST_LOG", "trace").env("AzureWebJobsStorage__accountName", "acct");
        for service in ["blob", "queue", "table"] {
            let address = format!("{}/{service}", self.address);
            command.env(format!("AzureWebJobsStorage__{service}ServiceUri"), address);
        }
        let output = command.envs(variables.iter().copied()).output().unwrap();
        for request in self.requests.lock().unwrap().iter() {
            assert!(!request.contains("169.254.169.254"), "the machine's identity is asked: {request}");
        }
        let texts = [output.stdout, output.stderr].map(|bytes| String::from_utf8(bytes).unwrap());
        (output.status.success(), texts.concat())
    }

    #[track_caller]
    fn check_success(&self, variables: &[(&str, &str)]) {
        let (worked, shown) = self.list(variables);
        assert!(worked, "{shown}");
        assert!(!shown.contains("SECRET"), "{shown}");
    }

    #[track_caller]
    fn check_failure(&self, variables: &[(&str, &str)], reason: &str) {
        let (worked, shown) = self.list(variables);
        assert!(!worked && shown.contains(reason), "{shown}");
        assert!(!shown.contains("SECRET"), "{shown}");
    }

    fn request(&self, beginning: &str) -> String {
        let requests = self.requests.lock().unwrap();
        requests.iter().find(|request| request.starts_with(beginning)).expect(beginning).clone()
    }
}

#[test]
fn a_managed_identity_lists_instances() {
    let cloud = Cloud::start();
    let endpoint = format!("{}/msi", cloud.address);
    let variables = [("IDENTITY_ENDPOINT", endpoint.as_str()), ("IDENTITY_HEADER", "header-SECRET")];
    let [endpoint, header] = variables;
    cloud.check_success(&[endpoint, header, ("AZURE_CREDENTIAL_KIND", "appservice")]);
    let asked = cloud.request("GET /msi?");
    assert!(asked.contains("resource=https%3A%2F%2Fstorage.azure.com "), "{asked}");
    assert!(asked.contains("x-identity-header: header-SECRET\r\n"), "{asked}");

    cloud.check_success(&[endpoint, header, ("AzureWebJobsStorage__credential", "managedidentity")]);
    let asked = cloud.requests.lock().unwrap().iter().filter(|r| r.starts_with("GET /msi?")).count();
    assert_eq!(asked, 2, "a process asks once");
}

#[test]
fn an_application_with_a_secret_lists_instances() {
    let cloud = Cloud::start();
    let host = ("AZURE_AUTHORITY_HOST", cloud.address.as_str());
    let in_settings = [
        host,
        ("AzureWebJobsStorage__tenantId", "tenant"),
        ("AzureWebJobsStorage__clientId", "client"),
        ("AzureWebJobsStorage__clientSecret", "client-SECRET"),
    ];
    cloud.check_success(&in_settings);
    let asked = cloud.request("POST /tenant/oauth2/v2.0/token ");
    assert!(asked.contains("scope=https%3A%2F%2Fstorage.azure.com%2F.default"), "{asked}");
    assert!(asked.contains("client_id=client&client_secret=client-SECRET"), "{asked}");

    let in_environment = |secret| {
        let kind = ("AZURE_CREDENTIAL_KIND", "clientsecret");
        let (tenant, client) = (("AZURE_TENANT_ID", "tenant"), ("AZURE_CLIENT_ID", "client"));
        [host, kind, tenant, client, ("AZURE_CLIENT_SECRET", secret)]
    };
    cloud.check_success(&in_environment("client-SECRET"));
    cloud.check_failure(
        &in_environment("client-bad-SECRET"),
        "no token from Entra ID: Entra ID refuses the client id or its secret. operation=",
    );
}

#[test]
fn a_workload_identity_lists_instances() {
    let cloud = Cloud::start();
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "federated-SECRET").unwrap();
    let variables = [
        ("AZURE_AUTHORITY_HOST", cloud.address.as_str()),
        ("AZURE_TENANT_ID", "tenant"),
        ("AZURE_CLIENT_ID", "client"),
        ("AZURE_FEDERATED_TOKEN_FILE", file.path().to_str().unwrap()),
        ("AZURE_CREDENTIAL_KIND", "workloadidentity"),
    ];
    cloud.check_success(&variables);
    let asked = cloud.request("POST /tenant/oauth2/v2.0/token ");
    assert!(asked.contains("client_assertion=federated-SECRET"), "{asked}");

    std::fs::write(file.path(), "federated-bad-SECRET").unwrap();
    cloud.check_failure(
        &variables,
        "no token from Entra ID: the identity's service refuses with status 401. ",
    );
    cloud.check_failure(&variables, "AADSTS7000215"); // in the log, for whoever has to find out
}

/// Puts a program `az` into the directory.
#[cfg(unix)]
fn write_az(directory: &Path, script: &str) {
    use std::os::unix::fs::PermissionsExt;

    let path = directory.join("az");
    std::fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
}

#[cfg(unix)]
#[test]
fn the_azure_cli_gives_a_token_or_a_reason() {
    let cloud = Cloud::start();
    let directory = tempfile::tempdir().unwrap();
    let variables = [("PATH", directory.path().to_str().unwrap()), ("AZURE_CREDENTIAL_KIND", "azurecli")];
    cloud.check_failure(&variables, "no token from Entra ID: the Azure CLI is not installed. operation=");
    write_az(directory.path(), "echo 'Please run az login SECRET' >&2; exit 1");
    cloud.check_failure(&variables, "the Azure CLI gives no token (is `az login` done?)");
    write_az(
        directory.path(),
        "[ \"$*\" = 'account get-access-token --output json --scope https://storage.azure.com/.default' ] || exit 1\n\
         echo '{\"accessToken\":\"token-SECRET\",\"expires_on\":4102444800,\"subscription\":\"s\",\"tenant\":\"t\",\"tokenType\":\"Bearer\"}'",
    );
    cloud.check_success(&variables);
}

#[test]
fn an_identity_that_is_not_there_is_an_error_and_nothing_is_sent() {
    let cloud = Cloud::start();
    let error = "could not connect with Entra ID. configured_by=`AzureWebJobsStorage`: AZURE_CREDENTIAL_KIND";
    cloud.check_failure(&[("AZURE_CREDENTIAL_KIND", "SECRET")], error);
    let half = [("AZURE_CREDENTIAL_KIND", "clientsecret"), ("AZURE_CLIENT_SECRET", "client-SECRET")];
    cloud.check_failure(&half, error);
    assert!(cloud.requests.lock().unwrap().is_empty());
}
