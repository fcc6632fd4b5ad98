//! Partition keys of the tracking tables: instance ids without the characters that keys must not hold.

use taskhub_core::ErrorKind;

/// Source: Azure/durabletask, `KeySanitation.ESCAPE_CHAR`.
const ESCAPE: char = '^';
/// Added to the code of a control character. Source: Azure/durabletask, `KeySanitation`.
const CONTROL_OFFSET: u32 = 0xc0;

/// A stored key is not the escaped form of an instance id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the partition key is no escaped instance id. at=`{at}`")]
pub struct KeyError {
    /// Byte of the key where the faulty escape begins.
    at: usize,
}

impl KeyError {
    /// Always [`ErrorKind::Data`].
    pub fn kind(&self) -> ErrorKind {
        ErrorKind::Data
    }
}

/// The partition key of an instance. Not to be applied twice: `^` itself is escaped.
/// Source: Azure/durabletask, `KeySanitation.EscapePartitionKey`.
pub fn escape(instance_id: &str) -> String {
    let mut key = String::with_capacity(instance_id.len());
    for c in instance_id.chars() {
        let escaped = match c {
            ESCAPE => ESCAPE,
            '/' => '0',
            '\\' => '1',
            '#' => '2',
            '?' => '3',
            '\0'..='\u{1f}' | '\u{7f}'..='\u{9f}' => {
                char::from_u32(u32::from(c) + CONTROL_OFFSET).unwrap_or(char::REPLACEMENT_CHARACTER)
            }
            plain => {
                key.push(plain);
                continue;
            }
        };
        key.push(ESCAPE);
        key.push(escaped);
    }
    key
}

/// The instance id of a partition key. Escapes that [`escape`] does not make are read as .NET reads them.
///
/// # Errors
/// An escape character at the end, or an escape that is no character.
pub fn unescape(key: &str) -> Result<String, KeyError> {
    let mut id = String::with_capacity(key.len());
    let mut chars = key.char_indices();
    while let Some((at, c)) = chars.next() {
        if c != ESCAPE {
            id.push(c);
            continue;
        }
        let (_, escaped) = chars.next().ok_or(KeyError { at })?;
        id.push(match escaped {
            '0' => '/',
            '1' => '\\',
            '2' => '#',
            '3' => '?',
            c if u32::from(c) > 0xffff => return Err(KeyError { at }),
            c if u32::from(c) >= CONTROL_OFFSET => {
                char::from_u32(u32::from(c) - CONTROL_OFFSET).ok_or(KeyError { at })?
            }
            c => c,
        });
    }
    Ok(id)
}

#[cfg(test)]
mod tests {
    use taskhub_storage::quote_filter_text;

    use super::*;

    #[test]
    fn keys_are_escaped_as_dtfx_does() {
        let vectors: serde_json::Value =
            serde_json::from_str(include_str!("../../tests/vectors/key-sanitation.json")).unwrap();
        let list = |name: &str| vectors[name].as_array().unwrap().clone();
        for vector in list("vectors") {
            let raw = vector["raw"].as_str().unwrap();
            let escaped = vector["escaped"].as_str().unwrap();
            assert_eq!(escape(raw), escaped);
            assert_eq!(unescape(escaped).as_deref(), Ok(raw));
            let filter = format!("PartitionKey eq {}", quote_filter_text(escaped));
            assert_eq!(filter, vector["odata_filter"].as_str().unwrap());
        }
        for vector in list("unescape_only") {
            let stored = vector["stored"].as_str().unwrap();
            assert_eq!(unescape(stored).as_deref(), Ok(vector["unescaped"].as_str().unwrap()));
        }
    }

    #[test]
    fn keys_that_end_in_an_escape_or_hold_an_impossible_one_are_errors() {
        for (key, at) in [("^", 0), ("a^", 1), ("^^^", 2), ("a^😀", 1), ("^\u{e000}", 0)] {
            assert_eq!(unescape(key), Err(KeyError { at }), "{key}");
        }
    }

    proptest::proptest! {
        #[test]
        fn every_id_comes_back_from_its_key(id in "\\PC*|[\\x00-\\xff^/#?\\\\]*") {
            let key = escape(&id);
            proptest::prop_assert!(!key.contains(['/', '\\', '#', '?']) && !key.contains(char::is_control));
            proptest::prop_assert_eq!(unescape(&key), Ok(id));
        }

        #[test]
        fn no_key_makes_unescape_panic(key in "(\\^|.)*") {
            let _ = unescape(&key);
        }
    }
}
