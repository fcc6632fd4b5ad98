use serde::de::IgnoredAny;

/// JSON without white space between its tokens; numbers, escapes and order stay as they are.
///
/// # Errors
/// The text is not JSON, or nested more than 127 deep.
pub fn compact(text: &str) -> Result<String, serde_json::Error> {
    serde_json::from_str::<IgnoredAny>(text)?;
    let (mut in_string, mut escaped) = (false, false);
    let keep = |c: &char| {
        if in_string {
            match c {
                _ if escaped => escaped = false,
                '\\' => escaped = true,
                '"' => in_string = false,
                _ => {}
            }
            return true;
        }
        in_string = *c == '"';
        !matches!(c, ' ' | '\t' | '\r' | '\n')
    };
    Ok(text.chars().filter(keep).collect())
}

#[cfg(test)]
mod tests {
    use super::compact;

    #[test]
    fn white_space_goes_and_all_else_stays() {
        let text =
            "{ \"a\" : \"x \\\" y\",\r\n\t\"b\": [1.50, 1e5, 123456789012345678901234567890], \"a\": null }";
        let expected = r#"{"a":"x \" y","b":[1.50,1e5,123456789012345678901234567890],"a":null}"#;
        assert_eq!(compact(text).unwrap(), expected);
        assert_eq!(compact(" \"\\u00e9 日\" ").unwrap(), "\"\\u00e9 日\"");
    }

    #[test]
    fn what_is_not_json_is_an_error() {
        for text in ["", " ", "{bad", "1 2", "'a'", "NaN", &"[".repeat(100_000)] {
            assert!(compact(text).is_err(), "{:.20}", text);
        }
    }
}
