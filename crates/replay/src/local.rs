use std::fmt;
use std::sync::Arc;

use taskhub_core::ExecutionId;

use crate::{EpisodeError, EpisodeExecutor, EpisodeResult, Execution, Orchestrator, ReplaySettings, Turn};

/// Where the executor finds orchestrators.
pub trait OrchestratorSource: Send + Sync {
    /// The orchestrator registered under exactly this name and version (`None` and the empty text are the
    /// same), with the settings for its replay.
    fn orchestrator(
        &self,
        name: &str,
        version: Option<&str>,
    ) -> Option<(Arc<dyn Orchestrator>, ReplaySettings)>;
}

impl<F> OrchestratorSource for F
where
    F: Fn(&str, Option<&str>) -> Option<(Arc<dyn Orchestrator>, ReplaySettings)> + Send + Sync,
{
    fn orchestrator(
        &self,
        name: &str,
        version: Option<&str>,
    ) -> Option<(Arc<dyn Orchestrator>, ReplaySettings)> {
        self(name, version)
    }
}

/// Executes orchestrations of one instance in this process. Keeps the last [`Execution`], so that the next
/// episode of an extended session goes on without replay.
pub struct ReplayExecutor {
    source: Arc<dyn OrchestratorSource>,
    current: Option<(Option<ExecutionId>, Execution)>,
}

impl ReplayExecutor {
    /// An executor that has not executed anything yet.
    pub fn new(source: Arc<dyn OrchestratorSource>) -> Self {
        Self { source, current: None }
    }
}

impl EpisodeExecutor for ReplayExecutor {
    fn execute(&mut self, turn: Turn<'_>) -> Result<EpisodeResult, EpisodeError> {
        let execution_id = turn.instance.execution_id;
        if let Some((id, execution)) = &mut self.current
            && *id == execution_id
        {
            return Ok(execution.advance(&[], turn.new));
        }
        let Some((orchestrator, settings)) = self.source.orchestrator(&turn.name, turn.version.as_deref())
        else {
            return Err(EpisodeError::NotRegistered {
                name: turn.name,
                version: turn.version.unwrap_or_default(),
            });
        };
        let mut execution = Execution::new(orchestrator, settings);
        let result = execution.advance(turn.past, turn.new);
        self.current = Some((execution_id, execution));
        Ok(result)
    }

    fn forget(&mut self) {
        self.current = None;
    }
}

impl fmt::Debug for ReplayExecutor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ReplayExecutor").field("current", &self.current).finish_non_exhaustive()
    }
}
