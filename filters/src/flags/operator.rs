//! The operators of targeting rules, JSONLogic's and flagd's, as JavaScript would have them.

use std::borrow::Cow;
use std::cmp::Ordering;

use serde_json::{Number, Value};

use super::logic::{Rule, Scope, TooLong};
use super::{fractional, sem_ver};
use crate::policy::unknown;

/// One operator, or the list of all with their names.
macro_rules! operators {
    ($($variant:ident $($name:literal)+),* $(,)?) => {
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub(super) enum Operator { $($variant),* }

        impl Operator {
            const NAMES: &'static [(&'static str, Self)] = &[$($(($name, Self::$variant)),+),*];
        }
    };
}

operators! {
    Var "var", Missing "missing", MissingSome "missing_some",
    If "if" "?:", And "and", Or "or", Not "!", Truth "!!",
    Equal "==", StrictEqual "===", NotEqual "!=", StrictNotEqual "!==",
    Less "<", LessOrEqual "<=", More ">", MoreOrEqual ">=",
    Max "max", Min "min", Plus "+", Minus "-", Times "*", Divide "/", Remainder "%",
    Map "map", Filter "filter", Reduce "reduce", All "all", None "none", Some "some", Merge "merge",
    In "in", Concatenate "cat", Substring "substr", Log "log",
    StartsWith "starts_with", EndsWith "ends_with", Fractional "fractional", SemVer "sem_ver",
}

static NULL: Value = Value::Null;

type Said<'s> = Result<Cow<'s, Value>, TooLong>;

impl Operator {
    pub(super) fn named(name: &str) -> Result<Self, String> {
        let known = Self::NAMES.iter().find(|(known, _)| *known == name);
        known
            .map(|(_, operator)| *operator)
            .ok_or_else(|| unknown("operator", name, Self::NAMES.iter().map(|(name, _)| *name)))
    }

    pub(super) fn call<'s>(self, arguments: &'s [Rule], scope: Scope<'s>) -> Said<'s> {
        match self {
            Self::If => choose(arguments, scope),
            Self::And => first(arguments, scope, |value| !truthy(value)),
            Self::Or => first(arguments, scope, truthy),
            Self::Map | Self::Filter | Self::All | Self::None | Self::Some => {
                self.over_elements(arguments, scope)
            }
            Self::Reduce => reduce(arguments, scope),
            _ => {
                let mut values = Vec::with_capacity(arguments.len());
                for argument in arguments {
                    let value = argument.eval(scope)?;
                    // What comes of it is about as large as that, and takes about as long.
                    scope.charge(&value)?;
                    values.push(value);
                }
                Ok(self.of_values(&values, scope))
            }
        }
    }

