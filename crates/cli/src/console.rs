//! Standard output and standard error, and what is known about them.

use std::ffi::OsStr;
use std::io::{self, IsTerminal, Write};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde_json::Value;
use tokio::time::Instant;

use crate::args::OutputForm;

type Shared = Arc<Mutex<Box<dyn Write + Send>>>;

/// Where a command writes: data to standard output, everything else to standard error.
pub struct Console {
    out: Box<dyn Write + Send>,
    err: Shared,
    /// Form of the result; `None` is the text of `func durable`.
    pub form: Option<OutputForm>,
    /// Whether standard output is a terminal.
    pub out_is_terminal: bool,
    /// Whether standard error is a terminal that may be coloured.
    pub err_has_colour: bool,
    /// Whether standard error is a terminal whose last line can be written anew.
    pub err_can_rewrite: bool,
    /// Whether somebody can answer a question.
    pub can_ask: bool,
}

impl std::fmt::Debug for Console {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Console").field("form", &self.form).finish_non_exhaustive()
    }
}

/// Whether a stream may be coloured: a terminal, and nobody objects (<https://no-color.org>).
pub(crate) fn may_colour(is_terminal: bool) -> bool {
    is_coloured(is_terminal, std::env::var_os("NO_COLOR").as_deref())
}

fn is_coloured(is_terminal: bool, no_color: Option<&OsStr>) -> bool {
    is_terminal && no_color.is_none_or(OsStr::is_empty)
}

impl Console {
    /// The console of this process.
    pub fn process(form: Option<OutputForm>) -> Self {
        Self {
            out: Box::new(io::stdout()),
            err: shared(io::stderr()),
            form,
            out_is_terminal: io::stdout().is_terminal(),
            err_has_colour: may_colour(io::stderr().is_terminal()),
            err_can_rewrite: io::stderr().is_terminal()
                && std::env::var_os("TERM").is_none_or(|term| term != "dumb"),
            can_ask: io::stdin().is_terminal() && io::stderr().is_terminal(),
        }
    }

    /// A console that is no terminal and writes elsewhere.
    pub fn to_writers(
        form: Option<OutputForm>,
        out: impl Write + Send + 'static,
        err: impl Write + Send + 'static,
    ) -> Self {
        Self {
            out: Box::new(out),
            err: shared(err),
            form,
            out_is_terminal: false,
            err_has_colour: false,
            err_can_rewrite: false,
            can_ask: false,
        }
    }

    /// A line of the command's own text: its result, unless a form was asked for; then a note.
    pub(crate) fn say(&mut self, line: &str) -> io::Result<()> {
        if self.form.is_none() { writeln!(self.out, "{line}") } else { self.note(line) }
    }

    /// A line that is not part of the result.
    pub(crate) fn note(&mut self, line: &str) -> io::Result<()> {
        writeln!(lock(&self.err), "{line}")
    }

    /// A warning.
    pub(crate) fn warn(&mut self, line: &str) -> io::Result<()> {
        let line = if self.err_has_colour { format!("\x1b[33m{line}\x1b[0m") } else { line.to_owned() };
        self.note(&line)
    }

    /// Text of the result, as it is.
    pub(crate) fn data(&mut self, text: &str) -> io::Result<()> {
        self.out.write_all(text.as_bytes())?;
        self.out.flush()
    }

    /// A JSON document of the result, indented, and a line end.
    pub(crate) fn json(&mut self, value: &Value) -> io::Result<()> {
        self.data(&format!("{value:#}\n"))
    }

    /// Asks a question; only `y` and `yes` agree.
    pub(crate) fn confirm(&mut self, question: &str) -> io::Result<bool> {
        {
            let mut err = lock(&self.err);
            write!(err, "{question} [y/N] ")?;
            err.flush()?;
        }
        let mut answer = String::new();
        io::stdin().read_line(&mut answer)?;
        Ok(matches!(answer.trim().to_ascii_lowercase().as_str(), "y" | "yes"))
    }
}

