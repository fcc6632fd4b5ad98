//! JSON as Newtonsoft reads and writes it.
//!
//! Own code for three reasons: Newtonsoft escapes other characters than `serde_json` does; numbers keep
//! their text, so that a value written back is the value read; and a lone surrogate escape, which .NET
//! strings may hold, is replaced instead of making the message unreadable for ever.

use std::borrow::Cow;
use std::fmt::Write as _;

use super::DecodeError;

/// Deepest nesting of arrays and objects that is read.
const MAX_DEPTH: usize = 128;

/// A JSON value, of texts that were read borrowed where they hold no escapes. Numbers keep their text, objects the
/// order of their members (and duplicates).
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Json<'a> {
    Null,
    Bool(bool),
    Number(Cow<'a, str>),
    String(Cow<'a, str>),
    Array(Vec<Json<'a>>),
    Object(Vec<(Cow<'a, str>, Json<'a>)>),
}

/// Members that most objects of a message have.
const USUAL_MEMBERS: usize = 8;

impl<'a> Json<'a> {
    /// Parses a whole text; white space and a byte order mark around it are ignored.
    pub(crate) fn parse(text: &'a str) -> Result<Self, DecodeError> {
        let mut parser = Parser { bytes: text.as_bytes(), text, at: 0 };
        parser.skip_bom();
        let value = parser.value(0)?;
        parser.skip_space();
        if parser.at == parser.bytes.len() { Ok(value) } else { Err(parser.error()) }
    }

    /// A member of an object, the last of that name; a name that differs only by case is second choice, as
    /// with Newtonsoft. `None` for other values than objects.
    pub(crate) fn member(&self, name: &str) -> Option<&Json<'a>> {
        let Self::Object(members) = self else { return None };
        let find = |same: &dyn Fn(&str) -> bool| members.iter().rev().find(|(n, _)| same(n));
        find(&|n| n == name).or_else(|| find(&|n| n.eq_ignore_ascii_case(name))).map(|(_, value)| value)
    }

    /// Takes `$type` and `$id` out of this object and all objects in it.
    pub(crate) fn without_types(self) -> Self {
        match self {
            Self::Array(items) => Self::Array(items.into_iter().map(Self::without_types).collect()),
            Self::Object(members) => Self::Object(
                members
                    .into_iter()
                    .filter(|(name, _)| !is_metadata(name))
                    .map(|(name, value)| (name, value.without_types()))
                    .collect(),
            ),
            other => other,
        }
    }

    /// What kind of value it is, for error messages.
    pub(crate) fn kind(&self) -> &'static str {
        match self {
            Self::Null => "null",
            Self::Bool(_) => "a boolean",
            Self::Number(_) => "a number",
            Self::String(_) => "a string",
            Self::Array(_) => "an array",
            Self::Object(_) => "an object",
        }
    }
}

/// Whether a member is Newtonsoft's own and not data.
pub(crate) fn is_metadata(name: &str) -> bool {
    matches!(name, "$type" | "$id")
}

struct Parser<'a> {
    bytes: &'a [u8],
    text: &'a str,
    at: usize,
}

impl<'a> Parser<'a> {
    fn error(&self) -> DecodeError {
        DecodeError::Json { at: self.at }
    }

    fn skip_bom(&mut self) {
        self.skip_space();
        while self.text[self.at..].starts_with('\u{feff}') {
            self.at += '\u{feff}'.len_utf8();
            self.skip_space();
        }
    }

    fn skip_space(&mut self) {
        while let Some(b' ' | b'\t' | b'\n' | b'\r') = self.bytes.get(self.at) {
            self.at += 1;
        }
    }

    fn peek(&mut self) -> Option<u8> {
        self.skip_space();
        self.bytes.get(self.at).copied()
    }

    fn expect(&mut self, byte: u8) -> Result<(), DecodeError> {
        if self.peek() == Some(byte) {
            self.at += 1;
            Ok(())
        } else {
            Err(self.error())
        }
    }

