//! Keeps pages in a browser away from addresses that are for operators and services.
//!
//! A browser on an operator's machine reaches what the operator reaches. Any page can have it send a request to another
//! origin, and a name that its owner points at a private address makes that address the page's own origin (DNS rebinding).

use std::net::IpAddr;

use http::{HeaderMap, StatusCode, header};

/// Why a request is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FromPage {
    /// A page has sent it.
    CrossSite,
    /// It names a host that is not ours.
    UnknownHost,
}

impl FromPage {
    pub(crate) fn told(self) -> (StatusCode, &'static str, &'static str) {
        match self {
            Self::CrossSite => {
                (StatusCode::FORBIDDEN, "sent_by_page", "Pages in a browser may not send requests here.")
            }
            Self::UnknownHost => (
                StatusCode::MISDIRECTED_REQUEST,
                "host_unknown",
                "Use an IP address or localhost, or write the name into `admin.allowed_hosts`.",
            ),
        }
    }
}

/// Whether a page in a browser has sent it. Browsers write `Origin` on every request that may change something, and
/// `Sec-Fetch-Site` on all. A person who opens the address sends `none`.
pub(crate) fn cross_site(headers: &HeaderMap) -> Option<FromPage> {
    let by_person = |site: &header::HeaderValue| site.as_bytes() == b"none";
    let has_site = headers.get("sec-fetch-site").is_some_and(|site| !by_person(site));
    (headers.contains_key(header::ORIGIN) || has_site).then_some(FromPage::CrossSite)
}

/// Whether the host of a request is a name that nobody has allowed.
pub(crate) fn unknown_host(headers: &HeaderMap, allowed: &[String]) -> Option<FromPage> {
    let host = headers.get(header::HOST).and_then(|host| host.to_str().ok()).unwrap_or_default();
    let name = match host.strip_prefix('[') {
        Some(rest) => rest.split_once(']').map_or(rest, |(address, _)| address),
        None => host.split_once(':').map_or(host, |(name, _)| name),
    };
    let is_known = name.parse::<IpAddr>().is_ok()
        || name.eq_ignore_ascii_case("localhost")
        || allowed.iter().any(|allowed| allowed.eq_ignore_ascii_case(name));
    (!is_known).then_some(FromPage::UnknownHost)
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    fn headers(fields: &[(&'static str, &'static str)]) -> HeaderMap {
        fields.iter().map(|(name, value)| (name.parse().unwrap(), HeaderValue::from_static(value))).collect()
    }

    #[test]
    fn pages_are_told_from_people_and_programs() {
        for (fields, expected) in [
            (&[][..], None),
            (&[("sec-fetch-site", "none")], None),
            (&[("sec-fetch-site", "cross-site")], Some(FromPage::CrossSite)),
            (&[("sec-fetch-site", "same-origin")], Some(FromPage::CrossSite)),
            (&[("origin", "http://127.0.0.1:9901")], Some(FromPage::CrossSite)),
            (&[("origin", "null")], Some(FromPage::CrossSite)),
        ] {
            assert_eq!(cross_site(&headers(fields)), expected, "{fields:?}");
        }
    }

    #[test]
    fn names_must_be_allowed() {
        let allowed = ["edge-admin.internal".to_owned()];
        for (host, expected) in [
            ("127.0.0.1:9901", None),
            ("[::1]:9901", None),
            ("10.1.2.3", None),
            ("localhost:9901", None),
            ("LOCALHOST", None),
            ("edge-admin.internal:9901", None),
            ("rebound.example:9901", Some(FromPage::UnknownHost)),
            ("127.0.0.1.example", Some(FromPage::UnknownHost)),
            ("", Some(FromPage::UnknownHost)),
        ] {
            assert_eq!(unknown_host(&headers(&[("host", host)]), &allowed), expected, "{host}");
        }
    }
}
