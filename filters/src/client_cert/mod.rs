//! Client certificates: which client of the policy shows one, and which clients may call here.
//!
//! Whether a certificate is believed at all, its chain, its dates, whether it was revoked, the listener has decided
//! before (`client_certificates`); here a certificate that is believed becomes a client by what the policy says of
//! it. A name is compared whole: wildcards fit nothing, and the subject's common name is not looked at.

use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::certificate::{Certificate, Name};
use crate::filter::{Client, Context, Filter, Host, Request, Verdict};
use crate::policy::{CertificateNames, Settings, Site, Unusable, in_both};

/// Knows the client that the sender's certificate belongs to, and refuses whoever may not call here.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Whether a certificate must be shown. A route can ask for more than every route does, never for less.
    pub mode: Mode,
    /// Clients of the policy that may call; empty: every one that has `certificates`.
    pub clients: Vec<String>,
}

/// Whether a certificate must be shown.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// No certificate is looked at.
    Off,
    /// Who shows none, or one that no client of the policy claims, is nobody: such a certificate proves nothing
    /// that is known here, and whoever shows it could as well have shown none.
    Optional,
    /// A certificate of a client of the policy must be shown.
    #[default]
    Required,
}

impl Config {
    /// Whether nobody passes without a certificate.
    pub(crate) fn needs_certificate(&self) -> bool {
        self.mode == Mode::Required
    }

    /// Whether certificates of that client are of use.
    pub(crate) fn takes_client(&self, client: &str) -> bool {
        self.mode != Mode::Off && (self.clients.is_empty() || self.clients.iter().any(|name| name == client))
    }
}

impl Settings for Config {
    fn and(self, child: Self) -> Self {
        Self { mode: self.mode.max(child.mode), clients: in_both(self.clients, child.clients) }
    }

    fn build(self, site: &Site<'_>) -> Result<Box<dyn Filter>, Unusable> {
        if self.mode == Mode::Off && !self.clients.is_empty() {
            return Err(Unusable::new("`clients` needs `mode: required` or `mode: optional`"));
        }
        let mut claims = Vec::new();
        for (name, client) in site.clients.iter().filter(|(_, client)| !client.certificates.is_empty()) {
            let certificates = client.certificates.iter().map(|names| Claim::new(&names.value));
            let certificates = certificates.collect::<Result<_, _>>().map_err(Unusable::new)?;
            let tenant = client.tenant.as_ref().map(|tenant| tenant.value.as_str().into());
            claims.push(Known { client: Client { name: name.as_str().into(), tenant }, certificates });
        }
        let has = |name: &String| claims.iter().any(|known| *known.client.name == **name);
        if let Some(unknown) = self.clients.iter().find(|name| !has(name)) {
            return Err(Unusable::new(match unknown.as_str() {
                "" => "`clients` here and those of every route have none in common".to_owned(),
                unknown => format!("`clients`: there is no client `{unknown}` that has `certificates`"),
            }));
        }
        if self.mode == Mode::Required && claims.is_empty() {
            return Err(Unusable::new("no client of the policy has `certificates`, so nobody could pass"));
        }
        Ok(Box::new(ClientCert { mode: self.mode, clients: self.clients, known: claims }))
    }
}

#[derive(Debug)]
struct ClientCert {
    mode: Mode,
    clients: Vec<String>,
    known: Vec<Known>,
}

/// A client and the certificates that are its own.
#[derive(Debug)]
struct Known {
    client: Client,
    certificates: Vec<Claim>,
}

/// What must hold of a certificate: all that is named.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Claim {
    dns: Option<Arc<str>>,
    uri: Option<Arc<str>>,
    email: Option<Arc<str>>,
    spki_sha256: Option<[u8; 32]>,
}

