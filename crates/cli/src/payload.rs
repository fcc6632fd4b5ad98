//! Inputs and event data from the command line.

use std::path::Path;

use anyhow::{Context, Result, bail};
use taskhub_client::json::compact;

/// The JSON text that `argument` stands for: the content of a file for `@FILE`, else the argument itself
/// if it is JSON, else the argument as a JSON string. With `raw_string` inline text is always a string.
///
/// Differs: `func durable` sends every inline text as a JSON string, also `3` and `{"a":1}`; that is
/// hardly ever meant, and `--raw-string` gives it.
pub(crate) fn parse(argument: &str, raw_string: bool, directory: &Path) -> Result<String> {
    if let Some(file) = argument.strip_prefix('@') {
        let path = directory.join(file);
        let text = std::fs::read_to_string(&path)
            .with_context(|| format!("could not read the JSON file. file=`{}`", path.display()))?;
        return match compact(text.trim_start_matches('\u{feff}')) {
            Ok(json) => Ok(json),
            Err(error) => bail!("the file is not JSON ({error}). file=`{}`", path.display()),
        };
    }
    match compact(argument) {
        Ok(json) if !raw_string => Ok(json),
        _ => Ok(serde_json::to_string(argument)?),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(argument: &str, raw_string: bool, expected: &str) {
        assert_eq!(parse(argument, raw_string, Path::new(".")).unwrap(), expected, "{argument}");
    }

    #[test]
    fn inline_text_is_json_where_it_can_be() {
        check("3", false, "3");
        check(r#"{ "a" : "x \" y", "b": 1.50 }"#, false, r#"{"a":"x \" y","b":1.50}"#);
        check("123456789012345678901234567890", false, "123456789012345678901234567890");
        check("hello world", false, r#""hello world""#);
        check("{broken", false, r#""{broken""#);
        check("", false, r#""""#);
    }

    #[test]
    fn raw_strings_are_what_func_durable_sends() {
        check("3", true, r#""3""#);
        check(r#"{"a":1}"#, true, r#""{\"a\":1}""#);
    }

    #[test]
    fn a_file_must_be_there_and_hold_json() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("good.json"), "\u{feff}{\n \"a\": [1, 2]\n}\n").unwrap();
        std::fs::write(dir.path().join("bad.json"), "{").unwrap();
        assert_eq!(parse("@good.json", true, dir.path()).unwrap(), r#"{"a":[1,2]}"#);
        for argument in ["@bad.json", "@missing.json"] {
            let error = parse(argument, false, dir.path()).unwrap_err().to_string();
            assert!(error.contains(&argument[1..]), "{error}");
        }
    }
}
