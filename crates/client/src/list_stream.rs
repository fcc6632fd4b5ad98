//! Lists of large hubs: many parts of the key space are read at once.
//!
//! Instance ids are arbitrary, so nobody knows where to cut. The list therefore begins as one range, and
//! every request slot that is free asks where a range that is being read might be cut: it looks for the first
//! key behind a guess. What it finds becomes the beginning of a new range, which is read beside the old one;
//! what it does not find makes the old range end earlier. Guesses are the places where ids commonly part
//! (digits and letters), the ends of the common beginnings of a key that is known (`inst-00042` is followed by
//! `inst-0005`, `inst-001`, `inst-01`, `inst-1`), and, once a page has told how dense the keys are, as many
//! fractions of the way to the end of the range as there are pages left. A range with two pages left is not
//! cut: a guess takes as long as a page.

use std::cmp::Ordering;
use std::collections::{BTreeSet, VecDeque};
use std::pin::Pin;

use futures::FutureExt as _;
use futures::stream::{FuturesUnordered, StreamExt as _};
use taskhub_core::{InstanceId, InstancePage, InstanceQuery, OrchestrationState};

use crate::{ClientError, TaskHubClient};

/// Instances per page when the query does not say: the most that the service gives.
const PAGE_SIZE: u32 = 1000;
/// Where ids commonly part: GUIDs and numbers first.
const FIRST_GUESSES: [&str; 16] =
    ["8", "4", "c", "2", "6", "a", "e", "1", "b", "d", "f", "A", "P", "h", "n", "t"];
/// Guesses in vain after which a range is left to whom reads it.
const MAX_VAIN_GUESSES: u32 = 12;
/// Longest beginning of a key that guesses look at, in characters.
const MAX_COMMON: usize = 64;

/// Order of keys: by UTF-16 units.
fn ordinal(a: &str, b: &str) -> Ordering {
    a.encode_utf16().cmp(b.encode_utf16())
}

fn less(a: &str, b: &str) -> bool {
    ordinal(a, b).is_lt()
}

/// How to list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ListOptions {
    /// Requests under way at once; also the number of pages in memory at most.
    pub parallelism: usize,
}

impl Default for ListOptions {
    /// 16 requests.
    fn default() -> Self {
        Self { parallelism: 16 }
    }
}

/// A part of the keys that is read page by page.
#[derive(Debug)]
struct Range {
    /// First key that belongs to it; `None` is the first of all.
    from: Option<String>,
    /// First key that does not.
    before: Option<String>,
    /// Last key that has been read, or the first one as long as none has.
    known: Option<String>,
    continuation: Option<String>,
    is_reading: bool,
    is_done: bool,
    /// Whether the ends of common beginnings have been tried.
    tried_beginnings: bool,
    guesses_under_way: u32,
    vain_guesses: u32,
    /// First key, where it is known.
    start: Option<String>,
    /// Instances read.
    rows: usize,
}

impl Range {
    fn new(from: Option<String>, before: Option<String>) -> Self {
        Self {
            known: from.clone(),
            start: from.clone(),
            rows: 0,
            from,
            before,
            continuation: None,
            is_reading: false,
            is_done: false,
            tried_beginnings: false,
            guesses_under_way: 0,
            vain_guesses: 0,
        }
    }

    /// Whether a cut at the key would leave something on both sides.
    fn can_be_cut_at(&self, key: &str) -> bool {
        let lower = self.known.as_deref().or(self.from.as_deref());
        lower.is_none_or(|lower| less(lower, key)) && self.before.as_deref().is_none_or(|end| less(key, end))
    }