    fn word(&mut self, word: &str, value: Json<'a>) -> Result<Json<'a>, DecodeError> {
        if self.bytes[self.at..].starts_with(word.as_bytes()) {
            self.at += word.len();
            Ok(value)
        } else {
            Err(self.error())
        }
    }

    fn value(&mut self, depth: usize) -> Result<Json<'a>, DecodeError> {
        if depth > MAX_DEPTH {
            return Err(DecodeError::TooDeep { limit: MAX_DEPTH });
        }
        match self.peek() {
            Some(b'{') => self.object(depth),
            Some(b'[') => self.array(depth),
            Some(b'"') => Ok(Json::String(self.string()?)),
            Some(b't') => self.word("true", Json::Bool(true)),
            Some(b'f') => self.word("false", Json::Bool(false)),
            Some(b'n') => self.word("null", Json::Null),
            Some(b'-' | b'0'..=b'9') => self.number(),
            _ => Err(self.error()),
        }
    }

    fn object(&mut self, depth: usize) -> Result<Json<'a>, DecodeError> {
        self.expect(b'{')?;
        let mut members = Vec::with_capacity(USUAL_MEMBERS);
        while self.peek() != Some(b'}') {
            if !members.is_empty() {
                self.expect(b',')?;
            }
            if self.peek() != Some(b'"') {
                return Err(self.error());
            }
            let name = self.string()?;
            self.expect(b':')?;
            members.push((name, self.value(depth + 1)?));
        }
        self.at += 1;
        Ok(Json::Object(members))
    }

    fn array(&mut self, depth: usize) -> Result<Json<'a>, DecodeError> {
        self.expect(b'[')?;
        let mut items = Vec::new();
        while self.peek() != Some(b']') {
            if !items.is_empty() {
                self.expect(b',')?;
            }
            items.push(self.value(depth + 1)?);
        }
        self.at += 1;
        Ok(Json::Array(items))
    }

    fn number(&mut self) -> Result<Json<'a>, DecodeError> {
        let start = self.at;
        while let Some(b'-' | b'+' | b'.' | b'e' | b'E' | b'0'..=b'9') = self.bytes.get(self.at) {
            self.at += 1;
        }
        let text: &'a str = &self.text[start..self.at];
        match text.parse::<f64>() {
            Ok(_) if text.ends_with(|c: char| c.is_ascii_digit()) => Ok(Json::Number(Cow::Borrowed(text))),
            _ => Err(DecodeError::Json { at: start }),
        }
    }

    fn string(&mut self) -> Result<Cow<'a, str>, DecodeError> {
        self.at += 1;
        let mut result = Cow::Borrowed("");
        loop {
            let start = self.at;
            while !matches!(self.bytes.get(self.at), None | Some(b'"' | b'\\')) {
                self.at += 1;
            }
            // Quotes and backslashes are ASCII, so both ends are character boundaries.
            result += &self.text[start..self.at];
            match self.bytes.get(self.at) {
                None => return Err(self.error()),
                Some(b'"') => {
                    self.at += 1;
                    return Ok(result);
                }
                Some(_) => self.escape(result.to_mut())?,
            }
        }
    }

    fn escape(&mut self, result: &mut String) -> Result<(), DecodeError> {
        let escaped = *self.bytes.get(self.at + 1).ok_or_else(|| self.error())?;
        let plain = match escaped {
            b'"' | b'\\' | b'/' | b'\'' => char::from(escaped),
            b'b' => '\u{8}',
            b'f' => '\u{c}',
            b'n' => '\n',
            b'r' => '\r',
            b't' => '\t',
            b'u' => {
                let unit = self.hex(self.at + 2).ok_or_else(|| self.error())?;
                self.at += 6;
                result.push(self.unicode(unit));
                return Ok(());
            }
            _ => return Err(self.error()),
        };
        self.at += 2;
        result.push(plain);
        Ok(())
    }

    /// The character of a UTF-16 unit just read, together with its second half if that follows.
    fn unicode(&mut self, unit: u16) -> char {
        if let Ok(c) = char::try_from(u32::from(unit)) {
            return c;
        }
        let low = if self.bytes[self.at..].starts_with(b"\\u") { self.hex(self.at + 2) } else { None };
        if let Some(low) = low
            && let Some(Ok(c)) = char::decode_utf16([unit, low]).next()
        {
            self.at += 6;
            return c;
        }
        char::REPLACEMENT_CHARACTER
    }

    fn hex(&self, at: usize) -> Option<u16> {
        let digits = self.bytes.get(at..at + 4)?;
        if !digits.iter().all(u8::is_ascii_hexdigit) {
            return None;
        }
        u16::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()
    }
}

