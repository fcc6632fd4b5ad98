//! Keys, signatures and contents stay out of errors and logs. Alone in its program, because the log is the
//! program's.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use std::sync::{Arc, Mutex};
use std::time::Duration;

use taskhub_storage::connection::{Credential, Secret};
use taskhub_storage::{Error, may_log};
use tracing_subscriber::filter::filter_fn;
use tracing_subscriber::layer::{Layer, SubscriberExt};

use support::{Server, answer, busy, key};

/// Everything that is logged.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl std::io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

fn assert_no_secret(text: &str) {
    for secret in ["SECRET", "SharedKey", "sig=", "payload"] {
        assert!(!text.contains(secret), "{secret} in {text}");
    }
}

#[tokio::test]
async fn neither_errors_nor_logs_hold_secrets_or_contents() {
    let log = Log::default();
    let writer = log.clone();
    let lines = tracing_subscriber::fmt::layer()
        .with_ansi(false)
        .with_writer(move || writer.clone())
        .with_filter(filter_fn(may_log));
    tracing::subscriber::set_global_default(tracing_subscriber::registry().with(lines)).unwrap();

    let denied = answer("403 Forbidden", "x-ms-error-code: AuthenticationFailed\r\n", "payload SharedKey");
    let sas = || Credential::Sas(Secret::new("sv=2022&sig=SECRET"));
    let mut errors: Vec<Error> = Vec::new();
    for credential in [key(), sas()] {
        let answers = [denied.as_str(), "", "", &answer("200 OK", "", "<payload"), &busy(), &busy()];
        let server = Server::start(&answers).await;
        let account = server.account(credential.clone());
        let put = || account.queues.put_message("queue", "payload", Duration::ZERO);
        errors.push(put().await.unwrap_err()); // denied
        errors.push(put().await.unwrap_err()); // reset, twice
        errors.push(account.queues.get_messages("queue", 1, Duration::from_secs(1)).await.unwrap_err());
        errors.push(put().await.unwrap_err()); // busy, twice
        let nobody = Server { address: "http://127.0.0.1:9".to_owned(), requests: Arc::default() };
        let account = nobody.account(credential);
        errors.push(account.blobs.get_blob("container", "b").await.unwrap_err());
    }
    for error in &errors {
        assert_no_secret(&format!("{error} {error:?}"));
    }
    assert!(errors[4].to_string().contains("cannot connect"), "{}", errors[4]);
    let logged = String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
    assert!(logged.contains("request to storage is repeated"), "{logged}");
    assert_no_secret(&logged);
}
