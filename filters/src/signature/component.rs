//! The parts of a message that a signature can cover (RFC 9421 section 2), and their values.

use std::fmt;
use std::str::FromStr;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use sfv::{BareItem, Dictionary, FieldType, InnerList, Item, List, ListEntry, Parser, StringRef};

use super::message::Message;
use super::query;

/// The longest value of one component, in bytes.
pub const VALUE_MAX: usize = 16 * 1024;

/// A component identifier: a header field or a derived component, with its parameters.
///
/// Parse one from its bare name (`@method`, `content-digest`) or from its serialized form
/// (`"@query-param";name="id"`, `"@method";req`). `tr` is not supported: the edge takes no trailers.
/// `sf` is supported for fields whose type is known here.
#[derive(Clone, Debug)]
pub struct Component {
    /// As it was written, so that it serializes in the order of parameters received.
    item: Item,
    part: Part,
    of_request: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Part {
    Method,
    TargetUri,
    Authority,
    Scheme,
    RequestTarget,
    Path,
    Query,
    /// The name in its encoded form.
    QueryParam(String),
    Status,
    Field {
        name: String,
        form: Form,
    },
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Form {
    /// Every line as it is, combined (section 2.1).
    Lines,
    /// Strictly serialized again as a structured field (`sf`, section 2.1.1).
    Strict,
    /// One member of a dictionary (`key`, section 2.1.2).
    Member(String),
    /// Every line as a byte sequence (`bs`, section 2.1.3).
    Bytes,
}

impl Component {
    /// The identifier as it stands in the signature base.
    pub fn identifier(&self) -> String {
        self.item.serialize()
    }

    /// The name of the field, unless the component is derived.
    pub fn field(&self) -> Option<&str> {
        match &self.part {
            Part::Field { name, .. } => Some(name),
            _ => None,
        }
    }

    /// An error when no request can have a value for it: required, it would refuse every request.
    pub(super) fn of_some_request(&self) -> Result<(), ComponentError> {
        let problem = match &self.part {
            _ if self.of_request => Some(Problem::NoRequest),
            Part::Status => Some(Problem::Absent),
            Part::Field { name, form } => match (form, structure(name)) {
                (Form::Strict, None) => Some(Problem::FieldType),
                (Form::Member(_), Some(Structure::List | Structure::Item)) => Some(Problem::NotStructured),
                (Form::Member(_), None | Some(Structure::Dictionary))
                | (Form::Strict, Some(_))
                | (Form::Lines | Form::Bytes, _) => None,
            },
            Part::Method
            | Part::TargetUri
            | Part::Authority
            | Part::Scheme
            | Part::RequestTarget
            | Part::Path
            | Part::Query
            | Part::QueryParam(_) => None,
        };
        problem.map_or(Ok(()), |problem| Err(self.error(problem)))
    }

    pub(super) fn item(&self) -> &Item {
        &self.item
    }

    /// The component's value in this message.
    pub(super) fn value(&self, message: &Message<'_>) -> Result<Vec<u8>, ComponentError> {
        let source = match (self.of_request, message.request) {
            (false, _) => message,
            (true, Some(request)) if message.status.is_some() => request,
            (true, _) => return Err(self.error(Problem::NoRequest)),
        };
        let value = self.part.value(source).map_err(|problem| self.error(problem))?;
        if value.len() > VALUE_MAX {
            return Err(self.error(Problem::TooLong));
        }
        // A line break in a value could forge further lines of the base; other bytes are for `bs` (section 2.5).
        match value.iter().all(|b| matches!(b, b'\t' | b' '..=b'~')) {
            true => Ok(value),
            false => Err(self.error(Problem::NotText)),
        }
    }

    fn error(&self, problem: Problem) -> ComponentError {
        ComponentError { component: self.identifier(), problem }
    }
}

/// The same component, whatever the order of its parameters.
impl PartialEq for Component {
    fn eq(&self, other: &Self) -> bool {
        self.part == other.part && self.of_request == other.of_request
    }
}

impl Eq for Component {}

impl fmt::Display for Component {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.identifier())
    }
}

impl FromStr for Component {
    type Err = ComponentError;

    fn from_str(text: &str) -> Result<Self, ComponentError> {
        let error = || ComponentError { component: shown(text), problem: Problem::Malformed };
        let item = match text.starts_with('"') {
            true => Parser::new(text).parse::<Item>().map_err(|_| error())?,
            false => Item::new(StringRef::from_str(text).map_err(|_| error())?.to_owned()),
        };
        Self::try_from(item)
    }
}

impl TryFrom<Item> for Component {
    type Error = ComponentError;

    fn try_from(item: Item) -> Result<Self, ComponentError> {
        match Part::parse(&item) {
            Ok((part, of_request)) => Ok(Self { item, part, of_request }),
            Err(problem) => Err(ComponentError { component: shown(&item.serialize()), problem }),
        }
    }
}

