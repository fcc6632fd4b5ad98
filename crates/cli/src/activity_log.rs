//! `worker --activity-log`: a trace of activities that does not depend on the hub.

use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result};
use serde_json::json;
use taskhub_core::{Clock, SystemClock, WorkerId};
use taskhub_worker::ActivityContext;
use taskhub_worker::samples::ActivityCallback;

/// Characters of an input that are noted.
const INPUT_CHARS: usize = 100;

/// Appends to a file, a line per activity. Several processes may share the file: each line is one write at
/// its end.
///
/// # Errors
/// The file cannot be opened.
pub(crate) fn append_to(path: &Path, worker_id: &WorkerId) -> Result<ActivityCallback> {
    let file = File::options()
        .create(true)
        .append(true)
        .open(path)
        .with_context(|| format!("could not open the activity log. file=`{}`", path.display()))?;
    let worker_id = worker_id.clone();
    Ok(Arc::new(move |context: &ActivityContext| {
        if let Err(error) = (&file).write_all(line(context, &worker_id).as_bytes()) {
            tracing::warn!(%error, "cannot write to the activity log");
        }
    }))
}

fn line(context: &ActivityContext, worker_id: &WorkerId) -> String {
    let input: String = context.raw_input().unwrap_or_default().chars().take(INPUT_CHARS).collect();
    let line = json!({
        "at": SystemClock.now().to_iso(),
        "worker": worker_id.as_str(),
        "instanceId": context.instance_id().as_str(),
        "executionId": context.execution_id().map(|id| id.as_str()),
        "taskId": context.task_id(),
        "name": context.name(),
        "input": input,
        "attempt": context.attempt(),
    });
    format!("{line}\n")
}

#[cfg(test)]
mod tests {
    use serde_json::Value;
    use taskhub_core::OrchestrationInstance;
    use taskhub_worker::ActivityRequest;
    use tokio_util::sync::CancellationToken;

    use super::*;

    #[test]
    fn two_writers_append_whole_lines_with_the_begin_of_the_input() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("activities.jsonl");
        let context = |task_id| {
            ActivityContext::new(ActivityRequest {
                instance: OrchestrationInstance::new("a/b", "e1"),
                task_id,
                name: "Echo".into(),
                input: Some("é".repeat(200)),
                version: None,
                tags: None,
                orchestration_tags: None,
                trace_context: None,
                attempt: 2,
                cancellation: CancellationToken::new(),
            })
        };
        let writers = ["one", "two"].map(|id| append_to(&path, &WorkerId::new(id)).unwrap());
        for task_id in 0..4 {
            writers[task_id as usize % 2](&context(task_id));
        }
        let text = std::fs::read_to_string(&path).unwrap();
        let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        let seen: Vec<_> = lines.iter().map(|l| (l["worker"].as_str().unwrap(), &l["taskId"])).collect();
        assert_eq!(seen.len(), 4);
        assert_eq!(seen[3], ("two", &3.into()));
        assert_eq!(lines[0]["instanceId"], "a/b");
        assert_eq!(lines[0]["input"].as_str().unwrap().chars().count(), INPUT_CHARS);
        assert!(append_to(directory.path(), &WorkerId::new("w")).is_err());
    }
}
