//! Taking tokens, sessions, devices and users out of use: what operators and identity services ask for, over HTTP and by
//! the command `gateway revoke`.
//!
//! On the admin address, and on the state service's: `POST /revocations` with one of `token`, `session`, `device` and
//! `user`, and `GET /revocations` for what is revoked now. It says who may ask ([`Operators`]); what becomes of it is
//! [`crate::state`]'s.

mod audit;
mod command;

pub(crate) use audit::{Caller, Door};
pub use command::{Options, run};

use std::fmt;
use std::path::Path;

use anyhow::{Context as _, ensure};
use filters::crypto::equal;
use filters::jwt::Revocation;
use filters::jwt::revocation::Kind;
use filters::policy::{At, Document};
use http::StatusCode;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use zeroize::Zeroizing;

use crate::load;
use crate::now_ms;
use crate::state::{NotRevoked, State};

/// The longest request, bytes.
pub(crate) const MOST_BYTES: usize = 4 * 1024;
/// How long a revocation is kept when nobody says: longer than access tokens live.
const KEPT_S: u64 = 24 * 3_600;
const MOST_KEPT_S: u64 = 366 * 24 * 3_600;
/// How far ahead of ours the clock of who revokes may be.
const MOST_AHEAD_S: u64 = 300;

/// What is to be revoked: exactly one of the first four.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::Args)]
#[serde(deny_unknown_fields, default)]
pub struct Wanted {
    /// The token with this `jti`, until it expires.
    #[arg(long, value_name = "JTI")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token: Option<String>,
    /// Every token of the session with this `sid`, those that are issued later included.
    #[arg(long, value_name = "SID")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub session: Option<String>,
    /// Every token of this device that has been issued until now: who logs in again is believed again, a second later.
    #[arg(long, value_name = "ID")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub device: Option<String>,
    /// Every token of the user with this `sub` that has been issued until now.
    #[arg(long, value_name = "SUB")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// Tokens of this tenant alone; absent: whatever their tenant.
    #[arg(long)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tenant: Option<String>,
    /// How long it is kept, longer than the tokens live: `24h` when absent. Over HTTP `for_s`, in seconds.
    #[arg(long = "for", value_name = "TIME", value_parser = seconds)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub for_s: Option<u64>,
    /// Of a device or a user: tokens issued (`iat`) until this Unix second, by the issuer's clock; absent: until now.
    #[arg(long, value_name = "SECOND")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub issued_until_s: Option<u64>,
    /// Take it back.
    #[arg(long)]
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub undo: bool,
}

impl Wanted {
    /// What it names.
    fn named(&self) -> impl Iterator<Item = (Kind, &str)> {
        let all = [
            (Kind::Token, &self.token),
            (Kind::Session, &self.session),
            (Kind::Device, &self.device),
            (Kind::User, &self.user),
        ];
        all.into_iter().filter_map(|(kind, id)| Some((kind, id.as_deref()?)))
    }

    fn revocation(&self, now_ms: u64) -> Result<Revocation, String> {
        let mut named = self.named();
        let (Some((kind, id)), None) = (named.next(), named.next()) else {
            return Err("name exactly one of `token`, `session`, `device` and `user`".to_owned());
        };
        let kept_s = self.for_s.unwrap_or(KEPT_S);
        if !(1..=MOST_KEPT_S).contains(&kept_s) {
            return Err(format!("a revocation is kept between 1 and {MOST_KEPT_S} seconds"));
        }
        let issued_until_ms = match (kind.spares_later_tokens(), self.issued_until_s) {
            (false, Some(_)) => return Err("`issued_until_s` is for devices and users".to_owned()),
            (false, None) => None,
            (true, None) => Some(now_ms),
            // The whole of that second: issuers tell no less.
            (true, Some(second)) => Some(second.saturating_mul(1_000).saturating_add(999)),
        };
        if issued_until_ms.is_some_and(|until| until > now_ms.saturating_add(MOST_AHEAD_S * 1_000)) {
            return Err(format!("`issued_until_s` is at most {MOST_AHEAD_S} seconds from now"));
        }
        let until_ms = now_ms.saturating_add(kept_s.saturating_mul(1_000));
        let (id, tenant) = (id.to_owned(), self.tenant.clone());
        let revocation = Revocation { kind, id, tenant, issued_until_ms, until_ms, undone: self.undo };
        match revocation.is_readable() {
            true => Ok(revocation),
            false => Err("ids and tenants are 1 to 256 visible ASCII characters, as in tokens".to_owned()),
        }
    }
}

