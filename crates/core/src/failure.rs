use std::fmt;

/// Why an activity or orchestration failed, in the form that crosses languages.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct FailureDetails {
    /// Type of the error; a CLR type name when a .NET worker wrote it.
    pub error_type: String,
    /// Its message.
    pub error_message: String,
    /// Where it was thrown.
    pub stack_trace: Option<String>,
    /// Its cause.
    pub inner_failure: Option<Box<FailureDetails>>,
    /// Whether retry policies must not try again.
    pub is_non_retriable: bool,
    /// Further members of the error as one JSON object (text, without type names).
    pub properties: Option<String>,
}

impl FailureDetails {
    pub(crate) fn text_bytes(&self) -> usize {
        let text = |text: &Option<String>| text.as_ref().map_or(0, String::len);
        self.error_type.len()
            + self.error_message.len()
            + text(&self.stack_trace)
            + text(&self.properties)
            + self.inner_failure.as_deref().map_or(0, Self::text_bytes)
    }

    /// A failure with a type and a message, nothing else.
    pub fn new(error_type: impl Into<String>, error_message: impl Into<String>) -> Self {
        Self { error_type: error_type.into(), error_message: error_message.into(), ..Self::default() }
    }
}

impl fmt::Display for FailureDetails {
    /// `{ErrorType}: {ErrorMessage}`, the text of a failed instance's output.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.error_type, self.error_message)
    }
}