    /// Where to look for a cut, best first.
    fn guesses(&mut self, wanted: usize, page_size: u32) -> Vec<String> {
        let Some(known) = self.known.clone() else {
            let first: Vec<_> = FIRST_GUESSES.iter().map(|g| (*g).to_owned()).collect();
            return first.into_iter().filter(|g| self.can_be_cut_at(g)).take(wanted).collect();
        };
        let mut guesses = Vec::new();
        if !self.tried_beginnings {
            self.tried_beginnings = true;
            guesses = beginnings_after(&known, self.before.as_deref());
        } else if let Some(end) = &self.before {
            // The next page is on its way, and the one after it comes as soon as a cut would help.
            let pages = self.pages_left(page_size);
            if pages > 2.0 {
                let pieces = (pages.ceil() + f64::from(self.vain_guesses)).min(wanted as f64 + 1.0);
                let fractions = (1..pieces as u32).map(|n| f64::from(n) / pieces);
                guesses.extend(fractions.filter_map(|fraction| between(&known, end, fraction)));
            }
        }
        let mut seen = BTreeSet::new();
        guesses.retain(|g| self.can_be_cut_at(g) && seen.insert(g.clone()));
        guesses.truncate(wanted);
        guesses
    }

    /// How many pages are left, by what has been read so far.
    fn pages_left(&self, page_size: u32) -> f64 {
        let (Some(start), Some(known), Some(end)) = (&self.start, &self.known, &self.before) else {
            return 0.0;
        };
        let Some(scale) = Scale::between(start, end) else { return 0.0 };
        let (from, at, to) = (scale.value(start), scale.value(known), scale.value(end));
        if at <= from || to <= at {
            return 0.0;
        }
        self.rows as f64 / f64::from(page_size.max(1)) * (to - at) / (at - from)
    }
}

/// Texts behind all that share a beginning with `known`, for each of its beginnings that is not shared with the
/// end of the range: the first one, and where the next character is a digit a few more.
fn beginnings_after(known: &str, before: Option<&str>) -> Vec<String> {
    let chars: Vec<char> = known.chars().take(MAX_COMMON).collect();
    let common = before.map_or(0, |end| known.chars().zip(end.chars()).take_while(|(a, b)| a == b).count());
    let mut guesses = Vec::new();
    for at in common..chars.len() {
        let next = char::from_u32(u32::from(chars[at]) + 1);
        let digits = ['2', '5'].into_iter().filter(|d| chars[at].is_ascii_digit() && Some(*d) > next);
        for last in next.into_iter().chain(digits) {
            guesses.push(chars[..at].iter().chain([&last]).collect());
        }
    }
    guesses
}

/// Keys as numbers: what follows their common beginning, in the alphabet of two of them.
struct Scale {
    common: String,
    alphabet: Vec<char>,
}

impl Scale {
    /// Characters behind the common beginning that count.
    const DIGITS: usize = 8;

    fn between(low: &str, high: &str) -> Option<Self> {
        let common: String =
            low.chars().zip(high.chars()).take_while(|(a, b)| a == b).map(|(a, _)| a).collect();
        let used = || low[common.len()..].chars().chain(high[common.len()..].chars());
        let mut alphabet: Vec<char> = Vec::new();
        if used().any(|c| c.is_ascii_digit()) {
            alphabet.extend('0'..='9');
        }
        if used().any(|c| c.is_ascii_uppercase()) {
            alphabet.extend('A'..='Z');
        }
        if used().any(|c| c.is_ascii_lowercase()) {
            // Hexadecimal, as far as one can see.
            let is_hex =
                low[common.len()..].chars().all(|c| !c.is_ascii_lowercase() || c.is_ascii_hexdigit());
            alphabet.extend('a'..=if is_hex { 'f' } else { 'z' });
        }
        (alphabet.len() > 1).then_some(Self { common, alphabet })
    }

    fn value(&self, key: &str) -> f64 {
        let base = self.alphabet.len() as f64;
        let mut chars = key.get(self.common.len()..).unwrap_or_default().chars();
        (0..Self::DIGITS).fold(0.0, |sum, _| {
            let rank = chars.next().map_or(0, |c| self.alphabet.iter().filter(|a| **a < c).count());
            sum * base + rank as f64
        })
    }

