use std::io::{Read as _, Write as _};

use flate2::{Compression, GzBuilder, read::MultiGzDecoder};
use taskhub_core::EventKind;
use taskhub_storage::fits_queue_message;

use super::envelope::{encode_wrapper, envelope_json};
use super::{DecodeError, Decoded, MessageData, MessageEncoding, decode};

/// Largest message kept inline, in bytes of UTF-8 JSON before queue encoding; above it, a blob.
/// Source: Azure/durabletask, `MessageManager.MaxStorageQueuePayloadSizeInBytes`.
pub const MAX_INLINE_MESSAGE_BYTES: usize = 45 * 1024;

/// Largest blob that is read, in bytes after decompression.
pub const MAX_BLOB_TEXT_BYTES: u64 = 256 * 1024 * 1024;

/// Operating system in the gzip header, the one .NET writes (Unix).
const GZIP_OS_UNIX: u8 = 3;

/// A message ready to be sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Packed {
    /// It fits into the queue.
    Inline {
        /// Text of the queue message.
        text: String,
    },
    /// Upload the blob to the hub's large-message container first, as one Put Blob: .NET's several steps
    /// leave a moment in which the blob is empty.
    Large {
        /// Text of the queue message, a wrapper.
        text: String,
        /// Name of the blob; to be kept as the message's `compressed_blob_name`.
        blob_name: String,
        /// Content of the blob.
        blob: Vec<u8>,
    },
}

/// Decides whether a message fits into the queue, and encodes it.
///
/// Differs: .NET measures the JSON only, and cannot send a message whose many `<`, `>` and `&` make it too
/// large as XML; its sender tries for ever.
pub fn pack(message: &MessageData, encoding: MessageEncoding) -> Packed {
    let json = envelope_json(message);
    if json.len() <= MAX_INLINE_MESSAGE_BYTES
        && (encoding == MessageEncoding::Base64 || fits_queue_message(&json))
    {
        return Packed::Inline { text: encoding.apply(json) };
    }
    let blob_name = message_blob_name(message);
    Packed::Large { text: encode_wrapper(&blob_name, encoding), blob_name, blob: compress(&json) }
}

/// Name of the blob of a large message: `{instance}/message-{activity id}-{event type}.json.gz`, with the
/// raw id of the addressee. Source: Azure/durabletask, `MessageManager.GetNewLargeMessageBlobName`.
pub fn message_blob_name(message: &MessageData) -> String {
    format!(
        "{}/message-{}-{}.json.gz",
        message.task_message.target.instance_id,
        message.activity_id.simple(),
        message.task_message.event.name()
    )
}

/// Content of a blob with this text: gzip of its UTF-8.
pub fn compress(text: &str) -> Vec<u8> {
    let mut encoder =
        GzBuilder::new().operating_system(GZIP_OS_UNIX).write(Vec::new(), Compression::default());
    encoder.write_all(text.as_bytes()).and_then(|()| encoder.finish()).expect("writing to a Vec cannot fail")
}

/// Text of a blob; a byte order mark at its beginning is dropped.
///
/// # Errors
/// Content that is not complete gzip of UTF-8, or more than [`MAX_BLOB_TEXT_BYTES`] of it.
pub fn decompress(content: &[u8]) -> Result<String, DecodeError> {
    decompress_up_to(content, MAX_BLOB_TEXT_BYTES)
}

fn decompress_up_to(content: &[u8], limit: u64) -> Result<String, DecodeError> {
    let mut bytes = Vec::new();
    let mut decoder = MultiGzDecoder::new(content).take(limit + 1);
    decoder.read_to_end(&mut bytes).map_err(|_| DecodeError::Gzip)?;
    if bytes.len() as u64 > limit {
        return Err(DecodeError::TooLarge { limit });
    }
    let mut text = String::from_utf8(bytes).map_err(|_| DecodeError::NotUtf8)?;
    if text.starts_with('\u{feff}') {
        text.drain(..'\u{feff}'.len_utf8());
    }
    Ok(text)
}

/// URL of a blob: each segment of its name percent-encoded, all but letters, digits and `-_.~`.
pub fn blob_url(container_url: &str, blob_name: &str) -> String {
    let mut url = container_url.trim_end_matches('/').to_owned();
    url.push('/');
    for byte in blob_name.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' | b'/' => {
                url.push(char::from(byte));
            }
            other => {
                const HEX: &[u8; 16] = b"0123456789ABCDEF";
                url.push('%');
                url.push(char::from(HEX[usize::from(other >> 4)]));
                url.push(char::from(HEX[usize::from(other & 15)]));
            }
        }
    }
    url
}

