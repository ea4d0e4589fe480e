//! What a client's certificate says: the facts that decisions rest on.
//!
//! Whoever ended the TLS connection has verified the certificate, its chain and that the client holds its key; here
//! it is only read, by the same code in every data plane, so that all find the same names in it. What cannot be read
//! says nothing: it names nobody, and nothing is bound to it but its own digest.

use der::{AnyRef, Decode as _, Reader as _, SliceReader, Tag, TagNumber, Tagged as _};

use crate::crypto::sha256;

/// A certificate that a client has shown and that was verified.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Certificate {
    sha256: [u8; 32],
    spki_sha256: Option<[u8; 32]>,
    serial: Vec<u8>,
    names: Vec<Name>,
}

/// A name in the certificate (`subjectAltName`, RFC 5280 section 4.2.1.6). The subject's common name is none: nothing
/// says what kind of name it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Name {
    Dns(String),
    Uri(String),
    Email(String),
}

impl Certificate {
    /// Reads a certificate, DER.
    pub fn new(der: &[u8]) -> Self {
        let Read { spki_sha256, serial, names } = read(der).unwrap_or_default();
        Self { sha256: sha256(der), spki_sha256, serial, names }
    }

    /// The digest of the whole certificate: what tokens are bound to (RFC 8705 section 3.1).
    pub fn sha256(&self) -> &[u8; 32] {
        &self.sha256
    }

    /// The digest of its public key (SubjectPublicKeyInfo): what stays when a certificate is renewed with its key.
    pub fn spki_sha256(&self) -> Option<&[u8; 32]> {
        self.spki_sha256.as_ref()
    }

    /// Its serial number, lower-case hexadecimal; empty when it cannot be read.
    pub fn serial_hex(&self) -> String {
        self.serial.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// Its names of the kinds that mean something here.
    pub fn names(&self) -> &[Name] {
        &self.names
    }
}

#[derive(Default)]
struct Read {
    spki_sha256: Option<[u8; 32]>,
    serial: Vec<u8>,
    names: Vec<Name>,
}

/// `subjectAltName`, 2.5.29.17.
const SUBJECT_ALT_NAME: [u8; 3] = [0x55, 0x1d, 0x11];
/// Fields between the serial number and the public key: algorithm, issuer, validity, subject.
const BEFORE_KEY: usize = 4;

/// RFC 5280 section 4.1.
fn read(der: &[u8]) -> der::Result<Read> {
    let mut certificate = inside(AnyRef::from_der(der)?, Tag::Sequence)?;
    let mut tbs = inside(AnyRef::decode(&mut certificate)?, Tag::Sequence)?;
    let mut serial = AnyRef::decode(&mut tbs)?;
    if serial.tag() == context(0, true) {
        serial = AnyRef::decode(&mut tbs)?;
    }
    let serial = value(serial, Tag::Integer)?.to_vec();
    for _ in 0..BEFORE_KEY {
        AnyRef::decode(&mut tbs)?;
    }
    let spki_sha256 = Some(sha256(tbs.tlv_bytes()?));
    let mut names = None;
    while !tbs.is_finished() {
        let field = AnyRef::decode(&mut tbs)?;
        if field.tag() != context(3, true) {
            continue;
        }
        let mut extensions = inside(AnyRef::from_der(field.value())?, Tag::Sequence)?;
        while !extensions.is_finished() {
            let mut extension = inside(AnyRef::decode(&mut extensions)?, Tag::Sequence)?;
            let id = value(AnyRef::decode(&mut extension)?, Tag::ObjectIdentifier)?;
            let mut content = AnyRef::decode(&mut extension)?;
            if content.tag() == Tag::Boolean {
                content = AnyRef::decode(&mut extension)?;
            }
            if id != SUBJECT_ALT_NAME {
                continue;
            }
            // A second list of names could be meant for another reader.
            if names.is_some() {
                return Err(unexpected(content.tag()));
            }
            let list = AnyRef::from_der(value(content, Tag::OctetString)?)?;
            names = Some(alt_names(inside(list, Tag::Sequence)?)?);
        }
    }
    Ok(Read { spki_sha256, serial, names: names.unwrap_or_default() })
}

fn alt_names(mut list: SliceReader<'_>) -> der::Result<Vec<Name>> {
    let mut names = Vec::new();
    while !list.is_finished() {
        let name = AnyRef::decode(&mut list)?;
        // A name that is not visible ASCII has several spellings, and names nobody.
        let visible = |bytes: &[u8]| !bytes.is_empty() && bytes.iter().all(u8::is_ascii_graphic);
        let text = std::str::from_utf8(name.value()).ok().filter(|text| visible(text.as_bytes()));
        let (tag, Some(text)) = (name.tag(), text.map(str::to_owned)) else { continue };
        match tag {
            tag if tag == context(1, false) => names.push(Name::Email(text)),
            tag if tag == context(2, false) => names.push(Name::Dns(text)),
            tag if tag == context(6, false) => names.push(Name::Uri(text)),
            _ => {}
        }
    }
    Ok(names)
}

fn context(number: u32, constructed: bool) -> Tag {
    Tag::ContextSpecific { constructed, number: TagNumber(number) }
}

fn value(any: AnyRef<'_>, tag: Tag) -> der::Result<&[u8]> {
    if any.tag() == tag { Ok(any.value()) } else { Err(unexpected(any.tag())) }
}

fn inside(any: AnyRef<'_>, tag: Tag) -> der::Result<SliceReader<'_>> {
    SliceReader::new(value(any, tag)?)
}

fn unexpected(tag: Tag) -> der::Error {
    der::ErrorKind::TagUnexpected { expected: None, actual: tag }.into()
}
