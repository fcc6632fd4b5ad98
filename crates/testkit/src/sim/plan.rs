//! What the simulated orchestrations do, and what must come out of it.

use serde::{Deserialize, Serialize};
use taskhub_core::OrchestrationStatus;

use super::entity::LEDGERS;
use super::rng::Rng;

/// One orchestration: its steps in order, over one or several generations.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Plan {
    pub(crate) steps: Vec<Step>,
    /// Generation that runs now, from 0.
    pub(crate) round: u32,
    /// Last generation.
    pub(crate) last_round: u32,
    /// What earlier generations have gathered.
    pub(crate) gathered: Vec<String>,
    /// Ends with a failure.
    pub(crate) fails: bool,
}

/// A piece of an orchestration.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) enum Step {
    /// One activity.
    Call { key: u32, bytes: usize },
    /// Several activities at once.
    FanOut { key: u32, count: u32, bytes: usize },
    /// An activity that fails a few times and is tried again.
    Retry { key: u32, failures: u32 },
    /// An activity that always fails; the failure is caught.
    Caught { key: u32 },
    /// A timer.
    Sleep { millis: u64 },
    /// A timer that is cancelled by what it waits for.
    Impatient { key: u32 },
    /// An event from a client or another orchestration.
    Event { name: String },
    /// The same with a timer that is cancelled when the event comes.
    EventOrTimer { name: String },
    /// A sub-orchestration.
    Child { plan: Plan, id: Option<String> },
    /// Several sub-orchestrations at once.
    Children { plans: Vec<Plan> },
    /// A sub-orchestration that fails; the failure is caught.
    FailingChild { plan: Plan },
    /// An orchestration that nobody waits for.
    Forget { plan: Plan, id: String },
    /// An event for another instance.
    Send { to: String, name: String },
    /// Sets the custom status.
    Status { text: String },
    /// An operation of an entity that nobody waits for, perhaps only after so many milliseconds.
    Signal { to: String, key: u32, later: u64 },
    /// An operation of an entity.
    Ask { to: String, key: u32 },
    /// Operations of two entities that are locked meanwhile.
    Transfer { from: String, to: String, key: u32, millis: u64 },
    /// Locks two entities and keeps them.
    Hold { from: String, to: String },
}

impl Plan {
    pub(crate) fn of(steps: Vec<Step>) -> Self {
        Self { steps, round: 0, last_round: 0, gathered: Vec::new(), fails: false }
    }

    /// The status in which it ends.
    pub(crate) fn status(&self) -> OrchestrationStatus {
        if self.fails { OrchestrationStatus::Failed } else { OrchestrationStatus::Completed }
    }

    /// What it returns.
    pub(crate) fn output(&self) -> Vec<String> {
        let mut all = self.gathered.clone();
        for round in self.round..=self.last_round {
            all.extend(self.steps.iter().map(|step| step.result(round)));
        }
        all
    }

    /// The custom status at its end, if it sets one.
    pub(crate) fn custom_status(&self) -> Option<&str> {
        self.steps.iter().rev().find_map(|step| match step {
            Step::Status { text } => Some(text.as_str()),
            _ => None,
        })
    }

    /// Every activity call, as the log names it: by key; those of sub-orchestrations too.
    pub(crate) fn keys(&self) -> Vec<String> {
        let of = |step: &Step, round| match step {
            Step::Call { key, .. }
            | Step::Retry { key, .. }
            | Step::Caught { key }
            | Step::Impatient { key } => {
                vec![format!("{key}-{round}")]
            }
            Step::FanOut { key, count, .. } => (0..*count).map(|at| format!("{key}-{round}-{at}")).collect(),
            Step::Child { plan, .. } | Step::FailingChild { plan } | Step::Forget { plan, .. } => plan.keys(),
            Step::Children { plans } => plans.iter().flat_map(Plan::keys).collect(),
            _ => Vec::new(),
        };
        (self.round..=self.last_round)
            .flat_map(|round| self.steps.iter().flat_map(move |s| of(s, round)))
            .collect()
    }

