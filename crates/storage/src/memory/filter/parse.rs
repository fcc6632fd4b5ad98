use taskhub_core::Timestamp;

use super::{Comparison, Step};
use crate::Value;

/// Longest filter, in bytes. The service's limit is that of a URL.
const MAX_FILTER_BYTES: usize = 64 * 1024;

#[derive(Debug, Clone, PartialEq)]
enum Token {
    Open,
    Close,
    And,
    Or,
    Not,
    Compare(Comparison),
    Property(String),
    Literal(Value),
}

/// What waits on the operator stack until its right side is complete.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Pending {
    Open,
    Or,
    And,
    Not,
}

/// Parses a filter into postfix order: `not` binds tighter than `and`, `and` tighter than `or`.
pub(super) fn parse(text: &str) -> Result<Vec<Step>, String> {
    if text.len() > MAX_FILTER_BYTES {
        return Err(format!("the filter is too long. bytes=`{}`", text.len()));
    }
    let mut tokens = Lexer { text, at: 0 };
    let mut steps = Vec::new();
    let mut pending: Vec<Pending> = Vec::new();
    // Whether an operand comes next, rather than `and`, `or`, `)` or the end.
    let mut wants_operand = true;
    while let Some((at, token)) = tokens.next()? {
        let misplaced = || Err(format!("the filter has something else where it is expected. at=`{at}`"));
        match token {
            Token::Open if wants_operand => pending.push(Pending::Open),
            Token::Not if wants_operand => pending.push(Pending::Not),
            Token::Property(_) | Token::Literal(_) if wants_operand => {
                steps.push(tokens.operand(token)?);
                wants_operand = false;
            }
            Token::Close if !wants_operand => {
                unwind(&mut pending, &mut steps, Pending::Or);
                if pending.pop() != Some(Pending::Open) {
                    return misplaced();
                }
            }
            Token::And if !wants_operand => {
                unwind(&mut pending, &mut steps, Pending::And);
                pending.push(Pending::And);
                wants_operand = true;
            }
            Token::Or if !wants_operand => {
                unwind(&mut pending, &mut steps, Pending::Or);
                pending.push(Pending::Or);
                wants_operand = true;
            }
            _ => return misplaced(),
        }
    }
    if wants_operand {
        return Err("the filter ends where a comparison is expected".to_owned());
    }
    unwind(&mut pending, &mut steps, Pending::Or);
    if pending.is_empty() { Ok(steps) } else { Err("the filter has an unclosed parenthesis".to_owned()) }
}

/// Moves operators that bind at least as tightly as `limit` to the output.
fn unwind(pending: &mut Vec<Pending>, steps: &mut Vec<Step>, limit: Pending) {
    while let Some(&top) = pending.last() {
        if top < limit {
            break;
        }
        pending.pop();
        steps.push(match top {
            Pending::Not => Step::Not,
            Pending::And => Step::And,
            Pending::Or | Pending::Open => Step::Or,
        });
    }
}

struct Lexer<'a> {
    text: &'a str,
    at: usize,
}

impl<'a> Lexer<'a> {
    /// A comparison, or a single boolean, that begins with `first`.
    fn operand(&mut self, first: Token) -> Result<Step, String> {
        let before = self.at;
        let Some((_, Token::Compare(comparison))) = self.next()? else {
            self.at = before;
            return match first {
                Token::Property(name) => Ok(Step::IsTrue(name)),
                Token::Literal(Value::Bool(value)) => Ok(Step::Constant(value)),
                _ => Err(format!("the filter has a value without a comparison. at=`{before}`")),
            };
        };
        let at = self.at;
        match (first, self.next()?) {
            (Token::Property(name), Some((_, Token::Literal(value)))) => {
                Ok(Step::Compare(name, comparison, value))
            }
            (Token::Literal(value), Some((_, Token::Property(name)))) => {
                Ok(Step::Compare(name, comparison.mirrored(), value))
            }
            _ => Err(format!("the filter must compare a property with a value. at=`{at}`")),
        }
    }