    fn key(&self, value: f64) -> String {
        let base = self.alphabet.len() as f64;
        let mut rest = value;
        let mut digits = [0_usize; Self::DIGITS];
        for digit in digits.iter_mut().rev() {
            *digit = (rest % base) as usize;
            rest = (rest / base).floor();
        }
        self.common.chars().chain(digits.iter().filter_map(|d| self.alphabet.get(*d).copied())).collect()
    }
}

/// A text that lies so far between two keys as the fraction says.
fn between(low: &str, high: &str, fraction: f64) -> Option<String> {
    let scale = Scale::between(low, high)?;
    let (from, to) = (scale.value(low), scale.value(high));
    Some(scale.key((from + (to - from) * fraction).floor()))
}

type Request = Pin<Box<dyn Future<Output = Answer> + Send>>;

enum Answer {
    /// A page of the range with this number.
    Page(usize, Result<InstancePage, ClientError>),
    /// The first key behind a guess, of those before the end that the range had then.
    Key(usize, String, Option<String>),
}

/// Pages of a list that is read in several places at once. The order of instances is that of their keys
/// within a page only. Dropping it ends the requests that are under way.
pub struct InstanceStream {
    client: TaskHubClient,
    query: InstanceQuery,
    parallelism: usize,
    ranges: Vec<Range>,
    requests: FuturesUnordered<Request>,
    /// Pages that have come together.
    ready: VecDeque<Vec<OrchestrationState>>,
    requested: u64,
}

impl std::fmt::Debug for InstanceStream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("InstanceStream").field("ranges", &self.ranges.len()).finish_non_exhaustive()
    }
}

impl TaskHubClient {
    /// All instances that match, page by page, in no particular order and several pages at once: for hubs
    /// with many instances. Memory holds as many pages as requests are under way at most; requests make
    /// progress only while the next page is awaited.
    ///
    /// An instance that is there all along comes exactly once; one that is started or purged meanwhile may
    /// come or not. The query's continuation is ignored.
    pub fn list_stream(&self, query: InstanceQuery, options: ListOptions) -> InstanceStream {
        let mut query = InstanceQuery { continuation: None, ..query };
        query.page_size.get_or_insert(PAGE_SIZE);
        InstanceStream {
            ranges: vec![Range::new(query.key_from.clone(), query.key_before.clone())],
            client: self.clone(),
            query,
            parallelism: options.parallelism.max(1),
            requests: FuturesUnordered::new(),
            ready: VecDeque::new(),
            requested: 0,
        }
    }
}

impl InstanceStream {
    /// The next page that is not empty, `None` after the last one.
    ///
    /// # Errors
    /// The list could not be read. The page that failed is asked for again by the next call.
    pub async fn next(&mut self) -> Result<Option<Vec<OrchestrationState>>, ClientError> {
        loop {
            self.fill();
            if let Some(page) = self.ready.pop_front() {
                return Ok(Some(page));
            }
            let Some(first) = self.requests.next().await else { return Ok(None) };
            let mut failed = self.handle(first);
            // All that is there, so that slots are shared out knowing all answers.
            while let Some(Some(answer)) = self.requests.next().now_or_never() {
                failed = failed.and(self.handle(answer));
            }
            if self.ranges.iter().all(|range| range.is_done) {
                // Guesses that are under way are of no use any more.
                self.requests.clear();
            }
            failed?;
        }
    }

    fn handle(&mut self, answer: Answer) -> Result<(), ClientError> {
        match answer {
            Answer::Key(range, guess, found) => self.cut(range, &guess, found),
            Answer::Page(range, Err(error)) => {
                self.ranges[range].is_reading = false;
                return Err(error);
            }
            Answer::Page(range, Ok(page)) => {
                let instances = self.take(range, page);
                if !instances.is_empty() {
                    self.ready.push_back(instances);
                }
            }
        }
        Ok(())
    }

    /// How many requests have been sent.
    pub fn requests(&self) -> u64 {
        self.requested
    }