/// Which of the two forms of JSON the provider writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Form {
    /// Queue messages: objects begin with `$type`; U+FFFE and U+FFFF, which XML forbids, are escaped.
    Message,
    /// Table columns: no `$type`.
    Column,
}

impl Form {
    /// Room that most texts need, in bytes.
    fn usual_bytes(self) -> usize {
        match self {
            Self::Message => 1024,
            Self::Column => 64,
        }
    }
}

/// Writes JSON without white space.
#[derive(Debug)]
pub(crate) struct Writer {
    text: String,
    form: Form,
    /// Whether the next member or item is the first of its object or array.
    first: bool,
}

impl Writer {
    pub(crate) fn new(form: Form) -> Self {
        Self { text: String::with_capacity(form.usual_bytes()), form, first: true }
    }

    pub(crate) fn finish(self) -> String {
        self.text
    }

    /// An object of a .NET type: `$type` comes first where the form has it.
    pub(crate) fn typed(&mut self, type_name: &str, members: impl FnOnce(&mut Self)) {
        let form = self.form;
        self.object(|w| {
            if form == Form::Message {
                w.name("$type");
                w.string(type_name);
            }
            members(w);
        });
    }

    /// An object without `$type`.
    pub(crate) fn object(&mut self, members: impl FnOnce(&mut Self)) {
        self.text.push('{');
        self.first = true;
        members(self);
        self.text.push('}');
        self.first = false;
    }

    /// Begins a member; its value must follow.
    pub(crate) fn name(&mut self, name: &str) {
        self.separate();
        self.string(name);
        self.text.push(':');
    }

    pub(crate) fn null(&mut self) {
        self.text.push_str("null");
    }

    pub(crate) fn bool(&mut self, value: bool) {
        self.text.push_str(if value { "true" } else { "false" });
    }

    pub(crate) fn int(&mut self, value: i64) {
        let _ = write!(self.text, "{value}");
    }

    pub(crate) fn text(&mut self, value: Option<&str>) {
        match value {
            Some(value) => self.string(value),
            None => self.null(),
        }
    }

    /// A value as it was read.
    pub(crate) fn json(&mut self, value: &Json<'_>) {
        match value {
            Json::Null => self.null(),
            Json::Bool(value) => self.bool(*value),
            Json::Number(text) => self.text.push_str(text),
            Json::String(text) => self.string(text),
            Json::Array(items) => {
                self.text.push('[');
                self.first = true;
                for item in items {
                    self.separate();
                    self.json(item);
                }
                self.text.push(']');
                self.first = false;
            }
            Json::Object(members) => self.object(|w| {
                for (name, value) in members {
                    w.name(name);
                    w.json(value);
                }
            }),
        }
    }

    fn separate(&mut self) {
        if !self.first {
            self.text.push(',');
        }
        self.first = false;
    }

    /// A string with the escapes of Newtonsoft's default: control characters (not U+007F), U+0085, U+2028,
    /// U+2029, quotes and backslashes.
    pub(crate) fn string(&mut self, value: &str) {
        self.text.push('"');
        let mut rest = value;
        // Whatever may have to be escaped, by the first byte.
        let special = |b| b < 0x20 || matches!(b, b'"' | b'\\' | 0xc2 | 0xe2 | 0xef);
        while let Some(at) = rest.bytes().position(special) {
            let (plain, from) = rest.split_at(at);
            self.text.push_str(plain);
            let mut chars = from.chars();
            let Some(c) = chars.next() else { break };
            rest = chars.as_str();
            match c {
                '"' => self.text.push_str("\\\""),
                '\\' => self.text.push_str("\\\\"),
                '\u{8}' => self.text.push_str("\\b"),
                '\t' => self.text.push_str("\\t"),
                '\n' => self.text.push_str("\\n"),
                '\u{c}' => self.text.push_str("\\f"),
                '\r' => self.text.push_str("\\r"),
                '\0'..='\u{1f}' | '\u{85}' | '\u{2028}' | '\u{2029}' => self.unicode_escape(c),
                '\u{fffe}' | '\u{ffff}' if self.form == Form::Message => self.unicode_escape(c),
                _ => self.text.push(c),
            }
        }
        self.text.push_str(rest);
        self.text.push('"');
    }

