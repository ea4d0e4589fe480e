//! From a policy file to everything that serving it needs: keys and certificates read and checked.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use certs::{Identity, Trust};
use filters::policy::{At, Document, Mistake, Policy, Reference, RouteRule};

/// A policy and the files that it names.
#[derive(Debug)]
pub struct Loaded {
    pub policy: Policy,
    pub(crate) listeners: Vec<ListenerFiles>,
    pub(crate) upstreams: BTreeMap<String, UpstreamFiles>,
    /// Folder that the policy's references are relative to.
    pub(crate) folder: PathBuf,
}

#[derive(Debug)]
pub(crate) struct ListenerFiles {
    pub(crate) identity: Identity,
    pub(crate) clients: certs::ClientAuth,
}

#[derive(Debug)]
pub(crate) struct UpstreamFiles {
    pub(crate) identity: Identity,
    pub(crate) trust: Trust,
}

/// Reads a policy and everything it refers to. Changes nothing, connects to nothing.
pub fn load(path: &Path) -> Result<Loaded, Vec<Mistake>> {
    let folder = path.parent().map(Path::to_path_buf).unwrap_or_default();
    let text = std::fs::read_to_string(path).map_err(|why| vec![Mistake::whole(why.to_string())])?;
    let policy = Policy::read(&text, &|reference| secret(&folder, reference))?;
    let mut mistakes = Vec::new();
    let listeners = listeners(policy.document(), &folder, &mut mistakes);
    let upstreams = upstreams(policy.document(), &folder, &mut mistakes);
    if mistakes.is_empty() {
        Ok(Loaded { policy, listeners, upstreams, folder })
    } else {
        mistakes.sort_by_key(|mistake| (mistake.line, mistake.column));
        Err(mistakes)
    }
}

/// What a policy amounts to, for a person who checks it.
pub fn summary(path: &Path, loaded: &Loaded) -> String {
    let file = path.to_string_lossy();
    let mut text = String::new();
    for warning in loaded.policy.warnings() {
        let _ = writeln!(text, "warning: {}", warning.in_file(&file));
    }
    let _ = writeln!(text, "{file}: ok");
    for rule in loaded.policy.rules() {
        let filters: Vec<_> = rule.chain.names().collect();
        let _ = writeln!(text, "  route {} -> {}: {}", rule.name, served_by(rule), filters.join(", "));
    }
    text
}

/// `core`, or `core 95, core-next 5`.
fn served_by(rule: &RouteRule) -> String {
    match rule.upstreams.as_slice() {
        [only] => only.upstream.clone(),
        several => {
            let shares: Vec<_> = several.iter().map(|s| format!("{} {}", s.upstream, s.weight)).collect();
            shares.join(", ")
        }
    }
}

/// The JSON Schema of the policy document.
pub fn schema() -> String {
    serde_json::to_string_pretty(&schemars::schema_for!(Document)).unwrap_or_default()
}

/// A secret is the whole content of its file or variable, less one trailing line break.
pub(crate) fn secret(folder: &Path, reference: &Reference) -> Result<Vec<u8>, String> {
    let mut bytes = match reference {
        Reference::File(path) => std::fs::read(folder.join(path)).map_err(|why| why.to_string())?,
        Reference::Env(name) => std::env::var(name).map_err(|why| why.to_string())?.into_bytes(),
    };
    if bytes.last() == Some(&b'\n') {
        bytes.pop();
    }
    Ok(bytes)
}

fn listeners(document: &Document, folder: &Path, mistakes: &mut Vec<Mistake>) -> Vec<ListenerFiles> {
    let mut listeners = Vec::new();
    for At { value: listener, .. } in &document.listeners {
        let identity = identity(folder, &listener.tls.certificate, &listener.tls.key, mistakes);
        let clients = match &listener.tls.client_certificates {
            None => Some(certs::ClientAuth::Off),
            Some(settings) => trust(folder, &settings.ca, mistakes).map(|trust| {
                if settings.required {
                    certs::ClientAuth::Required(trust)
                } else {
                    certs::ClientAuth::Optional(trust)
                }
            }),
        };
        if let (Some(identity), Some(clients)) = (identity, clients) {
            listeners.push(ListenerFiles { identity, clients });
        }
    }
    listeners
}

fn upstreams(
    document: &Document,
    folder: &Path,
    mistakes: &mut Vec<Mistake>,
) -> BTreeMap<String, UpstreamFiles> {
    let mut upstreams = BTreeMap::new();
    for (name, At { value: upstream, .. }) in &document.upstreams {
        let identity = identity(folder, &upstream.tls.certificate, &upstream.tls.key, mistakes);
        let trust = trust(folder, &upstream.tls.ca, mistakes);
        if let (Some(identity), Some(trust)) = (identity, trust) {
            upstreams.insert(name.clone(), UpstreamFiles { identity, trust });
        }
    }
    upstreams
}

fn identity(
    folder: &Path,
    certificate: &At<Reference>,
    key: &At<Reference>,
    mistakes: &mut Vec<Mistake>,
) -> Option<Identity> {
    let chain = file(folder, certificate, mistakes);
    let key_file = file(folder, key, mistakes);
    let loaded = Identity::load(&chain?, &key_file?);
    loaded.map_err(|why| mistakes.push(Mistake::of(certificate, why.to_string()))).ok()
}

fn trust(folder: &Path, ca: &At<Reference>, mistakes: &mut Vec<Mistake>) -> Option<Trust> {
    let loaded = Trust::load(&file(folder, ca, mistakes)?);
    loaded.map_err(|why| mistakes.push(Mistake::of(ca, why.to_string()))).ok()
}

fn file(folder: &Path, reference: &At<Reference>, mistakes: &mut Vec<Mistake>) -> Option<PathBuf> {
    match &reference.value {
        Reference::File(path) => Some(folder.join(path)),
        Reference::Env(_) => {
            let message = "certificates and keys are files, so that they can be rotated: write `file:PATH`";
            mistakes.push(Mistake::of(reference, message));
            None
        }
    }
}
