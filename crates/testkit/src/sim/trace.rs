use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::time::Instant;

const FNV_OFFSET: u64 = 0xcbf2_9ce4_8422_2325;
const FNV_PRIME: u64 = 0x0100_0000_01b3;

/// What happened, in order: a hash over all of it, and the lines themselves if somebody wants to read them.
#[derive(Debug)]
pub(crate) struct Trace {
    origin: Instant,
    keeps_lines: bool,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    hash: u64,
    entries: u64,
    lines: Vec<String>,
}

impl Trace {
    pub(crate) fn new(keeps_lines: bool) -> Self {
        let state = State { hash: FNV_OFFSET, entries: 0, lines: Vec::new() };
        Self { origin: Instant::now(), keeps_lines, state: Mutex::new(state) }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether details are of interest.
    pub(crate) fn keeps_lines(&self) -> bool {
        self.keeps_lines
    }

    /// Adds what a process did or what was done to it. `detail` shows in lines only.
    pub(crate) fn add(&self, process: &str, what: &[&str], detail: &str) {
        let at = self.origin.elapsed();
        let mut state = self.state();
        let mut hash = state.hash;
        let time = at.as_millis() as u64;
        for part in
            [&time.to_le_bytes()[..], process.as_bytes()].into_iter().chain(what.iter().map(|w| w.as_bytes()))
        {
            for byte in part.iter().chain(&[0xff]) {
                hash = (hash ^ u64::from(*byte)).wrapping_mul(FNV_PRIME);
            }
        }
        state.hash = hash;
        state.entries += 1;
        if self.keeps_lines {
            let line = format!("{:>9.3} {process:<8} {} {detail}", at.as_secs_f64(), what.join(" "));
            state.lines.push(line);
        }
    }

    /// Hash of everything so far, how much it was, and the lines.
    pub(crate) fn take(&self) -> (u64, u64, Vec<String>) {
        let mut state = self.state();
        (state.hash, state.entries, std::mem::take(&mut state.lines))
    }
}