impl Part {
    fn parse(item: &Item) -> Result<(Self, bool), Problem> {
        let BareItem::String(name) = &item.bare_item else { return Err(Problem::Malformed) };
        let (mut req, mut sf, mut bs) = (false, false, false);
        let (mut key, mut query_name) = (None, None);
        for (parameter, value) in &item.params {
            match (parameter.as_str(), value) {
                ("req", BareItem::Boolean(true)) => req = true,
                ("sf", BareItem::Boolean(true)) => sf = true,
                ("bs", BareItem::Boolean(true)) => bs = true,
                ("key", BareItem::String(value)) => key = Some(value.as_str().to_owned()),
                ("name", BareItem::String(value)) => query_name = Some(value.as_str().to_owned()),
                ("tr", _) => return Err(Problem::Trailers),
                _ => return Err(Problem::Parameter),
            }
        }
        if !name.as_str().starts_with('@') {
            let form = match (sf, key, bs, query_name) {
                (false, None, false, None) => Form::Lines,
                (true, None, false, None) => Form::Strict,
                (_, Some(key), false, None) => Form::Member(key),
                (false, None, true, None) => Form::Bytes,
                _ => return Err(Problem::Parameter),
            };
            let name = name.as_str();
            let token = |b: u8| matches!(b, b'a'..=b'z' | b'0'..=b'9') || b"!#$%&'*+-.^_`|~".contains(&b);
            if name.is_empty() || !name.bytes().all(token) {
                return Err(Problem::Malformed);
            }
            return Ok((Self::Field { name: name.to_owned(), form }, req));
        }
        if sf || bs || key.is_some() {
            return Err(Problem::Parameter);
        }
        let part = match (name.as_str(), query_name) {
            ("@query-param", Some(name)) => Self::QueryParam(name),
            (_, Some(_)) => return Err(Problem::Parameter),
            ("@method", None) => Self::Method,
            ("@target-uri", None) => Self::TargetUri,
            ("@authority", None) => Self::Authority,
            ("@scheme", None) => Self::Scheme,
            ("@request-target", None) => Self::RequestTarget,
            ("@path", None) => Self::Path,
            ("@query", None) => Self::Query,
            ("@query-param", None) => return Err(Problem::Parameter),
            ("@status", None) if req => return Err(Problem::Parameter),
            ("@status", None) => Self::Status,
            (_, None) => return Err(Problem::Unknown),
        };
        Ok((part, req))
    }

    fn value(&self, message: &Message<'_>) -> Result<Vec<u8>, Problem> {
        let text = match self {
            Self::Status => match message.status {
                Some(status) => format!("{status:03}"),
                None => return Err(Problem::Absent),
            },
            Self::Field { name, form } => return form.value(name, message),
            // What is derived from a request is not there in a response (section 2.2).
            _ if message.status.is_some() => return Err(Problem::Absent),
            Self::Method => message.method.to_owned(),
            Self::Scheme => message.scheme.to_ascii_lowercase(),
            Self::Authority => authority(message),
            Self::Path => path(message).to_owned(),
            Self::Query => format!("?{}", message.query.unwrap_or_default()),
            Self::RequestTarget => request_target(message),
            Self::TargetUri => {
                let mark = if message.query.is_some() { "?" } else { "" };
                let query = message.query.unwrap_or_default();
                format!(
                    "{}://{}{}{mark}{query}",
                    message.scheme.to_ascii_lowercase(),
                    authority(message),
                    path(message)
                )
            }
            Self::QueryParam(name) => match query::parameter(message.query.unwrap_or_default(), name) {
                Ok(value) => value,
                Err(query::NotOne::Absent) => return Err(Problem::Absent),
                Err(query::NotOne::Repeated) => return Err(Problem::Repeated),
                Err(query::NotOne::Malformed) => return Err(Problem::NotText),
            },
        };
        Ok(text.into_bytes())
    }
}

impl Form {
    fn value(&self, name: &str, message: &Message<'_>) -> Result<Vec<u8>, Problem> {
        let mut lines: Vec<Vec<u8>> = Vec::new();
        let mut total: usize = 0;
        message.headers.each(&mut |field, value| {
            total = total.saturating_add(if field.eq_ignore_ascii_case(name) { value.len() } else { 0 });
            if field.eq_ignore_ascii_case(name) && total <= VALUE_MAX {
                lines.push(line(value));
            }
        });
        if total > VALUE_MAX {
            return Err(Problem::TooLong);
        }
        if lines.is_empty() {
            return Err(Problem::Absent);
        }
        let combined = lines.join(b", ".as_slice());
        match self {
            Self::Lines => Ok(combined),
            Self::Bytes => {
                let wrapped: Vec<String> =
                    lines.iter().map(|line| format!(":{}:", STANDARD.encode(line))).collect();
                Ok(wrapped.join(", ").into_bytes())
            }
            Self::Strict => strict(name, &combined),
            Self::Member(key) => {
                let members: Dictionary =
                    Parser::new(&combined).parse().map_err(|_| Problem::NotStructured)?;
                match members.get(key.as_str()) {
                    None => Err(Problem::Absent),
                    Some(ListEntry::Item(item)) => Ok(item.serialize().into_bytes()),
                    Some(ListEntry::InnerList(list)) => {
                        Ok(serialize_inner_list(list.clone()).ok_or(Problem::NotStructured)?.into_bytes())
                    }
                }
            }
        }
    }
}

