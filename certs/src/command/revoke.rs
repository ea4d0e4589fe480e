//! `certs revoke`.

use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, ensure};
use certs::pki::Authority;
use certs::pki::crl::{self, List, Reason};
use clap::{Args, ValueEnum};
use serde::Serialize;
use time::Duration;
use time::OffsetDateTime;

use super::{Answer, CaFiles, minute};

/// Add certificates to their CA's revocation list, and replace the list's file whole.
///
/// Without any certificate the list is signed anew with a later end: do that before it is stale. One file may have
/// the lists of many CAs; those of others stay as they are. Who follows the file refuses a revoked certificate from
/// the next handshake on.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  certs revoke --ca pki/partner-ca.pem pki/partner.pem --reason key-compromise
  certs revoke --ca pki/partner-ca.pem 4d0f9a0c55d1f6a3   # by its serial, when the certificate is not at hand
  certs revoke --ca pki/partner-ca.pem                    # an empty list, or the same for another 45 days")]
pub(super) struct Revoke {
    #[command(flatten)]
    ca: CaFiles,
    /// Files of certificates, or serials in hexadecimal.
    certificates: Vec<String>,
    /// The list's file; absent: beside the CA's certificate, with the ending `crl`.
    #[arg(long)]
    crl: Option<PathBuf>,
    #[arg(long, default_value = "unspecified")]
    reason: ReasonArg,
    /// After so many days the list is stale: more than pass until it is signed anew.
    #[arg(long, default_value_t = crl::VALID_DAYS, value_parser = clap::value_parser!(u16).range(1..=365))]
    days: u16,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum ReasonArg {
    Unspecified,
    KeyCompromise,
    Superseded,
    CessationOfOperation,
    PrivilegeWithdrawn,
}

#[derive(Serialize)]
pub(super) struct Revoked {
    file: PathBuf,
    issuer: String,
    number: u64,
    #[serde(with = "time::serde::rfc3339")]
    next_update: OffsetDateTime,
    serials: Vec<String>,
}

impl Revoke {
    pub(super) fn run(self) -> anyhow::Result<Revoked> {
        let ca = self.ca.load()?;
        let file = self.crl.unwrap_or_else(|| self.ca.ca.with_extension("crl"));
        let serials = self.certificates.iter().map(|one| serial(&ca, one)).collect::<Result<Vec<_>, _>>()?;
        let reason = match self.reason {
            ReasonArg::Unspecified => Reason::Unspecified,
            ReasonArg::KeyCompromise => Reason::KeyCompromise,
            ReasonArg::Superseded => Reason::Superseded,
            ReasonArg::CessationOfOperation => Reason::CessationOfOperation,
            ReasonArg::PrivilegeWithdrawn => Reason::PrivilegeWithdrawn,
        };
        let valid = Duration::days(self.days.into());
        let List { number, next_update, serials } = crl::revoke(&file, &ca, &serials, reason, valid)?;
        Ok(Revoked { file, issuer: ca.facts().subject.clone(), number, next_update, serials })
    }
}

/// A file's certificate, which must be this CA's, or a serial as it is written.
fn serial(ca: &Authority, one: &str) -> anyhow::Result<Vec<u8>> {
    if Path::new(one).exists() {
        return Ok(crl::serial(ca, &super::renew::leaf_in(Path::new(one))?)?);
    }
    let digits: Vec<u8> = one.bytes().filter(|byte| *byte != b':').collect();
    let digit = |byte: &u8| char::from(*byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    let digits = digits.iter().map(digit).collect::<Option<Vec<u8>>>();
    let digits = digits.with_context(|| format!("{one} is neither a file nor a serial in hexadecimal"))?;
    ensure!(digits.len().is_multiple_of(2) && (2..=42).contains(&digits.len()), "{one} is no whole serial");
    Ok(digits.chunks(2).map(|pair| pair.iter().fold(0, |byte, digit| byte << 4 | digit)).collect())
}

impl Answer for Revoked {
    fn text(&self, out: &mut dyn Write) -> std::io::Result<()> {
        writeln!(out, "{}: list {} of {}", self.file.display(), self.number, self.issuer)?;
        writeln!(out, "  valid to  {}", minute(self.next_update))?;
        self.serials.iter().try_for_each(|serial| writeln!(out, "  revoked   {serial}"))
    }
}
