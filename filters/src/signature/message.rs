//! HTTP message signatures (RFC 9421): sign a request or a response, and verify one.
//!
//! What is signed is the *signature base*: a line for each covered component, and the signature's parameters.
//! Times, nonces and keys are arguments. Whether a signature covers enough, is fresh and is by the right key
//! is the caller's to decide; this module says only whether it holds.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use sfv::{BareItem, Dictionary, InnerList, Integer, KeyRef, ListEntry, Parameters, Parser, StringRef};

pub use super::component::{Component, ComponentError, Problem};
use super::component::{line, serialize_inner_list};
pub use crate::crypto::{Algorithm, SigningKey, VerifyingKey};
use crate::crypto::{CryptoError, Local, Verify};

/// The most components that one signature may cover.
pub const COMPONENTS_MAX: usize = 32;
/// The most signatures that one message may carry.
pub const SIGNATURES_MAX: usize = 8;
/// The longest `Signature-Input` and `Signature`, each, in bytes.
pub const FIELD_MAX: usize = 8 * 1024;
/// The longest signature base, in bytes.
pub const BASE_MAX: usize = 64 * 1024;

/// A message to sign or verify: a request, or a response when `status` is set.
#[derive(Clone, Copy)]
pub struct Message<'a> {
    pub method: &'a str,
    pub scheme: &'a str,
    /// The `Host` field or `:authority`.
    pub authority: &'a str,
    /// The path as it is sent, without the query.
    pub path: &'a str,
    /// What follows the first `?`, without it; `None` when there is no `?`.
    pub query: Option<&'a str>,
    pub status: Option<u16>,
    pub headers: &'a dyn Fields,
    /// The request that a response answers, for components with `;req`.
    pub request: Option<&'a Message<'a>>,
}

impl<'a> Message<'a> {
    /// A request.
    pub fn request(
        method: &'a str,
        scheme: &'a str,
        authority: &'a str,
        path: &'a str,
        query: Option<&'a str>,
        headers: &'a dyn Fields,
    ) -> Self {
        Self { method, scheme, authority, path, query, status: None, headers, request: None }
    }

    /// A response, bound to its request when that is given.
    pub fn response(status: u16, headers: &'a dyn Fields, request: Option<&'a Message<'a>>) -> Self {
        Self {
            method: "",
            scheme: "",
            authority: "",
            path: "",
            query: None,
            status: Some(status),
            headers,
            request,
        }
    }
}

impl std::fmt::Debug for Message<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Message")
            .field("method", &self.method)
            .field("status", &self.status)
            .finish_non_exhaustive()
    }
}

/// Header fields in the order of the message; the case of names does not matter.
pub trait Fields {
    fn each(&self, visit: &mut dyn FnMut(&str, &[u8]));
}

impl<N: AsRef<str>, V: AsRef<[u8]>> Fields for [(N, V)] {
    fn each(&self, visit: &mut dyn FnMut(&str, &[u8])) {
        self.iter().for_each(|(name, value)| visit(name.as_ref(), value.as_ref()));
    }
}

impl<N: AsRef<str>, V: AsRef<[u8]>> Fields for &[(N, V)] {
    fn each(&self, visit: &mut dyn FnMut(&str, &[u8])) {
        (**self).each(visit);
    }
}

impl<N: AsRef<str>, V: AsRef<[u8]>> Fields for Vec<(N, V)> {
    fn each(&self, visit: &mut dyn FnMut(&str, &[u8])) {
        self.as_slice().each(visit);
    }
}

impl<N: AsRef<str>, V: AsRef<[u8]>, const LEN: usize> Fields for [(N, V); LEN] {
    fn each(&self, visit: &mut dyn FnMut(&str, &[u8])) {
        self.as_slice().each(visit);
    }
}

/// A signature's parameters (RFC 9421 section 2.3). Times are seconds since the Unix epoch.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Params {
    pub components: Vec<Component>,
    pub created: Option<i64>,
    pub expires: Option<i64>,
    pub nonce: Option<String>,
    pub keyid: Option<String>,
    pub alg: Option<Algorithm>,
    pub tag: Option<String>,
}

impl Params {
    /// Parameters that cover these components, in this order, and say nothing else yet.
    pub fn covering(components: &[&str]) -> Result<Self, ComponentError> {
        let components = components.iter().map(|text| text.parse()).collect::<Result<_, _>>()?;
        Ok(Self { components, ..Self::default() })
    }