    /// Of operators that want all of their arguments.
    fn of_values<'s>(self, values: &[Cow<'s, Value>], scope: Scope<'s>) -> Cow<'s, Value> {
        let value = |position: usize| values.get(position).map_or(&NULL, |value| &**value);
        let (left, right) = (value(0), value(1));
        let said = match self {
            Self::Var => return var(values, scope.data),
            Self::Missing => Value::Array(missing(&listed(values), scope.data)),
            Self::MissingSome => {
                let wanted = match right {
                    Value::Array(names) => names.clone(),
                    other => vec![other.clone()],
                };
                let missing = missing(&wanted, scope.data);
                let there = wanted.len().saturating_sub(missing.len());
                let enough = number(left).is_some_and(|least| there as f64 >= least);
                Value::Array(if enough { Vec::new() } else { missing })
            }
            Self::Not => Value::Bool(!truthy(left)),
            Self::Truth => Value::Bool(truthy(left)),
            Self::Equal => Value::Bool(loosely_equal(left, right)),
            Self::NotEqual => Value::Bool(!loosely_equal(left, right)),
            Self::StrictEqual => Value::Bool(equal(left, right)),
            Self::StrictNotEqual => Value::Bool(!equal(left, right)),
            Self::Less | Self::LessOrEqual | Self::More | Self::MoreOrEqual => {
                let pairs = values.windows(2).all(|pair| match pair {
                    [left, right] => self.orders(left, right),
                    _ => false,
                });
                Value::Bool(values.len() >= 2 && pairs)
            }
            Self::Max => extreme(values, f64::max),
            Self::Min => extreme(values, f64::min),
            Self::Plus => sum(values.iter().map(|value| parsed(value)), 0.0, |sum, next| sum + next),
            Self::Times => sum(values.iter().map(|value| parsed(value)), 1.0, |product, next| product * next),
            Self::Minus if values.len() == 1 => numeric(number(left).map(|left| -left)),
            Self::Minus => numeric(both(left, right).map(|(left, right)| left - right)),
            Self::Divide => numeric(both(left, right).map(|(left, right)| left / right)),
            Self::Remainder => numeric(both(left, right).map(|(left, right)| left % right)),
            Self::Merge => Value::Array(values.iter().flat_map(|value| items(value)).collect()),
            Self::In => Value::Bool(match right {
                Value::String(text) => matches!(left, Value::String(part) if text.contains(part.as_str())),
                Value::Array(items) => items.iter().any(|item| equal(item, left)),
                Value::Null | Value::Bool(_) | Value::Number(_) | Value::Object(_) => false,
            }),
            Self::Concatenate => Value::String(values.iter().map(|value| text(value)).collect()),
            Self::Substring => Value::String(substring(
                &text(left),
                number(right),
                values.get(2).and_then(|end| number(end)),
            )),
            Self::Log => left.clone(),
            Self::StartsWith => texts(left, right, |text, part| text.starts_with(part)),
            Self::EndsWith => texts(left, right, |text, part| text.ends_with(part)),
            Self::Fractional => fractional::choose(values, scope.root),
            Self::SemVer => sem_ver::compare(left, right, value(2)),
            Self::If
            | Self::And
            | Self::Or
            | Self::Map
            | Self::Filter
            | Self::All
            | Self::None
            | Self::Some
            | Self::Reduce => Value::Null,
        };
        Cow::Owned(said)
    }

    fn orders(self, left: &Value, right: &Value) -> bool {
        let ordering = match (left, right) {
            (Value::String(left), Value::String(right)) => Some(left.cmp(right)),
            (_, _) => both(left, right).and_then(|(left, right)| left.partial_cmp(&right)),
        };
        match self {
            Self::Less => ordering == Some(Ordering::Less),
            Self::LessOrEqual => matches!(ordering, Some(Ordering::Less | Ordering::Equal)),
            Self::More => ordering == Some(Ordering::Greater),
            Self::MoreOrEqual => matches!(ordering, Some(Ordering::Greater | Ordering::Equal)),
            _ => false,
        }
    }

    fn over_elements<'s>(self, arguments: &'s [Rule], scope: Scope<'s>) -> Said<'s> {
        let list = argument(arguments, 0, scope)?;
        let elements = elements(&list);
        let Some(rule) = arguments.get(1) else { return Ok(Cow::Borrowed(&NULL)) };
        let mut kept = Vec::new();
        let mut holding = 0;
        for element in elements {
            match self {
                Self::Map => kept.push(scope.owned(rule.eval(scope.of(element))?)?),
                _ if !rule.holds(scope.of(element))? => {}
                Self::Filter => kept.push(scope.owned(Cow::Borrowed(element))?),
                _ => holding += 1,
            }
        }
        Ok(Cow::Owned(match self {
            Self::All => Value::Bool(!elements.is_empty() && holding == elements.len()),
            Self::None => Value::Bool(holding == 0),
            Self::Some => Value::Bool(holding > 0),
            _ => Value::Array(kept),
        }))
    }
}

fn argument<'s>(arguments: &'s [Rule], position: usize, scope: Scope<'s>) -> Said<'s> {
    arguments.get(position).map_or(Ok(Cow::Borrowed(&NULL)), |rule| rule.eval(scope))
}

