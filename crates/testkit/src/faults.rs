//! An account that fails when it is told to.
//!
//! A [`FaultPlan`] holds rules: which requests, which of them, and what happens. [`FaultyAccount::wrap`]
//! puts it in front of an account; the request layer goes above it:
//!
//! ```
//! # use std::{sync::Arc, time::Duration};
//! use taskhub_storage::memory::MemoryStore;
//! use taskhub_storage::request::{OperationCounts, RequestSettings};
//! use taskhub_testkit::{VirtualClock, faults::{Effect, FaultPlan, FaultyAccount, Rule}};
//! # tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap().block_on(async {
//! let plan = FaultPlan::default();
//! plan.add(Rule::on("PutMessage", Effect::LoseReply).nth(1).resource("control-00"));
//! let store = MemoryStore::new(Arc::new(VirtualClock::default()));
//! let account = FaultyAccount::wrap(store.account(), &plan)
//!     .layered(RequestSettings::default(), &OperationCounts::default());
//! account.queues.create_queue("hub-control-00").await.unwrap();
//! account.queues.put_message("hub-control-00", "x", Duration::ZERO).await.unwrap();
//! assert_eq!(store.messages("hub-control-00").len(), 2, "put twice");
//! # });
//! ```

mod blob;
mod queue;
mod table;

use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use taskhub_storage::{Error, ErrorKind, Result, StorageAccount};