    fn next(&mut self) -> Result<Option<(usize, Token)>, String> {
        self.at += self.rest().len() - self.rest().trim_start().len();
        let at = self.at;
        let Some(first) = self.rest().chars().next() else { return Ok(None) };
        let token = match first {
            '(' | ')' => {
                self.at += 1;
                if first == '(' { Token::Open } else { Token::Close }
            }
            '\'' => Token::Literal(Value::String(self.quoted()?)),
            '-' | '0'..='9' => Token::Literal(self.number()?),
            c if c.is_alphabetic() || c == '_' => self.word()?,
            _ => return Err(format!("the filter has a character that means nothing. at=`{at}`")),
        };
        Ok(Some((at, token)))
    }

    fn rest(&self) -> &'a str {
        &self.text[self.at..]
    }

    /// Takes what belongs to a word or number.
    fn take(&mut self, belongs: impl Fn(char) -> bool) -> &'a str {
        let rest = self.rest();
        let end = rest.find(|c| !belongs(c)).unwrap_or(rest.len());
        self.at += end;
        &rest[..end]
    }

    /// A text in single quotes, in which a doubled quote is one.
    fn quoted(&mut self) -> Result<String, String> {
        let start = self.at;
        let mut text = String::new();
        self.at += 1;
        loop {
            let rest = self.rest();
            let Some(end) = rest.find('\'') else {
                return Err(format!("the filter has an unclosed quote. at=`{start}`"));
            };
            text.push_str(&rest[..end]);
            self.at += end + 1;
            if !self.rest().starts_with('\'') {
                return Ok(text);
            }
            text.push('\'');
            self.at += 1;
        }
    }

    fn number(&mut self) -> Result<Value, String> {
        let start = self.at;
        let text = self.take(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '+'));
        let value = if let Some(digits) = text.strip_suffix(['L', 'l']) {
            digits.parse().ok().map(Value::Int64)
        } else if text.contains(['.', 'e', 'E']) {
            text.parse().ok().map(Value::Double)
        } else {
            let small = text.parse().ok().map(Value::Int32);
            small.or_else(|| text.parse().ok().map(Value::Int64))
        };
        value.ok_or_else(|| format!("the filter has a malformed number. at=`{start}`"))
    }

    fn word(&mut self) -> Result<Token, String> {
        let start = self.at;
        let word = self.take(|c| c.is_alphanumeric() || c == '_');
        if self.rest().starts_with('\'') {
            let text = self.quoted()?;
            let value = match word {
                "datetime" => Timestamp::parse(&text).ok().map(Value::DateTime),
                "guid" => uuid::Uuid::parse_str(&text).ok().map(Value::Guid),
                "X" | "binary" => from_hex(&text).map(Value::Binary),
                _ => None,
            };
            return value
                .map(Token::Literal)
                .ok_or_else(|| format!("the filter has a malformed value. at=`{start}`"));
        }
        Ok(match word {
            "and" => Token::And,
            "or" => Token::Or,
            "not" => Token::Not,
            "eq" => Token::Compare(Comparison::Eq),
            "ne" => Token::Compare(Comparison::Ne),
            "gt" => Token::Compare(Comparison::Gt),
            "ge" => Token::Compare(Comparison::Ge),
            "lt" => Token::Compare(Comparison::Lt),
            "le" => Token::Compare(Comparison::Le),
            "true" => Token::Literal(Value::Bool(true)),
            "false" => Token::Literal(Value::Bool(false)),
            name => Token::Property(name.to_owned()),
        })
    }
}

fn from_hex(text: &str) -> Option<Vec<u8>> {
    if !text.len().is_multiple_of(2) || !text.bytes().all(|b| b.is_ascii_hexdigit()) {
        return None;
    }
    (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).ok()).collect()
}
