use std::error::Error;
use std::fmt;

/// What to do about an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The caller's arguments are wrong; trying again is no use.
    Invalid,
    /// The thing named does not exist.
    NotFound,
    /// The thing named exists already.
    AlreadyExists,
    /// Another worker owns or has changed the instance: drop the session, keep the messages.
    SessionAborted,
    /// The service cannot be reached or is busy: abandon and try again later.
    Unavailable,
    /// The service refuses these credentials.
    Denied,
    /// Stored data cannot be read.
    Data,
    /// An orchestrator does not follow its own history.
    NonDeterminism,
    /// A defect of this program.
    Internal,
}

/// An error of a backend. `Display` leaves out the source; loggers print the chain.
#[derive(Debug)]
pub struct ServiceError {
    kind: ErrorKind,
    message: String,
    source: Option<Box<dyn Error + Send + Sync>>,
}

impl ServiceError {
    /// An error without a cause.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into(), source: None }
    }

    /// An error with its cause.
    pub fn with_source(
        kind: ErrorKind,
        message: impl Into<String>,
        source: impl Into<Box<dyn Error + Send + Sync>>,
    ) -> Self {
        Self { kind, message: message.into(), source: Some(source.into()) }
    }

    /// What to do about it.
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// The message and those of all causes, joined by `: `.
    pub fn chain(&self) -> String {
        let mut text = self.to_string();
        let mut cause = self.source();
        while let Some(error) = cause {
            text.push_str(": ");
            text.push_str(&error.to_string());
            cause = error.source();
        }
        text
    }
}

impl fmt::Display for ServiceError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl Error for ServiceError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.source.as_deref().map(|e| e as &(dyn Error + 'static))
    }
}
