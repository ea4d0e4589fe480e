//! `certs renew` and `certs restore`.

use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, ensure};
use certs::pki::files::Pair;
use certs::pki::{Authority, Leaf};
use clap::Args;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;
use serde::Serialize;
use time::{Duration, OffsetDateTime};

use super::issue::{InPlace, first_of};
use super::{Answer, CaFiles};

/// Issue a certificate anew: the same names, purpose and lifetime, a new key, in the same files.
///
/// The files before are kept with `.previous` at the end of their names; `certs restore` puts them back. Whoever
/// follows the files serves the new pair at once; `certs rotate` also waits until that is so.
#[derive(Debug, Args)]
pub(super) struct Renew {
    /// The certificate to renew; its key lies beside it.
    pub(super) certificate: PathBuf,
    #[command(flatten)]
    pub(super) ca: CaFiles,
    /// The key's file; absent: beside the certificate, with the ending `key`.
    #[arg(long)]
    pub(super) key: Option<PathBuf>,
    /// Valid for so many days; absent: as long as before.
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..=825))]
    pub(super) days: Option<u16>,
}

impl Renew {
    pub(super) fn pair(&self) -> Pair {
        let key = self.key.clone().unwrap_or_else(|| self.certificate.with_extension("key"));
        Pair { certificate: self.certificate.clone(), key }
    }

    pub(super) fn run(&self, now: OffsetDateTime) -> anyhow::Result<InPlace> {
        let ca = self.ca.load()?;
        let der = leaf_in(&self.certificate)?;
        ensure!(
            ca.issued(&der),
            "{} was not issued by {}; give the CA that did, or move it to another CA with `certs rollover`",
            self.certificate.display(),
            ca.facts().subject
        );
        reissue(&self.pair(), &der, &ca, self.days, now)
    }
}

/// Puts a certificate by `ca` in the place of one that says the same.
pub(super) fn reissue(
    pair: &Pair,
    before: &[u8],
    ca: &Authority,
    days: Option<u16>,
    now: OffsetDateTime,
) -> anyhow::Result<InPlace> {
    let mut leaf = Leaf::like(before, now)?;
    if let Some(days) = days {
        leaf.not_after = now + Duration::days(days.into());
    }
    let issued = ca.issue(&leaf)?;
    let facts = first_of(issued.certificate_pem.as_bytes())?;
    let before = serial_in(&pair.certificate);
    pair.replace(&issued)?;
    Ok(InPlace { certificate: pair.certificate.clone(), key: pair.key.clone(), before, facts })
}

/// The first certificate of a file.
pub(super) fn leaf_in(file: &Path) -> anyhow::Result<CertificateDer<'static>> {
    let pem = std::fs::read(file).with_context(|| format!("cannot read {}", file.display()))?;
    CertificateDer::from_pem_slice(&pem)
        .map_err(|_| anyhow::anyhow!("{} holds no certificate", file.display()))
}

/// The serial of what is there now, if anything is.
pub(super) fn serial_in(file: &Path) -> Option<String> {
    first_of(&std::fs::read(file).ok()?).ok().map(|facts| facts.serial_hex)
}

/// Put back the certificate and key that `renew`, `rotate` or `issue --force` replaced.
///
/// What is there now becomes the previous pair: doing it twice changes nothing.
#[derive(Debug, Args)]
pub(super) struct Restore {
    certificate: PathBuf,
    /// The key's file; absent: beside the certificate, with the ending `key`.
    #[arg(long)]
    key: Option<PathBuf>,
}

#[derive(Serialize)]
pub(super) struct Restored(InPlace);

impl Restore {
    pub(super) fn run(self) -> anyhow::Result<Restored> {
        let key = self.key.unwrap_or_else(|| self.certificate.with_extension("key"));
        let pair = Pair { certificate: self.certificate, key };
        let before = serial_in(&pair.certificate);
        pair.restore()?;
        let facts = first_of(&std::fs::read(&pair.certificate)?)?;
        Ok(Restored(InPlace { certificate: pair.certificate, key: pair.key, before, facts }))
    }
}

impl Answer for Restored {
    fn text(&self, out: &mut dyn Write) -> std::io::Result<()> {
        self.0.text(out)
    }
}
