//! Which instances there are, what is done to them and when, and what must become of them.

use std::sync::Arc;
use std::time::Duration;

use azurite_tests::process::Signal;
use serde_json::{Value, json};
use taskhub_core::{IdSource, OrchestrationStatus};

/// Chances that repeat with the seed.
pub(crate) struct Dice(pub(crate) Arc<dyn IdSource>);

impl Dice {
    /// A whole number below `n`.
    pub(crate) fn below(&self, n: usize) -> usize {
        usize::try_from(self.0.random() % n as u64).expect("it is below a usize")
    }

    pub(crate) fn from(&self, low: usize, high: usize) -> usize {
        low + self.below(high - low + 1)
    }

    /// A time below `most`, in milliseconds.
    pub(crate) fn within(&self, most: Duration) -> Duration {
        Duration::from_millis(self.0.random() % u64::try_from(most.as_millis()).unwrap_or(u64::MAX).max(1))
    }
}

/// A call of an activity: instance, name, serialised input (its first 100 characters).
pub(crate) type Call = (String, &'static str, String);

/// What comes to an instance after its start.
pub(crate) enum Then {
    Nothing,
    /// The test raises an event, so long after the start.
    Raise {
        event: &'static str,
        payload: Value,
        after: Duration,
    },
    /// Another instance is started which sends it the event.
    Send {
        sender: Box<Planned>,
        after: Duration,
    },
}

/// What an output must be.
pub(crate) enum Expected {
    Text(String),
    /// Begins so: what follows depends on the mode of errors.
    Beginning(&'static str),
}

/// An instance and its future.
pub(crate) struct Planned {
    pub(crate) id: String,
    pub(crate) function: &'static str,
    pub(crate) input: Value,
    /// When it is started, from the beginning of the test.
    pub(crate) at: Duration,
    pub(crate) then: Then,
    pub(crate) status: OrchestrationStatus,
    pub(crate) output: Expected,
    pub(crate) custom_status: Option<Value>,
    pub(crate) calls: Vec<Call>,
    /// Has exactly one sub-orchestration `HelloSequence`, whose id its history tells.
    pub(crate) has_child: bool,
}

impl Planned {
    /// It, and the instance that is started to send it an event.
    pub(crate) fn and_sender(&self) -> impl Iterator<Item = &Self> {
        let sender = match &self.then {
            Then::Send { sender, .. } => Some(&**sender),
            _ => None,
        };
        std::iter::once(self).chain(sender)
    }

    fn new(id: String, function: &'static str, input: Value, at: Duration) -> Self {
        Self {
            id,
            function,
            input,
            at,
            then: Then::Nothing,
            status: OrchestrationStatus::Completed,
            output: Expected::Text(String::new()),
            custom_status: None,
            calls: Vec::new(),
            has_child: false,
        }
    }

    fn gives(mut self, output: &Value) -> Self {
        self.output = Expected::Text(output.to_string());
        self
    }

    fn fails(mut self, beginning: &'static str) -> Self {
        (self.status, self.output) = (OrchestrationStatus::Failed, Expected::Beginning(beginning));
        self
    }

    fn calls(mut self, name: &'static str, inputs: impl IntoIterator<Item = Value>) -> Self {
        for input in inputs {
            self.calls.push((self.id.clone(), name, arguments(&input)));
        }
        self
    }
}

/// The three calls of a `HelloSequence`.
pub(crate) fn hello_calls(instance: &str) -> impl Iterator<Item = Call> {
    let call = |city: &str| (instance.to_owned(), "SayHello", arguments(&json!(city)));
    ["Tokyo", "Seattle", "London"].map(call).into_iter()
}

/// The input of an activity as it is sent, a list of arguments, and as far as it is noted.
fn arguments(input: &Value) -> String {
    json!([input]).to_string().chars().take(100).collect()
}

const GREETINGS: [&str; 3] = ["Hello Tokyo!", "Hello Seattle!", "Hello London!"];

/// Plans an instance: chances, number, time of its start.
type Kind = fn(&Dice, String, Duration) -> Planned;

/// How many of 100 instances are of which kind.
const MIX: [(usize, Kind); 13] = [
    (18, hello),
    (10, chain),
    (14, fan_out),
    (12, timer),
    (8, parent),
    (6, parent_of_named),
    (10, approval),
    (4, approval_by_instance),
    (6, custom_status),
    (6, eternal),
    (3, large),
    (2, caught),
    (1, uncaught),
];

/// `count` instances that are started within `window`, the last one at its end.
pub(crate) fn instances(dice: &Dice, count: usize, window: Duration) -> Vec<Planned> {
    let kinds: Vec<_> = MIX.iter().flat_map(|(n, kind)| std::iter::repeat_n(kind, *n)).collect();
    assert_eq!(kinds.len(), 100);
    let mut planned = Vec::new();
    // One that starts another counts for two.
    let (mut n, mut total) = (0, 0);
    while total < count {
        let at = if total + 2 >= count { window } else { dice.within(window) };
        let kind = if total + 1 == count { &(hello as Kind) } else { kinds[n * 37 % 100] };
        let one = kind(dice, format!("{n:03}"), at);
        total += 1 + usize::from(matches!(one.then, Then::Send { .. }));
        planned.push(one);
        n += 1;
    }
    planned
}

fn hello(_: &Dice, n: String, at: Duration) -> Planned {
    let id = format!("hello-{n}");
    let mut one = Planned::new(id.clone(), "HelloSequence", Value::Null, at).gives(&json!(GREETINGS));
    one.calls.extend(hello_calls(&id));
    one
}

fn chain(dice: &Dice, n: String, at: Duration) -> Planned {
    let length = dice.from(5, 12);
    Planned::new(format!("chain-{n}"), "Loop", json!(length), at)
        .gives(&json!(length))
        .calls("Echo", (0..length).map(|k| json!(k)))
}

fn fan_out(dice: &Dice, n: String, at: Duration) -> Planned {
    let width = dice.from(4, 20);
    Planned::new(format!("fan-{n}"), "FanOutFanIn", json!(width), at)
        .gives(&json!(width * (width - 1) / 2))
        .calls("Echo", (0..width).map(|k| json!(k)))
}

fn timer(dice: &Dice, n: String, at: Duration) -> Planned {
    Planned::new(format!("timer-{n}"), "Timer", json!(dice.from(1, 20)), at).gives(&json!("fired"))
}

fn parent(_: &Dice, n: String, at: Duration) -> Planned {
    let one = Planned::new(format!("parent-{n}"), "Parent", Value::Null, at).gives(&json!(GREETINGS));
    Planned { has_child: true, ..one }
}

fn parent_of_named(_: &Dice, n: String, at: Duration) -> Planned {
    let (id, child) = (format!("namer-{n}"), format!("named-{n}"));
    let one = Planned::new(id, "ParentNamedChild", json!(child), at).gives(&json!(GREETINGS));
    Planned { has_child: true, ..one }
}

/// Half of the events follow the start at once: they may be received before it.
fn soon_or_later(dice: &Dice) -> Duration {
    if dice.below(2) == 0 { Duration::ZERO } else { dice.within(Duration::from_secs(30)) }
}

fn approval(dice: &Dice, n: String, at: Duration) -> Planned {
    let answer = json!({"by": n, "yes": true});
    let mut one = waiting_for_approval(n, at, &answer);
    one.then = Then::Raise { event: "ApprovalEvent", payload: answer, after: soon_or_later(dice) };
    one
}

fn waiting_for_approval(n: String, at: Duration, answer: &Value) -> Planned {
    Planned::new(format!("approval-{n}"), "Approval", json!(3600), at)
        .gives(&json!(format!("approved:{answer}")))
        .calls("SayHello", [json!("approver")])
}

fn approval_by_instance(dice: &Dice, n: String, at: Duration) -> Planned {
    let id = format!("sender-{n}");
    let mut one = waiting_for_approval(n, at, &json!(format!("from {id}")));
    let sender = Planned::new(id, "SendEventTo", json!(one.id), at)
        .gives(&json!("Hello sender!"))
        .calls("SayHello", [json!("sender")]);
    one.then = Then::Send { sender: Box::new(sender), after: soon_or_later(dice) };
    one
}

fn custom_status(dice: &Dice, n: String, at: Duration) -> Planned {
    let payload = json!({"number": n});
    let mut one = Planned::new(format!("status-{n}"), "CustomStatus", Value::Null, at)
        .gives(&json!(payload.to_string()))
        .calls("SayHello", [json!("one")]);
    one.custom_status = Some(json!({"step": 2, "text": "é日本😀"}));
    one.then = Then::Raise { event: "Go", payload, after: soon_or_later(dice) };
    one
}

fn eternal(_: &Dice, n: String, at: Duration) -> Planned {
    Planned::new(format!("eternal-{n}"), "Eternal", json!(0), at)
        .gives(&json!("rounds 3"))
        .calls("SayHello", (0..=3).map(|round| json!(format!("round {round}"))))
}

fn large(dice: &Dice, n: String, at: Duration) -> Planned {
    let length = dice.from(20_000, 150_000);
    let text = json!("x".repeat(length));
    Planned::new(format!("large-{n}"), "LargePayload", json!(length), at)
        .gives(&text)
        .calls("Big", [json!(length)])
        .calls("Echo", [text])
}

fn caught(_: &Dice, n: String, at: Duration) -> Planned {
    let mut one =
        Planned::new(format!("caught-{n}"), "FailHandled", Value::Null, at).calls("Boom", [json!("x")]);
    one.output = Expected::Beginning("\"caught ");
    one
}

fn uncaught(_: &Dice, n: String, at: Duration) -> Planned {
    Planned::new(format!("failed-{n}"), "FailUnhandled", json!("x"), at).fails("").calls("Boom", [json!("x")])
}

/// One signal to some worker.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Blow {
    pub(crate) at: Duration,
    pub(crate) signal: Signal,
    /// Which of the workers it may hit, as a number to be divided by theirs.
    pub(crate) victim: usize,
    /// Whether the worker that comes instead has the same id, as where a name belongs to a place.
    pub(crate) keeps_id: bool,
}

/// `kills` SIGKILLs and `terms` SIGTERMs in random order, at random times within `window`.
pub(crate) fn blows(dice: &Dice, kills: usize, terms: usize, window: Duration) -> Vec<Blow> {
    let mut signals = vec![Signal::Kill; kills];
    for _ in 0..terms {
        signals.insert(dice.below(signals.len() + 1), Signal::Terminate);
    }
    let mut times: Vec<_> = signals.iter().map(|_| dice.within(window)).collect();
    times.sort_unstable();
    let blow = |(at, signal)| Blow { at, signal, victim: dice.below(1000), keeps_id: dice.below(2) == 0 };
    times.into_iter().zip(signals).map(blow).collect()
}
