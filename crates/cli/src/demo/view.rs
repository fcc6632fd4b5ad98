//! The live view of the demonstration.

use std::collections::HashMap;
use std::io;

use taskhub_client::{EntityId, EntityState};
use taskhub_core::{InstanceId, OrchestrationState, OrchestrationStatus};
use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::console::Console;
use crate::table::one_line;

/// Prints a line for everything that is new.
#[derive(Debug)]
pub(crate) struct View {
    began: Instant,
    activities: mpsc::Receiver<(InstanceId, String)>,
    seen: HashMap<InstanceId, (Option<OrchestrationStatus>, Option<String>)>,
    entities: HashMap<EntityId, Option<String>>,
    has_colour: bool,
}

impl View {
    pub(crate) fn new(activities: mpsc::Receiver<(InstanceId, String)>, has_colour: bool) -> Self {
        Self { began: Instant::now(), activities, seen: HashMap::new(), entities: HashMap::new(), has_colour }
    }

    /// A state; a line only if status or custom status changed.
    pub(crate) fn state(&mut self, state: &OrchestrationState, console: &mut Console) -> io::Result<()> {
        let id = &state.instance.instance_id;
        let now = (state.status, state.custom_status.clone());
        if self.seen.get(id) == Some(&now) {
            return Ok(());
        }
        self.activities(console)?;
        let status = state.status.map_or("(unknown)", OrchestrationStatus::name);
        let finished = state.status.is_some_and(OrchestrationStatus::is_terminal);
        let detail = if finished { state.output.as_deref() } else { state.custom_status.as_deref() };
        let colour = match state.status {
            Some(OrchestrationStatus::Completed) => "\x1b[32m",
            Some(OrchestrationStatus::Failed) => "\x1b[31m",
            _ => "\x1b[36m",
        };
        let detail = detail.filter(|d| *d != "null").unwrap_or_default();
        self.line(id, colour, status, detail, console)?;
        self.seen.insert(id.clone(), now);
        Ok(())
    }

    /// An entity; a line only if its state changed.
    pub(crate) fn entity(&mut self, entity: &EntityState, console: &mut Console) -> io::Result<()> {
        if self.entities.get(&entity.id) == Some(&entity.state) {
            return Ok(());
        }
        let state = entity.state.as_deref().unwrap_or_default();
        self.line(&entity.id.instance_id(), "\x1b[35m", "  entity", state, console)?;
        self.entities.insert(entity.id.clone(), entity.state.clone());
        Ok(())
    }

    /// What activities have told since the last look.
    pub(crate) fn activities(&mut self, console: &mut Console) -> io::Result<()> {
        while let Ok((id, text)) = self.activities.try_recv() {
            self.line(&id, "\x1b[2m", "  activity", &text, console)?;
        }
        Ok(())
    }

    /// What the person in the demonstration does.
    pub(crate) fn person(&mut self, id: &InstanceId, what: &str, console: &mut Console) -> io::Result<()> {
        self.line(id, "\x1b[33m", "  person", what, console)
    }

    fn line(
        &self,
        id: &InstanceId,
        colour: &str,
        kind: &str,
        text: &str,
        console: &mut Console,
    ) -> io::Result<()> {
        let (on, off) = if self.has_colour { (colour, "\x1b[0m") } else { ("", "") };
        let seconds = self.began.elapsed().as_secs_f64();
        let line = format!("{seconds:6.1} s  {:<18} {on}{kind:<11}{off} {}", id.as_str(), one_line(text));
        console.note(line.trim_end())
    }
}

#[cfg(test)]
mod tests {
    use taskhub_client::fake::state;

    use super::*;
    use crate::console::captured::console;

    #[tokio::test(start_paused = true)]
    async fn a_state_is_shown_once() {
        let (sender, receiver) = mpsc::channel(8);
        let (mut view, (mut console, _, err)) = (View::new(receiver, false), console(None));
        let mut seen = state("a", OrchestrationStatus::Running);
        view.state(&seen, &mut console).unwrap();
        view.state(&seen, &mut console).unwrap();
        sender.try_send(("a".into(), "Greet() -> 1".into())).unwrap();
        seen.status = Some(OrchestrationStatus::Completed);
        seen.output = Some("1".into());
        view.state(&seen, &mut console).unwrap();
        let lines = err.take();
        let lines: Vec<_> = lines.lines().collect();
        assert_eq!(
            lines,
            [
                "   0.0 s  a                  Running",
                "   0.0 s  a                    activity  Greet() -> 1",
                "   0.0 s  a                  Completed   1",
            ]
        );
    }
}