    fn unicode_escape(&mut self, c: char) {
        let _ = write!(self.text, "\\u{:04x}", u32::from(c));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(form: Form, text: &str) -> String {
        let mut writer = Writer::new(form);
        writer.string(text);
        writer.finish()
    }

    #[test]
    fn strings_are_escaped_as_newtonsoft_does() {
        let text = "\"\\/<>&'\u{0}\u{1}\u{8}\t\n\u{b}\u{c}\r\u{1f}\u{7f}\u{80}\u{85}\u{9f}\u{2027}\u{2028}\u{2029}é日😀";
        let expected = "\"\\\"\\\\/<>&'\\u0000\\u0001\\b\\t\\n\\u000b\\f\\r\\u001f\u{7f}\u{80}\\u0085\u{9f}\u{2027}\\u2028\\u2029é日😀\"";
        assert_eq!(written(Form::Column, text), expected);
        assert_eq!(written(Form::Message, text), expected);
        assert_eq!(Json::parse(expected), Ok(Json::String(text.into())));
    }

    #[test]
    fn characters_that_xml_forbids_are_escaped_in_messages_only() {
        assert_eq!(written(Form::Message, "\u{fffe}\u{ffff}\u{fffd}"), "\"\\ufffe\\uffff\u{fffd}\"");
        assert_eq!(written(Form::Column, "\u{fffe}\u{ffff}"), "\"\u{fffe}\u{ffff}\"");
    }

    #[test]
    fn values_are_written_as_they_were_read() {
        for text in [
            r#"{"a":[1,-0.50,1E+20,123456789012345678901234567890],"b":{"c":null,"d":[true,false,[],{}]}}"#,
            r#""""#,
            "0",
            "[]",
            "{}",
        ] {
            let mut writer = Writer::new(Form::Column);
            writer.json(&Json::parse(text).unwrap());
            assert_eq!(writer.finish(), text);
        }
    }

    #[test]
    fn surrogate_escapes_are_joined_and_lone_ones_replaced() {
        for (text, expected) in [
            (r#""\ud83d\ude00""#, "😀"),
            (r#""\ud83d""#, "\u{fffd}"),
            (r#""\ud83dx""#, "\u{fffd}x"),
            (r#""\ud83d\u0041""#, "\u{fffd}A"),
            (r#""\ude00\ud83d\ude00""#, "\u{fffd}😀"),
        ] {
            assert_eq!(Json::parse(text), Ok(Json::String(expected.into())), "{text}");
        }
    }

    #[test]
    fn broken_texts_are_errors() {
        for text in [
            "",
            " ",
            "{",
            "}",
            "[",
            "{\"a\"",
            "{\"a\":",
            "{\"a\":1,}",
            "{,}",
            "[1,]",
            "[1 2]",
            "nul",
            "tru",
            "1.",
            "-",
            "+1",
            "1e",
            "\"",
            "\"\\",
            "\"\\x\"",
            "\"\\u12\"",
            "\"\\u+123\"",
            "{a:1}",
            "1 2",
            "{}{}",
            "'a'",
            "NaN",
            "infinity",
        ] {
            assert!(Json::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn nesting_is_bounded() {
        let nested = |depth: usize| "[".repeat(depth) + &"]".repeat(depth);
        assert!(Json::parse(&nested(MAX_DEPTH)).is_ok());
        assert_eq!(Json::parse(&nested(MAX_DEPTH + 2)), Err(DecodeError::TooDeep { limit: MAX_DEPTH }));
        assert!(Json::parse(&"[{\"a\":".repeat(1_000_000)).is_err());
    }

    #[test]
    fn members_are_found_by_name_then_by_name_without_case() {
        let json = Json::parse(r#"{"name":1,"Name":2,"NAME":3,"other":4}"#).unwrap();
        assert_eq!(json.member("Name"), Some(&Json::Number("2".into())));
        assert_eq!(json.member("nAME"), Some(&Json::Number("3".into())));
        assert_eq!(json.member("Other"), Some(&Json::Number("4".into())));
        assert_eq!(json.member("none"), None);
    }
}
