//! Targeting rules: JSONLogic (jsonlogic.com) with flagd's operators, read once and applied to the facts of a request.
//!
//! A library that does this is as large in the module as everything else of it together, so it is done here; what the
//! official provider says of the same rules is what the tests compare with.

use std::borrow::Cow;
use std::cell::Cell;
use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::{Map, Value};

use super::definition::MOST_DEPTH;
use super::operator::{Operator, truthy};

/// A rule that can be applied.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Rule {
    Literal(Value),
    List(Vec<Rule>),
    Call(Operator, Vec<Rule>),
    /// A `$ref`: the evaluator is there once, however many rules refer to it.
    Shared(Arc<Evaluator>),
}

/// A rule that others refer to.
#[derive(Debug, PartialEq)]
pub(super) struct Evaluator {
    rule: Rule,
    /// How deep its operators lie in each other, and how many parts it has, what it refers to included.
    depth: usize,
    parts: usize,
}

/// A rule that would take longer than a request may wait for, or more memory than one may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct TooLong;

/// What is known where a rule is applied.
#[derive(Clone, Copy)]
pub(super) struct Scope<'s> {
    /// The facts of the request.
    pub root: &'s Value,
    /// What `var` looks into: the facts, or within `map` and its like the element.
    pub data: &'s Value,
    steps: &'s Cell<usize>,
}

/// What one rule may cost: a step for each operator and value that is evaluated, for each element of a list that it looks
/// at or makes, and for so many bytes of text.
const MOST_STEPS: usize = 30_000;
const BYTES_A_STEP: usize = 64;
/// How deep values may lie in each other: as deep as JSON that is read.
const MOST_LEVELS: usize = 128;
/// The most operators and values in one rule.
const MOST_PARTS: usize = 2_000;

impl Rule {
    /// Reads a rule. `$ref` in it stands for one of the `evaluators`.
    pub(super) fn read(written: &Value, evaluators: &mut Evaluators<'_>) -> Result<Self, String> {
        Reader { evaluators, within: Vec::new(), parts: 0 }.rule(written, 0)
    }

    /// What the rule says of the facts.
    pub(super) fn apply(&self, facts: &Value) -> Result<Value, TooLong> {
        let steps = Cell::new(0);
        let scope = Scope { root: facts, data: facts, steps: &steps };
        scope.owned(self.eval(scope)?)
    }

    pub(super) fn eval<'s>(&'s self, scope: Scope<'s>) -> Result<Cow<'s, Value>, TooLong> {
        scope.spend(1)?;
        match self {
            Self::Literal(value) => Ok(Cow::Borrowed(value)),
            Self::List(rules) => {
                let values: Result<Vec<Value>, TooLong> =
                    rules.iter().map(|rule| scope.owned(rule.eval(scope)?)).collect();
                Ok(Cow::Owned(Value::Array(values?)))
            }
            Self::Call(operator, arguments) => operator.call(arguments, scope),
            Self::Shared(evaluator) => evaluator.rule.eval(scope),
        }
    }

    pub(super) fn holds(&self, scope: Scope<'_>) -> Result<bool, TooLong> {
        self.eval(scope).map(|value| truthy(&value))
    }

    fn depth(&self) -> usize {
        match self {
            Self::Literal(_) => 0,
            Self::List(rules) | Self::Call(_, rules) => 1 + rules.iter().map(Self::depth).max().unwrap_or(0),
            Self::Shared(evaluator) => 1 + evaluator.depth,
        }
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

    /// The value, to be kept. What that costs is known before it is copied.
    pub(super) fn owned(self, value: Cow<'_, Value>) -> Result<Value, TooLong> {
        self.charge(&value)?;
        Ok(value.into_owned())
    }

    /// Charges for a value that is looked at or made as a whole.
    pub(super) fn charge(self, value: &Value) -> Result<(), TooLong> {
        self.charge_at(value, 0)
    }

    fn charge_at(self, value: &Value, level: usize) -> Result<(), TooLong> {
        if level > MOST_LEVELS {
            return Err(TooLong);
        }
        match value {
            Value::Null | Value::Bool(_) | Value::Number(_) => Ok(()),
            Value::String(text) => self.spend(text.len() / BYTES_A_STEP),
            Value::Array(items) => {
                self.spend(items.len())?;
                items.iter().try_for_each(|item| self.charge_at(item, level + 1))
            }
            Value::Object(fields) => fields.iter().try_for_each(|(name, field)| {
                self.spend(1 + name.len() / BYTES_A_STEP)?;
                self.charge_at(field, level + 1)
            }),
        }
    }

    fn spend(self, steps: usize) -> Result<(), TooLong> {
        self.steps.set(self.steps.get().saturating_add(steps));
        if self.steps.get() > MOST_STEPS { Err(TooLong) } else { Ok(()) }
    }
}

/// The evaluators of a file, as they are written and as far as they were read.
pub(super) struct Evaluators<'f> {
    written: &'f Map<String, Value>,
    read: BTreeMap<String, Arc<Evaluator>>,
}

impl<'f> Evaluators<'f> {
    pub(super) fn new(written: &'f Map<String, Value>) -> Self {
        Self { written, read: BTreeMap::new() }
    }
}

struct Reader<'r, 'f> {
    evaluators: &'r mut Evaluators<'f>,
    /// The evaluators that are being read.
    within: Vec<String>,
    parts: usize,
}

impl Reader<'_, '_> {
    fn rule(&mut self, written: &Value, depth: usize) -> Result<Rule, String> {
        self.enter(depth, 1)?;
        match written {
            Value::Array(items) => {
                let rules = self.all(items, depth)?;
                let literals: Option<Vec<Value>> = rules
                    .iter()
                    .map(|rule| match rule {
                        Rule::Literal(value) => Some(value.clone()),
                        Rule::List(_) | Rule::Call(..) | Rule::Shared(_) => None,
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

    /// So many more parts, so deep in the rule.
    fn enter(&mut self, depth: usize, parts: usize) -> Result<(), String> {
        self.parts = self.parts.saturating_add(parts);
        if depth > MOST_DEPTH || self.parts > MOST_PARTS {
            return Err(format!(
                "a rule has at most {MOST_PARTS} parts, of which at most {MOST_DEPTH} lie in each other"
            ));
        }
        Ok(())
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
        if let Some(known) = self.evaluators.read.get(name) {
            let known = Arc::clone(known);
            self.enter(depth + 1 + known.depth, known.parts)?;
            return Ok(Rule::Shared(known));
        }
        let Some(evaluator) = self.evaluators.written.get(name) else {
            let known = self.evaluators.written.keys().map(String::as_str);
            return Err(crate::policy::unknown("evaluator", name, known));
        };
        let before = self.parts;
        self.within.push(name.clone());
        let rule = self.rule(evaluator, depth + 1)?;
        self.within.pop();
        let (depth, parts) = (rule.depth(), self.parts - before);
        let evaluator = Arc::new(Evaluator { rule, depth, parts });
        self.evaluators.read.insert(name.clone(), Arc::clone(&evaluator));
        Ok(Rule::Shared(evaluator))
    }
}
