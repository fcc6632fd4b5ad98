use serde::{Deserialize, Serialize};

use crate::json::{self, WireError};

/// What stands for the id of a lock that was released by cleaning; the id was not known.
/// Source: Azure/durabletask, `ClientEntityHelpers.EmitUnlockForOrphanedLock`.
pub const ORPHANED_LOCK: &str = "fix-orphaned-lock";

/// The end of a lock. Source: Azure/durabletask, `ReleaseMessage`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ReleaseMessage {
    /// Instance that holds the lock.
    #[serde(rename = "parent", default)]
    pub parent_instance_id: Option<String>,
    /// Id of the lock request; receivers do not compare it.
    #[serde(default)]
    pub id: Option<String>,
}

impl ReleaseMessage {
    /// An instance gives its lock back.
    pub fn new(parent_instance_id: impl Into<String>, id: impl Into<String>) -> Self {
        Self { parent_instance_id: Some(parent_instance_id.into()), id: Some(id.into()) }
    }

    /// The message as JSON.
    pub fn to_json(&self) -> String {
        json::write(self)
    }

    /// Reads a message; `$type` and unknown members count for nothing.
    ///
    /// # Errors
    /// The text is not such a message.
    pub fn from_json(text: &str) -> Result<Self, WireError> {
        json::read("entity lock release", text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn releases_are_read_and_written_byte_for_byte() {
        let text = r#"{"parent":"order-17","id":"34994850-4d2c-56e3-af45-19cc3dc621bf"}"#;
        let message = ReleaseMessage::from_json(text).unwrap();
        assert_eq!(message.to_json(), text);
        assert_eq!(message.parent_instance_id.as_deref(), Some("order-17"));
        let typed = r#"{"$type":"X","parent":"order-17"}"#;
        assert_eq!(ReleaseMessage::from_json(typed).unwrap().to_json(), r#"{"parent":"order-17","id":null}"#);
        for text in ["", "null", "[]", r#"{"parent":5}"#] {
            assert!(ReleaseMessage::from_json(text).is_err(), "{text}");
        }
    }
}
