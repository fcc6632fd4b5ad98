use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};

use azure_core::auth::AccessToken as AzureToken;
use time::OffsetDateTime;

use super::*;

const START: u64 = 1_800_000_000;

/// Follows the paused runtime's time.
#[derive(Debug)]
struct Ticking(Instant);

impl Clock for Ticking {
    fn now(&self) -> Timestamp {
        Timestamp::from_unix(Duration::from_secs(START) + self.0.elapsed())
    }
}

/// Gives one answer after the other: a token that ends so many seconds after the start, or a failure.
#[derive(Debug, Default)]
struct Fake {
    answers: Mutex<VecDeque<Result<u64, &'static str>>>,
    slow: bool,
    asked: AtomicUsize,
}

#[async_trait]
impl TokenCredential for Fake {
    async fn get_token(&self, scopes: &[&str]) -> azure_core::Result<AzureToken> {
        assert_eq!(scopes, ["https://storage.azure.com/.default"]);
        let number = self.asked.fetch_add(1, Ordering::Relaxed) + 1;
        if self.slow {
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        let answer = self.answers.lock().unwrap().pop_front();
        match answer {
            Some(Ok(end)) => {
                let expires_on = OffsetDateTime::from_unix_timestamp((START + end) as i64).unwrap();
                Ok(AzureToken::new(azure_core::auth::Secret::new(format!("token-{number}")), expires_on))
            }
            Some(Err(text)) => Err(azure_core::Error::message(ErrorKind::Credential, text)),
            None => std::future::pending().await,
        }
    }

    async fn clear_cache(&self) -> azure_core::Result<()> {
        Ok(())
    }
}

fn tokens(slow: bool, answers: &[Result<u64, &'static str>]) -> (Arc<Tokens>, Arc<Fake>) {
    let answers = Mutex::new(answers.iter().copied().collect());
    let fake = Arc::new(Fake { answers, slow, asked: AtomicUsize::new(0) });
    let source = fake.clone();
    let tokens = Tokens::new(Box::new(move || Ok(source.clone())), Arc::new(Ticking(Instant::now())));
    (Arc::new(tokens), fake)
}

async fn text(tokens: &Tokens) -> Result<String, String> {
    tokens.token().await.map(|token| token.secret.expose().to_owned())
}

async fn pass(seconds: u64) {
    tokio::time::advance(Duration::from_secs(seconds)).await;
}

#[tokio::test(start_paused = true)]
async fn a_token_is_kept_until_five_minutes_before_its_end() {
    let (tokens, fake) = tokens(false, &[Ok(3600), Ok(7200)]);
    for _ in 0..3 {
        assert_eq!(text(&tokens).await.unwrap(), "token-1");
    }
    pass(3299).await;
    assert_eq!(text(&tokens).await.unwrap(), "token-1");
    assert_eq!(fake.asked.load(Ordering::Relaxed), 1);
    pass(1).await;
    assert_eq!(text(&tokens).await.unwrap(), "token-2");
}

#[tokio::test(start_paused = true)]
async fn requests_that_wait_for_a_token_ask_once() {
    let (tokens, fake) = tokens(true, &[Ok(3600)]);
    let (a, b) = tokio::join!(text(&tokens), text(&tokens));
    assert_eq!((a.unwrap(), b.unwrap()), ("token-1".to_owned(), "token-1".to_owned()));
    assert_eq!(fake.asked.load(Ordering::Relaxed), 1);
}

#[tokio::test(start_paused = true)]
async fn only_one_request_waits_for_the_replacement_of_a_token() {
    let (tokens, fake) = tokens(true, &[Ok(3600), Ok(7200)]);
    text(&tokens).await.unwrap();
    pass(3500).await;
    let (a, b) = tokio::join!(text(&tokens), text(&tokens));
    assert_eq!((a.unwrap(), b.unwrap()), ("token-2".to_owned(), "token-1".to_owned()));
    assert_eq!(fake.asked.load(Ordering::Relaxed), 2);
}

#[tokio::test(start_paused = true)]
async fn a_token_that_cannot_be_replaced_is_used_to_its_end_with_an_attempt_every_30_seconds() {
    let (tokens, fake) = tokens(false, &[Ok(3600), Err("Azure CLI not installed"), Err(""), Ok(9000)]);
    text(&tokens).await.unwrap();
    pass(3310).await;
    for asked in [2, 2] {
        assert_eq!(text(&tokens).await.unwrap(), "token-1");
        assert_eq!(fake.asked.load(Ordering::Relaxed), asked);
    }
    pass(30).await;
    assert_eq!(text(&tokens).await.unwrap(), "token-1");
    assert_eq!(fake.asked.load(Ordering::Relaxed), 3);
    pass(30).await;
    assert_eq!(text(&tokens).await.unwrap(), "token-4");
}

#[tokio::test(start_paused = true)]
async fn without_a_token_a_failure_holds_for_30_seconds() {
    let (tokens, fake) = tokens(false, &[Err("Azure CLI not installed"), Ok(3600)]);
    for _ in 0..2 {
        assert_eq!(text(&tokens).await.unwrap_err(), "the Azure CLI is not installed");
    }
    assert_eq!(fake.asked.load(Ordering::Relaxed), 1);
    pass(30).await;
    assert_eq!(text(&tokens).await.unwrap(), "token-2");
}

#[tokio::test(start_paused = true)]
async fn a_token_without_a_future_is_sent_but_not_kept_for_long() {
    let (tokens, fake) = tokens(false, &[Ok(10), Ok(100), Ok(3600)]);
    assert_eq!(text(&tokens).await.unwrap(), "token-1");
    assert_eq!(text(&tokens).await.unwrap(), "token-2");
    assert_eq!(text(&tokens).await.unwrap(), "token-2");
    assert_eq!(fake.asked.load(Ordering::Relaxed), 2);
    pass(30).await;
    assert_eq!(text(&tokens).await.unwrap(), "token-3");
}

#[tokio::test(start_paused = true)]
async fn an_identity_that_does_not_answer_is_given_up() {
    let (tokens, _) = tokens(false, &[]);
    assert_eq!(text(&tokens).await.unwrap_err(), "the identity does not answer in time");
}

#[test]
fn reasons_are_of_our_own_words() {
    let said = "Multiple errors were encountered while attempting to authenticate:\n\
        error getting environment credential - request token error - Server returned error response\n\
        getting virtual machine managed identity credential timed out - operation timed out\n\
        'az account get-access-token' command failed: hush";
    let shown = reason(&azure_core::Error::message(ErrorKind::Credential, said));
    assert_eq!(
        shown,
        "the identity in the environment (AZURE_CLIENT_ID) gets no token; Entra ID refuses the client id or its \
         secret; no managed identity of a virtual machine answers; the Azure CLI gives no token (is `az login` done?)"
    );
    let status = azure_core::StatusCode::Forbidden;
    let refused = ErrorKind::http_response(status, Some("hush".to_owned())).into_error().context("hush");
    assert_eq!(reason(&refused), "the identity's service refuses with status 403");
    let other = azure_core::Error::message(ErrorKind::Other, "hush");
    assert_eq!(reason(&other), "the identity gives no token");
}

#[tokio::test(start_paused = true)]
async fn debug_texts_hold_no_token() {
    let (tokens, _) = tokens(false, &[Ok(3600)]);
    text(&tokens).await.unwrap();
    let shown = format!("{tokens:?}");
    assert!(shown.contains("expires_at") && !shown.contains("token-1"), "{shown}");
    let provider = client_secret("tenant", "client", &Secret::new("hush")).unwrap();
    assert!(!format!("{provider:?}").contains("hush"));
}