/// Name of the blob that `text` refers to, if it is the URL of a blob in this container. Escapes are
/// undone: provider 1.x leaves characters as they are that 2.x escapes.
///
/// Differs: .NET takes every well-formed URI for a reference, follows it anywhere in the account and
/// throws on others (an output such as `error:timeout`); anything else than a blob of the hub's own
/// container is a plain text here.
pub fn blob_name_of(container_url: &str, text: &str) -> Option<String> {
    let path = text.strip_prefix(container_url.trim_end_matches('/'))?.strip_prefix('/')?;
    if path.contains(['?', '#']) {
        return None;
    }
    let name = percent_decoded(path)?;
    (!name.is_empty() && is_plain(&name)).then_some(name)
}

fn percent_decoded(path: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(path.len());
    let mut rest = path.as_bytes();
    while let Some((&byte, tail)) = rest.split_first() {
        rest = tail;
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let digits = std::str::from_utf8(rest.get(..2)?).ok()?;
        if !digits.bytes().all(|b| b.is_ascii_hexdigit()) {
            return None;
        }
        bytes.push(u8::from_str_radix(digits, 16).ok()?);
        rest = &rest[2..];
    }
    String::from_utf8(bytes).ok()
}

/// Whether a blob name has no dot segments, with which a URL would lead out of the container.
pub(crate) fn is_plain(blob_name: &str) -> bool {
    !blob_name.split(['/', '\\']).any(|segment| matches!(segment, "." | ".."))
}

/// Whether a blob referred to by the `Input` of an Instances row holds the start message, and so its
/// event's input is meant, instead of the input itself.
pub fn is_start_message_blob(blob_name: &str) -> bool {
    blob_name.ends_with("ExecutionStarted.json.gz")
}

/// The input in the text of a blob for which [`is_start_message_blob`] holds.
///
/// # Errors
/// Text that is not the message that starts an execution.
pub fn start_message_input(text: &str) -> Result<Option<String>, DecodeError> {
    match decode(text)? {
        Decoded::Message(message) => match message.task_message.event.kind {
            EventKind::ExecutionStarted(started) => Ok(started.input),
            other => Err(DecodeError::UnknownEventType { event_type: other.name().to_owned() }),
        },
        Decoded::Wrapper { .. } => Err(DecodeError::Missing { member: "TaskMessage" }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONTAINER: &str = "http://127.0.0.1:10000/devstoreaccount1/myhub-largemessages";

    #[test]
    fn text_survives_compression() {
        for text in ["", "\"é😀\"", &"x".repeat(100_000)] {
            assert_eq!(decompress(&compress(text)).as_deref(), Ok(text));
        }
        assert_eq!(compress("x")[..10], [0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 3]);
        assert_eq!(decompress(&compress("\u{feff}{}")).as_deref(), Ok("{}"));
    }

    #[test]
    fn incomplete_and_oversized_blobs_are_errors() {
        let blob = compress("some text that is long enough to be cut");
        for cut in 0..blob.len() {
            assert_eq!(decompress(&blob[..cut]), Err(DecodeError::Gzip), "{cut}");
        }
        assert_eq!(decompress(b"plain text"), Err(DecodeError::Gzip));
        assert_eq!(decompress_up_to(&compress("12345"), 5).as_deref(), Ok("12345"));
        assert_eq!(decompress_up_to(&compress("123456"), 5), Err(DecodeError::TooLarge { limit: 5 }));
    }

    #[test]
    fn blob_urls_are_escaped_by_segment_and_lead_back_to_the_name() {
        for (name, path) in [
            ("@#$%!", "%40%23%24%25%21"),
            ("foo/bar/b@z.tar.gz", "foo/bar/b%40z.tar.gz"),
            ("é 日/😀", "%C3%A9%20%E6%97%A5/%F0%9F%98%80"),
            ("a^0b/history--Input-1A2B3C4D-Input.json.gz", "a%5E0b/history--Input-1A2B3C4D-Input.json.gz"),
        ] {
            let url = format!("{CONTAINER}/{path}");
            assert_eq!(blob_url(CONTAINER, name), url);
            assert_eq!(blob_name_of(CONTAINER, &url).as_deref(), Some(name));
        }
        let old = format!("{CONTAINER}/@a!*'();:&=+$,[]~%20%23/message-1.json.gz");
        assert_eq!(blob_name_of(CONTAINER, &old).as_deref(), Some("@a!*'();:&=+$,[]~ #/message-1.json.gz"));
    }

    #[test]
    fn other_texts_are_no_references() {
        for text in [
            "",
            "error:timeout",
            "\"done\"",
            CONTAINER,
            &format!("{CONTAINER}/"),
            &format!("{CONTAINER}2/a"),
            &format!("{CONTAINER}/a?sig=x"),
            &format!("{CONTAINER}/../other/a"),
            &format!("{CONTAINER}/%2e%2e/other/a"),
            &format!("{CONTAINER}/a%5C..%5Cb"),
            &format!("{CONTAINER}/%ff"),
            &format!("{CONTAINER}/%+1"),
            &format!("{CONTAINER}/%4"),
            "http://127.0.0.1:10000/devstoreaccount1/other-largemessages/a",
        ] {
            assert_eq!(blob_name_of(CONTAINER, text), None, "{text}");
        }
    }
}
