//! Serialised values: JSON text, with no text at all for `null`.

use serde::Serialize;
use serde::de::DeserializeOwned;

/// A value could not be written as JSON, or a payload is not the JSON of the type asked for.
///
/// The message tells where the text stops making sense, never what it says.
#[derive(Debug, thiserror::Error)]
#[error("{what} {action}. line=`{line}` column=`{column}`")]
pub struct PayloadError {
    what: &'static str,
    action: &'static str,
    line: usize,
    column: usize,
}

impl PayloadError {
    // serde_json's own message may quote the payload, so it is not kept as the source.
    fn writing(what: &'static str, error: &serde_json::Error) -> Self {
        Self { what, action: "cannot be written as json", line: error.line(), column: error.column() }
    }

    fn reading(what: &'static str, error: &serde_json::Error) -> Self {
        let action = "is not the json of the expected type";
        Self { what, action, line: error.line(), column: error.column() }
    }
}

/// Serialises a value. What serialises to `null` is no payload at all, as DTFx writes a null object.
///
/// # Errors
/// The value has no JSON form, such as a map whose keys are not text.
pub fn to_payload<T: Serialize + ?Sized>(value: &T) -> Result<Option<String>, PayloadError> {
    let text = serde_json::to_string(value).map_err(|e| PayloadError::writing("value", &e))?;
    Ok((text != "null").then_some(text))
}

/// Reads a payload; no payload reads as `null`, and so does one without any text.
///
/// # Errors
/// The text is not JSON or not of type `T`.
pub fn from_payload<T: DeserializeOwned>(payload: Option<&str>) -> Result<T, PayloadError> {
    let text = payload.filter(|text| !text.is_empty()).unwrap_or("null");
    serde_json::from_str(text).map_err(|e| PayloadError::reading("payload", &e))
}

/// Serialises the input of an activity: a JSON array with one positional argument, empty for `()`.
/// Core's and Durable Functions' activities reject any other form.
///
/// # Errors
/// The value has no JSON form.
pub fn to_activity_input<T: Serialize>(input: &T) -> Result<String, PayloadError> {
    let text = serde_json::to_string(input).map_err(|e| PayloadError::writing("activity input", &e))?;
    let nothing = size_of::<T>() == 0 && text == "null";
    Ok(if nothing { "[]".to_owned() } else { format!("[{text}]") })
}

/// The JSON text of an activity's argument. .NET writes an array of positional arguments, SDKs of other
/// languages the bare value; both are taken. A bare array is taken for a list of arguments.
pub fn activity_argument(input: Option<&str>) -> &str {
    let text = input.unwrap_or("null").trim();
    match text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
        Some(inner) if inner.trim().is_empty() => "null",
        Some(inner) => inner.trim(),
        None => text,
    }
}

/// Reads the input of an activity with one parameter.
///
/// # Errors
/// The text is not JSON, has more than one argument, or its argument is not of type `T`.
pub fn from_activity_input<T: DeserializeOwned>(input: Option<&str>) -> Result<T, PayloadError> {
    serde_json::from_str(activity_argument(input)).map_err(|e| PayloadError::reading("activity input", &e))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn activity_inputs_are_arrays_of_one_argument() {
        assert_eq!(to_activity_input(&"London").unwrap(), r#"["London"]"#);
        assert_eq!(to_activity_input(&()).unwrap(), "[]");
        assert_eq!(to_activity_input(&None::<i32>).unwrap(), "[null]");
        assert_eq!(to_activity_input(&[1, 2]).unwrap(), "[[1,2]]");
    }

    #[test]
    fn activity_inputs_are_read_with_and_without_the_array() {
        assert_eq!(from_activity_input::<String>(Some(r#"["a"]"#)).unwrap(), "a");
        assert_eq!(from_activity_input::<String>(Some(r#" "a" "#)).unwrap(), "a");
        assert_eq!(from_activity_input::<Vec<i32>>(Some("[[1,2]]")).unwrap(), [1, 2]);
        for nothing in [None, Some("[]"), Some("[ ]"), Some("[null]"), Some("null")] {
            from_activity_input::<()>(nothing).unwrap();
        }
        assert!(from_activity_input::<i32>(Some("[1,2]")).is_err());
        assert!(from_activity_input::<i32>(Some("[")).is_err());
    }

    #[test]
    fn null_is_no_payload() {
        assert_eq!(to_payload(&()).unwrap(), None);
        assert_eq!(to_payload("null").unwrap().as_deref(), Some("\"null\""));
        assert_eq!(from_payload::<Option<i32>>(None).unwrap(), None);
        assert_eq!(from_payload::<Option<i32>>(Some("")).unwrap(), None);
        assert_eq!(from_payload::<i32>(Some("7")).unwrap(), 7);
    }
}
