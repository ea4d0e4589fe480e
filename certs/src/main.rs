//! `certs`: make a development PKI and look at certificates.

use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use certs::{Facts, KeyFacts, inspect_key_pem, inspect_pem, pki};
use clap::{Parser, Subcommand};
use serde::Serialize;
use time::OffsetDateTime;
use time::macros::format_description;
use zeroize::Zeroizing;

/// Certificates and keys of Torana.
#[derive(Debug, Parser)]
#[command(
    version,
    after_help = "Examples:\n  certs init target/dev/pki\n  certs show target/dev/pki/edge.pem"
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Make a development PKI: four CAs and an identity for every service.
    ///
    /// CAs are valid for ten years, leaves for 90 days; all keys are ECDSA P-256, unencrypted,
    /// mode 0600. Not for production: the CAs' keys lie beside their certificates.
    Init {
        /// Where to write it; created if need be.
        dir: PathBuf,
        /// Replace a PKI that is there already.
        #[arg(long)]
        force: bool,
    },
    /// Tell what is in a PEM file: every certificate, and of a private key its pin only.
    ///
    /// Give a certificate and then its key: when the pins are the same, they belong together.
    Show {
        file: PathBuf,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
}

#[derive(Serialize)]
struct Shown<'a> {
    file: &'a Path,
    certificates: Vec<ShownCertificate>,
    key: Option<KeyFacts>,
}

#[derive(Serialize)]
struct ShownCertificate {
    #[serde(flatten)]
    facts: Facts,
    days_left: i64,
}

fn main() -> anyhow::Result<()> {
    certs::install_crypto_provider();
    let mut out = std::io::stdout().lock();
    match Cli::parse().command {
        Command::Init { dir, force } => {
            for path in pki::init(&dir, force)? {
                writeln!(out, "{}", path.display())?;
            }
        }
        Command::Show { file, json } => show(&mut out, &file, json, OffsetDateTime::now_utc())?,
    }
    Ok(())
}

fn show(out: &mut impl Write, file: &Path, json: bool, now: OffsetDateTime) -> anyhow::Result<()> {
    let pem = Zeroizing::new(
        std::fs::read(file)
            .with_context(|| format!("cannot read {}; check that the file exists", file.display()))?,
    );
    let key = inspect_key_pem(&pem).with_context(|| file.display().to_string())?;
    let facts = match inspect_pem(&pem) {
        Err(certs::CertError::NoCertificate { .. }) if key.is_some() => Vec::new(),
        other => other.with_context(|| file.display().to_string())?,
    };
    let certificates: Vec<_> =
        facts.into_iter().map(|facts| ShownCertificate { days_left: facts.days_left(now), facts }).collect();
    if json {
        serde_json::to_writer_pretty(&mut *out, &Shown { file, certificates, key })?;
        writeln!(out)?;
        return Ok(());
    }
    for (index, ShownCertificate { facts, days_left }) in certificates.iter().enumerate() {
        let role = if facts.is_ca { ", a CA" } else { "" };
        writeln!(out, "certificate {} of {}{role}", index + 1, certificates.len())?;
        writeln!(out, "  subject   {}", facts.subject)?;
        writeln!(out, "  issuer    {}", facts.issuer)?;
        let names: Vec<String> = facts.sans.iter().map(ToString::to_string).collect();
        writeln!(out, "  names     {}", if names.is_empty() { "none".into() } else { names.join(", ") })?;
        writeln!(out, "  serial    {}", facts.serial_hex)?;
        writeln!(
            out,
            "  valid     {} to {}, {}",
            day(facts.not_before)?,
            day(facts.not_after)?,
            left(facts, *days_left, now)
        )?;
        writeln!(out, "  SPKI pin  sha256/{}", facts.spki_sha256)?;
    }
    if let Some(key) = key {
        writeln!(out, "private key, {} (not shown)", key.algorithm)?;
        writeln!(out, "  SPKI pin  sha256/{}", key.spki_sha256)?;
    }
    Ok(())
}

fn day(at: OffsetDateTime) -> Result<String, time::error::Format> {
    at.format(format_description!("[year]-[month]-[day] [hour]:[minute] UTC"))
}

fn left(facts: &Facts, days_left: i64, now: OffsetDateTime) -> String {
    if now < facts.not_before {
        "NOT YET VALID".into()
    } else if now > facts.not_after {
        format!("EXPIRED {} days ago", -days_left)
    } else {
        format!("{days_left} days left")
    }
}
