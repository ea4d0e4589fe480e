//! `certs rollover`: another root without a moment in which somebody is not believed.
//!
//! The file of the CA is what everybody trusts. In the order of the steps: it has both roots, and everybody is asked
//! whether they believe both; the leaves are issued by the new root, and everybody is asked whether they serve those;
//! it has the new root alone. What stage that is, is read from the files: there is no other record that could differ.

mod proof;

use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use certs::pki::files::{self, Pair, Readable};
use certs::pki::{Authority, Issued, crl};
use certs::report::Report;
use certs::{CertError, Facts, inspect_key_pem, inspect_pem};
use clap::{Args, Subcommand};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;
use serde::Serialize;
use time::OffsetDateTime;
use zeroize::Zeroizing;

use super::fleet::{Told, same_file};
use super::renew::{leaf_in, reissue};
use super::wait::Waiting;
use super::{Answer, CaFiles, Outcome};
use proof::{Believed, Part};

const PAUSE: Duration = Duration::from_millis(100);

/// Replace a CA in steps, each refused until the one before is proven.
///
/// `begin` makes a new root and has it trusted beside the old one; `move` issues every leaf anew by the new root;
/// `finish` drops the old one. Each waits until every process that was asked proves it, and can be repeated. Name all
/// processes that use the CA: who is not asked cannot be waited for.
#[derive(Debug, Args)]
#[command(after_help = "Example, with each step on its own day if you like:
  certs rollover begin  --ca pki/internal-ca.pem --stack target/dev/stack.json
  certs rollover move   --ca pki/internal-ca.pem --stack target/dev/stack.json
  certs rollover finish --ca pki/internal-ca.pem --stack target/dev/stack.json
  certs rollover status --ca pki/internal-ca.pem --stack target/dev/stack.json

Exit status: 0 the step is done and proven; 1 it is refused, or somebody does not follow: the text says who; 2 files.")]
pub(super) struct Rollover {
    #[command(subcommand)]
    step: Step,
}

#[derive(Debug, Clone, Subcommand)]
enum Step {
    /// Make a new root, have it trusted beside the old one, and prove that it is.
    Begin(Steps),
    /// Issue every leaf of the old root by the new one, and prove that those are served.
    Move(Steps),
    /// Drop the old root, and prove that it is no longer believed.
    Finish(Steps),
    /// Tell how far it is, and change nothing.
    Status(Steps),
}

#[derive(Debug, Clone, Args)]
struct Steps {
    #[command(flatten)]
    ca: CaFiles,
    #[command(flatten)]
    waiting: Waiting,
    /// A leaf of this CA that is neither beside it nor used by who is asked; its key lies beside it.
    #[arg(long, value_name = "FILE")]
    also: Vec<PathBuf>,
    /// Go on although nobody who is asked trusts the CA's file: whoever does, phones or partners, cannot be asked here.
    #[arg(long)]
    believed_elsewhere: bool,
}

/// Where a rollover is, by its files.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum Stage {
    /// One root, and no other at hand.
    Settled,
    /// Both roots are in the CA's file.
    Both,
}

#[derive(Debug, Serialize)]
pub(super) struct Rolled {
    stage: Stage,
    ca: PathBuf,
    /// Subjects and serials of the roots in its file.
    roots: Vec<Root>,
    /// Everybody who uses the CA, and whether they are where this step wants them.
    parts: Vec<Part>,
    /// Leaves of the old root that are left.
    left: Vec<PathBuf>,
    /// Leaves that were issued anew.
    moved: Vec<PathBuf>,
    waited_ms: u128,
    refused: Option<String>,
}

#[derive(Debug, Serialize)]
struct Root {
    subject: String,
    serial_hex: String,
}

impl Rollover {
    pub(super) async fn run(self, now: OffsetDateTime) -> anyhow::Result<Rolled> {
        match self.step {
            Step::Begin(steps) => steps.begin().await,
            Step::Move(steps) => steps.move_leaves(now).await,
            Step::Finish(steps) => steps.finish().await,
            Step::Status(steps) => steps.status().await,
        }
    }
}

impl Steps {
    async fn begin(&self) -> anyhow::Result<Rolled> {
        let reports = self.reports().await?;
        self.files().must_be_ours()?;
        let old = self.root()?;
        if let Some(nobody) = self.nobody(&reports) {
            return self.refuse(vec![nobody], "nobody can prove it");
        }
        if self.stage() == Stage::Settled {
            let new = Authority::create(&next_name(&old.facts().subject))?;
            let next = self.next();
            files::write(&next.key, &new.key_pem(), Readable::ByOwner)?;
            files::write(&next.certificate, new.certificate_pem(), Readable::ByAll)?;
        }
        let (old, new) = self.both_roots()?;
        // The lists first: a root that is believed and has no list would be one whose leaves nobody can check.
        for list in self.lists(&reports) {
            crl::revoke(&list, &new, &[], crl::Reason::Unspecified, crl::VALID)?;
        }
        let mut roots = self.others_than(&new)?;
        roots.push(new.certificate_pem().to_owned());
        files::write(&self.ca.ca, &roots.concat(), Readable::ByAll)?;
        self.until(&old, &new, async |steps, reports| steps.trust(reports, &old, &new, Believed::Both).await)
            .await
    }

