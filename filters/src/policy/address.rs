//! An upstream's address as it is written: `HOST:PORT`, where the host is an IP address or a DNS name.

use std::borrow::Cow;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Where an upstream listens.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Address {
    Ip(SocketAddr),
    /// A DNS name, which the data plane resolves, and a port.
    Name(String, u16),
}

/// Why a text is not an address.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct NotAnAddress(String);

impl Address {
    /// Whether the host is a name that must be resolved.
    pub fn is_name(&self) -> bool {
        matches!(self, Self::Name(..))
    }

    /// Whether the address is on this host, as far as its text says.
    pub fn is_loopback(&self) -> bool {
        match self {
            Self::Ip(at) => at.ip().is_loopback(),
            Self::Name(host, _) => host == "localhost" || host.ends_with(".localhost"),
        }
    }
}

impl FromStr for Address {
    type Err = NotAnAddress;

    fn from_str(text: &str) -> Result<Self, NotAnAddress> {
        if let Ok(at) = text.parse::<SocketAddr>() {
            return match at.port() {
                0 => Err(not(text, "its port is 0", "1 to 65535 belongs there")),
                _ => Ok(Self::Ip(at)),
            };
        }
        if let Some((scheme, rest)) = text.split_once("://") {
            return Err(url(text, scheme, rest));
        }
        if let Ok(ip) = text.trim_matches(['[', ']']).parse::<IpAddr>() {
            let example = SocketAddr::new(ip, 443);
            return Err(not(text, "it has no port", &format!("write \"{example}\", say")));
        }
        let Some((host, port)) = text.rsplit_once(':') else {
            let example = if is_dns_name(text) { text } else { "core.internal" };
            return Err(not(text, "it has no port", &format!("write \"{example}:443\", say")));
        };
        let Some(port) = port.parse().ok().filter(|port| *port != 0) else {
            return Err(not(
                text,
                "its port is not a number from 1 to 65535",
                "write \"core.internal:443\", say",
            ));
        };
        match is_dns_name(host) {
            true => Ok(Self::Name(host.to_ascii_lowercase(), port)),
            false => Err(not(
                text,
                "its host is neither an IP address nor a DNS name",
                "write \"core.internal:443\" or \"[::1]:443\", say",
            )),
        }
    }
}

fn not(text: &str, why: &str, instead: &str) -> NotAnAddress {
    // A URL may hold a password.
    let text = if text.contains('@') { "…" } else { text };
    NotAnAddress(format!("`{text}` is not an upstream's address: {why}; {instead}"))
}

/// What to write instead of a URL.
fn url(text: &str, scheme: &str, rest: &str) -> NotAnAddress {
    let (authority, path) = rest.find('/').map_or((rest, ""), |at| rest.split_at(at));
    let (port, tls) = match scheme {
        "http" => (80, "off"),
        "https" => (443, "{ server_name: NAME }"),
        _ => return not(text, "an upstream speaks HTTP", "write HOST:PORT"),
    };
    let written = match authority.parse::<Address>() {
        Ok(address) => address.to_string(),
        // The scheme's port.
        Err(_) => match format!("{authority}:{port}").parse::<Address>() {
            Ok(address) => address.to_string(),
            Err(_) => return not(text, "it is a URL with more than a host and a port", "write HOST:PORT"),
        },
    };
    let host = written.rsplit_once(':').map_or("", |(host, _)| host);
    let tls = tls.replace("NAME", host);
    if path.len() > 1 {
        let why = format!("an upstream has no path, and `{path}` is one");
        return not(text, &why, &format!("write \"{written}\" and `tls: {tls}`"));
    }
    not(text, "it is a URL", &format!("write \"{written}\" and `tls: {tls}`"))
}

