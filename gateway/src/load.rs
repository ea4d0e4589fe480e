//! From a policy file to everything that serving it needs: keys and certificates read and checked.

mod files;
mod issuers;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use certs::file::Content;
use certs::{Certificates, Clients, Identity, Reader, Set, Trust, Watch};
use filters::policy::{At, Document, MUST_BE_FILE, Mistake, Policy, Reference, RouteRule, Secret, StaleCrl};
use zeroize::Zeroizing;

use self::files::{Files, OfDocument};

/// A policy and the files that it names.
#[derive(Debug)]
pub struct Loaded {
    pub policy: Policy,
    pub(crate) listeners: Vec<ListenerFiles>,
    pub(crate) upstreams: BTreeMap<String, UpstreamFiles>,
    /// Upstreams whose certificate or CA has expired, and why each is not served.
    pub(crate) disabled: BTreeMap<String, Vec<Mistake>>,
    /// Folder that the policy's references are relative to.
    pub(crate) folder: PathBuf,
    /// Follows all of them, once it runs.
    pub(crate) watch: Arc<Watch>,
    /// What tells this text of the policy from others, for people: the first digits of its SHA-256.
    pub(crate) version: String,
}

#[derive(Debug)]
pub(crate) struct ListenerFiles {
    pub(crate) certificates: Certificates,
    pub(crate) clients: Clients,
}

/// What an upstream is connected to with; nothing for plain HTTP.
#[derive(Clone, Debug, Default)]
pub(crate) struct UpstreamFiles {
    /// What the edge shows; `None`: nothing.
    pub(crate) identity: Option<Set<Identity>>,
    /// The CAs of the upstream's certificate; `None`: plain HTTP.
    pub(crate) trust: Option<Set<Trust>>,
}

/// Which upstreams may be disabled, instead of the policy being refused, because a certificate or CA of theirs has
/// expired.
#[derive(Clone, Debug)]
pub(crate) enum Lenience {
    Nobody,
    /// As the process starts: what has expired must not keep the others from being served.
    All,
    /// Those that are disabled already. Another one serves with what it was given before its files went bad.
    Only(BTreeSet<String>),
}

impl Lenience {
    fn allows(&self, upstream: &str) -> bool {
        match self {
            Self::Nobody => false,
            Self::All => true,
            Self::Only(names) => names.contains(upstream),
        }
    }
}

/// Reads a policy and everything it refers to. Changes nothing, connects to nothing.
pub fn load(path: &Path) -> Result<Loaded, Vec<Mistake>> {
    load_with(path, &Lenience::Nobody)
}

/// The same as the process starts: an upstream whose certificate or CA has expired is disabled, unless none is left.
pub fn load_at_start(path: &Path) -> Result<Loaded, Vec<Mistake>> {
    load_with(path, &Lenience::All)
}

pub(crate) fn load_with(path: &Path, lenience: &Lenience) -> Result<Loaded, Vec<Mistake>> {
    let secret = |folder: &Path, reference: &Reference| secret(folder, reference).map(Secret::new);
    let further = |folder: &Path, document: &Document| {
        let watch = Watch::new("check");
        let mut files = Files::new(&watch, folder, Reader::Ours);
        files.of_document(document, lenience);
        files.mistakes
    };
    load_files(read_with(path, &secret, &further)?, Reader::Ours, lenience)
}

/// The rest of [`load`], for whoever is to use the certificates.
pub(crate) fn load_file(policy: PolicyFile, reader: Reader) -> Result<Loaded, Vec<Mistake>> {
    load_files(policy, reader, &Lenience::Nobody)
}

fn load_files(
    PolicyFile { text, folder, policy }: PolicyFile,
    reader: Reader,
    lenience: &Lenience,
) -> Result<Loaded, Vec<Mistake>> {
    let version = version(&text);
    let watch = Watch::new("gateway");
    let mut files = Files::new(&watch, &folder, reader);
    let OfDocument { listeners, upstreams, disabled } = files.of_document(policy.document(), lenience);
    files.flags(&policy);
    let mut mistakes = files.mistakes;
    if mistakes.is_empty() {
        Ok(Loaded { policy, listeners, upstreams, disabled, folder, watch, version })
    } else {
        mistakes.sort_by_key(|mistake| (mistake.line, mistake.column));
        Err(mistakes)
    }
}

impl Loaded {
    /// What Envoy shows and believes when it asks the state service, where that has TLS. The gateway asks none.
    pub(crate) fn state_client(&self) -> Result<Option<UpstreamFiles>, Vec<Mistake>> {
        let service = self.policy.document().state.service.as_ref();
        let Some(tls) = service.and_then(|service| service.value.tls.as_ref()) else { return Ok(None) };
        let mut files = Files::new(&self.watch, &self.folder, Reader::Envoy);
        let client = files.upstream("state/client", &(&tls.client).into());
        if files.mistakes.is_empty() { Ok(client) } else { Err(files.mistakes) }
    }
}

/// A policy with its secrets, and nothing else that it refers to.
pub(crate) struct PolicyFile {
    pub(crate) text: String,
    /// Folder that its references are relative to.
    pub(crate) folder: PathBuf,
    pub(crate) policy: Policy,
}

pub(crate) fn read(path: &Path) -> Result<PolicyFile, Vec<Mistake>> {
    read_with(path, &|folder, reference| secret(folder, reference).map(Secret::new), &|_, _| Vec::new())
}