    /// What is added to which entity; by sub-orchestrations too.
    pub(crate) fn entries(&self) -> Vec<(String, String)> {
        let of = |step: &Step, round| match step {
            Step::Signal { to, key, .. } | Step::Ask { to, key } => {
                vec![(to.clone(), entry(*key, round, ""))]
            }
            Step::Transfer { from, to, key, .. } => {
                vec![(from.clone(), entry(*key, round, "-out")), (to.clone(), entry(*key, round, "-in"))]
            }
            Step::Child { plan, .. } | Step::FailingChild { plan } | Step::Forget { plan, .. } => {
                plan.entries()
            }
            Step::Children { plans } => plans.iter().flat_map(Plan::entries).collect(),
            _ => Vec::new(),
        };
        (self.round..=self.last_round)
            .flat_map(|round| self.steps.iter().flat_map(move |s| of(s, round)))
            .collect()
    }

    /// Events that this instance waits for and nobody but a client sends: instance and name. Those of
    /// sub-orchestrations with an id of their own too.
    pub(crate) fn events(&self, id: &str) -> Vec<(String, String)> {
        let mut events = Vec::new();
        for round in self.round..=self.last_round {
            for step in &self.steps {
                match step {
                    Step::Event { name } | Step::EventOrTimer { name } => {
                        events.push((id.to_owned(), format!("{name}-{round}")));
                    }
                    Step::Child { plan, id: Some(child) } if round == 0 => events.extend(plan.events(child)),
                    Step::Forget { plan, id: child } if round == 0 => events.extend(plan.events(child)),
                    _ => {}
                }
            }
        }
        events
    }

    /// Instances that this one sends events.
    pub(crate) fn targets(&self) -> Vec<String> {
        let to = |step: &Step| match step {
            Step::Send { to, .. } => Some(to.clone()),
            _ => None,
        };
        self.steps.iter().filter_map(to).collect()
    }

    /// Instances that nobody waits for, which this one starts.
    pub(crate) fn forgotten(&self) -> Vec<(String, Plan)> {
        let of = |step: &Step| match step {
            Step::Forget { plan, id } => vec![(id.clone(), plan.clone())],
            Step::Child { plan, .. } => plan.forgotten(),
            _ => Vec::new(),
        };
        self.steps.iter().flat_map(of).collect()
    }
}

/// What an event carries.
pub(crate) fn event_payload(name: &str) -> String {
    format!("of {name}")
}

/// What is added to an entity.
pub(crate) fn entry(key: u32, round: u32, part: &str) -> String {
    format!("{key}-{round}{part}")
}

/// What an activity returns.
pub(crate) fn activity_result(key: &str, bytes: usize) -> String {
    let mut text = format!("done {key}");
    if bytes > text.len() {
        text.push_str(&"x".repeat(bytes - text.len()));
    }
    text
}

/// What of a result goes into the output: large ones by their length.
pub(crate) fn short(result: &str) -> String {
    if result.len() <= 40 {
        result.to_owned()
    } else {
        format!("{}+{}", result.trim_end_matches('x'), result.len())
    }
}

impl Step {
    /// What the step adds to the output.
    pub(crate) fn result(&self, round: u32) -> String {
        match self {
            Self::Call { key, bytes } => short(&activity_result(&format!("{key}-{round}"), *bytes)),
            Self::Retry { key, .. } | Self::Impatient { key } => {
                activity_result(&format!("{key}-{round}"), 0)
            }
            Self::FanOut { key, count, bytes } => {
                let each =
                    (0..*count).map(|at| short(&activity_result(&format!("{key}-{round}-{at}"), *bytes)));
                each.collect::<Vec<_>>().join(",")
            }
            Self::Caught { .. } => "caught".to_owned(),
            Self::Sleep { .. } => "slept".to_owned(),
            Self::Event { name } | Self::EventOrTimer { name } => event_payload(&format!("{name}-{round}")),
            Self::Child { plan, .. } => plan.output().join("/"),
            Self::Children { plans } => {
                plans.iter().map(|plan| plan.output().join("/")).collect::<Vec<_>>().join(",")
            }
            Self::FailingChild { .. } => "child failed".to_owned(),
            Self::Forget { .. } => "forgotten".to_owned(),
            Self::Send { .. } => "sent".to_owned(),
            Self::Status { .. } => "shown".to_owned(),
            Self::Signal { .. } => "signalled".to_owned(),
            Self::Ask { .. } => "added".to_owned(),
            Self::Transfer { .. } => "moved".to_owned(),
            Self::Hold { .. } => "held".to_owned(),
        }
    }
}