    fn to_inner_list(&self) -> Result<InnerList, SignError> {
        if self.components.len() > COMPONENTS_MAX {
            return Err(SignError::TooLarge);
        }
        if repeats(&self.components) {
            return Err(SignError::Parameter("components"));
        }
        let mut params = Parameters::new();
        let mut add = |name: &'static str, value: Option<BareItem>| {
            let key = KeyRef::from_str(name).map_err(|_| SignError::Parameter(name))?;
            if let Some(value) = value {
                params.insert(key.to_owned(), value);
            }
            Ok::<_, SignError>(())
        };
        add("created", integer("created", self.created)?)?;
        add("expires", integer("expires", self.expires)?)?;
        add("keyid", string("keyid", self.keyid.as_deref())?)?;
        add("alg", string("alg", self.alg.map(Algorithm::name))?)?;
        add("nonce", string("nonce", self.nonce.as_deref())?)?;
        add("tag", string("tag", self.tag.as_deref())?)?;
        Ok(InnerList::with_params(self.components.iter().map(|c| c.item().clone()).collect(), params))
    }

    fn from_inner_list(list: &InnerList) -> Result<Self, SignatureError> {
        if list.items.len() > COMPONENTS_MAX {
            return Err(SignatureError::TooLarge);
        }
        let components =
            list.items.iter().cloned().map(Component::try_from).collect::<Result<Vec<_>, _>>()?;
        if repeats(&components) {
            return Err(SignatureError::Malformed("a component is covered twice"));
        }
        let mut params = Self { components, ..Self::default() };
        for (name, value) in &list.params {
            match (name.as_str(), value) {
                ("created", BareItem::Integer(at)) => params.created = Some(i64::from(*at)),
                ("expires", BareItem::Integer(at)) => params.expires = Some(i64::from(*at)),
                ("nonce", BareItem::String(text)) => params.nonce = Some(text.as_str().to_owned()),
                ("keyid", BareItem::String(text)) => params.keyid = Some(text.as_str().to_owned()),
                ("tag", BareItem::String(text)) => params.tag = Some(text.as_str().to_owned()),
                ("alg", BareItem::String(text)) => {
                    params.alg =
                        Some(Algorithm::named(text.as_str()).ok_or(SignatureError::UnknownAlgorithm)?);
                }
                ("created" | "expires" | "nonce" | "keyid" | "tag" | "alg", _) => {
                    return Err(SignatureError::Malformed("a parameter has the wrong type"));
                }
                // Others are signed like the rest and mean nothing here.
                _ => {}
            }
        }
        Ok(params)
    }
}

/// The two fields to add to a message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SignatureFields {
    /// `Signature-Input`.
    pub signature_input: String,
    /// `Signature`.
    pub signature: String,
}

/// Signs a message. The fields that the signature covers must already be there.
pub fn sign(
    message: &Message<'_>,
    label: &str,
    params: &Params,
    key: &SigningKey,
) -> Result<SignatureFields, SignError> {
    if KeyRef::from_str(label).is_err() {
        return Err(SignError::Parameter("label"));
    }
    if params.alg.is_some_and(|alg| alg != key.algorithm()) {
        return Err(SignError::Parameter("alg"));
    }
    let list = params.to_inner_list()?;
    let input = serialize_inner_list(list).ok_or(SignError::Parameter("components"))?;
    let base = match base(message, &params.components, &input) {
        Ok(base) => base,
        Err(SignatureError::Component(error)) => return Err(SignError::Component(error)),
        Err(_) => return Err(SignError::TooLarge),
    };
    let signature = STANDARD.encode(key.sign(&base)?);
    Ok(SignatureFields {
        signature_input: format!("{label}={input}"),
        signature: format!("{label}=:{signature}:"),
    })
}

/// Reads one signature from a message: the one with that label. Without a label: the only one that is understood here.
/// Other signatures may use components and algorithms that are not; they are for other readers.
pub fn parse(headers: &dyn Fields, label: Option<&str>) -> Result<Parsed, SignatureError> {
    let inputs = dictionary(headers, "signature-input")?;
    let signatures = dictionary(headers, "signature")?;
    if inputs.len() > SIGNATURES_MAX || signatures.len() > SIGNATURES_MAX {
        return Err(SignatureError::TooLarge);
    }
    if let Some(label) = label {
        return match inputs.get(label) {
            Some(input) => Parsed::read(label, input, &signatures),
            None if signatures.contains_key(label) => Err(DIFFERENT_LABELS),
            None => Err(SignatureError::Missing),
        };
    }
    let mut found = None;
    let mut error = if signatures.is_empty() { SignatureError::Missing } else { DIFFERENT_LABELS };
    for (at, (label, input)) in inputs.iter().enumerate() {
        match Parsed::read(label.as_str(), input, &signatures) {
            Ok(_) if found.is_some() => return Err(SignatureError::Several),
            Ok(parsed) => found = Some(parsed),
            Err(why) if at == 0 => error = why,
            Err(_) => {}
        }
    }
    found.ok_or(error)
}

const DIFFERENT_LABELS: SignatureError =
    SignatureError::Malformed("Signature-Input and Signature have different labels");

/// A signature as it was received; nothing is verified yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Parsed {
    label: String,
    params: Params,
    /// The parameters in the order received, those included that mean nothing here.
    input: String,
    signature: Vec<u8>,
}

impl Parsed {
    fn read(label: &str, input: &ListEntry, signatures: &Dictionary) -> Result<Self, SignatureError> {
        let ListEntry::InnerList(input) = input else {
            return Err(SignatureError::Malformed("Signature-Input is not a list of components"));
        };
        let Some(ListEntry::Item(signature)) = signatures.get(label) else { return Err(DIFFERENT_LABELS) };
        let BareItem::ByteSequence(signature) = &signature.bare_item else {
            return Err(SignatureError::Malformed("Signature is not a byte sequence"));
        };
        let params = Params::from_inner_list(input)?;
        let input = serialize_inner_list(input.clone())
            .ok_or(SignatureError::Malformed("Signature-Input cannot be written"))?;
        Ok(Self { label: label.to_owned(), params, input, signature: signature.clone() })
    }

