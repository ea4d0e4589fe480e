//! How connections to an upstream are protected: not at all, by its certificate, or by both sides' certificates.

use schemars::JsonSchema;
use serde::de::value::MapAccessDeserializer;
use serde::de::{MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};

use super::document::At;
use super::mistake::Mistake;
use super::{Reference, StaleCrl};

/// `off` for plain HTTP, or the settings of TLS.
#[derive(Clone, Debug, PartialEq, Serialize, JsonSchema)]
#[serde(untagged)]
pub enum UpstreamSecurity {
    Off(Off),
    Tls(Box<UpstreamTls>),
}

/// Plain HTTP.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Off {
    Off,
}

/// TLS to an upstream. There is no way to switch verification off.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct UpstreamTls {
    /// The name that the upstream's certificate must carry.
    pub server_name: At<String>,
    /// The CAs that sign it, PEM; absent: the CAs that this system trusts.
    #[schemars(with = "Option<super::reference::FileReference>")]
    pub ca: Option<At<Reference>>,
    /// What those CAs have revoked: a list of each, PEM, or the one list in DER; absent: nothing. A certificate that is
    /// on a list gets no request. For requests the gateway looks at the upstream's own certificate, for probes and
    /// copies at its chain too; Envoy always at the chain, of which every CA must then have its list.
    #[schemars(with = "Option<super::reference::FileReference>")]
    pub crl: Option<At<Reference>>,
    /// What becomes of the upstream while a list is past its `nextUpdate`. Envoy refuses it always, so `allow` is not
    /// for Envoy.
    #[serde(default)]
    pub stale_crl: At<StaleCrl>,
    /// The edge's own chain, PEM, for mutual TLS; absent: the edge shows no certificate.
    #[schemars(with = "Option<super::reference::FileReference>")]
    pub certificate: Option<At<Reference>>,
    /// The key of `certificate`, PEM.
    #[schemars(with = "Option<super::reference::FileReference>")]
    pub key: Option<At<Reference>>,
}

/// Mutual TLS between our own services.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct MutualTls {
    /// The name that the server's certificate must carry.
    pub server_name: At<String>,
    /// The CAs that sign it, PEM.
    #[schemars(with = "super::reference::FileReference")]
    pub ca: At<Reference>,
    /// What those CAs have revoked: a list of each, PEM, or the one list in DER; absent: nothing.
    #[schemars(with = "Option<super::reference::FileReference>")]
    pub crl: Option<At<Reference>>,
    /// What becomes of the server while a list is past its `nextUpdate`. Envoy refuses it always, so `allow` is not for
    /// Envoy.
    #[serde(default)]
    pub stale_crl: At<StaleCrl>,
    /// The client's chain, PEM.
    #[schemars(with = "super::reference::FileReference")]
    pub certificate: At<Reference>,
    /// The client's key, PEM.
    #[schemars(with = "super::reference::FileReference")]
    pub key: At<Reference>,
}

impl UpstreamSecurity {
    /// The settings of TLS; `None` for plain HTTP.
    pub fn tls(&self) -> Option<&UpstreamTls> {
        match self {
            Self::Off(_) => None,
            Self::Tls(tls) => Some(tls),
        }
    }
}

impl From<&MutualTls> for UpstreamTls {
    fn from(tls: &MutualTls) -> Self {
        let MutualTls { server_name, ca, crl, stale_crl, certificate, key } = tls.clone();
        let (ca, certificate, key) = (Some(ca), Some(certificate), Some(key));
        Self { server_name, ca, crl, stale_crl, certificate, key }
    }
}

/// By hand: a derived untagged enum would buffer the fields, and forget where they are written.
impl<'de> Deserialize<'de> for UpstreamSecurity {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(OffOrSettings)
    }
}

struct OffOrSettings;

impl<'de> Visitor<'de> for OffOrSettings {
    type Value = UpstreamSecurity;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("`off`, or `{ server_name: NAME }`")
    }

    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<UpstreamSecurity, E> {
        match text {
            "off" => Ok(UpstreamSecurity::Off(Off::Off)),
            other => Err(E::invalid_value(serde::de::Unexpected::Str(other), &self)),
        }
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<UpstreamSecurity, A::Error> {
        let tls = UpstreamTls::deserialize(MapAccessDeserializer::new(map))?;
        Ok(UpstreamSecurity::Tls(Box::new(tls)))
    }
}

pub(super) fn check(upstream: &str, tls: &UpstreamTls, mistakes: &mut Vec<Mistake>) {
    check_server_name(&tls.server_name, mistakes);
    match (&tls.certificate, &tls.key) {
        (Some(certificate), None) => {
            let message = format!(
                "upstream `{upstream}`: `certificate` needs its `key`; without both the edge shows none"
            );
            mistakes.push(Mistake::of(certificate, message));
        }
        (None, Some(key)) => {
            let message = format!(
                "upstream `{upstream}`: `key` needs its `certificate`; without both the edge shows none"
            );
            mistakes.push(Mistake::of(key, message));
        }
        (Some(_), Some(_)) | (None, None) => {}
    }
    if let (Some(crl), None) = (&tls.crl, &tls.ca) {
        let message = format!("upstream `{upstream}`: `crl` needs the `ca` whose list it is");
        mistakes.push(Mistake::of(crl, message));
    }
}

/// Whether a certificate can be verified for it.
pub(super) fn check_server_name(name: &At<String>, mistakes: &mut Vec<Mistake>) {
    let text = name.value.as_str();
    let is_address = text.parse::<std::net::IpAddr>().is_ok();
    if text.trim().is_empty() {
        mistakes.push(Mistake::of(
            name,
            "`server_name` is empty: the upstream's certificate could not be verified",
        ));
    } else if !is_address && !super::address::is_dns_name(text) {
        let message = format!("`server_name` is a whole DNS name or an IP address, and `{text}` is neither");
        mistakes.push(Mistake::of(name, message));
    }
}
