//! JSON as Newtonsoft writes it, and errors that do not quote what they could not read.

use std::io;

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::ser::{CompactFormatter, Formatter};

/// A text is not what an entity or its caller can have written.
///
/// The message tells where the text stops making sense, never what it says.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what} cannot be read. line=`{line}` column=`{column}`")]
pub struct WireError {
    what: &'static str,
    line: usize,
    column: usize,
}

/// Reads an object. serde_json bounds the depth at 128, so that no text exhausts the stack.
pub(crate) fn read<T: DeserializeOwned>(what: &'static str, text: &str) -> Result<T, WireError> {
    // serde takes an array for an object, too.
    if !text.trim_start().starts_with('{') {
        return Err(WireError { what, line: 1, column: 0 });
    }
    // Its own message may quote the text, so it is not kept as the source.
    serde_json::from_str(text).map_err(|e| WireError { what, line: e.line(), column: e.column() })
}

/// Writes a value whose maps have texts for keys.
pub(crate) fn write<T: Serialize>(value: &T) -> String {
    let mut bytes = Vec::with_capacity(256);
    let mut serializer = serde_json::Serializer::with_formatter(&mut bytes, Newtonsoft(CompactFormatter));
    value.serialize(&mut serializer).expect("a vector takes all bytes and all keys are texts");
    String::from_utf8(bytes).expect("json is utf-8")
}

/// Escapes U+0085, U+2028 and U+2029 too. Source: Newtonsoft.Json, `StringEscapeHandling.Default`.
struct Newtonsoft(CompactFormatter);

impl Formatter for Newtonsoft {
    fn write_string_fragment<W: ?Sized + io::Write>(
        &mut self,
        writer: &mut W,
        fragment: &str,
    ) -> io::Result<()> {
        let mut rest = fragment;
        while let Some(at) = rest.find(['\u{85}', '\u{2028}', '\u{2029}']) {
            let (plain, tail) = rest.split_at(at);
            writer.write_all(plain.as_bytes())?;
            let mut chars = tail.chars();
            if let Some(c) = chars.next() {
                write!(writer, "\\u{:04x}", u32::from(c))?;
            }
            rest = chars.as_str();
        }
        self.0.write_string_fragment(writer, rest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_escaped_as_newtonsoft_does() {
        let text = "\"\\/<>&'\u{0}\u{8}\t\n\u{b}\u{c}\r\u{1f}\u{7f}\u{85}\u{2027}\u{2028}\u{2029}é日😀";
        let expected =
            "\"\\\"\\\\/<>&'\\u0000\\b\\t\\n\\u000b\\f\\r\\u001f\u{7f}\\u0085\u{2027}\\u2028\\u2029é日😀\"";
        assert_eq!(write(&text), expected);
    }

    #[test]
    fn errors_tell_a_place_and_no_content() {
        let error = read::<u32>("request", "{\"secret\":1}").unwrap_err();
        assert_eq!(error.to_string(), "request cannot be read. line=`1` column=`0`");
        assert!(read::<serde_json::Value>("state", &"[".repeat(100_000)).is_err());
    }
}