/// `if`: condition, value, condition, value, otherwise.
fn choose<'s>(arguments: &'s [Rule], scope: Scope<'s>) -> Said<'s> {
    for pair in arguments.chunks(2) {
        match pair {
            [condition, value] if condition.holds(scope)? => return value.eval(scope),
            [_, _] => {}
            [otherwise] => return otherwise.eval(scope),
            _ => {}
        }
    }
    Ok(Cow::Borrowed(&NULL))
}

/// The first value that ends the row, or the last.
fn first<'s>(arguments: &'s [Rule], scope: Scope<'s>, ends: fn(&Value) -> bool) -> Said<'s> {
    let mut last = Cow::Borrowed(&NULL);
    for argument in arguments {
        last = argument.eval(scope)?;
        if ends(&last) {
            break;
        }
    }
    Ok(last)
}

fn reduce<'s>(arguments: &'s [Rule], scope: Scope<'s>) -> Said<'s> {
    let list = argument(arguments, 0, scope)?;
    let mut accumulator = scope.owned(argument(arguments, 2, scope)?)?;
    let Some(rule) = arguments.get(1) else { return Ok(Cow::Owned(accumulator)) };
    for current in elements(&list) {
        let current = scope.owned(Cow::Borrowed(current))?;
        let data = [("current".to_owned(), current), ("accumulator".to_owned(), accumulator)];
        let data = Value::Object(data.into_iter().collect());
        accumulator = scope.owned(rule.eval(scope.of(&data))?)?;
    }
    Ok(Cow::Owned(accumulator))
}

/// `["a.b", otherwise]`; an empty name is everything.
fn var<'s>(values: &[Cow<'s, Value>], data: &'s Value) -> Cow<'s, Value> {
    let path = match values.first().map(|value| &**value) {
        None | Some(Value::Null) => return Cow::Borrowed(data),
        Some(path) => text(path),
    };
    match look(&path, data) {
        Some(found) if !found.is_null() => Cow::Borrowed(found),
        Some(_) | None => values.get(1).cloned().unwrap_or(Cow::Borrowed(&NULL)),
    }
}

fn look<'d>(path: &str, data: &'d Value) -> Option<&'d Value> {
    if path.is_empty() {
        return Some(data);
    }
    path.split('.').try_fold(data, |at, name| match at {
        Value::Object(fields) => fields.get(name),
        Value::Array(items) => items.get(name.parse::<usize>().ok()?),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => None,
    })
}

fn missing(names: &[Value], data: &Value) -> Vec<Value> {
    let is_missing =
        |name: &&Value| look(&text(name), data).is_none_or(|found| found.is_null() || found == "");
    names.iter().filter(is_missing).cloned().collect()
}

