//! Why connections to an upstream fail: logged, a line a cause now and then, and kept for `/config`.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use pingora::{Error, ErrorType};
use serde::Serialize;
use time::OffsetDateTime;

/// Between two log lines about one cause at one upstream. What fails meanwhile is counted in the next line.
const QUIET: Duration = Duration::from_secs(10);
/// Longest text of a library that is kept.
const MOST_CHARS: usize = 300;

/// What operators look for. The names are public: in the log, in `explain --log` and on `/config`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Cause {
    /// No CA that the policy trusts has signed the upstream's certificate.
    UnknownIssuer,
    /// The upstream's certificate does not bear `server_name`.
    WrongName,
    Expired,
    NotValidYet,
    Revoked,
    /// The upstream refuses the edge's certificate, or misses one.
    ClientCertificateRejected,
    /// The upstream does not speak TLS.
    NotTls,
    /// Anything else of TLS.
    TlsFailed,
    /// Nothing listens there.
    ConnectionRefused,
    ConnectTimeout,
    /// Anything else.
    ConnectFailed,
    /// No name of its addresses could be looked up, ever.
    NameUnresolved,
    /// It answers with something other than its `protocol`.
    InvalidResponse,
}

impl Cause {
    pub(crate) const ALL: [Self; 13] = [
        Self::UnknownIssuer,
        Self::WrongName,
        Self::Expired,
        Self::NotValidYet,
        Self::Revoked,
        Self::ClientCertificateRejected,
        Self::NotTls,
        Self::TlsFailed,
        Self::ConnectionRefused,
        Self::ConnectTimeout,
        Self::ConnectFailed,
        Self::NameUnresolved,
        Self::InvalidResponse,
    ];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::UnknownIssuer => "unknown_issuer",
            Self::WrongName => "wrong_name",
            Self::Expired => "expired",
            Self::NotValidYet => "not_valid_yet",
            Self::Revoked => "revoked",
            Self::ClientCertificateRejected => "client_certificate_rejected",
            Self::NotTls => "not_tls",
            Self::TlsFailed => "tls_failed",
            Self::ConnectionRefused => "connection_refused",
            Self::ConnectTimeout => "connect_timeout",
            Self::ConnectFailed => "connect_failed",
            Self::NameUnresolved => "name_unresolved",
            Self::InvalidResponse => "invalid_response",
        }
    }

    /// For `explain --log`: what it means.
    pub(crate) fn meaning(self) -> &'static str {
        match self {
            Self::UnknownIssuer => "no CA in the upstream's `ca` has signed the upstream's certificate",
            Self::WrongName => "the upstream's certificate does not bear the policy's `server_name`",
            Self::Expired => "the upstream's certificate has expired",
            Self::NotValidYet => "the upstream's certificate is not valid yet",
            Self::Revoked => "the upstream's certificate is revoked, or its revocation list is out of date",
            Self::ClientCertificateRejected => "the upstream refuses the edge's `certificate`, or misses one",
            Self::NotTls => "the upstream does not speak TLS at this port",
            Self::TlsFailed => "the TLS handshake with the upstream failed",
            Self::ConnectionRefused => "nothing listens at the upstream's address",
            Self::ConnectTimeout => "no connection to the upstream within `connect_timeout_ms`",
            Self::ConnectFailed => "the connection to the upstream failed",
            Self::NameUnresolved => "no name in the upstream's `addresses` can be looked up",
            Self::InvalidResponse => {
                "the upstream's response is malformed, or of another protocol than the policy's `protocol` and `tls`"
            }
        }
    }

    /// Why a connection could not be made.
    pub(crate) fn of_connecting(error: &Error) -> Self {
        match error.etype() {
            ErrorType::ConnectRefused => Self::ConnectionRefused,
            ErrorType::ConnectTimedout | ErrorType::TLSHandshakeTimedout => Self::ConnectTimeout,
            _ => Self::of_tls(&error.to_string()).unwrap_or(match error.etype() {
                ErrorType::TLSHandshakeFailure => Self::TlsFailed,
                ErrorType::InvalidCert => Self::Revoked,
                _ => Self::ConnectFailed,
            }),
        }
    }

    /// What is wrong with what an upstream has sent, if that was no message of its protocol.
    pub(crate) fn of_response(error: &Error) -> Option<Self> {
        use pingora::ErrorType::{H2Downgrade, H2Error, HandshakeError, InvalidH2, InvalidHTTPHeader};
        let invalid =
            matches!(error.etype(), InvalidHTTPHeader | H2Error | InvalidH2 | H2Downgrade | HandshakeError);
        invalid.then_some(Self::InvalidResponse)
    }

    /// What an error of `rustls` tells. Pingora passes on its text alone.
    pub(crate) fn of_tls(text: &str) -> Option<Self> {
        const REJECTIONS: [&str; 9] = [
            "CertificateRequired",
            "BadCertificate",
            "CertificateUnknown",
            "CertificateExpired",
            "CertificateRevoked",
            "UnsupportedCertificate",
            "UnknownCA",
            "AccessDenied",
            "NoCertificate",
        ];
        if let Some((_, alert)) = text.split_once("received fatal alert: ") {
            let rejected = REJECTIONS.iter().any(|name| alert.starts_with(name));
            return Some(if rejected { Self::ClientCertificateRejected } else { Self::TlsFailed });
        }
        if text.contains("received corrupt message of type") {
            return Some(Self::NotTls);
        }
        let (_, certificate) = text.split_once("invalid peer certificate: ")?;
        let known = [
            ("UnknownIssuer", Self::UnknownIssuer),
            ("certificate not valid for name", Self::WrongName),
            ("NotValidForName", Self::WrongName),
            ("certificate expired", Self::Expired),
            ("Expired", Self::Expired),
            ("certificate not valid yet", Self::NotValidYet),
            ("NotValidYet", Self::NotValidYet),
            ("certificate revocation list expired", Self::Revoked),
            ("Revoked", Self::Revoked),
            ("UnknownRevocationStatus", Self::Revoked),
        ];
        let known = known.into_iter().find(|(text, _)| certificate.starts_with(text));
        Some(known.map_or(Self::TlsFailed, |(_, cause)| cause))
    }
}

