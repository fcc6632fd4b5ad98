use std::cmp::Ordering;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use taskhub_core::InstanceId;

/// Name and key of an entity.
///
/// DTFx's core keeps the case of names, Durable Functions lowers it. [`EntityId::new`] lowers, so that one
/// entity has one id in hubs of both; [`EntityId::with_exact_name`] does not.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct EntityId {
    name: String,
    key: String,
}

/// A text cannot be the id of an entity.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum InvalidEntityId {
    /// There is no name.
    #[error("an entity has a name")]
    NoName,
    /// A name with `@`, a control character or one of `/ \ # ?`, or not of the form `@name@key`.
    #[error("an entity has a name and a key, without control characters or any of `/`, `\\`, `#`, `?`")]
    Malformed,
}

impl EntityId {
    /// An entity whose name is lowered; its key may be empty and keeps its case.
    ///
    /// # Errors
    /// No name, a name with `@`, or one of `/ \ # ?` or a control character in either.
    pub fn new(name: &str, key: impl Into<String>) -> Result<Self, InvalidEntityId> {
        Self::with_exact_name(name.to_lowercase(), key)
    }

    /// As [`EntityId::new`] with the name as it is.
    ///
    /// # Errors
    /// As [`EntityId::new`].
    pub fn with_exact_name(name: impl Into<String>, key: impl Into<String>) -> Result<Self, InvalidEntityId> {
        let (name, key) = (name.into(), key.into());
        if name.trim().is_empty() {
            return Err(InvalidEntityId::NoName);
        }
        let reserved = |c: char| matches!(c, '/' | '\\' | '#' | '?') || c.is_control();
        if name.contains('@') || name.contains(reserved) || key.contains(reserved) {
            return Err(InvalidEntityId::Malformed);
        }
        Ok(Self { name, key })
    }

    /// The name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The key.
    pub fn key(&self) -> &str {
        &self.key
    }

    /// The instance that is the entity: `@{name}@{key}`.
    pub fn instance_id(&self) -> InstanceId {
        InstanceId::new(self.to_string())
    }

    /// The entity that an instance is; `None` for other instances. Names and keys are taken as they are.
    /// Source: Azure/durabletask, `EntityId.FromString`.
    pub fn of_instance(instance_id: &InstanceId) -> Option<Self> {
        let (name, key) = instance_id.as_str().strip_prefix('@')?.split_once('@')?;
        (!name.is_empty()).then(|| Self { name: name.to_owned(), key: key.to_owned() })
    }
}

/// The order in which an orchestration takes its locks: by name, then by key, each without regard to the case
/// of ASCII letters first and by UTF-16 units then.
///
/// Differs: DTFx compares as the culture of its process says. For letters and digits the order is the same;
/// two orchestrations on different workers that lock entities whose ids differ in punctuation may wait for
/// each other.
impl Ord for EntityId {
    fn cmp(&self, other: &Self) -> Ordering {
        let text = |a: &str, b: &str| {
            let folded = a.to_ascii_lowercase().encode_utf16().cmp(b.to_ascii_lowercase().encode_utf16());
            // Lower case comes first where only the case differs, as in .NET's cultures.
            folded.then_with(|| b.encode_utf16().cmp(a.encode_utf16()))
        };
        text(&self.name, &other.name).then_with(|| text(&self.key, &other.key))
    }
}

impl PartialOrd for EntityId {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl fmt::Display for EntityId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "@{}@{}", self.name, self.key)
    }
}

impl FromStr for EntityId {
    type Err = InvalidEntityId;
    /// From `@name@key`; the name is lowered.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let found = Self::of_instance(&InstanceId::new(text)).ok_or(InvalidEntityId::Malformed)?;
        Self::new(&found.name, found.key)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_lowered_unless_asked_for_and_keys_are_not() {
        let counter = EntityId::new("Counter", "A@b").unwrap();
        assert_eq!(counter.to_string(), "@counter@A@b");
        assert_eq!("@Counter@A@b".parse(), Ok(counter.clone()));
        assert_eq!(EntityId::of_instance(&counter.instance_id()), Some(counter));
        assert_eq!(EntityId::with_exact_name("Counter", "A").unwrap().to_string(), "@Counter@A");
        assert_eq!(EntityId::of_instance(&"@Counter@".into()).unwrap().name(), "Counter");
    }

    #[test]
    fn what_cannot_be_an_id_is_an_error() {
        for (name, key) in [
            ("", "a"),
            (" ", "a"),
            ("a@b", "c"),
            ("a", "b/c"),
            ("a", "b\\"),
            ("a", "#"),
            ("a", "?"),
            ("a", "\n"),
        ] {
            assert!(EntityId::new(name, key).is_err(), "{name} {key:?}");
        }
        for text in ["counter@a", "@counter", "@@a", "@", ""] {
            assert!(text.parse::<EntityId>().is_err(), "{text}");
        }
    }

    #[test]
    fn locks_are_taken_by_name_and_then_by_key() {
        let mut ids: Vec<EntityId> =
            ["@b@a", "@a@b", "@a@B", "@a@A", "@a@10", "@a@2"].iter().map(|t| t.parse().unwrap()).collect();
        ids.sort();
        let sorted: Vec<_> = ids.iter().map(EntityId::to_string).collect();
        assert_eq!(sorted, ["@a@10", "@a@2", "@a@A", "@a@b", "@a@B", "@b@a"]);
    }
}
