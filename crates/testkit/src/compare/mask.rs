/// What differs between two runs that do the same is replaced by its notation, which must not differ:
/// `<guid:D>` (hyphens) or `<guid:N>` (32 digits), with `-upper` or `-mixed` for other letter cases, and
/// `<guid:zero>`; `<ts:Z>`, `<ts:offset>`, `<ts:local>` for ISO 8601 times, `<ts-long:..>` with more than
/// 7 fractional digits, `<ts:min..>` and `<ts:max..>` for the years 1 and 9999; `<ticks>`; `<etag>`;
/// `<endpoint>`; `<hub>`.
#[derive(Debug)]
pub(super) struct Mask {
    hub: String,
    hub_lower: String,
    blob_endpoint: String,
}

impl Mask {
    pub(super) fn new(hub: &str, blob_endpoint: &str) -> Self {
        Self {
            hub: hub.to_owned(),
            hub_lower: hub.to_ascii_lowercase(),
            blob_endpoint: blob_endpoint.to_owned(),
        }
    }

    /// The text with placeholders.
    pub(super) fn text(&self, text: &str) -> String {
        let bytes = text.as_bytes();
        let mut masked = String::with_capacity(text.len());
        let mut at = 0;
        while at < bytes.len() {
            let inside_word = at > 0 && bytes[at - 1].is_ascii_alphanumeric();
            let rest = &text[at..];
            let found = if inside_word { None } else { self.at(rest) };
            let (length, placeholder) = match found {
                Some((length, placeholder)) => (length, placeholder),
                None => {
                    let length = rest.chars().next().map_or(1, char::len_utf8);
                    (length, rest[..length].into())
                }
            };
            masked.push_str(&placeholder);
            at += length;
        }
        masked
    }

    /// Length and placeholder of what begins here.
    fn at(&self, rest: &str) -> Option<(usize, String)> {
        self.endpoint(rest)
            .or_else(|| guid(rest))
            .or_else(|| timestamp(rest))
            .or_else(|| ticks(rest))
            .or_else(|| etag(rest))
            .or_else(|| self.hub_name(rest))
    }

    fn endpoint(&self, rest: &str) -> Option<(usize, String)> {
        if self.blob_endpoint.is_empty() {
            return None;
        }
        let after = rest.strip_prefix(&self.blob_endpoint)?;
        ends(after).then(|| (self.blob_endpoint.len(), "<endpoint>".into()))
    }

    fn hub_name(&self, rest: &str) -> Option<(usize, String)> {
        let after = rest.strip_prefix(&self.hub).or_else(|| rest.strip_prefix(&self.hub_lower))?;
        let table = ["Instances", "History", "Partitions"]
            .iter()
            .any(|table| after.strip_prefix(table).is_some_and(ends));
        (table || ends(after)).then(|| (self.hub.len(), "<hub>".into()))
    }
}

/// Whether a word ends before `after`.
fn ends(after: &str) -> bool {
    !after.starts_with(|c: char| c.is_ascii_alphanumeric())
}

fn guid(rest: &str) -> Option<(usize, String)> {
    let bytes = rest.as_bytes();
    let hyphens = bytes.get(8) == Some(&b'-');
    let length = if hyphens { 36 } else { 32 };
    let digits = rest.get(..length)?;
    let well_formed = digits.bytes().enumerate().all(|(i, b)| {
        if hyphens && matches!(i, 8 | 13 | 18 | 23) { b == b'-' } else { b.is_ascii_hexdigit() }
    });
    if !well_formed || !ends(&rest[length..]) {
        return None;
    }
    if digits.bytes().all(|b| matches!(b, b'0' | b'-')) {
        return Some((length, "<guid:zero>".into()));
    }
    let lower = digits.bytes().any(|b| b.is_ascii_lowercase());
    let case = match (lower, digits.bytes().any(|b| b.is_ascii_uppercase())) {
        (true, true) => "-mixed",
        (false, true) => "-upper",
        _ => "",
    };
    Some((length, format!("<guid:{}{case}>", if hyphens { 'D' } else { 'N' })))
}

/// `2026-11-21T03:13:08.2996257Z`, with the colons perhaps written as `%3A`.
fn timestamp(rest: &str) -> Option<(usize, String)> {
    let mut at = template(rest, "dddd-dd-ddTdd")?;
    for _ in 0..2 {
        let colon = if rest[at..].starts_with("%3A") { 3 } else { 1 };
        if colon == 1 && !rest[at..].starts_with(':') {
            return None;
        }
        at += colon;
        at += template(&rest[at..], "dd")?;
    }
    let mut digits = 0;
    if rest[at..].starts_with('.') {
        digits = rest[at + 1..].bytes().take_while(u8::is_ascii_digit).count();
        if digits > 0 {
            at += 1 + digits;
        }
    }
    let zone = if rest[at..].starts_with('Z') {
        at += 1;
        "Z"
    } else if let Some(length) =
        ["+dd:dd", "-dd:dd", "+dddd", "-dddd"].iter().find_map(|zone| template(&rest[at..], zone))
    {
        at += length;
        "offset"
    } else {
        "local"
    };
    let kind = match &rest[..5] {
        "0001-" => "ts:min",
        "9999-" => "ts:max",
        _ if digits > 7 => "ts-long",
        _ => "ts",
    };
    Some((at, format!("<{kind}:{zone}>")))
}

