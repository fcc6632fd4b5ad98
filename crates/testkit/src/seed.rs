use std::sync::Arc;

use taskhub_core::{IdSource, RandomIds, SeededIds};

/// Name of the environment variable that repeats a random test.
pub const SEED_VARIABLE: &str = "TASKHUB_TEST_SEED";

/// A seed for a random test: `$TASKHUB_TEST_SEED`, or a new one. It is printed, and a failing test shows
/// what it printed, so every failure can be repeated.
///
/// # Panics
/// When the variable is not a number.
#[allow(clippy::print_stderr, reason = "the test harness shows it with a failing test")]
pub fn seed() -> u64 {
    let seed = match std::env::var(SEED_VARIABLE) {
        Ok(text) => text.parse().unwrap_or_else(|_| panic!("{SEED_VARIABLE} is not a number: {text}")),
        Err(_) => RandomIds.random(),
    };
    eprintln!("repeat with {SEED_VARIABLE}={seed}");
    seed
}

/// Ids that are the same in every run with the same seed.
pub fn seeded_ids(seed: u64) -> Arc<dyn IdSource> {
    Arc::new(SeededIds::new(seed))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_repeats_its_ids() {
        let seed = seed();
        assert_eq!(seeded_ids(seed).guid(), seeded_ids(seed).guid());
        assert_ne!(seeded_ids(seed).guid(), seeded_ids(seed.wrapping_add(1)).guid());
    }
}
