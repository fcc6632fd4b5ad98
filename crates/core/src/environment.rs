use std::cell::RefCell;
use std::fmt::Debug;
use std::sync::Mutex;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use uuid::Uuid;

use crate::{ExecutionId, Timestamp};

/// Where the wall clock comes from. Waiting is tokio's timer, so that a paused runtime plus a clock
/// that follows it makes a whole task hub run in virtual time.
pub trait Clock: Send + Sync + Debug {
    /// The current time in UTC.
    fn now(&self) -> Timestamp;
}

/// The clock of this machine.
#[derive(Debug, Clone, Copy, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    #[allow(clippy::disallowed_methods, reason = "the one place that reads the machine's clock")]
    fn now(&self) -> Timestamp {
        Timestamp::from_unix(SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO))
    }
}

/// Where random numbers and ids come from.
pub trait IdSource: Send + Sync + Debug {
    /// 128 random bits as a version 4 GUID.
    fn guid(&self) -> Uuid;

    /// A random number, uniform over all of `u64`.
    fn random(&self) -> u64 {
        self.guid().as_u64_pair().1 << 2 ^ self.guid().as_u64_pair().0
    }
}

/// Ids from the operating system's random numbers.
#[derive(Debug, Clone, Copy, Default)]
pub struct RandomIds;

impl IdSource for RandomIds {
    fn guid(&self) -> Uuid {
        RANDOM.with_borrow_mut(Random::guid)
    }
}

/// Random numbers of the operating system that have been asked for in advance: a call for each is most of its cost.
struct Random {
    bytes: [u8; 1024],
    used: usize,
}

thread_local! {
    static RANDOM: RefCell<Random> = const { RefCell::new(Random { bytes: [0; 1024], used: 1024 }) };
}

impl Random {
    #[allow(clippy::disallowed_methods, reason = "the one place that makes random ids")]
    fn guid(&mut self) -> Uuid {
        if self.used == self.bytes.len() {
            if getrandom::fill(&mut self.bytes).is_err() {
                return Uuid::new_v4();
            }
            self.used = 0;
        }
        let mut id = [0; 16];
        id.copy_from_slice(&self.bytes[self.used..self.used + 16]);
        self.used += 16;
        uuid::Builder::from_random_bytes(id).into_uuid()
    }
}

/// Ids from a seed: the same seed gives the same ids in the same order (splitmix64).
#[derive(Debug)]
pub struct SeededIds(Mutex<u64>);

impl SeededIds {
    /// Starts the sequence of `seed`.
    pub fn new(seed: u64) -> Self {
        Self(Mutex::new(seed))
    }

    fn next(&self) -> u64 {
        let mut state = self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = *state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}

impl IdSource for SeededIds {
    fn guid(&self) -> Uuid {
        uuid::Builder::from_random_bytes(
            ((u128::from(self.next()) << 64) | u128::from(self.next())).to_be_bytes(),
        )
        .into_uuid()
    }

    fn random(&self) -> u64 {
        self.next()
    }
}

/// A new execution id: a GUID as 32 hex digits without hyphens (.NET format `N`).
pub fn execution_id_from(ids: &dyn IdSource) -> ExecutionId {
    ExecutionId::new(ids.guid().simple().to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn random_ids_are_guids_of_version_4_and_all_different() {
        let ids: std::collections::HashSet<_> = (0..1000).map(|_| RandomIds.guid()).collect();
        assert_eq!(ids.len(), 1000);
        assert!(ids.iter().all(|id| id.get_version_num() == 4 && id.get_variant() == uuid::Variant::RFC4122));
    }

    #[test]
    fn a_seed_repeats_and_seeds_differ() {
        let take = |seed| {
            let ids = SeededIds::new(seed);
            [ids.guid(), ids.guid()]
        };
        assert_eq!(take(1), take(1));
        assert_ne!(take(1), take(2));
        assert_ne!(take(1)[0], take(1)[1]);
        assert_eq!(take(1)[0].get_version_num(), 4);
    }
}