/// .NET ticks of our time: 18 digits from 62 to 65.
fn ticks(rest: &str) -> Option<(usize, String)> {
    let length = template(rest, "dddddddddddddddddd")?;
    let ours = rest.starts_with('6') && matches!(rest.as_bytes()[1], b'2'..=b'5');
    (ours && ends(&rest[length..])).then(|| (length, "<ticks>".into()))
}

/// `0x8DE1B2C3D4E5F60` or `W/"datetime'..'"`.
fn etag(rest: &str) -> Option<(usize, String)> {
    if let Some(after) = rest.strip_prefix("W/\"datetime'") {
        let end = after.find("'\"")?;
        return Some((rest.len() - after.len() + end + 2, "<etag>".into()));
    }
    let digits =
        rest.strip_prefix("0x")?.bytes().take_while(|b| matches!(b, b'0'..=b'9' | b'A'..=b'F')).count();
    ((13..=17).contains(&digits) && ends(&rest[2 + digits..])).then(|| (2 + digits, "<etag>".into()))
}

/// Length of `template` if `rest` begins like it: `d` stands for a digit.
fn template(rest: &str, template: &str) -> Option<usize> {
    let bytes = rest.as_bytes();
    let same = template
        .bytes()
        .enumerate()
        .all(|(i, t)| bytes.get(i).is_some_and(|b| if t == b'd' { b.is_ascii_digit() } else { *b == t }));
    same.then_some(template.len())
}

/// The placeholders in a masked text, one after the other.
pub(super) fn notations(masked: &str) -> String {
    let mut found = Vec::new();
    let mut rest = masked;
    while let Some(start) = rest.find('<') {
        rest = &rest[start..];
        match rest.find('>') {
            Some(end)
                if end > 1
                    && rest[1..end]
                        .bytes()
                        .all(|b| b.is_ascii_alphanumeric() || matches!(b, b':' | b'-')) =>
            {
                found.push(&rest[..=end]);
                rest = &rest[end + 1..];
            }
            _ => rest = &rest[1..],
        }
    }
    found.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, expected: &str) {
        assert_eq!(Mask::new("MyHub", "http://127.0.0.1:10000/acc").text(text), expected);
    }

    #[test]
    fn the_notation_survives() {
        check("{\"a\":\"d5649e7ace5a4ba68b3e6202cd7e1935\"}", "{\"a\":\"<guid:N>\"}");
        check("message-0209dae9-8e6a-475e-9428-db1fb27118eb-x", "message-<guid:D>-x");
        check("0209DAE9-8E6A-475E-9428-DB1FB27118EB", "<guid:D-upper>");
        check("00000000-0000-0000-0000-000000000000", "<guid:zero>");
        check("2026-11-21T03:13:08.2996257Z", "<ts:Z>");
        check("2026-11-21T03:13:08+01:00,2026-11-21T03:13:08", "<ts:offset>,<ts:local>");
        check("2026-11-21T03:13:08.123456789Z", "<ts-long:Z>");
        check("0001-01-01T00:00:00 9999-12-31T23:59:59.9999999Z", "<ts:min:local> <ts:max:Z>");
        check("638991234567890123", "<ticks>");
        check("\"0x8DE1B2C3D4E5F60\"", "\"<etag>\"");
        check("W/\"datetime'2026-11-21T03%3A13%3A08.29Z'\" x", "<etag> x");
    }

    #[test]
    fn the_hub_is_a_word() {
        check("MyHubHistory myhub-control-00 MyHub", "<hub>History <hub>-control-00 <hub>");
        check("MyHub2 aMyHub MyHubHistory2", "MyHub2 aMyHub MyHubHistory2");
        check("http://127.0.0.1:10000/acc/myhub-largemessages/b", "<endpoint>/<hub>-largemessages/b");
    }

    #[test]
    fn other_text_stays_as_it_is() {
        for text in ["é日本😀", "0209dae9-8e6a", "12:30", "deadbeef", "0x12", "", "2026-11-21T0"] {
            check(text, text);
        }
    }

    #[test]
    fn placeholders_are_found_among_other_angles() {
        assert_eq!(notations("a <b c> <guid:D><ts:Z> <"), "<guid:D> <ts:Z>");
    }
}