/// A policy as far as it can be known without its secrets, for who may not read them.
pub(crate) fn read_without_secrets(path: &Path) -> Result<PolicyFile, Vec<Mistake>> {
    read_with(path, &|_, _| Ok(Secret::LATER), &|_, _| Vec::new())
}

/// What is wrong in the files that a document names.
type Further<'f> = dyn Fn(&Path, &Document) -> Vec<Mistake> + 'f;

fn read_with(
    path: &Path,
    secret: &dyn Fn(&Path, &Reference) -> Result<Secret, String>,
    further: &Further<'_>,
) -> Result<PolicyFile, Vec<Mistake>> {
    let folder = path.parent().map(Path::to_path_buf).unwrap_or_default();
    let text = text(path).map_err(|why| vec![Mistake::whole(why)])?;
    read_text_with(text, folder, secret, further)
}

/// As [`read`], from a policy's text.
pub(crate) fn read_text(text: String, folder: PathBuf) -> Result<PolicyFile, Vec<Mistake>> {
    let secret = |folder: &Path, reference: &Reference| secret(folder, reference).map(Secret::new);
    read_text_with(text, folder, &secret, &|_, _| Vec::new())
}

fn read_text_with(
    text: String,
    folder: PathBuf,
    secret: &dyn Fn(&Path, &Reference) -> Result<Secret, String>,
    further: &Further<'_>,
) -> Result<PolicyFile, Vec<Mistake>> {
    let secret = |reference: &Reference| secret(&folder, reference);
    let policy = Policy::read_with(&text, &secret, &|document| further(&folder, document))?;
    Ok(PolicyFile { text, folder, policy })
}

/// The text of a policy file: of a file, no longer than a policy would be.
pub(crate) fn text(path: &Path) -> Result<String, String> {
    let bytes = certs::file::read(path, Content::Public).map_err(|why| match why {
        certs::CertError::Unreadable { source, .. } => source.to_string(),
        other => {
            // Whose mistake it is is told already.
            let told = other.to_string();
            told.strip_prefix(&format!("{} ", path.display()))
                .map_or(told.clone(), |rest| format!("it {rest}"))
        }
    })?;
    utf8(&bytes).map(str::to_owned)
}

/// Bytes as text, or where they are none.
pub(crate) fn utf8(bytes: &[u8]) -> Result<&str, String> {
    std::str::from_utf8(bytes).map_err(|why| {
        let line = bytes.iter().take(why.valid_up_to()).filter(|byte| **byte == b'\n').count() + 1;
        format!("it is no UTF-8 text: look at line {line}")
    })
}

/// The first digits of the text's SHA-256, as `sha256sum` prints them.
pub(crate) fn version(text: &str) -> String {
    filters::crypto::sha256(text.as_bytes()).iter().take(6).map(|byte| format!("{byte:02x}")).collect()
}

/// Mistakes as compilers tell theirs, a line each.
pub fn told(mistakes: &[Mistake], file: &Path) -> String {
    let file = file.to_string_lossy();
    mistakes.iter().map(|mistake| mistake.in_file(&file)).collect::<Vec<_>>().join("\n")
}

/// `core`, or `core 95, core-next 5`.
pub(crate) fn served_by(rule: &RouteRule) -> String {
    match rule.upstreams.as_slice() {
        [only] => only.upstream.clone(),
        several if rule.flag.is_some() => {
            let flag = rule.flag.as_deref().unwrap_or_default();
            let variants: Vec<_> = several
                .iter()
                .map(|s| format!("{} for {}", s.upstream, s.variant.as_deref().unwrap_or_default()))
                .collect();
            format!("{} of flag {flag}", variants.join(", "))
        }
        several => {
            let shares: Vec<_> = several.iter().map(|s| format!("{} {}", s.upstream, s.weight)).collect();
            shares.join(", ")
        }
    }
}

/// A secret is the whole content of its file or variable, less one trailing line break.
pub(crate) fn secret(folder: &Path, reference: &Reference) -> Result<Zeroizing<Vec<u8>>, String> {
    let bytes = match reference {
        Reference::File(path) => {
            certs::file::read(&folder.join(path), Content::Secret).map_err(|why| why.to_string())?
        }
        Reference::Env(name) => {
            let value = std::env::var_os(name).ok_or("the environment has no variable of that name")?;
            Zeroizing::new(std::os::unix::ffi::OsStringExt::into_vec(value))
        }
    };
    Ok(less_line_break(bytes))
}

pub(crate) fn less_line_break(mut bytes: Zeroizing<Vec<u8>>) -> Zeroizing<Vec<u8>> {
    if bytes.last() == Some(&b'\n') {
        bytes.pop();
    }
    bytes
}

/// Where a certificate, a key or a list is.
pub(crate) fn file(folder: &Path, reference: &At<Reference>) -> Result<PathBuf, &'static str> {
    match &reference.value {
        Reference::File(path) => Ok(folder.join(path)),
        Reference::Env(_) => Err(MUST_BE_FILE),
    }
}

pub(crate) fn stale_crl(written: StaleCrl) -> certs::StaleCrl {
    match written {
        StaleCrl::Refuse => certs::StaleCrl::Refuse,
        StaleCrl::Allow => certs::StaleCrl::Allow,
    }
}
