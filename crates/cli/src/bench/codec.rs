//! How fast messages and history rows are written and read.

use std::hint::black_box;
use std::time::Duration;

use anyhow::{Result, bail};
use serde::Serialize;
use taskhub_azure_storage::message::{self, Decoded, MessageData, MessageEncoding};
use taskhub_azure_storage::tracking::history_row;
use taskhub_core::{
    EventKind, ExecutionId, HistoryEvent, IdSource, OrchestrationInstance, SeededIds, TaskMessage, Timestamp,
};
use taskhub_storage::{Entity, Value};
use tokio::time::Instant;

/// How long each of the four steps is repeated.
const TIME: Duration = Duration::from_millis(250);
/// Steps between two looks at the clock.
const BATCH: u32 = 64;
/// Characters of the results of an activity: that of `SayHello`, and one that just fits into a message.
const RESULT_CHARS: [usize; 2] = [12, 30_000];

/// One step, repeated.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Coded {
    pub(super) step: &'static str,
    /// Characters of the activity's result in it.
    pub(super) result_chars: usize,
    /// One message: bytes of its JSON. One row: bytes of all names and values.
    pub(super) bytes: usize,
    pub(super) per_second: f64,
}

impl Coded {
    pub(super) fn bytes_per_second(&self) -> f64 {
        self.per_second * self.bytes as f64
    }
}

/// Writes and reads a `TaskCompleted` of two sizes, as a message and as a row.
pub(super) fn measure(time: Duration) -> Result<Vec<Coded>> {
    let mut all = Vec::new();
    for result_chars in RESULT_CHARS {
        let data = message(result_chars);
        let text = message::encode(&data, MessageEncoding::Utf8);
        let execution_id = ExecutionId::new("35fcbb7557d246699e69329be3a52729");
        let event = &data.task_message.event;
        let row = history_row::write("hello-1", 4, &execution_id, event);
        // A fast codec that is wrong is worth nothing.
        if !matches!(message::decode(&text)?, Decoded::Message(read) if *read == data)
            || history_row::read(&row)? != *event
        {
            bail!("what was written is not what was read. chars=`{result_chars}`");
        }
        let (text_bytes, row_bytes) = (text.len(), row_bytes(&row));
        let mut step = |step, bytes, per_second| all.push(Coded { step, result_chars, bytes, per_second });
        step(
            "message write",
            text_bytes,
            repeat(time, || message::encode(black_box(&data), MessageEncoding::Utf8)),
        );
        step("message read", text_bytes, repeat(time, || message::decode(black_box(&text))));
        step(
            "row write",
            row_bytes,
            repeat(time, || history_row::write("hello-1", 4, &execution_id, black_box(event))),
        );
        step("row read", row_bytes, repeat(time, || history_row::read(black_box(&row))));
    }
    Ok(all)
}

pub(super) fn measure_all() -> Result<Vec<Coded>> {
    measure(TIME)
}

/// How often per second.
fn repeat<T>(time: Duration, mut step: impl FnMut() -> T) -> f64 {
    let begun = Instant::now();
    let mut steps = 0_u64;
    loop {
        for _ in 0..BATCH {
            black_box(step());
        }
        steps += u64::from(BATCH);
        let spent = begun.elapsed();
        if spent >= time {
            return steps as f64 / spent.as_secs_f64();
        }
    }
}

/// As an activity answers. A character in eight has to be escaped in JSON.
fn message(result_chars: usize) -> MessageData {
    let result: String = "Hello \"T\"".chars().cycle().take(result_chars).collect();
    let kind = EventKind::TaskCompleted { task_scheduled_id: 0, result: Some(result) };
    let instance = OrchestrationInstance::new("hello-1", "35fcbb7557d246699e69329be3a52729");
    let event = HistoryEvent::message(Timestamp::from_unix(Duration::from_secs(1_768_469_400)), kind);
    MessageData::new(
        SeededIds::new(1).guid(),
        TaskMessage::new(event, instance.clone()),
        7,
        Some(2),
        instance,
    )
}

/// Bytes of names and values, as far as they have a size of their own.
fn row_bytes(row: &Entity) -> usize {
    let columns = row.columns.iter().map(|(name, value)| {
        name.len()
            + match value {
                Value::String(text) => text.len(),
                Value::Binary(bytes) => bytes.len(),
                Value::Bool(_) => 1,
                Value::Int32(_) => 4,
                Value::Int64(_) | Value::Double(_) | Value::DateTime(_) => 8,
                Value::Guid(_) => 16,
            }
    });
    row.partition_key.len() + row.row_key.len() + columns.sum::<usize>()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_sizes_pass_all_four_steps_inline() {
        let coded = measure(Duration::ZERO).unwrap();
        assert_eq!(coded.len(), 8);
        for step in &coded {
            assert!(step.bytes > step.result_chars && step.per_second > 0.0, "{step:?}");
            assert!(step.bytes < message::MAX_INLINE_MESSAGE_BYTES, "{step:?}");
        }
    }
}
