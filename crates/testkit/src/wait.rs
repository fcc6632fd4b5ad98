use std::future::Future;
use std::time::Duration;

use tokio::time::Instant;

/// How long [`eventually`] waits.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Waits until `attempt` gives something, for at most [`PATIENCE`].
///
/// # Panics
/// When it never does; the message tells what was awaited.
pub async fn eventually<T, F, A>(what: &str, attempt: F) -> T
where
    F: FnMut() -> A,
    A: Future<Output = Option<T>>,
{
    eventually_within(PATIENCE, what, attempt).await
}

/// As [`eventually`], with a bound of the caller's. Virtual time counts where the runtime is paused.
///
/// # Panics
/// When `attempt` gives nothing within `bound`.
pub async fn eventually_within<T, F, A>(bound: Duration, what: &str, mut attempt: F) -> T
where
    F: FnMut() -> A,
    A: Future<Output = Option<T>>,
{
    let started = Instant::now();
    let mut pause = Duration::from_millis(5);
    loop {
        if let Some(found) = attempt().await {
            return found;
        }
        assert!(started.elapsed() < bound, "not within {bound:?}: {what}");
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(Duration::from_millis(500));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn waits_for_a_state_that_comes() {
        let started = Instant::now();
        let found = eventually("ten seconds", || async move {
            let elapsed = started.elapsed();
            (elapsed >= Duration::from_secs(10)).then_some(elapsed)
        })
        .await;
        assert!(found < Duration::from_secs(11), "{found:?}");
    }

    #[tokio::test(start_paused = true)]
    #[should_panic(expected = "not within 60s: the impossible")]
    async fn gives_up_on_a_state_that_does_not_come() {
        eventually("the impossible", || async { None::<()> }).await;
    }
}