    async fn move_leaves(&self, now: OffsetDateTime) -> anyhow::Result<Rolled> {
        let reports = self.reports().await?;
        let (old, new) = self.both_roots()?;
        let parts = self.trust(&reports, &old, &new, Believed::Both).await?;
        if parts.iter().any(|part| !part.proven) {
            return self
                .refuse(parts, "not everybody believes the new root yet: repeat `certs rollover begin`");
        }
        let mut moved = Vec::new();
        let leaves = self.leaves(&reports, &old)?;
        leaves.iter().try_for_each(|leaf| replaceable(leaf)).context("nothing was changed")?;
        for leaf in leaves {
            reissue(&Pair::beside(&leaf), &leaf_in(&leaf)?, &new, None, now)?;
            moved.push(leaf);
        }
        let mut rolled =
            self.until(&old, &new, async |steps, reports| steps.serve(reports, &old, &new).await).await?;
        rolled.moved = moved;
        Ok(rolled)
    }

    async fn finish(&self) -> anyhow::Result<Rolled> {
        let reports = self.reports().await?;
        if self.finish_died() {
            // Both files as they were, and once more.
            self.files().restore()?;
        }
        if let Some(old) = self.dropped()? {
            return self.drop_old(&reports, &old, &self.new_root()?).await;
        }
        let (old, new) = self.both_roots()?;
        let mut parts = self.trust(&reports, &old, &new, Believed::Both).await?;
        parts.extend(self.serve(&reports, &old, &new).await?);
        if parts.iter().any(|part| !part.proven) {
            return self
                .refuse(parts, "somebody is not served by the new root yet: repeat `certs rollover move`");
        }
        let left = self.leaves(&reports, &old)?;
        if !left.is_empty() {
            let mut refused =
                self.refuse(parts, "there are leaves of the old root: repeat `certs rollover move`")?;
            refused.left = left;
            return Ok(refused);
        }
        let mut others = self.others_than(&old)?;
        others.retain(|pem| pem != new.certificate_pem());
        let certificate_pem = new.certificate_pem().to_owned() + &others.concat();
        let issued = Issued { certificate_pem, key_pem: new.key_pem() };
        self.files().replace(&issued)?;
        self.drop_old(&reports, &old, &new).await
    }

    /// The second half of `finish`: the files have the new root in the old one's place. What tells of the rollover goes
    /// when everybody is proven to have followed, so that until then it can be asked again.
    async fn drop_old(&self, reports: &[Report], old: &Authority, new: &Authority) -> anyhow::Result<Rolled> {
        let done = async |steps: &Steps, reports: &[Report]| {
            steps.trust(reports, old, new, Believed::NewAlone).await
        };
        let mut rolled = self.until(old, new, done).await?;
        if rolled.refused.is_none() {
            for list in self.lists(reports) {
                crl::forget(&list, old)?;
            }
            let next = self.next();
            for file in [next.certificate, next.key] {
                std::fs::remove_file(&file).with_context(|| format!("cannot remove {}", file.display()))?;
            }
            rolled.stage = self.stage();
        }
        Ok(rolled)
    }

    /// The old root, when `finish` has put the new one in its place already and did not prove it.
    fn dropped(&self) -> anyhow::Result<Option<Authority>> {
        let (now, new) = (self.root()?, self.new_root()?);
        if now.facts().serial_hex != new.facts().serial_hex {
            return Ok(None);
        }
        let (certificate, key) = (files::previous(&self.ca.ca), files::previous(&self.ca.key()));
        Ok(Some(Authority::load(&certificate, &key)?))
    }

    /// The old root and the new one, as long as the old one is not dropped.
    fn both_roots(&self) -> anyhow::Result<(Authority, Authority)> {
        let new = self.new_root()?;
        ensure!(self.dropped()?.is_none(), "the old root is dropped already: repeat `certs rollover finish`");
        Ok((self.root()?, new))
    }

