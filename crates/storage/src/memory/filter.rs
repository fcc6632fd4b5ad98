//! OData filters as the table service reads them.
//!
//! A filter is turned into postfix order and evaluated with a stack of truth values, so neither a long
//! nor a deeply nested one can exhaust the call stack.

mod parse;

use std::borrow::Cow;
use std::cmp::Ordering;

use taskhub_core::Timestamp;

use super::packed::Packed;
use super::table::ordinal;
use crate::Value;

/// What a filter can ask of a row.
pub(super) struct Columns<'a> {
    pub(super) partition_key: &'a str,
    pub(super) row_key: &'a str,
    pub(super) written_at: Timestamp,
    pub(super) columns: &'a Packed,
}

impl<'a> Columns<'a> {
    fn get(&self, name: &str) -> Option<Value> {
        match name {
            "PartitionKey" => Some(Value::from(self.partition_key)),
            "RowKey" => Some(Value::from(self.row_key)),
            "Timestamp" => Some(Value::DateTime(self.written_at)),
            _ => self.columns.get(name),
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Comparison {
    Eq,
    Ne,
    Gt,
    Ge,
    Lt,
    Le,
}

impl Comparison {
    fn holds(self, order: Ordering) -> bool {
        match self {
            Self::Eq => order.is_eq(),
            Self::Ne => order.is_ne(),
            Self::Gt => order.is_gt(),
            Self::Ge => order.is_ge(),
            Self::Lt => order.is_lt(),
            Self::Le => order.is_le(),
        }
    }

    /// The same comparison with its sides swapped.
    fn mirrored(self) -> Self {
        match self {
            Self::Gt => Self::Lt,
            Self::Ge => Self::Le,
            Self::Lt => Self::Gt,
            Self::Le => Self::Ge,
            same => same,
        }
    }
}

/// One step of the postfix form.
#[derive(Debug, Clone, PartialEq)]
enum Step {
    /// Pushes whether the property compares so with the value.
    Compare(String, Comparison, Value),
    /// Pushes whether the property is a true boolean.
    IsTrue(String),
    /// Pushes a constant.
    Constant(bool),
    /// Pops two values and pushes both-true.
    And,
    /// Pops two values and pushes either-true.
    Or,
    /// Pops a value and pushes its opposite.
    Not,
}

/// A parsed filter.
#[derive(Debug)]
pub(super) struct Filter(Vec<Step>);

impl Filter {
    /// Parses a filter; the error says what is wrong and where, but quotes no value.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        parse::parse(text).map(Self)
    }

    /// Whether a row is wanted. A comparison with a property that the row does not have, or of another
    /// type, is false, `ne` too.
    pub(super) fn matches(&self, row: &Columns<'_>) -> bool {
        let mut stack: Vec<bool> = Vec::new();
        for step in &self.0 {
            let value = match step {
                Step::Compare(name, comparison, value) => row
                    .get(name)
                    .and_then(|found| compare(&found, value))
                    .is_some_and(|order| comparison.holds(order)),
                Step::IsTrue(name) => row.get(name) == Some(Value::Bool(true)),
                Step::Constant(value) => *value,
                Step::And => {
                    let right = stack.pop().unwrap_or_default();
                    stack.pop().unwrap_or_default() && right
                }
                Step::Or => {
                    let right = stack.pop().unwrap_or_default();
                    stack.pop().unwrap_or_default() || right
                }
                Step::Not => !stack.pop().unwrap_or_default(),
            };
            stack.push(value);
        }
        stack.pop().unwrap_or_default()
    }

    /// The keys between which all wanted rows lie.
    pub(super) fn key_bounds(&self) -> KeyBounds {
        let mut stack: Vec<KeyBounds> = Vec::new();
        for step in &self.0 {
            let bounds = match step {
                Step::Compare(name, comparison, Value::String(text)) => match name.as_str() {
                    "PartitionKey" => {
                        KeyBounds { partition: Bounds::of(*comparison, text), row: Bounds::ALL }
                    }
                    "RowKey" => KeyBounds { partition: Bounds::ALL, row: Bounds::of(*comparison, text) },
                    _ => KeyBounds::default(),
                },
                Step::Compare(..) | Step::IsTrue(_) | Step::Constant(_) => KeyBounds::default(),
                Step::And => {
                    let (right, left) = (stack.pop().unwrap_or_default(), stack.pop().unwrap_or_default());
                    KeyBounds {
                        partition: left.partition.intersect(right.partition),
                        row: left.row.intersect(right.row),
                    }
                }
                Step::Or => {
                    let (right, left) = (stack.pop().unwrap_or_default(), stack.pop().unwrap_or_default());
                    KeyBounds {
                        partition: left.partition.hull(right.partition),
                        row: left.row.hull(right.row),
                    }
                }
                Step::Not => {
                    stack.pop();
                    KeyBounds::default()
                }
            };
            stack.push(bounds);
        }
        stack.pop().unwrap_or_default()
    }
}

/// Order of two values of comparable types.
fn compare(found: &Value, wanted: &Value) -> Option<Ordering> {
    let int = |value: &Value| match value {
        Value::Int32(n) => Some(i64::from(*n)),
        Value::Int64(n) => Some(*n),
        _ => None,
    };
    let double = |value: &Value| match value {
        Value::Double(n) => Some(*n),
        #[allow(clippy::cast_precision_loss, reason = "comparing with a double is inexact by nature")]
        other => int(other).map(|n| n as f64),
    };
    match (found, wanted) {
        (Value::String(a), Value::String(b)) => Some(ordinal(a, b)),
        (Value::Bool(a), Value::Bool(b)) => Some(a.cmp(b)),
        (Value::DateTime(a), Value::DateTime(b)) => Some(a.cmp(b)),
        (Value::Guid(a), Value::Guid(b)) => Some(a.cmp(b)),
        (Value::Binary(a), Value::Binary(b)) => Some(a.cmp(b)),
        (Value::Double(_), _) | (_, Value::Double(_)) => double(found)?.partial_cmp(&double(wanted)?),
        _ => Some(int(found)?.cmp(&int(wanted)?)),
    }
}

/// Inclusive bounds of a key; `None` is open.
#[derive(Debug, Clone, Default, PartialEq)]
struct Bounds {
    low: Option<String>,
    high: Option<String>,
}

impl Bounds {
    const ALL: Self = Self { low: None, high: None };

    fn of(comparison: Comparison, text: &str) -> Self {
        let bound = Some(text.to_owned());
        match comparison {
            Comparison::Eq => Self { low: bound.clone(), high: bound },
            Comparison::Gt | Comparison::Ge => Self { low: bound, high: None },
            Comparison::Lt | Comparison::Le => Self { low: None, high: bound },
            Comparison::Ne => Self::ALL,
        }
    }

    fn intersect(self, other: Self) -> Self {
        let pick = |a: Option<String>, b: Option<String>, wanted: Ordering| match (a, b) {
            (Some(a), Some(b)) => Some(if ordinal(&a, &b) == wanted { a } else { b }),
            (a, b) => a.or(b),
        };
        Self {
            low: pick(self.low, other.low, Ordering::Greater),
            high: pick(self.high, other.high, Ordering::Less),
        }
    }

    fn hull(self, other: Self) -> Self {
        let pick = |a: Option<String>, b: Option<String>, wanted: Ordering| {
            let (a, b) = (a?, b?);
            Some(if ordinal(&a, &b) == wanted { a } else { b })
        };
        Self {
            low: pick(self.low, other.low, Ordering::Less),
            high: pick(self.high, other.high, Ordering::Greater),
        }
    }
}

/// Bounds of both keys.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct KeyBounds {
    partition: Bounds,
    row: Bounds,
}

impl KeyBounds {
    /// The first keys that a wanted row may have. The bound of the row key counts in every partition, so
    /// it holds for the first one too.
    pub(super) fn first(&self) -> (Cow<'_, str>, Cow<'_, str>) {
        let Some(partition) = &self.partition.low else { return Default::default() };
        (Cow::Borrowed(partition), Cow::Borrowed(self.row.low.as_deref().unwrap_or_default()))
    }

    /// The last partition key that a wanted row may have, and the last row key in it.
    pub(super) fn last(&self) -> Option<(&str, Option<&str>)> {
        Some((self.partition.high.as_deref()?, self.row.high.as_deref()))
    }
}

#[cfg(test)]
mod tests;