impl Claim {
    /// What the policy says of a certificate, or what is wrong with it.
    pub(crate) fn new(names: &CertificateNames) -> Result<Self, String> {
        let CertificateNames { dns, uri, email, spki_sha256 } = names;
        if dns.is_none() && uri.is_none() && email.is_none() && spki_sha256.is_none() {
            return Err("a certificate is known by `dns`, `uri`, `email` or `spki_sha256`: name one".to_owned());
        }
        let plain = |what: &str, name: &Option<String>, fits: fn(&str) -> bool| match name {
            Some(name) if name.is_empty() || !name.bytes().all(|b| b.is_ascii_graphic()) || !fits(name) => {
                Err(format!("`{name}` is not {what} that a certificate could carry"))
            }
            Some(name) => Ok(Some(Arc::from(name.as_str()))),
            None => Ok(None),
        };
        let pin = |text: &String| {
            let bytes = STANDARD.decode(text).ok().and_then(|bytes| <[u8; 32]>::try_from(bytes).ok());
            bytes.ok_or_else(|| {
                "`spki_sha256` is the SHA-256 of the public key in base64, as `certs show` prints it".to_owned()
            })
        };
        Ok(Self {
            dns: plain("a DNS name", dns, |name| !name.contains(['*', '/', ':', '@']))?,
            uri: plain("a URI", uri, |name| name.contains(':'))?,
            email: plain("an address", email, |name| name.split('@').count() == 2)?,
            spki_sha256: spki_sha256.as_ref().map(pin).transpose()?,
        })
    }

    fn fits(&self, certificate: &Certificate) -> bool {
        let has = |wanted: &Option<Arc<str>>, is: fn(&Name, &str) -> bool| {
            wanted.as_ref().is_none_or(|wanted| certificate.names().iter().any(|name| is(name, wanted)))
        };
        has(&self.dns, |name, dns| matches!(name, Name::Dns(own) if own.eq_ignore_ascii_case(dns)))
            // Every letter counts, also where the scheme would let some be told otherwise (RFC 5280 section 7.4).
            && has(&self.uri, |name, uri| matches!(name, Name::Uri(own) if own == uri))
            && has(&self.email, |name, email| matches!(name, Name::Email(own) if same_mailbox(own, email)))
            && self.spki_sha256.as_ref().is_none_or(|pin| certificate.spki_sha256() == Some(pin))
    }
}

/// The part before the `@` to the letter, the host without regard to case (RFC 5280 section 7.5).
fn same_mailbox(one: &str, other: &str) -> bool {
    match (one.split_once('@'), other.split_once('@')) {
        (Some((name, host)), Some((others, at))) => name == others && host.eq_ignore_ascii_case(at),
        (Some(_) | None, _) => false,
    }
}

