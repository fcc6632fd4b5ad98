//! A set of small orchestrations, activities and entities, one per feature: for trying out a hub, for tests, and
//! for hubs that other programs have begun with the same functions.
//!
//! All inputs and outputs are JSON. Where an orchestration takes a number, it has a default.
//!
//! ```
//! # use std::sync::Arc;
//! use taskhub_worker::{DuplicateRegistration, OrchestrationService, Worker};
//! use taskhub_worker::samples::{self, SampleOptions};
//!
//! fn sample_worker(service: Arc<dyn OrchestrationService>) -> Result<Worker, DuplicateRegistration> {
//!     samples::register(Worker::builder(service), SampleOptions::default()).build()
//! }
//! ```

mod activities;
mod entities;
mod entity_users;
mod hold;
mod orchestrations;

use std::fmt;
use std::sync::Arc;

use crate::{ActivityContext, WorkerBuilder};

pub use hold::{Hold, InvalidHold};

/// What happens around the samples.
#[derive(Clone, Default)]
pub struct SampleOptions {
    /// Lets `BoomOnce` succeed from its first call on.
    pub fixed: bool,
    /// Activity calls and, as `entity:OPERATION`, operations that never return.
    pub hold: Vec<Hold>,
    /// Told the activity and its input (a text without its quotes) when a call is held.
    pub on_hold: Option<HoldCallback>,
    /// Told the name when an orchestrator begins to wait for an event, but not when it is replayed.
    pub on_wait: Option<WaitCallback>,
    /// Told of every call of an activity that has come to its end, well or not: an end that the hub may
    /// never learn of, as when the process is killed before the reply is sent.
    pub on_activity: Option<ActivityCallback>,
}

/// Receives an activity's name and input.
pub type HoldCallback = Arc<dyn Fn(&str, &str) + Send + Sync>;
/// Receives an event's name.
pub type WaitCallback = Arc<dyn Fn(&str) + Send + Sync>;
/// Receives the context of an activity's call.
pub type ActivityCallback = Arc<dyn Fn(&ActivityContext) + Send + Sync>;

impl fmt::Debug for SampleOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SampleOptions")
            .field("fixed", &self.fixed)
            .field("hold", &self.hold)
            .finish_non_exhaustive()
    }
}

/// Registers all sample orchestrations, activities and entities.
///
/// | Entity | |
/// |---|---|
/// | `counter` | a number: `add` (1), `reset`, `get`, `delete`, `relay` |
///
/// | Activity | Input | |
/// |---|---|---|
/// | `SayHello` | text | `"Hello {text}!"` |
/// | `Echo` | anything | the input |
/// | `Slow` | milliseconds, 1000 | waits, then `"slept {milliseconds}"` |
/// | `Big` | number, 100000 | that many `x` |
/// | `Boom` | anything | fails with `System.InvalidOperationException`: `boom {input}` |
/// | `BoomOnce` | anything | fails like that with `first try fails` in the first call of an instance in this process, then `"second try"` |
///
/// | Orchestration | Input | |
/// |---|---|---|
/// | `HelloSequence` | | `SayHello` to Tokyo, Seattle and London, one after the other; the three answers |
/// | `FanOutFanIn` | number, 5 | `Echo` of 0, 1, … at once; the sum |
/// | `Timer` | seconds, 2 | a durable timer; `"fired"` |
/// | `Approval` | seconds, 3600 | `SayHello`, then the event `ApprovalEvent` against a timer: `"approved:{event}"` or `"escalated"` |
/// | `Parent` | | sub-orchestration `HelloSequence`; its result |
/// | `ParentNamedChild` | instance id | the same with that id |
/// | `ParentOfFailing` | | sub-orchestration that fails; `"caught {message}"` |
/// | `FireAndForget` | instance id | starts `HelloSequence`, does not wait for it; `SayHello` |
/// | `SendEventTo` | instance id | sends `ApprovalEvent` to it; `SayHello` |
/// | `Eternal` | number, 0 | `SayHello`, then continues as new with the next number up to 3 |
/// | `FailUnhandled` | anything | `Boom`; fails |
/// | `FailSelf` | | fails with `System.ArgumentException` |
/// | `FailHandled` | | `Boom`; `"caught {message}"` |
/// | `Retry` | | `Boom`, three attempts; fails |
/// | `RetryOk` | | `BoomOnce`, up to three attempts |
/// | `LargePayload` | number, 100000 | `Big` and `Echo` of it |
/// | `EchoInput` | anything | `Echo` of it |
/// | `CustomStatus` | | sets its custom status twice, waits for the event `Go`, returns it as text |
/// | `SlowOne` | milliseconds, 10000 | `Slow` |
/// | `Loop` | number, 50 | that many `Echo`, one after the other; the number |
/// | `RewindMe` | | `SayHello` and `BoomOnce`: fails once, completes after a rewind |
/// | `ParentRewind` | instance id | sub-orchestration `RewindMe` with that id |
/// | `Versioned`, version `2.0` | | `SayHello` |
/// | `CallEntity` | entity id, `"@counter@c1"` | signals it `add` 5, calls `get`, `add` 7, `get` and an operation that does not exist; `{before, after, bad}` |
/// | `LockEntities` | seconds or nothing | locks the counters `a` and `b`, moves 3 from one to the other, holds the locks for that long; `"moved"` |
/// | `SignalLater` | seconds, 5 | signals the counter `later` to `add` 1 after that time, and the counter `relay` to signal `end`; `SayHello` |
pub fn register(builder: WorkerBuilder, options: SampleOptions) -> WorkerBuilder {
    let options = Arc::new(options);
    let builder = entities::register(activities::register(builder, &options), &options);
    entity_users::register(orchestrations::register(builder, &options))
}
