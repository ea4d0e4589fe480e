//! The files that a policy names: certificates, keys, CAs, revocation lists and flags.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use certs::pki::Purpose;
use certs::{
    CertError, Certificates, Clients, Identity, IdentityFiles, Issuer, Must, Named, Reader, Set, Trust,
    TrustFiles, Watch,
};
use filters::policy::{
    At, ClientCertificates, Document, Listener, Mistake, Policy, Reference, StaleCrl, UpstreamTls,
};

use super::{Lenience, ListenerFiles, UpstreamFiles, file, stale_crl};
use crate::flags;
use crate::revoke::Operators;
use crate::state::State;

/// Loads what a policy refers to, and notes what is wrong with it.
pub(super) struct Files<'l> {
    pub(super) watch: &'l Watch,
    pub(super) folder: &'l Path,
    pub(super) reader: Reader,
    pub(super) mistakes: Vec<Mistake>,
    /// How many of the mistakes are of time alone: a certificate or CA that has expired, or is not valid yet.
    pub(super) of_time: usize,
}

/// What the document's own files hold.
pub(super) struct OfDocument {
    pub(super) listeners: Vec<ListenerFiles>,
    pub(super) upstreams: BTreeMap<String, UpstreamFiles>,
    /// Why an upstream is not served.
    pub(super) disabled: BTreeMap<String, Vec<Mistake>>,
}

impl<'l> Files<'l> {
    pub(super) fn new(watch: &'l Watch, folder: &'l Path, reader: Reader) -> Self {
        Self { watch, folder, reader, mistakes: Vec::new(), of_time: 0 }
    }
}

