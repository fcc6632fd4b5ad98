use std::borrow::Borrow;
use std::fmt;
use std::str::FromStr;

macro_rules! text_id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
        pub struct $name(String);

        impl $name {
            /// Wraps the text as it is.
            pub fn new(text: impl Into<String>) -> Self {
                Self(text.into())
            }

            /// The text.
            pub fn as_str(&self) -> &str {
                &self.0
            }

            /// Whether the text is empty.
            pub fn is_empty(&self) -> bool {
                self.0.is_empty()
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:?}", self.0)
            }
        }

        impl From<&str> for $name {
            fn from(text: &str) -> Self {
                Self(text.to_owned())
            }
        }

        impl From<String> for $name {
            fn from(text: String) -> Self {
                Self(text)
            }
        }

        impl Borrow<str> for $name {
            fn borrow(&self) -> &str {
                &self.0
            }
        }
    };
}

text_id! {
    /// Identity of an orchestration or entity within a task hub. Any text; case-sensitive.
    InstanceId
}
text_id! {
    /// One run (generation) of an instance id: 32 hex digits when made by DTFx, but any text is read.
    ExecutionId
}
text_id! {
    /// Identity of one worker process in the lease records. Must be unique per process.
    WorkerId
}

impl InstanceId {
    /// Whether the id names an entity (`@name@key`); decided by the first character alone, as DTFx does.
    pub fn is_entity(&self) -> bool {
        self.0.starts_with('@')
    }
}

/// Number of a control queue, from 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PartitionId(pub u32);

impl fmt::Display for PartitionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:02}", self.0)
    }
}

/// Name of a task hub, as configured: case is kept in table names and lowered in queue, container and
/// blob names. Two names that differ only by case are the same hub.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct TaskHubName(String);

/// A text cannot be the name of a task hub.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a task hub name is a letter followed by letters and digits, 3 to 45 characters in all. name=`{0}`")]
pub struct InvalidTaskHubName(String);

impl TaskHubName {
    /// Checks the name: a letter, then letters and digits, 3 to 45 characters.
    /// Source: Azure/azure-functions-durable-extension, `AzureStorageOptions` (its documented rule).
    ///
    /// # Errors
    /// Any other text.
    pub fn new(name: impl Into<String>) -> Result<Self, InvalidTaskHubName> {
        Self::checked(name.into(), 45)
    }

    /// As [`TaskHubName::new`], but up to 50 characters: some hubs made by Durable Functions are that long.
    ///
    /// # Errors
    /// Any other text.
    pub fn existing(name: impl Into<String>) -> Result<Self, InvalidTaskHubName> {
        Self::checked(name.into(), 50)
    }

    fn checked(name: String, longest: usize) -> Result<Self, InvalidTaskHubName> {
        let valid = (3..=longest).contains(&name.len())
            && name.starts_with(|c: char| c.is_ascii_alphabetic())
            && name.bytes().all(|b| b.is_ascii_alphanumeric());
        if valid { Ok(Self(name)) } else { Err(InvalidTaskHubName(name)) }
    }

    /// The name as configured.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The name in lower case, as in queue and container names.
    pub fn lower(&self) -> String {
        self.0.to_ascii_lowercase()
    }
}

impl FromStr for TaskHubName {
    type Err = InvalidTaskHubName;
    fn from_str(name: &str) -> Result<Self, Self::Err> {
        Self::new(name)
    }
}

impl fmt::Display for TaskHubName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for TaskHubName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hub_names_are_letters_and_digits() {
        for good in ["abc", "MyHub1", &"a".repeat(45)] {
            assert!(TaskHubName::new(good).is_ok(), "{good}");
        }
        for bad in ["", "ab", "1abc", "my-hub", "my_hub", "héb", &"a".repeat(46)] {
            assert!(TaskHubName::new(bad).is_err(), "{bad}");
        }
        assert!(TaskHubName::existing("a".repeat(50)).is_ok());
        assert_eq!(TaskHubName::new("MyHub").unwrap().lower(), "myhub");
    }
}