fn shared(writer: impl Write + Send + 'static) -> Shared {
    Arc::new(Mutex::new(Box::new(writer)))
}

fn lock(writer: &Shared) -> std::sync::MutexGuard<'_, Box<dyn Write + Send>> {
    writer.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Shortest time between two looks of a progress line.
const REDRAW_INTERVAL: Duration = Duration::from_millis(100);

/// A line that tells how far long work is, on standard error where that is a terminal. What the line says
/// goes away with [`Progress::clear`]; failures to write it do not matter.
#[derive(Clone)]
pub(crate) struct Progress {
    err: Shared,
    is_on: bool,
    drawn: Arc<Mutex<Option<Instant>>>,
}

impl Console {
    /// A progress line; it says nothing where standard error is no terminal.
    pub(crate) fn progress(&self) -> Progress {
        Progress { err: self.err.clone(), is_on: self.err_can_rewrite, drawn: Arc::default() }
    }
}

impl Progress {
    /// Writes the line anew, unless it was written just now.
    pub(crate) fn show(&self, line: impl FnOnce() -> String) {
        if !self.is_on {
            return;
        }
        let mut drawn = self.drawn.lock().unwrap_or_else(PoisonError::into_inner);
        if drawn.is_some_and(|at| at.elapsed() < REDRAW_INTERVAL) {
            return;
        }
        *drawn = Some(Instant::now());
        let mut err = lock(&self.err);
        let _ = write!(err, "\r\x1b[K{}", line()).and_then(|()| err.flush());
    }

    /// Takes the line away.
    pub(crate) fn clear(&self) {
        if self.drawn.lock().unwrap_or_else(PoisonError::into_inner).take().is_some() {
            let mut err = lock(&self.err);
            let _ = write!(err, "\r\x1b[K").and_then(|()| err.flush());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::captured::console;
    use super::is_coloured;

    #[test]
    fn colour_is_for_terminals_and_for_those_who_do_not_object() {
        for (is_terminal, no_color, expected) in
            [(true, None, true), (true, Some(""), true), (true, Some("1"), false), (false, None, false)]
        {
            assert_eq!(is_coloured(is_terminal, no_color.map(str::as_ref)), expected, "{no_color:?}");
        }
        let (mut console, _, err) = console(None);
        console.warn("careful").unwrap();
        console.err_has_colour = true;
        console.warn("careful").unwrap();
        assert_eq!(err.take(), "careful\n\x1b[33mcareful\x1b[0m\n");
    }

    #[tokio::test(start_paused = true)]
    async fn progress_is_one_line_on_a_terminal_and_nothing_elsewhere() {
        let (mut console, out, err) = console(None);
        console.progress().show(|| "1".into());
        console.progress().clear();
        assert_eq!(err.take(), "");
        console.err_can_rewrite = true;
        let progress = console.progress();
        progress.show(|| "1".into());
        progress.show(|| "2".into());
        tokio::time::sleep(super::REDRAW_INTERVAL).await;
        progress.show(|| "3".into());
        progress.clear();
        progress.clear();
        assert_eq!(err.take(), "\r\x1b[K1\r\x1b[K3\r\x1b[K");
        assert_eq!(out.take(), "");
    }
}

#[cfg(test)]
pub(crate) mod captured {
    use std::sync::{Arc, Mutex};

    use super::*;

    /// What a command has written.
    #[derive(Clone, Default)]
    pub(crate) struct Captured(Arc<Mutex<Vec<u8>>>);

    impl Write for Captured {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl Captured {
        pub(crate) fn take(&self) -> String {
            String::from_utf8(std::mem::take(&mut *self.0.lock().unwrap())).unwrap()
        }
    }

    pub(crate) fn console(form: Option<OutputForm>) -> (Console, Captured, Captured) {
        let (out, err) = (Captured::default(), Captured::default());
        (Console::to_writers(form, out.clone(), err.clone()), out, err)
    }
}