/// The last failure of a cause, as `/config` has it.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Failed {
    cause: Cause,
    /// `None`: the name has no address.
    #[serde(skip_serializing_if = "Option::is_none")]
    address: Option<SocketAddr>,
    /// The library's words.
    detail: String,
    #[serde(with = "time::serde::rfc3339")]
    last: OffsetDateTime,
    count: u64,
    #[serde(skip)]
    logged: Option<Instant>,
    #[serde(skip)]
    unlogged: u64,
}

/// Failures of one upstream, one entry a cause.
#[derive(Debug, Default)]
pub(super) struct Failures(Mutex<BTreeMap<Cause, Failed>>);

impl Failures {
    /// Counts a failure, and logs it unless the last line is too young.
    pub(super) fn note(&self, upstream: &str, address: SocketAddr, cause: Cause, detail: &str, now: Instant) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let failed = count(&mut all, Some(address), cause, detail);
        if failed.logged.is_some_and(|logged| now.duration_since(logged) < QUIET) {
            failed.unlogged += 1;
            return;
        }
        let (detail, unlogged) = (failed.detail.as_str(), std::mem::take(&mut failed.unlogged));
        failed.logged = Some(now);
        tracing::warn!(upstream, %address, cause = cause.name(), detail, unlogged, "no connection to the upstream");
    }

    /// Counts a lookup that failed. The resolver logs it.
    pub(super) fn note_lookup(&self, detail: &str) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        count(&mut all, None, Cause::NameUnresolved, detail);
    }

    pub(super) fn report(&self) -> Vec<Failed> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }
}