/// What a client does with one instance.
#[derive(Debug, Clone)]
pub(crate) struct Story {
    pub(crate) id: String,
    pub(crate) plan: Plan,
    /// When it is started, in milliseconds.
    pub(crate) start_at: u64,
    /// Events to be raised: when, for whom, which.
    pub(crate) events: Vec<(u64, String, String)>,
    /// What is added to entities: when, to which, what.
    pub(crate) signals: Vec<(u64, String, String)>,
    /// When it is terminated; it then waits for something that never comes.
    pub(crate) terminate_at: Option<u64>,
    /// When it is suspended, and for how long.
    pub(crate) suspend: Option<(u64, u64)>,
    /// Started again under the same id when it has ended.
    pub(crate) again: Option<Plan>,
}

/// Makes stories.
#[derive(Debug)]
pub(crate) struct Author<'a> {
    rng: &'a Rng,
    keys: u32,
    /// Whether large payloads are among them: they cost time.
    large: bool,
    /// Whether entities are used.
    entities: bool,
}

impl<'a> Author<'a> {
    pub(crate) fn new(rng: &'a Rng, entities: bool) -> Self {
        Self { rng, keys: 0, large: rng.once_in(4), entities }
    }

    pub(crate) fn stories(&mut self, within_millis: u64) -> Vec<Story> {
        let count = self.rng.between(2, 4);
        let ids: Vec<String> = (0..count).map(|n| format!("i{n}")).collect();
        let mut stories: Vec<Story> = ids.iter().map(|id| self.story(id, within_millis)).collect();
        // One instance sends another an event that it waits for.
        if count > 1 && self.rng.once_in(3) {
            let (from, to) = (self.rng.below(count) as usize, self.rng.below(count) as usize);
            let is_possible = from != to
                && stories[from].terminate_at.is_none()
                && stories[to].terminate_at.is_none()
                && stories[to].again.is_none()
                && stories[from].plan.last_round == 0
                && !stories[from].plan.fails
                && !stories[from].plan.steps.iter().any(|s| matches!(s, Step::Send { .. }));
            if is_possible {
                let name = format!("m{from}");
                stories[from].plan.steps.push(Step::Send { to: ids[to].clone(), name: format!("{name}-0") });
                let plan = &mut stories[to].plan;
                if plan.last_round == 0 {
                    plan.steps.push(Step::Event { name });
                }
            }
        }
        stories
    }

    fn story(&mut self, id: &str, within_millis: u64) -> Story {
        let rng = self.rng;
        let mut plan = self.plan(id, 2);
        let mut terminate_at = None;
        let start_at = rng.below(within_millis / 2);
        if rng.once_in(8) {
            plan.fails = true;
            plan.last_round = 0;
        } else if rng.once_in(8) {
            let mut steps = vec![self.call()];
            if self.entities && rng.once_in(2) {
                let (from, to) = self.two_ledgers();
                steps.push(Step::Hold { from, to });
            }
            steps.push(Step::Event { name: "never".to_owned() });
            plan = Plan::of(steps);
            terminate_at = Some(start_at + rng.below(within_millis / 2));
        }
        let mut events = Vec::new();
        if terminate_at.is_none() {
            for (target, name) in plan.events(id) {
                // Some come before the start, some at once after it, some late.
                let at = match rng.below(4) {
                    0 => start_at.saturating_sub(rng.below(10_000)),
                    1 => start_at + rng.below(50),
                    _ => start_at + rng.below(within_millis),
                };
                events.push((at, target, name));
            }
        }
        events.sort();
        let suspend = (terminate_at.is_none() && rng.once_in(6))
            .then(|| (start_at + rng.below(within_millis / 2), rng.between(100, 20_000)));
        let again =
            (terminate_at.is_none() && events.is_empty() && plan.forgotten().is_empty() && rng.once_in(5))
                .then(|| {
                    let mut steps = vec![self.call()];
                    if rng.once_in(2) {
                        steps.push(self.call());
                        steps.push(Step::Sleep { millis: rng.between(0, 3000) });
                    }
                    if self.entities && rng.once_in(2) {
                        steps.push(self.of_entities());
                    }
                    Plan::of(steps)
                });
        let count = if self.entities { rng.below(4) } else { 0 };
        let signal = |n| (rng.below(within_millis), self.ledger(), format!("{id}-s{n}"));
        let signals = (0..count).map(signal).collect();
        Story { id: id.to_owned(), plan, start_at, events, signals, terminate_at, suspend, again }
    }

