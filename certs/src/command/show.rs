//! `certs show`.

use std::io::Write;
use std::path::PathBuf;

use anyhow::Context as _;
use certs::{CertError, Facts, KeyFacts, inspect_key_pem, inspect_pem};
use serde::Serialize;
use time::OffsetDateTime;
use zeroize::Zeroizing;

use super::{Answer, left, minute};

#[derive(Serialize)]
pub(super) struct Shown {
    file: PathBuf,
    certificates: Vec<ShownCertificate>,
    key: Option<KeyFacts>,
    #[serde(skip)]
    now: OffsetDateTime,
}

#[derive(Serialize)]
struct ShownCertificate {
    #[serde(flatten)]
    facts: Facts,
    days_left: i64,
}

pub(super) fn show(file: PathBuf, now: OffsetDateTime) -> anyhow::Result<Shown> {
    let pem = Zeroizing::new(
        std::fs::read(&file)
            .with_context(|| format!("cannot read {}; check that the file exists", file.display()))?,
    );
    let key = inspect_key_pem(&pem).with_context(|| file.display().to_string())?;
    let facts = match inspect_pem(&pem) {
        Err(CertError::NoCertificate { .. }) if key.is_some() => Vec::new(),
        other => other.with_context(|| file.display().to_string())?,
    };
    let certificates =
        facts.into_iter().map(|facts| ShownCertificate { days_left: facts.days_left(now), facts }).collect();
    Ok(Shown { file, certificates, key, now })
}

impl Answer for Shown {
    fn text(&self, out: &mut dyn Write) -> std::io::Result<()> {
        for (index, ShownCertificate { facts, .. }) in self.certificates.iter().enumerate() {
            let role = if facts.is_ca { ", a CA" } else { "" };
            writeln!(out, "certificate {} of {}{role}", index + 1, self.certificates.len())?;
            writeln!(out, "  subject   {}", facts.subject)?;
            writeln!(out, "  issuer    {}", facts.issuer)?;
            let names: Vec<String> = facts.sans.iter().map(ToString::to_string).collect();
            writeln!(out, "  names     {}", if names.is_empty() { "none".into() } else { names.join(", ") })?;
            writeln!(out, "  serial    {}", facts.serial_hex)?;
            let (from, to) = (facts.not_before, facts.not_after);
            writeln!(out, "  valid     {} to {}, {}", minute(from), minute(to), left(from, to, self.now))?;
            writeln!(out, "  SPKI pin  sha256/{}", facts.spki_sha256)?;
        }
        if let Some(key) = &self.key {
            writeln!(out, "private key, {} (not shown)", key.algorithm)?;
            writeln!(out, "  SPKI pin  sha256/{}", key.spki_sha256)?;
        }
        Ok(())
    }
}
