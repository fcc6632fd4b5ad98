use std::fmt;
use std::time::Duration;

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
    maybe_applied: bool,
    retry_after: Option<Duration>,
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
        Self {
            kind,
            operation,
            resource: resource.into(),
            status: None,
            code: None,
            message: message.into(),
            maybe_applied: false,
            retry_after: None,
        }
    }

    /// The answer of the service with this status and error code (empty: none), classified.
    pub fn answered(operation: &'static str, resource: impl Into<String>, status: u16, code: &str) -> Self {
        let kind = classify(operation, status, code);
        let code = (!code.is_empty()).then(|| code.to_owned());
        Self::new(kind, operation, resource, describe(kind)).with_answer(status, code)
    }

    pub(crate) fn with_message(mut self, message: String) -> Self {
        self.message = message;
        self
    }

    /// Adds how long the service asks to wait before a repetition.
    pub(crate) fn with_retry_after(mut self, delay: Option<Duration>) -> Self {
        self.retry_after = delay;
        self
    }

    pub(crate) fn retry_after(&self) -> Option<Duration> {
        self.retry_after
    }

    /// Puts the index of the failed operation of a group transaction before the message.
    pub(crate) fn at_index(mut self, index: usize) -> Self {
        self.message = format!("{index}: {}", self.message);
        self
    }

    /// Adds the HTTP status and the service's error code.
    #[must_use]
    pub fn with_answer(mut self, status: u16, code: Option<String>) -> Self {
        self.status = Some(status);
        self.code = code;
        self
    }

    /// Says that an earlier attempt of the same request, whose reply was lost, may have been carried out.
    #[must_use]
    pub fn with_maybe_applied(mut self) -> Self {
        self.maybe_applied = true;
        self
    }

    /// Whether the request may have been carried out in spite of the error: an earlier attempt got no
    /// reply, and this answer (`AlreadyExists`, `Conflict`, ..) may be the consequence of its success.
    /// A caller that must know reads back.
    pub fn maybe_applied(&self) -> bool {
        self.maybe_applied
    }

    /// What class of error it is.
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// The service's name of the request.
    pub fn operation(&self) -> &'static str {
        self.operation
    }

    /// The queue, table or container (with the blob) that the request concerned.
    pub fn resource(&self) -> &str {
        &self.resource
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
        if self.maybe_applied {
            f.write_str(" maybe_applied=`true`")?;
        }
        Ok(())
    }
}

impl std::error::Error for Error {}

/// The only place where an HTTP status becomes a kind. `code` is empty when the answer had none.
pub(crate) fn classify(operation: &str, status: u16, code: &str) -> ErrorKind {
    match status {
        404 => ErrorKind::NotFound,
        409 if code.ends_with("BeingDeleted") => ErrorKind::BeingDeleted,
        409 if code.contains("Lease") => ErrorKind::Conflict,
        409 if code.ends_with("AlreadyExists") => ErrorKind::AlreadyExists,
        409 if operation.starts_with("Create") || operation.starts_with("Insert") => ErrorKind::AlreadyExists,
        304 | 409 | 412 => ErrorKind::Conflict,
        400 if code == "PopReceiptMismatch" => ErrorKind::PopReceiptMismatch,
        401 | 403 => ErrorKind::Denied,
        408 | 429 | 500 | 502 | 503 | 504 => ErrorKind::Unavailable,
        200..400 => ErrorKind::Data,
        _ => ErrorKind::Invalid,
    }
}

/// What went wrong in words, for a message that has no better ones.
pub(crate) fn describe(kind: ErrorKind) -> &'static str {
    match kind {
        ErrorKind::NotFound => "what the request concerns does not exist",
        ErrorKind::AlreadyExists => "it exists already",
        ErrorKind::Conflict => "a condition or lease is not met",
        ErrorKind::PopReceiptMismatch => "somebody else has received the message since",
        ErrorKind::BeingDeleted => "it is being deleted",
        ErrorKind::Denied => "the credentials are missing, wrong or expired, or the clock is off",
        ErrorKind::Unavailable => "the service is not available",
        ErrorKind::Invalid => "the service refused the request as wrong",
        ErrorKind::Data => "the answer cannot be understood",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(status: u16, code: &str, expected: ErrorKind) {
        assert_eq!(classify("UpdateEntity", status, code), expected, "{status} {code}");
    }

    #[test]
    fn answers_fall_into_the_classes_that_callers_tell_apart() {
        check(404, "QueueNotFound", ErrorKind::NotFound);
        check(409, "EntityAlreadyExists", ErrorKind::AlreadyExists);
        check(409, "QueueBeingDeleted", ErrorKind::BeingDeleted);
        check(409, "LeaseAlreadyPresent", ErrorKind::Conflict);
        check(412, "UpdateConditionNotSatisfied", ErrorKind::Conflict);
        check(400, "PopReceiptMismatch", ErrorKind::PopReceiptMismatch);
        check(400, "InvalidInput", ErrorKind::Invalid);
        check(413, "RequestBodyTooLarge", ErrorKind::Invalid);
        check(403, "AuthenticationFailed", ErrorKind::Denied);
        check(429, "", ErrorKind::Unavailable);
        check(503, "ServerBusy", ErrorKind::Unavailable);
        check(204, "", ErrorKind::Data);
        assert_eq!(classify("CreateTable", 409, ""), ErrorKind::AlreadyExists);
        assert_eq!(classify("UpdateEntity", 409, ""), ErrorKind::Conflict);
    }
}