    /// Uses all request slots: pages first, then guesses.
    fn fill(&mut self) {
        for at in 0..self.ranges.len() {
            let range = &mut self.ranges[at];
            if self.requests.len() + self.ready.len() < self.parallelism
                && !range.is_done
                && !range.is_reading
            {
                range.is_reading = true;
                let query = InstanceQuery {
                    key_from: range.from.clone(),
                    key_before: range.before.clone(),
                    continuation: range.continuation.clone(),
                    ..self.query.clone()
                };
                let client = self.client.clone();
                self.requested += 1;
                self.requests.push(Box::pin(async move { Answer::Page(at, client.list(&query).await) }));
            }
        }
        let page_size = self.query.page_size.unwrap_or(PAGE_SIZE);
        let open: Vec<usize> = (0..self.ranges.len())
            .filter(|at| !self.ranges[*at].is_done && self.ranges[*at].vain_guesses < MAX_VAIN_GUESSES)
            .collect();
        for (turn, at) in open.iter().copied().enumerate() {
            let free = self.parallelism.saturating_sub(self.requests.len() + self.ready.len());
            let share = free.div_ceil(open.len() - turn);
            let range = &mut self.ranges[at];
            if share == 0 || range.guesses_under_way > 0 {
                continue;
            }
            for guess in range.guesses(share, page_size) {
                range.guesses_under_way += 1;
                let (client, before) = (self.client.clone(), range.before.clone());
                self.requested += 1;
                self.requests.push(Box::pin(async move {
                    let found = client.service().first_list_key(&guess, before.as_deref()).await;
                    let found = found.unwrap_or_else(|error| {
                        tracing::debug!(error = error.chain(), "cannot look for a place to cut the list");
                        // Nothing is known: as if the guess itself were a key that cannot be used.
                        Some(String::new())
                    });
                    Answer::Key(at, guess, found)
                }));
            }
        }
    }

    /// Cuts the range that a guess lies in.
    fn cut(&mut self, asked: usize, guess: &str, found: Option<String>) {
        let origin = &mut self.ranges[asked];
        origin.guesses_under_way -= 1;
        // Others may have cut it since: the guess lies in one of the parts.
        let holds = |range: &Range| {
            range.from.as_deref().is_none_or(|from| !less(guess, from))
                && range.before.as_deref().is_none_or(|end| less(guess, end))
        };
        let Some(at) = self.ranges.iter().position(|range| !range.is_done && holds(range)) else { return };
        let range = &mut self.ranges[at];
        match found {
            Some(key) if key.is_empty() => range.vain_guesses += 1,
            Some(key) if range.can_be_cut_at(&key) => {
                let end = range.before.replace(key.clone());
                range.vain_guesses = 0;
                // Where its end was a guess, the new range has it.
                let tried_beginnings = std::mem::replace(&mut range.tried_beginnings, true);
                self.ranges.push(Range { tried_beginnings, ..Range::new(Some(key), end) });
            }
            // Reading is beyond it already.
            _ if range.known.as_deref().is_some_and(|known| !less(known, guess)) => {}
            // Nothing from the guess to the end.
            _ if range.can_be_cut_at(guess) => {
                range.before = Some(guess.to_owned());
                range.vain_guesses += 1;
            }
            _ => range.vain_guesses += 1,
        }
    }

    /// Takes the instances of a page that belong to the range as it is now.
    fn take(&mut self, at: usize, page: InstancePage) -> Vec<OrchestrationState> {
        let range = &mut self.ranges[at];
        range.is_reading = false;
        let service = self.client.service();
        let key = |id: &InstanceId| service.list_key(id);
        let mut instances = page.instances;
        let all = instances.len();
        if let Some(end) = &range.before {
            instances.retain(|state| less(&key(&state.instance.instance_id), end));
        }
        let is_stuck = page.continuation == range.continuation;
        range.continuation = page.continuation;
        range.is_done = range.continuation.is_none() || is_stuck || instances.len() < all;
        range.rows += instances.len();
        if let (None, Some(first)) = (&range.start, instances.first()) {
            range.start = Some(key(&first.instance.instance_id));
        }
        if let Some(last) = instances.last() {
            range.known = Some(key(&last.instance.instance_id));
            range.vain_guesses = 0;
        }
        instances
    }
}