    fn plan(&mut self, id: &str, depth: u32) -> Plan {
        let rng = self.rng;
        let count = rng.between(1, 4);
        let mut steps: Vec<Step> = (0..count).map(|at| self.step(id, at, depth)).collect();
        let mut plan = Plan::of(Vec::new());
        if rng.once_in(if self.large { 2 } else { 4 }) {
            plan.last_round = rng.between(1, 3) as u32;
            // Ids of their own are used once.
            steps.retain(|step| !matches!(step, Step::Forget { .. } | Step::Child { id: Some(_), .. }));
            if steps.is_empty() {
                steps.push(self.call());
            }
        }
        plan.steps = steps;
        plan
    }

    fn key(&mut self) -> u32 {
        self.keys += 1;
        self.keys
    }

    fn bytes(&self) -> usize {
        // Above what a queue message, and what a column of a table holds.
        if self.large && self.rng.once_in(2) { self.rng.pick(&[31_000, 47_000]) } else { 0 }
    }

    fn ledger(&self) -> String {
        self.rng.pick(&LEDGERS).to_owned()
    }

    fn of_entities(&mut self) -> Step {
        let (key, rng) = (self.key(), self.rng);
        match rng.below(5) {
            0 => Step::Signal { to: self.ledger(), key, later: 0 },
            1 => Step::Signal { to: self.ledger(), key, later: rng.between(1, 8000) },
            2 => Step::Ask { to: self.ledger(), key },
            _ => {
                let (from, to) = self.two_ledgers();
                let millis = rng.pick(&[0, 0, 3000]);
                Step::Transfer { from, to, key, millis }
            }
        }
    }

    fn two_ledgers(&self) -> (String, String) {
        let (from, to) = self.rng.pick(&[("a", "b"), ("b", "a"), ("c", "a"), ("b", "c")]);
        (from.to_owned(), to.to_owned())
    }

    fn call(&mut self) -> Step {
        Step::Call { key: self.key(), bytes: self.bytes() }
    }

    fn step(&mut self, id: &str, at: u64, depth: u32) -> Step {
        let rng = self.rng;
        let child_id = format!("{id}c{at}");
        if self.entities && rng.once_in(2) {
            return self.of_entities();
        }
        match rng.below(if depth > 0 { 20 } else { 12 }) {
            0..=3 => self.call(),
            4 => {
                let count = if rng.once_in(6) { rng.between(10, 25) } else { rng.between(2, 6) } as u32;
                Step::FanOut { key: self.key(), count, bytes: if count < 7 { self.bytes() } else { 0 } }
            }
            5 => Step::Sleep { millis: rng.between(0, 15_000) },
            6 => Step::Retry { key: self.key(), failures: rng.between(1, 2) as u32 },
            7 => Step::Caught { key: self.key() },
            8 => Step::Impatient { key: self.key() },
            9 | 10 if depth > 0 || id.contains('c') => {
                let name = format!("e{at}");
                if rng.once_in(3) { Step::EventOrTimer { name } } else { Step::Event { name } }
            }
            9 | 10 => self.call(),
            11 => Step::Status { text: format!("at {at}") },
            12 | 13 => Step::Child { plan: self.quiet(depth), id: None },
            14 | 15 => Step::Child { plan: self.plan(&child_id, depth - 1), id: Some(child_id) },
            16 => Step::Children { plans: (0..rng.between(2, 3)).map(|_| self.quiet(1)).collect() },
            17 => Step::FailingChild { plan: Plan { fails: true, ..Plan::of(vec![self.call()]) } },
            18 => Step::Forget { plan: self.plan(&child_id, depth - 1), id: child_id },
            _ => self.call(),
        }
    }

    /// A plan that waits for no event: its instance has no id that a client knows.
    fn quiet(&mut self, depth: u32) -> Plan {
        let mut steps = vec![self.call()];
        if self.rng.once_in(2) {
            steps.push(Step::Sleep { millis: self.rng.between(0, 5000) });
        }
        if depth > 1 && self.rng.once_in(3) {
            let plan = self.quiet(depth - 1);
            steps.push(Step::Child { plan, id: None });
        }
        Plan::of(steps)
    }
}