fn count<'f>(
    all: &'f mut BTreeMap<Cause, Failed>,
    address: Option<SocketAddr>,
    cause: Cause,
    detail: &str,
) -> &'f mut Failed {
    let last = OffsetDateTime::now_utc();
    let detail: String = detail.chars().take(MOST_CHARS).collect();
    let new = || Failed { cause, address, detail: String::new(), last, count: 0, logged: None, unlogged: 0 };
    let failed = all.entry(cause).or_insert_with(new);
    (failed.address, failed.detail, failed.last) = (address, detail, last);
    failed.count += 1;
    failed
}

/// An error with those that it comes from.
pub(super) fn chain(error: &dyn std::error::Error) -> String {
    let sources = std::iter::successors(error.source(), |error| error.source());
    sources.fold(error.to_string(), |text, source| format!("{text}: {source}"))
}

#[cfg(test)]
mod tests {
    use rustls::{AlertDescription, CertificateError, InvalidMessage};

    use super::*;

    #[test]
    fn what_rustls_says_is_understood() {
        let name = || rustls_pki_types::ServerName::try_from("core.test").unwrap();
        let presented = vec!["DnsName(\"other.test\")".to_owned()];
        let now = rustls_pki_types::UnixTime::now();
        for (error, expected) in [
            (CertificateError::UnknownIssuer, Cause::UnknownIssuer),
            (CertificateError::NotValidForName, Cause::WrongName),
            (CertificateError::NotValidForNameContext { expected: name(), presented }, Cause::WrongName),
            (CertificateError::Expired, Cause::Expired),
            (CertificateError::ExpiredContext { time: now, not_after: now }, Cause::Expired),
            (CertificateError::NotValidYetContext { time: now, not_before: now }, Cause::NotValidYet),
            (CertificateError::Revoked, Cause::Revoked),
            (CertificateError::ExpiredRevocationListContext { time: now, next_update: now }, Cause::Revoked),
            (CertificateError::BadEncoding, Cause::TlsFailed),
        ] {
            let error = rustls::Error::InvalidCertificate(error);
            let text = format!(
                " TLSHandshakeFailure context: TLS connect() failed: tls connect error: {error}, SNI: a"
            );
            assert_eq!(Cause::of_tls(&text), Some(expected), "{text}");
        }
        for (error, expected) in [
            (
                rustls::Error::AlertReceived(AlertDescription::CertificateRequired),
                Some(Cause::ClientCertificateRejected),
            ),
            (
                rustls::Error::AlertReceived(AlertDescription::UnknownCA),
                Some(Cause::ClientCertificateRejected),
            ),
            (rustls::Error::AlertReceived(AlertDescription::HandshakeFailure), Some(Cause::TlsFailed)),
            (rustls::Error::InvalidMessage(InvalidMessage::InvalidContentType), Some(Cause::NotTls)),
            (rustls::Error::HandshakeNotComplete, None),
        ] {
            assert_eq!(Cause::of_tls(&error.to_string()), expected, "{error}");
        }
    }

    #[test]
    fn a_cause_is_named_as_it_is_written() {
        for cause in Cause::ALL {
            assert_eq!(serde_json::to_value(cause).unwrap(), cause.name());
        }
    }

    #[test]
    fn a_cause_is_logged_now_and_then_and_always_counted() {
        let failures = Failures::default();
        let (at, now) = (SocketAddr::from(([127, 0, 0, 1], 1)), Instant::now());
        for (cause, after_s, unlogged) in [
            (Cause::Expired, 0, 0),
            (Cause::Expired, 1, 1),
            (Cause::WrongName, 2, 0),
            (Cause::Expired, 9, 2),
            (Cause::Expired, 10, 0),
        ] {
            failures.note("core", at, cause, "why", now + Duration::from_secs(after_s));
            let noted = failures.report().into_iter().find(|failed| failed.cause == cause).unwrap();
            assert_eq!(noted.unlogged, unlogged, "after {after_s} s");
        }
        let counts: Vec<_> = failures.report().iter().map(|failed| (failed.cause, failed.count)).collect();
        assert_eq!(counts, [(Cause::WrongName, 1), (Cause::Expired, 4)]);
    }
}