/// Labels of letters, digits, `-` and `_`, with dots between them. A name whose last label is a number would be read as
/// an IP address by some resolvers, so it is none.
pub(super) fn is_dns_name(text: &str) -> bool {
    const MOST: usize = 253;
    let is_label = |label: &str| {
        let plain = label.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'));
        plain && (1..=63).contains(&label.len()) && !label.starts_with('-') && !label.ends_with('-')
    };
    let last = text.rsplit('.').next().unwrap_or_default();
    text.len() <= MOST && text.split('.').all(is_label) && !last.bytes().all(|byte| byte.is_ascii_digit())
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ip(at) => at.fmt(f),
            Self::Name(host, port) => write!(f, "{host}:{port}"),
        }
    }
}

impl<'de> Deserialize<'de> for Address {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

impl Serialize for Address {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl JsonSchema for Address {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        "Address".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "string" })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_a_host_and_a_port() {
        for (text, name) in [
            ("127.0.0.1:80", false),
            ("[::1]:8443", false),
            ("core.internal:443", true),
            ("localhost:65535", true),
            ("_http._tcp.core:1", true),
        ] {
            let address: Address = text.parse().expect(text);
            assert_eq!((address.to_string().as_str(), address.is_name()), (text, name));
        }
        assert_eq!("Core.Internal:1".parse(), Ok(Address::Name("core.internal".into(), 1)));
    }

    #[test]
    fn other_texts_are_refused_with_what_to_write_instead() {
        for (text, expected) in [
            (
                "127.0.0.1:0",
                "`127.0.0.1:0` is not an upstream's address: its port is 0; 1 to 65535 belongs there",
            ),
            (
                "core.internal",
                "`core.internal` is not an upstream's address: it has no port; write \"core.internal:443\", say",
            ),
            (
                "10.1.2.3",
                "`10.1.2.3` is not an upstream's address: it has no port; write \"10.1.2.3:443\", say",
            ),
            ("::1", "`::1` is not an upstream's address: it has no port; write \"[::1]:443\", say"),
            (
                "core.internal:http",
                "`core.internal:http` is not an upstream's address: its port is not a number from 1 to 65535; \
                 write \"core.internal:443\", say",
            ),
            (
                "a b:80",
                "`a b:80` is not an upstream's address: its host is neither an IP address nor a DNS name; \
                 write \"core.internal:443\" or \"[::1]:443\", say",
            ),
            (
                "10.1.2.300:80",
                "`10.1.2.300:80` is not an upstream's address: its host is neither an IP address nor a DNS name; \
                 write \"core.internal:443\" or \"[::1]:443\", say",
            ),
            (
                "http://core.internal:8080/",
                "`http://core.internal:8080/` is not an upstream's address: it is a URL; write \"core.internal:8080\" \
                 and `tls: off`",
            ),
            (
                "https://core.internal",
                "`https://core.internal` is not an upstream's address: it is a URL; write \"core.internal:443\" and \
                 `tls: { server_name: core.internal }`",
            ),
            (
                "http://core/api",
                "`http://core/api` is not an upstream's address: an upstream has no path, and `/api` is one; write \
                 \"core:80\" and `tls: off`",
            ),
            (
                "http://me:secret@core/",
                "`…` is not an upstream's address: it is a URL with more than a host and a port; \
                 write HOST:PORT",
            ),
            (
                "ftp://core",
                "`ftp://core` is not an upstream's address: an upstream speaks HTTP; write HOST:PORT",
            ),
        ] {
            let refused = text.parse::<Address>().expect_err(text);
            assert_eq!(refused.to_string(), expected);
        }
    }

    #[test]
    fn only_this_host_is_loopback() {
        for (text, expected) in [
            ("127.9.0.1:80", true),
            ("[::1]:80", true),
            ("localhost:80", true),
            ("core.localhost:80", true),
            ("localhost.example:80", false),
            ("10.0.0.1:80", false),
        ] {
            assert_eq!(text.parse::<Address>().expect(text).is_loopback(), expected, "{text}");
        }
    }
}
