use taskhub_core::InstanceId;

use crate::ClientError;

/// Largest escaped instance id, in UTF-16 code units: the table service refuses larger keys.
/// Source: Azure Tables, "1 KiB in size" for `PartitionKey`.
const MAX_KEY_UNITS: usize = 512;

/// Checks an id before anything is sent: a start message without its row would be an orphan.
/// DTFx's own client finds out only after it has sent the message.
pub(crate) fn check(instance_id: &InstanceId) -> Result<(), ClientError> {
    if instance_id.as_str().trim().is_empty() {
        return Err(ClientError::Blank { argument: "instance id" });
    }
    let length = escaped_units(instance_id.as_str());
    if length > MAX_KEY_UNITS {
        return Err(ClientError::InstanceIdTooLong { length, longest: MAX_KEY_UNITS });
    }
    Ok(())
}

/// Checks the id of a new instance: its large payloads will be blobs under this name. Instances that exist
/// under other ids can be read and controlled.
pub(crate) fn check_new(instance_id: &InstanceId) -> Result<(), ClientError> {
    check(instance_id)?;
    let id = instance_id.as_str();
    let unspeakable = |c: char| c.is_control() || matches!(c, '\u{fffe}' | '\u{ffff}');
    if id.chars().any(unspeakable) || id.split(['/', '\\']).any(|segment| matches!(segment, "." | "..")) {
        return Err(ClientError::InstanceIdCharacters);
    }
    Ok(())
}

/// Longest id of a new instance in Durable Functions, in UTF-16 code units.
/// Source: Azure/azure-functions-durable-extension, `DurableClient.ValidateInstanceId` (256).
const MAX_NEW_UNITS: usize = 256;

/// Checks the id of a new instance as Durable Functions' client does: besides what [`check_new`] refuses,
/// none of `/ \ # ?`, and at most 256 characters.
pub(crate) fn check_new_strictly(instance_id: &InstanceId) -> Result<(), ClientError> {
    check_new(instance_id)?;
    let id = instance_id.as_str();
    if id.contains(['/', '\\', '#', '?']) {
        return Err(ClientError::InstanceIdReserved);
    }
    let length = id.encode_utf16().count();
    if length > MAX_NEW_UNITS {
        return Err(ClientError::InstanceIdTooLong { length, longest: MAX_NEW_UNITS });
    }
    Ok(())
}

/// Length of the id as a table key, in UTF-16 code units. Characters that keys cannot hold take two.
/// Source: Azure/durabletask, `KeySanitation.EscapePartitionKey`.
fn escaped_units(id: &str) -> usize {
    id.chars()
        .map(|c| match c {
            '^' | '/' | '\\' | '#' | '?' => 2,
            c if c.is_control() => 2,
            c => c.len_utf16(),
        })
        .sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_measured_as_table_keys() {
        assert_eq!(escaped_units("a/b\\c#d?e^f"), 16);
        assert_eq!(escaped_units("é日😀"), 4);
        assert_eq!(escaped_units("\u{0}\u{1f}\u{7f}\u{9f}\u{a0}"), 9);
    }

    #[test]
    fn new_ids_can_be_names_of_blobs() {
        for id in ["a", "a/b\\c#d?e^f", "a..b", "日本語😀", "e space%20"] {
            assert!(check_new(&id.into()).is_ok(), "{id}");
        }
        for id in [".", "..", "a/../b", "a\\.", "a\nb", "\u{7f}x", "x\u{ffff}"] {
            assert!(check_new(&id.into()).is_err(), "{id:?}");
            assert!(check(&id.into()).is_ok(), "{id:?} can be read");
        }
    }

    #[test]
    fn ids_of_durable_functions_have_stricter_rules() {
        for id in ["a", "a b%40", "日本語😀", &"a".repeat(256)] {
            assert!(check_new_strictly(&id.into()).is_ok(), "{id}");
        }
        for id in ["a/b", "a\\b", "a#b", "a?b", "a\nb", &"a".repeat(257)] {
            assert!(check_new_strictly(&id.into()).is_err(), "{id:?}");
        }
    }

    #[test]
    fn the_longest_id_is_512_units_escaped() {
        assert!(check(&"a".repeat(512).into()).is_ok());
        assert!(check(&"/".repeat(256).into()).is_ok());
        for id in ["a".repeat(513), "/".repeat(257), String::new(), " \t".to_owned()] {
            assert!(check(&id.as_str().into()).is_err(), "{id}");
        }
    }
}
