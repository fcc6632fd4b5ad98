//! Lists of large hubs: many parts of the key space are read at once.
//!
//! Instance ids are arbitrary, so nobody knows where to cut. The list therefore begins as one range and one
//! request. A page that is not the last one tells how its keys go on; every request slot that is free then cuts
//! a range at such a guess and reads the part behind it, beside what is being read already. A part may turn out
//! to be empty, which costs its request, or to hold many pages, and then it is cut again by what its own keys
//! show. Where most guesses are in vain, no more are made.

use std::collections::VecDeque;
use std::pin::Pin;

use futures::FutureExt as _;
use futures::stream::{FuturesUnordered, StreamExt as _};
use taskhub_core::{InstancePage, InstanceQuery, OrchestrationState};

use crate::{ClientError, TaskHubClient};

mod cuts;

use cuts::{Scale, less};

/// Instances per page when the query does not say: the most that the service gives.
const PAGE_SIZE: u32 = 1000;
/// Empty parts that are allowed beyond one for each page that was not empty.
const VAIN_GUESSES: u64 = 16;

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
#[derive(Debug, Default)]
struct Range {
    /// First key that may belong to it; `None` is the first of all.
    from: Option<String>,
    /// First key that does not.
    before: Option<String>,
    /// Last key that has been read.
    last: Option<String>,
    /// How the keys of the last page go on.
    scale: Option<Scale>,
    continuation: Option<String>,
    has_been_read: bool,
    is_reading: bool,
    is_done: bool,
    /// Whether it has been cut where the common beginnings of its keys end.
    is_cut_far: bool,
}

impl Range {
    /// Whether a cut at the key would leave something on both sides.
    fn can_be_cut_at(&self, key: &str) -> bool {
        let lower = self.last.as_deref().or(self.from.as_deref());
        lower.is_none_or(|lower| less(lower, key)) && self.before.as_deref().is_none_or(|end| less(key, end))
    }

    /// Where to cut, best first.
    fn guesses(&self, wanted: usize) -> VecDeque<String> {
        let guesses = cuts::guesses(self.last.as_deref(), self.scale.as_ref(), !self.is_cut_far, wanted);
        let mut usable = VecDeque::new();
        for guess in guesses {
            if self.can_be_cut_at(&guess) && !usable.contains(&guess) {
                usable.push_back(guess);
            }
        }
        usable
    }
}

type Request = Pin<Box<dyn Future<Output = (usize, Result<InstancePage, ClientError>)> + Send>>;

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
    /// Parts that turned out to be empty, and pages that did not.
    empty: u64,
    full: u64,
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
        let (from, before) = (query.key_from.clone(), query.key_before.clone());
        InstanceStream {
            ranges: vec![Range { from, before, ..Range::default() }],
            client: self.clone(),
            query,
            parallelism: options.parallelism.max(1),
            requests: FuturesUnordered::new(),
            ready: VecDeque::new(),
            requested: 0,
            empty: 0,
            full: 0,
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
            let Some((at, first)) = self.requests.next().await else { return Ok(None) };
            let mut failed = self.take(at, first);
            // All that is there, so that slots are shared out knowing all answers.
            while let Some(Some((at, answer))) = self.requests.next().now_or_never() {
                failed = failed.and(self.take(at, answer));
            }
            failed?;
        }
    }

    /// How many requests have been sent.
    pub fn requests(&self) -> u64 {
        self.requested
    }

    fn free(&self) -> usize {
        self.parallelism.saturating_sub(self.requests.len() + self.ready.len())
    }

    /// Uses all request slots: next pages first, then the parts behind new cuts.
    fn fill(&mut self) {
        for at in 0..self.ranges.len() {
            if self.free() > 0 && !self.ranges[at].is_done && !self.ranges[at].is_reading {
                self.read(at);
            }
        }
        // Pages that wait to be taken hold their slots: the choice is made once, when all are free.
        if !self.ready.is_empty() {
            return;
        }
        let free = match self.empty.saturating_sub(self.full + VAIN_GUESSES) {
            0 => self.free(),
            // Most were in vain.
            more if more < self.full + VAIN_GUESSES => self.free().min(2),
            _ => return,
        };
        let mut open: Vec<(usize, VecDeque<String>, Vec<String>)> = (0..self.ranges.len())
            .filter(|at| self.ranges[*at].has_been_read && !self.ranges[*at].is_done)
            .map(|at| (at, self.ranges[at].guesses(free), Vec::new()))
            .collect();
        // In turn, so that each gets its share.
        let mut left = free;
        while left > 0 && open.iter().any(|(_, guesses, _)| !guesses.is_empty()) {
            for (_, guesses, chosen) in open.iter_mut().filter(|(_, guesses, _)| !guesses.is_empty()) {
                if left > 0 {
                    chosen.extend(guesses.pop_front());
                    left -= 1;
                }
            }
        }
        for (at, _, mut chosen) in open {
            chosen.sort_by(|a, b| a.encode_utf16().cmp(b.encode_utf16()));
            self.cut(at, &chosen);
        }
    }

    /// Cuts a range at keys in order, and reads what is behind them.
    fn cut(&mut self, at: usize, keys: &[String]) {
        let range = &mut self.ranges[at];
        let Some(first) = keys.first() else { return };
        let end = range.before.replace(first.clone());
        range.is_cut_far = true;
        for (n, from) in keys.iter().enumerate() {
            let before = keys.get(n + 1).cloned().or_else(|| end.clone());
            self.ranges.push(Range { from: Some(from.clone()), before, ..Range::default() });
            self.read(self.ranges.len() - 1);
        }
    }

    fn read(&mut self, at: usize) {
        let range = &mut self.ranges[at];
        range.is_reading = true;
        let query = InstanceQuery {
            key_from: range.from.clone(),
            key_before: range.before.clone(),
            continuation: range.continuation.clone(),
            ..self.query.clone()
        };
        let client = self.client.clone();
        self.requested += 1;
        self.requests.push(Box::pin(async move { (at, client.list(&query).await) }));
    }

    /// Takes the instances of a page that belong to the range as it is now.
    fn take(&mut self, at: usize, page: Result<InstancePage, ClientError>) -> Result<(), ClientError> {
        let range = &mut self.ranges[at];
        range.is_reading = false;
        let page = page?;
        range.has_been_read = true;
        let service = self.client.service();
        let mut instances = page.instances;
        let mut keys: Vec<_> =
            instances.iter().map(|state| service.list_key(&state.instance.instance_id)).collect();
        if let Some(end) = &range.before {
            let all = keys.len();
            let mut inside = keys.iter().map(|key| less(key, end)).collect::<Vec<_>>().into_iter();
            instances.retain(|_| inside.next() == Some(true));
            keys.retain(|key| less(key, end));
            range.is_done = keys.len() < all;
        }
        let is_stuck = page.continuation == range.continuation;
        range.continuation = page.continuation;
        range.is_done |= range.continuation.is_none() || is_stuck;
        if let Some(last) = keys.last() {
            range.scale = Scale::of(range.last.as_deref(), &keys);
            range.last = Some(last.clone());
            self.full += 1;
            self.ready.push_back(instances);
        } else if range.is_done {
            self.empty += 1;
        }
        Ok(())
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
            assert!(requests <= 80, "{requests} requests for {}", ids[0]);
        }
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
