use taskhub_core::ErrorKind;

/// Why a message, blob or JSON column cannot be read. Says where, never what the payload was.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DecodeError {
    /// Neither JSON nor Base64.
    #[error("the text is neither JSON nor Base64 of JSON")]
    NotBase64,
    /// The bytes are not UTF-8.
    #[error("the text is not UTF-8")]
    NotUtf8,
    /// The text is not JSON.
    #[error("the text is not JSON. at=`{at}`")]
    Json {
        /// Byte at which reading stopped.
        at: usize,
    },
    /// Arrays and objects are nested too deeply.
    #[error("the JSON is nested too deeply. limit=`{limit}`")]
    TooDeep {
        /// Deepest nesting that is read.
        limit: usize,
    },
    /// A `$type` or `__type` names no known type.
    #[error("unknown type in a message. type=`{type_name}`")]
    UnknownType {
        /// The name, cut to 128 characters.
        type_name: String,
    },
    /// The type of an event is not known.
    #[error("unknown event type. event_type=`{event_type}`")]
    UnknownEventType {
        /// Its number or name, cut to 128 characters.
        event_type: String,
    },
    /// An event says neither its class nor its type.
    #[error("an event without a type")]
    NoEventType,
    /// A member that must be there is missing or null.
    #[error("a member is missing. member=`{member}`")]
    Missing {
        /// Its name.
        member: &'static str,
    },
    /// A member has a value of another kind.
    #[error("a member cannot be read. member=`{member}` expected=`{expected}` found=`{found}`")]
    Member {
        /// Its name.
        member: &'static str,
        /// What it must be.
        expected: &'static str,
        /// What it is.
        found: &'static str,
    },
    /// A blob name leads out of the container.
    #[error("a blob name with dot segments")]
    BlobName,
    /// The blob is not gzip, or cut short.
    #[error("the blob is not complete gzip data")]
    Gzip,
    /// The blob is larger than what is read.
    #[error("the blob is too large. limit_bytes=`{limit}`")]
    TooLarge {
        /// Limit in bytes after decompression.
        limit: u64,
    },
}

impl DecodeError {
    /// Always [`ErrorKind::Data`]: what is stored cannot be read, and trying again is no use.
    pub fn kind(&self) -> ErrorKind {
        ErrorKind::Data
    }

    /// A name from stored data, cut so that it can go into an error.
    pub(crate) fn shown(text: &str) -> String {
        text.chars().take(128).collect()
    }
}
