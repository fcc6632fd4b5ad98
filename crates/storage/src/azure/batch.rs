//! The body of a group transaction, sent and received.

use super::policy::is_code;

/// What made a group transaction fail.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct FailedPart {
    pub(super) status: u16,
    pub(super) code: String,
    /// Zero-based index of the operation, if the service says it.
    pub(super) index: Option<usize>,
}

/// Puts right what the package sends: lines end with CR LF, the outer boundary is closed, and no inserted
/// row is sent back.
pub(super) fn rewrite(body: &str) -> Option<String> {
    let boundary = body.lines().next()?;
    let mut rewritten = String::with_capacity(body.len() + body.len() / 8);
    for line in body.lines() {
        rewritten.push_str(line);
        if line == boundary && !rewritten.trim_end_matches(line).is_empty() {
            rewritten.push_str("--");
        }
        rewritten.push_str("\r\n");
        if line.starts_with("POST ") && line.ends_with(" HTTP/1.1") {
            rewritten.push_str("Prefer: return-no-content\r\n");
        }
    }
    Some(rewritten)
}

/// The one failed part of an answer.
pub(super) fn failed_part(body: &str) -> Option<FailedPart> {
    let (status, rest) = body.lines().enumerate().find_map(|(number, line)| {
        let status: u16 = line.strip_prefix("HTTP/1.1 ")?.split(' ').next()?.parse().ok()?;
        (status >= 400).then_some((status, number))
    })?;
    let json = body.lines().skip(rest).find(|line| line.starts_with('{')).unwrap_or_default();
    let error: serde_json::Value = serde_json::from_str(json).unwrap_or_default();
    let error = error.get("odata.error");
    let code = error.and_then(|error| error.get("code")?.as_str()).filter(|code| is_code(code));
    let message = error.and_then(|error| error.get("message")?.get("value")?.as_str());
    let index = message.and_then(|text| text.split_once(':')?.0.parse().ok());
    // Some versions put the index before the code instead.
    Some(FailedPart { status, code: code.unwrap_or_default().to_owned(), index })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_body_is_sent_as_the_standard_wants_it() {
        let sent = "--batch_1\nContent-Type: multipart/mixed; boundary=changeset_2\n\n--changeset_2\n\
            Content-Type: application/http\n\nPOST http://h/T HTTP/1.1\naccept: x\n\n{\"a\":\"--batch_1\"}\n\
            --changeset_2\nContent-Type: application/http\n\nPUT http://h/T HTTP/1.1\n\n{}\n\
            --changeset_2--\n--batch_1\n";
        let rewritten = rewrite(sent).unwrap();
        assert!(rewritten.starts_with("--batch_1\r\nContent-Type"));
        assert!(rewritten.ends_with("--changeset_2--\r\n--batch_1--\r\n"));
        assert!(rewritten.contains("POST http://h/T HTTP/1.1\r\nPrefer: return-no-content\r\naccept: x\r\n"));
        assert!(rewritten.contains("PUT http://h/T HTTP/1.1\r\n\r\n{}"));
        assert_eq!(rewritten.matches("--batch_1--").count(), 1);
        assert_eq!(rewritten.matches('\n').count(), rewritten.matches("\r\n").count());
    }

    #[test]
    fn the_failed_part_is_found() {
        let answer = "--batchresponse_1\r\nContent-Type: multipart/mixed\r\n\r\n--changesetresponse_2\r\n\
            Content-Type: application/http\r\n\r\nHTTP/1.1 409 Conflict\r\nX: y\r\n\r\n\
            {\"odata.error\":{\"code\":\"EntityAlreadyExists\",\"message\":{\"lang\":\"en-US\",\"value\":\"7:It exists.\\nRequestId:x\"}}}\r\n\
            --changesetresponse_2--\r\n";
        let expected = FailedPart { status: 409, code: "EntityAlreadyExists".to_owned(), index: Some(7) };
        assert_eq!(failed_part(answer), Some(expected));
        assert_eq!(failed_part("HTTP/1.1 204 No Content\r\n"), None);
        assert_eq!(
            failed_part("HTTP/1.1 500 Oops"),
            Some(FailedPart { status: 500, code: String::new(), index: None })
        );
    }
}