/// What happens to a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Effect {
    /// It is answered with this status and error code (empty: none) and not carried out.
    Answer(u16, &'static str),
    /// The connection ends before it is carried out.
    ResetBefore,
    /// It is carried out, and then the connection ends: the reply is lost, whatever it was.
    LoseReply,
    /// It is never carried out nor answered. Only a deadline or cancellation ends the wait.
    HangBefore,
    /// It is carried out and never answered.
    HangAfter,
    /// It is carried out after a delay.
    DelayBefore(Duration),
    /// It is carried out, and the reply comes after a delay.
    DelayAfter(Duration),
    /// The client panics before it is carried out.
    Panic,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum When {
    Always,
    Nth(u64),
    First(u64),
    Every(u64),
}

/// Which requests fail, and how.
#[derive(Debug, Clone)]
pub struct Rule {
    /// Name of the operation; `None` means all.
    operation: Option<&'static str>,
    resource: String,
    when: When,
    effect: Effect,
}

impl Rule {
    /// Every request of this operation (a name of [`taskhub_storage::OPERATIONS`]).
    pub fn on(operation: &'static str, effect: Effect) -> Self {
        Self { operation: Some(operation), resource: String::new(), when: When::Always, effect }
    }

    /// Every request of any operation.
    pub fn on_all(effect: Effect) -> Self {
        Self { operation: None, resource: String::new(), when: When::Always, effect }
    }

    /// Only where the queue, table, container or `container/blob` contains this.
    #[must_use]
    pub fn resource(mut self, part: impl Into<String>) -> Self {
        self.resource = part.into();
        self
    }

    /// Only the n-th of them, counted from 1.
    #[must_use]
    pub fn nth(mut self, n: u64) -> Self {
        self.when = When::Nth(n);
        self
    }

    /// Only the first n of them.
    #[must_use]
    pub fn first(mut self, n: u64) -> Self {
        self.when = When::First(n);
        self
    }

    /// Only every n-th of them.
    #[must_use]
    pub fn every(mut self, n: u64) -> Self {
        self.when = When::Every(n.max(1));
        self
    }
}

#[derive(Debug)]
struct ActiveRule {
    rule: Rule,
    seen: u64,
    fired: u64,
}

/// Rules, changeable while the account is in use. A clone is the same plan.
#[derive(Debug, Clone, Default)]
pub struct FaultPlan(Arc<Mutex<Vec<ActiveRule>>>);

impl FaultPlan {
    fn lock(&self) -> MutexGuard<'_, Vec<ActiveRule>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a rule. It counts requests from now on; of several rules that apply the first wins.
    pub fn add(&self, rule: Rule) {
        self.lock().push(ActiveRule { rule, seen: 0, fired: 0 });
    }

    /// Removes all rules.
    pub fn clear(&self) {
        self.lock().clear();
    }

    /// How many requests the present rules have spoilt.
    pub fn fired(&self) -> u64 {
        self.lock().iter().map(|active| active.fired).sum()
    }

    /// Counts a request and says what happens to it.
    fn effect(&self, operation: &str, resource: &str) -> Option<Effect> {
        let mut effect = None;
        for active in self.lock().iter_mut() {
            let rule = &active.rule;
            let concerned =
                rule.operation.is_none_or(|wanted| wanted == operation) && resource.contains(&rule.resource);
            if !concerned {
                continue;
            }
            active.seen += 1;
            let fires = match rule.when {
                When::Always => true,
                When::Nth(n) => active.seen == n,
                When::First(n) => active.seen <= n,
                When::Every(n) => active.seen % n == 0,
            };
            if fires && effect.is_none() {
                active.fired += 1;
                effect = Some(rule.effect.clone());
            }
        }
        effect
    }
}

/// Makes accounts fail.
#[derive(Debug)]
pub struct FaultyAccount;

impl FaultyAccount {
    /// Puts a plan in front of an account.
    pub fn wrap(account: StorageAccount, plan: &FaultPlan) -> StorageAccount {
        StorageAccount {
            queues: Arc::new(Faulty { inner: account.queues, plan: plan.clone() }),
            tables: Arc::new(Faulty { inner: account.tables, plan: plan.clone() }),
            blobs: Arc::new(Faulty { inner: account.blobs, plan: plan.clone() }),
        }
    }
}

/// One service behind a plan.
#[derive(Debug)]
struct Faulty<S: ?Sized> {
    plan: FaultPlan,
    inner: Arc<S>,
}

impl<S: ?Sized> Faulty<S> {
    async fn run<T>(
        &self,
        operation: &'static str,
        resource: &str,
        request: impl Future<Output = Result<T>>,
    ) -> Result<T> {
        let reset = |message: &str| Err(Error::new(ErrorKind::Unavailable, operation, resource, message));
        match self.plan.effect(operation, resource) {
            None => request.await,
            Some(Effect::Answer(status, code)) => Err(Error::answered(operation, resource, status, code)),
            Some(Effect::ResetBefore) => reset("the connection was reset"),
            Some(Effect::LoseReply) => {
                let _ = request.await;
                reset("the reply was lost")
            }
            Some(Effect::HangBefore) => std::future::pending().await,
            Some(Effect::HangAfter) => {
                let _ = request.await;
                std::future::pending().await
            }
            Some(Effect::DelayBefore(delay)) => {
                tokio::time::sleep(delay).await;
                request.await
            }
            Some(Effect::Panic) => {
                panic!("a defect of the client. operation=`{operation}` resource=`{resource}`")
            }
            Some(Effect::DelayAfter(delay)) => {
                let answer = request.await;
                tokio::time::sleep(delay).await;
                answer
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(rule: Rule, expected: [bool; 4]) {
        let plan = FaultPlan::default();
        plan.add(rule);
        let fired = [(); 4].map(|()| plan.effect("PutMessage", "hub-control-00").is_some());
        assert_eq!(fired, expected);
        assert_eq!(plan.fired(), expected.iter().filter(|fired| **fired).count() as u64);
    }

    #[test]
    fn rules_choose_requests() {
        let rule = || Rule::on("PutMessage", Effect::LoseReply);
        check(rule(), [true; 4]);
        check(Rule::on_all(Effect::LoseReply), [true; 4]);
        check(rule().nth(2), [false, true, false, false]);
        check(rule().first(2), [true, true, false, false]);
        check(rule().every(2), [false, true, false, true]);
        check(rule().resource("control"), [true; 4]);
        check(rule().resource("work-item"), [false; 4]);
        check(Rule::on("GetMessages", Effect::LoseReply), [false; 4]);
    }
}
