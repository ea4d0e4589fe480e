//! Targeting rules: JSONLogic (jsonlogic.com) with flagd's operators, read once and applied to the facts of a request.
//!
//! A library that does this is as large in the module as everything else of it together, so it is done here; what the
//! official provider says of the same rules is what the tests compare with.

use std::borrow::Cow;
use std::cell::Cell;

use serde_json::{Map, Value};

use super::definition::MOST_DEPTH;
use super::operator::{Operator, truthy};

/// A rule that can be applied.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Rule {
    Literal(Value),
    List(Vec<Rule>),
    Call(Operator, Vec<Rule>),
}

/// A rule that would take longer than a request may wait for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct TooLong;

/// What is known where a rule is applied.
#[derive(Clone, Copy)]
pub(super) struct Scope<'s> {
    /// The facts of the request.
    pub root: &'s Value,
    /// What `var` looks into: the facts, or within `map` and its like the element.
    pub data: &'s Value,
    steps: &'s Cell<u32>,
}

/// The most operators that one rule may run.
const MOST_STEPS: u32 = 10_000;
/// The most of them in one rule.
const MOST_RULES: usize = 2_000;

impl Rule {
    /// Reads a rule. `$ref` in it stands for one of the `evaluators`.
    pub(super) fn read(written: &Value, evaluators: &Map<String, Value>) -> Result<Self, String> {
        let mut reader = Reader { evaluators, within: Vec::new(), rules: 0 };
        reader.rule(written, 0)
    }

    /// What the rule says of the facts.
    pub(super) fn apply<'r>(&'r self, facts: &'r Value) -> Result<Cow<'r, Value>, TooLong> {
        let steps = Cell::new(0);
        self.eval(Scope { root: facts, data: facts, steps: &steps }).map(|said| Cow::Owned(said.into_owned()))
    }

    pub(super) fn eval<'s>(&'s self, scope: Scope<'s>) -> Result<Cow<'s, Value>, TooLong> {
        match self {
            Self::Literal(value) => Ok(Cow::Borrowed(value)),
            Self::List(rules) => {
                let values: Result<Vec<Value>, TooLong> =
                    rules.iter().map(|rule| Ok(rule.eval(scope)?.into_owned())).collect();
                Ok(Cow::Owned(Value::Array(values?)))
            }
            Self::Call(operator, arguments) => {
                scope.steps.set(scope.steps.get() + 1);
                if scope.steps.get() > MOST_STEPS {
                    return Err(TooLong);
                }
                operator.call(arguments, scope)
            }
        }
    }

    pub(super) fn holds(&self, scope: Scope<'_>) -> Result<bool, TooLong> {
        self.eval(scope).map(|value| truthy(&value))
    }
}

impl<'s> Scope<'s> {
    /// Within an element of a list.
    pub(super) fn of<'e>(self, data: &'e Value) -> Scope<'e>
    where
        's: 'e,
    {
        Scope { data, ..self }
    }
}

struct Reader<'r> {
    evaluators: &'r Map<String, Value>,
    /// The evaluators that are being read.
    within: Vec<String>,
    rules: usize,
}

impl Reader<'_> {
    fn rule(&mut self, written: &Value, depth: usize) -> Result<Rule, String> {
        self.rules += 1;
        if depth > MOST_DEPTH || self.rules > MOST_RULES {
            return Err(format!(
                "a rule has at most {MOST_RULES} parts, of which at most {MOST_DEPTH} lie in each other"
            ));
        }
        match written {
            Value::Array(items) => {
                let rules = self.all(items, depth)?;
                let literals: Option<Vec<Value>> = rules
                    .iter()
                    .map(|rule| match rule {
                        Rule::Literal(value) => Some(value.clone()),
                        Rule::List(_) | Rule::Call(..) => None,
                    })
                    .collect();
                Ok(literals.map_or(Rule::List(rules), |values| Rule::Literal(Value::Array(values))))
            }
            Value::Object(object) => match (object.iter().next(), object.len()) {
                (Some((name, arguments)), 1) => self.call(name, arguments, depth),
                // Not a rule, but a value.
                (_, _) => Ok(Rule::Literal(written.clone())),
            },
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {
                Ok(Rule::Literal(written.clone()))
            }
        }
    }

    fn all(&mut self, items: &[Value], depth: usize) -> Result<Vec<Rule>, String> {
        items.iter().map(|item| self.rule(item, depth + 1)).collect()
    }

    fn call(&mut self, name: &str, arguments: &Value, depth: usize) -> Result<Rule, String> {
        if name == "$ref" {
            return self.reference(arguments, depth);
        }
        let operator = Operator::named(name)?;
        let arguments = match arguments {
            Value::Array(items) => self.all(items, depth)?,
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Object(_) => {
                vec![self.rule(arguments, depth + 1)?]
            }
        };
        Ok(Rule::Call(operator, arguments))
    }

    fn reference(&mut self, name: &Value, depth: usize) -> Result<Rule, String> {
        let Value::String(name) = name else { return Err("`$ref` is the name of an evaluator".to_owned()) };
        if self.within.contains(name) {
            return Err(format!("the evaluator `{name}` refers to itself"));
        }
        let Some(evaluator) = self.evaluators.get(name) else {
            let known = self.evaluators.keys().map(String::as_str);
            return Err(crate::policy::unknown("evaluator", name, known));
        };
        self.within.push(name.clone());
        let rule = self.rule(evaluator, depth + 1);
        self.within.pop();
        rule
    }
}