impl Files<'_> {
    /// Loads what can be loaded without knowing what the document means: all but the flags.
    pub(super) fn of_document(&mut self, document: &Document, lenience: &Lenience) -> OfDocument {
        let listeners =
            document.listeners.iter().filter_map(|listener| self.listener(&listener.value)).collect();
        let (upstreams, disabled) = self.upstreams(document, lenience);
        self.issuers(document);
        self.operators(document);
        // Envoy asks the state service, which may alone know where Redis is.
        if self.reader == Reader::Ours {
            self.mistakes.extend(State::mistake(&document.state, self.folder));
        }
        OfDocument { listeners, upstreams, disabled }
    }

    pub(super) fn listener(&mut self, listener: &Listener) -> Option<ListenerFiles> {
        let (tls, name) = (&listener.tls, &listener.name);
        let issuer = match &tls.ca {
            None => Some(Issuer::Any),
            Some(ca) => {
                self.trust(format!("listener/{name}/ca"), ca, None, StaleCrl::Refuse).map(Issuer::OneOf)
            }
        };
        let clients = match &tls.client_certificates {
            None => Some(Clients::Off),
            Some(settings) => self.clients(name, settings),
        };
        let must = Must { purpose: Purpose::Server, names: Vec::new(), issuer: issuer?, reader: self.reader };
        let default = self.identity(format!("listener/{name}"), (&tls.certificate, &tls.key), must.clone());
        let mut others = Vec::new();
        for (position, named) in tls.certificates.iter().enumerate() {
            let names = named.server_names.clone();
            let told = names.first().cloned().unwrap_or_else(|| (position + 1).to_string());
            let must = Must { names: names.clone(), ..must.clone() };
            let files = (&named.certificate, &named.key);
            if let Some(identity) = self.identity(format!("listener/{name}/{told}"), files, must) {
                others.push(Named { names, identity });
            }
        }
        Some(ListenerFiles { certificates: Certificates { default: default?, others }, clients: clients? })
    }

    fn clients(&mut self, listener: &str, settings: &ClientCertificates) -> Option<Clients> {
        let name = format!("listener/{listener}/clients");
        let trust = self.trust(name, &settings.ca, settings.crl.as_ref(), settings.stale_crl.value)?;
        Some(if settings.required { Clients::Required(trust) } else { Clients::Optional(trust) })
    }

    pub(super) fn operators(&mut self, document: &Document) {
        if let (Some(reference), Err(why)) =
            (&document.admin.revocation_secret, Operators::new(document, self.folder, true))
        {
            self.mistakes.push(Mistake::of(reference, format!("{why:#}")));
        }
    }

    /// Whether the flags are there that the policy counts on.
    pub(super) fn flags(&mut self, policy: &Policy) {
        let document = policy.document();
        let Some(source) = &document.flags else { return };
        let Some(path) = self.file(&source.value.file) else { return };
        match flags::read(&path) {
            Ok(flags) => {
                let lacking = policy.flag_uses().iter().flat_map(|used| {
                    let why = flags.lacks(std::slice::from_ref(used));
                    why.into_iter().map(|why| Mistake::of(&used.flag, why))
                });
                for mistake in lacking {
                    if !self.mistakes.contains(&mistake) {
                        self.mistakes.push(mistake);
                    }
                }
            }
            Err(why) => self.mistakes.push(Mistake::of(&source.value.file, why.to_string())),
        }
    }

    /// The files of each upstream. Where `lenience` allows it, an upstream whose certificate or CA has expired is
    /// disabled, and why is told instead of a mistake.
    pub(super) fn upstreams(
        &mut self,
        document: &Document,
        lenience: &Lenience,
    ) -> (BTreeMap<String, UpstreamFiles>, BTreeMap<String, Vec<Mistake>>) {
        let (mut upstreams, mut disabled) = (BTreeMap::new(), BTreeMap::new());
        for (name, At { value: upstream, .. }) in &document.upstreams {
            let (mistakes, of_time) = (self.mistakes.len(), self.of_time);
            let files = match upstream.tls.tls() {
                Some(tls) => self.upstream(&format!("upstream/{name}"), tls),
                None => Some(UpstreamFiles::default()),
            };
            if let Some(files) = files {
                upstreams.insert(name.clone(), files);
            } else if lenience.allows(name) && self.mistakes.len() - mistakes == self.of_time - of_time {
                disabled.insert(name.clone(), self.mistakes.split_off(mistakes));
            }
        }
        // Nothing is left to serve.
        if upstreams.is_empty() {
            self.mistakes.extend(std::mem::take(&mut disabled).into_values().flatten());
        }
        (upstreams, disabled)
    }

    pub(super) fn upstream(&mut self, name: &str, tls: &UpstreamTls) -> Option<UpstreamFiles> {
        let trust = match &tls.ca {
            Some(ca) => self.trust(format!("{name}/ca"), ca, tls.crl.as_ref(), tls.stale_crl.value),
            None => self.system_trust(format!("{name}/ca"), &tls.server_name),
        };
        let identity = match (&tls.certificate, &tls.key) {
            (Some(certificate), Some(key)) => {
                // Public CAs sign servers; what they say of a client of theirs binds nobody.
                let issuer = trust.clone().filter(|_| tls.ca.is_some()).map_or(Issuer::Any, Issuer::AsBefore);
                let must = Must { purpose: Purpose::Client, names: Vec::new(), issuer, reader: self.reader };
                Some(self.identity(name.to_owned(), (certificate, key), must)?)
            }
            (_, _) => None,
        };
        Some(UpstreamFiles { identity, trust: Some(trust?) })
    }

    /// The CAs that this system trusts, followed as any other file: a package may renew them while we run.
    fn system_trust(&mut self, name: String, of: &At<String>) -> Option<Set<Trust>> {
        let files = TrustFiles { ca: certs::system_ca_file(), crl: None, stale: stale_crl(StaleCrl::Refuse) };
        let loaded = self.watch.trust(name, files).map_err(|why| {
            format!(
                "without `ca` the system's CAs are needed, and they cannot be used: {why}; write `ca`, or install \
                 `ca-certificates`"
            )
        });
        loaded.map_err(|why| self.mistakes.push(Mistake::of(of, why))).ok()
    }

    fn identity(
        &mut self,
        name: String,
        (certificate, key): (&At<Reference>, &At<Reference>),
        must: Must,
    ) -> Option<Set<Identity>> {
        let files = IdentityFiles { certificate: self.file(certificate)?, key: self.file(key)? };
        let key_file = files.key.clone();
        let loaded = self.watch.identity(name, files, must);
        let is_of_key = |why: &CertError| {
            // Both references may name one file.
            is_of(why, &key_file) && !matches!(why, CertError::KeyForCertificate { .. })
        };
        let wrong = |why: CertError| match is_of_key(&why) {
            true => Mistake::of(key, why.to_string()),
            false => Mistake::of(certificate, why.to_string()),
        };
        loaded.map_err(|why| self.wrong(is_of_time(&why), wrong(why))).ok()
    }

    fn wrong(&mut self, of_time: bool, mistake: Mistake) {
        self.of_time += usize::from(of_time);
        self.mistakes.push(mistake);
    }

    pub(super) fn trust(
        &mut self,
        name: String,
        ca: &At<Reference>,
        crl: Option<&At<Reference>>,
        stale: StaleCrl,
    ) -> Option<Set<Trust>> {
        let crl_file = crl.map(|crl| self.file(crl));
        let files = TrustFiles {
            ca: self.file(ca)?,
            crl: crl_file.map_or(Some(None), |file| file.map(Some))?,
            stale: stale_crl(stale),
        };
        let crl_file = files.crl.clone();
        let loaded = self.watch.trust(name, files);
        let wrong = |why: CertError| match (crl, &crl_file) {
            (Some(crl), Some(file)) if is_of(&why, file) => Mistake::of(crl, why.to_string()),
            (_, _) => Mistake::of(ca, why.to_string()),
        };
        loaded.map_err(|why| self.wrong(is_of_time(&why), wrong(why))).ok()
    }

    fn file(&mut self, reference: &At<Reference>) -> Option<PathBuf> {
        let path = file(self.folder, reference);
        path.map_err(|why| self.mistakes.push(Mistake::of(reference, why))).ok()
    }
}

/// Whether nothing is wrong but the time.
fn is_of_time(why: &CertError) -> bool {
    matches!(why, CertError::Expired { .. } | CertError::NotYetValid { .. })
}

/// Whether that file, and not the one beside it, is what is wrong.
fn is_of(why: &CertError, file: &Path) -> bool {
    let file = std::path::absolute(file).unwrap_or_else(|_| file.to_owned());
    why.path().is_some_and(|path| path == file)
}