/// What a structured field is (RFC 9651).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Structure {
    Dictionary,
    List,
    Item,
}

/// What the field is; `None`: that is not known here. Guessing it would let two readers disagree on the value.
fn structure(name: &str) -> Option<Structure> {
    match name {
        "content-digest"
        | "repr-digest"
        | "want-content-digest"
        | "want-repr-digest"
        | "priority"
        | "signature"
        | "signature-input"
        | "accept-signature" => Some(Structure::Dictionary),
        "ratelimit" | "ratelimit-policy" | "cache-status" | "proxy-status" | "accept-ch" => {
            Some(Structure::List)
        }
        "idempotency-key" | "deprecation" | "client-cert" => Some(Structure::Item),
        #[cfg(test)]
        "example-dict" => Some(Structure::Dictionary),
        _ => None,
    }
}

/// The field as `sf` has it.
fn strict(name: &str, combined: &[u8]) -> Result<Vec<u8>, Problem> {
    let parser = Parser::new(combined);
    let text = match structure(name).ok_or(Problem::FieldType)? {
        Structure::Dictionary => {
            parser.parse::<Dictionary>().map_err(|_| Problem::NotStructured)?.serialize()
        }
        Structure::List => parser.parse::<List>().map_err(|_| Problem::NotStructured)?.serialize(),
        Structure::Item => Some(parser.parse::<Item>().map_err(|_| Problem::NotStructured)?.serialize()),
    };
    // An empty list or dictionary has no serialization, though the field is there: its value is empty.
    Ok(text.unwrap_or_default().into_bytes())
}

pub(super) fn serialize_inner_list(list: InnerList) -> Option<String> {
    vec![ListEntry::InnerList(list)].serialize()
}

/// One field line: without white space around it, obsolete folding replaced by one space (section 2.1).
pub(super) fn line(value: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(value.len());
    let mut rest = trimmed(value).iter().copied().peekable();
    let mut folding = Vec::new();
    while let Some(b) = rest.next() {
        match b {
            b' ' | b'\t' | b'\r' | b'\n' => {
                folding.push(b);
                let ends = rest.peek().is_none_or(|next| !matches!(next, b' ' | b'\t' | b'\r' | b'\n'));
                let folded = folding.windows(2).any(|w| matches!(w, [b'\n', b' ' | b'\t']));
                match (ends, folded) {
                    (false, _) => {}
                    (true, true) => {
                        out.push(b' ');
                        folding.clear();
                    }
                    (true, false) => out.append(&mut folding),
                }
            }
            _ => out.push(b),
        }
    }
    out
}

fn trimmed(mut value: &[u8]) -> &[u8] {
    while let [b' ' | b'\t', rest @ ..] | [rest @ .., b' ' | b'\t'] = value {
        value = rest;
    }
    value
}

/// Lower-case, without the scheme's default port (section 2.2.3).
fn authority(message: &Message<'_>) -> String {
    let authority = message.authority.to_ascii_lowercase();
    let default = match message.scheme.eq_ignore_ascii_case("https") {
        true => ":443",
        false => ":80",
    };
    match authority.strip_suffix(default) {
        Some(host) => host.to_owned(),
        None => authority,
    }
}

fn path<'a>(message: &Message<'a>) -> &'a str {
    match message.path.is_empty() {
        true => "/",
        false => message.path,
    }
}

/// The target as an HTTP/1.1 client sends it to an origin (section 2.2.5).
fn request_target(message: &Message<'_>) -> String {
    match (message.method, message.query) {
        ("CONNECT", _) => message.authority.to_owned(),
        (_, Some(query)) => format!("{}?{query}", path(message)),
        (_, None) => path(message).to_owned(),
    }
}

/// A component that cannot be parsed, or has no value in the message.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("component {component}: {problem}")]
pub struct ComponentError {
    /// The identifier, shortened when long.
    pub component: String,
    pub problem: Problem,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Problem {
    #[error("not a component identifier")]
    Malformed,
    #[error("not a derived component of RFC 9421")]
    Unknown,
    #[error("parameters that are unknown, missing or do not go together")]
    Parameter,
    #[error("trailers are not supported")]
    Trailers,
    #[error("the type of this structured field is not known")]
    FieldType,
    #[error("not in the message")]
    Absent,
    #[error("more than once in the query")]
    Repeated,
    #[error("not a structured field of the right type")]
    NotStructured,
    #[error("has bytes that are not visible ASCII; cover it with ;bs")]
    NotText,
    #[error("longer than {VALUE_MAX} bytes")]
    TooLong,
    #[error("there is no request that this message answers")]
    NoRequest,
}

fn shown(identifier: &str) -> String {
    identifier.chars().take(80).collect()
}