#[cfg(test)]
mod tests {
    use taskhub_core::OrchestrationStatus::{Completed, Running};

    use super::*;
    use crate::fake::{FakeService, client};

    fn hub(ids: &[String]) -> FakeService {
        ids.iter().fold(FakeService::default(), |fake, id| fake.with_state(id, Completed))
    }

    async fn listed(ids: &[String], parallelism: usize, page_size: u32) -> u64 {
        let (client, _) = client(hub(ids));
        let query = InstanceQuery { page_size: Some(page_size), ..InstanceQuery::default() };
        let mut stream = client.list_stream(query, ListOptions { parallelism });
        let mut found = Vec::new();
        while let Some(page) = stream.next().await.unwrap() {
            assert!(page.len() <= page_size as usize);
            found.extend(page.into_iter().map(|state| state.instance.instance_id.to_string()));
        }
        found.sort();
        let mut expected = ids.to_vec();
        expected.sort();
        expected.dedup();
        assert_eq!(found, expected);
        stream.requests()
    }

    fn kinds_of_ids(count: usize) -> Vec<Vec<String>> {
        vec![
            (0..count).map(|n| format!("inst-{n:06}")).collect(),
            (0..count)
                .map(|n| {
                    format!("{:032x}", (n as u128).wrapping_mul(0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835))
                })
                .collect(),
            (0..count).map(|n| format!("{n}")).collect(),
            (0..count).map(|n| format!("Kunde {}/é{}", n % 7, n)).collect(),
            (0..count).map(|n| "a".repeat(n + 1)).collect(),
            (0..count).map(|n| format!("日本{}", char::from_u32(0x4e00 + n as u32).unwrap_or('x'))).collect(),
        ]
    }

    #[tokio::test]
    async fn every_instance_comes_once_whatever_the_ids_are_like() {
        for ids in kinds_of_ids(200) {
            for (parallelism, page_size) in [(1, 1000), (4, 10), (16, 1), (32, 100)] {
                listed(&ids, parallelism, page_size).await;
            }
        }
        for ids in kinds_of_ids(2) {
            listed(&ids, 16, 1000).await;
        }
        listed(&[], 16, 1000).await;
    }

    #[tokio::test]
    async fn guesses_cost_a_bounded_number_of_requests() {
        for ids in kinds_of_ids(1000) {
            let requests = listed(&ids, 16, 100).await;
            assert!(requests < 400, "{requests} requests for {}", ids[0]);
        }
    }

    #[test]
    fn keys_between_two_keys_lie_between_them() {
        for (low, high) in
            [("inst-00100", "inst-20000"), ("0a", "fe"), ("a1", "a2"), ("A", "zz"), ("x", "x5")]
        {
            let middle = between(low, high, 0.5).unwrap();
            assert!(less(low, &middle) && less(&middle, high), "{low} {middle} {high}");
        }
        assert_eq!(between("inst-00000", "inst-20000", 0.5).as_deref(), Some("inst-10000000"));
        assert_eq!(between("é", "ü", 0.5), None);
    }

    #[tokio::test]
    async fn filters_hold_in_all_parts() {
        let mut fake = hub(&(0..50).map(|n| format!("done-{n}")).collect::<Vec<_>>());
        for n in 0..30 {
            fake = fake.with_state(&format!("run-{n}"), Running);
        }
        let (client, _) = client(fake);
        let query = InstanceQuery { statuses: vec![Running], page_size: Some(7), ..InstanceQuery::default() };
        let mut stream = client.list_stream(query, ListOptions::default());
        let mut count = 0;
        while let Some(page) = stream.next().await.unwrap() {
            assert!(page.iter().all(|state| state.status == Some(Running)));
            count += page.len();
        }
        assert_eq!(count, 30);
    }
}
