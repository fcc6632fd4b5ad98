//! Standard output and standard error, and what is known about them.

use std::io::{self, IsTerminal, Write};

use serde_json::Value;

use crate::args::OutputForm;

/// Where a command writes: data to standard output, everything else to standard error.
pub struct Console {
    out: Box<dyn Write + Send>,
    err: Box<dyn Write + Send>,
    /// Form of the result; `None` is the text of `func durable`.
    pub form: Option<OutputForm>,
    /// Whether standard output is a terminal.
    pub out_is_terminal: bool,
    /// Whether standard error is a terminal that may be coloured.
    pub err_has_colour: bool,
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
    is_terminal && std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty())
}

impl Console {
    /// The console of this process.
    pub fn process(form: Option<OutputForm>) -> Self {
        Self {
            out: Box::new(io::stdout()),
            err: Box::new(io::stderr()),
            form,
            out_is_terminal: io::stdout().is_terminal(),
            err_has_colour: may_colour(io::stderr().is_terminal()),
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
            err: Box::new(err),
            form,
            out_is_terminal: false,
            err_has_colour: false,
            can_ask: false,
        }
    }

    /// A line of the command's own text: its result, unless a form was asked for; then a note.
    pub(crate) fn say(&mut self, line: &str) -> io::Result<()> {
        if self.form.is_none() { writeln!(self.out, "{line}") } else { self.note(line) }
    }

    /// A line that is not part of the result.
    pub(crate) fn note(&mut self, line: &str) -> io::Result<()> {
        writeln!(self.err, "{line}")
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
        write!(self.err, "{question} [y/N] ")?;
        self.err.flush()?;
        let mut answer = String::new();
        io::stdin().read_line(&mut answer)?;
        Ok(matches!(answer.trim().to_ascii_lowercase().as_str(), "y" | "yes"))
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
