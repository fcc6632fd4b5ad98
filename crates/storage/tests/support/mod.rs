//! A server that stands in for Azure Storage.

#![allow(dead_code, reason = "each test program uses a part")]

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use taskhub_storage::StorageAccount;
use taskhub_storage::azure::{AzureOptions, AzureStore};
use taskhub_storage::connection::{ConnectionSettings, Credential, Endpoints, Secret};
use taskhub_storage::request::OperationCounts;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// `SECRET` in Base64 with a marker that must never show.
const KEY: &str = "SECRETSECRETSECRETSECRET";
const DATES: &str = "Server: stub\r\nDate: Thu, 15 Jan 2026 09:30:00 GMT\r\nx-ms-request-id: 00000000-0000-0000-0000-000000000001\r\nx-ms-version: 2022-11-02\r\n";

/// An answer that never comes.
pub(crate) const SILENCE: &str = "silence";

/// A server that answers each request with the next answer and then closes the connection. An empty answer
/// closes it at once; [`SILENCE`] keeps it open.
pub(crate) struct Server {
    pub(crate) address: String,
    pub(crate) requests: Arc<Mutex<Vec<String>>>,
}

async fn read_request(stream: &mut TcpStream) -> String {
    let mut received = Vec::new();
    let mut part = [0; 4096];
    loop {
        let text = String::from_utf8_lossy(&received).into_owned();
        if let Some((head, body)) = text.split_once("\r\n\r\n") {
            let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
            if body.len() >= length.map_or(0, |length| length.parse().unwrap()) {
                return text;
            }
        }
        let count = stream.read(&mut part).await.unwrap();
        assert!(count > 0, "the client hung up: {text}");
        received.extend_from_slice(&part[..count]);
    }
}

impl Server {
    pub(crate) async fn start(answers: &[&str]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let requests = Arc::new(Mutex::new(Vec::new()));
        let mut answers: VecDeque<String> = answers.iter().map(|text| (*text).to_owned()).collect();
        let seen = requests.clone();
        tokio::spawn(async move {
            while let Some(answer) = answers.pop_front() {
                let (mut stream, _) = listener.accept().await.unwrap();
                let request = read_request(&mut stream).await;
                seen.lock().unwrap().push(request);
                if answer == SILENCE {
                    std::future::pending::<()>().await;
                }
                stream.write_all(answer.as_bytes()).await.unwrap();
                stream.shutdown().await.unwrap();
            }
        });
        Self { address, requests }
    }

    pub(crate) fn account(&self, credential: Credential) -> StorageAccount {
        self.counted_account(credential, &OperationCounts::default())
    }

    pub(crate) fn counted_account(&self, credential: Credential, counts: &OperationCounts) -> StorageAccount {
        let at = |service: &str| format!("{}/{service}", self.address);
        let endpoints = Endpoints { queue: at("queue"), table: at("table"), blob: at("blob") };
        let settings = ConnectionSettings { account: "acct".to_owned(), credential, endpoints };
        let mut options = AzureOptions { counts: counts.clone(), ..AzureOptions::default() };
        options.requests.initial_delay = Duration::from_millis(1);
        options.requests.max_attempts = 2;
        AzureStore::connect(&settings, &options).unwrap()
    }

    pub(crate) fn request(&self, index: usize) -> String {
        self.requests.lock().unwrap()[index].clone()
    }
}

pub(crate) fn key() -> Credential {
    Credential::Key(Secret::new(KEY))
}

pub(crate) fn answer(status: &str, headers: &str, body: &str) -> String {
    let length = body.len();
    format!(
        "HTTP/1.1 {status}\r\n{DATES}{headers}Connection: close\r\nContent-Length: {length}\r\n\r\n{body}"
    )
}

pub(crate) fn busy() -> String {
    answer("503 Busy", "x-ms-error-code: ServerBusy\r\n", "")
}
