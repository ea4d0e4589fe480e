//! `certs issue`.

use std::io::Write;
use std::path::PathBuf;

use anyhow::{Context as _, ensure};
use certs::pki::files::Pair;
use certs::pki::{KeyAlgorithm, Leaf, Purpose};
use certs::{Facts, inspect_pem};
use clap::{Args, ValueEnum};
use serde::Serialize;
use time::{Duration, OffsetDateTime};

use super::{Answer, CaFiles, left, minute};

/// Issue a certificate with a new key.
///
/// Example:
///   certs issue --ca pki/partner-ca.pem --purpose client --name spiffe://torana/partner/acme --days 30 --out acme.pem
#[derive(Debug, Args)]
#[command(verbatim_doc_comment)]
pub(super) struct Issue {
    #[command(flatten)]
    ca: CaFiles,
    /// A name: DNS, IP address, URI or email. Say which when its looks don't: `uri:urn:torana:acme`.
    #[arg(long = "name", required = true)]
    names: Vec<String>,
    /// The subject's common name; absent: the first name.
    #[arg(long)]
    common_name: Option<String>,
    /// Which side of a connection it may speak for.
    #[arg(long, default_value = "both")]
    purpose: PurposeArg,
    #[arg(long, default_value = "p256")]
    key: KeyArg,
    #[arg(long, default_value_t = 30, value_parser = clap::value_parser!(u16).range(1..=825))]
    days: u16,
    /// The certificate's file; its key goes beside it, with the ending `key` and mode 0600.
    #[arg(long)]
    out: PathBuf,
    /// Replace what is there; it is kept with `.previous` at the end of its name.
    #[arg(long)]
    force: bool,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum PurposeArg {
    Server,
    Client,
    Both,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum KeyArg {
    P256,
    P384,
    Ed25519,
}

/// A certificate that was put in place.
#[derive(Debug, Serialize)]
pub(super) struct InPlace {
    pub(super) certificate: PathBuf,
    pub(super) key: PathBuf,
    /// The serial that was there before.
    pub(super) before: Option<String>,
    #[serde(flatten)]
    pub(super) facts: Facts,
}

impl Issue {
    pub(super) fn run(self, now: OffsetDateTime) -> anyhow::Result<InPlace> {
        let first = self.names.first().context("a certificate needs a name")?;
        let without_kind = ["dns:", "ip:", "uri:", "email:"].iter().find_map(|kind| first.strip_prefix(kind));
        let common_name = self.common_name.as_deref().unwrap_or(without_kind.unwrap_or(first));
        let leaf = Leaf {
            names: self.names.clone(),
            purpose: match self.purpose {
                PurposeArg::Server => Purpose::Server,
                PurposeArg::Client => Purpose::Client,
                PurposeArg::Both => Purpose::Both,
            },
            key: match self.key {
                KeyArg::P256 => KeyAlgorithm::EcdsaP256,
                KeyArg::P384 => KeyAlgorithm::EcdsaP384,
                KeyArg::Ed25519 => KeyAlgorithm::Ed25519,
            },
            not_after: now + Duration::days(self.days.into()),
            ..Leaf::new(common_name, &[])
        };
        let pair = Pair::beside(&self.out);
        let there = pair.certificate.exists() || pair.key.exists();
        ensure!(
            self.force || !there,
            "{} or its key is already there; `certs renew` renews it, --force replaces it",
            self.out.display()
        );
        let issued = self.ca.load()?.issue(&leaf)?;
        let facts = first_of(issued.certificate_pem.as_bytes())?;
        let before = super::renew::serial_in(&pair.certificate);
        pair.replace(&issued)?;
        Ok(InPlace { certificate: pair.certificate, key: pair.key, before, facts })
    }
}

/// The first certificate of a PEM text.
pub(super) fn first_of(pem: &[u8]) -> anyhow::Result<Facts> {
    inspect_pem(pem)?.into_iter().next().context("there is no certificate in it")
}

impl Answer for InPlace {
    fn text(&self, out: &mut dyn Write) -> std::io::Result<()> {
        let Facts { serial_hex, not_before, not_after, issuer, .. } = &self.facts;
        writeln!(out, "{}", self.certificate.display())?;
        let names: Vec<String> = self.facts.sans.iter().map(ToString::to_string).collect();
        writeln!(out, "  names   {}", names.join(", "))?;
        let before = self.before.as_ref().map(|serial| format!(", before {serial}")).unwrap_or_default();
        writeln!(out, "  serial  {serial_hex}{before}")?;
        writeln!(out, "  issuer  {issuer}")?;
        let now = OffsetDateTime::now_utc();
        writeln!(out, "  until   {}, {}", minute(*not_after), left(*not_before, *not_after, now))?;
        writeln!(out, "  key     {}", self.key.display())
    }
}
