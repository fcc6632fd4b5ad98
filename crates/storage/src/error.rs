use std::fmt;

/// Result of a storage request.
pub type Result<T> = std::result::Result<T, Error>;

/// What the service said, in the few classes that callers tell apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// 404: the queue, table, container, message, entity or blob does not exist.
    NotFound,
    /// 409 on a create or insert: it exists already.
    AlreadyExists,
    /// 412, or 409 on a lease: a condition or lease is not met.
    Conflict,
    /// 400 `PopReceiptMismatch`: the message has been received by somebody else since.
    PopReceiptMismatch,
    /// 409 `*BeingDeleted`: try again in some seconds.
    BeingDeleted,
    /// 401, 403: credentials are missing, wrong or expired, or the clock is off.
    Denied,
    /// 408, 429, 500, 503, 504, no connection, deadline passed: try again later.
    Unavailable,
    /// 400, 413 and others: the request itself is wrong.
    Invalid,
    /// The answer cannot be understood.
    Data,
}

/// A failed storage request. Holds no secrets: no URL query, header or body.
#[derive(Debug, Clone)]
pub struct Error {
    kind: ErrorKind,
    operation: &'static str,
    resource: String,
    status: Option<u16>,
    code: Option<String>,
    message: String,
}

impl Error {
    /// `operation` is the service's name of the request (`PutMessage`), `resource` the queue, table or
    /// container (with the blob) it concerned.
    pub fn new(
        kind: ErrorKind,
        operation: &'static str,
        resource: impl Into<String>,
        message: impl Into<String>,
    ) -> Self {
        Self { kind, operation, resource: resource.into(), status: None, code: None, message: message.into() }
    }

    /// Adds the HTTP status and the service's error code.
    #[must_use]
    pub fn with_answer(mut self, status: u16, code: Option<String>) -> Self {
        self.status = Some(status);
        self.code = code;
        self
    }

    /// What class of error it is.
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// The service's name of the request.
    pub fn operation(&self) -> &'static str {
        self.operation
    }

    /// HTTP status, when the service answered.
    pub fn status(&self) -> Option<u16> {
        self.status
    }

    /// The service's error code, such as `QueueNotFound`.
    pub fn code(&self) -> Option<&str> {
        self.code.as_deref()
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}. operation=`{}` resource=`{}`", self.message, self.operation, self.resource)?;
        if let Some(status) = self.status {
            write!(f, " status=`{status}`")?;
        }
        if let Some(code) = &self.code {
            write!(f, " code=`{code}`")?;
        }
        Ok(())
    }
}

impl std::error::Error for Error {}