/// The arguments of `missing`: names, or one list of them.
fn listed(values: &[Cow<'_, Value>]) -> Vec<Value> {
    match values.first().map(|value| &**value) {
        Some(Value::Array(names)) => names.clone(),
        _ => values.iter().map(|value| value.clone().into_owned()).collect(),
    }
}

fn elements(value: &Value) -> &[Value] {
    match value {
        Value::Array(elements) => elements,
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Object(_) => &[],
    }
}

fn items(value: &Value) -> Vec<Value> {
    match value {
        Value::Array(items) => items.clone(),
        other => vec![other.clone()],
    }
}

/// An empty list is no truth, unlike JavaScript's.
pub(super) fn truthy(value: &Value) -> bool {
    match value {
        Value::Null => false,
        Value::Bool(value) => *value,
        Value::Number(number) => number.as_f64().is_some_and(|number| number != 0.0),
        Value::String(text) => !text.is_empty(),
        Value::Array(items) => !items.is_empty(),
        Value::Object(_) => true,
    }
}

/// `===`: numbers by what they are worth.
fn equal(left: &Value, right: &Value) -> bool {
    match (left, right) {
        (Value::Number(left), Value::Number(right)) => left.as_f64() == right.as_f64(),
        (_, _) => left == right,
    }
}

/// `==`: what is not of one kind is compared as numbers.
fn loosely_equal(left: &Value, right: &Value) -> bool {
    match (left, right) {
        (Value::Null, _) | (_, Value::Null) => left == right,
        (Value::String(_), Value::String(_)) | (Value::Array(_) | Value::Object(_), _) => equal(left, right),
        (_, _) => both(left, right).is_some_and(|(left, right)| left == right),
    }
}

fn both(left: &Value, right: &Value) -> Option<(f64, f64)> {
    Some((number(left)?, number(right)?))
}

/// What a value is worth as a number.
fn number(value: &Value) -> Option<f64> {
    match value {
        Value::Null => Some(0.0),
        Value::Bool(value) => Some(f64::from(*value)),
        Value::Number(number) => number.as_f64(),
        Value::String(text) if text.trim().is_empty() => Some(0.0),
        Value::String(text) => parse(text),
        Value::Array(_) | Value::Object(_) => None,
    }
}

/// As [`number`], but that nothing is worth nothing.
fn parsed(value: &Value) -> Option<f64> {
    match value {
        Value::Number(number) => number.as_f64(),
        Value::String(text) => parse(text),
        Value::Null | Value::Bool(_) | Value::Array(_) | Value::Object(_) => None,
    }
}

/// Not what Rust knows of names of numbers.
fn parse(text: &str) -> Option<f64> {
    let number = text.trim();
    let plain = |byte: u8| byte.is_ascii_digit() || b"+-.eE".contains(&byte);
    number.bytes().all(plain).then(|| number.parse().ok())?
}

/// A whole number where it is one; `null` where there is none.
fn numeric(number: Option<f64>) -> Value {
    /// 2^53: above, not every whole number is one.
    const EXACT: f64 = 9_007_199_254_740_992.0;
    match number {
        #[allow(clippy::cast_possible_truncation, reason = "it is whole and below 2^53")]
        Some(whole) if whole.fract() == 0.0 && whole.abs() <= EXACT => Value::from(whole as i64),
        Some(other) => Number::from_f64(other).map_or(Value::Null, Value::Number),
        None => Value::Null,
    }
}

fn sum(values: impl Iterator<Item = Option<f64>>, from: f64, add: fn(f64, f64) -> f64) -> Value {
    let mut sum = Some(from);
    for value in values {
        sum = sum.zip(value).map(|(sum, value)| add(sum, value));
    }
    numeric(sum)
}

fn extreme(values: &[Cow<'_, Value>], choose: fn(f64, f64) -> f64) -> Value {
    let numbers: Option<Vec<f64>> = values.iter().map(|value| number(value)).collect();
    numeric(numbers.and_then(|numbers| numbers.into_iter().reduce(choose)))
}

/// As JavaScript writes it.
fn text(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Null => String::new(),
        Value::Number(_) => match numeric(number(value)) {
            Value::Null => value.to_string(),
            number => number.to_string(),
        },
        Value::Array(items) => items.iter().map(text).collect::<Vec<_>>().join(","),
        Value::Bool(_) | Value::Object(_) => value.to_string(),
    }
}

fn texts(left: &Value, right: &Value, holds: fn(&str, &str) -> bool) -> Value {
    match (left, right) {
        (Value::String(left), Value::String(right)) => Value::Bool(holds(left, right)),
        (_, _) => Value::Bool(false),
    }
}

/// Of so many characters from a place, both counted from the end if negative.
fn substring(text: &str, start: Option<f64>, length: Option<f64>) -> String {
    let count = text.chars().count();
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "bounded by the text")]
    let place = |at: f64, from: usize| {
        let most = count as f64;
        let at = if at < 0.0 { most + at } else { from as f64 + at };
        at.clamp(0.0, most) as usize
    };
    let start = place(start.unwrap_or(0.0), 0);
    let end = length.map_or(count, |length| place(length, start));
    text.chars().skip(start).take(end.saturating_sub(start)).collect()
}