    /// The roots of the CA's file but one, PEM, in their order.
    fn others_than(&self, root: &Authority) -> anyhow::Result<Vec<String>> {
        let text = std::fs::read(&self.ca.ca)?;
        let ders = CertificateDer::pem_slice_iter(&text).collect::<Result<Vec<_>, _>>();
        let ders = ders.map_err(|_| anyhow::anyhow!("{} is not well-formed PEM", self.ca.ca.display()))?;
        let pems = ders.iter().map(|der| files::pem("CERTIFICATE", der));
        Ok(pems.filter(|pem| pem != root.certificate_pem()).collect())
    }

    async fn status(&self) -> anyhow::Result<Rolled> {
        let reports = self.reports().await?;
        let old = self.root()?;
        let (mut parts, mut left) = (Vec::new(), Vec::new());
        if self.stage() == Stage::Both {
            let (new, dropped) = (self.new_root()?, self.dropped()?);
            let believed = if dropped.is_some() { Believed::NewAlone } else { Believed::Both };
            let old = dropped.unwrap_or(old);
            parts = self.trust(&reports, &old, &new, believed).await?;
            parts.extend(self.serve(&reports, &old, &new).await?);
            left = self.leaves(&reports, &old)?;
        }
        Ok(Rolled { left, ..self.rolled(parts)? })
    }

    /// Asks again and again until every part proves it, or the time is up.
    async fn until(
        &self,
        old: &Authority,
        new: &Authority,
        ask: impl AsyncFn(&Steps, &[Report]) -> anyhow::Result<Vec<Part>>,
    ) -> anyhow::Result<Rolled> {
        let began = Instant::now();
        loop {
            let parts = ask(self, &self.reports().await?).await?;
            let behind = parts.iter().filter(|part| !part.proven).count();
            let over = began.elapsed() >= Duration::from_secs(self.waiting.timeout_s.into());
            if behind > 0 && !over {
                tokio::time::sleep(PAUSE).await;
                continue;
            }
            let mut rolled = self.rolled(parts)?;
            rolled.waited_ms = began.elapsed().as_millis();
            if behind > 0 {
                rolled.refused = Some(format!(
                    "{behind} of them did not follow from {} to {}; their logs say why, and the step can be repeated",
                    old.facts().subject,
                    new.facts().subject
                ));
            }
            return Ok(rolled);
        }
    }

    fn rolled(&self, parts: Vec<Part>) -> anyhow::Result<Rolled> {
        let pem = std::fs::read(&self.ca.ca)?;
        let roots = inspect_pem(&pem)?;
        let roots = roots.into_iter().map(|Facts { subject, serial_hex, .. }| Root { subject, serial_hex });
        Ok(Rolled {
            stage: self.stage(),
            ca: self.ca.ca.clone(),
            roots: roots.collect(),
            parts,
            left: Vec::new(),
            moved: Vec::new(),
            waited_ms: 0,
            refused: None,
        })
    }

    fn refuse(&self, parts: Vec<Part>, why: &str) -> anyhow::Result<Rolled> {
        Ok(Rolled { refused: Some(format!("refused, nothing was changed: {why}")), ..self.rolled(parts)? })
    }

    /// What everybody says. Who is silent could be the one that would be cut off.
    async fn reports(&self) -> anyhow::Result<Vec<Report>> {
        let told = self.waiting.fleet.ask().await?.into_iter();
        told.map(|Told { report, .. }| report.map_err(anyhow::Error::msg)).collect()
    }

    fn files(&self) -> Pair {
        Pair { certificate: self.ca.ca.clone(), key: self.ca.key() }
    }

    /// The root that stands first in its file.
    fn root(&self) -> anyhow::Result<Authority> {
        ensure!(
            !self.finish_died(),
            "`certs rollover finish` died between its two files: repeat it, nothing else can be done before"
        );
        Ok(self.ca.load()?)
    }

    /// Whether the new root's key is in place already, beside the old root: the two files are renamed one after the
    /// other.
    fn finish_died(&self) -> bool {
        let of_new = || Authority::load(&self.next().certificate, &self.ca.key());
        matches!(self.ca.load(), Err(CertError::KeyMismatch { .. })) && of_new().is_ok()
    }

    fn stage(&self) -> Stage {
        let next = self.next();
        if next.certificate.exists() && next.key.exists() { Stage::Both } else { Stage::Settled }
    }

    /// The new root, until it has the old one's place.
    fn next(&self) -> Pair {
        Pair::beside(&self.ca.ca.with_extension("next.pem"))
    }

    fn new_root(&self) -> anyhow::Result<Authority> {
        ensure!(
            self.stage() == Stage::Both,
            "no rollover of {} has begun: `certs rollover begin`",
            self.ca.ca.display()
        );
        let next = self.next();
        Ok(Authority::load(&next.certificate, &next.key)?)
    }