impl Filter for ClientCert {
    fn name(&self) -> &'static str {
        "client_cert"
    }

    fn head(&self, request: &Request<'_>, _host: &dyn Host, context: &mut Context) -> Verdict {
        // Not 401: no field of a request could bring what is missing, only another connection.
        let refuse = |code, detail| Verdict::refuse(403, code, detail);
        let certificate = match (self.mode, request.certificate) {
            (Mode::Off, _) | (Mode::Optional, None) => return Verdict::Pass,
            (Mode::Required, None) => {
                return refuse("client_cert_missing", "Connect with the client certificate that you were given.");
            }
            (Mode::Optional | Mode::Required, Some(certificate)) => certificate,
        };
        let mut fitting =
            self.known.iter().filter(|known| known.certificates.iter().any(|claim| claim.fits(certificate)));
        match (fitting.next(), fitting.next()) {
            (None, _) if self.mode == Mode::Optional => Verdict::Pass,
            (None, _) => refuse("client_cert_unknown", "No client here is known by the names in your certificate."),
            (Some(_), Some(_)) => {
                refuse("client_cert_ambiguous", "The names in your certificate are those of several clients.")
            }
            (Some(Known { client, .. }), None) => {
                if !self.clients.is_empty() && !self.clients.iter().any(|name| **name == *client.name) {
                    return refuse("client_not_allowed", "The client that your certificate names may not call this.");
                }
                context.identify(client.clone());
                Verdict::Pass
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rcgen::{CertificateParams, KeyPair, PublicKeyData as _, SanType};

    use super::*;

    /// A certificate with these names, and its key's pin.
    fn certificate(names: &[(&str, &str)]) -> (Certificate, String) {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.subject_alt_names = names
            .iter()
            .map(|(kind, name)| match *kind {
                "dns" => SanType::DnsName((*name).try_into().unwrap()),
                "uri" => SanType::URI((*name).try_into().unwrap()),
                "email" => SanType::Rfc822Name((*name).try_into().unwrap()),
                _ => SanType::IpAddress(name.parse().unwrap()),
            })
            .collect();
        let made = params.self_signed(&key).unwrap();
        let spki = crate::crypto::sha256(&key.subject_public_key_info());
        (Certificate::new(made.der()), STANDARD.encode(spki))
    }

    fn claim(names: &[(&str, &str)]) -> Result<Claim, String> {
        let of = |kind: &str| names.iter().find(|(k, _)| *k == kind).map(|(_, name)| (*name).to_owned());
        Claim::new(&CertificateNames {
            dns: of("dns"),
            uri: of("uri"),
            email: of("email"),
            spki_sha256: of("spki"),
        })
    }

    #[test]
    fn what_a_claim_fits() {
        let everything =
            [("dns", "Pay.acme.test"), ("uri", "spiffe://acme/pay"), ("email", "Ops@acme.test"), ("ip", "10.0.0.1")];
        let (shown, pin) = certificate(&everything);
        let (wild, _) = certificate(&[("dns", "*.acme.test")]);
        let (_, other) = certificate(&[]);
        let cases: [(&[(&str, &str)], bool); 15] = [
            (&[("dns", "pay.ACME.test")], true),
            (&[("dns", "acme.test")], false),
            (&[("dns", "ay.acme.test")], false),
            (&[("dns", "10.0.0.1")], false),
            (&[("uri", "spiffe://acme/pay")], true),
            (&[("uri", "spiffe://acme/Pay")], false),
            (&[("uri", "SPIFFE://acme/pay")], false),
            (&[("email", "Ops@ACME.test")], true),
            (&[("email", "ops@acme.test")], false),
            (&[("spki", &pin)], true),
            (&[("spki", &other)], false),
            (&[("dns", "pay.acme.test"), ("spki", &pin)], true),
            (&[("dns", "pay.acme.test"), ("spki", &other)], false),
            (&[("dns", "else.acme.test"), ("spki", &pin)], false),
            (&[("dns", "pay.acme.test"), ("uri", "spiffe://acme/pay"), ("email", "Ops@acme.test")], true),
        ];
        for (names, fits) in cases {
            assert_eq!(claim(names).unwrap().fits(&shown), fits, "{names:?}");
            assert!(!claim(names).unwrap().fits(&wild), "{names:?}");
            assert!(!claim(names).unwrap().fits(&Certificate::new(b"unreadable")), "{names:?}");
        }
    }

    #[test]
    fn claims_that_cannot_be_meant() {
        for names in [
            &[][..],
            &[("dns", "")],
            &[("dns", "*.acme.test")],
            &[("dns", "a b")],
            &[("dns", "https://acme.test")],
            &[("uri", "acme")],
            &[("email", "acme.test")],
            &[("email", "a@b@c")],
            &[("spki", "AAAA")],
            &[("spki", "not base64")],
        ] {
            assert!(claim(names).is_err(), "{names:?}");
        }
    }

    #[test]
    fn facts_are_those_of_the_certificate() {
        let (shown, pin) = certificate(&[("dns", "a.test"), ("ip", "::1"), ("uri", "urn:x")]);
        assert_eq!(shown.names(), [Name::Dns("a.test".into()), Name::Uri("urn:x".into())]);
        assert_eq!(shown.spki_sha256().map(|pin| STANDARD.encode(pin)), Some(pin));
        let serial = shown.serial_hex();
        assert!(!serial.is_empty() && serial.bytes().all(|byte| byte.is_ascii_hexdigit()), "{serial}");
        let broken = Certificate::new(b"0\x03abc");
        assert_eq!((broken.names(), broken.spki_sha256(), broken.serial_hex().as_str()), (&[][..], None, ""));
    }

    proptest! {
        /// Whatever a byte of it becomes, a certificate says what it says or nothing.
        #[test]
        fn no_certificate_panics(at in any::<prop::sample::Index>(), byte in any::<u8>(), cut in any::<prop::sample::Index>(), noise in proptest::collection::vec(any::<u8>(), 0..64)) {
            let key = KeyPair::generate().unwrap();
            let der = CertificateParams::new(vec!["a.test".to_owned()]).unwrap().self_signed(&key).unwrap().der().to_vec();
            let mut changed = der.clone();
            let at = at.index(changed.len());
            changed[at] = byte;
            let _ = Certificate::new(&changed);
            let _ = Certificate::new(&noise);
            let cut = Certificate::new(&der[..cut.index(der.len())]);
            prop_assert!(cut.names().is_empty() && cut.spki_sha256().is_none());
        }
    }
}