/// `90s`, `15m`, `24h` or `7d`. A bare number could be any of them, and a revocation that ends too early is none.
fn seconds(text: &str) -> Result<u64, String> {
    let units = [("s", 1), ("m", 60), ("h", 3_600), ("d", 86_400)];
    let written = units.into_iter().find_map(|(unit, each)| Some((text.strip_suffix(unit)?, each)));
    let seconds = written.and_then(|(number, each)| number.parse::<u64>().ok()?.checked_mul(each));
    seconds.ok_or_else(|| "write 90s, 15m, 24h or 7d".to_owned())
}

/// Who may revoke.
pub(crate) enum Operators {
    /// Whoever reaches the address: it is on loopback, or asks for a certificate.
    Anybody,
    /// Whoever sends the secret.
    WithSecret(Zeroizing<Vec<u8>>),
    Nobody,
}

// By hand, so that no log can carry the secret.
impl fmt::Debug for Operators {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Anybody => "Anybody",
            Self::WithSecret(_) => "WithSecret",
            Self::Nobody => "Nobody",
        })
    }
}

impl Operators {
    /// `is_safe`: nobody from elsewhere reaches the address, or none that is not known.
    pub(crate) fn new(document: &Document, folder: &Path, is_safe: bool) -> anyhow::Result<Self> {
        const SHORTEST: usize = 32;
        let Some(At { value: reference, .. }) = &document.admin.revocation_secret else {
            return Ok(if is_safe { Self::Anybody } else { Self::Nobody });
        };
        let secret = load::secret(folder, reference).map_err(anyhow::Error::msg);
        let secret = secret.with_context(|| format!("admin.revocation_secret: {reference}"))?;
        ensure!(secret.len() >= SHORTEST, "admin.revocation_secret is at least {SHORTEST} bytes");
        Ok(Self::WithSecret(secret))
    }

    fn may(&self, authorization: Option<&[u8]>) -> Result<(), Answer> {
        let sent = authorization.and_then(|field| field.strip_prefix(b"Bearer "));
        match self {
            Self::Anybody => Ok(()),
            Self::WithSecret(secret) if sent.is_some_and(|sent| equal(sent, secret)) => Ok(()),
            Self::WithSecret(_) => Err(problem(
                StatusCode::UNAUTHORIZED,
                "revocation_secret",
                "send the policy's `admin.revocation_secret`: Authorization: Bearer SECRET",
            )),
            Self::Nobody => Err(problem(
                StatusCode::FORBIDDEN,
                "revocation_off",
                "off loopback nobody may revoke without a secret: set `admin.revocation_secret`",
            )),
        }
    }
}

/// A status and a JSON body.
pub(crate) type Answer = (StatusCode, Value);

/// What a request says of itself.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Fields<'r> {
    pub(crate) authorization: Option<&'r [u8]>,
    pub(crate) content_type: Option<&'r [u8]>,
}

/// `GET /revocations`.
pub(crate) fn list(state: &State, operators: &Operators, fields: Fields<'_>) -> Answer {
    if let Err(refused) = operators.may(fields.authorization) {
        return refused;
    }
    let mut all = state.revoked().list().all();
    all.sort_by_cached_key(Revocation::key);
    let age_s = state.revocations_age_s();
    (StatusCode::OK, json!({ "revocations": all, "age_s": age_s }))
}

/// `POST /revocations`.
pub(crate) async fn revoke(
    caller: Caller<'_>,
    state: &State,
    operators: &Operators,
    fields: Fields<'_>,
    body: &[u8],
) -> Answer {
    let (wanted, revocation) = match understood(operators, fields, body) {
        Ok(understood) => understood,
        Err(answer) => {
            audit::refused(&caller, answer.0);
            return answer;
        }
    };
    let answer = match state.revoke(revocation).await {
        Ok(outcome) => (StatusCode::OK, json!(outcome)),
        Err(why @ NotRevoked::Full) => {
            problem(StatusCode::INSUFFICIENT_STORAGE, "revocations_full", &why.to_string())
        }
        Err(why @ NotRevoked::Away) => {
            problem(StatusCode::SERVICE_UNAVAILABLE, "state_away", &why.to_string())
        }
    };
    audit::asked(&caller, operators, &wanted, answer.0);
    answer
}

