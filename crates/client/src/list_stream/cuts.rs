//! Where a range of keys may be cut: guesses from the keys of one page.

use std::cmp::Ordering;
use std::collections::BTreeSet;

/// Where ids commonly part, for a range of which no key is known yet.
const FIRST_GUESSES: [&str; 16] =
    ["8", "4", "c", "2", "6", "a", "e", "1", "b", "d", "f", "A", "P", "h", "n", "t"];
/// Where words part.
const FIRST_LETTERS: [&str; 4] = ["h", "n", "t", "P"];
/// What a step is of the last page, so that a part as dense as that page comes in one answer.
const STEP: f64 = 0.9;
/// Places of a key that count behind the first one in which the keys of a page differ: as many as one can
/// calculate with.
const MAX_PLACES: usize = 12;
const MAX_VALUES: f64 = 1e14;
/// Longest beginning of a key that is looked at, in characters.
const MAX_COMMON: usize = 64;

/// Order of keys: by UTF-16 units.
fn ordinal(a: &str, b: &str) -> Ordering {
    a.encode_utf16().cmp(b.encode_utf16())
}

/// Whether a key comes before another one.
pub(super) fn less(a: &str, b: &str) -> bool {
    ordinal(a, b).is_lt()
}

/// Keys as numbers, by what one page shows of them: which characters stand in which place.
#[derive(Debug)]
pub(super) struct Scale {
    /// What all keys of the page begin with, and stays as it is.
    head: Vec<char>,
    /// Ranks of the common characters that are counted on when the rest overflows.
    common: Vec<usize>,
    /// Characters of the places behind, and of the common ones (the first).
    alphabets: Vec<Vec<char>>,
    /// The last key.
    at: f64,
    /// From one page to the next.
    step: f64,
}

impl Scale {
    /// From the keys of a page, and the one before it if that is known. `None` if they show no direction.
    pub(super) fn of(before: Option<&str>, keys: &[String]) -> Option<Self> {
        let last: Vec<char> = keys.last()?.chars().collect();
        let first: Vec<char> = before.or(keys.first().map(String::as_str))?.chars().collect();
        let differs = first.iter().zip(&last).take_while(|(a, b)| a == b).count();
        let mut alphabets: Vec<Vec<char>> = Vec::new();
        let mut values = 1.0;
        for place in differs..differs + MAX_PLACES {
            let seen: BTreeSet<char> = keys.iter().filter_map(|key| key.chars().nth(place)).collect();
            let alphabet = completed(seen);
            values *= alphabet.len() as f64;
            if alphabet.is_empty() || values > MAX_VALUES {
                break;
            }
            alphabets.push(alphabet);
        }
        let counted = alphabets.first()?;
        let rank = |c: &char| counted.iter().position(|a| a == c);
        let common: Vec<usize> = last[..differs].iter().rev().map_while(rank).collect();
        let head = last[..differs - common.len()].to_vec();
        let mut scale =
            Self { head, common: common.into_iter().rev().collect(), alphabets, at: 0.0, step: 0.0 };
        scale.at = scale.value(&last[differs..]);
        scale.step = (scale.at - scale.value(&first[differs..])) * STEP;
        (scale.step >= 1.0).then_some(scale)
    }

    fn value(&self, rest: &[char]) -> f64 {
        let mut rest = rest.iter();
        self.alphabets.iter().fold(0.0, |sum, alphabet| {
            let rank = rest.next().map_or(0, |c| alphabet.iter().filter(|a| *a < c).count());
            sum * alphabet.len() as f64 + rank as f64
        })
    }

    /// The key so many pages behind the last one; `None` beyond all keys that are alike.
    fn ahead(&self, pages: u32) -> Option<String> {
        let mut rest = (self.at + self.step * f64::from(pages)).floor();
        let mut reversed = Vec::new();
        for alphabet in self.alphabets.iter().rev() {
            let size = alphabet.len() as f64;
            reversed.push(*alphabet.get((rest % size) as usize)?);
            rest = (rest / size).floor();
        }
        let counted = self.alphabets.first()?;
        for rank in self.common.iter().rev() {
            let sum = rest + *rank as f64;
            let size = counted.len() as f64;
            reversed.push(*counted.get((sum % size) as usize)?);
            rest = (sum / size).floor();
        }
        (rest < 1.0).then(|| self.head.iter().copied().chain(reversed.into_iter().rev()).collect())
    }

    /// Behind all keys that are alike.
    fn end(&self) -> Option<String> {
        let behind = char::from_u32(u32::from(*self.alphabets.first()?.last()?) + 1)?;
        Some(self.head.iter().chain([&behind]).collect())
    }
}