    pub fn label(&self) -> &str {
        &self.label
    }

    pub fn params(&self) -> &Params {
        &self.params
    }

    pub fn covers(&self, component: &Component) -> bool {
        self.params.components.contains(component)
    }

    /// The signature base (RFC 9421 section 2.5).
    pub fn base(&self, message: &Message<'_>) -> Result<Vec<u8>, SignatureError> {
        base(message, &self.params.components, &self.input)
    }

    /// Whether the signature over this message holds under this key.
    pub fn verify(&self, message: &Message<'_>, key: &VerifyingKey) -> Result<(), SignatureError> {
        self.verify_with(message, key, &Local)
    }

    /// The same, with the cryptography of the data plane.
    pub fn verify_with(
        &self,
        message: &Message<'_>,
        key: &VerifyingKey,
        crypto: &dyn Verify,
    ) -> Result<(), SignatureError> {
        if self.params.alg.is_some_and(|alg| alg != key.algorithm()) {
            return Err(SignatureError::AlgorithmMismatch);
        }
        match crypto.verify(key, &self.base(message)?, &self.signature) {
            Ok(()) => Ok(()),
            Err(CryptoError::Invalid) => Err(SignatureError::Invalid),
            Err(error) => Err(SignatureError::Crypto(error)),
        }
    }
}

/// Why a signature cannot be made: the caller's fault.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SignError {
    #[error("{0} cannot be written as a structured field, or does not fit the key")]
    Parameter(&'static str),
    #[error(transparent)]
    Component(#[from] ComponentError),
    #[error("more than {COMPONENTS_MAX} components or {BASE_MAX} bytes to sign")]
    TooLarge,
    #[error(transparent)]
    Crypto(#[from] CryptoError),
}

/// Why a signature does not hold: the sender's fault, but for [`Crypto`](SignatureError::Crypto).
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SignatureError {
    #[error("there is no such signature")]
    Missing,
    #[error("there are several signatures and no label was named")]
    Several,
    #[error("malformed: {0}")]
    Malformed(&'static str),
    #[error("more signatures, components or bytes than are read")]
    TooLarge,
    #[error(transparent)]
    Component(#[from] ComponentError),
    #[error("the algorithm is not one that is verified here")]
    UnknownAlgorithm,
    #[error("the key is not for the algorithm that the signature names")]
    AlgorithmMismatch,
    #[error("the signature does not hold")]
    Invalid,
    #[error(transparent)]
    Crypto(CryptoError),
}

fn base(message: &Message<'_>, components: &[Component], input: &str) -> Result<Vec<u8>, SignatureError> {
    let mut base = Vec::with_capacity(512);
    for component in components {
        base.extend_from_slice(component.identifier().as_bytes());
        base.extend_from_slice(b": ");
        base.extend_from_slice(&component.value(message)?);
        base.push(b'\n');
        if base.len() > BASE_MAX {
            return Err(SignatureError::TooLarge);
        }
    }
    base.extend_from_slice(b"\"@signature-params\": ");
    base.extend_from_slice(input.as_bytes());
    Ok(base)
}

fn dictionary(headers: &dyn Fields, name: &str) -> Result<Dictionary, SignatureError> {
    let mut lines: Vec<Vec<u8>> = Vec::new();
    let mut total = 0_usize;
    headers.each(&mut |field, value| {
        if field.eq_ignore_ascii_case(name) {
            total = total.saturating_add(value.len()).saturating_add(2);
            if total <= FIELD_MAX {
                lines.push(line(value));
            }
        }
    });
    if total > FIELD_MAX {
        return Err(SignatureError::TooLarge);
    }
    let combined = lines.join(b", ".as_slice());
    Parser::new(&combined).parse().map_err(|_| SignatureError::Malformed("not a dictionary"))
}

fn repeats(components: &[Component]) -> bool {
    components
        .iter()
        .enumerate()
        .any(|(at, component)| components.iter().skip(at + 1).any(|c| c == component))
}

fn integer(name: &'static str, value: Option<i64>) -> Result<Option<BareItem>, SignError> {
    match value {
        None => Ok(None),
        Some(value) => match Integer::try_from(value) {
            Ok(value) => Ok(Some(BareItem::Integer(value))),
            Err(_) => Err(SignError::Parameter(name)),
        },
    }
}

fn string(name: &'static str, value: Option<&str>) -> Result<Option<BareItem>, SignError> {
    match value {
        None => Ok(None),
        Some(value) => match StringRef::from_str(value) {
            Ok(value) => Ok(Some(BareItem::String(value.to_owned()))),
            Err(_) => Err(SignError::Parameter(name)),
        },
    }
}

#[cfg(test)]
#[path = "message_tests.rs"]
mod tests;