fn understood(
    operators: &Operators,
    fields: Fields<'_>,
    body: &[u8],
) -> Result<(Wanted, Revocation), Answer> {
    operators.may(fields.authorization)?;
    // A page in an operator's browser can send other types to an address on loopback, this one not without being asked.
    if fields.content_type.is_none_or(|kind| !kind.starts_with(b"application/json")) {
        let detail = "send JSON, and say so: Content-Type: application/json";
        return Err(problem(StatusCode::UNSUPPORTED_MEDIA_TYPE, "content_type", detail));
    }
    let wanted = serde_json::from_slice(body).map_err(|why| why.to_string());
    let understood = wanted.and_then(|wanted: Wanted| {
        let revocation = wanted.revocation(now_ms())?;
        Ok((wanted, revocation))
    });
    understood.map_err(|why| problem(StatusCode::BAD_REQUEST, "revocation_malformed", &why))
}

pub(crate) fn problem(status: StatusCode, code: &'static str, detail: &str) -> Answer {
    (status, json!({ "code": code, "detail": detail }))
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW_MS: u64 = 1_700_000_000_500;

    #[test]
    fn what_can_be_asked_for() {
        let kept = NOW_MS + 86_400_000;
        for (body, expected) in [
            (r#"{"token":"t1"}"#, Ok((Kind::Token, None, kept))),
            (r#"{"session":"s1","for_s":60}"#, Ok((Kind::Session, None, NOW_MS + 60_000))),
            (r#"{"device":"d1"}"#, Ok((Kind::Device, Some(NOW_MS), kept))),
            (r#"{"user":"u1","tenant":"acme"}"#, Ok((Kind::User, Some(NOW_MS), kept))),
            (r#"{"user":"u1","issued_until_s":1699999999}"#, Ok((Kind::User, Some(1_699_999_999_999), kept))),
            (r#"{"user":"u1","issued_until_s":1700000300}"#, Err("at most 300 seconds from now")),
            (r#"{"token":"t1","issued_until_s":1}"#, Err("for devices and users")),
            (r#"{"token":"t1","user":"u1"}"#, Err("exactly one of")),
            ("{}", Err("exactly one of")),
            (r#"{"tenant":"acme"}"#, Err("exactly one of")),
            (r#"{"user":""}"#, Err("visible ASCII")),
            (r#"{"user":"a\nb"}"#, Err("visible ASCII")),
            (r#"{"user":"u1","for_s":0}"#, Err("kept between 1 and")),
            (r#"{"user":"u1","for_s":99999999999}"#, Err("kept between 1 and")),
            (r#"{"usr":"u1"}"#, Err("unknown field")),
        ] {
            let wanted: Result<Wanted, String> = serde_json::from_str(body).map_err(|why| why.to_string());
            let made = wanted.and_then(|wanted| wanted.revocation(NOW_MS));
            match (made, expected) {
                (Ok(made), Ok(expected)) => {
                    assert_eq!((made.kind, made.issued_until_ms, made.until_ms), expected, "{body}");
                }
                (Err(told), Err(expected)) => assert!(told.contains(expected), "{body}: {told}"),
                (made, _) => panic!("{body}: {made:?}"),
            }
        }
    }

    #[test]
    fn times_as_people_write_them() {
        for (text, expected) in
            [("90s", Some(90)), ("15m", Some(900)), ("24h", Some(86_400)), ("7d", Some(604_800))]
        {
            assert_eq!(seconds(text).ok(), expected, "{text}");
        }
        for text in ["", "h", "90", "1w", "-1h", "1.5h", "99999999999999999999d"] {
            assert!(seconds(text).is_err(), "{text}");
        }
    }

    #[test]
    fn who_may_revoke() {
        let secret = Operators::WithSecret(Zeroizing::new(b"a secret of the identity service".to_vec()));
        for (operators, sent, status) in [
            (&Operators::Anybody, None, None),
            (&Operators::Nobody, Some("Bearer x"), Some(403)),
            (&secret, None, Some(401)),
            (&secret, Some("Bearer a secret of the identity servic"), Some(401)),
            (&secret, Some("a secret of the identity service"), Some(401)),
            (&secret, Some("Bearer a secret of the identity service"), None),
        ] {
            let refused = operators.may(sent.map(str::as_bytes)).err().map(|(status, _)| status.as_u16());
            assert_eq!(refused, status, "{operators:?} {sent:?}");
        }
    }

    #[test]
    fn the_secret_is_not_printed() {
        let secret = Operators::WithSecret(Zeroizing::new(b"a secret of the identity service".to_vec()));
        for (operators, expected) in
            [(Operators::Anybody, "Anybody"), (secret, "WithSecret"), (Operators::Nobody, "Nobody")]
        {
            assert_eq!(format!("{operators:?}"), expected);
        }
    }
}