    /// The revocation lists of those who let this CA's clients in.
    fn lists(&self, reports: &[Report]) -> Vec<PathBuf> {
        let listeners =
            reports.iter().flat_map(|report| &report.listeners).map(|one| (&one.client_ca, &one.crl));
        let clients = reports.iter().flat_map(|report| &report.clients).map(|one| (&one.ca, &one.crl));
        let ours = listeners
            .chain(clients)
            .filter(|(ca, _)| ca.as_deref().is_some_and(|ca| same_file(ca, &self.ca.ca)));
        let mut lists: Vec<PathBuf> = ours.filter_map(|(_, list)| list.clone()).collect();
        lists.sort_unstable();
        lists.dedup();
        lists
    }

    /// The leaves of a root: those in use, those beside the CA, and those that were named.
    fn leaves(&self, reports: &[Report], of: &Authority) -> anyhow::Result<Vec<PathBuf>> {
        let mut all: Vec<PathBuf> = self.also.clone();
        for report in reports {
            all.extend(report.listeners.iter().map(|one| one.certificate.clone()));
            all.extend(report.clients.iter().filter_map(|one| one.certificate.clone()));
        }
        let folder =
            self.ca.ca.canonicalize()?.parent().map(Path::to_owned).context("the CA lies in a folder")?;
        for entry in std::fs::read_dir(&folder)? {
            let path = entry?.path();
            if path.extension().is_some_and(|ending| ending == "pem") && path.with_extension("key").exists() {
                all.push(path);
            }
        }
        let mut leaves: Vec<PathBuf> = Vec::new();
        for path in all {
            let is_ca = || super::issue::first_of(&std::fs::read(&path)?).map(|facts| facts.is_ca);
            if !leaves.iter().any(|leaf| same_file(leaf, &path)) && !is_ca()? && of.issued(&leaf_in(&path)?) {
                leaves.push(path);
            }
        }
        leaves.sort_unstable();
        Ok(leaves)
    }
}

/// Whether a leaf may be issued anew where it lies: it is no link, and the key beside it is its own.
fn replaceable(leaf: &Path) -> anyhow::Result<()> {
    let pair = Pair::beside(leaf);
    pair.must_be_ours()?;
    let key = std::fs::read(&pair.key).map(Zeroizing::new);
    let key =
        key.with_context(|| format!("cannot read {}, the key of {}", pair.key.display(), leaf.display()))?;
    let key = inspect_key_pem(&key)?.with_context(|| format!("{} holds no key", pair.key.display()))?;
    let (certificate, key_file) = (leaf.display(), pair.key.display());
    ensure!(
        key.spki_sha256 == super::issue::first_of(&std::fs::read(leaf)?)?.spki_sha256,
        "{key_file} is not the key of {certificate}; `certs rotate --key` takes one that lies elsewhere"
    );
    Ok(())
}

/// `Torana internal CA` is followed by `Torana internal CA G2`: two roots of one name could not be told apart in logs.
fn next_name(subject: &str) -> String {
    let name = subject.strip_prefix("CN=").unwrap_or(subject);
    let (base, generation) = match name.rsplit_once(" G") {
        Some((base, number)) => number.parse::<u32>().map_or((name, 1), |number| (base, number)),
        None => (name, 1),
    };
    format!("{base} G{}", generation.saturating_add(1))
}

impl Answer for Rolled {
    fn outcome(&self) -> Outcome {
        if self.refused.is_none() { Outcome::Fine } else { Outcome::NotSo }
    }

    fn text(&self, out: &mut dyn Write) -> std::io::Result<()> {
        let stage = match self.stage {
            Stage::Settled => "no rollover is under way",
            Stage::Both => "a rollover is under way",
        };
        writeln!(out, "{}: {stage}", self.ca.display())?;
        for Root { subject, serial_hex } in &self.roots {
            writeln!(out, "  root    {subject}, serial {serial_hex}")?;
        }
        self.moved.iter().try_for_each(|leaf| writeln!(out, "  moved   {}", leaf.display()))?;
        self.left.iter().try_for_each(|leaf| writeln!(out, "  left    {}", leaf.display()))?;
        for Part { service, part, proven, found } in &self.parts {
            let mark = if *proven { ' ' } else { '!' };
            writeln!(out, "{mark} {service} {part} {found}")?;
        }
        match &self.refused {
            Some(refused) => writeln!(out, "{refused}"),
            None if self.waited_ms > 0 => writeln!(out, "proven after {} ms", self.waited_ms),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::next_name;

    #[test]
    fn each_root_has_a_name_of_its_own() {
        for (subject, expected) in [
            ("CN=Torana CA", "Torana CA G2"),
            ("CN=Torana CA G2", "Torana CA G3"),
            ("CN=Acme Good", "Acme Good G2"),
            ("CN=Bank G9", "Bank G10"),
        ] {
            assert_eq!(next_name(subject), expected);
        }
    }
}