/// The characters that may be expected where some have been seen.
fn completed(mut seen: BTreeSet<char>) -> Vec<char> {
    let has = |test: fn(&char) -> bool| seen.iter().any(test);
    let digits = has(char::is_ascii_digit);
    let lower = has(char::is_ascii_lowercase).then(|| {
        let is_hex = digits && !has(|c| c.is_ascii_lowercase() && !c.is_ascii_hexdigit());
        'a'..=if is_hex { 'f' } else { 'z' }
    });
    let upper = has(char::is_ascii_uppercase).then(|| {
        let is_hex = digits && !has(|c| c.is_ascii_uppercase() && !c.is_ascii_hexdigit());
        'A'..=if is_hex { 'F' } else { 'Z' }
    });
    seen.extend(digits.then_some('0'..='9').into_iter().chain(lower).chain(upper).flatten());
    seen.into_iter().collect()
}

/// Where to cut a range, best first: a page, two, three ... behind the last key, where those that are alike
/// end, and where other numbers in their common beginning begin.
pub(super) fn guesses(
    last: Option<&str>,
    scale: Option<&Scale>,
    beginnings: bool,
    wanted: usize,
) -> Vec<String> {
    let Some(last) = last else {
        return FIRST_GUESSES.iter().take(wanted).map(|guess| (*guess).to_owned()).collect();
    };
    let mut near = scale.into_iter().flat_map(|scale| (1..=wanted as u32).map_while(|n| scale.ahead(n)));
    let mut far = Vec::new();
    if beginnings {
        far.extend(scale.and_then(Scale::end));
        far.extend(beginnings_after(last, scale.map_or(MAX_COMMON, |scale| scale.head.len())));
        far.extend(FIRST_LETTERS.map(str::to_owned));
    }
    let mut far = far.into_iter();
    let mut guesses = Vec::new();
    while guesses.len() < wanted {
        let before = guesses.len();
        guesses.extend(near.by_ref().take(1).chain(far.by_ref().take(2)));
        if guesses.len() == before {
            break;
        }
    }
    guesses.truncate(wanted);
    guesses
}

/// Texts behind all that share a beginning with the key: for each digit of its beginning the next one, for the
/// last such place all others too, and behind the first character.
fn beginnings_after(key: &str, places: usize) -> Vec<String> {
    let chars: Vec<char> = key.chars().take(places.min(MAX_COMMON)).collect();
    let text = |at: usize, last: char| chars[..at].iter().chain([&last]).collect::<String>();
    let mut places = (0..chars.len()).rev().filter(|at| chars[*at].is_ascii_digit());
    let mut guesses = Vec::new();
    if let Some(at) = places.next() {
        guesses.extend((chars[at]..='9').skip(1).map(|digit| text(at, digit)));
    }
    guesses.extend(places.filter(|at| chars[*at] != '9').map(|at| text(at, (chars[at] as u8 + 1).into())));
    guesses
        .extend(chars.first().and_then(|first| char::from_u32(u32::from(*first) + 1)).map(|c| c.to_string()));
    guesses
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ahead(before: Option<&str>, keys: &[&str], pages: u32) -> Option<String> {
        let keys: Vec<_> = keys.iter().map(|key| (*key).to_owned()).collect();
        Scale::of(before, &keys).and_then(|scale| scale.ahead(pages))
    }

    #[test]
    fn pages_ahead_are_counted_in_the_characters_that_have_been_seen() {
        let check = |keys: &[&str], pages, expected| {
            assert_eq!(ahead(None, keys, pages).as_deref(), expected, "{keys:?}");
        };
        check(&["order-000000", "order-000999"], 1, Some("order-001898"));
        check(&["order-000000", "order-000999"], 11, Some("order-010889"));
        check(&["order-995000", "order-995999"], 5, None);
        check(&["0010", "0fff"], 1, Some("1e56"));
        check(&["a-00", "a-0z", "a-10", "a-1z"], 1, Some("a-3q"));
        check(&["x"], 1, None);
        check(&["x", "x"], 1, None);
        check(&[], 1, None);
        assert_eq!(ahead(Some("n-19"), &["n-29"], 2).as_deref(), Some("n-47"));
        for keys in [["é", "ü"], ["", "a"], ["日", "本"], ["a", "aaaaaaaaaaaaaaaaaaaaaaaaaaaa"]] {
            for pages in [1, 2, 1000, u32::MAX] {
                let guess = ahead(None, &keys, pages);
                assert!(guess.is_none_or(|guess| less(keys[1], &guess)), "{keys:?}");
            }
        }
    }

    #[test]
    fn guesses_leave_the_common_beginning_too() {
        let keys: Vec<_> = (0..100).map(|n| format!("t-01-{n:04}")).collect();
        let scale = Scale::of(None, &keys);
        let found = guesses(Some("t-01-0099"), scale.as_ref(), true, 9);
        let expected = ["t-01-0188", "t-01-:", "t-02", "t-01-0277", "t-03", "t-04", "t-01-0366", "t-05"];
        assert_eq!(found[..8], expected);
        assert_eq!(guesses(Some("t-01-0099"), scale.as_ref(), false, 3)[2], "t-01-0366");
        assert_eq!(guesses(None, None, true, 3), ["8", "4", "c"]);
        assert_eq!(guesses(Some("x"), None, false, 3), Vec::<String>::new());
    }
}
